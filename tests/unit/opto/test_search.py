"""Search needs no model: signs of the running values first, then scales, draws and small steps by turns, all rebuilt from memory."""

import asyncio
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.errors import OptimizerError
from agentd.opto.contract import Screening
from agentd.opto.decoding import validate_values
from agentd.opto.search import Search
from agentd.opto.space import Space
from agentd.records import Kind, MemoryEntry, Parameter

GAIN = Parameter(path="gain", kind=Kind.NUMBER, default=2.0)
SWITCH = Parameter(path="switch", kind=Kind.BOOLEAN, default=False)
MODE = Parameter(path="mode", kind=Kind.CHOICE, default="a", choices=("a", "b", "c"))
PLAN = Parameter(path="plan", kind=Kind.STRUCTURED, default={"gains": [1.0, 2.0], "on": True, "name": "x", "n": 3})
PROMPT = Parameter(path="prompt", kind=Kind.TEXT, default="Hi")


def entry(context, values, mean=0.1, fate="pruned", **fields):
    return MemoryEntry(proposal="p", values={**context.values, **values}, fate=fate, mean=mean, **fields)


async def run(context, count, score=lambda values: 0.1, memory=()):
    """`count` proposals in a row, each told its score."""
    memory, proposals = list(memory), []
    for number in range(count):
        proposal = await Search(context).propose([], memory, number)
        proposals.append(proposal)
        memory.append(entry(context, proposal.values, score({**context.values, **proposal.values})))
    return proposals


async def test_the_first_idea_is_that_every_sign_is_wrong(code, make_context):
    (proposal,) = await run(make_context(code), 1)
    assert "push = -1.0 * x + -1.5 * v + -20.0 * a + -3.0 * w" in proposal.values["act"]
    assert proposal.values["act"].count("\n") == code.default.count("\n")
    assert "# gains for position" in proposal.values["act"]
    assert proposal.reasoning == "everything negated"


async def test_any_single_wrong_sign_is_tried_within_ten_proposals(code, make_context):
    texts = [proposal.values["act"] for proposal in await run(make_context(code, stable_mean=0.1), 10)]
    for old, new in (("1.0 * x", "-1.0 * x"), ("1.5 * v", "-1.5 * v"), ("20 * a", "-20.0 * a"), ("3.0 * w", "-3.0 * w")):
        assert code.default.replace(old, new) in texts


async def test_once_the_other_sign_is_seen_to_be_better_its_scale_comes_next(make_context):
    context = make_context(GAIN, stable_mean=0.1)
    _, better = await run(context, 2, score=lambda values: 0.12)
    assert better.values == {"gain": -4.0}
    _, worse = await run(context, 2, score=lambda values: 0.08)
    assert worse.values["gain"] not in (-4.0, -1.0)


async def test_each_kind_of_move_has_its_turns_and_none_stands_in_for_the_estimator(make_context):
    bounded = Parameter(path="gain", kind=Kind.NUMBER, default=2.0, bounds=(0.5, 50.0))
    reasons = [proposal.reasoning for proposal in await run(make_context(bounded, stable_mean=0.1), 12, lambda values: values["gain"] / 60)]
    kinds = [
        "estimator" if "estimator" in why else "near" if "near the best" in why else "scale" if "times" in why else why for why in reasons
    ]
    assert kinds.count("scale") == 2  # there are no signs to try: draws are tried instead, and no more scales
    assert kinds.count("near") >= 1
    assert kinds.count("estimator") >= 7


async def test_values_that_act_as_the_running_ones_do_are_passed_over_until_nothing_else_is_left(make_context):
    context = make_context(GAIN)

    async def acts_on_large_gains_only(values):
        return Screening(ticks=100, differing=int(values["gain"] > 3.0))

    async def never_acts_otherwise(_):
        return Screening(ticks=100, differing=0)

    assert (await Search(context, None, acts_on_large_gains_only).propose([], (), 0)).values["gain"] > 3.0
    assert (await Search(context, None, never_acts_otherwise).propose([], (), 0)).values["gain"] > -9.0


async def test_values_that_were_good_in_another_regime_come_first(make_context):
    context = make_context(GAIN, regime=3)
    memory = [entry(context, {"gain": 7.5}, 0.9, "promoted", regime=1), entry(context, {"gain": 8.5}, 0.9, "pruned", regime=1)]
    (proposal,) = await run(context, 1, memory=memory)
    assert proposal.values == {"gain": 7.5}


async def test_nothing_is_proposed_twice_and_everything_is_valid(make_context):
    context = make_context(GAIN, SWITCH, MODE, PLAN)
    proposals = await run(context, 40)
    seen = [{**context.values, **proposal.values} for proposal in proposals]
    assert all(seen[i] != seen[j] for i in range(40) for j in range(i))
    for proposal in proposals:
        assert validate_values(proposal.values, context.parameters, context.values) == proposal.values
    assert {values["mode"] for values in seen} == {"a", "b", "c"}
    assert {values["switch"] for values in seen} == {True, False}
    assert all(values["plan"]["name"] == "x" and isinstance(values["plan"]["n"], int) for values in seen)


async def test_bounds_and_whole_numbers_are_kept(make_context):
    parameters = (
        Parameter(path="share", kind=Kind.NUMBER, default=0.5, bounds=(0.0, 1.0)),
        Parameter(path="rate", kind=Kind.NUMBER, default=0.01, bounds=(0.0001, 1.0)),
        Parameter(path="floor", kind=Kind.NUMBER, default=2.0, bounds=(1.0, None)),
        Parameter(path="count", kind=Kind.NUMBER, default=3, integer=True, bounds=(1, 9)),
    )
    context = make_context(*parameters)
    for proposal in await run(context, 30):
        assert validate_values(proposal.values, parameters, context.values) == proposal.values


