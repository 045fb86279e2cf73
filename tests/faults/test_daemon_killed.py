"""The daemon dies, or stands still, in the middle of its work. The robot's own log is the witness that nobody else did."""

import asyncio
import json
import random
import signal
import sys

import psutil
import pytest
from hosted import quick

from agentd.store import SqlStore

LEASE = 2.0
ENDLESS = {"release__prune": {"after_pairs": 1000}, "release__max_pairs": 1000, "environment__max_steps": 100}
"""A canary that only its daemon's death can end, with episodes long enough to outlast a lease."""


async def canary(hosted, *, pairs=1):
    """A robot in the middle of a canary whose candidate is as good as stable; the release as it was seen last."""
    hosted.add_agent(edit=quick(**ENDLESS))
    robot = await hosted.robot("robot-1", "cartpole", "--step-ms", "10")
    await hosted.start(lease=f"{LEASE:g}s")
    await hosted.until_scored(1)
    code = (await hosted.client.parameters("cartpole"))["act"]
    release = await hosted.client.submit("cartpole", {"act": code.replace("10.0 * angle", "11.0 * angle")})
    release = await hosted.until_pairs(release["id"], pairs)
    assert release["candidate"] in robot.revisions()
    return robot, release


@pytest.mark.timeout(180)  # two daemons and a canary
async def test_a_daemon_killed_in_the_middle_of_a_canary_is_missed_by_nobody(hosted):
    robot, release = await canary(hosted)
    session = (await hosted.agent())["runner_session"]
    follower = await cli(hosted, "events", "--follow", "--json", "-n", "1000")
    watcher = await cli(hosted, "status", "cartpole", "--watch", "--timeout", "5m")
    assert await follower.stdout.readline()
    assert b"cartpole" in await watcher.stdout.readline()
    await hosted.kill()
    committed = hosted.database()
    known = len(robot.applied())

    # the runner went on controlling, and after its lease only the stable revision did
    await hosted.until(lambda: len(robot.since(known)) > 500)
    meanwhile = robot.since(known)
    assert {line["source"] for line in meanwhile} == {"action"}
    assert {line["revision"] for line in meanwhile[-150:]} == {release["reference"]}

    # the new daemon adopts it, and hears all of what happened
    await hosted.start(lease=f"{LEASE:g}s")
    await hosted.until(lambda: hosted.events("runner.adopted"))
    agent = await hosted.agent()
    assert (agent["runner_session"], agent["runner_adopted"]) == (session, True)
    await hosted.until(lambda: hosted.events("runner.lease_expired"))
    assert hosted.forgotten(committed) == {}
    finished = [line["episode"] for line in meanwhile if line["step"] == 99]

    async def arrived():
        return set(finished) <= {episode["id"] for episode in await hosted.client.episodes("cartpole")}

    await hosted.until(arrived)

    # the release goes on from its ledger
    resumed = await hosted.until_pairs(release["id"], release["pairs"] + 1)
    assert resumed["phase"] in {"selection", "confirmation"}
    await told_through_the_restart(hosted, release, follower, watcher)
    assert await hosted.stop() == 0
    assert robot.sources()["fallback"] == 0
    robot.prove()


async def cli(hosted, *words):
    """A verb in a process of its own; its standard error goes to a file beside the daemon's log."""
    with (hosted.folder / f"{words[0]}.err").open("wb") as errors:
        command = (sys.executable, "-m", "agentd", *words, "--state", str(hosted.state))
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            limit=2**24,
            preexec_fn=heed_interrupts,
        )
    hosted.own(process)
    return process


