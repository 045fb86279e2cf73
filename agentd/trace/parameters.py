"""A program's parameters, by attribute path: found, described, assigned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from agentd.errors import TraceError
from agentd.trace.bundle import FunModule
from agentd.trace.containers import RESERVED, Map, ParameterContainer, Seq
from agentd.trace.nodes import Node, ParameterNode
from agentd.trace.source import parse, signature_of
from agentd.trace.values import check_value

if TYPE_CHECKING:
    from agentd.records import Parameter

_MAX_DEPTH = 32
_SCALARS = frozenset({float, int, str, bool, type(None), bytes, complex})


def find_parameters(program: object) -> dict[str, ParameterNode]:
    """The trainable parameters of `program` by attribute path (`act`, `gains.kp`, `weights.0`), in order of definition.

    Looked into: attributes, trainable methods, containers, lists, tuples and dicts, and objects that hold nodes or bundles. A parameter
    that can be reached in two ways has the first path. Paths are relative to `program`, and are noted on the nodes.
    """
    found: dict[str, ParameterNode] = {}
    _collect(program, "", found, set(), set(), 0)
    for path, parameter in found.items():
        parameter._more().path = path
    return found


def _collect(value: Any, path: str, found: dict[str, ParameterNode], nodes: set[int], seen: set[int], depth: int) -> None:
    if isinstance(value, FunModule) and value.parameter is not None:
        value, path = value.parameter, path or value.name
    if isinstance(value, Node):
        if isinstance(value, ParameterNode) and value.trainable and id(value) not in nodes:
            nodes.add(id(value))
            found[path or "value"] = value
        return
    if id(value) in seen or depth > _MAX_DEPTH:
        return
    seen.add(id(value))
    for name, item in members(value):
        _collect(item, f"{path}.{name}" if path else name, found, nodes, seen, depth + 1)


def members(value: Any) -> Iterator[tuple[str, Any]]:
    """What a program's part may hold parameters in: names with values, in order of definition."""
    if isinstance(value, Seq | list | tuple):
        yield from ((str(index), item) for index, item in enumerate(value) if _worth_a_look(item))
        return
    if isinstance(value, Map | dict):
        for key, item in value.items():
            if isinstance(key, ParameterNode):
                yield f"key {key._data}", key
            if _worth_a_look(item):
                yield str(key._data if isinstance(key, Node) else key), item
        return
    yield from _attributes(value)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:  # noqa: C901 - a branch per way of holding a parameter
    held = getattr(value, "__dict__", None)
    names: set[str] = set()
    if isinstance(held, dict):
        for name, item in held.items():
            if not name.startswith(RESERVED) and _worth_a_look(item):
                names.add(name)
                yield name, item
    for cls in type(value).__mro__:
        for name, item in vars(cls).items():
            if name in names or name.startswith("__"):
                continue
            if isinstance(item, FunModule):
                bound = item.__get__(value, type(value))
                names.add(name)
                if bound.trainable:
                    yield name, bound
            elif isinstance(item, staticmethod | classmethod) and isinstance(item.__func__, FunModule) and item.__func__.trainable:
                names.add(name)
                yield name, getattr(value, name)
            elif isinstance(item, Node | ParameterContainer) and not isinstance(item, FunModule):
                names.add(name)
                yield name, item
            elif type(item).__name__ == "member_descriptor" and hasattr(value, name):
                names.add(name)
                yield name, getattr(value, name)


def _worth_a_look(item: Any, depth: int = 6) -> bool:
    """Whether parameters may be in it: plain objects count only where they hold nodes or bundles themselves."""
    if type(item) in _SCALARS or depth == 0:  # a long list of numbers is passed over quickly, a list within itself comes to an end
        return False
    if isinstance(item, Node | ParameterContainer):
        return True
    if isinstance(item, list | tuple):
        return any(_worth_a_look(part, depth - 1) for part in item)
    if isinstance(item, dict):
        return any(_worth_a_look(part, depth - 1) or isinstance(key, Node) for key, part in item.items())
    held = getattr(item, "__dict__", None)
    if not isinstance(held, dict) or isinstance(item, type) or callable(getattr(item, "__get__", None)):
        return False
    return any(isinstance(part, Node | ParameterContainer) for part in held.values()) or any(
        isinstance(part, FunModule) for cls in type(item).__mro__ for part in vars(cls).values()
    )


def describe(path: str, parameter: ParameterNode) -> Parameter:
    """The record of a parameter: its kind, rules and (for code) signature, with its default: for code the source as written.

    Describe a program before assigning to it. Raises TraceError for a value that no revision can hold.
    """
    from agentd.records import Kind, Parameter  # noqa: PLC0415 - programs that only trace don't need the records

    extra = parameter._extra
    signature = ""
    default = plain(parameter._data, path)
    if extra is not None and extra.code is not None:
        kind = Kind.CODE
        default = extra.code.module.source
        signature = signature_of(default)
    elif parameter.choices is not None:
        kind = Kind.CHOICE
    elif isinstance(default, bool):
        kind = Kind.BOOLEAN
    elif isinstance(default, int | float):
        kind = Kind.NUMBER
    elif isinstance(default, str):
        kind = Kind.TEXT
    else:
        kind = Kind.STRUCTURED
    return Parameter(
        path=path,
        kind=kind,
        default=default,
        description=_words(parameter),
        constraint=parameter.constraint or "",
        bounds=parameter.bounds,
        choices=None if parameter.choices is None else tuple(plain(choice, path) for choice in parameter.choices),
        signature=signature,
        integer=kind is Kind.NUMBER and isinstance(default, int),
    )


