"""uvicorn inside the daemon's event loop."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from agentd.errors import AgentdError

GRACE_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server answers."""

    url: str
    port: int


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the daemon's: it drains the agents before it closes the API."""
        yield


@asynccontextmanager
async def serve(app: ASGIApp, host: str, port: int) -> AsyncIterator[Address]:
    """Serve `app` while the block runs; port 0 takes a free one.

    Raises:
        AgentdError: the address can't be had; the message says how to choose another.
    """
    listener = _listen(host, port)
    try:
        bound = listener.getsockname()[1]
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=GRACE_SECONDS,
            limit_concurrency=256,
            h11_max_incomplete_event_size=65_536,
        )
        server = _Server(config)
        task = asyncio.create_task(server.serve([listener]), name="http")
        try:
            listening = asyncio.create_task(server.listening.wait(), name="http listening")
            await asyncio.wait((task, listening), return_when=asyncio.FIRST_COMPLETED)
            listening.cancel()
            if task.done():
                task.result()
                raise AgentdError("the HTTP server ended at once")
            shown = f"[{host}]" if ":" in host else host
            yield Address(f"http://{shown}:{bound}", bound)
        finally:
            server.should_exit = True
            await asyncio.shield(task)
    finally:
        listener.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
            listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
        except OSError:
            listener.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise AgentdError(f"can't listen on {host}:{port}: {reason}; choose another http_host or http_port (AGENTD_HTTP_PORT)") from error
    return listener
