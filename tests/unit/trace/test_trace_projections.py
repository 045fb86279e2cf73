"""Bringing proposed values to a form, publishing trained programs, and showing steps of an optimizer."""

import builtins
import importlib
import json
import sys

import pytest

from agentd.errors import TraceError
from agentd.trace import bundle, model, node
from agentd.trace.parameters import assign, find_parameters
from agentd.trace.projections import BlackCodeFormatter, DocstringProjection, Projection, project
from agentd.trace.utils import escape_json_nested_quotes, parse_eqs_to_dict, remove_non_ascii, render_opt_step


class Clip(Projection):
    def project(self, value):
        return min(max(value, 0), 1)


def test_projections_are_applied_to_what_is_set():
    assert project(5, Clip()) == 1
    assert project(5, [Clip(), lambda value: value * 10]) == 10
    parameter = node(0.5, trainable=True, projections=[Clip()])
    parameter._set(7)
    assert parameter.data == 1
    assign(parameter, -3.0)
    assert parameter.data == 0
    with pytest.raises(TypeError, match="does not say"):
        Projection()(1)
    with pytest.raises(TraceError, match="trainable"):
        node(1, projections=[Clip()])


@pytest.mark.parametrize(
    "code",
    [
        'def f(x):\n    """Wrong."""\n    return x',
        "def f(x):\n    return x",
        'def f(x):\n    """Wrong\n    and long."""\n    return x',
        "def f(x): return x",
        'def f(x):\n    """Only this."""',
        "async def f(x):\n    return x",
    ],
)
@pytest.mark.parametrize("docstring", ["Right.", 'Says "hello"', "Two\nlines", 'Ends with """quotes"""', "Back\\slash"])
def test_a_docstring_is_put_back_and_the_code_stays(code, docstring):
    made = DocstringProjection(docstring)(code)
    namespace = {}
    exec(made, namespace)
    assert [line.strip() for line in namespace["f"].__doc__.splitlines()] == docstring.splitlines()
    assert DocstringProjection(docstring)(made) == made
    if "return x" in code and "async" not in code:
        assert namespace["f"](3) == 3


def test_what_is_no_code_is_left_alone():
    for value in ("not (code", 5, "x = 1"):
        assert DocstringProjection("d")(value) == value
        assert BlackCodeFormatter()(value) == value
    with pytest.raises(TraceError, match="needs a function"):
        DocstringProjection("d")("class A:\n    def f(self): pass")


def test_code_is_tidied_also_without_black(monkeypatch):
    def refuse(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    assert BlackCodeFormatter()("def f(x):   \n    return x  \n\n") == "def f(x):\n    return x"


@model
class Trained:
    """A program."""

    scale = 2

    def __init__(self, offset):
        self.gain = node(1.0, trainable=True)
        self.offset = offset
        self.table = node({"a": (1, 2)}, trainable=True)

    @bundle(trainable=True)
    def act(self, x):
        """Acts."""
        return x

    @bundle()
    def helper(self, x):
        return x * self.scale

    @staticmethod
    def plain(x):
        return x


def test_a_trained_program_is_published_as_plain_source(tmp_path):
    program = Trained(3)
    found = find_parameters(program)
    assign(found["gain"], 4.5)
    assign(found["act"], "def act(self, x):\n    return self.helper(x) * self.gain + self.offset")
    text = program.export(tmp_path / "deep" / "trained.py")
    assert (tmp_path / "deep" / "trained.py").read_text() == text
    assert "bundle" not in text
    assert "node(" not in text
    namespace = {}
    exec(text, namespace)
    assert namespace["Trained"](3).act(2) == 2 * 2 * 4.5 + 3
    assert namespace["Trained"](3).table == {"a": [1, 2]}
    assert namespace["Trained"].plain(1) == 1


def test_a_step_of_an_optimizer_is_shown_as_escaped_html():
    class Optimizer:
        log = (
            {"response": json.dumps({"reasoning": "<b>because</b>", "suggestion": {"gain": "2 < 3"}}), "problem_instance": "x = f(gain)"},
            {"response": "no json <i>", "feedback": "bad"},
        )

    page = render_opt_step(0, Optimizer())
    assert "&lt;b&gt;because" in page
    assert "2 &lt; 3" in page
    assert "x = f(gain)" in page
    assert "x = f(gain)" not in render_opt_step(0, Optimizer(), no_trace_graph=True)
    assert "2 &lt; 3" not in render_opt_step(0, Optimizer(), no_improvement=True)
    assert "no json &lt;i&gt;" in render_opt_step(1, Optimizer())


def test_small_helpers_do_what_their_names_say():
    assert parse_eqs_to_dict("x0 = 1\nx1=`2`\nx3= def f():\n    return 1\n") == {"x0": "1", "x1": "2", "x3": "def f():\n    return 1"}
    assert json.loads(escape_json_nested_quotes('{"a": "say "hi" now", "b": "x"}')) == {"a": 'say "hi" now', "b": "x"}
    assert (
        escape_json_nested_quotes(r'{"a": "at \\"end\\"", "b": "\( \alpha \) \\n \u00e9"}')
        == r'{"a": "at \"end\"", "b": "( alpha ) \\n \u00e9"}'
    )
    assert remove_non_ascii("aé\x00\tb\u200b") == "aé\tb"  # its name promises more
    assert builtins is sys.modules["builtins"]
