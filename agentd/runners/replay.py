"""Screening: recorded steps replayed in a loaded worker, before it meets a plant. It compares actions, never scores."""

from collections.abc import Sequence

import numpy as np

from agentd.clock import Clock
from agentd.errors import SandboxError
from agentd.records import Episode, Value
from agentd.runners.envelope import Envelope
from agentd.runners.messages import ScreenReport
from agentd.sandbox import UNCHANGED, PolicyWorker

CHANGES_TOLD = 3


async def screen(worker: PolicyWorker, envelope: Envelope, episodes: Sequence[Episode], clock: Clock) -> ScreenReport:
    """Run the worker's policy, an instance of its own, on the observations of `episodes`.

    Ticks at which the plant got the safe action are skipped. The program's first exception is in the report; when the worker itself
    is lost (killed, timed out), the replay ends there.
    """
    ticks = differing = invalid = errors = 0
    max_latency = 0.0
    error = traceback = first_invalid = changed_in = ""
    changed: dict[int, Value] = {}
    device = f"screen-{worker.pid}"
    for episode in episodes:
        try:
            await worker.reset(device, f"screen-{episode.id}", episode.seed)
            if episode.state is not None:
                await worker.load_state(device, episode.state)
            before: Value = UNCHANGED
            previous: Value | None = None
            for step in episode.steps:
                if step.safe is not None or step.observation is None:
                    before, previous = step.action, None
                    continue
                began = clock.monotonic()
                action = await worker.act(device, step.tick, step.observation, safe=before)
                max_latency = max(max_latency, clock.monotonic() - began)
                ticks += 1
                try:
                    action = envelope.check(action, previous)
                except ValueError as refusal:
                    invalid += 1
                    first_invalid = first_invalid or f"episode {episode.id}, tick {step.tick}: {refusal}"
                same = _same(action, step.action)
                differing += not same
                if not same and changed_in in {"", episode.id} and len(changed) < CHANGES_TOLD:
                    changed_in, changed[step.tick] = episode.id, action
                before = UNCHANGED if same else step.action  # the recorded observations followed the recorded actions
                previous = step.action
            await worker.finish(device, episode.final_observation)
        except SandboxError as failure:
            errors += 1
            error = error or f"{type(failure).__name__}: {failure}"
            traceback = traceback or getattr(failure, "traceback", "")
            if worker.died.is_set():
                break
    return ScreenReport(
        ticks=ticks,
        differing=differing,
        invalid=invalid,
        errors=errors,
        max_latency=max_latency,
        error=error,
        traceback=traceback,
        first_invalid=first_invalid,
        changed=changed,
    )


def _same(one: Value, other: Value) -> bool:
    if isinstance(one, float | list | np.ndarray) or isinstance(other, float | list | np.ndarray):
        try:
            return bool(np.allclose(one, other, rtol=1e-9, atol=1e-12))
        except (TypeError, ValueError):
            return False
    return bool(one == other)
