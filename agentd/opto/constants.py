"""Numeric constants inside code: found by syntax tree, changed in the text, so that formatting and comments stay as they are.

Which constants are *tunable*? A literal int or float; a minus sign before it belongs to it. Left alone, because another number there
breaks the program or means nothing:

- the signature (it must be kept), annotations, f-strings, `match` patterns, what is raised or asserted;
- indices and slices, exponents, moduli and whole divisors (`% 2`, `// 2`), bit operations;
- arguments that are shapes, counts, axes, digits or limits: of range, round, zeros, reshape, clip, min, max, ...; `axis=`, `shape=`, ...;
- whole numbers that are labels or counts: a bare `return 1`, both branches of `1 if ... else 0`, `flag = 0`, `n - 1`, `== 3`, `[0, 1, 2]`;
- zero in a comparison (a sign test), a sum's start (`total = 0.0` before `total += ...`), `2 * pi`, guards against division by zero (1e-9).

A constant written as a float is tuned as a float. One written as an int stays whole, unless it is an operand of plain arithmetic
or a comparison, or stands in a list beside floats.
"""

import ast
import enum
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_COUNTING_CALLS = frozenset(
    {
        *("range", "round", "enumerate", "islice", "int", "str", "chr", "pow", "isinstance", "deque", "seed", "default_rng"),
        *("zeros", "ones", "empty", "full", "eye", "identity", "reshape", "arange", "linspace", "repeat", "tile", "roll"),
        *("expand_dims", "squeeze", "split", "norm", "sum", "mean", "argmax", "argmin"),
        *("clip", "min", "max", "minimum", "maximum"),
    }
)
_COUNTING_KEYWORDS = frozenset(
    {
        *("axis", "shape", "ndim", "dtype", "ndigits", "decimals", "base", "start", "stop", "step", "maxlen", "seed"),
        *("ord", "ddof", "keepdims", "n", "size", "num", "ndmin", "indent"),
    }
)
_GUARD = 1e-6

Route = tuple[str | int, ...]
_SCOPES = ast.FunctionDef | ast.AsyncFunctionDef


class Place(enum.StrEnum):
    """What a constant does where it stands: it decides which changes of it are worth a try."""

    FACTOR = "factor"
    TERM = "term"
    THRESHOLD = "threshold"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Constant:
    """A tunable constant of a source text.

    `start` and `end` are byte offsets in the UTF-8 text, the minus sign included. `route` is the way to it in the syntax tree: field
    names and list positions. `statement` numbers the statement it stands in.
    """

    start: int
    end: int
    value: float
    integer: bool
    place: Place
    label: str
    route: Route
    statement: int
    parenthesise: bool = False


def find_constants(source: str, *, every: bool = False) -> tuple[Constant, ...]:
    """The tunable constants of `source`, in the order of the text; with `every`, also those that are left alone for what they mean.

    Raises SyntaxError for text that is no Python.
    """
    tree = _parse(source)
    return tuple(sorted(_Finder(source, tree, every=every).found, key=lambda constant: constant.start))


def replace_constants(source: str, constants: Sequence[Constant], values: Sequence[float]) -> str:
    """`source` with each constant set to its value; a constant whose value is unchanged keeps its spelling."""
    content = source.encode()
    for constant, value in sorted(zip(constants, values, strict=True), key=lambda item: -item[0].start):
        if value == constant.value:
            continue
        text = spell(value)
        if constant.parenthesise and value < 0:
            text = f"({text})"
        before, after = content[: constant.start], content[constant.end :]
        if re.search(rb"[\w.]$", before) and re.match(r"[\w.]", text):
            text = " " + text  # `else-1.0` must not become `else1.0`
        content = before + text.encode() + after
    return content.decode()


