"""MessagePack for records: one encoding for the store, the Unix sockets and the workers' channel.

Arrays travel as extension 1: a MessagePack array (dtype, shape, C-order bytes). Object arrays are refused, and so are lengths that lie.
numpy is imported only when an array is met, so that `agentd --help` stays quick.
"""

import math
import re
import sys
from typing import Any, TypeVar

import msgspec

from agentd.errors import CodecError

ARRAY_EXTENSION = 1
_ARRAY_KINDS = frozenset("biufc")  # bool, signed, unsigned, float, complex; never objects or strings

_DTYPE = re.compile("[<>|][biufc][0-9]{1,2}")

T = TypeVar("T")


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

    dtype_name, shape, content = msgspec.msgpack.decode(data, type=tuple[str, tuple[int, ...], bytes])
    if not _DTYPE.fullmatch(dtype_name):  # numpy would parse a small language here, and evaluate parts of it
        raise CodecError(f"unknown dtype {dtype_name[:40]!r}")
    try:
        dtype = np.dtype(dtype_name)
    except TypeError as error:
        raise CodecError(f"unknown dtype {dtype_name!r}") from error
    if dtype.kind not in _ARRAY_KINDS or any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(content):
        raise CodecError(f"an array whose shape {shape} and dtype {dtype_name} don't fit its {len(content)} bytes")
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
