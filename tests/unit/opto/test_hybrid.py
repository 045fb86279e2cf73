"""Hybrid lets who has paid off go next, goes on without the model when it fails, and says when nobody can do anything."""

import msgspec
import pytest
from replies import suggest

from agentd.errors import BudgetExhausted, DecodingError, ModelError, OptimizerError
from agentd.opto.hybrid import Hybrid
from agentd.records import Kind, MemoryEntry, Parameter

GAIN = Parameter(path="gain", kind=Kind.NUMBER, default=1.0)
PROMPT = Parameter(path="prompt", kind=Kind.TEXT, default="Hi")


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


@pytest.mark.parametrize(
    ("failure", "noted"),
    [
        (BudgetExhausted("5 dollars per day"), None),
        (ModelError("down", model="m"), ["optoprime"]),
        (DecodingError({"": "no"}), ["optoprime"]),
    ],
)
async def test_search_goes_on_when_the_model_is_exhausted_or_fails_and_says_why(failure, noted, make_context, make_problem, answers):
    context = make_context(GAIN, models=("m",))
    proposal = await Hybrid(context, answers(failure)).propose([make_problem(context)], [], 1)
    assert proposal.algorithm == "search"
    assert str(failure) in proposal.reasoning
    assert proposal.notes.get("failed") == noted


async def test_a_turn_that_gave_no_usable_proposal_counts_as_one_that_did_not_pay_off(make_context, make_problem, answers):
    context = make_context(GAIN, models=("m",))
    after_failures = [
        msgspec.structs.replace(attempt(context, "search", 0.0, gain), notes={"failed": ["optoprime"]}) for gain in (-1.0, 0.5)
    ]
    of_somebody_else = msgspec.structs.replace(attempt(context, "my:Own", 0.0, 7.0), notes={"failed": 5})
    memory = [*after_failures, of_somebody_else]
    assert (await Hybrid(context, answers(suggest(gain=5.0))).propose([make_problem(context)], memory, 1)).algorithm == "optoprime"
    memory.append(attempt(context, "optoprime", 0.0, 9.0))
    assert (await Hybrid(context, answers()).propose([make_problem(context)], memory, 1)).algorithm == "search"


async def test_where_nothing_was_compared_a_gain_is_one_over_the_best_before(make_context, make_problem, answers):
    context = make_context(GAIN, models=("m",))

    def tried(algorithm, mean, gain):
        return MemoryEntry(proposal="p", values={"gain": gain}, fate="tried", mean=mean, algorithm=algorithm)

    memory = [tried("", 0.5, 1.0), tried("optoprime", 0.4, 2.0), tried("search", 0.8, 3.0), tried("optoprime", 0.6, 4.0)]
    assert (await Hybrid(context, answers()).propose([make_problem(context)], memory, 1)).algorithm == "search"
    memory = [tried("", 0.5, 1.0), tried("optoprime", 0.8, 2.0), tried("search", 0.7, 3.0)]
    assert (await Hybrid(context, answers(suggest(gain=6.0))).propose([make_problem(context)], memory, 1)).algorithm == "optoprime"


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
    context = make_context(GAIN, models=("m",), options={"parts": ["optoprime"]})
    barren = [attempt(context, "optoprime", 0.0, gain) for gain in (2.0, 3.0)]
    assert (await Hybrid(context, answers(suggest(gain=4.0))).propose([make_problem(context)], barren, 1)).algorithm == "optoprime"
    with pytest.raises(ModelError):
        await Hybrid(context, answers(ModelError("down", model="m"))).propose([make_problem(context)], [], 1)
    with pytest.raises(OptimizerError, match="parts"):
        Hybrid(make_context(GAIN, options={"parts": ["magic"]}), answers())
