"""An optimizer runs in a process of its own: it may hang, die or talk nonsense, and the daemon gets an error that says so."""

import asyncio
import json
import os
import re
import sys
import time

import psutil
import pytest

from agentd.clock import SystemClock
from agentd.errors import BudgetExhausted, DecodingError, ModelError, OptimizerError
from agentd.opto.budget import Ledger
from agentd.opto.contract import BudgetLimits, Screening
from agentd.opto.llm import LitellmClient, LlmSettings
from agentd.opto.process import OptimizerProcess
from agentd.records import Kind, Parameter
from agentd.testing.llm import Reply, ScriptedLlm, in_turn
from agentd.testing.optimizers import NoModel

GAIN = Parameter(path="gain", kind=Kind.NUMBER, default=1.0)

PLUGIN = """
import ctypes, os, re, sys, time
from agentd.opto.contract import LlmRequest, Message, make_proposal


class Base:
    def __init__(self, context, llm, screen):
        self.context, self.llm, self.screen = context, llm, screen


class Good(Base):
    async def propose(self, problems, memory, seed):
        print("printed, not framed")
        return make_proposal(self.context, problems, {"gain": 2.0}, algorithm="good", seed=seed)


class Raises(Base):
    async def propose(self, problems, memory, seed):
        raise ZeroDivisionError("the plug-in's own words")


class CannotBeMade(Base):
    def __init__(self, *_):
        raise ValueError("no licence")


class Nonsense(Base):
    async def propose(self, problems, memory, seed):
        return {"gain": 2.0}


class Invalid(Base):
    async def propose(self, problems, memory, seed):
        return make_proposal(self.context, problems, {"gain": "high", "other": 1}, algorithm="invalid", seed=seed)


class Unchanged(Base):
    async def propose(self, problems, memory, seed):
        return make_proposal(self.context, problems, {"gain": 1.0}, algorithm="unchanged", seed=seed)


class Notes(Base):
    async def propose(self, problems, memory, seed):
        notes = {"my": "x" * self.context.options["length"]}
        return make_proposal(self.context, problems, {"gain": 2.0}, algorithm="notes", seed=seed, notes=notes)


class HangsInC(Base):
    async def propose(self, problems, memory, seed):
        print("about to hang", file=sys.stderr, flush=True)
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        ctypes.PyDLL(None).sleep(1000)  # holds the GIL


class Dies(Base):
    async def propose(self, problems, memory, seed):
        os._exit(3)


class Babbles(Base):
    async def propose(self, problems, memory, seed):
        for descriptor in range(3, 20):
            try:
                os.write(descriptor, b"\\xff\\xff\\xff\\xff" + b"x" * 100)
            except OSError:
                pass
        time.sleep(100)


class Environment(Base):
    async def propose(self, problems, memory, seed):
        raise RuntimeError(" ".join(sorted(os.environ)))


class Asks(Base):
    async def propose(self, problems, memory, seed):
        reply = await self.llm.complete(LlmRequest(agent="somebody else", purpose="test", messages=(Message(role="user", content="2?"),)))
        screening = await self.screen({"gain": 3.0})
        return make_proposal(self.context, problems, {"gain": float(reply.text)}, algorithm="asks", seed=seed, reasoning=screening.report)


class AsksForEver(Base):
    async def propose(self, problems, memory, seed):
        while True:
            await self.llm.complete(LlmRequest(agent="", purpose="test", messages=(Message(role="user", content="2?"),)))
"""


@pytest.fixture
def propose(tmp_path, make_context, make_problem):
    (tmp_path / "my_optimizer.py").write_text(PLUGIN)
    process = OptimizerProcess(module_path=[str(tmp_path)])

    async def run(algorithm, *, seconds=60.0, llm=None, screen=None, **fields):
        name = algorithm if algorithm in ("search", "hybrid", "optoprime") or ":" in algorithm else f"my_optimizer:{algorithm}"
        parameters = fields.pop("parameters", (GAIN,))
        context = make_context(*parameters, algorithm=name, **fields)
        return await process.propose(context, [make_problem(context)], [], 1, timeout=seconds, llm=llm or NoModel(), screen=screen)

    return run


