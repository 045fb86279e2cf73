"""`info` of nodes and bundles: made when asked for, so that calls don't pay for it and nobody shares it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from agentd.trace.core import AbstractNode
from agentd.trace.nodes import MessageNode
from agentd.trace.source import source_of

if TYPE_CHECKING:
    from agentd.trace.bundle import FunModule


def function_details(module: FunModule) -> dict[str, Any]:
    """What is known of a bundled function."""
    function = module._fun
    line, file = None, None
    inner = inspect.unwrap(function)
    if hasattr(inner, "__code__"):
        file = inner.__code__.co_filename
        try:
            line = source_of(function)[1]
        except OSError:
            line = None
    return {
        "fun": function,
        "fun_name": module.name,
        "doc": inspect.getdoc(function) or "",
        "signature": module._signature._inspected,
        "source": module.source,
        "line_number": line,
        "file": file,
        "error_comment": None,
        "traceback": None,
    }


def details(node: AbstractNode) -> dict[str, Any] | None:
    """What is known of the operation that made `node`; None for nodes that no operation made."""
    if not isinstance(node, MessageNode):
        return None
    operator = node._form.operator
    if operator.module is not None:
        made = function_details(operator.module)
    else:
        documentation = operator.description.partition("]")[2].strip()
        made = {"fun": operator.function, "fun_name": operator.name, "doc": documentation, "source": "", "error_comment": None}
    inner = node._extra.inner if node._extra is not None else None
    made["output"] = node._data if inner is None else inner[0]
    made["inputs"] = {"args": node.parents if inner is None else list(inner[1]), "kwargs": {}}
    made["external_dependencies"] = list(node.hidden)
    return made
