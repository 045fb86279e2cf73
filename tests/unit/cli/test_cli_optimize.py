"""`agentd optimize`: the loop of the daemon without a daemon, as a process, with a scripted model behind real HTTP."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from replies import suggest

from agentd.cases import read_cases, split
from agentd.cli.client import Client
from agentd.errors import AgentdError
from agentd.ready import find
from agentd.records import Mode, Phase
from agentd.runners.paths import RunnerPaths, lock_holder
from agentd.store import SqlStore
from agentd.testing.llm import Reply, ScriptedLlm, in_turn

pytestmark = pytest.mark.timeout(180)  # whole processes, on cores that others use too

KEY = "sk-test-this-key-must-never-be-seen"

LANGUAGE = '''def decide_language(self, message):
    """The language of the message."""
    first = message.replace("!", " ").replace(",", " ").split()[0]
    return {"Hola": "es", "Buenas": "es", "Bonjour": "fr", "Salut": "fr", "Hallo": "de", "Guten": "de", "Moin": "de"}.get(first, "en")
'''
GREETING = '''def greet(self, language, message):
    """The greeting."""
    word = {"en": "Hello", "es": "Hola", "fr": "Bonjour", "de": "Hallo"}[language]
    return f"{word}, {message.rstrip('.').split()[-1]}!"
'''
MUTE = '''def greet(self, language, message):
    """Says nothing of use."""
    return "..."
'''


GOOD = suggest(decide_language=LANGUAGE, greet=GREETING)


@dataclass
class Ended:
    code: int
    output: str
    errors: str

    @property
    def document(self):
        return json.loads(self.output)


class Laptop:
    """A folder with a shipped policy, a state directory, and what is started on them."""

    def __init__(self, folder: Path, name: str = "greeting") -> None:
        self.agent = folder / name
        self.state = folder / "state"
        self.processes: list[asyncio.subprocess.Process] = []
        shutil.copytree(find(name), self.agent)

    def edit(self, old: str, new: str) -> None:
        path = self.agent / "agent.toml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    async def start(self, *arguments: str, model: ScriptedLlm | None = None) -> asyncio.subprocess.Process:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AGENTD_")} | {"AGENTD_HTTP_PORT": "0"}
        if model is not None:
            environment |= {"AGENTD_API_BASE": model.url, "AGENTD_API_KEY": KEY, "AGENTD_MODELS": "openai/scripted"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agentd", *arguments, "--state", str(self.state)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        self.processes.append(process)
        return process

    async def optimize(self, *arguments: str, model: ScriptedLlm | None = None) -> Ended:
        process = await self.start("optimize", str(self.agent), "--seed", "3", "--json", *arguments, model=model)
        return await self.ended(process)

    async def ended(self, process: asyncio.subprocess.Process) -> Ended:
        output, errors = await asyncio.wait_for(process.communicate(), 120)
        assert lock_holder(RunnerPaths.under(self.state, self.agent.name).lock) is None, "a runner was left behind"
        return Ended(process.returncode, output.decode(), errors.decode())

    def store(self):
        return SqlStore.open(f"sqlite+aiosqlite:///{self.state / 'agentd.db'}", read_only=True)

    async def aclose(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
        holder = lock_holder(RunnerPaths.under(self.state, self.agent.name).lock)
        if holder is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(holder, signal.SIGKILL)


@pytest.fixture
async def laptop(tmp_path):
    made = Laptop(tmp_path)
    yield made
    await made.aclose()


@pytest.mark.long  # the daemon's way with a model is in tests/e2e/test_models.py
async def test_the_greeting_policy_learns_and_a_daemon_serves_what_it_learned_and_is_not_disturbed(laptop):
    async with ScriptedLlm(in_turn([suggest(greet=MUTE), GOOD])) as model:
        ended = await laptop.optimize("-n", "2", model=model)
        prompts = "\n".join(request.prompt for request in model.requests)
    assert ended.code == 0, ended.errors
    document = ended.document
    mute, good = document["attempts"]
    assert mute["fate"] in {"pruned", "rejected"}
    assert (good["fate"], good["candidate"]) == ("promoted", 1.0)
    assert good["paths"] == ["decide_language", "greet"]
    assert document["improved"]
    assert document["after"] == good["revision"]
    async with await laptop.store() as store:
        state = await store.agent("greeting")
        assert state.stable == document["after"]
        assert (state.mode, state.improving, state.release) == (Mode.ADVISE, False, None), "a daemon would not go on by itself"
        [promoted] = [release for release in await store.releases("greeting") if release.phase is Phase.PROMOTED]
        assert not promoted.forced
        parts = split(read_cases(laptop.agent / "cases.jsonl"), 0.3)
        asked = {(await store.episode(pair.id)).steps[0].observation for pair in await store.episodes("greeting", limit=500) if pair.pair}
    assert asked <= {case.input for case in parts.validation}, "only held-back cases decide"
    assert any(case.input in prompts for case in parts.train)
    assert not any(case.input in prompts for case in parts.validation), "no model sees a held-back case"
    assert KEY not in ended.output + ended.errors

    daemon = await laptop.start("run", "--agents", str(laptop.agent))
    async with asyncio.timeout(90):
        while True:
            with contextlib.suppress(AgentdError):
                async with Client.from_state(laptop.state) as client:
                    status = await client.agent("greeting")
                    if status.get("episodes", 0) >= 2:
                        break
            await asyncio.sleep(0.1)
    assert status["state"]["stable"] == document["after"]
    assert status["recent"] == [1.0] * len(status["recent"])
    process = await laptop.start("optimize", str(laptop.agent), "-n", "1")
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert "another agentd runs with the state directory" in errors.decode()
    daemon.terminate()
    assert (await laptop.ended(daemon)).code == 0


@pytest.mark.long
async def test_ctrl_c_keeps_what_was_found(laptop):
    replies = iter([GOOD])
    async with ScriptedLlm(lambda _: next(replies, Reply(delay=60.0))) as model:
        process = await laptop.start("optimize", str(laptop.agent), "--seed", "3", "-n", "5", "--json", model=model)
        lines = []
        async with asyncio.timeout(100):
            while not any("promoted" in line for line in lines):
                line = await process.stderr.readline()
                assert line, lines
                lines.append(line.decode())
        process.send_signal(signal.SIGINT)
        ended = await laptop.ended(process)
    assert ended.code == 130
    assert ended.document["ended"] == "interrupted"
    assert ended.document["accepted"] == 1
    async with await laptop.store() as store:
        state = await store.agent("greeting")
    assert state.stable == ended.document["after"] != ended.document["before"]


@pytest.mark.long
async def test_replies_that_can_not_be_used_are_attempts_without_a_release(laptop):
    laptop.edit('algorithm = "hybrid"', 'algorithm = "optoprime"')
    async with ScriptedLlm("I am sorry, I can't do that.") as model:
        ended = await laptop.optimize("-n", "1", model=model)
    assert ended.code == 0
    [attempt] = ended.document["attempts"]
    assert attempt["fate"] == "failed"
    assert not ended.document["improved"]


@pytest.mark.long
async def test_a_budget_of_nothing_ends_it_at_once(laptop):
    laptop.edit('trigger = "manual"', 'trigger = "manual"\nbudget = { calls_per_hour = 0 }')
    async with ScriptedLlm(GOOD) as model:
        ended = await laptop.optimize("-n", "3", model=model)
        assert model.requests == []
    assert ended.code == 0
    assert "the budget is used up" in ended.document["ended"]
    assert ended.document["attempts"] == []


@pytest.mark.long
async def test_no_model_is_asked_after_the_last_proposal(laptop):
    async with ScriptedLlm(suggest(greet=MUTE)) as model:
        ended = await laptop.optimize("-n", "1", model=model)
        assert len(model.requests) == 1
    assert [attempt["fate"] for attempt in ended.document["attempts"]] in (["pruned"], ["rejected"])


@pytest.mark.long
async def test_a_parameter_that_needs_approval_is_left_to_a_person(laptop):
    laptop.edit("[optimizer]", '[parameters."greet"]\napproval = true\n\n[optimizer]')
    async with ScriptedLlm(GOOD) as model:
        ended = await laptop.optimize("-n", "3", model=model)
    assert "needs approval" in ended.document["ended"]
    async with await laptop.store() as store:
        [waiting] = await store.releases("greeting", active=True)
    assert waiting.phase is Phase.AWAITING_APPROVAL


async def test_a_program_that_does_not_load_is_told(laptop):
    (laptop.agent / "greeting.py").write_text("raise RuntimeError('no luck')\n")
    ended = await laptop.optimize("-n", "1")
    assert ended.code == 1
    assert "no luck" in ended.errors


@pytest.mark.long
async def test_the_table_says_what_became_of_each_proposal(laptop):
    async with ScriptedLlm(GOOD) as model:
        process = await laptop.start("optimize", str(laptop.agent), "-n", "1", "--seed", "3", model=model)
        ended = await laptop.ended(process)
    assert "decide_language, greet  promoted" in ended.output
    assert "`agentd run` serves it" in ended.output
    assert "1: optoprime promoted" in ended.errors


async def test_an_agent_that_is_not_there_is_wrong_usage(laptop):
    process = await laptop.start("optimize", "nobody")
    ended = await laptop.ended(process)
    assert ended.code == 2
    assert "there is no agent.toml in nobody" in ended.errors


async def test_numbers_of_a_callable_are_tuned_without_a_model(laptop):
    (laptop.agent / "greeting.py").write_text("""
