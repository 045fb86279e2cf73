"""Whatever is learned: the program that is written back has it, and nothing else has changed."""

import ast

from hypothesis import given
from hypothesis import strategies as st

from agentd.records import Kind, Parameter
from agentd.writeback import write_back

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=40)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
NUMBERS = FLOATS | st.integers(-(10**20), 10**20)
STRUCTURES = st.recursive(
    NUMBERS | TEXTS | st.booleans() | st.none(), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4)
)
LITERALS = st.sampled_from(["'a'", '"a"', '"""a\nb"""', '"""\\\na\n"""', "'''a'''", '"a" "b"', '("a\\n"\n   "b")', "r'a'", "u'a'"])


def written(literal, value, line_end="\n"):
    """The value that the text has afterwards; all around it must be as it was."""
    body = f"\t\tself.x = node( {literal} , trainable=True)  # é\n\t\tself.y = node(1)\n"
    text = f"from agentd.trace import node\nclass Robot:\n\tdef __init__(self):\n{body}".replace("\n", line_end)
    parameters = [Parameter(path="x", kind=Kind.STRUCTURED, default=ast.literal_eval(literal))]
    found = write_back({"a.py": text}, "a:Robot", parameters, {"x": value})
    assert found.left_out == {}
    after = found.files.get("a.py", text)
    head, _, rest = after.partition("node( ")
    _, _, tail = rest.rpartition(" , trainable")
    learned = ast.parse(after).body[1].body[0].body[0].value.args[0]
    assert (head, tail) == (text.partition("node( ")[0], text.rpartition(" , trainable")[2])
    assert after.count("\n") == after.count(line_end)
    return ast.literal_eval(learned)


@given(LITERALS, TEXTS, st.sampled_from(["\n", "\r\n"]))
def test_texts_come_back_whatever_stood_there(literal, value, line_end):
    assert written(literal, value, line_end) == value


@given(STRUCTURES, STRUCTURES)
def test_structures_come_back(before, value):
    assert written(repr(before), value) == value


@given(FLOATS, FLOATS)
def test_floats_come_back_to_the_last_bit(before, value):
    assert repr(written(repr(before), value)) == repr(value) or value == before
