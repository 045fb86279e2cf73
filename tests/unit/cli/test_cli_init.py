"""`agentd init`: an existing Trace program becomes an agent, and none of its files is changed."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from episodes import make_episode
from typer.testing import CliRunner

from agentd.cli.app import app
from agentd.hosting.judge import Judge
from agentd.hosting.zygotes import Zygotes
from agentd.ready import find
from agentd.records import Step, make_revision
from agentd.sandbox import Limits, PolicyWorker, Zygote
from agentd.spec import load_agent, metric_record

PROGRAM = """
from agentd.trace import bundle, model, node

@model
class Agent:
    def __init__(self, prompt):
        self.prompt = node(prompt, trainable=True)

    @bundle(trainable=True)
    def reply(self, question):
        return question

    def __call__(self, question):
        return self.reply(question) + self.prompt

def words_only(answer, reference="x"):
    return "Correct" if answer == reference else f"Incorrect: it should be {reference}"

def with_input(question, answer, reference):
    return (0.25, f"{question} {answer} {reference}")

def of_episode(episode):
    return 0.75

def too_many(a, b, c, d):
    return 1
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps({"input": f"q{n}", "reference": f"q{n}!"}) + "\n" for n in range(10)))
    return tmp_path


def init(folder, program="program:Agent", *arguments, guide="program:words_only", args=("prompt=!",)):
    given = [word for arg in args for word in ("--arg", arg)]
    data = str(folder / "cases.jsonl")
    return CliRunner().invoke(app, ["init", program, "--guide", guide, "--data", data, "--folder", str(folder), *given, *arguments])


async def answer(folder, observation):
    """What the hosted program answers, from a locked worker."""
    spec, source = load_agent(folder)
    limits = Limits.from_spec(spec.sandbox)
    async with (
        await Zygote.start(imports=limits.allowed_imports, min_isolation=spec.sandbox.min_isolation) as zygote,
        await PolicyWorker.start(
            zygote, source=source, revision=make_revision("a", source.digest, {}), limits=limits, on_log=print
        ) as worker,
    ):
        await worker.reset("d", "e", 1)
        return await worker.act("d", 0, observation)


async def judged(folder, action, reference):
    """What the hosted guide says, from a locked worker."""
    spec, source = load_agent(folder)
    step = Step(tick=0, observation="q", action=action, info={"reference": reference}, terminated=True)
    async with Zygotes() as zygotes, Judge(spec, source, metric_record(spec.metrics[0]), zygotes) as judge:
        return await judge.judge(make_episode(steps=(step,)))


def test_it_says_what_is_trainable_and_how_the_cases_are_split(folder):
    before = (folder / "program.py").read_text()
    result = init(folder)
    assert result.exit_code == 0, result.output
    assert "prompt" in result.stdout
    assert "def reply(self, question):" in result.stdout
    assert "held back to decide" in result.stdout
    assert (folder / "program.py").read_text() == before


def test_a_parameter_that_needs_no_explanation_stands_on_one_line(folder):
    (folder / "program.py").write_text(PROGRAM.replace("    @bundle(trainable=True)", "    @bundle()"))
    assert "  prompt  text\n" in init(folder).stdout.replace(" \n", "\n")


def test_its_document_has_the_same(folder):
    document = json.loads(init(folder, "program:Agent", "--json", "--name", "parrot").stdout)
    assert document["agent"] == "parrot"
    assert document["files"] == ["agent.toml", "feedback.py", "hosted.py"]
    assert {(found["path"], found["kind"]) for found in document["parameters"]} == {("prompt", "text"), ("reply", "code")}
    assert document["training"] + document["validation"] == 10


async def test_the_hosted_program_answers_as_the_program_does(folder):
    await asyncio.to_thread(init, folder)
    assert await answer(folder, "q1") == "q1!"


async def test_a_guide_that_gives_words_is_taken_by_its_first_word(folder):
    await asyncio.to_thread(init, folder)
    right, wrong = await judged(folder, "a", "a"), await judged(folder, "a", "b")
    assert (right.score, right.text, right.failed) == (1.0, "Correct", "")
    assert (wrong.score, wrong.text) == (0.0, "Incorrect: it should be b")


async def test_a_guide_may_see_the_input_and_give_a_score(folder):
    await asyncio.to_thread(init, folder, guide="program:with_input")
    feedback = await judged(folder, "a", "b")
    assert (feedback.score, feedback.text) == (0.25, "q a b")


async def test_a_guide_of_the_episode_needs_no_wrapper(folder):
    await asyncio.to_thread(init, folder, guide="program:of_episode")
    assert not (folder / "feedback.py").exists()
    assert (await judged(folder, "a", "b")).score == 0.75


async def test_a_function_brings_the_parameters_at_the_top_of_its_module(folder):
    (folder / "program.py").write_text("""
from agentd.trace import bundle, node
suffix = node("?", trainable=True)
fixed = node("!")

@bundle(trainable=True)
def reply(question, number):
    return question * number

def agent(question, number):
    return reply(question, number) + suffix + fixed

def guide(answer, reference):
    return 1.0
""")
    result = await asyncio.to_thread(init, folder, "program:agent", "--json", guide="program:guide", args=())
    assert result.exit_code == 0, result.output
    assert {found["path"] for found in json.loads(result.stdout)["parameters"]} == {"suffix", "reply"}
    assert await answer(folder, {"question": "a", "number": 2}) == "aa?!"


