"""Iterating over nodes: each item is a node that was computed from the container."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentd.trace.forms import Operator
from agentd.trace.nodes import MessageNode, apply, node, raise_error

_ITERATE = Operator("iterate", "[iterate] The items of x, one by one.").form(("x",))


def iterate(x: Any) -> SeqIterable:  # noqa: RET503 - raise_error does not return
    """The items of a list, tuple, text, array, range, set or dict (its keys) as nodes. Raises ExecutionError (TypeError) for others."""
    x = node(x)
    value = x._data
    if isinstance(value, list | tuple | str | bytes | range):
        return SeqIterable(x)
    if isinstance(value, dict):
        return SeqIterable(x.keys())
    if isinstance(value, set | frozenset):
        return SeqIterable(apply("to_list", x))
    if hasattr(value, "__array_interface__") and getattr(value, "ndim", None):
        return SeqIterable(x)
    if hasattr(value, "__iter__") and hasattr(value, "__len__"):  # other finite collections, such as dict views and deques
        return SeqIterable(apply("to_list", x))
    raise_error(_ITERATE, (x,), TypeError(f"cannot iterate over or unpack a {type(value).__name__}"))


class SeqIterable:
    """Iterates over a node of a sequence; each `iter` starts anew, and goes on where it is asked again (as `first, *rest = x` does)."""

    def __init__(self, wrapped_list: Any) -> None:
        self.wrapped_list = wrapped_list
        self._own = iter(self)

    def __iter__(self) -> Iterator[Any]:
        index = 0
        while index < len(self.wrapped_list._data):
            yield self.wrapped_list[index]
            index += 1

    def __next__(self) -> Any:
        return next(self._own)

    def __len__(self) -> int:
        return len(self.wrapped_list._data)


class DictIterable:
    """Iterates over a node of a dict: pairs of nodes, key and value; as SeqIterable."""

    def __init__(self, wrapped_dict: Any) -> None:
        self.wrapped_dict = wrapped_dict
        self.keys = apply("keys", wrapped_dict)
        self._own = iter(self)

    def __iter__(self) -> Iterator[tuple[MessageNode, MessageNode]]:
        index = 0
        while index < len(self.keys._data):
            key = self.keys[index]
            index += 1
            yield key, self.wrapped_dict[key]

    def __next__(self) -> tuple[MessageNode, MessageNode]:
        return next(self._own)

    def __len__(self) -> int:
        return len(self.keys._data)