def heed_interrupts():
    """As on a terminal: a shell's background jobs inherit that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def told_through_the_restart(hosted, release, follower, watcher):
    """Who followed the daemon that was killed goes on with the next one, and misses nothing that is in the log."""
    await hosted.client.decide("abort", "cartpole", release["id"])
    assert b"aborted" in (await watcher.stdout.read()).splitlines()[-1]
    assert await watcher.wait() == 1
    told = []
    async with asyncio.timeout(45):
        while not told or told[-1]["kind"] != "release.aborted":
            told.append(json.loads(await follower.stdout.readline()))
    follower.send_signal(signal.SIGINT)
    await follower.stdout.read()
    assert await follower.wait() == 130
    logged = [event["seq"] for event in await hosted.client.events(limit=1000)]
    seen = [event["seq"] for event in told if event["seq"]]
    assert seen == [seq for seq in logged if seen[0] <= seq <= seen[-1]]
    assert any(event["kind"] == "runner.adopted" for event in told)
    for verb in ("events", "status"):
        words = (hosted.folder / f"{verb}.err").read_text()
        assert words.count("waiting for it to come back") == words.count("the daemon is back") == 1, words


@pytest.mark.long
async def test_a_daemon_that_stands_still_for_longer_than_its_lease_goes_on_with_the_canary(hosted):
    robot, release = await canary(hosted)
    hosted.daemon.send_signal(signal.SIGSTOP)
    known = len(robot.applied())
    await hosted.until(lambda: len(robot.since(known)) > 500)
    assert robot.revisions(known + 350) == {release["reference"]}
    hosted.daemon.send_signal(signal.SIGCONT)
    await hosted.until_pairs(release["id"], release["pairs"] + 1)
    await hosted.until(lambda: hosted.events("runner.lease_expired"))
    assert (await hosted.agent())["health"] != "failed"
    assert await hosted.stop() == 0
    assert robot.sources()["fallback"] == 0
    robot.prove()


@pytest.mark.long
async def test_a_canary_ends_inconclusive_where_the_source_changed_while_the_daemon_was_dead(hosted):
    robot, release = await canary(hosted)
    await hosted.kill()
    controller = hosted.agents / "cartpole" / "controller.py"
    controller.write_text(controller.read_text() + "\n\nUNRELATED = 1\n")
    await hosted.start(lease=f"{LEASE:g}s")
    ended = await hosted.until_ended(release["id"])
    assert (ended["phase"], ended["stage"]) == ("inconclusive", "restart")
    known = len(robot.applied())
    await hosted.until(lambda: robot.revisions(known + 120))
    assert robot.revisions(known + 120) == {(await hosted.agent())["state"]["stable"]}


@pytest.mark.long
async def test_an_alarm_that_was_committed_just_before_the_daemon_died_is_answered_by_the_next_one(hosted):

    import msgspec

    hosted.add_agent(edit=quick())
    await hosted.robot()
    await hosted.start()
    await hosted.until_good()
    await hosted.kill()
    async with await SqlStore.open(f"sqlite:///{hosted.state}/agentd.db") as store:
        state = await store.agent("cartpole")
        await store.commit(msgspec.structs.replace(state, watch=msgspec.structs.replace(state.watch, alarmed=True)))
    await hosted.start()
    await hosted.until(lambda: hosted.events("drift.declared"))
    assert (await hosted.agent())["state"]["regime"] == 1


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_daemon_killed_at_any_moment_again_and_again_loses_nothing(hosted):
    kills = 40
    dice = random.Random(kills)
    hosted.add_agent(edit=quick(optimizer__trigger="continuous", optimizer__algorithm="search"))
    robot = await hosted.robot()
    await hosted.start()
    await hosted.until(lambda: hosted.events("release.proposed"))
    session = (await hosted.agent())["runner_session"]
    committed = hosted.database()
    for _ in range(kills):
        await asyncio.sleep(dice.uniform(0.0, 2.0))
        await hosted.kill()
        assert hosted.forgotten(committed) == {}
        committed = hosted.database()
        await hosted.start(wait=dice.random() < 0.7)
    await hosted.connect()
    known = len(robot.applied())
    agent = await hosted.until(lambda: serving(hosted))
    assert agent["runner_session"] == session
    await hosted.until(lambda: len(robot.since(known)) > 100)
    await hosted.until(lambda: len(policy_workers(hosted.runner_pid())) <= 2)  # nothing is left of releases whose end was interrupted
    assert len([found for found in await hosted.client.releases("cartpole") if not found["ended_at"]]) <= 2
    assert await hosted.stop() == 0
    async with await SqlStore.open(f"sqlite:///{hosted.state}/agentd.db") as store:
        assert (await store.verify_chain()).intact
    assert robot.sources()["fallback"] == 0
    robot.prove()


async def serving(hosted):
    agent = await hosted.agent()
    return agent if agent["health"] != "failed" and agent.get("state") and agent["episodes"] else None


def policy_workers(runner):
    return [process.pid for process in psutil.Process(runner).children(recursive=True) if not process.children()]
