"""A whole agentd for tests: a daemon process, robots, a real broker; each in folders and on ports of the test's own."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from robots import RobotLog

from agentd.cli.client import Client
from agentd.errors import AgentdError
from agentd.ready import find
from agentd.runners.paths import RunnerPaths, lock_holder


def edited(**values: Any) -> Callable[[str], str]:
    """Sets values in an agent.toml: `edited(release__max_pairs=5)` is `[release] max_pairs = 5`."""

    def edit(text: str) -> str:
        for path, value in values.items():
            *sections, key = path.split("__")
            header, line = f"[{'.'.join(sections)}]", f"{key} = {_toml(value)}"
            if header not in text:
                text += f"\n{header}\n"
            before, found, after = text.partition(header)
            section, bracket, rest = after.partition("\n[")
            section = re.sub(rf"^{key} = .*\n", "", section, flags=re.MULTILINE)
            name, newline, keys = section.partition("\n")
            text = before + found + name + newline + line + "\n" + keys + bracket + rest
        return text

    return edit


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def quick(**values: Any) -> Callable[[str], str]:
    """A cartpole whose episodes are short and whose watch makes up its mind soon; and further values, as for `edited`."""
    short = {
        "environment__max_steps": 40,
        "watch__burn_in": 6,
        "watch__good_after": 8,
        "watch__alarm_every": 1e3,
        "optimizer__trigger": "manual",
        # the tests share their cores with others: what is late by our own scheduling must not decide them
        "environment__mqtt__deadline_ms": 400,
        "sandbox__step_timeout": "1s",
    }
    return edited(**short | values)


def mirrored(code: str) -> str:
    """The cart-pole's law for a motor that is wired the other way round."""
    return code.replace("int(lean > 0.0)", "int(lean < 0.0)")


class Robot(RobotLog):
    """A CartPole behind MQTT in a process of its own, with its own record of every action that it applied."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        super().__init__(log)
        self.process = process

    async def change(self, name: str) -> None:
        self.process.stdin.write(f"change {name}\n".encode())
        answer = await asyncio.wait_for(self.process.stdout.readline(), 20)
        assert answer.decode().strip() == f"changed {name}"

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


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
        self._clients: list[Client] = []
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

    def write_agent(self, name: str, toml: str, **files: str) -> Path:
        """An agent of a test's own: its agent.toml and its modules (`controller="..."`)."""
        target = self.agents / name
        target.mkdir()
        (target / "agent.toml").write_text(toml)
        for module, content in files.items():
            (target / f"{module}.py").write_text(content)
        return target

    async def robot(self, device: str = "robot-1", agent: str = "cartpole", *arguments: str) -> Robot:
        log = self.folder / f"{device}.jsonl"
        pace = ("--step-ms", "2")  # while a test waits for something else, a robot at full speed would keep its cores from other tests
        who = ("--broker", self.broker, "--device", device, "--agent", agent, "--env", "CartPole-v1", "--log", str(log))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agentd.environments.standin", *who, "--change-from-stdin", "--action-timeout", "1", *pace, *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._children.append(process)
        return Robot(process, log)

    def own(self, process: asyncio.subprocess.Process) -> None:
        """End this process, too, when the test is over."""
        self._children.append(process)

    async def start(self, *, wait: bool = True, environment: dict[str, str] | None = None, **settings: Any) -> None:
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
                *(sys.executable, "-m", "agentd", "run", "--config", str(config)),
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(self.folder), *sys.path]),
                    "PYTHONWARNINGS": "default",
                    "PYTHONFAULTHANDLER": "1",
                }
                | (environment or {}),
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
                self._clients.append(client)
                self.client = client
                return (await client.status())["pid"] == self.daemon.pid
            return False

        await self.until(answers)

    async def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.daemon is not None
        self.daemon.terminate()
        try:
            code = await asyncio.wait_for(self.daemon.wait(), 60)
        except TimeoutError:
            self.daemon.send_signal(signal.SIGABRT)  # it tells where it stands: PYTHONFAULTHANDLER
            await self.daemon.wait()
            raise AssertionError(f"the daemon does not end:\n{self.log()}") from None
        assert self.complaints() == [], self.log()
        return code

    def complaints(self) -> list[str]:
        """What no log of a daemon should ever have, whatever happened around it."""
        text = (self.folder / "daemon.log").read_text(errors="replace")
        return [line for line in text.splitlines() if re.search("Traceback|Warning|never (awaited|retrieved)|was destroyed", line)]

    def database(self) -> dict[str, set[Any]]:
        """The keys of all that was committed, by table."""
        durable = ("agents", "revisions", "releases", "proposals", "pairs", "plans", "provenance", "sources", "events")
        found = {}
        with contextlib.closing(sqlite3.connect(f"file:{self.state / 'agentd.db'}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            for table in tables.intersection(durable):
                columns = [column[1] for column in database.execute(f"PRAGMA table_info({table})")]
                key = "seq" if table == "events" else "id" if "id" in columns else columns[0]
                found[table] = {row[0] for row in database.execute(f"SELECT {key} FROM {table}")}
        assert len(found) >= 6, sorted(found)
        return found

    def forgotten(self, before: dict[str, set[Any]]) -> dict[str, set[Any]]:
        """What was committed `before` and is no longer there."""
        now = self.database()
        return {table: keys - now[table] for table, keys in before.items() if keys - now[table]}

    async def kill(self) -> None:
        """SIGKILL: the runners live on."""
        assert self.daemon is not None
        self.daemon.kill()
        await self.daemon.wait()

    def log(self) -> str:
        """The end of the daemon's log."""
        log = self.folder / "daemon.log"
        return log.read_text(errors="replace")[-4000:] if log.exists() else ""

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
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"waited {limit} s in vain; the daemon's log:\n{self.log()}") from None

    async def until_good(self, agent: str = "cartpole") -> str:
        """Wait until the stable revision is known to be good; its id."""

        async def good() -> str | None:
            state = (await self.agent(agent)).get("state") or {}
            return state.get("stable") if state.get("last_good") and state["last_good"] == state["stable"] else None

        return await self.until(good)

    async def until_scored(self, count: int, agent: str = "cartpole", limit: float = 45.0) -> None:
        """Wait until the daemon has taken in so many episodes of the agent since it started."""

        async def scored() -> bool:
            return (await self.agent(agent)).get("episodes", 0) >= count

        await self.until(scored, limit)

    async def until_phase(self, release: str, *phases: str) -> dict[str, Any]:
        """Wait until a release is in one of the phases."""

        async def there() -> dict[str, Any] | None:
            found = await self.client.release(release)
            return found if found["phase"] in phases else None

        return await self.until(there)

    async def until_pairs(self, release: str, count: int) -> dict[str, Any]:
        """Wait until a release has so many pairs, in any phase."""

        async def enough() -> dict[str, Any] | None:
            found = await self.client.release(release)
            assert found["pairs"] >= count or not found.get("ended_at"), found
            return found if found["pairs"] >= count else None

        return await self.until(enough)

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
        for client in self._clients:
            await client.aclose()
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
