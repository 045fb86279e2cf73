"""OPTO problems and memory as text for a model: the published format of OptoPrime (arXiv 2406.16218, section 3.3 and appendix).

Whatever comes from a trace or from feedback is data that a stranger may have written. A value on one line is JSON, so it can't begin a
section; longer text stands between marks that are taken out of it. Every part has a limit of its own.

What one prompt shares with the next comes first, the mark included: services that keep the beginning of a prompt need not read it again.
"""

import enum
import functools
import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from agentd import codec
from agentd.errors import CodecError
from agentd.opto.images import without_pictures
from agentd.opto.space import same
from agentd.records import Kind, MemoryEntry, NodeKind, Outcome, Parameter, Phase, Problem, TraceGraph, TraceNode, Value
from agentd.trace.folding import fold
from agentd.trace.shortening import FOLDED

_MEMORY_FEEDBACK = 500
_SHORT = 60
"""Characters of a remembered value that is shown even where it is the current one."""
_MADE = (NodeKind.MESSAGE, NodeKind.EXCEPTION)


class Section(enum.StrEnum):
    """The parts of a problem. All but the variables can be masked, as in the paper's ablations."""

    INSTRUCTION = "instruction"
    CODE = "code"
    DOCUMENTATION = "documentation"
    VARIABLES = "variables"
    CONSTRAINTS = "constraints"
    INPUTS = "inputs"
    OTHERS = "others"
    OUTPUTS = "outputs"
    FEEDBACK = "feedback"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of what is shown: characters of a value on a line, characters of a text block, lines of code and of values per case."""

    value: int = 200
    block: int = 4_000
    lines: int = 60


class Renderer:
    """Turns problems into prompt text; `mark` fences everything that was not written by the author of the prompt."""

    def __init__(self, problems: Sequence[Problem], mask: Collection[str] = (), limits: Limits | None = None) -> None:
        self._problems = tuple(problems)
        self._mask = frozenset(Section(name) for name in mask) - {Section.VARIABLES}
        self._limits = limits or Limits()
        digest = hashlib.sha256(repr([(problem.objective, problem.parameters) for problem in problems[:1]]).encode())
        self.mark = f"data-{digest.hexdigest()[:10]}"

    def problem(self, parameters: Sequence[Parameter], values: Mapping[str, Value], objective: str, memory: str = "") -> str:
        """The whole problem: what all cases share, with what is remembered, then each case.

        Memory comes before what is so now: a small model takes the feedback nearest to its answer for that on the current values.
        """
        documentation = self._section(Section.DOCUMENTATION, "\n".join(self._documentation()))
        parts = [self.shared(parameters, values, objective, documentation, memory)]
        for number, (problem, view) in enumerate(zip(self._problems, self._views, strict=True), 1):
            if len(self._problems) > 1:
                parts.append(f"## Case {number} of {len(self._problems)}")
            parts.extend(self._case(problem, view))
        return "\n\n".join(part for part in parts if part)

    def shared(self, parameters: Sequence[Parameter], values: Mapping[str, Value], objective: str, *more: str) -> str:
        """What does not depend on the runs: the task, `more` sections, the variables and their constraints."""
        parts = (
            self._section(Section.INSTRUCTION, objective),
            *more,
            self._section(Section.VARIABLES, "\n".join(self._variable(parameter, values) for parameter in parameters)),
            self._section(Section.CONSTRAINTS, "\n".join(filter(None, map(_constraint, parameters)))),
        )
        return "\n\n".join(part for part in parts if part)

    def feedback(self, problem: Problem) -> str:
        """The section with a run's score and words."""
        return self._section(Section.FEEDBACK, self._feedback(problem))

    def memory(self, entries: Sequence[MemoryEntry], parameters: Sequence[Parameter], values: Mapping[str, Value]) -> str:
        """Earlier attempts with scores and fates: what is short in full, longer values where they differ from the current ones."""
        known = {parameter.path for parameter in parameters}
        lines = []
        for entry in entries:
            tried = {path: value for path, value in entry.values.items() if path in known}
            changed = {path for path, value in tried.items() if not same(value, values.get(path))}
            named = {path: self._named(path, value) for path, value in tried.items()}
            text = "\n".join(text for path, text in named.items() if path in changed or len(text) <= _SHORT) or "(the current values)"
            lines.append(f"- {fate(entry)}\n{text}")
            if entry.feedback and Section.FEEDBACK not in self._mask:
                lines.append(f"Feedback on it:\n{self.fenced(shortened(without_pictures(entry.feedback), _MEMORY_FEEDBACK))}")
        return self._section(Section.MEMORY, "\n".join(lines))

    def fenced(self, text: str) -> str:
        """`text` between marks, shortened in the middle to the limit."""
        return f"<<{self.mark}\n{shortened(text.replace(self.mark, '(mark)'), self._limits.block)}\n{self.mark}>>"

    def _section(self, section: Section, content: str) -> str:
        return f"#{section.value.capitalize()}\n{content}" if content and section not in self._mask else ""

    def _case(self, problem: Problem, view: "_GraphView | None") -> Iterator[str]:
        if problem.instruction:
            yield self._section(Section.INSTRUCTION, self.fenced(problem.instruction))
        if view is not None:
            yield self._section(Section.CODE, self.fenced("\n".join(view.code())))
            yield self._section(Section.INPUTS, self.fenced(inputs) if (inputs := "\n".join(view.inputs())) else "")
            yield self._section(Section.OTHERS, self.fenced(others) if (others := "\n".join(view.others())) else "")
            yield self._section(Section.OUTPUTS, self.fenced(output) if (output := "\n".join(view.output())) else "")
        yield self.feedback(problem)

    @functools.cached_property
    def _views(self) -> tuple["_GraphView | None", ...]:
        """Each problem's graph, folded by structure until none of its sections has to be cut: so a long run has no longer prompt."""
        return tuple(None if problem.graph is None else self._view(problem, problem.graph) for problem in self._problems)

    def _view(self, problem: Problem, graph: TraceGraph) -> "_GraphView":
        paths = {parameter.path for parameter in problem.parameters}

        def size(folded: TraceGraph) -> int:
            return _GraphView(folded, paths, self._limits).size()

        return _GraphView(fold(graph, problem.rewards, budget=self._limits.block, size=size), paths, self._limits)

    def _feedback(self, problem: Problem) -> str:
        feedback = problem.feedback
        facts = [] if math.isnan(feedback.normalised) else [f"Score: {feedback.normalised:.4g} (0 is worst, 1 is best)"]
        if problem.outcome is not Outcome.FINISHED:
            facts.append(f"the run was {problem.outcome.value}")
        facts.extend(f"{_word(name)} = {value:.4g}" for name, value in feedback.metrics.items())
        words = [self.fenced(without_pictures(feedback.text))] if feedback.text else []
        return "\n".join(filter(None, ("; ".join(facts), *words)))

    def _documentation(self) -> Iterator[str]:
        seen: set[str] = set()
        for view in self._views:
            for name, function in (view.graph.functions if view is not None else {}).items():
                if name not in seen and (function.documentation or function.source):
                    seen.add(name)
                    said = "" if function.documentation.strip() in function.source else function.documentation
                    text = "\n".join(filter(None, (said, function.source)))
                    yield f"[{_operator(name)}]\n{self.fenced(text)}"

    def _variable(self, parameter: Parameter, values: Mapping[str, Value]) -> str:
        return self._named(parameter.path, values.get(parameter.path, parameter.default), f"({type_name(parameter)}) ")

    def _named(self, path: str, value: Value, prefix: str = "") -> str:
        if isinstance(value, str) and ("\n" in value or len(value) > self._limits.value):
            return f"{prefix}{path} =\n{self.fenced(value)}"
        return f"{prefix}{path} = {shown(value, self._limits.block)}"


