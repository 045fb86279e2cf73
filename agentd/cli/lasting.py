"""A daemon's API that outlives the daemon: whoever follows one waits for it to come back, wherever it then answers."""

import asyncio
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from agentd.cli.context import Where, note
from agentd.errors import DaemonUnreachable

if TYPE_CHECKING:
    from agentd.cli.client import Client

PAUSE = 0.5
"""Seconds between two attempts."""


class Lasting:
    """The API of the daemon at `where`. `client` is another one after `again`.

    Entering it raises DaemonUnreachable where no daemon answers: one that never was there is not waited for.
    """

    def __init__(self, where: Where) -> None:
        self.client: Client
        self._where = where

    async def __aenter__(self) -> Self:
        self.client = await self._connected()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.client.aclose()

    async def again(self, until: float | None = None) -> None:
        """Connect once a daemon answers, and say on standard error that this is waited for. `until`: by time.monotonic.

        Raises:
            DaemonUnreachable: none did until then.
        """
        told = False
        while True:
            await asyncio.sleep(PAUSE if until is None else min(PAUSE, max(0.0, until - time.monotonic())))
            try:
                client = await self._connected()
            except DaemonUnreachable as error:
                if until is not None and time.monotonic() >= until:
                    raise
                if not told:
                    note(f"{error}; waiting for it to come back (Ctrl-C ends)")
                    told = True
            else:
                await self.client.aclose()
                self.client = client
                if told:
                    note(f"the daemon is back at {client.url}")
                return

    async def follow(self, agent: str | None, *, after: int) -> AsyncIterator[dict[str, Any]]:
        """Events behind `after` as they happen, through restarts of the daemon: none that is in its log is missed or comes twice."""
        while True:
            try:
                async for event in self.client.follow(agent, after=after):
                    after = max(after, event["seq"])
                    yield event
            except DaemonUnreachable:
                pass  # as when it ends in good order
            await self.again()

    async def _connected(self) -> "Client":
        client = self._where.client()
        try:
            await client.ping()
        except BaseException:
            await client.aclose()
            raise
        return client
