"""Parameters: found by attribute path, described, assigned, saved and loaded."""

import copy
import json
import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from agentd.errors import TraceError
from agentd.records import Kind, make_revision
from agentd.trace import ExecutionError, Map, Module, NodeContainer, ParameterContainer, Seq, apply_op, bundle, model, node, operators
from agentd.trace.broadcast import recursive_conversion
from agentd.trace.parameters import assign, describe, find_parameters


@model
class Gains:
    """Two gains."""

    def __init__(self, kp=1.0):
        self.kp = node(kp, trainable=True, bounds=(0, 10), description="proportional")
        self.fixed = node(3.0)


@model
class Policy:
    """Balances."""

    def __init__(self, offset=0):
        self.gains = Gains()
        self.mode = node("slow", trainable=True, choices=["slow", "fast"])
        self.many = [node(1, trainable=True), {"deep": node(2, trainable=True)}]
        self.alias = self.gains.kp
        self.offset = offset

    @bundle(trainable=True)
    def act(self, observation):
        """Decides."""
        return observation * self.gains.kp

    @bundle()
    def untrained(self):
        return 1

    @bundle(trainable=True)
    @staticmethod
    def shared(x):
        return x


PATHS = ["gains.kp", "mode", "many.0", "many.1.deep", "act", "shared"]


def test_parameters_are_found_by_path_in_order_of_definition_each_once():
    found = find_parameters(Policy())
    assert list(found) == PATHS
    assert [parameter.path for parameter in found.values()] == PATHS


def test_two_instances_have_equal_paths_and_share_nothing_but_static_code():
    first, second = find_parameters(Policy()), find_parameters(Policy())
    assert list(first) == list(second)
    assert [path for path in first if first[path] is second[path]] == ["shared"]


def test_a_program_needs_no_decorator_to_have_parameters():
    @dataclass
    class Plain:
        w: object = field(default_factory=lambda: node(1, trainable=True))

    assert list(find_parameters(Plain())) == ["w"]

    @bundle(trainable=True)
    def function(x):
        return x

    assert list(find_parameters(function)) == ["function"]
    assert find_parameters(object()) == {}
    assert list(find_parameters(node(1, trainable=True))) == ["value"]


def test_slots_inheritance_and_cycles_are_followed():
    class Base:
        @bundle(trainable=True)
        def act(self, x):
            return x

    class Child(Base):
        __slots__ = ("w",)

        def __init__(self):
            self.w = node(1, trainable=True)
            self.me = self

        @bundle(trainable=True)
        def act(self, x):
            return super().act(x)

    child = Child()
    assert sorted(find_parameters(child)) == ["act", "w"]
    assert child.act(3).data == 3


def test_parameters_are_described_by_kind_rules_and_source():
    found = find_parameters(Policy())
    described = {path: describe(path, parameter) for path, parameter in found.items()}
    assert {path: one.kind for path, one in described.items()} == {
        "gains.kp": Kind.NUMBER, "mode": Kind.CHOICE, "many.0": Kind.NUMBER, "many.1.deep": Kind.NUMBER, "act": Kind.CODE,
        "shared": Kind.CODE,
    }  # fmt: skip
    assert described["gains.kp"].bounds == (0, 10)
    assert described["gains.kp"].description == "proportional"
    assert not described["gains.kp"].integer
    assert described["many.0"].integer
    assert described["mode"].choices == ("slow", "fast")
    assert described["act"].signature == "def act(self, observation):"
    assert described["act"].description == "Decides."
    assert described["act"].default.startswith("def act(self, observation):\n")
    assert describe("b", node(bool(1), trainable=True)).kind is Kind.BOOLEAN
    assert describe("t", node("text", trainable=True)).kind is Kind.TEXT
    assert describe("a", node(np.eye(2), trainable=True)).default == [[1, 0], [0, 1]]
    assert describe("s", node(({1}, None), trainable=True)).kind is Kind.STRUCTURED
    with pytest.raises(TraceError, match="no plain form"):
        describe("o", node(object(), trainable=True))


def test_a_description_after_assigning_still_has_the_source_as_default():
    policy = Policy()
    found = find_parameters(policy)
    assign(found["act"], "def act(self, observation):\n    return 0")
    assert "gains.kp" in describe("act", found["act"]).default


