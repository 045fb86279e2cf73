"""`apply_op`: an operator over containers of nodes, item by item."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from agentd.errors import TraceError
from agentd.trace.containers import NodeContainer
from agentd.trace.nodes import Node


def recursive_conversion(true_func: Callable[[Node], Any], false_func: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function that applies `true_func` to the nodes in (nested) containers and `false_func` to everything else."""

    def convert(value: Any) -> Any:
        if isinstance(value, Node):
            return true_func(value)
        if isinstance(value, tuple | list | set | frozenset):
            return type(value)(convert(item) for item in value)
        if isinstance(value, dict):
            return {key: convert(item) for key, item in value.items()}
        if isinstance(value, NodeContainer):
            made = copy.copy(value)
            for name, item in vars(value).items():
                setattr(made, name, convert(item))
            return made
        return false_func(value)

    return convert


def apply_op(op: Callable[..., Any], output: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: C901 - a branch per kind of container
    """Applies `op` to nodes or to containers of nodes of the same shape as `output`, which is filled (a tuple is made anew) and returned.

    A node among the inputs is used for every item. Raises TraceError for containers of another type or length.
    """
    inputs = [*args, *kwargs.values()]
    if all(isinstance(value, Node) for value in inputs):
        return op(*args, **kwargs)
    for value in inputs:
        if not isinstance(value, Node) and type(value) is not type(output):
            raise TraceError(f"apply_op needs nodes or containers like its output, a {type(output).__name__}, not a {type(value).__name__}")

    def picked(pick: Callable[[Any], Any]) -> tuple[list[Any], dict[str, Any]]:
        return (
            [value if isinstance(value, Node) else pick(value) for value in args],
            {key: value if isinstance(value, Node) else pick(value) for key, value in kwargs.items()},
        )

    if isinstance(output, list | tuple):
        lengths = {len(value) for value in inputs if not isinstance(value, Node)}
        if lengths != {len(output)}:
            raise TraceError(f"apply_op got containers of lengths {sorted(lengths)} for an output of length {len(output)}")
        made = []
        for index, item in enumerate(output):
            arguments, keywords = picked(lambda value, index=index: value[index])  # type: ignore[misc]  # bound now
            made.append(apply_op(op, item, *arguments, **keywords))
        if isinstance(output, tuple):
            return tuple(made)
        output[:] = made
    elif isinstance(output, dict):
        for key, item in output.items():
            arguments, keywords = picked(lambda value, key=key: value[key])  # type: ignore[misc]  # bound now
            output[key] = apply_op(op, item, *arguments, **keywords)
    elif isinstance(output, NodeContainer):
        for name, item in vars(output).items():
            arguments, keywords = picked(lambda value, name=name: getattr(value, name))  # type: ignore[misc]  # bound now
            setattr(output, name, apply_op(op, item, *arguments, **keywords))
    return output
