"""What an operator does to a daemon at work: restarts, reloads, new sources, approvals, pauses and rollbacks."""

import asyncio
import shutil
import signal

import httpx
import pytest
from hosted import mirrored, quick
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from agentd.cli.app import app


async def force(hosted, values, agent="cartpole"):
    """Make these values stable, as an operator in a hurry does; the revision's id."""
    release = await hosted.client.submit(agent, values)
    await hosted.until_phase(release["id"], "selection", "confirmation")
    await hosted.client.promote(agent, release["id"])
    return (await hosted.client.release(release["id"]))["candidate"]


def harder(code):
    """The cart-pole's law with another number in it: as good as before."""
    return code.replace("10.0 * angle", "11.0 * angle")


async def code_of(hosted, agent="cartpole"):
    return (await hosted.client.parameters(agent))["act"]


@pytest.mark.timeout(180)  # three daemons, one after the other
async def test_a_restart_keeps_what_was_learned_and_forgets_nothing_and_so_does_a_backup_that_is_restored_elsewhere(hosted):
    hosted.add_agent(edit=quick())
    robot = await hosted.robot()
    await hosted.start()
    await hosted.until_good()
    learned = await force(hosted, {"act": harder(await code_of(hosted))})
    await hosted.until(lambda: learned in robot.revisions())
    before = await hosted.client.status()
    runner = hosted.runner_pid()
    assert await hosted.stop() == 0
    committed = hosted.database()
    assert not (hosted.state / "daemon.json").exists()
    await hosted.until(lambda: not any((hosted.state / "runners").glob("*.sock")))

    await hosted.start()
    known = len(robot.applied())
    await hosted.until(lambda: robot.revisions(known))
    assert robot.revisions(known) == {learned}
    agent = await hosted.agent()
    assert agent["state"]["stable"] == learned
    assert not agent["runner_adopted"]
    assert hosted.runner_pid() != runner
    assert (await hosted.client.status())["epoch"] == before["epoch"] + 1
    restored = hosted.folder / "restored"
    restored.mkdir()
    assert await exit_code(hosted, "backup", str(restored / "agentd.db")) == 0  # while the daemon writes
    assert await hosted.stop() == 0
    assert hosted.forgotten(committed) == {}

    hosted.state = restored
    await hosted.start()
    known = len(robot.applied())
    await hosted.until(lambda: robot.revisions(known))
    assert robot.revisions(known) == {learned}
    assert await hosted.stop() == 0
    assert hosted.forgotten(committed) == {}
    assert await exit_code(hosted, "audit", "verify") == 0
    robot.prove()


async def test_agents_come_go_and_change_while_another_goes_on_undisturbed(hosted):
    hosted.add_agent(name="steady", edit=quick())
    going = hosted.add_agent(name="going", edit=quick())
    steady = await hosted.robot("robot-steady", "steady")
    await hosted.robot("robot-going", "going")
    await hosted.start()
    await hosted.until_scored(3, "steady")
    await hosted.until_scored(3, "going")
    session = (await hosted.agent("steady"))["runner_session"]

    async def hosted_names():
        return {agent["name"] for agent in await hosted.client.agents()}

    async def is_hosted(*names):
        return await hosted_names() == set(names)

    hosted.add_agent(name="coming", edit=quick())
    hosted.daemon.send_signal(signal.SIGHUP)
    await hosted.until(lambda: is_hosted("steady", "going", "coming"))

    toml = going / "agent.toml"
    toml.write_text(toml.read_text().replace("max_steps = 40", "max_steps = 30"))
    await hosted.client.reload()
    await hosted.until(lambda: two(hosted.events("runner.started", "going")))
    await hosted.until(lambda: hosted.events("runner.started", "coming"))

    going.rename(hosted.folder / "gone")
    hosted.daemon.send_signal(signal.SIGHUP)
    await hosted.until(lambda: is_hosted("steady", "coming"))
    assert not (hosted.state / "runners" / "going.sock").exists()

    agent = await hosted.agent("steady")
    assert agent["runner_session"] == session
    scored = agent["episodes"]
    await hosted.until_scored(scored + 3, "steady")
    steady.prove()
    assert steady.sources()["safe"] == steady.sources()["fallback"] == 0


@pytest.mark.long
async def test_reloads_that_meet_do_no_harm(hosted):
    folder = hosted.add_agent(edit=quick())
    robot = await hosted.robot()
    await hosted.start()
    await hosted.until_scored(2)
    toml = folder / "agent.toml"
    for steps in (30, 31):
        toml.write_text(toml.read_text().replace("max_steps = ", f"max_steps = {steps} # "))
        hosted.daemon.send_signal(signal.SIGHUP)
        await asyncio.gather(*(hosted.client.reload() for _ in range(3)))
    known = len(robot.applied())
    await hosted.until(lambda: len(robot.since(known)) > 100)
    assert await hosted.stop() == 0
    robot.prove()


