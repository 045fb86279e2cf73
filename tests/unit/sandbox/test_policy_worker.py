"""A policy worker: what an author's program may be, what its trace holds, and how its calls queue up, fail and end."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from agentd import codec
from agentd.errors import LoadError, PolicyError, WorkerDied, WorkerTimeout
from agentd.records import Kind, NodeKind, Source, TraceGraph, make_revision
from agentd.sandbox import Limits, PolicyWorker, Zygote

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def zygote() -> AsyncIterator[Zygote]:
    async with await Zygote.start(imports=("fractions", "math", "numpy"), min_isolation=1) as started:
        yield started


async def start(
    zygote: Zygote,
    files: str | dict[str, str],
    entrypoint: str = "controller:P",
    *,
    values: dict[str, Any] | None = None,
    args: dict[str, Any] | None = None,
    limits: Limits | None = None,
    log: list[str] | None = None,
) -> PolicyWorker:
    files = {"controller.py": files} if isinstance(files, str) else files
    source = Source(digest="d", files=files, entrypoint=entrypoint, args=args or {})
    revision = make_revision("a", source.digest, values or {})
    limits = limits or Limits(step_timeout=10.0, load_timeout=30.0)
    return await PolicyWorker.start(zygote, source=source, revision=revision, limits=limits, on_log=(log if log is not None else []).append)


TRACED = """
from agentd.trace import bundle, model, node

@model
class P:
    def __init__(self, gain=2.0):
        self.gain = node(gain, name="gain", trainable=True, bounds=(0.0, 10.0), description="How hard to push.")

    @bundle(trainable=True)
    def law(self, gain, observation):
        '''Push against the lean.'''
        return -gain * observation

    def act(self, observation):
        return self.law(self.gain, observation)
"""


async def graph_of(worker: PolicyWorker, final: Any) -> TraceGraph:
    trace = await worker.finish("robot", final)
    assert trace is not None
    return codec.decode(trace, TraceGraph)


# --- programs ---------------------------------------------------------------------------------------------------------


async def test_a_traced_program_tells_its_parameters_and_acts(zygote: Zygote) -> None:
    async with await start(zygote, TRACED) as worker:
        found = {parameter.path: parameter for parameter in worker.parameters}
        assert found["gain"].kind is Kind.NUMBER
        assert found["gain"].default == 2.0
        assert found["gain"].bounds == (0.0, 10.0)
        assert found["law"].kind is Kind.CODE
        assert "return -gain * observation" in found["law"].default
        await worker.reset("robot", "e1", 1)
        assert await worker.act("robot", 0, 3.0) == -6.0


async def test_a_revision_values_are_assigned_by_path_and_defaults_are_told_unchanged(zygote: Zygote) -> None:
    law = "def law(self, gain, observation):\n    return 100 * gain + observation\n"
    async with await start(zygote, TRACED, values={"gain": 5.0, "law": law}) as worker:
        await worker.reset("robot", "e1", 1)
        await worker.reset("other", "e2", 1)
        assert await worker.act("robot", 0, 1.0) == 501.0
        assert await worker.act("other", 0, 2.0) == 502.0
        assert next(parameter for parameter in worker.parameters if parameter.path == "gain").default == 2.0


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"gain": 50.0}, "gain: .*bounds"),
        ({"gain": "much"}, "gain: "),
        ({"lift": 1.0}, "lift.*parameters are: gain, law|lift.*parameters are: law, gain"),
        ({"law": "def law(self, gain):\n    return 0\n"}, "law: the code must start with"),
        ({"law": "def law(self, gain, observation):\n    return (\n"}, "law: the code does not compile"),
    ],
    ids=["out of bounds", "wrong type", "unknown path", "other signature", "no Python"],
)
async def test_values_that_do_not_fit_the_source_are_refused_with_the_reason(zygote: Zygote, values: dict[str, Any], told: str) -> None:
    with pytest.raises(LoadError, match=told):
        await start(zygote, TRACED, values=values)


async def test_an_error_within_a_module_whose_file_can_not_be_read_is_still_the_program_s(zygote: Zygote) -> None:
    text = """
import fractions
from agentd.trace import bundle
class P:
    def act(self, observation):
        return self.parse(observation)
    @bundle()
    def parse(self, observation):
        return fractions.Fraction(observation)