async def test_a_plug_in_makes_a_proposal_and_may_print(propose):
    proposal = await propose("Good")
    assert proposal.values == {"gain": 2.0}
    assert (proposal.agent, proposal.parent, proposal.answers) == ("robot", "r0", ("e1",))


async def test_search_makes_the_same_proposal_in_any_process(propose, code):
    first, second = [await propose("search", parameters=(code,)) for _ in range(2)]
    assert first == second


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        ("Raises", "raised ZeroDivisionError: the plug-in's own words"),
        ("CannotBeMade", "can't be made: ValueError: no licence"),
        ("Nonsense", "returned a dict instead of a Proposal"),
        ("Unchanged", "proposed no change"),
        ("Missing", "can't be loaded: AttributeError"),
        ("no_such_module:X", "can't be loaded: ModuleNotFoundError"),
        ("Dies", "broke off"),
        ("Babbles", "spoke nonsense"),
        ("hybrid", "no model is configured"),
        ("search", "there is no option 'start'; did you mean 'startup'?"),
    ],
)
async def test_what_went_wrong_is_said(algorithm, words, propose):
    parameters = (Parameter(path="prompt", kind=Kind.TEXT, default="Hi"),) if algorithm == "hybrid" else (GAIN,)
    with pytest.raises(OptimizerError, match=re.escape(words)):
        await propose(algorithm, parameters=parameters, options={"start": 5} if algorithm == "search" else {})


async def test_an_unknown_algorithm_is_told_what_there_is(make_context, make_problem):
    context = make_context(GAIN, algorithm="gradient")
    with pytest.raises(OptimizerError, match=r"built in are: hybrid.*optoprime.*search"):
        await OptimizerProcess().propose(context, [], [], 1, timeout=60, llm=NoModel())


async def test_a_process_that_can_not_be_started_is_said(propose, no_more_files):
    with no_more_files(), pytest.raises(OptimizerError, match="can't be started: Too many open files"):
        await propose("Good")


async def test_values_that_break_the_rules_are_refused_with_every_reason(propose):
    with pytest.raises(DecodingError) as caught:
        await propose("Invalid")
    assert set(caught.value.problems) == {"gain", "other"}


async def test_a_hang_in_c_is_killed_with_its_children(propose):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    started = time.monotonic()
    with pytest.raises(OptimizerError, match=r"no proposal within 2 s and was killed.*about to hang"):
        await propose("HangsInC", seconds=2.0)
    assert time.monotonic() - started < 15
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


