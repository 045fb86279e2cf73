"""The handle of a feedback worker: the author's judge, in a process of its own, where no policy can reach it."""

import asyncio
import math
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec

from agentd.errors import LoadError, ProtocolViolation
from agentd.records import Episode, Source
from agentd.sandbox.limits import Limits
from agentd.sandbox.process import WorkerProcess
from agentd.sandbox.wire import Judge, JudgedEpisode, printable
from agentd.sandbox.zygote import Zygote


class FeedbackWorker:
    """A locked process that runs `feedback(episode)`. `died` is set when it has ended."""

    def __init__(self, process: WorkerProcess, timeout: float) -> None:
        self._process = process
        self._timeout = timeout
        self.pid = process.pid

    @property
    def died(self) -> asyncio.Event:
        """Set when the process has ended, by itself or killed."""
        return self._process.died

    @classmethod
    async def start(cls, zygote: Zygote, *, source: Source, limits: Limits, timeout: float, on_log: Callable[[str], None]) -> Self:  # noqa: ASYNC109 - of each judgement, not of this call
        """Fork a worker that imports `source.feedback`. `timeout` (seconds) bounds each judgement. Raises as PolicyWorker.start."""
        if source.feedback is None:
            raise LoadError("this agent has no [feedback] entrypoint")
        process = await WorkerProcess.start(zygote, "feedback", limits.memory_bytes, on_log)
        await process.load(source, source.feedback, limits)
        return cls(process, timeout)

    async def judge(self, episode: Episode) -> tuple[float, str, dict[str, float]]:
        """Score, text and metrics of `episode`. The score may be out of range or NaN; the caller checks it.

        Raises PolicyError when feedback.py raised (or the episode is too large), WorkerTimeout when it hung, WorkerDied, ProtocolViolation.
        """
        judged = as_judged(episode)
        answer = await self._process.call(lambda number: Judge(number, judged), self._timeout)
        try:
            score, text, metrics = msgspec.convert(answer, tuple[float, str, dict[str, float]])
        except msgspec.ValidationError as error:
            violation = ProtocolViolation(f"the feedback worker gave no verdict and was killed: {error}")
            self._process.end(violation)
            raise violation from error
        return score, printable(text), metrics

    def kill(self) -> None:
        """End the process now."""
        self._process.kill()

    async def aclose(self) -> None:
        """End the process and wait until it has."""
        await self._process.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()


def as_judged(episode: Episode) -> JudgedEpisode:
    """What feedback.py sees of an episode. The policy's trace is not among it: only what the runner recorded."""
    return JudgedEpisode(
        id=episode.id,
        device=episode.device,
        outcome=episode.outcome.value,
        steps=episode.steps,
        final_observation=episode.final_observation,
        instruction=episode.instruction,
        error=episode.error,
        reason=episode.reason,
        metrics={
            "ticks": float(len(episode.steps)),
            "return": math.fsum(step.reward for step in episode.steps if step.reward is not None),
            "duration": episode.duration,
            "deadline_misses": float(episode.deadline_misses),
            "safe_actions": float(episode.safe_actions),
        },
    )
