"""What a model reads of a traced episode: folded by structure, so that its prompt has the same size however long the episode was."""

import math

import pytest

from agentd.opto.algorithms.optoprime import OptoPrime
from agentd.opto.contract import LlmReply, OptimizerContext
from agentd.opto.rendering import Limits, Renderer
from agentd.records import Feedback, Problem
from agentd.trace import Graph, bundle, model, node
from agentd.trace.export import export
from agentd.trace.parameters import describe, find_parameters
from agentd.trace.propagation import minimal_subgraph


@model
class Policy:
    def __init__(self):
        self.gain = node(1.0, trainable=True)

    @bundle(trainable=True)
    def act(self, observation, lean):
        """Pushes against the lean."""
        return 1 if lean > 0 else 0


def problem(ticks, rewards=()):
    policy = Policy()
    parameters = tuple(describe(path, parameter) for path, parameter in find_parameters(policy).items())
    with Graph() as graph:
        observation = graph.message("environment_reset", {}, [0.0, 0.0, 0.1, 0.2])
        for tick in range(ticks):
            lean = observation[2] * policy.gain + observation[3]
            action = policy.act(observation, lean * 2.0 - observation[0])
            seen = [0.01 * tick, math.sin(tick), math.cos(tick), 0.2]
            observation = graph.message("environment_step", {"observation": observation, "action": action}, seen)
        end = graph.message("episode_end", {"observation": observation}, None)
    frozen = export(graph, end)  # with the limits that a worker has
    return Problem(
        episode="e",
        objective="Stand.",
        parameters=parameters,
        values={parameter.path: parameter.default for parameter in parameters},
        feedback=Feedback(episode="e", score=0.5, normalised=0.5, text="It fell."),
        graph=minimal_subgraph(frozen, frozen.output),
        rewards=rewards,
    )


class Listener:
    async def complete(self, request):
        self.heard = "\n".join(message.content for message in request.messages)
        return LlmReply(text='{"reasoning": "more", "suggestion": {"gain": 2.0}}', model="listener")


async def prompt(case, **options):
    context = OptimizerContext(agent="a", stable="r", parameters=case.parameters, values=case.values, options=options, at=0.0)
    llm = Listener()
    await OptoPrime(context, llm).propose([case], [], seed=1)
    return llm.heard


MORE = [
    pytest.param({"block_limit": 2_000}, marks=pytest.mark.long),
    pytest.param({"block_limit": 12_000, "lines": 200}, marks=pytest.mark.long),
]


@pytest.mark.parametrize("options", [{}, *MORE])
async def test_the_prompt_of_ten_thousand_ticks_is_hardly_longer_than_that_of_a_hundred(options):
    short, long = [await prompt(problem(ticks), **options) for ticks in (100, 10_000)]
    assert len(long) <= 1.3 * len(short)


@pytest.mark.parametrize("ticks", [1_000, 6_000])  # of the longer one the middle was dropped when it was exported
async def test_the_worst_tick_is_among_those_that_are_shown(ticks):
    rewards = [1.0] * ticks
    worst = ticks - 300
    rewards[worst] = -5.0
    shown = await prompt(problem(ticks, tuple(rewards)))
    assert f"{0.01 * worst:.2f}"[:-1] in shown
    assert f"[{0.01 * worst!r}, " in shown
    assert f"[{0.01 * worst!r}, " not in await prompt(problem(ticks))


async def test_gaps_are_told_with_the_range_of_every_place_in_a_tick():
    text = await prompt(problem(1_000))
    assert "= folded(gain=gain, act=act, " in text
    assert '"act": {"low": 0.0, "high": 1.0, "mean": ' in text
    assert "characters left out" not in text


def test_no_section_is_cut_where_folding_can_make_it_fit():
    case = problem(300)
    for block in (2_500, 5_000, 20_000):
        limits = Limits(block=block, lines=80)
        text = Renderer([case], limits=limits).problem(case.parameters, case.values, "Stand.")
        assert "left out" not in text
        assert max(map(len, text.split("#"))) <= block + 200


def test_a_short_episode_is_shown_whole():
    case = problem(5)
    text = Renderer([case]).problem(case.parameters, case.values, "Stand.")
    assert text.count("= environment_step(") == 5
    assert "folded" not in text


def test_a_long_program_without_ticks_is_shown_by_its_beginning_and_its_end():
    x = node(0.0, trainable=True, name="x")
    made = x + 0.0
    for number in range(300):
        made = bundle(description=f"[op{number}] differs")(lambda value: value)(made)
    frozen = export([], made)
    case = problem(1)
    case = Problem(**{name: getattr(case, name) for name in case.__struct_fields__} | {"graph": frozen})
    text = Renderer([case]).problem(case.parameters, case.values, "Stand.")
    assert "= op0(" in text
    assert "= op299(" in text
    assert "= folded(" in text
    assert "op150" not in text
