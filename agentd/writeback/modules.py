"""The modules of an agent's folder as syntax: what names stand for, and where in the text a node is."""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
LOOPS = ast.For | ast.AsyncFor | ast.While | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


class Obstacle(Exception):  # noqa: N818 - no fault of anybody: the message says why a value can't be written back
    """Why a value can't be written back, in words for the author."""


@dataclass(frozen=True, slots=True)
class Found:
    """A definition: `node` in `module`; a class, a function, or the expression that a name is assigned."""

    module: "Module"
    node: ast.AST


class Module:
    """One file. Raises SyntaxError where it is no Python."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.content = text.encode()
        try:
            self.tree = ast.parse(text)
        except (ValueError, RecursionError, MemoryError) as error:
            raise SyntaxError(str(error) or type(error).__name__) from error
        # The parser's line ends, which are fewer than those of str.splitlines.
        self._lines = [0, *(match.end() for match in re.finditer(rb"\r\n|\r|\n", self.content))]
        self.bound: dict[str, list[ast.AST]] = {}
        for statement in self.tree.body:
            self._bind(statement)

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Where `node` is in `content`, in bytes."""
        start, end = _position(node)
        return self._lines[start[0] - 1] + start[1], self._lines[end[0] - 1] + end[1]

    def whole_lines(self, node: ast.AST) -> tuple[int, int]:
        """The lines of `node`, from the first one's indentation to before the last one's end, in bytes. Decorators are not of it."""
        start, end = _position(node)
        after = self._lines[end[0]] if end[0] < len(self._lines) else len(self.content)
        return self._lines[start[0] - 1], after - len(re.search(rb"(\r\n|\r|\n)?\Z", self.content[:after])[0])  # type: ignore[index]  # it matches anything

    def at(self, node: ast.AST) -> str:
        """Where `node` is, for people."""
        return f"{self.file}:{_position(node)[0][0]}"

    def _bind(self, statement: ast.AST) -> None:
        match statement:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                self._add(name, statement)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                for alias in names:
                    whole = isinstance(statement, ast.ImportFrom) or alias.asname
                    self._add((alias.asname or alias.name) if whole else alias.name.partition(".")[0], statement)
            case ast.Assign(targets=[ast.Name(id=name)], value=value) | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                self._add(name, value)
            case _:
                for node in ast.walk(statement):  # under `if`, `try`, `for`: a name may be bound there too
                    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                        self._add(node.id, node)
                    elif isinstance(node, ast.ClassDef | FUNCTIONS | ast.Import | ast.ImportFrom) and node is not statement:
                        self._bind(node)

    def _add(self, name: str, node: ast.AST) -> None:
        self.bound.setdefault(name, []).append(node)


def _position(node: ast.AST) -> tuple[tuple[int, int], tuple[int, int]]:
    if not isinstance(node, ast.expr | ast.stmt) or node.end_lineno is None or node.end_col_offset is None:
        raise TypeError(f"a {type(node).__name__} has no position")
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


@dataclass(frozen=True, slots=True)
class Folder:
    """All modules of a folder, and what names mean across them."""

    files: Mapping[str, str]
    _modules: dict[str, Module] = field(default_factory=dict)

    def module(self, name: str) -> Module | None:
        """The module `name` (dotted), None where the folder has none. Raises Obstacle for one that is no Python."""
        path = name.replace(".", "/")
        for file in (f"{path}.py", f"{path}/__init__.py"):
            if file in self.files:
                if file not in self._modules:
                    try:
                        self._modules[file] = Module(file, self.files[file])
                    except SyntaxError as error:
                        raise Obstacle(f"{file} is not Python: {error.msg}") from error
                return self._modules[file]
        return None

    def modules(self) -> Iterator[Module]:
        """All of them."""
        for file in self.files:
            if file.endswith(".py"):
                found = self.module(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
                if found is not None:
                    yield found

    def definition(self, module: Module, expression: ast.expr) -> Found | None:
        """What a name (`Gains`, `gains.Gains`) stands for in this folder; None for what is not of it, or not bound exactly once."""
        match expression:
            case ast.Name(id=name):
                return self._bound(module, name, 0)
            case ast.Attribute(value=value, attr=name):
                owner = self.module(self.qualified(module, value))
                return self._bound(owner, name, 0) if owner is not None else None
        return None

    def _bound(self, module: Module, name: str, depth: int) -> Found | None:
        nodes = module.bound.get(name, [])
        if len(nodes) != 1 or depth > 8:
            return None
        if isinstance(nodes[0], ast.ImportFrom):
            imported = next(alias.name for alias in nodes[0].names if (alias.asname or alias.name) == name)
            source = self.module(_absolute(module, nodes[0]))
            return self._bound(source, imported, depth + 1) if source is not None else None
        return None if isinstance(nodes[0], ast.Import) else Found(module, nodes[0])

    def qualified(self, module: Module, expression: ast.expr) -> str:
        """The whole dotted name of what was imported (`agentd.trace.node`); empty for what was not."""
        match expression:
            case ast.Attribute(value=value, attr=name):
                owner = self.qualified(module, value)
                return f"{owner}.{name}" if owner else ""
            case ast.Name(id=name):
                return _imported(module, name)
        return ""


def _imported(module: Module, name: str) -> str:
    nodes = module.bound.get(name, [])
    if not nodes:  # perhaps by a star
        stars = [node for node in module.bound.get("*", []) if isinstance(node, ast.ImportFrom)]
        return f"{_absolute(module, stars[0])}.{name}" if len(stars) == 1 else ""
    packages = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    if len(nodes) > 1 and not all(isinstance(node, ast.Import) for node in nodes):
        return ""
    match nodes[0]:
        case ast.ImportFrom(names=names):
            return f"{_absolute(module, nodes[0])}.{next(alias.name for alias in names if (alias.asname or alias.name) == name)}"
        case ast.Import(names=names):
            renamed = [alias.name for alias in names if alias.asname == name]
            return renamed[0] if renamed else name if any(package.partition(".")[0] == name for package in packages) else ""
    return ""


def _absolute(module: Module, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    parts = module.file.removesuffix(".py").split("/")[: -statement.level]
    return ".".join([*parts, *([statement.module] if statement.module else [])])
