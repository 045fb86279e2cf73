"""An agent that asks a language model at every step, hosted: it is improved on evidence, and outlives its model's service."""

import json
import re

import httpx
import pytest
from hosted import edited

from agentd.settings import read_address
from agentd.store import SqlStore
from agentd.testing.llm import Reply, ScriptedLlm

pytestmark = pytest.mark.timeout(240)

KEY = "sk-test-this-key-must-never-be-seen"
BETTER = "Which team is this message for? Answer with one word: billing, delivery, account or technical."
WORDS = {
    "billing": r"charged|invoice|refund|price|card|receipt|fee|pay|money|bank",
    "delivery": r"parcel|courier|ship|tracking|delivered|express|box|address before|stock|package",
    "account": r"password|profile|log in|sign|login|unlock",
}


class Model:
    """Follows the prompt that it is given; asked for a better prompt, it has one."""

    def __init__(self):
        self.fails: Reply | None = None
        self.server = ScriptedLlm(self._answer)

    def _answer(self, request):
        if "suggestion" in request.prompt:
            return json.dumps({"reasoning": "the answer has to name a team", "suggestion": {"prompt": BETTER}})
        if self.fails is not None:
            return self.fails
        asked, message = (message["content"] for message in request.body["messages"])
        if "one word" not in asked:
            return f"This message is about something that matters to whoever wrote: {message}"
        return next((team for team, words in WORDS.items() if re.search(words, message, re.IGNORECASE)), "technical") + "."


@pytest.fixture
async def model():
    made = Model()
    async with made.server:
        yield made


async def metric(hosted, name, **labels):
    """The sum of a metric's samples with these labels."""
    found = 0.0
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{read_address(hosted.state).url}/metrics")).text
    for line in text.splitlines():
        if line.startswith(name) and all(f'{label}="{value}"' in line for label, value in labels.items()):
            found += float(line.rpartition(" ")[2])
    return found


@pytest.mark.long
async def test_a_prompt_is_improved_by_evidence_and_the_agent_outlives_its_service(hosted, model):
    hosted.add_agent(
        "triage",
        edit=edited(
            agent__mode="release",
            environment__episode_interval=0.2,
            sandbox__step_timeout="20s",
            release__selection_pairs=1,
        ),
    )
    await hosted.start(api_base=model.server.url, environment={"AGENTD_API_KEY": KEY}, models=["openai/scripted"])
    await hosted.until_scored(2, "triage")
    [first, *_] = await hosted.client.episodes("triage", limit=1)
    episode = await hosted.client.episode(first["id"])
    [exchange] = episode["steps"][0]["exchanges"]
    assert exchange["messages"][0] == ["system", "What is this message about?"]
    assert exchange["answer"].startswith("This message is about")
    assert first["normalised"] == 0.0

    await hosted.client.propose("triage")

    async def promoted():
        return (await hosted.client.parameters("triage"))["prompt"] == BETTER

    await hosted.until(promoted, 120)
    [release] = await hosted.client.releases("triage", limit=1)
    assert (release["phase"], release["forced"]) == ("promoted", False)
    assert release["candidate_sum"] / release["pairs"] == 1.0
    told = [event["message"] for event in await hosted.events("release.screened", "triage")]
    assert "can't be replayed whole" in told[0]
    assert "a model is asked what is not recorded" in told[0]
    assert await metric(hosted, "agentd_llm_requests_total", agent="triage", purpose="policy", outcome="ok") > 5
    assert await metric(hosted, "agentd_llm_tokens_total", agent="triage", purpose="policy", direction="input") > 500
    assert await metric(hosted, "agentd_llm_requests_total", agent="triage", purpose="optoprime") > 0
    assert await metric(hosted, "agentd_budget_remaining_dollars", agent="triage", spender="policy") == 5.0

    runner = hosted.runner_pid("triage")
    model.fails = Reply(status=500, error="on fire")

    async def troubled():
        return "on fire" in (await hosted.agent("triage"))["problem"]

    await hosted.until(troubled)
    assert (await hosted.agent("triage"))["health"] == "degraded"

    async def lost():
        return [found for found in await hosted.client.episodes("triage", limit=5) if found["outcome"] == "lost"]

    assert "models gave no answer" in (await hosted.client.episode((await hosted.until(lost))[0]["id"]))["feedback"]["failed"]
    model.fails = None
    counted = (await hosted.agent("triage"))["episodes"]

    async def well():
        agent = await hosted.agent("triage")
        return agent["health"] == "ok" and agent["episodes"] > counted + 2

    await hosted.until(well)
    assert hosted.runner_pid("triage") == runner
    assert (await hosted.client.parameters("triage"))["prompt"] == BETTER, "no watch took an outage for a worse prompt"

    await hosted.kill()
    known = len(model.server.requests)
    await hosted.until(lambda: len(model.server.requests) > known + 2)  # the runner goes on within its last lease
    await hosted.start(api_base=model.server.url, environment={"AGENTD_API_KEY": KEY}, models=["openai/scripted"])
    await hosted.until_scored(3, "triage")
    assert hosted.runner_pid("triage") == runner

    async def all_counted():
        rows = await spent(hosted)
        made = sum("suggestion" not in request.prompt for request in model.server.requests)
        return rows if len(rows) >= made - 1 else None  # one may be under way

    rows = await hosted.until(all_counted)
    assert len(rows) == len(set(rows)), "no call was counted twice"
    assert await hosted.stop() == 0
    assert not [path for path in hosted.state.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


async def spent(hosted):
    """What was recorded of the agent's own calls."""
    async with await SqlStore.open(f"sqlite+aiosqlite:///{hosted.state / 'agentd.db'}", read_only=True) as store:
        return [row for row in await store.usage("triage", since=0.0) if row.purpose == "policy"]
