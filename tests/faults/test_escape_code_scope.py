"""Attacks by a code parameter of a trusted program (`scope = "code"`): what a model may have written gets no further than its sandbox."""

import ast
import contextlib
import os
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import test_escape_channel as channel
import test_escape_files as files
import test_escape_network as network
import test_escape_processes as processes
import test_escape_resources as resources
from escape import MODULES, Attack, Target, assert_fate, outcome, start

from agentd.errors import IsolationError, LoadError, ProtocolViolation, WorkerDied, WorkerTimeout
from agentd.sandbox import PolicyWorker, Zygote

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

ATTACKS = {
    attack.name: attack
    for attacks in (files, network, processes, resources)
    for attack in attacks.attack.found
    if attack.name
    in {
        "reads_with_open", "reads_and_hides_the_refusal", "reads_with_the_c_library", "reads_the_runners_environment", "writes_a_file",
        "reads_from_whatever_descriptor_was_left_open", "walks_the_subclasses_to_a_shell", "opens_with_a_pickle", "connects_to_a_port",
        "passes_a_descriptor_through_the_channel", "forks", "kills_its_parent", "kills_the_runner", "kills_everything",
        "kills_through_a_handle", "reads_another_processes_memory", "maps_executable_memory", "ends_its_process", "closes_its_channel",
        "exits_politely", "fills_the_memory_with_lists", "recurses_for_ever", "loops_for_ever", "loops_and_catches_everything",
    }
}  # fmt: skip

TRUSTED = """
import os
import socket  # which no sandbox would let it use
from agentd.trace import bundle, model

@bundle(trainable=True)
def law(observation):
    return 2 * observation

@model
class Trusted:
    def __init__(self):
        self.law = law
        self.server = socket.create_server(("127.0.0.1", 0))
    def act(self, observation):
        try:
            return self.law(observation)
        except BaseException as error:
            self.caught = error
            raise
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def zygote() -> AsyncIterator[Zygote]:
    try:
        started = await Zygote.start(imports=MODULES, min_isolation=2, max_isolation=2, scope="code")
    except IsolationError as error:
        pytest.skip(str(error))
    async with started:
        yield started


async def hosting(zygote: Zygote, law: str, **options: Any) -> PolicyWorker:
    """The trusted program with a revision that has this law."""
    return await start(zygote, TRUSTED, "Trusted", law=law, **options)


async def assert_serves(zygote: Zygote) -> None:
    async with await start(zygote, TRUSTED, "Trusted") as worker:
        await worker.reset("robot", "episode", None)
        assert await worker.act("robot", 0, 21) == 42


def as_law(attack: Attack) -> str:
    """The attack within the law, whose result is plain."""
    function = next(found for found in ast.parse(attack.source).body if isinstance(found, ast.FunctionDef))
    within = textwrap.indent(ast.unparse(function), "    ")
    return f"def law(observation):\n{within}\n    return bool({attack.name}(observation))"


@pytest.mark.parametrize("name", sorted(ATTACKS))
async def test_the_attack_fails_and_the_next_program_serves(zygote: Zygote, name: str, tmp_path: Path) -> None:
    attack = ATTACKS[name]
    with Target(tmp_path) as target:
        async with await hosting(zygote, as_law(attack), step_timeout=attack.step_timeout) as worker:
            await worker.reset("robot", "episode", 7)
            end = await outcome(worker.act("robot", 0, target.observation()))
        assert_fate(attack, end)
        target.assert_untouched()
    await assert_serves(zygote)


LIAR = """
def law(observation):
    import os, struct, sys, time
    import msgspec
    def send(content):
        os.write(3, content)
    def answer(number, value):
        return msgspec.msgpack.encode(["Answer", number, value])
    def number():
        frame = sys._getframe()
        while not hasattr(frame.f_locals.get("request"), "id"):
            frame = frame.f_back
        return frame.f_locals["request"].id
    {lie}
    return 1
