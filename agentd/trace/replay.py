"""Replay: recorded steps through another revision, actions compared.

Changed actions would have met other observations, so that a replay says what a policy would have *done*, tick by tick, on what was seen,
never what would have come of it. Safe ticks are skipped: the plant got an action that was not the policy's. `agentd.runners` replays in the
sandbox and uses `compare`; `replay` runs a program of one's own here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from agentd.records import Record, Step, Value
from agentd.trace.context import stop_tracing
from agentd.trace.host import RecordedHost, hosted
from agentd.trace.nodes import Node, unwrap

_MAX_DIFFERENCES = 50


class Difference(Record, frozen=True):
    """One tick at which the actions differ. `size` is the largest difference of their numbers, None where they have none."""

    tick: int
    recorded: Value
    replayed: Value
    size: float | None = None


class Replay(Record, frozen=True):
    """What a replay found.

    `skipped` counts ticks by the reason why they could not be replayed; `differing` counts all differences, `differences` holds the first;
    `error` is what the policy raised, at `failed_at`, after which nothing was replayed.
    """

    ticks: int
    compared: int = 0
    differing: int = 0
    differences: tuple[Difference, ...] = ()
    largest: float | None = None
    skipped: dict[str, int] = {}  # noqa: RUF012 - a record copies its defaults
    error: str = ""
    failed_at: int | None = None

    @property
    def same(self) -> bool:
        """Whether every tick that could be compared has the same action, and there was one."""
        return self.compared > 0 and self.differing == 0 and not self.error


def reason_to_skip(step: Step) -> str:
    """Why a step can't be replayed; empty where it can."""
    if step.safe is not None:
        return f"safe action ({step.safe})"
    if not is_lossless(step.observation):
        return "the observation was not recorded whole"
    if not is_lossless(step.action):
        return "the action was not recorded whole"
    return ""


def is_lossless(value: Value) -> bool:
    """Whether a recorded value is the value itself, and no summary of it (agentd.trace.summaries)."""
    if isinstance(value, Mapping):
        return "$type" not in value and all(is_lossless(item) for item in value.values())
    return all(is_lossless(item) for item in value) if isinstance(value, list | tuple) else True


def difference(recorded: Value, replayed: Value) -> float:  # noqa: PLR0911 - a case per kind of value
    """The largest difference between the numbers of two actions; 0.0 for equal ones, infinity where their shapes or texts differ.

    NaN equals NaN: a policy that repeats its NaN repeats its action.
    """
    recorded, replayed = _listed(recorded), _listed(replayed)
    if isinstance(recorded, list) and isinstance(replayed, list):
        if len(recorded) != len(replayed):
            return math.inf
        return max((difference(one, other) for one, other in zip(recorded, replayed, strict=True)), default=0.0)
    if isinstance(recorded, Mapping) and isinstance(replayed, Mapping):
        if recorded.keys() != replayed.keys():
            return math.inf
        return max((difference(recorded[key], replayed[key]) for key in recorded), default=0.0)
    if isinstance(recorded, int | float) and isinstance(replayed, int | float):
        try:
            size = abs(float(recorded) - float(replayed))
        except OverflowError:  # an integer beyond every float
            size = math.inf
        if math.isnan(size):  # one is NaN, or both are the same infinity
            return 0.0 if recorded == replayed or (math.isnan(recorded) and math.isnan(replayed)) else math.inf
        return 0.0 if recorded == replayed else size
    return 0.0 if type(recorded) is type(replayed) and recorded == replayed else math.inf


def _listed(value: Value) -> Value:
    if hasattr(value, "tolist"):
        value = value.tolist()
    return list(value) if isinstance(value, tuple) else value


def compare(
    steps: Sequence[Step], replayed: Mapping[int, Value], *, tolerance: float = 0.0, error: str = "", failed_at: int | None = None
) -> Replay:
    """The actions of `steps` against `replayed` ones by tick. Numbers within `tolerance` are the same."""
    skipped: dict[str, int] = {}
    differences: list[Difference] = []
    compared = differing = 0
    largest: float | None = None
    for step in steps:
        reason = reason_to_skip(step) or ("" if step.tick in replayed else "not replayed: the policy had failed before")
        if reason:
            skipped[reason] = skipped.get(reason, 0) + 1
            continue
        compared += 1
        size = difference(step.action, replayed[step.tick])
        if size <= tolerance:
            continue
        differing += 1
        if math.isfinite(size):
            largest = size if largest is None else max(largest, size)
        if len(differences) < _MAX_DIFFERENCES:
            differences.append(
                Difference(tick=step.tick, recorded=step.action, replayed=replayed[step.tick], size=size if math.isfinite(size) else None)
            )
    return Replay(
        ticks=len(steps), compared=compared, differing=differing, differences=tuple(differences), largest=largest, skipped=skipped,
        error=error, failed_at=failed_at,
    )  # fmt: skip


def replay(policy: Any, steps: Sequence[Step], *, seed: int | None = None, tolerance: float = 0.0) -> Replay:
    """Runs `policy` (an object with `act`, and `reset` where it has one) over the recorded observations, untraced.

    A policy with a memory of its own is reset with the episode's `seed` and sees safe ticks too (their actions are not compared), so
    that its memory is what it was. What it asks of models is answered from the steps' exchanges; what isn't there ends the replay.
    """
    actions: dict[int, Value] = {}
    error, failed_at = "", None
    with stop_tracing():
        step: Step | None = None
        host = RecordedHost(())
        try:
            if hasattr(policy, "reset"):
                policy.reset(seed)
            for step in steps:
                if is_lossless(step.observation):
                    host = RecordedHost(step.exchanges)
                    with hosted(host):
                        action = _plain(policy.act(step.observation))
                    if host.recorded.missing:
                        break
                    actions[step.tick] = action
        except Exception as raised:  # noqa: BLE001 - whatever the policy raises is the finding
            error, failed_at = f"({type(raised).__name__}) {raised}", None if step is None else step.tick
        if host.recorded.missing:  # what the program made of that is no finding
            error, failed_at = host.recorded.missing, None if step is None else step.tick
    return compare(steps, actions, tolerance=tolerance, error=error, failed_at=failed_at)


def _plain(action: Any) -> Value:
    found: list[Any] = []
    return unwrap(action._data if isinstance(action, Node) else action, found)
