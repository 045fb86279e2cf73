"""Search: an optimizer that needs no model. Optuna proposes numbers and choices, those inside code included.

The study lives nowhere: it is rebuilt from memory for each proposal, so it survives any restart. Its first trial is the running revision
with its mean score; the others are the attempts of the same drift regime, pruned ones with the mean they reached.

Few episodes can be spent, and each is noisy. Four kinds of move take turns, so that none can hold up the others for long: signs, and
scales, of the running values, or of better ones once they are known (`agentd.opto.symmetries`); draws of the Tree-structured Parzen
Estimator (Bergstra et al., NeurIPS 2011; multivariate: Falkner et al., ICML 2018), which are random until it has seen enough; and the
neighbourhood of the best trial, once one is noticeably better than the running revision. The first proposal of a regime is always a sign.
The turns are fixed: to give more of them to kinds that had improved more was no better (docs/benchmarks.md).
"""

import math
import random
import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentd.errors import OptimizerError
from agentd.opto.contract import Llm, NoScreen, OptimizerContext, Screen, make_proposal
from agentd.opto.space import Dimension, Point, Space, same
from agentd.opto.symmetries import GOOD_FATES, Idea, scales, signs
from agentd.records import MemoryEntry, Phase, Problem, Proposal, Value

if TYPE_CHECKING:
    import optuna

_TURNS = ("signs", "near", "drawn", "scales", "signs", "drawn")
_INSTEAD = ("signs", "drawn", "near", "scales")  # where a kind has nothing: the first of these that has
_TRIES = 64
_NOTICEABLE = 0.1  # of the distance to the best score: less is noise after a few pairs
_LOCAL_SPREAD = 0.5
_PRIOR_PAIRS = 1.0
_ALIKE = 8  # points passed over because replay shows no difference, before one is tried all the same


@dataclass(frozen=True, slots=True)
class Trial:
    """A point that was tried in this regime, and its mean normalised score, shrunk towards the running revision's by how noisy it is."""

    point: Point
    score: float


class Search:
    """Proposes by symmetry and by Tree-structured Parzen Estimator. Options: `startup` (random trials before the estimator is trusted)."""

    algorithm = "search"

    def __init__(self, context: OptimizerContext, llm: Llm | None = None, screen: Screen | None = None) -> None:  # noqa: ARG002 - needs no model
        self._context = context
        self._screen = screen or NoScreen()
        self._startup = int(context.options.get("startup", 10))

    async def propose(self, problems: Sequence[Problem], memory: Sequence[MemoryEntry], seed: int) -> Proposal:
        """The next point to try. Raises OptimizerError where nothing is numeric, or where every point was tried."""
        space = Space(self._context.parameters, self._context.values, [entry.values for entry in memory])
        if not space.dimensions:
            raise OptimizerError(
                "search has nothing to vary: no parameter is a number, a switch or a choice, and no code has numeric constants"
            )
        baseline = _baseline(problems, memory, self._context)
        refused = ""
        alike: list[tuple[dict[str, Value], str]] = []
        for point, reason in self._candidates(space, memory, baseline, seed):
            values = space.values(point)
            if not values:
                continue
            screening = await self._screen(values)
            if not screening.ok:
                refused = screening.reason
            elif screening.ticks and not screening.differing and len(alike) < _ALIKE:
                alike.append((values, reason))  # it would have acted just as the running revision did: there is better to try
            else:
                return make_proposal(self._context, problems, values, algorithm=self.algorithm, seed=seed, reasoning=reason)
        for values, reason in alike:
            return make_proposal(self._context, problems, values, algorithm=self.algorithm, seed=seed, reasoning=reason)
        because = f"; the last was refused: {refused}" if refused else ""
        raise OptimizerError(f"search has tried every point that it can think of{because}")

    def _candidates(self, space: Space, memory: Sequence[MemoryEntry], baseline: float, seed: int) -> Iterator[Idea]:
        """Points nobody tried, best idea first, each with the reason."""
        tried = _tried(space, memory, self._context.regime)
        trials = _trials(space, memory, self._context, baseline)
        generator = random.Random(seed)  # noqa: S311 - not a secret; the seed makes it repeatable
        seen = list(tried)

        def fresh(point: Point) -> bool:
            return not any(same(point, other) for other in seen)

        best = _noticeably_better(trials, baseline)
        around = best.point if best is not None else space.current
        improved = [trial.point for trial in trials if trial.score > baseline]
        kinds = {
            "signs": signs(space, around, memory, self._context.regime, improved),
            "near": _neighbourhood(space, best, generator),
            "drawn": self._draws(space, trials, baseline, seed),
            "scales": scales(space, around),
        }
        turn = _TURNS[(len(tried) - 1) % len(_TURNS)]  # the running revision is among those tried
        for kind in dict.fromkeys((turn, *_INSTEAD)):
            for idea in kinds[kind]:
                if fresh(idea[0]):
                    seen.append(idea[0])
                    yield idea

    def _draws(self, space: Space, trials: Sequence[Trial], baseline: float, seed: int) -> Iterator[Idea]:
        """What the estimator proposes; Optuna is loaded and asked only when it is its turn."""
        study = self._study(space, trials, baseline, seed)
        for _ in range(_TRIES):
            yield _ask(study, space), f"the estimator's choice after {len(trials)} trials of this regime"

    def _study(self, space: Space, trials: Sequence[Trial], baseline: float, seed: int) -> "optuna.Study":
        import optuna  # noqa: PLC0415 - heavy, and only search needs it

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna 4 calls `multivariate` experimental; from 5 on it is the default
            sampler = optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=self._startup, multivariate=True)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        distributions = _distributions(space)
        for trial in (Trial(space.current, baseline), *trials):
            params = {name: _to_optuna(dimension, value) for (name, dimension), value in zip(_named(space), trial.point, strict=True)}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=trial.score))
        return study


