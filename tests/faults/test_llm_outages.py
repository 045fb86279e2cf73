"""Whatever a model's service does, the daemon gets a clear error or goes on with search, through the real process and the real client."""

import pytest
from replies import suggest

from agentd.clock import SystemClock
from agentd.errors import BudgetExhausted, DecodingError, ModelError, OptimizerError
from agentd.opto.budget import Ledger
from agentd.opto.contract import BudgetLimits, OptimizerContext
from agentd.opto.llm import LitellmClient, LlmSettings
from agentd.opto.process import OptimizerProcess
from agentd.records import Feedback, Kind, Parameter, Problem
from agentd.testing.llm import Reply, ScriptedLlm, in_turn

PROMPT = Parameter(path="prompt", kind=Kind.TEXT, default="Answer briefly.")
ACT = Parameter(path="act", kind=Kind.CODE, default="def act(self, o):\n    return 2.0 * o\n", signature="def act(self, o):")


async def propose(server, parameter=PROMPT, *, algorithm="optoprime", limits=None, model="openai/scripted", **settings):
    context = OptimizerContext(
        agent="robot",
        stable="r0",
        parameters=(parameter,),
        values={parameter.path: parameter.default},
        algorithm=algorithm,
        models=(model,),
    )
    problem = Problem(
        episode="e1",
        objective="Be brief.",
        parameters=context.parameters,
        values=context.values,
        feedback=Feedback(episode="e1", score=0.1, normalised=0.1, text="Too long."),
    )
    ledger = Ledger()
    ledger.limit("robot", limits or BudgetLimits())
    chosen = {"api_base": server.url, "api_key": "sk-test-0123456789", "backoff": 0.01, "attempts": 2, "call_timeout": 5.0, **settings}
    async with LitellmClient(LlmSettings(**chosen), ledger, SystemClock()) as llm:
        return await OptimizerProcess().propose(context, [problem], [], 1, timeout=110.0, llm=llm)


@pytest.mark.parametrize(
    ("reply", "settings", "error", "words"),
    [
        (Reply(status=429), {}, ModelError, "RateLimitError"),
        (Reply(status=500), {}, ModelError, "InternalServerError"),
        (Reply(status=401, error="no such key"), {}, ModelError, "is the API key set"),
        (Reply(status=404, error="no such model"), {}, ModelError, "litellm name"),
        (Reply("late", delay=10.0), {"call_timeout": 0.2, "attempts": 1}, ModelError, "openai/scripted"),
        (Reply(cut_after=0), {}, ModelError, "openai/scripted"),
        (Reply(""), {}, DecodingError, "the reply is empty"),
        (Reply("I can't help with that."), {}, DecodingError, "no JSON object"),
        (Reply('{"suggestion": {"prompt": "Be br', finish_reason="length"), {}, DecodingError, "cut off at its length limit"),
        (Reply(suggest(system="x")), {}, DecodingError, "there is no such parameter; the parameters are: prompt"),
        (Reply(suggest(prompt=5)), {}, DecodingError, "expected text, got the number 5"),
        (Reply(suggest(prompt="Answer briefly.")), {}, OptimizerError, "in place already"),
    ],
    ids=["429", "500", "401", "404", "slow", "dropped", "empty", "refusal", "cut", "unknown name", "wrong type", "no change"],
)
async def test_a_fault_is_a_clear_error(reply, settings, error, words):
    async with ScriptedLlm(in_turn([reply])) as server:
        with pytest.raises(error, match=words):
            await propose(server, **settings)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def act(self, o):\n    return 2.0 *\n", "does not compile: line 2"),
        ("def act(self, x):\n    return 1.0 * x\n", "signature must stay `def act\\(self, o\\):`"),
        ("def act(self, o):\n    import socket\n    return 1.0\n", "imports socket"),
    ],
    ids=["syntax", "signature", "import"],
)
async def test_code_that_cannot_run_here_is_refused_before_it_runs_anywhere(code, words):
    async with ScriptedLlm(suggest(act=code)) as server:
        with pytest.raises(DecodingError, match=words):
            await propose(server, ACT)
    assert len(server.requests) == 2
    assert "can't be used" in server.requests[1].prompt


@pytest.mark.parametrize(
    ("reply", "limits"),
    [(Reply(status=500), None), (Reply("nonsense"), None), (Reply(suggest(act=1)), BudgetLimits(calls_per_hour=0))],
    ids=["outage", "nonsense", "no budget"],
)
async def test_hybrid_goes_on_with_search(reply, limits):
    async with ScriptedLlm(in_turn([reply])) as server:
        proposal = await propose(server, ACT, algorithm="hybrid", limits=limits)
    assert proposal.algorithm == "search"
    assert proposal.values == {"act": "def act(self, o):\n    return -2.0 * o\n"}
    assert "optoprime could not" in proposal.reasoning


async def test_a_budget_of_zero_is_a_state_with_no_request():
    async with ScriptedLlm(suggest(prompt="x")) as server:
        with pytest.raises(BudgetExhausted, match="0 dollars per day"):
            await propose(server, limits=BudgetLimits(dollars_per_day=0.0))
    assert server.requests == []


async def test_an_unknown_provider_is_named(monkeypatch):
    async with ScriptedLlm("x") as server:
        with pytest.raises(ModelError, match="no-such-provider/model"):
            await propose(server, model="no-such-provider/model", api_base=None)
