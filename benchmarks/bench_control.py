"""The control path: from an observation to its action over Mosquitto with QoS 0, against an aiomqtt echo between the same two ends.

Run `python benchmarks/bench_control.py`. The runner is a real one with a sandboxed policy; the echo is a process with nothing but aiomqtt
and uvloop. Blocks of both are interleaved, since absolute times depend on the machine and on what else runs on it; the first tick after a
reset and the ends of episodes are measured with the rest. Then the same once more with two processes that never rest beside it.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

import aiomqtt
import uvloop

from agentd.clock import SystemClock
from agentd.device import Inbox, connection_arguments
from agentd.records import Source, make_revision
from agentd.runners.local import Finished, LocalRunner, Lost
from agentd.spec import AgentSpec

TICKS = 400
"""In an episode, and in a block of echoes."""
OBSERVATION = [0.1, -0.2, 0.03, 0.4]
ACTION = b'{"session":"s","episode":"0123456789abcdef","step":123,"revision":"0123456789abcdef","action":1,"safe":false}'
TOPIC = "agentd/v1/devices/plant"
POLICIES = {
    "identity policy": "class Controller:\n    def act(self, observation):\n        return 1\n",
    "controller of 7 operators": """
from agentd.trace import model, node

@model
class Controller:
    def __init__(self):
        self.k1, self.k2, self.k3, self.k4 = (node(value, trainable=True) for value in (0.5, 1.0, 10.0, 2.0))

    def act(self, observation):
        x, v, a, w = (observation[index] for index in range(4))
        return 1 if self.k1 * x + self.k2 * v + self.k3 * a + self.k4 * w > 0 else 0
""",
}


class Plant:
    """Publishes, and waits for the answer. It does the same work whoever answers, and begins episodes when it is told to."""

    def __init__(self) -> None:
        self.commands: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answer: asyncio.Future[bytes] | None = None
        self._client: aiomqtt.Client

    @contextlib.asynccontextmanager
    async def connected(self, url: str) -> AsyncIterator[Self]:
        """Over one connection."""
        async with aiomqtt.Client(**connection_arguments(url), queue_type=Inbox.type_for(self._hear)) as self._client:
            await self._client.subscribe([(f"{TOPIC}/down/+", 0), ("echo/down", 0)])
            yield self

    def _hear(self, message: aiomqtt.Message) -> None:
        if str(message.topic).endswith("command"):
            self.commands.put_nowait(json.loads(message.payload))
        elif self._answer is not None and not self._answer.done() and not str(message.topic).endswith("heartbeat"):
            self._answer.set_result(message.payload)

    async def round_trip(self, topic: str, payload: bytes) -> tuple[float, bytes]:
        """Seconds from the observation to its answer, and the answer."""
        self._answer = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        await self._client.publish(topic, payload)
        async with asyncio.timeout(20):
            answer = await self._answer
        return time.perf_counter() - began, answer

    async def say(self, kind: str, message: dict[str, Any], *, retain: bool = False) -> None:
        """As a device."""
        await self._client.publish(f"{TOPIC}/up/{kind}", json.dumps(message), retain=retain)


def observation(episode: str, step: int, **more: Any) -> dict[str, Any]:
    """A message with which the plant asks for an action."""
    return {"session": "s", "episode": episode, "step": step, "observation": OBSERVATION, "reward": 1.0} | more


async def episode(plant: Plant, pause: float, counts: dict[str, int]) -> list[float]:
    """The times of one episode of the runner's."""
    name = (await plant.commands.get())["episode"]
    times = []
    for step in range(TICKS):
        seconds, answer = await plant.round_trip(f"{TOPIC}/up/observation", json.dumps(observation(name, step)).encode())
        times.append(seconds)
        if json.loads(answer)["safe"]:
            counts["safe"] = counts.get("safe", 0) + 1
        await asyncio.sleep(pause)
    await plant.say("observation", observation(name, TICKS, truncated=True))
    return times


async def echoes(plant: Plant, pause: float) -> list[float]:
    """The times of one block of echoes."""
    times = []
    for step in range(TICKS):
        payload = json.dumps(observation("0123456789abcdef0123456789", step)).encode()
        times.append((await plant.round_trip("echo/up", payload))[0])
        await asyncio.sleep(pause)
    return times


async def echo(url: str) -> None:
    """The bare minimum: a message in, a message out."""
    async with aiomqtt.Client(**connection_arguments(url)) as client:
        await client.subscribe("echo/up")
        async for _ in client.messages:
            await client.publish("echo/down", ACTION)


@contextlib.contextmanager
def processes(*commands: list[str]) -> Iterator[None]:
    """Run beside, and end."""
    running = [subprocess.Popen(command) for command in commands]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


