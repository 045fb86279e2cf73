"""The codec: values and records come back as they were; what can't travel, and bytes that lie, are errors."""

import datetime as dt
import itertools
import math
import sys

import msgspec
import numpy as np
import pytest
from episodes import make_episode
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from agentd import codec
from agentd.errors import CodecError
from agentd.records import Episode, Outcome, Purpose, Step, TraceGraph, TraceNode

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
dtypes = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="?", sizes=(64, 128)),
)


def extension(header):
    return msgspec.msgpack.encode(msgspec.msgpack.Ext(codec.ARRAY_EXTENSION, msgspec.msgpack.encode(header)))


@given(plain)
def test_plain_values_come_back(value):
    assert codec.decode(codec.encode(value), object) == value


@given(hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))
def test_arrays_come_back_with_dtype_shape_and_bits(array):
    back = codec.decode(codec.encode({"x": [array]}), object)["x"][0]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def test_arrays_of_any_memory_order_come_back_equal():
    array = np.arange(24).reshape(2, 3, 4)
    for view in (array.T, array[:, ::-1], np.asfortranarray(array), array[..., 1]):
        assert np.array_equal(codec.decode(codec.encode(view), object), view)


def test_numpy_scalars_become_numbers():
    back = codec.decode(codec.encode([np.float32(0.5), np.int64(3), np.array([True])[0]]), object)
    assert back == [0.5, 3, True]
    assert [type(value) for value in back] == [float, int, bool]


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2, object()},
        lambda: None,
        2**64,
        np.array([object()]),
        np.array(["text"]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.zeros(2, dtype=[("a", "i4")]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, np.ndarray) else str(value.dtype),
)
def test_what_can_not_travel_is_refused(value):
    with pytest.raises(CodecError):
        codec.encode({"value": value})


def test_a_value_that_holds_itself_is_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(CodecError):
        codec.encode(endless)


def test_a_deep_nest_of_bytes_is_an_error_not_a_crash():
    with pytest.raises(CodecError):
        codec.decode(b"\x91" * 100_000 + b"\xc0", object)


@pytest.mark.parametrize(
    "header",
    [
        ("<f8", (3,), b"12345678"),
        ("<f8", (-1, -1), b"12345678"),
        ("<f8", (2**62, 4), b""),
        ("<f8", (), b""),
        ("|O", (1,), b"12345678"),
        ("<U2", (1,), b"12345678"),
        ("no dtype", (1,), b"1"),
        ("c8,(", (1,), b"12345678"),
        ("(1,)f8", (1,), b"12345678"),
        ("f8\n", (1,), b"12345678"),
        ("<f3", (1,), b"123"),
        ("<f8", (1,) * 70, b"12345678"),
        ("<f8", (0, 2**63 - 1), b""),
        ("|b1", (2**40, 0), b""),
        ("<f8", (2**63,) * 20_000, b"12345678"),
        ("<f8,<f8", (1,), b"1" * 16),
        ("<f8", "3", b"12345678"),
        ("<f8", (1,)),
        {"dtype": "<f8"},
        None,
    ],
)
def test_an_array_that_lies_about_itself_is_refused(header):
    with pytest.raises(CodecError):
        codec.decode(extension(header), object)


LONG = "x" * codec.MAX_DEPTH
MAP = b"\x82" + msgspec.msgpack.encode(LONG) + b"\x00"
COSTLY = {
    "a key that is a tuple": MAP + b"\x92\x01\x02\x00",
    "a key that is a float": MAP + msgspec.msgpack.encode(0.5) + b"\x00",
    "a key that is an array": MAP + extension(("<f8", (1,), b"12345678")) + b"\x00",
    "a key of a map within a list within a map": MAP + b"\xa1x\x91\x81\x90\x00",
    "a key of a long map": b"\xdf\0\0\0\2" + MAP[1:] + b"\x90\x00",
    "a key after all that has a length": b"\x9c"
    + b"".join(map(msgspec.msgpack.encode, [LONG, b"x" * 300, b"x" * 70_000, "x" * 300, "x" * 70_000, 2**40, -(2**40), np.pi, None]))
    + msgspec.msgpack.encode(msgspec.msgpack.Ext(codec.ARRAY_EXTENSION, b"1234"))
    + msgspec.msgpack.encode(msgspec.msgpack.Ext(codec.ARRAY_EXTENSION, b"x" * 300))
    + b"\xde\0\1\x90\x00",
    "lists nested too deep": b"\x91" * (codec.MAX_DEPTH + 1) + b"\xc0",
    "maps nested too deep": b"\x81\xa1x" * (codec.MAX_DEPTH + 1) + b"\xc0",
    "a time": msgspec.msgpack.encode([LONG, dt.datetime.now(dt.UTC)]),
}


@pytest.mark.parametrize("what", COSTLY)
def test_what_costs_more_to_read_than_its_length_is_refused_of_untrusted_code(what):
    with pytest.raises(CodecError, match=r"key|nested|extension"):
        codec.decode_untrusted(COSTLY[what], object)


