"""Values and functions as Python text, in the style of what stands there already."""

import ast
import difflib
import inspect
import io
import re
import tokenize
from collections.abc import Sequence
from typing import Any

from agentd.errors import TraceError
from agentd.opto.constants import align_constants, find_constants, replace_constants
from agentd.opto.space import same
from agentd.records import Value
from agentd.trace.parameters import plain
from agentd.trace.source import definition, parse, placed
from agentd.writeback.modules import FUNCTIONS, Module, Obstacle

Edit = tuple[int, int, str]
"""Bytes from, to, and the text that comes there, with `\\n` as line ends."""


# --- literals --------------------------------------------------------------------------------------------------------


def literal_value(node: ast.expr) -> Value:
    """The plain value of a literal. Raises Obstacle for one that has none."""
    try:
        return plain(ast.literal_eval(node))
    except (TraceError, ValueError, TypeError) as error:
        raise Obstacle(f"{ast.unparse(node)[:60]} has no plain value: {error}") from error


def literal_edits(module: Module, node: ast.expr, value: Value) -> list[Edit]:
    """What makes the literal `node` hold `value`. Elements that stay are not touched. Raises Obstacle."""
    if _same_spelling(literal_value(node), value):
        return []
    match node, value:
        case ((ast.List(elts=items) | ast.Tuple(elts=items)), list()) if len(items) == len(value):
            return [edit for item, part in zip(items, value, strict=True) for edit in literal_edits(module, item, part)]
        case ast.Dict(keys=keys, values=items), dict():
            names = [key.value for key in keys if isinstance(key, ast.Constant)]
            if (
                len(names) == len(keys) == len(set(names))
                and names == [name for name in names if name in value]
                and len(names) == len(value)
            ):
                return [edit for name, item in zip(names, items, strict=True) for edit in literal_edits(module, item, value[name])]
    start, end = module.span(node)
    return [(start, end, _spelled(module, node, value))]


def as_array(node: ast.expr, value: Value) -> Value:
    """`value` with the kind of numbers that an array made of the literal `node` holds. Raises Obstacle for whole ones that would not be."""
    now, wanted = _numbers(literal_value(node)), _numbers(value)
    if any(isinstance(number, float) for number in now):
        return _mapped(value, float)
    if any(not float(number).is_integer() for number in wanted):
        raise Obstacle("it is an array of whole numbers, and the text would make another kind of it")
    return _mapped(value, int)


