"""Whether a plain value lies in a space: what `agent.toml` declares is checked before any environment exists."""

import math
from typing import Any

from agentd.records import Space


def why_outside(space: Space, value: Any) -> str | None:
    """Why `value` (numbers, nested lists) is not in `space`, as a sentence's end; None if it is inside."""
    if space.kind == "discrete":
        last = space.start + space.n - 1
        inside = isinstance(value, int) and not isinstance(value, bool) and space.start <= value <= last
        return None if inside else f"should be a whole number from {space.start} to {last}, not {value!r}"
    if space.kind == "box":
        try:
            shape, flat = _flatten(value)
        except ValueError as error:
            return str(error)
        if shape != space.shape:
            return f"should have the shape {list(space.shape)}, not {list(shape)}"
        for number, low, high in zip(flat, ends(space.low, len(flat)), ends(space.high, len(flat)), strict=True):
            if not ((low is None or number >= low) and (high is None or number <= high)):
                return f"should lie between {low} and {high}, not at {number}"
    return None


def _flatten(value: Any) -> tuple[tuple[int, ...], list[float]]:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return (), [value]
    if not isinstance(value, list | tuple):
        raise ValueError(f"should be a finite number, or a list of them, not {value!r}")  # noqa: TRY004 - about a file, not a call
    parts = [_flatten(item) for item in value]
    if len({shape for shape, _ in parts}) > 1:
        raise ValueError("should have rows of one length")
    return (len(parts), *(parts[0][0] if parts else ())), [number for _, flat in parts for number in flat]


def ends(end: float | tuple[float | None, ...] | None, count: int) -> tuple[float | None, ...]:
    """One end of a box for each of `count` numbers: a single number holds for all."""
    return end if isinstance(end, tuple) else (end,) * count
