"""Feedback on episodes: the author's `feedback.py` in a locked worker, or the reward where there is none."""

import math
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import structlog

from agentd.errors import SandboxError
from agentd.hosting.zygotes import Zygotes
from agentd.records import MODELS_LOST, Episode, Feedback, Metric, Outcome, Source
from agentd.sandbox import FeedbackWorker, Limits
from agentd.spec import AgentSpec, metric_record

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def lost_words(episode: Episode) -> str:
    """Why an episode that was lost says nothing."""
    return f"models gave no answer: {episode.error}" if episode.reason == MODELS_LOST else f"the plant was lost: {episode.reason}"


class Judge:
    """Turns an episode, as the runner recorded it, into feedback. A judge that hangs is killed; the next episode gets a new one."""

    def __init__(self, spec: AgentSpec, source: Source, metric: Metric, zygotes: Zygotes) -> None:
        self._spec = spec
        self._source = source
        self._metric = metric
        self._further = tuple(metric_record(section) for section in spec.metrics[1:])
        self._zygotes = zygotes
        self._worker: FeedbackWorker | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the worker."""
        if self._worker is not None:
            await self._worker.aclose()
            self._worker = None  # not before: whoever is cancelled in the middle of this leaves it to the next call

    async def judge(self, episode: Episode) -> Feedback:
        """The feedback on `episode`. Never raises for what feedback.py does: `Feedback.failed` says it, and the score is no evidence.

        An aborted episode scores the declared minimum without being asked about: the policy caused it (DESIGN section 8).
        """
        if episode.outcome is Outcome.ABORTED:
            return self._feedback(episode, self._metric.worst, f"The episode was aborted: {episode.reason}. {episode.error}".strip())
        if episode.outcome is Outcome.LOST:
            return self._feedback(episode, self._metric.worst, "", failed=lost_words(episode))
        if self._source.feedback is None:
            return self._from_rewards(episode)
        try:
            worker = await self._ready()
            score, text, metrics = await worker.judge(episode)
        except SandboxError as error:
            log.warning("feedback failed", agent=episode.agent, episode=episode.id, error=str(error))
            await self.aclose()
            return self._feedback(episode, self._metric.worst, "", failed=f"feedback.py: {error}")
        return self._feedback(episode, score, text, metrics)

    async def _ready(self) -> FeedbackWorker:
        if self._worker is None:
            limits = Limits.from_spec(self._spec.sandbox)
            zygote = await self._zygotes.get(limits.allowed_imports, self._spec.sandbox.min_isolation)
            timeout = self._spec.feedback.timeout if self._spec.feedback else 10.0
            self._worker = await FeedbackWorker.start(
                zygote,
                source=self._source,
                limits=limits,
                timeout=timeout,
                on_log=lambda line: log.info("feedback worker", agent=self._spec.agent.name, line=line),
            )
        return self._worker

    def _from_rewards(self, episode: Episode) -> Feedback:
        total = math.fsum(step.reward for step in episode.steps if step.reward is not None)
        return self._feedback(episode, total, f"The sum of the rewards over {len(episode.steps)} steps is {total:g}.")

    def _feedback(
        self, episode: Episode, score: float, text: str, metrics: dict[str, float] | None = None, *, failed: str = ""
    ) -> Feedback:
        normalised = 0.0
        try:
            normalised = self._metric.normalised(score)
            if metrics is not None:
                self._check(metrics)
        except ValueError as error:
            score, failed = self._metric.worst, str(error)
            normalised = 0.0
        return Feedback(episode=episode.id, score=score, normalised=normalised, text=text, metrics=metrics or {}, failed=failed)

    def _check(self, metrics: Mapping[str, float]) -> None:
        """Raise ValueError for a declared metric that is missing or outside its range: a release could not be decided on it."""
        for metric in self._further:
            if metric.name not in metrics:
                raise ValueError(f"feedback.py gave no {metric.name}, which [[metrics]] declares: return (score, text, {{name: value}})")
            metric.normalised(metrics[metric.name])
