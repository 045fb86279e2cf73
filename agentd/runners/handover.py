"""What a policy hands over to its successor when they change places without a reset: integrators, filters, the phase of a gait.

It comes out of a process that runs untrusted code and goes into another one, so it is checked in between.
"""

import enum
import math
import sys
from collections.abc import Iterator
from typing import Any

from agentd import codec
from agentd.errors import CodecError
from agentd.records import Value

MAX_STATE = 64 * 1024
"""Bytes of a state, encoded: it has to pass between two ticks."""
MAX_DEPTH = 16
_SAFE = frozenset({int, bool, str, bytes, type(None)})


class HandOver(enum.StrEnum):
    """What became of a state; `agentd_handovers_total` counts them."""

    LOADED = "loaded"
    """The successor goes on with it."""
    STATELESS = "stateless"
    """The predecessor has none: it has no method `state`, or that gave None."""
    UNUSABLE = "unusable"
    """The predecessor raised, hung or died, or what it gave was refused: the successor begins afresh."""
    REFUSED = "refused"
    """The successor's `load_state` raised: it begins afresh; a candidate's episode is over."""
    LATE = "late"
    """It was not there when the next action was due: the predecessor gave that one, too."""


def check_state(state: Value) -> Value:
    """`state` as it may be handed over. Raises ValueError, saying what is wrong with it.

    Plain values, lists, mappings with texts as keys, and arrays; finite numbers only, and at most `MAX_STATE` bytes. Plants wait for their
    actions meanwhile, so nothing that is larger is looked through.
    """
    try:
        size = len(codec.encode(state))
    except CodecError as error:
        size, unsendable = 0, str(error)
    else:
        unsendable = ""
    if size > MAX_STATE:
        raise ValueError(f"state has {size} bytes, {MAX_STATE} may be handed over")
    if not _is_sound(state, MAX_DEPTH):
        for where, value in _leaves(state, "state", MAX_DEPTH):
            if not _is_plain(value):
                raise ValueError(f"{where} is a {type(value).__name__}")
            if not _is_finite(value):
                raise ValueError(f"{where} has a number that is not finite")
    if unsendable:
        raise ValueError(unsendable)
    return state


def _is_sound(value: Any, depth: int) -> bool:
    """Whether all of it is plain and finite; where something isn't, `_leaves` finds it for people to read."""
    kind = type(value)
    if kind is float:
        return math.isfinite(value)
    if kind in _SAFE:
        return True
    if depth > 0 and (kind is list or kind is tuple):
        return all(_is_sound(item, depth - 1) for item in value)
    if depth > 0 and kind is dict:
        return all(type(key) is str and _is_sound(item, depth - 1) for key, item in value.items())
    return _is_plain(value) and _is_finite(value)


def _leaves(value: Any, where: str, depth: int) -> Iterator[tuple[str, Any]]:
    """What is in `value` and no container, each with the way to it. A container that is nested too deep, or has other keys, is one."""
    if depth > 0 and isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{where}[{index}]", depth - 1)
    elif depth > 0 and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        for key, item in value.items():
            yield from _leaves(item, f"{where}.{key}", depth - 1)
    else:
        yield where, value


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | bytes) or _is_array(value)


def _is_finite(value: Any) -> bool:
    if _is_array(value):
        return bool(sys.modules["numpy"].isfinite(value).all())
    return not isinstance(value, float) or math.isfinite(value)


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray | numpy.generic) and value.dtype.kind in "biufc"
