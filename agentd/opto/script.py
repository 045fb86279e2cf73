"""Optimizers for scripts and notebooks, used as in Trace.

    optimizer = OptoPrime(agent.parameters())
    for case in cases:
        answer = agent(case.question)
        optimizer.zero_feedback()
        optimizer.backward(answer, feedback(answer.data, case))
        optimizer.step()

A thin wrapper around the optimizers of the daemon: memory is kept in the object, and what a model costs is added up in `dollars`. It also
works inside a running event loop (Jupyter): the work is then done in a thread with a loop of its own.
"""

import math
import random
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from agentd.errors import BudgetExhausted, ModelError, OptimizerError
from agentd.opto.contract import OptimizerContext
from agentd.opto.factory import OPTIONS, make_optimizer
from agentd.opto.optimizer import Optimizer
from agentd.opto.rendering import Section
from agentd.opto.script_models import SCRIPT, UNLIMITED, Listener, model_names, opened, run
from agentd.opto.space import same
from agentd.opto.told import Case, Told
from agentd.records import Feedback, MemoryEntry, Parameter, Problem, Proposal, Value
from agentd.trace import Node, ParameterNode
from agentd.trace.parameters import assign, describe, plain

__all__ = ["OPRO", "Hybrid", "OptoPrime", "OptoPrimeMulti", "Search", "TextGrad"]

Selector = Callable[[list[dict[ParameterNode, Any]]], dict[ParameterNode, Any]]

_OF_TRACE = {"highlight_variables", "include_example", "json_keys", "prompt_symbols", "use_json_object_format"}
"""Options of Trace's prompts, which agentd words itself: accepted, without effect."""
_OF_AUTOGEN = {"config_list", "filter_dict"}


