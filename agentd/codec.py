"""MessagePack for records: one encoding for the store, the Unix sockets and the workers' channel.

Arrays travel as extension 1: a MessagePack array (dtype, shape, C-order bytes). Object arrays are refused, and so are lengths that lie.
numpy is imported only when an array is met, so that `agentd --help` stays quick.
"""

import math
import re
import sys
from typing import Annotated, Any, TypeVar

import msgspec

from agentd.errors import CodecError

ARRAY_EXTENSION = 1
_ARRAY_KINDS = frozenset("biufc")  # bool, signed, unsigned, float, complex; never objects or strings

_DTYPE = re.compile("[<>|][biufc][0-9]{1,2}")
_Header = tuple[str, Annotated[tuple[int, ...], msgspec.Meta(max_length=64)], bytes]  # numpy has no more dimensions
_MOST_EMPTY = 64
"""Rows, and rows of rows, that an array without any item may have."""

MAX_DEPTH = 64
"""Containers within containers, of what untrusted code sends. The rest of agentd may then use recursion on it, and `repr`."""

T = TypeVar("T")


def _sizes() -> tuple[int, ...]:
    """By the first byte of a value, the bytes that it takes, 0 where that is not all there is to know."""
    sizes = [0] * 256
    for first, last, size in ((0x00, 0x7F, 1), (0xE0, 0xFF, 1), (0xC0, 0xC0, 1), (0xC2, 0xC3, 1), (0xCA, 0xCA, 5), (0xCB, 0xCB, 9)):
        sizes[first : last + 1] = [size] * (last + 1 - first)
    for first in (0xCC, 0xD0):  # whole numbers, without and with a sign
        sizes[first : first + 4] = [2, 3, 5, 9]
    sizes[0xA0:0xC0] = range(1, 33)  # short texts
    sizes[0x80] = sizes[0x90] = 1  # nothing is in them
    return tuple(sizes)


_SIZES = _sizes()
_TEXTS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_LENGTHS = _TEXTS | {0xC4: 1, 0xC5: 2, 0xC6: 4}
"""Texts and bytes by how many bytes tell their length."""
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4} | dict.fromkeys(range(0xD4, 0xD9), 0)
_KEYS = frozenset({*range(0x80), *range(0xE0, 0x100), *range(0xA0, 0xC1), 0xC2, 0xC3, *range(0xCC, 0xD4), *_TEXTS})
"""How a key may begin: a text, a whole number, None or a boolean. No more than a few of these have the same hash."""


def _encode_array(value: Any) -> msgspec.msgpack.Ext:
    numpy = sys.modules["numpy"]
    if value.dtype.kind not in _ARRAY_KINDS:
        raise CodecError(f"an array of dtype {value.dtype} can't cross a process border")
    header = (value.dtype.str, value.shape, numpy.ascontiguousarray(value).tobytes())
    return msgspec.msgpack.Ext(ARRAY_EXTENSION, msgspec.msgpack.encode(header))


def _encode_other(value: Any) -> Any:
    numpy = sys.modules.get("numpy")  # a value can be numpy's only if numpy is loaded
    if numpy is not None:
        if isinstance(value, numpy.ndarray):
            return _encode_array(value)
        if isinstance(value, numpy.generic):
            return value.item()
    raise CodecError(f"a value of type {type(value).__qualname__} can't cross a process border")


def _decode_array(code: int, data: memoryview) -> Any:
    if code != ARRAY_EXTENSION:
        raise CodecError(f"unknown MessagePack extension {code}")
    import numpy as np  # noqa: PLC0415 - only who receives arrays pays for numpy

    dtype_name, shape, content = msgspec.msgpack.decode(data, type=_Header)
    if not _DTYPE.fullmatch(dtype_name):  # numpy would parse a small language here, and evaluate parts of it
        raise CodecError(f"unknown dtype {dtype_name[:40]!r}")
    try:
        dtype = np.dtype(dtype_name)
    except TypeError as error:
        raise CodecError(f"unknown dtype {dtype_name!r}") from error
    if dtype.kind not in _ARRAY_KINDS or any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(content):
        raise CodecError(f"an array whose shape {shape} and dtype {dtype_name} don't fit its {len(content)} bytes")
    if not content and math.prod(size or 1 for size in shape) > _MOST_EMPTY:  # as lists they would fill any memory
        raise CodecError(f"an array of shape {shape} with nothing in it")
    return np.frombuffer(content, dtype=dtype).reshape(shape)


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_other)
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def encode(value: Any) -> bytes:
    """MessagePack bytes of a record or a plain value. Raises CodecError for what can't travel."""
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CodecError(f"can't encode a {type(value).__qualname__}: {error}") from error


