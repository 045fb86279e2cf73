"""How traced code reaches models: through whoever runs it, who holds the keys and the budget.

A script that says nothing has the models that the environment names, as a program for Trace has; it is found by name, since it lies in a
higher layer. Hosted, the runner answers (agentd.sandbox.host asks it).
"""

from __future__ import annotations

import collections
import contextvars
import hashlib
import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec

from agentd.errors import BudgetExhausted, ModelError, OptimizerError, TraceError
from agentd.records import Exchange

__all__ = ["Host", "Recorded", "RecordedHost", "checked", "current_host", "hosted", "question_key"]

_OF_SCRIPTS = "agentd.opto.script_models", "ScriptHost"
_OPTIONS = {"max_tokens", "temperature", "model"}
_ROLES = {"system", "user", "assistant"}
_HOTTEST = 2


class Host(Protocol):
    """Who runs the program. Options: max_tokens, temperature, model (one of those that the program may use)."""

    def complete(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """A model's answer to `messages` (each with "role" and "content"). Called from the program's own thread, also from within an
        event loop, and blocks. Raises ModelError and BudgetExhausted.
        """  # noqa: D205 - one thought
        ...

    async def acomplete(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """As `complete`, for who goes on with other things meanwhile."""
        ...


_host: contextvars.ContextVar[Host | None] = contextvars.ContextVar("agentd_trace_host", default=None)


@contextmanager
def hosted(host: Host) -> Iterator[None]:
    """Within, `host` answers what traced code asks of models: in this context, and in the tasks that it starts."""
    token = _host.set(host)
    try:
        yield
    finally:
        _host.reset(token)


def current_host() -> Host:
    """The host of this context. Raises TraceError where there is none."""
    host = _host.get()
    if host is not None:
        return host
    module, name = _OF_SCRIPTS
    try:
        made: Host = getattr(importlib.import_module(module), name)()
    except (ImportError, OSError) as error:
        raise TraceError(f"whoever runs this program gives it no model ({error})") from error
    return made


def checked(messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The messages as (role, text). Raises TypeError or ValueError for what is no question."""
    unknown = sorted(options.keys() - _OPTIONS)
    if unknown:
        raise TypeError(f"a model's options are {', '.join(sorted(_OPTIONS))}, not {', '.join(unknown)}")
    found = tuple((message["role"], message["content"]) for message in messages)
    for role, text in found:
        if role not in _ROLES:
            raise ValueError(f"a message's role is one of {', '.join(sorted(_ROLES))}, not {role!r}")
        if not isinstance(text, str):
            raise TypeError(f"a message's content is text, not a {type(text).__name__}")
    if not found:
        raise ValueError("there is no message to answer")
    most, temperature, model = options.get("max_tokens"), options.get("temperature"), options.get("model")
    if most is not None and (not isinstance(most, int) or most < 1):
        raise ValueError(f"max_tokens is a whole number from 1 on, not {most!r}")
    if temperature is not None and (not isinstance(temperature, int | float) or not 0 <= temperature <= _HOTTEST):
        raise ValueError(f"temperature is a number from 0 to {_HOTTEST}, not {temperature!r}")
    if model is not None and not isinstance(model, str):
        raise TypeError(f"model is a name, not a {type(model).__name__}")
    return found


def question_key(
    messages: Iterable[tuple[str, str]], *, model: str | None = None, max_tokens: int | None = None, temperature: float | None = None
) -> str:
    """The name of a question: the same for the same messages and options only."""
    asked = [list(messages), model, max_tokens, None if temperature is None else float(temperature)]
    return hashlib.sha256(msgspec.msgpack.encode(asked)).hexdigest()[:32]


class Recorded:
    """Recorded answers by question. One that was asked several times has its answers in the order in which they came."""

    def __init__(self, exchanges: Iterable[Exchange]) -> None:
        self._waiting: dict[str, collections.deque[Exchange]] = {}
        for exchange in exchanges:
            if exchange.key:
                self._waiting.setdefault(exchange.key, collections.deque()).append(exchange)
        self.missing = ""
        """The first question that has no recorded answer: what followed it is no replay."""

    def take(self, key: str, messages: Sequence[tuple[str, str]]) -> Exchange | None:
        """The next recorded answer to this question, None where there is none (more)."""
        waiting = self._waiting.get(key)
        if waiting:
            return waiting.popleft()
        self.missing = self.missing or f"a model is asked what is not recorded: {messages[-1][1][:200]!r}"
        return None


class RecordedHost:
    """Answers from the record alone, for a replay in this process."""

    def __init__(self, exchanges: Iterable[Exchange]) -> None:
        self.recorded = Recorded(exchanges)

    def complete(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """The recorded answer, or the recorded error."""
        asked = checked(messages, options)
        exchange = self.recorded.take(question_key(asked, **options), asked)
        if exchange is None:
            raise ModelError(self.recorded.missing, model="")
        if exchange.error:
            raise error_of(exchange)
        return exchange.answer

    async def acomplete(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """As `complete`."""
        return self.complete(messages, **options)


def error_of(exchange: Exchange) -> OptimizerError:
    """The error that a model's answer was."""
    kind, _, text = exchange.error.partition(": ")
    return BudgetExhausted(text) if kind == "BudgetExhausted" else ModelError(text, model=exchange.model)
