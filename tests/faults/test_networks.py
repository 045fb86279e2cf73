"""Networks that are slow, stall, lose packets or are cut, between a real runner, a real broker and a robot with its own log.

The robot's log is the witness: at each tick the plant got one action, and none that came too late. A wire through this process delays and
stalls; where the machine has network namespaces, the kernel cuts, delays and loses for real.
"""

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import time
from pathlib import Path

import pytest
from brokers import Mosquitto
from witness import PATIENCE, Robot


class Wire:
    """A TCP connection through this process. `delay` gives the seconds that each piece takes; `flowing` can be cleared."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.delay = lambda: 0.0
        self.flowing = asyncio.Event()
        self.flowing.set()

    @contextlib.asynccontextmanager
    async def open(self):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader, writer):
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
            pipes = [asyncio.create_task(self._pipe(reader, far_writer)), asyncio.create_task(self._pipe(far_reader, writer))]
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
            for pipe in pipes:
                pipe.cancel()
            far_writer.close()
        writer.close()

    async def _pipe(self, reader, writer):
        pieces = asyncio.Queue()

        async def deliver():
            loop = asyncio.get_running_loop()
            while True:
                due, piece = await pieces.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                await self.flowing.wait()
                writer.write(piece)

        delivering = asyncio.create_task(deliver())
        try:
            with contextlib.suppress(OSError):
                while piece := await reader.read(65536):
                    pieces.put_nowait((asyncio.get_running_loop().time() + self.delay(), piece))
        finally:
            delivering.cancel()


@pytest.mark.long
async def test_over_a_slow_wire_each_action_still_meets_its_own_tick(mosquitto, serve_cartpole, tmp_path, until):
    wire = Wire(mosquitto.port)
    generator = random.Random(1)
    wire.delay = lambda: generator.uniform(0.005, 0.03)
    async with wire.open() as url, Robot(tmp_path / "robot.jsonl", url) as robot:
        reader = await serve_cartpole(mosquitto.url)
        await until(lambda: reader.finished >= 2)
        assert robot.sources()["action"] > 60
        robot.prove_with(reader)
        await reader.aclose()


async def test_on_a_wire_slower_than_its_patience_the_robot_helps_itself_and_applies_nothing_late(
    mosquitto, serve_cartpole, tmp_path, until
):
    wire = Wire(mosquitto.port)
    async with wire.open() as url, Robot(tmp_path / "robot.jsonl", url) as robot:
        reader = await serve_cartpole(mosquitto.url)
        await until(lambda: reader.finished)
        wire.delay = lambda: PATIENCE
        await until(lambda: robot.sources()["fallback"] > 2)
        known = len(robot.applied())
        await until(lambda: len(robot.applied()) > known + 5)
        assert set(robot.sources(known)) == {"fallback"}, "an action took the way out and back: it is always too late"
        wire.delay = lambda: 0.0
        known = reader.finished
        await until(lambda: reader.finished > known + 1)
        robot.prove_with(reader)
        await reader.aclose()


async def test_what_a_stalled_wire_held_back_is_not_applied_when_it_flows_again(mosquitto, serve_cartpole, tmp_path, until):
    wire = Wire(mosquitto.port)
    async with wire.open() as url, Robot(tmp_path / "robot.jsonl", url) as robot:
        reader = await serve_cartpole(mosquitto.url)
        for _ in range(3):
            known = reader.finished
            await until(lambda known=known: reader.finished > known)
            wire.flowing.clear()
            fallbacks = robot.sources()["fallback"]
            await until(lambda fallbacks=fallbacks: robot.sources()["fallback"] > fallbacks + 2)
            wire.flowing.set()
        known = reader.finished
        await until(lambda: reader.finished > known)
        robot.prove_with(reader)
        await reader.aclose()


# --- for real, between network namespaces -----------------------------------------------------------------------------


def _ip(*arguments):
    return subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)


class Network:
    """A namespace with one cable to here. Names and addresses are this process's own."""

    def __init__(self) -> None:
        number = os.getpid() % 16000
        self.name, self._end = f"agentd{number}", f"agv{number}"
        net = f"10.{64 + number // 256}.{number % 256}"
        self.here, self.there = f"{net}.1", f"{net}.2"
        self.within = ("ip", "netns", "exec", self.name)

    def build(self) -> str:
        """Why this machine can't, "" if it can."""
        steps = (
            ("netns", "add", self.name),
            ("link", "add", self._end, "type", "veth", "peer", "name", "far", "netns", self.name),
            ("addr", "add", f"{self.here}/24", "dev", self._end),
            ("link", "set", self._end, "up"),
            ("-n", self.name, "addr", "add", f"{self.there}/24", "dev", "far"),
            ("-n", self.name, "link", "set", "far", "up"),
            ("-n", self.name, "link", "set", "lo", "up"),
        )
        for step in steps:
            done = _ip(*step)
            if done.returncode != 0:
                return f"`ip {' '.join(step)}` failed: {done.stderr.strip()}"
        return ""

    def cut(self) -> None:
        assert _ip("link", "set", self._end, "down").returncode == 0

    def mend(self) -> None:
        assert _ip("link", "set", self._end, "up").returncode == 0

    def disturb(self, *how: str) -> str:
        """Delay and lose packets on both ways, by a discipline of queueing; why the kernel can't, "" if it can."""
        for within in ((), self.within):
            device = "far" if within else self._end
            done = subprocess.run(
                [*within, "tc", "qdisc", "replace", "dev", device, "root", *how], check=False, capture_output=True, text=True
            )
            if done.returncode != 0:
                return f"tc {how[0]}: {done.stderr.strip()}"
        return ""

    def lost(self) -> int:
        """Packets that were dropped on the way from here."""
        told = subprocess.run(["tc", "-s", "qdisc", "show", "dev", self._end], check=True, capture_output=True, text=True).stdout
        return int(told.partition("dropped ")[2].partition(",")[0])

    @contextlib.asynccontextmanager
    async def crowded(self):
        """Send 50 kB a second to nobody: where the cable carries no more, some of everybody's packets are lost."""

        async def send():
            due = time.monotonic()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as crowd:
                while True:
                    with contextlib.suppress(OSError):
                        crowd.sendto(bytes(500), (self.there, 9))
                    due += 0.01
                    await asyncio.sleep(due - time.monotonic())

        sending = asyncio.create_task(send())
        yield
        sending.cancel()

    def remove(self) -> None:
        _ip("netns", "del", self.name)
        _ip("link", "del", self._end)


