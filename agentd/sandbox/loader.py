"""The agent's own modules, imported from memory after lockdown, with imports limited to what `allowed_imports` names.

The limit is a courtesy that turns a mistake into a clear ImportError. It is no boundary: Python code can reach every module of its process.
The boundary is the lockdown.
"""

import builtins
import importlib.abc
import importlib.machinery
import linecache
import sys
from collections.abc import Mapping, Sequence
from types import FrameType, ModuleType
from typing import Any

from agentd.errors import LoadError

ROOT = "/agent/"
"""What tracebacks show before a file's relative path. No such folder exists."""

ALWAYS_ALLOWED = (
    "__future__", "abc", "agentd", "bisect", "cmath", "collections", "copy", "dataclasses", "enum", "functools", "heapq", "itertools",
    "logging", "math", "operator", "random", "statistics", "string", "textwrap", "typing",
)  # fmt: skip
"""Modules that only shape and compute; they need no declaration."""


_MARK = "__agent__"


def is_allowed(name: str, allowed_imports: Sequence[str]) -> bool:
    """Whether a worker that may import these may import the module `name`."""
    allowed = (*ALWAYS_ALLOWED, *allowed_imports)
    return any(name == other or name.startswith(f"{other}.") or other.startswith(f"{name}.") for other in allowed)


def is_program(frame: FrameType) -> bool:
    """Whether a frame runs code of the agent, however it was compiled: its modules have builtins of their own."""
    return _MARK in frame.f_builtins


class MemoryFinder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds and loads the modules of one source. `get_source` serves inspect and linecache; `get_data` serves included files.

    `builtins` are those of its modules: `import` is the limited one. Without `allowed_imports` (None) it is not limited.
    """

    def __init__(self, files: Mapping[str, str], allowed_imports: Sequence[str] | None) -> None:
        self._files = dict(files)
        self._paths = {_module_name(path): path for path in self._files if path.endswith(".py")}
        self._own = {name.partition(".")[0] for name in self._paths}
        self._allowed = allowed_imports
        for name in sorted(self._own):
            if name in sys.modules or name in sys.stdlib_module_names:
                raise LoadError(f"{name}.py has the name of a module that exists already; rename it")
        self.builtins = {**vars(builtins), "__import__": self._import, _MARK: True}

    def install(self) -> None:
        """Come first among the finders, and tell linecache every line."""
        for path, text in self._files.items():
            linecache.cache[ROOT + path] = (len(text), None, text.splitlines(keepends=True), ROOT + path)
        sys.meta_path.insert(0, self)

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """The spec of an own module, None for any other."""
        del path, target
        file = self._paths.get(fullname)
        if file is None:
            if any(name.startswith(f"{fullname}.") for name in self._paths):  # a folder without __init__.py
                return importlib.machinery.ModuleSpec(fullname, None, is_package=True)
            return None
        package = file.endswith("__init__.py")
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=ROOT + file, is_package=package)
        spec.has_location = True
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Run an own module, whose `import` is the limited one."""
        module.__dict__["__builtins__"] = self.builtins
        exec(self.get_code(module.__name__), module.__dict__)  # noqa: S102 - running the agent's program, locked down, is what this process is for

    def get_code(self, fullname: str) -> Any:
        """The compiled module."""
        path = self._paths[fullname]
        return compile(self._files[path], ROOT + path, "exec", dont_inherit=True)

    def get_source(self, fullname: str) -> str:
        """The text of an own module. Raises ImportError for another."""
        try:
            return self._files[self._paths[fullname]]
        except KeyError as error:
            raise ImportError(f"{fullname} is no module of this agent", name=fullname) from error

    def is_package(self, fullname: str) -> bool:
        """Whether an own module is a package."""
        return self._paths[fullname].endswith("__init__.py")

    def get_data(self, path: str) -> bytes:
        """An included file: `__loader__.get_data("prompt.txt")`. Raises FileNotFoundError."""
        try:
            return self._files[path.removeprefix(ROOT)].encode()
        except KeyError as error:
            raise FileNotFoundError(f"{path} is not among the agent's files; name it in [agent] include") from error

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,  # noqa: A002 - the names are those of builtins.__import__
        locals: Mapping[str, object] | None = None,  # noqa: A002 - as above
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        if level == 0 and name.partition(".")[0] not in self._own and self._allowed is not None and not is_allowed(name, self._allowed):
            allowed = ", ".join(sorted(set(self._allowed) - set(ALWAYS_ALLOWED)))
            raise ImportError(f"this agent may not import {name!r}: [sandbox] allowed_imports has only {allowed}", name=name)
        return builtins.__import__(name, globals, locals, fromlist or (), level)


def _module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def load_entrypoint(files: Mapping[str, str], allowed_imports: Sequence[str] | None, entrypoint: str) -> Any:
    """The object that `module:name` names. Raises LoadError where there is none, and whatever the module raises."""
    MemoryFinder(files, allowed_imports).install()
    module_name, _, name = entrypoint.partition(":")
    module = importlib.import_module(module_name)
    found = getattr(module, name, None)
    if found is None:
        raise LoadError(f"{module_name} has no {name!r}")
    return found
