"""From a proposal to a verdict: validate, screen, canary; and what follows from the verdict."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import msgspec
import structlog

from agentd.errors import IllegalTransition, ReleaseError, RunnerError, SandboxError, StaleRelease
from agentd.hosting import telling
from agentd.hosting.canary import Canary, LostPair
from agentd.hosting.keeper import Keeper
from agentd.hosting.queue import ReleaseQueue, anchored_by
from agentd.hosting.routes import Routes
from agentd.hosting.screening import REASON_LIMIT, Failed, Passed, screen, validate
from agentd.records import (
    Episode,
    Event,
    Feedback,
    Mode,
    Pair,
    Parameter,
    Phase,
    Proposal,
    Release,
    ReleaseKind,
    Single,
    Source,
    Value,
    Verdict,
    Window,
)
from agentd.release import evidence as weighing
from agentd.release import fleet, machine, watch
from agentd.release.limits import Rate, promotions
from agentd.runners.local import LocalRunner
from agentd.spec import parse_rate

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

CANARY = machine.CANARY
LEASE = 10.0
RETRY = 1.0
MEMORY = 1000
"""Releases that are looked through for promotions."""


class Releases:
    """The releases of one agent: one in progress, the others in a short queue, operators' first."""

    def __init__(self, keeper: Keeper, on_end: Callable[[Release], Awaitable[None]], *, lease: float = LEASE) -> None:
        self._keeper = keeper
        self._on_end = on_end
        self._lease = lease
        self._parameters: tuple[Parameter, ...] = ()
        self._queue = ReleaseQueue(keeper)
        self._routes = Routes(keeper)
        self._wake = asyncio.Event()
        self._limited = ""
        self.canary = Canary(keeper, lease)
        self.current: Release | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is in progress or waiting."""
        return self.current is None and not self._queue

    @property
    def waiting(self) -> str:
        """What keeps the next release from going on by itself: a freeze, a quarantine, or the rate of promotions; empty if nothing does."""
        return "" if self.idle else self._keeper.held or self._limited

    def _held(self, release: Release) -> bool:
        """Whether a freeze or a quarantine keeps `release` where it is. A probe never is: it asks whether to roll back."""
        return release.kind is not ReleaseKind.PROBE and bool(self._keeper.held)

    @property
    def probing(self) -> bool:
        """Whether a probe is in progress or waiting."""
        return self._queue.probing or (self.current is not None and self.current.kind is ReleaseKind.PROBE)

    def attach(self, runner: LocalRunner, source: Source, parameters: tuple[Parameter, ...]) -> None:
        """Work with this runner from now on: a new one has loaded the stable revision of `source`."""
        self._routes.attach(runner, source)
        self._parameters = parameters
        self.canary.clear()

    def detach(self) -> None:
        """The runner is gone; decisions are still taken, routes follow when there is one again."""
        self._routes.detach()

    @property
    def astray(self) -> str:
        """Why the runner may serve something else than the stable revision; empty where it doesn't."""
        return self._routes.astray

    def wake(self) -> None:
        """Look again: a device came, or something was decided."""
        self._wake.set()

    # --- proposing ---------------------------------------------------------------------------------------------------

    async def propose(self, proposal: Proposal) -> Release:
        """As `add`, for who doesn't hold `deciding`."""
        async with self._keeper.deciding:
            return await self.add(proposal)

    async def add(self, proposal: Proposal, *also: Event, release: str = "", **changes: object) -> Release:
        """Begin the release of `proposal`, or queue it behind the one in progress. The caller holds `deciding`.

        The events `also`, in which it may be named as `release`, and `changes` of the agent's state are committed with it.

        Raises:
            ReleaseError: it changes nothing, or too many are waiting already.
            CodecError: a value has no canonical form.
            StoreUnavailable: nothing was begun.
        """
        begun = await self._queue.add(proposal, self._parameters, *also, release=release, changes=changes)
        self.wake()
        return begun

    async def probe(self, last_good: str) -> None:
        """After an alarm: run the last good revision against the current one. The caller holds `deciding`."""
        await self._queue.probe(last_good)
        self.wake()

    def restore(self, releases: tuple[Release, ...], current: str | None) -> None:
        """Go on with the releases that the store has as unfinished, oldest first."""
        self._queue.restore(tuple(release for release in releases if release.id != current))
        self.current = next((release for release in releases if release.id == current), None)
        self.wake()

    async def recall(self) -> None:
        """Count single episodes of the release in progress that an earlier life drew, and that are not taken in yet."""
        release = self.current
        if release is not None and release.settings.exposure is not None:
            self.canary.recall(await self._keeper.store.plans(release.id))

    async def values_of(self, revision: str) -> dict[str, Value]:
        """The values of `revision` that differ from its source's defaults."""
        return dict((await self._keeper.store.revision(revision)).values)

    # --- conducting --------------------------------------------------------------------------------------------------

    async def conduct(self) -> None:
        """Take one release after the other from proposed to its end. Runs until cancelled."""
        while True:
            if self._queue and (self.current is None or self._queue.probing):
                async with self._keeper.deciding:
                    await self._take_next()
            if self._routes.astray:
                async with self._keeper.deciding:
                    await self._routes.follow()
            if self.current is not None and not self._held(self.current):
                await self._forward(self.current)
            with contextlib.suppress(TimeoutError):  # leases are renewed and durations checked even if nothing happens
                async with asyncio.timeout(RETRY if self._routes.astray else self._lease / 5):
                    await self._wake.wait()
            self._wake.clear()

    async def _take_next(self) -> None:
        """Begin with the next release. One that has not met the plant yet makes room for a probe: a person may let it wait for days."""
        current = self.current
        if current is not None and self._queue.probing and current.phase not in CANARY | {Phase.PAUSED}:
            await self._keeper.commit(release=None)
            self._queue.put_back(current)
            self.current = None
        if self.current is None:
            self.current = await self._queue.take()

    async def halt(self) -> None:
        """A hold began: the pairs under way no longer count, and stable serves everywhere. The caller holds `deciding`."""
        if self.current is not None and self._held(self.current):
            self.canary.clear()
            await self._routes.spare()

    async def _forward(self, release: Release) -> None:
        match release.phase:
            case Phase.PROPOSED:
                result = validate(await self.values_of(release.candidate), self._parameters, self._keeper)
                await self._judged(release, Phase.VALIDATED, result)
            case Phase.VALIDATED if self._routes.runner is not None:
                await self._judged(release, Phase.SCREENED, await screen(release, self._routes, self._keeper))
            case Phase.SCREENED:
                await self._begin_canary(release)
            case Phase.SELECTION | Phase.CONFIRMATION if self._routes.runner is not None:
                await self._canary(release)
            case _:
                return  # awaiting approval or paused: an operator's turn

    async def _judged(self, release: Release, to: Phase, result: Passed | Failed) -> None:
        if isinstance(result, Failed):
            await self._end(release, result.verdict, detail=result.detail)
            return
        advanced = machine.advance(release, to, at=self._keeper.clock.time(), who="agentd", reason=result.reason)
        await self._became(release, msgspec.structs.replace(advanced, screening=result.screening), **result.figures)

    async def _begin_canary(self, release: Release) -> None:
        """After screening, or at once for a probe, whose revisions have both served before."""
        now = self._keeper.clock.time()
        if release.kind is ReleaseKind.PROBE:
            if self._routes.runner is None:
                return
        elif await self._needs_person(release):
            waiting = Phase.AWAITING_APPROVAL
            await self._became(release, machine.advance(release, waiting, at=now, who="agentd", reason="waits for `agentd approve`"))
            return
        elif await self._too_often():
            return
        await self._became(release, machine.start(release, at=now))

    async def _too_often(self) -> bool:
        """Whether evidence has promoted as many candidates as may be in the time: the next one's canary begins later."""
        keeper = self._keeper
        now = keeper.clock.time()
        rate = Rate(*parse_rate(keeper.spec.release.max_promotions))
        free = rate.free_at(promotions(await keeper.store.releases(keeper.name, limit=MEMORY)), now)
        if free is not None and free <= now:
            self._limited = ""
            return False
        until = "" if free is None else f"; it goes on at {datetime.fromtimestamp(free, UTC):%Y-%m-%d %H:%M:%S} UTC"
        told = f"[release] max_promotions allows {keeper.spec.release.max_promotions}{until}"
        if told != self._limited:
            self._limited = told
            await keeper.say("release.waits", f"the canary waits: {told}", release=self.current.id if self.current else "", free_at=free)
        return True

    async def _needs_person(self, release: Release) -> bool:
        """Whether the mode, or a parameter that the release changes, asks for an operator's approval."""
        if self._keeper.state.mode is Mode.ADVISE:
            return True
        values, running = await self.values_of(release.candidate), await self.values_of(release.reference)
        return any(parameter.approval and values.get(parameter.path) != running.get(parameter.path) for parameter in self._parameters)

    async def _canary(self, release: Release) -> None:
        """Keep the lease alive and pairs waiting; evidence comes in by `observe`."""
        keeper = self._keeper
        try:
            runner = await self._routes.load(release.candidate)  # a new runner doesn't have it yet
            if weighing.has_anchor(release):
                await self._routes.load(release.anchor or release.reference)
        except SandboxError as error:
            verdict = Verdict(phase=Phase.INCONCLUSIVE, stage="canary", reason=f"the candidate no longer loads: {error}"[:REASON_LIMIT])
            await self._end(release, verdict)
            return
        async with keeper.deciding:
            if self.current is not release or self._held(release):
                return
            _, verdict_or_none = machine.expire(release, at=keeper.clock.time())
            if verdict_or_none is not None:
                await self.finish(release, verdict_or_none)
            else:
                await self.canary.top_up(await self._widened(release), runner)

    async def _widened(self, release: Release) -> Release:
        """The release with the devices that its ramp exposes by now. The caller holds `deciding`."""
        widened = fleet.widen(release, self.canary.labels)
        if widened is not release:
            await self._step(release, widened)
        return widened

    async def _step(self, release: Release, widened: Release, *, who: str = "agentd") -> Release:
        events = await self._keeper.commit(widened, telling.stepped(self._keeper, release, widened, who=who))
        self.current = widened
        self._keeper.tell(*events)
        self.wake()
        return widened

    # --- evidence ----------------------------------------------------------------------------------------------------

    async def observe(self, episode: Episode, feedback: Feedback) -> None:
        """Take in one half of a pair; with the other half it is evidence. The caller holds `deciding`."""
        match self.canary.take(episode, feedback):
            case Pair() | Single() as evidence:
                await self._weigh(evidence)
            case LostPair(plan=plan, reason=reason):
                await self.lose(plan, reason)

    async def enter(self, single: Single, *also: Window | Feedback) -> bool:
        """Weigh a single episode whose turn has come, in one commit with `also`. The caller holds `deciding`.

        False, with nothing committed, where its release is over or held.
        """
        return self.current is not None and not self._held(self.current) and await self._weigh(single, *also)

    async def foresee(self, waiting: Sequence[Single]) -> None:
        """End the release in progress if what waits for its turn violates a guardrail. The caller holds `deciding`."""
        release = self.current
        verdict = None if release is None or self._held(release) else machine.foresee(release, waiting)
        if release is not None and verdict is not None:
            await self.finish(release, verdict)

    async def _weigh(self, pair: Pair | Single, *also: Window | Feedback) -> bool:
        release = self.current
        if release is None or release.id != pair.release or release.phase not in CANARY | {Phase.PAUSED}:
            return False
        advanced, verdict = machine.observe(release, pair, at=pair.at)
        event = telling.weighed(self._keeper, advanced, pair)
        alone = len(fleet.withdrawn(advanced)) > len(fleet.withdrawn(release))
        told = [telling.withdrawn(self._keeper, advanced, pair)] if alone else []
        if advanced.phase is not release.phase:
            told.append(telling.changed(self._keeper, advanced))  # confirmation begins
        events = await self._keeper.commit(advanced, pair, *told, *also)
        self.current = advanced
        self._keeper.bus.publish(event)  # evidence is in the store as a Pair; the event is only for those who watch now
        if alone:
            self.canary.clear(pair.device)
            await self._routes.spare(pair.device)
        self._keeper.tell(*events)
        if verdict is not None:
            await self.finish(advanced, verdict)
        else:
            self.wake()
        return True

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
        unused = {ended.candidate, ended.anchor or ended.candidate}
        if ended.phase is Phase.PROMOTED:
            stable = keeper.state.stable
            replaced = await self._promoted_by(stable) if ended.kind is ReleaseKind.PROBE else None
            unused = {stable, ended.anchor or stable}
            changes |= await self._serve(ended.candidate, forced=ended.forced)
            if replaced is not None:
                why = f"the last good revision is {verdict.reason}"
                rolled = machine.advance(replaced, Phase.ROLLED_BACK, at=now, who="watch", reason=why, stage="watch")
                records += [rolled, telling.changed(keeper, rolled)]
                if keeper.state.anchor == stable:
                    changes |= {"anchor": ended.candidate}  # what was rolled back was no gain to hold on to
            elif ended.kind is ReleaseKind.PROPOSAL and not ended.forced:
                changes |= {"anchor": anchored_by(ended, keeper.state.anchor), "attempts": 0}
        records.append(telling.changed(keeper, ended, detail=detail))
        events = await keeper.commit(*records, **changes)
        self.current, self._limited = None, ""
        self.canary.clear()
        await self._routes.follow(retire=sorted(unused))
        keeper.tell(*events)
        self.wake()
        await self._on_end(ended)

    async def _serve(self, revision: str, *, forced: bool) -> dict[str, object]:
        """The changes of state that make `revision` stable, with the source that it was measured on.

        One that did not win a canary is watched against its predecessor's bound.
        """
        state = self._keeper.state
        fresh = watch.inherit(revision, state.watch) if forced and state.watch is not None else watch.begin(revision)
        changes: dict[str, object] = {"stable": revision, "desired": revision, "watch": fresh}
        source = (await self._keeper.store.revision(revision)).source
        if source != state.source:
            folder = state.passed_over or state.source
            changes |= {"source": source, "passed_over": "" if source == folder else folder, "conflicts": ()}
        return changes

    async def _promoted_by(self, revision: str) -> Release | None:
        """The release that made `revision` stable, if one did."""
        releases = await self._keeper.store.releases(self._keeper.name, limit=200)
        return next((release for release in releases if release.candidate == revision and release.phase is Phase.PROMOTED), None)

    async def _became(self, release: Release, advanced: Release, **data: Value) -> None:
        """Commit and tell the step from `release` to `advanced`, unless an operator was quicker."""
        async with self._keeper.deciding:
            if self.current is release and not self._held(release):
                await self._replace(advanced, **data)

    async def _replace(self, release: Release, **data: Value) -> Release:
        events = await self._keeper.commit(release, telling.changed(self._keeper, release, **data))
        self.current = release
        self._keeper.tell(*events)
        if release.phase is Phase.PAUSED and self._routes.runner is not None:
            await self._routes.runner.cancel_pairs()
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

    async def promote(self, release: str, *, who: str, reason: str = "", full: bool = False) -> Release:
        """The next step of a release's ramp, though the one before isn't over; past the last one, or with `full`, stable everywhere.

        What is made stable so is watched against its predecessor's bound. Raises StaleRelease, IllegalTransition, ReleaseError.
        """
        async with self._keeper.deciding:
            current = self._named(release)
            if current.kind is ReleaseKind.PROBE:
                raise ReleaseError(f"release {current.id} is a probe of the watch: `agentd rollback` goes back without it")
            if current.phase in {Phase.PROPOSED, Phase.VALIDATED}:
                raise IllegalTransition(current.id, str(current.phase), "promoted before it was screened")
            if not full and current.phase in CANARY:
                widened = fleet.widen(current, self.canary.labels, over=True)
                if len(widened.fleet) > len(current.fleet):
                    return await self._step(current, widened, who=who)
            elif not full and len(self.canary.labels) > 1:
                raise ReleaseError(
                    f"release {current.id} is {current.phase}: its ramp has not begun; --full promotes it past the whole ramp"
                )
            forced = msgspec.structs.replace(current, forced=True)
            await self.finish(forced, Verdict(phase=Phase.PROMOTED, reason=reason or f"forced by {who}", stage="operator"), who=who)
            return await self._keeper.store.release(current.id)

    async def abort(self, release: str, *, who: str, reason: str = "") -> Release:
        """End a release; all routes go back to stable. Raises StaleRelease."""
        async with self._keeper.deciding:
            verdict = Verdict(phase=Phase.ABORTED, reason=reason or f"aborted by {who}", stage="operator")
            waiting = self._queue.find(release)
            ending = waiting or self._named(release)
            if waiting is not None:
                await self._queue.end(waiting, verdict, who=who)
            else:
                await self.finish(ending, verdict, who=who)
            return await self._keeper.store.release(ending.id)

    async def switch(self, revision: str, *, who: str, reason: str = "") -> None:
        """An operator makes a known revision stable: a release in progress is aborted first. The caller holds `deciding`.

        Raises ReleaseError where it is stable already, or can't be loaded with what brakes for it: nothing has changed then.
        """
        keeper = self._keeper
        previous = keeper.state.stable
        if revision == previous:
            raise ReleaseError(f"{revision[:10]} is the stable revision already")
        if self._routes.runner is not None:
            with contextlib.suppress(RunnerError):  # a runner that fails now follows when there is one again
                try:
                    await self._routes.load(revision)
                except SandboxError as error:
                    raise ReleaseError(f"{revision[:10]} can't be served, {previous[:10]} goes on: {error}") from error
        if self.current is not None:
            await self.finish(
                self.current, Verdict(phase=Phase.ABORTED, reason=f"{who} changed the stable revision", stage="operator"), who=who
            )
        records: list[Release | Event] = []
        left = await self._promoted_by(previous)
        if left is not None:
            now = keeper.clock.time()
            rolled = machine.advance(left, Phase.ROLLED_BACK, at=now, who=who, reason=reason or f"rolled back by {who}", stage="operator")
            records += [rolled, telling.changed(keeper, rolled)]
        records.append(
            keeper.event(
                "revision.desired", f"{who} made {revision[:10]} stable", who=who, revision=revision, previous=previous, reason=reason
            )
        )
        changes = await self._serve(revision, forced=True)
        if keeper.state.anchor == previous:
            changes |= {"anchor": revision}
        events = await keeper.commit(*records, **changes)
        await self._routes.follow(retire=[previous])
        keeper.tell(*events)
        self.wake()
