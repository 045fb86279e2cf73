"""Names, made on demand: `base:number`, counted per graph in order of creation."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentd.trace.core import AbstractNode

_MAX_BASES = 4096


class Registry:
    """The names that are taken: weakly, so that a name is free again when its node is gone."""

    def __init__(self) -> None:
        self._nodes: weakref.WeakValueDictionary[str, AbstractNode] = weakref.WeakValueDictionary()
        self._next: dict[str, int] = {}
        self._lock = threading.Lock()

    def give(self, node: AbstractNode) -> None:
        """Names `node` with the next number of its base."""
        with self._lock:
            if node._name is not None and ":" in node._name:
                return
            base = node._origin.prefix + node._base
            if len(self._next) > _MAX_BASES:
                self._next.clear()  # costs a scan for the next number, never a collision
            number = self._next.get(base, 0)
            if number and f"{base}:{0}" not in self._nodes:
                number = 0
            while (name := f"{base}:{number}") in self._nodes:
                number += 1
            self._next[base] = number + 1
            self._nodes[name] = node
            node._name = name

    def give_all(self, nodes: Iterable[AbstractNode]) -> None:
        """Names those of `nodes` that have none yet, in their order."""
        for node in nodes:
            if node._name is None or ":" not in node._name:
                self.give(node)

    def get(self, name: str) -> AbstractNode:
        """The node of that name. Raises KeyError."""
        return self._nodes[name]

    def clear(self) -> None:
        """Forgets every name; nodes keep theirs."""
        with self._lock:
            self._nodes.clear()
            self._next.clear()


root_names = Registry()
"""For parameters and for what is made outside any graph. Weak: it owns nothing."""


def give_name(node: AbstractNode) -> None:
    """Names `node`, and first those of its graph that were made before it."""
    graph = node._origin.graph() if node._origin.graph is not None else None
    if graph is None or node.trainable:
        root_names.give(node)
        return
    graph.name_nodes()
    graph.names.give(node)  # what the graph doesn't list: plain inputs that became nodes, and nodes within bundles
