"""`train`: a program is improved on cases, in a script."""

import asyncio
import functools
import json
import threading

import pytest
from replies import suggest

from agentd import train
from agentd.cases import Case, split
from agentd.errors import OptimizerError, SpecError, TraceError
from agentd.opto import OptoPrime, Search
from agentd.testing.llm import ScriptedLlm
from agentd.trace import bundle, model, node

CASES = [(number, 3 * number) for number in range(12)]


@model
class Times:
    """Multiplies by what it learned."""

    def __init__(self):
        self.factor = node(1.0, trainable=True, bounds=(0.0, 5.0))

    def __call__(self, number):
        return self.factor * number


def guide(answer, reference):
    return max(0.0, 1.0 - abs(answer - reference) / 40), f"it should be {reference}"


class Model:
    """A model as Trace's are: a callable. It answers in turn, and keeps what it was asked."""

    def __init__(self, *replies):
        self.replies = list(replies)
        self.prompts = []

    def __call__(self, messages, **_):
        self.prompts.append("\n".join(message["content"] for message in messages))
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


def test_the_program_is_left_with_the_best_values_found():
    program = Times()
    steps = []
    result = train(
        program, CASES, guide, llm=Model(suggest(factor=2.0), suggest(factor=0.5), suggest(factor=3.0)), epochs=2, on_step=steps.append
    )
    assert [step.accepted for step in result.steps[:3]] == [True, False, True]
    assert program.factor.data == 3.0
    assert result.values == {"factor": 3.0}
    assert result.before < 1.0
    assert result.after == 1.0
    assert result.accepted == 2
    assert tuple(steps) == result.steps


def test_what_was_refused_is_remembered_with_its_score():
    llm = Model(suggest(factor=0.5), suggest(factor=3.0))
    train(Times(), CASES, guide, llm=llm, epochs=1)
    memory = llm.prompts[1].partition("#Memory")[2]
    assert "factor = 0.5" in memory


def test_no_model_sees_a_case_that_decides():
    cases = [Case(input=number, reference=f"reference-{number:02}") for number in range(20)]
    llm = Model(*(suggest(factor=0.1 * number) for number in range(1, 20)))
    train(Times(), cases, lambda answer, reference: (0.5, f"not {reference}"), llm=llm, epochs=2)
    parts = split(cases, 0.3)
    asked = "\n".join(llm.prompts)
    assert all(str(case.reference) in asked for case in parts.train)
    assert not any(str(case.reference) in asked for case in parts.validation)


def test_nothing_is_kept_that_is_not_better():
    program = Times()
    result = train(program, CASES, guide, llm=Model(suggest(factor=0.9)), epochs=1, batch=20)
    assert (result.accepted, program.factor.data, result.after) == (0, 1.0, result.before)


def test_code_is_trained_and_code_that_raises_is_worth_nothing():
    @model
    class Program:
        @bundle(trainable=True)
        def work(self, number):
            """Works."""
            return number

        def __call__(self, number):
            return self.work(number)

    program = Program()
    bad = suggest(work='def work(self, number):\n    """Works."""\n    return number / 0\n')
    good = suggest(work='def work(self, number):\n    """Works."""\n    return number * 3\n')
    with pytest.warns(RuntimeWarning, match="the program raised"):
        result = train(program, CASES, guide, llm=Model(bad, good), epochs=1)
    assert result.steps[0].candidate == 0.0
    assert result.after == 1.0
    assert program(5).data == 15


def test_a_program_that_raises_from_the_start_shows_its_error():
    @bundle(trainable=True)
    def program(number):
        """Works."""
        raise ValueError("no luck")

    llm = Model(suggest(program='def program(number):\n    """Works."""\n    return number * 3\n'))
    with pytest.warns(RuntimeWarning, match="no luck"):
        result = train(program, CASES, guide, llm=llm, epochs=1)
    assert "no luck" in llm.prompts[0]
    assert (result.before, result.after) == (0.0, 1.0)


def test_a_guide_may_see_the_input_or_give_words_alone():
    seen = []

    def words(number, answer, reference):
        seen.append(number)
        return "Correct" if answer == reference else f"Incorrect: it should be {reference}"

    result = train(Times(), CASES[1:], words, llm=Model(suggest(factor=3.0)), epochs=1)
    assert set(seen) <= {number for number, _ in CASES[1:]}
    assert (result.before, result.after) == (0.0, 1.0)


def test_what_a_guide_takes_by_name_is_its_own():
    def strict(answer, reference, *, tolerance=40):
        return guide(answer, reference) if tolerance == 40 else (0.0, "")

    def open_to_more(answer, reference, **_):
        return guide(answer, reference)

    for taken in (strict, open_to_more, functools.partial(strict, tolerance=40)):
        assert train(Times(), CASES, taken, llm=Model(suggest(factor=3.0)), epochs=1).after == 1.0


