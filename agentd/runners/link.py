"""The runner's side of the Unix socket: one daemon at a time, the one with the newest fencing token."""

import asyncio
import contextlib
import os
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

from agentd.errors import AgentdError, CodecError, Fenced, RunnerError
from agentd.runners.messages import VERSION, Done, Failed, Hello, ToRunner, Welcome, failure, frame, read_frame
from agentd.runners.paths import short
from agentd.runners.spool import Spool

_LAST_WORDS = 1.0

Handler = Callable[[ToRunner], Awaitable[Done]]


class DaemonLink:
    """Listens for daemons. What they ask goes to `handle`; what the spool holds goes to them, as fast as they read and no faster."""

    def __init__(self, path: Path, spool: Spool, *, welcome: Callable[[Hello], Welcome], handle: Handler) -> None:
        self.epoch = -1
        self._path = path
        self._spool = spool
        self._welcome = welcome
        self._handle = handle
        self._server: asyncio.Server | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests: set[asyncio.Task[None]] = set()

    @property
    def connected(self) -> bool:
        """Whether a daemon listens."""
        return self._writer is not None

    async def __aenter__(self) -> Self:
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()  # of a runner that was killed: the lock says that it is gone
        with short(self._path) as path:
            self._server = await asyncio.start_unix_server(self._accept, path)
        os.chmod(self._path, 0o600)  # noqa: PTH101 - the file of a socket
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._server is not None:
            self._server.close()
        if self._requests:
            await asyncio.wait(self._requests, timeout=_LAST_WORDS)  # who asked for the end hears that it came
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            await self._converse(reader, writer)
        except (CodecError, ConnectionError, OSError):
            pass  # whoever spoke is gone, or was no daemon
        except asyncio.CancelledError:
            # Only `aclose` cancels, and waits for it; the streams of Python 3.11 print a traceback for a conversation that was cancelled.
            pass
        finally:
            if self._writer is writer:
                self._writer = None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = await read_frame(reader, ToRunner)
        if not isinstance(hello, Hello):
            return
        refusal = self._refuse(hello)
        if refusal is not None:
            writer.write(frame(failure(hello.request, refusal)))
            await writer.drain()
            return
        self.epoch = hello.epoch
        if self._writer is not None:
            older, self._writer = self._writer, None
            _dismiss(older, Fenced(f"the daemon with epoch {hello.epoch} has taken over"))
        self._writer = writer
        writer.write(frame(self._welcome(hello)))
        self._spool.rewind()
        sender = asyncio.create_task(self._send(writer), name="daemon-send")
        try:
            while self._writer is writer and (message := await read_frame(reader, ToRunner)) is not None:
                request = asyncio.create_task(self._serve(message, writer), name=f"request-{type(message).__name__}")
                self._requests.add(request)
                request.add_done_callback(self._requests.discard)
        finally:
            sender.cancel()
            await asyncio.wait({sender})

    def _refuse(self, hello: Hello) -> AgentdError | None:
        if hello.version != VERSION:
            return RunnerError(f"the daemon speaks version {hello.version} of the protocol, this runner {VERSION}")
        if hello.epoch < self.epoch:
            return Fenced(f"a daemon with epoch {self.epoch} owns this runner; yours is {hello.epoch}")
        return None

    async def _serve(self, message: ToRunner, writer: asyncio.StreamWriter) -> None:
        answer: Done | Failed
        try:
            answer = await self._handle(message)
        except AgentdError as error:
            answer = failure(message.request, error)
        except Exception as error:  # noqa: BLE001 - a fault of ours is an answer too: the daemon would wait, then take this runner for dead
            traceback.print_exc()
            answer = failure(message.request, RunnerError(f"{type(message).__name__} failed by a fault of agentd: {error!r}"))
        if not writer.is_closing():
            writer.write(frame(answer))

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                await writer.drain()  # a daemon that doesn't read stops this task and nothing else
                content = await self._spool.next()
                if not writer.is_closing():
                    writer.write(content)


def _dismiss(writer: asyncio.StreamWriter, error: AgentdError) -> None:
    """Say why and hang up. Who doesn't read isn't waited for."""
    if writer.is_closing():
        return
    writer.write(frame(failure(0, error)))
    if writer.transport.get_write_buffer_size():
        writer.transport.abort()
    else:
        writer.close()
