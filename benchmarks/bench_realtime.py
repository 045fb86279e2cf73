"""A plant at 100 Hz through a release, a promotion and a rollback, with its daemon stopped, killed and started again.

Run `python benchmarks/bench_realtime.py [--seconds 60]`. Broker, daemon, runner and plant are processes of their own; the plant is never
reset and keeps its own log of what it applied at each tick, which is the only witness here. Then: the time of a switch, from the route to
the first action of the new revision, and what an agent with a locked worker takes of memory and start time.
"""

import argparse
import asyncio
import collections
import contextlib
import hashlib
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import uvloop

from agentd.cli.client import Client
from agentd.clock import SystemClock
from agentd.device import Applied, Device
from agentd.errors import AgentdError
from agentd.records import Source, make_revision
from agentd.runners.forkserver import Forkserver
from agentd.runners.local import Finished, LocalRunner, Lost
from agentd.runners.paths import RunnerPaths, lock_holder
from agentd.runners.realtime import PRIORITY, go_first
from agentd.spec import AgentSpec, load_agent

SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
CONTROLLER = '''
from agentd.trace import bundle, model, node


@model
class Servo:
    """Proportional and integral: what the integral has learned of the load must survive every switch."""

    def __init__(self):
        self.gain = node(2.0, trainable=True, bounds=(0.5, 8.0))
        self.integral = 0.0

    def act(self, observation):
        self.integral = max(-5.0, min(5.0, self.integral + 0.01 * (1.0 - observation.data)))
        return self.force(observation, self.gain, self.integral)

    @bundle()
    def force(self, observation, gain, integral):
        """Push towards 1."""
        return max(-10.0, min(10.0, gain * (1.0 - observation) + 1.5 * integral))

    def state(self):
        return {"integral": self.integral}

    def load_state(self, state):
        self.integral = max(-5.0, min(5.0, state["integral"]))
'''
FEEDBACK = """
def explain(episode):
    error = sum(abs(1.0 - step.observation) for step in episode.steps) / max(1, len(episode.steps))
    return max(0.0, 1.0 - error), f"mean error {error:.3f}"
"""
AGENT = """
schema = 1
[agent]
name = "servo"
entrypoint = "controller:Servo"
mode = "release"
[environment]
kind = "mqtt"
observation_space = {{ low = -1000.0, high = 1000.0 }}
action_space = {{ low = -10.0, high = 10.0 }}
[environment.mqtt]
deadline_ms = {deadline_ms}
episode_ticks = {episode_ticks}
realtime = {realtime}
[environment.safe_action]
value = 0.0
[feedback]
entrypoint = "feedback:explain"
[optimizer]
algorithm = "search"
trigger = "manual"
[release]
max_pairs = 100000
prune = {{ after_pairs = 10000, below = -1.0 }}
[guardrails]
deadline_misses_per_episode = 50
"""


# --- the plant --------------------------------------------------------------------------------------------------------


async def plant(arguments: argparse.Namespace) -> None:
    """Hold a load: a body with friction. Each tick is a line of the log: step, source, revision, seconds waited, time."""
    if arguments.realtime:
        go_first()
    position = speed = 0.0

    def step(action: float) -> tuple[float, float, bool, bool, dict[str, Any]]:
        nonlocal position, speed
        speed += 0.01 * (float(action) - 2.0 * speed - 1.0)  # the load is what only the integral knows
        position += 0.01 * speed
        return position, -abs(1.0 - position), False, False, {}

    with arguments.log.open("a", buffering=1) as log:

        def note(applied: Applied) -> None:
            line = [applied.episode, applied.step, applied.source, applied.revision, applied.waited, time.monotonic(), applied.action]
            log.write(json.dumps(line) + "\n")

        device = Device(
            arguments.plant,
            "servo-1",
            agent=arguments.agent,
            on_reset=lambda _: position,
            on_step=step,
            fallback=0.0,
            action_timeout=arguments.action_timeout_ms / 1000.0,
            step_interval=1.0 / arguments.rate,
            max_steps=2**31 - 1,
            seedable=False,
            log=note,
        )
        await device.run()


