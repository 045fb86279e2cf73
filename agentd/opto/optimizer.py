"""The base of a script's optimizers, and of optimizers of its own, as in Trace.

    class Descent(Optimizer):
        def _step(self):
            return {parameter: parameter.data - 0.1 * slope(parameter.feedback) for parameter in self.parameters}

`backward` brings feedback to the parameters, in the form that the propagator gives it, and `_step` makes new values of it. The contract of
optimizers that the daemon can run is another: agentd.opto.contract.
"""

import abc
from collections.abc import Iterable, Mapping
from typing import Any

from agentd.errors import OptimizerError
from agentd.trace import Node, ParameterNode
from agentd.trace.propagators import GraphPropagator, Propagator
from agentd.trace.utils import sum_feedback

__all__ = ["Optimizer"]


class Optimizer(abc.ABC):
    """Changes `parameters` by what `backward` brought to them. Raises OptimizerError for what is no parameter."""

    def __init__(self, parameters: Iterable[ParameterNode], *, propagator: Propagator | None = None) -> None:
        self.parameters = list(parameters)
        for parameter in self.parameters:
            if not isinstance(parameter, ParameterNode):
                raise OptimizerError(f"a {type(parameter).__name__} is no parameter: make it with node(..., trainable=True)")
        self._propagator = self.default_propagator() if propagator is None else propagator

    @property
    def propagator(self) -> Propagator:
        """The rule by which feedback goes back."""
        return self._propagator

    def default_propagator(self) -> Propagator:
        """The rule where the constructor was given none."""
        return GraphPropagator()

    @property
    def trace_graph(self) -> Any:
        """What `backward` brought to all parameters, together; 0 where nothing came."""
        return sum_feedback(self.parameters)

    def zero_feedback(self) -> None:
        """Forgets the feedback."""
        for parameter in self.parameters:
            parameter.zero_feedback()

    def backward(self, node: Node[Any], feedback: Any = "", **arguments: Any) -> Any:
        """Carries `feedback` back from `node`; other arguments go to `Node.backward`."""
        arguments.setdefault("propagator", self.propagator)
        return node.backward(feedback, **arguments)

    def propose(self, *args: Any, **how: Any) -> dict[ParameterNode, Any]:
        """New values by parameter; nothing is changed. Arguments and errors are those of `_step`."""
        return self._step(*args, **how)

    @abc.abstractmethod
    def _step(self, *args: Any, **how: Any) -> dict[ParameterNode, Any]:
        """New values by parameter, made of the feedback on them."""

    def update(self, update: Mapping[ParameterNode, Any]) -> None:
        """Gives the trainable ones their new values. Raises TraceError for what bounds or choices refuse."""
        for parameter, value in update.items():
            if parameter.trainable:
                parameter._set(value)  # noqa: SLF001 - Trace's name for it

    def step(self, bypassing: bool = False, *args: Any, **how: Any) -> dict[ParameterNode, Any]:
        """Proposes (with the other arguments) and, unless `bypassing`, updates."""
        update = self.propose(*args, **how)
        if not bypassing:
            self.update(update)
        return update
