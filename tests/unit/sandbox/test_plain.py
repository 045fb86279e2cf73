"""Plain values between a trusted program and its leaf."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd import codec
from agentd.errors import CodecError
from agentd.sandbox.plain import MAX_DEPTH, NotPlainError, pack, unpack

ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(), st.complex_numbers(allow_nan=False)
)
KEYS = st.one_of(st.integers(), st.text(), st.tuples(st.integers(), st.text()), st.frozensets(st.integers(), max_size=3))
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.sets(KEYS, max_size=4),
        st.frozensets(KEYS, max_size=4),
        st.dictionaries(st.text(), inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=12,
)


def travelled(value: Any) -> Any:
    return unpack(codec.decode(codec.encode(pack(value)), Any))


def typed(value: Any) -> Any:
    """A value with its types, which `==` alone would not tell apart."""
    if isinstance(value, list | tuple):
        return type(value), [typed(item) for item in value]
    if isinstance(value, dict):
        return dict, [(typed(key), typed(item)) for key, item in value.items()]
    return type(value), value


@given(VALUES)
def test_plain_values_keep_their_types(value: Any) -> None:
    assert typed(travelled(value)) == typed(value)


def test_arrays_and_scalars_keep_theirs_and_may_be_written_to() -> None:
    array = travelled(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert (array.dtype, array.shape) == (np.float32, (2, 3))
    array[0, 0] = 7
    for scalar in (np.float64(0.5), np.int8(3), np.bool_(1)):
        assert (type(travelled(scalar)), travelled(scalar)) == (type(scalar), scalar)


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value",
    [object(), print, Text("x"), np.array([None]), np.array(["x"]), [{"a": object()}], {object(): 1}],
    ids=["object", "function", "subclass of str", "array of objects", "array of texts", "object in a list", "object as a key"],
)
def test_what_is_not_plain_stays(value: Any) -> None:
    with pytest.raises(NotPlainError):
        pack(value)


def test_what_is_nested_too_deeply_stays() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH + 2):
        value = [value]
    with pytest.raises(NotPlainError, match="nested"):
        pack(value)


@given(st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=20))
def test_whatever_arrives_is_a_plain_value_or_is_refused(message: Any) -> None:
    try:
        value = unpack(message)
    except CodecError:
        return
    pack(value)
