"""The controller that the README writes in 30 lines works as it stands there."""

import importlib.util
import re
from pathlib import Path

import gymnasium
import pytest

from agentd.environments.changes import CARTPOLE_CHANGES
from agentd.spec import load_agent

README = (Path(__file__).resolve().parents[3] / "README.md").read_text()


@pytest.fixture
def folder(tmp_path):
    section = README.split("## A controller in 30 lines")[1].split("\n## ")[0]
    controller, feedback = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (specification,) = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    (tmp_path / "controller.py").write_text(controller)
    (tmp_path / "feedback.py").write_text(feedback)
    (tmp_path / "agent.toml").write_text(specification)
    return tmp_path


def load(path):
    spec = importlib.util.spec_from_file_location(f"readme_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_specification_has_no_mistake(folder):
    spec, _ = load_agent(folder)
    assert spec.agent.name == "cartpole"


@pytest.mark.parametrize(("world", "length", "words"), [(None, 200, "Balanced."), ("flip-motor", 9, "Fell to the right at step 9.")])
def test_it_balances_and_its_feedback_tells_when_it_does_not(bench, folder, world, length, words):
    program = load(folder / "controller.py").CartPole()
    env = gymnasium.make("CartPole-v1")
    env = CARTPOLE_CHANGES[world].apply(env) if world else env
    episode = bench.run(env, lambda seen: program.act(seen).data, seed=3, max_steps=200)
    assert load(folder / "feedback.py").explain(episode) == (length / 200, words)


@pytest.mark.parametrize("change", CARTPOLE_CHANGES.values(), ids=CARTPOLE_CHANGES)
def test_the_readme_knows_each_change(change):
    assert f"| `{change.name}` |" in README


def test_it_is_as_short_as_it_says(folder):
    lines = [line for path in folder.iterdir() for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) <= 30
