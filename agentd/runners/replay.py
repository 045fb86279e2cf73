"""Screening: recorded steps replayed in a loaded worker, before it meets a plant. It compares actions, never scores."""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from agentd.clock import Clock
from agentd.errors import PolicyError, SandboxError
from agentd.records import Episode, Step, Value
from agentd.runners.envelope import Envelope
from agentd.runners.messages import ScreenReport
from agentd.runners.models import RecordedDesk
from agentd.sandbox import UNCHANGED, PolicyWorker

CHANGES_TOLD = 3
ATTEMPTS = 2
"""How often an episode is replayed before its policy is called too slow."""


async def screen(
    worker: PolicyWorker,
    envelope: Envelope,
    episodes: Sequence[Episode],
    clock: Clock,
    *,
    deadline: float | None = None,
    allowed_misses: int = 0,
) -> ScreenReport:
    """Run the worker's policy, an instance of its own, on the observations of `episodes`.

    Ticks at which the plant got the safe action are skipped. What the policy asks of models is answered from the record; an episode in
    which it asks something else is replayed up to there. The program's first exception is in the report; when the worker itself is lost
    (killed, timed out), the replay ends there. So it does where more than `allowed_misses` answers of an episode took longer than
    `deadline` (seconds; None: there is none), and did so again when it was replayed once more: what slowed the machine passes, a slow
    policy is slow twice.
    """
    replay = _Replay(worker, envelope, clock, deadline, allowed_misses)
    for episode in episodes:
        before = replay
        try:
            for _ in range(ATTEMPTS):
                replay = copy.copy(before)
                if await replay.run(episode):
                    break
            else:
                replay.late = (
                    f"more answers than guardrails.deadline_misses_per_episode = {allowed_misses} took longer than the deadline of "
                    f"{1000 * (deadline or 0.0):g} ms, each time that episode {episode.id} was replayed"
                )
                break
        except SandboxError as failure:
            replay.errors += 1
            replay.error = replay.error or f"{type(failure).__name__}: {failure}"
            replay.traceback = replay.traceback or getattr(failure, "traceback", "")
            if worker.died.is_set():
                break
    return replay.report()


class _Replay:
    """The episodes of one screening, one after the other."""

    def __init__(self, worker: PolicyWorker, envelope: Envelope, clock: Clock, deadline: float | None, allowed_misses: int) -> None:
        self.errors = 0
        self.error = self.traceback = self.late = ""
        self._worker = worker
        self._envelope = envelope
        self._clock = clock
        self._deadline = deadline
        self._allowed_misses = allowed_misses
        self._policy = tuple(process for process in (worker.pid, worker.leaf_pid) if process is not None)
        self._device = f"screen-{worker.pid}"
        self._ticks = self._differing = self._invalid = self._unrecorded = 0
        self._max_latency = 0.0
        self._first_invalid = self._first_unrecorded = self._changed_in = ""
        self._changed: dict[int, Value] = {}

    async def run(self, episode: Episode) -> bool:
        """Replay one episode; False as soon as too many answers came after the deadline. Raises SandboxError for what the program did."""
        late = 0
        await self._worker.reset(self._device, f"screen-{episode.id}", episode.seed)
        if episode.state is not None:
            await self._worker.load_state(self._device, episode.state)
        before: Value = UNCHANGED
        previous: Value | None = None
        for step in episode.steps:
            if step.safe is not None or step.observation is None:
                before, previous = step.action, None
                continue
            action, seconds = await self._act(step, before)
            late += self._deadline is not None and seconds > self._deadline
            if late > self._allowed_misses:
                break
            if action is UNCHANGED:
                self._unrecorded += 1
                break
            self._ticks += 1
            try:
                action = self._envelope.check(action, previous)
            except ValueError as refusal:
                self._invalid += 1
                self._first_invalid = self._first_invalid or f"episode {episode.id}, tick {step.tick}: {refusal}"
            same = _same(action, step.action)
            self._differing += not same
            if not same and self._changed_in in {"", episode.id} and len(self._changed) < CHANGES_TOLD:
                self._changed_in, self._changed = episode.id, {**self._changed, step.tick: action}
            before = UNCHANGED if same else step.action  # the recorded observations followed the recorded actions
            previous = step.action
        await self._worker.finish(self._device, episode.final_observation)
        return late <= self._allowed_misses

    async def _act(self, step: Step, safe: Value) -> tuple[Value, float]:
        """The action, and the seconds that it took, without those in which worker, leaf or runner waited for a processor of a busy machine.

        They are no fewer than those that worker and leaf computed: a runner with other work waits while they do, too, which delays nobody.
        UNCHANGED where it came of a question to a model that was never asked, whatever the program made of that.
        """
        before, began = self._scheduled(), self._clock.monotonic()
        desk = RecordedDesk(step.exchanges, self._worker.model_calls) if self._worker.model_calls else None
        try:
            action = await self._worker.act(self._device, step.tick, step.observation, safe=safe, desk=desk)
        except PolicyError:
            if desk is None or not desk.missing:
                raise
        took = self._clock.monotonic() - began
        self._max_latency = max(self._max_latency, took)
        computed, waited = (max(0.0, now - then) for now, then in zip(self._scheduled(), before, strict=True))  # less where one just ended
        took = max(took - waited, computed)
        if desk is not None and desk.missing:
            self._first_unrecorded = self._first_unrecorded or f"tick {step.tick}: {desk.missing}"
            return UNCHANGED, took
        return action, took

    def _scheduled(self) -> tuple[float, float]:
        """Seconds for which worker and leaf computed so far, and for which they and the runner waited for a processor."""
        computed, waited = _scheduled(self._policy)
        return computed, waited + _scheduled(("self",))[1]

    def report(self) -> ScreenReport:
        """What was found."""
        return ScreenReport(
            ticks=self._ticks,
            differing=self._differing,
            invalid=self._invalid,
            errors=self.errors,
            max_latency=self._max_latency,
            error=self.error,
            traceback=self.traceback,
            first_invalid=self._first_invalid,
            late=self.late,
            changed=self._changed,
            unrecorded=self._unrecorded,
            first_unrecorded=self._first_unrecorded,
        )


def _scheduled(processes: Sequence[int | str]) -> tuple[float, float]:
    """Seconds for which they ran, and for which they could have and got no processor; 0 where the kernel keeps no schedstat (proc(5))."""
    try:
        of_each = [Path(f"/proc/{process}/schedstat").read_bytes().split() for process in processes]
        return sum(int(ran) for ran, _, _ in of_each) / 1e9, sum(int(waited) for _, waited, _ in of_each) / 1e9
    except (OSError, ValueError):
        return 0.0, 0.0


def _same(one: Value, other: Value) -> bool:
    """Whether two actions are the same but for rounding. What is nested too deeply to be compared is not."""
    try:
        return _alike(one, other)
    except RecursionError:
        return False


def _alike(one: Value, other: Value) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-9, atol=1e-12))
    if isinstance(one, np.ndarray):
        one = one.tolist()  # of lists, numpy would make an array however large that is (agentd.environments.spaces)
    if isinstance(other, np.ndarray):
        other = other.tolist()
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return bool(one == other)
