"""An operator's freeze of all agents: of those that are hosted, those that come, and those that are not up just now.

The log of events is where it is kept: the newest of its two events says whether it holds. So it is committed, audited, and there again
after a restart, before the first agent begins.
"""

import asyncio

import structlog

from agentd.clock import Clock
from agentd.events import EventBus
from agentd.records import Event, Hold
from agentd.store.contract import Store

FROZEN, UNFROZEN = "daemon.frozen", "daemon.unfrozen"

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def read_freeze(store: Store) -> Hold | None:
    """The freeze of all agents that the store has; None where none holds."""
    events = await store.events(kinds=(FROZEN, UNFROZEN), limit=1, latest=True)
    return next((_hold(event) for event in events if event.kind == FROZEN), None)


def _hold(event: Event) -> Hold:
    return Hold(at=event.at, who=event.who, reason=event.data["reason"], everywhere=True)


class Freeze:
    """Whether all agents are frozen. Every agent's keeper looks here whenever it asks whether it is held."""

    def __init__(self, store: Store, bus: EventBus, clock: Clock, hold: Hold | None = None) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._changing = asyncio.Lock()
        self.hold = hold

    async def begin(self, *, who: str, reason: str = "") -> Event | None:
        """Freeze all agents. What is frozen stays as it was frozen first: None. Raises StoreUnavailable; then nothing is frozen.

        The event is committed, but not told yet.
        """
        async with self._changing:
            if self.hold is not None:
                return None
            event = await self._commit(FROZEN, "every agent is frozen", who, reason)
            self.hold = _hold(event)
            return event

    async def end(self, *, who: str, reason: str = "") -> Event | None:
        """Lift it; None where there is none. What was frozen by itself stays frozen. Raises StoreUnavailable, as `begin`."""
        async with self._changing:
            if self.hold is None:
                return None
            event = await self._commit(UNFROZEN, "the freeze of every agent is lifted", who, reason)
            self.hold = None
            return event

    async def _commit(self, kind: str, what: str, who: str, reason: str) -> Event:
        message = f"{what} by {who}" + (f": {reason}" if reason else "")
        event = Event(kind=kind, at=self._clock.time(), who=who, message=message, data={"reason": reason})
        [committed] = await self._store.commit(event)
        return committed

    def tell(self, event: Event) -> None:
        """Publish what has been committed, and done."""
        log.info(event.message, event_kind=event.kind, who=event.who)
        self._bus.publish(event)
