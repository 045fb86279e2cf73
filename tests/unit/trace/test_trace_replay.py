"""Replay: recorded steps through another revision, actions compared; what can't be replayed is said, with the reason."""

import math

import numpy as np
import pytest

from agentd.records import Step
from agentd.trace import bundle, model, node
from agentd.trace.parameters import assign, find_parameters
from agentd.trace.replay import compare, difference, replay


@model
class Policy:
    """Remembers the sum of what it saw."""

    def __init__(self):
        self.gain = node(2.0, trainable=True)
        self.total = 0.0

    def reset(self, seed=None):
        self.total = float(seed or 0)

    @bundle(trainable=True)
    def act(self, observation):
        self.total += observation[0]
        return self.gain * self.total


def record(policy, ticks=20, seed=3, safe=()):
    policy.reset(seed)
    steps = []
    for tick in range(ticks):
        observation = [math.sin(tick), 1.0]
        action = policy.act(observation).data
        steps.append(
            Step(tick=tick, observation=observation, action=0.0 if tick in safe else action, safe="late" if tick in safe else None)
        )
    return steps


def test_the_same_revision_reproduces_every_action():
    result = replay(Policy(), record(Policy()), seed=3)
    assert result.same
    assert (result.ticks, result.compared, result.differing, result.skipped) == (20, 20, 0, {})


def test_another_revision_shows_where_and_how_much_it_differs():
    other = Policy()
    assign(find_parameters(other)["gain"], 3.0)
    result = replay(other, record(Policy()), seed=3)
    assert not result.same
    assert result.differing == 20
    first = result.differences[0]
    assert (first.tick, first.recorded, first.replayed, first.size) == (0, 6.0, 9.0, 3.0)
    assert result.largest == pytest.approx(max(one.size for one in result.differences))
    assert replay(other, record(Policy()), seed=3, tolerance=100.0).same


def test_safe_ticks_are_skipped_but_seen_by_the_policys_memory():
    result = replay(Policy(), record(Policy(), safe=(4, 5)), seed=3)
    assert result.same
    assert result.skipped == {"safe action (late)": 2}
    assert result.compared == 18


def test_what_was_not_recorded_whole_is_not_replayed():
    steps = [
        Step(tick=0, observation={"$type": "image", "sha256": "x"}, action=1.0),
        Step(tick=1, observation=[1.0, {"deep": {"$type": "text", "length": 1}}], action=1.0),
        Step(tick=2, observation=[1.0], action={"$type": "array"}),
    ]
    result = replay(Policy(), steps)
    assert result.compared == 0
    assert not result.same
    assert result.skipped == {"the observation was not recorded whole": 2, "the action was not recorded whole": 1}


def test_a_policy_that_raises_ends_the_replay_with_its_error():
    other = Policy()
    assign(
        find_parameters(other)["act"], "def act(self, observation):\n    return 1 / observation[0] if observation[0] else self.total / 0"
    )
    result = replay(other, record(Policy()), seed=3)
    assert (result.failed_at, result.compared, result.same) == (0, 0, False)
    assert "ZeroDivisionError" in result.error or "float division" in result.error
    assert result.skipped == {"not replayed: the policy had failed before": 20}


@pytest.mark.parametrize(
    ("one", "other", "size"),
    [
        (1, 1.0, 0.0),
        (1.0, 1.5, 0.5),
        ([1, 2], [1, 4], 2.0),
        ([1], [1, 2], math.inf),
        (np.array([1.0, 2.0]), [1.0, 2.5], 0.5),
        ((1, 2), [1, 2], 0.0),
        ({"a": 1}, {"a": 3}, 2.0),
        ({"a": 1}, {"b": 1}, math.inf),
        ("left", "left", 0.0),
        ("left", "right", math.inf),
        (math.nan, math.nan, 0.0),
        (math.nan, 1.0, math.inf),
        (math.inf, math.inf, 0.0),
        (math.inf, -math.inf, math.inf),
        (10**400, 1.0, math.inf),
        (10**400, 10**400, 0.0),
        (10**400, math.nan, math.inf),
        (None, None, 0.0),
        (None, 0, math.inf),
        ([], [], 0.0),
    ],
)
def test_the_size_of_a_difference(one, other, size):
    assert difference(one, other) == size


def test_comparing_needs_no_program():
    steps = [Step(tick=5, observation=[0.0], action="left"), Step(tick=6, observation=[0.0], action="left")]
    result = compare(steps, {5: "left", 6: "right"})
    assert (result.compared, result.differing, result.largest) == (2, 1, None)
    assert result.differences[0].size is None
