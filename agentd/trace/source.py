"""The source of functions: found, stripped of decorators, compiled again, and shown with a failing line commented."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import linecache
import textwrap
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from agentd.errors import TraceError

_numbers = itertools.count(1)  # file names of compiled code must differ, or one's end would take another's lines away
_MAX_FRAMES = 4  # of a traceback that are shown with source: the outermost is the bundle, the innermost fails
_MAX_LINES = 120  # of one function in a comment


def source_of(function: Callable[..., Any]) -> tuple[str, int]:
    """The source of `function` without decorators, dedented, and the line of its file on which it starts. Raises OSError without one.

    What decorators with `functools.wraps` made is seen through: the source is that of the function within.
    """
    function = inspect.unwrap(function)
    text, skipped = definition(_block(function))
    return text, function.__code__.co_firstlineno + skipped


def decorators_of(function: Callable[..., Any]) -> list[ast.expr]:
    """The decorators that made `function` of the one within, outermost first: as many of those in the source as wrap it."""
    layers = _layers(function)
    found = _first_definition(_block(inspect.unwrap(function))) if layers else None
    return [] if found is None else found.decorator_list[-len(layers) :]


def _layers(function: Any) -> list[Any]:
    """What `functools.wraps` says was put around a function, each by its code, which tells decorators apart."""
    found = []
    while hasattr(function, "__wrapped__"):
        found.append(getattr(function, "__code__", type(function)))
        function = function.__wrapped__
    return found


def _block(function: Callable[..., Any]) -> str:
    code = function.__code__
    lines = _lines(code, function.__globals__)
    if code.co_firstlineno > len(lines):
        raise OSError(f"no source of {function.__qualname__}")
    return "".join(inspect.getblock(lines[code.co_firstlineno - 1 :]))


def _lines(code: types.CodeType, namespace: dict[str, Any]) -> list[str]:
    lines = linecache.getlines(code.co_filename, namespace)
    if not lines:  # linecache asks no loader for a name like "<agent>"
        loader = namespace.get("__loader__")
        get_source = getattr(loader, "get_source", None)
        try:
            text = get_source(namespace.get("__name__")) if get_source is not None else None
        except ImportError:  # the file can't be read, as in a sandbox, or there is none, as for a program from standard input
            text = None
        lines = (text or "").splitlines(keepends=True)
    return lines


def definition(block: str) -> tuple[str, int]:
    """The first `def` in an indented block without its decorators, dedented, and how many lines come before it.

    A lambda's line, or anything else that is no definition, is only stripped.
    """
    found = _first_definition(block)
    if found is None:
        return block.strip(), 0
    shift = "" if block[:1].isspace() else " "
    lines = block.splitlines()
    first, last = found.lineno - 2, (found.end_lineno or found.lineno) - 1
    margin = found.col_offset - len(shift)
    kept = _inside_strings(found)
    text = [line if number + 2 in kept else _cut(line, margin) for number, line in enumerate(lines[first:last], first)]
    return "\n".join(text), first


def _first_definition(block: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    try:
        tree = ast.parse("if 1:\n" + block if block[:1].isspace() else "if 1:\n" + textwrap.indent(block, " ", lambda _: True))
    except SyntaxError:  # a lambda within an expression
        return None
    return next((found for found in ast.walk(tree) if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef)), None)


def _cut(line: str, margin: int) -> str:
    return line[margin:] if line[:margin].isspace() else line.lstrip() if margin else line


def placed(source: str, margin: str, step: str = "") -> str:
    """The inverse of `definition`: a function's text moved in by `margin`; with `step`, that replaces its own step of indentation.

    Lines that begin inside a string stay as they are. Raises TraceError for what is no single function.
    """
    function = parse(source)
    lines = source.split("\n")
    kept = _inside_strings(function)
    first = function.body[0]
    own = lines[first.lineno - 1][: first.col_offset] if first.lineno > function.lineno else ""
    return "\n".join(
        line if number in kept or not line.strip() else margin + _restepped(line, own, step or own) for number, line in enumerate(lines, 1)
    )


def _restepped(line: str, own: str, step: str) -> str:
    if not own or own == step:
        return line
    depth = 0
    while line.startswith(own, depth * len(own)):
        depth += 1
    return step * depth + line[depth * len(own) :]


def _inside_strings(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[int]:
    """The lines that begin inside a string: their indentation is content. Docstrings are left out, theirs is not."""
    documentation = function.body[0].value if function.body and isinstance(function.body[0], ast.Expr) else None
    return {
        line
        for found in ast.walk(function)
        if found is not documentation and isinstance(found, ast.JoinedStr | ast.Constant)
        if isinstance(found, ast.JoinedStr) or isinstance(found.value, str | bytes)
        for line in range(found.lineno + 1, (found.end_lineno or found.lineno) + 1)
    }


def signature_of(source: str) -> str:
    """The `def` line of a function's source, joined into one. Raises TraceError for what is no single function."""
    function = parse(source)
    head = "async def" if isinstance(function, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(function.returns)}" if function.returns is not None else ""
    return f"{head} {function.name}({ast.unparse(function.args)}){returns}:"


