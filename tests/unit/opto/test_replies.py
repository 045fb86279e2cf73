"""What models really write: of replies with complete values nearly all are read, the rest are precise errors, nothing is misread."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentd.errors import DecodingError
from agentd.opto.decoding import decode_values
from agentd.opto.replies import parse_reply
from agentd.records import Kind, Parameter

CORPUS = [json.loads(line) for line in (Path(__file__).parents[2] / "data" / "replies" / "corpus.jsonl").read_text().splitlines()]
ACT = Parameter(path="act", kind=Kind.CODE, default="def act(self, observation):\n    return 0\n", signature="def act(self, observation):")
PROMPT = Parameter(path="system_prompt", kind=Kind.TEXT, default="Answer in English.")
SEVERAL = (
    Parameter(path="gains.kp", kind=Kind.NUMBER, default=1.0, bounds=(-100.0, 100.0)),
    Parameter(path="gains.kd", kind=Kind.NUMBER, default=0.5),
    Parameter(path="enabled", kind=Kind.BOOLEAN, default=True),
    Parameter(path="mode", kind=Kind.CHOICE, default="slow", choices=("slow", "fast")),
)
PARAMETERS = {"several": SEVERAL, "prompt": (PROMPT,), "code": (ACT,)}


def read(reply, parameters, finish_reason="stop"):
    parsed = parse_reply(reply, parameters, cut_off=finish_reason == "length")
    return decode_values(parsed.values, parameters, {parameter.path: parameter.default for parameter in parameters}, ("math",))


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case["name"])
def test_a_reply_is_read_as_it_was_meant_or_refused_with_the_reason(case):
    parameters = PARAMETERS[case["parameters"]]
    if "values" in case:
        assert read(case["reply"], parameters, case["finish_reason"]) == case["values"]
    else:
        with pytest.raises(DecodingError, match=case["error"]):
            read(case["reply"], parameters, case["finish_reason"])


@given(value=st.text(max_size=60), form=st.sampled_from(["json", "ascii", "fenced", "raw", "tagged", "python"]))
def test_any_text_comes_back_as_it_was_written_or_not_at_all(value, form):
    body = json.dumps({"reasoning": "r", "suggestion": {"system_prompt": value}}, ensure_ascii=form == "ascii")
    reply = {
        "fenced": f"Here:\n```json\n{body}\n```",
        "raw": '{"reasoning": "r", "suggestion": {"system_prompt": "' + value + '"}}',
        "tagged": f'<value name="system_prompt">\n{value}\n</value>',
        "python": repr({"reasoning": "r", "suggestion": {"system_prompt": value}}),
    }.get(form, body)
    try:
        found = parse_reply(reply, (PROMPT,)).values.get("system_prompt")
    except DecodingError:
        assert form in ("raw", "tagged") or not value.isprintable()
    else:
        if form != "raw" or not set(value) & set('"\\'):  # raw text with quotes and escapes is JSON with another meaning
            assert found == value


@given(cut=st.integers(min_value=1, max_value=200), value=st.text(min_size=1, max_size=40))
@example(cut=52, value="\f")
@example(cut=52, value="\b")
def test_a_cut_reply_never_gives_part_of_a_value(cut, value):
    whole = json.dumps({"suggestion": {"system_prompt": value}, "reasoning": "because"})
    try:
        found = parse_reply(whole[: min(cut, len(whole) - 1)], (PROMPT,), cut_off=True).values
    except DecodingError:
        return
    assert found in ({}, {"system_prompt": value})


@pytest.mark.parametrize(
    "word", ["{", '{"suggestion": ', '{"suggestion": {', "[", '"', "\\", " ", "\n", "```json\n{\n", '{"x": 1} ', '<value name="m">']
)
def test_a_model_that_repeats_itself_to_the_end_of_its_answer_is_refused_at_once(word):
    for text in (word * (60_000 // len(word)), '{"suggestion": {"system_prompt": ' + word * (20_000 // len(word))):
        with pytest.raises(DecodingError):
            read(text, (PROMPT,), "length")


@given(st.text(max_size=300))
def test_no_reply_makes_the_parser_fail_otherwise(text):
    with contextlib.suppress(DecodingError):
        parse_reply(text, SEVERAL)


PIECES = st.lists(
    st.sampled_from(['"', "'", ",", ":", "{", "}", "[", "]", "\\", "\n", "```", "//x", " #", "word ", '", "b": "', "</value>", "é"]),
    max_size=8,
)
THREE = (
    Parameter(path="a", kind=Kind.TEXT, default="one"),
    Parameter(path="b", kind=Kind.TEXT, default="two"),
    Parameter(path="n", kind=Kind.NUMBER, default=1.0),
)


@given(a=PIECES, b=PIECES, form=st.sampled_from(["json", "raw newlines", "trailing comma", "cut", "python"]), cut=st.floats(0.1, 0.99))
def test_whatever_the_values_hold_none_comes_back_as_another(a, b, form, cut):
    values = {"a": "".join(a), "b": "".join(b), "n": 2.5}
    whole = json.dumps({"reasoning": "".join(b), "suggestion": values})
    reply = {
        "raw newlines": whole.replace("\\n", "\n") if "\\" not in values["a"] + values["b"] else whole,
        "trailing comma": whole[:-2] + ",}}",
        "cut": whole[: int(cut * len(whole))],
        "python": str({"reasoning": "r", "suggestion": values}),
    }.get(form, whole)
    try:
        found = read(reply, THREE)
    except DecodingError:
        assert form in ("trailing comma", "cut")
    else:
        assert found.items() <= values.items()
