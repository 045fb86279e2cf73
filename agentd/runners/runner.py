"""The runner: environment, workers, device loops and the way to the daemon, put together."""

import asyncio
import collections
import contextlib
import os
import random
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from agentd.clock import Clock
from agentd.environments import Device, Environment, Joined, Left, Linked, Rival, make_environment
from agentd.environments.http import HttpEnvironment, HttpPlant
from agentd.errors import RunnerError
from agentd.runners import messages
from agentd.runners.control import Control
from agentd.runners.link import DaemonLink
from agentd.runners.loop import DeviceLoop
from agentd.runners.messages import DeviceState, Done, Setup, ToRunner, Welcome
from agentd.runners.pace import PacedDevice, Streaming
from agentd.runners.paths import RunnerPaths
from agentd.runners.realtime import go_first
from agentd.runners.replay import screen
from agentd.runners.spool import Spool
from agentd.runners.workers import Workers
from agentd.sandbox import Limits
from agentd.spec import AgentSpec

REPORT_INTERVAL = 1.0
DRAIN_TIMEOUT = 10.0
HANDOVER_TIMEOUT = 2.0
MAX_GONE = 1000
"""How many devices that are gone are remembered."""
_CUT_TIMEOUT = 6.0


class Runner:
    """One agent's runner. What it needs to go on without a daemon (spec, sources, revisions) is in its memory."""

    def __init__(self, setup: Setup, paths: RunnerPaths, *, session: str, clock: Clock, generator: random.Random) -> None:
        self._setup = setup
        self._paths = paths
        self._session = session
        self._clock = clock
        self._random = generator
        self._spec = AgentSpec.model_validate_json(setup.spec)
        self._spool = Spool()
        self._stopped = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._states: dict[str, DeviceState] = {}
        self._unreachable = ""
        self._counted: collections.Counter[str] = collections.Counter()
        self._handlers: dict[type, Callable[[Any], Awaitable[Done | None]]] = {
            messages.Load: self._load,
            messages.Screen: self._screen,
            messages.Ask: self._ask,
            messages.Route: self._route,
            messages.QueuePair: self._queue_pair,
            messages.Renew: self._renew,
            messages.CancelPairs: self._cancel_pairs,
            messages.Retire: self._retire,
            messages.Pause: self._pause,
            messages.Resume: self._pause,
            messages.Drain: lambda message: self.drain(message.timeout),
            messages.LeaseModels: self._lease_models,
            messages.Acknowledge: self._acknowledge,
        }
        self._environment: Environment
        self._workers: Workers
        self._control: Control
        self._link: DaemonLink
        self._group: asyncio.TaskGroup

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Control until drained. Raises IsolationError, PlantError or RunnerError when it can't even begin."""
        self._environment = make_environment(
            self._spec, session=self._session, broker=self._setup.broker, clock=self._clock, generator=self._random
        )
        self._workers = Workers(
            Limits.from_spec(self._spec.sandbox, self._spec.models),
            min_isolation=self._spec.sandbox.min_isolation,
            scope=self._spec.sandbox.scope,
            on_log=self._spool.log,
            on_event=lambda kind, message, data: self._control.happened(kind, message, **data),
            on_ready=self._worker_ready,
            clock=self._clock,
            generator=self._random,
        )
        self._link = DaemonLink(self._paths.socket, self._spool, welcome=self._welcome, handle=self._handle)
        async with self._workers, self._environment, asyncio.TaskGroup() as self._group:
            self._control = Control(
                self._spec,
                session=self._session,
                environment=self._environment,
                workers=self._workers,
                spool=self._spool,
                group=self._group,
                clock=self._clock,
                generator=self._random,
                seed=self._setup.seed,
            )
            async with self._link:
                await self._environment.announce("ready")
                chores = [
                    self._group.create_task(self._follow_devices(), name="devices"),
                    self._group.create_task(self._report(), name="report"),
                    self._group.create_task(self._watch_lease(), name="lease"),
                ]
                self._go_first()
                on_ready()
                self._control.garbage.take_over()
                await self._stopped.wait()
                for chore in chores:
                    chore.cancel()
                await self._control.brake.aclose()
                if self._control.models is not None:
                    await self._control.models.aclose()

    def _go_first(self) -> None:
        if self._control.mqtt is not None and self._control.mqtt.realtime:
            problem = go_first()
            if not problem:
                self._workers.prefer()
            sys.stderr.write(f"{problem or 'SCHED_FIFO: the runner goes first'}\n")
            self._control.happened("runner.realtime", problem or "the runner goes first (SCHED_FIFO)", allowed=not problem)

    def _worker_ready(self) -> None:
        self._control.changed()

    # --- devices ------------------------------------------------------------------------------------------------------

    async def _follow_devices(self) -> None:
        async for change in self._environment.changes():
            match change:
                case Joined(device=device):
                    self._states[device.id] = DeviceState(
                        id=device.id, status="ready", seedable=device.seedable, labels=dict(device.labels)
                    )
                    before = self._loops.get(device.id)
                    self._loops[device.id] = loop = self._group.create_task(self._loop(device, before), name=f"loop-{device.id}")
                    loop.add_done_callback(self._forget_loop)
                    self._control.happened("device.joined", f"device {device.id} joined", device=device.id)
                    self._tell_devices()
                case Left(device=name, reason=reason):
                    status = "stopped" if reason == "stopped" else "lost"
                    known = self._states[name]
                    self._states[name] = DeviceState(id=name, status=status, seedable=known.seedable, labels=known.labels)
                    self._control.happened("device.left", f"device {name} left: {reason}", device=name, reason=reason)
                    self._control.drop_pairs(self._control.pairs.drop(name), f"device {name} left: {reason}")
                    self._tell_devices()
                case Rival(session=session):
                    words = f"another agentd (session {session[:40]}) drives the same devices: one of them needs another prefix or broker"
                    self._control.happened("broker.rival", words, session=session[:40])
                case Linked(connected=True):
                    self._unreachable = ""
                    self._control.happened("broker.connected", "connected to the broker")
                    self._tell_devices()
                case Linked(reason=reason):
                    self._unreachable = f"the broker is out of reach: {reason}"
                    self._control.happened("broker.disconnected", self._unreachable, reason=reason)
                    self._tell_devices()

    def _paced(self, device: Device) -> Device:
        """The device as it is, or at a fixed rate."""
        mqtt = self._control.mqtt
        if mqtt is None or mqtt.rate_hz is None or not isinstance(device, Streaming):
            return device
        return PacedDevice(
            device,
            rate=mqtt.rate_hz,
            dead_man=mqtt.dead_man_ms / 1000.0 if mqtt.dead_man_ms is not None else None,
            timeout=mqtt.observation_timeout,
            clock=self._clock,
            count=self._spool.count,
        )

    def _forget_loop(self, loop: "asyncio.Task[None]") -> None:
        self._loops = {name: running for name, running in self._loops.items() if running is not loop}

    def _tell_devices(self) -> None:
        gone = [name for name, state in self._states.items() if state.status != "ready"]
        for name in gone[: max(0, len(gone) - MAX_GONE)]:
            del self._states[name]  # a broker that anybody may write to must not fill the memory with names
        self._spool.tell(messages.DevicesChanged(devices=tuple(self._states.values()), unreachable=self._unreachable))

    async def _loop(self, device: Device, before: "asyncio.Task[None] | None") -> None:
        if before is not None:
            await asyncio.wait({before})  # the same device in an earlier life
        while True:
            try:
                await self._drive(device)
            except Exception:  # noqa: BLE001 - whatever is wrong with us, this plant and the others go on being controlled
                traceback.print_exc()
                self._control.happened("runner.fault", traceback.format_exc(limit=-3), device=device.id)
                await asyncio.sleep(REPORT_INTERVAL)
            else:
                return

    async def _drive(self, device: Device) -> None:
        if not isinstance(device, HttpPlant):
            await DeviceLoop(self._paced(device), self._control).run()
            return
        async with asyncio.TaskGroup() as seats:
            for seat in device.seats:
                seats.create_task(DeviceLoop(seat, self._control, plant=device.id).run(), name=f"seat-{seat.id}")

    # --- chores -------------------------------------------------------------------------------------------------------

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL)
            self._count_environment()
            self._spool.report()
            self._control.garbage.answered()  # where no plant asks for actions, garbage comes all the same

    def _count_environment(self) -> None:
        counters = self._environment.counters
        named = {"messages": counters.messages, "dropped": counters.dropped, "safe_actions": counters.safe_actions}
        for kind, counter in named.items():
            for label, total in counter.items():
                name = f"{kind}.{label}"
                if total > self._counted[name]:
                    self._spool.count(name, total - self._counted[name])
                    self._counted[name] = total

    async def _watch_lease(self) -> None:
        """When the daemon no longer renews it, the pairs are over: stable only, from the next boundary on."""
        pairs = self._control.pairs
        while True:
            change = self._control.change
            if pairs.pending and not pairs.valid:
                dropped = pairs.drop()
                names = [plan.id for plan in dropped]
                self._control.happened("runner.lease_expired", f"the lease ran out: {len(dropped)} pairs are dropped", pairs=names)
                self._control.drop_pairs(dropped, "the lease ran out")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pairs.remaining + 0.001 if pairs.pending else None):
                    await change.wait()

    # --- the daemon ---------------------------------------------------------------------------------------------------

    def _welcome(self, hello: messages.Hello) -> Welcome:
        return Welcome(
            request=hello.request,
            session=self._session,
            pid=os.getpid(),
            isolation=self._workers.isolation,
            fingerprint=self._setup.fingerprint,
            stable=self._control.stable,
            loaded=self._workers.loaded,
            devices=tuple(self._states.values()),
            unreachable=self._unreachable,
            paused=self._control.paused,
            spooled=len(self._spool),
        )

    async def _handle(self, message: ToRunner) -> Done:
        handler = self._handlers.get(type(message))
        if handler is None:
            raise RunnerError(f"{type(message).__name__} is out of place")
        return await handler(message) or Done(request=message.request)

    async def _load(self, message: messages.Load) -> Done:
        brake = self._control.brake
        await (brake.fit if self._control.stable is None else brake.check)(message.source)  # what brakes is of the source that serves
        return Done(request=message.request, parameters=await self._workers.load(message.source, message.revision))

    async def _screen(self, message: messages.Screen) -> Done:
        worker = self._workers.get(self._known(message.revision))
        if worker is None:
            raise RunnerError(f"the worker of revision {message.revision[:10]} is not ready")
        control = self._control
        report = await screen(
            worker, control.envelope, message.episodes, self._clock, deadline=control.deadline, allowed_misses=control.allowed_misses
        )
        return Done(request=message.request, report=report)

    async def _ask(self, message: messages.Ask) -> Done:
        if not isinstance(self._environment, HttpEnvironment):
            raise RunnerError("this agent is not served over HTTP")
        answered = await self._environment.ask(message.observation, client=message.client, instruction=message.instruction)
        return Done(request=message.request, answered=answered)

    async def _route(self, message: messages.Route) -> None:
        source = self._workers.source(self._known(message.revision))
        if source is not None:
            await self._control.brake.fit(source)  # first: where that can't be done, what serves goes on, with the brake that it has
        self._control.route(self._known(message.revision))

    async def _queue_pair(self, message: messages.QueuePair) -> None:
        plan = message.plan
        self._known(plan.candidate)
        self._known(plan.reference)
        state = self._states.get(plan.device)
        self._control.pairs.renew(message.lease)
        if state is None or state.status != "ready":
            self._control.drop_pairs((plan,), f"there is no device {plan.device}")
        else:
            self._control.pairs.add(plan)
        self._control.changed()

    async def _renew(self, message: messages.Renew) -> None:
        self._control.pairs.renew(message.lease)
        self._control.changed()

    async def _cancel_pairs(self, message: messages.CancelPairs) -> Done:
        dropped = self._control.pairs.drop(message.device)
        return Done(request=message.request, dropped_pairs=tuple(plan.id for plan in dropped))

    async def _retire(self, message: messages.Retire) -> None:
        if message.revision == self._control.stable:
            raise RunnerError("the stable revision can't be retired")
        await self._workers.retire(message.revision)
        self._control.changed()

    async def _pause(self, message: messages.Pause | messages.Resume) -> None:
        self._control.paused = isinstance(message, messages.Pause)
        self._control.resumed += not self._control.paused
        self._control.changed()
        await self._environment.announce("paused" if self._control.paused else "ready")

    async def _lease_models(self, message: messages.LeaseModels) -> Done:
        models = self._control.models
        if models is None:
            raise RunnerError("this agent asks no models")
        report = await models.renew(message)
        self._control.changed()
        return Done(request=message.request, models=report)

    async def _acknowledge(self, message: messages.Acknowledge) -> None:
        self._spool.acknowledge(message.episode)

    def _known(self, revision: str) -> str:
        if revision not in self._workers.loaded:
            raise RunnerError(f"revision {revision[:10]} is not loaded")
        return revision

    # --- the end ------------------------------------------------------------------------------------------------------

    async def drain(self, timeout: float = DRAIN_TIMEOUT) -> None:  # noqa: ASYNC109 - the plants' time, not this call's
        """Finish the episodes within `timeout` seconds, or cut them; safe action, `stopped`, and the end of `run`."""
        if self._draining is None:
            self._draining = self._group.create_task(self._drain(timeout), name="drain")
        await asyncio.shield(self._draining)

    def drain_soon(self) -> None:
        """`drain`, for a signal handler."""
        if self._draining is None:
            self._draining = self._group.create_task(self._drain(DRAIN_TIMEOUT), name="drain")

    async def _drain(self, timeout: float) -> None:  # noqa: ASYNC109 - as drain
        control = self._control
        control.draining = True
        control.changed()
        if self._loops:
            _, running = await asyncio.wait(self._loops.values(), timeout=timeout)
            if running:
                control.cut = True
                _, running = await asyncio.wait(running, timeout=_CUT_TIMEOUT)
                for loop in running:
                    sys.stderr.write(f"{loop.get_name()} did not end and is cancelled\n")
                    loop.cancel()
        await self._environment.announce("stopped")
        self._count_environment()
        self._spool.report()
        if self._link.connected:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HANDOVER_TIMEOUT):
                    await self._spool.emptied()
        self._stopped.set()