def test_a_guide_and_a_data_set_of_trace_are_taken():
    class Guide:
        def __call__(self, task, response, info, **_):
            return float(response == info), f"{task} should give {info}"

    data = {"inputs": [1, 2, 3, 4], "infos": [3, 6, 9, 12]}
    result = train(Times(), zip(data["inputs"], data["infos"], strict=True), Guide(), llm=Model(suggest(factor=3.0)), epochs=1)
    assert (result.before, result.after) == (0.0, 1.0)


def test_replies_that_can_not_be_used_are_steps_without_a_candidate():
    with pytest.warns(RuntimeWarning, match="no usable proposal"):
        result = train(Times(), CASES, guide, llm=Model("I can't"), epochs=1)
    assert {(step.candidate, step.accepted, step.paths) for step in result.steps} == {(None, False, ())}


def test_an_interrupted_training_leaves_the_best_so_far():
    program = Times()

    def interrupt(step):
        if step.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(program, CASES, guide, llm=Model(suggest(factor=2.5), suggest(factor=0.1)), on_step=interrupt)
    assert program.factor.data == 2.5


def test_an_interruption_amid_a_comparison_takes_the_candidate_back():
    program = Times()

    def judge(answer, reference):
        if program.factor.data == 0.1:
            raise KeyboardInterrupt
        return guide(answer, reference)

    with pytest.raises(KeyboardInterrupt):
        train(program, CASES, judge, llm=Model(suggest(factor=0.1)))
    assert program.factor.data == 1.0


def test_search_needs_no_model():
    program = Times()
    result = train(program, CASES, guide, optimizer=Search, epochs=6, batch=4)
    assert result.after > result.before
    assert result.dollars == 0.0


def test_an_optimizer_that_is_made_already_is_used():
    program = Times()
    optimizer = OptoPrime(program.parameters(), Model(suggest(factor=3.0)), objective="Multiply.")
    assert train(program, CASES, guide, optimizer=optimizer, epochs=1).after == 1.0
    with pytest.raises(OptimizerError, match="made already"):
        train(program, CASES, guide, optimizer=optimizer, llm="openai/x")


def test_cases_come_from_a_file_too(tmp_path):
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps({"input": number, "reference": reference}) + "\n" for number, reference in CASES))
    assert train(Times(), path, guide, llm=Model(suggest(factor=3.0)), epochs=1).after == 1.0
    path.write_text("nonsense")
    with pytest.raises(SpecError, match="not JSON"):
        train(Times(), str(path), guide)


def test_what_can_not_be_trained_is_said():
    with pytest.raises(OptimizerError, match="there is no case to learn from"):
        train(Times(), [], guide)
    with pytest.raises(OptimizerError, match="no trainable parameter"):
        train(node, CASES, guide)
    with pytest.raises(TraceError, match="the program answered with a int"):
        train(_plain(), CASES, guide, llm=Model("x"))
    with pytest.raises(OptimizerError, match="should be in"):
        train(Times(), CASES, lambda answer, reference: 7, llm=Model("x"))


def _plain():
    class Plain:
        factor = node(1.0, trainable=True)

        def __call__(self, number):
            return 3

    return Plain()


def test_the_greeting_policy_learns_in_a_script_from_a_model_behind_http(monkeypatch):
    import importlib.util

    from agentd.ready import find

    spec = importlib.util.spec_from_file_location("greeting_of_test_train", find("greeting") / "greeting.py")
    greeting = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(greeting)
    reply = suggest(
        decide_language='def decide_language(self, message):\n    """The language."""\n    return message\n',
        greet='''def greet(self, language, message):
    """The greeting."""
    first = message.replace("!", " ").replace(",", " ").split()[0]
    words = {"Buenas": "Hola", "Salut": "Bonjour", "Guten": "Hallo", "Moin": "Hallo", "Hi": "Hello", "Hello": "Hello"}
    return f"{words.get(first, first)}, {message.rstrip('.').split()[-1]}!"
''',
    )
    with Serving(reply) as server:
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        agent = greeting.Agent()
        result = train(agent, find("greeting") / "cases.jsonl", greeting.feedback_fn, llm="openai/scripted", epochs=1)
    assert result.after == 1.0 > result.before
    assert agent("Hola, soy Juan.").data == "Hola, Juan!"
    assert "they said that their name is" in server.requests[0].prompt


class Serving:
    """The scripted server in a loop of its own, as a script's model is somewhere else."""

    def __init__(self, reply):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._server = ScriptedLlm(reply)

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def __enter__(self):
        self._thread.start()
        return self._do(self._server.__aenter__())

    def __exit__(self, *_):
        self._do(self._server.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