"""
OF_PLAIN_VALUES = {
    "answers with an unknown container": "send(answer(number(), [99, 1])); time.sleep(60)",
    "answers with a list that is none": "send(answer(number(), ['x'])); time.sleep(60)",
    "answers with an unhashable key": "send(answer(number(), [4, [0], 1])); time.sleep(60)",
    "answers with a value that is nested deeply": (
        "value = 1\n    for _ in range(200): value = [0, value]\n    send(answer(number(), value)); time.sleep(60)"
    ),
    "answers with a trace": "send(msgspec.msgpack.encode(['Trace', number(), b'', False])); time.sleep(60)",
}  # fmt: skip
QUICK = {
    "answers another request", "sends an unknown message", "announces more than the cap", "sends a fragment that is too short",
    "nests an answer too deep to read", "lies about an array's shape", *OF_PLAIN_VALUES,
}  # fmt: skip
"""The others are of the same channel, and go the same way: they are for the long tests."""
LIES = {name: lie for name, lie in channel.LIES.items() if "self." not in lie} | OF_PLAIN_VALUES


@pytest.mark.parametrize("lie", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in LIES])
async def test_a_leaf_that_lies_ends_its_program_and_is_called_a_liar(zygote: Zygote, lie: str) -> None:
    logged: list[str] = []
    async with await hosting(zygote, LIAR.format(lie=LIES[lie]), on_log=logged.append) as worker:
        await worker.reset("robot", "episode", 1)
        first = await outcome(worker.act("robot", 0, 0))
        second = first if isinstance(first, Exception) else await outcome(worker.act("robot", 1, 0))
        assert isinstance(second, ProtocolViolation), (first, second)
        assert isinstance(worker.reason, ProtocolViolation)
    assert any("sent what none sends" in line for line in logged)


@pytest.mark.parametrize("lie", ["send(struct.pack('>BI', 0xC1, 1024 * 1024)); time.sleep(60)", "os.read(3, 100)"])
async def test_a_leaf_that_stalls_its_program_is_killed_with_it_at_the_step_timeout(zygote: Zygote, lie: str) -> None:
    async with await hosting(zygote, LIAR.format(lie=lie), step_timeout=0.5) as worker:
        await worker.reset("robot", "episode", 1)
        assert isinstance(await outcome(worker.act("robot", 0, 0)), WorkerTimeout)
    for pid in (worker.pid, worker.leaf_pid or 0):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            pytest.fail("it lives on")


HOSTILE_DEFINITIONS = {
    "a default that loops": "def law(observation=[0 for _ in iter(int, 1)]):\n    return 1",
    "a default that ends the process": "def law(observation=__import__('os')._exit(0)):\n    return 1",
    "a default that reads": "def law(observation=open('/etc/passwd').read()):\n    return 1",
    "a decorator that reads": "@open('/etc/passwd').read\ndef law(observation):\n    return 1",
    "an annotation that reads": "def law(observation: open('/etc/passwd').read()):\n    return 1",
    "source that nests deeply": "def law(observation):\n    return " + "(" * 5_000 + ")" * 5_000,
}


@pytest.mark.parametrize("what", HOSTILE_DEFINITIONS)
async def test_not_even_the_definition_of_a_law_runs_in_the_trusted_program(zygote: Zygote, what: str) -> None:
    source = HOSTILE_DEFINITIONS[what]
    try:
        async with await start(
            zygote, TRUSTED.replace("law(observation):", "law(observation=None):"), "Trusted", law=source, load_timeout=2.0
        ) as worker:
            await worker.reset("robot", "episode", 1)
            assert await worker.act("robot", 0, 0) == 1
            assert "decorator" in what or "annotation" in what  # those of a revision are left out
    except (LoadError, WorkerDied, WorkerTimeout) as error:
        assert "root:" not in str(error) + getattr(error, "traceback", "")  # noqa: PT017 - what else may happen is above
    await assert_serves(zygote)
