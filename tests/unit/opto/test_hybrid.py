"""Hybrid lets who has paid off go next, goes on without the model when it fails, and says when nobody can do anything."""

import json

import pytest

from agentd.errors import BudgetExhausted, DecodingError, ModelError, OptimizerError
from agentd.opto.hybrid import Hybrid
from agentd.records import Kind, MemoryEntry, Parameter

GAIN = Parameter(path="gain", kind=Kind.NUMBER, default=1.0)
PROMPT = Parameter(path="prompt", kind=Kind.TEXT, default="Hi")


def suggest(**values):
    return json.dumps({"reasoning": "r", "suggestion": values})


def attempt(context, algorithm, difference, gain, regime=0):
    return MemoryEntry(
        proposal="p",
        values={**context.values, "gain": gain},
        fate="pruned",
        mean=0.5,
        difference=difference,
        pairs=3,
        algorithm=algorithm,
        regime=regime,
    )


async def test_with_a_model_it_goes_first(make_context, make_problem, answers):
    context = make_context(GAIN, models=("m",))
    proposal = await Hybrid(context, answers(suggest(gain=4.0))).propose([make_problem(context)], [], 1)
    assert proposal.algorithm == "optoprime"


async def test_who_does_not_pay_off_yields_to_the_other(make_context, make_problem, answers):
    context = make_context(GAIN, models=("m",))
    memory = [attempt(context, "optoprime", -0.1, 4.0)]
    proposal = await Hybrid(context, answers()).propose([make_problem(context)], memory, 1)
    assert proposal.algorithm == "search"
    memory += [attempt(context, "search", -0.1, -1.0), attempt(context, "search", 0.0, 0.5)]
    proposal = await Hybrid(context, answers(suggest(gain=5.0))).propose([make_problem(context)], memory, 1)
    assert proposal.algorithm == "optoprime"


async def test_who_pays_off_goes_on(make_context, make_problem, answers):
    context = make_context(GAIN, models=("m",))
    memory = [attempt(context, "optoprime", -0.1, 4.0), attempt(context, "search", 0.3, -1.0), attempt(context, "search", 0.2, 0.5)]
    proposal = await Hybrid(context, answers()).propose([make_problem(context)], memory, 1)
    assert proposal.algorithm == "search"


async def test_what_paid_off_in_another_regime_does_not_count(make_context, make_problem, answers):
    context = make_context(GAIN, models=("m",), regime=1)
    memory = [attempt(context, "search", 0.9, -1.0, regime=0)]
    proposal = await Hybrid(context, answers(suggest(gain=4.0))).propose([make_problem(context)], memory, 1)
    assert proposal.algorithm == "optoprime"


@pytest.mark.parametrize("failure", [BudgetExhausted("5 dollars per day"), ModelError("down", model="m"), DecodingError({"": "no"})])
async def test_search_goes_on_when_the_model_is_exhausted_or_fails_and_says_why(failure, make_context, make_problem, answers):
    context = make_context(GAIN, models=("m",))
    proposal = await Hybrid(context, answers(failure)).propose([make_problem(context)], [], 1)
    assert proposal.algorithm == "search"
    assert str(failure) in proposal.reasoning


async def test_with_text_only_the_models_failure_is_the_answer(make_context, make_problem, answers):
    context = make_context(PROMPT, models=("m",))
    with pytest.raises(BudgetExhausted):
        await Hybrid(context, answers(BudgetExhausted("5 dollars per day"))).propose([make_problem(context)], [], 1)


async def test_with_text_only_and_no_model_it_says_what_is_missing(make_context, make_problem, answers):
    context = make_context(PROMPT)
    with pytest.raises(OptimizerError, match=r"no model is configured.*name a model"):
        await Hybrid(context, answers()).propose([make_problem(context)], [], 1)


async def test_each_part_can_be_switched_off(make_context, make_problem, answers):
    context = make_context(GAIN, models=("m",), options={"parts": ["search"]})
    assert (await Hybrid(context, answers()).propose([make_problem(context)], [], 1)).algorithm == "search"
    with pytest.raises(OptimizerError, match="parts"):
        Hybrid(make_context(GAIN, options={"parts": ["magic"]}), answers())
