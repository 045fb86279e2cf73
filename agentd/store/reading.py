"""The reading side: queries on a pool of connections that never wait for the writer."""
# ruff: noqa: D102 - the contract has the docstrings

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
from sqlalchemy import LargeBinary, Result, Row, Select, Table, and_, cast, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agentd.errors import Ambiguous, NotFound
from agentd.records import (
    AgentState,
    Episode,
    EpisodeSummary,
    Event,
    Feedback,
    MemoryEntry,
    Pair,
    PairPlan,
    Phase,
    Proposal,
    Provenance,
    Release,
    Revision,
    Role,
    Single,
    Source,
    Usage,
    Window,
    WindowState,
)
from agentd.store import memory, schema
from agentd.store.chain import GENESIS, ChainReport, link
from agentd.store.faults import translated
from agentd.store.packing import unpack, unpack_bytes
from agentd.store.rows import Body

T = TypeVar("T")

ENDED = (Phase.PROMOTED, Phase.REJECTED, Phase.PRUNED, Phase.INCONCLUSIVE, Phase.ABORTED, Phase.ROLLED_BACK)
"""Phases of a release that takes no more evidence."""

_LAST_CHARACTER = "\U0010ffff"
_CHAIN_PAGE = 1000


class Reader:
    """All methods of agentd.store.contract.Store that only read."""

    def __init__(self, engine: AsyncEngine, name: str) -> None:
        self._readers = engine
        self._name = name

    @asynccontextmanager
    async def _snapshot(self) -> AsyncIterator[AsyncConnection]:
        """A connection that sees one state of the database, whatever is committed meanwhile."""
        with translated(self._name):
            async with self._readers.connect() as connection:
                yield connection

    async def _rows(self, statement: Select[Any]) -> Sequence[Row[Any]]:
        async with self._snapshot() as connection:
            result: Result[Any] = await connection.execute(statement)
            return result.all()

    async def _records(self, type_: type[T], statement: Select[Any]) -> tuple[T, ...]:
        return tuple(unpack(row.content, type_) for row in await self._rows(statement))

    async def _find(self, table: Table, type_: type[T], kind: str, key: str, *, prefix: bool = True) -> T:
        """The record with the id `key`, or the only one whose id begins with it."""
        row = await self._find_row(select(table), table, kind, key, prefix=prefix)
        return unpack(row.content, type_)

    async def _find_row(self, statement: Select[Any], table: Table, kind: str, key: str, *, prefix: bool = True) -> Row[Any]:
        if not key or not key.isprintable():  # "" is a prefix of everything; what can't be printed can't be an id, nor always a parameter
            raise NotFound(kind, key)
        upper = key + _LAST_CHARACTER if prefix else key
        rows = await self._rows(statement.where(table.c.id >= key, table.c.id <= upper).order_by(table.c.id).limit(5))
        if not rows:
            raise NotFound(kind, key)
        if len(rows) > 1 and rows[0].id != key:
            raise Ambiguous(kind, key, tuple(row.id for row in rows))
        return rows[0]

    async def agents(self) -> tuple[AgentState, ...]:
        return await self._records(AgentState, select(schema.agents.c.content).order_by(schema.agents.c.id))

    async def agent(self, name: str) -> AgentState:
        return await self._find(schema.agents, AgentState, "agent", name, prefix=False)

    async def source(self, digest: str) -> Source:
        return await self._find(schema.sources, Source, "source", digest)

    async def revision(self, key: str) -> Revision:
        return await self._find(schema.revisions, Revision, "revision", key)

    async def revisions(self, agent: str, limit: int = 100, before: str | None = None) -> tuple[Revision, ...]:
        return await self._records(Revision, _page(schema.revisions, agent, limit, before))

    async def provenance(self, revision: str) -> tuple[Provenance, ...]:
        table = schema.provenance
        return await self._records(Provenance, select(table.c.content).where(table.c.revision == revision).order_by(table.c.seq))

    async def release(self, key: str) -> Release:
        return await self._find(schema.releases, Release, "release", key)

    async def releases(self, agent: str, limit: int = 100, before: str | None = None, *, active: bool = False) -> tuple[Release, ...]:
        page = _page(schema.releases, agent, limit, before)
        if active:
            page = page.where(schema.releases.c.phase.not_in([phase.value for phase in ENDED]))
        return await self._records(Release, page)

    async def plans(self, release: str) -> tuple[PairPlan, ...]:
        table = schema.plans
        return await self._records(PairPlan, select(table.c.content).where(table.c.release == release).order_by(table.c.seq))

    async def pairs(self, release: str) -> tuple[Pair | Single, ...]:
        table = schema.pairs
        rows = await self._rows(select(table.c.content).where(table.c.release == release).order_by(table.c.seq))
        # one table for both kinds of evidence, in the order of arrival; only a single episode has a role
        return tuple(
            unpack(row.content, Single) if "role" in unpack(row.content, dict[str, Any]) else unpack(row.content, Pair) for row in rows
        )

    async def proposal(self, key: str) -> Proposal:
        return await self._find(schema.proposals, Proposal, "proposal", key)

    async def proposals(self, agent: str, limit: int = 100, before: str | None = None) -> tuple[Proposal, ...]:
        return await self._records(Proposal, _page(schema.proposals, agent, limit, before))

    async def memory(self, agent: str, limit: int = 10) -> tuple[MemoryEntry, ...]:
        async with self._snapshot() as connection:
            return await memory.recall(connection, agent, limit)

    async def episodes(
        self,
        agent: str,
        limit: int = 100,
        before: str | None = None,
        *,
        revision: str | None = None,
        role: Role | None = None,
        since: float | None = None,
        until: float | None = None,
        regime: int | None = None,
        device: str | None = None,
    ) -> tuple[EpisodeSummary, ...]:
        table = schema.episodes
        page = _page(table, agent, limit, before, statement=_summaries())
        if revision is not None:
            page = page.where(table.c.revision == revision)
        if role is not None:
            page = page.where(table.c.role == role.value)
        if since is not None:
            page = page.where(table.c.started_at >= since)
        if until is not None:
            page = page.where(table.c.started_at <= until)
        if regime is not None:
            page = page.where(table.c.regime == regime)
        if device is not None:
            page = page.where(table.c.device == device)
        return tuple(_summary(row) for row in await self._rows(page))

    async def summary(self, key: str) -> EpisodeSummary:
        return _summary(await self._find_row(_summaries(), schema.episodes, "episode", key))

    async def episode(self, key: str) -> Episode:
        joined = schema.episodes.outerjoin(schema.steps, schema.steps.c.episode == schema.episodes.c.id)
        statement = select(schema.episodes.c.id, schema.episodes.c.content, schema.steps.c.content.label("body")).select_from(joined)
        row = await self._find_row(statement, schema.episodes, "episode", key)
        head = unpack(row.content, Episode)
        if row.body is None:
            return head
        body = unpack(row.body, Body)
        return msgspec.structs.replace(head, steps=body.steps, final_observation=body.final_observation)

    async def trace(self, key: str) -> bytes | None:
        joined = schema.episodes.outerjoin(schema.traces, schema.traces.c.episode == schema.episodes.c.id)
        statement = select(schema.episodes.c.id, schema.traces.c.content).select_from(joined)
        row = await self._find_row(statement, schema.episodes, "episode", key)
        return None if row.content is None else unpack_bytes(row.content)

    async def feedback(self, key: str) -> Feedback | None:
        row = await self._find_row(select(schema.episodes.c.id, schema.episodes.c.feedback), schema.episodes, "episode", key)
        return None if row.feedback is None else unpack(row.feedback, Feedback)

    async def windows(self, agent: str) -> tuple[Window, ...]:
        table = schema.windows
        statement = select(table.c.content).where(table.c.agent == agent, table.c.state != WindowState.ENTERED.value)
        return await self._records(Window, statement.order_by(table.c.seq))

    async def window(self, episode: str) -> Window:
        return await self._find(schema.windows, Window, "window of the episode", episode, prefix=False)

    async def events(
        self, agent: str | None = None, after: int = 0, limit: int = 100, kinds: Collection[str] | None = None, *, latest: bool = False
    ) -> tuple[Event, ...]:
        table = schema.events
        statement = select(table.c.content).where(table.c.seq > after).limit(limit)
        if agent is not None:
            statement = statement.where(table.c.agent == agent)
        if kinds is not None:
            families = [and_(table.c.kind >= kind, table.c.kind <= kind + _LAST_CHARACTER) for kind in kinds if kind.endswith(".")]
            statement = statement.where(or_(table.c.kind.in_([kind for kind in kinds if not kind.endswith(".")]), *families))
        events = await self._records(Event, statement.order_by(table.c.seq.desc() if latest else table.c.seq))
        return events[::-1] if latest else events

    async def verify_chain(self, known: str | None = None) -> ChainReport:
        previous, count, table = GENESIS, 0, schema.events
        seen = known is None or known == previous.hex()
        # Cast, because whoever tampers with a SQLite file may have put text there.
        content, hash_ = (cast(column, LargeBinary).label(column.name) for column in (table.c.content, table.c.hash))
        statement = select(table.c.seq, table.c.agent, table.c.kind, table.c.at, content, hash_).order_by(table.c.seq).limit(_CHAIN_PAGE)
        while True:
            page = await self._rows(statement.where(table.c.seq > count))
            for row in page:
                expected, digest = count + 1, link(previous, row.content)
                if row.seq != expected or row.hash != digest:
                    reason = f"event {expected} is missing" if row.seq != expected else f"event {expected} was changed"
                    return ChainReport(events=count, head=previous.hex(), broken_at=expected, reason=reason)
                event = unpack(row.content, Event)
                if (event.seq, event.agent, event.kind, event.at) != (row.seq, row.agent, row.kind, row.at):
                    reason = f"event {expected}: its columns don't say what its content says"
                    return ChainReport(events=count, head=previous.hex(), broken_at=expected, reason=reason)
                previous, count = digest, expected
                seen = seen or digest.hex() == known
            if len(page) < _CHAIN_PAGE:
                break
        if not seen:
            reason = f"no event has the hash {known}: the log was cut off, or written anew"
            return ChainReport(events=count, head=previous.hex(), broken_at=count + 1, reason=reason)
        return ChainReport(events=count, head=previous.hex())

    async def usage(self, agent: str | None = None, since: float = 0.0) -> tuple[Usage, ...]:
        table = schema.usage
        statement = select(table.c.content).where(table.c.at >= since).order_by(table.c.seq)
        return await self._records(Usage, statement if agent is None else statement.where(table.c.agent == agent))

    async def epoch(self) -> int:
        table = schema.facts
        rows = await self._rows(select(func.max(table.c.value)).where(table.c.name == "epoch"))
        return int(rows[0][0] or 0)


