"""A runner on Gymnasium, through the daemon's handle: real processes, real sandbox."""

import pytest

from agentd.errors import Fenced, LoadError, RunnerError
from agentd.records import Outcome, PairPlan, Purpose, Role
from agentd.runners.local import Counted, Finished, Happened, Log, Lost

BALANCE = """
    class Controller:
        def reset(self, seed):
            print("reset")

        def act(self, observation):
            x, v, angle, spin = observation
            return 1 if angle + 0.5 * spin + 0.05 * x + 0.1 * v > 0 else 0
"""


async def told(runner, kind, where=lambda _: True):
    """The next message of a kind; episodes are acknowledged on the way."""
    while True:
        message = await runner.next()
        if isinstance(message, Lost):
            raise AssertionError(message.reason)
        if isinstance(message, Finished):
            await runner.acknowledge(message.episode.id)
        if isinstance(message, kind) and where(message):
            return message


async def test_a_stable_revision_runs_episode_after_episode(runners, make_spec, make_program):
    runner = await runners.start(make_spec())
    source, revision = make_program(BALANCE)
    await runner.load(source, revision)
    await runner.route(revision.id)
    first = (await told(runner, Finished)).episode
    second = (await told(runner, Finished)).episode
    assert (first.outcome, first.role, first.purpose) == (Outcome.FINISHED, Role.STABLE, Purpose.NORMAL)
    assert [step.tick for step in first.steps] == list(range(50))
    assert first.steps[-1].truncated
    assert first.seed != second.seed
    assert first.safe_actions == 0
    assert first.trace
    assert not runner.adopted
