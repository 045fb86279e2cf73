"""Nodes: values that remember what they were computed from."""

import copy
import gc
import math
import pickle
import warnings
import weakref

import numpy as np
import pytest

from agentd.errors import TraceError
from agentd.trace import GRAPH, ExecutionError, Graph, MessageNode, Node, ParameterNode, bundle, name_scope, node, operators
from agentd.trace.nodes import get_op_name


def test_an_operation_knows_its_result_its_operator_and_its_parents():
    x, y = node(2, name="x"), node(3)
    z = x * y
    assert z.data == 6
    assert isinstance(z, MessageNode)
    assert z.parents == [x, y]
    assert z.inputs["x"] is x
    assert z.inputs["y"] is y
    assert get_op_name(z.description) == "multiply"


def test_a_plain_operand_becomes_an_input_when_somebody_looks_and_stays_the_same_one():
    z = 10 - node(4)
    first, second = z.parents
    assert (first.data, second.data, z.data) == (10, 4, 6)
    assert z.parents[0] is first


def test_reflected_operations_keep_the_order_of_their_operands():
    matrix, other = np.array([[1, 2], [3, 4]]), np.array([[0, 1], [1, 0]])
    assert (matrix @ node(other)).data.tolist() == (matrix @ other).tolist()
    assert ("a" + node("b")).data == "ab"
    assert ([1] * node(2)).data == [1, 1]
    assert (2 ** node(5)).data == 32


def test_texts_are_joined_under_a_name_of_their_own_from_either_side():
    text = node("b")
    assert [(made.data, made.name.partition(":")[0]) for made in (text + "c", "a" + text, node(1) + 2, 1 + node(2))] == [
        ("bc", "concat"),
        ("ab", "concat"),
        (3, "add"),
        (3, "add"),
    ]
    with pytest.raises(TypeError) as raised:
        text + 5
    assert raised.value.exception_node.name.startswith("exception_concat")


def test_numpy_leaves_mixed_operations_to_the_node():
    made = np.array([1.0, 2.0]) * node(3.0)
    assert isinstance(made, MessageNode)
    assert made.data.tolist() == [3.0, 6.0]


def test_an_operation_may_use_one_node_twice():
    x = node(1) + 1
    assert (x * x).data == 4
    (x * x).backward("feedback")


def test_equality_compares_values_hashing_identity_and_truth_the_value():
    assert node(1) == node(1)
    assert node(1) == 1
    assert node(1) != 2
    assert not node(0)
    assert node([0])
    assert len({node(1), node(1)}) == 2
    assert 2 in node([1, 2])
    assert node(3) not in node([1, 2])


def test_comparisons_other_than_equality_are_traced():
    x = node(3)
    assert [(x < 4).data, (x <= 3).data, x.eq(3).data] == [True, True, True]
    assert [(x > 3).data, (x >= 4).data, x.neq(3).data] == [False, False, False]
    assert (x < 4).parents[0] is x


def test_unpacking_and_iterating_give_nodes_of_the_items():
    pair = node((1, 2))
    first, second = pair
    assert (first.data, second.data) == (1, 2)
    assert first.parents[0] is pair
    assert [item.data for item in node("ab")] == ["a", "b"]
    assert sorted(item.data for item in node({3, 4})) == [3, 4]
    assert [item.data for item in node({"k": 1})] == ["k"]
    assert [(key.data, value.data) for key, value in node({"k": 1}).items()] == [("k", 1)]
    assert [row.data.tolist() for row in node(np.eye(2))] == [[1, 0], [0, 1]]
    assert [item.data for item in node(range(3))] == [0, 1, 2]


@pytest.mark.parametrize("value", [(1, 2, 3), [1, 2, 3], range(1, 4), {1: 0, 2: 0, 3: 0}, np.array([1, 2, 3])])
def test_the_rest_of_a_starred_unpacking_does_not_start_anew(value):
    first, *rest = node(value)
    assert [first.data, *(item.data for item in rest)] == [1, 2, 3]
    *start, _, _, _ = node(value)
    assert start == []
    _, *_, last = node(value)
    assert last.data == 3


