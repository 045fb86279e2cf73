"""Judges of several agents share the process that their workers are forked from, and nothing else."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
from episodes import make_episode

from agentd.errors import LoadError
from agentd.hosting.judge import Judge
from agentd.hosting.zygotes import Zygotes
from agentd.records import Metric, Source, Step
from agentd.spec import AgentSpec

METRIC = Metric(name="score", low=0.0, high=1.0)
EPISODE = make_episode(steps=(Step(tick=0, observation=1, action=1),))


@pytest.fixture
async def zygotes() -> AsyncIterator[Zygotes]:
    async with Zygotes() as zygotes:
        yield zygotes


def judge(zygotes: Zygotes, body: str) -> Judge:
    tables = {
        "schema": 1,
        "agent": {"name": "cartpole", "entrypoint": "controller:Controller"},
        "environment": {"kind": "gymnasium", "id": "CartPole-v1"},
        "feedback": {"entrypoint": "feedback:explain", "timeout": 5.0},
    }
    files = {"feedback.py": f"seen = []\n\ndef explain(episode):\n    seen.append(episode)\n    {body}\n"}
    source = Source(digest=body, files=files, entrypoint="controller:Controller", feedback="feedback:explain")
    return Judge(AgentSpec.model_validate(tables), source, METRIC, zygotes)


async def test_judges_with_the_same_imports_share_one_zygote_and_no_memory(zygotes: Zygotes) -> None:
    async with judge(zygotes, "return len(seen) / 4") as one, judge(zygotes, "return len(seen) / 8") as other:
        assert [(await one.judge(EPISODE)).score for _ in range(2)] == [0.25, 0.5]
        assert (await other.judge(EPISODE)).score == 0.125
        first = await zygotes.get(("math", "numpy"), 2)
        assert await zygotes.get(("numpy", "math"), 2) is first
        async with judge(zygotes, "raise ValueError('no idea')") as poor:
            assert "no idea" in (await poor.judge(EPISODE)).failed
        assert (await one.judge(EPISODE)).score == 0.75  # the failure of another one has cost this judge nothing


async def test_a_zygote_that_died_is_started_again_for_whoever_asks_next(zygotes: Zygotes) -> None:
    async with judge(zygotes, "return len(seen) / 4") as one:
        await one.judge(EPISODE)
        zygote = await zygotes.get(("math", "numpy"), 2)
        os.killpg(zygote.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while zygote.alive:  # noqa: ASYNC110 - its end is told by the kernel
                await asyncio.sleep(0.01)
        assert (await one.judge(EPISODE)).failed
        assert (await one.judge(EPISODE)).score == 0.25  # a fresh worker, from a fresh zygote


async def test_other_imports_have_another_zygote_and_those_that_there_are_not_are_told(zygotes: Zygotes) -> None:
    with pytest.raises(LoadError, match="no_such_module"):
        await zygotes.get(("no_such_module",), 0)
    assert await zygotes.get(("math",), 0) is not await zygotes.get(("cmath",), 0)
