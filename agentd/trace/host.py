"""How traced code reaches models: through whoever runs it, who holds the keys and the budget.

A script that says nothing has the models that the environment names, as a program for Trace has; it is found by name, since it lies in a
higher layer.
"""

from __future__ import annotations

import contextvars
import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from agentd.errors import TraceError

__all__ = ["Host", "current_host", "hosted"]

_OF_SCRIPTS = "agentd.opto.script_models", "ScriptHost"


class Host(Protocol):
    """Who runs the program. Called from the program's own thread, also from within an event loop, and blocks."""

    def complete(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """A model's answer to `messages` (each with "role" and "content"). Raises ModelError and BudgetExhausted."""
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
    """The host of this context. Raises TraceError where there is none, as in a sandbox."""
    host = _host.get()
    if host is not None:
        return host
    module, name = _OF_SCRIPTS
    try:
        made: Host = getattr(importlib.import_module(module), name)()
    except (ImportError, OSError) as error:
        raise TraceError(f"whoever runs this program gives it no model ({error})") from error
    return made