def test_pairs_of_a_dict_can_be_gone_through_again_and_unpacked():
    pairs = node({"a": 1, "b": 2}).items()
    for _ in range(2):
        assert [(key.data, value.data) for key, value in pairs] == [("a", 1), ("b", 2)]
    _, *((key, value),) = pairs
    assert (key.data, value.data) == ("b", 2)
    assert next(pairs)[0].data == "a"
    assert next(pairs)[0].data == "b"


def test_what_cannot_be_iterated_raises_an_execution_error_that_is_a_type_error():
    with pytest.raises(ExecutionError) as raised:
        list(node(1))
    assert isinstance(raised.value, TypeError)


def test_an_error_of_an_operation_is_a_node_and_still_the_error_it_was():
    x = node(0)
    with pytest.raises(ZeroDivisionError) as raised:
        1 / x
    error = raised.value
    assert isinstance(error, ExecutionError)
    assert x in error.exception_node.parents
    assert error.exception_node.data == "(ZeroDivisionError) division by zero"
    assert "divide(x=1, y=0)" in error.exception_node.create_feedback("full")
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_an_error_keeps_its_attributes_also_one_that_is_hard_to_make():
    class Refused(Exception):  # noqa: N818 - a program's own
        def __init__(self, *, status):
            super().__init__(f"status {status}")
            self.status = status

    class Service:
        def __add__(self, _):
            raise Refused(status=429)

    with pytest.raises(Refused) as raised:
        node(Service()) + 1
    assert isinstance(raised.value, ExecutionError)
    assert raised.value.status == 429
    assert raised.value.exception_node.data == "(Refused) status 429"


@pytest.mark.parametrize("kind", [KeyError, OSError, UnicodeDecodeError, StopIteration, AttributeError])
def test_errors_of_any_class_survive_tracing(kind):
    class Odd:
        def __add__(self, _):
            if kind is UnicodeDecodeError:
                b"\xff".decode()
            raise kind("odd")

    with pytest.raises(ExecutionError) as raised:
        node(Odd()) + 1
    assert "odd" in str(raised.value) or "utf-8" in str(raised.value)


def test_texts_have_their_methods_and_others_do_not():
    text = node("a-b {}")
    assert text.upper().data == "A-B {}"
    assert text.replace("-", node("+")).data == "a+b {}"
    assert [part.data for part in text.split("-")] == ["a", "b {}"]
    assert text.format(node(1)).data == "a-b 1"
    assert node("{x}").format(x=node(1)).data == "1"
    assert node("-").join([node("a"), "b"]).data == "a-b"
    assert node(" a ").strip().data == "a"
    assert node("aB c").swapcase().data == "Ab C"
    assert node("ab c").title().data == "Ab C"
    assert node("ab c").capitalize().data == "Ab c"
    with pytest.raises(AttributeError):
        node(1).upper()
    assert get_op_name((text + "x").description) == "concat"


def test_attributes_and_methods_of_wrapped_objects_are_traced():
    wrapped = node(complex(3, 4))
    assert wrapped.imag.data == 4
    assert wrapped.getattr("real").data == 3
    assert wrapped.call("conjugate").data == complex(3, -4)
    assert wrapped.imag.parents[0] is wrapped
    assert not hasattr(wrapped, "nothing")
    with pytest.raises(ExecutionError):
        wrapped.getattr("nothing")


def test_calling_a_wrapped_function_keeps_the_graph():
    x = node(3)
    result = node(lambda a, b=1: a + b)(x, b=node(4))
    assert result.data == 7
    result.backward("x")
    assert x.feedback
    assert node(math.sqrt)(node(9)).data == 3
    assert node(divmod)(node(7), 2).data == (3, 1)


def test_items_change_in_place_by_plain_values():
    items = node([1])
    items.append(node(2))
    assert items.data == [1, 2]
    assert items.pop().data == 2
    assert items.data == [1]


def test_indexing_takes_nodes_also_within_slices_and_tuples():
    x = node([0, 1, 2, 3])
    low = node(1)
    part = x[low:]
    assert part.data == [1, 2, 3]
    assert low in part._inputs
    assert node(np.eye(3))[node(1), 1].data == 1
    inner = node(5)
    picked = node([inner])[0]
    assert picked.data == 5
    picked.backward("x")
    assert inner.feedback