class _GraphView:
    """A trace graph as lines: what computed what, and the values."""

    def __init__(self, graph: TraceGraph, paths: Collection[str], limits: Limits) -> None:
        self.graph = graph
        self._paths = paths
        self._limits = limits
        self._names = self._unique_names()
        self._output = graph.output if graph.output is not None else len(graph.nodes) - 1

    def code(self) -> Iterator[str]:
        yield from (self._call(index, node) for index, node in enumerate(self.graph.nodes) if node.kind in _MADE)
        if self.graph.dropped_nodes:
            yield f"... ({self.graph.dropped_nodes} more were not recorded)"

    def inputs(self) -> Iterator[str]:
        nodes = enumerate(self.graph.nodes)
        yield from (self._value(index, node) for index, node in nodes if node.kind is NodeKind.INPUT or self._is_foreign(node))

    def others(self) -> Iterator[str]:
        nodes = enumerate(self.graph.nodes)
        yield from (self._value(index, node) for index, node in nodes if node.kind in _MADE and index != self._output)

    def output(self) -> Iterator[str]:
        if 0 <= self._output < len(self.graph.nodes):
            yield self._value(self._output, self.graph.nodes[self._output])

    def size(self) -> int:
        """Characters of the longest section; too many lines count as too many characters."""
        sections = [[*section()] for section in (self.code, self.inputs, self.others)]
        return max(max(sum(map(len, lines)) + len(lines), len(lines) * self._limits.block // self._limits.lines) for lines in sections)

    def _is_foreign(self, node: TraceNode) -> bool:
        return node.kind is NodeKind.PARAMETER and node.path not in self._paths

    def _call(self, index: int, node: TraceNode) -> str:
        arguments = [
            f"{_word(role)}={self._names[parent]}" if role else self._names[parent]
            for role, parent in zip((*node.arguments, *[""] * len(node.parents)), node.parents, strict=False)
            if 0 <= parent < len(self._names)
        ]
        return f"{self._names[index]} = {_operator(node.operator or node.name)}({', '.join(arguments)})"

    def _value(self, index: int, node: TraceNode) -> str:
        limit = max(self._limits.value, self._limits.block // 2) if node.operator == FOLDED else self._limits.value  # figures of many ticks
        return f"({_type_of(node.value)}) {self._names[index]} = {shown(node.value, limit)}"

    def _unique_names(self) -> list[str]:
        names: list[str] = []
        taken: set[str] = set()
        for index, node in enumerate(self.graph.nodes):
            name = node.path if node.kind is NodeKind.PARAMETER and node.path in self._paths and node.path is not None else _word(node.name)
            if name in taken:
                name = f"{name}_{index}"
            taken.add(name)
            names.append(name)
        return names


def chosen_memory(memory: Sequence[MemoryEntry], regime: int, count: int) -> list[MemoryEntry]:
    """What is worth showing of this regime, oldest first; each set of values once, with its last fate.

    The best half, what was rolled back, since it looked good once, and the most recent.
    """
    latest: list[MemoryEntry] = []
    for entry in reversed([entry for entry in memory if entry.regime == regime]):
        if not any(same(entry.values, other.values) for other in latest):
            latest.append(entry)
    best = sorted((entry for entry in latest if entry.mean is not None), key=lambda entry: -(entry.mean or 0.0))[: (count + 1) // 2]
    others = sorted((entry for entry in latest if entry not in best), key=lambda entry: entry.fate != Phase.ROLLED_BACK)
    chosen = [*best, *others[: max(0, count - len(best))]]
    return [entry for entry in reversed(latest) if entry in chosen]


def type_name(parameter: Parameter) -> str:
    """What a parameter holds, in a word."""
    if parameter.kind is Kind.NUMBER:
        return "int" if parameter.integer else "float"
    return {Kind.TEXT: "str", Kind.BOOLEAN: "bool", Kind.CHOICE: "choice", Kind.CODE: "code"}.get(parameter.kind, "json")


def shown(value: Value, limit: int) -> str:
    """`value` on one line, as JSON where it has such a form, shortened to `limit` characters."""
    try:
        text = json.dumps(codec.to_builtins(value), ensure_ascii=False)
    except (TypeError, ValueError, CodecError, RecursionError):
        text = json.dumps(repr(value), ensure_ascii=False)
    return shortened(re.sub(r"[\x00-\x1f\x7f\u0085\u2028\u2029]", " ", text), limit)


def shortened(text: str, limit: int) -> str:
    """`text` with its middle left out when it is longer than `limit`."""
    if len(text) <= limit:
        return text
    left_out = f" ... ({len(text) - limit} characters left out) ... "
    return text[: limit * 2 // 3] + left_out + text[len(text) - limit // 3 :]


def _constraint(parameter: Parameter) -> str:
    parts = []
    if parameter.description:
        parts.append(shortened(" ".join(parameter.description.split()), 500))
    if parameter.constraint:
        parts.append(shortened(" ".join(parameter.constraint.split()), 500))
    if parameter.bounds is not None:
        low, high = parameter.bounds
        parts.append(f"between {'-inf' if low is None else f'{low:g}'} and {'inf' if high is None else f'{high:g}'}")
    if parameter.choices is not None:
        parts.append("one of " + ", ".join(shown(choice, 100) for choice in parameter.choices))
    if parameter.signature:
        parts.append(f"one function that keeps its signature: {parameter.signature}")
    return f"{parameter.path}: {'; '.join(parts)}" if parts else ""


def fate(entry: MemoryEntry) -> str:
    """What became of an attempt, on one line."""
    score = "not scored" if entry.mean is None else f"score {entry.mean:.4g}"
    difference = "" if entry.difference is None else f", {entry.difference:+.4g} against the version then current ({entry.pairs} pairs)"
    reason = f": {shown(entry.reason, 300)}" if entry.reason else ""
    return f"{_word(entry.fate)}{reason} ({score}{difference})"


def _type_of(value: Value) -> str:
    return {str: "str", bool: "bool", int: "int", float: "float", list: "list", tuple: "list", dict: "dict", type(None): "None"}.get(
        type(value), "array" if hasattr(value, "shape") else "object"
    )


def _operator(name: str) -> str:
    """The library's own operators, such as `(folded)`, without their brackets."""
    return _word(name.strip("()"))


def _word(text: str) -> str:
    """A name that can't be mistaken for anything else: letters, digits, dots and underscores, at most 60."""
    return re.sub(r"[^\w.]+", "_", text)[:60] or "_"
