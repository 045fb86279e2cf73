"""A revision keeps its worker through whatever happens to the machine for a while."""

import random

import pytest

from agentd.clock import SystemClock
from agentd.errors import SandboxError
from agentd.runners.workers import Workers
from agentd.sandbox import Limits, Zygote

POLICY = """
class Controller:
    def act(self, observation):
        return 1
"""


@pytest.fixture
async def events():
    return []


@pytest.fixture
async def workers(events):
    async with Workers(
        Limits(allowed_imports=("math",)),
        min_isolation=1,
        on_log=print,
        on_event=lambda kind, message, _: events.append((kind, message)),
        on_ready=lambda: None,
        clock=SystemClock(),
        generator=random.Random(1),
    ) as made:
        yield made


async def test_a_worker_that_dies_while_nothing_can_be_opened_is_started_again_when_something_can(
    workers, events, make_program, until, no_more_files
):
    source, revision = make_program(POLICY)
    await workers.load(source, revision)
    with no_more_files():
        workers.get(revision.id).kill()
        await until(lambda: any(kind == "worker.start_failed" for kind, _ in events), limit=5)
    await until(lambda: workers.get(revision.id) is not None)


async def test_what_could_not_be_loaded_while_nothing_could_be_opened_can_be_loaded_later(workers, make_program, no_more_files):
    source, revision = make_program(POLICY)
    with no_more_files(), pytest.raises(SandboxError, match="Too many open files"):
        await workers.load(source, revision)
    assert await workers.load(source, revision) == ()


async def test_a_zygote_that_can_not_be_started_for_lack_of_files_is_said(no_more_files):
    with no_more_files(), pytest.raises(SandboxError, match="Too many open files"):
        await Zygote.start(imports=(), min_isolation=1)
