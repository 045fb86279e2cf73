"""The action envelope: what a plant may be given."""

import pytest

from agentd.errors import PlantError
from agentd.records import Space
from agentd.runners.envelope import Envelope

TORQUE = Space(kind="box", shape=(1,), low=-2.0, high=2.0)


def test_an_action_inside_is_passed_as_a_plain_value():
    assert Envelope(TORQUE).check((1,), None) == [1.0]


def test_declared_limits_are_narrower_than_the_space(make_spec):
    envelope = Envelope.from_spec(make_spec(guardrails={"action_limits": {"low": -1.0, "high": 1.0}}), TORQUE)
    assert envelope.check([1.0], None) == [1.0]
    with pytest.raises(ValueError, match="above 1"):
        envelope.check([1.5], None)


def test_the_rate_of_change_is_limited_between_two_actions_of_the_policy(make_spec):
    envelope = Envelope.from_spec(make_spec(guardrails={"action_limits": {"rate": 0.5}}), TORQUE)
    assert envelope.check([0.5], [0.0]) == [0.5]
    with pytest.raises(ValueError, match=r"changes by 0\.75"):
        envelope.check([0.75], [0.0])


def test_after_a_safe_action_the_rate_has_nothing_to_be_measured_against(make_spec):
    envelope = Envelope.from_spec(make_spec(guardrails={"action_limits": {"rate": 0.5}}), TORQUE)
    assert envelope.check([2.0], None) == [2.0]


def test_where_no_space_is_declared_the_limits_are_the_space(make_spec):
    envelope = Envelope.from_spec(make_spec(guardrails={"action_limits": {"low": [-1, -2], "high": 3, "rate": 1.5}}), Space())
    assert envelope.check([1, 2], None) == [1.0, 2.0]
    for action in (0.5, [0.0, -2.5], [float("nan"), 0.0], {"x": 1}, [1, 2, 3]):
        with pytest.raises(ValueError):
            envelope.check(action, None)
    with pytest.raises(ValueError, match="changes by 2"):
        envelope.check([0, 0], [0, 2])


@pytest.mark.parametrize("limits", [{"low": [-1, -1]}, {"high": [1, 1, 1], "rate": 0.5}])
def test_limits_of_more_or_fewer_components_than_an_action_has_are_refused_at_once(make_spec, limits):
    with pytest.raises(PlantError, match="where an action has 1 components"):
        Envelope.from_spec(make_spec(guardrails={"action_limits": limits}), TORQUE)


def test_without_limits_the_space_is_the_limit(make_spec):
    with pytest.raises(ValueError, match="below -2"):
        Envelope.from_spec(make_spec(), TORQUE).check(-3, None)
