"""Values from outside fit their parameters exactly, or are refused with every reason at once."""

import functools

import pytest

from agentd.errors import DecodingError
from agentd.opto.decoding import decode_values, validate_values
from agentd.records import Kind, Parameter

ACT = Parameter(path="act", kind=Kind.CODE, default="def act(self, o, k=1):\n    return 0\n", signature="def act(self, o, k=1):")
GAIN = Parameter(path="gain", kind=Kind.NUMBER, default=1.0, bounds=(0.0, None))
COUNT = Parameter(path="count", kind=Kind.NUMBER, default=3, integer=True)
ON = Parameter(path="on", kind=Kind.BOOLEAN, default=True)
LEVEL = Parameter(path="level", kind=Kind.CHOICE, default=1, choices=(1, 2, True))
PLAN = Parameter(path="plan", kind=Kind.STRUCTURED, default={"gains": [1.0, 2.0], "name": "x", "deep": {"on": False}})
PROMPT = Parameter(path="prompt", kind=Kind.TEXT, default="Hi")
ALL = (ACT, GAIN, COUNT, ON, LEVEL, PLAN, PROMPT)
CURRENT = {parameter.path: parameter.default for parameter in ALL}


def code(body, head="def act(self, o, k=1):"):
    return {"act": f"{head}\n    {body}\n"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"gain": 2}, {"gain": 2.0}),
        ({"count": 4.0}, {"count": 4}),
        ({"on": False}, {"on": False}),
        ({"level": 2}, {"level": 2}),
        ({"level": True}, {"level": True}),
        ({"prompt": "a\r\nb"}, {"prompt": "a\nb"}),
        (
            {"plan": {"gains": [3, 2.0], "name": "y", "deep": {"on": True}}},
            {"plan": {"gains": [3.0, 2.0], "name": "y", "deep": {"on": True}}},
        ),
        (code("return o"), code("return o")),
        (code("import math\n    return math.pi"), code("import math\n    return math.pi")),
        ({"gain": 1.0, "on": True, "prompt": "Hi", "act": ACT.default + "\n"}, {}),
    ],
)
def test_what_fits_is_taken_and_what_changes_nothing_is_dropped(values, expected):
    found = validate_values(values, ALL, CURRENT, ("math",))
    assert found == expected
    assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"gain": True}, "expected a number"),
        ({"gain": "2"}, "expected a number"),
        ({"gain": float("nan")}, "finite"),
        ({"gain": float("inf")}, "finite"),
        ({"gain": 10**400}, "finite"),
        ({"gain": -1}, r"outside the bounds \[0.0, inf\]"),
        ({"count": 2.5}, "whole number"),
        ({"on": 1}, "true or false"),
        ({"on": "False"}, "true or false"),
        ({"level": 3}, "not one of the choices"),
        ({"prompt": None}, "expected text, got null"),
        ({"prompt": "\ud800"}, "Unicode"),
        ({"prompt": "x" * 200_000}, "at most"),
        ({"plan": {"gains": [1.0], "name": "x", "deep": {"on": False}}}, "at .gains: expected 2 numbers"),
        ({"plan": {"gains": [1.0, 2.0], "name": "x"}}, "missing: deep"),
        ({"plan": {"gains": [1.0, "2"], "name": "x", "deep": {"on": False}}}, r"at .gains\[1\]: expected a number"),
        ({"plan": {"gains": [1.0, 2.0], "name": "x", "deep": {"on": 0}}}, "at .deep.on: expected true or false"),
        ({"plan": 5}, "expected an object"),
        ({"nothing": 1}, "there is no such parameter; the parameters are: act, count"),
        ({"act": 5}, "source text"),
        ({"act": "def act(self, o, k=1):\n  return (\n"}, "does not compile: line 2"),
        ({"act": "return 1"}, "compile"),
        ({"act": "x = 1\n"}, "exactly one function"),
        ({"act": "import math\n" + ACT.default}, "imports go inside"),
        ({"act": "@property\n" + ACT.default}, "no decorators"),
        ({"act": "async " + ACT.default}, "signature must stay"),
        (code("return 1", "def act(self, o, k=2):"), "signature must stay `def act"),
        (code("return 1", "def act(self, o):"), "signature must stay"),
        (code("return 1", "def act(self, o, *, k=1):"), "signature must stay"),
        (code("import os; return 1"), "imports os; allowed imports: math"),
        (code("from os.path import join"), "imports os.path"),
        (code("from . import x"), r"imports \."),
        (code("yield 1; x = '\x00'"), "compile"),
        ({"act": ACT.default + "#" + "x" * 60_000}, "at most"),
        ({"act": "def act(self, o, k=1):\n    return " + "(" * 5000 + ")" * 5000}, "compile"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(values, words):
    with pytest.raises(DecodingError, match=words):
        validate_values(values, ALL, CURRENT, ("math",))


def test_what_is_nested_too_deeply_is_refused_as_any_other_value():
    free = Parameter(path="free", kind=Kind.STRUCTURED, default=[])
    deep = functools.reduce(lambda inner, _: [inner], range(900), [])
    minus = ACT.default.replace("k=1", f"k={'- ' * 900}1")
    with pytest.raises(DecodingError) as caught:
        validate_values({"free": deep, "act": minus}, [free, ACT], {}, ("math",))
    assert set(caught.value.problems) == {"free", "act"}
    assert "nested too deeply" in caught.value.problems["free"]


def test_every_problem_is_told_at_once():
    with pytest.raises(DecodingError) as caught:
        decode_values({"gain": "high", "count": 1.5, "other": 1, "on": False}, ALL, CURRENT)
    assert set(caught.value.problems) == {"gain", "count", "other"}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ({"gain": "2.5"}, {"gain": 2.5}),
        ({"count": "4"}, {"count": 4}),
        ({"on": "False"}, {"on": False}),
        ({"on": " false "}, {"on": False}),
        ({"level": "2"}, {"level": 2}),
        ({"act": "```python\n" + ACT.default.replace("0", "1") + "```"}, {"act": ACT.default.replace("0", "1")}),
    ],
)
def test_a_models_spelling_of_a_value_is_understood_where_it_is_unambiguous(reply, expected):
    assert decode_values(reply, ALL, CURRENT) == expected


@pytest.mark.parametrize("reply", [{"on": "no"}, {"on": ""}, {"gain": "two"}, {"gain": "1_000"}, {"gain": "0x10"}, {"count": "nan"}])
def test_what_is_doubtful_is_not_guessed(reply):
    with pytest.raises(DecodingError):
        decode_values(reply, ALL, CURRENT)


def test_annotations_are_free_and_imports_too_where_no_list_is_given():
    annotated = 'def act(self, o: "list", k: int = 1) -> int:\n    import os\n    return 1\n'
    assert validate_values({"act": annotated}, ALL, CURRENT) == {"act": annotated}