async def test_the_process_sees_no_environment_and_so_no_key(propose, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-secret")
    with pytest.raises(OptimizerError) as caught:
        await propose("Environment")
    names = set(str(caught.value).partition("RuntimeError: ")[2].partition(";")[0].split())
    assert names <= {"PYTHONPATH", "OPENBLAS_NUM_THREADS", "LC_CTYPE"}


async def test_model_calls_and_screening_come_back_to_the_daemon(propose):
    async def screen(values):
        return Screening(report=f"screened {values['gain']}")

    ledger, usages = Ledger(), []

    async def keep(usage):
        usages.append(usage)

    async with ScriptedLlm("2.5") as server:
        settings = LlmSettings(models=("openai/scripted",), api_base=server.url, api_key="sk-test-test")
        async with LitellmClient(settings, ledger, SystemClock(), on_usage=keep) as llm:
            proposal = await propose("Asks", llm=llm, screen=screen)
    assert proposal.values == {"gain": 2.5}
    assert proposal.reasoning == "screened 3.0"
    assert usages[0].agent == "robot"


async def test_a_failed_call_is_the_same_error_on_the_other_side(propose):
    with pytest.raises(ModelError, match="no model is configured"):
        await propose("Asks")


async def test_the_tokens_of_one_proposal_are_limited(propose):
    async with ScriptedLlm("2.5") as server:
        settings = LlmSettings(models=("openai/scripted",), api_base=server.url, api_key="sk-test-test")
        ledger = Ledger()
        ledger.limit("robot", BudgetLimits(calls_per_hour=None))
        async with LitellmClient(settings, ledger, SystemClock()) as llm:
            with pytest.raises(BudgetExhausted, match="320 tokens per proposal"):
                await propose("AsksForEver", llm=llm, budget=BudgetLimits(tokens_per_proposal=320))
    assert len(server.requests) == 3


@pytest.mark.long
async def test_a_model_that_hangs_leaves_search_its_turn(propose, code):
    async with ScriptedLlm(in_turn([Reply(delay=60.0)])) as server:
        settings = LlmSettings(models=("openai/scripted",), api_base=server.url, api_key="sk-test-test")
        async with LitellmClient(settings, Ledger(), SystemClock()) as llm:
            await llm.load()
            proposal = await propose("hybrid", seconds=10.0, llm=llm, parameters=(code,), models=("openai/scripted",))
    assert proposal.algorithm == "search"
    assert "propose_timeout is too short for this model, or the model hangs" in proposal.reasoning
    assert proposal.notes == {"failed": ["optoprime"]}


async def test_what_an_optimizer_notes_comes_with_its_proposal_and_is_limited(propose):
    assert (await propose("Notes", options={"length": 1000})).notes == {"my": "x" * 1000}
    with pytest.raises(OptimizerError, match="noted more than 16384 bytes"):
        await propose("Notes", options={"length": 20_000})


async def test_optoprime_works_through_the_process_with_a_real_client(propose, code):
    source = code.default.replace("1.0 * x", "-1.0 * x")

    def script(asked):
        assert "def act(self, observation):" in asked.prompt
        return json.dumps({"reasoning": "the sign of x", "suggestion": {"act": source}})

    async with ScriptedLlm(script) as server:
        settings = LlmSettings(models=("openai/scripted",), api_base=server.url, api_key="sk-test-test")
        async with LitellmClient(settings, Ledger(), SystemClock()) as llm:
            await llm.load()
            proposal = await propose("hybrid", llm=llm, parameters=(code,), models=("openai/scripted",))
    assert proposal.values == {"act": source}
    assert proposal.algorithm == "optoprime"


def optimizer_processes(of):
    return [child for child in of.children(recursive=True) if "agentd.opto.process" in " ".join(child.cmdline())]


async def test_no_process_is_left_after_a_proposal(propose):
    await propose("Good")
    assert optimizer_processes(psutil.Process()) == []


async def test_no_process_is_left_when_the_daemon_changes_its_mind(propose):
    asking = asyncio.create_task(propose("HangsInC"))
    while not optimizer_processes(psutil.Process()):  # noqa: ASYNC110 - another process gives no event
        await asyncio.sleep(0.02)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert optimizer_processes(psutil.Process()) == []


DAEMON = """
import asyncio, sys
from agentd.opto.contract import OptimizerContext
from agentd.opto.process import OptimizerProcess
from agentd.testing.optimizers import NoModel

context = OptimizerContext(agent="a", stable="r", parameters=(), values={}, algorithm="my_optimizer:HangsInC")
asyncio.run(OptimizerProcess(module_path=[sys.argv[1]]).propose(context, [], [], 1, timeout=100, llm=NoModel()))
"""


async def test_the_process_dies_with_a_daemon_that_is_killed_even_when_it_hangs_in_c(tmp_path):
    (tmp_path / "my_optimizer.py").write_text(PLUGIN)
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    daemon = await asyncio.create_subprocess_exec(sys.executable, "-c", DAEMON, str(tmp_path), env=environment)
    while len(family := psutil.Process(daemon.pid).children(recursive=True)) < 2:  # noqa: ASYNC110 - as above; it has forked: it hangs
        await asyncio.sleep(0.02)
    optimizer, its_child = sorted(family, key=lambda process: process.ppid() != daemon.pid)
    daemon.kill()
    await daemon.wait()
    try:
        gone, alive = await asyncio.to_thread(psutil.wait_procs, [optimizer], timeout=20)
        assert (len(gone), alive) == (1, [])
    finally:
        its_child.kill()


def test_importing_the_daemons_side_loads_neither_litellm_nor_optuna():
    import subprocess

    code = "import sys, agentd.opto.process, agentd.opto.llm; print([m for m in ('litellm', 'optuna', 'numpy') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.stdout.strip() == "[]"
