"""Attacks on the channel: lies about sizes, answers out of turn, to another request or for another device, and floods."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from escape import NUMBER, arena, assert_next_worker_serves, outcome, start

from agentd.errors import PolicyError, ProtocolViolation, WorkerDied, WorkerTimeout
from agentd.sandbox import Zygote

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def zygote() -> AsyncIterator[Zygote]:
    async with arena(2) as locked:
        yield locked


LIAR = (
    NUMBER
    + """
import os, struct, sys, time
import msgspec

def send(content):
    os.write(3, content)

def answer(number, value):
    return msgspec.msgpack.encode(["Answer", number, value])

class Liar:
    def __init__(self):
        self.loading = number()
    def act(self, observation):
        {lie}
        return 1
"""
)

LIES = {
    "answers twice": "send(answer(number(), 1))",
    "answers another request": "send(answer(number() ^ 1, 1)); time.sleep(60)",
    "answers the request before": "send(answer(self.loading, 1)); time.sleep(60)",
    "answers request zero": "send(answer(0, 1)); time.sleep(60)",
    "sends what is no MessagePack": "send(b'\\xff\\xfe hello'); time.sleep(60)",
    "sends JSON": "send(b'{}'); time.sleep(60)",
    "sends an answer of the wrong form": "send(msgspec.msgpack.encode(['Answer', 'one'])); time.sleep(60)",
    "sends an unknown message": "send(msgspec.msgpack.encode(['Promote', number(), True])); time.sleep(60)",
    "sends a cut answer": "send(answer(number(), 'x' * 100)[:50]); time.sleep(60)",
    "sends a packet that is too long": "send(b'\\xc0' * 65_537); time.sleep(60)",
    "announces four gigabytes": "send(struct.pack('>BI', 0xC1, 2**32 - 1)); time.sleep(60)",
    "announces more than the cap": "send(struct.pack('>BI', 0xC1, 5 * 1024 * 1024)); time.sleep(60)",
    "blows up a few bytes into many lists": (
        "content = b'\\x93\\xa6Answer\\xce' + struct.pack('>I', number()) + b'\\xdd' + struct.pack('>I', 2_000_000); "
        "content += b'\\x90' * 2_000_000; "
        "send(struct.pack('>BI', 0xC1, len(content))); "
        "[send(content[start : start + 65_536]) for start in range(0, len(content), 65_536)]; time.sleep(60)"
    ),
    "announces what fits into a packet": "send(struct.pack('>BI', 0xC1, 10)); time.sleep(60)",
    "sends a malformed announcement": "send(b'\\xc1'); time.sleep(60)",
    "sends a fragment that is too short": "send(struct.pack('>BI', 0xC1, 200_000)); send(b'x' * 10); time.sleep(60)",
    "sends a last fragment that is too long": (
        "send(struct.pack('>BI', 0xC1, 65_537)); send(b'x' * 65_536); send(b'x' * 2); time.sleep(60)"
    ),
    "announces within an announcement": (
        "send(struct.pack('>BI', 0xC1, 200_000)); send(struct.pack('>BI', 0xC1, 200_000)); time.sleep(60)"
    ),
    "fragments nonsense": "send(struct.pack('>BI', 0xC1, 65_537)); send(b'\\xc1' * 65_536); send(b'\\xc1'); time.sleep(60)",
    "nests an answer too deep to read": "send(b'\\x93\\xa6Answer\\xce' + struct.pack('>I', number()) + b'\\x91' * 60_000); time.sleep(60)",
    "lies about an array's shape": (
        "inner = msgspec.msgpack.encode(['<f8', [10**9], b'x']); send(answer(number(), msgspec.msgpack.Ext(1, inner))); time.sleep(60)"
    ),
    "sends an array of objects": (
        "inner = msgspec.msgpack.encode(['|O', [1], b'12345678']); send(answer(number(), msgspec.msgpack.Ext(1, inner))); time.sleep(60)"
    ),
    "sends an array with a negative shape": (
        "inner = msgspec.msgpack.encode(['<f8', [-1, -1], b'12345678']); "
        "send(answer(number(), msgspec.msgpack.Ext(1, inner))); time.sleep(60)"
    ),
    "nests an answer deeper than a value may be": (
        "send(b'\\x93\\xa6Answer\\xce' + struct.pack('>I', number()) + b'\\x91' * 100 + b'\\xc0'); time.sleep(60)"
    ),
    "answers with keys that cost more than their length": (
        "key = msgspec.msgpack.encode([2**60, 2**60]); content = b'\\x93\\xa6Answer\\xce' + struct.pack('>I', number()); "
        "send(content + b'\\xde' + struct.pack('>H', 3_000) + 3_000 * (key + b'\\xc0')); time.sleep(60)"
    ),
    "multiplies an array's shape for minutes": (
        "inner = msgspec.msgpack.encode(['<f8', [2**63] * 110_000, b'x']); "
        "content = answer(number(), msgspec.msgpack.Ext(1, inner)); send(struct.pack('>BI', 0xC1, len(content))); "
        "[send(content[start : start + 65_536]) for start in range(0, len(content), 65_536)]; time.sleep(60)"
    ),
    "sends an array of a billion empty rows": (
        "inner = msgspec.msgpack.encode(['<f8', [10**9, 0], b'']); send(answer(number(), msgspec.msgpack.Ext(1, inner))); time.sleep(60)"
    ),
    "sends an unknown extension": "send(answer(number(), msgspec.msgpack.Ext(99, b'x'))); time.sleep(60)",
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_worker_that_lies_is_killed_and_called_a_liar(zygote: Zygote, lie: str) -> None:
    async with await start(zygote, LIAR.format(lie=LIES[lie]), "Liar") as worker:
        await worker.reset("robot", "episode", 1)
        first = await outcome(worker.act("robot", 0, 0))
        # A second answer may arrive after the first was taken: it is then one that nobody asked for, or to the wrong request.
        await asyncio.wait_for(worker.died.wait(), 10)
        assert isinstance(worker.reason, ProtocolViolation), worker.reason
        assert first == 1 or first is worker.reason
        assert isinstance(await outcome(worker.act("robot", 1, 0)), ProtocolViolation)
    await assert_next_worker_serves(zygote)


async def test_a_message_that_nobody_asked_for_ends_the_worker(zygote: Zygote) -> None:
    lie = "send(answer(number(), 1)); send(answer(number() ^ 1, 2)); time.sleep(60)"
    async with await start(zygote, LIAR.format(lie=lie), "Liar") as worker:
        await worker.reset("robot", "episode", 1)
        assert await worker.act("robot", 0, 0) == 1
        await asyncio.wait_for(worker.died.wait(), 10)
        assert isinstance(worker.reason, ProtocolViolation)


@pytest.mark.parametrize("lie", ["send(struct.pack('>BI', 0xC1, 1024 * 1024)); time.sleep(60)", "os.read(3, 100)"])
async def test_a_worker_that_stalls_the_channel_is_killed_at_the_step_timeout(zygote: Zygote, lie: str) -> None:
    async with await start(zygote, LIAR.format(lie=lie), "Liar", step_timeout=0.5) as worker:
        await worker.reset("robot", "episode", 1)
        assert isinstance(await outcome(worker.act("robot", 0, 0)), WorkerTimeout)
    await assert_next_worker_serves(zygote)


async def test_an_empty_packet_ends_the_worker(zygote: Zygote) -> None:
    async with await start(zygote, LIAR.format(lie="send(b''); os._exit(3)"), "Liar") as worker:
        await worker.reset("robot", "episode", 1)
        end = await outcome(worker.act("robot", 0, 0))
        assert isinstance(end, WorkerDied)


async def test_a_worker_that_closes_its_channel_and_lives_on_is_killed(zygote: Zygote) -> None:
    async with await start(zygote, LIAR.format(lie="os.close(3); time.sleep(600)"), "Liar", step_timeout=30) as worker:
        await worker.reset("robot", "episode", 1)
        assert isinstance(await outcome(worker.act("robot", 0, 0)), WorkerDied)


HUGE = """
class Huge:
    def act(self, observation):
        kind, size = observation.data
        if kind == "text":
            return "x" * size
        if kind == "nested":
            value = []
            for _ in range(size):
                value = [value]
            return value
        if kind == "number":
            return 2 ** size
        if kind == "object":
            return object()
        loop = []
        loop.append(loop)
        return loop
