"""What is forgotten, and in which order: by count and age whole episodes, by size first their traces, then their steps, then the rest.

Never forgotten: agents, releases with their evidence, proposals, usage, events, and every revision that something still refers to.
"""

from collections.abc import Awaitable, Callable, Collection
from functools import partial

from sqlalchemy import Select, Table, delete, exists, func, select
from sqlalchemy.sql.elements import ColumnElement

from agentd.records import AgentState, Event, Record, WindowState
from agentd.store import schema
from agentd.store.backends import Backend
from agentd.store.packing import unpack
from agentd.store.writer import Transaction, Writer

_BATCH = 200
"""Rows deleted in one transaction: commits wait for it."""

_DAY = 86_400.0

_episodes, _revisions = schema.episodes, schema.revisions


class Pruned(Record, frozen=True):
    """What `prune` took out: whole episodes, single steps and traces of others, and revisions that nothing refers to."""

    episodes: int = 0
    steps: int = 0
    traces: int = 0
    revisions: int = 0


class Erased(Record, frozen=True):
    """What `erase` took out, the events that say so, and whether the bytes are gone from the database's files too."""

    episodes: int
    events: tuple[Event, ...]
    overwritten: bool


async def erase(writer: Writer, backend: Backend, agent: str, device: str | None, episodes: Collection[str]) -> int:
    """Delete the agent's episodes of `device` and those named, batch by batch, overwriting what they were; how many."""
    wanted = select(_episodes.c.seq).where(_episodes.c.agent == agent)
    total = 0
    if device is not None:
        total += await _repeat(writer, partial(_overwrite_episodes, backend, wanted.where(_episodes.c.device == device)))
    keys = list(episodes)
    for start in range(0, len(keys), _BATCH):
        named = wanted.where(_episodes.c.id.in_(keys[start : start + _BATCH]))
        total += await _repeat(writer, partial(_overwrite_episodes, backend, named))
    return total


async def _overwrite_episodes(backend: Backend, doomed: Select[tuple[int]], transaction: Transaction) -> int:
    async with backend.overwriting(transaction.connection):
        return await _forget_episodes(doomed, transaction)


async def prune(
    writer: Writer,
    backend: Backend,
    *,
    keep_episodes: int | None,
    keep_days: float | None,
    keep_bytes: int | None,
    protect: Collection[str],
    now: float,
) -> Pruned:
    """See agentd.store.contract.Store.prune."""
    episodes = revisions = traces = steps = 0
    if keep_episodes is not None:
        for agent in await writer.run(_agents_with_episodes):
            newest_first = select(_episodes.c.seq).where(_episodes.c.agent == agent).order_by(_episodes.c.seq.desc())
            episodes += await _repeat(writer, partial(_forget_episodes, newest_first.offset(keep_episodes)))
    if keep_days is not None:
        oldest = now - keep_days * _DAY
        episodes += await _repeat(writer, partial(_forget_episodes, select(_episodes.c.seq).where(_episodes.c.started_at < oldest)))
        revisions = await writer.run(partial(_forget_revisions, oldest, protect))
    await writer.run(partial(_forget_windows, now - _DAY))
    if keep_bytes is not None:
        excess = await writer.run(_stored_bytes) - keep_bytes
        traces, excess = await _shrink(writer, schema.traces, schema.traces.c.episode, schema.traces.c.size, excess)
        steps, excess = await _shrink(writer, schema.steps, schema.steps.c.episode, schema.steps.c.size, excess)
        rows, excess = await _shrink(writer, _episodes, _episodes.c.id, func.length(_episodes.c.content), excess)
        episodes += rows
    while await writer.run(lambda transaction: backend.reclaim(transaction.connection)):
        pass
    return Pruned(episodes=episodes, steps=steps, traces=traces, revisions=revisions)


async def _repeat(writer: Writer, forget: Callable[[Transaction], Awaitable[int]]) -> int:
    """Forget batch by batch, each in a transaction of its own; the number of rows."""
    total = 0
    while forgotten := await writer.run(forget):
        total += forgotten
    return total


async def _agents_with_episodes(transaction: Transaction) -> list[str]:
    return list((await transaction.connection.execute(select(_episodes.c.agent).distinct())).scalars())


async def _forget_episodes(doomed: Select[tuple[int]], transaction: Transaction) -> int:
    sequence_numbers = list((await transaction.connection.execute(doomed.limit(_BATCH))).scalars())
    await transaction.connection.execute(delete(_episodes).where(_episodes.c.seq.in_(sequence_numbers)))
    return len(sequence_numbers)


async def _stored_bytes(transaction: Transaction) -> int:
    columns = (schema.traces.c.size, schema.steps.c.size, func.length(_episodes.c.content))
    return sum([int((await transaction.connection.execute(select(func.sum(column)))).scalar_one() or 0) for column in columns])


async def _shrink(writer: Writer, table: Table, key: ColumnElement[str], size: ColumnElement[int], excess: int) -> tuple[int, int]:
    """Delete the oldest rows of `table` until `excess` bytes are gone or no row is left; the rows, and the excess that remains."""

    async def shrink(transaction: Transaction) -> tuple[int, int]:
        oldest = select(key, size).order_by(_episodes.c.seq).limit(_BATCH)
        if table is not _episodes:
            oldest = oldest.select_from(table.join(_episodes, _episodes.c.id == key))
        doomed, freed = [], 0
        for episode, episode_size in await transaction.connection.execute(oldest):
            if freed >= excess:
                break
            doomed.append(episode)
            freed += episode_size
        await transaction.connection.execute(delete(table).where(key.in_(doomed)))
        return len(doomed), freed

    total = 0
    while excess > 0:
        count, freed = await writer.run(shrink)
        if not count:
            break
        total += count
        excess -= freed
    return total, excess


async def _forget_windows(oldest: float, transaction: Transaction) -> None:
    windows = schema.windows
    done = (windows.c.state == WindowState.ENTERED.value, windows.c.closes_at < oldest)
    await transaction.connection.execute(delete(windows).where(*done))


async def _forget_revisions(oldest: float, protect: Collection[str], transaction: Transaction) -> int:
    """Delete revisions that were added before `oldest` and that nothing refers to."""
    connection = transaction.connection
    states = [unpack(content, AgentState) for content in (await connection.execute(select(schema.agents.c.content))).scalars()]
    kept = {*protect, *(revision for state in states for revision, _ in state.good)}
    references = (
        schema.agents.c.stable,
        schema.agents.c.desired,
        schema.agents.c.last_good,
        schema.agents.c.anchor,
        schema.releases.c.candidate,
        schema.releases.c.reference,
        schema.proposals.c.parent,
        _episodes.c.revision,
    )
    unreferenced = [~exists().where(reference == _revisions.c.id) for reference in references]
    old = select(_revisions.c.id).where(_revisions.c.added_at < oldest, *unreferenced)
    doomed = [revision for revision in (await connection.execute(old)).scalars() if revision not in kept]
    for start in range(0, len(doomed), _BATCH):
        batch = doomed[start : start + _BATCH]
        await connection.execute(delete(schema.provenance).where(schema.provenance.c.revision.in_(batch)))
        await connection.execute(delete(_revisions).where(_revisions.c.id.in_(batch)))
    return len(doomed)
