"""One client for every call of a model, on litellm (DESIGN section 9).

Each request is checked against the budget before anything leaves, has a deadline per call and one over all, is tried again with jittered
backoff where that can help (429, 5xx, time-outs, lost connections) and nowhere else, and goes to the next model when one has failed.
What it used is settled in the ledger and handed on as a `Usage` record. Keys appear in no error, no log and no record.

litellm is imported on the first call, in a thread: it takes two seconds. It fetches no price table and sends no telemetry.
"""

import asyncio
import contextlib
import importlib
import logging
import os
import random
import re
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import msgspec

from agentd.clock import Clock
from agentd.errors import ModelError
from agentd.opto.budget import Reservation, estimate_tokens, tokens_of
from agentd.opto.cache import NoCache, ReplyCache
from agentd.opto.contract import Llm, LlmReply, LlmRequest, Message
from agentd.records import Usage

__all__ = ["CALLS", "LitellmClient", "Llm", "LlmSettings"]

CALLS = 3
"""Calls of full length that fit the total deadline, where only the call's own is chosen."""

_RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_UNKNOWN = frozenset({"cancelled", "408"})  # the model may have answered, and the provider billed: the estimate counts
_IMAGE = re.compile(r"image|vision|multimodal|multi-modal|content.{0,40}string", re.IGNORECASE)
_KEY_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_KEY_SHAPES = re.compile(r"(?i)\b(sk-|gsk_|xai-|hf_|AIza)[\w*.-]{4,}|(?<=bearer )[\w.~+/*-]{4,}")
_MASK = "[key]"

_logger = logging.getLogger("agentd.opto.llm")
_users: set[int] = set()
"""The clients of this process that are open: litellm knows only connections of all of them."""


@dataclass(frozen=True, slots=True)
class LlmSettings:
    """How models are reached. `models` are used, in order, by requests that name none. Durations in seconds.

    `api_base` and `api_key` go to every model; without them litellm finds each provider's own in the environment.
    """

    models: tuple[str, ...] = ()
    api_base: str | None = None
    api_key: str | None = field(default=None, repr=False)
    call_timeout: float = 60.0
    total_timeout: float = 60.0 * CALLS
    attempts: int = 4
    backoff: float = 0.5
    longest_backoff: float = 20.0
    concurrency: int = 4


_ALSO = {"bedrock": "AWS_", "cohere": "CO_", "gemini": "GOOGLE_", "huggingface": "HF_", "sagemaker": "AWS_", "vertex_ai": "GOOGLE_"}
_WAY_OUT = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"}