def _numbers(value: Value) -> list[float]:
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def _mapped(value: Value, kind: type) -> Value:
    if isinstance(value, list):
        return [_mapped(item, kind) for item in value]
    return kind(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _same_spelling(now: Value, value: Value) -> bool:
    """Whether nothing has to be written: 1 and 1.0 are the same number, but not inside of a structure, where nobody converts them."""
    if isinstance(now, list | dict):
        return same(now, value) and repr(now) == repr(value)
    return same(now, value)


def _spelled(module: Module, node: ast.expr, value: Value) -> str:
    now = ast.literal_eval(node)
    if isinstance(now, float) and type(value) is int:
        return repr(float(value))
    if type(now) is int and isinstance(value, float) and value.is_integer():
        return repr(int(value))
    if isinstance(value, str):
        return _spelled_text(module, node, value)
    if isinstance(value, list) and isinstance(now, tuple):
        return f"({', '.join(map(repr, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, list) and isinstance(now, set):
        return f"{{{', '.join(map(repr, value))}}}" if value else "set()"
    return repr(value)


def _spelled_text(module: Module, node: ast.expr, value: str) -> str:
    start, end = module.span(node)
    old = module.content[start:end].decode()
    pieces = _pieces(old)
    match = re.match(r"[a-zA-Z]*(\"\"\"|'''|\"|')", pieces[0]) if pieces else None
    quote = match[1] if match is not None else '"'
    if len(pieces) > 1 and "\n" in old:  # "one line\n" "after the other\n"
        before = re.split(rb"[\r\n]", module.content[:start])[-1].decode()
        margin = re.match(r"\s*", before)[0]  # type: ignore[index]  # it matches anything
        return ("\n" + margin + " " * len(before[len(margin) :])).join(_quoted(line, quote[0]) for line in _lines(value))
    if len(quote) == 3 or "\n" in value:
        return _long(value, quote[0] * 3, opening="\\\n" if old[match.end() if match else 0 :].startswith(("\\\n", "\\\r")) else "")
    return _quoted(value, quote)


def _pieces(text: str) -> list[str]:
    """The string tokens of a literal that may be put together of several."""
    tokens = tokenize.generate_tokens(io.StringIO(f"({text})").readline)
    return [token.string for token in tokens if token.type == tokenize.STRING]


def _lines(value: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+\Z", value) or [""]


def _quoted(value: str, quote: str) -> str:
    """On one line, with the quotes that are wanted where that needs no escapes."""
    if quote == '"' and '"' not in value:
        return '"' + repr("'" + value)[2:]
    return repr(value)


def _long(value: str, quotes: str, opening: str) -> str:
    """In triple quotes, lines as lines."""
    kept = "".join(character if character.isprintable() or character == "\n" else repr(character)[1:-1] for character in _doubled(value))
    kept = kept.replace(quotes, f"\\{quotes}")
    if kept.endswith(quotes[0]):
        kept = f"{kept[:-1]}\\{quotes[0]}"
    text = f"{quotes}{opening}{kept}{quotes}"
    try:
        return text if ast.literal_eval(text) == value else repr(value)
    except SyntaxError:  # more quotes in a row than could be kept apart
        return repr(value)


def _doubled(value: str) -> str:
    return value.replace("\\", "\\\\")


# --- functions -------------------------------------------------------------------------------------------------------


def function_text(module: Module, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The function as a code parameter holds it: dedented, without decorators."""
    return definition(_block(module, node))[0]


def _block(module: Module, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    start, end = module.whole_lines(node)
    return re.sub(r"\r\n?", "\n", module.content[start:end].decode())


def same_function(one: str, other: str) -> bool:
    """Whether two texts define the same function: layout, comments, decorators and the docstring's margin are not looked at."""
    try:
        return _form(one) == _form(other)
    except TraceError:
        return False


def _form(text: str) -> str:
    function = parse(text)
    function.decorator_list = []
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        first.value.value = inspect.cleandoc(first.value.value)
    return ast.dump(function)


def function_edits(module: Module, node: ast.FunctionDef | ast.AsyncFunctionDef, value: Value) -> list[Edit]:
    """What makes the function `node` the one of `value`, keeping the text of all that is the same. Raises Obstacle."""
    block = _block(module, node)
    try:
        wanted = definition(parse_text(value))[0].strip("\n")
        if same_function(function_text(module, node), wanted):
            return []
        margin = block[: len(block) - len(block.lstrip())]
        text = placed(wanted, margin, _step(block, node, margin))
    except (TraceError, SyntaxError) as error:
        raise Obstacle(f"the learned code is no function: {error}") from error
    start, end = module.whole_lines(node)
    for merged in (_with_constants(block, text), _with_statements(block, text)):
        if merged is not None and same_function(definition(merged)[0], wanted):
            return [(start, end, merged)]
    return [(start, end, text)]


def parse_text(value: Value) -> str:
    """Code as text. Raises TraceError for another value, or where it is no single function."""
    if not isinstance(value, str):
        raise TraceError(f"code is text, not a {type(value).__name__}")
    text = re.sub(r"\r\n?", "\n", value)
    parse(text)
    return text


def _step(block: str, node: ast.FunctionDef | ast.AsyncFunctionDef, margin: str) -> str:
    """By how much the author indents the body; empty for one on the line of the `def`."""
    first = node.body[0]
    if first.lineno == node.lineno:
        return ""
    return block.split("\n")[first.lineno - node.lineno][: first.col_offset].removeprefix(margin)


def _with_constants(block: str, text: str) -> str | None:
    """`block` with the numbers of `text`, where these are all that differ."""
    head = "if 1:\n" if block[:1].isspace() else ""
    constants = find_constants(head + block, every=True)
    values = align_constants(head + block, constants, head + text)
    return None if values is None else replace_constants(head + block, constants, values).removeprefix(head)


def _with_statements(block: str, text: str) -> str | None:
    """`text` with the lines of `block` for the signature and all statements that are the same, comments before them included."""
    old, new = _parts(block), _parts(text)
    if old is None or new is None:
        return None
    lines = list(old[0][1] if old[0][0] == new[0][0] else new[0][1])
    matcher = difflib.SequenceMatcher(None, [form for form, _ in old[1:]], [form for form, _ in new[1:]], autojunk=False)
    for tag, old_from, old_to, new_from, new_to in matcher.get_opcodes():
        kept = old[1 + old_from : 1 + old_to] if tag == "equal" else new[1 + new_from : 1 + new_to]
        lines += [line for _, part in kept for line in part]
    return "\n".join(lines)


def _parts(block: str) -> list[tuple[str, Sequence[str]]] | None:
    """The signature and the statements of a function, each with its lines and what says whether two are the same.

    None where two of them share a line.
    """
    shift = int(block[:1].isspace())
    tree: Any = ast.parse("if 1:\n" + block if shift else block)
    function = tree.body[0].body[0] if shift else tree.body[0]
    if not isinstance(function, FUNCTIONS):
        return None
    lines = block.split("\n")
    ends = [(statement.end_lineno or statement.lineno) - shift for statement in function.body]
    starts = [statement.lineno - shift for statement in function.body]
    body = starts[0] - 1
    while body > 0 and re.match(r"\s*(#|$)", lines[body - 1]):
        body -= 1
    begins = [body, *ends[:-1]]
    if any(start <= begin for start, begin in zip(starts, begins, strict=True)) or body < 1:
        return None
    head = ast.dump(ast.Tuple([function.args, function.returns or ast.Constant(None)]))  # type: ignore[list-item]  # only shown
    parts = [(ast.dump(statement), lines[begin:end]) for statement, begin, end in zip(function.body, begins, ends, strict=True)]
    return [(head, lines[:body]), *parts]