class Log:
    """What the plant applied."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[list[Any]]:
        """All that is whole so far."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]


# --- processes --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(*command: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run beside, and end."""
    with subprocess.Popen(command, **options) as running:
        try:
            yield running
        finally:
            running.send_signal(signal.SIGCONT)
            running.kill()


@contextlib.contextmanager
def mosquitto(folder: Path, *, realtime: bool) -> Iterator[str]:
    """A broker; its address."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configuration = folder / "mosquitto.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nlog_type error\n")
    with process("/usr/sbin/mosquitto", "-c", str(configuration)) as broker:
        if realtime:
            with contextlib.suppress(PermissionError):
                os.sched_setscheduler(broker.pid, os.SCHED_FIFO, os.sched_param(PRIORITY))
        limit = time.monotonic() + 10
        while time.monotonic() < limit:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.02)
        yield f"mqtt://127.0.0.1:{port}"


def plant_command(arguments: argparse.Namespace, url: str, log: Path, agent: str) -> list[str]:
    """This file, as the plant."""
    numbers = [f"--rate={arguments.rate}", f"--action-timeout-ms={arguments.action_timeout_ms}"]
    more = ["--realtime"] if arguments.realtime else []
    return [sys.executable, __file__, f"--plant={url}", f"--log={log}", f"--agent={agent}", *numbers, *more]


async def until(condition: Callable[[], Any], limit: float = 60.0) -> Any:
    """Wait for a condition, sync or async."""
    async with asyncio.timeout(limit):
        while True:
            with contextlib.suppress(AgentdError):
                result = condition()
                if asyncio.iscoroutine(result):
                    result = await result
                if result:
                    return result
            await asyncio.sleep(0.05)


def write_agent(folder: Path, arguments: argparse.Namespace) -> Path:
    """The agent's folder."""
    target = folder / "agents" / "servo"
    target.mkdir(parents=True)
    realtime = "true" if arguments.realtime else "false"
    text = AGENT.format(deadline_ms=arguments.deadline_ms, episode_ticks=arguments.episode_ticks, realtime=realtime)
    (target / "agent.toml").write_text(text)
    (target / "controller.py").write_text(CONTROLLER)
    (target / "feedback.py").write_text(FEEDBACK)
    return target


