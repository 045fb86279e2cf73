"""Records: revisions are named by their content; metrics know their range; nothing can be changed after it was made."""

import dataclasses
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd import codec
from agentd.errors import CodecError
from agentd.records import (
    Metric,
    Phase,
    Release,
    ReleaseSettings,
    Revision,
    canonical,
    make_revision,
)

values = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@given(values, st.randoms())
def test_the_order_of_values_does_not_change_a_revision(content, chance):
    shuffled = list(content.items())
    chance.shuffle(shuffled)
    assert make_revision("a", "s", dict(shuffled)) == make_revision("a", "s", content)


@given(values)
def test_a_revision_keeps_its_id_through_the_codec_and_when_made_again(content):
    made = make_revision("a", "s", content)
    back = codec.decode(codec.encode(made), Revision)
    assert back == made
    assert make_revision(back.agent, back.source, back.values).id == made.id


def test_agent_source_and_each_value_make_a_revision():
    base = make_revision("a", "s", {"k": 1.0})
    others = [
        make_revision("b", "s", {"k": 1.0}),
        make_revision("a", "t", {"k": 1.0}),
        make_revision("a", "s", {"k": 1.5}),
        make_revision("a", "s", {"l": 1.0}),
        make_revision("a", "s", {}),
        make_revision("a", "s", {"k": 1}),
        make_revision("a", "s", {"k": True}),
        make_revision("a", "s", {"k": "1.0"}),
    ]
    assert len({base.id, *(other.id for other in others)}) == len(others) + 1


def test_line_ends_do_not_change_a_revision():
    unix = make_revision("a", "s", {"act": "def act(x):\n    return x\n"})
    assert make_revision("a", "s", {"act": "def act(x):\r\n    return x\r\n"}) == unix
    assert make_revision("a", "s", {"act": "def act(x):\r    return x\r"}) == unix
    assert unix.values == {"act": "def act(x):\n    return x\n"}


def test_ids_are_the_same_in_every_process():
    code = "from agentd.records import make_revision; print(make_revision('a', 's', {'b': [1, {'y': 1, 'x': None}], 'a': 'é'}).id)"
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "1"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout.strip()
    assert told == make_revision("a", "s", {"a": "é", "b": [1, {"x": None, "y": 1}]}).id


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")], {"x": float("nan")}, object(), {1: 2}, b"bytes", {1, 2}])
def test_values_without_a_canonical_form_are_refused(value):
    with pytest.raises(CodecError):
        make_revision("a", "s", {"k": value})


def test_tuples_are_lists_and_keys_are_sorted():
    assert canonical({"b": (1, 2), "a": {"d": 1, "c": 2}}) == {"a": {"c": 2, "d": 1}, "b": [1, 2]}
    assert list(canonical({"b": 1, "a": 2})) == ["a", "b"]


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_a_normalised_score_is_on_0_to_1_and_keeps_the_order(one, other):
    for higher in (True, False):
        metric = Metric(name="m", low=-5.0, high=5.0, higher_is_better=higher)
        first, second = metric.normalised(one), metric.normalised(other)
        assert 0.0 <= first <= 1.0
        better = one > other if higher else one < other
        assert first >= second if better else first <= second


def test_the_worst_score_normalises_to_0_and_the_best_to_1():
    for higher in (True, False):
        metric = Metric(name="m", low=2.0, high=7.0, higher_is_better=higher)
        assert metric.normalised(metric.worst) == 0.0
        assert metric.normalised(9.0 - metric.worst) == 1.0


@pytest.mark.parametrize("score", [1.9, 7.1, float("nan"), float("inf")])
def test_a_score_outside_its_range_is_refused(score):
    with pytest.raises(ValueError, match="outside its declared range"):
        Metric(name="m", low=2.0, high=7.0).normalised(score)


def test_a_release_knows_its_mean_difference():
    begun = Release(
        id="r", agent="a", proposal="p", candidate="c", reference="d", phase=Phase.SELECTION, settings=ReleaseSettings(), begun_at=0.0
    )
    assert begun.difference is None
    assert msgspec.structs.replace(begun, pairs=4, candidate_sum=3.0, reference_sum=1.0).difference == 0.5


def test_records_can_not_be_changed():
    made = make_revision("a", "s", {})
    with pytest.raises(AttributeError):
        made.agent = "b"
    assert not dataclasses.is_dataclass(made)
