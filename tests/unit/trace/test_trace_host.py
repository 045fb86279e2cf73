"""Traced code asks models through whoever runs it."""

import asyncio
import json
import sys

import pytest

from agentd.errors import BudgetExhausted, ModelError, TraceError
from agentd.opto import OptoPrime
from agentd.opto.script_models import ScriptHost
from agentd.records import Exchange, Step
from agentd.testing.llm import ScriptedLlm, in_turn
from agentd.trace import ExecutionError, Graph, acall_llm, bundle, call_llm, hosted, model, node, operators
from agentd.trace.host import question_key
from agentd.trace.replay import replay


class Parrot:
    """A host that repeats what it is told."""

    def __init__(self):
        self.asked = []

    def complete(self, messages, **options):
        self.asked.append((messages, options))
        return " ".join(message["content"] for message in messages)

    async def acomplete(self, messages, **options):
        await asyncio.sleep(0)
        return self.complete(messages, **options)


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


async def test_calls_side_by_side_are_operations_in_the_order_in_which_they_were_made():
    host, question = Parrot(), node("Who?", trainable=True)
    with hosted(host):
        first, second = await asyncio.gather(acall_llm("a", question), acall_llm("b", question))
    assert (first.data, second.data) == ("a Who?", "b Who?")
    second.backward("wrong")
    assert question.feedback


def test_a_bundle_may_ask_too():
    @bundle(trainable=True)
    def ask(question):
        return call_llm("You answer.", question).data.upper()

    with hosted(Parrot()):
        answer = ask(node("who?"))
    assert answer.data == "YOU ANSWER. WHO?"


@pytest.mark.parametrize(
    ("messages", "options", "error", "words"),
    [
        ([{"role": "user", "content": "a"}], {"top_k": 3}, TypeError, "options are max_tokens, model, temperature, not top_k"),
        ([{"role": "robot", "content": "a"}], {}, ValueError, "role is one of assistant, system, user, not 'robot'"),
        ([{"role": "user", "content": 5}], {}, TypeError, "content is text, not a int"),
        ([], {}, ValueError, "no message"),
        ([{"role": "user", "content": "a"}], {"max_tokens": 0}, ValueError, "max_tokens is a whole number from 1 on"),
        ([{"role": "user", "content": "a"}], {"temperature": float("nan")}, ValueError, "temperature is a number from 0 to 2"),
        ([{"role": "user", "content": "a"}], {"model": 7}, TypeError, "model is a name"),
    ],
)
def test_what_is_no_question_is_refused_before_anybody_is_asked(messages, options, error, words):
    with pytest.raises(error, match=words):
        ScriptHost(lambda **_: "a").complete(messages, **options)


class Asker:
    """A policy that asks a model about each observation."""

    def __init__(self, prompt="Say it loud."):
        self.prompt = prompt

    def act(self, observation):
        return call_llm(self.prompt, observation).data


def recorded(observation, *, answer="", error=""):
    asked = (("system", "Say it loud."), ("user", observation))
    exchange = Exchange(key=question_key(asked), messages=asked, answer=answer, error=error)
    return Step(tick=0, observation=observation, action=answer, exchanges=(exchange,))


def test_a_replay_answers_from_the_record():
    assert replay(Asker(), [recorded("hello", answer="HELLO")]).same


def test_a_replay_of_another_prompt_says_that_its_question_was_never_asked():
    found = replay(Asker("Whisper."), [recorded("hello", answer="HELLO")])
    assert (found.compared, found.failed_at) == (0, 0)
    assert "what is not recorded: 'hello'" in found.error


def test_a_replay_repeats_what_went_wrong():
    class Careful(Asker):
        def act(self, observation):
            try:
                return super().act(observation)
            except BudgetExhausted:
                return ""

    step = recorded("hello", error="BudgetExhausted: 3 calls per hour")
    assert replay(Careful(), [step]).same
    assert "3 calls per hour" in replay(Asker(), [step]).error
