"""`[environment.mqtt.mapping]`: what a robot's payloads mean, and every mistake of a mapping told at once."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.configuration import validate
from agentd.environment_spec import EnvironmentSection
from agentd.environments.mapping import Mapping
from agentd.errors import SpecError
from agentd.mapping_spec import MappingSection
from agentd.records import Space

BOX = Space(kind="box", shape=(2,), low=-1.0, high=1.0)
SWITCH = Space(kind="discrete", n=3)


def mapping(space=BOX, *, fields="", action=None, **keys):
    tables = {"observation": {"topic": "r/{device}/state", "fields": fields}, "action": {"topic": "r/{device}/set"} | (action or {})}
    return Mapping(validate(MappingSection, tables | keys, "agent.toml"), space)


@pytest.mark.parametrize(
    ("fields", "payload", "expected"),
    [
        ("", b"0.5", 0.5),
        ("", b"[1, 2]", [1, 2]),
        ("pose.x", b'{"pose": {"x": 3}}', 3),
        ("joints", b'{"joints": [1, 2]}', [1, 2]),
        (["pose.x", "pose.y"], b'{"pose": {"x": 3, "y": 4, "z": 5}}', [3, 4]),
        (["joints.1.angle", "grip"], b'{"joints": [{"angle": 1}, {"angle": 2}], "grip": false}', [2, False]),
        (["joints", "grip"], b'{"joints": [1, 2], "grip": 3}', [1, 2, 3]),
        (["0"], b'{"0": 7}', [7]),
    ],
)
def test_an_observation_is_one_part_of_the_payload_or_several_strung_together(fields, payload, expected):
    assert mapping(fields=fields).read(payload).observation == expected


@pytest.mark.parametrize("payload", [b"", b"\xff", b"ON", b"null", b"[]", b"{}", b'{"pose": 1}', b'{"pose": {"y": 1}}', b"[" * 5000])
def test_a_payload_without_what_is_named_is_refused(payload):
    with pytest.raises((ValueError, RecursionError)):
        mapping(fields="pose.x").read(payload)


def test_reward_and_ends_are_read_where_they_are_there():
    found = mapping(fields="x", reward="score", terminated="state.fallen", truncated="timeout")
    assert found.read(b'{"x": 1, "score": 2, "state": {"fallen": true}, "timeout": 0}') == (1, 2.0, True, False)
    assert found.read(b'{"x": 1, "score": null}') == (1, None, False, False)


def test_the_end_is_news_even_without_an_observation():
    assert mapping(fields="x", terminated="fallen").read(b'{"fallen": true}').terminated


@pytest.mark.parametrize(
    "payload",
    [b'{"x": 1, "score": "high"}', b'{"x": 1, "score": 1%s}' % (400 * b"0"), b'{"x": 1, "fallen": "no"}', b'{"x": 1, "fallen": 2}'],
)
def test_a_reward_that_is_no_number_and_an_end_that_is_no_truth_value_are_refused(payload):
    with pytest.raises(ValueError, match="should be"):
        mapping(fields="x", reward="score", terminated="fallen").read(payload)


@pytest.mark.parametrize(
    ("space", "action", "value", "expected"),
    [
        (BOX, {}, [0.5, -0.5], b"[0.5,-0.5]"),
        (BOX, {"payload": {"left": "$action.0", "right": ["$action.1"], "mode": "velocity", "n": 3}}, [0.5, -0.5],
         b'{"left":0.5,"right":[-0.5],"mode":"velocity","n":3}'),
        (BOX, {"payload": {"u": "$action", "safe": "$safe"}}, [0, 1], b'{"u":[0.0,1.0],"safe":true}'),
        (BOX, {"payload": "MOVE $action.0,$action.1;", "format": "text"}, [0.25, 1], b"MOVE 0.25,1.0;"),
        (Space(kind="box", shape=(2, 1)), {"payload": ["$action", "$action.1"]}, [[1], [2]], b"[[[1.0],[2.0]],2.0]"),
        (Space(kind="box", low=0.0), {"payload": {"duty": "$action"}}, 0.5, b'{"duty":0.5}'),
        (SWITCH, {}, 2, b"2"),
        (SWITCH, {"values": ["LEFT", "STOP", "RIGHT"]}, 1, b'"STOP"'),
        (SWITCH, {"values": ["LEFT", "STOP", "RIGHT"], "format": "text"}, 0, b"LEFT"),
        (Space(kind="discrete", n=2, start=1), {"values": [{"on": True}, {"on": False}]}, 1, b'{"on":true}'),
    ],
)  # fmt: skip
def test_an_action_is_written_as_the_robot_wants_it(space, action, value, expected):
    assert mapping(space, action=action).write(value, safe=True) == expected


def test_a_robot_is_known_by_its_level_of_the_topic():
    found = mapping()
    assert found.subscription == "r/+/state"
    assert found.device("r/arm-1/state") == "arm-1"
    assert found.action_topic("arm-1") == "r/arm-1/set"


def test_a_single_robot_is_named_in_the_mapping():
    tables = {"device": "press", "observation": {"topic": "press/state"}, "action": {"topic": "press/set"}}
    found = Mapping(validate(MappingSection, tables, "agent.toml"), BOX)
    assert (found.subscription, found.device("press/state"), found.action_topic("press")) == ("press/state", "press", "press/set")


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=2))
def test_what_is_written_reads_back(action):
    written = mapping(action={"payload": {"a": {"b": ["$action.0", "$action.1"]}}}).write(action, safe=False)
    assert mapping(fields="a.b").read(written).observation == action


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.sampled_from([2**70, 10**400]) | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from("abrt0"), inner),
    )
)
def test_no_payload_of_a_robot_raises_anything_but_value_errors(message):
    with contextlib.suppress(ValueError):
        mapping(fields=["a", "b.0"], reward="r", terminated="t").read(msgspec.json.encode(message))


def test_every_mistake_of_a_mapping_is_told_at_once():
    table = {
        "kind": "mqtt",
        "mqtt": {
            "mapping": {
                "device": "a/b",
                "observation": {"topic": "robots/+/state", "fields": ["pose x", "y", "z"]},
                "action": {"topic": "robots/{device}/set", "payload": {"u": "$acton", "v": "at $action.5"}, "values": [1]},
                "reward": "a..b",
                "begins": "x",
            }
        },
        "observation_space": {"low": 0.0, "high": 1.0, "shape": [2]},
        "action_space": {"low": 0.0, "high": 1.0, "shape": [2]},
        "safe_action": {"value": [0.0, 0.0]},
    }
    with pytest.raises(SpecError) as raised:
        validate(EnvironmentSection, table, "agent.toml")
    told = {(mistake.key, mistake.expected.split(":")[0].split(",")[0]) for mistake in raised.value.mistakes}
    assert told == {
        ("mqtt.mapping.begins", "unknown key; known here"),
        ("mqtt.mapping.device", "should be one level of a topic"),
        ("mqtt.mapping.reward", "should be a path such as pose.x or joints.0.angle"),
        ("mqtt.mapping.observation.topic", "should be an MQTT topic without + and #"),
        ("mqtt.mapping.observation.fields", "number 1 should be a path such as pose.x or joints.0.angle"),
        ("mqtt.mapping.observation.fields", "has 3 paths for an observation_space of 2 numbers"),
        ("mqtt.mapping.action.payload", "'$acton'"),
        ("mqtt.mapping.action.payload", "'at $action.5'"),
        ("mqtt.mapping.action.payload", "$action.5"),
        ("mqtt.mapping.action.values", "only for a discrete action_space"),
        ("mqtt.mapping.action.topic", "should have {device} exactly where observation.topic has it"),
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"action": {"topic": "r/{device}/state"}}, "the agent would hear itself"),
        ({"observation": {"topic": "r/{device}"}, "action": {"topic": "r/set-{device}"}}, "the agent would hear itself"),
        ({"action": {"topic": "r/set"}}, "each robot gets its own actions"),
        ({"action": {"topic": "r/{device}/set", "payload": {"stop": True}}}, "has no place for the action"),
        ({"action": {"topic": "r/{device}/set", "payload": [1], "format": "text"}}, "should be text"),
        ({"observation": {"topic": "r-{device}/state"}}, "should be a level of its own"),
        ({"observation": {"topic": "r/{device}/state", "fields": []}}, "at least one part"),
        ({"device": "x"}, "which names the robots"),
        ({"action": {}}, "required, but missing"),
    ],
)
def test_a_mapping_that_makes_no_sense_is_refused(change, expected):
    tables = {"observation": {"topic": "r/{device}/state"}, "action": {"topic": "r/{device}/set"}} | change
    with pytest.raises(SpecError, match=expected):
        validate(MappingSection, tables, "agent.toml")


@pytest.mark.parametrize("missing", ["observation_space", "action_space"])
def test_a_robot_that_can_not_be_asked_needs_its_spaces_declared(missing):
    table = {
        "kind": "mqtt",
        "mqtt": {"mapping": {"observation": {"topic": "a"}, "action": {"topic": "b"}}},
        "observation_space": {"low": 0.0, "high": 1.0},
        "action_space": {"discrete": 2},
        "safe_action": {"value": 0},
    }
    del table[missing]
    with pytest.raises(SpecError, match=f"{missing}.*the robot can't be asked"):
        validate(EnvironmentSection, table, "agent.toml")


def test_a_robot_that_begins_its_own_episodes_must_say_where_they_end():
    table = {
        "kind": "mqtt",
        "mqtt": {"begin": "device", "mapping": {"observation": {"topic": "a"}, "action": {"topic": "b"}}},
        "observation_space": {"low": 0.0, "high": 1.0},
        "action_space": {"discrete": 2},
        "safe_action": {"value": 0},
    }
    with pytest.raises(SpecError, match="nothing else tells where the robot's episodes end"):
        validate(EnvironmentSection, table, "agent.toml")


KEYS = st.sampled_from(
    [
        "observation",
        "action",
        "topic",
        "fields",
        "payload",
        "format",
        "values",
        "reward",
        "device",
        "terminated",
        "discrete",
        "low",
        "shape",
    ]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a.b", "$action", "$action.7", "text", "r/{device}/x", "r/x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, ANYTHING), ANYTHING, ANYTHING)
def test_whatever_is_written_there_its_mistakes_are_told_and_nothing_breaks(written, observation_space, action_space):
    table = {
        "kind": "mqtt",
        "mqtt": {"mapping": written},
        "observation_space": observation_space,
        "action_space": action_space,
        "safe_action": {"value": 0},
    }
    with contextlib.suppress(SpecError):
        validate(EnvironmentSection, table, "agent.toml")
