"""Projections: what brings a proposed value back to the form that a parameter needs, such as formatted code or a docstring that stays."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterable
from typing import Any

from agentd.errors import TraceError


class Projection:
    """Maps a value to the nearest one of the wanted form. Applying it twice changes nothing more."""

    def __call__(self, value: Any) -> Any:
        """As project."""
        return self.project(value)

    def project(self, value: Any) -> Any:
        """`value` in the wanted form."""
        del value
        raise TypeError(f"{type(self).__name__} does not say how to project")


def project(value: Any, projections: Projection | Iterable[Projection]) -> Any:
    """`value` after all projections, in order."""
    for projection in [projections] if isinstance(projections, Projection) else projections:
        value = projection(value)
    return value


class BlackCodeFormatter(Projection):
    """Code as black formats it, where black is installed; else with line ends tidied. Broken code stays as it is."""

    def project(self, value: Any) -> Any:
        """`value`, formatted where it is Python code."""
        if not isinstance(value, str) or not _is_code(value):
            return value
        try:
            black = importlib.import_module("black")
        except ImportError:
            lines = [line.rstrip() for line in value.replace("\r\n", "\n").strip("\n").split("\n")]
            return "\n".join(lines)
        formatted: str = black.format_str(value, mode=black.FileMode())
        return formatted.rstrip("\n")


class DocstringProjection(Projection):
    """Code whose docstring is always this one, whatever a model made of it."""

    def __init__(self, docstring: str) -> None:
        self.docstring = docstring

    def project(self, value: Any) -> Any:
        """`value` with the docstring. Raises TraceError for code without a function."""
        if not isinstance(value, str) or not _is_code(value):
            return value
        function = next((item for item in ast.parse(value).body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)), None)
        if function is None:
            raise TraceError("a docstring needs a function")
        if ast.get_docstring(function) == inspect.cleandoc(self.docstring):
            return value
        first = function.body[0]
        has_one = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
        lines = value.split("\n")
        indent = " " * (first.col_offset if first.lineno > function.lineno else function.col_offset + 4)
        quoted = [f"{indent}{line}" if line else "" for line in _quoted(self.docstring).split("\n")]
        if first.lineno == function.lineno or (has_one and len(function.body) == 1):
            return _rebuilt(value, self.docstring)
        end = (first.end_lineno or first.lineno) if has_one else first.lineno - 1
        start = first.lineno - 1
        return "\n".join([*lines[:start], *quoted, *lines[end:]])


def _is_code(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return "def " in text


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\")
    if '"""' in escaped or escaped.endswith('"'):
        escaped = escaped.replace('"', '\\"')
    return f'"""{escaped}"""'


def _rebuilt(code: str, docstring: str) -> str:
    """For one-line functions, where no line is free for it."""
    tree = ast.parse(code)
    function = next(item for item in tree.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef))
    rest = function.body[1:] if ast.get_docstring(function) is not None else function.body
    function.body = [ast.Expr(ast.Constant(docstring)), *rest]
    return ast.unparse(ast.fix_missing_locations(tree))
