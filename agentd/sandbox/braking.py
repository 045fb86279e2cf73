"""The brake's program: calls the author's function of the observation that gives the safe action."""

import asyncio
import inspect
from collections.abc import Awaitable
from typing import Any

from agentd.errors import LoadError
from agentd.records import Value
from agentd.sandbox.loader import load_entrypoint
from agentd.sandbox.wire import Act, Load, Request
from agentd.trace.core import AbstractNode


class BrakeProgram:
    """Serves Load and Act. It knows the author's files and no revision's values: what was learned has no part in it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._brake: Any = None

    def load(self, request: Load) -> None:
        """Import the module and find its function."""
        self._brake = load_entrypoint(request.files, request.allowed_imports, request.entrypoint)
        if not callable(self._brake):
            raise LoadError(f"{request.entrypoint} is a {type(self._brake).__name__}, not a function of an observation")

    def handle(self, request: Request) -> Value:
        """The safe action on an observation."""
        if not isinstance(request, Act):
            raise TypeError(f"a brake can't {type(request).__name__}")
        action = self._brake(request.observation)
        if inspect.isawaitable(action):
            action = self._loop.run_until_complete(_await(action))
        return action.data if isinstance(action, AbstractNode) else action


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
