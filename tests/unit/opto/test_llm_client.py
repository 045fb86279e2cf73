"""The client asks one model at a time, within a budget and a deadline, and says what went wrong without saying the key."""

import asyncio
import json
import logging
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from agentd.clock import SystemClock
from agentd.errors import BudgetExhausted, ModelError, SpecError
from agentd.hosting.services import open_services
from agentd.opto.budget import Ledger
from agentd.opto.cache import DiskCache
from agentd.opto.contract import BudgetLimits, LlmRequest, Message
from agentd.opto.llm import LitellmClient, LlmSettings, _import_litellm, variables_of
from agentd.opto.script_models import ScriptHost
from agentd.settings import load_settings
from agentd.testing.llm import Reply, ScriptedLlm, in_turn

KEY = "sk-live-0123456789abcdef"


@pytest.fixture(scope="module", autouse=True)
def _litellm_is_loaded():
    """It takes seconds, which would count against the deadlines below; and no other test's process has to wait for it."""
    _import_litellm()


def request(text="Hello", **changes):
    return LlmRequest(agent="robot", purpose="propose", messages=(Message(role="user", content=text),), **changes)


def client(server, ledger=None, *, usages=None, cache=None, **settings):
    async def keep(usage):
        if usages is not None:
            usages.append(usage)

    chosen = {"models": ("openai/scripted",), "api_base": server.url, "api_key": KEY, "backoff": 0.01, "attempts": 3, **settings}
    return LitellmClient(LlmSettings(**chosen), ledger or Ledger(), SystemClock(), on_usage=keep, cache=cache, generator=random.Random(1))


