"""A runner that is killed leaves no process behind, whatever its policies do at that moment."""

import os
import signal
import subprocess
import sys
import time

import pytest

RUNNER = """
import asyncio, sys
from agentd.records import Source, make_revision
from agentd.sandbox import Limits, PolicyWorker, Zygote

STUBBORN = '''
import signal
class P:
    def act(self, observation):
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        while True:
            try:
                while True:
                    pass
            except BaseException:
                pass
'''

LEAVES = '''
from agentd.trace import bundle, model
@bundle(trainable=True)
def law(observation):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
@model
class P:
    def __init__(self):
        self.law = law
    def act(self, observation):
        return self.law(observation)
'''

async def main(level, scope):
    limits = Limits(step_timeout=600, load_timeout=30, allowed_imports=("signal",))
    source = Source(digest="d", files={"p.py": STUBBORN if scope == "agent" else LEAVES}, entrypoint="p:P")
    async with await Zygote.start(imports=("signal",), min_isolation=level, max_isolation=level, scope=scope) as zygote:
        workers = [
            await PolicyWorker.start(zygote, source=source, revision=make_revision("a", "d", {}), limits=limits, on_log=print)
            for _ in range(3)
        ]
        for worker in workers[:2]:
            await worker.reset("robot", "e", 1)
            asyncio.ensure_future(worker.act("robot", 0, 0))
        await asyncio.sleep(0.1)
        leaves = [zygote.programs.pid, *(worker.leaf_pid for worker in workers)] if scope == "code" else []
        print(zygote.pid, *(worker.pid for worker in workers), *leaves, flush=True)
        await asyncio.sleep(600)

asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
"""


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123 - one line of /proc
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"


def ends(pids: list[int]) -> bool:
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        try:
            if not any(lives(pid) for pid in pids):
                return True
        except FileNotFoundError:
            continue  # it ended while we looked
        time.sleep(0.02)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("level", "scope"), [(1, "agent"), (2, "agent"), (3, "agent"), (2, "code")])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "terminate"])
def test_nothing_outlives_its_runner(level: int, scope: str, end: signal.Signals) -> None:
    command = [sys.executable, "-c", RUNNER, str(level), scope]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        assert runner.stderr is not None
        line = runner.stdout.readline()
        if not line:
            message = runner.stderr.read()
            assert "IsolationError" in message, message
            pytest.skip("this machine does not give the level")
        pids = [int(pid) for pid in line.split()]
        try:
            assert all(lives(pid) for pid in pids)
            runner.send_signal(end)
            runner.wait(20)
            assert ends(pids), "something lives on"
        finally:
            runner.kill()
