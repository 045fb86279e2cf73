"""What search may vary: numbers, booleans, choices, leaves of structured values, and numeric constants inside code.

A *point* is one value per dimension, in the order of the dimensions. Bounds come from the parameter. A number without them ranges over
[-4s, 4s], symmetric because what breaks a plant most often is a sign; s is its magnitude now or in the source, whichever is larger. A
zero takes s from its neighbours in the same value, or 1. A range bounded on both sides that spans two decades or more is searched on a log
scale.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from agentd.opto.constants import Constant, Place, align_constants, find_constants, replace_constants
from agentd.records import Kind, Parameter, Value

Number = int | float
Point = tuple[Value, ...]
REACH = 4.0
_DECADES = 100.0
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Dimension:
    """One thing that search varies.

    `choices` is set for what has no order. `group` and `statement` say which dimensions belong together: those of one parameter, and
    those written in one statement or list. `signed` is False where a change of sign or scale together with others makes no sense.
    """

    label: str
    path: str
    statement: tuple[str, str]
    current: Value
    default: Value = 0
    low: float = 0.0
    high: float = 0.0
    integer: bool = False
    log: bool = False
    choices: tuple[Value, ...] | None = None
    signed: bool = True

    def holds(self, value: Value) -> bool:
        """Whether `value` is inside."""
        if self.choices is not None:
            return any(same(value, choice) for choice in self.choices)
        return bool(self.low <= value <= self.high)

    def rounded(self, value: Number) -> Number:
        """`value` with four significant digits, inside the bounds: people will read it in a diff."""
        if self.integer:
            return int(min(max(round(value), math.ceil(self.low)), math.floor(self.high)))
        short = float(f"{value:.{_DIGITS}g}")
        return min(max(short, self.low), self.high)


def same(value: Value, other: Value) -> bool:
    """Equality that tells True from 1, but not 1 from 1.0."""
    if isinstance(value, bool) or isinstance(other, bool):
        return isinstance(value, bool) and isinstance(other, bool) and bool(value == other)
    if isinstance(value, list | tuple) and isinstance(other, list | tuple):
        return len(value) == len(other) and all(map(same, value, other))
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        return value.keys() == other.keys() and all(same(value[key], other[key]) for key in value)
    return bool(value == other)


class Space:
    """The dimensions of an agent's parameters, around the values of the running revision.

    Which constants of a code parameter count is decided on the source's default where the running code still has its structure, so that
    it doesn't depend on the values that search itself has set.
    """

    def __init__(self, parameters: Sequence[Parameter], values: Mapping[str, Value], earlier: Sequence[Mapping[str, Value]] = ()) -> None:
        self._parameters = tuple(parameters)
        self._values = {parameter.path: values.get(parameter.path, parameter.default) for parameter in parameters}
        self._code: dict[str, tuple[str, tuple[Constant, ...]]] = {}
        for parameter in parameters:
            if parameter.kind is Kind.CODE:
                self._code[parameter.path] = self._reference(parameter)
        found = [dimension for parameter in parameters for dimension in self._dimensions_of(parameter)]
        self.dimensions: tuple[Dimension, ...] = tuple(found)
        points = [point for values in earlier if (point := self._read(values)) is not None]
        self.dimensions = tuple(_ranged(dimension, found, [point[index] for point in points]) for index, dimension in enumerate(found))

    @property
    def current(self) -> Point:
        """The point of the running revision."""
        return tuple(dimension.current for dimension in self.dimensions)

    def point(self, values: Mapping[str, Value]) -> Point | None:
        """Where `values` (full) lie; None where they differ from the running revision in more than the dimensions, or lie outside."""
        point = self._read(values)
        if point is None or not all(dimension.holds(value) for dimension, value in zip(self.dimensions, point, strict=True)):
            return None
        return point

    def values(self, point: Point) -> dict[str, Value]:
        """The parameter values at `point`, of those parameters only that change."""
        changed: dict[str, Value] = {}
        position = 0
        for parameter in self._parameters:
            path, current = parameter.path, self._values[parameter.path]
            count = sum(dimension.path == path for dimension in self.dimensions)
            part, position = point[position : position + count], position + count
            if count == 0:
                continue
            value = self._assembled(parameter, part)
            if not same(value, current):
                changed[path] = value
        return changed

    def _assembled(self, parameter: Parameter, part: Point) -> Value:
        current = self._values[parameter.path]
        if parameter.kind is Kind.CODE:
            reference, constants = self._code[parameter.path]
            now = _moved(reference, constants, current)
            return replace_constants(current, now, part)
        if parameter.kind is Kind.STRUCTURED and parameter.choices is None:
            return _with_leaves(current, iter(part))
        return part[0]

    def _reference(self, parameter: Parameter) -> tuple[str, tuple[Constant, ...]]:
        current = self._values[parameter.path]
        for text in (parameter.default, current):
            try:
                constants = find_constants(text)
            except (SyntaxError, AttributeError):  # no Python, or not even text
                continue
            if align_constants(text, constants, current) is not None:
                return text, constants
        return "", ()

    def _dimensions_of(self, parameter: Parameter) -> Iterator[Dimension]:
        path, current = parameter.path, self._values[parameter.path]
        if parameter.choices is not None:
            yield Dimension(path, path, (path, ""), current, choices=parameter.choices, signed=False)
        elif parameter.kind is Kind.BOOLEAN:
            yield Dimension(path, path, (path, ""), current, choices=(False, True), signed=False)
        elif parameter.kind is Kind.NUMBER:
            yield _number(path, (path, ""), current, parameter.default, parameter, integer=parameter.integer)
        elif parameter.kind is Kind.STRUCTURED:
            for label, leaf in leaves(current):
                where, name = (path, label.rpartition("[")[0]), path + label
                if isinstance(leaf, bool):
                    yield Dimension(name, path, where, leaf, choices=(False, True), signed=False)
                else:
                    default = dict(leaves(parameter.default)).get(label)
                    whole = isinstance(leaf, int) and isinstance(default if default is not None else leaf, int)
                    yield _number(name, where, leaf, default, parameter, integer=whole)
        elif parameter.kind is Kind.CODE:
            reference, constants = self._code[path]
            now = align_constants(reference, constants, current) if constants else ()
            for index, (constant, value) in enumerate(zip(constants, now or (), strict=True)):
                label = f"{path}: {constant.label or f'constant {index + 1}'}"
                signed = constant.place is not Place.THRESHOLD
                where = (path, str(constant.statement))
                yield replace(_number(label, where, value, constant.value, parameter, integer=constant.integer), signed=signed)

    def _read(self, values: Mapping[str, Value]) -> Point | None:
        point: list[Value] = []
        for parameter in self._parameters:
            current = self._values[parameter.path]
            value = values.get(parameter.path, parameter.default)
            if parameter.choices is not None or parameter.kind in (Kind.BOOLEAN, Kind.NUMBER):
                point.append(value)
            elif parameter.kind is Kind.STRUCTURED:
                if not same(_with_leaves(value, None), _with_leaves(current, None)):
                    return None
                point.extend(leaf for _, leaf in leaves(value))
            elif parameter.kind is Kind.CODE:
                part = self._read_code(parameter, value)
                if part is None:
                    return None
                point.extend(part)
            elif not same(value, current):
                return None
        kinds_fit = (_fits(dimension, value) for dimension, value in zip(self.dimensions, point, strict=False))
        return tuple(point) if len(point) == len(self.dimensions) and all(kinds_fit) else None

    def _read_code(self, parameter: Parameter, value: Value) -> tuple[float, ...] | None:
        reference, constants = self._code[parameter.path]
        if not isinstance(value, str):
            return None
        if not constants:
            return () if value == self._values[parameter.path] else None
        return align_constants(reference, constants, value)


def leaves(value: Value, label: str = "") -> Iterator[tuple[str, Value]]:
    """The booleans and numbers inside a structured value, with the way to each: `.gains[0]`."""
    if isinstance(value, bool | int | float):
        yield label, value
    elif isinstance(value, Mapping):
        for key in value:
            yield from leaves(value[key], f"{label}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from leaves(item, f"{label}[{index}]")


def _with_leaves(value: Value, fill: Iterator[Value] | None) -> Value:
    """`value` with its leaves filled in order, or all blanked: what remains is its structure."""
    if isinstance(value, bool | int | float):
        return None if fill is None else next(fill)
    if isinstance(value, Mapping):
        return {key: _with_leaves(item, fill) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_leaves(item, fill) for item in value]
    return value


def _moved(reference: str, constants: tuple[Constant, ...], text: str) -> tuple[Constant, ...]:
    """The constants of `reference`, at their positions and with their values in `text`, which has the same structure."""
    if reference == text:
        return constants
    by_route = {constant.route: constant for constant in find_constants(text, every=True)}
    return tuple(by_route[constant.route] for constant in constants)


def _number(label: str, statement: tuple[str, str], current: Number, default: Value, parameter: Parameter, *, integer: bool) -> Dimension:
    low, high = parameter.bounds if parameter.bounds is not None and parameter.kind is not Kind.CODE else (None, None)
    return Dimension(
        label=label,
        path=parameter.path,
        statement=statement,
        current=current,
        default=default if _is_number(default) else current,
        low=-math.inf if low is None else low,
        high=math.inf if high is None else high,
        integer=integer,
    )


def _fits(dimension: Dimension, value: Value) -> bool:
    if dimension.choices is not None:
        return any(same(value, choice) for choice in dimension.choices)
    return _is_number(value) and is_finite(value)


def is_finite(value: Number) -> bool:
    """Whether a number is finite and fits a float; a whole number may be too large for one."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ranged(dimension: Dimension, every: Sequence[Dimension], seen: Sequence[Value]) -> Dimension:
    """`dimension` with finite bounds that hold its current value and those it had before."""
    if dimension.choices is not None:
        return dimension
    scale = max(abs(dimension.current), abs(dimension.default))
    if scale == 0:
        scale = max((abs(other.current) for other in every if other.path == dimension.path and other.choices is None), default=0.0) or 1.0
    reach = max(REACH * scale, 4.0 if dimension.integer else 0.0)
    declared = math.isfinite(dimension.low) and math.isfinite(dimension.high)
    low = dimension.low if math.isfinite(dimension.low) else min(-reach, dimension.high - reach)
    high = dimension.high if math.isfinite(dimension.high) else max(reach, dimension.low + reach)
    low, high = min(low, *seen, dimension.current), max(high, *seen, dimension.current)
    log = declared and low > 0 and high / low >= _DECADES and not dimension.integer
    return replace(dimension, low=low, high=high, log=log)
