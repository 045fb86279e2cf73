"""One recorded episode through another revision's worker: what it would have done, tick by tick, and where it would have failed."""

from collections.abc import Callable

from agentd.errors import PolicyError, SandboxError
from agentd.records import Episode, Record, Step, Value
from agentd.runners.models import RecordedDesk
from agentd.sandbox import UNCHANGED, PolicyWorker
from agentd.trace.replay import is_lossless

_NOT_ASKED = frozenset({"latched", "paused", "no_policy"})
"""Safe actions for which nobody asked the policy (agentd.runners.loop)."""


class Rerun(Record, frozen=True):
    """What a replay showed. `actions` by tick; a fault ends it, an invalid action doesn't.

    `fault` is what the program raised, or how its process ended, at tick `failed_at` (None: before the first). `invalid` is the first
    action that the envelope refuses, at `invalid_at`. `skipped` are ticks that could not be shown to the policy. `unrecorded` is the
    question to a model that has no recorded answer, and ends the replay too.
    """

    actions: dict[int, Value] = {}  # noqa: RUF012 - a record copies its defaults
    fault: str = ""
    failed_at: int | None = None
    invalid: str = ""
    invalid_at: int | None = None
    skipped: int = 0
    unrecorded: str = ""


async def rerun(worker: PolicyWorker, episode: Episode, check: Callable[[Value, Value | None], Value] | None) -> Rerun:
    """Show `episode` to the worker's policy: an instance of its own, which hears of every tick that the recorded one was asked about.

    `check(action, previous)` is the envelope; None where it is not known.
    """
    device = f"rerun-{worker.pid}"
    actions: dict[int, Value] = {}
    invalid, invalid_at, skipped, tick = "", None, 0, None
    before: Value = UNCHANGED
    previous: Value | None = None
    desk: RecordedDesk | None = None

    def found(fault: str = "", failed_at: int | None = None) -> Rerun:
        unrecorded = f"at tick {tick} {desk.missing}" if desk is not None and desk.missing else ""
        if unrecorded:
            fault, failed_at = "", None  # what the program made of that is no finding
        return Rerun(
            actions=actions,
            fault=fault,
            failed_at=failed_at,
            invalid=invalid,
            invalid_at=invalid_at,
            skipped=skipped,
            unrecorded=unrecorded,
        )

    try:
        await worker.reset(device, f"rerun-{episode.id}", episode.seed)
        if episode.state is not None:
            await worker.load_state(device, episode.state)
        for step in episode.steps:
            if not was_asked(step, episode):
                before, previous, skipped = step.action, None, skipped + 1
                continue
            tick = step.tick
            desk = RecordedDesk(step.exchanges, worker.model_calls) if worker.model_calls else None
            action = await worker.act(device, tick, step.observation, safe=before, desk=desk)
            if desk is not None and desk.missing:
                break
            actions[tick] = action
            if check is not None and not invalid:
                try:
                    check(action, previous)
                except ValueError as refusal:
                    invalid, invalid_at = str(refusal), tick
            before = step.action  # the recorded observations followed the recorded actions
            previous = None if step.safe is not None else step.action
    except SandboxError as error:
        return found(_words(error), tick)
    return found()


def was_asked(step: Step, episode: Episode) -> bool:
    """Whether the policy was asked at this tick, and what it saw was recorded whole."""
    lost = step.safe == "dead" and episode.reason not in {"died", "timeout", "violation"}
    return step.safe not in _NOT_ASKED and not lost and step.observation is not None and is_lossless(step.observation)


def _words(error: SandboxError) -> str:
    if not isinstance(error, PolicyError):
        return f"{type(error).__name__}: {error}"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
