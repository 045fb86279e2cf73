"""What an episode of the cart-pole was worth, and what an engineer who watched it would say.

Every tick that the pole stays up earns 0.4 for standing, up to 0.4 for being near the centre (nothing from 1 m on) and up to 0.2 for
pushes that cancel out over the last ten ticks. The score is the mean over the episode's 200 ticks; those after a fall earn nothing.
"""

import itertools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentd.records import Episode

HORIZON = 200  # ticks: `max_steps` in agent.toml
TRACK_LIMIT = 2.4  # m
ANGLE_LIMIT = 12.0  # degrees
WINDOW = 10  # ticks over which pushes should cancel out

Reading = list[float]  # position (m), velocity (m/s), angle (rad), angular velocity (rad/s); right is positive


def explain(episode: "Episode") -> tuple[float, str]:
    """Return the score in [0, 1], and measurements in words. What they mean is left to the reader: sensors may be wrong."""
    steps = episode.steps
    if not steps:
        return 0.0, "There was no step to judge."
    readings = [[float(value) for value in step.observation] for step in steps]
    pushes = [1 if int(step.action) == 1 else -1 for step in steps]
    nearness = [max(0.0, 1.0 - abs(position)) for position, *_ in readings]
    imbalance = [abs(sum(pushes[max(0, tick + 1 - WINDOW) : tick + 1])) / WINDOW for tick in range(len(pushes))]
    fell = steps[-1].terminated
    earned = sum(0.4 + 0.4 * near + 0.2 * (1.0 - net) for near, net in zip(nearness, imbalance, strict=True))
    score = earned / (max(HORIZON, len(steps)) if fell else len(steps))

    if episode.final_observation is not None:
        readings.append([float(value) for value in episode.final_observation])
    sentences = [describe_fall(readings, pushes) if fell else f"Balanced for all {len(steps)} steps.", describe_motion(readings, imbalance)]
    if fell:
        sentences += describe_answers(readings, pushes)
    safe = sum(step.safe is not None for step in steps)
    if safe:
        sentences.append(f"In {safe} of {len(steps)} ticks the plant got the safe action instead of the policy's.")
    return score, " ".join(sentences)


def describe_fall(readings: list[Reading], pushes: list[int]) -> str:
    """Say when and where the episode ended before its time, and what the pushes did about it."""
    position, _, angle, _ = readings[-1]
    degrees = math.degrees(angle)
    if abs(position) > TRACK_LIMIT:
        return f"Ran off the {side(position)} end of the track at step {len(pushes)} with the pole at {degrees:+.1f} degrees."
    agreed = [push * lean > 0 for push, (_, _, lean, _) in zip(pushes, readings, strict=False)]
    run = run_length(agreed)
    sign = "the sign of" if agreed[-1] else "the opposite sign to"
    return (
        f"Fell to the {side(angle)} at step {len(pushes)} of {HORIZON} (angle {degrees:+.1f} degrees, limit {ANGLE_LIMIT:.0f}); "
        f"for the last {run} ticks the push had {sign} the lean."
    )


def describe_motion(readings: list[Reading], imbalance: list[float]) -> str:
    """Say where the cart was, and how much of the pushing did not cancel out."""
    positions = [position for position, *_ in readings]
    furthest = max(range(len(positions)), key=lambda tick: abs(positions[tick]))
    return (
        f"The cart was {mean(positions):+.2f} m from the centre on average and {positions[furthest]:+.2f} m at most (step {furthest}); "
        f"{100 * mean(imbalance):.0f} % of the pushing did not cancel out over {WINDOW} ticks."
    )


def describe_answers(readings: list[Reading], pushes: list[int]) -> list[str]:
    """Say how the plant answered the pushes, and whether its sensors agree with each other."""
    moves = list(itertools.pairwise(readings))
    sentences = []
    answers = {
        push: [after[3] - before[3] for (before, after), pushed in zip(moves, pushes, strict=False) if pushed == push] for push in (1, -1)
    }
    told = [f"{mean(changes):+.2f} rad/s per push to the {side(push)}" for push, changes in answers.items() if changes]
    if told:
        sentences.append(f"The angular velocity reading changed by {' and by '.join(told)}.")
    opposed = sum(before[3] * (after[2] - before[2]) < 0 for before, after in moves)
    sentences.append(f"In {opposed} of {len(moves)} ticks the angle changed against the sign of the angular velocity reading.")
    return sentences


def side(number: float) -> str:
    """Say a sign in words."""
    return "right" if number > 0 else "left"


def mean(numbers: list[float]) -> float:
    """Average of at least one number."""
    return sum(numbers) / len(numbers)


def run_length(flags: list[bool]) -> int:
    """How many flags at the end are equal."""
    return len(list(itertools.takewhile(lambda flag: flag == flags[-1], reversed(flags))))
