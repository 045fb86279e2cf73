"""The trusted end of a worker's log pipe. However much a worker prints, it costs the event loop a bounded share of its time."""

import asyncio
import contextlib
import os
from collections.abc import Callable

from agentd.sandbox.output import MAX_LINE
from agentd.sandbox.wire import printable

MAX_READ = 16_384
MAX_LINES = 100
PAUSE = 0.05
"""Seconds between reads: at most 2000 lines a second are passed on. A worker that prints more drops its own lines, or is counted here."""


class LogReader:
    """Passes lines from a pipe, which it owns, to `on_log`; `dropped` counts the lines that were too many."""

    def __init__(self, descriptor: int, on_log: Callable[[str], None]) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._on_log = on_log
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.dropped = 0
        self._loop.add_reader(descriptor, self._read)

    def close(self) -> None:
        """Pass on what is in the pipe now (at most one read), and close it."""
        if self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._descriptor)
        self._pass_on(self._take() or b"")
        if self._rest:
            self._pass_on(b"\n")
        self._closed = True
        os.close(self._descriptor)

    def _read(self) -> None:
        self._loop.remove_reader(self._descriptor)
        content = self._take()
        if content == b"":
            return  # every writer is gone
        self._pass_on(content or b"")
        self._timer = self._loop.call_later(PAUSE, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self._loop.add_reader(self._descriptor, self._read)

    def _take(self) -> bytes | None:
        with contextlib.suppress(BlockingIOError):
            return os.read(self._descriptor, MAX_READ)
        return None

    def _pass_on(self, content: bytes) -> None:
        *lines, self._rest = (self._rest + content).split(b"\n")
        if len(self._rest) > MAX_LINE:
            lines.append(self._rest)
            self._rest = b""
        too_many = len(lines) - MAX_LINES
        for line in lines[:MAX_LINES]:
            self._on_log(printable(line[:MAX_LINE].decode(errors="replace")))
        if too_many > 0:
            self.dropped += too_many
            self._on_log(f"({too_many} lines were dropped)")
