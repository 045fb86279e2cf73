"""How well the shipped controllers do on their plants, and what each change of the cart-pole costs them.

    .venv/bin/python benchmarks/bench_controllers.py [--seeds 100]

For each change: the score of the shipped gains (mean, standard deviation over seeds, mean length), and the best of a search over the
four gains of the same law: sign probes first, then random numbers around the shipped ones.
"""

import argparse
import importlib.util
import random
import re
import statistics
from pathlib import Path

import gymnasium
import numpy as np

from agentd.environments.changes import CARTPOLE_CHANGES
from agentd.records import Episode, Outcome, Purpose, Role, Step
from agentd.trace import Node

ROOT = Path(__file__).resolve().parent.parent
CONTROLLERS = ROOT / "controllers"


def load(name, module):
    spec = importlib.util.spec_from_file_location(f"{name}_{module}", CONTROLLERS / name / f"{module}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def run(env, act, *, seed, max_steps, device="bench"):
    """One episode of `act` on `env`, as a runner would record it."""
    observation, _ = env.reset(seed=seed)
    steps = []
    for tick in range(max_steps):
        seen = [float(value) for value in observation]
        action = act(seen)
        observation, reward, terminated, truncated, _ = env.step(action)
        steps.append(Step(tick, seen, action, float(reward), bool(terminated), bool(truncated)))
        if terminated or truncated:
            break
    return Episode(
        id=f"{device}-{seed}",
        agent="bench",
        device=device,
        revision="",
        role=Role.STABLE,
        purpose=Purpose.NORMAL,
        outcome=Outcome.FINISHED,
        started_at=0.0,
        duration=0.0,
        steps=tuple(steps),
        final_observation=[float(value) for value in observation],
        seed=seed,
    )


def measure(env, act, explain, *, seeds, max_steps):
    episodes = [run(env, act, seed=seed, max_steps=max_steps) for seed in seeds]
    return [explain(episode)[0] for episode in episodes], [len(episode.steps) for episode in episodes]


def row(name, scores, lengths):
    spread = statistics.stdev(scores)
    extremes = f"[{min(scores):.3f}, {max(scores):.3f}]"
    print(f"  {name:<34} {statistics.mean(scores):5.3f} ± {spread:5.3f}   {extremes}   {statistics.mean(lengths):6.1f} steps")


def linear_law(gains):
    return lambda observation: int(sum(gain * value for gain, value in zip(gains, observation, strict=True)) > 0.0)


def shipped_gains():
    """The four numbers of the shipped law, read from its source."""
    source = (CONTROLLERS / "cartpole" / "controller.py").read_text()
    line = next(line for line in source.splitlines() if line.strip().startswith("lean ="))
    return [float(number) for number in re.findall(r"([\d.]+) \*", line)]


def candidates(gains, generator):
    yield "all signs turned", [-gain for gain in gains]
    for index, name in enumerate(("position", "velocity", "angle", "angular velocity")):
        yield f"sign of {name} turned", [-gain if at == index else gain for at, gain in enumerate(gains)]
    while True:
        yield "random numbers", [gain * generator.lognormvariate(0, 1) * generator.choice((1, 1, 1, -1)) for gain in gains]


def recover(env, explain, gains, *, attempts=60):
    """The first numbers that reach 0.93 on eight seeds, in the order in which a search would try them."""
    best = ("nothing", gains, 0.0, 0)
    for attempt, (name, tried) in zip(range(1, attempts + 1), candidates(gains, random.Random(1)), strict=False):
        scores, _ = measure(env, linear_law(tried), explain, seeds=range(8), max_steps=200)
        if statistics.mean(scores) > best[2]:
            best = (name, tried, statistics.mean(scores), attempt)
        if best[2] >= 0.93:
            break
    return best


def bench_cartpole(seeds):
    explain = load("cartpole", "feedback").explain
    gains = shipped_gains()
    print(f"cartpole: gains {gains}, 200 steps, {len(seeds)} seeds: mean ± sd, [worst, best], length")
    row("unchanged", *measure(gymnasium.make("CartPole-v1"), linear_law(gains), explain, seeds=seeds, max_steps=200))
    for change in CARTPOLE_CHANGES.values():
        env = change.apply(gymnasium.make("CartPole-v1"))
        row(change.name, *measure(env, linear_law(gains), explain, seeds=seeds, max_steps=200))
        name, found, _, attempt = recover(env, explain, gains)
        shown = ", ".join(f"{gain:.2f}" for gain in found)
        print(f"    retuned at attempt {attempt} ({name}): {shown}")
        row(f"  {change.name}, retuned", *measure(env, linear_law(found), explain, seeds=seeds, max_steps=200))


def bench_pendulum(seeds):
    explain = load("pendulum", "feedback").explain
    controller = load("pendulum", "controller").Pendulum()
    env = gymnasium.make("Pendulum-v1")
    print(f"pendulum: 200 steps, {len(seeds)} seeds")
    row("shipped", *measure(env, lambda seen: np.float32(unwrapped(controller.act(seen))), explain, seeds=seeds, max_steps=200))
    row("no torque", *measure(env, lambda _: np.float32([0.0]), explain, seeds=seeds, max_steps=200))


def unwrapped(value):
    return value.data if isinstance(value, Node) else value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    arguments = parser.parse_args()
    seeds = range(10_000, 10_000 + arguments.seeds)
    bench_cartpole(seeds)
    bench_pendulum(seeds)


if __name__ == "__main__":
    main()
