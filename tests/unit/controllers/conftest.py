"""The shipped controllers on their real plants, in this process; playing and loading is the benchmark's."""

import ast
import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import pytest
from worlds import RETUNED

from agentd.environments.changes import CARTPOLE_CHANGES
from agentd.ready import find

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def bench():
    spec = importlib.util.spec_from_file_location("bench_controllers", ROOT / "benchmarks" / "bench_controllers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def shipped_code():
    """The text of the cart-pole's `act`, as a code parameter holds it: one function, without its decorator."""
    tree = ast.parse((find("cartpole") / "controller.py").read_text())
    (function,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    function.decorator_list = []
    return ast.unparse(function)


@pytest.fixture(scope="session")
def cartpole(bench):
    """Plays cart-pole code (or anything that acts) in a world: `.episodes(code, world)`, `.scores(code, world)`, `.explain(episode)`."""
    explain = bench.load("cartpole", "feedback").explain

    def act_of(code):
        if callable(code):
            return code
        names = {}
        exec(code, names)
        return lambda seen: names["act"](None, seen)

    def episodes(code, world=None, seeds=range(12)):
        env = gymnasium.make("CartPole-v1")
        if world is not None:
            env = CARTPOLE_CHANGES[world].apply(env)
        return [bench.run(env, act_of(code), seed=seed, max_steps=200) for seed in seeds]

    def scores(code, world=None, seeds=range(12)):
        return [explain(episode)[0] for episode in episodes(code, world, seeds)]

    return SimpleNamespace(episodes=episodes, scores=scores, explain=explain)


@pytest.fixture(scope="session")
def retuned_code(shipped_code):
    """The shipped code with the numbers that work in a world."""

    def retune(world):
        factors = iter(RETUNED[world])
        return with_numbers(shipped_code, lambda shipped: float(shipped) * next(factors))

    return retune


@pytest.fixture(scope="session")
def found_code(shipped_code):
    """The shipped code with other gains."""

    def code(gains):
        rest = iter(gains)
        return with_numbers(shipped_code, lambda _: next(rest))

    return code


def with_numbers(code, number):
    """The code whose four gains are what `number` makes of them."""
    changed, count = re.subn(r"\d+\.\d+(?= \* )", lambda match: repr(number(match[0])), code)
    assert count == 4
    return changed
