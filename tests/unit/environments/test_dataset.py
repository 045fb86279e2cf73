"""A data set as an environment: the file, the split, and what policy and judge get to see."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd import codec
from agentd.cases import Case, read_cases, split
from agentd.clock import SystemClock
from agentd.environments import Joined, make_environment
from agentd.errors import PlantError, SpecError
from agentd.records import NodeKind, Purpose, Role, TraceGraph
from agentd.runners.local import Finished, Happened
from agentd.spec import AgentSpec, load_agent

CASES = [{"input": f"question {number}", "reference": number} for number in range(20)]


def lines(*cases):
    return "".join(json.dumps(case) + "\n" for case in cases)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "agent.toml").write_text("""
        schema = 1
        [agent]
        name = "echo"
        entrypoint = "policy:Echo"
        [environment]
        kind = "dataset"
        dataset = { path = "cases.jsonl" }
        [feedback]
        entrypoint = "feedback:feedback"
    """)
    (tmp_path / "policy.py").write_text("""
from agentd.trace import bundle, model

@model
class Echo:
    @bundle(trainable=True)
    def reply(self, question):
        return question.upper()

    def act(self, observation):
        return self.reply(observation)
""")
    (tmp_path / "feedback.py").write_text("def feedback(episode):\n    return 1.0, str(episode.steps[0].info['reference'])\n")
    (tmp_path / "cases.jsonl").write_text(lines(*CASES))
    return tmp_path


def edit(folder, old, new):
    path = folder / "agent.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def mistakes(folder):
    with pytest.raises(SpecError) as caught:
        load_agent(folder)
    return {mistake.key: mistake.expected for mistake in caught.value.mistakes}


async def reader(spec):
    environment = make_environment(spec, session="s", broker=None, clock=SystemClock(), generator=random.Random(1))
    change = await anext(environment.changes())
    assert isinstance(change, Joined)
    return change.device


# --- the file -----------------------------------------------------------------------------------------------------------


def test_each_line_is_a_case_and_empty_lines_are_left_out(tmp_path):
    path = tmp_path / "cases.jsonl"
    path.write_text('{"input": {"a": [1, "\u2028"]}, "reference": "x", "more": 1}\n\n{"input": "only"}\r\n', encoding="utf-8")
    assert read_cases(path) == (Case(input={"a": [1, "\u2028"]}, reference="x"), Case(input="only"))


def test_the_keys_may_have_other_names(tmp_path):
    path = tmp_path / "cases.jsonl"
    path.write_text(lines({"question": 1, "answer": 2}))
    assert read_cases(path, input_key="question", reference_key="answer") == (Case(input=1, reference=2),)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nonsense", "not JSON: Expecting value"),
        ("[1]", 'should be an object such as {"input": ...}'),
        ('{"question": 1}', 'has no "input"; its keys are: "question"'),
        ('{"input": null}', '"input" should be something to answer, not null'),
        ('{"input": NaN}', "NaN is no JSON"),
        ("[" * 100_000, "is nested too deeply"),
    ],
)
def test_a_wrong_line_is_named_with_what_is_wrong(tmp_path, line, expected):
    path = tmp_path / "cases.jsonl"
    path.write_text(f'{{"input": 1}}\n{line}\n')
    with pytest.raises(SpecError) as caught:
        read_cases(path)
    assert [(mistake.key, mistake.expected) for mistake in caught.value.mistakes] == [("(line 2)", expected)]


def test_a_file_of_nothing_but_mistakes_tells_the_first_ten(tmp_path):
    path = tmp_path / "cases.jsonl"
    path.write_text("x\n" * 50)
    with pytest.raises(SpecError) as caught:
        read_cases(path)
    assert len(caught.value.mistakes) == 10


@pytest.mark.parametrize(("content", "expected"), [(b"", "should have at least one case"), (b"\xff", "should be UTF-8")])
def test_a_file_without_cases_is_refused(tmp_path, content, expected):
    path = tmp_path / "cases.jsonl"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=expected):
        read_cases(path)


# --- the split ----------------------------------------------------------------------------------------------------------

inputs = st.lists(st.integers() | st.text(), unique_by=repr, min_size=0, max_size=40)


@given(inputs, st.floats(0.0, 0.99), st.randoms())
def test_the_split_is_the_same_in_every_order_and_loses_nothing(values, share, generator):
    cases = [Case(input=value) for value in values]
    parts = split(cases, share)
    assert {case.id for case in parts.train} | {case.id for case in parts.validation} == {case.id for case in cases}
    assert len(parts.train) + len(parts.validation) == len(cases)
    generator.shuffle(cases)
    again = split(cases, share)
    assert {case.id for case in again.validation} == {case.id for case in parts.validation}


@given(st.lists(st.integers(0, 30), min_size=2), st.floats(0.01, 0.99))
def test_the_same_input_is_never_on_both_sides_and_neither_side_is_empty(values, share):
    parts = split([Case(input=value, reference=number) for number, value in enumerate(values)], share)
    train, validation = ({case.input for case in side} for side in parts)
    assert not train & validation
    assert train
    assert bool(validation) == (len(set(values)) > 1)


def test_a_case_keeps_its_side_when_others_are_added():
    few, many = ([Case(input=number) for number in range(count)] for count in (50, 500))
    before, after = split(few, 0.3), split(many, 0.3)
    assert set(map(_input, before.validation)) <= set(map(_input, after.validation))
    assert set(map(_input, before.train)) <= set(map(_input, after.train))
    assert 100 <= len(after.validation) <= 200


def _input(case):
    return case.input


def test_where_nothing_is_held_back_the_training_cases_decide():
    parts = split([Case(input=1), Case(input=2)], 0.0)
    assert parts.validation == ()
    assert parts.deciding == parts.train


# --- agent.toml ---------------------------------------------------------------------------------------------------------


def test_an_agent_on_a_data_set_is_loaded_with_the_place_of_its_files(folder):
    spec, source = load_agent(folder)
    assert spec.environment.folder == str(folder)
    assert "cases.jsonl" not in source.files, "a policy could read the references"
    assert AgentSpec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec


def test_more_cases_make_no_new_source_but_are_noticed(folder):
    spec, source = load_agent(folder)
    (folder / "cases.jsonl").write_text(lines(*CASES[1:]))
    changed, same = load_agent(folder)
    assert same.digest == source.digest
    assert changed != spec


def test_a_folder_that_was_moved_has_the_same_source(folder, tmp_path_factory):
    moved = tmp_path_factory.mktemp("elsewhere") / "agent"
    _, source = load_agent(folder)
    folder.rename(moved)
    assert load_agent(moved)[1].digest == source.digest


def test_cases_without_a_judge_are_refused(folder):
    edit(folder, "[feedback]\n        entrypoint", "[optimizer]\n        #")
    assert mistakes(folder) == {"feedback": 'required for kind "dataset": a function that compares the answer with the reference'}


def test_what_other_kinds_need_is_refused(folder):
    edit(folder, 'kind = "dataset"', 'kind = "dataset"\nid = "CartPole-v1"\nentrypoint = "policy:Echo"\nfolder = "/"')
    assert mistakes(folder) == {
        "environment.id": 'only for kind "gymnasium"',
        "environment.entrypoint": 'only for kind "python"',
        "environment.folder": "not to be written: it is the folder of this file",
    }


def test_a_missing_file_and_one_with_mistakes_are_told(folder):
    (folder / "cases.jsonl").write_text("{}\n")
    assert mistakes(folder) == {"(line 1)": 'has no "input"; its keys are: none'}
    (folder / "cases.jsonl").unlink()
    assert mistakes(folder) == {"(file)": "can't be read: No such file or directory"}


def test_the_cases_can_not_be_included_among_what_the_policy_may_read(folder):
    edit(folder, 'name = "echo"', 'name = "echo"\ninclude = ["*.jsonl"]')
    assert mistakes(folder) == {"agent.include[0]": "names the data set: the policy could read the references"}


# --- episodes -----------------------------------------------------------------------------------------------------------


async def test_an_episode_is_one_case_whose_reference_comes_after_the_answer(folder):
    device = await reader(load_agent(folder)[0])
    first = await device.reset("e1", 3, 10)
    assert not first.last
    assert first.info == {}
    after = await device.step("the answer", revision="r", safe=False)
    assert after.terminated
    assert after.observation is None
    assert after.info["reference"] == CASES.index({"input": first.observation, "reference": after.info["reference"]})


async def test_pairs_meet_the_validation_cases_and_others_never_do(folder):
    spec, _ = load_agent(folder)
    parts = split(read_cases(folder / "cases.jsonl"), 0.3)
    device = await reader(spec)
    seen = {purpose: set() for purpose in (Purpose.NORMAL, Purpose.PAIR)}
    for purpose, observed in seen.items():
        for seed in range(100):
            observed.add((await device.reset("e", seed, 10, purpose)).observation)
    assert seen[Purpose.NORMAL] == set(map(_input, parts.train))
    assert seen[Purpose.PAIR] == set(map(_input, parts.validation))


async def test_without_seeds_the_cases_come_in_turn(folder):
    device = await reader(load_agent(folder)[0])
    train = split(read_cases(folder / "cases.jsonl"), 0.3).train
    assert len({(await device.reset("e", None, 10)).observation for _ in train}) == len(train)


async def test_a_file_that_is_gone_when_the_runner_begins_is_said(folder):
    spec, _ = load_agent(folder)
    (folder / "cases.jsonl").unlink()
    with pytest.raises(PlantError, match="the data set can't be read"):
        await reader(spec)


async def test_a_runner_drives_a_locked_policy_through_cases_and_the_answer_is_the_output_of_the_trace(folder, runners):
    from agentd.records import make_revision

    spec, source = load_agent(folder)
    runner = await runners.start(spec)
    revision = make_revision("echo", source.digest, {})
    await runner.load(source, revision)
    await runner.route(revision.id)
    while not isinstance(told := await runner.next(), Finished):
        assert not (isinstance(told, Happened) and told.event.kind == "runner.fault"), told
    episode = told.episode
    (step,) = episode.steps
    assert episode.role is Role.STABLE
    assert step.action == step.observation.upper()
    assert CASES[step.info["reference"]]["input"] == step.observation
    graph = codec.decode(episode.trace, TraceGraph)
    output = graph.nodes[graph.output]
    assert output.value == step.action
    (answer,) = (graph.nodes[parent] for parent in output.parents)
    assert (answer.kind, answer.value) == (NodeKind.MESSAGE, step.action)
    assert "reply" in {node.path for node in graph.nodes}
