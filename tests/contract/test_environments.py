"""What every environment promises the runner (agentd.environments.contract), asked of each of them."""

import asyncio
import contextlib
import itertools
import random
import subprocess
import sys

import pytest
from brokers import Mosquitto
from devices import joined

from agentd.clock import SystemClock
from agentd.environments import make_environment
from agentd.environments.spaces import fit

TICKS = 12
SESSIONS = itertools.count(1)


@contextlib.contextmanager
def robot(url):
    command = [sys.executable, "-m", "agentd.environments.standin", "--broker", url, "--agent", "cartpole", "--max-steps", "500"]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def embedded_broker():
    process = subprocess.Popen([sys.executable, "-m", "agentd.environments.broker"], stdout=subprocess.PIPE, text=True)
    try:
        yield f"mqtt://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.communicate()


@contextlib.contextmanager
def mosquitto_broker(folder):
    broker = Mosquitto(folder)
    broker.start()
    try:
        yield broker.url
    finally:
        broker.kill()


@pytest.fixture(scope="module")
def embedded():
    """The URL of agentd's own broker, with a robot that meets one test's environment after the other."""
    with embedded_broker() as url, robot(url):
        yield url


@pytest.fixture(scope="module")
def external(tmp_path_factory):
    """The URL of a Mosquitto, with such a robot."""
    with mosquitto_broker(tmp_path_factory.mktemp("broker")) as url, robot(url):
        yield url


PLANT = """
import gymnasium

class Plant:
    def __init__(self):
        self.env = gymnasium.make("CartPole-v1")

    def reset(self, seed):
        return self.env.reset(seed=seed)[0].tolist()

    def step(self, action):
        observation, reward, terminated, _, _ = self.env.step(action)
        return observation.tolist(), reward, terminated
"""


@pytest.fixture(params=["gymnasium", "python", "mqtt over mosquitto", "mqtt over the embedded broker"])
async def environment(request, make_spec, tmp_path):
    async with contextlib.AsyncExitStack() as stack:
        spec, broker = make_spec(), None
        if request.param == "python":
            (tmp_path / "plant.py").write_text(PLANT)
            spaces = {"observation_space": {"low": -100.0, "high": 100.0, "shape": [4]}, "action_space": {"discrete": 2}}
            spec = make_spec(environment={"kind": "python", "entrypoint": "plant:Plant", "folder": str(tmp_path)} | spaces)
        elif request.param != "gymnasium":
            tables = {
                "kind": "mqtt",
                "observation_space": {"low": -100.0, "high": 100.0, "shape": [4]},
                "action_space": {"discrete": 2},
                "safe_action": {"value": 0},
            }
            spec = make_spec(environment=tables)
            broker = request.getfixturevalue("external" if request.param == "mqtt over mosquitto" else "embedded")
        made = make_environment(spec, session=f"s{next(SESSIONS)}", broker=broker, clock=SystemClock(), generator=random.Random(1))
        yield await stack.enter_async_context(made)


async def test_a_device_joins_with_a_name_and_says_whether_it_is_seedable(environment):
    device = await joined(environment)
    assert device.id
    assert device.seedable is True
    assert environment.connected


async def test_an_episode_begins_at_tick_zero_inside_the_space(environment):
    device = await joined(environment)
    first = await device.reset("e1", 1, TICKS)
    assert (first.tick, first.last, first.reward) == (0, False, None)
    assert fit(environment.observation_space, first.observation) == first.observation
    assert isinstance(first.observation, list)


async def test_each_step_is_one_tick_with_its_reward_and_the_last_is_truncated(environment):
    device = await joined(environment)
    transition = await device.reset("e1", 1, TICKS)
    seen = [transition]
    while not transition.last:
        transition = await device.step(len(seen) % 2, revision="r", safe=False)
        seen.append(transition)
    assert [one.tick for one in seen] == list(range(TICKS + 1))
    assert all(isinstance(one.reward, float) for one in seen[1:])
    assert (seen[-1].terminated, seen[-1].truncated) == (False, True)
    assert all(before.received_at <= after.received_at for before, after in itertools.pairwise(seen))
    assert not any(one.fallback for one in seen)


async def test_equal_seeds_begin_equal_episodes_and_others_do_not(environment):
    device = await joined(environment)
    first, second, other = [(await device.reset(f"e{number}", seed, TICKS)).observation for number, seed in enumerate((5, 5, 6))]
    assert first == second
    assert first != other


async def test_an_episode_can_be_left_for_a_new_one(environment):
    device = await joined(environment)
    await device.reset("e1", 1, TICKS)
    await device.step(1, revision="r", safe=False)
    await device.rest(environment.safe_action)
    assert (await device.reset("e2", 1, TICKS)).tick == 0
    assert (await device.step(1, revision="r", safe=False)).tick == 1


async def test_waiting_for_an_episode_that_nobody_begins_can_be_given_up(environment):
    device = await joined(environment)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await device.begun()
    assert (await device.reset("e1", 1, TICKS)).tick == 0


async def test_the_safe_action_is_in_the_action_space(environment):
    assert fit(environment.action_space, environment.safe_action) == environment.safe_action


async def test_announcing_and_closing_never_raise(environment):
    for status in ("starting", "ready", "paused", "stopped"):
        await environment.announce(status)
    await environment.aclose()
    await environment.announce("stopped")
    await environment.aclose()
