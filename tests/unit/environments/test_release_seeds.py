"""The two episodes of a pair begin alike, also on a plant that draws its task before `reset` has seeded it."""

import random

import gymnasium
import numpy as np
import pytest

from agentd.clock import SystemClock
from agentd.environments import Joined, make_environment
from agentd.errors import PlantError


class Tasks(gymnasium.Env):
    """As Meta-World does it: the task comes from the generator as it was left, and only then is that seeded."""

    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (2,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def seed(self, seed):
        self.np_random = np.random.default_rng(seed)

    def reset(self, *, seed=None, options=None):
        task = self.np_random.uniform(-1.0, 1.0)
        super().reset(seed=seed)
        return np.array([task, self.np_random.uniform(-1.0, 1.0)]), {}

    def step(self, action):
        return np.zeros(2), 0.0, True, False, {}


@pytest.fixture
def make(make_spec):
    gymnasium.register("agentd-tests/Tasks-v0", Tasks)

    def made(**keys):
        spec = make_spec(environment={"kind": "gymnasium", "id": "agentd-tests/Tasks-v0", **keys})
        return make_environment(spec, session="s", broker=None, clock=SystemClock(), generator=random.Random(1))

    yield made
    del gymnasium.registry["agentd-tests/Tasks-v0"]


async def first_observations(environment, seeds):
    async with environment:
        joined = await anext(environment.changes())
        assert isinstance(joined, Joined)
        return [(await joined.device.reset(f"e{number}", seed, 10)).observation for number, seed in enumerate(seeds)]


async def test_the_named_method_seeds_what_reset_seeds_too_late(make):
    one, two, other = await first_observations(make(seed_with="seed"), (5, 5, 6))
    assert one == two
    assert one[0] != other[0]


async def test_without_it_such_a_plant_begins_with_another_task(make):
    one, two = await first_observations(make(), (5, 5))
    assert one[0] != two[0]
    assert one[1] == two[1]


async def test_an_episode_without_a_seed_is_left_to_chance(make):
    one, two = await first_observations(make(seed_with="seed"), (None, None))
    assert one != two


def test_a_method_that_is_not_there_is_said_so_before_anything_starts(make):
    with pytest.raises(PlantError, match=r"seed_with.*has no method 'sede'"):
        make(seed_with="sede")
