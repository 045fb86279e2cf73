"""What may pass from one policy to its successor."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd import codec
from agentd.runners.handover import MAX_STATE, check_state

NUMBERS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
STATES = st.recursive(
    NUMBERS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4), max_leaves=20
)


@given(STATES)
def test_plain_finite_values_pass_as_they_are(state):
    assert check_state(state) is state
    assert codec.decode(codec.encode(state), object) == state


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"integral": float("nan")}, r"state\.integral has a number that is not finite"),
        ([1.0, [2.0, float("-inf")]], r"state\[1\]\[1\] has"),
        (np.array([1.0, np.inf]), "not finite"),
        (np.array([None]), "state is a ndarray"),
        ({1: 2.0}, "state is a dict"),
        ({"set": {1}}, "state.set is a set"),
        ("x" * MAX_STATE, "65541 bytes"),
    ],
    ids=["nan", "infinity", "array", "objects", "keys", "set", "size"],
)
def test_anything_else_is_refused_with_the_place_where_it_is(state, words):
    with pytest.raises(ValueError, match=words):
        check_state(state)


def test_what_is_nested_too_deep_is_refused():
    state: list = []
    for _ in range(100):
        state = [state]
    with pytest.raises(ValueError, match="is a list"):
        check_state(state)


def test_what_is_too_large_is_not_looked_through_while_plants_wait():
    with pytest.raises(ValueError, match="bytes, 65536 may be handed over"):
        check_state([float("nan")] + [0] * MAX_STATE)


def test_arrays_of_numbers_pass():
    state = {"filter": np.arange(6.0).reshape(2, 3), "count": np.int64(3)}
    assert check_state(state) is state
