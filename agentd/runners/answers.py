"""What a plant gets at one tick: the policy's action if it is there in time and within the envelope, otherwise the safe one, and why."""

from dataclasses import dataclass

from agentd.environments import Transition
from agentd.errors import PolicyError, ProtocolViolation, SandboxError, WorkerTimeout
from agentd.records import MODELS_LOST, Purpose, Role, Value
from agentd.runners.control import Control
from agentd.runners.pilot import LateError, Pilot
from agentd.runners.recording import Recording


@dataclass(frozen=True, slots=True)
class Answer:
    """`safe` is why the action is not the policy's; `fault` ends the episode as aborted, or as lost where it was `nobodys`."""

    action: Value
    safe: str | None = None
    fault: bool = False
    nobodys: bool = False


class Answers:
    """Decides on the actions of one device, tick by tick."""

    def __init__(self, control: Control) -> None:
        self.latched = False
        """The safe action stays: until the next reset, or until an operator resumes."""
        self._control = control
        self._previous: Value | None = None
        self._resumed = control.resumed

    def begin(self) -> None:
        """A plant was reset: nothing is remembered of it."""
        self._previous, self.latched = None, False

    async def decide(self, recording: Recording, pilot: Pilot | None, tick: int, transition: Transition) -> Answer:
        """The policy's action, or the safe one and why."""
        control = self._control
        if self._resumed != control.resumed:
            self._resumed, self.latched = control.resumed, False
        self.latched = self.latched or (control.latches and transition.braked)
        if pilot is None or self.latched:
            reason = "latched" if self.latched else "paused" if control.paused else "dead" if recording.revision else "no_policy"
            return await self._safely(pilot, transition, reason, fault=self._is_unanswered(recording, reason))
        if transition.stale:
            return await self._safely(pilot, transition, "dead_man")
        candidate = recording.role is Role.CANDIDATE
        blamed = candidate or control.answers_requests  # of a request the answer is all there is
        try:
            action = await pilot.act(tick, transition.observation, transition.received_at)
            action = control.envelope.check(action, self._previous)
        except LateError:
            recording.misses += 1
            control.spool.count("deadline_misses")
            exceeded = candidate and recording.misses > control.allowed_misses
            if exceeded:
                recording.blame("deadline", f"{recording.misses} answers were late, {control.allowed_misses} may be")
            return await self._safely(pilot, transition, "late", fault=exceeded)
        except ValueError as refusal:
            if blamed:
                recording.blame("invalid", f"tick {tick}: {refusal}")
            elif not recording.error:
                recording.error = f"tick {tick}: {refusal}"
            return await self._safely(pilot, transition, "invalid", fault=blamed)
        except SandboxError as error:
            return await self._failed(recording, pilot, transition, error)
        self._previous = action
        return Answer(action)

    async def _failed(self, recording: Recording, pilot: Pilot, transition: Transition, error: SandboxError) -> Answer:
        # in a recovery episode the next tick is the next chance; otherwise the episode is over, whatever the role
        fault = recording.purpose is not Purpose.RECOVERY
        outage = pilot.desk.outage if pilot.desk is not None and isinstance(error, PolicyError) else ""
        if outage:  # as when the network is lost: no program can answer without what it is made of
            recording.blame(MODELS_LOST, outage)
            return await self._safely(pilot, transition, MODELS_LOST, fault=fault, nobodys=True)
        recording.blame(reason_of(error), words_of(error))
        return await self._safely(pilot, transition, "error" if isinstance(error, PolicyError) else "dead", fault=fault)

    def _is_unanswered(self, recording: Recording, reason: str) -> bool:
        """Whether a client had to do without the policy, whose worker is gone: there is no next tick at which it might be back."""
        unanswered = self._control.answers_requests and reason == "dead"
        if unanswered:
            recording.blame(reason, f"revision {recording.revision[:10]} has no worker")
        return unanswered

    async def _safely(
        self, pilot: Pilot | None, transition: Transition, reason: str, *, fault: bool = False, nobodys: bool = False
    ) -> Answer:
        control = self._control
        action = await control.brake.action(transition.observation)
        self._previous = None
        self.latched = self.latched or (control.latches and pilot is not None)  # where nobody drives, nobody is to blame
        if pilot is not None:
            pilot.correct(action)
        return Answer(action, reason, fault, nobodys)


def reason_of(error: SandboxError) -> str:
    """The word for what a policy did, as episodes have it."""
    if isinstance(error, PolicyError):
        return "exception"
    if isinstance(error, WorkerTimeout):
        return "timeout"
    return "violation" if isinstance(error, ProtocolViolation) else "died"


def words_of(error: SandboxError) -> str:
    """The program's own words, or ours."""
    return getattr(error, "traceback", "") or f"{type(error).__name__}: {error}"