def _page(table: Table, agent: str, limit: int, before: str | None, *, statement: Select[Any] | None = None) -> Select[Any]:
    """An agent's newest rows, or the ones that came before the row with the id `before`."""
    page = (select(table.c.content) if statement is None else statement).where(table.c.agent == agent)
    if before is not None:
        cursor = table.alias()
        page = page.where(table.c.seq < select(cursor.c.seq).where(cursor.c.id == before).scalar_subquery())
    return page.order_by(table.c.seq.desc()).limit(limit)


def _summaries() -> Select[Any]:
    table = schema.episodes
    windows = schema.windows
    has_trace = schema.traces.c.episode.is_not(None).label("has_trace")
    joined = table.outerjoin(schema.traces, schema.traces.c.episode == table.c.id).outerjoin(
        windows, and_(windows.c.id == table.c.id, windows.c.state == WindowState.OPEN.value)
    )
    return select(table, has_trace, windows.c.closes_at.label("awaits_until")).select_from(joined)


def _summary(row: Row[Any]) -> EpisodeSummary:
    episode = unpack(row.content, Episode)
    feedback = None if row.feedback is None else unpack(row.feedback, Feedback)
    judged = feedback is not None and not feedback.failed
    return EpisodeSummary(
        id=episode.id,
        agent=episode.agent,
        device=episode.device,
        revision=episode.revision,
        role=episode.role,
        purpose=episode.purpose,
        outcome=episode.outcome,
        started_at=episode.started_at,
        duration=episode.duration,
        ticks=row.ticks,
        regime=row.regime,
        seed=episode.seed,
        pair=episode.pair,
        reason=episode.reason,
        error=episode.error,
        deadline_misses=episode.deadline_misses,
        safe_actions=row.safe_actions,
        score=feedback.score if feedback is not None and judged else None,
        normalised=row.normalised,
        feedback="" if feedback is None else feedback.failed or feedback.text,
        has_trace=row.has_trace,
        awaits_until=row.awaits_until,
    )
