"""The contract of a store, in prose. agentd.testing.store holds any implementation to it.

Two classes of durability. What is *committed* is on disk when `commit` returns: all of one call or nothing, also after a crash or a power
failure. *Episodes* are queued and written in batches: a crash may lose the newest, pressure may cost traces (counted in `dropped`).

Every method may raise StoreUnavailable (full disk, foreign lock, lost connection: nothing was written, and it may work later) and
StoreError (damaged data, a reference to what was never committed). Reads see what is committed and never wait for writes. Ids of
revisions, sources, releases, proposals and episodes may be shortened to a prefix that only one of them has: else Ambiguous; NotFound
where there is none.
Lists are newest first, in the order of arrival, at most `limit`; the next page is asked for with `before`, the whole id of the last of this
one (retention may have removed that in between: then the listing ends).
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from agentd.records import (
    AgentState,
    Episode,
    EpisodeSummary,
    Event,
    Feedback,
    MemoryEntry,
    Pair,
    PairPlan,
    Proposal,
    Provenance,
    Release,
    Revision,
    Role,
    Single,
    Source,
    Usage,
    Window,
)
from agentd.store.chain import ChainReport
from agentd.store.retention import Erased, Pruned
from agentd.store.rows import Durable


class Store(Protocol):
    """What agentd remembers."""

    @property
    def dropped(self) -> Mapping[str, int]:
        """How many `traces` and `episodes` were not stored, since the store was opened."""
        ...

    @property
    def write_errors(self) -> int:
        """How many writes failed, since the store was opened."""
        ...

    @property
    def queued(self) -> int:
        """How many episodes wait to be written."""
        ...

    # --- writing ----------------------------------------------------------------------------------------------------

    async def begin_epoch(self) -> int:
        """The number of this daemon's life, one more than the one before. From then on an older daemon's commits fail."""
        ...

    async def commit(self, *records: Durable) -> tuple[Event, ...]:
        """Write all of `records` in one transaction, in any order; the events come back with their place in the log.

        A record replaces the one with the same id; sources, revisions and provenance never change, and usage is only added. A revision's
        source, an agent's revisions and a release's revisions must be committed before or with it. A feedback replaces the one that its
        episode had; an episode that is still queued is written first, one that is gone stays gone. Raises TypeError for other records,
        CodecError for values that can't be stored. A cancelled commit may still be carried out.
        """
        ...

    async def add_episode(self, episode: Episode, feedback: Feedback | None, *, regime: int) -> None:
        """Queue an episode; `flush` says when it is written. The same id again replaces it, but keeps a feedback or trace that it had.

        When the queue is full, traces are dropped from it, then the call waits for room; StoreUnavailable when nothing can be written.
        """
        ...

    async def flush(self) -> None:
        """Return once all episodes added so far are written."""
        ...

    async def prune(
        self,
        *,
        keep_episodes: int | None = None,
        keep_days: float | None = None,
        keep_bytes: int | None = None,
        protect: Collection[str] = (),
    ) -> Pruned:
        """Forget episodes: all but the newest `keep_episodes` of each agent, those older than `keep_days`, and what exceeds `keep_bytes`.

        For the size traces go first, then steps, then whole episodes, each the oldest first. With `keep_days` also older revisions go that
        no agent, release, proposal or episode refers to and that `protect` doesn't name. Windows that have entered go a day after they
        closed. Releases, evidence, proposals, usage, events and the other windows stay.
        """
        ...

    async def erase(self, agent: str, *, device: str | None = None, episodes: Collection[str] = (), who: str, reason: str = "") -> Erased:
        """Erase an agent's episodes of `device`, and those with the ids `episodes`, with their steps, traces and feedback.

        The event `episodes.erasing` is committed before anything is erased, and `episodes.erased` after. The bytes are overwritten, as
        far as the database lets (`Erased.overwritten`). Raises NotFound for an id that is no episode of the agent; then nothing is
        erased.
        """
        ...

    async def backup(self, path: Path) -> None:
        """Copy the store, while it is in use, to a file that appears whole or not at all."""
        ...

    async def aclose(self) -> None:
        """Write what is queued, as far as possible, and close. Episodes that can't be written are counted as dropped."""
        ...

    # --- agents and revisions ---------------------------------------------------------------------------------------

    async def agents(self) -> tuple[AgentState, ...]:
        """All agents, by name."""
        ...

    async def agent(self, name: str) -> AgentState:
        """One agent, by its whole name."""
        ...

    async def source(self, key: str) -> Source:
        """A source by its digest."""
        ...

    async def revision(self, key: str) -> Revision:
        """A revision."""
        ...

    async def revisions(self, agent: str, limit: int = 100, before: str | None = None) -> tuple[Revision, ...]:
        """An agent's revisions."""
        ...

    async def provenance(self, revision: str) -> tuple[Provenance, ...]:
        """Where a revision (whole id) came from, oldest first."""
        ...

    # --- releases ---------------------------------------------------------------------------------------------------

    async def release(self, key: str) -> Release:
        """A release."""
        ...

    async def releases(self, agent: str, limit: int = 100, before: str | None = None, *, active: bool = False) -> tuple[Release, ...]:
        """An agent's releases; `active`: only those that have not ended."""
        ...

    async def plans(self, release: str) -> tuple[PairPlan, ...]:
        """The pairs that were drawn for a release (whole id), oldest first."""
        ...

    async def pairs(self, release: str) -> tuple[Pair | Single, ...]:
        """The evidence of a release (whole id), oldest first."""
        ...

    async def proposal(self, key: str) -> Proposal:
        """A proposal."""
        ...

    async def proposals(self, agent: str, limit: int = 100, before: str | None = None) -> tuple[Proposal, ...]:
        """An agent's proposals."""
        ...

    async def memory(self, agent: str, limit: int = 10) -> tuple[MemoryEntry, ...]:
        """What an optimizer should know of earlier attempts, oldest first.

        All that were rolled back; of the others, up to `limit` in all, one half the best (of this regime first), the rest the newest; and
        the revisions that serve or may serve again, if they are not among these, as fate `stable` without a proposal. A proposal without
        a release is `invalid`. `values` are the revision's own: what differs from the defaults in the source; lay them over the defaults.
        """
        ...

    # --- episodes ---------------------------------------------------------------------------------------------------

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
        """An agent's episodes that started between `since` and `until`, Unix seconds. `feedback` is the text, or why there is no score."""
        ...

    async def summary(self, key: str) -> EpisodeSummary:
        """One episode as `episodes` lists it."""
        ...

    async def episode(self, key: str) -> Episode:
        """An episode with its steps (none when retention took them) and without its trace."""
        ...

    async def trace(self, key: str) -> bytes | None:
        """The trace of an episode as the worker sent it (untrusted); None when there is none."""
        ...

    async def feedback(self, key: str) -> Feedback | None:
        """The feedback on an episode; None when nobody gave one."""
        ...

    async def windows(self, agent: str) -> tuple[Window, ...]:
        """The windows of an agent that have not entered, in the order in which they were opened."""
        ...

    async def window(self, episode: str) -> Window:
        """The window of an episode (whole id), also one that has entered."""
        ...

    # --- what happened ----------------------------------------------------------------------------------------------

    async def events(
        self, agent: str | None = None, after: int = 0, limit: int = 100, kinds: Collection[str] | None = None, *, latest: bool = False
    ) -> tuple[Event, ...]:
        """Events behind place `after` in the log, oldest first: the first `limit` of them, or with `latest` the last.

        A kind that ends with a dot stands for all that begin with it (`release.`).
        """
        ...

    async def verify_chain(self, known: str | None = None) -> ChainReport:
        """Check the hash of every event against the one before (agentd.store.chain).

        `known` is a head that was written down earlier, hex: some event must have it.
        """
        ...

    async def usage(self, agent: str | None = None, since: float = 0.0) -> tuple[Usage, ...]:
        """What models cost, oldest first, from Unix second `since` on; None: all agents."""
        ...

    async def epoch(self) -> int:
        """The number of the newest daemon's life; 0 before the first."""
        ...
