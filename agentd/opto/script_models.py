"""The models of scripts, for optimizers and for programs: litellm names, objects with `complete`, or callables as Trace's are."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from agentd.clock import SystemClock
from agentd.configuration import check_duration, parse_duration
from agentd.errors import ModelError
from agentd.opto.budget import Ledger
from agentd.opto.cache import DiskCache
from agentd.opto.contract import BudgetLimits, Llm, LlmReply, LlmRequest, Message
from agentd.opto.llm import CALLS, LitellmClient, LlmSettings
from agentd.trace import submit
from agentd.trace.host import checked

__all__ = ["SCRIPT", "UNLIMITED", "Listener", "ScriptHost", "model_names", "opened", "run"]

SCRIPT = "script"
UNLIMITED = BudgetLimits(dollars_per_day=None, calls_per_hour=None, tokens_per_proposal=None)

T = TypeVar("T")

_CALL_TIMEOUT = "AGENTD_CALL_TIMEOUT"
_REPLY_CACHE = "AGENTD_REPLY_CACHE"
_VARIABLES = ("AGENTD_MODELS", "TRACE_LITELLM_MODEL")


def model_names(given: Any) -> tuple[str, ...]:
    """What the optimizer's context says of `given`: litellm names, or that there is a model."""
    if isinstance(given, str):
        return (given,)
    if isinstance(given, list | tuple):
        return tuple(given)
    if given is not None:
        return ("given",)
    named = next((os.environ[name] for name in _VARIABLES if os.environ.get(name)), "")
    return tuple(model.strip() for model in named.split(",") if model.strip())


@asynccontextmanager
async def opened(given: Any) -> AsyncIterator[Llm]:
    """The way to the model: a client of its own for names, else what was given.

    AGENTD_REPLY_CACHE names a folder from which a question that was asked before is answered: a notebook that runs again costs nothing.
    """
    if given is None or isinstance(given, str | list | tuple):
        ledger = Ledger()
        ledger.limit(SCRIPT, UNLIMITED)
        async with LitellmClient(_settings(given), ledger, SystemClock(), cache=_cache()) as client:
            yield client
    else:
        yield given if hasattr(given, "complete") else _Callable(given)


def _cache() -> DiskCache | None:
    folder = os.environ.get(_REPLY_CACHE)
    return DiskCache(Path(folder).expanduser()) if folder else None


def _settings(given: Any) -> LlmSettings:
    """How the named models are reached; AGENTD_CALL_TIMEOUT ("10min") is how long one answer may take, for models on slow machines."""
    wanted = os.environ.get(_CALL_TIMEOUT)
    if not wanted:
        return LlmSettings(models=model_names(given))
    try:
        call_timeout = parse_duration(check_duration(wanted))
    except ValueError as error:
        raise ModelError(f"{_CALL_TIMEOUT} {error}", model="") from None
    return LlmSettings(models=model_names(given), call_timeout=call_timeout, total_timeout=CALLS * call_timeout)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of `coroutine`; in a thread where this one already runs a loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1, thread_name_prefix="optimizer") as pool:
        return submit(pool, asyncio.run, coroutine).result()


class ScriptHost:
    """Answers what traced code asks of models in a script: `with hosted(ScriptHost("openai/gpt-4.1-mini")):`.

    `llm` is what the optimizers of `agentd.opto` take; without one AGENTD_MODELS or TRACE_LITELLM_MODEL names the model.
    """

    def __init__(self, llm: Any = None) -> None:
        self._llm = llm

    def complete(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """The model's answer. Raises ModelError, also where no model is named."""
        return run(self._ask(self._request(messages, options))).text

    async def acomplete(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """As `complete`."""
        return (await self._ask(self._request(messages, options))).text

    def _request(self, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> LlmRequest:
        said = tuple(Message(role=role, content=text) for role, text in checked(messages, options))
        model = options.get("model")
        return LlmRequest(
            agent=SCRIPT,
            purpose="program",
            messages=said,
            models=(model,) if model else model_names(self._llm),
            max_tokens=options.get("max_tokens", 2048),
            temperature=options.get("temperature", 0.3),
        )

    async def _ask(self, request: LlmRequest) -> LlmReply:
        async with opened(self._llm) as llm:
            return await llm.complete(request)


class Listener:
    """A model whose first question, last answer and whole exchange are kept in `entry`.

    Questions and answers are printed where `verbose` is True, answers where it is "output".
    """

    def __init__(self, llm: Llm, verbose: bool | str) -> None:
        self._llm = llm
        self._verbose = verbose
        self.entry: dict[str, str] = {}

    async def complete(self, request: LlmRequest) -> LlmReply:
        """The model's answer."""
        if self._verbose not in (False, "output"):
            print("\n\n".join(f"--- {message.role}\n{message.content}" for message in request.messages))  # noqa: T201 - asked for
        reply = await self._llm.complete(request)
        if self._verbose:
            print(f"--- {reply.model}\n{reply.text}")  # noqa: T201 - as above
        system, user = (next((message.content for message in request.messages if message.role == role), "") for role in ("system", "user"))
        so_far = f"{self.entry['exchange']}\n\n--- user\n{request.messages[-1].content}" if self.entry else user
        exchange = f"{so_far}\n\n--- {reply.model}\n{reply.text}"
        self.entry = {"system_prompt": system, "user_prompt": user, "response": reply.text, "exchange": exchange}
        return reply


class _Callable:
    """Trace's models are callables that return an OpenAI-like response."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    async def complete(self, request: LlmRequest) -> LlmReply:
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        try:
            response = await asyncio.to_thread(self._call, messages=messages, max_tokens=request.max_tokens)
            text = response if isinstance(response, str) else response.choices[0].message.content
        except Exception as error:
            raise ModelError(f"the model raised {type(error).__name__}: {error}", model="callable") from error
        return LlmReply(text=str(text or ""), model="callable")