"""
    async with await start(zygote, text, limits=Limits(load_timeout=30.0, step_timeout=10.0, allowed_imports=("fractions",))) as worker:
        await worker.reset("robot", "e1", 1)
        with pytest.raises(PolicyError, match="Invalid literal for Fraction: 'half'"):
            await worker.act("robot", 0, "half")


async def test_arguments_of_agent_toml_reach_the_factory(zygote: Zygote) -> None:
    text = """
def make(gain):
    return P(gain)
class P:
    def __init__(self, gain):
        self.gain = gain
    def act(self, observation):
        return self.gain
"""
    async with await start(zygote, text, "controller:make", args={"gain": [1, 2]}) as worker:
        await worker.reset("robot", "e1", 1)
        assert await worker.act("robot", 0, 0) == [1, 2]


async def test_every_device_has_an_instance_of_its_own(zygote: Zygote) -> None:
    text = "class P:\n    n = 0\n    def act(self, observation):\n        self.n += 1\n        return self.n\n"
    async with await start(zygote, text) as worker:
        await worker.reset("one", "e1", 1)
        await worker.reset("other", "e2", 1)
        assert [await worker.act("one", tick, 0) for tick in range(3)] == [1, 2, 3]
        assert await worker.act("other", 0, 0) == 1
        await worker.reset("one", "e3", 1)
        assert await worker.act("one", 0, 0) == 4, "an instance lives on from episode to episode"


async def test_reset_passes_a_seed_and_state_is_handed_over(zygote: Zygote) -> None:
    text = """
class P:
    total = 0.0
    def reset(self, seed):
        self.seed = seed
    def act(self, observation):
        self.total += observation.data
        return self.seed
    def state(self):
        return {"total": self.total}
    def load_state(self, value):
        self.total = value["total"]
"""
    async with await start(zygote, text) as old, await start(zygote, text) as new:
        for worker in (old, new):
            await worker.reset("robot", "e1", 7)
        assert await old.act("robot", 0, 1.5) == await new.act("robot", 0, 0.0)
        assert isinstance(await old.act("robot", 1, 1.0), int)
        await new.load_state("robot", await old.state("robot"))
        assert await new.state("robot") == {"total": 2.5}


async def test_a_policy_without_reset_and_state_is_fine(zygote: Zygote) -> None:
    async with await start(zygote, "class P:\n    def act(self, observation):\n        return 1\n") as worker:
        await worker.reset("robot", "e1", 7)
        assert await worker.state("robot") is None
        await worker.load_state("robot", {"total": 1.0})
        assert await worker.finish("robot", None) is None, "no tick, no trace"


async def test_a_policy_may_be_asynchronous(zygote: Zygote) -> None:
    text = """
import asyncio
from agentd.trace import node
class P:
    async def reset(self, seed):
        self.ready = True
    async def act(self, observation):
        await asyncio.sleep(0.001)
        doubled, tripled = await asyncio.gather(self.times(observation, 2), self.times(observation, 3))
        return doubled + tripled
    async def times(self, observation, factor):
        await asyncio.sleep(0)
        return observation * factor
"""
    async with await start(zygote, text, limits=Limits(step_timeout=10.0, load_timeout=30.0, allowed_imports=("asyncio",))) as worker:
        await worker.reset("robot", "e1", 7)
        assert await worker.act("robot", 0, 2) == 10
        graph = await graph_of(worker, 0)
        assert {"multiply", "add"} <= {found.operator for found in graph.nodes}, "tasks joined the episode's graph"


async def test_values_of_every_kind_travel_both_ways(zygote: Zygote) -> None:
    text = "class P:\n    def act(self, observation):\n        return observation\n"
    async with await start(zygote, text) as worker:
        await worker.reset("robot", "e1", 1)
        for value in (None, True, 3, -1.5, "text", [1, [2.0]], {"a": {"b": [None]}}, "x" * 500_000):
            assert await worker.act("robot", 0, value) == value
        array = np.arange(60_000, dtype=np.float32).reshape(200, 300)
        received = await worker.act("robot", 1, array)
        assert received.dtype == array.dtype
        assert np.array_equal(received, array)


async def test_numpy_scalars_and_nodes_within_containers_become_plain(zygote: Zygote) -> None:
    text = """
import numpy as np
from agentd.trace import node
class P:
    def act(self, observation):
        return {"left": observation + 1, "right": [node(np.float64(2.5))], "count": np.int64(3)}
