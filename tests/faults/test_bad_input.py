"""Bad input, from files to a full disk: a clear answer each time, and what runs goes on."""

import asyncio
import re
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from disks import disk_at, fill
from hosted import quick

from agentd.cli.context import Refused
from agentd.store import SqlStore


async def refused(hosted, **settings):
    """Start a daemon that can't begin; what it said at its end."""
    await hosted.start(wait=False, **settings)
    assert await asyncio.wait_for(hosted.daemon.wait(), 40) == 1
    assert hosted.complaints() == []
    return hosted.log()


async def test_every_mistake_in_an_agent_toml_is_told_at_once_and_other_agents_run_also_when_a_second_daemon_is_refused(hosted):
    hosted.add_agent(name="well", edit=quick())
    wrong = hosted.add_agent(name="wrong", edit=quick(release__alpha=5, environment__max_steps="many", optimizer__algorithm="magic"))
    toml = wrong / "agent.toml"
    toml.write_text(toml.read_text().replace("max_pairs", "max_pears"))
    unreadable = hosted.add_agent(name="unreadable")
    (unreadable / "agent.toml").write_text("schema = = 1")
    twin = hosted.add_agent(name="twin", edit=lambda text: text.replace('"twin"', '"well"'))
    robot = await hosted.robot("robot-1", "well")
    await hosted.start()
    broken = (await hosted.client.status())["broken"]
    for key in ("release.alpha", "environment.max_steps", "optimizer.algorithm", "release.max_pears"):
        assert re.search(rf"wrong/agent\.toml: {re.escape(key)}: \w+", broken["wrong"]), (key, broken["wrong"])
    assert "max_pairs" in broken["wrong"]  # what was meant
    assert "agent.toml" in broken["unreadable"]
    assert {"well", twin.name} & broken.keys()  # one of the two with the same name runs
    assert {event["agent"] for event in await hosted.events("agent.failed")} >= {"wrong", "unreadable"}
    await hosted.until_scored(1, "well")

    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agentd", "run", "--config", str(hosted.folder / "agentd.toml")),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(second.communicate(), 40)
    assert second.returncode == 1
    assert "another agentd" in said.decode()
    agent = await hosted.agent("well")
    await hosted.until_scored(agent["episodes"] + 3, "well")
    assert (await hosted.agent("well"))["runner_session"] == agent["runner_session"]
    assert await hosted.stop() == 0
    robot.prove()


async def test_a_database_from_a_newer_version_is_refused_and_left_alone(hosted):
    hosted.add_agent(edit=quick())
    path = hosted.state / "agentd.db"
    hosted.state.mkdir(mode=0o700)
    async with await SqlStore.open(f"sqlite+aiosqlite:///{path}"):
        pass
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999_from_the_future'")
        database.commit()
    before = path.read_bytes()
    said = await refused(hosted)
    assert "newer" in said
    assert "9999" in said
    assert path.read_bytes() == before


async def test_a_port_in_use_is_named_and_nothing_is_started(hosted):
    hosted.add_agent(edit=quick())
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = await refused(hosted, http_port=port)
    assert f"127.0.0.1:{port}" in said
    assert "http_port" in said
    assert not list(hosted.state.glob("runners/*.sock"))


@pytest.fixture
def small_disk(hosted):
    """The state directory is a file system of its own, of eight megabytes."""
    with disk_at(hosted.state, megabytes=8) as folder:
        yield folder


async def test_on_a_full_disk_control_goes_on_and_with_room_again_so_does_everything(hosted, small_disk):
    hosted.add_agent(edit=quick(environment__max_steps=20))
    robot = await hosted.robot()
    await hosted.start()
    stable = await hosted.until_good()
    code = (await hosted.client.parameters("cartpole"))["act"]
    values = {"act": code.replace("10.0 * angle", "11.0 * angle")}
    ballast = await asyncio.to_thread(fill, small_disk)

    async def refused_for_want_of_room():
        try:
            await hosted.client.submit("cartpole", values)
        except Refused as refusal:
            return "full" in str(refusal)
        return False

    await hosted.until(refused_for_want_of_room)
    known = len(robot.applied())
    await hosted.until(lambda: len(robot.since(known)) > 200)
    assert robot.revisions(known) == {stable}

    await asyncio.to_thread(ballast.unlink)

    async def accepted():
        try:
            return await hosted.client.submit("cartpole", values)
        except Refused:
            return None

    release = await hosted.until(accepted)
    await hosted.until_ended(release["id"])
    scored = (await hosted.agent())["episodes"]
    await hosted.until_scored(scored + 3)
    assert (await hosted.agent())["health"] != "failed"
    assert await hosted.stop() == 0
    robot.prove()
    assert robot.sources()["fallback"] == 0
