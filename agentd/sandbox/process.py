"""The handles of worker processes, whatever they run: channel, log, end."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import Self

from agentd import codec
from agentd.errors import CodecError, PolicyError, ProtocolViolation, SandboxError, WorkerDied
from agentd.records import Source, Value
from agentd.sandbox.channel import Channel
from agentd.sandbox.limits import Limits
from agentd.sandbox.logs import LogReader
from agentd.sandbox.wire import LEAF_GONE_EXIT, LEAF_LIED_EXIT, Load, Request
from agentd.sandbox.zygote import Child, Zygote, packet_pair

STATUS_GRACE = 1.0
"""Seconds to wait for the exit status after a channel closed."""
END_TIMEOUT = 5.0


class Forked:
    """A forked process and its log. `died` is set, and `reason` says why, when it has ended, by itself or killed."""

    name = "the worker"

    def __init__(self, child: Child, log: int, on_log: Callable[[str], None]) -> None:
        self._child = child
        self._handle = child.handle
        self.pid = child.pid
        self.died = asyncio.Event()
        self.reason: SandboxError | None = None
        self.log = LogReader(log, on_log)
        child.exited.add_done_callback(self._exited)

    def kill(self) -> None:
        """End the process now, whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            if self._handle >= 0:
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            elif not self._child.exited.done():
                os.kill(self.pid, signal.SIGKILL)

    async def aclose(self) -> None:
        """Kill the process if it lives, and wait for its end."""
        self.end(WorkerDied(f"{self.name} was closed"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT):
                await asyncio.wait([self._child.exited])
        self._release()

    def end(self, error: SandboxError) -> None:
        """What ends the process first is what everybody hears."""
        if self.reason is not None:
            return
        self.reason = error
        self.died.set()
        self.kill()
        self.log.close()
        self._ended(error)

    def _ended(self, error: SandboxError) -> None:
        """What else ends with it."""

    def _exited(self, exited: asyncio.Future[int]) -> None:
        self._fate(WorkerDied(f"{self.name} was ended with its zygote") if exited.cancelled() else self._death(exited.result()))
        self._release()

    def _fate(self, death: WorkerDied) -> None:
        self.end(death)

    def _death(self, status: int) -> WorkerDied:
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            return WorkerDied(f"{self.name} ended with exit code {code}", exit_code=code)
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        why = ": it made a system call that is forbidden" if -code == signal.SIGSYS else ""
        return WorkerDied(f"{self.name} was ended by {name}{why}", signal=-code)

    def _release(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class LeafProcess(Forked):
    """A locked process for the code parameters of a trusted program, which gets the other end of its channel."""

    name = "the sandbox of the code parameters"

    def __init__(self, child: Child, log: int, on_log: Callable[[str], None]) -> None:
        super().__init__(child, log, on_log)
        self.on_end: Callable[[SandboxError], None] = _nobody_hears

    @classmethod
    async def start(cls, zygote: Zygote, memory_bytes: int, on_log: Callable[[str], None]) -> tuple[Self, socket.socket]:
        """Fork it; the process, and the program's end of its channel. Raises WorkerDied, SandboxError."""
        child, ours, log = await _fork(zygote, "leaf", memory_bytes)
        return cls(child, log, on_log), ours

    def _ended(self, error: SandboxError) -> None:
        self.on_end(error)


class WorkerProcess(Forked):
    """A forked process with a channel to here: locked, or a trusted program with its `leaf`. Program and leaf end together."""

    def __init__(
        self, child: Child, connection: socket.socket, log: int, on_log: Callable[[str], None], leaf: LeafProcess | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._grace: asyncio.TimerHandle | None = None
        self.leaf = leaf
        connection.setblocking(False)  # noqa: FBT003 - the standard library takes it by position
        self.channel = Channel(connection, self._channel_ended)
        super().__init__(child, log, on_log)
        if leaf is not None:
            leaf.on_end = self._leaf_ended
            if leaf.reason is not None:
                self._leaf_ended(leaf.reason)

    @classmethod
    async def start(cls, zygote: Zygote, program: str, memory_bytes: int, on_log: Callable[[str], None]) -> Self:
        """Fork it. Raises WorkerDied, SandboxError."""
        child, ours, log = await _fork(zygote, program, memory_bytes)
        return cls(child, ours, log, on_log)

    @classmethod
    async def start_trusted(cls, zygote: Zygote, programs: Zygote, memory_bytes: int, on_log: Callable[[str], None]) -> Self:
        """Fork a trusted program from `programs`, and from `zygote` its leaf, which may have `memory_bytes`. Raises as `start`."""
        leaf, connection = await LeafProcess.start(zygote, memory_bytes, on_log)
        try:
            child, ours, log = await _fork(programs, "trusted", 0, connection.fileno())
        except BaseException:
            await leaf.aclose()
            raise
        finally:
            connection.close()
        return cls(child, ours, log, on_log, leaf)

    async def load(self, source: Source, entrypoint: str, limits: Limits, *, data_only: bool = False, model_calls: int = 0) -> Value:
        """Send the program. Raises LoadError, IsolationError, WorkerDied, WorkerTimeout; the process is then closed."""
        try:
            return await self.call(
                lambda number: Load(number, source.files, entrypoint, source.args, limits.allowed_imports, data_only, model_calls),
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

    async def aclose(self) -> None:
        """Kill the process if it lives, and its leaf, and wait for their end."""
        await super().aclose()
        if self.leaf is not None:
            await self.leaf.aclose()

    def _channel_ended(self, error: SandboxError | None) -> None:
        if error is not None:
            self.end(error)
        elif self.reason is None:
            self._wait_for_fate(WorkerDied("the worker closed its channel"))

    def _leaf_ended(self, error: SandboxError) -> None:
        if isinstance(error, WorkerDied) and error.exit_code == 0 and self.reason is None:
            self._wait_for_fate(error)  # a leaf ends so where the program is gone: of what that died is better said by its own status
        else:
            self.end(error)

    def _wait_for_fate(self, otherwise: WorkerDied) -> None:
        if self._grace is None:
            self._grace = self._loop.call_later(STATUS_GRACE, self.end, otherwise)

    def _fate(self, death: WorkerDied) -> None:
        if self.leaf is not None and death.exit_code == LEAF_LIED_EXIT:
            self.end(ProtocolViolation(f"{self.leaf.name} sent what none sends, and was killed"))
        elif self.leaf is not None and death.exit_code == LEAF_GONE_EXIT and self.reason is None:
            self._wait_for_fate(WorkerDied(f"{self.leaf.name} closed its channel"))  # of what it died is better said by its own status
        else:
            self.end(death)

    def _ended(self, error: SandboxError) -> None:
        self.channel.close(error)
        if self._grace is not None:
            self._grace.cancel()
        if self.leaf is not None:
            self.leaf.end(error)


async def _fork(zygote: Zygote, program: str, memory_bytes: int, *leaf: int) -> tuple[Child, socket.socket, int]:
    """A forked process, our end of its channel, and the end of its log that is read."""
    ours, theirs = packet_pair()
    with theirs:
        try:
            reading, writing = os.pipe()
        except OSError as error:
            ours.close()
            raise SandboxError(f"no log can be opened: {error.strerror}") from error
        try:
            os.set_blocking(writing, False)
            child = await zygote.fork(program, memory_bytes, theirs.fileno(), writing, *leaf)
        except BaseException:
            ours.close()
            os.close(reading)
            raise
        finally:
            os.close(writing)
    return child, ours, reading


def _nobody_hears(_: SandboxError) -> None:
    """The trusted program is not there yet: it looks for itself."""
