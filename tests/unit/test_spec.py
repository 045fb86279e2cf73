"""agent.toml and its folder: what is read, what the digest depends on, and that every mistake is told at once."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.configuration import parse_duration, parse_size, validate
from agentd.errors import SpecError
from agentd.opto.contract import OptimizerContext
from agentd.opto.factory import make_optimizer
from agentd.records import Goal, Kind, MetricRule, Parameter, Space, make_revision
from agentd.source import MAX_FILE_BYTES
from agentd.spaces import why_outside
from agentd.spec import (
    AgentSpec,
    ParameterSection,
    SpaceSection,
    feedback_window,
    load_agent,
    metric_record,
    release_settings,
    space_record,
    watch_settings,
)
from agentd.testing.optimizers import NoModel

GOOD = """
schema = 1
[agent]
name = "cartpole"
entrypoint = "controller:CartPole"
args = { gain = 1.5 }
[environment]
kind = "gymnasium"
id = "CartPole-v1"
[[metrics]]
name = "score"
range = [0.0, 1.0]
[feedback]
entrypoint = "feedback:explain"
"""
CONTROLLER = "class CartPole:\n    def act(self, observation):\n        return 0\n"
FEEDBACK = "def explain(episode):\n    return 1.0\n"


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("agent.toml", GOOD)
        self.write("controller.py", CONTROLLER)
        self.write("feedback.py", FEEDBACK)

    def write(self, name: str, content: str | bytes) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def edit(self, old: str, new: str) -> None:
        text = (self.path / "agent.toml").read_text()
        assert old in text
        self.write("agent.toml", text.replace(old, new))

    def append(self, text: str) -> None:
        self.write("agent.toml", (self.path / "agent.toml").read_text() + text)

    def load(self):
        return load_agent(self.path)

    def digest(self) -> str:
        return self.load()[1].digest

    def mistakes(self) -> dict[str, str]:
        with pytest.raises(SpecError) as caught:
            self.load()
        return {mistake.key: mistake.expected for mistake in caught.value.mistakes}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "cartpole")


def test_a_good_folder_gives_the_spec_and_the_source(folder) -> None:
    spec, source = folder.load()
    assert spec.agent.name == "cartpole"
    assert source.entrypoint == "controller:CartPole"
    assert source.feedback == "feedback:explain"
    assert source.args == {"gain": 1.5}
    assert source.files == {"controller.py": CONTROLLER, "feedback.py": FEEDBACK}


def test_a_password_of_the_broker_is_the_runners_and_not_in_what_the_store_keeps(folder) -> None:
    plant = 'kind = "mqtt"\nsafe_action = { value = 0 }\naction_space = { discrete = 2 }\nmqtt = { broker = "mqtts://arm:s3cr/et@host" }'
    folder.edit('kind = "gymnasium"\nid = "CartPole-v1"', plant)
    spec, source = folder.load()
    assert spec.environment.mqtt.broker == "mqtts://arm:s3cr/et@host"
    assert source.sections["environment"]["mqtt"] == {"broker": "mqtts://arm:***@host"}
    digest = source.digest
    folder.edit("s3cr/et", "other")
    assert folder.digest() != digest


def test_the_spec_becomes_the_records_that_the_rest_works_with(folder) -> None:
    folder.append(
        '[release]\nmax_duration = "15m"\nprune = { after_pairs = 3, below = 0.1 }\n[guardrails]\nerror_rate = { abort_at = 0.4 }\n'
    )
    folder.append("[watch]\nburn_in = 20\n")
    folder.edit("range = [0.0, 1.0]", 'range = [-10.0, 0.0]\ndirection = "lower"')
    spec, _ = folder.load()
    settings = release_settings(spec)
    assert (settings.max_duration, settings.prune_after_pairs, settings.prune_below, settings.abort_error_rate) == (900.0, 3, 0.1, 0.4)
    metric = metric_record(spec.metrics[0])
    assert (metric.normalised(-10.0), metric.normalised(0.0), metric.worst) == (1.0, 0.0, 0.0)
    assert watch_settings(spec).burn_in == 20


def test_what_a_release_asks_of_each_metric_becomes_its_rules(folder) -> None:
    folder.edit("range = [0.0, 1.0]", "range = [0.0, 1.0]\n[[metrics]]\nname = 'energy'\nmargin = 0.1\ndifference_range = 0.5")
    folder.append("[release]\ngoal = 'no_worse'\nmargin = 0.02\ndifference_range = 0.4\nramp = [0.1, 1.0]\nstratify = ['site']\n")
    spec, _ = folder.load()
    settings = release_settings(spec)
    assert (settings.goal, settings.margin, settings.difference_range) == (Goal.NO_WORSE, 0.02, 0.4)
    assert settings.metrics == (MetricRule(name="energy", goal=Goal.NO_WORSE, margin=0.1, difference_range=0.5),)
    assert (settings.ramp, settings.stratify) == ((0.1, 1.0), ("site",))


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ('[release]\ngoal = "no_worse"\n', "release.margin", "required for goal"),
        ("[release]\nmargin = 0.1\n", "release.margin", 'only for goal "no_worse"'),
        ('[release]\ngoal = "no_worse"\nmargin = 0.5\ndifference_range = 0.3\n', "release.margin", "less than difference_range"),
        ("[release]\nramp = [0.5, 0.25]\n", "release.ramp", "larger than the one before"),
        ("[release]\nramp = []\n", "release.ramp", "larger than the one before"),
        ('[environment.mqtt]\nbegin = "device"\nepisode_ticks = 5\n', "environment.mqtt.episode_ticks", "not together with begin"),
        ('[[metrics]]\nname = "b"\nmargin = 0.5\ndifference_range = 0.3\n', "metrics[1].margin", "less than difference_range"),
    ],
)
def test_rules_that_can_not_be_kept_are_mistakes(folder, text, key, said) -> None:
    folder.append(text)
    assert said in folder.mistakes()[key]


def test_a_spec_that_was_written_out_for_a_runner_is_read_as_the_same(folder) -> None:
    folder.edit("range = [0.0, 1.0]", "range = [0.0, 1.0]\n[[metrics]]\nname = 'energy'\nmargin = 0.1")
    for text in ("", "[release]\ngoal = 'no_worse'\nmargin = 0.02\n"):
        folder.append(text)
        spec, _ = folder.load()
        assert AgentSpec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec


def test_a_seeding_method_is_only_for_gymnasium(folder) -> None:
    folder.edit('kind = "gymnasium"\nid = "CartPole-v1"', 'kind = "python"\nentrypoint = "controller:CartPole"\nseed_with = "seed"')
    assert folder.mistakes()["environment.seed_with"] == 'only for kind "gymnasium"'


def test_where_devices_begin_their_episodes_releases_are_decided_on_single_ones(folder) -> None:
    folder.edit('kind = "gymnasium"\nid = "CartPole-v1"', 'kind = "mqtt"\nsafe_action = { value = 0 }\naction_space = { discrete = 2 }')
    assert release_settings(folder.load()[0]).exposure is None
    folder.append('[environment.mqtt]\nbegin = "device"\n[release]\nexposure = 0.2\n')
    assert release_settings(folder.load()[0]).exposure == 0.2
    folder.edit("exposure = 0.2", 'goal = "no_worse"\nmargin = 0.1')
    assert "no anchor" in folder.mistakes()["release.goal"]


SERVED = 'kind = "http"\n[environment.http]\nqueue = 8\n'
LATE = '[release]\nfeedback_timeout = "2h"\n'


def served(folder, *, late: str = LATE) -> None:
    folder.edit('kind = "gymnasium"\nid = "CartPole-v1"', SERVED)
    folder.edit('[feedback]\nentrypoint = "feedback:explain"', late)


def test_an_agent_that_is_served_over_http_is_judged_later_and_decided_on_single_episodes(folder) -> None:
    served(folder, late=LATE + "silent_score = 0.25\nexposure = 0.2\n")
    spec = folder.load()[0]
    rules = release_settings(spec)
    assert (rules.exposure, rules.silent_score, feedback_window(spec)) == (0.2, 0.25, 7200.0)


def test_an_agent_that_is_served_over_http_may_judge_at_once_and_then_no_window_is_ever_open(folder) -> None:
    folder.edit('kind = "gymnasium"\nid = "CartPole-v1"', SERVED)
    assert feedback_window(folder.load()[0]) is None
    folder.append(LATE)
    assert "not together with [feedback]" in folder.mistakes()["release.feedback_timeout"]


@pytest.mark.parametrize(
    ("late", "key", "said"),
    [
        ("", "release.feedback_timeout", "how long after its end an episode may be judged"),
        ("[release]\nsilent_score = 0.5\n", "release.silent_score", "only together with feedback_timeout"),
        (LATE + "silent_score = 7.0\n", "release.silent_score", "should lie in the score's range, from 0 to 1"),
        (LATE + 'max_duration = "2h"\n', "release.max_duration", "should be longer than feedback_timeout, not 2h"),
        (LATE + 'goal = "no_worse"\nmargin = 0.1\n', "release.goal", "no anchor"),
    ],
)
def test_windows_that_can_not_be_are_mistakes(folder, late, key, said) -> None:
    served(folder, late=late)
    assert said in folder.mistakes()[key]


def test_windows_are_for_agents_that_are_served(folder) -> None:
    folder.append(LATE + "[environment.http]\nqueue = 8\n")
    mistakes = folder.mistakes()
    assert mistakes["release.feedback_timeout"] == 'only for kind "http": kind "gymnasium" judges at the end'
    assert mistakes["environment.http"] == 'only for kind "http"'


def test_the_score_s_rules_belong_to_the_release_and_several_metrics_need_a_judge(folder) -> None:
    folder.edit("range = [0.0, 1.0]", "margin = 0.1\n[[metrics]]\nname = 'energy'")
    folder.edit('[feedback]\nentrypoint = "feedback:explain"', "")
    mistakes = folder.mistakes()
    assert "of the score [release] says it" in mistakes["metrics"]
    assert "several metrics" in mistakes["feedback"]


def test_all_mistakes_are_told_at_once_each_with_its_key_and_what_is_expected(folder) -> None:
    folder.write(
        "agent.toml",
        """
        [agent]
        name = "Cart Pole"
        entrypoint = "controler:CartPole"
        mode = "realease"
        objectiv = "x"
        include = ["nothing/*.txt", "../secrets"]
        [environment]
        kind = "mqtt"
        devices = 3
        [environment.mqtt]
        brokr = "x"
        [[metrics]]
        name = "score"
        range = [1.0, 0.0]
        [parameters."a b"]
        [parameters."act"]
        bounds = [2, 1]
        choices = [1]
        [feedback]
        entrypoint = "feedback:explian"
        timeout = -1.0
        [optimizer]
        algorithm = "hybird"
        budget = { dollars_per_day = "5" }
        [release]
        max_duration = "24x"
        alpha = 2.0
        max_pairs = "200"
        prune = { after = 1 }
        [guardrails]
        action_limits = { lo = 1 }
        [sandbox]
        memory_limit = 3
        step_timeout = "0s"
        allowed_imports = ["a b"]
        """,
    )
    mistakes = folder.mistakes()
    expected = {
        "agent.name": 'not "Cart Pole"',
        "agent.entrypoint": 'did you mean "controller"?',
        "agent.mode": "'observe', 'advise' or 'release', not \"realease\"",
        "agent.objectiv": 'unknown key; did you mean "objective"?',
        "agent.include[0]": "names no file",
        "agent.include[1]": "a path inside the folder",
        "environment.safe_action": 'required for kind "mqtt"',
        "environment.devices": 'not for kind "mqtt"',
        "environment.mqtt.brokr": 'did you mean "broker"?',
        "metrics[0].range": "from a lower to a higher number",
        'parameters."a b"': "an attribute path",
        "parameters.act.bounds": "from a lower to a higher number",
        "parameters.act.choices": "at least 2",
        "feedback.entrypoint": 'did you mean "explain"?',
        "feedback.timeout": "greater than 0",
        "optimizer.algorithm": "hybrid",
        "optimizer.budget.dollars_per_day": "should be a number",
        "release.max_duration": 'such as "500ms"',
        "release.alpha": "less than 1, not 2.0",
        "release.max_pairs": "should be a whole number",
        "release.prune.after": 'did you mean "after_pairs"?',
        "guardrails.action_limits.lo": 'did you mean "low"?',
        "sandbox.memory_limit": "should be text",
        "sandbox.step_timeout": "longer than nothing",
        "sandbox.allowed_imports[0]": "the name of a module",
    }
    missing = {key for key in expected if expected[key] not in mistakes.get(key, "")}
    assert missing == set(), {key: mistakes.get(key) for key in missing}
    assert len(mistakes) == len(expected)


def test_every_mistake_names_the_file(folder) -> None:
    folder.edit('kind = "gymnasium"', 'kind = "boat"')
    with pytest.raises(SpecError) as caught:
        folder.load()
    expected = "should be 'gymnasium', 'mqtt', 'dataset', 'python' or 'http', not \"boat\""
    assert str(caught.value) == f"{folder.path}/agent.toml: environment.kind: {expected}"


def test_a_syntax_error_comes_with_its_line(folder) -> None:
    folder.edit('kind = "gymnasium"', "kind = gymnasium")
    assert "line 8" in folder.mistakes()["(syntax)"]


def test_a_missing_folder_and_bytes_that_are_no_text_are_said_so(folder, tmp_path) -> None:
    with pytest.raises(SpecError, match="No such file"):
        load_agent(tmp_path / "nothing")
    folder.write("agent.toml", b"\xff\xfe")
    assert "UTF-8" in folder.mistakes()["(file)"]


def test_required_sections_are_named(folder) -> None:
    folder.write("agent.toml", "schema = 1\n")
    assert folder.mistakes() == {"agent": "required, but missing", "environment": "required, but missing"}


def test_a_newer_schema_is_refused(folder) -> None:
    folder.edit("schema = 1", "schema = 2")
    assert "1" in folder.mistakes()["schema"]


@pytest.mark.parametrize(
    ("entrypoint", "said"),
    [
        ("controller", "module:name"),
        ("controller.py:CartPole", "there is no"),
        ("os:system", "there is no"),
        ("../evil:CartPole", "module:name"),
        ("controller:CartPole()", "module:name"),
        ("controller:CartPool", 'did you mean "CartPole"?'),
    ],
)
def test_an_entrypoint_is_looked_up_without_importing_anything(folder, entrypoint, said) -> None:
    folder.write("controller.py", "raise SystemExit('imported')\n" + CONTROLLER)
    folder.load()
    folder.edit("controller:CartPole", entrypoint)
    assert said in folder.mistakes()["agent.entrypoint"]


@pytest.mark.parametrize(
    "code",
    [
        "CartPole = object\n",
        "from somewhere import CartPole\n",
        "import x as CartPole\n",
        "if True:\n    class CartPole: ...\nelse:\n    CartPole = None\n",
        "def CartPole(): ...\n",
        "CartPole: type = object\n",
    ],
)
def test_whatever_defines_the_name_at_the_top_is_an_entrypoint(folder, code) -> None:
    folder.write("controller.py", code)
    assert folder.load()[0].agent.entrypoint == "controller:CartPole"


def test_a_module_may_be_a_package_or_lie_in_one(folder) -> None:
    folder.write("robot/__init__.py", "class Arm: ...\n")
    folder.write("robot/leg.py", "class Leg: ...\n")
    for entrypoint in ("robot:Arm", "robot.leg:Leg"):
        folder.write("agent.toml", GOOD.replace("controller:CartPole", entrypoint))
        assert folder.load()[0].agent.entrypoint == entrypoint


def test_python_that_does_not_parse_is_told_with_file_and_line(folder) -> None:
    folder.write("controller.py", "class CartPole:\n    def act(self:\n")
    with pytest.raises(SpecError) as caught:
        folder.load()
    [mistake] = caught.value.mistakes
    assert mistake.file.endswith("controller.py")
    assert mistake.key == "(syntax, line 2)"


def test_only_the_files_that_are_the_program_are_read(folder) -> None:
    for name in ("notes.txt", ".venv/x.py", "__pycache__/x.py", ".hidden.py", "data/table.csv"):
        folder.write(name, "x")
    folder.write("sub/more.py", "")
    assert sorted(folder.load()[1].files) == ["controller.py", "feedback.py", "sub/more.py"]
    folder.edit("args =", 'include = ["data/*.csv", "notes.txt"]\nargs =')
    assert sorted(folder.load()[1].files) == ["controller.py", "data/table.csv", "feedback.py", "notes.txt", "sub/more.py"]


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path) -> None:
    (tmp_path / "secret.py").write_text("key = 1\n")
    (folder.path / "more.py").symlink_to(tmp_path / "secret.py")
    assert "leads out" in folder.mistakes()["(file)"]


def test_files_that_are_too_large_or_no_text_are_refused(folder) -> None:
    folder.write("large.py", "#" * (MAX_FILE_BYTES + 1))
    assert "at most" in folder.mistakes()["(file)"]
    folder.write("large.py", b"\x80")
    assert "UTF-8" in folder.mistakes()["(file)"]


DIGEST_CHANGES = [
    ("gain = 1.5", "gain = 1.6"),
    ('id = "CartPole-v1"', 'id = "CartPole-v0"'),
    ("range = [0.0, 1.0]", "range = [0.0, 2.0]"),
    ('"feedback:explain"', '"feedback:explain"\ntimeout = 5.0'),
    ("[[metrics]]", "[parameters.act]\ntrainable = false\n[[metrics]]"),
]


@pytest.mark.parametrize(("old", "new"), DIGEST_CHANGES)
def test_the_digest_changes_with_what_changes_the_program(folder, old, new) -> None:
    before = folder.digest()
    folder.edit(old, new)
    assert folder.digest() != before


@pytest.mark.parametrize(
    "text",
    [
        "[release]\nalpha = 0.01\n",
        '[release]\ngoal = "no_worse"\nmargin = 0.1\n',
        '[optimizer]\nmodels = ["a/b"]\n',
        "[guardrails]\ndeadline_misses_per_episode = 9\n",
        '[sandbox]\nstep_timeout = "1s"\n',
        "[watch]\nburn_in = 7\n",
        "# a comment\n",
    ],
)
def test_the_digest_stays_with_how_agentd_goes_about_it(folder, text) -> None:
    before = folder.digest()
    folder.append(text)
    assert folder.digest() == before


def test_the_digest_is_of_content_not_of_place_order_line_ends_or_other_files(folder, tmp_path) -> None:
    before = folder.digest()
    folder.write("README.md", "words")
    folder.write("controller.py", CONTROLLER.replace("\n", "\r\n"))
    assert folder.digest() == before
    other = Folder(tmp_path / "elsewhere" / "copy")
    assert other.digest() == before
    other.write("controller.py", CONTROLLER + "\n")
    assert other.digest() != before


def test_a_key_with_its_default_value_written_out_is_the_same_source(folder) -> None:
    before = folder.digest()
    folder.edit('id = "CartPole-v1"', 'id = "CartPole-v1"\nmax_steps = 1000')
    assert folder.digest() == before


def test_files_can_not_pass_for_one_another_in_the_digest(folder) -> None:
    folder.write("a.py", "b")
    first = folder.digest()
    (folder.path / "a.py").rename(folder.path / "ab.py")
    folder.write("ab.py", "")
    assert folder.digest() != first


def test_a_value_without_a_canonical_form_is_a_mistake(folder) -> None:
    folder.edit("gain = 1.5", "gain = nan")
    assert "can't be" in folder.mistakes()["(values)"]


def mqtt(folder: Folder, *lines: str) -> None:
    text = GOOD.replace('kind = "gymnasium"\nid = "CartPole-v1"', 'kind = "mqtt"\n' + "\n".join(lines))
    folder.write("agent.toml", text)


def test_mqtt_needs_a_safe_action_inside_an_action_space(folder) -> None:
    mqtt(folder, "action_space = { discrete = 2 }")
    assert "required" in folder.mistakes()["environment.safe_action"]
    mqtt(folder, "safe_action = { value = 1 }")
    assert "required" in folder.mistakes()["environment.action_space"]
    mqtt(folder, "safe_action = { value = 2 }", "action_space = { discrete = 2 }")
    assert "from 0 to 1, not 2" in folder.mistakes()["environment.safe_action.value"]
    mqtt(folder, "safe_action = { value = 1 }", "action_space = { discrete = 2 }")
    folder.load()


def test_a_rate_alone_is_of_no_shape_and_stands_for_no_action_space(folder) -> None:
    mqtt(folder, "safe_action = { value = 0.5 }")
    folder.append("[guardrails]\naction_limits = { rate = 0.1 }\n")
    assert "low or high" in folder.mistakes()["environment.action_space"]


def test_limits_that_are_written_out_stand_for_an_action_space(folder) -> None:
    mqtt(folder, "safe_action = { value = 0.0 }")
    folder.append("[guardrails]\naction_limits = { low = -1.0, high = 1.0, rate = 0.1 }\n")
    spec, _ = folder.load()
    assert spec.guardrails.action_limits.rate == 0.1


@pytest.mark.parametrize(
    ("space", "key"),
    [
        ("{ discrete = 2, low = 0.0 }", "environment.action_space"),
        ("{ }", "environment.action_space"),
        ("{ discrete = 0 }", "environment.action_space.discrete"),
        ("{ low = [0.0, 1.0], shape = [3] }", "environment.action_space.low"),
        ("{ low = [0.0, 2.0], high = 1.0 }", "environment.action_space.low"),
        ("{ shape = [0] }", "environment.action_space.shape[0]"),
    ],
)
def test_a_space_that_can_not_be_is_a_mistake(folder, space, key) -> None:
    mqtt(folder, "safe_action = { value = 0 }", f"action_space = {space}")
    assert key in folder.mistakes()


@pytest.mark.parametrize(
    ("section", "inside", "outside"),
    [
        (SpaceSection(discrete=3, start=1), [1, 3], [0, 4, 1.0, True, "1", [1], None]),
        (SpaceSection(low=-1.0, high=1.0), [0, 0.5, -1.0], [1.1, float("nan"), [0.0], "0", True]),
        (SpaceSection(low=(0.0, -5.0), high=1.0), [[0.0, -5.0], [1, 1]], [[0.0], 0.5, [0.0, 2.0], [[0.0, 0.0]], [0.0, "1"]]),
        (SpaceSection(shape=(2, 2), low=0.0), [[[0, 1], [2, 3]]], [[0, 1, 2, 3], [[0, 1], [2]], [[0, 1], [2, -1]]]),
        (None, [0, "anything", {"x": 1}], []),
    ],
)
def test_a_space_knows_what_is_in_it(section, inside, outside) -> None:
    space = space_record(section)
    assert [why_outside(space, value) for value in inside] == [None] * len(inside)
    assert all(why_outside(space, value) for value in outside)


def test_rules_of_the_file_lie_over_what_the_program_declares() -> None:
    declared = Parameter(path="kp", kind=Kind.NUMBER, bounds=(0.0, 9.0), description="gain")
    assert ParameterSection().over(declared) == declared
    ruled = ParameterSection(bounds=(1.0, 2.0), approval=True).over(declared)
    assert (ruled.bounds, ruled.approval, ruled.description) == ((1.0, 2.0), True, "gain")


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("5min", 300), ("5m", 300), ("24h", 86400), ("7d", 604800), ("1.5 h", 5400)]
)
def test_durations(text, seconds) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "count"), [("64KiB", 65536), ("256MiB", 268435456), ("1GB", 10**9), ("10B", 10)])
def test_sizes(text, count) -> None:
    assert parse_size(text) == count


@given(st.text())
def test_whatever_is_no_duration_or_size_is_refused_with_an_example(text) -> None:
    for parse in (parse_duration, parse_size):
        problem = ""
        try:
            parse(text)
        except ValueError as error:
            problem = str(error)
        assert problem == "" or "such as" in problem


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=15,
    )
)
def test_whatever_is_no_agent_is_a_list_of_mistakes_and_never_another_error(document) -> None:
    for data in (
        document,
        {"agent": document, "environment": document},
        {"agent": {"name": document}, "metrics": document, "parameters": document},
    ):
        if isinstance(data, dict):
            with pytest.raises(SpecError) as caught:  # no table without a whole [agent] and [environment] is an agent
                validate(AgentSpec, data, "agent.toml")
            assert caught.value.mistakes


def test_every_ready_agent_is_without_mistakes() -> None:
    from agentd.ready import folders

    assert folders()
    for path in folders():
        spec, source = load_agent(path)
        assert make_revision(spec.agent.name, source.digest, {}).source == source.digest


def test_a_space_of_the_record_keeps_what_was_declared() -> None:
    assert space_record(SpaceSection(discrete=4)) == Space(kind="discrete", n=4)
    assert space_record(SpaceSection(low=(0.0, 1.0), high=2.0)) == Space(kind="box", shape=(2,), low=(0.0, 1.0), high=2.0)


MODELS = """
[models]
names = ["openai/gpt-4.1-mini"]
budget = { dollars_per_day = 2.0, calls_per_hour = 100 }
[sandbox]
step_timeout = "60s"
"""


def test_what_an_agent_may_ask_of_models_is_declared_and_bounded(folder) -> None:
    folder.append(MODELS)
    spec, source = folder.load()
    assert spec.models is not None
    assert (spec.models.names, spec.models.calls_per_step, spec.models.max_tokens) == (("openai/gpt-4.1-mini",), 8, 2048)
    assert (spec.models.budget.dollars_per_day, spec.models.budget.calls_per_hour) == (2.0, 100)
    folder.write("agent.toml", GOOD)
    plain, same = folder.load()
    assert plain.models is None
    assert source.digest == same.digest, "another model serves the same program"


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("[models]\n", "sandbox.step_timeout", "required with [models]: how long a step may take, the answers of models included"),
        (MODELS + "[models.budget]\n", "(syntax)", "not TOML"),
        (MODELS.replace("calls_per_hour", "calls_per_day"), "models.budget.calls_per_day", "unknown key"),
        (MODELS.replace("[sandbox]", "calls_per_step = 0\n[sandbox]"), "models.calls_per_step", "should be"),
        (MODELS.replace('["openai/gpt-4.1-mini"]', '"openai/gpt-4.1-mini"'), "models.names", "should be a list"),
        ('models = ["openai/gpt-4.1-mini"]\n', "models", "should be a table"),
    ],
)
def test_mistakes_about_models_say_what_is_expected(folder, text, key, said) -> None:
    folder.write("agent.toml", text + GOOD if text.startswith("models") else GOOD + text)
    assert said in folder.mistakes()[key]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [('scope = "agnet"', "'agent' or 'code'"), ('scope = "code"\nmin_isolation = 0', "at least 1 with scope")],
    ids=["misspelt", "without isolation"],
)
def test_a_scope_that_can_not_be_is_refused_before_anything_starts(folder, lines, expected):
    folder.write("agent.toml", GOOD + f"[sandbox]\n{lines}\n")
    with pytest.raises(SpecError, match=expected):
        load_agent(folder.path)


def test_every_optimizer_of_the_manual_can_be_named_and_made(folder, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    names = re.findall(r"^\| `(\w+)` \| .* \| (?:yes|no|where)", Path("docs/optimizers.md").read_text(), re.MULTILINE)
    assert len(names) == 5
    for name in names:
        folder.write("agent.toml", GOOD + f'[optimizer]\nalgorithm = "{name}"\n')
        algorithm = folder.load()[0].optimizer.algorithm
        make_optimizer(OptimizerContext(agent="a", stable="r", parameters=(), values={}, algorithm=algorithm, models=("m",)), NoModel())