class ScriptOptimizer(Optimizer):
    """What the optimizers of this module share.

    `parameters` are trainable nodes. `llm` is a litellm model name, several in order of preference, an object with `complete` (Llm), or a
    callable as Trace's models are (`llm(messages=..., ...)` returning an OpenAI-like response); without one AGENTD_MODELS or
    TRACE_LITELLM_MODEL names the model. `memory_size` is how many earlier attempts a model sees. Scores are in [0, 1], 1 is best.
    `ignore_extraction_error` False raises DecodingError where an answer can't be used, instead of a warning. Other keyword arguments are
    the optimizer's options. Raises OptimizerError for options that do not exist, and where nothing is trainable.

    `log` has an entry of texts for each proposal: "system_prompt", "user_prompt", "response", "feedback", and "exchange", which is all that
    was said where the model was asked again; None where `log` is False.
    """

    algorithm = ""
    default_objective = "Improve #Outputs in accordance with #Feedback."

    def __init__(
        self,
        parameters: Iterable[ParameterNode],
        llm: Any = None,
        *,
        propagator: Any = None,
        objective: str | None = "",
        memory_size: int = 10,
        seed: int = 0,
        allowed_imports: Iterable[str] | None = None,
        ignore_extraction_error: bool = True,
        log: bool = True,
        **options: Value,
    ) -> None:
        super().__init__((parameter for parameter in parameters if parameter.trainable), propagator=propagator)
        if not self.parameters:
            raise OptimizerError("there is no trainable parameter")
        for name in options:
            if name in _OF_AUTOGEN:
                warnings.warn(f"{name} has no effect, as in Trace: `llm` names the model", RuntimeWarning, stacklevel=2)
            elif name not in OPTIONS | _OF_TRACE:
                raise OptimizerError(f"there is no option {name!r}; there are {', '.join(sorted(OPTIONS))}")
        self.objective = objective or ""
        self.dollars = 0.0
        self.last: Proposal | None = None
        self._proposed: dict[str, Value] = {}
        self._author: Proposal | None = None
        self.log: list[dict[str, str]] | None = [] if log else None
        self._llm = llm
        self._memory_size = memory_size
        self._seeds = random.Random(seed)  # noqa: S311 - not a secret; the seed makes a run repeatable
        self._allowed_imports = tuple(allowed_imports) if allowed_imports is not None else None
        self._ignore_extraction_error = ignore_extraction_error
        self._options = {name: value for name, value in options.items() if name in OPTIONS}
        self._named = _named(self.parameters)
        self._records: dict[str, Parameter] = {path: describe(path, parameter) for path, parameter in self._named.items()}
        self._told = Told(self._named)
        self._memory: list[MemoryEntry] = []

    @property
    def named(self) -> Mapping[str, ParameterNode]:
        """The parameters by path."""
        return self._named

    # --- as in Trace ---

    def zero_feedback(self) -> None:
        """Forgets the feedback since the last update; what was scored stays in memory."""
        self._told.forget()

    def backward(self, node: Node[Any], feedback: Any = "", **arguments: Any) -> Any:
        """Takes `feedback` on `node`: text, a score in [0, 1], or (score, text). Other arguments go to `Node.backward`.

        `node.backward(feedback)` feeds the next proposal as well.
        """
        arguments.setdefault("propagator", self.propagator)
        return self._told.backward(node, feedback, **arguments)

    def _step(self, *, verbose: bool | str = False, mask: Iterable[str] | None = None) -> dict[ParameterNode, Any]:
        """New values by parameter, empty where nothing usable came (with a warning). Raises ModelError and BudgetExhausted.

        `verbose` prints what the model was asked and what it answered, "output" only the answer. `mask` names sections of the problem
        ("#Code") that are left out this time.
        """
        return self._propose(self._options if mask is None else {**self._options, "mask": _sections(mask)}, verbose=verbose)

    def update(self, update: Mapping[ParameterNode, Any]) -> None:
        """Gives the parameters their new values. Raises TraceError as `assign` does.

        What the old values were worth goes to memory; the feedback on them is then forgotten, as it says nothing of the new ones.
        """
        entry = self._evaluated(self._present())
        for parameter, value in update.items():
            assign(parameter, value)
        self._author = self.last if same(self._present(), self._proposed) else None
        if update:
            if entry is not None:
                self._memory.append(entry)
            self._told.forget()

    # --- inside ---

    def _present(self) -> dict[str, Value]:
        return {path: plain(parameter.data, path) for path, parameter in self._named.items()}

    def _propose(self, options: dict[str, Value], *, verbose: bool | str) -> dict[ParameterNode, Any]:
        values = self._present()
        base, memory = self._base(values)
        context = OptimizerContext(
            agent=SCRIPT,
            stable=SCRIPT,
            parameters=tuple(self._records.values()),
            values=base,
            objective=self.objective,
            algorithm=self.algorithm,
            models=model_names(self._llm),
            history=self._memory_size,
            allowed_imports=self._allowed_imports,
            budget=UNLIMITED,
            options=options,
            at=float(len(self._memory)),
        )
        problems = [
            Problem(
                episode=record.episode,
                objective=self.objective,
                parameters=context.parameters,
                values=values,
                feedback=record,
                graph=case.graph,
            )
            for case, record in self._cases()
        ]
        try:
            self.last = run(self._ask(context, problems, memory, verbose))
        except (ModelError, BudgetExhausted):
            raise
        except OptimizerError as error:
            if not self._ignore_extraction_error:
                raise
            warnings.warn(f"no usable proposal: {error}", RuntimeWarning, stacklevel=5)
            return {}
        self.dollars += self.last.dollars
        proposed = {**base, **self.last.values}
        self._proposed = proposed
        return {parameter: proposed[path] for path, parameter in self._named.items() if not same(proposed[path], values[path])}

    def _cases(self) -> Iterator[tuple[Case, Feedback]]:
        """The cases at hand, each with its feedback as a record."""
        for number, case in enumerate(self._told.cases()):
            name = f"case-{len(self._memory) * 1000 + number}"
            yield case, Feedback(episode=name, score=case.score, normalised=case.score, text=case.text)

    def _base(self, values: dict[str, Value]) -> tuple[dict[str, Value], list[MemoryEntry]]:
        """The values to start from, and the memory of others."""
        return values, self._memory

    def _evaluated(self, values: dict[str, Value]) -> MemoryEntry | None:
        """What the cases at hand say of the present values."""
        cases = self._told.cases()
        if not cases:
            return None
        scores = [case.score for case in cases if not math.isnan(case.score)]
        return MemoryEntry(
            proposal=f"attempt-{len(self._memory)}",
            values=values,
            fate="tried",
            mean=statistics.fmean(scores) if scores else None,
            algorithm=self._author.algorithm if self._author is not None else "",
            feedback="\n".join(case.text for case in cases if case.text),
            notes=self._author.notes if self._author is not None else {},
        )

    async def _ask(self, context: OptimizerContext, problems: list[Problem], memory: list[MemoryEntry], verbose: bool | str) -> Proposal:
        seed = self._seeds.randrange(2**31)
        async with opened(self._llm) as llm:
            listener = Listener(llm, verbose)
            try:
                return await make_optimizer(context, listener).propose(problems, memory, seed)
            finally:
                if self.log is not None and listener.entry:
                    feedback = "\n".join(problem.feedback.text for problem in problems if problem.feedback.text)
                    self.log.append({**listener.entry, "feedback": feedback})