def test_keys_that_hash_alike_are_refused_before_a_dict_is_made_of_them():
    """Pairs of numbers whose tuple hashes to one value (CPython, Objects/tupleobject.c): the second is computed from the first."""
    prime1, prime2, prime5, word = 11400714785074694791, 14029467366897019727, 2870177450012600261, 2**64

    def turned(value, by):
        return (value << by | value >> 64 - by) % word

    keys = []
    for first in itertools.count(2**40):
        lane = turned((prime5 + first * prime2) % word, 31) * prime1 % word
        second = (turned(12345 * pow(prime1, -1, word) % word, 33) - lane) * pow(prime2, -1, word) % word
        if second < 2**60:
            keys.append((first, second))
        if len(keys) == 3_000:
            break
    assert len({hash(key) for key in keys}) == 1
    bomb = b"\xde" + len(keys).to_bytes(2) + b"".join(msgspec.msgpack.encode(key) + b"\x00" for key in keys)
    with pytest.raises(CodecError, match="key"):
        codec.decode_untrusted(bomb, object)


@pytest.mark.parametrize("values", [[0] * 1001, {str(key): 0 for key in range(1001)}, [[0] * 500, [[0] * 499, LONG]]])
def test_more_values_than_there_may_be_are_refused_before_they_are_read(values):
    content = codec.encode([LONG, values])
    assert codec.decode_untrusted(content, object)
    with pytest.raises(CodecError, match="more than 1000 values"):
        codec.decode_untrusted(content, object, 1000)
    assert codec.decode_untrusted(codec.encode([LONG, np.zeros(5000)]), object, 1000)


@given(plain)
def test_plain_values_come_back_from_untrusted_code_too(value):
    assert codec.decode_untrusted(codec.encode([LONG, value, {1: value, None: 2, False: 3}]), object)[1] == value


@given(st.binary(max_size=300))
def test_random_bytes_of_untrusted_code_decode_or_are_a_codec_error(data):
    try:
        codec.decode_untrusted(data, object)
    except CodecError:
        return


def test_other_extensions_are_refused():
    with pytest.raises(CodecError):
        codec.decode(msgspec.msgpack.encode(msgspec.msgpack.Ext(7, b"")), object)


@given(st.binary(max_size=300))
def test_random_bytes_decode_or_are_a_codec_error(data):
    for type_ in (object, Episode, TraceGraph, Step):
        try:
            codec.decode(data, type_)
        except CodecError:
            continue


@given(st.binary(max_size=60))
def test_random_array_headers_decode_or_are_a_codec_error(header):
    data = msgspec.msgpack.encode(msgspec.msgpack.Ext(codec.ARRAY_EXTENSION, header))
    try:
        codec.decode(data, object)
    except CodecError:
        return


@given(st.text(max_size=12), st.lists(st.integers(-4, 4), max_size=3), st.binary(max_size=32))
def test_random_dtypes_and_shapes_decode_or_are_a_codec_error(dtype, shape, content):
    try:
        codec.decode(extension((dtype, shape, content)), object)
    except CodecError:
        return


def test_bytes_of_another_record_are_refused():
    with pytest.raises(CodecError, match="Episode"):
        codec.decode(codec.encode({"id": "e"}), Episode)


def test_records_with_arrays_and_defaults_come_back():
    step = Step(0, np.array([0.5, -0.5], dtype=np.float32), 1, info={"n": [1]}, safe="late")
    ran = make_episode(purpose=Purpose.PAIR, outcome=Outcome.LOST, started_at=1.0, duration=2.0, steps=(step,))
    back = codec.decode(codec.encode(ran), Episode)
    assert np.array_equal(back.steps[0].observation, step.observation)
    assert msgspec.structs.replace(back, steps=()) == msgspec.structs.replace(ran, steps=())
    assert back.safe_actions == 1


def test_a_record_with_fields_of_a_newer_agentd_is_still_read():
    newer = codec.encode(
        {"version": 1, "nodes": [["x", "input"], ["y", "message", "add", [0], ["a"], 1, "", None, "a field to come"]], "to_come": 1}
    )
    graph = codec.decode(newer, TraceGraph)
    assert [node.name for node in graph.nodes] == ["x", "y"]
    assert graph.nodes[1].parents == (0,)


def test_what_people_see_is_json():
    graph = TraceGraph(nodes=(TraceNode("x", "input", value=np.arange(2)),), output=0)
    shown = codec.to_builtins({"graph": graph, 1: np.float64(0.5)})
    assert shown["graph"]["nodes"][0][5] == [0, 1]
    assert shown["1"] == 0.5
    with pytest.raises(CodecError):
        codec.to_builtins({"what": object()})


def test_infinities_survive():
    assert codec.decode(codec.encode([math.inf, -math.inf]), object) == [math.inf, -math.inf]
    assert math.isnan(codec.decode(codec.encode(math.nan), object))


def test_help_does_not_pay_for_numpy():
    import subprocess

    code = "import sys; from agentd import codec; codec.decode(codec.encode([1, 'a']), object); print('numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert run.stdout.strip() == "False"
