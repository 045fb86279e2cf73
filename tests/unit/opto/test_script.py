"""Scripts use the optimizers as they use Trace's, in a notebook too."""

import asyncio
import json
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from replies import suggest

from agentd.errors import DecodingError, ModelError, OptimizerError, TraceError
from agentd.opto import OPRO, Hybrid, OptoPrime, OptoPrimeMulti, Search, TextGrad
from agentd.opto.optimizer import Optimizer
from agentd.testing.llm import ScriptedLlm
from agentd.trace import ExecutionError, bundle, model, node
from agentd.trace.propagators import Propagator, SumPropagator
from agentd.trace.utils import render_opt_step


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


async def test_a_model_is_named_as_litellm_names_it_and_asked_once_where_a_cache_is_named(monkeypatch, tmp_path):
    async with ScriptedLlm(suggest(x=3.0)) as server:
        monkeypatch.setenv("AGENTD_REPLY_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test-test")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        for _ in range(2):
            x = node(1.0, trainable=True, name="x")
            optimizer = OPRO([x], "openai/scripted")
            optimizer.backward(x * 1, (0.5, "larger"))
            assert await asyncio.to_thread(optimizer.step) == {x: 3.0}
    assert len(server.requests) == 1


def test_how_long_a_named_model_may_take_is_chosen_in_the_environment(monkeypatch):
    x = node(1.0, trainable=True, name="x")
    optimizer = OptoPrime([x], "openai/scripted")
    optimizer.backward(x * 1, "larger")
    monkeypatch.setenv("AGENTD_CALL_TIMEOUT", "1ms")
    with pytest.raises(ModelError, match=r"no answer within 0\.003 s"):
        optimizer.step()
    monkeypatch.setenv("AGENTD_CALL_TIMEOUT", "soon")
    with pytest.raises(ModelError, match='AGENTD_CALL_TIMEOUT should be a duration such as "500ms"'):
        optimizer.step()


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


def test_in_a_script_too_hybrid_gives_the_turn_to_who_pays_off(answers):
    x = node(4.0, trainable=True, name="x", bounds=(-10.0, 10.0))
    optimizer = Hybrid([x], answers(suggest(x=9.0), suggest(x=8.0)))
    turns = []
    for _ in range(4):
        optimizer.zero_feedback()
        optimizer.backward(x * 1, 1.0 - abs(x.data + 3.0) / 20.0)
        optimizer.step()
        turns.append(optimizer.last.algorithm)
    assert turns == ["optoprime", "search", "search", "search"]  # of which the first was better


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
        optimizer.backward(x * 2, (12.0, "good"))


# --- feedback that the outputs were given themselves ---


def asked(llm, number=0):
    """The question that the model was asked."""
    return llm.requests[number].messages[1].content


def test_an_output_s_own_backward_feeds_the_step_as_in_trace(answers):
    x = node(-1.0, trainable=True, name="x")
    llm = answers(suggest(x=2.0))
    optimizer = OptoPrime([x], llm)
    optimizer.zero_feedback()
    (x * 3 + 1).backward("make it larger")
    assert optimizer.step() == {x: 2.0}
    assert "make it larger" in asked(llm)
    assert "multiply" in asked(llm)


def test_both_ways_of_giving_feedback_prompt_alike(answers):
    prompts = []
    for through_the_optimizer in (True, False):
        x = node(-1.0, trainable=True, name="x")
        llm = answers(suggest(x=2.0))
        optimizer = OptoPrime([x], llm)
        output = x * 3 + 1
        if through_the_optimizer:
            optimizer.backward(output, (0.25, "make it larger"))
        else:
            output.backward((0.25, "make it larger"))
        optimizer.step()
        prompts.append(asked(llm))
    assert prompts[0] == prompts[1]
    assert "Score: 0.25" in prompts[0]


def test_several_outputs_are_cases_each_with_its_own_feedback_in_the_order_in_which_it_came(answers):
    x = node(1.0, trainable=True, name="x")
    llm = answers(suggest(x=2.0))
    optimizer = OptoPrime([x], llm)
    (x + 10).backward("the first")
    optimizer.backward(x - 20, "the second")
    (x * 30).backward("the third")
    optimizer.step()
    first, second, third = asked(llm).split("## Case ")[1:]
    assert "the first" in first
    assert "add" in first
    assert "the second" in second
    assert "subtract" in second
    assert "the third" in third
    assert "multiply" in third


