"""Hybrid: a model changes structure, search tunes what is numeric, under one budget.

Who goes next follows from what has paid off in this regime. With no model, or no budget left, it is search; with only text and no model
it says so.
"""

from collections.abc import Sequence

from agentd.errors import BudgetExhausted, ModelError, OptimizerError
from agentd.opto.contract import Llm, Optimizer, OptimizerContext, Screen
from agentd.opto.optoprime import OptoPrime
from agentd.opto.search import Search
from agentd.opto.space import Space
from agentd.records import MemoryEntry, Problem, Proposal

_PRIOR = 0.05


class Hybrid:
    """OptoPrime and search by turns. Options: those of both, and `model_first` (True)."""

    def __init__(self, context: OptimizerContext, llm: Llm, screen: Screen | None = None) -> None:
        self._context = context
        self._optoprime = OptoPrime(context, llm, screen) if context.models else None
        searchable = bool(Space(context.parameters, context.values).dimensions)
        self._search = Search(context, llm, screen) if searchable else None

    async def propose(self, problems: Sequence[Problem], memory: Sequence[MemoryEntry], seed: int) -> Proposal:
        """The proposal of whose turn it is; the other's where that one can't. Raises OptimizerError where nobody can."""
        order = self._order(memory)
        if not order:
            raise OptimizerError(
                "no model is configured, and without one only numbers, switches, choices and numeric constants in code can be improved; "
                "this agent's parameters are text or code without constants: name a model in [optimizer] models"
            )
        for index, optimizer in enumerate(order):
            try:
                return await optimizer.propose(problems, memory, seed)
            except (BudgetExhausted, ModelError, OptimizerError):
                if index == len(order) - 1:
                    raise
        raise AssertionError("unreachable: the loop returns or raises")

    def _order(self, memory: Sequence[MemoryEntry]) -> list[Optimizer]:
        if self._optoprime is None or self._search is None:
            return [optimizer for optimizer in (self._optoprime, self._search) if optimizer is not None]
        worth = {algorithm: _worth(memory, algorithm, self._context.regime) for algorithm in ("optoprime", "search")}
        model_first = (
            worth["optoprime"] >= worth["search"]
            if self._context.options.get("model_first", True)
            else worth["optoprime"] > worth["search"]
        )
        return [self._optoprime, self._search] if model_first else [self._search, self._optoprime]


def _worth(memory: Sequence[MemoryEntry], algorithm: str, regime: int) -> float:
    """Mean gain per attempt in this regime, with one optimistic attempt added, so that who wasn't tried is, and who fails yields."""
    gains = [max(entry.difference or 0.0, 0.0) for entry in memory if entry.regime == regime and entry.algorithm == algorithm]
    return (_PRIOR + sum(gains)) / (1 + len(gains))
