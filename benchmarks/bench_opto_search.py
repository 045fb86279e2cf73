"""How many proposals until search has 95% of the best known score, beside Optuna used alone and random search.

    python benchmarks/bench_opto_search.py [seeds]

Each problem is a program with wrong values in a simulated world with noise: CartPole whose motor's sign flipped, CartPole with one
sensor's sign flipped, a pendulum to be balanced by gains of the wrong scale and sign, and a shop that orders far too much from the wrong
supplier (two whole numbers and a choice, no code, and no symmetry that would help). A single start may suit one competitor by chance, so
the last three begin somewhere else with each seed: gains with random signs and up to twice or half (the pendulum: nearly three times) the
right size, a shop with any two numbers and either supplier. Scores are in [0, 1]; each proposal is scored by three episodes, as a canary's
selection does. The competitors vary the same values in the same ranges.
"""

import asyncio
import math
import random
import re
import statistics
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import optuna

from agentd.opto.contract import OptimizerContext
from agentd.opto.search import Search
from agentd.opto.space import Space
from agentd.records import Kind, MemoryEntry, Parameter

BUDGET = 60
EPISODES = 3
CARTPOLE = """def act(self, observation):
    position, speed, lean, swing = observation
    push = 0.5 * position + 1.0 * speed + 20.0 * lean + 3.0 * swing
    return 1 if push > 0 else 0
"""
PENDULUM = """def act(self, observation):
    angle, speed = observation
    return 1.5 * angle + 0.2 * speed
"""


def cartpole(values, generator, motor=1.0, lean_sign=1.0):
    act = compiled(values["act"])
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


def pendulum(values, generator):
    act = compiled(values["act"])
    angle, speed, total = generator.uniform(-0.4, 0.4), 0.0, 0.0
    for _ in range(200):
        torque = min(2.0, max(-2.0, act(None, (angle, speed)))) + generator.gauss(0.0, 0.1)
        speed += 0.05 * (15.0 * math.sin(angle) + 3.0 * torque * 2.0)
        angle += 0.05 * speed
        if abs(angle) > math.pi / 2:
            break
        total += 1.0 - abs(angle) / (math.pi / 2)
    return total / 200


def shop(values, generator):
    """100 days: sell what is asked for and there, pay for goods and for storage; profit over what a clairvoyant would make."""
    delay, price = {"near": (1, 0.7), "far": (7, 0.5)}[values["supplier"]]
    stock, profit, ideal = 30, 0.0, 0.0
    coming: deque = deque([0] * delay)
    for _ in range(100):
        stock += coming.popleft()
        wanted = max(0, round(generator.gauss(8.0, 4.0)))
        sold = min(stock, wanted)
        stock -= sold
        profit += sold - 0.02 * stock
        ideal += wanted * 0.5
        order = values["quantity"] if stock + sum(coming) <= values["reorder_at"] else 0
        coming.append(order)
        profit -= price * order + (1.0 if order else 0.0)
    return min(1.0, max(0.0, profit / ideal))


def compiled(source):
    scope: dict = {}
    exec(source, scope)
    return scope["act"]


@dataclass(frozen=True)
class Problem:
    parameters: tuple[Parameter, ...]
    episode: Callable[[dict[str, Any], random.Random], float]
    best: float

    @property
    def start(self):
        return {parameter.path: parameter.default for parameter in self.parameters}

    def score(self, values, generator):
        return statistics.fmean(self.episode(self.start | values, generator) for _ in range(EPISODES))


def code(source):
    return (Parameter(path="act", kind=Kind.CODE, default=source),)


SHOP = (
    Parameter(path="reorder_at", kind=Kind.NUMBER, integer=True, default=90, bounds=(0, 200)),
    Parameter(path="quantity", kind=Kind.NUMBER, integer=True, default=90, bounds=(1, 200)),
    Parameter(path="supplier", kind=Kind.CHOICE, default="near", choices=("near", "far")),
)