def test_feedback_given_twice_on_one_output_counts_twice_and_nothing_counts_double(answers):
    x = node(1.0, trainable=True, name="x")
    llm = answers(suggest(x=2.0))
    optimizer = OptoPrime([x], llm)
    output = x + 1
    optimizer.backward(output, "larger", retain_graph=True)
    output.backward("larger", retain_graph=True)
    output.backward("and odd")
    optimizer.step()
    assert "Case 3 of 3" in asked(llm)
    assert asked(llm).count("\nlarger\n") == 2


def test_two_parameters_of_one_output_make_one_case(answers):
    x, y = node(1.0, trainable=True, name="x"), node(2.0, trainable=True, name="y")
    llm = answers(suggest(x=2.0, y=3.0))
    optimizer = OptoPrime([x, y], llm)
    (x * y).backward("larger")
    assert optimizer.step() == {x: 2.0, y: 3.0}
    assert asked(llm).count("larger") == 1


def test_zero_feedback_forgets_what_came_either_way(answers):
    x = node(1.0, trainable=True, name="x")
    llm = answers(suggest(x=2.0))
    optimizer = OptoPrime([x], llm)
    (x + 1).backward("forgotten")
    optimizer.backward(x + 2, "forgotten too")
    optimizer.zero_feedback()
    (x + 3).backward("remembered")
    optimizer.step()
    assert "forgotten" not in asked(llm)
    assert "remembered" in asked(llm)


def test_after_an_update_feedback_on_the_old_values_is_memory_and_no_longer_a_case(answers):
    x = node(1.0, trainable=True, name="x")
    llm = answers(suggest(x=2.0), suggest(x=3.0))
    optimizer = OptoPrime([x], llm)
    (x + 1).backward((0.1, "of the old value"))
    optimizer.step()
    (x + 1).backward((0.2, "of the new value"))  # no zero_feedback between
    optimizer.step()
    memory, _, case = asked(llm, 1).partition("#Memory")[2].partition("#Variables")
    assert "of the new value" in case
    assert "of the old value" not in case
    assert "of the old value" in memory


def test_what_is_proposed_but_not_taken_leaves_the_feedback_where_it_is(answers):
    x = node(1.0, trainable=True, name="x")
    llm = answers(suggest(x=2.0), suggest(x=3.0))
    optimizer = OptoPrime([x], llm)
    (x + 1).backward("larger")
    assert optimizer.step(bypassing=True) == {x: 2.0}
    assert x.data == 1.0
    update = optimizer.propose()
    assert asked(llm, 1).count("larger") == 1
    optimizer.update(update)
    assert x.data == 3.0


def test_feedback_on_an_error_s_node_is_a_case(answers):
    x = node(0, trainable=True, name="x")
    llm = answers(suggest(x=2))
    optimizer = OptoPrime([x], llm)
    with pytest.raises(ExecutionError) as raised:
        1 / x
    raised.value.exception_node.backward("no division by zero")
    assert optimizer.step() == {x: 2}
    assert "ZeroDivisionError" in asked(llm)


def test_feedback_on_a_parameter_itself_is_a_case(answers):
    x = node(1.0, trainable=True, name="x")
    llm = answers(suggest(x=2.0), suggest(x=3.0))
    optimizer = OptoPrime([x], llm)
    x.backward("larger")
    assert optimizer.step() == {x: 2.0}
    optimizer.backward(x, "larger still")
    assert optimizer.step() == {x: 3.0}


def test_what_other_propagators_bring_is_shown_in_words(answers):
    x, y = node(1.0, trainable=True, name="x"), node(2.0, trainable=True, name="y")
    llm = answers(suggest(x=2.0))
    optimizer = OptoPrime([x, y], llm)
    total = x + y
    total.backward("larger", propagator=SumPropagator())
    optimizer.step()
    assert asked(llm).count("larger") == 1

    told = Propagator()
    told.register("add", lambda child: {parent: f"you hold {parent.data}" for parent in child.parents})
    llm = answers(suggest(x=3.0))
    x = node(1.0, trainable=True, name="x")
    optimizer = OptoPrime([x, y], llm)
    (x + y).backward("larger", propagator=told)
    optimizer.step()
    assert "x: you hold 1.0" in asked(llm)
    assert "y: you hold 2.0" in asked(llm)


def test_feedback_that_does_not_reach_the_parameters_is_no_case_but_its_score_counts_where_the_optimizer_is_told(answers):
    x = node(1.0, trainable=True, name="x")
    optimizer = OptoPrime([x], answers())
    (node(1.0) + 1).backward("about something else")
    with pytest.warns(RuntimeWarning, match="no scored episode"):
        assert optimizer.step() == {}
    optimizer = OptoPrime([x], answers(suggest(x=2.0)))
    optimizer.backward(node(1.0) + 1, (0.0, "it crashed before it looked at x"))
    assert optimizer.step() == {x: 2.0}


