"""What a shipped controller or policy has learned, exported and applied with `git apply`: the patched source acts like the revision did."""

import asyncio
import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from episodes import make_episode
from typer.testing import CliRunner

from agentd import ready
from agentd.cli.app import app
from agentd.opto.constants import find_constants, replace_constants
from agentd.records import AgentState, Exchange, Kind, Mode, Revision, Source, Step, make_revision
from agentd.runners.rerun import rerun
from agentd.sandbox import Limits, PolicyWorker, Zygote
from agentd.spec import EnvironmentKind, load_agent
from agentd.store import SqlStore
from agentd.trace.host import question_key

AGENTS = [folder.name for folder in ready.folders()]


def observations(spec, count=200):
    """What such a plant may show."""
    generator = random.Random(7)
    if spec.environment.kind is EnvironmentKind.DATASET:
        cases = (ready.find(spec.agent.name) / spec.environment.dataset.path).read_text().splitlines()
        return [json.loads(case)["input"] for case in cases[:20]]
    if spec.environment.kind is EnvironmentKind.GYMNASIUM:
        import gymnasium

        plant = gymnasium.make(spec.environment.id, **spec.environment.args)
        seen = [plant.reset(seed=1)[0].tolist()]
        plant.action_space.seed(1)
        while len(seen) < count:
            observation, _, terminated, truncated, _ = plant.step(plant.action_space.sample())
            seen.append((plant.reset()[0] if terminated or truncated else observation).tolist())
        plant.close()
        return seen
    space = spec.environment.observation_space
    ends = [(max(low, -5.0), min(high, 5.0)) for low, high in zip(space.low, space.high, strict=True)]
    return [[generator.uniform(low, high) for low, high in ends] for _ in range(count)]


def retuned(parameter):
    """Another value of the same kind: numbers moved, in code as elsewhere; words changed."""
    if parameter.kind is Kind.TEXT:
        return f'{parameter.default}\nSay "one word", nothing else: \\ and {{}} are none.'
    if parameter.kind is Kind.CODE:
        constants = find_constants(parameter.default)
        if not constants:  # it computes with words
            return parameter.default.replace('"en"', '"de"').replace('"Hello"', '"Bonjour"')
        return replace_constants(parameter.default, constants, [constant.value * -1.5 for constant in constants])
    assert parameter.kind is Kind.NUMBER
    high = (parameter.bounds or (None, None))[1]
    moved = parameter.default * 1.25 + 0.125
    return moved if high is None or moved < high else parameter.default * 0.5


def rewritten(parameter):
    """Code as a model writes it: another structure, no comments; other kinds as `retuned`."""
    if parameter.kind is not Kind.CODE:
        return retuned(parameter)
    lines = retuned(parameter).splitlines()
    *head, last = [line for line in lines if line.strip()]
    indent = last[: len(last) - len(last.lstrip())]
    value = last.strip().removeprefix("return ")
    tail = [f"chosen = {value}", "if chosen == 0:", "    return chosen", "return chosen"]
    return "\n".join([*head, *(indent + line for line in tail)]) + "\n"


def asked(prompt: str, observation: str) -> Exchange:
    """What a policy asks with this prompt, word for word, answered as no other prompt is."""
    messages = (("system", prompt), ("user", observation))
    return Exchange(key=question_key(messages, max_tokens=64, temperature=0.0), messages=messages, answer=question_key(messages))


async def act(zygote, source: Source, revision: Revision, spec, seen):
    limits = Limits.from_spec(spec.sandbox, spec.models)
    async with await PolicyWorker.start(zygote, source=source, revision=revision, limits=limits, on_log=print) as worker:
        prompts = [revision.values.get(one.path, one.default) for one in worker.parameters if one.kind is Kind.TEXT]
        steps = tuple(
            Step(tick, observation, None, exchanges=tuple(asked(prompt, observation) for prompt in prompts))
            for tick, observation in enumerate(seen)
        )
        report = await rerun(worker, make_episode(seed=3, steps=steps), None)
        assert (report.fault, report.unrecorded) == ("", "")
        return worker.parameters, report.actions


def apply(folder: Path, patch: Path) -> None:
    ran = subprocess.run(["git", "apply", str(patch)], check=False, cwd=folder, capture_output=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("name", "change"),
    [(name, change) for name in AGENTS for change in (retuned, rewritten) if (name, change) != ("triage", rewritten)],  # it has no code
)
async def test_the_patched_source_acts_like_the_revision_that_learned(name, change, tmp_path):
    spec, source = load_agent(ready.find(name))
    seen = observations(spec)
    first = make_revision(name, source.digest, {})
    async with await Zygote.start(imports=spec.sandbox.allowed_imports, min_isolation=1) as zygote:
        parameters, before = await act(zygote, source, first, spec, seen)
        assert parameters
        learned = make_revision(name, source.digest, {parameter.path: change(parameter) for parameter in parameters})
        _, wanted = await act(zygote, source, learned, spec, seen)
        assert wanted != before

        state = AgentState(name=name, source=source.digest, stable=learned.id, mode=Mode.RELEASE, parameters=parameters)
        async with await SqlStore.open(f"sqlite:///{tmp_path / 'agentd.db'}") as store:
            await store.commit(source, first, learned, state)
        words = ["export", name, "--store", str(tmp_path / "agentd.db"), "--output", str(tmp_path / "learned.patch")]
        answer = await asyncio.to_thread(CliRunner().invoke, app, words)
        assert answer.exit_code == 0, answer.output

        folder = tmp_path / name
        shutil.copytree(ready.find(name), folder)
        await asyncio.to_thread(apply, folder, tmp_path / "learned.patch")
        _, patched = load_agent(folder)
        described, actions = await act(zygote, patched, make_revision(name, patched.digest, {}), spec, seen)
    assert actions == wanted
    assert {one.path: one.kind for one in described} == {one.path: one.kind for one in parameters}
    changed = {file for file, text in source.files.items() if patched.files[file] != text}
    assert changed == {f"{name}.py" if spec.environment.kind is EnvironmentKind.DATASET else "controller.py"}
