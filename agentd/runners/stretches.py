"""Endless plants: episodes of so many ticks, one after the other, without a reset and without a bump between them.

A stretch ends after `episode_ticks`, or at the next tick when its revision is no longer wanted: another one was promoted, it was rolled
back, or its pair was called off. Such a switch costs the plant nothing, so it doesn't wait; what it cut short is no evidence.

While the plant does its tick, the next policy is made ready: it begins (which may take long: it is warmed while the other one goes on),
then it gets the state of the one before it. At the next observation it answers. If it isn't ready a part of the deadline later, the one
before answers that one, too.

*Who hands over to whom.* Stable hands over to its successor, be that a candidate or, at a promotion or a rollback, another stable one. A
candidate hands over to nobody: its half of a pair ends, and stable goes on with what it handed out itself. Otherwise a candidate could win
its release by what it leaves in the integrators of its rival. A stable revision whose `load_state` raises begins afresh; a candidate whose
`load_state` raises has lost its episode.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from agentd.environments import Transition
from agentd.errors import PolicyError, SandboxError
from agentd.records import Outcome, PairPlan, Purpose, Role, Value
from agentd.runners.answers import reason_of, words_of
from agentd.runners.control import Control
from agentd.runners.episodes import Episodes
from agentd.runners.handover import HandOver, check_state
from agentd.runners.pilot import Pilot
from agentd.runners.recording import Recording
from agentd.sandbox import PolicyWorker


@dataclass(slots=True)
class Drive:
    """What drives the plant now. `begin` is the plant's tick at which the recording begins."""

    recording: Recording
    pilot: Pilot | None
    begin: int


@dataclass(slots=True)
class _Switch:
    """From what drives to what will: another policy, or another episode of the same."""

    recording: Recording
    plan: PairPlan | None
    since: float
    """When it was begun, by the monotonic clock."""
    keeps: bool = False
    """The same pilot goes on."""
    pilot: Pilot | None = None
    ready: asyncio.Task[SandboxError | None] | None = None
    """Ends when the pilot may take over, or with why it never will."""
    handing: bool = field(default=False)
    """The pilot has begun: what is left is a matter of a tick."""


