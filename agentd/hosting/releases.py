"""From a proposal to a verdict: validate, screen, canary; and what follows from the verdict."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from agentd.errors import DecodingError, IllegalTransition, ReleaseError, RunnerError, SandboxError, StaleRelease
from agentd.hosting.canary import Canary, LostPair
from agentd.hosting.keeper import Keeper
from agentd.opto.decoding import validate_values
from agentd.records import (
    Episode,
    Event,
    Feedback,
    Mode,
    Origin,
    Pair,
    Parameter,
    Phase,
    Proposal,
    Provenance,
    Release,
    ReleaseKind,
    ReleaseSettings,
    Source,
    Value,
    Verdict,
    make_revision,
)
from agentd.release import machine, watch
from agentd.runners.local import LocalRunner
from agentd.spec import release_settings

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

CANARY = machine.CANARY
QUEUE_LIMIT = 16
LEASE = 10.0
RETRY = 1.0
REASON_LIMIT = 500
DETAIL_LIMIT = 4000
SCREEN_EPISODES = 3
MEMORY_OF_LEVELS = 400  # releases: older ones have decayed to nothing (agentd.release.statistics.OnlineAlpha)


class Releases:
    """The releases of one agent: one in progress, the others in a short queue, operators' first."""

    def __init__(self, keeper: Keeper, on_end: Callable[[Release], Awaitable[None]], *, lease: float = LEASE) -> None:
        self._keeper = keeper
        self._on_end = on_end
        self._lease = lease
        self._runner: LocalRunner | None = None
        self._source: Source | None = None
        self._parameters: tuple[Parameter, ...] = ()
        self._queue: deque[Release] = deque()
        self._loaded: set[str] = set()
        self._misrouted = False
        self._wake = asyncio.Event()
        self.canary = Canary(keeper, lease)
        self.current: Release | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is in progress or waiting."""
        return self.current is None and not self._queue

    @property
    def probing(self) -> bool:
        """Whether a probe is in progress or waiting."""
        return any(release is not None and release.kind is ReleaseKind.PROBE for release in (self.current, *self._queue))

    def attach(self, runner: LocalRunner, source: Source, parameters: tuple[Parameter, ...]) -> None:
        """Work with this runner from now on: a new one has loaded the stable revision of `source`."""
        self._runner, self._source, self._parameters = runner, source, parameters
        self._loaded.clear()
        self._misrouted = False
        self.canary.clear()

    def detach(self) -> None:
        """The runner is gone; decisions are still taken, routes follow when there is one again."""
        self._runner = None

    def wake(self) -> None:
        """Look again: a device came, or something was decided."""
        self._wake.set()

    # --- proposing ---------------------------------------------------------------------------------------------------

    async def propose(self, proposal: Proposal) -> Release:
        """Begin the release of `proposal`, or queue it behind the one in progress.

        Raises:
            ReleaseError: it changes nothing, or too many are waiting already.
            CodecError: a value has no canonical form.
            StoreUnavailable: nothing was begun.
        """
        async with self._keeper.deciding:
            return await self._propose(proposal)

    async def _propose(self, proposal: Proposal) -> Release:
        keeper = self._keeper
        if len(self._queue) >= QUEUE_LIMIT:
            raise ReleaseError(f"{QUEUE_LIMIT} releases are waiting already: abort some first")
        state = keeper.state
        defaults = {parameter.path: parameter.default for parameter in self._parameters}
        running = await self.values_of(state.stable)
        values = {path: value for path, value in {**running, **proposal.values}.items() if value != defaults.get(path)}
        revision = make_revision(keeper.name, state.source, values)
        if revision.id == state.stable:
            raise ReleaseError("the proposal changes nothing: its values are those of the stable revision")
        now = keeper.clock.time()
        release = machine.begin(
            proposal,
            id=keeper.new_id(),
            agent=keeper.name,
            candidate=revision.id,
            reference=state.stable,
            settings=await self._settings(),
            regime=state.regime,
            at=now,
            who=proposal.who,
        )
        origin = Origin.OPTIMIZER if proposal.who == "optimizer" else Origin.OPERATOR
        provenance = Provenance(
            revision=revision.id,
            origin=origin,
            at=now,
            parent=state.stable,
            proposal=proposal.id,
            who=proposal.who,
            note=proposal.reasoning[:500],
        )
        event = keeper.event(
            "release.proposed",
            f"{proposal.algorithm} proposes {revision.id[:10]}",
            who=proposal.who,
            release=release.id,
            proposal=proposal.id,
            candidate=revision.id,
            algorithm=proposal.algorithm,
            paths=sorted(proposal.values),
        )
        keeper.tell(*await keeper.commit(proposal, revision, provenance, release, event))
        if proposal.who == "optimizer":
            self._queue.append(release)
        else:
            self._queue.appendleft(release)
        self.wake()
        return release

    async def _settings(self) -> ReleaseSettings:
        """The rules of the next release, with the level that the agent's earlier releases leave it."""
        settings = release_settings(self._keeper.spec)
        earlier = await self._keeper.store.releases(self._keeper.name, limit=MEMORY_OF_LEVELS)
        level = machine.online_alpha(reversed(earlier), settings.alpha).level
        return msgspec.structs.replace(settings, promotion_alpha=level)

    async def probe(self, last_good: str) -> None:
        """After an alarm: run the last good revision against the current one. The caller holds `deciding`."""
        keeper = self._keeper
        state = keeper.state
        settings = release_settings(keeper.spec)
        release = machine.begin(
            None,
            id=keeper.new_id(),
            agent=keeper.name,
            candidate=last_good,
            reference=state.stable,
            settings=watch.probe_settings(settings, state.watch) if state.watch else settings,
            kind=ReleaseKind.PROBE,
            regime=state.regime,
            at=keeper.clock.time(),
            who="watch",
        )
        event = keeper.event(
            "release.probe",
            f"asking whether {last_good[:10]} is better than the stable {state.stable[:10]}",
            release=release.id,
            candidate=last_good,
        )
        keeper.tell(*await keeper.commit(release, event))
        self._queue.appendleft(release)
        self.wake()

    def restore(self, releases: tuple[Release, ...], current: str | None) -> None:
        """Go on with the releases that the store has as unfinished, oldest first."""
        self._queue = deque(release for release in releases if release.id != current)
        self.current = next((release for release in releases if release.id == current), None)
        self.wake()

    async def values_of(self, revision: str) -> dict[str, Value]:
        """The values of `revision` that differ from its source's defaults."""
        return dict((await self._keeper.store.revision(revision)).values)

    # --- conducting --------------------------------------------------------------------------------------------------

    async def conduct(self) -> None:
        """Take one release after the other from proposed to its end. Runs until cancelled."""
        while True:
            if self.current is None and self._queue:
                async with self._keeper.deciding:
                    await self._take_next()
            if self._misrouted:
                async with self._keeper.deciding:
                    await self.route()
            if self.current is not None:
                await self._forward(self.current)
            with contextlib.suppress(TimeoutError):  # leases are renewed and durations checked even if nothing happens
                async with asyncio.timeout(RETRY if self._misrouted else self._lease / 5):
                    await self._wake.wait()
            self._wake.clear()

    async def _take_next(self) -> None:
        """Make the first release in the queue the one in progress. What it was begun on may have changed while it waited."""
        keeper, state = self._keeper, self._keeper.state
        if self.current is not None or not self._queue:
            return
        release = self._queue[0]
        if (await keeper.store.revision(release.candidate)).source != state.source:
            await self._give_up(release, "the source changed while it waited")
        elif release.candidate == state.stable:
            await self._give_up(release, "its candidate became the stable revision while it waited")
        elif release.kind is ReleaseKind.PROBE and release.reference != state.stable:
            await self._give_up(release, "the revision that it asks about is no longer stable")
        else:
            current = msgspec.structs.replace(release, reference=state.stable)  # nothing has been compared with the old one yet
            await keeper.commit(current, release=current.id)
            self._queue.popleft()
            self.current = current

    async def _give_up(self, release: Release, reason: str) -> None:
        """End a release that waits in the queue."""
        verdict = Verdict(phase=Phase.INCONCLUSIVE, reason=reason, stage="queue")
        ended = machine.conclude(release, verdict, at=self._keeper.clock.time())
        self._keeper.tell(*await self._keeper.commit(ended, self._told(ended)))
        self._queue.remove(release)
        self.wake()

    async def _forward(self, release: Release) -> None:
        match release.phase:
            case Phase.PROPOSED:
                await self._validate(release)
            case Phase.VALIDATED:
                await self._screen(release)
            case Phase.SCREENED:
                await self._begin_canary(release)
            case Phase.SELECTION | Phase.CONFIRMATION:
                await self._canary(release)
            case _:
                return  # awaiting approval or paused: an operator's turn

    async def _validate(self, release: Release) -> None:
        """Static: compiles, signature, imports, types, bounds."""
        try:
            values = await self.values_of(release.candidate)
            validate_values(values, self._parameters, {}, self._keeper.spec.sandbox.allowed_imports)
        except DecodingError as error:
            await self._end(release, Verdict(phase=Phase.REJECTED, stage="validation", reason=str(error)))
        else:
            await self._advance(release, Phase.VALIDATED, "the values compile and keep types, bounds and signature")

    async def _screen(self, release: Release) -> None:
        """The sandbox loads it and recorded steps are replayed: the cheapest test before it meets a plant."""
        runner, keeper = self._runner, self._keeper
        if runner is None or self._source is None:
            return
        try:
            await self._load(runner, self._source, release.candidate)
            summaries = await keeper.store.episodes(keeper.name, limit=SCREEN_EPISODES, revision=release.reference)
            episodes = tuple([await keeper.store.episode(summary.id) for summary in summaries])
            report = await runner.screen(release.candidate, episodes)
        except SandboxError as error:
            await self._fail_screening(release, f"{type(error).__name__}: {error}", getattr(error, "traceback", ""))
            return
        if report.error or report.invalid:
            reason = report.error or f"{report.invalid} of {report.ticks} actions are outside the envelope"
            await self._fail_screening(release, reason, report.traceback)
            return
        reason = f"{report.differing} of {report.ticks} replayed actions differ"
        await self._advance(release, Phase.SCREENED, reason, ticks=report.ticks, differing=report.differing)

    async def _fail_screening(self, release: Release, text: str, traceback: str) -> None:
        """The last line says what went wrong; a program's error may show all of its code before that."""
        lines = [line for line in text.splitlines() if line.strip()]
        kind = text.partition(":")[0]
        reason = lines[0] if len(lines) == 1 else f"{kind}: {lines[-1]}"
        verdict = Verdict(phase=Phase.REJECTED, stage="screening", reason=reason[:REASON_LIMIT])
        await self._end(release, verdict, detail=(traceback or text)[-DETAIL_LIMIT:])

    async def _begin_canary(self, release: Release) -> None:
        """After screening, or at once for a probe, whose revisions have both served before."""
        if release.kind is ReleaseKind.PROBE:
            if self._runner is None:
                return
        elif await self._needs_person(release):
            await self._advance(release, Phase.AWAITING_APPROVAL, "waits for `agentd approve`")
            return
        await self._became(release, machine.start(release, at=self._keeper.clock.time()))

    async def _needs_person(self, release: Release) -> bool:
        """Whether the mode, or a parameter that the release changes, asks for an operator's approval."""
        if self._keeper.state.mode is Mode.ADVISE:
            return True
        values, running = await self.values_of(release.candidate), await self.values_of(release.reference)
        return any(parameter.approval and values.get(parameter.path) != running.get(parameter.path) for parameter in self._parameters)

    async def _canary(self, release: Release) -> None:
        """Keep the lease alive and pairs waiting; evidence comes in by `observe`."""
        runner, keeper, source = self._runner, self._keeper, self._source
        if runner is None or source is None:
            return
        try:
            await self._load(runner, source, release.candidate)  # a new runner doesn't have it yet
        except SandboxError as error:
            verdict = Verdict(phase=Phase.INCONCLUSIVE, stage="canary", reason=f"the candidate no longer loads: {error}"[:REASON_LIMIT])
            await self._end(release, verdict)
            return
        async with keeper.deciding:
            if self.current is not release:
                return
            _, verdict_or_none = machine.expire(release, at=keeper.clock.time())
            if verdict_or_none is not None:
                await self.finish(release, verdict_or_none)
            else:
                await self.canary.top_up(release, runner)

    async def _load(self, runner: LocalRunner, source: Source, revision: str) -> None:
        """Warm the revision's worker, unless this runner has been asked for it already. Raises SandboxError, RunnerError."""
        if revision not in self._loaded:
            await runner.load(source, await self._keeper.store.revision(revision))
            self._loaded.add(revision)

    # --- evidence ----------------------------------------------------------------------------------------------------

    async def observe(self, episode: Episode, feedback: Feedback) -> None:
        """Take in one half of a pair; with the other half it is evidence. The caller holds `deciding`."""
        match self.canary.take(episode, feedback):
            case Pair() as pair:
                await self._weigh(pair)
            case LostPair(plan=plan, reason=reason):
                await self.lose(plan, reason)

    async def _weigh(self, pair: Pair) -> None:
        release = self.current
        if release is None or release.id != pair.release or release.phase not in CANARY | {Phase.PAUSED}:
            return
        advanced, verdict = machine.observe(release, pair, at=pair.at)
        event = self._keeper.event(
            "release.evidence",
            f"pair {advanced.pairs}: candidate {pair.candidate:.3f}, stable {pair.reference:.3f}",
            release=release.id,
            pairs=advanced.pairs,
            phase=str(advanced.phase),
            candidate=pair.candidate,
            reference=pair.reference,
            log_e=advanced.superiority.log_e,
            log_e_harm=advanced.harm.log_e,
        )
        await self._keeper.commit(advanced, pair)
        self.current = advanced
        self._keeper.bus.publish(event)  # evidence is in the store as a Pair; the event is only for those who watch now
        if verdict is not None:
            await self.finish(advanced, verdict)
        else:
            self.wake()

    async def lose(self, pair: str, reason: str) -> None:
        """A pair gave no evidence (the plant was lost before the first action, the judge failed, the lease ran out): draw it again.

        The caller holds `deciding`.
        """
        plan = self.canary.forget(pair)
        release = self.current
        if plan is None or release is None or release.id != plan.release:
            return
        advanced, verdict = machine.lost(release, at=self._keeper.clock.time())
        await self._keeper.commit(advanced)
        self.current = advanced
        log.info("a pair was lost", agent=self._keeper.name, pair=pair, reason=reason)
        if verdict is not None:
            await self.finish(advanced, verdict)
        else:
            self.wake()

    # --- ends --------------------------------------------------------------------------------------------------------

    async def _end(self, release: Release, verdict: Verdict, *, detail: str = "") -> None:
        async with self._keeper.deciding:
            if self.current is release:
                await self.finish(release, verdict, detail=detail)

    async def finish(self, release: Release, verdict: Verdict, *, who: str = "agentd", detail: str = "") -> None:
        """The end of a release: commit, then route, then tell. The caller holds `deciding`."""
        keeper = self._keeper
        now = keeper.clock.time()
        ended = machine.conclude(release, verdict, at=now, who=who)
        records: list[Release | Event] = [ended]
        changes: dict[str, object] = {"release": None} if keeper.state.release == release.id else {}
        unused = ended.candidate
        if ended.phase is Phase.PROMOTED:
            replaced = await self._promoted_by(keeper.state.stable) if ended.kind is ReleaseKind.PROBE else None
            unused = keeper.state.stable
            changes |= self.serve(ended.candidate, forced=ended.forced)
            if replaced is not None:
                rolled = machine.advance(
                    replaced, Phase.ROLLED_BACK, at=now, who="watch", reason=f"the last good revision is {verdict.reason}", stage="watch"
                )
                records += [rolled, self._told(rolled)]
            elif not ended.forced:
                changes |= {"anchor": ended.candidate, "attempts": 0}
        records.append(self._told(ended, detail=detail))
        events = await keeper.commit(*records, **changes)
        self.current = None
        self.canary.clear()
        await self.route(retire=unused)
        keeper.tell(*events)
        self.wake()
        await self._on_end(ended)

    def serve(self, revision: str, *, forced: bool) -> dict[str, object]:
        """The changes of state that make `revision` stable. One that did not win a canary is watched against its predecessor's bound."""
        predecessor = self._keeper.state.watch
        fresh = watch.inherit(revision, predecessor) if forced and predecessor is not None else watch.begin(revision)
        return {"stable": revision, "desired": revision, "watch": fresh}

    async def route(self, *, retire: str | None = None) -> None:
        """Make the runner's routes follow the committed state. A runner that is gone gets them when it is back."""
        runner, keeper = self._runner, self._keeper
        if runner is None or self._source is None:
            return
        try:
            await runner.cancel_pairs()
            await self._load(runner, self._source, keeper.state.stable)
            await runner.route(keeper.state.stable)
            self._misrouted = False
            if retire is not None and retire != keeper.state.stable:
                self._loaded.discard(retire)
                await runner.retire(retire)
        except (RunnerError, SandboxError) as error:
            self._misrouted = True
            log.warning("routes could not be set yet", agent=keeper.name, error=str(error))

    async def _promoted_by(self, revision: str) -> Release | None:
        """The release that made `revision` stable, if one did."""
        releases = await self._keeper.store.releases(self._keeper.name, limit=200)
        return next((release for release in releases if release.candidate == revision and release.phase is Phase.PROMOTED), None)

    def _told(self, release: Release, **data: Value) -> Event:
        kind = "release.rolled_back" if release.phase is Phase.ROLLED_BACK else f"release.{release.phase}"
        if release.kind is ReleaseKind.PROBE:
            kind = "release.probe_ended" if release.ended_at is not None else "release.probe_changed"
        last = release.history[-1]
        return self._keeper.event(
            kind,
            f"{release.candidate[:10]} {release.phase}: {release.reason}",
            who=last.who,
            release=release.id,
            candidate=release.candidate,
            reference=release.reference,
            phase=str(release.phase),
            stage=release.stage,
            reason=release.reason,
            pairs=release.pairs,
            difference=release.difference,
            log_e=release.superiority.log_e,
            forced=release.forced,
            **data,
        )

    async def _advance(self, release: Release, to: Phase, reason: str, **data: Value) -> None:
        advanced = machine.advance(release, to, at=self._keeper.clock.time(), who="agentd", reason=reason)
        await self._became(release, advanced, **data)

    async def _became(self, release: Release, advanced: Release, **data: Value) -> None:
        """Commit and tell the step from `release` to `advanced`, unless an operator was quicker."""
        async with self._keeper.deciding:
            if self.current is release:
                await self._replace(advanced, **data)

    async def _replace(self, release: Release, **data: Value) -> Release:
        events = await self._keeper.commit(release, self._told(release, **data))
        self.current = release
        self._keeper.tell(*events)
        if release.phase is Phase.PAUSED and self._runner is not None:
            await self._runner.cancel_pairs()
            self.canary.clear()
        self.wake()
        return release

    # --- operators ---------------------------------------------------------------------------------------------------

    def _named(self, release: str) -> Release:
        """The release in progress, if `release` (an id or its prefix) names it; the others have moved on."""
        current = self.current
        if current is None or not current.id.startswith(release):
            raise StaleRelease(f"release {release} is not the one in progress" + (f": that is {current.id}" if current else ": none is"))
        return current

    async def approve(self, release: str, *, who: str, reason: str = "") -> Release:
        """An operator lets a release go on to its canary. Raises StaleRelease, IllegalTransition."""
        async with self._keeper.deciding:
            current = self._named(release)
            if current.phase is not Phase.AWAITING_APPROVAL:
                raise IllegalTransition(current.id, str(current.phase), "approved")
            approved = machine.start(current, at=self._keeper.clock.time(), who=who, reason=reason or "approved")
            return await self._replace(approved)

    async def pause(self, release: str, *, who: str, reason: str = "") -> Release:
        """Stop drawing pairs; the evidence so far stays. Raises StaleRelease, IllegalTransition."""
        async with self._keeper.deciding:
            current = self._named(release)
            paused = machine.pause(current, at=self._keeper.clock.time(), who=who, reason=reason or "paused")
            return await self._replace(paused)

    async def resume(self, release: str, *, who: str, reason: str = "") -> Release:
        """Go on where `pause` stopped. Raises StaleRelease, IllegalTransition."""
        async with self._keeper.deciding:
            resumed = machine.resume(self._named(release), at=self._keeper.clock.time(), who=who, reason=reason or "resumed")
            return await self._replace(resumed)

    async def promote(self, release: str, *, who: str, reason: str = "") -> Release:
        """Force a screened release past its canary: it is watched against its predecessor's bound.

        Raises StaleRelease, IllegalTransition.
        """
        async with self._keeper.deciding:
            current = self._named(release)
            if current.phase in {Phase.PROPOSED, Phase.VALIDATED} or current.kind is ReleaseKind.PROBE:
                raise IllegalTransition(current.id, str(current.phase), "promoted before it was screened")
            forced = msgspec.structs.replace(current, forced=True)
            await self.finish(forced, Verdict(phase=Phase.PROMOTED, reason=reason or f"forced by {who}", stage="operator"), who=who)
            return await self._keeper.store.release(current.id)

    async def abort(self, release: str, *, who: str, reason: str = "") -> Release:
        """End a release; all routes go back to stable. Raises StaleRelease."""
        async with self._keeper.deciding:
            verdict = Verdict(phase=Phase.ABORTED, reason=reason or f"aborted by {who}", stage="operator")
            waiting = next((queued for queued in self._queue if queued.id.startswith(release)), None)
            ending = waiting or self._named(release)
            if waiting is not None:
                ended = machine.conclude(waiting, verdict, at=self._keeper.clock.time(), who=who)
                self._keeper.tell(*await self._keeper.commit(ended, self._told(ended)))
                self._queue.remove(waiting)
            else:
                await self.finish(ending, verdict, who=who)
            return await self._keeper.store.release(ending.id)

    async def switch(self, revision: str, *, who: str, reason: str = "") -> None:
        """An operator makes a known revision stable: a release in progress is aborted first. The caller holds `deciding`."""
        keeper = self._keeper
        previous = keeper.state.stable
        if revision == previous:
            raise ReleaseError(f"{revision[:10]} is the stable revision already")
        if self.current is not None:
            await self.finish(
                self.current, Verdict(phase=Phase.ABORTED, reason=f"{who} changed the stable revision", stage="operator"), who=who
            )
        records: list[Release | Event] = []
        left = await self._promoted_by(previous)
        if left is not None:
            now = keeper.clock.time()
            rolled = machine.advance(left, Phase.ROLLED_BACK, at=now, who=who, reason=reason or f"rolled back by {who}", stage="operator")
            records += [rolled, self._told(rolled)]
        records.append(
            keeper.event(
                "revision.desired", f"{who} made {revision[:10]} stable", who=who, revision=revision, previous=previous, reason=reason
            )
        )
        events = await keeper.commit(*records, **self.serve(revision, forced=True))
        await self.route(retire=previous)
        keeper.tell(*events)
        self.wake()
