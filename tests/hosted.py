"""A whole agentd for tests: a daemon process, robots, a real broker; each in folders and on ports of the test's own."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentd.cli.client import Client
from agentd.errors import AgentdError
from agentd.ready import find
from agentd.runners.paths import RunnerPaths, lock_holder


class Robot:
    """A CartPole behind MQTT in a process of its own, with its own record of every action that it applied."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self._log = log

    async def change(self, name: str) -> None:
        self.process.stdin.write(f"change {name}\n".encode())
        answer = await asyncio.wait_for(self.process.stdout.readline(), 20)
        assert answer.decode().strip() == f"changed {name}"

    def applied(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []

    def sources(self) -> Counter:
        return Counter(action["source"] for action in self.applied())


class Hosted:
    """A state directory, the agents in it, and the processes that use it."""

    def __init__(self, folder: Path, broker: str) -> None:
        self.folder = folder
        self.broker = broker
        self.state = folder / "state"
        self.agents = folder / "agents"
        self.agents.mkdir()
        self.daemon: asyncio.subprocess.Process | None = None
        self.client: Client
        self._children: list[asyncio.subprocess.Process] = []

    def add_agent(
        self, ready: str = "cartpole", *, name: str | None = None, edit: Callable[[str], str] = lambda text: text, **files: str
    ) -> Path:
        """A copy of a shipped controller; `edit` changes its agent.toml, `files` replace modules (`controller="..."`)."""
        target = self.agents / (name or ready)
        shutil.copytree(find(ready), target, ignore=shutil.ignore_patterns("__pycache__"))
        toml = target / "agent.toml"
        text = toml.read_text()
        if name:
            text = text.replace(f'name = "{ready}"', f'name = "{name}"', 1)
        toml.write_text(edit(text))
        for module, content in files.items():
            (target / f"{module}.py").write_text(content)
        return target

    async def robot(self, device: str = "robot-1", agent: str = "cartpole", *arguments: str) -> Robot:
        log = self.folder / f"{device}.jsonl"
        who = ("--broker", self.broker, "--device", device, "--agent", agent, "--env", "CartPole-v1", "--log", str(log))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agentd.environments.standin", *who, "--change-from-stdin", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._children.append(process)
        return Robot(process, log)

    async def start(self, *, wait: bool = True, **settings: Any) -> None:
        """Start the daemon, and wait until its API answers."""
        lines = {
            "agents": str(self.agents),
            "state_directory": str(self.state),
            "broker_url": self.broker,
            "http_port": 0,
            "seed": 7,
            "drain_timeout": "10s",
        } | settings
        config = self.folder / "agentd.toml"
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()))
        with (self.folder / "daemon.log").open("ab") as log:
            self.daemon = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "agentd", "run", "--config", str(config)), stdout=log, stderr=log
            )
        if wait:
            await self.connect()

    async def connect(self) -> None:
        """A client of the daemon that runs now."""

        async def answers() -> bool:
            assert self.daemon is not None
            assert self.daemon.returncode is None, self.log()
            with contextlib.suppress(AgentdError):
                client = Client.from_state(self.state)
                if (await client.status())["pid"] == self.daemon.pid:
                    self.client = client
                    return True
                await client.aclose()
            return False

        await self.until(answers)

    async def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.daemon is not None
        await self.client.aclose()
        self.daemon.terminate()
        return await asyncio.wait_for(self.daemon.wait(), 30)

    async def kill(self) -> None:
        """SIGKILL: the runners live on."""
        assert self.daemon is not None
        await self.client.aclose()
        self.daemon.kill()
        await self.daemon.wait()

    def log(self) -> str:
        """The end of the daemon's log."""
        return (self.folder / "daemon.log").read_text(errors="replace")[-4000:]

    async def agent(self, name: str = "cartpole") -> dict[str, Any]:
        return await self.client.agent(name)

    async def events(self, kind: str, agent: str | None = None) -> list[dict[str, Any]]:
        return [event for event in await self.client.events(agent, limit=500) if event["kind"] == kind]

    async def until(self, condition: Callable[[], Any], limit: float = 45.0) -> Any:
        """Wait for a condition, sync or async; returns what it gave. The limit is generous: no test asserts time."""
        try:
            async with asyncio.timeout(limit):
                while True:
                    result = condition()
                    if asyncio.iscoroutine(result):
                        result = await result
                    if result:
                        return result
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"waited {limit} s in vain; the daemon's log:\n{self.log()}") from None

    async def until_good(self, agent: str = "cartpole") -> str:
        """Wait until the stable revision is known to be good; its id."""

        async def good() -> str | None:
            state = (await self.agent(agent)).get("state") or {}
            return state.get("stable") if state.get("last_good") and state["last_good"] == state["stable"] else None

        return await self.until(good)

    async def until_ended(self, release: str) -> dict[str, Any]:
        """Wait until a release has ended."""

        async def ended() -> dict[str, Any] | None:
            found = await self.client.release(release)
            return found if found.get("ended_at") else None

        return await self.until(ended)

    def runner_pid(self, agent: str = "cartpole") -> int:
        holder = lock_holder(RunnerPaths.under(self.state, agent).lock)
        assert holder is not None, f"{agent} has no runner"
        return holder

    async def aclose(self) -> None:
        if self.daemon is not None and self.daemon.returncode is None:
            self.daemon.kill()
            await self.daemon.wait()
        for lock in (self.state / "runners").glob("*.lock"):
            holder = lock_holder(lock)
            if holder is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(holder, signal.SIGKILL)
        for child in self._children:
            if child.returncode is None:
                child.kill()
            await child.wait()


@pytest.fixture
async def hosted(tmp_path, mosquitto):
    """Nothing runs yet but the broker."""
    site = Hosted(tmp_path, mosquitto.url)
    yield site
    await site.aclose()
