"""What a bundle's function used without having been given it: hidden inputs of its result."""

from __future__ import annotations

from typing import Any

from agentd.trace.context import Scope
from agentd.trace.core import AbstractNode
from agentd.trace.errors import TraceMissingInputsError
from agentd.trace.operations import unwrap


def outside(
    inputs: tuple[Any, ...], frame: Scope, detached: tuple[Any, ...], result: AbstractNode | None, *, strict_for: str | None = None
) -> tuple[AbstractNode, ...]:
    """The nodes from outside that a call used: computed with, decided by, converted, returned, or read by `.data`.

    Args:
        inputs: what the call was given, nodes and plain values.
        frame: what its function made and read.
        detached: the copies of the inputs that traceable code gets.
        result: the node that the function returned, where it did.
        strict_for: the name of a bundle that may read `.data` of no node that is not among its inputs, or within them.

    Raises TraceMissingInputsError for what such a bundle read.
    """
    known = {id(other) for other in frame.nodes}
    known.update(id(other) for other in detached)
    known.update(id(value) for value in inputs)
    found: dict[int, AbstractNode] = {}
    for inner in frame.nodes:
        for value in inner._inputs:
            if id(value) not in known and isinstance(value, AbstractNode):
                found[id(value)] = value
    touched = [*(frame.touched or ()), *(() if result is None else (result,))]
    found.update((id(other), other) for other in touched if id(other) not in known)
    read = [other for other in frame.reads or () if id(other) not in known]
    if read and strict_for is not None:
        _demand_given(inputs, [other for other in read if id(other) not in found], strict_for)
    found.update((id(other), other) for other in read)
    return tuple(found.values())


def _demand_given(inputs: tuple[Any, ...], read: list[AbstractNode], bundle: str) -> None:
    given: list[AbstractNode] = []
    unwrap([value for value in inputs if not isinstance(value, AbstractNode)], given)
    unwrap([value._data for value in inputs if isinstance(value, AbstractNode)], given)
    within = {id(other) for other in given}
    missing = {other.name: other for other in read if id(other) not in within}
    if missing:
        names = ", ".join(f"{name} = {other._data!r:.80}" for name, other in missing.items())
        raise TraceMissingInputsError(
            f"{bundle} reads nodes that are not among its inputs: {names}. Pass them, or set allow_external_dependencies."
        )
