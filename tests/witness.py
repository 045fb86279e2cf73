"""A robot whose own log is the witness of what it applied, and a runner that drives it."""

import asyncio
import collections
import sys
from pathlib import Path

import pytest
from robots import RobotLog

from agentd.records import Outcome
from agentd.runners.local import Finished, Lost

BALANCE = """
    class Controller:
        def act(self, observation):
            x, v, angle, spin = observation
            return 1 if angle + 0.5 * spin + 0.05 * x + 0.1 * v > 0 else 0
"""
PATIENCE = 0.3
"""Seconds that the robot waits for an action."""


class Robot(RobotLog):
    """The stand-in robot in a process of its own. `within` is the beginning of its command line, such as that of a network namespace."""

    def __init__(self, log: Path, url: str, *options: str, within: tuple[str, ...] = ()) -> None:
        super().__init__(log)
        self._command = [*within, sys.executable, "-m", "agentd.environments.standin", "--broker", url, "--agent", "cartpole"]
        self._command += ["--log", str(log), "--max-steps", "60", "--step-ms", "2", "--action-timeout", str(PATIENCE), *options]

    async def __aenter__(self):
        self.process = await asyncio.create_subprocess_exec(*self._command)
        return self

    async def __aexit__(self, *exception):
        self.process.terminate()
        await self.process.wait()

    def prove_with(self, reader):
        """No tick is without its one action, and what came from the agent was meant for that tick."""
        self.prove()
        followed = [line for line in self.applied() if line["source"] != "fallback" and line["episode"] in reader.episodes]
        assert followed
        unknown = collections.Counter()
        for line in followed:
            if (line["episode"], line["step"]) in reader.meant:
                assert reader.meant[line["episode"], line["step"]] == line["action"], line
            else:  # the one tick whose outcome was lost on its way: no step was made of it
                assert line["step"] > reader.last[line["episode"]], line
                unknown[line["episode"]] += 1
        assert all(count == 1 for count in unknown.values()), unknown


class Reader:
    """Acknowledges what a runner tells, in the background."""

    def __init__(self, runner):
        self.finished = 0
        self.episodes = set()
        self.last = {}
        self.meant = {}
        self.sessions = {runner.session}
        self._runner = runner
        self._task = asyncio.create_task(self._read())

    async def _read(self):
        while True:
            match await self._runner.next():
                case Finished(episode=episode):
                    self.finished += episode.outcome is Outcome.FINISHED
                    self.episodes.add(episode.id)
                    self.last[episode.id] = max((step.tick for step in episode.steps), default=-1)
                    self.meant.update({(episode.id, step.tick): step.action for step in episode.steps})
                    await self._runner.acknowledge(episode.id)
                case Lost():
                    return

    async def aclose(self):
        await self._runner.abandon()
        await self._task


@pytest.fixture
def serve_cartpole(runners, make_spec, make_program):
    """A runner that balances cart-poles over the broker at an address, and what it tells."""

    async def start(url):
        environment = {
            "kind": "mqtt",
            "max_steps": 60,
            "mqtt": {"deadline_ms": 100.0, "observation_timeout": 2.0},
            "observation_space": {"low": -100.0, "high": 100.0, "shape": [4]},
            "action_space": {"discrete": 2},
            "safe_action": {"value": 0},
        }
        runner = await runners.start(make_spec(environment=environment, sandbox={"step_timeout": "1s"}), broker=url)
        source, revision = make_program(BALANCE)
        await runner.load(source, revision)
        await runner.route(revision.id)
        return Reader(runner)

    return start
