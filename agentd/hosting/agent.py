"""One hosted agent: its runner's episodes in; feedback, evidence, alarms, proposals and routes out."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

import structlog

from agentd.api.ports import AgentStatus
from agentd.clock import Clock
from agentd.errors import AgentdError, NotFound, ReleaseError, RunnerError, leaves
from agentd.events import EventBus
from agentd.hosting.improver import Improver, budget_limits
from agentd.hosting.judge import Judge
from agentd.hosting.keeper import Keeper
from agentd.hosting.releases import CANARY, Releases
from agentd.observability.metrics import Metrics
from agentd.opto.budget import Ledger
from agentd.opto.contract import Llm
from agentd.opto.process import OptimizerProcess
from agentd.records import (
    AgentState,
    Episode,
    Event,
    Feedback,
    Origin,
    Outcome,
    Parameter,
    Phase,
    Proposal,
    Provenance,
    Purpose,
    Release,
    ReleaseKind,
    Revision,
    Role,
    Source,
    Value,
    Verdict,
    Watch,
    make_revision,
)
from agentd.release import machine, watch
from agentd.runners.local import Counted, DevicesChanged, Finished, Happened, LocalRunner, Log, Lost
from agentd.spec import AgentSpec, metric_record, watch_settings
from agentd.store.contract import Store

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

EPISODES_AHEAD = 64
WATCH_COMMIT_EVERY = 10
RESTART_DELAYS = (0.2, 1.0, 5.0, 15.0, 60.0)
RECENT = 120


@dataclass(frozen=True, slots=True)
class Services:
    """What the daemon lends to each hosted agent."""

    store: Store
    bus: EventBus
    clock: Clock
    metrics: Metrics
    llm: Llm
    ledger: Ledger
    state_directory: Path
    epoch: int
    seed: int
    broker: str | None = None
    models: tuple[str, ...] = ()


class HostedAgent:
    """The life of one agent. Nothing that happens to it reaches another one: `run` outlives every error of its own agent."""

    def __init__(self, spec: AgentSpec, source: Source, services: Services) -> None:
        self.name = spec.agent.name
        self.spec = spec
        self._source = source
        self._services = services
        self._metric = metric_record(spec.metrics[0])
        self._watch_settings = watch_settings(spec)
        self._random = Random(f"{services.seed}/{self.name}")  # noqa: S311 - draws the order of pairs; secrecy is not needed
        self._keeper: Keeper | None = None
        self._releases: Releases | None = None
        self._improver: Improver | None = None
        self._runner: LocalRunner | None = None
        self._episodes: asyncio.Queue[Episode] = asyncio.Queue(EPISODES_AHEAD)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._counts = 0
        self._unsaved_watch = 0
        self._devices: dict[str, str] = {}
        self._seedable: dict[str, bool] = {}
        self._problem = "starting"
        self._draining = asyncio.Event()
        self.logs: deque[str] = deque(maxlen=1000)

    # --- life --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Host the agent until `drain`; after an error of its runner or worker, again, with growing pauses."""
        attempt = 0
        while not self._draining.is_set():
            started = self._services.clock.monotonic()
            try:
                await self._host()
            except* (AgentdError, OSError) as group:
                self._problem = "; ".join(str(error) for error in leaves(group))
            if self._draining.is_set():
                return
            if self._services.clock.monotonic() - started > 60:
                attempt = 0  # it had been well for a while
            delay = RESTART_DELAYS[min(attempt, len(RESTART_DELAYS) - 1)]
            attempt += 1
            log.warning("agent failed", agent=self.name, problem=self._problem, again_in=delay)
            with contextlib.suppress(AgentdError):
                await self._tell_failure()
            await asyncio.sleep(delay)

    async def _tell_failure(self) -> None:
        event = Event(kind="agent.failed", at=self._services.clock.time(), agent=self.name, message=self._problem)
        for committed in await self._services.store.commit(event):
            self._services.bus.publish(committed)

    async def _host(self) -> None:
        services = self._services
        runner = await LocalRunner.adopt_or_start(
            spec=self.spec,
            state_directory=services.state_directory,
            epoch=services.epoch,
            broker=services.broker,
            seed=services.seed,
            clock=services.clock,
        )
        self._runner = runner
        try:
            async with Judge(self.spec, self._source, self._metric) as judge:
                keeper, releases, improver = await self._assemble()
                await self._take_over(runner, keeper, releases, improver)
                self._problem = ""
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._listen(runner, releases), name=f"{self.name}: listen")
                    tasks.create_task(self._learn(judge, runner), name=f"{self.name}: learn")
                    tasks.create_task(releases.conduct(), name=f"{self.name}: releases")
                    tasks.create_task(improver.run(), name=f"{self.name}: improve")
        finally:
            self._runner = None
            if self._releases is not None:
                self._releases.detach()
            await runner.abandon()

    async def _assemble(self) -> tuple[Keeper, Releases, Improver]:
        services = self._services
        state = await self._initial_state()
        keeper = Keeper(self.spec, state, services.store, services.bus, services.clock, self._random)
        releases = Releases(keeper, self._release_ended)
        services.ledger.limit(self.name, budget_limits(self.spec))
        improver = Improver(keeper, releases, OptimizerProcess(), services.llm, self.spec.optimizer.models or services.models, services.seed)
        self._keeper, self._releases, self._improver = keeper, releases, improver
        return keeper, releases, improver

    async def _initial_state(self) -> AgentState:
        store, now = self._services.store, self._services.clock.time()
        await store.commit(self._source)
        try:
            state = await store.agent(self.name)
        except NotFound:
            first = make_revision(self.name, self._source.digest, {})
            provenance = Provenance(revision=first.id, origin=Origin.SOURCE, at=now, who="author")
            state = AgentState(
                name=self.name,
                source=self._source.digest,
                stable=first.id,
                desired=first.id,
                mode=self.spec.agent.mode,
                watch=watch.begin(first.id),
                updated_at=now,
            )
            event = Event(kind="agent.added", at=now, agent=self.name, message=f"{self.name} is new", data={"revision": first.id})
            await store.commit(first, provenance, state, event)
        return state

    async def _take_over(self, runner: LocalRunner, keeper: Keeper, releases: Releases, improver: Improver) -> None:
        """Serve the last committed stable revision at once; then see what was going on."""
        if keeper.state.mode is not self.spec.agent.mode:
            await keeper.commit(mode=self.spec.agent.mode)
        await runner.cancel_pairs()
        if keeper.state.source != self._source.digest:
            await self._upgrade_source(runner, keeper)
        stable = await keeper.store.revision(keeper.state.stable)
        parameters = await runner.load(self._source, stable)
        await runner.route(stable.id)
        trainable = tuple(self._with_rules(parameter) for parameter in parameters if self._is_trainable(parameter.path))
        if trainable != keeper.state.parameters:
            await keeper.commit(parameters=trainable)
        releases.attach(runner, self._source, trainable)
        improver.attach(trainable)
        unfinished = await keeper.store.releases(self.name, active=True, limit=100)
        current = await self._resumable(keeper, unfinished)
        releases.restore(tuple(reversed(unfinished)), current)
        kind = "runner.adopted" if runner.adopted else "runner.started"
        await keeper.say(kind, f"the runner serves {stable.id[:10]}", session=runner.session, isolation=runner.isolation.level)
        if keeper.state.paused:
            await runner.pause()
        if self.spec.optimizer.trigger == "continuous" and not keeper.state.improving:
            async with keeper.deciding:
                await improver.start("the trigger is continuous")

    async def _resumable(self, keeper: Keeper, unfinished: tuple[Release, ...]) -> str | None:
        """The release to go on with. A canary resumes only from a ledger that agrees with it, else it ends inconclusive."""
        current = next((release for release in unfinished if release.id == keeper.state.release), None)
        if current is None:
            return None
        pairs = await keeper.store.pairs(current.id)
        candidate = await keeper.store.revision(current.candidate)
        agrees = machine.agrees(current, pairs) and candidate.source == self._source.digest and current.reference == keeper.state.stable
        if agrees:
            return current.id
        reason = "after a restart ledger, revision and source no longer agree"
        verdict = Verdict(phase=Phase.INCONCLUSIVE, reason=reason, stage="restart")
        ended = machine.conclude(current, verdict, at=keeper.clock.time())
        event = keeper.event("release.inconclusive", reason, release=ended.id, candidate=ended.candidate, pairs=ended.pairs)
        keeper.tell(*await keeper.commit(ended, event, release=None))
        return None

    async def _upgrade_source(self, runner: LocalRunner, keeper: Keeper) -> None:
        """The author changed the program. A learned value carries over where path, kind, signature and the default are unchanged."""
        old_state = keeper.state
        old_revision = await keeper.store.revision(old_state.stable)
        first = make_revision(self.name, self._source.digest, {})
        after = {parameter.path: parameter for parameter in await runner.load(self._source, first)}
        carried: dict[str, Value] = {}
        lapsed: list[str] = []
        for parameter in old_state.parameters:
            if parameter.path not in old_revision.values:
                continue
            now = after.get(parameter.path)
            same = now is not None and (now.kind, now.signature, now.default) == (parameter.kind, parameter.signature, parameter.default)
            if same:
                carried[parameter.path] = old_revision.values[parameter.path]
            else:
                lapsed.append(parameter.path)
        revision = make_revision(self.name, self._source.digest, carried)
        provenance = Provenance(
            revision=revision.id, origin=Origin.SOURCE, at=keeper.clock.time(), parent=old_revision.id, who="author", note="new source"
        )
        message = f"the source changed: {len(carried)} learned values carried over, {len(lapsed)} lapsed"
        event = keeper.event("agent.source_changed", message, revision=revision.id, carried=sorted(carried), lapsed=lapsed)
        fresh = watch.inherit(revision.id, old_state.watch) if old_state.watch else watch.begin(revision.id)
        records = (revision, provenance, event)
        keeper.tell(
            *await keeper.commit(*records, source=self._source.digest, stable=revision.id, desired=revision.id, watch=fresh, release=None)
        )

    def _is_trainable(self, path: str) -> bool:
        rules = self.spec.parameters.get(path)
        return rules is None or rules.trainable

    def _with_rules(self, parameter: Parameter) -> Parameter:
        """`agent.toml`'s rules laid over what the program declares."""
        rules = self.spec.parameters.get(parameter.path)
        return parameter if rules is None else rules.over(parameter)

    async def drain(self, timeout: float) -> None:
        """Finish the episode, leave the plant in its safe state, end the runner. For SIGTERM and for an agent that is taken away."""
        self._draining.set()
        runner = self._runner
        if runner is not None:
            await runner.drain(timeout)

    # --- what the runner tells ---------------------------------------------------------------------------------------

    async def _listen(self, runner: LocalRunner, releases: Releases) -> None:
        while True:
            message = await runner.next()
            match message:
                case Finished(episode=episode):
                    await self._episodes.put(episode)  # a slow judge slows this reader; the runner spools and never waits
                case DevicesChanged(devices=devices):
                    self._devices = {device.id: device.status for device in devices}
                    self._seedable = {device.id: device.seedable for device in devices}
                    releases.devices = {device.id: device.seedable for device in devices if device.status == "ready"}
                    self._services.metrics.devices(self.name, self._devices)
                    releases.wake()
                case Happened(event=event):
                    await self._happened(event, releases)
                case Log(lines=lines):
                    self.logs.extend(lines)
                case Counted() as counted:
                    self._services.metrics.count(self.name, counted.deltas)
                case Lost(reason=reason):
                    if self._draining.is_set():
                        return
                    raise RunnerError(f"the runner is lost: {reason}")

    async def _happened(self, event: Event, releases: Releases) -> None:
        for committed in await self._services.store.commit(event):
            self._services.bus.publish(committed)
        if event.kind == "runner.pair_dropped" and self._keeper is not None:
            async with self._keeper.deciding:
                await releases.lose(str(event.data.get("pair", "")), event.message)

    # --- learning from episodes --------------------------------------------------------------------------------------

    async def _learn(self, judge: Judge, runner: LocalRunner) -> None:
        while True:
            episode = await self._episodes.get()
            feedback = await judge.judge(episode)
            await self._take_in(episode, feedback)
            await runner.acknowledge(episode.id)

    async def _take_in(self, episode: Episode, feedback: Feedback) -> None:
        """One finished episode: kept, shown, and weighed."""
        keeper, releases = self._working()
        await keeper.store.add_episode(episode, feedback, regime=keeper.state.regime)
        self._counts += 1
        self._services.metrics.episode(episode, feedback)
        if episode.role is Role.STABLE and not feedback.failed:
            self._recent.append(feedback.normalised)
        keeper.bus.publish(
            keeper.event(
                "episode.finished",
                f"{episode.role} {episode.outcome}, score {feedback.score:.3f}",
                episode=episode.id,
                device=episode.device,
                role=str(episode.role),
                purpose=str(episode.purpose),
                revision=episode.revision,
                outcome=str(episode.outcome),
                score=feedback.score,
                normalised=feedback.normalised,
                ticks=len(episode.steps),
                safe_actions=episode.safe_actions,
                feedback=feedback.text[:300],
                failed=feedback.failed,
            )
        )
        if feedback.failed and episode.outcome is not Outcome.LOST:
            await keeper.say("feedback.failed", feedback.failed, episode=episode.id)
        async with keeper.deciding:
            await releases.observe(episode, feedback)
            if self._is_watched(episode, feedback):
                await self._watch(feedback.normalised)

    def _is_watched(self, episode: Episode, feedback: Feedback) -> bool:
        keeper, _ = self._working()
        return (
            episode.revision == keeper.state.stable
            and episode.role is Role.STABLE
            and episode.purpose is not Purpose.RECOVERY
            and episode.outcome is not Outcome.LOST
            and not feedback.failed
        )

    async def _watch(self, normalised: float) -> None:
        """The Shiryaev-Roberts watch on the stable revision, the first included. The caller holds `deciding`."""
        keeper, _ = self._working()
        before = keeper.state.watch or watch.begin(keeper.state.stable)
        after, alarmed = watch.observe(before, normalised, settings=self._watch_settings)
        changes: dict[str, object] = {"watch": after}
        here = (keeper.state.stable, keeper.state.regime)
        # A revision that merely goes on being bad after the world changed has survived, too; it is good once the score is back.
        if watch.survived(after, self._watch_settings) and here not in keeper.state.good and not keeper.state.improving:
            good = (*keeper.state.good, here)[-20:]
            changes |= {"last_good": keeper.state.stable, "good": good}
            event = keeper.event("watch.good", f"{keeper.state.stable[:10]} has held {after.episodes} episodes", revision=keeper.state.stable)
            keeper.tell(*await keeper.commit(event, **changes))
        elif alarmed:
            await self._alarm(after)
        else:
            self._unsaved_watch += 1
            if self._unsaved_watch >= WATCH_COMMIT_EVERY or (before.bound is None) != (after.bound is None):
                self._unsaved_watch = 0
                await keeper.commit(**changes)
            else:
                keeper.amend(watch=after)
        if self.spec.optimizer.trigger == "failure" and normalised < 0.5 and not keeper.state.improving and self._improver:
            await self._improver.start(f"an episode scored {normalised:.3f}")
        if self._improver is not None and keeper.state.improving:
            self._improver.wake()

    async def _alarm(self, alarmed: Watch) -> None:
        """The stable revision does worse than it did: is it the revision, or the world?"""
        keeper, releases = self._working()
        state = keeper.state
        recent = alarmed.recent[-10:]
        mean = sum(recent) / len(recent) if recent else 0.0
        bound = alarmed.bound or 0.0
        event = keeper.event(
            "watch.alarm",
            f"{state.stable[:10]} scored {mean:.3f} of late; at least {bound:.3f} was expected",
            revision=state.stable,
            recent=mean,
            bound=bound,
            episodes=alarmed.episodes,
        )
        keeper.tell(*await keeper.commit(event, watch=alarmed))
        current = releases.current
        if current is not None and current.phase in CANARY | {Phase.PAUSED}:
            verdict = Verdict(phase=Phase.INCONCLUSIVE, reason="the stable revision raised an alarm", stage="watch")
            await releases.finish(current, verdict)
        if state.last_good is not None and state.last_good != state.stable:
            await releases.probe(state.last_good)
        else:
            await self._drift("no earlier revision is known to be good", bound)

    async def _drift(self, reason: str, bound: float) -> None:
        """The world changed: a new regime, a new watch, and the optimizer with episodes from now on only."""
        keeper, _ = self._working()
        regime = keeper.state.regime + 1
        event = keeper.event("drift.declared", f"the world changed: {reason}", regime=regime, revision=keeper.state.stable)
        target = max(bound, keeper.state.target or 0.0) if keeper.state.improving else bound
        fresh = watch.begin(keeper.state.stable)
        keeper.tell(*await keeper.commit(event, regime=regime, watch=fresh, target=target, tried=()))
        if self._improver is not None and self.spec.optimizer.trigger != "manual":
            await self._improver.start("drift")

    async def _release_ended(self, release: Release) -> None:
        """What follows from a release's end beyond its routes. The caller holds `deciding`."""
        if release.kind is ReleaseKind.PROBE and release.phase is not Phase.PROMOTED and release.phase is not Phase.ABORTED:
            bound = self._keeper.state.watch.bound if self._keeper and self._keeper.state.watch else None
            await self._drift(f"the last good revision does no better ({release.phase})", bound or 0.0)
        if self._improver is not None:
            await self._improver.release_ended(release)

    def _working(self) -> tuple[Keeper, Releases]:
        if self._keeper is None or self._releases is None:
            raise RunnerError(f"agent {self.name} is not up: {self._problem}")
        return self._keeper, self._releases

    # --- what operators ask for --------------------------------------------------------------------------------------

    @property
    def releases(self) -> Releases:
        """The releases, for the verbs that concern one. Raises RunnerError while the agent is not up."""
        return self._working()[1]

    async def submit(self, values: Mapping[str, Value], *, who: str, note: str = "") -> Release:
        """An operator's proposal: it goes the way of every other one. Raises ReleaseError, CodecError."""
        keeper, releases = self._working()
        if not values:
            raise ReleaseError("there are no values in this proposal")
        proposal = Proposal(
            id=keeper.new_id(),
            agent=self.name,
            parent=keeper.state.stable,
            values=dict(values),
            algorithm="operator",
            at=keeper.clock.time(),
            reasoning=note,
            who=who,
        )
        return await releases.propose(proposal)

    async def retry(self, release: str, *, who: str) -> Release:
        """Begin the release of an ended release's proposal again. Raises NotFound, ReleaseError."""
        keeper, _ = self._working()
        ended = await keeper.store.release(release)
        if ended.ended_at is None:
            raise ReleaseError(f"release {ended.id} has not ended")
        proposal = await keeper.store.proposal(ended.proposal)
        return await self.submit(proposal.values, who=who, note=f"retry of {ended.id}")

    async def propose(self, *, who: str) -> None:
        """Ask the optimizer for a proposal now."""
        keeper, _ = self._working()
        async with keeper.deciding:
            if self._improver is not None:
                await self._improver.start(f"asked for by {who}", who=who)

    async def set_desired(self, revision: str, *, who: str, reason: str = "") -> None:
        """Serve this revision from the next episode on: rollback or pin. Raises NotFound, ReleaseError."""
        keeper, releases = self._working()
        async with keeper.deciding:
            known: Revision = await keeper.store.revision(revision)
            if known.agent != self.name:
                raise NotFound("revision", revision)
            if known.source != keeper.state.source:
                raise ReleaseError(f"revision {known.id[:10]} belongs to another version of the source")
            await releases.switch(known.id, who=who, reason=reason)

    async def pause(self, *, who: str) -> None:
        """Start no more episodes; the plant stays in its safe state."""
        keeper, _ = self._working()
        async with keeper.deciding:
            if self._runner is not None:
                await self._runner.pause()
            event = keeper.event("agent.paused", f"paused by {who}", who=who)
            keeper.tell(*await keeper.commit(event, paused=True))

    async def resume(self, *, who: str) -> None:
        """Go on after `pause`."""
        keeper, _ = self._working()
        async with keeper.deciding:
            if self._runner is not None:
                await self._runner.resume()
            event = keeper.event("agent.resumed", f"resumed by {who}", who=who)
            keeper.tell(*await keeper.commit(event, paused=False))

    def status(self) -> AgentStatus:
        """What an operator sees at a glance."""
        keeper, releases, runner = self._keeper, self._releases, self._runner
        state = keeper.state if keeper else None
        health = "failed" if runner is None else "ok"
        if runner is not None and state is not None and (state.improving or (state.watch and state.watch.alarmed)):
            health = "degraded"
        return AgentStatus(
            name=self.name,
            mode=self.spec.agent.mode,
            health=health,
            problem=self._problem,
            state=state,
            release=releases.current if releases else None,
            devices=dict(self._devices),
            isolation=runner.isolation.level if runner else 0,
            runner_session=runner.session if runner else "",
            runner_pid=runner.pid if runner else None,
            runner_adopted=runner.adopted if runner else False,
            episodes=self._counts,
            recent=tuple(self._recent),
            optimizer=self._improver.status if self._improver else "idle",
        )

