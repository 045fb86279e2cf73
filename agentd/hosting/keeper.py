"""The one place where an agent's committed state changes: commit, then route, then tell."""

import asyncio
from random import Random
from typing import Any

import msgspec
import structlog

from agentd.clock import Clock
from agentd.events import EventBus
from agentd.hosting.freeze import Freeze
from agentd.ids import make_id
from agentd.records import AgentState, Event, Feedback, Pair, PairPlan, Proposal, Provenance, Release, Revision, Single, Source, Window
from agentd.spec import AgentSpec
from agentd.store.contract import Store

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Durable = Source | Revision | Provenance | Release | Proposal | PairPlan | Pair | Single | Window | Feedback


class Keeper:
    """An agent's state, and the only way to change it. It lives as long as the agent is hosted, through every restart of its runner.

    Whoever decides something holds `deciding`, so that an operator's word and an episode's evidence never interleave.
    """

    def __init__(
        self, spec: AgentSpec, state: AgentState, store: Store, bus: EventBus, clock: Clock, random: Random, freeze: Freeze
    ) -> None:
        self.spec = spec
        self.state = state
        self.store = store
        self.bus = bus
        self.clock = clock
        self.random = random
        self._freeze = freeze
        self.deciding = asyncio.Lock()

    @property
    def name(self) -> str:
        """The agent's name."""
        return self.state.name

    @property
    def shown(self) -> AgentState:
        """The agent's state as it holds: under a freeze of all agents it is frozen, too."""
        return self.state.under(self._freeze.hold)

    @property
    def held(self) -> str:
        """What keeps releases from going on, in words; empty if nothing does."""
        return self.shown.held

    def new_id(self) -> str:
        """A fresh identifier."""
        return make_id(self.clock.time(), self.random)

    def event(self, kind: str, message: str, *, who: str = "agentd", **data: Any) -> Event:
        """An event about this agent, now."""
        return Event(kind=kind, at=self.clock.time(), agent=self.name, who=who, message=message, data=data)

    async def commit(self, *records: Durable | Event, **changes: Any) -> tuple[Event, ...]:
        """Write records and `changes` of the agent's state in one transaction. Events are returned, not told yet.

        Whoever gives `changes` holds `deciding`: two that begin from the same state would undo each other. A commit that has begun is
        finished even if its caller is cancelled, so that what is in memory is what is in the store.

        Raises:
            StoreUnavailable: nothing was written, and nothing was changed.
        """
        if changes and not self.deciding.locked():
            raise RuntimeError(f"a change of {sorted(changes)} by somebody who doesn't decide")
        writing = asyncio.create_task(self._write(records, changes), name=f"{self.name}: commit")
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing})
            if not writing.cancelled():
                writing.exception()  # there is nobody to tell
            raise

    async def _write(self, records: tuple[Durable | Event, ...], changes: dict[str, Any]) -> tuple[Event, ...]:
        if not changes:
            return await self.store.commit(*records)
        state = msgspec.structs.replace(self.state, updated_at=self.clock.time(), **changes)
        committed = await self.store.commit(*records, state)
        self.state = state
        return committed

    def amend(self, **changes: Any) -> None:
        """Change what the next commit will write: for what a restart may lose, such as the last few episodes of a watch."""
        self.state = msgspec.structs.replace(self.state, **changes)

    def tell(self, *events: Event) -> None:
        """Publish what has been committed and routed."""
        for event in events:
            log.info(event.message or event.kind, event_kind=event.kind, agent=event.agent, who=event.who)
            self.bus.publish(event)

    async def say(self, kind: str, message: str, *, who: str = "agentd", **data: Any) -> None:
        """Commit an event that changes nothing, and publish it."""
        self.tell(*await self.commit(self.event(kind, message, who=who, **data)))
