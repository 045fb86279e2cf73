"""A feedback worker: what feedback.py sees, what it may give back, and how its faults are told."""

from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio
from episodes import make_episode

from agentd.errors import LoadError, PolicyError, WorkerDied, WorkerTimeout
from agentd.records import Source, Step
from agentd.sandbox import FeedbackWorker, Limits, Zygote

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def zygote() -> AsyncIterator[Zygote]:
    async with await Zygote.start(imports=("math", "numpy"), min_isolation=1) as started:
        yield started


STEPS = (
    Step(0, [0.0, 1.0], 1, reward=0.5),
    Step(1, np.array([0.5, 1.5]), np.array([1.0]), reward=0.25, safe="deadline", info={"force": 2.0}),
)
EPISODE = make_episode(
    device="robot",
    duration=2.5,
    steps=STEPS,
    final_observation=[1.0, 2.0],
    instruction="Keep still.",
    deadline_misses=1,
    trace=b"what the policy says of itself",
)


async def start(zygote: Zygote, text: str, *, seconds: float = 10.0, feedback: str | None = "feedback:explain") -> FeedbackWorker:
    source = Source(digest="d", files={"feedback.py": text}, entrypoint="controller:P", feedback=feedback)
    return await FeedbackWorker.start(zygote, source=source, limits=Limits(load_timeout=30.0), timeout=seconds, on_log=print)


async def test_it_sees_the_episode_as_the_runner_recorded_it(zygote: Zygote) -> None:
    text = """
def explain(episode):
    first, second = episode.steps
    assert (first.observation, first.action, first.reward, first.safe) == ([0.0, 1.0], 1, 0.5, None)
    assert second.observation.tolist() == [0.5, 1.5] and second.safe == "deadline" and second.info == {"force": 2.0}
    assert episode.outcome == "finished" and episode.device == "robot" and episode.instruction == "Keep still."
    assert episode.final_observation == [1.0, 2.0] and episode.error == ""
    assert episode.metrics == {"ticks": 2, "return": 0.75, "duration": 2.5, "deadline_misses": 1, "safe_actions": 1}
    assert not hasattr(episode, "trace")
    return episode.metrics["return"]
"""
    async with await start(zygote, text) as worker:
        assert await worker.judge(EPISODE) == (0.75, "", {})


@pytest.mark.parametrize(
    ("result", "verdict"),
    [
        ("0.5", (0.5, "", {})),
        ("1", (1.0, "", {})),
        ("np.float32(0.5)", (0.5, "", {})),
        ("(0.5, 'Fell to the left.')", (0.5, "Fell to the left.", {})),
        ("(0.5, 'Fell.', {'effort': 2})", (0.5, "Fell.", {"effort": 2.0})),
        ("Feedback()", (0.25, "In words.", {"effort": 3.0})),
    ],
)
async def test_it_may_give_a_score_words_and_metrics(zygote: Zygote, result: str, verdict: tuple[float, str, dict[str, float]]) -> None:
    text = f"""
import numpy as np
class Feedback:
    score, text, metrics = 0.25, "In words.", {{"effort": 3}}
def explain(episode):
    return {result}
"""
    async with await start(zygote, text) as worker:
        assert await worker.judge(EPISODE) == verdict


async def test_it_may_be_asynchronous(zygote: Zygote) -> None:
    async with await start(zygote, "async def explain(episode):\n    return 0.5, 'later'\n") as worker:
        assert await worker.judge(EPISODE) == (0.5, "later", {})


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return None", "expected a score"),
        ("return 'good'", "expected a score"),
        ("return ()", "0 values"),
        ("return (1.0, 'x', 7)", "dict of numbers"),
        ("return 1 / 0", "division by zero"),
        ("return open('/etc/passwd').read()", "not permitted|expected a score"),
        ("raise SystemExit", "SystemExit"),
    ],
)
async def test_a_fault_of_feedback_is_told_and_the_worker_goes_on(zygote: Zygote, body: str, told: str) -> None:
    async with await start(zygote, f"def explain(episode):\n    {body}\n") as worker:
        for _ in range(2):
            with pytest.raises(PolicyError, match=told):
                await worker.judge(EPISODE)


async def test_control_characters_in_its_words_are_replaced(zygote: Zygote) -> None:
    async with await start(zygote, "def explain(episode):\n    return 0.5, 'red \\x1b[31m text'\n") as worker:
        assert (await worker.judge(EPISODE))[1] == "red \N{REPLACEMENT CHARACTER}[31m text"


async def test_one_that_hangs_is_killed(zygote: Zygote) -> None:
    worker = await start(zygote, "def explain(episode):\n    while True:\n        pass\n", seconds=0.3)
    with pytest.raises(WorkerTimeout):
        await worker.judge(EPISODE)
    assert worker.died.is_set()
    await worker.aclose()


async def test_one_that_dies_says_how(zygote: Zygote) -> None:
    ending = "import typing\ndef explain(episode):\n    typing.sys.modules['os']._exit(9)\n"
    async with await start(zygote, ending) as worker:
        with pytest.raises(WorkerDied) as caught:
            await worker.judge(EPISODE)
        assert caught.value.exit_code == 9


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import socket\n", "may not import"),
        ("explain = 7\n", "not a function"),
        ("x = 1\n", "no 'explain'"),
        ("def explain(:\n", "SyntaxError|invalid"),
    ],
)
async def test_one_that_does_not_load_says_why(zygote: Zygote, text: str, told: str) -> None:
    with pytest.raises(LoadError, match=told):
        await start(zygote, text)


async def test_an_agent_without_feedback_has_no_worker(zygote: Zygote) -> None:
    with pytest.raises(LoadError, match=r"\[feedback\]"):
        await start(zygote, "", feedback=None)


async def test_a_long_episode_arrives_whole_and_one_that_is_too_long_is_an_error(zygote: Zygote) -> None:
    from msgspec.structs import replace

    async with await start(zygote, "def explain(episode):\n    return len(episode.steps)\n", seconds=60) as worker:
        steps = tuple(Step(tick, [float(tick)] * 8, 1, reward=1.0) for tick in range(20_000))
        assert (await worker.judge(replace(EPISODE, steps=steps)))[0] == 20_000
        with pytest.raises(PolicyError, match="longer than"):
            await worker.judge(replace(EPISODE, steps=(Step(0, "x" * 40_000_000, 1),)))
        assert (await worker.judge(EPISODE))[0] == 2