async def test_feedback_given_inside_a_running_loop_feeds_a_step_there(answers):
    x = node(1.0, trainable=True, name="x")
    llm = answers(suggest(x=3.0))
    optimizer = OptoPrime([x], llm)

    @bundle()
    async def slowly(value):
        return value + 1

    outputs = await asyncio.gather(slowly(x), slowly(x * 2))
    for output in outputs:
        output.backward("larger")
    assert optimizer.step() == {x: 3.0}
    assert "Case 2 of 2" in asked(llm)


def test_threads_that_give_feedback_at_once_lose_none(forced_switching, answers):
    x = node(1.0, trainable=True, name="x")
    llm = answers(suggest(x=3.0))
    optimizer = OptoPrime([x], llm)

    def give(number):
        output = x + number
        if number % 2:
            output.backward(f"feedback <{number}>")
        else:
            optimizer.backward(output, f"feedback <{number}>")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(give, range(40)))
    optimizer.step()
    assert "Case 40 of 40" in asked(llm)
    assert all(asked(llm).count(f"feedback <{number}>") == 1 for number in range(40))


def test_rewards_of_any_size_are_words_as_in_trace_and_scores_only_where_they_can_be(answers):
    x = node(1.0, trainable=True, name="x")
    llm = answers(suggest(x=2.0))
    optimizer = OptoPrime([x], llm)
    optimizer.backward(x + 1, -12.5)
    (x + 2).backward(7)
    (x + 3).backward(np.array([0.5, 0.25]))
    optimizer.step()
    assert "-12.5" in asked(llm)
    assert "[0.5  0.25]" in asked(llm)
    assert "Score" not in asked(llm)
    with pytest.raises(OptimizerError, match=r"a score is in \[0, 1\], not 7"):
        optimizer.backward(x + 3, (7, "good"))


# --- what Trace's programs pass and look at ---


def test_steps_are_logged_as_render_opt_step_shows_them_and_as_json_can_hold(answers):
    x = node(1.0, trainable=True, name="x")
    optimizer = OptoPrime([x], answers("no", suggest(x=3.0)))
    (x + 1).backward("larger <b>")
    optimizer.step()
    (entry,) = json.loads(json.dumps(optimizer.log))
    assert "improve a program" in entry["system_prompt"]
    assert "larger" in entry["user_prompt"]
    assert entry["response"] == suggest(x=3.0)
    assert re.findall(r"^--- (.+)\n(.*)", entry["exchange"], re.MULTILINE) == [
        ("scripted", "no"),
        ("user", "Your answer can't be used: the reply has no JSON object and no <value> tags"),
        ("scripted", suggest(x=3.0)),
    ]
    page = render_opt_step(0, optimizer)
    assert page.count("larger &lt;b&gt;") == 2, "in the problem, and as feedback"
    assert "#Variables" in page
    assert "3.0" in page
    assert "#Variables" not in render_opt_step(0, optimizer, no_trace_graph=True)
    assert OptoPrime([x], answers(), log=False).log is None


def test_verbose_prints_the_prompt_and_the_answer_or_only_the_answer(answers, capsys):
    x = node(1.0, trainable=True, name="x")
    optimizer = OptoPrime([x], answers(suggest(x=3.0), suggest(x=4.0)))
    (x + 1).backward("larger")
    optimizer.step(verbose=True)
    printed = capsys.readouterr().out
    assert "#Variables" in printed
    assert suggest(x=3.0) in printed
    (x + 1).backward("larger")
    optimizer.step(verbose="output")
    printed = capsys.readouterr().out
    assert "#Variables" not in printed
    assert suggest(x=4.0) in printed


def test_a_mask_of_trace_s_section_names_leaves_them_out_for_one_step(answers):
    x = node(1.0, trainable=True, name="x")
    llm = answers(suggest(x=3.0), suggest(x=4.0))
    optimizer = OptoPrime([x], llm)
    (x + 1).backward("larger")
    optimizer.step(mask=["#Code", "#Feedback"])
    (x + 1).backward("larger still")
    optimizer.step()
    assert "#Code" not in asked(llm, 0)
    assert "larger" not in asked(llm, 0)
    assert "#Code" in asked(llm, 1)
    with pytest.raises(OptimizerError, match="there is no section '#Colour'"):
        optimizer.step(mask=["#Colour"])


