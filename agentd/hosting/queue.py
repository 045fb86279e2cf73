"""Releases that wait for their turn: one is in progress at a time, operators' proposals come before the optimizer's."""

from collections import deque
from collections.abc import Mapping

import msgspec

from agentd.errors import ReleaseError
from agentd.hosting import telling
from agentd.hosting.keeper import Keeper
from agentd.records import (
    Event,
    Goal,
    Origin,
    Parameter,
    Phase,
    Proposal,
    Provenance,
    Release,
    ReleaseKind,
    ReleaseSettings,
    Verdict,
    make_revision,
)
from agentd.release import machine, watch
from agentd.spec import release_settings

QUEUE_LIMIT = 16
MEMORY_OF_LEVELS = 400  # releases: older ones have decayed to nothing (agentd.release.statistics.OnlineAlpha)


class ReleaseQueue:
    """Each method is called by who holds `deciding`."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._waiting: deque[Release] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def probing(self) -> bool:
        """Whether a probe waits."""
        return any(release.kind is ReleaseKind.PROBE for release in self._waiting)

    def restore(self, releases: tuple[Release, ...]) -> None:
        """These wait, in this order, according to the store."""
        self._waiting = deque(releases)

    def find(self, release: str) -> Release | None:
        """The release that waits and whose id begins so."""
        return next((waiting for waiting in self._waiting if waiting.id.startswith(release)), None)

    async def add(
        self, proposal: Proposal, parameters: tuple[Parameter, ...], *also: Event, release: str, changes: Mapping[str, object]
    ) -> Release:
        """Begin the release of `proposal`, together with the events `also` and `changes` of the agent's state.

        Raises:
            ReleaseError: it changes nothing, or too many are waiting already.
            CodecError: a value has no canonical form.
            StoreUnavailable: nothing was begun.
        """
        keeper, state = self._keeper, self._keeper.state
        if len(self._waiting) >= QUEUE_LIMIT:
            raise ReleaseError(f"{QUEUE_LIMIT} releases are waiting already: abort some first")
        defaults = {parameter.path: parameter.default for parameter in parameters}
        running = (await keeper.store.revision(state.stable)).values
        values = {path: value for path, value in {**running, **proposal.values}.items() if value != defaults.get(path)}
        revision = make_revision(keeper.name, state.source, values)
        if revision.id == state.stable:
            raise ReleaseError("the proposal changes nothing: its values are those of the stable revision")
        begun = self._begun(proposal, candidate=revision.id, settings=await self._settings(), who=proposal.who, release=release)
        provenance = Provenance(
            revision=revision.id,
            origin=Origin.OPTIMIZER if proposal.who == "optimizer" else Origin.OPERATOR,
            at=begun.begun_at,
            parent=state.stable,
            proposal=proposal.id,
            who=proposal.who,
            note=proposal.reasoning[:500],
        )
        event = keeper.event(
            "release.proposed",
            f"{proposal.algorithm} proposes {revision.id[:10]}",
            who=proposal.who,
            release=begun.id,
            proposal=proposal.id,
            candidate=revision.id,
            algorithm=proposal.algorithm,
            paths=sorted(proposal.values),
        )
        keeper.tell(*await keeper.commit(proposal, revision, provenance, begun, event, *also, **changes))
        if proposal.who == "optimizer":
            self._waiting.append(begun)
        else:
            self._waiting.appendleft(begun)
        return begun

    async def probe(self, last_good: str) -> None:
        """After an alarm: run the last good revision against the current one."""
        keeper, state = self._keeper, self._keeper.state
        settings = release_settings(keeper.spec)
        settings = watch.probe_settings(settings, state.watch) if state.watch else settings
        release = self._begun(None, candidate=last_good, settings=settings, who="watch")
        event = keeper.event(
            "release.probe",
            f"asking whether {last_good[:10]} is better than the stable {state.stable[:10]}",
            who="watch",
            release=release.id,
            candidate=last_good,
            reference=state.stable,
            reason=release.history[0].reason,
        )
        keeper.tell(*await keeper.commit(release, event))
        self._waiting.appendleft(release)

    async def take(self) -> Release | None:
        """Make the first one the release in progress, unless what it was begun on has changed so much that there is nothing to ask."""
        keeper, state = self._keeper, self._keeper.state
        while (release := self._first()) is not None:
            obsolete = await self._obsolete(release)
            if not obsolete:
                # nothing has been compared with what was stable when it was proposed
                current = msgspec.structs.replace(release, reference=state.stable, anchor=await self._anchor(release.settings))
                await keeper.commit(current, release=current.id)
                self._waiting.remove(release)
                return current
            await self.end(release, Verdict(phase=Phase.INCONCLUSIVE, reason=obsolete, stage="queue"))
        return None

    def put_back(self, release: Release) -> None:
        """`release` waits again, before the others."""
        self._waiting.appendleft(release)

    def _first(self) -> Release | None:
        """A probe before everything else; and nothing else while the agent is frozen or in quarantine."""
        probe = next((waiting for waiting in self._waiting if waiting.kind is ReleaseKind.PROBE), None)
        if probe is not None or not self._waiting or self._keeper.held:
            return probe
        return self._waiting[0]

    async def end(self, release: Release, verdict: Verdict, *, who: str = "agentd") -> None:
        """End a release that waits."""
        ended = machine.conclude(release, verdict, at=self._keeper.clock.time(), who=who)
        self._keeper.tell(*await self._keeper.commit(ended, telling.changed(self._keeper, ended)))
        self._waiting.remove(release)

    async def _obsolete(self, release: Release) -> str:
        state = self._keeper.state
        same = (await self._keeper.store.revision(release.candidate)).source == state.source
        if not same and release.kind is not ReleaseKind.PROBE:
            return "the source changed while it waited"
        if release.candidate == state.stable:
            return "its candidate became the stable revision while it waited"
        if release.kind is ReleaseKind.PROBE and release.reference != state.stable:
            return "the revision that it asks about is no longer stable"
        return ""

    def _begun(self, proposal: Proposal | None, *, candidate: str, settings: ReleaseSettings, who: str, release: str = "") -> Release:
        keeper, state = self._keeper, self._keeper.state
        return machine.begin(
            proposal,
            id=release or keeper.new_id(),
            agent=keeper.name,
            candidate=candidate,
            reference=state.stable,
            settings=settings,
            kind=ReleaseKind.PROBE if proposal is None else ReleaseKind.PROPOSAL,
            regime=state.regime,
            at=keeper.clock.time(),
            who=who,
        )

    async def _settings(self) -> ReleaseSettings:
        """The rules of the next release, with the level that the agent's earlier releases leave it."""
        settings = release_settings(self._keeper.spec)
        earlier = await self._keeper.store.releases(self._keeper.name, limit=MEMORY_OF_LEVELS)
        level = machine.online_alpha(reversed(earlier), settings.alpha).level
        return msgspec.structs.replace(settings, promotion_alpha=level)

    async def _anchor(self, settings: ReleaseSettings) -> str | None:
        """What a `no_worse` candidate must not fall behind either: the agent's anchor, as long as it is a revision of this source."""
        state = self._keeper.state
        if settings.goal is not Goal.NO_WORSE or state.anchor is None:
            return None
        return state.anchor if (await self._keeper.store.revision(state.anchor)).source == state.source else None


def anchored_by(ended: Release, anchor: str | None) -> str | None:
    """The agent's anchor after the promotion of `ended`: what won as better, or what a first `no_worse` is measured against from now on."""
    if ended.forced:
        return anchor
    if ended.settings.goal is Goal.BETTER:
        return ended.candidate
    return ended.anchor or ended.reference
