"""Fixtures of all tests: a real Mosquitto and real runners, each test's own."""

import asyncio
import contextlib
import hashlib
import os
import resource
import signal
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import Mosquitto
from hypothesis import settings
from processes import alive

from agentd.clock import SystemClock
from agentd.records import Source, make_revision
from agentd.runners.forkserver import Forkserver
from agentd.runners.local import LocalRunner
from agentd.spec import AgentSpec

# HYPOTHESIS_PROFILE=long looks further. No deadline: tests assert no time, and machines are shared.
settings.register_profile("quick", max_examples=50, deadline=None)
settings.register_profile("long", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may take longest begins first, in whatever order the rest is: no worker is left with it at the end."""

    def limit(item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        return marker.args[0] if marker else 0.0

    items.sort(key=limit, reverse=True)


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
async def until():
    """Wait for something to become true: `await until(lambda: ...)`. The limit is generous; no test asserts time."""

    async def wait(condition, limit: float = 30.0):
        async with asyncio.timeout(limit):
            while not (result := condition()):  # noqa: ASYNC110 - conditions are about other processes
                await asyncio.sleep(0.01)
        return result

    return wait


class Runners:
    """Starts runners in a folder of the test's own, and leaves none behind. They are forked, as a daemon's are, unless a test says None."""

    def __init__(self, state: Path, forkserver: Forkserver) -> None:
        self.state = state
        self.forkserver = forkserver
        self.epoch = 0
        self._open = []

    async def start(self, spec, *, broker=None, epoch=None, seed=1, **options):
        self.epoch = self.epoch + 1 if epoch is None else epoch
        runner = await LocalRunner.adopt_or_start(
            spec=spec,
            state_directory=self.state,
            epoch=self.epoch,
            broker=broker,
            clock=SystemClock(),
            seed=seed,
            **{"forkserver": self.forkserver} | options,
        )
        self._open.append(runner)
        return runner

    async def aclose(self):
        for log in self.state.glob("runners/*.log"):
            print(log.read_text())  # noqa: T201 - pytest shows it with a failure
        for runner in self._open:
            await runner.abandon()
            with contextlib.suppress(ProcessLookupError):
                os.kill(runner.pid, signal.SIGKILL)
        for runner in self._open:
            async with asyncio.timeout(20):
                while alive(runner.pid):  # noqa: ASYNC110 - procfs tells nobody
                    await asyncio.sleep(0.01)


@pytest.fixture(scope="session")
def shared_forkserver():
    """One for all tests of a process: most of what a runner costs is its imports."""
    with Forkserver() as forkserver:
        yield forkserver


@pytest.fixture
async def runners(tmp_path, shared_forkserver):
    started = Runners(tmp_path, shared_forkserver)
    yield started
    await started.aclose()


@pytest.fixture
def make_spec():
    """An AgentSpec from keyword tables, over a CartPole in process."""

    def make(**sections):
        tables = {
            "schema": 1,
            "agent": {"name": "cartpole", "entrypoint": "controller:Controller"},
            "environment": {"kind": "gymnasium", "id": "CartPole-v1", "max_steps": 50},
        }
        return AgentSpec.model_validate(tables | sections)

    return make


@pytest.fixture
def make_program():
    """A source and a revision from the text of `controller.py`."""

    def make(text, values=None, agent="cartpole"):
        files = {"controller.py": textwrap.dedent(text)}
        digest = hashlib.sha256(repr(files).encode()).hexdigest()
        source = Source(digest=digest, files=files, entrypoint="controller:Controller")
        return source, make_revision(agent, digest, values or {})

    return make


@pytest.fixture
def no_more_files():
    """Within, this process can open no file, pipe or socket."""

    @contextlib.contextmanager
    def without():
        least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, most))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (least, most))

    return without
