"""Spaces: from Gymnasium, and what a value looks like inside one."""

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentd.errors import PlantError
from agentd.records import Space, Value

_TOLERANCE = 1e-6  # bounds are often float32, values float64


def from_gymnasium(space: Any) -> Space:
    """The space of a Gymnasium environment. Raises PlantError for kinds other than Box and Discrete."""
    import gymnasium.spaces  # noqa: PLC0415 - it costs 0.3 s that a runner of MQTT devices doesn't need

    if isinstance(space, gymnasium.spaces.Discrete):
        return Space(kind="discrete", n=int(space.n), start=int(space.start))
    if isinstance(space, gymnasium.spaces.Box):
        return Space(kind="box", shape=tuple(space.shape), low=_bounds(space.low), high=_bounds(space.high))
    raise PlantError(f"a Gymnasium space of kind {type(space).__name__} is not supported: Box and Discrete are")


def _bounds(bounds: Any) -> tuple[float | None, ...]:
    return tuple(float(bound) if math.isfinite(bound) else None for bound in bounds.ravel())


def safe_default(space: Space) -> Value:
    """An action that does the least: the first of a discrete space, the value nearest to zero of a box. Raises PlantError for `any`."""
    if space.kind == "discrete":
        return space.start
    if space.kind == "box":
        low, high = spread(space.low, space, -math.inf), spread(space.high, space, math.inf)
        return fit(space, np.clip(np.zeros(low.shape), low, high).reshape(space.shape))
    raise PlantError("an environment whose action space is not declared needs [environment.safe_action]")


def spread(bound: float | Sequence[float | None] | None, space: Space, missing: float) -> Any:
    """A declared bound as a flat array with one entry per component; `missing` where there is none."""
    count = math.prod(space.shape)
    if bound is None:
        return np.full(count, missing)
    if isinstance(bound, int | float):
        return np.full(count, float(bound))
    return np.array([missing if item is None else float(item) for item in bound])


def fit(space: Space, value: Value) -> Value:
    """`value` as a plain value of `space`. Raises ValueError, saying why, when it is not in it."""
    if value is None:
        raise ValueError("nothing was given")
    if space.kind == "discrete":
        return _fit_discrete(space, value)
    if space.kind == "box":
        return _fit_box(space, value)
    return value


def plain_info(info: Mapping[str, Any]) -> dict[str, Value]:
    """What of an environment's info can cross a border: numbers, words and arrays of numbers, also in lists and tables."""
    plain = {str(key): _plain(value) for key, value in info.items()}
    return {key: value for key, value in plain.items() if value is not _LEFT_OUT and _plain(key) is not _LEFT_OUT}


_LEFT_OUT = object()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else _LEFT_OUT
    if isinstance(value, str):
        return value if _is_unicode(value) else _LEFT_OUT
    if isinstance(value, float | type(None)) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf"):
        return value
    if isinstance(value, Mapping):
        return plain_info(value)
    if isinstance(value, list | tuple):
        return [item for item in map(_plain, value) if item is not _LEFT_OUT]
    return _LEFT_OUT


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _fit_discrete(space: Space, value: Value) -> int:
    if isinstance(value, np.generic | np.ndarray) and value.size == 1:
        value = value.item()
    if not isinstance(value, int):  # True and False are whole numbers here, as `angle > 0` is an action
        raise ValueError(f"a whole number was expected, not {_shown(value)}")  # noqa: TRY004 - one kind of error for "not in the space"
    if not space.start <= value < space.start + space.n:
        raise ValueError(f"{value} is not one of {space.start}..{space.start + space.n - 1}")
    return int(value)


def _fit_box(space: Space, value: Value) -> Value:
    if len(space.shape) == 1 and type(value) is list and len(value) == space.shape[0]:
        items = value  # the common case
    elif math.prod(space.shape) == 1:
        items = _components((), _unwrapped(value))
    else:
        items = _components(space.shape, value)
    fitted = [_within(item, _bound(space.low, index), _bound(space.high, index), index) for index, item in enumerate(items)]
    if len(space.shape) == 0:
        return fitted[0]
    return fitted if len(space.shape) == 1 else np.array(fitted).reshape(space.shape)


def _unwrapped(value: Value) -> Value:
    """The one number of a value that holds no more, however it is wrapped."""
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return value.reshape(()) if isinstance(value, np.ndarray) and value.size == 1 else value


def _components(shape: tuple[int, ...], value: Value) -> list[Any]:
    """What a value of `shape` consists of, in C order. Raises ValueError for one of another shape.

    It looks at no more than such a value has. numpy would take all that a hostile program sends, and make of a long text among many short
    ones an array in which each has room for the longest.
    """
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in "biuf" or value.shape != shape:
            raise ValueError(f"numbers of shape {shape} were expected, not {value.dtype} of shape {value.shape}")
        with np.errstate(over="ignore"):  # what a float can't hold is infinite, and refused as that
            return list(value.astype(float).ravel().tolist())
    if not shape:
        return [value]
    if not isinstance(value, list | tuple) or len(value) != shape[0]:
        raise ValueError(f"numbers of shape {shape} were expected, not {_shown(value)}")
    return [component for item in value for component in _components(shape[1:], item)]


def _bound(bound: float | tuple[float | None, ...] | None, index: int) -> float | None:
    return bound[index] if isinstance(bound, tuple) else bound


def _within(item: Any, low: float | None, high: float | None, index: int) -> float:
    if not isinstance(item, int | float):
        raise ValueError(f"component {index} is not a number: {_shown(item)}")  # noqa: TRY004 - one kind of error for "not in the space"
    try:
        number = float(item)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"component {index} is {number}")
    if low is not None and number < low:
        if number < low - _TOLERANCE * max(1.0, abs(low)):
            raise ValueError(f"component {index} is {number:.6g}, below {low:.6g}")
        return low
    if high is not None and number > high:
        if number > high + _TOLERANCE * max(1.0, abs(high)):
            raise ValueError(f"component {index} is {number:.6g}, above {high:.6g}")
        return high
    return number


class _Shown(reprlib.Repr):
    """A few words of a value, however large it is."""

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        return f"a table of {len(x)}" if len(x) > self.maxdict else super().repr_dict(x, level)  # it would be sorted first


_shown = _Shown().repr
