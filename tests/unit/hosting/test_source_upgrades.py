"""What becomes of learned values when the author changes the program: the three-way rule."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agentd.hosting.sources import merge
from agentd.records import Kind, Parameter

PATHS = ("a", "b.c", "d")
numbers = st.integers(0, 3).map(float)
values_of = st.dictionaries(st.sampled_from(PATHS), numbers)


def number(path, default, **fields):
    return Parameter(path=path, kind=Kind.NUMBER, default=default, **fields)


def code(path, source, signature="(self, x)"):
    return Parameter(path=path, kind=Kind.CODE, default=source, signature=signature)


sources = st.dictionaries(st.sampled_from(PATHS), numbers).map(
    lambda defaults: tuple(number(path, default) for path, default in sorted(defaults.items()))
)


@given(values_of, sources, sources)
def test_every_learned_value_meets_exactly_one_fate(values, before, after):
    found = merge(values, before, after)
    fates = [*found.carried, *(conflict.path for conflict in found.conflicts), *found.adopted, *found.lapsed]
    assert sorted(fates) == sorted(values)


@given(values_of, sources)
def test_a_source_with_the_same_defaults_takes_every_value_over(values, before):
    known = {parameter.path: parameter.default for parameter in before}
    learned = {path: value for path, value in values.items() if path in known and value != known[path]}
    found = merge(learned, before, before)
    assert (found.carried, found.conflicts, found.adopted, found.lapsed) == (learned, (), (), {})


@given(values_of, sources, sources)
def test_nothing_that_its_author_has_changed_is_overwritten_in_silence(values, before, after):
    was = {parameter.path: parameter.default for parameter in before}
    found = merge(values, before, after)
    for parameter in after:
        if parameter.path in found.carried:
            assert was[parameter.path] == parameter.default


@given(values_of, sources, sources)
def test_an_author_who_takes_the_change_back_gets_the_learned_values_back(values, before, after):
    known = {parameter.path: parameter.default for parameter in before}
    learned = {path: value for path, value in values.items() if path in known and value != known[path]}
    changed = merge(learned, before, after)
    back = merge(changed.carried, after, before, pending=changed.conflicts)
    lost = {*changed.lapsed, *changed.adopted}
    assert back.carried == {path: value for path, value in learned.items() if path not in lost}
    assert back.conflicts == ()


def test_a_default_that_became_what_was_learned_is_settled_by_itself():
    found = merge({"a": 2.0}, (number("a", 1.0),), (number("a", 2.0),))
    assert (found.adopted, found.carried, found.conflicts) == (("a",), {}, ())


def test_a_conflict_shows_what_it_was_what_was_learned_and_what_it_is_now():
    [conflict] = merge({"a": 2.0}, (number("a", 1.0),), (number("a", 3.0),)).conflicts
    assert (conflict.path, conflict.base, conflict.learned, conflict.source) == ("a", 1.0, 2.0, 3.0)


def test_a_conflict_that_nobody_settled_is_asked_again_with_the_newest_source():
    first = merge({"a": 2.0}, (number("a", 1.0),), (number("a", 3.0),))
    [again] = merge({}, (number("a", 3.0),), (number("a", 4.0),), pending=first.conflicts).conflicts
    assert (again.base, again.learned, again.source) == (1.0, 2.0, 4.0)


def test_what_was_learned_anew_on_the_changed_source_takes_the_place_of_an_open_conflict():
    first = merge({"a": 2.0}, (number("a", 1.0),), (number("a", 3.0),))
    found = merge({"a": 5.0}, (number("a", 3.0),), (number("a", 3.0),), pending=first.conflicts)
    assert (found.carried, found.conflicts) == ({"a": 5.0}, ())


def test_what_can_not_be_a_value_any_more_lapses_and_says_why():
    learned = "def act(self, x):\n    return 1\n"
    before = (number("gone", 1.0), number("kind", 1.0), code("act", "def act(self, x):\n    return 0\n"), number("bounded", 1.0))
    after = (
        msgspec.structs.replace(number("kind", 1.0), kind=Kind.TEXT, default="1"),
        code("act", "def act(self, x):\n    return 0\n", signature="(self, x, y)"),
        number("bounded", 1.0, bounds=(0.0, 2.0)),
    )
    found = merge({"gone": 2.0, "kind": 2.0, "act": learned, "bounded": 9.0}, before, after)
    assert (found.carried, found.conflicts) == ({}, ())
    assert "no such parameter" in found.lapsed["gone"]
    assert "number" in found.lapsed["kind"]
    assert "(self, x, y)" in found.lapsed["act"]
    assert "2" in found.lapsed["bounded"]