PROBLEMS = {
    "cartpole, motor sign": Problem(code(CARTPOLE), lambda values, generator: cartpole(values, generator, motor=-1.0), 0.98),
    "cartpole, sensor sign": Problem(code(CARTPOLE), lambda values, generator: cartpole(values, generator, lean_sign=-1.0), 0.98),
    "pendulum, sign and scale": Problem(code(PENDULUM), pendulum, 0.97),
    "shop, stock and supplier": Problem(SHOP, shop, 0.71),
}


def detuned(source, reach, seed):
    """`source` with each of its gains up to `reach` octaves off, and of either sign."""
    generator = random.Random(seed)
    return re.sub(
        r"\d+\.\d+", lambda gain: f"{generator.choice((-1, 1)) * float(gain[0]) * 2 ** generator.uniform(-reach, reach):.3g}", source
    )


def any_shop(seed):
    generator = random.Random(seed)
    starts = (generator.randrange(201), generator.randrange(1, 201), generator.choice(("near", "far")))
    return tuple(msgspec.structs.replace(parameter, default=start) for parameter, start in zip(SHOP, starts, strict=True))


ANYWHERE = {
    "cartpole, any start": lambda seed: Problem(code(detuned(CARTPOLE, 1.0, seed)), cartpole, 0.98),
    "pendulum, any start": lambda seed: Problem(code(detuned(PENDULUM, 1.5, seed)), pendulum, 0.97),
    "shop, any start": lambda seed: Problem(any_shop(seed), shop, 0.71),
}


def ours(problem, target, seed):
    generator = random.Random(seed)
    memory: list[MemoryEntry] = []
    base = problem.score({}, generator)
    context = OptimizerContext(agent="bench", stable="r", parameters=problem.parameters, values=problem.start, stable_mean=base)
    for count in range(1, BUDGET + 1):
        proposal = asyncio.run(Search(context).propose([], memory, seed * 1000 + count))
        full = problem.start | proposal.values
        mean = problem.score(full, generator)
        if mean >= target:
            return count
        memory.append(MemoryEntry(proposal=proposal.id, values=full, fate="pruned", mean=mean, difference=mean - base, pairs=EPISODES))
    return BUDGET + 1


def theirs(sampler):
    def suggest(trial, index, dimension):
        if dimension.choices is not None:
            return trial.suggest_categorical(index, dimension.choices)
        if dimension.integer:
            return trial.suggest_int(index, int(dimension.low), int(dimension.high))
        return trial.suggest_float(index, dimension.low, dimension.high, log=dimension.log)

    def run(problem, target, seed):
        generator = random.Random(seed)
        space = Space(problem.parameters, problem.start)
        study = optuna.create_study(direction="maximize", sampler=sampler(seed))
        study.enqueue_trial({str(index): value for index, value in enumerate(space.current)})
        for count in range(BUDGET + 1):
            trial = study.ask()
            point = tuple(suggest(trial, str(index), each) for index, each in enumerate(space.dimensions))
            mean = problem.score(space.values(point), generator)
            if mean >= target:
                return count
            study.tell(trial, mean)
        return BUDGET + 1

    return run


COMPETITORS = {
    "agentd search": ours,
    "Optuna alone": theirs(lambda seed: optuna.samplers.TPESampler(seed=seed)),
    "random": theirs(lambda seed: optuna.samplers.RandomSampler(seed=seed)),
}


def main():
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(f"proposals until 95% of the best known score, of {seeds} seeds (> {BUDGET}: not reached)")
    starts = {name: (lambda _, problem=problem: problem) for name, problem in PROBLEMS.items()} | ANYWHERE
    for name, start in starts.items():
        for competitor, run in COMPETITORS.items():
            counts = sorted(run(start(seed), 0.95 * start(seed).best, seed) for seed in range(seeds))
            median, worst = (f"> {BUDGET}" if count > BUDGET else f"{count:g}" for count in (statistics.median(counts), counts[-1]))
            reached = sum(count <= BUDGET for count in counts)
            episodes = f"{EPISODES * statistics.median(counts):g}"
            print(
                f"{name:26} {competitor:15} median {median:>5} ({episodes:>4} episodes)  mean {statistics.fmean(counts):5.1f}"
                f"  worst {worst:>5}  reached {reached}/{seeds}",
                flush=True,
            )


if __name__ == "__main__":
    main()
