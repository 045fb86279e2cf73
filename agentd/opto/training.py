"""`train`: improve a program on cases, in a script or a notebook.

    from agentd import train

    result = train(agent, "cases.jsonl", guide=feedback_fn, llm="openai/gpt-4.1-mini")
    print(result.before, result.after)

The loop that one would write by hand around an optimizer, with the habit that is easily left out: what a proposal is worth is decided on
cases that it was not made from, the same ones for the old values and the new. The program runs in this process, so its code parameters
too: for code that nobody looks at first there is `agentd optimize`, which runs it in a sandbox.
"""

import inspect
import random
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentd.cases import Case, read_cases, split
from agentd.errors import OptimizerError, TraceError
from agentd.opto.script import OptoPrime, ScriptOptimizer
from agentd.records import Value
from agentd.trace import ExecutionError, Node, ParameterNode, stop_tracing
from agentd.trace.parameters import find_parameters

__all__ = ["Training", "TrainingStep", "train"]

Guide = Callable[..., Any]
Program = Callable[[Any], Any]

_RIGHT = ("correct", "right", "yes", "success")


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One proposal. `batch` is the old values' mean score on the training cases that it answers.

    `candidate` is the new values' mean score on the cases that decide, None where there was no usable proposal.
    """

    number: int
    batch: float
    candidate: float | None
    accepted: bool
    paths: tuple[str, ...]
    dollars: float


@dataclass(frozen=True, slots=True)
class Training:
    """What came of it. `before` and `after` are mean scores on the cases that decide; `values` are the parameters', by path."""

    before: float
    after: float
    steps: tuple[TrainingStep, ...]
    values: Mapping[str, Value]
    dollars: float

    @property
    def accepted(self) -> int:
        """How many proposals were kept."""
        return sum(step.accepted for step in self.steps)


def train(
    program: Program,
    cases: str | Path | Iterable[Case | tuple[Any, Any]],
    guide: Guide,
    *,
    llm: Any = None,
    optimizer: ScriptOptimizer | type[ScriptOptimizer] = OptoPrime,
    epochs: int = 3,
    batch: int = 4,
    validation: float = 0.3,
    seed: int = 0,
    on_step: Callable[[TrainingStep], None] | None = None,
) -> Training:
    """Train `program` and leave it with the best values found, also when it is interrupted (Ctrl-C) or an error ends it.

    It ends before its time when every case that decides has the score 1.

    Args:
        program: called with a case's input, gives a node; its parameters are found by attribute.
        cases: a JSON lines file (`agentd.cases`), or cases, or (input, reference) pairs.
        guide: of (answer, reference) or (input, answer, reference); gives a score in [0, 1], (score, words), or words that begin with
            "correct" where the answer is right.
        llm: as for the optimizers of `agentd.opto`; not with an `optimizer` that is made already.
        optimizer: a class of `agentd.opto`, or one that was made with the program's parameters.
        epochs: how often each training case is learned from.
        batch: training cases that a proposal answers.
        validation: the share of the inputs that is held back to decide; 0 decides on the training cases.
        seed: of the order of the training cases.
        on_step: is told of each proposal.

    Raises:
        OptimizerError: there is nothing to train or nothing to learn from; ModelError and BudgetExhausted as the optimizer does.
        TraceError: the program's answer is no node.
        SpecError: the file of cases is wrong.
    """
    parts = split(read_cases(Path(cases)) if isinstance(cases, str | Path) else map(_case, cases), validation)
    if not parts.train:
        raise OptimizerError("there is no case to learn from")
    judge = _Judge(program, guide)
    if isinstance(optimizer, type):
        found = find_parameters(program).values()
        optimizer = optimizer(found, llm, seed=seed)
    elif llm is not None:
        raise OptimizerError("`llm` is for an optimizer that is made here, not for one that is made already")
    work = _Work(optimizer, judge, parts.deciding)
    generator = random.Random(seed)  # noqa: S311 - an order, no secret
    try:
        for cases_of_step in _batches(parts.train, epochs, batch, generator):
            if work.best >= 1.0:
                break  # nothing can be better on the cases that decide
            step = work.step(cases_of_step)
            if on_step is not None:
                on_step(step)
    finally:
        work.keep_best()
    return work.result()


def _batches(cases: Sequence[Case], epochs: int, batch: int, generator: random.Random) -> Iterator[Sequence[Case]]:
    for _ in range(epochs):
        order = generator.sample(cases, len(cases))
        yield from (order[start : start + batch] for start in range(0, len(order), batch))