async def test_a_question_is_answered_and_its_usage_recorded():
    usages = []
    async with ScriptedLlm("fine") as server, client(server, usages=usages) as llm:
        reply = await llm.complete(request(seed=7, schema={"type": "object"}))
    assert (reply.text, reply.tokens_in, reply.tokens_out, reply.finish_reason) == ("fine", 100, 20, "stop")
    (asked,) = server.requests
    assert asked.prompt == "Hello"
    assert asked.schema == {"type": "object"}
    assert asked.body["seed"] == 7
    (usage,) = usages
    assert (usage.agent, usage.purpose, usage.outcome, usage.tokens_in, usage.tokens_out) == ("robot", "propose", "ok", 100, 20)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_passing_fault_is_tried_again(status):
    usages = []
    script = in_turn([Reply(status=status), Reply(status=status, retry_after=0.01), "at last"])
    async with ScriptedLlm(script) as server, client(server, usages=usages) as llm:
        assert (await llm.complete(request())).text == "at last"
    assert [usage.outcome for usage in usages] == [str(status), str(status), "ok"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_a_refusal_is_not_tried_again(status):
    async with ScriptedLlm(in_turn([Reply(status=status, error="no")])) as server, client(server) as llm:
        with pytest.raises(ModelError) as caught:
            await llm.complete(request())
    assert caught.value.status == status
    assert not caught.value.retryable
    assert len(server.requests) == 1


async def test_an_outage_ends_after_the_last_attempt_with_the_status():
    async with ScriptedLlm(in_turn([Reply(status=500, error="out of order")])) as server, client(server) as llm:
        with pytest.raises(ModelError, match="out of order") as caught:
            await llm.complete(request())
    assert caught.value.retryable
    assert len(server.requests) == 3


async def test_a_server_that_is_not_there_is_an_outage():
    llm = LitellmClient(
        LlmSettings(models=("openai/x",), api_base="http://127.0.0.1:9/v1", api_key=KEY, backoff=0.01, attempts=2), Ledger(), SystemClock()
    )
    async with llm:
        with pytest.raises(ModelError) as caught:
            await llm.complete(request())
    assert caught.value.retryable


@pytest.mark.parametrize("reply", [Reply("fine", cut_after=0), Reply("fine", cut_after=30)])
async def test_a_connection_that_breaks_off_is_tried_again(reply):
    async with ScriptedLlm(in_turn([reply, "whole"])) as server, client(server) as llm:
        assert (await llm.complete(request())).text == "whole"
    assert len(server.requests) == 2


async def test_an_answer_that_is_not_the_protocol_is_a_clear_error():
    async with ScriptedLlm(in_turn([Reply(body=b"<html>sorry</html>")])) as server, client(server) as llm:
        with pytest.raises(ModelError, match="openai/scripted"):
            await llm.complete(request())


@pytest.mark.parametrize("reply", [Reply("half \ud800 a pair", tokens_out=0), Reply(status=400, error="half \ud800 a pair")])
async def test_text_that_is_not_unicode_travels_on_as_text_that_is(tmp_path, reply):
    async with ScriptedLlm(in_turn([reply])) as server, client(server, cache=DiskCache(tmp_path)) as llm:
        try:
            text = (await llm.complete(request())).text
        except ModelError as error:
            text = str(error)
    assert "half ? a pair" in text


async def test_a_slow_model_meets_the_deadline_of_the_call():
    async with ScriptedLlm(in_turn([Reply("late", delay=20.0)])) as server, client(server, call_timeout=0.2, attempts=1) as llm:
        with pytest.raises(ModelError, match=r"no answer within 0[.]2 s|[Tt]imeout") as caught:
            await llm.complete(request())
    assert caught.value.retryable


async def test_all_attempts_together_meet_the_total_deadline():
    script = in_turn([Reply(status=429, retry_after=0.3)])
    async with ScriptedLlm(script) as server, client(server, total_timeout=3.5, attempts=99) as llm:
        with pytest.raises(ModelError, match=r"no answer within 3[.]5 s"):
            await llm.complete(request())
    assert 1 < len(server.requests) < 20


async def test_a_model_that_asks_to_be_left_alone_for_long_is_left_for_the_next():
    def script(asked):
        return Reply(status=429, retry_after=3600) if asked.body["model"] == "busy" else "from the second"

    async with ScriptedLlm(script) as server, client(server, models=("openai/busy", "openai/free")) as llm:
        assert (await llm.complete(request())).text == "from the second"
    assert len(server.requests) == 2


async def test_the_next_model_is_asked_when_the_first_has_failed():
    def script(asked):
        return Reply(status=404, error="no such model") if asked.body["model"] == "gone" else "from the second"

    async with ScriptedLlm(script) as server, client(server, models=("openai/gone", "openai/there")) as llm:
        reply = await llm.complete(request())
    assert (reply.text, reply.model) == ("from the second", "openai/there")


async def test_no_model_an_unknown_provider_and_a_missing_key_are_clear_errors(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE"):
        monkeypatch.delenv(name, raising=False)
    async with LitellmClient(LlmSettings(), Ledger(), SystemClock()) as llm:
        with pytest.raises(ModelError, match="no model is configured"):
            await llm.complete(request())
        with pytest.raises(ModelError, match="litellm name"):
            await llm.complete(request(models=("nonsense",)))
        with pytest.raises(ModelError, match="is the API key set"):
            await llm.complete(request(models=("openai/gpt-4.1-mini",)))


async def test_the_budget_is_checked_before_the_call_and_settled_after_it():
    ledger = Ledger()
    ledger.limit("robot", BudgetLimits(calls_per_hour=1))
    async with ScriptedLlm("fine") as server, client(server, ledger) as llm:
        await llm.complete(request())
        with pytest.raises(BudgetExhausted) as caught:
            await llm.complete(request())
    assert caught.value.resets_at is not None
    assert len(server.requests) == 1


async def test_dollars_are_reserved_with_the_price_of_the_model():
    ledger = Ledger()
    ledger.limit("robot", BudgetLimits(dollars_per_day=1e-6))
    async with ScriptedLlm("fine") as server, client(server, ledger, models=("openai/gpt-4.1-mini",)) as llm:
        with pytest.raises(BudgetExhausted, match="dollars per day"):
            await llm.complete(request("a long question " * 100))
        assert not server.requests
        ledger.limit("robot", BudgetLimits(dollars_per_day=1.0))
        reply = await llm.complete(request("short"))
    assert 0 < reply.dollars < 1e-3
    left = ledger.remaining("robot", SystemClock().time()).dollars
    assert left == pytest.approx(1.0 - reply.dollars)


async def test_of_a_hosted_model_without_a_known_price_it_is_said_once_that_a_limit_of_dollars_holds_for_nothing(monkeypatch, caplog):
    unlimited = Ledger()
    unlimited.limit("robot", BudgetLimits(dollars_per_day=None))
    async with ScriptedLlm("fine") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        with caplog.at_level(logging.WARNING):
            async with client(server, api_base=None) as hosted, client(server) as local, client(server, unlimited, api_base=None) as free:
                for llm in (hosted, hosted, local, free):
                    assert (await llm.complete(request())).dollars == 0.0
    assert caplog.text.count("no price is known for openai/scripted") == 1


async def test_the_key_is_in_no_error_no_repr_and_no_log(caplog):
    caplog.set_level("DEBUG")
    echo = in_turn([Reply(status=400, error=f"bad request with header Bearer {KEY} and {KEY}")])
    async with ScriptedLlm(echo) as server, client(server) as llm:
        with pytest.raises(ModelError) as caught:
            await llm.complete(request())
        assert KEY in server.requests[0].headers["authorization"]
        assert KEY not in repr(llm._settings)
    error = caught.value
    seen = [
        str(error),
        repr(error),
        repr(error.__cause__),
        repr(error.__context__ if not error.__suppress_context__ else None),
        caplog.text,
    ]
    assert not any(KEY in text for text in seen)
    assert "[key]" in str(error)


async def test_a_server_without_schemas_is_asked_again_without_one_and_remembered():
    def script(asked):
        return Reply(status=400, error="response_format json_schema is not supported") if asked.schema else "{}"

    async with ScriptedLlm(script) as server, client(server) as llm:
        await llm.complete(request(schema={"type": "object"}))
        await llm.complete(request(schema={"type": "object"}))
    assert [asked.schema is not None for asked in server.requests] == [True, True, False, False]


async def test_a_strict_server_gets_the_schema_without_limits():
    def script(asked):
        return Reply(status=400, error="Invalid schema: maxLength is not permitted") if "maxLength" in str(asked.schema) else "{}"

    schema = {"type": "object", "properties": {"why": {"type": "string", "maxLength": 10}}}
    async with ScriptedLlm(script) as server, client(server) as llm:
        await llm.complete(request(schema=schema))
    assert server.requests[-1].schema == {"type": "object", "properties": {"why": {"type": "string"}}}


async def test_who_has_asked_in_one_thread_breaks_off_nothing_of_another(monkeypatch):
    asked_first, done = asyncio.Event(), asyncio.Event()

    async def script(asked):
        if asked.prompt == "slow":
            asked_first.set()
            await done.wait()
        return "fine"

    async with ScriptedLlm(script) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        host = ScriptHost("openai/scripted")
        slow = asyncio.create_task(asyncio.to_thread(host.complete, [{"role": "user", "content": "slow"}]))
        await asked_first.wait()
        assert await asyncio.to_thread(host.complete, [{"role": "user", "content": "quick"}]) == "fine"
        done.set()
        assert await slow == "fine"
    assert [asked.prompt for asked in server.requests] == ["slow", "quick"]


async def test_only_so_many_calls_are_under_way_at_once():
    async with ScriptedLlm(in_turn([Reply("x", delay=0.05)])) as server, client(server, concurrency=2) as llm:
        await asyncio.gather(*(llm.complete(request()) for _ in range(6)))
    assert server.most_open_requests == 2


async def test_the_same_question_is_answered_from_the_cache(tmp_path):
    usages = []
    async with (
        ScriptedLlm(in_turn(["first", "second"])) as server,
        client(server, usages=usages, cache=DiskCache(tmp_path / "cache")) as llm,
    ):
        first = await llm.complete(request())
        again = await llm.complete(request())
        other = await llm.complete(request(seed=2))
    assert (first.text, again.text, other.text) == ("first", "first", "second")
    assert again.cached
    assert (again.tokens_in, again.dollars) == (0, 0.0)
    assert len(usages) == 2


async def test_a_cache_that_can_not_be_written_or_read_costs_no_answer(tmp_path):
    folder = tmp_path / "cache"
    async with ScriptedLlm(in_turn(["first", "second"])) as server, client(server, cache=DiskCache(folder)) as llm:
        both = await asyncio.gather(llm.complete(request()), llm.complete(request()))
        assert {reply.text for reply in both} == {"first", "second"}
        [file] = folder.iterdir()
        file.write_bytes(b"{half")
        assert (await llm.complete(request())).text == "second"
        file.unlink()
        folder.rmdir()
        assert (await llm.complete(request())).text == "second"
    (tmp_path / "file").touch()
    with pytest.raises(SpecError, match="reply_cache: should be a folder"):
        DiskCache(tmp_path / "file")


class Ollama(BaseHTTPRequestHandler):
    """Its protocol, as far as it is needed; `paths` and `bodies` are what was asked, in order."""

    paths, bodies = [], []

    def do_POST(self):
        self.paths.append(self.path)
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        answer = {"model": "m", "message": {"role": "assistant", "content": "fine"}, "done": True, "prompt_eval_count": 11, "eval_count": 5}
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Nothing."""


async def test_ollama_is_asked_with_the_schema_and_never_for_a_price(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Ollama) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            monkeypatch.setenv("OLLAMA_API_BASE", url)
            async with LitellmClient(LlmSettings(models=("ollama_chat/qwen",), api_base=url), Ledger(), SystemClock()) as llm:
                reply = await llm.complete(request(seed=7, schema={"type": "object"}))
        finally:
            server.shutdown()
            thread.join()
    assert (reply.text, reply.tokens_in, reply.tokens_out, reply.dollars) == ("fine", 11, 5, 0.0)
    assert Ollama.paths == ["/api/chat"]
    assert Ollama.bodies[0]["format"] == {"type": "object"}
    assert Ollama.bodies[0]["options"]["seed"] == 7


async def test_a_daemon_whose_settings_name_a_cache_asks_once(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTD_API_KEY", KEY)
    async with ScriptedLlm("fine") as server:
        settings = load_settings(state_directory=tmp_path / "state", api_base=server.url, reply_cache=tmp_path / "cache")
        for _ in range(2):
            async with open_services(settings, SystemClock()) as services:
                assert (await services.llm.complete(request(models=("openai/scripted",)))).text == "fine"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("openai/gpt-4.1-mini", {"OPENAI_API_KEY"}),
        ("gpt-4.1-mini", {"OPENAI_API_KEY", "ANTHROPIC_API_KEY"}),
        ("bedrock/claude", {"AWS_SECRET_ACCESS_KEY"}),
        ("together_ai/llama", {"TOGETHERAI_API_KEY"}),
        ("vertex_ai/gemini", {"VERTEXAI_PROJECT", "GOOGLE_APPLICATION_CREDENTIALS"}),
        ("ollama/llama3", set()),
    ],
)
def test_a_runner_is_told_the_variables_of_its_own_models_providers_and_the_way_out(model, wanted):
    keys = (
        *("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "AWS_SECRET_ACCESS_KEY", "TOGETHERAI_API_KEY", "VERTEXAI_PROJECT"),
        *("GOOGLE_APPLICATION_CREDENTIALS", "GITHUB_TOKEN", "AGENTD_API_KEY", "https_proxy", "HOME"),
    )
    assert set(variables_of([model], dict.fromkeys(keys, "x"))) == {*wanted, "https_proxy"}
