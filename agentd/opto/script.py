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

import asyncio
import math
import os
import random
import statistics
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from agentd.clock import SystemClock
from agentd.errors import BudgetExhausted, ModelError, OptimizerError
from agentd.opto.budget import Ledger
from agentd.opto.contract import BudgetLimits, Llm, LlmReply, LlmRequest, OptimizerContext
from agentd.opto.factory import make_optimizer
from agentd.opto.llm import LitellmClient, LlmSettings
from agentd.opto.space import same
from agentd.records import Feedback, MemoryEntry, Parameter, Problem, Proposal, TraceGraph, Value
from agentd.trace import Node, ParameterNode
from agentd.trace.export import export
from agentd.trace.parameters import assign, describe, plain
from agentd.trace.propagation import minimal_subgraph

__all__ = ["OPRO", "Hybrid", "OptoPrime", "Search", "TextGrad"]

_AGENT = "script"
_MODEL_VARIABLES = ("AGENTD_MODELS", "TRACE_LITELLM_MODEL")
_UNLIMITED = BudgetLimits(dollars_per_day=None, calls_per_hour=None, tokens_per_proposal=None)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Case:
    """One output with the feedback on it."""

    graph: TraceGraph | None
    feedback: Feedback


class ScriptOptimizer:
    """What the optimizers of this module share.

    `parameters` are trainable nodes. `llm` is a litellm model name, several in order of preference, an object with `complete` (Llm), or a
    callable as Trace's models are (`llm(messages=..., ...)` returning an OpenAI-like response); without one AGENTD_MODELS or
    TRACE_LITELLM_MODEL names the model. `memory_size` is how many earlier attempts a model sees. Scores are in [0, 1], 1 is best. Other
    keyword arguments are the optimizer's options.
    """

    algorithm = ""

    def __init__(
        self,
        parameters: Iterable[ParameterNode],
        llm: Any = None,
        *,
        propagator: Any = None,
        objective: str = "",
        memory_size: int = 10,
        seed: int = 0,
        allowed_imports: Iterable[str] | None = None,
        **options: Value,
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.trainable]
        if not self.parameters:
            raise OptimizerError("there is no trainable parameter")
        self.propagator = propagator
        self.objective = objective
        self.dollars = 0.0
        self.last: Proposal | None = None
        self._llm = llm
        self._memory_size = memory_size
        self._seeds = random.Random(seed)  # noqa: S311 - not a secret; the seed makes a run repeatable
        self._allowed_imports = tuple(allowed_imports) if allowed_imports is not None else None
        self._options = options
        self._named = _named(self.parameters)
        self._records: dict[str, Parameter] = {path: describe(path, parameter) for path, parameter in self._named.items()}
        self._cases: list[_Case] = []
        self._memory: list[MemoryEntry] = []

    @property
    def named(self) -> Mapping[str, ParameterNode]:
        """The parameters by path."""
        return self._named

    # --- as in Trace ---

    def zero_feedback(self) -> None:
        """Forgets the feedback since the last step; what was scored stays in memory."""
        self._cases.clear()
        for parameter in self.parameters:
            parameter.zero_feedback()

    def backward(self, node: Node[Any], feedback: Any = "", **arguments: Any) -> Any:
        """Takes `feedback` on `node`: text, a score in [0, 1], or (score, text). Other arguments go to `Node.backward`."""
        score, text = _split(feedback)
        whole = export((), node)
        graph = minimal_subgraph(whole, whole.output) if whole.output is not None else None
        number = len(self._memory) * 1000 + len(self._cases)
        record = Feedback(episode=f"case-{number}", score=score, normalised=score, text=text)
        self._cases.append(_Case(graph, record))
        arguments.setdefault("propagator", self.propagator)
        return node.backward(text if math.isnan(score) else f"{score:g} {text}".strip(), **arguments)

    def propose(self, *, verbose: bool = False) -> dict[ParameterNode, Any]:
        """New values by parameter, empty where nothing usable came (with a warning). Raises ModelError and BudgetExhausted."""
        values = {path: plain(parameter.data, path) for path, parameter in self._named.items()}
        base, memory = self._base(values)
        context = OptimizerContext(
            agent=_AGENT,
            stable="script",
            parameters=tuple(self._records.values()),
            values=base,
            objective=self.objective,
            algorithm=self.algorithm,
            models=_models(self._llm),
            history=self._memory_size,
            allowed_imports=self._allowed_imports,
            budget=_UNLIMITED,
            options=self._options,
            at=float(len(self._memory)),
        )
        problems = [
            Problem(
                episode=case.feedback.episode,
                objective=self.objective,
                parameters=context.parameters,
                values=values,
                feedback=case.feedback,
                graph=case.graph,
            )
            for case in self._cases
        ]
        try:
            self.last = _run(self._ask(context, problems, memory))
        except (ModelError, BudgetExhausted):
            raise
        except OptimizerError as error:
            warnings.warn(f"no usable proposal: {error}", RuntimeWarning, stacklevel=2)
            return {}
        self.dollars += self.last.dollars
        if verbose:
            print(self.last.exchange or self.last.reasoning)  # noqa: T201 - asked for
        proposed = {**base, **self.last.values}
        return {parameter: proposed[path] for path, parameter in self._named.items() if not same(proposed[path], values[path])}

    def update(self, update: Mapping[ParameterNode, Any]) -> None:
        """Gives the parameters their new values; what the old ones were worth goes to memory. Raises TraceError as `assign` does."""
        entry = self._evaluated({path: plain(parameter.data, path) for path, parameter in self._named.items()})
        for parameter, value in update.items():
            assign(parameter, value)
        if entry is not None and update:
            self._memory.append(entry)
            self._cases.clear()

    def step(self, bypassing: bool = False, *, verbose: bool = False) -> dict[ParameterNode, Any]:
        """Proposes and, unless `bypassing`, updates."""
        update = self.propose(verbose=verbose)
        if not bypassing:
            self.update(update)
        return update

    # --- inside ---

    def _base(self, values: dict[str, Value]) -> tuple[dict[str, Value], list[MemoryEntry]]:
        """The values to start from, and the memory of others."""
        return values, self._memory

    def _evaluated(self, values: dict[str, Value]) -> MemoryEntry | None:
        """What the cases at hand say of the present values."""
        if not self._cases:
            return None
        scores = [case.feedback.normalised for case in self._cases if not math.isnan(case.feedback.normalised)]
        return MemoryEntry(
            proposal=f"attempt-{len(self._memory)}",
            values=values,
            fate="tried",
            mean=statistics.fmean(scores) if scores else None,
            algorithm=self.algorithm,
            feedback="\n".join(case.feedback.text for case in self._cases if case.feedback.text),
        )

    async def _ask(self, context: OptimizerContext, problems: list[Problem], memory: list[MemoryEntry]) -> Proposal:
        seed = self._seeds.randrange(2**31)
        given = self._llm
        if given is None or isinstance(given, str | list | tuple):
            ledger = Ledger()
            ledger.limit(_AGENT, _UNLIMITED)
            async with LitellmClient(LlmSettings(models=context.models), ledger, SystemClock()) as client:
                return await make_optimizer(context, client).propose(problems, memory, seed)
        llm: Llm = given if hasattr(given, "complete") else _Callable(given)
        return await make_optimizer(context, llm).propose(problems, memory, seed)


