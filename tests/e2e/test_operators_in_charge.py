"""Operators hold an agent back and let it go on; what they decided survives everything that happens to the daemon."""

import pytest
from hosted import mirrored, quick
from test_operating import code_of, force, harder

from agentd.cli.context import Refused


async def frozen(hosted):
    return (await hosted.agent())["state"]["frozen"]


async def refused(verb):
    with pytest.raises(Refused) as caught:
        await verb
    return caught.value.status, caught.value.kind


@pytest.mark.long
async def test_nothing_is_released_while_an_agent_is_frozen_and_everything_goes_on_afterwards(hosted):
    hosted.add_agent(edit=quick(release__max_pairs=1000, release__prune={"after_pairs": 1000}))
    robot = await hosted.robot()
    await hosted.start()
    stable = await hosted.until_good()
    code = await code_of(hosted)
    running = await hosted.client.submit("cartpole", {"act": harder(code)})
    await hosted.until_pairs(running["id"], 1)
    waiting = await hosted.client.submit("cartpole", {"act": code.replace("10.0 * angle", "12.0 * angle")})
    hosted.add_agent(name="mended", edit=lambda _: "schema = 1")
    await hosted.client.reload()
    [status] = await hosted.client.freeze(None, reason="demonstration on Monday")
    assert status["state"]["frozen"]["reason"] == "demonstration on Monday"

    seen = (await hosted.client.release(running["id"]))["pairs"]
    known = len(robot.applied())
    await hosted.until(lambda: len(robot.since(known)) > 200)
    assert (await hosted.client.release(running["id"]))["pairs"] == seen
    assert robot.revisions(known + 50) == {stable}  # the episode that ran when it was frozen was finished
    begun = hosted.client
    for verb in (
        begun.submit("cartpole", {"act": code}),
        begun.promote("cartpole", running["id"]),
        begun.propose("cartpole"),
        begun.decide("approve", "cartpole", running["id"]),
        begun.decide("retry", "cartpole", running["id"]),
    ):
        assert await refused(verb) in {(409, "held"), (409, "release-error")}
    assert await hosted.stop() == 0

    async def waits():
        return (await hosted.agent())["waiting"]

    # an agent that could not be loaded when everything was frozen is frozen as it comes
    declared = (hosted.agents / "cartpole" / "agent.toml").read_text()
    (hosted.agents / "mended" / "agent.toml").write_text(declared.replace('name = "cartpole"', 'name = "mended"'))
    await hosted.start()
    assert (await hosted.until(waits)).startswith("frozen by operator")
    assert (await frozen(hosted))["who"] == "operator"
    assert (await hosted.client.release(waiting["id"]))["phase"] == "proposed"
    await hosted.client.decide("abort", "cartpole", waiting["id"])  # an operator may end what waits

    async def serves():
        return (await hosted.agent("mended"))["health"] == "ok"

    await hosted.until(serves)
    assert await refused(hosted.client.submit("mended", {"act": code})) == (409, "held")
    assert await refused(hosted.client.unfreeze("cartpole")) == (409, "held")  # as long as all are
    await hosted.client.unfreeze(None)
    await hosted.until_pairs(running["id"], seen + 1)
    assert await frozen(hosted) is None
    robot.prove()


@pytest.mark.long
async def test_the_watch_rolls_back_a_frozen_agent_and_one_that_rolls_back_too_often_is_put_into_quarantine(hosted):
    hosted.add_agent(edit=quick(guardrails__max_rollbacks="0/day"))
    robot = await hosted.robot()
    await hosted.start()
    good = await hosted.until_good()
    bad = await force(hosted, {"act": mirrored(await code_of(hosted))})
    await hosted.client.freeze("cartpole")

    async def quarantined():
        return (await hosted.agent())["state"]["quarantine"]

    assert "max_rollbacks allows 0/day" in (await hosted.until(quarantined, limit=55))["reason"]
    assert (await hosted.agent())["state"]["stable"] == good
    await hosted.client.unfreeze("cartpole")
    await hosted.kill()
    await hosted.start()
    await hosted.until(lambda: hosted.events("runner.adopted"))
    assert (await hosted.agent())["state"]["quarantine"]
    assert await refused(hosted.client.submit("cartpole", {"act": harder(await code_of(hosted))})) == (409, "held")
    known = len(robot.applied())
    await hosted.until(lambda: len(robot.since(known)) > 50)
    assert robot.revisions(known) == {good}  # it serves what was good

    await hosted.client.unquarantine("cartpole", reason="the judge is mended")
    release = await hosted.client.submit("cartpole", {"act": harder(await code_of(hosted))})
    await hosted.until_phase(release["id"], "selection", "confirmation")
    assert not (await hosted.agent())["state"]["quarantine"]
    assert (await hosted.client.revision(bad))["id"] == bad
    robot.prove()


