"""`kill -9` right after each commit of a release, before anything acts on it: nothing committed is lost, and the story goes on to its end.

killed_release.py tells the story and checks each life against what the lives before it had acknowledged.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

STORY = Path(__file__).with_name("killed_release.py")

POINTS = {
    # proposed, validated, screened, approved
    "Proposal, Provenance, Revision, proposal: proposed, release.proposed",
    "AgentState, proposal: proposed",  # it is the one in progress
    "proposal: validated, release.validated",
    "proposal: screened, release.screened",
    "proposal: awaiting_approval, release.awaiting_approval",
    "proposal: selection, release.selection",
    # the canary
    "proposal: selection, release.step",
    "PairPlan",
    "proposal: selection",  # a pair was lost
    "Pair, proposal: confirmation",
    "Pair, proposal: confirmation, release.device_withdrawn",
    "proposal: confirmation, release.step",
    "proposal: paused, release.paused",
    "proposal: confirmation, release.confirmation",  # resumed
    # ends: those that change nothing, promotion, and rollback with the probe that found it
    "AgentState, proposal: aborted, release.aborted",
    "AgentState, proposal: promoted, release.promoted",
    "AgentState, watch.alarm",
    "probe: screened, release.probe",
    "AgentState, probe: screened",
    "probe: confirmation, release.probe_changed",
    "probe: confirmation, release.step",
    "Pair, probe: confirmation",
    "AgentState, probe: promoted, proposal: rolled_back, release.probe_ended, release.rolled_back",
    # beside it
    "AgentState, Provenance, Revision, agent.added",
    "AgentState, watch.good",
    "AgentState",  # the watch goes on
    "runner.started",
}


async def told(folder, how):
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(STORY), str(folder), how), env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-6000:]
    return json.loads(out.splitlines()[-1])


async def test_a_release_goes_on_after_a_death_at_each_of_its_commit_points(tmp_path):
    story = await told(tmp_path / "story", "points")
    assert set(story["points"]) >= POINTS
    assert story["lives"] == len(story["points"]) + 1


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_a_story_killed_after_its_first_second_third_and_every_later_commit_always_ends_well(tmp_path):
    story = await told(tmp_path / "story", "every")
    assert story["lives"] > 60
