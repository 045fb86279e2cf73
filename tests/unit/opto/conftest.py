import pytest

from agentd.opto.contract import LlmReply, OptimizerContext
from agentd.records import Feedback, Kind, NodeKind, Parameter, Problem, TraceFunction, TraceGraph, TraceNode

SOURCE = """def act(self, observation):
    # gains for position, speed, lean and swing
    x, v, a, w = observation
    push = 1.0 * x + 1.5 * v + 20 * a + 3.0 * w
    return 1 if push > 0 else 0
"""
SIGNATURE = "def act(self, observation):"


@pytest.fixture
def code():
    return Parameter(path="act", kind=Kind.CODE, default=SOURCE, signature=SIGNATURE)


@pytest.fixture
def make_context():
    def make(*parameters, values=None, **fields):
        full = {parameter.path: parameter.default for parameter in parameters} | (values or {})
        return OptimizerContext(
            agent="robot", stable="r0", parameters=parameters, values=full, **{"algorithm": "search", "at": 1.0, **fields}
        )

    return make


@pytest.fixture
def make_problem():
    def make(context, score=0.2, text="It fell to the right.", graph=None, episode="e1", **fields):
        feedback = Feedback(episode=episode, score=score, normalised=score, text=text)
        return Problem(
            episode=episode,
            objective=context.objective,
            parameters=context.parameters,
            values=dict(context.values),
            feedback=feedback,
            graph=graph,
            **fields,
        )

    return make


@pytest.fixture
def graph():
    return TraceGraph(
        nodes=(
            TraceNode("act0", NodeKind.PARAMETER, path="act", value="..."),
            TraceNode("start", NodeKind.MESSAGE, "environment_reset", value=[0.0, 0.1, 0.2, 0.3]),
            TraceNode("action", NodeKind.MESSAGE, "act", (0, 1), ("fun", "observation"), 1),
            TraceNode("end", NodeKind.MESSAGE, "episode_end", (2,), ("last",), [9.9]),
        ),
        functions={"act": TraceFunction("Decides.", "")},
        output=3,
    )


class Answers:
    """An Llm inside the process that gives prepared answers and keeps the questions."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []

    async def complete(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, LlmReply):
            return answer
        return LlmReply(text=answer, model="scripted", tokens_in=10, tokens_out=5, dollars=0.001)


@pytest.fixture
def answers():
    return Answers
