"""The episode loop of one device: what it runs next, and an action at every observation, whatever becomes of the policy."""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

from agentd.environments import Begun, Device, Transition
from agentd.errors import PlantError, PlantLost, PolicyError, ProtocolViolation, SandboxError, WorkerTimeout
from agentd.records import Outcome, PairPlan, Purpose, Role, Value
from agentd.runners.control import Control
from agentd.runners.pilot import LateError, Pilot
from agentd.runners.recording import Recording
from agentd.runners.seeds import derive

_PAUSE_AFTER_LOSS = 0.2
_LONGEST_PAUSE = 5.0
_WORKER_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the plant gets at one tick. `safe` is why it is not the policy's action; `fault` ends the episode as aborted."""

    action: Value
    safe: str | None = None
    fault: bool = False


class DeviceLoop:
    """Runs episodes on one device, one after the other, until it is gone or the runner drains."""

    def __init__(self, device: Device, control: Control) -> None:
        self._device = device
        self._control = control
        self._counter = 0
        self._losses = 0
        self._previous: Value | None = None
        self._latched = False
        self._ends: dict[str, asyncio.Task[Any]] = {}
        """By revision, the end of its last episode here: a worker begins the next one after it."""

    async def run(self) -> None:
        """Run episodes until the device is gone or the runner drains."""
        control = self._control
        while not control.draining:
            try:
                begun = await self._wait_for_work()
            except PlantLost:
                break
            if begun is not None:
                await self._unsolicited(begun)
            else:
                await self._begin_next()
        if self._ends:
            await asyncio.wait(self._ends.values())

    async def _begin_next(self) -> None:
        control = self._control
        if control.draining or control.paused:
            return
        plan = control.pairs.take(self._device.id)
        if plan is not None:
            await self._pair(plan)
        elif self._ready():
            await self._normal()

    def _ready(self) -> bool:
        stable = self._control.stable
        return stable is not None and self._control.workers.get(stable) is not None

    async def _wait_for_work(self) -> Begun | None:
        """Until the device has begun an episode by itself (which is returned), or one may be begun."""
        control = self._control
        begun = asyncio.create_task(self._device.begun(), name=f"begun-{self._device.id}")
        rest = max(control.interval, min(_LONGEST_PAUSE, _PAUSE_AFTER_LOSS * 2.0 ** min(self._losses, 8)) if self._losses else 0.0)
        rested_at = control.clock.monotonic() + rest
        try:
            await asyncio.sleep(0)  # what the device began already is seen first
            while not begun.done() and not control.draining:
                change = control.change
                missing = rested_at - control.clock.monotonic()
                hurried = not self._losses and control.pairs.waiting(self._device.id)
                if not control.paused and self._ready() and (missing <= 0 or hurried):
                    return None
                changed = asyncio.create_task(change.wait(), name=f"change-{self._device.id}")
                try:
                    await asyncio.wait({begun, changed}, timeout=missing if missing > 0 else None, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
            return begun.result() if begun.done() else None
        finally:
            begun.cancel()

    # --- the kinds of episodes ----------------------------------------------------------------------------------------

    async def _normal(self) -> None:
        self._counter += 1
        seed = derive(self._control.seed, self._device.id, self._counter) if self._device.seedable else None
        await self._commanded(self._recording(self._control.stable or "", Role.STABLE, Purpose.NORMAL, seed=seed))

    async def _pair(self, plan: PairPlan) -> None:
        """Both episodes of a pair, in the order of the plan. A plant that is lost in the first makes the second worthless."""
        pairs = self._control.pairs
        try:
            for role in plan.order:
                if not pairs.holds(plan) or self._control.draining:
                    return
                if self._control.paused:
                    self._control.drop_pairs((plan,), "the agent was paused")
                    return
                revision = plan.candidate if role is Role.CANDIDATE else plan.reference
                if not await self._worker_ready(revision):
                    self._control.drop_pairs((plan,), f"revision {revision[:10]} has no worker")
                    return
                recording = self._recording(revision, role, Purpose.PAIR, seed=plan.seed, pair=plan.id)
                if not await self._commanded(recording):
                    return
        finally:
            pairs.done(plan)

    async def _worker_ready(self, revision: str) -> bool:
        """Wait, while the plant rests, for a worker that is being started again. False if there will be none."""
        control = self._control
        limit = control.clock.monotonic() + _WORKER_PATIENCE
        while control.workers.get(revision) is None:
            change = control.change
            remaining = limit - control.clock.monotonic()
            if control.draining or revision not in control.workers.loaded or remaining <= 0:
                return False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(remaining):
                    await change.wait()
        return True

    async def _unsolicited(self, begun: Begun) -> None:
        recording = self._recording(self._control.stable or "", Role.STABLE, Purpose.UNSOLICITED)
        await self._drive(recording, None, begun.first)

    def _recording(self, revision: str, role: Role, purpose: Purpose, *, seed: int | None = None, pair: str | None = None) -> Recording:
        self._control.workers.hold(revision)  # until `_finish`
        return Recording(
            self._control.new_id(),
            agent=self._control.agent,
            device=self._device.id,
            revision=revision,
            role=role,
            purpose=purpose,
            session=self._control.session,
            clock=self._control.clock,
            seed=seed,
            pair=pair,
        )

    def _new_pilot(self, recording: Recording) -> Pilot | None:
        worker = self._control.workers.get(recording.revision)
        if worker is None:
            return None
        return Pilot(
            worker,
            self._device.id,
            episode=recording.id,
            seed=recording.seed,
            deadline=self._control.deadline,
            clock=self._control.clock,
            spawn=self._control.spawn,
            after=self._ends.get(recording.revision),
        )

    async def _commanded(self, recording: Recording) -> bool:
        """An episode that the runner begins. The policy is ready before the plant: its first answer needn't wait. False if it was lost."""
        pilot = self._new_pilot(recording)
        if pilot is None:
            recording.blame("dead", f"revision {recording.revision[:10]} has no worker")
            self._conclude(recording, None, Outcome.ABORTED)
            return True
        try:
            await pilot.begin()
        except SandboxError as error:
            recording.blame(_reason(error), _words(error))
            self._conclude(recording, pilot, Outcome.ABORTED)
            self._losses += 1  # a policy that can't even begin must not spin
            return True
        try:
            first = await self._device.reset(recording.id, recording.seed, self._control.max_steps, recording.purpose)
        except PlantError as error:
            self._lost(recording, pilot, error)
            return False
        return await self._drive(recording, pilot, first)

    # --- one episode of the plant -------------------------------------------------------------------------------------

    async def _drive(self, recording: Recording, pilot: Pilot | None, first: Transition) -> bool:
        """Answer every observation until the plant's episode ends. After a policy at fault the stable one goes on. False if it was lost."""
        self._previous, self._latched = None, False
        transition, begin = first, first.tick
        while not transition.last:
            if self._control.cut:
                recording.blame("draining", "the runner was told to stop")
                await self._device.rest(self._control.safe_action)
                self._control.spool.count("safe_actions.draining")
                self._conclude(recording, pilot, Outcome.LOST)
                return False
            pilot = self._pilot_now(recording, pilot)
            tick = transition.tick - begin
            answer = await self._decide(recording, pilot, tick, transition)
            latency = max(0.0, self._control.clock.monotonic() - transition.received_at)
            recording.answered(transition, tick, answer.action, answer.safe, latency)
            self._control.acted(recording.revision, recording.role, latency, answer.safe)
            revision = recording.revision if answer.safe is None else ""
            try:
                transition = await self._device.step(answer.action, revision=revision, safe=answer.safe is not None)
            except PlantError as error:
                self._lost(recording, pilot, error, at_fault=answer.fault)
                return False
            recording.followed(transition)
            if transition.fallback:
                self._control.spool.count("safe_actions.fallback")
            if answer.fault:
                self._conclude(recording, pilot, Outcome.ABORTED)
                if transition.last:
                    return True
                recording = self._recording(self._control.stable or "", Role.STABLE, Purpose.RECOVERY)
                pilot, begin = None, transition.tick
        self._losses = 0
        failed = recording.purpose is Purpose.RECOVERY and recording.reason != ""
        self._conclude(recording, pilot, Outcome.ABORTED if failed else Outcome.FINISHED)
        return True

    def _pilot_now(self, recording: Recording, pilot: Pilot | None) -> Pilot | None:
        """The pilot of the next tick: a recovery goes on with a worker that was started again, a paused agent answers without one."""
        if pilot is not None and not (recording.purpose is Purpose.RECOVERY and pilot.worker.died.is_set()):
            return pilot
        if recording.purpose is Purpose.UNSOLICITED and self._control.paused:
            return None
        return self._new_pilot(recording)

    async def _decide(self, recording: Recording, pilot: Pilot | None, tick: int, transition: Transition) -> _Answer:
        """The policy's action, or the safe one and why."""
        control = self._control
        if pilot is None or self._latched:
            reason = "latched" if self._latched else "paused" if control.paused else "dead" if recording.revision else "no_policy"
            return self._safely(pilot, reason, fault=False)
        candidate = recording.role is Role.CANDIDATE
        try:
            action = await pilot.act(tick, transition.observation, transition.received_at)
            action = control.envelope.check(action, self._previous)
        except LateError:
            recording.misses += 1
            control.spool.count("deadline_misses")
            exceeded = candidate and recording.misses > control.allowed_misses
            if exceeded:
                recording.blame("deadline", f"{recording.misses} answers were late, {control.allowed_misses} may be")
            return self._safely(pilot, "late", fault=exceeded)
        except ValueError as refusal:
            if candidate:
                recording.blame("invalid", f"tick {tick}: {refusal}")
            elif not recording.error:
                recording.error = f"tick {tick}: {refusal}"
            return self._safely(pilot, "invalid", fault=candidate)
        except SandboxError as error:
            recording.blame(_reason(error), _words(error))
            # in a recovery episode the next tick is the next chance; otherwise the episode is over, whatever the role
            return self._safely(
                pilot, "error" if isinstance(error, PolicyError) else "dead", fault=recording.purpose is not Purpose.RECOVERY
            )
        self._previous = action
        return _Answer(action)

    def _safely(self, pilot: Pilot | None, reason: str, *, fault: bool) -> _Answer:
        action = self._control.safe_action
        self._previous = None
        self._latched = self._latched or (self._control.latches and reason not in {"paused", "dead", "no_policy"})
        if pilot is not None:
            pilot.correct(action)
        return _Answer(action, reason, fault)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _lost(self, recording: Recording, pilot: Pilot | None, error: PlantError, *, at_fault: bool = False) -> None:
        recording.blame(error.reason if isinstance(error, PlantLost) else "plant", str(error))
        self._losses += 1
        self._conclude(recording, pilot, Outcome.ABORTED if at_fault else Outcome.LOST)

    def _conclude(self, recording: Recording, pilot: Pilot | None, outcome: Outcome) -> None:
        """End a recording off the control path: the plant doesn't wait for a trace."""
        self._ends = {revision: end for revision, end in self._ends.items() if not end.done()}
        work = self._finish(recording, pilot, outcome)
        self._ends[recording.revision] = self._control.spawn(work, f"conclude-{self._device.id}")

    async def _finish(self, recording: Recording, pilot: Pilot | None, outcome: Outcome) -> None:
        trace = None
        if pilot is not None:
            try:
                trace = await pilot.finish(recording.final_observation)
            except SandboxError as error:
                if not recording.error:
                    recording.error = f"no trace: {_words(error)}"
        self._control.spool.add_episode(recording.close(outcome, trace))
        self._control.garbage.concluded()
        await self._control.workers.release(recording.revision)


def _reason(error: SandboxError) -> str:
    if isinstance(error, PolicyError):
        return "exception"
    if isinstance(error, WorkerTimeout):
        return "timeout"
    return "violation" if isinstance(error, ProtocolViolation) else "died"


def _words(error: SandboxError) -> str:
    return getattr(error, "traceback", "") or f"{type(error).__name__}: {error}"
