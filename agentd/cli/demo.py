"""`agentd demo`: a broker, a robot and a daemon as separate processes; the robot changes, the daemon finds a better revision.

Nothing here decides anything. The daemon is `agentd run`; the demo changes the robot, submits bad revisions as an operator would, through
the same HTTP API, and tells what it sees.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agentd.cli.bad_revisions import reads_a_file, subtly_worse, worse
from agentd.cli.client import Client
from agentd.cli.story import ATTACKED, BROKEN, HEALTHY, RECOVERED, Bad, Story
from agentd.cli.story_view import View, as_json, print_summary
from agentd.errors import AgentdError, DaemonUnreachable
from agentd.ready import find

AGENT = "cartpole"
ROBOT = "robot-1"
ROBOT_LOG = "robot-actions.jsonl"
HEALTHY_EPISODES = 10
AFTER_EPISODES = 20
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130
"""The exit code of what Ctrl-C ended, by the shells' custom."""
STAGE_TIMEOUT = 240.0
RECOVERY_TIMEOUT = 1200.0
"""Seconds: the search has needed up to 35 proposals, a busy machine takes 15 s for one, and a local model a minute."""
START_TIMEOUT = 180.0
"""Seconds for a process that lives to say something. A fresh install on a busy machine compiles for most of a minute."""


class DemoError(AgentdError):
    """A part of the demo did not start, or a stage took too long."""


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for on the command line."""

    change: str
    seed: int | None
    once: bool
    json: bool
    state: Path | None
    models: tuple[str, ...]


class Child:
    """A process of the demo: its output goes to a file, what it says on stdout can be waited for."""

    def __init__(self, name: str, process: Process, log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    async def line(self, timeout: float) -> str:  # noqa: ASYNC109 - how long the process may take is its caller's to say
        """The next line on its stdout. Raises DemoError with the end of its log where none comes."""
        assert self.process.stdout is not None  # noqa: S101 - it was made with a pipe
        try:
            line = await asyncio.wait_for(self.process.stdout.readline(), timeout)
        except TimeoutError:
            line = b""
        if not line:
            tail = self.log.read_text(errors="replace")[-600:]
            raise DemoError(f"the {self.name} does not answer; the end of {self.log}:\n{tail}")
        return line.decode().strip()

    async def tell(self, line: str) -> None:
        """Write a line to its stdin."""
        assert self.process.stdin is not None  # noqa: S101 - it was made with a pipe
        self.process.stdin.write(line.encode() + b"\n")
        await self.process.stdin.drain()


@asynccontextmanager
async def child(name: str, arguments: list[str], logs: Path, *, patience: float = 10.0) -> AsyncIterator[Child]:
    """A process that is ended with SIGTERM, and with SIGKILL if it doesn't go."""
    log = logs / f"{name}.log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *arguments, stdin=PIPE, stdout=PIPE, stderr=output, start_new_session=True
        )
    try:
        yield Child(name, process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), patience)
        except TimeoutError:
            process.kill()
            await process.wait()


