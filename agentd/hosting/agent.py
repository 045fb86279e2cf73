"""One hosted agent: its runner's episodes in; feedback, evidence, alarms, proposals and routes out."""

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from random import Random

import structlog

from agentd.api.ports import Acted, AgentStatus
from agentd.errors import AgentdError, RequestError, RunnerError, SandboxError, StoreUnavailable, leaves
from agentd.hosting import telling
from agentd.hosting.holds import Holds
from agentd.hosting.improver import Improver, budget_limits
from agentd.hosting.intake import Intake
from agentd.hosting.judge import Judge
from agentd.hosting.keeper import Keeper
from agentd.hosting.models import Models, budgets
from agentd.hosting.releases import Releases
from agentd.hosting.services import Services
from agentd.hosting.sources import known_or_first, take_up
from agentd.hosting.verbs import Verbs
from agentd.hosting.watching import Watcher
from agentd.hosting.windows import Windows
from agentd.opto.process import OptimizerProcess
from agentd.records import Event, Parameter, Phase, Release, ReleaseKind, Source, Value, Verdict, make_revision
from agentd.release import machine
from agentd.runners.local import Counted, DevicesChanged, Finished, Happened, LocalRunner, Log, Lost
from agentd.spec import AgentSpec, EnvironmentKind, metric_record, parse_duration, watch_settings

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

