"""What a code parameter needs of the trusted program around it: found in its source, without running a line of it.

A leaf is given modules that `[sandbox] allowed_imports` names, and copies of the plain data that the *author's* version of the code names:
its module's constants, and attributes of `self`. A model's version may use less, never more, so that it can't ask for a key that lies
beside a constant. Everything else is refused, with what to do instead.
"""

import ast
import builtins
import functools
import inspect
import linecache
import symtable
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from agentd.errors import TraceError
from agentd.records import Value
from agentd.sandbox.loader import is_allowed
from agentd.sandbox.plain import NotPlainError, pack
from agentd.trace.bundle import FunModule
from agentd.trace.core import AbstractNode
from agentd.trace.host import current_host
from agentd.trace.operators import acall_llm, call_llm
from agentd.trace.source import parse, without_annotations

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Needs(NamedTuple):
    """What the names that it uses mean: `imports`, name -> (module, name in it or ""), and `constants`, name -> packed value.

    `attributes` are what is read of `self`; None for what is no method.
    """

    imports: dict[str, tuple[str, str]]
    constants: dict[str, Value]
    attributes: tuple[str, ...] | None
    arguments: tuple[inspect.Parameter, ...]
    asynchronous: bool


def needs_of(module: FunModule, source: str, allowed: Sequence[str]) -> Needs:
    """What the function that `source` defines needs in the place of the bundle's own. Raises TraceError for what a leaf can't have."""
    _refuse_kinds(module)
    function, written = _stripped(source), _stripped(module.source)
    names, of_author = _globals(function), _globals(written)
    surroundings = _surroundings(module)
    imports: dict[str, tuple[str, str]] = {}
    constants: dict[str, Value] = {}
    for name in sorted(names):
        if name == function.name or name not in surroundings:
            continue  # itself; a builtin; or a NameError, as anywhere
        if any(surroundings[name] is asking for asking in (call_llm, acall_llm, current_host)):
            raise TraceError(
                f"{module.name} asks models ({name}), which a code parameter can't do from its sandbox: ask in the program, "
                "and pass the answer on"
            )
        found = _import_of(name, surroundings[name], module)
        if found is not None and is_allowed(found[0], allowed):
            imports[name] = found
        else:
            constants[name] = _constant(module.name, name, surroundings[name], known=name in of_author)
    attributes = _attributes(function, module) if module.is_method else None
    if attributes and (more := set(attributes) - set(_attributes(written, module))):
        raise TraceError(f"{module.name} reads self.{min(more)}, which the author's version doesn't: pass it as an argument")
    return Needs(imports, constants, attributes, _arguments(function), isinstance(function, ast.AsyncFunctionDef))


def _refuse_kinds(module: FunModule) -> None:
    if module.traceable_code or not module._process_inputs:  # noqa: SLF001 - how the bundle was declared has no other name
        raise TraceError(
            f"{module.name} works on nodes (traceable_code, _process_inputs), which stay outside of its sandbox: let it take values"
        )
    if hasattr(module._fun, "__wrapped__"):  # noqa: SLF001 - as above
        raise TraceError(f"{module.name} has a decorator below @bundle, which can't enter its sandbox: call what it adds in the program")


def _stripped(source: str) -> Function:
    function = without_annotations(parse(source))
    function.decorator_list = []
    return function


def _globals(function: Function) -> set[str]:
    """The names that it looks up outside of itself. Raises TraceError where it would write there."""
    found: set[str] = set()
    tables = [symtable.symtable(ast.unparse(function), function.name, "exec")]
    top = tables[0]
    while tables:
        table = tables.pop()
        tables.extend(table.get_children())
        for symbol in table.get_symbols():
            if symbol.is_declared_global():
                raise TraceError(
                    f"{function.name} says `global {symbol.get_name()}`: it runs in a sandbox of its own, so let it return the value"
                )
            if symbol.is_referenced() and (symbol.is_global() or table is top):
                found.add(symbol.get_name())
    if found & {"super", "__class__"}:
        raise TraceError(
            f"{function.name} uses super(), which stays outside of its sandbox: call it in the program, and pass what it gives"
        )
    return found


def _surroundings(module: FunModule) -> Mapping[str, Any]:
    """What names mean where the function stands: its module's globals, and the local variables around it."""
    function = module._fun  # noqa: SLF001 - the function as the author wrote it; it is not called
    around = dict(module._captured)  # noqa: SLF001 - as above
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            around[name] = cell.cell_contents
        except ValueError:
            continue  # not yet defined
    return {**function.__globals__, **around}


