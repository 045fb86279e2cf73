"""The daemon's side of what an agent asks of models while it acts: its runner is given names, keys and a lease, and tells what it spent."""

import asyncio
import os

from agentd.hosting.keeper import Keeper
from agentd.hosting.services import Services
from agentd.opto.budget import POLICY, account_of
from agentd.opto.contract import BudgetLimits
from agentd.opto.llm import variables_of
from agentd.runners.local import LocalRunner, ModelAccess, ModelReport
from agentd.spec import AgentSpec

RENEW = 1.0
"""Seconds between two words with the runner."""
SAY_EVERY = 60.0
"""Seconds between two events about models that don't answer: a service that fails now and then must not fill the log."""


class Models:
    """One agent's models, for as long as it is connected to one runner. `trouble` says what keeps them from answering."""

    def __init__(self, spec: AgentSpec, services: Services, keeper: Keeper, runner: LocalRunner) -> None:
        self.trouble = ""
        self._services = services
        self._keeper = keeper
        self._runner = runner
        self._account = account_of(spec.agent.name, POLICY)
        names = (spec.models.names if spec.models is not None else ()) or services.models
        settings = services.llm_settings
        self._access: ModelAccess | None = ModelAccess(
            names=names, api_base=settings.api_base, api_key=settings.api_key, variables=variables_of(names, os.environ)
        )
        self._taken = 0
        self._known = set(services.ledger.rows(self._account))
        """What an earlier daemon had recorded: it may not have come to say so to the runner."""
        self._said_at: float | None = None
        services.ledger.limit(self._account, policy_limits(spec))

    async def run(self) -> None:
        """Renew the lease again and again. Runs until cancelled."""
        while True:
            await asyncio.sleep(RENEW)
            await self.renew()

    async def renew(self) -> None:
        """Grant what is left, and record what was spent. Raises RunnerError, StoreUnavailable."""
        services = self._services
        granted = services.ledger.grant(self._account, self._taken, services.clock.time())
        report = await self._runner.lease_models(granted, self._access)
        self._access = None
        fresh = [usage for usage in report.usage if usage not in self._known]
        if fresh:
            await services.store.commit(*fresh)
        for usage in fresh:
            services.ledger.record(usage)
            services.metrics.usage(usage)
        self._taken = report.taken + len(report.usage)
        if not report.usage:
            self._known.clear()
        await self._tell(report)

    async def _tell(self, report: ModelReport) -> None:
        """Say once that models don't answer, and once that they do again."""
        trouble = report.trouble
        now = self._keeper.clock.monotonic()
        told = self._said_at is not None
        if trouble and not told:
            self._said_at = now
            await self._keeper.say("models.unavailable", trouble, budget=report.exhausted)
        elif not trouble and self._said_at is not None and now - self._said_at > SAY_EVERY:
            self._said_at = None
            await self._keeper.say("models.available", "models answer again")
        self.trouble = f"its models don't answer: {trouble}" if trouble else ""


def policy_limits(spec: AgentSpec) -> BudgetLimits:
    """What an agent may spend on models while it acts."""
    if spec.models is None:
        return BudgetLimits(dollars_per_day=0.0, calls_per_hour=0)
    return BudgetLimits(dollars_per_day=spec.models.budget.dollars_per_day, calls_per_hour=spec.models.budget.calls_per_hour)


def budgets(spec: AgentSpec, services: Services) -> dict[str, float | None]:
    """Dollars a day of the optimizer and of the agent itself, and what is left of them, by the names of AgentStatus."""
    ledger, now = services.ledger, services.clock.time()
    found: dict[str, float | None] = {
        "budget_dollars": spec.optimizer.budget.dollars_per_day,
        "budget_remaining": ledger.remaining(spec.agent.name, now).dollars,
    }
    if spec.models is not None:
        found["models_dollars"] = spec.models.budget.dollars_per_day
        found["models_remaining"] = ledger.remaining(account_of(spec.agent.name, POLICY), now).dollars
    return found
