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
from agentd.errors import AgentdError, NotFound, ReleaseError, RunnerError, SandboxError, StoreUnavailable, leaves
from agentd.events import EventBus
from agentd.hosting.improver import Improver, budget_limits
from agentd.hosting.judge import Judge
from agentd.hosting.keeper import Keeper
from agentd.hosting.releases import LEASE, Releases
from agentd.hosting.sources import known_or_first, take_up
from agentd.hosting.watching import Watcher
from agentd.observability.metrics import Metrics
from agentd.opto.budget import Ledger
from agentd.opto.contract import Llm
from agentd.opto.process import OptimizerProcess
from agentd.records import (
    Episode,
    Event,
    Feedback,
    Outcome,
    Parameter,
    Phase,
    Proposal,
    Purpose,
    Release,
    Role,
    Source,
    Value,
    Verdict,
    make_revision,
)
from agentd.release import machine
from agentd.runners.local import Counted, DevicesChanged, Finished, Happened, LocalRunner, Log, Lost
from agentd.spec import AgentSpec, metric_record, watch_settings
from agentd.store.contract import Store

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

EPISODES_AHEAD = 64
STORE_DELAY = 2.0
"""Seconds until a store that could not be written is tried again: that costs nothing, and nothing is learned before it works."""
LAST_EPISODES = 2.0
"""Seconds for judging what a runner handed over at its end."""
DETAIL_LIMIT = 4000
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
    lease: float = LEASE


@dataclass(frozen=True, slots=True)
class _Parts:
    """What an agent consists of beside its runner."""

    keeper: Keeper
    releases: Releases
    improver: Improver
    watcher: Watcher