"""


async def test_replies_up_to_the_cap_arrive_whole(zygote: Zygote) -> None:
    async with await start(zygote, HUGE, "Huge", step_timeout=30) as worker:
        await worker.reset("robot", "episode", None)
        for size in (10, 65_000, 65_530, 65_536, 65_537, 131_072, 1_000_003):
            assert await worker.act("robot", 0, ["text", size]) == "x" * size


@pytest.mark.parametrize(
    "value", [["text", 2_000_000], ["text", 40_000_000], ["nested", 5_000], ["number", 70], ["object", 0], ["cycle", 0]], ids=str
)
async def test_a_reply_that_can_not_travel_is_the_policys_error(zygote: Zygote, value: Any) -> None:
    async with await start(zygote, HUGE, "Huge", step_timeout=30) as worker:
        await worker.reset("robot", "episode", None)
        assert isinstance(await outcome(worker.act("robot", 0, value)), PolicyError)
        assert await worker.act("robot", 1, ["text", 3]) == "xxx"


GREEDY = (
    NUMBER
    + """
import os, sys
import msgspec

class Greedy:
    def act(self, observation):
        if observation.data == "mine":
            os.write(3, msgspec.msgpack.encode(["Answer", number(), "mine"]))
            for guess in range(number() + 1, number() + 100):
                os.write(3, msgspec.msgpack.encode(["Answer", guess, "forged"]))
        return "honest"
"""
)


async def test_answering_for_another_device_ahead_of_its_turn_ends_the_worker(zygote: Zygote) -> None:
    async with await start(zygote, GREEDY, "Greedy") as worker:
        await worker.reset("one", "episode", None)
        await worker.reset("other", "episode", None)
        mine = asyncio.ensure_future(outcome(worker.act("one", 0, "mine")))
        others = asyncio.ensure_future(outcome(worker.act("other", 0, "theirs")))  # waits for its turn
        assert await mine == "mine"
        assert isinstance(await others, ProtocolViolation)
    await assert_next_worker_serves(zygote)
