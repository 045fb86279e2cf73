"""An optimizer's memory: what was tried, and what became of it. It is not stored; it is read off proposals, releases and episodes."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Result, Row, and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from agentd.records import AgentState, Feedback, MemoryEntry, Phase, Proposal, Release, Revision, Role
from agentd.store import schema
from agentd.store.packing import unpack

_proposals, _releases, _revisions, _episodes = schema.proposals, schema.releases, schema.revisions, schema.episodes


class Attempt(NamedTuple):
    """A proposal and its newest release, in numbers: enough to choose by."""

    seq: int
    release: int | None
    phase: str | None
    mean: float | None
    regime: int | None


_RECENT = 50
"""Episodes that a serving revision's mean is taken over."""


async def recall(connection: AsyncConnection, agent: str, limit: int) -> tuple[MemoryEntry, ...]:
    """Entries of `agent`, oldest first: every attempt that was rolled back, of the others the best and the newest, and what serves."""
    row = (await connection.execute(select(schema.agents.c.content).where(schema.agents.c.id == agent))).first()
    state = None if row is None else unpack(row.content, AgentState)
    chosen = _choose(await _attempts(connection, agent), limit, 0 if state is None else state.regime)
    tried = await _tried(connection, chosen)
    served = [] if state is None else await _served(connection, state, besides={revision for revision, _ in tried})
    return tuple(sorted((entry for _, entry in (*tried, *served)), key=lambda entry: entry.at))


async def _attempts(connection: AsyncConnection, agent: str) -> Sequence[Attempt]:
    """All of the agent's, newest first."""
    later = _releases.alias()
    newest = select(func.max(later.c.seq)).where(later.c.proposal == _proposals.c.id).scalar_subquery()
    joined = _proposals.outerjoin(_releases, and_(_releases.c.proposal == _proposals.c.id, _releases.c.seq == newest))
    columns = (_proposals.c.seq, _releases.c.seq, _releases.c.phase, _releases.c.mean, _releases.c.regime)
    statement = select(*columns).select_from(joined).where(_proposals.c.agent == agent).order_by(_proposals.c.seq.desc())
    return [Attempt(*row) for row in await connection.execute(statement)]


def _choose(attempts: Sequence[Attempt], limit: int, regime: int) -> dict[int, int | None]:
    """Sequence numbers of the attempts worth remembering, each with its release's."""
    rolled_back = [attempt for attempt in attempts if attempt.phase == Phase.ROLLED_BACK.value]
    others = [attempt for attempt in attempts if attempt.phase != Phase.ROLLED_BACK.value]
    room = max(0, limit - len(rolled_back))
    # A mean of another regime was got in another world: it counts only where this one has none.
    best = sorted((attempt.regime != regime, -attempt.mean, attempt) for attempt in others if attempt.mean is not None)
    chosen = {attempt.seq: attempt.release for attempt in (*rolled_back, *(attempt for _, _, attempt in best[: room // 2]))}
    for attempt in others:
        if len(chosen) >= len(rolled_back) + room:
            break
        chosen[attempt.seq] = attempt.release
    return chosen


async def _tried(connection: AsyncConnection, chosen: dict[int, int | None]) -> list[tuple[str, MemoryEntry]]:
    """(revision, entry) of the chosen attempts."""
    releases = _releases.c.seq.in_([release for release in chosen.values() if release is not None])
    joined = _proposals.outerjoin(_releases, and_(_releases.c.proposal == _proposals.c.id, releases))
    # What was released is a revision; what never was has only its parent's values and what it wanted to change.
    joined = joined.outerjoin(_revisions, _revisions.c.id == func.coalesce(_releases.c.candidate, _proposals.c.parent))
    columns = (_proposals.c.content, _releases.c.content.label("release"), _revisions.c.content.label("revision"))
    result: Result[Any] = await connection.execute(select(*columns).select_from(joined).where(_proposals.c.seq.in_(chosen)))
    rows = result.all()
    words = await _words(connection, [unpack(row.release, Release).candidate for row in rows if row.release is not None])
    return [_entry(row, words) for row in rows]


def _entry(row: Row[Any], words: dict[str, str]) -> tuple[str, MemoryEntry]:
    proposal = unpack(row.content, Proposal)
    values = {} if row.revision is None else unpack(row.revision, Revision).values
    if row.release is None:
        entry = MemoryEntry(
            proposal=proposal.id,
            values=values | proposal.values,
            fate="invalid",
            algorithm=proposal.algorithm,
            at=proposal.at,
            notes=proposal.notes,
        )
        return "", entry
    release = unpack(row.release, Release)
    return release.candidate, MemoryEntry(
        proposal=proposal.id,
        values=values,
        fate=release.phase.value,
        reason=release.reason,
        mean=release.candidate_sum / release.pairs if release.pairs else None,
        difference=release.difference,
        reference=release.reference,
        pairs=release.pairs,
        regime=release.regime,
        algorithm=proposal.algorithm,
        feedback=words.get(release.candidate, ""),
        at=proposal.at,
        notes=proposal.notes,
    )


async def _words(connection: AsyncConnection, revisions: Collection[str], role: Role = Role.CANDIDATE) -> dict[str, str]:
    """What the newest judged episode of each revision was told."""
    newest = (
        select(func.max(_episodes.c.seq))
        .where(_episodes.c.revision.in_(revisions), _episodes.c.role == role.value, _episodes.c.feedback.is_not(None))
        .group_by(_episodes.c.revision)
    )
    rows = await connection.execute(select(_episodes.c.revision, _episodes.c.feedback).where(_episodes.c.seq.in_(newest)))
    return {row.revision: unpack(row.feedback, Feedback).text for row in rows}


async def _served(connection: AsyncConnection, state: AgentState, *, besides: Collection[str]) -> list[tuple[str, MemoryEntry]]:
    """(revision, entry) of what serves or may serve again, with the mean of its newest episodes as stable in this regime."""
    revisions = {revision for revision in (state.stable, state.last_good, state.anchor) if revision and revision not in besides}
    words = await _words(connection, revisions, Role.STABLE)
    entries = []
    for row in await connection.execute(select(_revisions).where(_revisions.c.id.in_(revisions))):
        recent = (
            select(_episodes.c.normalised)
            .where(_episodes.c.revision == row.id, _episodes.c.role == Role.STABLE.value, _episodes.c.regime == state.regime)
            .where(_episodes.c.normalised.is_not(None))
            .order_by(_episodes.c.seq.desc())
            .limit(_RECENT)
            .subquery()
        )
        mean = (await connection.execute(select(func.avg(recent.c.normalised)))).scalar_one()
        entry = MemoryEntry(
            proposal="",
            values=unpack(row.content, Revision).values,
            fate="stable",
            mean=mean,
            regime=state.regime,
            feedback=words.get(row.id, ""),
            at=row.added_at,
        )
        entries.append((row.id, entry))
    return entries