class OptoPrime(ScriptOptimizer):
    """OptoPrime for scripts; see agentd.opto.optoprime."""

    algorithm = "optoprime"


class OPRO(ScriptOptimizer):
    """OPRO for scripts; see agentd.opto.opro."""

    algorithm = "opro"


class TextGrad(ScriptOptimizer):
    """TextGrad for scripts; see agentd.opto.textgrad."""

    algorithm = "textgrad"


class Search(ScriptOptimizer):
    """Search for scripts; needs scores, starts from the best values so far; see agentd.opto.search."""

    algorithm = "search"

    def _base(self, values: dict[str, Value]) -> tuple[dict[str, Value], list[MemoryEntry]]:
        entry = self._evaluated(values)
        entries = [*self._memory, entry] if entry is not None else self._memory
        scored = [entry for entry in entries if entry.mean is not None]
        return (max(scored, key=lambda entry: entry.mean or 0.0).values if scored else values), entries


class Hybrid(Search):
    """Hybrid for scripts; see agentd.opto.hybrid."""

    algorithm = "hybrid"


class _Callable:
    """Trace's models are callables that return an OpenAI-like response."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    async def complete(self, request: LlmRequest) -> LlmReply:
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        try:
            response = await asyncio.to_thread(self._call, messages=messages, max_tokens=request.max_tokens)
            text = response if isinstance(response, str) else response.choices[0].message.content
        except Exception as error:
            raise ModelError(f"the model raised {type(error).__name__}: {error}", model="callable") from error
        return LlmReply(text=str(text or ""), model="callable")


def _models(llm: Any) -> tuple[str, ...]:
    if isinstance(llm, str):
        return (llm,)
    if isinstance(llm, list | tuple):
        return tuple(llm)
    if llm is not None:
        return ("given",)
    named = next((os.environ[name] for name in _MODEL_VARIABLES if os.environ.get(name)), "")
    return tuple(model.strip() for model in named.split(",") if model.strip())


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


def _split(feedback: Any) -> tuple[float, str]:
    """Score and text; NaN where there is no score. Raises OptimizerError for a score outside [0, 1]."""
    value = feedback.data if isinstance(feedback, Node) else feedback
    score, text = value if isinstance(value, tuple) and len(value) == 2 else (value, "")
    if isinstance(score, bool | int | float) or hasattr(score, "__float__"):
        score = float(score)
        if not 0.0 <= score <= 1.0:
            raise OptimizerError(f"a score is in [0, 1], not {score:g}; put other numbers in words")
        return score, str(text)
    return math.nan, f"{score} {text}".strip()


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of `coroutine`; in a thread where this one already runs a loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    results: list[T] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            results.append(asyncio.run(coroutine))
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
            failures.append(error)

    thread = threading.Thread(target=work, name="optimizer")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
