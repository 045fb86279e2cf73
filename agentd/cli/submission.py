"""What `agentd submit AGENT FILE` reads: values by parameter path from TOML or JSON, or functions from Python."""

import ast
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agentd.cli.context import UsageMistake


def read(path: Path, known: Iterable[str]) -> tuple[dict[str, Any], str]:
    """(values by parameter path, note). `known` are the agent's parameters.

    A `.toml` or `.json` file has a table `values` (nested tables may stand for the dots of a path) and perhaps a `note`. A `.py` file has
    top-level functions: each is the code of the parameter with its name, or of the only one whose path ends with it; its docstring is
    the note.

    Raises:
        UsageMistake: the file can't be read, or has no value for a known parameter.
    """
    paths = set(known)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageMistake(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error
    if path.suffix == ".py":
        return _from_python(path, content, paths)
    if path.suffix in {".toml", ".json"}:
        return _from_table(path, content, paths)
    raise UsageMistake(f"{path}: should be a .toml, .json or .py file")


def _from_table(path: Path, content: str, known: set[str]) -> tuple[dict[str, Any], str]:
    try:
        document = tomllib.loads(content) if path.suffix == ".toml" else json.loads(content)
    except ValueError as error:
        raise UsageMistake(f"{path}: not {path.suffix.removeprefix('.').upper()}: {error}") from error
    values = document.get("values") if isinstance(document, dict) else None
    if not isinstance(values, dict) or not values:
        raise UsageMistake(f"{path}: should have a table [values] with a value for each parameter that changes")
    if unknown := sorted(set(document) - {"values", "note"}):
        raise UsageMistake(f"{path}: unknown key {', '.join(unknown)}; known here: note, values")
    flat = dict(_flatten("", values, known))
    _check(path, flat, known)
    return flat, str(document.get("note", ""))


def _flatten(prefix: str, table: Mapping[str, Any], known: set[str]) -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and path not in known:
            yield from _flatten(f"{path}.", value, known)
        else:
            yield path, value


def _from_python(path: Path, content: str, known: set[str]) -> tuple[dict[str, Any], str]:
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UsageMistake(f"{path}{line}: not Python: {getattr(error, 'msg', error)}") from error
    lines = content.splitlines()
    values = {}
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            # From `def` on: decorators belong to the source, not to the value.
            values[_path(statement.name, known)] = "\n".join(lines[statement.lineno - 1 : statement.end_lineno]) + "\n"
    if not values:
        raise UsageMistake(f"{path}: has no top-level function; known parameters: {', '.join(sorted(known))}")
    _check(path, values, known)
    return values, ast.get_docstring(tree) or ""


def _path(name: str, known: set[str]) -> str:
    ending = [path for path in known if path.endswith(f".{name}")]
    return ending[0] if name not in known and len(ending) == 1 else name


def _check(path: Path, values: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(values) - known):
        raise UsageMistake(f"{path}: no parameter is called {', '.join(unknown)}; known: {', '.join(sorted(known))}")
