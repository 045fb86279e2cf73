"""Exported graphs: frozen, small, without secrets, and the same after every round trip."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.codec import encode
from agentd.errors import CodecError, TraceError
from agentd.records import NodeKind, TraceGraph
from agentd.trace import ExecutionError, Graph, bundle, model, node
from agentd.trace.export import DROPPED, Limits, export, from_bytes, from_json, to_bytes, to_json
from agentd.trace.parameters import find_parameters
from agentd.trace.propagation import minimal_subgraph
from agentd.trace.summaries import Summariser, redact


@model
class Policy:
    """Balances."""

    def __init__(self):
        self.gain = node(1.0, trainable=True, description="how strongly")

    @bundle(trainable=True)
    def act(self, observation):
        """Push right (1) or left (0)."""
        angle, spin = observation
        return 1 if angle * self.gain + spin > 0 else 0


def run_episode(policy, ticks):
    with Graph() as graph:
        observation = graph.message("environment_reset", {}, [0.1, 0.2])
        for tick in range(ticks):
            action = policy.act(observation)
            observation = graph.message("environment_step", {"observation": observation, "action": action}, [0.1, float(tick)])
        end = graph.message("episode_end", {"observation": observation}, None)
    return graph, end


def summary(value, **limits):
    return Summariser(Limits(**limits))(value)


def test_an_episode_is_exported_with_parameters_by_path_and_the_program_itself_left_out():
    policy = Policy()
    find_parameters(policy)
    frozen = export(*run_episode(policy, 2))
    assert [other.name for other in frozen.nodes if other.kind is NodeKind.PARAMETER] == ["act", "gain"]
    assert [other.path for other in frozen.nodes if other.kind is NodeKind.PARAMETER] == ["act", "gain"]
    act = next(other for other in frozen.nodes if other.operator == "act")
    assert act.arguments == ("observation", "__code", "gain")
    assert [frozen.nodes[parent].name for parent in act.parents] == ["environment_reset0", "act", "gain"]
    assert frozen.nodes[frozen.output].operator == "episode_end"
    assert frozen.functions["act"].documentation == "Push right (1) or left (0)."
    assert all(parent < index for index, other in enumerate(frozen.nodes) for parent in other.parents)
    names = [other.name for other in frozen.nodes]
    assert len(set(names)) == len(names)


def test_round_trips_lose_nothing():
    frozen = export(*run_episode(Policy(), 5))
    assert from_bytes(to_bytes(frozen)) == frozen
    assert from_json(to_json(frozen)) == frozen
    assert to_bytes(from_bytes(to_bytes(frozen))) == to_bytes(frozen)


def test_two_episodes_of_the_same_program_export_equally():
    assert export(*run_episode(Policy(), 3)) == export(*run_episode(Policy(), 3))


def test_a_whole_graph_is_exported_with_what_leads_nowhere():
    with Graph() as graph:
        x = node(1)
        y = x + 1
        x * 5
    assert len(export(graph, y).nodes) == 3
    whole = export(graph)
    assert [other.value for other in whole.nodes if other.kind is NodeKind.MESSAGE] == [2, 5]
    assert whole.output is None


def test_equal_plain_inputs_are_one_node():
    with Graph() as graph:
        y = node(5.0)
        for _ in range(10):
            y = y + 1.0
    assert len([other for other in export(graph, y).nodes if other.kind is NodeKind.INPUT]) == 2


def test_an_exception_is_exported_with_its_commented_source():
    @bundle()
    def fails(x):
        return x / 0

    with Graph() as graph, pytest.raises(ExecutionError) as raised:
        fails(node(1))
    frozen = export(graph, raised.value.exception_node)
    last = frozen.nodes[frozen.output]
    assert last.kind is NodeKind.EXCEPTION
    assert "return x / 0  # <-- (ZeroDivisionError)" in last.value


def test_two_functions_of_one_name_are_told_apart():
    def first(x):
        """One."""
        return x

    def second(x):
        """Two."""
        return x

    with Graph() as graph:
        made = bundle("[same] One.")(first)(bundle("[same] Two.")(second)(node(1)))
    frozen = export(graph, made)
    assert {name: function.documentation for name, function in frozen.functions.items()} == {"same": "Two.", "same_2": "One."}
    assert "def first(x):" in frozen.functions["same_2"].source


def test_beyond_the_limit_the_middle_is_dropped_and_counted_and_parameters_stay_connected():
    policy = Policy()
    find_parameters(policy)
    frozen = export(*run_episode(policy, 200), Limits(nodes=40))
    assert frozen.dropped_nodes == 404 - 40
    assert len(frozen.nodes) < 60
    assert frozen.nodes[0].operator == "environment_reset"
    assert frozen.nodes[-1].operator == "episode_end"
    stub = next(other for other in frozen.nodes if other.operator == DROPPED)
    assert {"act", "gain"} <= {frozen.nodes[parent].name for parent in stub.parents}
    cut = minimal_subgraph(frozen, frozen.output)
    assert {"act", "gain"} <= {other.name for other in cut.nodes}
    assert frozen.nodes[0].name in {other.name for other in cut.nodes}


@pytest.mark.parametrize(
    ("value", "limits", "expected"),
    [
        ("short", {}, "short"),
        ("abcdefghij", {"text": 4}, {"$type": "text", "length": 10, "start": "ab", "end": "ij"}),
        (list(range(6)), {"items": 4}, {"$type": "list", "length": 6, "start": [0, 1], "end": [4, 5]}),
        ((1, 2), {}, [1, 2]),
        ({"a": {"b": [1]}}, {"depth": 1}, {"a": {"$type": "dict", "length": 1}}),
        ({1: 2}, {}, {"1": 2}),
        ({"a": 1, "b": 2}, {"items": 1}, {"$type": "dict", "length": 2, "items": {"a": 1}}),
        (math.nan, {}, {"$type": "float", "repr": "nan"}),
        (-math.inf, {}, {"$type": "float", "repr": "-inf"}),
        (2**70, {}, {"$type": "int", "repr": "about 2**70"}),
        (2**63 - 1, {}, 2**63 - 1),
        (b"abc", {}, {"$type": "bytes", "length": 3}),
        (np.array([1.5, 2.5]), {}, [1.5, 2.5]),
        (np.float32(0.5), {}, 0.5),
        (np.int64(3), {}, 3),
        (np.bool_(1), {}, True),
        (np.array([1.0, math.nan]), {}, [1.0, {"$type": "float", "repr": "nan"}]),
        (node(3), {}, 3),
        ([node(1), (node(2),)], {}, [1, [2]]),
        (bool(1), {}, True),
    ],
)
def test_values_become_plain_and_small(value, limits, expected):
    made = summary(value, **limits)
    assert made == expected
    assert type(made) is type(expected)
    encode(made)


def test_large_arrays_are_described_and_images_referred_to():
    made = summary(np.arange(10_000, dtype=np.float32).reshape(100, 100))
    assert made["shape"] == [100, 100]
    assert (made["$type"], made["dtype"], made["low"], made["high"], made["mean"]) == ("array", "float32", 0.0, 9999.0, 4999.5)
    assert made["start"] == [0, 1, 2, 3, 4, 5, 6, 7]
    image = summary(np.zeros((64, 64, 3), dtype=np.uint8))
    assert (image["$type"], image["shape"]) == ("image", [64, 64, 3])
    assert len(image["sha256"]) == 64
    odd = summary(np.full(100, np.nan))
    assert odd["not_finite"] == 100
    assert "low" not in odd
    assert summary(np.array([object()] * 100, dtype=object))["dtype"] == "object"
    assert summary(np.array(["a"]))["$type"] == "array"


def test_keys_that_look_alike_as_text_are_all_kept():
    assert summary({1: "a", "1": "b"}) == {"1": "a", "1 #1": "b"}
    assert len(summary({"x" * 300 + end: end for end in "abc"})) == 3


def test_objects_show_their_class_and_a_repr_that_may_fail():
    class Bad:
        def __repr__(self):
            raise RuntimeError

    class Good:
        def __repr__(self):
            return "good " * 100

    assert summary(object())["$type"] == "builtins.object"
    assert "repr" not in summary(object())
    assert summary(Bad())["repr"] == "(its repr raised RuntimeError)"
    assert len(summary(Good())["repr"]) == 200


def test_all_texts_together_keep_to_a_budget():
    made = summary(["x" * 1000] * 10, characters=3000)
    assert sum(len(item) if isinstance(item, str) else 80 for item in made) < 5000


SECRETS = [
    "sk-proj-abcdefghijklmnopqrstuvwx",
    "ghp_abcdefghijklmnopqrstuvwxyz0123",
    "AKIAIOSFODNN7EXAMPLE",
    "xoxb-123456789012-abcdef",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghij",
    "hf_abcdefghijklmnopqrstuv",
    "gsk_abcdefghijklmnopqrstuv1234",
    "sk_live_51Habcdefghijklmnop",  # nothing that any service issued, as all of these
    "whsec_abcdefghijklmnopqrst",
    "npm_abcdefghijklmnopqrstuvwxyz0123456789",
    "pypi-AgEIcHlwaS5vcmcabcd1234",
    "xai-abcdefghijklmnopqrstuvwx",
    "r8_abcdefghijklmnopqrstuvwxyz0123456789",
    "github_pat_abcdefghijklmnopqrstuv",
    "glpat-abcdefghij1234567890",
    "ya29.a0AfH6SMBxabcdefghijkl",
    "AIzaSyabcdefghijklmnopqrstuvwxyz01234",
    "SG.abcdefghijklmnopqrst.abcdefghijklmnopqrst",
    "Bearer abcdefghijklmnopqrst",
    "Basic dXNlcjpwYXNzd29yZDEyMw==",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIabc123\n-----END RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("around", ["{}", "the key is {}, keep it", "x" * 1990 + " {} " + "y" * 3000])
def test_secrets_are_redacted_wherever_they_stand(secret, around):
    text = repr(summary(around.format(secret)))
    assert not any(secret[start : start + 12] in text for start in range(len(secret) - 12))
    assert "y" * 10 in text or "[redacted]" in text


def test_named_secrets_are_redacted_and_ordinary_code_is_not():
    assert summary({"password": "hunter2", "openai_api_key": "k", "tokens": "a b"}) == {
        "password": "[redacted]",
        "openai_api_key": "[redacted]",
        "tokens": "a b",
    }
    assert redact("api_key = 'a1b2c3d4e5f6'") == "api_key = '[redacted]'"
    assert redact("postgres://user:pass@host/db") == "postgres://[redacted]@host/db"
    assert "[redacted]" in redact("Authorization: Bearer abcdefghijklmnop1234")
    for text, secret in (
        ('{"password": "hunter2"}', "hunter2"),
        ('{"client_secret": "correct horse \\" battery", "x": 1}', "horse"),
        (json.dumps({"body": json.dumps({"password": "don't tell"})}), "tell"),
        ('login(password="correct-horse")', "correct"),
        ("password=hunter2", "hunter2"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfi", "wJalr"),
        ("SECRET_KEY=django-insecure-1abcdefgh", "insecure"),
        ("AccountKey=abcDEF123456789+/==;EndpointSuffix=x", "abcDEF"),
        ("redis://:s3cr3tpw@host:6379/0", "s3cr3t"),
        ("https://s3cr3ttoken123@github.com/x", "s3cr3t"),
        ("https://x/blob?sv=2&sig=abc123def456%3D", "abc123"),
        ("Authorization: Token 9944b09199c62bcf9418ad846dd0e4bb", "9944b"),
    ):
        assert secret not in redact(text), text
        assert redact(redact(text)) == redact(text)
    assert set(summary({"AWS_SECRET_ACCESS_KEY": "k", "clientSecret": "k", "secret_key": "k", "Set-Cookie": "k"}).values()) == {
        "[redacted]"
    }
    for harmless in (
        '{"token_count": "12", "mode": "secret"}',
        "password = read(secret)",
        "sk_learn_model_of_the_plant",
        "git@host:x",
        "ssh://git@host/x",
    ):
        assert redact(harmless) == harmless
    for harmless in ("token = tokenizer(text)", "password: str = field()", "task-list of the desk-bound", "x = secret_sauce(angle)"):
        assert redact(harmless) == harmless


def test_a_value_given_under_the_name_of_a_secret_is_not_shown():
    @bundle()
    def log_in(user, password):
        """Logs in."""
        return len(password)

    with Graph() as graph:
        log_in(node("ada"), "correct horse")
        log_in(node("ada"), node("battery staple", name="api_key"))
    shown = to_json(export(graph))
    assert "horse" not in shown
    assert "battery" not in shown
    assert shown.count("[redacted]") == 2
    assert "ada" in shown


def test_a_hostile_text_is_redacted_in_linear_time():
    for text in (
        "-----BEGIN PRIVATE KEY-----" * 2000,
        "token=" * 5000,
        "eyJ" * 20000,
        "://a" * 20000,
        "sk-" * 20000,
        "password='\"token\\\\" * 2000,
        "\"secret':\\'" * 2000,
        "token " * 4000,
    ):
        redact(text[:20_000])


def test_limits_below_one_are_refused():
    with pytest.raises(TraceError, match="items"):
        Limits(items=0)


def test_bytes_that_are_no_graph_are_refused():
    good = to_bytes(export(*run_episode(Policy(), 1)))
    with pytest.raises(CodecError):
        from_bytes(good[:-5])
    with pytest.raises(CodecError):
        from_bytes(b"\xff" * 10)
    with pytest.raises(CodecError, match="version 99"):
        from_bytes(encode(TraceGraph(version=99)))
    with pytest.raises(CodecError, match="output"):
        from_bytes(encode(TraceGraph(output=3)))
    with pytest.raises(CodecError):
        from_json("{}x")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=60) | st.binary(max_size=10),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5) | st.tuples(inner, inner),
    max_leaves=15,
)


@given(VALUES)
def test_any_value_survives_the_round_trip_as_it_was_summarised(value):
    with Graph() as graph:
        made = graph.message("seen", {"x": node(value)}, value)
    frozen = export(graph, made, Limits(text=20, items=3, depth=3))
    assert from_bytes(to_bytes(frozen)) == frozen
    assert from_json(to_json(frozen)) == frozen


def test_a_parameter_named_like_a_result_keeps_its_name_and_the_result_gets_another():
    class Program:
        def __init__(self):
            self.add0 = node(1, trainable=True)

    program = Program()
    find_parameters(program)
    for made in (program.add0 + 1, (node(5) + 1) * program.add0):
        names = [other.name for other in export([], made).nodes]
        assert len(set(names)) == len(names)