@pytest.mark.long
async def test_a_folder_that_breaks_does_not_end_the_agent_that_runs(hosted):
    folder = hosted.add_agent("cartpole", edit=quick())
    folder = folder.rename(hosted.agents / "a-folder-with-another-name")
    robot = await hosted.robot()
    await hosted.start()
    await hosted.until_scored(2)
    session = (await hosted.agent())["runner_session"]
    toml = folder / "agent.toml"
    whole = toml.read_text()
    toml.write_text(whole + "\n[unknown]\nkey = 1\n")
    status = await hosted.client.reload()
    assert "unknown" in status["broken"]["a-folder-with-another-name"]
    toml.write_text(whole)
    copy = folder.with_name("a-copy")  # is read first
    shutil.copytree(folder, copy)
    (copy / "agent.toml").write_text(whole.replace("max_steps = 40", "max_steps = 30"))
    status = await hosted.client.reload()
    assert status["broken"].keys() == {"a-copy"}
    agent = await hosted.agent()
    assert agent["runner_session"] == session
    await hosted.until_scored(agent["episodes"] + 2)
    robot.prove()


@pytest.mark.long
async def test_a_new_source_takes_learned_values_over_where_their_default_is_unchanged(hosted):
    folder = hosted.add_agent(edit=quick())
    robot = await hosted.robot()
    await hosted.start()
    await hosted.until_good()
    learned = harder(await code_of(hosted))
    await force(hosted, {"act": learned})
    controller = folder / "controller.py"
    controller.write_text(controller.read_text() + "\n\nUNRELATED = 1\n")
    await hosted.client.reload()
    [changed] = await hosted.until(lambda: hosted.events("agent.source_changed"))
    assert changed["data"]["carried"] == ["act"]
    assert changed["data"]["lapsed"] == []
    assert await code_of(hosted) == learned

    async def serves(revision):
        return (await hosted.agent())["state"]["stable"] == revision and revision in robot.revisions()

    await hosted.until(lambda: serves(changed["data"]["revision"]))

    controller.write_text(controller.read_text().replace("0.5 * position", "0.6 * position"))
    await hosted.client.reload()
    _, changed = await hosted.until(lambda: two(hosted.events("agent.source_changed")))
    assert (changed["data"]["carried"], changed["data"]["conflicts"]) == ([], ["act"])
    await hosted.until(lambda: serves(changed["data"]["revision"]))
    assert "0.6 * position" in await code_of(hosted)
    robot.prove()


async def two(events):
    found = await events
    return found if len(found) == 2 else None


async def test_a_new_source_that_does_not_load_leaves_the_old_one_at_work(hosted):
    folder = hosted.add_agent(edit=quick())
    robot = await hosted.robot()
    await hosted.start()
    stable = await hosted.until_good()
    controller = folder / "controller.py"
    controller.write_text(controller.read_text() + "\n\nraise RuntimeError('not finished yet')\n")
    await hosted.client.reload()
    [rejected] = await hosted.until(lambda: hosted.events("agent.source_rejected"))
    assert "not finished yet" in rejected["message"] + rejected["data"]["traceback"]
    known = len(robot.applied())
    await hosted.until(lambda: robot.revisions(known))
    assert robot.revisions(known) == {stable}
    agent = await hosted.agent()
    assert (agent["state"]["stable"], agent["health"]) == (stable, "degraded")
    assert "can't be loaded" in agent["problem"]
    robot.prove()


async def test_an_agent_whose_actions_are_all_refused_and_whose_judge_always_fails_is_not_well_until_it_is_mended(hosted):
    simulated = {"kind": "gymnasium", "id": "CartPole-v1", "episode_interval": 0.01}
    folder = hosted.add_agent(edit=quick(**{f"environment__{key}": value for key, value in simulated.items()}))
    controller, judge = folder / "controller.py", folder / "feedback.py"
    controller.write_text(controller.read_text().replace("int(lean > 0.0)", "7"))
    judge.write_text(judge.read_text().replace("steps = episode.steps", "steps = episode.steps if not episode.steps[0].safe else 1 / 0"))
    await hosted.start()
    agent = await hosted.until(
        lambda: troubled(hosted, "no action was accepted", "could be judged", "ZeroDivisionError", "invalid", "agentd show")
    )
    assert agent["health"] == "failing"
    assert await exit_code(hosted, "status") == await exit_code(hosted, "status", "--watch") == 1
    assert (await scraped(hosted))["agentd_healthy"] == 0.0

    await force(hosted, {"act": (await code_of(hosted)).replace("return 7", "return int(lean > 0.0)")})
    assert [event["kind"] for event in await hosted.until(lambda: told(hosted))] == ["agent.failing", "agent.recovered"]
    agent = await hosted.agent()
    assert (agent["health"], agent["problem"]) == ("ok", "")
    assert await exit_code(hosted, "status") == 0
    assert (await scraped(hosted))["agentd_healthy"] == 1.0


