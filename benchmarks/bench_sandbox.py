"""What the sandbox costs: a policy call against an empty echo over the same kind of channel, the start of workers, their memory.

Run `python benchmarks/bench_sandbox.py`. Ratios are taken in one run on one machine, in interleaved blocks, since absolute times depend on
both.
"""

import asyncio
import os
import socket
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from agentd.records import Source, make_revision
from agentd.sandbox import Limits, PolicyWorker, Zygote
from agentd.sandbox.zygote import packet_pair

BLOCKS = 30
CALLS = 400
WORKERS = 50

IDENTITY = "class P:\n    def act(self, observation):\n        return observation\n"
CONTROLLER = """
from agentd.trace import bundle, model, node

@model
class P:
    def __init__(self):
        self.k1, self.k2, self.k3, self.k4 = (node(value, trainable=True) for value in (0.5, 1.0, 10.0, 2.0))

    def act(self, observation):
        x, v, a, w = (observation[index] for index in range(4))
        return self.k1 * x + self.k2 * v + self.k3 * a + self.k4 * w
"""
LAW = """
from agentd.trace import bundle, model

@model
class P:
    @bundle(trainable=True)
    def act(self, observation):
        return 1.0
"""
OBSERVATION = [0.1, -0.2, 0.03, 0.4]


class Echo:
    """The bare minimum: one send, one callback, one receive; the other end sends back what it got."""

    def __init__(self) -> None:
        self._ours, theirs = packet_pair()
        self._child = os.fork()
        if self._child == 0:
            self._ours.close()
            _echo(theirs)
        theirs.close()
        self._ours.setblocking(False)  # noqa: FBT003 - the standard library takes it by position
        self._buffer = bytearray(65_537)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._ours, self._read)
        self._future: asyncio.Future[int] = self._loop.create_future()

    async def call(self) -> None:
        self._future = self._loop.create_future()
        self._ours.send(b"x" * 60)
        await self._future

    def _read(self) -> None:
        self._future.set_result(self._ours.recv_into(self._buffer))

    def close(self) -> None:
        self._loop.remove_reader(self._ours)
        self._ours.close()
        os.waitpid(self._child, 0)


def _echo(connection: socket.socket) -> None:
    buffer = bytearray(65_537)
    view = memoryview(buffer)
    while size := connection.recv_into(buffer):
        connection.send(view[:size])
    os._exit(0)


async def start(zygote: Zygote, text: str) -> PolicyWorker:
    source = Source(digest="d", files={"controller.py": text}, entrypoint="controller:P")
    limits = Limits(step_timeout=30.0, load_timeout=60.0)
    worker = await PolicyWorker.start(zygote, source=source, revision=make_revision("a", "d", {}), limits=limits, on_log=print)
    await worker.reset("robot", "e", 1)
    return worker


async def block(call: Callable[[], Awaitable[object]], times: list[float]) -> None:
    for _ in range(CALLS):
        before = time.perf_counter()
        await call()
        times.append(time.perf_counter() - before)


def report(name: str, times: list[float], baseline: list[float]) -> None:
    ordered = sorted(times)
    p50, p99 = statistics.median(ordered), ordered[len(ordered) * 99 // 100]
    ratio = p50 / statistics.median(baseline)
    print(f"{name:34} p50 {p50 * 1e6:7.1f} us   p99 {p99 * 1e6:7.1f} us   {ratio:5.2f} times an empty round trip")


async def round_trips() -> None:
    echo = Echo()
    times: dict[str, list[float]] = {
        name: []
        for name in ("empty round trip", "empty request", "identity policy", "controller of 7 operators", "code parameter", "leaf call")
    }
    async with (
        await Zygote.start(imports=("math", "numpy")) as zygote,
        await Zygote.start(imports=("math", "numpy"), scope="code") as trusting,
        await start(zygote, LAW) as law,
        await start(trusting, LAW) as leaf,
    ):
        print(f"isolation level {zygote.level}; Landlock ABI {zygote.isolation.landlock_abi}")
        async with await start(zygote, IDENTITY) as identity, await start(zygote, CONTROLLER) as controller:
            for index in range(BLOCKS):
                for worker in (identity, controller, law, leaf):
                    await worker.reset("robot", "e", index)
                await block(echo.call, times["empty round trip"])
                await block(lambda: identity.state("robot"), times["empty request"])  # the same channel and process, and no policy
                await block(lambda: identity.act("robot", 0, OBSERVATION), times["identity policy"])
                await block(lambda: controller.act("robot", 0, OBSERVATION), times["controller of 7 operators"])
                await block(lambda: law.act("robot", 0, OBSERVATION), times["code parameter"])
                await block(lambda: leaf.act("robot", 0, OBSERVATION), times["leaf call"])  # the same program, with scope = "code"
    echo.close()
    for name, found in times.items():
        report(name, found, times["empty round trip"])


async def starts() -> None:
    before = time.perf_counter()
    async with await Zygote.start(imports=("math", "numpy")) as zygote:
        print(f"zygote with numpy: {(time.perf_counter() - before) * 1e3:.0f} ms")
        times, workers = [], []
        for _ in range(WORKERS):
            before = time.perf_counter()
            workers.append(await start(zygote, CONTROLLER))
            times.append(time.perf_counter() - before)
        own = [_own_memory(worker.pid) for worker in workers]
        print(f"worker, locked and loaded: p50 {statistics.median(times) * 1e3:.1f} ms, worst of {WORKERS} {max(times) * 1e3:.1f} ms")
        print(f"memory of its own per worker: {statistics.median(own) / 1e6:.1f} MB")
        for worker in workers:
            await worker.aclose()


def _own_memory(pid: int) -> int:
    """Bytes that a process shares with nobody."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


if __name__ == "__main__":
    for name, run in (("asyncio", asyncio.run), ("uvloop", uvloop.run)):
        print(f"-- {name}")
        run(round_trips())
    print("-- starting")
    asyncio.run(starts())
