"""The feedback worker's program: calls the author's feedback(episode)."""

import asyncio
import inspect
from collections.abc import Awaitable, Mapping
from typing import Any

from agentd.errors import LoadError
from agentd.records import Value
from agentd.sandbox.loader import load_entrypoint
from agentd.sandbox.wire import Judge, Load, Request


class JudgeProgram:
    """Serves Load and Judge."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._feedback: Any = None

    def load(self, request: Load) -> None:
        """Import feedback.py and find its function."""
        self._feedback = load_entrypoint(request.files, request.allowed_imports, request.entrypoint)
        if not callable(self._feedback):
            raise LoadError(f"{request.entrypoint} is a {type(self._feedback).__name__}, not a function of an episode")

    def handle(self, request: Request) -> Value:
        """Judge an episode: (score, text, metrics)."""
        if not isinstance(request, Judge):
            raise TypeError(f"a feedback worker can't {type(request).__name__}")
        result = self._feedback(request.episode)
        if inspect.isawaitable(result):
            result = self._loop.run_until_complete(_await(result))
        return _as_verdict(result)


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _as_verdict(result: Any) -> tuple[float, str, dict[str, float]]:
    """What feedback.py may give back: a score, (score, text), (score, text, metrics), or an object with these attributes."""
    if hasattr(result, "score"):
        metrics = getattr(result, "metrics", None) or {}
        return _score(result.score), str(getattr(result, "text", "")), _metrics(metrics)
    if isinstance(result, tuple):
        if not 1 <= len(result) <= 3:
            raise TypeError(f"feedback gave back {len(result)} values; expected (score, text) or (score, text, metrics)")
        return _score(result[0]), str(result[1]) if len(result) > 1 else "", _metrics(result[2]) if len(result) > 2 else {}
    return _score(result), "", {}


def _score(value: Any) -> float:
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise TypeError(f"feedback gave back a {type(value).__name__}; expected a score, or (score, text)")
    return float(value)


def _metrics(value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise TypeError(f"feedback's metrics should be a dict of numbers, not a {type(value).__name__}")
    return {str(name): _score(number) for name, number in value.items()}
