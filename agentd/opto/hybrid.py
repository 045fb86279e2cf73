"""Hybrid: a model changes structure, search tunes what is numeric, under one budget.

Who goes next follows from what has paid off in this regime; a turn without a usable proposal paid off nothing. With no model, or no
budget left, it is search; with only text and no model it says so.
"""

import math
from collections.abc import Sequence

import msgspec

from agentd.errors import BudgetExhausted, OptimizerError
from agentd.opto.algorithms.optoprime import OptoPrime
from agentd.opto.contract import Llm, Optimizer, OptimizerContext, Screen
from agentd.opto.search import Search
from agentd.opto.space import Space
from agentd.records import MemoryEntry, Problem, Proposal

_OPTIMISM = 0.05
_PARTS = ("optoprime", "search")
_FAILED = "failed"  # the note with a proposal: whose turn it was before, and gave nothing


class Hybrid:
    """OptoPrime and search by turns. Options: those of both, and `parts`, which are both unless one is left out for an ablation."""

    def __init__(self, context: OptimizerContext, llm: Llm, screen: Screen | None = None) -> None:
        parts = context.options.get("parts", _PARTS)
        if not isinstance(parts, list | tuple) or not parts or not set(parts) <= set(_PARTS):
            raise OptimizerError(f"[optimizer] options: parts is a list of {' and '.join(_PARTS)}, not {parts!r}")
        self._context = context
        self._parts: dict[str, Optimizer] = {}
        if "optoprime" in parts and context.models:
            self._parts["optoprime"] = OptoPrime(context, llm, screen)
        if "search" in parts and Space(context.parameters, context.values).dimensions:
            self._parts["search"] = Search(context, llm, screen)

    async def propose(self, problems: Sequence[Problem], memory: Sequence[MemoryEntry], seed: int) -> Proposal:
        """The proposal of whose turn it is; the other's where that one can't, with the reason. Raises OptimizerError where nobody can."""
        if not self._parts:
            raise OptimizerError(
                "no model is configured, and without one only numbers, switches, choices and numeric constants in code can be improved; "
                "this agent's parameters have none: name a model in [optimizer] models"
            )
        turns = sorted(self._parts, key=lambda name: -_worth(memory, name, self._context.regime))
        failure: OptimizerError | None = None
        failed: list[str] = []
        for name in turns:
            try:
                proposal = await self._parts[name].propose(problems, memory, seed)
            except OptimizerError as error:
                failure = failure or error
                if not isinstance(error, BudgetExhausted):  # which is nobody's fault
                    failed.append(name)
            else:
                if failure is None:
                    return proposal
                notes = {**proposal.notes, _FAILED: failed} if failed else proposal.notes
                reasoning = f"{proposal.reasoning} ({turns[0]} could not: {failure})"
                return msgspec.structs.replace(proposal, reasoning=reasoning, notes=notes)
        raise failure or OptimizerError("nobody could propose anything")


def _worth(memory: Sequence[MemoryEntry], algorithm: str, regime: int) -> float:
    """Mean gain per turn in this regime, with one optimistic turn added, so that who wasn't tried is, and who fails yields.

    A gain is the difference to what served then; where nothing was compared, as in scripts, to the best mean before.
    """
    gained, turns, best = _OPTIMISM, 1, math.inf
    for entry in memory:
        if entry.regime != regime:
            continue
        mean = -math.inf if entry.mean is None else entry.mean
        if entry.algorithm == algorithm:
            gained += max(0.0, mean - best if entry.difference is None else entry.difference)
            turns += 1
        failed = entry.notes.get(_FAILED)
        turns += isinstance(failed, list | tuple) and algorithm in failed
        if entry.mean is not None:
            best = mean if best == math.inf else max(best, mean)
    return gained / turns