def decode(data: bytes | memoryview, type_: type[T]) -> T:
    """The record of type `type_` that `data` holds. Raises CodecError for anything else."""
    decoder = _decoders.get(type_)
    if decoder is None:
        decoder = _decoders[type_] = msgspec.msgpack.Decoder(type_, ext_hook=_decode_array)
    try:
        result: T = decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CodecError(f"not a {getattr(type_, '__name__', type_)}: {error}") from error
    return result


def check(data: bytes | memoryview, most: int = sys.maxsize) -> None:
    """Raise CodecError for MessagePack that costs more to read than its length, or whose values break what handles them later.

    Keys that hash alike make a dict's cost quadratic, and those of tuples and floats can be chosen so; a deep nest exhausts the stack.
    `most`: how many values may be in it; an array is one. What is cut short is left to `decode`; what is too short for either passes.
    """
    if len(data) <= MAX_DEPTH:
        return
    position, left, keyed, values = 0, 1, False, 0
    outer: list[tuple[int, bool]] = []
    try:
        while left or outer:
            if not left:
                left, keyed = outer.pop()
                continue
            kind = data[position]
            if keyed and not left & 1 and kind not in _KEYS:
                raise CodecError("a map with a key that is neither a text nor a whole number")
            left -= 1
            if size := _SIZES[kind]:
                position += size
            elif width := _LENGTHS.get(kind):
                position += 1 + width + int.from_bytes(data[position + 1 : position + 1 + width])
            elif kind in _EXTENSIONS:
                position = _after_array(data, position, kind)
            else:
                if len(outer) == MAX_DEPTH:
                    raise CodecError(f"values nested more than {MAX_DEPTH} deep")
                outer.append((left, keyed))
                keyed, count, position = _after_header(data, position, kind)
                left, values = count * (2 if keyed else 1), values + count
                _check_count(values, most)
    except IndexError:
        return


def _check_count(values: int, most: int) -> None:
    if values > most:
        raise CodecError(f"more than {most} values, where arrays count as one each")


def _after_header(data: bytes | memoryview, position: int, kind: int) -> tuple[bool, int, int]:
    """Of a list or a map: whether it is a map, how many values are in it, and where the first one is."""
    width = 0 if kind < 0xA0 else 2 if kind & 1 == 0 else 4
    count = int.from_bytes(data[position + 1 : position + 1 + width]) if width else kind & 0x0F
    return kind < 0x90 or kind >= 0xDE, count, position + 1 + width


def _after_array(data: bytes | memoryview, position: int, kind: int) -> int:
    width = _EXTENSIONS[kind]
    length = int.from_bytes(data[position + 1 : position + 1 + width]) if width else 1 << (kind - 0xD4)
    if data[position + 1 + width] != ARRAY_EXTENSION:
        raise CodecError("an extension that is no array")
    return position + 2 + width + length


def decode_untrusted(data: bytes | memoryview, type_: type[T], most: int = sys.maxsize) -> T:
    """As `decode`, for what code in a sandbox wrote: whatever it is, reading it takes a time that grows with its length only.

    `most`: how many values may be in it.
    """
    check(data, most)
    return decode(data, type_)


def to_builtins(value: Any) -> Any:
    """Records as plain JSON-able values, for people and HTTP: arrays become lists, bytes are counted, not shown."""
    return msgspec.to_builtins(value, enc_hook=_json_other, builtin_types=(), str_keys=True)


def _json_other(value: Any) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if isinstance(value, numpy.ndarray):
            return value.tolist()
        if isinstance(value, numpy.generic):
            return value.item()
    raise CodecError(f"a value of type {type(value).__qualname__} has no JSON form")
