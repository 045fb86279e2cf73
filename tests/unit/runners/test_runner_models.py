"""What an agent asks of models is answered by its runner, through litellm and real HTTP: within a lease, noted, whatever fails."""

import asyncio
import json
from pathlib import Path

import pytest
import pytest_asyncio

from agentd.clock import SystemClock
from agentd.opto.budget import Grant
from agentd.records import MODELS_LOST, Outcome, make_revision
from agentd.runners.local import Finished, LocalRunner, ModelAccess
from agentd.spec import load_agent
from agentd.testing.llm import Reply, ScriptedLlm

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]  # litellm takes seconds to load, on shared cores

KEY = "sk-test-this-key-must-never-be-seen"
PROGRAM = """
import asyncio, time
from agentd.errors import BudgetExhausted, ModelError
from agentd.trace import acall_llm, call_llm

class Policy:
    async def act(self, observation):
        observation = observation.data
        if isinstance(observation, str):
            model = "openai/other" if observation == "other model" else "openai/scripted"
            if observation == "too late":
                time.sleep(2.75)
            return call_llm("Answer.", observation, max_tokens=9000, model=model)
        return await asyncio.gather(*(self.careful(question) for question in observation))

    async def careful(self, question):
        try:
            return (await acall_llm("Answer.", question)).data
        except (BudgetExhausted, ModelError):
            return "sorry"
"""
TOML = """
schema = 1
[agent]
name = "asker"
entrypoint = "policy:Policy"
[environment]
kind = "dataset"
[environment.dataset]
path = "cases.jsonl"
validation = 0
[feedback]
entrypoint = "judge:feedback"
[models]
calls_per_step = 8
max_tokens = 64
[sandbox]
step_timeout = "3s"
allowed_imports = ["asyncio", "time"]
"""
REPLIES = {
    "plain": Reply("fine"),
    "500": Reply(status=500, error="on fire"),
    "429": Reply(status=429, retry_after=60),
    "401": Reply(status=401, error=f"the key {KEY} is wrong"),
    "garbage": Reply(body=b"<html>busy</html>"),
    "slow": Reply("late", delay=30.0),
    "400": Reply(status=400, error="too many tokens"),
    "gone": Reply(cut_after=0),
    "long": Reply("x" * 60_000),
}
CASES = ("429", "400", "other model", "too late", tuple(REPLIES)[:8])


class Site:
    """A served agent, what its service was asked, and the first episode of each case."""

    def __init__(self, folder, server):
        self.folder = folder
        self.server = server
        self.episodes = {}
        self.taken = 0
        self.runner: LocalRunner

    async def episode(self):
        while True:
            message = await self.runner.next()
            if isinstance(message, Finished):
                await self.runner.acknowledge(message.episode.id)
                return message.episode

    async def lease(self, calls, access=None):
        """Lease so many calls; what was spent is taken."""
        report = await self.runner.lease_models(
            Grant(taken=self.taken, dollars=5.0, calls=calls, limits=(f"{calls} calls per hour", "5 dollars per day")), access
        )
        self.taken = report.taken + len(report.usage)
        return report


def write(folder, program=PROGRAM):
    (folder / "cases.jsonl").write_text("".join(json.dumps({"input": text}) + "\n" for text in CASES))
    (folder / "agent.toml").write_text(TOML)
    (folder / "policy.py").write_text(program)
    (folder / "judge.py").write_text("def feedback(episode):\n    return 1.0\n")
    return load_agent(folder)


def answer(request):
    return REPLIES.get(request.body["messages"][-1]["content"], REPLIES["slow"])


def name(observation):
    return observation if isinstance(observation, str) else "careful"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asker")
    async with ScriptedLlm(answer) as server:
        made = Site(folder, server)
        spec, source = write(folder)
        state = folder / "state"
        made.runner = runner = await LocalRunner.adopt_or_start(
            spec=spec, state_directory=state, epoch=1, broker=None, seed=1, clock=SystemClock()
        )
        try:
            made.revision = make_revision("asker", source.digest, {})
            await runner.load(source, made.revision)
            access = ModelAccess(names=("openai/scripted",), api_base=server.url, api_key=KEY, variables={"OPENAI_TEST_TOKEN": KEY})
            await made.lease(100, access)
            await runner.route(made.revision.id)
            while len(made.episodes) < len(CASES):
                found = await made.episode()
                made.episodes.setdefault(name(found.steps[0].observation), found)
            await runner.pause()
            yield made
        finally:
            await runner.abandon()
            await LocalRunner.dismiss("asker", state, 1, SystemClock(), timeout=5.0)