class OptoPrime(ScriptOptimizer):
    """OptoPrime for scripts; see agentd.opto.algorithms.optoprime."""

    algorithm = "optoprime"


class OptoPrimeMulti(OptoPrime):
    """OptoPrime with several answers, each asked for at its own temperature, falling over the range. `selector` takes one, or the last is.

    `candidates` are the answers as {parameter: value}, empty for one that can't be used; `selected_candidate` is the one taken.
    """

    def __init__(
        self,
        parameters: Iterable[ParameterNode],
        llm: Any = None,
        *,
        num_responses: int = 5,
        temperature_range: Sequence[float] | None = None,
        selector: Selector | None = None,
        **options: Any,
    ) -> None:
        super().__init__(parameters, llm, **options)
        self.num_responses = num_responses
        self.temperature_range = (1.0, 0.0) if temperature_range is None else temperature_range
        self.selector = selector
        self.candidates: list[dict[ParameterNode, Any]] = []
        self.selected_candidate: dict[ParameterNode, Any] | None = None

    def _step(
        self,
        *,
        verbose: bool | str = False,
        mask: Iterable[str] | None = None,
        num_responses: int | None = None,
        temperature_range: Sequence[float] | None = None,
        selector: Selector | None = None,
    ) -> dict[ParameterNode, Any]:
        """As OptoPrime's; the last three replace what was set at construction, this time."""
        count = self.num_responses if num_responses is None else num_responses
        span = self.temperature_range if temperature_range is None else temperature_range
        options = self._options if mask is None else {**self._options, "mask": _sections(mask)}
        fall = (max(span) - min(span)) / max(1, count - 1)
        self.candidates = [self._propose({**options, "temperature": max(span) - number * fall}, verbose=verbose) for number in range(count)]
        select = selector or self.selector or _last
        self.selected_candidate = select(self.candidates)
        return self.selected_candidate


class OPRO(ScriptOptimizer):
    """OPRO for scripts; see agentd.opto.algorithms.opro."""

    algorithm = "opro"


class TextGrad(ScriptOptimizer):
    """TextGrad for scripts; see agentd.opto.algorithms.textgrad."""

    algorithm = "textgrad"


class Search(ScriptOptimizer):
    """Search for scripts; needs scores, starts from the best values so far; see agentd.opto.search."""

    algorithm = "search"

    def _base(self, values: dict[str, Value]) -> tuple[dict[str, Value], list[MemoryEntry]]:
        entry = self._evaluated(values)
        entries = [*self._memory, entry] if entry is not None else self._memory
        scored = [entry for entry in entries if entry.mean is not None]
        if entries and not scored and self.algorithm == Search.algorithm:
            raise OptimizerError("search needs scores: give feedback as a number in [0, 1], or as (score, words)")
        return (max(scored, key=lambda entry: entry.mean or 0.0).values if scored else values), entries


class Hybrid(Search):
    """Hybrid for scripts; see agentd.opto.hybrid."""

    algorithm = "hybrid"


def _named(parameters: Iterable[ParameterNode]) -> dict[str, ParameterNode]:
    """Parameters by path, or by name where they have none. The path is noted on the node, so that an exported graph shows it."""
    named: dict[str, ParameterNode] = {}
    for parameter in parameters:
        path = parameter.path or parameter.name.partition(":")[0]
        if path in named and named[path] is not parameter:
            path = f"{path}_{len(named)}"
        named[path] = parameter
        parameter._more().path = path  # noqa: SLF001 - find_parameters notes it the same way
    return named


def _sections(mask: Iterable[str]) -> list[Value]:
    """Sections by Trace's names (`#Code`). Raises OptimizerError for what is none."""
    known = {f"#{section.value.capitalize()}": section.value for section in Section}
    names = list(mask)
    for name in names:
        if name not in known:
            raise OptimizerError(f"there is no section {name!r}; there are {', '.join(known)}")
    return [known[name] for name in names]


def _last(candidates: Sequence[dict[ParameterNode, Any]]) -> dict[ParameterNode, Any]:
    return candidates[-1] if candidates else {}