async def test_it_finds_the_neighbourhood_of_an_optimum(make_context):
    context = make_context(GAIN, Parameter(path="other", kind=Kind.NUMBER, default=1.0))

    def score(values):
        return max(0.0, 1.0 - abs(values["gain"] + 5.0) / 10 - abs(values["other"] - 3.0) / 10)

    proposals = await run(context, 45, score)
    assert max(score({**context.values, **proposal.values}) for proposal in proposals) > 0.85


async def test_the_study_is_rebuilt_from_memory_so_a_restart_changes_nothing(make_context):
    context = make_context(GAIN, MODE)
    first = await run(context, 20, lambda values: values["gain"] / 20)
    again = await run(context, 20, lambda values: values["gain"] / 20)
    assert [proposal.values for proposal in first] == [proposal.values for proposal in again]


async def test_scores_of_another_regime_are_not_told_but_are_not_forbidden_either(make_context):
    context = make_context(GAIN, regime=2)
    old = entry(context, {"gain": -2.0}, 0.0, regime=1)
    (proposal,) = await run(context, 1, memory=[old])
    assert proposal.values == {"gain": -2.0}


async def test_a_difference_counts_only_to_what_runs_now_and_what_was_rolled_back_not_at_all(make_context):
    context = make_context(GAIN, stable_mean=0.5)

    async def best(**fields):
        """The score that search believes in; None where it knows nothing noticeably better."""
        memory = [entry(context, {"gain": 3.0}, pairs=1_000_000, **fields)]
        proposal = await Search(context).propose([], memory, 1)
        return float(proposal.reasoning.partition("(score ")[2][:-1]) if "(score " in proposal.reasoning else None

    assert await best(mean=0.4, difference=0.2, reference="r0") == pytest.approx(0.7)
    assert await best(mean=0.4, difference=0.2, reference="an earlier one") is None
    assert await best(mean=0.9, difference=0.1, reference="an earlier one") == pytest.approx(0.9)
    assert await best(mean=0.9, difference=0.4, reference="r0", fate="rolled_back") is None


async def test_memory_of_other_structure_and_broken_code_is_skipped(code, make_context):
    context = make_context(code)
    memory = [entry(context, {"act": text}) for text in ("def act(self, observation):\n    return 0\n", "def act(", "")]
    memory += [MemoryEntry(proposal="p", values={}, fate="invalid"), MemoryEntry(proposal="p", values={"act": 5}, fate="invalid")]
    (proposal,) = await run(context, 1, memory=memory)
    assert proposal.reasoning == "everything negated"


async def test_entries_with_another_prompt_do_not_count_for_these_numbers(make_context):
    context = make_context(GAIN, PROMPT)
    other = entry(context, {"gain": -2.0, "prompt": "Other"}, 0.9)
    (proposal,) = await run(context, 1, memory=[other])
    assert proposal.values == {"gain": -2.0}


async def test_what_screening_refuses_is_not_proposed(make_context):
    async def screen(values):
        return Screening(ok=values["gain"] > 2.0, reason="leaves the space")

    proposal = await Search(make_context(GAIN), screen=screen).propose([], [], 1)
    assert proposal.values["gain"] > 2.0


async def test_only_text_is_an_error_that_says_so(make_context):
    with pytest.raises(OptimizerError, match="nothing to vary"):
        await Search(make_context(PROMPT)).propose([], [], 1)


async def test_when_every_point_was_tried_it_says_so(make_context):
    context = make_context(MODE)
    with pytest.raises(OptimizerError, match="tried every point"):
        await run(context, 3)


def test_which_constants_count_does_not_depend_on_the_values_that_search_set(make_context):
    source = "def f(self, x):\n    return 2.0 * x if x > 0.5 else 1.5\n"
    parameter = Parameter(path="f", kind=Kind.CODE, default=source, signature="def f(self, x):")
    moved = source.replace("0.5", "0.0").replace("2.0 * x", "-3.0 * x")
    space = Space((parameter,), {"f": moved})
    assert space.current == (-3.0, 0.0, 1.5)
    assert space.values((-3.0, 0.25, 1.5)) == {"f": moved.replace("> 0.0", "> 0.25")}


@settings(max_examples=30)
@given(st.lists(st.floats(-50, 50).map(lambda value: round(value, 3)), min_size=4, max_size=4))
def test_a_point_is_read_back_from_its_values(values):
    source = "def act(self, o):\n    return 1.0 * o[0] + 1.5 * o[1] - 20.0 * o[2] + 3.0 * o[3]\n"
    parameter = Parameter(path="act", kind=Kind.CODE, default=source)
    start = Space((parameter,), {"act": source})
    text = start.values(tuple(values)).get("act", source)
    space = Space((parameter,), {"act": source}, [{"act": text}])
    assert space.point({"act": text}) == tuple(values)


async def test_the_same_seed_gives_the_same_proposal_in_another_process(make_context):
    context = make_context(GAIN, MODE)
    here = await run(context, 14)
    script = (
        "import asyncio, sys, msgspec\nfrom agentd import codec\nfrom agentd.opto.contract import OptimizerContext\n"
        "from agentd.opto.search import Search\nfrom agentd.records import MemoryEntry\n"
        "context, memory = codec.decode(sys.stdin.buffer.read(), tuple[OptimizerContext, list[MemoryEntry]])\n"
        "print(asyncio.run(Search(context).propose([], memory, 13)).values)"
    )
    from agentd import codec

    memory = [entry(context, proposal.values) for proposal in here[:13]]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdin=pipe, stdout=pipe)
    output, _ = await process.communicate(codec.encode((context, memory)))
    assert output.decode().strip() == str(here[13].values)
