"""Records as rows: which table, which columns beside the content."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
from sqlalchemy import Table

from agentd import codec
from agentd.records import (
    AgentState,
    Episode,
    Event,
    Feedback,
    Pair,
    PairPlan,
    Proposal,
    Provenance,
    Release,
    Revision,
    Single,
    Source,
    Step,
    Usage,
    Value,
    Window,
)
from agentd.store import schema
from agentd.store.packing import pack, pack_bytes

Durable: TypeAlias = (
    AgentState | Source | Revision | Provenance | Release | Proposal | PairPlan | Pair | Single | Window | Feedback | Usage | Event
)
"""What is committed before anything acts on it."""

Row: TypeAlias = dict[str, Any]

IMMUTABLE = frozenset({schema.sources, schema.revisions, schema.provenance})
"""Tables whose ids are made from their content: what is there already is the same."""


def to_row(record: Durable, *, now: float) -> tuple[Table, Row]:
    """The table and the row of a durable record. Raises TypeError for other records, CodecError for values that can't be stored."""
    for type_, (table, columns) in _ROWS.items():
        if isinstance(record, type_):
            row = columns(record)
            if table is schema.revisions:
                row["added_at"] = now
            return table, row | {"content": pack(record)}
    raise TypeError(f"a {type(record).__qualname__} is not committed by itself")


def _agent(state: AgentState) -> Row:
    return {
        "id": state.name,
        "source": state.source,
        "stable": state.stable,
        "desired": state.desired,
        "last_good": state.last_good,
        "anchor": state.anchor,
    }


def _provenance(provenance: Provenance) -> Row:
    return {"id": hashlib.sha256(codec.encode(provenance)).hexdigest(), "revision": provenance.revision, "at": provenance.at}


def _proposal(proposal: Proposal) -> Row:
    return {"id": proposal.id, "agent": proposal.agent, "parent": proposal.parent, "at": proposal.at}


def _release(release: Release) -> Row:
    return {
        "id": release.id,
        "agent": release.agent,
        "proposal": release.proposal,
        "candidate": release.candidate,
        "reference": release.reference,
        "phase": release.phase.value,
        "regime": release.regime,
        "mean": release.candidate_sum / release.pairs if release.pairs else None,
        "begun_at": release.begun_at,
    }


def _window(window: Window) -> Row:
    return {"id": window.episode, "agent": window.agent, "closes_at": window.closes_at, "state": window.state.value}


_ROWS: dict[type, tuple[Table, Callable[[Any], Row]]] = {
    Source: (schema.sources, lambda source: {"id": source.digest}),
    Revision: (schema.revisions, lambda revision: {"id": revision.id, "agent": revision.agent, "source": revision.source}),
    Provenance: (schema.provenance, _provenance),
    AgentState: (schema.agents, _agent),
    Proposal: (schema.proposals, _proposal),
    Release: (schema.releases, _release),
    PairPlan: (schema.plans, lambda plan: {"id": plan.id, "release": plan.release}),
    Pair: (schema.pairs, lambda pair: {"id": pair.id, "release": pair.release}),
    Single: (schema.pairs, lambda single: {"id": single.id, "release": single.release}),
    Window: (schema.windows, _window),
    Usage: (schema.usage, lambda usage: {"agent": usage.agent, "at": usage.at}),
}


class Body(msgspec.Struct, frozen=True, array_like=True):
    """The large part of an episode, stored apart from it."""

    steps: tuple[Step, ...] = ()
    final_observation: Value = None


@dataclass(slots=True)
class EpisodeRows:
    """An episode on its way into the database. The trace can be taken out under pressure; nothing else can."""

    episode: Row
    steps: Row
    trace: Row | None

    @property
    def size(self) -> int:
        """Bytes held, about."""
        return len(self.episode["content"]) + int(self.steps["size"]) + self.trace_size

    @property
    def trace_size(self) -> int:
        """Bytes held by the trace."""
        return int(self.trace["size"]) if self.trace else 0

    def drop_trace(self) -> None:
        """Let the trace go."""
        self.trace = None


def to_episode_rows(episode: Episode, feedback: Feedback | None, *, regime: int) -> EpisodeRows:
    """The rows of an episode. Raises CodecError for values that can't be stored."""
    head = msgspec.structs.replace(episode, steps=(), final_observation=None, trace=None)
    row = {
        "id": episode.id,
        "agent": episode.agent,
        "device": episode.device,
        "revision": episode.revision,
        "role": episode.role.value,
        "regime": regime,
        "started_at": episode.started_at,
        "ticks": len(episode.steps),
        "safe_actions": episode.safe_actions,
        "content": pack(head),
        **to_feedback_row(feedback),
    }
    return EpisodeRows(
        row,
        _part(episode.id, pack(Body(episode.steps, episode.final_observation))),
        None if episode.trace is None else _part(episode.id, pack_bytes(episode.trace)),
    )


def to_feedback_row(feedback: Feedback | None) -> Row:
    """The columns of an episode that its feedback fills."""
    if feedback is None:
        return {"normalised": None, "feedback": None}
    return {"normalised": None if feedback.failed else feedback.normalised, "feedback": pack(feedback)}


def _part(episode: str, content: bytes) -> Row:
    return {"episode": episode, "size": len(content), "content": content}