def test_conversions_that_would_lose_the_graph_are_refused_outside_bundles():
    for conversion in (int, float, complex, range):
        with pytest.raises(TypeError):
            conversion(node(1))


def test_lengths_are_plain_for_len_and_traced_for_the_method():
    x = node([1, 2])
    assert len(x) == 2
    assert x.len().data == 2
    assert isinstance(x.len(), MessageNode)


def test_unary_operations_and_rounding():
    x = node(-1.5)
    assert [(-x).data, (+x).data, abs(x).data, round(x).data, round(x, 1).data] == [1.5, -1.5, 1.5, -2, -1.5]
    assert [math.floor(x).data, math.ceil(x).data, math.trunc(x).data, (~node(1)).data] == [-2, -1, -1, -2]
    assert divmod(node(7), 2).data == (3, 1)


def test_a_node_of_a_node_is_itself_and_a_new_name_for_it_is_ignored_loudly():
    x = node(1)
    assert node(x) is x
    with pytest.warns(UserWarning, match="ignored"):
        assert node(x, name="other") is x
    parameter = node(x, trainable=True)
    assert isinstance(parameter, ParameterNode)
    assert parameter.data == 1
    copied = Node(node(5, name="q"))
    assert copied.data == 5
    assert copied.parents == []


def test_descriptions_start_with_an_operator_in_brackets():
    assert node(1, description="the speed").description == "[Node] the speed"
    assert node(1, description="[speed] in m/s").description == "[speed] in m/s"
    assert node(1, trainable=True, description="gain").description == "[ParameterNode] gain"
    assert node(1).description.startswith("[Node]")
    with pytest.raises(ValueError, match="name"):
        get_op_name("no brackets")


def test_names_are_a_base_and_a_number_in_order_of_creation():
    with Graph() as graph:
        x, y = node(1, name="x"), node(2)
        z = x + y
        again = z + 1
        assert (again.name, z.name, x.name, y.name) == ("add:1", "add:0", "x:0", "int:0")
        assert (z.py_name, z.id) == ("add0", "0")
        assert graph.get("add:1") is again
        assert GRAPH.get("x:0") is x
        with pytest.raises(KeyError):
            graph.get("add:9")


def test_names_are_unique_outside_graphs_and_free_again_when_nodes_are_gone():
    first, second = node(1, name="unique_base"), node(1, name="unique_base")
    assert {first.name, second.name} == {"unique_base:0", "unique_base:1"}
    assert GRAPH.get("unique_base:1") is second
    del first, second
    gc.collect()
    assert node(1, name="unique_base").name == "unique_base:0"


def test_name_scopes_nest_and_end():
    with Graph():
        with name_scope("plan"), name_scope("inner"):
            x = node(1, name="x") + 1
        assert x.name == "plan/inner/add:0"
        assert (x + 1).name == "add:0"


def test_an_unnamed_parent_is_named_after_its_type_and_a_bundles_after_its_argument():
    assert node(1.5).name.startswith("float:")
    assert node("t").name.startswith("str:")


def test_bounds_and_choices_refuse_with_the_reason():
    gain = node(1.0, trainable=True, bounds=(-5, 5))
    with pytest.raises(TraceError, match=r"7 is outside its bounds \[-5, 5\]"):
        gain._set(7)
    assert gain.data == 1.0
    gain._set(-5)
    with pytest.raises(TraceError, match="outside"):
        node(9, trainable=True, bounds=(None, 5))
    with pytest.raises(TraceError, match="no number"):
        node("x", trainable=True, bounds=(0, 1))
    with pytest.raises(TraceError, match="no number"):
        node(math.nan, trainable=True, bounds=(0, 1))
    with pytest.raises(TraceError, match="not one of the choices"):
        node("c", trainable=True, choices=["a", "b"])
    with pytest.raises(TraceError, match="not one of the choices"):
        node(1, trainable=True, choices=[True, False])
    with pytest.raises(TraceError, match="bounds must be"):
        node(1, trainable=True, bounds=(5, 1))
    for bounds in (("a", "b"), (math.nan, 1), 3, (1,)):
        with pytest.raises(TraceError, match="bounds must be"):
            node(0.5, trainable=True, bounds=bounds)
    for choices in ("abc", 3, []):
        with pytest.raises(TraceError, match="choices must"):
            node("a", trainable=True, choices=choices)
    with pytest.raises(TraceError, match="trainable"):
        node(1, bounds=(0, 1))
    arrays = node(np.array([0.5, 0.6]), trainable=True, bounds=(0, 1))
    with pytest.raises(TraceError, match="outside"):
        arrays._set(np.array([0.5, 1.6]))