def align_constants(source: str, constants: Sequence[Constant], other: str) -> tuple[float, ...] | None:
    """What `constants` of `source` are in `other`; None where the texts differ in more than these constants, comments and layout."""
    try:
        tree, other_tree = _parse(source), _parse(other)
    except SyntaxError:
        return None
    comparison = _Comparison(frozenset(constant.route for constant in constants))
    if not comparison.same(tree, other_tree):
        return None
    return tuple(comparison.values[constant.route] for constant in constants)


def spell(value: float) -> str:
    """A number as Python text."""
    return repr(value)


def _parse(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes, or nested deeper than the parser goes
        raise SyntaxError(str(error) or type(error).__name__) from error


def number(node: ast.AST) -> float | None:
    """The value of a literal int or float, with its sign; None for any other node (True is not a number)."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = number(node.operand) if isinstance(node.operand, ast.Constant) else None
        return None if inner is None else -inner
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]  # the line above says which types
    return None


class _Comparison:
    """Two syntax trees walked side by side; `values` collects what stands at `routes` in the second."""

    def __init__(self, routes: frozenset[Route]) -> None:
        self._routes = routes
        self.values: dict[Route, float] = {}

    def same(self, node: object, other: object, route: Route = ()) -> bool:
        """Whether the trees differ in nothing but numbers at the routes."""
        if route in self._routes:
            value = number(other) if isinstance(other, ast.AST) else None
            if value is not None:
                self.values[route] = value
            return value is not None
        if type(node) is not type(other):
            return False
        if isinstance(node, ast.AST):
            return all(self.same(getattr(node, field, None), getattr(other, field, None), (*route, field)) for field in node._fields)
        if isinstance(node, list) and isinstance(other, list):
            pairs = enumerate(zip(node, other, strict=False))
            return len(node) == len(other) and all(self.same(item, twin, (*route, index)) for index, (item, twin) in pairs)
        return node == other


class _Finder:
    """One walk over the tree that keeps what surrounds each node."""

    def __init__(self, source: str, tree: ast.Module, *, every: bool) -> None:
        self.found: list[Constant] = []
        self._every = every
        self._lines = [0]
        for line in source.encode().split(b"\n"):
            self._lines.append(self._lines[-1] + len(line) + 1)
        self._sums = {node.target.id for node in ast.walk(tree) if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name)}
        self._statement = 0
        self._visit(tree, (), ())

    def _visit(self, node: ast.AST, parents: tuple[ast.AST, ...], route: Route) -> None:
        if isinstance(node, ast.JoinedStr | ast.pattern | ast.Raise | ast.Assert):
            return
        if isinstance(node, ast.stmt):
            self._statement += 1
        value = number(node)
        if value is not None:
            self._consider(node, value, parents, route)
            return
        for field, child in _children(node, outermost=len(parents) == 1):
            if isinstance(child, list):
                for index, item in enumerate(child):
                    if isinstance(item, ast.AST):
                        self._visit(item, (*parents, node), (*route, field, index))
            else:
                self._visit(child, (*parents, node), (*route, field))

    def _consider(self, node: ast.AST, value: float, parents: tuple[ast.AST, ...], route: Route) -> None:
        if not self._every and _is_structural(node, value, parents, self._sums):
            return
        parent, whole = parents[-1], isinstance(value, int)
        arithmetic = isinstance(parent, ast.BinOp | ast.Compare)
        beside_floats = isinstance(parent, ast.List | ast.Tuple) and any(isinstance(number(item), float) for item in parent.elts)
        assert isinstance(node, ast.expr)  # noqa: S101 - tells mypy that it has a position
        assert node.end_lineno is not None and node.end_col_offset is not None  # noqa: S101, PT018 - a parsed node has both
        self.found.append(
            Constant(
                start=self._lines[node.lineno - 1] + node.col_offset,
                end=self._lines[node.end_lineno - 1] + node.end_col_offset,
                value=value,
                integer=whole and not arithmetic and not beside_floats,
                place=_place(parent),
                label=_label(node, parents),
                route=route,
                statement=self._statement,
                parenthesise=isinstance(parent, ast.Attribute) or (isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Pow)),
            )
        )


def _is_structural(node: ast.AST, value: float, parents: tuple[ast.AST, ...], sums: set[str]) -> bool:
    """Whether a literal is none of search's business; the module's docstring says why."""
    parent, whole = parents[-1], isinstance(value, int)
    if value != 0 and abs(value) < _GUARD:
        return True
    match parent:
        case ast.BinOp():
            structural = _is_structural_operand(node, value, parent)
        case ast.Compare(ops=operators):
            identity = any(isinstance(operator, ast.Eq | ast.NotEq | ast.Is | ast.IsNot | ast.In | ast.NotIn) for operator in operators)
            structural = value == 0 or (whole and identity)
        case ast.Call() | ast.keyword() | ast.List() | ast.Tuple():
            structural = _is_structural_argument(value, parents)
        case ast.Assign(targets=targets):
            names = {target.id for target in targets if isinstance(target, ast.Name)}
            structural = (whole and value in {0, 1}) or (value == 0 and bool(names & sums))
        case ast.AugAssign() | ast.AnnAssign():
            structural = whole and abs(value) <= 1
        case ast.Return() | ast.IfExp() | ast.UnaryOp():
            structural = whole
        case _:
            structural = isinstance(parent, ast.stmt | ast.Subscript | ast.Starred)
    return structural


def _is_structural_operand(node: ast.AST, value: float, parent: ast.BinOp) -> bool:
    whole, is_right = isinstance(value, int), node is parent.right
    match parent.op:
        case ast.Pow():
            return is_right or whole
        case ast.Mod() | ast.FloorDiv():
            return is_right
        case ast.Add() | ast.Sub():
            return whole and abs(value) == 1
        case ast.Mult() | ast.Div():
            return whole and _is_pi(parent.left if is_right else parent.right)
        case _:
            return True


def _is_structural_argument(value: float, parents: tuple[ast.AST, ...]) -> bool:
    parent, outer = parents[-1], parents[-2] if len(parents) > 1 else None
    if isinstance(parent, ast.keyword) and parent.arg in _COUNTING_KEYWORDS:
        return True
    call = parent if isinstance(parent, ast.Call) else outer
    if isinstance(call, ast.Call) and _called_name(call) in _COUNTING_CALLS:
        return True
    items = parent.elts if isinstance(parent, ast.List | ast.Tuple) else []
    return isinstance(value, int) and bool(items) and [number(item) for item in items] == list(range(len(items)))


def _children(node: ast.AST, *, outermost: bool) -> Iterator[tuple[str, ast.AST | list[ast.AST]]]:
    """The parts of a node that may hold tunable constants."""
    for field, child in ast.iter_fields(node):
        if not isinstance(child, ast.AST | list):
            continue
        if field in (
            "annotation",
            "returns",
            "decorator_list",
            "slice",
            "type_params",
            "keywords" if isinstance(node, ast.ClassDef) else "",
        ):
            continue
        if field == "args" and isinstance(node, _SCOPES) and outermost:
            continue  # the signature must be kept
        yield field, child


def _called_name(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _is_pi(node: ast.AST) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name in ("pi", "tau")


def _place(parent: ast.AST) -> Place:
    match parent:
        case ast.BinOp(op=ast.Mult() | ast.Div()):
            return Place.FACTOR
        case ast.BinOp():
            return Place.TERM
        case ast.Compare():
            return Place.THRESHOLD
    return Place.VALUE


def _label(node: ast.AST, parents: tuple[ast.AST, ...]) -> str:
    """What people would call the constant: the name it is given, or what it is multiplied with."""
    parent = parents[-1]
    if isinstance(parent, ast.BinOp):
        return ast.unparse(parent.right if node is parent.left else parent.left)[:40]
    for ancestor in reversed(parents):
        match ancestor:
            case ast.Assign(targets=[target, *_]) | ast.AnnAssign(target=target):
                return ast.unparse(target)[:40]
            case ast.keyword(arg=str(name)):
                return name
    return ""