class Site:
    """A daemon that can be stopped, killed and started again."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.config = folder / "agentd.toml"
        settings = {"agents": str(folder / "agents"), "state_directory": str(folder / "state"), "broker_url": url, "http_port": 0}
        self.config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
        self.daemon: subprocess.Popen[bytes] | None = None
        self.client: Client

    async def start(self) -> None:
        """Until it answers and the agent is up."""
        command = [sys.executable, "-m", "agentd", "run", "--config", str(self.config)]
        with (self.folder / "daemon.log").open("ab") as log:
            self.daemon = await asyncio.to_thread(subprocess.Popen, command, stdout=log, stderr=log)

        async def answers() -> bool:
            client = Client.from_state(self.folder / "state")
            if self.daemon is not None and (await client.status())["pid"] == self.daemon.pid:
                self.client = client
                return bool(((await client.agent("servo")).get("state") or {}).get("stable"))
            await client.aclose()
            return False

        await until(answers)

    def signal(self, number: signal.Signals) -> None:
        """To the daemon, and to nobody else."""
        if self.daemon is not None:
            self.daemon.send_signal(number)

    def end(self) -> None:
        """The daemon, and the runner that would outlive it."""
        if self.daemon is not None:
            self.daemon.send_signal(signal.SIGCONT)
            self.daemon.kill()
            self.daemon.wait()
        holder = lock_holder(RunnerPaths.under(self.folder / "state", "servo").lock)
        if holder is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(holder, signal.SIGKILL)


# --- 100 Hz -----------------------------------------------------------------------------------------------------------


async def life(arguments: argparse.Namespace, folder: Path, url: str) -> dict[str, Any]:
    """Three thirds: releases; a daemon that stands still; one that is killed and started again."""
    write_agent(folder, arguments)
    site, log = Site(folder, url), Log(folder / "plant.jsonl")
    marks: list[tuple[str, float, float]] = []
    third = arguments.seconds / 3

    def mark(name: str) -> None:
        marks.append((name, time.monotonic(), stolen()))

    with process(*plant_command(arguments, url, log.path, "servo")):
        try:
            await site.start()
            await until(lambda: len(log.lines()) > 2 * arguments.rate)  # it runs, and imports are over
            mark("release, promotion, rollback")
            await releases(site, third)
            mark("daemon stopped (SIGSTOP)")
            site.signal(signal.SIGSTOP)
            await asyncio.sleep(third * 2 / 3)
            site.signal(signal.SIGCONT)
            await asyncio.sleep(third / 3)
            before = await site.client.agent("servo")
            mark("daemon killed and started again")
            site.signal(signal.SIGKILL)
            await asyncio.sleep(third / 2)
            await site.start()
            await asyncio.sleep(third / 2)
            mark("end")
            after = await site.client.agent("servo")
            episodes = await site.client.episodes("servo", limit=1000)
        finally:
            site.end()
    lines = log.lines()
    found = {
        name: judged(lines, begin, end, arguments) | {"stolen s": round(stolen_after - stolen_before, 2)}
        for (name, begin, stolen_before), (_, end, stolen_after) in itertools.pairwise(marks)
    }
    return {"parts": found, "adopted": before["runner_session"] == after["runner_session"], "episodes": len(episodes)}


async def releases(site: Site, seconds: float) -> None:
    """A canary that an operator promotes, and rolls back; as often as there is time."""
    end = time.monotonic() + seconds
    client, gain = site.client, itertools.count(1)
    while time.monotonic() < end:
        before = (await client.agent("servo"))["state"]["stable"]
        release = await client.submit("servo", {"gain": 2.0 + 0.01 * next(gain)})
        enough = min(2, max(1, int(seconds / 10)))

        async def tried(name: str = release["id"], enough: int = enough) -> bool:
            return bool((await client.release(name))["pairs"] >= enough)

        await until(tried)
        await client.promote("servo", release["id"])
        await asyncio.sleep(min(2.0, seconds / 10))
        await client.set_desired("servo", before)
        await asyncio.sleep(min(2.0, seconds / 10))


def judged(lines: list[list[Any]], begin: float, end: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the plant's log says of a part of its life."""
    part = [line for line in lines if begin <= line[5] < end]
    waits = sorted(line[4] for line in part if line[2] != "fallback")
    gaps = sum(after[1] != before[1] + 1 or after[0] != before[0] for before, after in itertools.pairwise(part))
    sources = collections.Counter(line[2] for line in part)
    return {
        "ticks": len(part),
        "seconds": round(end - begin, 1),
        "ticks without exactly one action": gaps,
        "actions applied after their time": sum(
            line[2] != "fallback" and line[4] > arguments.action_timeout_ms / 1000 + 0.001 for line in part
        ),
        "by source": dict(sources),
        "revisions": len({line[3] for line in part if line[2] == "action"}),
        "p50 ms": round(1000 * quantile(waits, 0.5), 2),
        "p99 ms": round(1000 * quantile(waits, 0.99), 2),
        "p99.9 ms": round(1000 * quantile(waits, 0.999), 2),
        "max ms": round(1000 * waits[-1], 2) if waits else None,
        "rate Hz": round(len(part) / max(0.001, end - begin), 2),
    }


