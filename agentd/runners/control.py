"""What the device loops of one runner share: routes, pairs, limits, and where finished episodes go."""

import asyncio
import bisect
import traceback
from collections.abc import Awaitable, Iterable
from random import Random
from typing import Any

from agentd.clock import Clock
from agentd.environments import Environment
from agentd.ids import make_id
from agentd.records import Event, PairPlan, Value
from agentd.runners.brake import Brake, ComputedBrake, ConstantBrake
from agentd.runners.envelope import Envelope
from agentd.runners.garbage import GarbageCollector
from agentd.runners.models import Models
from agentd.runners.pairs import Pairs
from agentd.runners.spool import Spool
from agentd.runners.workers import Workers
from agentd.spec import AgentSpec, EnvironmentKind, is_unpaired

STEP_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Upper bounds, in seconds, of the histogram of step durations."""
_BUCKET_NAMES = (*STEP_BUCKETS, "inf")
NO_LAST_STEP = 2**31 - 1
"""`max_steps` of an endless plant, as a number that every device can hold."""

_CROWDED = 0.1
"""Seconds from one episode to the next while the daemon is behind."""


class Control:
    """The state of one runner that its loops look at. Whoever changes it calls `changed`."""

    def __init__(
        self,
        spec: AgentSpec,
        *,
        session: str,
        environment: Environment,
        workers: Workers,
        spool: Spool,
        group: asyncio.TaskGroup,
        clock: Clock,
        generator: Random,
        seed: int | None,
    ) -> None:
        self.agent = spec.agent.name
        self.session = session
        self.environment = environment
        self.workers = workers
        self.spool = spool
        self.clock = clock
        self.garbage = GarbageCollector()
        self.pairs = Pairs(clock)
        self.envelope = Envelope.from_spec(spec, environment.action_space)
        self.safe_action: Value = environment.safe_action
        self._interval = spec.environment.episode_interval
        is_mqtt = spec.environment.kind is EnvironmentKind.MQTT
        self.mqtt = spec.environment.mqtt if is_mqtt else None
        self.episode_ticks = self.mqtt.episode_ticks if self.mqtt is not None else None
        """Ticks of an episode of an endless plant; None: its own end ends it."""
        self.max_steps = spec.environment.max_steps if self.episode_ticks is None else NO_LAST_STEP
        self.awaits_devices = is_unpaired(spec)
        """Only the devices, or clients, begin episodes."""
        self.answers_requests = spec.environment.kind is EnvironmentKind.HTTP
        section = spec.environment.safe_action
        self.latches = section is not None and section.recovery == "latch"
        self.deadline = _policy_deadline(spec)
        """Seconds from an observation within which the policy has to answer; the safe action comes after it."""
        self.brake: Brake = ConstantBrake(self.safe_action)
        if section is not None and section.entrypoint is not None:
            entrypoint = section.entrypoint
            self.brake = ComputedBrake(
                self.safe_action,
                limit=section.deadline_ms / 1000.0,
                envelope=self.envelope,
                start=lambda source: workers.start_brake(source, entrypoint),
                count=spool.count,
                happened=self.happened,
            )
        self.models = Models(spec, spec.models, clock, self.spawn) if spec.models is not None else None
        self.allowed_misses = spec.guardrails.deadline_misses_per_episode
        self.seed = seed if seed is not None else generator.getrandbits(31)
        self.stable: str | None = None
        self.paused = False
        self.resumed = 0
        """How often an operator has said that plants may be driven again."""
        self.draining = False
        self.cut = False
        """Episodes end at the next tick: the time for draining is over."""
        self._loop = asyncio.get_running_loop()
        self._group = group
        self._random = generator
        self._changed = asyncio.Event()
        self._routed_at: float | None = None

    def changed(self) -> None:
        """Wake the loops that wait for a reason to begin an episode."""
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def change(self) -> asyncio.Event:
        """Is set at the next `changed`. Take it before looking at the state, so that no change is missed in between."""
        return self._changed

    @property
    def interval(self) -> float:
        """Seconds of rest before an episode that nobody waits for. A simulation doesn't run away from a daemon that is behind."""
        runs_away = self.mqtt is None and self.spool.crowded
        return max(self._interval, _CROWDED) if runs_away else self._interval

    def route(self, revision: str) -> None:
        """Serve `revision` as the stable one, from each device's next episode on."""
        if revision != self.stable:
            self._routed_at = self.clock.monotonic()
        self.stable = self.workers.stable = revision
        self.changed()

    def new_id(self) -> str:
        """An identifier for an episode."""
        return make_id(self.clock.time(), self._random)

    def spawn(self, work: Awaitable[Any], name: str) -> "asyncio.Task[Any]":
        """Start a task in the runner's group. A fault of ours in it is told, and costs no plant its runner."""

        async def run() -> Any:
            try:
                return await work
            except Exception:  # noqa: BLE001 - as for a device's loop: control goes on
                traceback.print_exc()
                self.happened("runner.fault", traceback.format_exc(limit=-3), task=name)
                return None

        return self._group.create_task(run(), name=name)

    def happened(self, kind: str, message: str, **data: Value) -> None:
        """Tell the daemon of an event."""
        self.spool.happened(Event(kind=kind, at=self.clock.time(), agent=self.agent, who="runner", message=message, data=data))

    def drop_pairs(self, plans: Iterable[PairPlan], reason: str) -> None:
        """Tell the daemon that pairs will not be run."""
        for plan in plans:
            self.happened("runner.pair_dropped", reason, pair=plan.id, release=plan.release, device=plan.device)

    def acted(self, revision: str, role: str, latency: float, safe: str | None) -> None:
        """Count one answered observation, as soon as its plant has got its action."""
        self._loop.call_soon(self._count, revision, role, latency, safe)
        self.garbage.answered()

    def _count(self, revision: str, role: str, latency: float, safe: str | None) -> None:
        self.spool.count(f"step_duration.{role}.{_BUCKET_NAMES[bisect.bisect_left(STEP_BUCKETS, latency)]}")
        self.spool.count(f"step_duration_sum.{role}", latency)
        if safe is not None:
            self.spool.count(f"safe_actions.{safe}")
        elif self._routed_at is not None and revision == self.stable:
            self.spool.count("swaps")
            self.spool.count("swap_seconds", self.clock.monotonic() - self._routed_at)
            self._routed_at = None


def _policy_deadline(spec: AgentSpec) -> float | None:
    """What a policy gets of the time in which an action is due: not what the brake needs after it."""
    if spec.environment.kind is not EnvironmentKind.MQTT:
        return None
    section, safe_action = spec.environment.mqtt, spec.environment.safe_action
    whole = section.deadline_ms if section.rate_hz is None else min(section.deadline_ms, 1000.0 / section.rate_hz)
    kept = safe_action.deadline_ms if safe_action is not None and safe_action.entrypoint is not None else 0.0
    return max(whole - kept, whole / 2) / 1000.0
