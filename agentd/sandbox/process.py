"""The handle of a worker process, whatever it runs: its channel, its log, its end."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import Self

from agentd import codec
from agentd.errors import CodecError, PolicyError, SandboxError, WorkerDied
from agentd.records import Source, Value
from agentd.sandbox.channel import Channel
from agentd.sandbox.limits import Limits
from agentd.sandbox.logs import LogReader
from agentd.sandbox.wire import Load, Request
from agentd.sandbox.zygote import Child, Zygote, packet_pair

STATUS_GRACE = 1.0
"""Seconds to wait for the exit status after a channel closed."""
END_TIMEOUT = 5.0


class WorkerProcess:
    """A forked, locked worker. `died` is set, and `reason` says why, when it has ended, by itself or killed."""

    def __init__(self, child: Child, connection: socket.socket, log: int, on_log: Callable[[str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._child = child
        self._handle = child.handle
        self._grace: asyncio.TimerHandle | None = None
        self.pid = child.pid
        self.died = asyncio.Event()
        self.reason: SandboxError | None = None
        self.log = LogReader(log, on_log)
        self.channel = Channel(connection, self._channel_ended)
        child.exited.add_done_callback(self._exited)

    @classmethod
    async def start(cls, zygote: Zygote, program: str, memory_bytes: int, on_log: Callable[[str], None]) -> Self:
        """Fork it. Raises WorkerDied, SandboxError."""
        ours, theirs = packet_pair()
        reading, writing = os.pipe()
        try:
            ours.setblocking(False)  # noqa: FBT003 - the standard library takes it by position
            os.set_blocking(writing, False)
            child = await zygote.fork(program, memory_bytes, theirs, writing)
        except BaseException:
            ours.close()
            os.close(reading)
            raise
        finally:
            theirs.close()
            os.close(writing)
        return cls(child, ours, reading, on_log)

    async def load(
        self, source: Source, entrypoint: str, values: dict[str, Value], limits: Limits, *, data_only: bool, model_calls: int = 0
    ) -> Value:
        """Send the program. Raises LoadError, IsolationError, WorkerDied, WorkerTimeout; the process is then closed."""
        try:
            return await self.call(
                lambda number: Load(number, source.files, entrypoint, source.args, values, limits.allowed_imports, data_only, model_calls),
                limits.load_timeout,
            )
        except BaseException:
            await self.aclose()
            raise

    async def call(self, make: Callable[[int], Request], seconds: float) -> Value:
        """Send a request; its answer, which must come within `seconds`. Raises PolicyError also for a request that is too large to send."""
        number = self.channel.next_number()
        try:
            answer = self.channel.call(number, codec.encode(make(number)), seconds)
        except CodecError as error:
            raise PolicyError(str(error)) from error
        return await answer

    def kill(self) -> None:
        """End the process now, whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            if self._handle >= 0:
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            elif not self._child.exited.done():
                os.kill(self.pid, signal.SIGKILL)

    async def aclose(self) -> None:
        """Kill the process if it lives, and wait for its end."""
        self.end(WorkerDied("the worker was closed"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT):
                await asyncio.wait([self._child.exited])
        self._release()

    def _channel_ended(self, error: SandboxError | None) -> None:
        if error is not None:
            self.end(error)
        elif self.reason is None:
            self._grace = self._loop.call_later(STATUS_GRACE, self.end, WorkerDied("the worker closed its channel"))

    def _exited(self, exited: asyncio.Future[int]) -> None:
        self.end(WorkerDied("the worker was ended with its zygote") if exited.cancelled() else _death(exited.result()))
        self._release()

    def end(self, error: SandboxError) -> None:
        """What ends the worker first is what everybody hears."""
        if self.reason is not None:
            return
        self.reason = error
        self.died.set()
        self.kill()
        self.channel.close(error)
        self.log.close()
        if self._grace is not None:
            self._grace.cancel()

    def _release(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _death(status: int) -> WorkerDied:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return WorkerDied(f"the worker ended with exit code {code}", exit_code=code)
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    why = ": it made a system call that is forbidden" if -code == signal.SIGSYS else ""
    return WorkerDied(f"the worker was ended by {name}{why}", signal=-code)
