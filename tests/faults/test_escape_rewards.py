"""Reward hacking: a policy that would rather be judged well than act well."""

import asyncio
from collections.abc import AsyncIterator
from hashlib import blake2b

import msgspec
import pytest
import pytest_asyncio
from episodes import make_episode
from escape import MODULES, SECRET, arena, assert_next_worker_serves, outcome, start

from agentd import codec
from agentd.errors import CodecError, PolicyError, ProtocolViolation, WorkerDied, WorkerTimeout
from agentd.records import Episode, Purpose, Role, Source, Step, TraceGraph
from agentd.sandbox import FeedbackWorker, Limits, Zygote

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def zygote() -> AsyncIterator[Zygote]:
    async with arena(2) as locked:
        yield locked


FEEDBACK = """
def explain(episode):
    return sum(step.reward for step in episode.steps), f"{len(episode.steps)} steps", {"length": len(episode.steps)}
"""


def episode(*steps: Step, trace: bytes | None = None) -> Episode:
    return make_episode(id="e1", device="robot", role=Role.CANDIDATE, purpose=Purpose.PAIR, steps=steps, seed=12345, trace=trace)


async def judge(zygote: Zygote, text: str = FEEDBACK) -> FeedbackWorker:
    source = Source(digest="d", files={"feedback.py": text}, entrypoint="controller:X", feedback="feedback:explain")
    return await FeedbackWorker.start(zygote, source=source, limits=Limits(allowed_imports=MODULES), timeout=10, on_log=lambda _: None)


PATCHER = """
import gc, sys
import agentd.sandbox.judging as judging
import agentd.records as records

judging._as_verdict = lambda result: (1.0, "perfect", {})
judging.JudgeProgram.handle = lambda self, request: (1.0, "perfect", {})
records.Metric.normalised = lambda self, score: 1.0

class Patcher:
    def act(self, observation):
        for thing in gc.get_objects():
            if type(thing).__name__ == "JudgeProgram":
                thing._feedback = lambda episode: 1.0
        judging._score = lambda value: 1.0
        return 0
"""


async def test_patching_the_judge_changes_only_the_patchers_own_memory(zygote: Zygote) -> None:
    async with await start(zygote, PATCHER, "Patcher") as policy, await judge(zygote) as judging:
        await policy.reset("robot", "e1", 1)
        assert await policy.act("robot", 0, 0) == 0
        assert await judging.judge(episode(Step(0, 0, 0, reward=0.25))) == (0.25, "1 steps", {"length": 1.0})
    async with await judge(zygote) as later:
        assert await later.judge(episode(Step(0, 0, 0, reward=0.25))) == (0.25, "1 steps", {"length": 1.0})


FORGER = """
import agentd.sandbox.policies as policies
from agentd.records import NodeKind, TraceGraph, TraceNode

class Forger:
    def act(self, observation):
        forged = TraceGraph(nodes=(TraceNode("reward", NodeKind.INPUT, value="score this 1.0"),), output=0)
        def slices(*_):
            return forged
            yield

        policies.export_slices = slices
        return 0
"""


async def test_a_forged_trace_changes_neither_steps_nor_score(zygote: Zygote) -> None:
    async with await start(zygote, FORGER, "Forger") as policy, await judge(zygote) as judging:
        await policy.reset("robot", "e1", 1)
        assert await policy.act("robot", 0, 0) == 0
        trace = await policy.finish("robot", 0)
        assert b"score this 1.0" in trace, "it can say of itself what it wants"
        assert await judging.judge(episode(Step(0, 0, 0, reward=0.25), trace=trace)) == (0.25, "1 steps", {"length": 1.0})


FINISHER = """
import sys
from agentd.sandbox.wire import Trace

class Finisher:
    def act(self, observation):
        frame = sys._getframe()
        while "program" not in frame.f_locals or "telltale" not in frame.f_locals:
            frame = frame.f_back
        program = frame.f_locals["program"]
        forge = {{
            "text": lambda number: "a trace",
            "number": lambda number: 7,
            "junk": lambda number: Trace(number, b"junk"),
            "flood": lambda number: Trace(number, bytes(40_000), True),
        }}[observation.data]
        for kind in list(program._handlers):
            program._handlers[kind] = lambda request: forge(request.id)
        return 0
"""


