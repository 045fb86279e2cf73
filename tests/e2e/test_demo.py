"""`agentd demo`, as a newcomer runs it."""

import asyncio
import json
import signal
import subprocess
import sys

import psutil
import pytest


def agentd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "agentd", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.timeout(440)
def test_the_demo_recovers_stops_every_bad_revision_and_leaves_a_store_to_read(tmp_path):
    ended = agentd("demo", "--once", "--json", "--seed", "11", "--state", str(tmp_path / "state"))
    summary = json.loads(ended.stdout)
    assert ended.returncode == 0, (summary["failure"], summary["releases"], ended.stderr)
    assert summary["passed"]
    assert summary["scores"]["broken"] < 0.5 < summary["scores"]["after"]
    assert [bad["stopped"] for bad in summary["bad_revisions"]] == [True, True, True]
    assert summary["rollbacks"] == 1
    assert summary["robot"]["ticks"] == sum(summary["robot"][source] for source in ("actions", "safe", "fallback"))
    history = agentd("history", "cartpole", "--state", summary["state"], "--json")
    assert history.returncode == 0
    assert "rolled_back" in history.stdout


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
async def test_a_demo_that_is_ended_early_leaves_its_state_and_no_process(tmp_path, until, number):
    words = ("-m", "agentd", "demo", "--state", str(tmp_path))
    demo = await asyncio.create_subprocess_exec(sys.executable, *words, stderr=asyncio.subprocess.PIPE)
    await until((tmp_path / "agentd.db").exists, 180.0)  # a fresh install compiles first
    started = psutil.Process(demo.pid).children(recursive=True)
    demo.send_signal(number)
    _, told = await demo.communicate()
    left = [process for process in started if process.is_running()]
    for process in left:
        process.kill()
    assert (demo.returncode, str(tmp_path) in told.decode()) == (130, True)
    assert len(started) >= 3
    assert left == []
    assert list(tmp_path.glob("**/*.sock")) == []