def test_copies_have_their_own_value_and_no_past():
    x = node([1], trainable=True, name="w", bounds=None)
    made = x + [2]  # noqa: RUF005 - the operator is what is tested
    twin = made.detach()
    assert (twin.data, twin.parents) == ([1, 2], [])
    twin.data.append(3)
    assert made.data == [1, 2]
    other = copy.deepcopy(x)
    other.data.append(9)
    assert x.data == [1]
    assert isinstance(other, ParameterNode)
    assert copy.copy(x).data is x.data
    clone = x.clone()
    assert clone.parents == [x]
    assert clone.data is not x.data


def test_nodes_are_not_pickled():
    with pytest.raises(TypeError, match=r"Module\.save"):
        pickle.dumps(node(1))


def test_levels_roots_and_children_are_computed():
    with Graph():
        x = node(1)
        y = x + 1
        z = y + x
        assert (x.level, y.level, z.level) == (0, 1, 2)
        assert (x.is_root, z.is_root, z.is_leaf, y.is_leaf) == (True, False, True, False)
        assert [child is y or child is z for child in x.children] == [True, True]


def test_a_message_node_can_be_made_by_hand():
    x = node(1, name="x")
    made = MessageNode(5, inputs=[x], description="[magic] x made it")
    assert made.name.startswith("magic:")
    assert made.parents == [x]
    assert MessageNode(5, inputs={"a": x}, description="[magic] a made it").inputs["a"] is x
    with pytest.raises(TypeError, match="not a node"):
        MessageNode(5, inputs={"a": 1}, description="[magic]")


def test_every_primitive_is_an_operator_on_nodes_and_plain_values():
    assert operators.add(node(1), 2).data == 3
    assert operators.add(x=node(1), y=2).data == 3
    assert operators.cond(node(bool(1)), node("a"), "b").data == "a"
    assert operators.make_list(node(1), 2).data == [1, 2]
    assert operators.make_dict(a=node(1)).data == {"a": 1}
    assert operators.in_(1, node([1])).data is True
    assert operators.list_sort(node([2, 1]), reverse=True).data == [2, 1]
    assert operators.identity(node(3)).data == 3
    with pytest.raises(AttributeError):
        operators.nothing  # noqa: B018 - it is the access that is tested


def test_copying_forms_of_in_place_methods_leave_their_input_alone():
    x = node([1, 2])
    assert operators.list_append(x, 3).data == [1, 2, 3]
    assert operators.list_pop(x, 0).data == [2]
    assert operators.dict_update(node({"a": 1}), {"b": 2}).data == {"a": 1, "b": 2}
    assert operators.set_add(node({1}), 2).data == {1, 2}
    assert x.data == [1, 2]


def test_info_belongs_to_one_node_only():
    first, second = node(1) + 1, node(2) + 2
    first.info["mine"] = True
    assert "mine" not in second.info
    assert first.info["fun_name"] == "add"
    assert node(1, description="x").info is None
    assert Node(1, info={"a": 1}).info == {"a": 1}


def test_nodes_outside_graphs_live_only_as_long_as_they_are_used():
    x = node(1)
    y = x + 1
    gone = weakref.ref(y)
    del y
    assert gone() is None


def test_no_warning_is_given_for_ordinary_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        node(node(1) + 1)


def test_numpy_gets_no_array_out_of_a_node_except_where_the_read_is_noted():
    x = node([1.0, 2.0], trainable=True)
    with pytest.raises(TypeError, match="leave the graph"):
        np.asarray(x)

    @bundle()
    def mean(scale):
        return float(np.mean(np.asarray(x) * scale))

    made = mean(2)
    assert made.data == 3.0
    assert made.hidden_dependencies == {x}