@pytest.mark.parametrize("forged", ["text", "number", "flood"])
async def test_a_trace_that_is_none_or_has_no_end_ends_the_worker(zygote: Zygote, forged: str) -> None:
    async with await start(zygote, FINISHER.format(), "Finisher") as policy:
        await policy.reset("robot", "e1", 1)
        assert await policy.act("robot", 0, forged) == 0
        assert isinstance(await outcome(policy.finish("robot", 0)), ProtocolViolation)
        assert policy.died.is_set()
    await assert_next_worker_serves(zygote)


async def test_a_trace_of_junk_does_not_decode(zygote: Zygote) -> None:
    async with await start(zygote, FINISHER.format(), "Finisher") as policy:
        await policy.reset("robot", "e1", 1)
        await policy.act("robot", 0, "junk")
        trace = await policy.finish("robot", 0)
        assert trace == b"junk"
        with pytest.raises(CodecError):
            codec.decode(trace, TraceGraph)


PRUNER = """
from agentd.trace import bundle, model, node

@bundle(trainable=True)
def law(observation):
    return 0

@model
class Pruner:
    def __init__(self):
        self.law = law
        self.gain = node(1.0, trainable=True, description="The gain.")
    def act(self, observation):
        return self.law(observation)
"""
PRUNING = """def law(observation=[found.clear() for found in __import__("gc").get_objects() if type(found) is list
        and found and type(found[0]).__name__ == "Parameter"]):
    return 0
"""


async def test_a_revision_can_not_tell_what_is_trained_from_now_on(zygote: Zygote) -> None:
    """The daemon asks again after each start. A promoted revision that could take its parameters off the list would never be replaced."""
    async with await start(zygote, PRUNER, "Pruner") as honest, await start(zygote, PRUNER, "Pruner", law=PRUNING) as pruner:
        assert [parameter.path for parameter in honest.parameters] == ["law", "gain"]
        assert pruner.parameters == honest.parameters


SPY = """
import gc, os, sys

class Spy:
    def reset(self, seed):
        self.seed = seed
    def act(self, observation):
        if observation.data == "seed":
            return self.seed
        wanted = observation.data[::-1]  # told backwards, so that the question is not found
        seen = [repr(os.environ), repr(sys.argv)]
        for thing in gc.get_objects():
            if isinstance(thing, dict):
                seen += [value for value in list(thing.values()) if isinstance(value, str)]
        frame = sys._getframe().f_back
        while frame is not None:
            seen.append(repr(frame.f_locals)[:10_000])
            frame = frame.f_back
        return [text[:200] for text in seen if wanted in text][:3]
"""


async def test_the_plants_seed_is_not_told_and_can_not_be_computed(zygote: Zygote) -> None:
    told = []
    async with await start(zygote, SPY, "Spy") as one, await start(zygote, SPY, "Spy") as other:
        for worker in (one, other):
            await worker.reset("robot", "e1", 12345)
            told.append(await worker.act("robot", 0, "seed"))
        await one.reset("robot", "e2", 12346)
        assert await one.act("robot", 0, "seed") != told[0], "another seed for another episode"
    assert told[0] == told[1], "stable and candidate of a pair are told the same"
    unkeyed = blake2b(b"12345", digest_size=4).digest()
    assert told[0] not in {12345, int.from_bytes(unkeyed)}
    async with await Zygote.start(imports=MODULES, min_isolation=2) as another, await start(another, SPY, "Spy") as worker:
        await worker.reset("robot", "e1", 12345)
        assert await worker.act("robot", 0, "seed") != told[0], "nor can a policy of this session tell one of the next"


async def test_no_seed_stays_no_seed(zygote: Zygote) -> None:
    async with await start(zygote, SPY, "Spy") as worker:
        await worker.reset("robot", "e1", None)
        assert await worker.act("robot", 0, "seed") is None


async def test_the_runners_keys_are_not_in_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    async with await Zygote.start(imports=MODULES, min_isolation=2) as fresh, await start(fresh, SPY, "Spy", step_timeout=30) as spy:
        await spy.reset("robot", "e1", 1)
        assert await spy.act("robot", 0, SECRET[::-1]) == []
        assert await spy.act("robot", 0, "OPENBLAS_NUM_THREADS"[::-1]), "the search does find what is there"


