"""Attempts that a program hides are told all the same.

Lockdown makes the attempt to open a file fail, but a program may catch the PermissionError and go on as if nothing had been. An audit
hook (PEP 578), which Python code can't take away again, notes what the program's own lines tried; the call then fails after all, so that
the release machinery sees it. This is no boundary: native code goes around it, and gets only what the kernel lets it have.
"""

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from agentd.sandbox.loader import is_program

_WATCHED = frozenset(
    {
        "_thread.start_new_thread", "ctypes.dlopen", "open", "os.chdir", "os.chmod", "os.chown", "os.exec", "os.fork", "os.forkpty",
        "os.kill", "os.killpg", "os.link", "os.listdir", "os.mkdir", "os.posix_spawn", "os.remove", "os.rename", "os.rmdir", "os.scandir",
        "os.spawn", "os.symlink", "os.system", "os.truncate", "shutil.rmtree", "signal.pthread_kill", "socket.__new__", "socket.bind",
        "socket.connect", "subprocess.Popen",
    }
)  # fmt: skip
_INNOCENT = (
    "linecache",
    "tokenize",
    "traceback",
    "warnings",
    "inspect",
    "logging",
    "importlib._bootstrap",
    "importlib._bootstrap_external",
)
"""Modules that look for sources and the like by themselves; what they find closed is nobody's attempt."""
_DEPTH = 12
_MAX_NOTES = 10


class Attempt(Exception):  # noqa: N818 - what was tried, not what went wrong
    """What the program tried, as its author should read it."""


class Telltale:
    """Notes attempts from the moment it is made. There is no way to stop it."""

    def __init__(self) -> None:
        self._notes: list[str] = []
        sys.addaudithook(self._hear)

    def tell(self) -> None:
        """Raise Attempt if the program tried anything since the last time."""
        if self._notes:
            notes, self._notes = self._notes, []
            raise Attempt("PermissionError: the program tried what it may not, and went on: " + "; ".join(notes))

    def forget(self) -> None:
        """The program's own error tells enough."""
        self._notes.clear()

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _WATCHED or len(self._notes) >= _MAX_NOTES:
            return
        for frame in _callers(sys._getframe(1)):  # noqa: SLF001 - the only way to see who called, and cheap
            if frame.f_globals.get("__name__") in _INNOCENT:
                return
            if is_program(frame):
                what = ", ".join(repr(argument)[:80] for argument in arguments[:2])
                self._notes.append(f"{event}({what}) at {frame.f_code.co_filename}:{frame.f_lineno}")
                return


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    for _ in range(_DEPTH):
        if frame is None:
            return
        yield frame
        frame = frame.f_back