"""
    async with await start(zygote, text) as worker:
        await worker.reset("robot", "e1", 1)
        assert await worker.act("robot", 0, 1) == {"left": 2, "right": [2.5], "count": 3}
        await worker.act("robot", 1, 1)
        graph = await graph_of(worker, 1)
        assert sum(found.operator == "action" for found in graph.nodes) == 2


async def test_generators_are_reseeded_in_every_worker(zygote: Zygote) -> None:
    text = """
import random
import numpy as np
class P:
    def act(self, observation):
        return [random.random(), float(np.random.rand())]
"""
    drawn = []
    for _ in range(2):
        async with await start(zygote, text) as worker:
            await worker.reset("robot", "e1", 1)
            drawn += await worker.act("robot", 0, 0)
    assert len(set(drawn)) == 4


# --- modules ----------------------------------------------------------------------------------------------------------


async def test_a_program_may_have_modules_packages_and_files(zygote: Zygote) -> None:
    files = {
        "controller.py": "from laws.linear import law\nimport helpers\nclass P:\n    def act(self, observation):\n"
        "        return [law(observation.data), helpers.name(), __loader__.get_data('prompt.txt').decode()]\n",
        "laws/__init__.py": "",
        "laws/linear.py": "from .gains import GAIN\ndef law(x):\n    return GAIN * x\n",
        "laws/gains.py": "GAIN = 3\n",
        "helpers.py": "import math\ndef name():\n    return f'{math.pi:.2f}'\n",
        "prompt.txt": "Be careful.",
    }
    async with await start(zygote, files) as worker:
        await worker.reset("robot", "e1", 1)
        assert await worker.act("robot", 0, 2) == [6, "3.14", "Be careful."]


async def test_inspect_and_tracebacks_see_the_source(zygote: Zygote) -> None:
    text = """import inspect
class P:
    def act(self, observation):
        if observation.data:
            raise ValueError('wrong')  # the line
        return inspect.getsource(P.act)
"""
    async with await start(zygote, text, limits=Limits(step_timeout=10.0, load_timeout=30.0, allowed_imports=("inspect",))) as worker:
        await worker.reset("robot", "e1", 1)
        assert "raise ValueError('wrong')" in await worker.act("robot", 0, 0)
        with pytest.raises(PolicyError, match="ValueError: wrong") as caught:
            await worker.act("robot", 1, 1)
        assert 'File "/agent/controller.py", line 5, in act' in caught.value.traceback
        assert "raise ValueError('wrong')  # the line" in caught.value.traceback
        assert "agentd/sandbox" not in caught.value.traceback, "our own frames are no help to an author"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import socket", "may not import 'socket': .*allowed_imports has only numpy"),
        ("from os import path", "may not import 'os'"),
        ("import nonsense", "may not import 'nonsense'"),
        ("x = (", r"SyntaxError.*|'\(' was never closed"),
        ("1 / 0", "ZeroDivisionError"),
        ("class Q: pass", "controller has no 'P'"),
        ("class P: pass", "which has no method act"),
        ("class P:\n    def __init__(self, needed): pass\n    def act(self, o): pass", "needed"),
        ("raise SystemExit(0)", "SystemExit"),
        ("def P(): return 7", "makes a int, which has no method act"),
    ],
)
async def test_a_program_that_can_not_be_loaded_says_why(zygote: Zygote, text: str, told: str) -> None:
    with pytest.raises(LoadError, match=told):
        await start(zygote, text)


async def test_a_module_may_not_hide_one_that_exists(zygote: Zygote) -> None:
    with pytest.raises(LoadError, match="rename it"):
        await start(zygote, {"controller.py": "import random\nclass P:\n    def act(self, o): return 1\n", "random.py": ""})


async def test_a_load_error_has_the_authors_traceback(zygote: Zygote) -> None:
    with pytest.raises(LoadError) as caught:
        await start(zygote, {"controller.py": "import helper\n", "helper.py": "\n\nraise RuntimeError('in the helper')\n"})
    assert 'File "/agent/helper.py", line 3' in caught.value.traceback


# --- the trace --------------------------------------------------------------------------------------------------------


async def test_the_environment_is_in_the_graph(zygote: Zygote) -> None:
    async with await start(zygote, TRACED) as worker:
        await worker.reset("robot", "e1", 1)
        for tick, observation in enumerate([1.0, 0.5, 0.25]):
            await worker.act("robot", tick, observation)
        graph = await graph_of(worker, 0.125)
    operators = [found.operator for found in graph.nodes]
    assert operators.count("environment_reset") == 1
    assert operators.count("environment_step") == 3, "two between the acts, and the one to the final observation"
    assert graph.output is not None
    end = graph.nodes[graph.output]
    assert end.operator == "episode_end"
    assert graph.nodes[end.parents[0]].value == 0.125
    last_step = graph.nodes[end.parents[0]]
    assert last_step.arguments == ("observation", "action")
    action = graph.nodes[last_step.parents[1]]
    parents = {graph.nodes[parent].path for parent in action.parents}
    assert "gain" in parents, "from the end back to the parameters"
    assert all(parent < position for position, found in enumerate(graph.nodes) for parent in found.parents)


async def test_what_the_plant_got_instead_is_a_constant_in_the_graph(zygote: Zygote) -> None:
    async with await start(zygote, TRACED) as worker:
        await worker.reset("robot", "e1", 1)
        await worker.act("robot", 0, 1.0)
        await worker.act("robot", 1, 0.5, safe=0.0)
        graph = await graph_of(worker, None)
    step = next(found for found in graph.nodes if found.operator == "environment_step")
    action = graph.nodes[step.parents[1]]
    assert action.kind is NodeKind.INPUT
    assert action.value == 0.0


async def test_an_error_is_part_of_the_graph_and_the_worker_goes_on(zygote: Zygote) -> None:
    text = """
