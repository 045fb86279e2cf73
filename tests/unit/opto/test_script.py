"""Scripts use the optimizers as they use Trace's, in a notebook too."""

import json
import warnings
from types import SimpleNamespace

import pytest

from agentd.errors import ModelError, OptimizerError
from agentd.opto import OPRO, OptoPrime, Search, TextGrad
from agentd.testing.llm import ScriptedLlm
from agentd.trace import bundle, model, node


def suggest(**values):
    return json.dumps({"reasoning": "r", "suggestion": values})


def test_the_loop_of_trace_s_first_example(answers):
    x = node(-1.0, trainable=True, name="x")
    llm = answers(suggest(x=2.0), suggest(x=5.0))
    optimizer = OptoPrime([x], llm)
    for expected in (2.0, 5.0):
        y = x * 3 + 1
        optimizer.zero_feedback()
        optimizer.backward(y, "make it larger")
        update = optimizer.step()
        assert update == {x: expected}
        assert x.data == expected
    first, second = (request.messages[1].content for request in llm.requests)
    assert "x = -1.0" in first
    assert "make it larger" in first
    assert "multiply" in first
    assert "x = -1.0" in second.partition("#Memory")[2]
    assert optimizer.dollars == pytest.approx(0.002)


def test_propose_and_update_apart(answers):
    x = node(1.0, trainable=True, name="x")
    optimizer = OptoPrime([x], answers(suggest(x=3.0)))
    optimizer.backward(x * 1, feedback="larger")
    update = optimizer.propose()
    assert (update, x.data) == ({x: 3.0}, 1.0)
    optimizer.update(update)
    assert x.data == 3.0


def test_code_and_prompts_of_a_model_are_trained(answers):
    @model
    class Greeter:
        def __init__(self):
            self.prompt = node("Say hello.", trainable=True)

        def __call__(self, name):
            return self.greet(self.prompt, name)

        @bundle(trainable=True)
        def greet(self, prompt, name):
            """Greets."""
            return f"{prompt} {name}"

    greeter = Greeter()
    source = 'def greet(self, prompt, name):\n    """Greets."""\n    return f"{prompt}, {name}!"\n'
    optimizer = OptoPrime(greeter.parameters(), answers(""))
    paths = {parameter.path for parameter in optimizer.parameters}
    code, prompt = next(path for path in paths if "greet" in path), next(path for path in paths if "greet" not in path)
    optimizer = OptoPrime(greeter.parameters(), answers(suggest(**{code: source, prompt: "Good day"})))
    optimizer.backward(greeter("Ada"), (0.2, "be more polite"))
    optimizer.step()
    assert greeter("Ada").data == "Good day, Ada!"


async def test_it_works_inside_a_running_loop(answers):
    x = node(1.0, trainable=True, name="x")
    optimizer = OptoPrime([x], answers(suggest(x=3.0)))
    optimizer.backward(x * 1, "larger")
    assert optimizer.step() == {x: 3.0}


async def test_a_model_is_named_as_litellm_names_it(monkeypatch):
    async with ScriptedLlm(suggest(x=3.0)) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test-test")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        x = node(1.0, trainable=True, name="x")
        optimizer = OPRO([x], "openai/scripted")
        optimizer.backward(x * 1, (0.5, "larger"))
        import asyncio

        assert await asyncio.to_thread(optimizer.step) == {x: 3.0}


def test_a_callable_as_trace_s_models_are_is_taken_too():
    asked = []

    def llm(messages, **_):
        asked.append(messages)
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=suggest(x=3.0)))])

    x = node(1.0, trainable=True, name="x")
    optimizer = TextGrad([x], llm)
    optimizer.backward(x * 1, "larger")
    assert optimizer.step() == {x: 3.0}
    assert asked


def test_search_needs_no_model_and_goes_on_from_the_best():
    x = node(4.0, trainable=True, name="x", bounds=(-10.0, 10.0))
    optimizer = Search([x], seed=1)
    best = 0.0
    for _ in range(25):
        score = 1.0 - abs(x.data + 3.0) / 20.0
        best = max(best, score)
        optimizer.zero_feedback()
        optimizer.backward(x * 1, score)
        optimizer.step()
    assert best > 0.95


def test_what_a_model_cannot_do_is_a_warning_and_no_change(answers):
    x = node(1.0, trainable=True, name="x")
    optimizer = OptoPrime([x], answers("no", "no"))
    optimizer.backward(x * 1, "larger")
    with pytest.warns(RuntimeWarning, match="no usable proposal"):
        assert optimizer.step() == {}
    assert x.data == 1.0


def test_no_model_and_no_parameter_and_wrong_scores_are_errors(monkeypatch):
    for name in ("AGENTD_MODELS", "TRACE_LITELLM_MODEL"):
        monkeypatch.delenv(name, raising=False)
    x = node(1.0, trainable=True, name="x")
    optimizer = OptoPrime([x])
    optimizer.backward(x * 1, "larger")
    with warnings.catch_warnings(), pytest.raises(ModelError, match="no model is configured"):
        optimizer.step()
    with pytest.raises(OptimizerError, match="no trainable parameter"):
        OptoPrime([node(1.0)])
    with pytest.raises(OptimizerError, match=r"a score is in \[0, 1\]"):
        optimizer.backward(x * 2, 12.0)