def test_assigned_code_is_compiled_at_once_and_used():
    policy = Policy()
    found = find_parameters(policy)
    assign(found["act"], "def act(self, observation):\r\n    return -observation * self.gains.kp")
    assert policy.act(2).data == -2.0
    assert Policy().act(2).data == 2.0


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def act(self, observation)\n    return 1", r"# <-- \(SyntaxError\)"),
        ("def act(self):\n    return 1", "must start with"),
        ("def act(self, observation, more=1):\n    return 1", "must start with"),
        ("async def act(self, observation):\n    return 1", "must start with"),
        ("def walk(self, observation):\n    return 1", "must start with"),
        ("import os\ndef act(self, observation):\n    return 1", "exactly one function"),
        ("", "exactly one function"),
        ("def act(self, observation):\n    return '\x00'", "does not compile"),
        (7, "code is text"),
        ("def act(self, observation: missing_name):\n    return 1", "NameError"),
        ("def act(self, observation):\n" + "    " + "(" * 500 + ")" * 500, "does not compile"),
    ],
)
def test_code_that_cannot_take_the_place_is_refused_and_nothing_changes(source, said):
    policy = Policy()
    found = find_parameters(policy)
    before = found["act"].data
    with pytest.raises(TraceError, match=said) as raised:
        assign(found["act"], source)
    assert not isinstance(raised.value, ExecutionError)
    assert found["act"].data == before
    assert policy.act(1).data == 1


@pytest.mark.parametrize(
    ("present", "value", "expected"),
    [
        (1.0, 2, 2.0),
        (1, 2.0, 2),
        ("a", "b", "b"),
        (True, False, False),
        ((1, 2), [3, 4], (3, 4)),
        ([1], [2], [2]),
        ({"a": 1}, {"b": 2}, {"b": 2}),
        ({1}, [2, 3], {2, 3}),
        (None, "x", "x"),
    ],
)
def test_values_are_brought_to_the_type_of_the_present_one(present, value, expected):
    parameter = node(present, trainable=True)
    assign(parameter, value)
    assert parameter.data == expected
    assert type(parameter.data) is type(expected)


@pytest.mark.parametrize(
    ("present", "value"), [(1.0, "2"), (1, 2.5), (True, 1), (True, "False"), ("a", 1), (1, True), ([1], "x"), ({"a": 1}, [1]), (1.0, None)]
)
def test_values_of_another_meaning_are_refused(present, value):
    parameter = node(present, trainable=True)
    with pytest.raises(TraceError, match=" is no "):
        assign(parameter, value)
    assert parameter.data == present


def test_bounds_choices_and_arrays_hold_when_assigning():
    found = find_parameters(Policy())
    with pytest.raises(TraceError, match="outside"):
        assign(found["gains.kp"], 11)
    with pytest.raises(TraceError, match="not one of"):
        assign(found["mode"], "hover")
    assign(found["mode"], "fast")
    array = node(np.zeros(2, dtype=np.float32), trainable=True)
    assign(array, [1, 2])
    assert array.data.dtype == np.float32
    with pytest.raises(TraceError, match="no array"):
        assign(array, ["x"])
    with pytest.raises(TraceError, match="not trainable"):
        assign(node(1), 2)


def test_a_model_is_a_module_and_keeps_its_name_and_class():
    policy = Policy(offset=3)
    assert isinstance(policy, Module)
    assert isinstance(policy, ParameterContainer)
    assert type(policy).__name__ == "Policy"
    assert type(policy).__doc__ == "Balances."
    assert model(Policy) is Policy
    assert len(policy.parameters()) == len(PATHS)
    assert list(policy.parameters_dict()) == ["gains", "mode", "alias", "act", "shared"]
    with pytest.raises(TypeError, match="no forward"):
        policy(1)

    @model
    class Callable:
        def forward(self, x):
            return x + 1

    assert Callable()(1) == 2


def test_a_copy_has_parameters_of_its_own():
    policy = Policy()
    assign(find_parameters(policy)["act"], "def act(self, observation):\n    return 5")
    twin = policy.copy()
    assert twin.act(1).data == 5
    assign(find_parameters(twin)["act"], "def act(self, observation):\n    return 6")
    assign(find_parameters(twin)["gains.kp"], 9)
    assert (policy.act(1).data, policy.gains.kp.data, twin.gains.kp.data, twin.alias.data) == (5, 1.0, 9.0, 9.0)
    assert copy.deepcopy(policy).act(1).data == 5


