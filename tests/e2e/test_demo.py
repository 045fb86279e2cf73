"""`agentd demo`, as a newcomer runs it."""

import json
import subprocess
import sys

import pytest


def agentd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "agentd", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.timeout(280)
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