async def troubled(hosted, *words):
    agent = await hosted.agent()
    return agent if all(word in agent["problem"] for word in words) else None


async def told(hosted):
    events = [
        event for event in await hosted.client.events("cartpole", limit=500) if event["kind"].startswith(("agent.fail", "agent.recov"))
    ]
    return events if len(events) == 2 else None


async def exit_code(hosted, *words):
    return (await asyncio.to_thread(CliRunner().invoke, app, [*words, "--state", str(hosted.state)])).exit_code


async def scraped(hosted):
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"{hosted.client.url}/metrics")).text
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


async def test_in_advise_mode_a_proposal_waits_for_a_person(hosted):
    hosted.add_agent(edit=quick(agent__mode="advise"))
    robot = await hosted.robot()
    await hosted.start()
    stable = await hosted.until_good()
    await robot.change("flip-motor")
    release = await hosted.client.submit("cartpole", {"act": mirrored(await code_of(hosted))})
    waiting = await hosted.until_phase(release["id"], "awaiting_approval")
    known = len(robot.applied())
    await hosted.until(lambda: len(robot.since(known)) > 50)
    assert robot.revisions(known) == {stable}  # nothing of it reached the robot
    await hosted.client.decide("approve", "cartpole", waiting["id"])
    ended = await hosted.until_ended(release["id"])
    assert ended["phase"] == "promoted"
    assert {change["who"] for change in ended["history"]} >= {"agentd", "operator"}


@pytest.mark.long
async def test_an_agent_that_is_paused_stays_so_through_a_restart_until_it_is_resumed(hosted):
    hosted.add_agent(edit=quick())
    robot = await hosted.robot()
    await hosted.start()
    await hosted.until_scored(2)
    await hosted.client.pause_agent("cartpole")
    await hosted.stop()
    await hosted.start()
    await hosted.until(lambda: hosted.events("runner.started"))

    async def up():
        return (await hosted.agent()).get("devices") == {"robot-1": "ready"}

    await hosted.until(up)
    known = len(robot.applied())
    assert (await hosted.agent())["state"]["paused"]
    await hosted.client.submit("cartpole", {"act": harder(await code_of(hosted))})  # meanwhile decisions are taken
    await hosted.kill()
    await hosted.start()
    await hosted.until(lambda: hosted.events("runner.adopted"))
    assert robot.revisions(known) == set()
    await hosted.client.resume_agent("cartpole")
    await hosted.until(lambda: robot.revisions(known))


@pytest.mark.long
async def test_a_rollback_ends_the_canary_and_serves_the_revision_that_was_asked_for(hosted):
    hosted.add_agent(edit=quick(release__max_pairs=1000))
    robot = await hosted.robot()
    await hosted.start()
    first = await hosted.until_good()
    code = await code_of(hosted)
    second = await force(hosted, {"act": harder(code)})
    release = await hosted.client.submit("cartpole", {"act": code.replace("10.0 * angle", "10.5 * angle")})
    await hosted.until_phase(release["id"], "selection", "confirmation", "pruned")
    await hosted.client.set_desired("cartpole", first, reason="I liked it better")
    assert (await hosted.client.release(release["id"]))["phase"] in {"aborted", "pruned"}
    agent = await hosted.agent()
    assert (agent["state"]["stable"], agent["release"]) == (first, None)

    async def only_first():
        known = len(robot.applied())
        await hosted.until(lambda: len(robot.since(known)) > 50)
        return robot.revisions(known) == {first}

    await hosted.until(only_first)
    await hosted.until(lambda: len(workers(hosted.runner_pid())) == 1)  # nothing is left of the two others
    assert second not in robot.revisions(len(robot.applied()) - 50)


def workers(runner):
    """The policy workers below a runner: what its zygote has forked."""
    import psutil

    return [process.pid for process in psutil.Process(runner).children(recursive=True) if not process.children()]
