"""The errors of traced programs."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from agentd.errors import TraceError

if TYPE_CHECKING:
    from agentd.trace.nodes import ExceptionNode

_UNCOMBINABLE = (StopIteration, StopAsyncIteration)  # mean something else to generators than an error


class ExecutionError(TraceError):
    """A traced operation raised. `exception_node` is its place in the graph: `exception_node.backward(...)` explains it to an optimizer.

    What is raised is also an instance of the original error's class, so that `except ZeroDivisionError` works on traced code
    as it does on plain code; `__cause__` is the original error.
    """

    def __init__(self, exception_node: ExceptionNode) -> None:
        self.exception_node = exception_node
        super().__init__(exception_node._data)

    def __str__(self) -> str:
        return str(self.exception_node.create_feedback("full"))


class TraceMissingInputsError(TraceError):
    """A bundle's function read a node that it was not given, and `allow_external_dependencies` is off."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


class BackwardError(TraceError, AttributeError):
    """`backward` on what has been propagated already. An AttributeError too, because Trace raises that."""


@functools.lru_cache(maxsize=256)
def _combined(kind: type[Exception]) -> type[ExecutionError]:
    if issubclass(kind, ExecutionError):
        return kind  # of a bundle that was called within: already combined
    if issubclass(kind, _UNCOMBINABLE):
        return ExecutionError
    try:
        return type("ExecutionError", (ExecutionError, kind), {"__module__": __name__})
    except TypeError:  # a class that can't be a base
        return ExecutionError


def execution_error(exception_node: ExceptionNode, cause: Exception) -> ExecutionError:
    """The ExecutionError to raise for `cause`, with the attributes that it has."""
    kind = _combined(type(cause))  # type: ignore[arg-type]  # classes are hashable
    try:
        made = kind(exception_node)
    except TypeError:  # its constructor wants more
        try:
            made = kind.__new__(kind, exception_node._data)
            made.exception_node = exception_node
        except TypeError:
            made = ExecutionError(exception_node)
    for name, value in vars(cause).items():
        vars(made).setdefault(name, value)
    return made