async def test_what_is_asynchronous_is_hosted_as_well(folder):
    (folder / "program.py").write_text("""
from agentd.trace import model, node
suffix = node("?", trainable=True)

async def agent(question, number):
    return suffix + question * number

@model
class Agent:
    def __init__(self):
        self.suffix = node("!", trainable=True)

    async def __call__(self, question, number):
        return self.suffix + question * number

def guide(answer, reference):
    return 1.0
""")
    for program, expected in (("program:agent", "?aa"), ("program:Agent", "!aa")):
        result = await asyncio.to_thread(init, folder, program, guide="program:guide", args=())
        assert result.exit_code == 0, result.output
        assert await answer(folder, {"question": "a", "number": 2}) == expected
        for file in ("agent.toml", "hosted.py", "feedback.py"):
            (folder / file).unlink()


async def test_what_is_in_the_way_keeps_its_name_and_its_content(folder):
    (folder / "feedback.py").write_text("def mine(answer, reference):\n    return 0.5, 'mine'\n")
    (folder / "hosted.py").write_text("mine = True\n")
    result = await asyncio.to_thread(init, folder, guide="feedback:mine")
    assert result.exit_code == 0, result.output
    assert (folder / "hosted.py").read_text() == "mine = True\n"
    assert (await judged(folder, "a", "b")).text == "mine"


async def test_a_policy_is_hosted_without_a_wrapper(folder):
    (folder / "policy.py").write_text(
        "from program import Agent\nclass Policy(Agent):\n    def act(self, observation):\n        return self.prompt\n"
    )
    result = await asyncio.to_thread(init, folder, "policy:Policy", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["files"] == ["agent.toml", "feedback.py"]


def test_what_the_program_imports_is_allowed_to_it(folder):
    (folder / "program.py").write_text("import json\nimport re\n" + PROGRAM)
    assert init(folder).exit_code == 0
    assert load_agent(folder)[0].sandbox.allowed_imports == ("json", "math", "numpy", "re")


def test_other_keys_of_the_cases_and_data_from_elsewhere_are_noted(folder, tmp_path_factory):
    data = tmp_path_factory.mktemp("data") / 'my "cases".jsonl'
    data.write_text('{"question": 1, "answer": 2}\n')
    arguments = ["init", "program:Agent", "--guide", "program:words_only", "--data", str(data), "--folder", str(folder)]
    result = CliRunner().invoke(app, [*arguments, "--arg", "prompt=!", "--input", "question", "--reference", "answer"])
    assert result.exit_code == 0, result.output
    dataset = load_agent(folder)[0].environment.dataset
    assert (dataset.path, dataset.input, dataset.reference) == (str(data), "question", "answer")


@pytest.mark.parametrize(
    ("program", "guide", "args", "expected"),
    [
        ("program", "program:words_only", (), 'should be "module:name"'),
        ("progam:Agent", "program:words_only", (), "there is no"),
        ("program:Agnt", "program:words_only", (), "program.py defines no Agnt; it defines: Agent"),
        ("program:Agent", "program:words_only", (), "Agent can't be made without prompt: give --arg prompt=..."),
        ("program:Agent", "program:Agent", ("prompt=!",), "should be a function of the answer and the reference"),
        ("program:Agent", "program:too_many", ("prompt=!",), "takes 4 arguments"),
        ("program:Agent", "program:words_only", ("prompt",), "an argument should be name=value"),
        ("program:Agent", "program:words_only", ("prompt=null",), "--arg prompt: a text, a number, true, false or a list of these"),
        ("program:Agent", "program:words_only", ('prompt=[{"a": 1}]',), "a list of these can stand in agent.toml, not [{"),
    ],
)
def test_what_can_not_be_is_said_and_nothing_is_written(folder, program, guide, args, expected):
    before = sorted(folder.iterdir())
    result = init(folder, program, guide=guide, args=args)
    assert result.exit_code == 2
    assert expected in result.output
    assert sorted(folder.iterdir()) == before


def test_a_program_of_traces_own_package_is_told_what_to_import(folder):
    (folder / "program.py").write_text("from opto.trace import node\n" + PROGRAM)
    result = init(folder)
    assert result.exit_code == 2
    assert "program.py, line 1: imports opto.trace; agentd.trace in place of opto.trace" in result.output


@pytest.mark.parametrize(
    ("body", "expected"), [("    raise ValueError('no luck')", "no luck"), ("    def __call__(self, x): return x", "has nothing trainable")]
)
def test_a_program_that_can_not_be_hosted_leaves_nothing_behind(folder, body, expected):
    (folder / "program.py").write_text(f"class Agent:\n{body}\ndef words_only(answer, reference): return 1.0\n")
    before = sorted(folder.iterdir())
    result = init(folder, args=())
    assert result.exit_code == 1
    assert expected in result.output
    assert sorted(folder.iterdir()) == before


def test_an_agent_that_is_there_already_is_not_touched(folder):
    init(folder)
    (folder / "agent.toml").write_text("mine")
    result = init(folder)
    assert result.exit_code == 2
    assert "is there already" in result.output
    assert (folder / "agent.toml").read_text() == "mine"


def test_a_program_that_asks_models_may_do_so_within_a_budget_and_has_time_for_it(folder):
    (folder / "program.py").write_text("from agentd.trace.operators import call_llm\n" + PROGRAM)
    assert init(folder).exit_code == 0
    spec, _ = load_agent(folder)
    assert spec.models is not None
    assert (spec.models.budget.dollars_per_day, spec.sandbox.step_timeout) == (5.0, "60s")


def test_the_greeting_policy_is_what_init_makes_of_its_program(tmp_path):
    shipped: Path = find("greeting")
    for file in ("greeting.py", "cases.jsonl"):
        shutil.copy(shipped / file, tmp_path)
    result = init(tmp_path, "greeting:Agent", guide="greeting:feedback_fn", args=())
    assert result.exit_code == 0, result.output
    for file in ("agent.toml", "hosted.py", "feedback.py"):
        assert (tmp_path / file).read_text() == (shipped / file).read_text(), file