async def test_questions_are_answered_side_by_side_and_a_program_may_catch_what_goes_wrong(site):
    found = site.episodes["careful"]
    assert (found.outcome, found.steps[0].action) == (Outcome.FINISHED, ["fine"] + ["sorry"] * 7)
    plain, *failed = found.steps[0].exchanges
    assert (plain.messages, plain.answer) == ((("system", "Answer."), ("user", "plain")), "fine")
    assert (plain.model, plain.tokens_in, plain.tokens_out) == ("openai/scripted", 100, 20)
    words = (
        "on fire",
        "RateLimitError",
        "is the API key set",
        "openai/scripted",
        "no answer before the end of the step",
        "too many tokens",
        "Connection",
    )
    for exchange, word in zip(failed, words, strict=True):
        assert exchange.error.startswith("ModelError: ")
        assert word in exchange.error


async def test_a_service_that_fails_is_not_the_policy_s_fault(site):
    found = site.episodes["429"]
    assert (found.outcome, found.reason, found.steps[0].safe) == (Outcome.LOST, MODELS_LOST, "model")
    assert "RateLimitError" in found.error


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("400", "too many tokens"),
        ("other model", "may ask openai/scripted, not openai/other"),
        ("too late", "in the second half of which it was asked"),  # or a policy could have any model fail, and its bad episodes not counted
    ],
)
async def test_a_question_that_can_not_be_answered_is(site, case, words):
    found = site.episodes[case]
    assert (found.outcome, found.reason) == (Outcome.ABORTED, "exception")
    assert words in found.error


async def test_an_agent_s_own_limits_hold_and_its_key_goes_to_the_service_alone(site):
    asked = next(request for request in site.server.requests if answer(request) is REPLIES["429"])
    assert asked.body["max_tokens"] == 64
    assert asked.headers["authorization"] == f"Bearer {KEY}"


async def test_keys_are_in_no_episode_no_environment_no_command_line_and_no_log(site):
    assert KEY not in repr(site.episodes)
    assert "[key]" in site.episodes["careful"].steps[0].exchanges[3].error
    assert KEY not in repr(ModelAccess(names=(), api_key=KEY, variables={"A": KEY}))
    await asyncio.to_thread(_search, site)


def _search(site):
    family = [process for process in Path("/proc").glob("[0-9]*") if _is_of(int(process.name), site.runner.pid)]
    assert len(family) >= 3, "the runner, its zygote and a worker"
    for process in family:
        for file in ("environ", "cmdline"):
            assert KEY.encode() not in (process / file).read_bytes(), (process, file)
    files = [path for path in site.folder.rglob("*") if path.is_file()]
    assert [path.suffix for path in files if path.suffix == ".log"]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def _is_of(pid, ancestor):
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


async def test_a_replay_is_answered_from_the_record_and_says_where_there_is_no_answer(site, monkeypatch):
    monkeypatch.setitem(REPLIES, "plain", Reply("what a model would say now"))
    recorded = (site.episodes["careful"],)
    report = await site.runner.screen(site.revision.id, recorded)
    assert (report.ticks, report.differing, report.errors, report.unrecorded) == (1, 0, 0, 0)
    _, changed = await asyncio.to_thread(write, site.folder, PROGRAM.replace('"Answer."', '"Sing."'))
    revision = make_revision("asker", changed.digest, {})
    await site.runner.load(changed, revision)
    report = await site.runner.screen(revision.id, recorded)
    assert (report.ticks, report.errors, report.unrecorded) == (0, 0, 1)
    assert "not recorded: 'plain'" in report.first_unrecorded


async def test_a_used_up_budget_begins_no_episode_until_there_is_room_again(site):
    await site.lease(0)
    await site.runner.resume()
    refused = "BudgetExhausted: 0 calls per hour"
    async with asyncio.timeout(30):
        found = await site.episode()
        while all(exchange.error != refused for exchange in found.steps[0].exchanges):
            found = await site.episode()
    assert found.outcome is (Outcome.FINISHED if name(found.steps[0].observation) == "careful" else Outcome.LOST)
    report = await site.lease(0)
    assert (report.exhausted, report.trouble) == (True, "the budget is exhausted: 0 calls per hour")
    asked = len(site.server.requests)
    await site.lease(1)
    assert (await site.lease(1)).exhausted, "one call is no room to begin with"
    assert len(site.server.requests) == asked
    assert not (await site.lease(150)).exhausted
    while len(site.server.requests) == asked:
        await site.episode()
    await site.runner.pause()
    usage = [row for _ in range(2) for row in (await site.lease(150)).usage]
    assert usage
    assert {(row.purpose, row.agent, row.model) for row in usage} == {("policy", "asker", "openai/scripted")}
