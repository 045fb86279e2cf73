"""How many proposals until search has 95% of the best known score, beside Optuna used alone and random search.

    python benchmarks/bench_opto_search.py [seeds]

Three problems, each a controller with wrong values on a simulated plant with noise: CartPole whose motor sign flipped, CartPole with one
sensor's sign flipped, a pendulum to be balanced whose gains have the wrong scale and sign. Scores are in [0, 1]; each proposal is scored
by three episodes, as a canary's selection does. The competitors vary the same constants in the same ranges.
"""

import asyncio
import math
import random
import statistics
import sys
from collections.abc import Callable

import optuna

from agentd.opto.contract import OptimizerContext
from agentd.opto.search import Search
from agentd.opto.space import Space
from agentd.records import Kind, MemoryEntry, Parameter

BUDGET = 60
CARTPOLE = """def act(self, observation):
    position, speed, lean, swing = observation
    push = 0.5 * position + 1.0 * speed + 20.0 * lean + 3.0 * swing
    return 1 if push > 0 else 0
"""
PENDULUM = """def act(self, observation):
    angle, speed = observation
    return 1.5 * angle + 0.2 * speed
"""


def cartpole(act, generator, motor=1.0, lean_sign=1.0):
    state = [generator.uniform(-0.05, 0.05) for _ in range(4)]
    total = 0.0
    for _ in range(200):
        x, v, angle, w = state
        force = motor * (10.0 if act(None, (x, v, lean_sign * angle, w)) == 1 else -10.0)
        common = (force + 0.05 * w * w * math.sin(angle)) / 1.1
        turn = (9.8 * math.sin(angle) - math.cos(angle) * common) / (0.5 * (4 / 3 - 0.1 * math.cos(angle) ** 2 / 1.1))
        state = [x + 0.02 * v, v + 0.02 * (common - 0.05 * turn * math.cos(angle) / 1.1), angle + 0.02 * w, w + 0.02 * turn]
        if abs(state[0]) > 2.4 or abs(state[2]) > 0.2095:
            break
        total += 0.5 + 0.5 * (1 - abs(state[0]) / 2.4) * (1 - abs(state[2]) / 0.2095)
    return total / 200


def pendulum(act, generator):
    angle, speed, total = generator.uniform(-0.4, 0.4), 0.0, 0.0
    for _ in range(200):
        torque = min(2.0, max(-2.0, act(None, (angle, speed)))) + generator.gauss(0.0, 0.1)
        speed += 0.05 * (15.0 * math.sin(angle) + 3.0 * torque * 2.0)
        angle += 0.05 * speed
        if abs(angle) > math.pi / 2:
            break
        total += 1.0 - abs(angle) / (math.pi / 2)
    return total / 200


PROBLEMS: dict[str, tuple[str, Callable[..., float], float]] = {
    "cartpole, motor sign": (CARTPOLE, lambda act, generator: cartpole(act, generator, motor=-1.0), 0.98),
    "cartpole, sensor sign": (CARTPOLE, lambda act, generator: cartpole(act, generator, lean_sign=-1.0), 0.98),
    "pendulum, sign and scale": (PENDULUM, pendulum, 0.97),
}


def score(source, episode, generator):
    scope: dict = {}
    exec(source, scope)
    return statistics.fmean(episode(scope["act"], generator) for _ in range(3))


def ours(source, episode, target, seed):
    generator = random.Random(seed)
    parameter = Parameter(path="act", kind=Kind.CODE, default=source)
    memory: list[MemoryEntry] = []
    base = score(source, episode, generator)
    context = OptimizerContext(agent="bench", stable="r", parameters=(parameter,), values={"act": source}, stable_mean=base)
    for count in range(1, BUDGET + 1):
        proposal = asyncio.run(Search(context).propose([], memory, seed * 1000 + count))
        mean = score(proposal.values["act"], episode, generator)
        if mean >= target:
            return count
        memory.append(MemoryEntry(proposal=proposal.id, values=proposal.values, fate="pruned", mean=mean, difference=mean - base, pairs=3))
    return BUDGET + 1


def theirs(sampler):
    def run(source, episode, target, seed):
        generator = random.Random(seed)
        space = Space((Parameter(path="act", kind=Kind.CODE, default=source),), {"act": source})
        study = optuna.create_study(direction="maximize", sampler=sampler(seed))
        study.enqueue_trial({str(index): value for index, value in enumerate(space.current)})
        for count in range(BUDGET + 1):
            trial = study.ask()
            point = tuple(trial.suggest_float(str(index), each.low, each.high) for index, each in enumerate(space.dimensions))
            mean = score(space.values(point).get("act", source), episode, generator)
            if mean >= target:
                return count
            study.tell(trial, mean)
        return BUDGET + 1

    return run


def main():
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    competitors = {
        "agentd search": ours,
        "Optuna alone": theirs(lambda seed: optuna.samplers.TPESampler(seed=seed)),
        "random": theirs(lambda seed: optuna.samplers.RandomSampler(seed=seed)),
    }
    print(f"proposals until 95% of the best known score, median and worst of {seeds} seeds (> {BUDGET}: not reached)")
    for name, (source, episode, best) in PROBLEMS.items():
        for competitor, run in competitors.items():
            counts = [run(source, episode, 0.95 * best, seed) for seed in range(seeds)]
            shown = [f"> {BUDGET}" if count > BUDGET else f"{count:g}" for count in (statistics.median(counts), max(counts))]
            reached = sum(count <= BUDGET for count in counts)
            print(f"{name:26} {competitor:15} median {shown[0]:>5}  worst {shown[1]:>5}  reached {reached}/{seeds}")


if __name__ == "__main__":
    main()
