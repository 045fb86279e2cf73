"""The models that scripts give to optimizers: named as litellm names them, objects with `complete`, or callables as Trace's are."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from agentd.clock import SystemClock
from agentd.errors import ModelError
from agentd.opto.budget import Ledger
from agentd.opto.contract import BudgetLimits, Llm, LlmReply, LlmRequest
from agentd.opto.llm import LitellmClient, LlmSettings

__all__ = ["Listener", "model_names", "opened"]

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
async def opened(given: Any, agent: str, limits: BudgetLimits) -> AsyncIterator[Llm]:
    """The way to the model: a client of its own for names, else what was given."""
    if given is None or isinstance(given, str | list | tuple):
        ledger = Ledger()
        ledger.limit(agent, limits)
        async with LitellmClient(LlmSettings(models=model_names(given)), ledger, SystemClock()) as client:
            yield client
    else:
        yield given if hasattr(given, "complete") else _Callable(given)


class Listener:
    """A model whose last question and answer are kept in `entry`, and printed where wanted (True: both, "output": the answer)."""

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
        self.entry = {"system_prompt": system, "user_prompt": user, "response": reply.text}
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