@contextlib.contextmanager
def mosquitto(folder: Path) -> Iterator[str]:
    """A broker; its address."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configuration = folder / "mosquitto.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nlog_type error\n")
    with processes(["/usr/sbin/mosquitto", "-c", str(configuration)]):
        limit = time.monotonic() + 10
        while time.monotonic() < limit:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.02)
        yield f"mqtt://127.0.0.1:{port}"


async def drain(runner: LocalRunner) -> None:
    """Be its daemon: take what it tells."""
    while True:
        match await runner.next():
            case Finished(episode=finished):
                await runner.acknowledge(finished.id)
            case Lost():
                return


async def measure(name: str, text: str, folder: Path, url: str, arguments: argparse.Namespace) -> None:
    """One policy, interleaved with the echo."""
    environment = {
        "kind": "mqtt",
        "max_steps": TICKS + 1,
        "mqtt": {"deadline_ms": arguments.deadline_ms, "observation_timeout": 30.0},
        "observation_space": {"low": -100.0, "high": 100.0, "shape": [4]},
        "action_space": {"discrete": 2},
        "safe_action": {"value": 0},
    }
    spec = AgentSpec.model_validate(
        {"schema": 1, "agent": {"name": "bench", "entrypoint": "controller:Controller"}, "environment": environment}
    )
    digest = hashlib.sha256(text.encode()).hexdigest()
    source = Source(digest=digest, files={"controller.py": text}, entrypoint="controller:Controller")
    state = folder / digest[:8]
    state.mkdir(exist_ok=True)
    clock = SystemClock()
    runner = await LocalRunner.adopt_or_start(spec=spec, state_directory=state, epoch=1, broker=url, clock=clock, seed=1)
    daemon = asyncio.create_task(drain(runner))
    revision = make_revision("bench", digest, {})
    await runner.load(source, revision)
    await runner.route(revision.id)
    counts: dict[str, int] = {}
    actions: list[float] = []
    bare: list[float] = []
    ratios: list[float] = []
    async with Plant().connected(url) as plant:
        await plant.say("status", {"status": "ready", "session": "s", "agent": "bench"})
        await episode(plant, 0.0, {})  # the first is for warming up
        await echoes(plant, 0.0)
        for _ in range(arguments.blocks):
            ours = await episode(plant, arguments.pause, counts)
            await asyncio.sleep(0.1)  # the end of the episode is the runner's, not the echo's
            theirs = await echoes(plant, arguments.pause)
            ratios.append(statistics.median(ours) / statistics.median(theirs))
            actions += ours
            bare += theirs
        await plant.say("status", {"status": "stopped", "session": "s", "agent": "bench"})
    await runner.drain(1.0)
    await daemon
    print(f"{name} ({len(actions)} actions, {counts.get('safe', 0)} of them safe ones)")
    wanted = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    for label, share in wanted.items():
        our, their = (quantile(times, share) for times in (actions, bare))
        print(f"  {label:6} {our * 1e6:8.0f} us   echo {their * 1e6:8.0f} us   {our / their:5.2f} times")
    print(f"  median over the blocks of the ratio of their p50: {statistics.median(ratios):.2f}")
    print(f"  max    {max(actions) * 1e6:8.0f} us   echo {max(bare) * 1e6:8.0f} us")
    print(f"  mean   {statistics.fmean(actions) * 1e6:8.0f} us   echo {statistics.fmean(bare) * 1e6:8.0f} us")


def quantile(times: list[float], share: float) -> float:
    """The time that this share of them doesn't exceed."""
    return sorted(times)[min(len(times) - 1, int(len(times) * share))]


async def main(arguments: argparse.Namespace) -> None:
    """Measure each policy, without and with company."""
    hog = [sys.executable, "-c", "while True: pass"]
    with tempfile.TemporaryDirectory() as name, mosquitto(Path(name)) as url, processes([sys.executable, __file__, "--echo", url]):
        for policy, text in POLICIES.items():
            await measure(policy, text, Path(name), url, arguments)
        if arguments.hogs:
            with processes(*[hog] * arguments.hogs):
                for policy, text in POLICIES.items():
                    await measure(f"{arguments.hogs} CPU hogs, {policy}", text, Path(name), url, arguments)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=20, help=f"of {TICKS} ticks, of each kind")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between ticks; 0: as fast as answers come")
    parser.add_argument("--deadline-ms", type=float, default=100.0)
    parser.add_argument("--hogs", type=int, default=2, help="processes that never rest, in the second half")
    parser.add_argument("--echo", metavar="URL", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    uvloop.run(echo(chosen.echo) if chosen.echo else main(chosen))