class _Judge:
    """Runs cases and asks the guide."""

    def __init__(self, program: Program, guide: Guide) -> None:
        self._program = program
        self._guide = guide
        by_place = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
        self._sees_input = sum(parameter.kind in by_place for parameter in inspect.signature(guide).parameters.values()) > 2

    def run(self, case: Case) -> tuple[Node[Any], float, str]:
        """The answer's node, its score and words. A program that raises scores 0, with its error for words."""
        try:
            node = self._program(case.input)
        except ExecutionError as error:
            return error.exception_node, 0.0, str(error.exception_node.data)
        if not isinstance(node, Node):
            raise TraceError(f"the program answered with a {type(node).__name__}; only a node says how it came about")
        return node, *self._verdict(case, node.data)

    def score(self, cases: Sequence[Case]) -> float:
        """The mean score on `cases`; nothing is traced."""
        return statistics.fmean(self._untraced(case) for case in cases)

    def _untraced(self, case: Case) -> float:
        with stop_tracing():
            try:
                answer = self._program(case.input)
            except Exception as error:  # noqa: BLE001 - whatever a program of the optimizer's raises, it is worth nothing
                warnings.warn(f"the program raised {error!r} on a case", RuntimeWarning, stacklevel=2)
                return 0.0
        return self._verdict(case, answer.data if isinstance(answer, Node) else answer)[0]

    def _verdict(self, case: Case, answer: Any) -> tuple[float, str]:
        given = (case.input, answer, case.reference) if self._sees_input else (answer, case.reference)
        verdict = self._guide(*given)
        if isinstance(verdict, str):
            return float(verdict.strip().lower().startswith(_RIGHT)), verdict
        score, words = verdict if isinstance(verdict, tuple) else (verdict, "")
        if not 0.0 <= float(score) <= 1.0:
            raise OptimizerError(f"the guide's score should be in [0, 1], not {score}")
        return float(score), str(words)


class _Work:
    """The optimizer at work on the program, and the best values so far."""

    def __init__(self, optimizer: ScriptOptimizer, judge: _Judge, deciding: Sequence[Case]) -> None:
        self._optimizer = optimizer
        self._judge = judge
        self._deciding = deciding
        self._paths = {parameter: path for path, parameter in optimizer.named.items()}
        self._before = self.best = judge.score(deciding)
        self._values = self._present()
        self._steps: list[TrainingStep] = []

    def _present(self) -> dict[ParameterNode, Any]:
        return {parameter: parameter.data for parameter in self._paths}

    def step(self, cases: Sequence[Case]) -> TrainingStep:
        """One proposal for what `cases` showed, kept if it is better on the cases that decide."""
        spent = self._optimizer.dollars
        mean = self._show(cases)
        update = self._optimizer.propose()
        candidate, accepted = None, False
        if update:
            self._optimizer.update(update)
            candidate = self._judge.score(self._deciding)
            accepted = candidate > self.best
            if accepted:
                self.best, self._values = candidate, self._present()
            else:
                self._show(cases)  # so that the optimizer remembers what these values were worth on the same cases
                self._optimizer.update(self._values)
        paths = tuple(sorted(self._paths[parameter] for parameter in update))
        step = TrainingStep(len(self._steps) + 1, mean, candidate, accepted, paths, self._optimizer.dollars - spent)
        self._steps.append(step)
        return step

    def _show(self, cases: Sequence[Case]) -> float:
        """Run `cases` and give the optimizer the feedback; the mean score."""
        self._optimizer.zero_feedback()
        scores = []
        for case in cases:
            node, score, words = self._judge.run(case)
            self._optimizer.backward(node, (score, words))
            scores.append(score)
        return statistics.fmean(scores)

    def keep_best(self) -> None:
        """Give the program the best values, whatever it was trying."""
        self._optimizer.zero_feedback()
        present = self._present()
        if any(present[parameter] is not value for parameter, value in self._values.items()):
            self._optimizer.update(self._values)

    def result(self) -> Training:
        values = {self._paths[parameter]: value for parameter, value in self._values.items()}
        return Training(self._before, self.best, tuple(self._steps), values, sum(step.dollars for step in self._steps))


def _case(given: Case | tuple[Any, Any]) -> Case:
    return given if isinstance(given, Case) else Case(input=given[0], reference=given[1])