def stolen() -> float:
    """Seconds for which another guest of this machine's host had the cores, all cores added up: no program here can answer then."""
    return getattr(psutil.cpu_times(), "steal", 0.0)


def quantile(ordered: list[float], share: float) -> float:
    """The value that this share of them doesn't exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


# --- switches ---------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def a_runner(folder: Path, url: str, name: str, spec: AgentSpec, forkserver: Forkserver | None = None) -> AsyncIterator[LocalRunner]:
    """A runner without a daemon; what it tells is acknowledged."""
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    runner = await LocalRunner.adopt_or_start(
        spec=spec, state_directory=folder, epoch=1, broker=url, clock=SystemClock(), seed=1, forkserver=forkserver
    )

    async def listen() -> None:
        while True:
            match await runner.next():
                case Finished(episode=finished):
                    await runner.acknowledge(finished.id)
                case Lost():
                    return

    listening = asyncio.create_task(listen(), name=f"listen-{name}")
    try:
        yield runner
    finally:
        await runner.drain(0.2)
        await listening


async def switches(arguments: argparse.Namespace, folder: Path, url: str) -> dict[str, Any]:
    """Two warm revisions in turns; from the route to the plant's first action of the new one, by the plant's clock.

    The rest of the tick is counted in two ways. As the runner knows it: it has the request, and the next observation ends the tick. What
    is beyond it is the way of the request and back, and what passes from the next observation after that to the new revision's first
    action; a whole tick more where the new policy wasn't ready for that observation. As the asker knows it: the next observation that the
    plant sends ends the tick. That one may be faster than the request; then the old revision answers it, and a whole tick is beyond.
    """
    spec, source = load_agent(write_agent(folder, arguments))
    log = Log(folder / "switches.jsonl")
    revisions = [make_revision("servo", source.digest, {"gain": gain}) for gain in (2.0, 2.5)]
    times: list[tuple[str, float, float]] = []
    async with a_runner(folder / "state-of-switches", url, "switches", spec) as runner:
        for revision in revisions:
            await runner.load(source, revision)
        await runner.route(revisions[0].id)
        with process(*plant_command(arguments, url, log.path, "servo")):
            await until(lambda: len(log.lines()) > arguments.rate)
            for number in range(1, arguments.switches + 1):
                await asyncio.sleep(0.05 + 0.0137 * (number % 7))
                asked_at = time.monotonic()
                await runner.route(revisions[number % 2].id)
                times.append((revisions[number % 2].id, asked_at, time.monotonic()))
            await asyncio.sleep(0.5)
    lines = log.lines()
    found: dict[str, list[float]] = collections.defaultdict(list)
    for (wanted, at, answered), (_, following, _) in itertools.pairwise([*times, ("", float("inf"), 0.0)]):
        later = [line for line in lines if at <= line[5] < following]
        first = next((line for line in later if line[3] == wanted and line[2] == "action"), None)
        observed = next((line[5] - line[4] for line in later if line[5] - line[4] >= at), None)
        if first is None or observed is None:
            continue
        found["route to first action"].append(first[5] - at)
        found["request and answer"].append(answered - at)
        found["observation to first action"].append(first[4])
        found["beyond the rest of the tick, as the asker knows it"].append(first[5] - observed)
        known = next((line[5] - line[4] for line in later if line[5] - line[4] >= answered), first[5] - first[4])
        taken = min(known, first[5] - first[4])  # it may serve before the answer is here
        found["beyond the rest of the tick, as the runner knows it"].append(min(first[5] - at, answered - at + first[5] - taken))
        found["observation faster than the request"].append(float(observed < min(answered, first[5] - first[4] - 0.001)))
        found["policy not ready in the tick of the answer"].append(float(first[5] - first[4] > known + 0.001))
    return {
        "switches": f"{len(found['route to first action'])} of {len(times)}",
        **{
            f"{name}, of them": int(sum(found.pop(name, [])))
            for name in ("observation faster than the request", "policy not ready in the tick of the answer")
        },
        **{
            f"{name}, ms": {label: round(1000 * quantile(sorted(seconds), share), 2) for label, share in SHARES.items()}
            for name, seconds in found.items()
        },
        "by source": dict(collections.Counter(line[2] for line in lines[arguments.rate :])),
    }


# --- many agents ------------------------------------------------------------------------------------------------------


async def agents(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Agents of their own, each with its runner, zygote and locked worker, started one after the other."""
    digest = hashlib.sha256(CONTROLLER.encode()).hexdigest()
    source = Source(digest=digest, files={"controller.py": CONTROLLER}, entrypoint="controller:Servo")
    times, memory = [], []
    before = _available()
    async with contextlib.AsyncExitStack() as stack:
        forkserver = None if arguments.no_forkserver else stack.enter_context(Forkserver())
        for number in range(arguments.agents):
            tables = {
                "schema": 1,
                "agent": {"name": f"servo-{number}", "entrypoint": "controller:Servo"},
                "environment": {"kind": "gymnasium", "id": "MountainCarContinuous-v0", "max_steps": 50, "episode_interval": 3600.0},
            }
            began = time.perf_counter()
            spec = AgentSpec.model_validate(tables)
            runner = await stack.enter_async_context(a_runner(folder / "many", "", f"{number}", spec, forkserver))
            await runner.load(source, make_revision(f"servo-{number}", digest, {}))
            times.append(time.perf_counter() - began)
            memory.append((runner.pid, before - _available()))
        own = [_proportional(pid) for pid, _ in memory]
        taken = memory[-1][1] / len(memory) if memory else 0.0
    return {
        "agents": len(times),
        "start, median s": round(statistics.median(times), 2),
        "start, longest s": round(max(times), 2),
        "memory of runner, zygote and worker, median MB": round(statistics.median(own) / 2**20, 1),
        "memory that the machine has less, per agent MB": round(taken / 2**20, 1),
    }


