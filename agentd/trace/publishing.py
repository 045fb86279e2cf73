"""A trained program as plain Python source: what it learned written in, and nothing of the tracing left."""

from __future__ import annotations

import ast
import inspect
import linecache
import textwrap
from pathlib import Path
from typing import Any

from agentd.errors import TraceError
from agentd.trace.bundle import FunModule
from agentd.trace.nodes import Node
from agentd.trace.parameters import plain
from agentd.trace.projections import Projection, project
from agentd.trace.source import parse

_DECORATORS = {"bundle", "model"}


def publish(program: Any, path: Path | None = None, projections: Any = ()) -> str:
    """The source of `program`'s class: trained code in the place of its methods, trained values in the place of `node(...)`.

    Other attributes are set as the class sets them. Returns the source, and writes it to `path` where one is given. Raises TraceError for a
    class whose source can't be found.
    """
    cls = next((base for base in type(program).__mro__ if "__init__" in vars(base) or _has_bundles(base)), type(program))
    tree = ast.parse(_class_source(cls))
    defined = next(item for item in tree.body if isinstance(item, ast.ClassDef))
    made = _Plain(program).visit(defined)
    source: str = ast.unparse(ast.fix_missing_locations(ast.Module([made], []))) + "\n"
    source = project(source, [projections] if isinstance(projections, Projection) else projections)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source if source.endswith("\n") else f"{source}\n", encoding="utf-8")
    return str(source)


def _has_bundles(cls: type) -> bool:
    return any(isinstance(item, FunModule) for item in vars(cls).values())


def _class_source(cls: type) -> str:
    for item in vars(cls).values():
        function = inspect.unwrap(item._fun) if isinstance(item, FunModule) else item
        if inspect.isfunction(function):
            lines = linecache.getlines(function.__code__.co_filename, function.__globals__)
            tree = ast.parse("".join(lines))
            for found in ast.walk(tree):
                if isinstance(found, ast.ClassDef) and found.name == cls.__name__ and found.lineno < function.__code__.co_firstlineno:
                    segment = ast.get_source_segment("".join(lines), found, padded=True)
                    if segment is not None and (found.end_lineno or 0) >= function.__code__.co_firstlineno:
                        return textwrap.dedent(segment)
    raise TraceError(f"the source of {cls.__qualname__} can't be found")


class _Plain(ast.NodeTransformer):
    """Takes tracing out of a class."""

    def __init__(self, program: Any) -> None:
        self._program = program

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        """The class, without `@model`."""
        node.decorator_list = [item for item in node.decorator_list if _called(item) not in _DECORATORS]
        node.bases = [base for base in node.bases if _called(base) != "Module"]
        self.generic_visit(node)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        """A method: its trained code, or as it is, without `@bundle`."""
        return self._method(node)

    def _method(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Any:
        others = [item for item in node.decorator_list if _called(item) not in _DECORATORS]
        bundled = getattr(self._program, node.name, None)
        if isinstance(bundled, FunModule) and bundled.parameter is not None and len(others) < len(node.decorator_list):
            trained = parse(bundled.parameter._data)
            trained.decorator_list = others
            return trained
        node.decorator_list = others
        self.generic_visit(node)
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> Any:
        """As for other methods."""
        return self._method(node)

    def visit_Assign(self, node: ast.Assign) -> Any:
        """`self.x = node(...)` becomes `self.x = value`."""
        target = node.targets[0]
        if isinstance(node.value, ast.Call) and _called(node.value) == "node" and isinstance(target, ast.Attribute):
            held = getattr(self._program, target.attr, None)
            if isinstance(held, Node):
                node.value = ast.parse(repr(plain(held._data, target.attr)), mode="eval").body
        return node


def _called(expression: ast.expr) -> str:
    """The last name in `bundle`, `trace.bundle`, `bundle(...)`."""
    if isinstance(expression, ast.Call):
        return _called(expression.func)
    return expression.attr if isinstance(expression, ast.Attribute) else getattr(expression, "id", "")
