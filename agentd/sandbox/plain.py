"""Plain values between a trusted program and its leaf, with the types that MessagePack alone would lose: tuples, sets, keys, scalars.

There is no pickle: what arrives is made of the types named here and of nothing else, whoever sent it. Containers that MessagePack does not
know travel as lists that begin with a number, which says what they are.
"""

import sys
from collections.abc import Callable
from typing import Any

from agentd.errors import CodecError
from agentd.records import Value

MAX_DEPTH = 32
"""Containers within containers."""

_LIST, _TUPLE, _SET, _FROZENSET, _PAIRS, _COMPLEX, _INTEGER, _SCALAR = range(8)
_CONTAINERS: dict[type, int] = {list: _LIST, tuple: _TUPLE, set: _SET, frozenset: _FROZENSET}
_MAKERS: dict[int, Callable[[Any], Any]] = {_TUPLE: tuple, _SET: set, _FROZENSET: frozenset, _LIST: list}
_AS_THEY_ARE = frozenset({type(None), bool, float, str, bytes})
_INTEGERS = range(-(2**63), 2**64)


class NotPlainError(TypeError):
    """A value that can't enter or leave a sandbox."""


def pack(value: Any, depth: int = 0) -> Value:  # noqa: PLR0911 - a case per kind of value
    """What MessagePack carries for `value`. Raises NotPlainError for what is no plain value, or is nested too deeply."""
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is int:
        return value if value in _INTEGERS else [_INTEGER, hex(value)]
    if depth > MAX_DEPTH:
        raise NotPlainError(f"a value nested more than {MAX_DEPTH} deep")
    if kind in _CONTAINERS:
        return [_CONTAINERS[kind], *[pack(item, depth + 1) for item in value]]
    if kind is dict:
        if all(type(key) is str for key in value):
            return {key: pack(item, depth + 1) for key, item in value.items()}
        return [_PAIRS, *[pack(part, depth + 1) for pair in value.items() for part in pair]]
    if kind is complex:
        return [_COMPLEX, value.real, value.imag]
    numpy = sys.modules.get("numpy")  # a value can be numpy's only if numpy is loaded
    if numpy is not None and kind is numpy.ndarray and value.dtype.kind in "biufc":
        return value
    if numpy is not None and isinstance(value, numpy.generic) and value.dtype.kind in "biufc":
        return [_SCALAR, numpy.asarray(value)]
    raise NotPlainError(f"a {kind.__qualname__}")


def unpack(value: Value, depth: int = 0) -> Any:
    """The value that `pack` was given; arrays are copies that may be written to. Raises CodecError for anything else."""
    kind = type(value)
    if kind in _AS_THEY_ARE or kind is int:
        return value
    if depth > MAX_DEPTH + 1:
        raise CodecError(f"a value nested more than {MAX_DEPTH} deep")
    if kind is dict:
        if any(type(key) is not str for key in value):
            raise CodecError("a dict whose keys are no texts")
        return {key: unpack(item, depth + 1) for key, item in value.items()}
    if kind is list:
        try:
            return _made(value, depth)
        except (TypeError, ValueError, IndexError) as error:
            raise CodecError(f"no plain value: {error}") from error
    if hasattr(value, "dtype"):
        return value.copy()
    raise CodecError(f"a {kind.__qualname__}, which is no plain value")


def _made(value: list[Any], depth: int) -> Any:
    what = value[0]
    if type(what) is not int:
        raise CodecError("a container that doesn't say what it is")
    if what == _COMPLEX:
        real, imaginary = value[1:]
        return complex(float(real), float(imaginary))
    if what == _INTEGER:
        (digits,) = value[1:]
        return int(digits, 16)  # takes a time that grows with the length, as decimal digits don't
    if what == _SCALAR:
        (array,) = value[1:]
        if getattr(array, "shape", None) != ():
            raise CodecError("a scalar that is none")
        return array[()]
    items = [unpack(item, depth + 1) for item in value[1:]]
    if what == _PAIRS:
        return dict(zip(items[::2], items[1::2], strict=True))
    if what not in _MAKERS:
        raise CodecError(f"a container of an unknown kind, {what}")
    return _MAKERS[what](items)