def test_parameters_are_saved_readably_and_loaded_again(tmp_path):
    policy = Policy()
    found = find_parameters(policy)
    assign(found["gains.kp"], 2.5)
    assign(found["act"], "def act(self, observation):\n    return observation + 100")
    path = tmp_path / "deep" / "policy.json"
    policy.save(path)
    content = json.loads(path.read_text())
    assert (content["format"], content["version"]) == ("agentd-parameters", 1)
    assert content["parameters"]["gains.kp"] == {"value": 2.5}
    assert content["parameters"]["act"]["code"].startswith("def act")
    assert [item.name for item in path.parent.iterdir()] == ["policy.json"]
    other = Policy()
    other.load(path)
    assert other.gains.kp.data == 2.5
    assert other.act(1).data == 101


@pytest.mark.parametrize(
    "value",
    [(1, (2, "x")), {1, 2}, frozenset({"a"}), {1: "a", (2, 3): None}, {"tuple": [1]}, {"set": 1}, [1, {"a": (1,)}], "ünicode", None, 1e300],
)
def test_any_plain_value_is_saved_and_loaded_as_itself(tmp_path, value):
    program, other = Seq(node(value, trainable=True)), Seq(node(0, trainable=True))
    Holder(program).save(tmp_path / "x.json")
    Holder(other).load(tmp_path / "x.json")
    assert other[0].data == value
    assert type(other[0].data) is type(value)


class Holder(Module):
    def __init__(self, content):
        self.content = content


def test_arrays_are_saved_with_type_and_shape(tmp_path):
    program, other = Holder(Seq(node(np.arange(6, dtype=np.int16).reshape(2, 3), trainable=True))), Holder(Seq(node(0, trainable=True)))
    program.save(tmp_path / "x.json")
    other.load(tmp_path / "x.json")
    loaded = other.content[0].data
    assert loaded.dtype == np.int16
    assert loaded.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_what_cannot_be_saved_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(TraceError, match=r"content\.0 can't be saved"):
        Holder(Seq(node(object(), trainable=True))).save(tmp_path / "x.json")
    endless = [1]
    endless.append(endless)
    for value in ("half a pair: \ud800", 10**5000, endless):
        with pytest.raises(TraceError, match=r"content\.0 can't be saved"):
            Holder(Seq(node(value, trainable=True))).save(tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"format": "other", "version": 1, "parameters": {}}', "format"),
        ('{"format": "agentd-parameters", "version": 2, "parameters": {}}', "version 2"),
        ('{"format": "agentd-parameters"}', "no file of saved parameters"),
        ("{", "no file of saved parameters"),
        ('{"format": "agentd-parameters", "version": 1, "parameters": {"gains.kp": {"value": 1.0}}}', "lacks the parameters mode"),
        (
            '{"format": "agentd-parameters", "version": 1, "parameters": {"x": {"encoded": {"array": {"dtype": "u1", "items": 999}}}}}',
            "no file of saved parameters",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, content, said):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(TraceError, match=said):
        Policy().load(path)


def test_loading_is_all_or_nothing(tmp_path):
    policy = Policy()
    policy.save(tmp_path / "x.json")
    content = json.loads((tmp_path / "x.json").read_text())
    content["parameters"]["gains.kp"]["value"] = 5.0
    content["parameters"]["act"]["code"] = "not code"
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(TraceError, match="act"):
        policy.load(tmp_path / "x.json")
    assert policy.gains.kp.data == 1.0
    assert policy.act(2).data == 2


def test_a_value_that_is_refused_is_named_with_its_parameter(tmp_path):
    program = Holder(Seq(node(1.0, trainable=True, bounds=(0, 5)), node("a", trainable=True, choices=["a", "b"])))
    program.save(tmp_path / "x.json")
    (tmp_path / "x.json").write_text((tmp_path / "x.json").read_text().replace("1.0", "7.0"))
    with pytest.raises(TraceError, match=r"content\.0: 7\.0 is outside"):
        program.load(tmp_path / "x.json")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("thing", [Evil(), {"gains": Evil()}, {"x": Path("a")}, [1], 5])
def test_loading_a_pickle_executes_nothing(tmp_path, monkeypatch, thing):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(thing))
    with pytest.raises(TraceError):
        Policy().load(tmp_path / "x.pkl")
    assert not (tmp_path / "evil").exists()


