"""The daemon's word with a runner about models: what was spent is recorded once, whoever died, and trouble is told once."""

from types import SimpleNamespace

import pytest

from agentd.errors import BudgetExhausted
from agentd.hosting.models import SAY_EVERY, Models
from agentd.opto.budget import POLICY, Lease, Ledger
from agentd.opto.llm import LlmSettings
from agentd.records import Usage
from agentd.runners.local import ModelReport

KEY = "sk-test-this-key-must-never-be-seen"


class Runner:
    """A runner's end of it, with a lease that is really spent from."""

    def __init__(self):
        self.lease = Lease()
        self.outage = ""
        self.accesses = []
        self._at = 1000.0

    def spend(self, calls):
        for _ in range(calls):
            self._at += 1.0
            usage = Usage(agent="cartpole", purpose=POLICY, model="m", outcome="ok", at=self._at)
            self.lease.settle(self.lease.reserve("cartpole", 0.0, self._at), usage)

    async def lease_models(self, grant, access=None):
        self.lease.renew(grant)
        self.accesses.append(access)
        exhausted = self.lease.refusal is not None
        trouble = str(self.lease.refusal or self.outage)
        return ModelReport(usage=self.lease.rows(500), taken=self.lease.taken, trouble=trouble, exhausted=exhausted)


class Daemon:
    """What the daemon lends; `stored` outlives it."""

    def __init__(self, stored, spec, runner):
        self.said = []
        self.now = 0.0
        self.stored = stored
        clock = SimpleNamespace(time=lambda: 2000.0, monotonic=lambda: self.now)
        self.ledger = Ledger(stored)
        services = SimpleNamespace(
            ledger=self.ledger,
            clock=clock,
            metrics=SimpleNamespace(usage=lambda _: None),
            store=SimpleNamespace(commit=self._commit),
            models=("openai/x",),
            llm_settings=LlmSettings(api_key=KEY),
        )
        self.models = Models(spec, services, SimpleNamespace(clock=clock, say=self._say), runner)

    async def _commit(self, *rows):
        self.stored.extend(rows)

    async def _say(self, kind, message, **data):
        self.said.append((kind, message, data))


@pytest.fixture
def spec(make_spec):
    return make_spec(models={"budget": {"calls_per_hour": 10}})


async def test_a_call_is_recorded_once_though_the_daemon_died_before_the_runner_heard_of_it(spec):
    stored, runner = [], Runner()
    first = Daemon(stored, spec, runner)
    await first.models.renew()
    assert (runner.accesses[0].names, runner.accesses[0].api_key) == (("openai/x",), KEY)
    runner.spend(3)
    await first.models.renew()
    assert len(stored) == 3
    second = Daemon(stored, spec, runner)  # the first never said that it has them
    runner.spend(2)
    for _ in range(3):
        await second.models.renew()
    assert [row.at for row in stored] == [1001.0, 1002.0, 1003.0, 1004.0, 1005.0]
    assert second.ledger.remaining("cartpole/policy", 2000.0).calls == 5
    assert runner.accesses[1:] == [None, runner.accesses[0], None, None], "keys are sent once to a connection"


async def test_trouble_is_told_once_and_its_end_after_a_while(spec):
    runner = Runner()
    daemon = Daemon([], spec, runner)
    for outage in ("on fire", "", "on fire", "on fire", ""):
        runner.outage = outage
        await daemon.models.renew()
        assert daemon.models.trouble == (f"its models don't answer: {outage}" if outage else "")
    assert daemon.said == [("models.unavailable", "on fire", {"budget": False})]
    daemon.now = SAY_EVERY + 1.0
    await daemon.models.renew()
    assert daemon.said[1:] == [("models.available", "models answer again", {})]


async def test_a_used_up_budget_is_told_as_what_it_is(spec):
    runner = Runner()
    daemon = Daemon([], spec, runner)
    await daemon.models.renew()
    runner.spend(10)
    with pytest.raises(BudgetExhausted, match="10 calls per hour"):
        runner.spend(1)
    await daemon.models.renew()
    assert daemon.said == [("models.unavailable", "the budget is exhausted: 10 calls per hour", {"budget": True})]
