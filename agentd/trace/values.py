"""What bounds and choices allow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from agentd.errors import TraceError


def check_bounds(bounds: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    """`bounds` as a pair. Raises TraceError where they are not (low, high) with low <= high."""
    try:
        low, high = bounds
        ordered = (low is None or low <= math.inf) and (high is None or -math.inf <= high) and (low is None or high is None or low <= high)
    except (TypeError, ValueError) as error:
        raise TraceError(f"bounds must be (low, high), either may be None: {bounds!r}") from error
    if not ordered:
        raise TraceError(f"bounds must be (low, high) with low <= high: {bounds!r}")
    return low, high


def check_choices(choices: Sequence[Any]) -> tuple[Any, ...]:
    """`choices` as a tuple. Raises TraceError where they are no collection, or an empty one."""
    if isinstance(choices, str | bytes) or not isinstance(choices, Iterable):
        raise TraceError(f"choices must be a list of values: {choices!r}")
    found = tuple(choices)
    if not found:
        raise TraceError("choices must name at least one value")
    return found


def check_value(value: Any, bounds: tuple[float | None, float | None] | None, choices: tuple[Any, ...] | None) -> None:
    """Raises TraceError, with the reason, for a value that bounds or choices refuse. Bounds hold for every item of a list or array."""
    if choices is not None and not any(type(value) is type(choice) and value == choice for choice in choices):
        raise TraceError(f"{value!r} is not one of the choices {list(choices)!r}")
    if bounds is None:
        return
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        for item in value:
            check_value(item, bounds, None)
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise TraceError(f"{value!r} is no number, but has bounds {bounds}")
    low, high = bounds
    if (low is not None and value < low) or (high is not None and value > high):
        raise TraceError(f"{value!r} is outside its bounds [{low}, {high}]")
