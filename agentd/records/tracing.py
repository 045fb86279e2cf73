"""The trace graph: what a program and its environment computed in one episode."""

import enum

import msgspec

from agentd.records.base import Record, Value


class NodeKind(enum.StrEnum):
    """What a node of a trace graph is."""

    PARAMETER = "parameter"
    INPUT = "input"
    MESSAGE = "message"
    EXCEPTION = "exception"


class TraceNode(msgspec.Struct, frozen=True, array_like=True):
    """One node of an exported graph. Its id is its position in `TraceGraph.nodes`; parents always come before children.

    `value` is a summary within limits (see agentd.trace.export). `operator` names what made it (`add`, `environment_step`, a bundle's
    name), and is a key of `TraceGraph.functions` where there is more to say. `arguments` names the parents' roles, in order.
    """

    name: str
    kind: NodeKind
    operator: str = ""
    parents: tuple[int, ...] = ()
    arguments: tuple[str, ...] = ()
    value: Value = None
    description: str = ""
    path: str | None = None


class TraceFunction(msgspec.Struct, frozen=True, array_like=True):
    """What is known of an operator: its documentation and, for bundles, its source."""

    documentation: str = ""
    source: str = ""


class TraceGraph(Record, frozen=True):
    """What a program and its environment computed in one episode: a DAG in topological order. Versioned and immutable."""

    version: int = 1
    nodes: tuple[TraceNode, ...] = ()
    functions: dict[str, TraceFunction] = {}
    output: int | None = None
    dropped_nodes: int = 0