from agentd.trace import bundle
class P:
    @bundle()
    def law(self, observation):
        return 1 / observation
    def act(self, observation):
        return self.law(observation)
"""
    async with await start(zygote, text) as worker:
        await worker.reset("robot", "e1", 1)
        assert await worker.act("robot", 0, 2) == 0.5
        with pytest.raises(PolicyError, match="division by zero"):
            await worker.act("robot", 1, 0)
        graph = await graph_of(worker, 0)
        assert graph.output is not None
        end = graph.nodes[graph.output]
        assert NodeKind.EXCEPTION in {graph.nodes[parent].kind for parent in end.parents}
        await worker.reset("robot", "e2", 1)
        assert await worker.act("robot", 0, 4) == 0.25
        fresh = await graph_of(worker, 0)
        assert NodeKind.EXCEPTION not in {found.kind for found in fresh.nodes}


async def test_episodes_of_two_devices_do_not_mix(zygote: Zygote) -> None:
    async with await start(zygote, TRACED) as worker:
        await worker.reset("robot", "e1", 1)
        await worker.reset("other", "e2", 1)
        for tick in range(3):
            await worker.act("robot", tick, 1.0)
            await worker.act("other", tick, 2.0)
        mine = await graph_of(worker, 1.0)
        assert {found.value for found in mine.nodes if found.operator.startswith("environment")} == {1.0}


async def test_a_trace_of_hundreds_of_kilobytes_arrives_whole(zygote: Zygote) -> None:
    async with await start(zygote, TRACED) as worker:
        await worker.reset("robot", "e1", 1)
        for tick in range(3_000):
            await worker.act("robot", tick, float(tick))
        trace = await worker.finish("robot", 0.0)
        assert trace is not None
        assert len(trace) > 200_000
        assert codec.decode(trace, TraceGraph).output is not None


COUNTING = """
from agentd.trace import model, node

@model
class P:
    def __init__(self):
        self.total = node(0.0)

    def act(self, observation):
        self.total = self.total + observation
        return self.total