def parse(source: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """The one function that `source` defines. Raises TraceError, with the line, for anything else."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise syntax_error(source, error) from error
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef | ast.AsyncFunctionDef):
        raise TraceError("code must be exactly one function definition")
    return tree.body[0]


def without_annotations(function: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """The same function, whose definition evaluates no annotation: neither its own nor those of functions within."""
    for found in ast.walk(function):
        if isinstance(found, ast.arg):
            found.annotation = None
        elif isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
            found.returns = None
    return function


def syntax_error(source: str, error: BaseException) -> TraceError:
    """What is wrong with `source`, with the line commented where it is known."""
    reason = f"({type(error).__name__}) {getattr(error, 'msg', None) or error}"
    line = getattr(error, "lineno", None)
    return TraceError(
        f"the code does not compile:\n{commented(source, {line: reason})}" if line else f"the code does not compile: {reason}"
    )


def locals_around(frame: types.FrameType | None) -> dict[str, Any]:
    """The local variables of the function in which the frame's code stands, itself or within class bodies; none at a module's level."""
    while frame is not None and "__qualname__" in frame.f_locals and "__module__" in frame.f_locals:  # a class body
        frame = frame.f_back
    return dict(frame.f_locals) if frame is not None and frame.f_code.co_flags & inspect.CO_OPTIMIZED else {}


def compile_function(
    source: str, original: Callable[..., Any], captured: Mapping[str, Any], owner: type | None, *, annotated: bool = True
) -> Callable[..., Any]:
    """`source` as a function in the place of `original`: same globals, same closure, same decorators, its own name bound to itself.

    `captured` are the local variables of where `original` was defined, for names that it did not close over itself. The lines are given
    to linecache, so that tracebacks show them, as long as the function lives. Without `annotated`, annotations are left out: they may
    name what is not there. Raises TraceError for what does not compile or define.
    """
    function = parse(source) if annotated else without_annotations(parse(source))
    function.decorator_list = []
    layers, wrappers = _layers(original), decorators_of(original)
    original = inspect.unwrap(original)
    cells = dict(zip(original.__code__.co_freevars, original.__closure__ or (), strict=True))
    namespace = original.__globals__
    names = {found.id for part in (function, *wrappers) for found in ast.walk(part) if isinstance(found, ast.Name)}
    for name in names & captured.keys():
        if name not in cells and name not in namespace and name != function.name:
            cells[name] = types.CellType(captured[name])
    if "super" in names and "__class__" not in cells and owner is not None:
        cells["__class__"] = types.CellType(owner)
    cells.pop(function.name, None)  # recursion is to the new function
    filename = f"<agentd code {function.name} {next(_numbers)}>"
    defined = ast.Tuple(
        [ast.Name(function.name, ast.Load()), *(ast.parse(ast.unparse(item), mode="eval").body for item in wrappers)], ast.Load()
    )
    factory = ast.FunctionDef(
        name="__factory__",
        args=ast.arguments([], [ast.arg(name) for name in cells], None, [], [], None, []),
        body=[function, ast.Return(defined)],
        decorator_list=[],
    )
    module = ast.fix_missing_locations(ast.Module([factory], []))
    try:
        code = compile(module, filename, "exec", dont_inherit=True)
        made: dict[str, Any] = {}
        exec(code, namespace, made)  # noqa: S102 - running it is its purpose; the sandbox is the boundary
        inner, *decorators = made["__factory__"](*map(_content, cells.values()))
        inner = _with_cells(inner, cells)
        inner.__module__, inner.__qualname__ = original.__module__, original.__qualname__
        wrapped = functools.reduce(lambda within, decorate: decorate(within), reversed(decorators), inner)
        _bind_own_name(inner, wrapped)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise syntax_error(source, error) from error
    except Exception as error:  # defaults and annotations are evaluated when the function is defined
        raise TraceError(f"the code raised while its function was defined: ({type(error).__name__}) {error}") from error
    if _layers(wrapped) != layers:
        raise TraceError(f"what wraps {function.name} does not stand above it as decorators, so its code can't be trainable")
    lines = source.splitlines(keepends=True)
    linecache.cache[filename] = (len(source), None, lines, filename)
    weakref.finalize(inner, linecache.cache.pop, filename, None).atexit = False
    return wrapped


def _content(cell: types.CellType) -> Any:
    """What decorators and defaults see of a variable around: nothing yet, for some."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _with_cells(made: types.FunctionType, cells: Mapping[str, types.CellType]) -> types.FunctionType:
    """`made` with the shared cells of the original in the place of the factory's."""
    if not cells or made.__closure__ is None:
        return made
    closure = tuple(cells.get(name, own) for name, own in zip(made.__code__.co_freevars, made.__closure__, strict=True))
    bound = types.FunctionType(made.__code__, made.__globals__, made.__name__, made.__defaults__, closure)
    bound.__kwdefaults__, bound.__annotations__, bound.__doc__ = made.__kwdefaults__, made.__annotations__, made.__doc__
    return bound


def _bind_own_name(function: types.FunctionType, wrapped: Callable[..., Any]) -> None:
    """Recursion is to `wrapped`: the function with the right cells and decorators."""
    if function.__closure__ is not None and function.__name__ in function.__code__.co_freevars:
        function.__closure__[function.__code__.co_freevars.index(function.__name__)].cell_contents = wrapped


def commented(source: str, comments: Mapping[int | None, str], first: int = 1) -> str:
    """`source`, whose first line has number `first`, with comments at the end of lines. Long functions are cut to around them."""
    lines = source.splitlines()
    wanted = [line - first for line in comments if line is not None]
    if len(lines) > _MAX_LINES and wanted:
        start = max(0, min(wanted) - _MAX_LINES // 2)
        lines, first = lines[start : start + _MAX_LINES], first + start
    return "\n".join(
        f"{line}  # <-- {_one_line(comments[number])}" if number in comments else line for number, line in enumerate(lines, first)
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]


def error_comment(error: BaseException, message: str, sources: Mapping[types.CodeType, str], ending: str = "") -> str:
    """The functions that `error` came through, each with its failing line commented; the innermost has the message.

    `sources` gives the text of compiled code parameters. The first frame is the caller's own. `ending` (the message by default) comes last.
    """
    frames: list[tuple[types.FrameType, int]] = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append((traceback.tb_frame, traceback.tb_lineno))
        traceback = traceback.tb_next
    shown: list[tuple[str, int, int]] = []
    for frame, line in frames[1:]:
        found = _frame_source(frame, sources)
        if found is not None:
            shown.append((*found, line))
    if len(shown) > _MAX_FRAMES:
        shown = [shown[0], *shown[1 - _MAX_FRAMES :]]
    parts = [
        commented(text, {line: message if index == len(shown) - 1 else "raised in this call, see below"}, first)
        for index, (text, first, line) in enumerate(shown)
    ]
    return "\n\n".join([*parts, ending or message])


def _frame_source(frame: types.FrameType, sources: Mapping[types.CodeType, str]) -> tuple[str, int] | None:
    code = frame.f_code
    if code in sources:
        return sources[code], 1
    if frame.f_globals.get("__name__", "").startswith(("agentd.trace", "agentd.sandbox")):
        return None  # the library's own frames explain nothing
    try:
        lines = _lines(code, frame.f_globals)
        block = inspect.getblock(lines[code.co_firstlineno - 1 :]) if code.co_firstlineno <= len(lines) else []
    except (OSError, ImportError, SyntaxError, IndentationError):  # a loader may have no source of what it loaded
        return None
    if not block:
        return None
    text, skipped = definition("".join(block))
    return text, code.co_firstlineno + skipped