from agentd.trace import model, node

@model
class Aim:
    def __init__(self):
        self.x = node(0.0, trainable=True, bounds=(0.0, 1.0))
    def act(self, observation):
        return self.x

def hits(action):
    return 1.0 - abs(action - 0.7)
""")
    (laptop.agent / "agent.toml").write_text("""
        [agent]
        name = "greeting"
        entrypoint = "greeting:Aim"
        [environment]
        kind = "python"
        entrypoint = "greeting:hits"
        [environment.action_space]
        low = 0.0
        high = 1.0
        [optimizer]
        algorithm = "search"
    """)
    ended = await laptop.optimize("-n", "4")
    assert ended.code == 0, ended.errors
    assert ended.document["accepted"] >= 1, ended.output
    async with await laptop.store() as store:
        found = (await store.revision(ended.document["after"])).values["x"]
    assert 0.0 < found <= 1.0


@pytest.fixture
async def triage(tmp_path):
    made = Laptop(tmp_path, "triage")
    made.edit("episode_interval = 1.0", "episode_interval = 0.05")
    yield made
    await made.aclose()


def follows(request):
    """A model that names a team if it is told to, the right one for what its own words are in; and that knows a better prompt."""
    if "suggestion" in request.prompt:
        return suggest(prompt="Answer with one word: billing, delivery, account or technical.")
    prompt, message = (message["content"] for message in request.body["messages"])
    return "technical" if "one word" in prompt else f"It is about: {message}"


@pytest.mark.long  # a daemon's way of it is in tests/e2e/test_llm_agents.py
async def test_an_agent_that_asks_models_itself_is_improved_with_the_same_models_on_a_budget_of_its_own(triage):
    async with ScriptedLlm(follows) as model:
        ended = await triage.optimize("-n", "1", model=model)
    assert ended.code == 0, ended.errors
    [attempt] = ended.document["attempts"]
    assert attempt["paths"] == ["prompt"]
    assert attempt["pairs"] >= 10
    assert attempt["candidate"] > attempt["reference"] == 0.0
    async with await triage.store() as store:
        usage = await store.usage("triage", since=0.0)
    assert {row.purpose for row in usage} == {"policy", "optoprime"}


@pytest.mark.long  # what a daemon says of it is in tests/e2e/test_models.py
async def test_an_agent_whose_models_never_answer_is_not_waited_for(triage):
    async with ScriptedLlm(in_turn([Reply(status=401, error=f"the key {KEY} is wrong")])) as model:
        ended = await triage.optimize("-n", "1", model=model)
    assert ended.code == 1
    assert "the agent's models don't answer" in ended.document["problem"]
    assert "is the API key set" in ended.document["problem"]
    assert KEY not in ended.output + ended.errors
