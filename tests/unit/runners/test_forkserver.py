"""A runner that was forked is what an exec'd one is: a process for itself that has nothing of the daemon's and outlives whoever made it."""

import os
import signal
from pathlib import Path

import pytest

from agentd.errors import PlantError
from agentd.runners.forkserver import Forkserver
from agentd.runners.local import Finished

POLICY = "class Controller:\n    def act(self, observation):\n        return 0\n"


@pytest.fixture
def forkserver():
    with Forkserver() as forkserver:
        yield forkserver


def process(pid):
    return Path("/proc") / str(pid)


def sockets(pid):
    return {target for entry in process(pid).glob("fd/*") if (target := str(entry.readlink())).startswith("socket:")}


async def episode(runner):
    while not isinstance(told := await runner.next(), Finished):
        pass
    await runner.acknowledge(told.episode.id)
    return told.episode


async def serve(runner, program):
    await runner.load(*program)
    await runner.route(program[1].id)
    return await episode(runner)


async def test_forked_runners_have_sessions_of_their_own_and_nothing_of_the_daemons(
    runners, make_spec, make_program, forkserver, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    one = await runners.start(make_spec(), forkserver=forkserver)
    other = await runners.start(make_spec(agent={"name": "other", "entrypoint": "controller:Controller"}), forkserver=forkserver)
    assert (await serve(one, make_program(POLICY))).steps
    assert (await serve(other, make_program(POLICY, agent="other"))).steps
    assert len(list(process(forkserver.pid).glob("task/*"))) == 1  # a fork of several threads would be no clean copy
    for runner in (one, other):
        assert os.getsid(runner.pid) == runner.pid
        assert "sk-secret" not in (process(runner.pid) / "environ").read_text()
        assert not sockets(forkserver.pid) & sockets(runner.pid)
    assert (process(other.pid) / "comm").read_text() == "agentd:other\n"
    assert one.session != other.session


async def test_a_killed_server_costs_no_runner_and_is_started_again_for_the_next(runners, make_spec, make_program, forkserver, until):
    one = await runners.start(make_spec(), forkserver=forkserver)
    await serve(one, make_program(POLICY))
    killed = forkserver.pid
    os.kill(killed, signal.SIGKILL)
    other = await runners.start(make_spec(agent={"name": "other", "entrypoint": "controller:Controller"}), forkserver=forkserver)
    assert forkserver.pid != killed
    assert (await serve(other, make_program(POLICY, agent="other"))).steps
    assert (await episode(one)).steps


async def test_the_server_ends_with_its_daemon_and_its_runners_are_adopted(runners, make_spec, make_program, forkserver):
    one = await runners.start(make_spec(), forkserver=forkserver)
    await serve(one, make_program(POLICY))
    await one.abandon()
    forkserver.close()
    again = await runners.start(make_spec(), forkserver=forkserver)
    assert again.adopted
    assert again.session == one.session
    assert forkserver.pid is None  # nobody had to be forked
    assert (await episode(again)).steps


async def test_a_forked_runner_that_cannot_begin_says_why_also_in_a_log_for_its_owner_only(runners, make_spec, forkserver, tmp_path):
    spec = make_spec(environment={"kind": "gymnasium", "id": "NoSuchPlant-v0"})
    with pytest.raises(PlantError, match="NoSuchPlant"):
        await runners.start(spec, forkserver=forkserver)
    (log,) = tmp_path.rglob("*.log")
    assert log.stat().st_mode & 0o077 == 0
    assert "NoSuchPlant" in log.read_text()