class Stretches:
    """The order of the stretches of one device, from the first observation of an endless plant to its end."""

    def __init__(self, device: str, control: Control, episodes: Episodes, *, is_latched: Callable[[], bool]) -> None:
        self._device = device
        self._control = control
        self._episodes = episodes
        self._is_latched = is_latched
        self._ticks = control.episode_ticks or 0
        self._plan: PairPlan | None = None
        self._halves: list[Role] = []
        self._switch: _Switch | None = None
        self._failed: PolicyWorker | None = None
        """The worker of a stable revision that could not take over: it is tried again in the next stretch, a new process at once."""
        self._shunned = ""
        """The stable revision whose process a state has ended: the next one begins without."""
        self._state: Value = None
        """What stable handed out last."""
        self._stable_pilot: Pilot | None = None
        """Of the last stable policy that drove: a pause, or a candidate's half, doesn't touch it."""

    def begin(self, drive: Drive) -> None:
        """A life of the plant begins: whatever drove it in an earlier one has nothing to go on from."""
        self._state = self._stable_pilot = self._failed = None
        self._shunned = ""
        if drive.recording.role is Role.STABLE:
            self._is_driven_by(drive.pilot)

    # --- before and after each tick ------------------------------------------------------------------------------------

    def look_ahead(self, drive: Drive) -> None:
        """An action has been given: if this tick is the stretch's last one, get the next one ready while the plant does it."""
        if self._switch is None and not self._control.draining and self._is_over(drive.recording):
            self._prepare(drive)

    async def follow(self, drive: Drive) -> None:
        """Look ahead also when routes or pairs change between two ticks."""
        while True:
            change = self._control.change
            self.look_ahead(drive)
            await change.wait()

    async def turn(self, drive: Drive, transition: Transition) -> None:
        """An observation has come: from here on, the next stretch's policy answers, if it is ready."""
        if self._switch is not None and not self._is_wanted(self._switch):
            self._abandon()  # nobody waits for what takes its time and is not to drive any more
            self.look_ahead(drive)
        switch = self._switch
        if switch is None:
            self._overrun(drive, transition)
            return
        if not await self._hurried(switch, transition):
            self._overrun(drive, transition)
            return
        self._switch = None
        if not self._is_wanted(switch):
            self._episodes.discard(switch.recording)
            self._overrun(drive, transition)
            self.look_ahead(drive)
            return
        error = switch.ready.result() if switch.ready is not None else None
        if error is not None:
            self._overrun(drive, transition)
            self._refuse(switch, error)
            self.look_ahead(drive)
            return
        self._conclude(drive)
        pilot = drive.pilot if switch.keeps else switch.pilot
        drive.recording, drive.pilot, drive.begin = switch.recording, pilot, transition.tick
        if switch.recording.role is Role.STABLE:
            self._is_driven_by(pilot)
        if switch.plan is not None:
            self._halves.remove(switch.recording.role)

    def recover(self, drive: Drive, transition: Transition) -> None:
        """The policy is at fault and its episode over: stable goes on, as it was if it is not the culprit."""
        own_fault = drive.recording.role is Role.STABLE
        self._abandon()
        drive.recording = self._episodes.open(self._control.stable or "", Role.STABLE, Purpose.RECOVERY)
        if own_fault:
            self._stable_pilot = None
        drive.pilot = self.pilot(drive.recording)
        drive.begin = transition.tick

    def pilot(self, recording: Recording) -> Pilot | None:
        """Stable's, where nobody is at the stick; as it was, if its process still is the one that drove here."""
        if self._control.paused or (recording.ticks and recording.is_idle):
            return None
        pilot = self._episodes.pilot(recording, begun=self._is_unspoilt(recording.revision))
        if recording.role is Role.STABLE:
            self._is_driven_by(pilot)
        return pilot

    def _is_driven_by(self, pilot: Pilot | None) -> None:
        """What stable handed out is out of date once it drives."""
        self._state, self._shunned = None, ""
        if pilot is not None:
            self._stable_pilot = pilot

    def end(self, drive: Drive) -> Outcome:
        """The plant has ended by itself; how the stretch under way did. The other half of a pair waits for the plant's next life."""
        self._abandon()
        return self._outcome(drive.recording, whole=True)

    def is_whole(self, drive: Drive) -> bool:
        """Whether the stretch has all its ticks."""
        return drive.recording.ticks >= self._ticks

    def may_leave(self, drive: Drive) -> bool:
        """Whether the runner drains and this is a good moment."""
        return self._control.draining and self.is_whole(drive)

    def leave(self) -> None:
        """The plant is lost or left."""
        self._abandon()
        if self._plan is not None:
            self._done()

    # --- what is next ---------------------------------------------------------------------------------------------------

    def _is_over(self, recording: Recording) -> bool:
        control = self._control
        if recording.ticks >= self._ticks:
            return True
        if recording.purpose is Purpose.PAIR:
            return self._plan is None or not control.pairs.holds(self._plan)
        if recording.ticks and recording.is_idle:
            return not control.paused and not self._is_latched() and self._can_take_over()
        return control.stable != recording.revision and self._can_take_over()

    def _is_wanted(self, switch: _Switch) -> bool:
        if switch.plan is not None:
            return self._plan is switch.plan and self._control.pairs.holds(switch.plan) and not self._control.paused
        return switch.recording.revision == (self._control.stable or "")

    def _can_take_over(self) -> bool:
        """Whether the stable revision has a worker that has not just failed to."""
        worker = self._control.workers.get(self._control.stable or "")
        return worker is not None and worker is not self._failed

    def _has_worker(self, revision: str | None) -> bool:
        return revision is not None and self._control.workers.get(revision) is not None

    def _next_half(self) -> PairPlan | None:
        """The plan whose next half is to be run now, if there is one."""
        control = self._control
        while True:
            if self._plan is None:
                if self._is_latched():
                    control.drop_pairs(control.pairs.drop(self._device), f"the safe action of {self._device} has latched")
                self._plan = None if control.paused else control.pairs.take(self._device)
                if self._plan is None:
                    return None
                self._halves = list(self._plan.order)
            plan = self._plan
            missing = [revision for revision in (plan.candidate, plan.reference) if not self._has_worker(revision)]
            if self._halves and control.pairs.holds(plan) and not control.paused and not missing:
                return plan
            if self._halves and control.pairs.holds(plan):
                control.drop_pairs((plan,), "the agent was paused" if control.paused else f"revision {missing[0][:10]} has no worker")
            self._done()

    def _done(self) -> None:
        if self._plan is not None:
            self._control.pairs.done(self._plan)
            self._plan = None

    def _prepare(self, drive: Drive) -> None:
        """Open the next stretch, and get its policy ready."""
        control, current = self._control, drive.pilot
        plan = self._next_half()
        alive = current is not None and not current.worker.died.is_set()
        if plan is None and alive and not self._has_worker(control.stable):
            return  # whoever drives goes on until it is back
        if plan is None:
            recording = self._episodes.open(control.stable or "", Role.STABLE, Purpose.NORMAL)
        else:
            role = self._halves[0]
            revision = plan.candidate if role is Role.CANDIDATE else plan.reference
            recording = self._episodes.open(revision, role, Purpose.PAIR, pair=plan.id)
        switch = self._switch = _Switch(recording, plan, control.clock.monotonic())
        if control.paused:
            return
        if alive and drive.recording.revision == recording.revision:
            switch.keeps = True
            if current is not None and current.begun:
                control.spawn(self._note_state(recording, current), f"state-{self._device}")
            return
        role_before = drive.recording.role
        returns = role_before is Role.CANDIDATE or current is None
        begun = recording.role is Role.STABLE and returns and self._is_unspoilt(recording.revision)
        switch.pilot = self._episodes.pilot(recording, begun=begun)
        if switch.pilot is not None:
            outgoing = current if role_before is Role.STABLE else None
            switch.ready = control.spawn(self._hand_over(switch, switch.pilot, outgoing), f"switch-{self._device}")

    def _is_unspoilt(self, revision: str) -> bool:
        """Whether its worker is still the one that drove here as stable, with the policy as it was."""
        pilot = self._stable_pilot
        return pilot is not None and pilot.worker is self._control.workers.get(revision)

    # --- the hand-over ---------------------------------------------------------------------------------------------------

    async def _hand_over(self, switch: _Switch, incoming: Pilot, outgoing: Pilot | None) -> SandboxError | None:
        """Let a policy begin and give it the state; what it did wrong, if it can't take over."""
        try:
            if not incoming.begun:
                await incoming.begin()
            switch.handing = True
            shuns = switch.recording.role is Role.STABLE and switch.recording.revision == self._shunned
            state = None if shuns else await self._state_of(outgoing)
            if self._switch is not switch:
                return None  # it was abandoned meanwhile: what it would note is of no switch any more
            self._state = switch.recording.state = state
            if state is None:
                return None
            try:
                await incoming.load_state(state)
            except SandboxError as error:
                self._count(HandOver.REFUSED)
                if switch.recording.role is Role.CANDIDATE:
                    return error
                what = "raised" if isinstance(error, PolicyError) else "ended its process"
                message = f"load_state of revision {switch.recording.revision[:10]} {what}, it begins afresh: {error}"
                self._control.happened("handover.refused", message[:500], device=self._device, revision=switch.recording.revision)
                if not isinstance(error, PolicyError):  # what is rolled back must not keep its successor away by what it hands over
                    self._shunned = switch.recording.revision
                    return error
                switch.recording.state = None
                await incoming.begin()
            else:
                self._count(HandOver.LOADED)
        except SandboxError as error:
            return error
        return None

    async def _note_state(self, recording: Recording, pilot: Pilot) -> None:
        """For the record: a replay of an episode in the middle of a life has to begin where that one did."""
        with contextlib.suppress(ValueError, SandboxError):
            recording.state = check_state(await pilot.state())

    async def _state_of(self, outgoing: Pilot | None) -> Value:
        """The state to go on from, checked: that of a stable policy, or what it handed out last. None where there is none."""
        if outgoing is None or not outgoing.begun:
            return self._state
        try:
            state = check_state(await outgoing.state())
        except (ValueError, SandboxError) as error:
            self._count(HandOver.UNUSABLE)
            self._control.happened("handover.unusable", f"the successor begins afresh: {error}"[:500], device=self._device)
            return None
        if state is None:
            self._count(HandOver.STATELESS)
        return state

    async def _hurried(self, switch: _Switch, transition: Transition) -> bool:
        """Whether it becomes ready before the policy that drives has to be asked: control never waits for one that takes its time.

        A warm policy begins in a fraction of a tick: it may take half of the deadline from when it was told to. The hand-over that follows
        may last until half of the time is over that a policy has for this observation.
        """
        half = (self._control.deadline or 0.0) / 2
        latest = transition.received_at + half
        if not switch.handing:
            await self._ready(switch, min(latest, switch.since + half))
        if switch.handing and not await self._ready(switch, latest):
            self._count(HandOver.LATE)
        return switch.ready is None or switch.ready.done()

    async def _ready(self, switch: _Switch, until: float) -> bool:
        left = until - self._control.clock.monotonic()
        if switch.ready is None or switch.ready.done():
            return True
        if left > 0:
            await asyncio.wait((switch.ready,), timeout=left)
        return switch.ready.done()

    def _count(self, what: HandOver) -> None:
        self._control.spool.count(f"handovers.{what}")

    # --- ends ------------------------------------------------------------------------------------------------------------

    def _refuse(self, switch: _Switch, error: SandboxError) -> None:
        """What was to take over can't: its episode is over before its first tick."""
        switch.recording.blame(reason_of(error), words_of(error))
        if switch.plan is not None:
            self._halves.remove(switch.recording.role)
        elif switch.pilot is not None:
            self._failed = switch.pilot.worker
        self._episodes.conclude(switch.recording, switch.pilot, Outcome.ABORTED)

    def _overrun(self, drive: Drive, transition: Transition) -> None:
        """The stretch is over but what follows isn't ready: the same policy goes on, in an episode that no test sees."""
        if drive.recording.ticks >= self._ticks and not self._control.draining:
            before = drive.recording
            self._conclude(drive)
            drive.recording = self._episodes.open(before.revision, before.role, Purpose.RECOVERY)
            drive.begin = transition.tick

    def _conclude(self, drive: Drive) -> None:
        whole = drive.recording.ticks >= self._ticks or drive.recording.purpose is Purpose.RECOVERY
        outcome = self._outcome(drive.recording, whole=whole)
        if drive.recording.ticks:
            self._failed = None if whole else self._failed
            self._episodes.conclude(drive.recording, drive.pilot, outcome)
        else:
            self._episodes.discard(drive.recording)

    def _outcome(self, recording: Recording, *, whole: bool) -> Outcome:
        if recording.ticks and recording.is_idle:
            recording.blame("idle", "nobody drove: the agent was paused, or the safe action latched")
            return Outcome.LOST
        if not whole:
            recording.blame("switched", "another revision took over before the episode's last tick")
            return Outcome.LOST
        failed = recording.purpose is Purpose.RECOVERY and recording.reason != ""
        return Outcome.ABORTED if failed else Outcome.FINISHED

    def _abandon(self) -> None:
        """Forget a switch that was being prepared; nobody waits for its policy."""
        switch, self._switch = self._switch, None
        if switch is not None:
            self._episodes.discard(switch.recording)
