"""OPRO and TextGrad work as published, on the contract of all optimizers: they are what OptoPrime is compared with."""

import pytest
from replies import suggest

from agentd.errors import OptimizerError
from agentd.opto.algorithms.opro import OPRO
from agentd.opto.algorithms.textgrad import TextGrad
from agentd.records import Kind, MemoryEntry, NodeKind, Parameter, TraceGraph, TraceNode

GAIN = Parameter(path="gain", kind=Kind.NUMBER, default=1.0)
PROMPT = Parameter(path="prompt", kind=Kind.TEXT, default="Hi")


def chain(length):
    nodes = [TraceNode("gain0", NodeKind.PARAMETER, path="gain", value=1.0), TraceNode("x", NodeKind.INPUT, value=2.0)]
    for step in range(length):
        nodes.append(TraceNode(f"y{step}", NodeKind.MESSAGE, "multiply", (0 if step == 0 else len(nodes) - 1, 1), ("a", "b"), float(step)))
    return TraceGraph(nodes=tuple(nodes), output=len(nodes) - 1)


async def test_opro_shows_solutions_in_ascending_order_and_no_graph(make_context, make_problem, graph, answers):
    context = make_context(GAIN)
    memory = [
        MemoryEntry(proposal="p", values={"gain": value}, fate="pruned", mean=mean) for value, mean in ((5.0, 0.9), (6.0, 0.1), (7.0, 0.5))
    ]
    llm = answers(suggest(gain=8.0))
    proposal = await OPRO(context, llm).propose([make_problem(context, graph=graph)], memory, 1)
    prompt = llm.requests[0].messages[1].content
    assert prompt.index("gain = 6.0") < prompt.index("gain = 7.0") < prompt.index("gain = 5.0")
    assert "#Code" not in prompt
    assert (proposal.values, proposal.algorithm) == ({"gain": 8.0}, "opro")


async def test_textgrad_asks_back_through_the_graph_and_then_for_each_parameter(make_context, make_problem, answers):
    context = make_context(GAIN)
    llm = answers("y0 should be larger", "gain should be larger", suggest(gain=3.0))
    proposal = await TextGrad(context, llm).propose([make_problem(context, graph=chain(2))], [], 1)
    first, second, update = (request.messages[1].content for request in llm.requests)
    assert "It fell to the right." in first
    assert "y0 should be larger" in second
    assert "gain should be larger" in update
    assert proposal.values == {"gain": 3.0}
    assert "gain should be larger" in proposal.reasoning


async def test_textgrad_passes_feedback_on_unchanged_when_its_calls_are_used_up(make_context, make_problem, answers):
    context = make_context(GAIN, options={"gradient_calls": 2})
    llm = answers("first", "second", suggest(gain=3.0))
    await TextGrad(context, llm).propose([make_problem(context, graph=chain(50))], [], 1)
    assert "second" in llm.requests[2].messages[1].content
    assert len(llm.requests) == 3


async def test_textgrad_changes_only_what_feedback_reaches(make_context, make_problem, answers):
    context = make_context(GAIN, PROMPT)
    proposal = await TextGrad(context, answers("more", suggest(gain=3.0))).propose([make_problem(context, graph=chain(1))], [], 1)
    assert proposal.values == {"gain": 3.0}
    nothing = TraceGraph(nodes=(TraceNode("x", NodeKind.INPUT, value=1),), output=0)
    with pytest.raises(OptimizerError, match="reached no parameter"):
        await TextGrad(context, answers()).propose([make_problem(context, graph=nothing)], [], 1)


async def test_without_a_graph_textgrad_gives_the_feedback_to_every_parameter(make_context, make_problem, answers):
    context = make_context(GAIN, PROMPT)
    llm = answers(suggest(gain=3.0), suggest(prompt="Hello"))
    proposal = await TextGrad(context, llm).propose([make_problem(context)], [], 1)
    assert proposal.values == {"gain": 3.0, "prompt": "Hello"}
    assert all("It fell to the right." in request.messages[1].content for request in llm.requests)