"""


async def test_an_episode_that_is_cut_goes_on_in_the_next_one_with_its_policy_as_it_is(zygote: Zygote) -> None:
    async with await start(zygote, COUNTING) as worker:
        await worker.reset("robot", "e1", 1)
        for tick in range(200):
            await worker.act("robot", tick, 1.0)
        cut = worker.cut("robot", 1.0)
        assert await worker.act("robot", 0, 1.0) == 201.0
        first = codec.decode(await worker.collect(cut), TraceGraph)
        assert sum(found.operator == "environment_step" for found in first.nodes) == 200
        second = await graph_of(worker, 1.0)
        assert [found.operator for found in second.nodes if found.operator.startswith("environment")] == [
            "environment_reset",
            "environment_step",
        ]


async def test_a_trace_is_made_between_the_ticks_that_go_on_meanwhile(zygote: Zygote) -> None:
    async with await start(zygote, COUNTING) as worker:
        await worker.reset("robot", "e1", 1)
        for tick in range(3_000):
            await worker.act("robot", tick, 1.0)
        collecting = asyncio.create_task(worker.collect(worker.cut("robot", 1.0)))
        passed = 0
        while not collecting.done():
            assert await worker.act("robot", passed, 0.0) == 3_000.0
            passed += 1
        assert passed > 10
        trace = await collecting
        assert codec.decode(trace, TraceGraph).output is not None


async def test_traces_of_episodes_that_follow_each_other_closely_do_not_mix(zygote: Zygote) -> None:
    async with await start(zygote, COUNTING) as worker:
        await worker.reset("robot", "e1", 1)
        cuts = []
        for number in range(3):
            for tick in range(50 + number):
                await worker.act("robot", tick, 1.0)
            cuts.append(worker.cut("robot", 1.0))
        traces = await asyncio.gather(*(worker.collect(cut) for cut in reversed(cuts)))
        lengths = [sum(one.operator == "environment_step" for one in codec.decode(trace, TraceGraph).nodes) for trace in traces]
        assert lengths == [52, 51, 50]


async def test_a_trace_that_nobody_fetches_is_let_go(zygote: Zygote) -> None:
    async with await start(zygote, COUNTING) as worker:
        await worker.reset("robot", "e1", 1)
        cuts = []
        for _ in range(6):
            await worker.act("robot", 0, 1.0)
            cuts.append(worker.cut("robot", 1.0))
        assert await worker.collect(cuts[0]) is None
        assert await worker.collect(cuts[-1]) is not None


# --- calls and ends ---------------------------------------------------------------------------------------------------

SLOW = "import time\nclass P:\n    def act(self, observation):\n        time.sleep(observation.data)\n        return observation.data\n"
PATIENT = Limits(step_timeout=10.0, load_timeout=30.0, allowed_imports=("time", "os"))


async def test_calls_queue_up_in_order(zygote: Zygote) -> None:
    async with await start(zygote, SLOW, limits=PATIENT) as worker:
        done: list[float] = []

        async def call(device: str, seconds: float) -> None:
            await worker.reset(device, "e", 1)
            done.append(await worker.act(device, 0, seconds))

        await asyncio.gather(call("one", 0.2), call("two", 0.0), call("three", 0.1))
        assert done == [0.2, 0.0, 0.1]


async def test_a_cancelled_call_does_not_disturb_the_next(zygote: Zygote) -> None:
    async with await start(zygote, SLOW, limits=PATIENT) as worker:
        await worker.reset("robot", "e", 1)
        late = asyncio.ensure_future(worker.act("robot", 0, 0.3))
        await asyncio.sleep(0.05)
        late.cancel()
        queued = asyncio.ensure_future(worker.act("robot", 1, 0.01))
        dropped = asyncio.ensure_future(worker.act("robot", 2, 5.0))
        await asyncio.sleep(0)
        dropped.cancel()
        assert await queued == 0.01
        assert await worker.act("robot", 3, 0.0) == 0.0


async def test_the_step_timeout_counts_from_when_the_worker_was_asked(zygote: Zygote) -> None:
    limits = Limits(step_timeout=1.0, load_timeout=30.0, allowed_imports=("time",))
    async with await start(zygote, SLOW, limits=limits) as worker:
        await worker.reset("robot", "e", 1)
        assert await asyncio.gather(*(worker.act("robot", tick, 0.4) for tick in range(4))) == [0.4] * 4


async def test_a_worker_that_is_late_is_killed_and_everybody_hears_it(zygote: Zygote) -> None:
    limits = Limits(step_timeout=0.3, load_timeout=30.0, allowed_imports=("time",))
    async with await start(zygote, SLOW, limits=limits) as worker:
        await worker.reset("robot", "e", 1)
        calls = [asyncio.ensure_future(worker.act("robot", tick, 60)) for tick in range(2)]
        with pytest.raises(WorkerTimeout):
            await calls[0]
        with pytest.raises(WorkerTimeout):
            await calls[1]
        await asyncio.wait_for(worker.died.wait(), 10)
        assert isinstance(worker.reason, WorkerTimeout)


@pytest.mark.parametrize(
    ("end", "exit_code", "number"), [("os._exit(5)", 5, None), ("os.kill(os.getpid(), 9)", None, signal.SIGKILL)], ids=["exit", "signal"]
)
async def test_the_way_of_a_death_is_told(zygote: Zygote, end: str, exit_code: int | None, number: int | None) -> None:
    text = f"import os\nclass P:\n    def act(self, observation):\n        {end}\n"
    if number is not None:
        text = SLOW
    async with await start(zygote, text, limits=PATIENT) as worker:
        await worker.reset("robot", "e", 1)
        call = asyncio.ensure_future(worker.act("robot", 0, 60))
        await asyncio.sleep(0.05)
        if number is not None:
            worker.kill()
        with pytest.raises(WorkerDied) as caught:
            await call
        assert (caught.value.exit_code, caught.value.signal) == (exit_code, number)
        with pytest.raises(WorkerDied):
            await worker.act("robot", 1, 0)


async def test_what_a_program_prints_and_logs_is_passed_on(zygote: Zygote) -> None:
    text = """
