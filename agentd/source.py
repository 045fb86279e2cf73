"""An agent folder's program: its files, its entrypoints, and the digest that revisions are made on. Nothing is imported."""

import ast
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

import msgspec

from agentd.configuration import masked, suggestion
from agentd.errors import CodecError, Mistake, SpecError
from agentd.records import Source, Value, canonical

MAX_FILE_BYTES = 1_048_576
MAX_FILES = 1000


class Entrypoint(NamedTuple):
    """`module:name`, where module is a file of the agent's folder."""

    module: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError that says what is expected."""
        match = re.fullmatch(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)", text)
        if match is None:
            raise ValueError(f'should be "module:name", such as "controller:CartPole", not "{text}"')
        return cls(match[1], match[2])

    @property
    def files(self) -> tuple[str, str]:
        """Where the module may be, relative to the folder."""
        path = self.module.replace(".", "/")
        return f"{path}.py", f"{path}/__init__.py"


def read_files(folder: Path, include: Iterable[str]) -> tuple[dict[str, str], list[Mistake]]:
    """`*.py` of the folder (and below), and what `include` (paths or glob patterns) names: text by relative POSIX path, sorted.

    Line ends are unified, so that a checkout on another system has the same digest. Hidden folders and `__pycache__` are left out.
    """
    found: list[Mistake] = []
    paths = {path for path in folder.rglob("*.py") if path.is_file() and not _hidden(path.relative_to(folder))}
    for position, pattern in enumerate(include):
        key = f"agent.include[{position}]"
        if not pattern or PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
            found.append(Mistake(str(folder / "agent.toml"), key, f'should be a path inside the folder, not "{pattern}"'))
            continue
        matched = [path for path in folder.glob(pattern) if path.is_file()]
        if not matched:
            found.append(Mistake(str(folder / "agent.toml"), key, f'names no file in {folder}: "{pattern}"'))
        paths.update(matched)
    if len(paths) > MAX_FILES:
        return {}, [*found, Mistake(str(folder), "(folder)", f"should have at most {MAX_FILES} source files, not {len(paths)}")]
    files: dict[str, str] = {}
    root = folder.resolve()
    for path in sorted(paths, key=lambda path: path.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        try:
            files[name] = _read_file(path, root)
        except ValueError as error:
            found.append(Mistake(str(path), "(file)", str(error)))
    return files, found


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _read_file(path: Path, root: Path) -> str:
    if not path.resolve().is_relative_to(root):
        raise ValueError("is a link that leads out of the agent's folder")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"can't be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"should have at most {MAX_FILE_BYTES} bytes, not {len(content)}")
    try:
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"should be UTF-8 text, but byte {error.start} is not") from error


def check_entrypoint(text: str, files: Mapping[str, str], *, file: str, folder: Path, key: str, wanted: str) -> list[Mistake]:
    """What is wrong with an entrypoint: its form, its module, its name in the module's syntax tree."""
    try:
        entrypoint = Entrypoint.parse(text)
    except ValueError as error:
        return [Mistake(file, key, str(error))]
    name = next((name for name in entrypoint.files if name in files), None)
    if name is None:
        modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in files if path.endswith(".py")}
        return [Mistake(file, key, f"there is no {folder / entrypoint.files[0]}{suggestion(entrypoint.module, modules)}")]
    try:
        tree = ast.parse(files[name])
    except (SyntaxError, ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        return [Mistake(str(folder / name), f"(syntax{line})", f"not Python: {getattr(error, 'msg', error)}")]
    names = set(_top_level_names(tree))
    if entrypoint.name not in names:
        public = {name for name in names if not name.startswith("_")}
        return [Mistake(file, key, f'{name} has no "{entrypoint.name}" ({wanted}){suggestion(entrypoint.name, public)}')]
    return []


def _top_level_names(tree: ast.Module) -> Iterable[str]:
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield statement.name
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                yield (alias.asname or alias.name).split(".")[0]
        else:
            # Assignments, also those under `if` or `try`: a factory may be chosen there.
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    yield node.id
                elif isinstance(node, ast.ClassDef | ast.FunctionDef):
                    yield node.name


def _without_password(environment: Any) -> Value:
    """As it was declared, but for the password of its broker, which would lie in the store and in each of its backups."""
    mqtt = environment.get("mqtt")
    if not isinstance(mqtt, dict) or not isinstance(mqtt.get("broker"), str):
        return environment
    return environment | {"mqtt": mqtt | {"broker": masked(mqtt["broker"])}}


def make_source(
    files: dict[str, str], entrypoint: str, args: dict[str, Value], feedback: str | None, hashed: Mapping[str, Value], *, file: str
) -> Source:
    """The source and its digest: sha256 of canonical MessagePack of the sorted files, entrypoint, args and `hashed` (DESIGN section 8).

    Raises SpecError where `args` or a section holds what has no canonical form.
    """
    try:
        content = msgspec.msgpack.encode(
            {"files": sorted(files.items()), "entrypoint": entrypoint, "args": canonical(args)}
            | {name: canonical(section) for name, section in sorted(hashed.items())}
        )
    except CodecError as error:
        raise SpecError([Mistake(file, "(values)", str(error))]) from error
    sections = {name: canonical(hashed[name]) for name in ("environment", "metrics") if name in hashed}
    if "environment" in sections:
        sections["environment"] = _without_password(sections["environment"])
    digest = hashlib.sha256(content).hexdigest()
    return Source(digest=digest, files=files, entrypoint=entrypoint, args=args, feedback=feedback, sections=sections)
