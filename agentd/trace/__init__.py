"""Tracing: ordinary Python remembers what was computed from what, so that feedback on a result can find the parameters behind it.

    from agentd.trace import bundle, model, node

A program written for Trace (`opto.trace`) runs with `agentd.trace` in its place; docs/trace-compatibility.md lists what differs.
"""

from agentd.trace import operators, propagators
from agentd.trace.broadcast import apply_op
from agentd.trace.bundle import FunModule, bundle
from agentd.trace.containers import Map, NodeContainer, ParameterContainer, Seq
from agentd.trace.context import name_scope, stop_tracing, submit
from agentd.trace.errors import BackwardError, ExecutionError, TraceMissingInputsError
from agentd.trace.graph import GRAPH, Graph
from agentd.trace.host import Host, hosted
from agentd.trace.iterators import iterate
from agentd.trace.modules import Module, model
from agentd.trace.nodes import ExceptionNode, MessageNode, Node, ParameterNode, node
from agentd.trace.operators import acall_llm, call_llm

__all__ = [
    "GRAPH",
    "BackwardError",
    "ExceptionNode",
    "ExecutionError",
    "FunModule",
    "Graph",
    "Host",
    "Map",
    "MessageNode",
    "Module",
    "Node",
    "NodeContainer",
    "ParameterContainer",
    "ParameterNode",
    "Seq",
    "TraceMissingInputsError",
    "acall_llm",
    "apply_op",
    "bundle",
    "call_llm",
    "hosted",
    "iterate",
    "model",
    "name_scope",
    "node",
    "operators",
    "propagators",
    "stop_tracing",
    "submit",
]