def variables_of(models: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """What of `environment` litellm needs to reach these models: their providers' variables (`OPENAI_*` for `openai/...`), and proxies.

    A name without a provider may be OpenAI's or Anthropic's.
    """
    wanted: list[str] = []
    for model in models:
        provider, slash, _ = model.partition("/")
        words = re.split(r"[_-]", provider)[:1] if slash else ["openai", "anthropic"]
        wanted += [word.upper() for word in words] + ([_ALSO[provider]] if provider in _ALSO else [])
    return {name: value for name, value in environment.items() if name.startswith(tuple(wanted)) or name.upper() in _WAY_OUT}


class Purse(Protocol):
    """What calls are paid from: the daemon's Ledger, or a runner's Lease of it (agentd.opto.budget)."""

    def reserve(self, agent: str, dollars: float, at: float) -> Reservation:
        """Raises BudgetExhausted."""

    def settle(self, reservation: Reservation, usage: Usage) -> None:
        """The call is over."""

    def limits_dollars(self, agent: str) -> bool:
        """Whether there is a limit of dollars."""


async def _discard(usage: Usage) -> None:
    """The default for who doesn't want usage records."""


class LitellmClient:
    """The daemon's Llm. Use as `async with`."""

    def __init__(
        self,
        settings: LlmSettings,
        ledger: Purse,
        clock: Clock,
        *,
        on_usage: Callable[[Usage], Awaitable[None]] = _discard,
        cache: ReplyCache | None = None,
        generator: random.Random | None = None,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._clock = clock
        self._on_usage = on_usage
        self._cache = cache or NoCache()
        self._generator = generator or random.Random()  # noqa: S311 - jitter needs no secrecy
        self._places = asyncio.Semaphore(settings.concurrency)
        self._schema_form: dict[str, int] = {}
        self._blind: set[str] = set()
        self._unpriced: set[str] = set()
        self._litellm: Any = None
        self._loading = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes litellm's connections and ends its background task."""
        if self._litellm is not None:
            litellm, self._litellm = self._litellm, None
            _users.discard(id(self))
            await asyncio.shield(_close(litellm, last=not _users))

    async def load(self) -> None:
        """Load litellm now, so that the first call doesn't have to wait for it."""
        await self._load()

    async def complete(self, request: LlmRequest) -> LlmReply:
        """The answer of the first model that gives one.

        Raises BudgetExhausted before anything was spent, or ModelError of the last model tried: for no model, an unknown one, a missing
        key, a refusal, an outage, or the end of the total deadline.
        """
        models = request.models or self._settings.models
        if not models:
            raise ModelError(
                "no model is configured: name one in agent.toml ([models] names, [optimizer] models), or models in agentd.toml", model=""
            )
        failures: list[ModelError] = []
        await self._load()  # once, and its time is not the model's
        try:
            async with asyncio.timeout(self._settings.total_timeout):
                for model in models:
                    cached = await asyncio.to_thread(self._cache.get, model, request)
                    if cached is not None:
                        return cached
                    try:
                        reply = await self._ask_patiently(model, request)
                    except ModelError as error:
                        failures.append(error)
                    else:
                        await asyncio.to_thread(self._cache.put, model, request, reply)
                        return reply
        except TimeoutError:
            text = f"{models[min(len(failures), len(models) - 1)]}: no answer within {self._settings.total_timeout:g} s"
            raise ModelError(text, model=models[0], retryable=True) from None
        if len(failures) == 1:
            raise failures[0]
        last = failures[-1]
        text = "every model failed: " + "; ".join(str(failure) for failure in failures)
        raise ModelError(text, model=last.model, status=last.status, retryable=any(failure.retryable for failure in failures))

    async def _ask_patiently(self, model: str, request: LlmRequest) -> LlmReply:
        """Asks `model` again while that can help."""
        for attempt in range(1, self._settings.attempts + 1):
            try:
                async with self._places:
                    return await self._ask(model, request)
            except _Refused as refused:
                away = refused.retry_after > self._settings.longest_backoff  # asked to stay away for long: the next model, or later
                if not refused.error.retryable or away or attempt == self._settings.attempts:
                    raise refused.error from None
                ceiling = min(self._settings.longest_backoff, self._settings.backoff * 2.0 ** (attempt - 1))
                wait = ceiling * (0.5 + 0.5 * self._generator.random())
                await asyncio.sleep(max(wait, refused.retry_after))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _ask(self, model: str, request: LlmRequest) -> LlmReply:
        """One call: reserve, ask, settle."""
        litellm = await self._load()
        _note_price(litellm, model)
        price = _price(litellm, model, tokens_of(request.messages), request.max_tokens)
        hosted = self._settings.api_base is None and self._ledger.limits_dollars(request.agent)
        if price is None and hosted and model not in self._unpriced:
            self._unpriced.add(model)
            _logger.warning(
                "no price is known for %s: what it costs doesn't count for dollars_per_day, only calls_per_hour limits it", model
            )
        reservation = self._ledger.reserve(request.agent, price or 0.0, self._clock.time())
        outcome, reply = "cancelled", LlmReply(text="", model=model)
        try:
            response = await self._call(litellm, model, request)
            reply = _read(litellm, model, response)
            outcome = "ok"
        except _Refused as refused:
            outcome = str(refused.error.status or "unreachable")
            raise
        finally:
            usage = Usage(
                agent=request.agent,
                purpose=request.purpose,
                model=model,
                outcome=outcome,
                at=self._clock.time(),
                tokens_in=reply.tokens_in,
                tokens_out=reply.tokens_out,
                dollars=reservation.dollars if outcome in _UNKNOWN else reply.dollars,
            )
            self._ledger.settle(reservation, usage)
            await asyncio.shield(self._on_usage(usage))
        return reply

    async def _call(self, litellm: Any, model: str, request: LlmRequest) -> Any:
        """Asks with the schema as it is, in the plain form that strict servers want, or without: the first that is taken.

        Images go the same way: a model that takes none is asked again without them, and from then on at once.
        """
        forms = (request.schema, _plain(request.schema), None)
        while True:
            form = self._schema_form.get(model, 0) if request.schema is not None else 2
            shown = request if self._sees(litellm, model) else _without_images(request)
            try:
                return await self._transport(litellm, model, shown, forms[form])
            except _Refused as refused:
                told = refused.error.status in {400, 415, 422}
                if told and _IMAGE.search(str(refused.error)) and any(message.images for message in shown.messages):
                    self._blind.add(model)
                elif told and form < 2 and _is_about_schema(str(refused.error)):
                    self._schema_form[model] = form + 1  # it said so; the prompt describes the form anyway
                else:
                    raise

    def _sees(self, litellm: Any, model: str) -> bool:
        """Whether images are sent to `model`: not if it refused them, nor if the tables know it without eyes."""
        known = litellm.model_cost.get(model) or litellm.model_cost.get(model.partition("/")[2])
        return model not in self._blind and (known is None or bool(known.get("supports_vision")))

    async def _transport(self, litellm: Any, model: str, request: LlmRequest, schema: dict[str, Any] | None) -> Any:
        arguments: dict[str, Any] = {
            "model": model,
            "messages": [_message(message) for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "timeout": self._settings.call_timeout,
            "num_retries": 0,
            "max_retries": 0,
            "drop_params": True,
        }
        if request.seed is not None:
            arguments["seed"] = request.seed
        if self._settings.api_base is not None:
            arguments["api_base"] = self._settings.api_base
        if self._settings.api_key is not None:
            arguments["api_key"] = self._settings.api_key
        if schema is not None:
            arguments["response_format"] = {"type": "json_schema", "json_schema": {"name": "proposal", "schema": schema, "strict": True}}
        try:
            async with asyncio.timeout(self._settings.call_timeout):
                return await litellm.acompletion(**arguments)
        except TimeoutError:
            error = ModelError(f"{model}: no answer within {self._settings.call_timeout:g} s", model=model, status=408, retryable=True)
            raise _Refused(error) from None
        except Exception as error:  # noqa: BLE001 - litellm raises whatever its providers' libraries raise
            raise self._refusal(model, error) from None  # the cause may hold the request, and with it the key

    def _refusal(self, model: str, error: Exception) -> "_Refused":
        status = getattr(error, "status_code", None)
        status = status if isinstance(status, int) else None
        name = type(error).__name__
        text = re.sub(r"\s+", " ", _unicode(str(error)))
        reason = self._masked(text.replace(f"litellm.{name}: ", "").removeprefix(f"{name}: ").strip())[:500]
        lost = name in ("APIConnectionError", "Timeout")
        hint = ""
        if status in (401, 403) or "api_key" in reason.lower():
            hint = " (is the API key set in the daemon's environment?)"
        elif "LLM Provider NOT provided" in reason or status == 404:
            hint = " (is the model's name a litellm name, such as openai/gpt-4.1-mini?)"
        retryable = (status in _RETRYABLE or lost) and not hint and name != "BudgetExceededError"
        quota = "insufficient_quota" in reason or "exceeded your current quota" in reason
        problem = ModelError(f"{model}: {name}: {reason}{hint}", model=model, status=status, retryable=retryable and not quota)
        return _Refused(problem, retry_after=_retry_after(error))

    def _masked(self, text: str) -> str:
        for key in _secrets(self._settings.api_key, os.environ):
            text = text.replace(key, _MASK)
        return _KEY_SHAPES.sub(_MASK, text)

    async def _load(self) -> Any:
        async with self._loading:
            if self._litellm is None:
                self._litellm = await asyncio.to_thread(_import_litellm)
                _users.add(id(self))
        return self._litellm


class _Refused(Exception):  # noqa: N818 - private: an error with the server's wish about when to come back
    def __init__(self, error: ModelError, *, retry_after: float = 0.0) -> None:
        self.error = error
        self.retry_after = retry_after
        super().__init__()


def _import_litellm() -> Any:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no fetch of price tables, now or later
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what litellm's own types make pydantic say is nobody's business here
        litellm: Any = importlib.import_module("litellm")
        # What it loads and builds on its first call it does now, by a call that answers itself and goes nowhere.
        litellm.completion(model="openai/none", messages=[{"role": "user", "content": ""}], mock_response="")
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    litellm.turn_off_message_logging = True
    litellm.disable_aiohttp_transport = True  # httpx closes its connections when told to
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "httpx", "openai"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return litellm


async def _close(litellm: Any, *, last: bool) -> None:
    """Close the connections of this event loop, and all where this was the `last` client: another thread's calls would break off, and be
    asked, and paid for, again.
    """  # noqa: D205 - one thought
    if last:
        worker = importlib.import_module("litellm.litellm_core_utils.logging_worker").GLOBAL_LOGGING_WORKER
        with contextlib.suppress(Exception):  # nothing in there is ours, and nothing is lost
            await asyncio.wait_for(worker.stop(), timeout=2.0)
        await litellm.close_litellm_async_clients()
        litellm.in_memory_llm_clients_cache.flush_cache()
        return
    cache = litellm.in_memory_llm_clients_cache
    own = cache.update_cache_key_with_event_loop("")
    for key in [key for key in list(cache.cache_dict) if key.endswith(own)]:
        handler = cache.cache_dict.pop(key, None)
        with contextlib.suppress(Exception):  # as above
            await (getattr(handler, "_client", None) or getattr(handler, "client", handler)).aclose()


def _without_images(request: LlmRequest) -> LlmRequest:
    return msgspec.structs.replace(request, messages=tuple(msgspec.structs.replace(message, images=()) for message in request.messages))


def _message(message: Message) -> dict[str, Any]:
    if not message.images:
        return {"role": message.role, "content": message.content}
    images = [{"type": "image_url", "image_url": {"url": url}} for url in message.images]
    return {"role": message.role, "content": [{"type": "text", "text": message.content}, *images]}


def _note_price(litellm: Any, model: str) -> None:
    """Tells litellm what an Ollama model costs. It would ask the server each time, and wait for it, in whatever thread asks for a price."""
    provider = model.partition("/")[0]
    if provider in {"ollama", "ollama_chat"}:
        free = {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0, "litellm_provider": provider, "mode": "chat"}
        litellm.model_cost.setdefault(model, {**free, "supports_vision": True})  # as for any model that is not known to be blind


def _price(litellm: Any, model: str, tokens_in: int, tokens_out: int) -> float | None:
    """Dollars, at most; None for a model without a known price: a local one, or one that is newer than litellm's table."""
    try:
        asked, answered = litellm.cost_per_token(model=model, prompt_tokens=tokens_in, completion_tokens=tokens_out)
    except Exception:  # noqa: BLE001 - litellm raises many things for a model it doesn't know
        return None
    return float(asked + answered)


def _read(litellm: Any, model: str, response: Any) -> LlmReply:
    usage = getattr(response, "usage", None)
    tokens_in, tokens_out = (int(getattr(usage, name, 0) or 0) for name in ("prompt_tokens", "completion_tokens"))
    choices = getattr(response, "choices", None) or []
    text = (choices[0].message.content if choices else None) or ""
    text = _unicode(text if isinstance(text, str) else msgspec.json.encode(text).decode())
    return LlmReply(
        text=text,
        model=model,
        tokens_in=tokens_in,
        tokens_out=tokens_out or (estimate_tokens(text) if text else 0),
        dollars=_price(litellm, model, tokens_in, tokens_out) or 0.0,
        finish_reason=str(choices[0].finish_reason) if choices else "none",
    )


def _unicode(text: str) -> str:
    """`text` without halves of surrogate pairs, which JSON lets a server write and nothing can carry on."""
    return text.encode(errors="replace").decode()


def _plain(schema: Any) -> Any:
    """A schema without limits on lengths and numbers, which not every server with constrained decoding accepts."""
    if isinstance(schema, dict):
        return {
            key: _plain(value) for key, value in schema.items() if key not in {"maxLength", "minimum", "maximum", "minItems", "maxItems"}
        }
    return [_plain(item) for item in schema] if isinstance(schema, list) else schema


def _is_about_schema(text: str) -> bool:
    return bool(re.search(r"response_format|json_schema|schema|structured|grammar", text, re.IGNORECASE))


def _retry_after(error: Exception) -> float:
    headers = getattr(error, "litellm_response_headers", None) or getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        return max(0.0, float(headers.get("retry-after", 0)))
    except (TypeError, ValueError):  # a date; the backoff will do
        return 0.0


def _secrets(api_key: str | None, environment: Mapping[str, str]) -> Iterator[str]:
    """Every text that must not be shown, the longest first."""
    found = {value for name, value in environment.items() if _KEY_NAMES.search(name)} | {api_key or ""}
    yield from sorted((value for value in found if len(value) >= 6), key=len, reverse=True)