def _named(space: Space) -> list[tuple[str, Dimension]]:
    return [(f"{index}: {dimension.label}", dimension) for index, dimension in enumerate(space.dimensions)]


def _distributions(space: Space) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: PLC0415 - as above

    def distribution(dimension: Dimension) -> Any:
        if dimension.choices is not None:
            return CategoricalDistribution(tuple(range(len(dimension.choices))))
        if dimension.integer:
            low, high = (int(dimension.rounded(bound)) for bound in (dimension.low, dimension.high))
            return IntDistribution(low, high)
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)

    return {name: distribution(dimension) for name, dimension in _named(space)}


def _to_optuna(dimension: Dimension, value: Value) -> Value:
    if dimension.choices is None:
        return int(value) if dimension.integer else float(value)
    return next(index for index, choice in enumerate(dimension.choices) if same(choice, value))


def _ask(study: "optuna.Study", space: Space) -> Point:
    trial = study.ask(_distributions(space))
    return tuple(
        dimension.choices[trial.params[name]] if dimension.choices is not None else dimension.rounded(trial.params[name])
        for name, dimension in _named(space)
    )


def _baseline(problems: Sequence[Problem], memory: Sequence[MemoryEntry], context: OptimizerContext) -> float:
    """The running revision's mean score in this regime: as told, as memory has it, or that of the episodes at hand."""
    if context.stable_mean is not None:
        return context.stable_mean
    for entry in reversed(memory):
        if entry.regime == context.regime and entry.mean is not None and entry.fate in GOOD_FATES and same(entry.values, context.values):
            return entry.mean
    scores = [
        problem.feedback.normalised for problem in problems if not (problem.feedback.failed or math.isnan(problem.feedback.normalised))
    ]
    return statistics.fmean(scores) if scores else 0.0


def _tried(space: Space, memory: Sequence[MemoryEntry], regime: int) -> list[Point]:
    """Every point of this regime that was proposed, whatever became of it; each once."""
    points = [space.current]
    for entry in memory:
        point = space.point(entry.values) if entry.regime == regime else None
        if point is not None and not any(same(point, other) for other in points):
            points.append(point)
    return points[1:] + points[:1]


def _trials(space: Space, memory: Sequence[MemoryEntry], context: OptimizerContext, baseline: float) -> list[Trial]:
    """The attempts of this regime that were scored.

    Pairs share their noise, so a difference to the running revision says more than a mean; one to an earlier revision says nothing here.
    What was rolled back had a comparison that did not last: it was no better than the running revision.
    """
    trials: list[Trial] = []
    for entry in memory:
        point = space.point(entry.values) if entry.regime == context.regime else None
        if point is None or entry.mean is None or same(point, space.current):
            continue
        score = entry.mean
        if entry.difference is not None and entry.fate not in GOOD_FATES and entry.reference in ("", context.stable):
            score = baseline + entry.difference
        if entry.fate == Phase.ROLLED_BACK:
            score = min(score, baseline)
        weight = entry.pairs / (entry.pairs + _PRIOR_PAIRS) if entry.pairs else 1.0
        trials.append(Trial(point, baseline + weight * (score - baseline)))
    return trials


def _noticeably_better(trials: Sequence[Trial], baseline: float) -> Trial | None:
    """The best trial, if noise alone would hardly have put it above the running revision."""
    best = max(trials, key=lambda trial: trial.score, default=None)
    return best if best is not None and best.score - baseline > _NOTICEABLE * (1.0 - baseline) else None


def _neighbourhood(space: Space, best: Trial | None, generator: random.Random) -> Iterator[Idea]:
    if best is None:
        return
    for _ in range(_TRIES):
        yield _near(space, best.point, generator), f"near the best values so far (score {best.score:.3f})"


def _near(space: Space, point: Point, generator: random.Random) -> Point:
    """`point` with about half of its numbers changed a little, at least one; a choice now and then."""
    chosen = [index for index in range(len(point)) if generator.random() < 0.5] or [generator.randrange(len(point))]
    changed = list(point)
    spread = _LOCAL_SPREAD * 0.2 ** generator.random()  # coarse and fine steps: how far the best is, nobody knows
    for index in chosen:
        dimension = space.dimensions[index]
        if dimension.choices is not None:
            changed[index] = generator.choice(dimension.choices) if generator.random() < 0.2 else point[index]
            continue
        scale = abs(point[index]) or (dimension.high - dimension.low) / 16
        step = generator.gauss(0.0, spread) * scale
        if dimension.integer and abs(step) < 1:
            step = 1 if step > 0 else -1
        changed[index] = dimension.rounded(point[index] + step)
    return tuple(changed)
