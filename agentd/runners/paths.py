"""Where a runner can be found: its socket, its lock, its log; and who holds the lock."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agentd.errors import RunnerError

_LONGEST_SOCKET_PATH = 100  # sockaddr_un has 108 bytes on Linux, 104 elsewhere


@dataclass(frozen=True, slots=True)
class RunnerPaths:
    """The files of one agent's runner under the daemon's state directory."""

    directory: Path
    agent: str

    @property
    def socket(self) -> Path:
        """Where the runner listens."""
        return self.directory / f"{self.agent}.sock"

    @property
    def lock(self) -> Path:
        """Held with flock for as long as the runner lives; its process id and session are inside."""
        return self.directory / f"{self.agent}.lock"

    @property
    def log(self) -> Path:
        """What the runner writes on its standard error."""
        return self.directory / f"{self.agent}.log"

    @classmethod
    def under(cls, state_directory: Path, agent: str) -> "RunnerPaths":
        """The files' places; the directory is made, for the owner only."""
        directory = state_directory / "runners"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(directory, agent)


@contextlib.contextmanager
def short(path: Path) -> Iterator[str]:
    """A name for a socket's path that fits into a socket address: long ones go through a descriptor of their directory."""
    name = str(path)
    if len(os.fsencode(name)) <= _LONGEST_SOCKET_PATH:
        yield name
        return
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def take_lock(path: Path, content: str) -> int | None:
    """Take the lock and write who holds it; the descriptor keeps it. None if somebody else does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content.encode(), 0)
    return descriptor


def lock_holder(path: Path) -> int | None:
    """The process id of the runner that holds the lock, or None when nobody does. Raises RunnerError if it can't be told."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        content = os.pread(descriptor, 100, 0).decode(errors="replace")
        pid = content.partition(" ")[0]
        if not pid.isdigit():
            raise RunnerError(f"{path} is held, but doesn't say by whom") from None
        return int(pid)
    else:
        return None
    finally:
        os.close(descriptor)