def _import_of(name: str, value: Any, module: FunModule) -> tuple[str, str] | None:
    """Where `value` can be imported from in another process, if it was imported here."""
    if isinstance(value, ModuleType):
        return value.__name__, ""
    return _imports(module._fun.__code__.co_filename).get(name)  # noqa: SLF001 - as above


@functools.lru_cache(maxsize=64)
def _imports(file: str) -> dict[str, tuple[str, str]]:
    """What the file's `from module import name` statements bind."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return {}
    return {
        alias.asname or alias.name: (found.module or "", alias.name)
        for found in ast.walk(tree)
        if isinstance(found, ast.ImportFrom) and found.level == 0
        for alias in found.names
    }


def _constant(code: str, name: str, value: Any, *, known: bool) -> Value:
    if isinstance(value, ModuleType):
        raise TraceError(f"{code} uses the module {value.__name__}, which [sandbox] allowed_imports does not name")
    if isinstance(value, FunModule):
        raise TraceError(f"{code} calls {name}, an operation of its own: call that in the program, and pass what it gives")
    if isinstance(value, AbstractNode):
        raise TraceError(f"{code} uses the node {name}: pass it as an argument")
    if not known:
        raise TraceError(f"{code} uses {name}, which the author's version doesn't: pass it as an argument, or write it into the function")
    try:
        return pack(value)
    except NotPlainError as error:
        raise TraceError(
            f"{code} uses {name}, {error}, which can't enter its sandbox: write it into the function, or pass what it gives as an argument"
        ) from error


def _attributes(function: Function, module: FunModule) -> tuple[str, ...]:
    """What is read of the first argument of a method. Raises TraceError for any other use of it."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    if not arguments:
        return ()
    own = arguments[0].arg
    read: dict[str, None] = {}
    harmless: set[int] = set()
    for found in ast.walk(function):
        if isinstance(found, ast.Call) and _is_attribute_of(own, found.func):
            what = ast.unparse(found.func)
            raise TraceError(
                f"{module.name} calls {what}, which stays outside of its sandbox: call it in the program, and pass what it gives"
            )
        if isinstance(found, ast.Attribute) and _is_attribute_of(own, found):
            if not isinstance(found.ctx, ast.Load):
                raise TraceError(f"{module.name} changes {ast.unparse(found)}, which stays outside of its sandbox: let it return the value")
            read[found.attr] = None
            harmless.add(id(found.value))
    for found in ast.walk(function):
        if isinstance(found, ast.Name) and found.id == own and id(found) not in harmless:
            raise TraceError(
                f"{module.name} uses {own} as a whole, which stays outside of its sandbox: let it read attributes, such as {own}.gain"
            )
    return tuple(read)


def _is_attribute_of(own: str, found: ast.expr) -> bool:
    return isinstance(found, ast.Attribute) and isinstance(found.value, ast.Name) and found.value.id == own


def _arguments(function: Function) -> tuple[inspect.Parameter, ...]:
    """Its parameters; the names of those with a default have `...` as one, which the leaf evaluates."""
    arguments, kinds = function.args, inspect.Parameter
    positional = [*arguments.posonlyargs, *arguments.args]
    first = len(positional) - len(arguments.defaults)
    found = [
        kinds(
            argument.arg,
            kinds.POSITIONAL_ONLY if index < len(arguments.posonlyargs) else kinds.POSITIONAL_OR_KEYWORD,
            default=... if index >= first else kinds.empty,
        )
        for index, argument in enumerate(positional)
    ]
    if arguments.vararg is not None:
        found.append(kinds(arguments.vararg.arg, kinds.VAR_POSITIONAL))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append(kinds(argument.arg, kinds.KEYWORD_ONLY, default=kinds.empty if default is None else ...))
    if arguments.kwarg is not None:
        found.append(kinds(arguments.kwarg.arg, kinds.VAR_KEYWORD))
    return tuple(found)


def builtin_error(names: Sequence[str]) -> type[Exception]:
    """The first of these names that is a builtin exception; Exception where none is."""
    for name in names:
        found = vars(builtins).get(name)
        if isinstance(found, type) and issubclass(found, Exception):
            return found
    return Exception