def test_a_pickle_of_trace_is_read():
    data = Path(__file__).parent / "data" / "trace_opt_0.1.3.8_parameters.pkl"

    @model
    class Saved:
        def __init__(self):
            self.w = node(0.0, trainable=True)
            self.array = node(np.zeros(2), trainable=True)
            self.sub = SavedSub()

        @bundle(trainable=True)
        def act(self, x):
            return x

    @model
    class SavedSub:
        def __init__(self):
            self.text = node("", trainable=True)

    program = Saved()
    program.load(data)
    assert (program.w.data, program.sub.text.data, program.array.data.tolist()) == (2.5, "learned", [1.0, 2.0])
    assert program.act(2).data == 20


def test_containers_hold_parameters_also_those_in_what_is_nested_and_leave_it_as_it_is():
    seq = Seq(node(1, trainable=True), [node(2, trainable=True)], {"k": node(3, trainable=True)})
    assert type(seq[1]) is list, "as in Trace"
    assert type(seq[2]) is dict
    assert [parameter.data for parameter in seq.parameters()] == [1, 2, 3]
    assert Seq([1, 2]).data == [1, 2]
    mapping = Map({"a": node(1, trainable=True), node("key", trainable=True): node(5, trainable=True)})
    assert sorted(str(parameter.data) for parameter in mapping.parameters()) == ["1", "5", "key"]
    seq[0]._set(9)
    assert seq.parameters()[0].data == 9


def test_parameters_of_one_module_can_be_set_from_another():
    first, second = Gains(kp=3.0), Gains(kp=4.0)
    first._set(second)
    assert first.kp.data == 4.0
    with pytest.raises(TraceError, match="lack kp"):
        first._set({})
    with pytest.raises(TraceError, match="neither"):
        first._set({"kp": 5.0, "odd": 3})
    first._set({"kp": 5.0, "extra": node(1, trainable=True)})
    assert first.extra.data == 1


def test_apply_op_goes_through_containers():
    x, y = node(1), node(2)
    assert apply_op(operators.add, None, x, y).data == 3
    assert [item.data for item in apply_op(operators.add, [None, None], [x, y], [x, y])] == [2, 4]
    assert [item.data for item in apply_op(operators.add, (None, None), (x, y), x)] == [2, 3]
    made = apply_op(operators.add, {"a": None}, {"a": x}, y)
    assert made["a"].data == 3

    class Pair(NodeContainer):
        def __init__(self, a, b):
            self.a, self.b = a, b

    pair = apply_op(operators.multiply, Pair(None, [None]), Pair(x, [y]), Pair(y, [y]))
    assert (pair.a.data, pair.b[0].data) == (2, 4)
    with pytest.raises(TraceError, match="lengths"):
        apply_op(operators.add, [None], [x, y], [x, y])
    with pytest.raises(TraceError, match="not a tuple"):
        apply_op(operators.add, [None], (x,), [y])


def test_lists_within_themselves_and_long_ones_are_looked_through():
    class Odd:
        def __init__(self):
            self.loop = []
            self.loop.append(self.loop)
            self.many = [0.5] * 500_000
            self.table = {"rows": [[1.0] * 10] * 10}
            self.w = node(1, trainable=True)

    assert list(find_parameters(Odd())) == ["w"]


def test_values_of_subclasses_are_described_as_what_they_extend():
    described = describe("x", node(np.float64(0.5), trainable=True))
    assert type(described.default) is float
    assert make_revision("a", "s", {"x": described.default}).values == {"x": 0.5}


def test_conversion_goes_through_every_kind_of_container():
    class Pair(NodeContainer):
        def __init__(self, a):
            self.a = a

    double = recursive_conversion(lambda item: item.data * 2, lambda item: item)
    made = double([node(1), (node(2), "x"), {"k": node(3)}, Pair(node(4))])
    assert made[:3] == [2, (4, "x"), {"k": 6}]
    assert made[3].a == 8
    assert double({1, 2}) == {1, 2}


def test_old_pickles_of_nested_containers_are_read_and_hostile_ones_are_not(tmp_path):
    program = Seq(node(0, trainable=True))
    path = tmp_path / "x.pkl"
    deep = {}
    for _ in range(200):
        deep = {"a": deep}
    for content in (b"", b"\x80\x04.", pickle.dumps(deep), b"\x80\x04\x8c\x02id\x94Q.", pickle.dumps({"content": [1]})):
        path.write_bytes(content)
        with pytest.raises(TraceError):
            Holder(program).load(path)
    assert program[0].data == 0