@pytest.fixture
def network():
    made = Network()
    if not Path("/usr/sbin/ip").exists() and not Path("/sbin/ip").exists():
        pytest.skip("there is no iproute2")
    try:
        reason = made.build()
        if reason:
            pytest.skip(f"no network namespaces here: {reason}")
        yield made
    finally:
        made.remove()


@pytest.fixture(params=["robot", "robot and broker"])
def divided(request, network, tmp_path):
    """A broker on one side of the cable, and how a robot on the far side is started: alone there, or with the broker."""
    if request.param == "robot":
        broker = Mosquitto(tmp_path, host=network.here)
    else:
        broker = Mosquitto(tmp_path, host=network.there, within=network.within)
    broker.start()
    yield broker
    broker.kill()


@pytest.mark.long  # a cut is noticed by TCP's silence: after seconds
async def test_a_network_that_is_cut_leaves_the_robot_to_its_fallback_and_everything_comes_back(
    divided, network, serve_cartpole, tmp_path, until
):
    async with Robot(tmp_path / "robot.jsonl", divided.url, within=network.within) as robot:
        reader = await serve_cartpole(divided.url)
        for _ in range(3):
            known = reader.finished
            await until(lambda known=known: reader.finished > known + 1, limit=90)
            network.cut()
            fallbacks = robot.sources()["fallback"]
            await until(lambda fallbacks=fallbacks: robot.sources()["fallback"] > fallbacks + 3)
            network.mend()
        known = reader.finished
        await until(lambda: reader.finished > known + 1, limit=90)
        robot.prove_with(reader)
        await reader.aclose()


@pytest.mark.long
@pytest.mark.parametrize(
    "how",
    [
        ("netem", "delay", "40ms", "20ms"),
        ("netem", "loss", "5%"),
        ("netem", "delay", "20ms", "10ms", "loss", "3%", "reorder", "10%"),
        ("tbf", "rate", "400kbit", "burst", "1600", "limit", "3000"),  # a thin cable that others use, too
    ],
    ids=" ".join,
)
async def test_over_a_network_that_delays_and_loses_no_tick_is_without_an_action(divided, network, serve_cartpole, tmp_path, until, how):
    reason = network.disturb(*how)
    if reason:
        pytest.skip(f"this kernel can't disturb a network: {reason}")
    async with Robot(tmp_path / "robot.jsonl", divided.url, within=network.within) as robot, network.crowded():
        reader = await serve_cartpole(divided.url)
        await until(lambda: reader.finished > 3, limit=120)
        robot.prove_with(reader)
        await reader.aclose()
    assert network.lost() or ("loss" not in how and "tbf" not in how)
