"""OptoPrime where programs of Trace look for it, and the problem of a script as plain data: for optimizers of a program's own.

class Mine(Optimizer):
def _step(self):
feedback = node_to_function_feedback(sum_feedback(self.parameters))
...  # feedback.graph, .roots, .others, .output, .documentation, .user_feedback
"""

from dataclasses import dataclass
from typing import Any

from agentd.opto.script import OptoPrime
from agentd.trace import MessageNode, Node
from agentd.trace.propagators import TraceGraph

__all__ = ["FunctionFeedback", "OptoPrime", "node_to_function_feedback"]

Shown = dict[str, tuple[Any, Any]]
"""By `py_name` the value of a node and its constraint."""


@dataclass
class FunctionFeedback:
    """What was computed, and what was said of it. `graph` holds a call as text for each computed node, with its level, in order."""

    graph: list[tuple[int, str]]
    documentation: dict[str, str]
    others: Shown
    roots: Shown
    output: Shown
    user_feedback: Any


def node_to_function_feedback(node_feedback: TraceGraph) -> FunctionFeedback:
    """`node_feedback` as data. Nodes without their parents in the graph are roots, those at its last level the output."""
    levelled = list(node_feedback.graph)
    last = levelled[-1][0] if levelled else 0
    feedback = FunctionFeedback(graph=[], documentation={}, others={}, roots={}, output={}, user_feedback=node_feedback.user_feedback)
    seen: set[Node[Any]] = set()
    for level, node in levelled:
        seen.add(node)
        shown = {node.py_name: (node.data, node.constraint)}
        if node.is_root or not isinstance(node, MessageNode) or not seen.issuperset(node.parents):
            feedback.roots |= shown
            continue
        name = _function_name(node)
        feedback.documentation[name] = node.description or ""
        inputs = ", ".join(f"{role}={each.py_name}" for role, each in node.inputs.items())
        feedback.graph.append((level, f"{node.py_name} = {name}({inputs})"))
        (feedback.output if level == last else feedback.others).update(shown)
    return feedback


def _function_name(node: MessageNode[Any]) -> str:
    """The function's name for bundles, the node's without its number for operators."""
    info = node.info
    return str(info["fun_name"]) if isinstance(info, dict) and "fun_name" in info else node.name.split(":")[0]