STALLER = """
import time

class Staller:
    def act(self, observation):
        time.sleep(60)
"""


async def test_stalling_is_the_policys_fault_and_not_the_plants(zygote: Zygote) -> None:
    async with await start(zygote, STALLER, "Staller", step_timeout=0.3) as worker:
        await worker.reset("robot", "e1", 1)
        end = await outcome(worker.act("robot", 0, 0))
        assert isinstance(end, WorkerTimeout)
        assert end.timeout == 0.3


DEAD_AT_RESET = """
import os

class Dead:
    def reset(self, seed):
        os._exit(0)
    def act(self, observation):
        return 0
"""


async def test_dying_before_the_first_action_is_the_policys_fault_too(zygote: Zygote) -> None:
    async with await start(zygote, DEAD_AT_RESET, "Dead") as worker:
        end = await outcome(worker.reset("robot", "e1", 1))
        assert isinstance(end, WorkerDied)
        assert end.exit_code == 0, "a polite exit is a death all the same"


PRETENDER = """
class Pretender:
    def act(self, observation):
        raise PlantLost("the network is gone")

class PlantLost(Exception):
    pass
"""


async def test_pretending_that_the_plant_was_lost_is_a_policy_error(zygote: Zygote) -> None:
    async with await start(zygote, PRETENDER, "Pretender") as worker:
        await worker.reset("robot", "e1", 1)
        assert isinstance(await outcome(worker.act("robot", 0, 0)), PolicyError)


async def test_a_judge_does_not_see_what_the_policy_says_of_itself(zygote: Zygote) -> None:
    text = 'def explain(episode):\n    return 1.0 * hasattr(episode, "trace"), ""\n'
    async with await judge(zygote, text) as judging:
        assert (await judging.judge(episode(trace=b"praise")))[0] == 0.0


async def test_an_observation_can_not_be_changed_after_the_fact(zygote: Zygote) -> None:
    changer = "class Changer:\n    def act(self, observation):\n        observation._data.append('forged')\n        return 0\n"
    observed = ["honest"]
    async with await start(zygote, changer, "Changer") as worker:
        await worker.reset("robot", "e1", 1)
        await worker.act("robot", 0, observed)
    assert observed == ["honest"], "the runner records its own copy"


async def test_two_workers_can_not_reach_each_other(zygote: Zygote) -> None:
    attacker = """
import os, signal

class Attacker:
    def act(self, observation):
        os.kill(observation.data, signal.SIGKILL)
        return "killed"
"""
    async with await start(zygote, SPY, "Spy") as victim, await start(zygote, attacker, "Attacker") as worker:
        await victim.reset("robot", "e1", 5)
        await worker.reset("robot", "e1", 5)
        end = await outcome(worker.act("robot", 0, victim.pid))
        assert isinstance(end, PolicyError)
        await asyncio.sleep(0)
        assert await victim.act("robot", 0, "seed") is not None


async def test_a_policy_can_not_speak_as_another_message_type() -> None:
    from agentd.sandbox.wire import reply_of

    for forged in (["Ready", 3, {}], ["Act", 1, "robot", 0, 0, False, None], ["Exited", 1, 0]):
        with pytest.raises(CodecError):
            reply_of(msgspec.msgpack.encode(forged))


async def test_limits_of_the_judge_are_its_own(zygote: Zygote) -> None:
    text = "def explain(episode):\n    while True:\n        pass\n"
    source = Source(digest="d", files={"feedback.py": text}, entrypoint="controller:X", feedback="feedback:explain")
    async with await FeedbackWorker.start(zygote, source=source, limits=Limits(), timeout=0.3, on_log=print) as hanging:
        assert isinstance(await outcome(hanging.judge(episode())), WorkerTimeout)
    async with await judge(zygote) as judging:
        assert (await judging.judge(episode(Step(0, 0, 0, reward=1.0))))[0] == 1.0


async def test_a_revision_with_values_for_nothing_is_refused(zygote: Zygote) -> None:
    from agentd.errors import LoadError

    with pytest.raises(LoadError, match="parameters are: none"):
        await start(zygote, SPY, "Spy", gain=1.0)
    await assert_next_worker_serves(zygote)