STORE_DELAY = 2.0
"""Seconds until a store that could not be written is tried again: that costs nothing, and nothing is learned before it works."""
LAST_EPISODES = 2.0
"""Seconds for judging what a runner handed over at its end."""
ASK_MARGIN = 30.0
"""Seconds beyond its own limits after which a runner that hasn't answered a request is as good as dead."""
DETAIL_LIMIT = 4000
STARTING = "starting"
RESTART_DELAYS = (0.2, 1.0, 5.0, 15.0, 60.0)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What an agent consists of beside its runner."""

    keeper: Keeper
    releases: Releases
    improver: Improver
    watcher: Watcher
    intake: Intake
    holds: Holds
    verbs: Verbs


class HostedAgent:
    """The life of one agent. Nothing that happens to it reaches another one: `run` outlives every error of its own agent."""

    def __init__(self, spec: AgentSpec, source: Source, services: Services) -> None:
        self.name = spec.agent.name
        self.spec = spec
        self._folder = source
        """What the agent's folder holds."""
        self._source = source
        """What serves: another one while the folder's was rolled back from, or can't be loaded."""
        self._unloadable = self._load_failure = ""
        self._services = services
        self._metric = metric_record(spec.metrics[0])
        self._random = Random(f"{services.seed}/{self.name}")  # noqa: S311 - draws the order of pairs; secrecy is not needed
        self._parts: _Parts | None = None
        self._runner: LocalRunner | None = None
        self._models: Models | None = None
        self._devices: dict[str, str] = {}
        self._unreachable = ""
        """Why none of them can be reached."""
        self._problem = STARTING
        self._trouble = ""
        """What is wrong though the agent serves."""
        self._store_failed = False
        self._drain_timeout = 0.0
        self._draining = asyncio.Event()
        self._leave = asyncio.Event()
        """Set when what serves has to be set up anew: the agent is drained, or its source is another one."""
        self._served = False
        self.logs: deque[str] = deque(maxlen=1000)

    # --- life --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Host the agent until `drain`; after an error of its runner or worker, again, with growing pauses."""
        attempt = 0
        while not self._draining.is_set():
            started = self._services.clock.monotonic()
            try:
                await self._host()
                continue
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
        parts = await self._assembled()
        runner = await LocalRunner.adopt_or_start(
            spec=self.spec,
            state_directory=services.state_directory,
            epoch=services.epoch,
            broker=services.broker,
            seed=services.seed,
            clock=services.clock,
            forkserver=services.forkserver,
        )
        self._runner = runner
        try:
            parts.intake.attach(runner)
            models = Models(self.spec, services, parts.keeper, runner) if self.spec.models is not None else None
            self._models = models
            if models is not None:
                await models.renew()  # before anything is routed: the first step may ask already
            await self._take_over(runner, parts)
            async with Judge(self.spec, self._source, self._metric, services.zygotes) as judge, asyncio.TaskGroup() as tasks:
                chores = [
                    tasks.create_task(self._listen(runner, parts), name=f"{self.name}: listen"),
                    tasks.create_task(parts.intake.run(judge, runner), name=f"{self.name}: learn"),
                    tasks.create_task(parts.intake.windows.run(), name=f"{self.name}: windows"),
                    tasks.create_task(parts.releases.conduct(), name=f"{self.name}: releases"),
                    tasks.create_task(parts.improver.run(), name=f"{self.name}: improve"),
                ]
                if models is not None:
                    chores.append(tasks.create_task(models.run(), name=f"{self.name}: models"))
                await self._leave.wait()
                if self._draining.is_set():
                    await runner.drain(self._drain_timeout)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LAST_EPISODES):
                            await parts.intake.join()
                for chore in chores:
                    chore.cancel()
        finally:
            self._runner = self._models = None
            parts.releases.detach()
            parts.holds.detach()
            await runner.abandon()

    async def _assembled(self) -> "_Parts":
        """Keeper, releases, optimizer and watch: made once, so that a decision taken while the runner restarts is not forgotten."""
        services = self._services
        state = await known_or_first(self.spec, self._folder, services.store, services.clock, services.bus.publish)
        if self._parts is None:
            keeper = Keeper(self.spec, state, services.store, services.bus, services.clock, self._random, services.freeze)
            releases = Releases(keeper, self._release_ended, lease=services.lease)
            services.ledger.limit(self.name, budget_limits(self.spec))
            models = self.spec.optimizer.models or services.models
            improver = Improver(keeper, releases, OptimizerProcess(), services.llm, models, services.seed)
            watcher = Watcher(keeper, releases, improver, watch_settings(self.spec))
            self._parts = _Parts(
                keeper,
                releases,
                improver,
                watcher,
                Intake(keeper, releases, watcher, improver, services.metrics),
                Holds(keeper, releases),
                Verbs(keeper, releases, improver, self._follow_source),
            )
            await self._parts.intake.recall()
        return self._parts

    async def _take_over(self, runner: LocalRunner, parts: "_Parts") -> None:
        """Serve the last committed stable revision at once; then see what was going on."""
        keeper, releases = parts.keeper, parts.releases
        async with keeper.deciding:
            self._leave.clear()
            if self._draining.is_set():
                self._leave.set()
            if keeper.state.mode is not self.spec.agent.mode:
                await keeper.commit(mode=self.spec.agent.mode)
            await runner.cancel_pairs()
            await self._choose_source(runner, keeper)
            stable = await keeper.store.revision(keeper.state.stable)
            trainable = self._trainable(await runner.load(self._source, stable))
            await parts.holds.attach(runner)  # before it is routed: a route begins an episode
            await runner.route(stable.id)
            if trainable != keeper.state.parameters:
                await keeper.commit(parameters=trainable)
            releases.attach(runner, self._source, trainable)
            parts.improver.attach(trainable, runner, self._source)
            await self._end_what_disagrees(keeper)
            unfinished = await keeper.store.releases(self.name, active=True, limit=100)
            releases.restore(tuple(reversed(unfinished)), keeper.state.release)
            await releases.recall()
            await parts.intake.windows.restore()
            needed = {stable.id, releases.current.candidate if releases.current else stable.id}
            for left in set(runner.loaded) - needed:
                await runner.retire(left)  # of a release that the daemon before died at the end of
            self._served, self._problem = True, ""
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
        same = candidate.source == self._source.digest or current.kind is ReleaseKind.PROBE
        if machine.agrees(current, pairs) and same and current.reference == keeper.state.stable:
            return
        reason = "after a restart ledger, revision and source no longer agree"
        verdict = Verdict(phase=Phase.INCONCLUSIVE, reason=reason, stage="restart")
        ended = machine.conclude(current, verdict, at=keeper.clock.time())
        keeper.tell(*await keeper.commit(ended, telling.changed(keeper, ended), release=None))

    async def _choose_source(self, runner: LocalRunner, keeper: Keeper) -> None:
        """The folder's source, with what carries over, unless it can't be loaded or was rolled back from: then the one before goes on."""
        folder, state = self._folder, keeper.state
        self._trouble = ""
        if folder.digest not in {state.source, state.passed_over, self._unloadable}:
            await self._take_up_source(runner, keeper)
        if folder.digest == keeper.state.source:
            self._source = folder
            return
        self._source = await keeper.store.source(keeper.state.source)
        if folder.digest == keeper.state.passed_over:
            revisions = await keeper.store.revisions(self.name, limit=1000)
            first = next((revision.id[:10] for revision in reversed(revisions) if revision.source == folder.digest), "")
            back = f"change it, or `agentd pin {self.name} {first}`"
            self._trouble = f"an earlier source serves: the one in the folder was rolled back from; {back}"
        else:
            self._trouble = f"the new source can't be loaded, the one before goes on: {self._load_failure}"

    async def _take_up_source(self, runner: LocalRunner, keeper: Keeper) -> None:
        """The author changed the program. One that can't be loaded is not served, and the author is told."""
        folder = self._folder
        first = make_revision(self.name, folder.digest, {})
        try:
            parameters = await runner.load(folder, first)
        except SandboxError as error:
            self._unloadable, self._load_failure = folder.digest, str(error)
            text = f"the new source can't be loaded, the one before goes on: {error}"
            await keeper.say("agent.source_rejected", text, source=folder.digest, traceback=getattr(error, "traceback", "")[-DETAIL_LIMIT:])
        else:
            revision = await take_up(keeper, folder, self._trainable(parameters))
            if revision.id != first.id:
                await runner.retire(first.id)

    def _follow_source(self) -> None:
        """Set everything up anew if another source than this life's was made the one that serves."""
        if self._parts is not None and self._parts.keeper.state.source != self._source.digest:
            self._problem = STARTING
            self._leave.set()

    def _trainable(self, parameters: tuple[Parameter, ...]) -> tuple[Parameter, ...]:
        """The trainable ones, with `agent.toml`'s rules laid over what the program declares."""
        return tuple(self._with_rules(parameter) for parameter in parameters if self._is_trainable(parameter.path))

    def _is_trainable(self, path: str) -> bool:
        rules = self.spec.parameters.get(path)
        return rules is None or rules.trainable

    def _with_rules(self, parameter: Parameter) -> Parameter:
        rules = self.spec.parameters.get(parameter.path)
        return parameter if rules is None else rules.over(parameter)

    def drain(self, timeout: float) -> None:
        """Ask `run` to end: episode finished, plant in its safe state, runner gone. For SIGTERM and for an agent that is taken away."""
        self._drain_timeout = timeout
        self._draining.set()
        self._leave.set()

    async def _dismiss(self, timeout: float) -> None:  # noqa: ASYNC109 - as drain
        """End a runner that is there though nobody is connected to it."""
        services = self._services
        with contextlib.suppress(AgentdError, OSError):
            await LocalRunner.dismiss(self.name, services.state_directory, services.epoch, services.clock, timeout=timeout)

    # --- what the runner tells ---------------------------------------------------------------------------------------

    async def _listen(self, runner: LocalRunner, parts: "_Parts") -> None:
        releases = parts.releases
        while True:
            message = await runner.next()
            match message:
                case Finished(episode=episode):
                    await parts.intake.put(episode)
                case DevicesChanged(devices=devices, unreachable=unreachable):
                    self._unreachable = unreachable
                    self._devices = {device.id: device.status for device in devices}
                    if unreachable:  # what was ready when the broker went; nobody can tell what it is now
                        self._devices = {name: "lost" if status == "ready" else status for name, status in self._devices.items()}
                    releases.canary.devices = {device.id: device for device in devices if device.status == "ready"}
                    parts.intake.ready(releases.canary.devices)
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

    async def _release_ended(self, release: Release) -> None:
        """What follows from a release's end beyond its routes. The caller holds `deciding`."""
        parts = self._working()
        await parts.watcher.release_ended(release)
        await parts.improver.release_ended(release)
        if release.kind is ReleaseKind.PROBE:
            await parts.holds.examine()
        self._follow_source()

    def _working(self) -> "_Parts":
        if self._parts is None or not self._served:
            raise RunnerError(f"agent {self.name} is not up: {self._problem or STARTING}")
        return self._parts

    # --- what clients ask for ------------------------------------------------------------------------------------------

    async def act(self, observation: Value, *, client: str, instruction: str) -> Acted:
        """Have a request answered. Raises RequestError, CodecError; RunnerError while the agent is not up."""
        environment = self.spec.environment
        if environment.kind is not EnvironmentKind.HTTP:
            raise RequestError(f"agent {self.name} takes no requests: its [environment] kind is {environment.kind}, not http")
        parts, runner = self._working(), self._runner
        if runner is None:
            raise RunnerError(f"agent {self.name} is not up: {self._problem}")
        sandbox = self.spec.sandbox
        limit = environment.http.queue_timeout + parse_duration(sandbox.step_timeout) + parse_duration(sandbox.load_timeout) + ASK_MARGIN
        answered = await runner.ask(observation, client=client, instruction=instruction, limit=limit)
        if answered.episode:
            parts.intake.expect(answered.episode)
        return Acted(episode=answered.episode or None, action=answered.action, revision=answered.revision or None, safe=answered.safe)

    @property
    def windows(self) -> Windows | None:
        """Its episodes that are judged later; None before its state is known."""
        return None if self._parts is None else self._parts.intake.windows

    @property
    def is_behind(self) -> bool:
        """Whether clients may know episodes of it that it has not taken in yet."""
        served = self.spec.environment.kind is EnvironmentKind.HTTP
        return served and (self._parts is None or self._runner is None or self._parts.intake.behind)

    # --- what operators ask for --------------------------------------------------------------------------------------

    @property
    def releases(self) -> Releases:
        """The releases, for the verbs that concern one. Raises RunnerError before the agent was up for the first time."""
        return self._working().releases

    @property
    def verbs(self) -> Verbs:
        """What may be asked of it. Raises RunnerError before the agent was up for the first time."""
        return self._working().verbs

    @property
    def holds(self) -> Holds:
        """What holds it back: also of an agent that is not up. Raises RunnerError before its state is known."""
        if self._parts is None:
            raise RunnerError(f"agent {self.name} is not up: {self._problem}")
        return self._parts.holds

    async def follow_freeze(self) -> None:
        """All agents were frozen, or unfrozen: what is in progress stops, or goes on."""
        if self._parts is not None:
            async with self._parts.keeper.deciding:
                await self._parts.releases.halt()
            self._parts.releases.wake()

    def status(self) -> AgentStatus:
        """What an operator sees at a glance."""
        parts, runner = self._parts, self._runner
        state = parts.keeper.shown if parts else None
        down = "starting" if self._problem == STARTING else "stopped" if self._draining.is_set() and not self._problem else "failed"
        up = runner is not None and not self._problem  # with a runner it is still starting until that serves
        health = "ok" if up else down
        if up and state is not None and (state.improving or (state.watch and state.watch.alarmed)):
            health = "degraded"
        failing = self._unreachable or parts.intake.trouble if parts is not None and up else ""
        astray = parts.releases.astray if parts is not None else ""
        trouble = failing or astray or self._trouble or (self._models.trouble if self._models is not None else "")
        if failing:
            health = "failing"
        elif health == "ok" and trouble:
            health = "degraded"
        return AgentStatus(
            name=self.name,
            mode=self.spec.agent.mode,
            health=health,
            problem=self._problem or trouble,
            state=state,
            release=parts.releases.current if parts else None,
            waiting=parts.releases.waiting if parts else "",
            devices=dict(self._devices),
            isolation=runner.isolation.level if runner else 0,
            runner_session=runner.session if runner else "",
            runner_pid=runner.pid if runner else None,
            runner_adopted=runner.adopted if runner else False,
            episodes=parts.intake.count if parts else 0,
            recent=tuple(parts.intake.recent) if parts else (),
            windows=parts.intake.windows.waiting if parts else 0,
            windows_close_at=parts.intake.windows.next_close if parts else None,
            optimizer=parts.improver.told if parts else "idle",
            **budgets(self.spec, self._services),
        )
