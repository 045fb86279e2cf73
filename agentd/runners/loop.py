"""The episode loop of one device: what it runs next, and an action at every observation, whatever becomes of the policy."""

import asyncio
import contextlib

from agentd.environments import Begun, Device, Transition
from agentd.errors import PlantError, PlantLost, SandboxError
from agentd.records import Outcome, PairPlan, Purpose, Role
from agentd.runners.answers import Answers, reason_of, words_of
from agentd.runners.control import Control
from agentd.runners.episodes import Episodes
from agentd.runners.pilot import Pilot
from agentd.runners.recording import Recording
from agentd.runners.seeds import derive
from agentd.runners.stretches import Drive, Stretches

_PAUSE_AFTER_LOSS = 0.2
_LONGEST_PAUSE = 5.0
_WORKER_PATIENCE = 10.0


class DeviceLoop:
    """Runs episodes on one device, one after the other, until it is gone or the runner drains."""

    def __init__(self, device: Device, control: Control, plant: str | None = None) -> None:
        self._device = device
        self._plant = plant or device.id
        """The device that plans are drawn for: seats of one plant share them."""
        self._control = control
        self._counter = 0
        self._losses = 0
        self._answers = Answers(control)
        self._episodes = Episodes(device.id, control)
        self._stretches: Stretches | None = None
        """For a plant that is never reset."""
        if control.episode_ticks is not None:
            self._stretches = Stretches(device.id, control, self._episodes, is_latched=lambda: self._answers.latched)

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
        await self._episodes.wait()

    async def _begin_next(self) -> None:
        control = self._control
        if control.draining or control.paused:
            return
        plan = control.pairs.take(self._plant) if self._stretches is None else None
        if plan is not None:
            await self._pair(plan)
        elif self._ready():
            await self._normal()

    def _ready(self) -> bool:
        stable, models = self._control.stable, self._control.models
        if models is not None and models.exhausted:
            return False
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
                hurried = not self._losses and control.pairs.waiting(self._plant)
                if not control.paused and not control.awaits_devices and self._ready() and (missing <= 0 or hurried):
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
        await self._commanded(self._episodes.open(self._control.stable or "", Role.STABLE, Purpose.NORMAL, seed=seed))

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
                revision = _revision(plan, role)
                if not await self._worker_ready(revision):
                    self._control.drop_pairs((plan,), f"revision {revision[:10]} has no worker")
                    return
                recording = self._episodes.open(revision, role, Purpose.PAIR, seed=plan.seed, pair=plan.id)
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
        control, pairs = self._control, self._control.pairs
        plan = None if control.paused else pairs.take(self._plant, begun=True)
        if plan is not None and not await self._is_there(_revision(plan, plan.order[0]), begun):
            control.drop_pairs((plan,), f"revision {_revision(plan, plan.order[0])[:10]} has no worker")
            pairs.done(plan)
            plan = None
        if plan is None:
            if begun.waits and (control.paused or not await self._is_there(control.stable or "", begun)):
                await self._device.rest(await control.brake.action(begun.first.observation))
                return
            recording = self._episodes.open(control.stable or "", Role.STABLE, Purpose.UNSOLICITED, begun=begun)
            await self._drive(Drive(recording, None, begun.first.tick), begun.first)
            return
        try:
            recording = self._episodes.open(_revision(plan, plan.order[0]), plan.order[0], Purpose.UNSOLICITED, pair=plan.id, begun=begun)
            await self._drive(Drive(recording, None, begun.first.tick), begun.first)
        finally:
            pairs.done(plan)

    async def _is_there(self, revision: str, begun: Begun) -> bool:
        """Whether a revision has a worker now; a client can wait for one that is being started again, a device can't."""
        return self._control.workers.get(revision) is not None or (begun.waits and await self._worker_ready(revision))

    async def _commanded(self, recording: Recording) -> bool:
        """An episode that the runner begins. The policy is ready before the plant: its first answer needn't wait. False if it was lost."""
        pilot = self._episodes.pilot(recording)
        if pilot is None:
            recording.blame("dead", f"revision {recording.revision[:10]} has no worker")
            self._episodes.conclude(recording, None, Outcome.ABORTED)
            return True
        try:
            await pilot.begin()
        except SandboxError as error:
            recording.blame(reason_of(error), words_of(error))
            self._episodes.conclude(recording, pilot, Outcome.ABORTED)
            self._losses += 1  # a policy that can't even begin must not spin
            return True
        try:
            first = await self._device.reset(recording.id, recording.seed, self._control.max_steps, recording.purpose)
        except PlantError as error:
            self._lost(Drive(recording, pilot, 0), error)
            return False
        return await self._drive(Drive(recording, pilot, first.tick), first)

    # --- one episode of the plant -------------------------------------------------------------------------------------

    async def _drive(self, drive: Drive, first: Transition) -> bool:
        """Answer every observation until the plant's episode ends. False if it was lost."""
        self._answers.begin()
        if self._stretches is None:
            return await self._answer_all(drive, first)
        self._stretches.begin(drive)
        following = self._control.spawn(self._stretches.follow(drive), f"follow-{self._device.id}")
        try:
            return await self._answer_all(drive, first)
        finally:
            following.cancel()

    async def _answer_all(self, drive: Drive, transition: Transition) -> bool:
        """After a policy at fault the stable one goes on."""
        stretches = self._stretches
        while not transition.last:
            if stretches is not None:
                await stretches.turn(drive, transition)
            if self._control.cut or (stretches is not None and stretches.may_leave(drive)):
                await self._leave(drive)
                return False
            drive.pilot = self._pilot_now(drive)
            tick = transition.tick - drive.begin
            answer = await self._answers.decide(drive.recording, drive.pilot, tick, transition)
            latency = max(0.0, self._control.clock.monotonic() - transition.received_at)
            asked = drive.pilot.asked() if drive.pilot is not None else ()
            drive.recording.answered(transition, tick, answer.action, answer.safe, latency, asked)
            self._control.acted(drive.recording.revision, drive.recording.role, latency, answer.safe)
            if stretches is not None and not answer.fault:
                stretches.look_ahead(drive)
            revision = drive.recording.revision if answer.safe is None else ""
            try:
                transition = await self._device.step(answer.action, revision=revision, safe=answer.safe is not None)
            except PlantError as error:
                self._lost(drive, error, at_fault=answer.fault)
                return False
            drive.recording.followed(transition)
            if transition.fallback:
                self._control.spool.count("safe_actions.fallback")
            if answer.fault:
                self._episodes.conclude(drive.recording, drive.pilot, Outcome.LOST if answer.nobodys else Outcome.ABORTED)
                self._losses += answer.nobodys
                if transition.last:
                    return not answer.nobodys
                self._recover(drive, transition)
        self._losses = 0
        self._episodes.conclude(drive.recording, drive.pilot, stretches.end(drive) if stretches is not None else _outcome(drive.recording))
        return True

    def _pilot_now(self, drive: Drive) -> Pilot | None:
        """The pilot of the next tick: a recovery goes on with a worker that was started again, a paused agent answers without one."""
        recording, pilot = drive.recording, drive.pilot
        if pilot is not None and not (recording.purpose is Purpose.RECOVERY and pilot.worker.died.is_set()):
            return pilot
        if self._stretches is not None:
            return self._stretches.pilot(recording)
        if recording.purpose is Purpose.UNSOLICITED and self._control.paused:
            return None
        return self._episodes.pilot(recording)

    def _recover(self, drive: Drive, transition: Transition) -> None:
        if self._stretches is not None:
            self._stretches.recover(drive, transition)
            return
        drive.recording = self._episodes.open(self._control.stable or "", Role.STABLE, Purpose.RECOVERY)
        drive.pilot, drive.begin = None, transition.tick

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _leave(self, drive: Drive) -> None:
        """The runner was told to stop."""
        await self._device.rest(self._control.safe_action)
        self._control.spool.count("safe_actions.draining")
        if self._stretches is not None:
            self._stretches.leave()
            if self._stretches.is_whole(drive):
                self._episodes.conclude(drive.recording, drive.pilot, self._stretches.end(drive))
                return
        drive.recording.blame("draining", "the runner was told to stop")
        self._episodes.conclude(drive.recording, drive.pilot, Outcome.LOST)

    def _lost(self, drive: Drive, error: PlantError, *, at_fault: bool = False) -> None:
        drive.recording.blame(error.reason if isinstance(error, PlantLost) else "plant", str(error))
        self._losses += 1
        if self._stretches is not None:
            self._stretches.leave()
        self._episodes.conclude(drive.recording, drive.pilot, Outcome.ABORTED if at_fault else Outcome.LOST)


def _outcome(recording: Recording) -> Outcome:
    """Of an episode that the plant has ended: a recovery in which a policy failed again is no good one."""
    return Outcome.ABORTED if recording.purpose is Purpose.RECOVERY and recording.reason else Outcome.FINISHED


def _revision(plan: PairPlan, role: Role) -> str:
    return plan.candidate if role is Role.CANDIDATE else plan.reference
