"""The zygotes of feedback workers: one per import set, shared by all agents of a daemon (DESIGN section 7: "one zygote per import set").

A zygote costs some 20 MB and half a second of a core, a worker forked from it a few of both. It never sees an agent's code, so that one
agent can't reach another through it. The policies' zygotes are others: each runner has its own.
"""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from agentd.sandbox import Zygote


class Zygotes:
    """Started when somebody first asks for one, ended when this is closed. Use it with `async with`."""

    def __init__(self) -> None:
        self._living: dict[tuple[tuple[str, ...], int], Zygote] = {}
        self._starting = asyncio.Lock()

    async def get(self, imports: Sequence[str], min_isolation: int) -> Zygote:
        """The zygote whose workers may import `imports`; a new one if it died, or forks no longer. Raises as Zygote.start."""
        key = (tuple(sorted(imports)), min_isolation)
        async with self._starting:
            zygote = self._living.get(key)
            if zygote is not None and not zygote.is_well:
                await zygote.aclose()
                del self._living[key]
                zygote = None
            if zygote is None:
                zygote = self._living[key] = await Zygote.start(imports=key[0], min_isolation=min_isolation)
            return zygote

    async def aclose(self) -> None:
        """End all of them, and their workers."""
        # Each is forgotten only when it is closed: whoever is cancelled in the middle of this leaves the rest to the next call.
        while self._living:
            key, zygote = next(iter(self._living.items()))
            await zygote.aclose()
            del self._living[key]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()
