"""The arena of the escape tests: attacks are functions, whose source becomes a policy that runs in a locked worker.

An attack gets `target` (a file and a folder, a listening port, a process, the runner's pid) and returns something true when it succeeded.
It must fail, in the way that it declares; nothing of the target may have changed; and the next worker must still serve.
"""

import ast
import asyncio
import contextlib
import inspect
import os
import re
import socket
import subprocess
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from agentd.errors import IsolationError, PolicyError, ProtocolViolation, SandboxError, WorkerDied, WorkerTimeout
from agentd.records import Source, make_revision
from agentd.sandbox import Limits, PolicyWorker, Zygote

MODULES = (
    "asyncio", "builtins", "ctypes", "encodings.idna", "fcntl", "gc", "importlib", "io", "linecache", "math", "mmap", "msgspec",
    "multiprocessing", "numpy", "numpy.ctypeslib", "os", "pathlib", "pickle", "re", "resource", "shutil", "signal", "socket", "stat",
    "struct", "subprocess", "sys", "tempfile", "threading", "time", "urllib.error", "urllib.request",
)  # fmt: skip
"""What attackers may import: all they want, so that it is the lockdown that is tried, and not the list of allowed imports."""

SECRET = "sk-this-key-must-stay-with-the-runner"

REFUSED = PolicyError
VIOLATION = ProtocolViolation
TIMEOUT = WorkerTimeout
DIED = WorkerDied
KILLED = "killed by the kernel for the system call"


@dataclass(frozen=True)
class Attack:
    """A way to break out. `fate` is how it must end; `works_unlocked`: it succeeds where nothing is locked, which is then shown."""

    function: Callable[[dict[str, Any]], Any]
    fate: Any
    works_unlocked: bool = True
    step_timeout: float = 5.0
    says: str = "PermissionError|not permitted|Errno 1"

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def source(self) -> str:
        tree = ast.parse(textwrap.dedent(inspect.getsource(self.function)))
        function = tree.body[0]
        assert isinstance(function, ast.FunctionDef)
        function.decorator_list = []
        return POLICY.format(function=ast.unparse(function), name=function.name)


POLICY = """from __future__ import annotations

{function}

class Attacker:
    def act(self, observation):
        return bool({name}(observation.data))
"""

NUMBER = """
def number():
    frame = sys._getframe()
    while not hasattr(frame.f_locals.get("request"), "id"):
        frame = frame.f_back
    return frame.f_locals["request"].id
"""
"""Of the request that a worker is at, which its program shouldn't know: for programs that import sys."""
INNOCENT = """
class Innocent:
    def act(self, observation):
        return 2 * observation.data
"""


@dataclass
class Attacks:
    """A file's attacks, collected by decoration."""

    found: list[Attack] = field(default_factory=list)

    def __call__(self, fate: Any, **options: Any) -> Callable[[Callable[[dict[str, Any]], Any]], Callable[[dict[str, Any]], Any]]:
        def add(function: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
            self.found.append(Attack(function, fate, **options))
            return function

        return add

    @property
    def unlocked(self) -> list[Attack]:
        return [attack for attack in self.found if attack.works_unlocked]


class Target:
    """What attackers are after: each test has its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "treasure"
        self.folder.mkdir()
        self.folder.chmod(0o777)
        self.file = self.folder / "secret.txt"
        self.file.write_text(SECRET)
        self.file.chmod(0o666)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)  # noqa: FBT003 - the standard library takes it by position
        self.victim = subprocess.Popen(["/bin/sleep", "600"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()
        self.victim.kill()
        self.victim.wait()

    def observation(self) -> dict[str, Any]:
        return {
            "file": str(self.file),
            "folder": str(self.folder),
            "port": self.listener.getsockname()[1],
            "victim": self.victim.pid,
            "runner": os.getpid(),
            "machine": os.uname().machine,
        }

    def assert_untouched(self) -> None:
        assert [path.name for path in self.folder.iterdir()] == ["secret.txt"]
        assert self.file.read_text() == SECRET
        assert self.file.stat().st_mode & 0o777 == 0o666
        assert self.victim.poll() is None
        with contextlib.suppress(BlockingIOError):
            self.listener.accept()
            raise AssertionError("the attacker reached the network")


def program(text: str, entrypoint: str) -> Source:
    return Source(digest="d", files={"program.py": text}, entrypoint=f"program:{entrypoint}")


async def start(
    zygote: Zygote, text: str, entrypoint: str, *, step_timeout: float = 5.0, load_timeout: float = 30.0, on_log: Any = None, **values: Any
) -> PolicyWorker:
    limits = Limits(step_timeout=step_timeout, load_timeout=load_timeout, allowed_imports=MODULES)
    source = program(text, entrypoint)
    revision = make_revision("attacker", source.digest, values)
    return await PolicyWorker.start(zygote, source=source, revision=revision, limits=limits, on_log=on_log or (lambda _: None))


async def outcome(call: Awaitable[Any]) -> Any:
    """What a call gave, or the error it raised."""
    try:
        return await call
    except SandboxError as error:
        return error


async def run(zygote: Zygote, attack: Attack, target: Target) -> Any:
    """What became of an attack: True if it succeeded, else the error."""
    async with await start(zygote, attack.source, "Attacker", step_timeout=attack.step_timeout) as worker:
        await worker.reset("robot", "episode", 7)
        return await outcome(worker.act("robot", 0, target.observation()))


def assert_fate(attack: Attack, end: Any) -> None:
    assert end is not True, f"{attack.name} succeeded"
    if attack.fate == KILLED:
        assert isinstance(end, WorkerDied), repr(end)
        assert "forbidden" in str(end), str(end)
    else:
        assert isinstance(end, attack.fate), repr(end)
        if attack.fate is REFUSED:  # by the kernel or for want of memory, and not because the attack has a mistake
            assert re.search(attack.says, f"{end}\n{end.traceback}"), f"{end}\n{end.traceback}"
    assert SECRET not in str(end)
    assert SECRET not in getattr(end, "traceback", "")


async def assert_next_worker_serves(zygote: Zygote) -> None:
    async with await start(zygote, INNOCENT, "Innocent") as worker:
        await worker.reset("robot", "episode", None)
        assert await worker.act("robot", 0, 21) == 42
        assert await worker.finish("robot", 0)


async def assert_fails(zygote: Zygote, attack: Attack, folder: Path) -> None:
    with Target(folder) as target:
        end = await run(zygote, attack, target)
        assert_fate(attack, end)
        await asyncio.sleep(0)
        target.assert_untouched()
    await assert_next_worker_serves(zygote)


async def assert_succeeds(zygote: Zygote, attack: Attack, folder: Path) -> None:
    with Target(folder) as target:
        assert await run(zygote, attack, target) is True


@contextlib.asynccontextmanager
async def arena(level: int) -> AsyncIterator[Zygote]:
    """A zygote of exactly this level; the test is skipped on a machine that does not give it."""
    try:
        zygote = await Zygote.start(imports=MODULES, min_isolation=level, max_isolation=level)
    except IsolationError as error:
        pytest.skip(str(error))
    async with zygote:
        yield zygote