def _words(parameter: ParameterNode) -> str:
    """The author's description, without the `[ParameterNode]` in front; for code the function's docstring."""
    extra = parameter._extra
    if extra is not None and extra.description:
        return extra.description.removeprefix("[ParameterNode]").strip()
    if extra is not None and extra.code is not None:
        description: str = extra.code.module.description
        return description.partition("]")[2].strip()
    return ""


def plain(value: Any, path: str = "") -> Any:  # noqa: PLR0911 - a case per kind of value
    """`value` as a plain one: tuples, sets and arrays become lists. Raises TraceError for what has no plain form."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)  # subclasses, such as numpy's floats and enums, become what they extend
    if isinstance(value, Node):
        return plain(value._data, path)
    if isinstance(value, list | tuple):
        return [plain(item, path) for item in value]
    if isinstance(value, set | frozenset):
        return [plain(item, path) for item in sorted(value, key=repr)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(item, path) for key, item in value.items()}
    if hasattr(value, "tolist") and type(value).__module__.partition(".")[0] == "numpy":
        return plain(value.tolist(), path)
    raise TraceError(f"parameter {path} holds a {type(value).__qualname__}, which has no plain form")


def assign(parameter: ParameterNode, value: Any) -> None:
    """Gives `parameter` a new value, brought to the type of the present one; code is compiled at once.

    Raises TraceError, and changes nothing, for a value of another type, outside bounds or choices, and for code that does not compile,
    defines another function or changes the arguments.
    """
    if not parameter.trainable:
        raise TraceError("the parameter is not trainable")
    extra = parameter._extra
    for projection in extra.projections if extra is not None else ():
        value = projection(value)
    if extra is not None and extra.code is not None:
        if not isinstance(value, str):
            raise TraceError(f"code is text, not a {type(value).__name__}")
        value = value.replace("\r\n", "\n").replace("\r", "\n")
        expected, given = parse(extra.code.module.source), parse(value)
        if _shape(expected) != _shape(given):
            raise TraceError(f"the code must start with {signature_of(extra.code.module.source)} but starts with {signature_of(value)}")
        extra.code.load(value)
        parameter._data = value
        return
    if extra is not None:
        check_value(value, extra.bounds, extra.choices)
    if parameter.choices is not None:
        parameter._data = next(choice for choice in parameter.choices if type(choice) is type(value) and choice == value)
        return
    parameter._data = convert(value, parameter._data)


def compile_code(program: object) -> None:
    """Compiles the program's code parameters now, rather than at their first call. Raises TraceError, with the path."""
    for path, parameter in find_parameters(program).items():
        extra = parameter._extra
        if extra is not None and extra.code is not None:
            try:
                extra.code.load(parameter._data)
            except TraceError as error:
                raise TraceError(f"{path}: {error}") from error


def _shape(function: Any) -> tuple[Any, ...]:
    """What callers rely on: the name, the arguments' names and kinds, and whether it is a coroutine function."""
    arguments = function.args
    return (
        type(function).__name__,
        function.name,
        [argument.arg for argument in arguments.posonlyargs],
        [argument.arg for argument in arguments.args],
        [argument.arg for argument in arguments.kwonlyargs],
        arguments.vararg is not None,
        arguments.kwarg is not None,
    )


def convert(value: Any, present: Any) -> Any:  # noqa: C901 - a branch per type
    """`value` as the type of `present`. Raises TraceError where that would change its meaning (a text is never a number)."""
    kind = type(present)
    if isinstance(present, bool) or present is None or isinstance(present, str):
        matches = present is None or type(value) is kind
    elif isinstance(present, int):
        if type(value) is float and value.is_integer():
            return int(value)
        matches = type(value) is int
    elif isinstance(present, float):
        if type(value) in (int, float):
            return float(value)
        matches = False
    elif isinstance(present, tuple | set | frozenset):
        if isinstance(value, list | tuple | set | frozenset):
            return kind(value)
        matches = False
    elif kind.__module__ == "numpy" and isinstance(value, list | int | float):
        import numpy as np  # noqa: PLC0415 - the present value is an array, so it is loaded

        try:
            return np.asarray(value, dtype=present.dtype)
        except (TypeError, ValueError) as error:
            raise TraceError(f"{value!r:.80} is no array of {present.dtype}") from error
    else:
        matches = isinstance(value, kind)
    if not matches:
        raise TraceError(f"{value!r:.80} is no {kind.__name__}")
    return value