@pytest.mark.long
async def test_a_rollback_over_a_changed_source_goes_back_to_the_pair_that_was_measured_and_stays_there(hosted):
    folder = hosted.add_agent(edit=quick())
    robot = await hosted.robot()
    await hosted.start()
    await hosted.until_good()
    learned = await force(hosted, {"act": harder(await code_of(hosted))})
    controller = folder / "controller.py"
    controller.write_text(controller.read_text().replace("0.5 * position", "0.6 * position"))
    await hosted.client.reload()
    [changed] = await hosted.until(lambda: hosted.events("agent.source_changed"))
    assert changed["data"]["conflicts"] == ["act"]
    await hosted.until(lambda: changed["data"]["revision"] in robot.revisions())

    [conflict] = (await hosted.agent())["state"]["conflicts"]
    assert "10.0 * angle" in conflict["base"]
    assert "11.0 * angle" in conflict["learned"]
    assert "0.6 * position" in conflict["source"]
    kept = await hosted.client.rebase("cartpole", keep=["act"], reason="it was measured")
    assert kept["conflicts"] == []
    assert (await hosted.client.release(kept["release"]["id"]))["proposed"]["values"] == {"act": conflict["learned"]}
    assert await refused(hosted.client.rebase("cartpole", keep=["act"])) == (422, "decoding-error")

    await hosted.client.set_desired("cartpole", learned, reason="the new source is worse")

    async def serves():
        agent = await hosted.agent()
        return agent["health"] == "degraded" and "rolled back" in agent["problem"]

    await hosted.until(serves)
    await hosted.stop()
    await hosted.start()  # the folder still holds the other source
    await hosted.until(serves)
    known = len(robot.applied())
    await hosted.until(lambda: len(robot.since(known)) > 50)
    assert robot.revisions(known) == {learned}
    assert await code_of(hosted) == conflict["learned"]

    await hosted.client.set_desired("cartpole", changed["data"]["revision"])  # forward again

    async def forward():
        agent = await hosted.agent()
        return agent["state"]["stable"] == changed["data"]["revision"] and agent["problem"] == ""

    await hosted.until(forward)
    assert "0.6 * position" in await code_of(hosted)
    robot.prove()


@pytest.mark.long
async def test_an_operator_takes_a_fleet_up_its_ramp_step_by_step_or_past_all_of_it(hosted):
    simulated = {"environment__kind": "gymnasium", "environment__id": "CartPole-v1", "environment__episode_interval": 0.02}
    ramp = {"release__ramp": [0.25, 0.5, 0.75], "release__step_pairs": 100_000, "release__max_pairs": 100_000}
    hosted.add_agent(edit=quick(**simulated, **ramp, environment__devices=4, release__prune={"after_pairs": 100_000}))
    await hosted.start()
    await hosted.until_good()
    code = await code_of(hosted)
    release = await hosted.client.submit("cartpole", {"act": harder(code)})
    await hosted.until_pairs(release["id"], 1)
    for exposed in (2, 3):
        stepped = await hosted.client.promote("cartpole", release["id"], reason="looks good")
        assert (len(stepped["fleet"]), stepped["ended_at"]) == (exposed, None)
    ended = await hosted.client.promote("cartpole", release["id"])  # the ramp has no further step
    assert (ended["phase"], ended["forced"]) == ("promoted", True)
    steps = await hosted.events("release.step")
    assert [event["who"] for event in steps] == ["agentd", "operator", "operator"]

    another = await hosted.client.submit("cartpole", {"act": code.replace("10.0 * angle", "12.0 * angle")})
    await hosted.until_pairs(another["id"], 1)
    assert (await hosted.client.promote("cartpole", another["id"], full=True))["phase"] == "promoted"
    assert await refused(hosted.client.promote("cartpole", another["id"])) == (409, "stale-release")


@pytest.mark.long
async def test_a_new_source_that_turns_out_bad_is_rolled_back_by_the_watch_to_the_old_pair_of_source_and_values(hosted):
    folder = hosted.add_agent(edit=quick())
    robot = await hosted.robot()
    await hosted.start()
    good = await hosted.until_good()
    controller = folder / "controller.py"
    controller.write_text(mirrored(controller.read_text()))
    await hosted.client.reload()
    [changed] = await hosted.until(lambda: hosted.events("agent.source_changed"))
    bad = changed["data"]["revision"]

    async def back():
        agent = await hosted.agent()
        return agent["state"] and agent["state"]["stable"] == good and agent["health"] == "degraded"

    await hosted.until(back, limit=55)
    assert await hosted.events("watch.alarm")
    [probe] = [release for release in await hosted.client.releases("cartpole") if release["kind"] == "probe"]
    assert (probe["candidate"], probe["reference"], probe["phase"]) == (good, bad, "promoted")
    known = len(robot.applied())
    await hosted.until(lambda: len(robot.since(known)) > 100)
    assert robot.revisions(known + 50) == {good}
    assert "lean > 0.0" in await code_of(hosted)
    assert bad[:10] in (await hosted.agent())["problem"]
    robot.prove()
