"""Containers of nodes, and of parameters."""

from __future__ import annotations

from collections import UserDict, UserList
from collections.abc import Iterable, Mapping
from typing import Any

from agentd.trace.nodes import Node, ParameterNode

RESERVED = "__agentd_"
"""Attributes whose names start so belong to the library."""


class NodeContainer:
    """Marks a class whose attributes hold nodes: apply_op and bundles look into its instances."""


class ParameterContainer(NodeContainer):
    """A container in which parameters can be found by name."""

    def parameters(self) -> list[ParameterNode]:
        """All parameters in it, also within the containers in it, each once, in order of their paths' definition."""
        from agentd.trace.parameters import find_parameters  # noqa: PLC0415 - it imports this module

        return list(find_parameters(self).values())

    def parameters_dict(self) -> dict[str, Any]:
        """The parameters and parameter containers directly in it, by name."""
        from agentd.trace.parameters import members  # noqa: PLC0415 - as above

        return {
            name: getattr(value, "parameter", value)
            for name, value in members(self)
            if isinstance(value, ParameterNode | ParameterContainer) and getattr(value, "parameter", value) is not None
        }


class Seq(UserList[Any], ParameterContainer):
    """A list of nodes: `Seq(a, b)` or `Seq([a, b])`. Parameters are also found in plain lists and dicts within."""

    def __init__(self, *args: Any) -> None:
        items: Iterable[Any] = args
        if len(args) == 1 and not isinstance(args[0], Node) and hasattr(args[0], "__len__") and hasattr(args[0], "__getitem__"):
            items = args[0]
        super().__init__(items)


class Map(UserDict[Any, Any], ParameterContainer):
    """A dict of nodes. Keys may be parameters, too."""

    def __init__(self, mapping: Mapping[Any, Any]) -> None:
        super().__init__(mapping)
