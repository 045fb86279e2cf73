"""Attacks on memory and time: bombs, recursion, endless loops in Python and in C, and floods of output."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from escape import DIED, REFUSED, TIMEOUT, Attack, Attacks, arena, assert_fails, assert_next_worker_serves, outcome, start

from agentd.errors import WorkerTimeout
from agentd.sandbox import Zygote

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

attack = Attacks()
Target = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def zygote() -> AsyncIterator[Zygote]:
    async with arena(2) as locked:
        yield locked


@attack(REFUSED, says="MemoryError", step_timeout=30)
def fills_the_memory_with_lists(target: Target) -> Any:
    return [[0] * 1_000_000 for _ in range(1_000)]


@attack(REFUSED, says="MemoryError", step_timeout=30)
def fills_the_memory_with_an_array(target: Target) -> Any:
    import numpy as np

    return np.ones(10**9)


@attack(REFUSED, says="MemoryError", step_timeout=30)
def fills_the_memory_with_text(target: Target) -> Any:
    return "x" * 10**12


@attack(REFUSED, says="PermissionError|not permitted|MemoryError", step_timeout=30)
def maps_a_shared_memory_file(target: Target) -> Any:
    import os

    os.ftruncate(os.memfd_create("big"), 10**12)
    return True


@attack(REFUSED, step_timeout=30)
def keeps_more_memory_than_it_has_mapped(target: Target) -> Any:
    import ctypes
    import mmap

    library = ctypes.CDLL(None, handle=ctypes.pythonapi._handle)  # which nobody hears of
    size, kept = 32 * 1024 * 1024, []
    for _ in range(10):  # more than the 256 MiB that are allowed
        shared = mmap.mmap(-1, size)
        kept.append(shared)
        shared.write(bytes(size))
        address = ctypes.addressof(ctypes.c_char.from_buffer(shared))
        library.munmap(ctypes.c_void_p(address + 4096), ctypes.c_size_t(size - 4096))
    return True


@attack(REFUSED, says="RecursionError")
def recurses_for_ever(target: Target) -> Any:
    return recurses_for_ever(target)


@attack((REFUSED, DIED), step_timeout=30)
def recurses_beyond_the_stack(target: Target) -> Any:
    import sys

    sys.setrecursionlimit(10**9)
    nested: list[Any] = []
    for _ in range(10**6):
        nested = [nested]
    return repr(nested)


@attack(TIMEOUT, step_timeout=0.5)
def loops_for_ever(target: Target) -> Any:
    while True:
        pass


@attack(TIMEOUT, step_timeout=0.5)
def loops_and_catches_everything(target: Target) -> Any:
    import signal

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            while True:
                pass
        except BaseException:  # noqa: BLE001 - that is the attack
            continue


@attack(TIMEOUT, step_timeout=0.5)
def computes_a_huge_power(target: Target) -> Any:
    return 9**9**9


@attack(TIMEOUT, step_timeout=0.5)
def matches_a_catastrophic_pattern(target: Target) -> Any:
    import re

    return re.match(r"(a+)+$", "a" * 60 + "b")


@attack(TIMEOUT, step_timeout=0.5)
def sums_for_ever_in_c(target: Target) -> Any:
    return sum(range(10**15))


@attack(TIMEOUT, step_timeout=0.5)
def sleeps_for_ever(target: Target) -> Any:
    import time

    return time.sleep(10**6)


@attack(TIMEOUT, step_timeout=0.5)
def waits_for_a_lock_that_nobody_frees(target: Target) -> Any:
    import threading

    lock = threading.Lock()
    return lock.acquire() and lock.acquire()


@attack(TIMEOUT, step_timeout=0.5)
def sorts_with_a_stalling_comparison(target: Target) -> Any:
    class Stalling:
        def __lt__(self, other: Any) -> bool:
            while True:
                pass

    return sorted([Stalling(), Stalling()])


@pytest.mark.parametrize("which", attack.found, ids=lambda which: which.name)
async def test_the_attack_fails_and_the_next_worker_serves(zygote: Zygote, which: Attack, tmp_path: Path) -> None:
    await assert_fails(zygote, which, tmp_path)


async def test_a_program_that_does_not_end_loading_is_killed(zygote: Zygote) -> None:
    from escape import program

    from agentd.records import make_revision
    from agentd.sandbox import Limits, PolicyWorker

    source = program("while True: pass", "Never")
    with pytest.raises(WorkerTimeout):
        await PolicyWorker.start(zygote, source=source, revision=make_revision("a", "d", {}), limits=Limits(load_timeout=0.5), on_log=print)
    await assert_next_worker_serves(zygote)


FLOODER = """
class Flooder:
    def act(self, observation):
        for number in range(200_000):
            print("line", number, "\\x1b[2J" + "x" * 50)
        return 1
"""


async def test_a_flood_of_output_blocks_neither_the_worker_nor_the_event_loop(zygote: Zygote) -> None:
    lines: list[str] = []
    longest = 0.0

    async def measure() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before)

    async with asyncio.TaskGroup() as group:
        measuring = group.create_task(measure())
        async with await start(zygote, FLOODER, "Flooder", step_timeout=60, on_log=lines.append) as worker:
            await worker.reset("robot", "episode", None)
            assert await worker.act("robot", 0, 0) == 1
        measuring.cancel()
    assert 10 <= len(lines) < 100_000, "most of it was dropped"
    assert any("were dropped" in line for line in lines), "and counted"
    assert not any("\x1b" in line for line in lines), "a terminal would obey it"
    assert all(len(line) <= 2_000 for line in lines)
    assert longest < 5, "the event loop went on"


SQUIRREL = """
class Squirrel:
    def act(self, observation):
        kept = []
        for size in (10**7, 10**6, 10**5):
            try:
                while True:
                    kept.append(bytearray(size))
            except MemoryError:
                continue
        return sum(map(len, kept))
"""


async def test_a_memory_bomb_that_hides_its_errors_stays_within_the_limit(zygote: Zygote) -> None:
    async with await start(zygote, SQUIRREL, "Squirrel", step_timeout=30) as worker:
        await worker.reset("robot", "episode", None)
        assert await worker.act("robot", 0, 0) <= 256 * 1024 * 1024


LATE_FREE = """
class Hoarder:
    def act(self, observation):
        if observation.data == "hoard":
            return len([bytearray(10**6) for _ in range(10**4)])
        return 7
"""


async def test_a_worker_that_survived_a_memory_bomb_goes_on_serving(zygote: Zygote) -> None:
    async with await start(zygote, LATE_FREE, "Hoarder", step_timeout=30) as worker:
        await worker.reset("robot", "episode", None)
        for _ in range(3):
            end = await outcome(worker.act("robot", 0, "hoard"))
            assert "MemoryError" in str(end)
            assert await worker.act("robot", 1, "rest") == 7
