"""Traced code asks models through whoever runs it."""

import asyncio
import json
import sys

import pytest

from agentd.errors import ModelError, TraceError
from agentd.opto import OptoPrime
from agentd.opto.script_models import ScriptHost
from agentd.testing.llm import ScriptedLlm, in_turn
from agentd.trace import ExecutionError, Graph, hosted, model, node, operators


class Parrot:
    """A host that repeats what it is told."""

    def __init__(self):
        self.asked = []

    def complete(self, messages, **options):
        self.asked.append((messages, options))
        return " ".join(message["content"] for message in messages)


def test_a_call_is_one_operation_of_what_it_was_asked():
    host, question = Parrot(), node("Who?", trainable=True)
    with hosted(host):
        answer = operators.call_llm("You answer.", question, node("Now."), max_tokens=5)
    assert answer.data == "You answer. Who? Now."
    assert [message["role"] for message in host.asked[0][0]] == ["system", "user", "user"]
    assert host.asked[0][1] == {"max_tokens": 5}
    answer.backward("wrong")
    assert question.feedback


async def test_each_context_has_its_own_host():
    async def ask(host):
        with hosted(host):
            await asyncio.sleep(0)
            return operators.call_llm("a").data

    first, second = Parrot(), Parrot()
    assert await asyncio.gather(ask(first), ask(second)) == ["a", "a"]
    assert (len(first.asked), len(second.asked)) == (1, 1)


async def test_it_may_be_asked_within_a_running_loop():
    with hosted(ScriptHost(lambda messages, **_: messages[-1]["content"].upper())):
        assert operators.call_llm("a", "b").data == "B"


def test_an_outage_is_an_error_in_the_graph_that_is_still_the_model_s(monkeypatch):
    def down(messages, **_):
        raise OSError("no route")

    with hosted(ScriptHost(down)), pytest.raises(ModelError, match="no route") as raised:
        operators.call_llm("a")
    assert isinstance(raised.value, ExecutionError)
    for name in ("AGENTD_MODELS", "TRACE_LITELLM_MODEL"):
        monkeypatch.delenv(name, raising=False)
    with hosted(ScriptHost()), pytest.raises(ModelError, match="no model is configured"):
        operators.call_llm("a")


def test_where_nothing_can_be_loaded_there_is_no_model(monkeypatch):
    monkeypatch.setitem(sys.modules, "agentd.opto.script_models", None)  # as where files can't be read
    with pytest.raises(TraceError, match="gives it no model"):
        operators.call_llm("a")


async def test_a_script_for_trace_finds_the_model_that_the_environment_names(monkeypatch):
    suggestion = json.dumps({"reasoning": "r", "suggestion": {"instruction": "Say their name."}})
    async with ScriptedLlm(in_turn(["Hola", suggestion, "Hola, Juan"])) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test-test")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("TRACE_LITELLM_MODEL", "openai/scripted")

        @model
        class Agent:
            def __init__(self):
                self.instruction = node("Greet.", trainable=True)

            def __call__(self, query):
                return operators.call_llm("You are a sales assistant.", self.instruction, query)

        def script():
            agent = Agent()
            optimizer = OptoPrime(agent.parameters())
            with Graph():
                greeting = agent("Hola, soy Juan.")
                greeting.backward(f"{greeting.data} lacks the name")
            optimizer.step()
            return agent.instruction.data, agent("Hola, soy Juan.").data

        assert await asyncio.to_thread(script) == ("Say their name.", "Hola, Juan")
