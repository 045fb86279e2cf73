"""Whether a value lies in a space, and what it looks like there."""

import math

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd import codec
from agentd.environments.spaces import fit, from_gymnasium, plain_info, safe_default
from agentd.errors import PlantError
from agentd.records import Space

TWO = Space(kind="discrete", n=2)
TORQUE = Space(kind="box", shape=(1,), low=-2.0, high=2.0)
ARM = Space(kind="box", shape=(2,), low=(-1.0, None), high=(1.0, 5.0))


@pytest.mark.parametrize(("value", "fitted"), [(0, 0), (1, 1), (True, 1), (False, 0), (np.int64(1), 1), (np.array([1]), 1)])
def test_whole_numbers_and_truths_are_discrete_actions(value, fitted):
    assert fit(TWO, value) == fitted
    assert type(fit(TWO, value)) is int


@pytest.mark.parametrize("value", [None, 2, -1, 0.5, 1.0, "1", [1], {}, math.nan, np.array([0, 1])])
def test_everything_else_is_no_discrete_action(value):
    with pytest.raises(ValueError):
        fit(TWO, value)


@pytest.mark.parametrize("value", [1.5, [1.5], (1.5,), np.array([1.5]), np.float32(1.5)])
def test_one_number_fits_a_box_of_one_number_however_it_is_wrapped(value):
    assert fit(TORQUE, value) == [1.5]


@pytest.mark.parametrize(
    "value",
    [None, [], [1, 2], "1", [None], ["1"], [math.nan], [math.inf], 2.1, [-2.01], {"a": 1}, [1j], [10**400], 10**400, [[1], [1, 2]], b"1"],
)
def test_what_is_no_number_or_out_of_bounds_is_refused(value):
    with pytest.raises(ValueError):
        fit(TORQUE, value)


@pytest.mark.parametrize(
    "value",
    [
        ["x" * 400_000] + [""] * 400_000,  # as an array of numpy's, 596 GiB
        [["x" * 400_000] + [""] * 400_000, 0.5],
        {"x" * 400_000: 0},
        [0.5] * 400_000,
        [0.5, "x" * 400_000],
        np.zeros((2, 50_000)),
        np.longdouble(2) ** 2000,
    ],
)
def test_what_a_hostile_program_makes_large_is_refused_in_few_words_and_takes_no_memory(value):
    image = Space(kind="box", shape=(2, 2))
    for space in (TWO, TORQUE, ARM, image):
        with pytest.raises(ValueError) as refused:
            fit(space, value)
        assert len(str(refused.value)) < 500


def test_rounding_at_a_bound_is_forgiven_and_clipped():
    assert fit(TORQUE, 2.0 + 1e-9) == [2.0]


def test_bounds_hold_by_component_and_none_is_unbounded():
    assert fit(ARM, [0.5, -1e9]) == [0.5, -1e9]
    with pytest.raises(ValueError, match="component 1 is 6, above 5"):
        fit(ARM, [0.5, 6])


def test_more_dimensions_stay_an_array():
    image = Space(kind="box", shape=(2, 2), low=0.0, high=1.0)
    assert fit(image, [[0, 1], [1, 0]]).shape == (2, 2)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_a_value_is_fitted_to_the_space_or_refused_by_value_error_whatever_it_is(value):
    for space in (TWO, TORQUE, ARM):
        try:
            fitted = fit(space, value)
        except ValueError:
            continue
        assert fit(space, fitted) == fitted


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0"])
def test_a_gymnasium_space_holds_what_its_environment_shows_and_takes(name):
    plant = gymnasium.make(name)
    seen, acted = from_gymnasium(plant.observation_space), from_gymnasium(plant.action_space)
    observation, _ = plant.reset(seed=1)
    fit(seen, observation.tolist())
    fit(acted, plant.action_space.sample())
    fit(acted, safe_default(acted))
    plant.close()


def test_a_space_that_is_not_supported_is_said():
    with pytest.raises(PlantError, match="Dict"):
        from_gymnasium(gymnasium.spaces.Dict({}))


def test_the_default_safe_action_is_nearest_to_nothing():
    assert safe_default(TWO) == 0
    assert safe_default(TORQUE) == [0.0]
    assert safe_default(Space(kind="box", shape=(1,), low=3.0, high=4.0)) == [3.0]
    with pytest.raises(PlantError):
        safe_default(Space())


def test_of_an_info_whatever_can_not_cross_a_border_is_left_out():
    carried = {"a": 2**64 - 1, "b": -(2**63), "c": {"d": [True, None, 1.5]}, "e": np.float32(0.5)}
    others = {"f": 2**64, "g": [-(2**63) - 1], "h": "half a pair: \ud800", "\ud800": 1, "i": np.complex128(1j), "j": object()}
    plain = plain_info({**carried, **others})
    assert plain == {**carried, "g": []}
    assert codec.decode(codec.encode(plain), object) == plain
