"""What feedback becomes on its way back: the minimal subgraph with the feedback on it, a sum, or what a program registers.

The modules within have the names that Trace gives them.
"""

from agentd.trace.propagators.graph_propagator import GraphPropagator, TraceGraph
from agentd.trace.propagators.propagators import AbstractFeedback, AbstractPropagator, Propagator, SumPropagator

__all__ = ["AbstractFeedback", "AbstractPropagator", "GraphPropagator", "Propagator", "SumPropagator", "TraceGraph"]
