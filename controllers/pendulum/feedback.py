"""What a swing-up was worth, and what an engineer who watched it would say.

0.3 for being quick: the share of the episode that was left when the pendulum had arrived upright. 0.7 for the second half of the episode:
each tick earns its height (0 hanging, 1 upright), of which 0.5 is for being there and 0.2 for the torque that was not needed.
"""

import itertools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentd.records import Episode, Step

UPRIGHT = 0.3  # rad: closer than this counts as upright
STAY = 20  # ticks in a row that make an arrival
LIMIT = 2.0  # N m


def explain(episode: "Episode") -> tuple[float, str]:
    """Return the score in [0, 1], and measurements in words."""
    steps = episode.steps
    if not steps:
        return 0.0, "There was no step to judge."
    angles = [math.atan2(float(step.observation[1]), float(step.observation[0])) for step in steps]
    torques = [max(-LIMIT, min(LIMIT, float(step.action[0]))) for step in steps]
    arrival = first_stay([abs(angle) < UPRIGHT for angle in angles])
    half = len(steps) // 2
    heights = [(1.0 + math.cos(angle)) / 2.0 for angle in angles]
    efforts = [abs(torque) / LIMIT for torque in torques]
    held = mean([height * (0.5 + 0.2 * (1.0 - effort)) for height, effort in zip(heights[half:], efforts[half:], strict=True)])
    quick = 0.0 if arrival is None else 0.3 * (1.0 - arrival / len(steps))

    highest = max(range(len(steps)), key=lambda tick: heights[tick])
    if arrival is None:
        said = [
            f"Never stayed upright; came as close as {math.degrees(abs(angles[highest])):.0f} degrees at step {highest}.",
            f"In {share(torques, steps)} % of the ticks away from upright the torque had the sign of the angular velocity.",
        ]
    else:
        after = [abs(angle) for angle in angles[arrival:]]
        said = [f"Upright from step {arrival} on; the angle was {math.degrees(mean(after)):.1f} degrees off on average from there."]
        falls = sum(before < 1.0 <= now for before, now in itertools.pairwise(after))
        if falls:
            said.append(f"It fell {falls} times after that.")
    full = sum(effort > 0.99 for effort in efforts)
    said.append(f"{100 * mean(efforts[half:]):.0f} % of the torque was used in the second half; it was at its limit in {full} ticks.")
    safe = sum(step.safe is not None for step in steps)
    if safe:
        said.append(f"In {safe} of {len(steps)} ticks the plant got the safe action instead of the policy's.")
    return held + quick, " ".join(said)


def share(torques: list[float], steps: "tuple[Step, ...]") -> int:
    """Percentage of the ticks away from upright in which the motor pushed in the direction of the motion."""
    away = [
        torque * float(step.observation[2]) > 0 for torque, step in zip(torques, steps, strict=True) if float(step.observation[0]) < 0.95
    ]
    return round(100 * sum(away) / len(away)) if away else 0


def first_stay(flags: list[bool]) -> int | None:
    """Where the first `STAY` True in a row begin, or None."""
    run = 0
    for tick, flag in enumerate(flags):
        run = run + 1 if flag else 0
        if run == STAY:
            return tick - STAY + 1
    return None


def mean(numbers: list[float]) -> float:
    """Average of at least one number."""
    return sum(numbers) / len(numbers)
