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

    Plain values, lists, mappings with texts as keys, and arrays; finite numbers only, and at most `MAX_STATE` bytes.
    """
    for where, value in _leaves(state, "state", MAX_DEPTH):
        if not _is_plain(value):
            raise ValueError(f"{where} is a {type(value).__name__}")
        if not _is_finite(value):
            raise ValueError(f"{where} has a number that is not finite")
    try:
        size = len(codec.encode(state))
    except CodecError as error:
        raise ValueError(str(error)) from error
    if size > MAX_STATE:
        raise ValueError(f"state has {size} bytes, {MAX_STATE} may be handed over")
    return state


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
