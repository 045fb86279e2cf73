"""What was said of a script's outputs, to them (`output.backward(feedback)`) or through the optimizer: the cases of its next proposal.

As in Trace the parameters are asked what `backward` brought them. What goes through the optimizer is noted besides, with the graph as it is
then: a score counts even where it reaches no parameter, and any propagator may make of it what it likes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentd.errors import OptimizerError
from agentd.records import TraceGraph
from agentd.trace import Node, ParameterNode
from agentd.trace.export import export
from agentd.trace.propagation import minimal_subgraph
from agentd.trace.propagators import TraceGraph as LiveGraph
from agentd.trace.propagators.propagators import moments

__all__ = ["Case", "Told", "split_score"]


@dataclass(frozen=True, slots=True)
class Case:
    """An output with the feedback on it. `score` is NaN where there is none; `frozen` the graph as it was when it was noted."""

    score: float
    text: str
    output: Any = None
    frozen: TraceGraph | None = None

    @property
    def graph(self) -> TraceGraph | None:
        """The minimal subgraph of the output; None for words that other propagators made."""
        return self.frozen if self.frozen is not None or self.output is None else _minimal(self.output)


@dataclass(frozen=True, slots=True)
class _Noted:
    """A case that came through the optimizer, and the moments between which `backward` carried it."""

    case: Case
    begin: int
    end: int


class Told:
    """What was said since it was last forgotten, of outputs of the program with these parameters (by path)."""

    def __init__(self, parameters: Mapping[str, ParameterNode]) -> None:
        self._parameters = parameters
        self._noted: list[_Noted] = []

    def backward(self, node: Node[Any], feedback: Any, **arguments: Any) -> Any:
        """`node.backward` with `feedback`, noted. Raises OptimizerError for a score outside [0, 1], and what `Node.backward` raises."""
        score, text = split_score(feedback)
        frozen = _minimal(node)
        begin = next(moments)
        result = node.backward(text if math.isnan(score) else f"{score:g} {text}".strip(), **arguments)
        self._noted.append(_Noted(Case(score, text, node, frozen), begin, next(moments)))
        return result

    def cases(self) -> list[Case]:
        """Every case once, in the order in which they were given."""
        timed = [(noted.begin, noted.case) for noted in self._noted]
        timed.extend((moment, Case(*split_score(feedback), output)) for moment, output, feedback in self._found())
        cases = [case for _, case in sorted(timed, key=lambda item: item[0])]
        return cases or self._words()

    def forget(self) -> None:
        """Forgets it all, the parameters' feedback too."""
        self._noted.clear()
        for parameter in self._parameters.values():
            parameter.zero_feedback()

    def _items(self, parameter: ParameterNode) -> list[Any]:
        return [item for items in parameter.feedback.values() for item in items]

    def _found(self) -> list[tuple[int, Any, Any]]:
        """What the outputs were told themselves, as the parameters know it: moment, output, feedback."""
        arrived = [item for parameter in self._parameters.values() for item in self._items(parameter) if isinstance(item, LiveGraph)]
        timed = {moment: (moment, output, feedback) for graph in arrived for moment, output, feedback in graph.timed_cases}
        noted: dict[int, list[_Noted]] = {}
        for item in self._noted:
            noted.setdefault(id(item.case.output), []).append(item)
        return [
            (moment, output, feedback)
            for moment, output, feedback in timed.values()
            if not any(item.begin < moment < item.end for item in noted.get(id(output), ()))
        ]

    def _words(self) -> list[Case]:
        """What propagators of the program's own brought, where nothing else is known: without a graph, by parameter where they differ."""
        told = {}
        for path, parameter in self._parameters.items():
            words = dict.fromkeys(str(item) for item in self._items(parameter) if not isinstance(item, LiveGraph))
            if words:
                told[path] = "\n".join(words)
        if len(set(told.values())) > 1:
            return [Case(math.nan, "\n".join(f"{path}: {words}" for path, words in told.items()))]
        return [Case(math.nan, words) for words in set(told.values())]


def split_score(feedback: Any) -> tuple[float, str]:
    """Score and words of `feedback`: a number in [0, 1] is a score, (score, words) both, anything else words, with NaN for the score.

    Raises OptimizerError for (score, words) with a score outside [0, 1].
    """
    value = feedback.data if isinstance(feedback, Node) else feedback
    paired = isinstance(value, tuple) and len(value) == 2
    score, text = value if paired else (value, "")
    number = _number(score)
    if number is not None and 0.0 <= number <= 1.0:
        return number, str(text)
    if number is not None and paired:
        raise OptimizerError(f"a score is in [0, 1], not {number:g}; put other numbers in words")
    return math.nan, f"{score} {text}".strip()


def _number(value: Any) -> float | None:
    if not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):  # an array of several
        return None


def _minimal(output: Node[Any]) -> TraceGraph | None:
    whole = export((), output)
    return None if whole.output is None else minimal_subgraph(whole, whole.output)