import logging
log = logging.getLogger("controller")
print("loaded")
class P:
    def act(self, observation):
        print("one", "line", flush=True)
        print("no end", end="", flush=True)
        log.warning("careful: %s", 7)
        return 1
"""
    lines: list[str] = []
    async with await start(zygote, text, log=lines) as worker:
        await worker.reset("robot", "e", 1)
        await worker.act("robot", 0, 0)
    assert lines == ["loaded", "one line", "no end", "WARNING controller: careful: 7"]


async def test_an_observation_that_can_not_travel_is_an_error_and_no_more(zygote: Zygote) -> None:
    async with await start(zygote, SLOW, limits=PATIENT) as worker:
        await worker.reset("robot", "e", 1)
        with pytest.raises(PolicyError, match="can't be passed on"):
            await worker.act("robot", 0, object())
        with pytest.raises(PolicyError, match=r"can't be passed on: .* longer than"):
            await worker.act("robot", 0, "x" * 40_000_000)
        assert await worker.act("robot", 1, 0.0) == 0.0


async def test_closing_ends_open_calls_and_can_be_repeated(zygote: Zygote) -> None:
    worker = await start(zygote, SLOW, limits=PATIENT)
    await worker.reset("robot", "e", 1)
    call = asyncio.ensure_future(worker.act("robot", 0, 60))
    await asyncio.sleep(0.05)
    await worker.aclose()
    with pytest.raises(WorkerDied):
        await call
    await worker.aclose()


async def test_the_zygotes_end_is_the_end_of_its_workers() -> None:
    async with await Zygote.start(imports=("math",), min_isolation=1) as own:
        worker = await start(own, SLOW, limits=PATIENT)
        assert own.alive
        os.kill(own.pid, signal.SIGKILL)
        await asyncio.wait_for(worker.died.wait(), 10)
        assert not own.alive
        with pytest.raises(WorkerDied):
            await start(own, SLOW)
        await worker.aclose()


async def test_arrays_arrive_also_at_a_program_that_may_not_import_numpy() -> None:
    text = "class P:\n    def act(self, observation):\n        return observation.sum()"
    limits = Limits(step_timeout=10.0, load_timeout=30.0, allowed_imports=("math",))
    async with await Zygote.start(imports=limits.allowed_imports, min_isolation=1) as zygote:
        with pytest.raises(LoadError, match="may not import 'numpy'"):
            await start(zygote, "import numpy", limits=limits)
        async with await start(zygote, text, limits=limits) as worker:
            await worker.reset("d", "e", 1)
            assert await worker.act("d", 0, np.array([1.0, 2.0])) == 3.0


async def test_datagrams_serve_where_there_are_no_packet_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentd.sandbox.zygote.sys.platform", "darwin")
    async with await Zygote.start(imports=("math",), min_isolation=1) as own, await start(own, TRACED) as worker:
        monkeypatch.undo()
        await worker.reset("robot", "e", 1)
        assert await worker.act("robot", 0, 3.0) == -6.0
        for tick in range(2_000):
            await worker.act("robot", tick, float(tick))
        assert len((await graph_of(worker, 0.0)).nodes) > 2_000
        os.kill(worker.pid, signal.SIGKILL)
        await asyncio.wait_for(worker.died.wait(), 10)
        assert isinstance(worker.reason, WorkerDied)
        assert worker.reason.signal == signal.SIGKILL


async def test_nothing_is_left_behind(zygote: Zygote) -> None:
    def descriptors() -> int:
        return len([*Path("/proc/self/fd").iterdir()])

    async with await start(zygote, TRACED):
        pass
    before = descriptors()
    for _ in range(10):
        async with await start(zygote, TRACED) as worker:
            pid = worker.pid
        with pytest.raises(LoadError):
            await start(zygote, "1 / 0")
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert descriptors() == before
