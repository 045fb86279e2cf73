"""`agentd demo`, as a newcomer runs it."""

import asyncio
import json
import subprocess
import sys

import pytest


@pytest.mark.timeout(280)
async def test_the_demo_recovers_stops_every_bad_revision_and_leaves_a_store_to_read(tmp_path):
    arguments = ("demo", "--once", "--json", "--seed", "11", "--state", str(tmp_path / "state"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agentd", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = await process.communicate()
    summary = json.loads(output)
    assert process.returncode == 0, (summary["failure"], summary["releases"], errors.decode())
    assert summary["passed"]
    assert summary["scores"]["broken"] < 0.5 < summary["scores"]["after"]
    assert [bad["stopped"] for bad in summary["bad_revisions"]] == [True, True, True]
    assert summary["rollbacks"] == 1
    assert summary["robot"]["ticks"] == sum(summary["robot"][source] for source in ("actions", "safe", "fallback"))
    history = subprocess.run(
        [sys.executable, "-m", "agentd", "history", "cartpole", "--state", summary["state"], "--json"], capture_output=True, check=True
    )
    assert "rolled_back" in history.stdout.decode()
