"""Hybrid: a model changes structure, search tunes what is numeric, under one budget.

Who goes next follows from what has paid off in this regime. With no model, or no budget left, it is search; with only text and no model
it says so.
"""

from collections.abc import Sequence

import msgspec

from agentd.errors import OptimizerError
from agentd.opto.algorithms.optoprime import OptoPrime
from agentd.opto.contract import Llm, Optimizer, OptimizerContext, Screen
from agentd.opto.search import Search
from agentd.opto.space import Space
from agentd.records import MemoryEntry, Problem, Proposal

_OPTIMISM = 0.05
_PARTS = ("optoprime", "search")


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
        for name in turns:
            try:
                proposal = await self._parts[name].propose(problems, memory, seed)
            except OptimizerError as error:
                failure = failure or error
            else:
                if failure is None:
                    return proposal
                return msgspec.structs.replace(proposal, reasoning=f"{proposal.reasoning} ({turns[0]} could not: {failure})")
        raise failure or OptimizerError("nobody could propose anything")


def _worth(memory: Sequence[MemoryEntry], algorithm: str, regime: int) -> float:
    """Mean gain per attempt in this regime, with one optimistic attempt added, so that who wasn't tried is, and who fails yields."""
    gains = [max(entry.difference or 0.0, 0.0) for entry in memory if entry.regime == regime and entry.algorithm == algorithm]
    return (_OPTIMISM + sum(gains)) / (1 + len(gains))