def _available() -> int:
    words = Path("/proc/meminfo").read_text().split()
    return 1024 * int(words[words.index("MemAvailable:") + 1])


def _proportional(pid: int) -> int:
    """Bytes of a process and all below it; what several share is divided among them."""
    total = 0
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
        total = 1024 * int(words[words.index("Pss:") + 1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        total += sum(_proportional(int(child)) for child in children)
    return total


# --- all --------------------------------------------------------------------------------------------------------------


async def main(arguments: argparse.Namespace) -> None:
    """Measure what is asked for."""
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, mosquitto(Path(name), realtime=arguments.realtime) as url:
        folder = Path(name)
        if arguments.seconds:
            (folder / "life").mkdir()
            report["life"] = await life(arguments, folder / "life", url)
        if arguments.switches:
            (folder / "switches").mkdir()
            report["switches"] = await switches(arguments, folder / "switches", url)
        if arguments.agents:
            report["agents"] = await agents(arguments, folder)
    sys.stdout.write(json.dumps(report, indent=None if arguments.json else 2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the plant's life, in three parts; 0: none")
    parser.add_argument("--rate", type=int, default=100, help="ticks a second")
    parser.add_argument("--deadline-ms", type=float, default=7.0, help="of the policy")
    parser.add_argument("--action-timeout-ms", type=float, default=10.0, help="after which the plant uses its own fallback")
    parser.add_argument("--episode-ticks", type=int, default=100)
    parser.add_argument("--switches", type=int, default=200)
    parser.add_argument("--agents", type=int, default=10)
    parser.add_argument("--no-forkserver", action="store_true", help="each of these agents' runners imports everything itself")
    parser.add_argument("--realtime", action="store_true", help="SCHED_FIFO for runner, broker and plant, where it is allowed")
    parser.add_argument("--json", action="store_true", help="on one line")
    parser.add_argument("--plant", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--agent", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    uvloop.run(plant(chosen) if chosen.plant else main(chosen))
