"""The way of a language model's suggestion, through a real HTTP server that speaks OpenAI's protocol; and all that can go wrong with it."""

import asyncio

import pytest
from hosted import edited, mirrored, quick
from replies import suggest

from agentd.testing.llm import Reply, ScriptedLlm

pytestmark = pytest.mark.timeout(180)  # whole daemons that load litellm, on cores that others use too

KEY = "sk-test-this-key-must-never-be-seen"
PAIRS_ONLY = {"release__selection_pairs": 1}


class Model:
    """A scripted model; `reply` is what it answers from now on. What the daemon wants of the world outside is refused, and in `wanted`."""

    def __init__(self):
        self.reply = Reply("")
        self.server = ScriptedLlm(lambda _: self.reply)
        self.wanted = []
        self.proxy = ""

    async def refuse(self, reader, writer):
        self.wanted.append(await reader.readline())
        writer.close()


@pytest.fixture
async def model():
    scripted = Model()
    async with scripted.server, await asyncio.start_server(scripted.refuse, "127.0.0.1", 0) as outside:
        scripted.proxy = f"http://127.0.0.1:{outside.sockets[0].getsockname()[1]}"
        yield scripted


def asking(**values):
    return quick(optimizer__algorithm="optoprime", optimizer__models=["openai/scripted"], **values)


async def start(hosted, model):
    await hosted.start(api_base=model.server.url, environment={"AGENTD_API_KEY": KEY, "HTTPS_PROXY": model.proxy})
    await hosted.until_good()


async def failed_with(hosted, words, agent="cartpole"):
    """The `optimizer.failed` event with these words in it, when it has come."""

    async def told():
        return [event for event in await hosted.events("optimizer.failed", agent) if words in event["message"]]

    return (await hosted.until(told))[0]


async def test_a_model_repairs_the_controller_after_the_robot_changed(hosted, model):
    hosted.add_agent(edit=asking(optimizer__trigger="alarm", **PAIRS_ONLY))
    robot = await hosted.robot()
    await start(hosted, model)
    code = (await hosted.client.parameters("cartpole"))["act"]
    model.reply = Reply(suggest(act=mirrored(code)))
    await robot.change("flip-motor")

    async def repaired():
        return "int(lean < 0.0)" in (await hosted.client.parameters("cartpole"))["act"]

    await hosted.until(repaired, 120)  # an alarm, a proposal, a canary
    [release] = [found for found in await hosted.client.releases("cartpole") if found["phase"] == "promoted"]
    assert release["candidate"] in robot.revisions()
    prompt = model.server.requests[0].prompt
    assert "Keep the pole upright" in prompt  # the objective
    assert "lean = 0.5 * position" in prompt  # the code
    assert "Fell to the" in prompt  # the feedback
    assert set(model.server.requests[0].schema["properties"]["suggestion"]["properties"]) == {"act"}
    assert model.server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert await hosted.stop() == 0
    assert model.wanted == []  # no price table, no telemetry: models that are named are all that is asked
    for file in hosted.folder.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    robot.prove()


@pytest.mark.long
async def test_a_reply_that_can_not_be_used_or_a_service_that_fails_is_told_changes_nothing_and_is_asked_again(hosted, model):
    hosted.add_agent(edit=asking())
    robot = await hosted.robot()
    await start(hosted, model)
    stable = (await hosted.agent())["state"]["stable"]
    code = (await hosted.client.parameters("cartpole"))["act"]
    for reply, words in (
        (Reply(""), "empty"),
        (Reply('{"reasoning": "so", "suggestion": {"act": "def act(self, obs', finish_reason="length"), "cut off"),
        (Reply("I would turn the sign round."), "JSON"),
        (Reply(suggest(nonsense=1)), "nonsense"),
        (Reply(suggest(act=5)), "act"),
        (Reply(suggest(act=code.replace("int(lean > 0.0)", "int(lean > "))), "act"),
        (Reply(suggest(act=code.replace("self, observation", "self, everything"))), "act"),
        (Reply(suggest(act="import socket\n" + code)), "act"),
        (Reply(status=401, error=f"bad key {KEY}"), "API key"),
        (Reply(status=429, retry_after=3600.0, error="slow down"), "slow down"),
        (Reply(status=500, error="we are on fire"), "we are on fire"),
        (Reply(body=b"<html>not what you think</html>"), "openai/scripted"),
    ):
        model.reply = reply
        await hosted.client.propose("cartpole")
        event = await failed_with(hosted, words)
        assert event["agent"] == "cartpole"
        assert KEY not in event["message"]
    assert (await hosted.agent())["state"]["stable"] == stable
    assert await hosted.client.releases("cartpole") == []
    assert robot.sources()["fallback"] == 0
    model.reply = Reply(f"```json\n{suggest(act=mirrored(code))},\n```")  # slightly broken, and understood
    await hosted.client.propose("cartpole")
    await hosted.until(lambda: hosted.events("release.proposed"))
    robot.prove()


@pytest.mark.long
async def test_a_service_that_hangs_is_given_up(hosted, model):
    hosted.add_agent(edit=asking(optimizer__propose_timeout=4))
    robot = await hosted.robot()
    await start(hosted, model)
    model.reply = Reply(delay=60.0)
    await hosted.client.propose("cartpole")
    await failed_with(hosted, "propose_timeout is too short for this model, or the model hangs")
    scored = (await hosted.agent())["episodes"]
    await hosted.until_scored(scored + 2)
    assert await hosted.stop() == 0
    robot.prove()


@pytest.mark.long
async def test_without_a_model_a_key_or_a_budget_no_model_is_asked_it_is_said_once_and_the_agents_go_on(hosted, model):
    scripted = ["openai/scripted"]
    wanting = {
        "unknown": ({"optimizer__models": ["nonsense/no-such-model"]}, "litellm name"),
        "keyless": ({"optimizer__models": ["openai/gpt-4.1-mini"]}, "API key"),
        "none": ({"optimizer__models": []}, "no model"),
        "poor": ({"optimizer__models": scripted, "optimizer__budget": {"dollars_per_day": 0.0}}, ""),
        "silent": ({"optimizer__models": scripted, "optimizer__budget": {"calls_per_hour": 0}}, ""),
    }
    for name, (values, _) in wanting.items():
        hosted.add_agent("greeting", name=name, edit=edited(optimizer__algorithm="optoprime", environment__episode_interval=0.2, **values))
    await hosted.start(api_base=model.server.url, environment={"OPENAI_API_KEY": "", "AGENTD_API_KEY": ""})
    for name, (_, words) in wanting.items():
        await hosted.until_scored(3, name)
        await hosted.client.propose(name)
        if words:
            await failed_with(hosted, words, name)
        else:
            await hosted.until(lambda name=name: hosted.events("optimizer.budget_exhausted", name))
    for name in wanting:
        await hosted.until_scored((await hosted.agent(name))["episodes"] + 3, name)
    for name in ("poor", "silent"):
        assert len(await hosted.events("optimizer.budget_exhausted", name)) == 1
    assert model.server.requests == []
    assert await hosted.stop() == 0
