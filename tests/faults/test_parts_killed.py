"""Everything but the daemon dies in the middle of a canary: runner, worker, broker, robot. The canary goes on, and the robot tells how."""

import os
import signal

import pytest
from hosted import quick

ENDLESS = {"release__prune": {"after_pairs": 1000}, "release__max_pairs": 1000}


async def canary(hosted, *options):
    """A robot in the middle of a canary whose candidate is as good as stable; the release as it was seen last."""
    hosted.add_agent(edit=quick(**ENDLESS))
    robot = await hosted.robot("robot-1", "cartpole", *options)
    await hosted.start()
    await hosted.until_scored(1)
    code = (await hosted.client.parameters("cartpole"))["act"]
    release = await hosted.client.submit("cartpole", {"act": code.replace("10.0 * angle", "11.0 * angle")})
    return robot, await hosted.until_pairs(release["id"], 1)


async def goes_on(hosted, release):
    """The canary has drawn further pairs since, and its revisions are the same."""
    before = await hosted.client.release(release["id"])
    after = await hosted.until_pairs(release["id"], before["pairs"] + 3)
    assert (after["candidate"], after["reference"]) == (release["candidate"], release["reference"])
    return after


def policy_workers(runner):
    import psutil

    return [process.pid for process in psutil.Process(runner).children(recursive=True) if not process.children()]


@pytest.mark.long
@pytest.mark.timeout(180)  # three parts, one after the other
async def test_a_runner_a_broker_and_a_robot_that_are_killed_come_back_into_the_canary(hosted, mosquitto):
    robot, release = await canary(hosted, "--action-timeout", "0.1", "--step-ms", "5")  # it is nearly always in an episode
    for _ in range(2):
        session, fallbacks = (await hosted.agent())["runner_session"], robot.sources()["fallback"]
        await hosted.until(lambda: robot.applied()[-1]["step"] < 20)  # between two episodes it would miss nothing
        os.kill(hosted.runner_pid(), signal.SIGKILL)

        async def replaced(session=session):
            agent = await hosted.agent()
            return agent["runner_session"] not in ("", session) and agent["health"] != "failed"

        await hosted.until(replaced)
        await goes_on(hosted, release)
        assert robot.sources()["fallback"] > fallbacks
    assert any("lost" in event["message"] for event in await hosted.events("agent.failed"))

    fallbacks = robot.sources()["fallback"]
    mosquitto.kill()
    await hosted.until(lambda: robot.sources()["fallback"] > fallbacks)

    async def failing():
        agent = await hosted.agent()
        told = agent["health"] == "failing" and "broker is out of reach" in agent["problem"]
        assert agent["devices"] == {"robot-1": "lost" if told else "ready"}
        return told

    await hosted.until(failing)
    mosquitto.start()
    await goes_on(hosted, release)
    assert not await failing()

    robot.prove()
    robot.process.kill()  # in the middle of a pair: it never rests
    await robot.process.wait()
    await hosted.until(lambda: hosted.events("device.left"))
    robot = await hosted.robot()  # its log goes on, too
    after = await goes_on(hosted, release)
    assert after["lost_pairs"] > 0
    assert await hosted.stop() == 0
    robot.prove()


@pytest.mark.long
async def test_a_runner_that_stands_still_is_replaced(hosted):
    robot, release = await canary(hosted)
    session, frozen = (await hosted.agent())["runner_session"], hosted.runner_pid()
    os.kill(frozen, signal.SIGSTOP)

    async def replaced():
        return (await hosted.agent())["runner_session"] not in ("", session)

    await hosted.until(replaced, limit=60.0)
    await goes_on(hosted, release)
    robot.prove()


async def test_workers_that_are_killed_cost_safe_actions_and_their_revisions_go_on(hosted):
    robot, release = await canary(hosted)
    for _ in range(3):
        known = len(await hosted.events("worker.died"))
        for worker in policy_workers(hosted.runner_pid()):
            os.kill(worker, signal.SIGKILL)

        async def told(known=known):
            return len(await hosted.events("worker.died")) > known

        await hosted.until(told)
        known_ticks = len(robot.applied())
        await hosted.until(lambda known_ticks=known_ticks: release["reference"] in robot.revisions(known_ticks))
    assert robot.sources()["safe"] > 0
    assert robot.sources()["fallback"] == 0
    status = await hosted.agent()
    assert status["state"]["stable"] == release["reference"]
    assert status["health"] != "failed"
    assert await hosted.stop() == 0
    robot.prove()