def test_options_of_trace_are_taken_and_misspelt_ones_are_refused(answers):
    x = node(1.0, trainable=True, name="x")
    optimizer = OptoPrime([x], answers("no", "no"), include_example=True, prompt_symbols={}, max_tokens=99, ignore_extraction_error=False)
    (x + 1).backward("larger")
    with pytest.raises(DecodingError):
        optimizer.step()
    with pytest.warns(RuntimeWarning, match="`llm` names the model"):
        OptoPrime([x], answers(), config_list=[])
    with pytest.raises(OptimizerError, match="there is no option 'temprature'"):
        OptoPrime([x], answers(), temprature=0.5)


def test_the_objective_may_change_between_steps(answers):
    x = node(1.0, trainable=True, name="x")
    llm = answers(suggest(x=2.0), suggest(x=3.0))
    optimizer = OptoPrime([x], llm)
    for hint in ("as far as you can", "but not too far"):
        optimizer.objective = f"{optimizer.default_objective} Hint: {hint}"
        (x + 1).backward("larger")
        optimizer.step()
    assert "Hint: as far as you can" in asked(llm, 0)
    assert "Hint: but not too far" in asked(llm, 1)


def test_the_problem_of_all_parameters_together_is_trace_graph():
    x, y = node(1.0, trainable=True, name="x"), node(2.0, trainable=True, name="y")
    optimizer = OptoPrime([x, y])
    (x * y).backward("larger")
    assert optimizer.trace_graph.user_feedback == "larger"
    assert {other.py_name for other in optimizer.trace_graph.nodes} >= {x.py_name, y.py_name}


def test_several_answers_at_falling_temperatures_of_which_a_selector_takes_one(answers):
    x = node(1.0, trainable=True, name="x")
    llm = answers(suggest(x=5.0), "no", "no", suggest(x=7.0))
    optimizer = OptoPrimeMulti([x], llm, num_responses=3, temperature_range=[0.9, 0.1], selector=lambda found: max(found, key=len))
    (x + 1).backward("larger")
    with pytest.warns(RuntimeWarning, match="no usable proposal"):
        assert optimizer.step() == {x: 5.0}
    assert optimizer.candidates == [{x: 5.0}, {}, {x: 7.0}]
    assert optimizer.selected_candidate == {x: 5.0}
    assert [round(request.temperature, 2) for request in llm.requests] == [0.9, 0.5, 0.5, 0.1]

    llm = answers(suggest(x=6.0), suggest(x=7.0), suggest(x=6.5))
    optimizer = OptoPrime([x], llm, samples=2, select="model")
    (x + 1).backward("larger")
    assert optimizer.step() == {x: 6.5}, "what the model makes of both"

    llm = answers(suggest(x=6.0), suggest(x=8.0))
    optimizer = OptoPrimeMulti([x], llm)
    (x + 1).backward("larger")
    assert optimizer.propose(num_responses=2) == {x: 8.0}, "the last one by default, as in Trace"


# --- optimizers of a program's own ---


class Slopes(Propagator):
    """Brings to each parameter the slope of the output (the chain rule, for + and *)."""

    def init_feedback(self, _, feedback):
        return feedback

    def _propagate(self, child):
        slope = sum(sum(items) for items in child.feedback.values())
        x, y = child.parents
        return {x: slope, y: slope} if "add" in child.name else {x: slope * y.data, y: slope * x.data}


class Descent(Optimizer):
    def __init__(self, parameters, stepsize, **arguments):
        super().__init__(parameters, **arguments)
        self.stepsize = stepsize

    def default_propagator(self):
        return Slopes()

    def _step(self):
        return {x: x.data - self.stepsize * sum(sum(items) for items in x.feedback.values()) for x in self.parameters}


def test_an_optimizer_of_a_program_s_own_is_written_as_in_trace():
    x = node(4.0, trainable=True, bounds=(-5.0, 5.0))
    optimizer = Descent([x], stepsize=0.2)
    for _ in range(40):
        offset = x + (-1.0)
        optimizer.zero_feedback()
        optimizer.backward(offset * offset.clone().detach(), 2.0)
        optimizer.step()
    assert x.data == pytest.approx(1.0, abs=1e-3)
    optimizer.backward(x * 1.0, 1e6)
    assert optimizer.step(bypassing=True)[x] < -5.0
    with pytest.raises(TraceError, match="-5"):
        optimizer.step()
    with pytest.raises(OptimizerError, match="is no parameter"):
        Descent([node(1.0)], stepsize=1.0)
    assert isinstance(OptoPrime([x]), Optimizer)