class HostedAgent:
    """The life of one agent. Nothing that happens to it reaches another one: `run` outlives every error of its own agent."""

    def __init__(self, spec: AgentSpec, source: Source, services: Services) -> None:
        self.name = spec.agent.name
        self.spec = spec
        self._source = source
        self._services = services
        self._metric = metric_record(spec.metrics[0])
        self._random = Random(f"{services.seed}/{self.name}")  # noqa: S311 - draws the order of pairs; secrecy is not needed
        self._parts: _Parts | None = None
        self._runner: LocalRunner | None = None
        self._episodes: asyncio.Queue[Episode] = asyncio.Queue(EPISODES_AHEAD)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._counts = 0
        self._taken: deque[str] = deque(maxlen=2 * EPISODES_AHEAD)
        self._resent = 0
        self._devices: dict[str, str] = {}
        self._seedable: dict[str, bool] = {}
        self._problem = "starting"
        self._trouble = ""
        """What is wrong though the agent serves."""
        self._feedback_failure = ""
        self._store_failed = False
        self._drain_timeout = 0.0
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
            except* Exception as group:  # whatever it is, it is this agent's: the others go on
                self._problem = "; ".join(str(error) or repr(error) for error in leaves(group))
                self._store_failed = all(isinstance(error, StoreUnavailable) for error in leaves(group))
                if any(not isinstance(error, AgentdError | OSError) for error in leaves(group)):
                    log.exception("agent failed by a fault of agentd", agent=self.name)
            if self._draining.is_set():
                break
            if self._services.clock.monotonic() - started > 60:
                attempt = 0  # it had been well for a while
            delay = RESTART_DELAYS[min(attempt, len(RESTART_DELAYS) - 1)]
            attempt += 1
            if self._store_failed:
                delay = min(delay, STORE_DELAY)
            log.warning("agent failed", agent=self.name, problem=self._problem, again_in=delay)
            with contextlib.suppress(AgentdError):
                await self._tell_failure()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._draining.wait()
        await self._dismiss(self._drain_timeout)

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
        self._episodes = asyncio.Queue(EPISODES_AHEAD)  # what an earlier connection brought comes again
        self._resent = runner.spooled
        try:
            parts = await self._assembled()
            await self._take_over(runner, parts)
            async with Judge(self.spec, self._source, self._metric) as judge, asyncio.TaskGroup() as tasks:
                self._problem = ""
                chores = [
                    tasks.create_task(self._listen(runner, parts.releases), name=f"{self.name}: listen"),
                    tasks.create_task(self._learn(judge, runner), name=f"{self.name}: learn"),
                    tasks.create_task(parts.releases.conduct(), name=f"{self.name}: releases"),
                    tasks.create_task(parts.improver.run(), name=f"{self.name}: improve"),
                ]
                await self._draining.wait()
                await runner.drain(self._drain_timeout)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LAST_EPISODES):
                        await self._episodes.join()
                for chore in chores:
                    chore.cancel()
        finally:
            self._runner = None
            if self._parts is not None:
                self._parts.releases.detach()
            await runner.abandon()

    async def _assembled(self) -> "_Parts":
        """Keeper, releases, optimizer and watch: made once, so that a decision taken while the runner restarts is not forgotten."""
        services = self._services
        state = await known_or_first(self.spec, self._source, services.store, services.clock, services.bus.publish)
        if self._parts is None:
            keeper = Keeper(self.spec, state, services.store, services.bus, services.clock, self._random)
            releases = Releases(keeper, self._release_ended, lease=services.lease)
            services.ledger.limit(self.name, budget_limits(self.spec))
            models = self.spec.optimizer.models or services.models
            improver = Improver(keeper, releases, OptimizerProcess(), services.llm, models, services.seed)
            self._parts = _Parts(keeper, releases, improver, Watcher(keeper, releases, improver, watch_settings(self.spec)))
        return self._parts

    async def _take_over(self, runner: LocalRunner, parts: "_Parts") -> None:
        """Serve the last committed stable revision at once; then see what was going on."""
        keeper, releases = parts.keeper, parts.releases
        async with keeper.deciding:
            if keeper.state.mode is not self.spec.agent.mode:
                await keeper.commit(mode=self.spec.agent.mode)
            await runner.cancel_pairs()
            if keeper.state.source != self._source.digest:
                await self._take_up_source(runner, keeper)
            stable = await keeper.store.revision(keeper.state.stable)
            parameters = await runner.load(self._source, stable)
            if runner.paused or keeper.state.paused:  # before it is routed: a route begins an episode
                await (runner.pause() if keeper.state.paused else runner.resume())
            await runner.route(stable.id)
            trainable = tuple(self._with_rules(parameter) for parameter in parameters if self._is_trainable(parameter.path))
            if trainable != keeper.state.parameters:
                await keeper.commit(parameters=trainable)
            releases.attach(runner, self._source, trainable)
            parts.improver.attach(trainable, runner, self._source)
            await self._end_what_disagrees(keeper)
            unfinished = await keeper.store.releases(self.name, active=True, limit=100)
            releases.restore(tuple(reversed(unfinished)), keeper.state.release)
            needed = {stable.id, releases.current.candidate if releases.current else stable.id}
            for left in set(runner.loaded) - needed:
                await runner.retire(left)  # of a release that the daemon before died at the end of
            kind = "runner.adopted" if runner.adopted else "runner.started"
            await keeper.say(kind, f"the runner serves {stable.id[:10]}", session=runner.session, isolation=runner.isolation.level)
            await parts.watcher.answer()
            if self.spec.optimizer.trigger == "continuous" and not keeper.state.improving:
                await parts.improver.start("the trigger is continuous")

    async def _end_what_disagrees(self, keeper: Keeper) -> None:
        """A canary resumes only where ledger, revision and source agree with it, else it ends inconclusive."""
        if keeper.state.release is None:
            return
        current = await keeper.store.release(keeper.state.release)
        pairs = await keeper.store.pairs(current.id)
        candidate = await keeper.store.revision(current.candidate)
        if machine.agrees(current, pairs) and candidate.source == self._source.digest and current.reference == keeper.state.stable:
            return
        reason = "after a restart ledger, revision and source no longer agree"
        verdict = Verdict(phase=Phase.INCONCLUSIVE, reason=reason, stage="restart")
        ended = machine.conclude(current, verdict, at=keeper.clock.time())
        event = keeper.event("release.inconclusive", reason, release=ended.id, candidate=ended.candidate, pairs=ended.pairs)
        keeper.tell(*await keeper.commit(ended, event, release=None))

    async def _take_up_source(self, runner: LocalRunner, keeper: Keeper) -> None:
        """The author changed the program. One that can't be loaded is not served: the source that was goes on, and the author is told."""
        first = make_revision(self.name, self._source.digest, {})
        try:
            parameters = await runner.load(self._source, first)
        except SandboxError as error:
            text = f"the new source can't be loaded, the one before goes on: {error}"
            await keeper.say(
                "agent.source_rejected", text, source=self._source.digest, traceback=getattr(error, "traceback", "")[-DETAIL_LIMIT:]
            )
            self._trouble = text
            self._source = await keeper.store.source(keeper.state.source)
        else:
            revision = await take_up(keeper, self._source, parameters)
            if revision.id != first.id:
                await runner.retire(first.id)

    def _is_trainable(self, path: str) -> bool:
        rules = self.spec.parameters.get(path)
        return rules is None or rules.trainable

    def _with_rules(self, parameter: Parameter) -> Parameter:
        """`agent.toml`'s rules laid over what the program declares."""
        rules = self.spec.parameters.get(parameter.path)
        return parameter if rules is None else rules.over(parameter)

    def drain(self, timeout: float) -> None:
        """Ask `run` to end: episode finished, plant in its safe state, runner gone. For SIGTERM and for an agent that is taken away."""
        self._drain_timeout = timeout
        self._draining.set()

    async def _dismiss(self, timeout: float) -> None:  # noqa: ASYNC109 - as drain
        """End a runner that is there though nobody is connected to it."""
        services = self._services
        with contextlib.suppress(AgentdError, OSError):
            await LocalRunner.dismiss(self.name, services.state_directory, services.epoch, services.clock, timeout=timeout)

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
                    releases.canary.devices = {device.id: device for device in devices if device.status == "ready"}
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
        if event.kind == "runner.pair_dropped":
            async with self._working().keeper.deciding:
                await releases.lose(str(event.data.get("pair", "")), event.message)

    # --- learning from episodes --------------------------------------------------------------------------------------

    async def _learn(self, judge: Judge, runner: LocalRunner) -> None:
        while True:
            episode = await self._episodes.get()
            if not await self._is_known(episode):
                feedback = await judge.judge(episode)
                await self._take_in(episode, feedback)
                self._taken.append(episode.id)
            await runner.acknowledge(episode.id)
            self._episodes.task_done()

    async def _is_known(self, episode: Episode) -> bool:
        """Whether it was taken in before and only the acknowledgement was lost: evidence and watch must not see it twice."""
        if episode.id in self._taken:
            return True
        if self._resent <= 0:
            return False
        self._resent -= 1
        with contextlib.suppress(NotFound):
            await self._services.store.summary(episode.id)
            return True
        return False

    async def _take_in(self, episode: Episode, feedback: Feedback) -> None:
        """One finished episode: kept, shown, and weighed."""
        parts = self._working()
        keeper = parts.keeper
        await keeper.store.add_episode(episode, feedback, regime=keeper.state.regime)
        self._counts += 1
        self._services.metrics.episode(episode, feedback)
        if episode.role is Role.STABLE and episode.revision == keeper.state.stable and not feedback.failed:
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
        if episode.outcome is not Outcome.LOST:
            if feedback.failed not in {"", self._feedback_failure}:  # a judge that fails at every episode is told of once
                await keeper.say("feedback.failed", feedback.failed, episode=episode.id)
            self._feedback_failure = feedback.failed
        async with keeper.deciding:
            await parts.releases.observe(episode, feedback)
            if self._is_watched(keeper, episode, feedback):
                await parts.watcher.observe(feedback.normalised)
        if keeper.state.improving:
            parts.improver.wake()

    def _is_watched(self, keeper: Keeper, episode: Episode, feedback: Feedback) -> bool:
        return (
            episode.revision == keeper.state.stable
            and episode.role is Role.STABLE
            and episode.purpose is not Purpose.RECOVERY
            and episode.outcome is not Outcome.LOST
            and not feedback.failed
        )

    async def _release_ended(self, release: Release) -> None:
        """What follows from a release's end beyond its routes. The caller holds `deciding`."""
        parts = self._working()
        await parts.watcher.release_ended(release)
        await parts.improver.release_ended(release)

    def _working(self) -> "_Parts":
        if self._parts is None:
            raise RunnerError(f"agent {self.name} is not up: {self._problem}")
        return self._parts

    # --- what operators ask for --------------------------------------------------------------------------------------

    @property
    def releases(self) -> Releases:
        """The releases, for the verbs that concern one. Raises RunnerError before the agent was up for the first time."""
        return self._working().releases

    async def submit(self, values: Mapping[str, Value], *, who: str, note: str = "") -> Release:
        """An operator's proposal: it goes the way of every other one. Raises ReleaseError, CodecError."""
        parts = self._working()
        keeper = parts.keeper
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
        return await parts.releases.propose(proposal)

    async def retry(self, release: str, *, who: str) -> Release:
        """Begin the release of an ended release's proposal again. Raises NotFound, ReleaseError."""
        keeper = self._working().keeper
        ended = await keeper.store.release(release)
        if ended.agent != self.name:
            raise NotFound("release", release)
        if ended.ended_at is None:
            raise ReleaseError(f"release {ended.id} has not ended")
        proposal = await keeper.store.proposal(ended.proposal)
        return await self.submit(proposal.values, who=who, note=f"retry of {ended.id}")

    async def propose(self, *, who: str) -> None:
        """Ask the optimizer for a proposal now."""
        parts = self._working()
        async with parts.keeper.deciding:
            await parts.improver.start(f"asked for by {who}", who=who)

    async def set_desired(self, revision: str, *, who: str, reason: str = "") -> None:
        """Serve this revision from the next episode on: rollback or pin. Raises NotFound, ReleaseError."""
        parts = self._working()
        keeper = parts.keeper
        async with keeper.deciding:
            known = await keeper.store.revision(revision)
            if known.agent != self.name:
                raise NotFound("revision", revision)
            if known.source != keeper.state.source:
                raise ReleaseError(f"revision {known.id[:10]} belongs to another version of the source")
            await parts.releases.switch(known.id, who=who, reason=reason)

    async def pause(self, *, who: str) -> None:
        """Start no more episodes; the plant stays in its safe state."""
        await self._set_paused(paused=True, who=who)

    async def resume(self, *, who: str) -> None:
        """Go on after `pause`."""
        await self._set_paused(paused=False, who=who)

    async def _set_paused(self, *, paused: bool, who: str) -> None:
        keeper = self._working().keeper
        async with keeper.deciding:
            word = "paused" if paused else "resumed"
            events = await keeper.commit(keeper.event(f"agent.{word}", f"{word} by {who}", who=who), paused=paused)
            runner = self._runner
            if runner is not None:
                with contextlib.suppress(RunnerError):  # one that is lost meanwhile is told when it is taken over again
                    await (runner.pause() if paused else runner.resume())
            keeper.tell(*events)

    def status(self) -> AgentStatus:
        """What an operator sees at a glance."""
        parts, runner = self._parts, self._runner
        state = parts.keeper.state if parts else None
        health = "failed" if runner is None else "ok"
        if runner is not None and state is not None and (state.improving or (state.watch and state.watch.alarmed)):
            health = "degraded"
        if health == "ok" and self._trouble:
            health = "degraded"
        return AgentStatus(
            name=self.name,
            mode=self.spec.agent.mode,
            health=health,
            problem=self._problem or self._trouble,
            state=state,
            release=parts.releases.current if parts else None,
            devices=dict(self._devices),
            isolation=runner.isolation.level if runner else 0,
            runner_session=runner.session if runner else "",
            runner_pid=runner.pid if runner else None,
            runner_adopted=runner.adopted if runner else False,
            episodes=self._counts,
            recent=tuple(self._recent),
            optimizer=parts.improver.status if parts else "idle",
        )