class Demo:
    """The stages, one after the other."""

    def __init__(self, options: Options, state: Path) -> None:
        self._options = options
        self._state = state
        self._story = Story()
        self._changed = asyncio.Event()
        self._view = View(self._story, quiet=options.json)
        self._url = ""

    async def run(self) -> int:
        """All of it; the exit code. SIGINT, SIGTERM and SIGHUP (its terminal was closed) end it, and with it all that it started."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine
        loop = asyncio.get_running_loop()
        for number in ENDING:
            loop.add_signal_handler(number, lambda: task.cancelling() or task.cancel())  # once: nothing hastens the end
        try:
            return await self._run()
        except asyncio.CancelledError:
            print(f"agentd demo: stopped. Its state stays in {self._state}", file=sys.stderr)  # noqa: T201 - the way out of the process
            return INTERRUPTED

    async def _run(self) -> int:
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            with self._view:
                broker = await enter(child("broker", ["agentd.environments.broker", "--port", "0"], self._state))
                port = int(await broker.line(START_TIMEOUT))
                robot = await enter(child("robot", self._robot_arguments(port), self._state))
                run = ["agentd", "run", "--config", str(self._configure(port))]
                daemon = await enter(child("daemon", run, self._state, patience=START_TIMEOUT))  # killed, it would leave its runner
                client = await enter(await self._connect(daemon))
                failure = await self._stages(client, robot)
            report = actions_applied(self._state / ROBOT_LOG)
            summary = as_json(self._story, failure=failure, robot=report, state=self._state, url=self._url, change=self._options.change)
            good = summary["passed"]
            if self._options.json:
                print(json.dumps(summary, indent=2))  # noqa: T201 - this is what was asked for
            else:
                print_summary(summary)
            if not self._options.once:
                await self._serve()
            return 0 if good else 1

    async def _stages(self, client: Client, robot: Child) -> str:
        """Why the demo did not come to its end, or nothing."""
        following = asyncio.create_task(self._follow(client), name="events")
        try:
            await self._healthy(client)
            await self._broken(robot)
            await self._recover(client)
            await self._attack(client)
            await self._until("the events of all releases have come", self._all_told, 20.0)
        except (AgentdError, TimeoutError) as error:
            return str(error) or "a stage took too long"
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
        return ""

    # --- parts -------------------------------------------------------------------------------------------------------

    def _robot_arguments(self, port: int) -> list[str]:
        broker = f"mqtt://127.0.0.1:{port}"
        who = ["--device", ROBOT, "--agent", AGENT, "--env", "CartPole-v1"]
        return ["agentd.environments.standin", "--broker", broker, *who, "--log", str(self._state / ROBOT_LOG), "--change-from-stdin"]

    def _configure(self, port: int) -> Path:
        agents = self._state / "agents"
        shutil.copytree(find(AGENT), agents / AGENT, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        lines = [
            'agents = "agents"',
            'state_directory = "."',
            f'broker_url = "mqtt://127.0.0.1:{port}"',
            "http_port = 0",
        ]
        if self._options.seed is not None:
            lines.append(f"seed = {self._options.seed}")
        if self._options.models:
            lines.append(f"models = {json.dumps(list(self._options.models))}")
        path = self._state / "agentd.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    async def _connect(self, daemon: Child) -> Client:
        """The daemon's API once it hosts the agent. Raises DemoError where the daemon ends before, or takes too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_TIMEOUT):
                while daemon.process.returncode is None:
                    with contextlib.suppress(DaemonUnreachable):
                        async with AsyncExitStack() as stack:
                            client = await stack.enter_async_context(Client.from_state(self._state))
                            status = await client.status()
                            if status.get("broken"):
                                raise DemoError("\n".join(status["broken"].values()))
                            if any(agent["name"] == AGENT for agent in status["agents"]):
                                stack.pop_all()
                                self._url = client.url
                                self._view.url = client.page_url
                                return client
                    await asyncio.sleep(0.1)
        raise DemoError(f"the daemon did not start; the end of {daemon.log}:\n{daemon.log.read_text(errors='replace')[-600:]}")

    async def _follow(self, client: Client) -> None:
        after = 0
        while True:
            with contextlib.suppress(AgentdError):
                async for event in client.follow(after=after):
                    after = max(after, int(event.get("seq", 0)))
                    self._story.take(event)
                    self._view.event(event)
                    self._changed.set()
            await asyncio.sleep(0.5)

    async def _until(self, what: str, condition: Callable[[], Awaitable[bool]], timeout: float = STAGE_TIMEOUT) -> None:  # noqa: ASYNC109 - as `line`
        """Wait until a condition holds; looked at after every event, and twice a second."""
        try:
            async with asyncio.timeout(timeout):
                while not await condition():
                    self._changed.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._changed.wait(), 0.5)
        except TimeoutError:
            raise DemoError(f"waited {timeout:.0f} s in vain for this: {what}") from None

    async def _all_told(self) -> bool:
        """The stream of events is a little behind the API's answers."""
        told = {attempt.release: attempt.verdict for attempt in self._story.attempts.values()}
        return all(told.values()) and all(told.get(bad.release) == bad.verdict for bad in self._story.bad)

    # --- stages ------------------------------------------------------------------------------------------------------

    async def _healthy(self, client: Client) -> None:
        self._view.stage("the shipped controller balances; the watch learns what is normal")

        async def known_good() -> bool:
            state = (await client.agent(AGENT)).get("state") or {}
            return state.get("last_good") is not None and len(self._story.scores[HEALTHY]) >= HEALTHY_EPISODES

        await self._until("the shipped revision is known to be good", known_good)

    async def _broken(self, robot: Child) -> None:
        self._view.stage(f"the robot changes: {self._options.change}")
        await robot.tell(f"change {self._options.change}")
        answer = await robot.line(START_TIMEOUT)
        if answer != f"changed {self._options.change}":
            raise DemoError(f"the robot can't make this change: {answer}")
        self._story.stage = BROKEN
        alarms = self._story.alarms

        async def alarmed() -> bool:
            return self._story.alarms > alarms

        await self._until("the watch raises an alarm", alarmed)

    async def _recover(self, client: Client) -> None:
        self._view.stage("the optimizer proposes, candidates go through canaries")
        broken = (await client.agent(AGENT))["state"]["stable"]

        async def recovered() -> bool:
            state = (await client.agent(AGENT))["state"]
            return state["stable"] != broken and not state.get("improving", False)

        await self._until("a promoted revision reaches the score from before the change", recovered, RECOVERY_TIMEOUT)
        self._story.stage = RECOVERED
        self._view.stage("a better revision is stable; it has to hold before it counts as good")

        async def good() -> bool:
            state = (await client.agent(AGENT))["state"]
            return state.get("last_good") == state["stable"] and len(self._story.scores[RECOVERED]) >= AFTER_EPISODES

        await self._until("the promoted revision is known to be good", good)

    async def _attack(self, client: Client) -> None:
        self._story.stage = ATTACKED
        code = (await client.parameters(AGENT))["act"]
        for name, make, force in (
            ("reads a file and opens a socket", reads_a_file, False),
            ("is worse", worse, False),
            ("is subtly worse, and forced past its canary", subtly_worse, True),
        ):
            self._view.stage(f"submitted on purpose: a revision that {name}")
            bad = Bad(name)
            self._story.bad.append(bad)
            await self._submit(client, bad, make(code), force=force)

    async def _submit(self, client: Client, bad: Bad, code: str, *, force: bool) -> None:
        good = (await client.agent(AGENT))["state"]["stable"]
        release = await client.submit(AGENT, {"act": code}, note=f"the demo: {bad.name}")
        bad.release = release["id"]

        async def at_canary() -> bool:
            phase = (await client.release(bad.release))["phase"]
            return phase not in {"proposed", "validated", "screened"}

        async def ended() -> bool:
            return (await client.release(bad.release))["phase"] in {"rejected", "pruned", "inconclusive", "aborted", "rolled_back"}

        if force:
            await self._until("the release reaches its canary", at_canary)
            await client.promote(AGENT, bad.release, reason="the demo's operator is in a hurry")
        await self._until(f"the revision that {bad.name} is stopped", ended)
        final = await client.release(bad.release)
        stable = (await client.agent(AGENT))["state"]["stable"]
        bad.verdict = final["phase"]
        bad.stopped = stable == good and (final["phase"] == "rolled_back") == force and final["phase"] != "promoted"
        bad.how = f"{final['phase'].replace('_', ' ')} by {final.get('stage') or 'the operator'}: {final.get('reason', '')}"

    async def _serve(self) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in ENDING:
            loop.add_signal_handler(number, stop.set)
        self._view.serving()
        await stop.wait()


def actions_applied(log: Path) -> dict[str, int]:
    """The robot's own count: ticks, and where the actions that it applied came from."""
    sources = Counter(json.loads(line)["source"] for line in log.read_text().splitlines()) if log.exists() else Counter()
    del sources["rest"]  # between episodes, of which nobody was asked
    return {"ticks": sources.total(), "actions": sources["action"], "safe": sources["safe"], "fallback": sources["fallback"]}


def run_demo(options: Options) -> int:
    """`agentd demo`: 0 if the score recovered and all three bad revisions were stopped."""
    state = options.state or Path(tempfile.mkdtemp(prefix="agentd-demo-"))
    state.mkdir(parents=True, exist_ok=True)
    os.chmod(state, 0o700)  # noqa: PTH101 - tokens will lie in it
    try:
        return asyncio.run(Demo(options, state).run())
    except AgentdError as error:
        print(f"agentd demo: {error}", file=sys.stderr)  # noqa: T201 - the way out of the process
        return 1
