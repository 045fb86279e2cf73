"""What recorded actions would have been under other values: the optimizer's `Screen`, carried out by the agent's runner.

Values are validated, loaded into a worker of their own beside the ones that serve, and shown the recorded observations. Nothing reaches
a plant. The optimizer learns which values can't be released, which would act exactly as the running ones do, and, of values that were
tried before, where they decided otherwise.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Sequence

import msgspec
import structlog

from agentd.errors import AgentdError, CodecError, DecodingError, RunnerError, SandboxError
from agentd.opto.contract import OptimizerContext, Screening
from agentd.opto.decoding import validate_values
from agentd.opto.rendering import shown
from agentd.records import Episode, Revision, Source, Value, make_revision
from agentd.runners.local import LocalRunner, ScreenReport

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

STEPS = 500
"""Recorded steps of an episode that are replayed: enough to see where decisions part, in bounded time."""
SECONDS = 10.0
"""In which values are replayed; what was seen by then is what is told. The optimizer's own time runs meanwhile."""
_VALUE = 120


class Replay:
    """The Screen of one proposal. `episodes` are those of its problems, in their order: case 1, case 2 and so on."""

    def __init__(
        self, runner: LocalRunner, source: Source, context: OptimizerContext, episodes: Sequence[Episode], *, seconds: float = SECONDS
    ) -> None:
        self._runner = runner
        self._source = source
        self._context = context
        self._episodes = tuple(msgspec.structs.replace(episode, steps=episode.steps[:STEPS]) for episode in episodes)
        self._seconds = seconds
        self._one_at_a_time = asyncio.Lock()
        self._numbers = itertools.count(1)

    async def __call__(self, values: dict[str, Value]) -> Screening:
        """What became of `values`. Nothing is known of them, and nothing held against them, while there is no runner."""
        try:
            revision = self._revision(values)
        except (DecodingError, CodecError) as error:
            return Screening(ok=False, reason=str(error))
        try:
            async with self._one_at_a_time:
                return await self._replayed(revision)
        except SandboxError as error:
            return Screening(ok=False, reason=_last_line(error))
        except RunnerError as error:
            log.info("values could not be replayed", agent=self._context.agent, error=str(error))
            return Screening()

    def _revision(self, values: dict[str, Value]) -> Revision:
        """A revision under a name of its own, so that it never meets one that is served or released meanwhile."""
        context = self._context
        full = {**context.values, **validate_values(values, context.parameters, context.values, context.allowed_imports)}
        changed = {p.path: full[p.path] for p in context.parameters if p.path in full and full[p.path] != p.default}
        revision = make_revision(context.agent, self._source.digest, changed)
        return msgspec.structs.replace(revision, id=f"replay-{next(self._numbers)}-{revision.id}")

    async def _replayed(self, revision: Revision) -> Screening:
        reports: list[ScreenReport] = []
        try:
            await self._runner.load(self._source, revision)
            with contextlib.suppress(TimeoutError):  # the worker is ended below, and with it what it still replays
                async with asyncio.timeout(self._seconds):
                    for episode in self._episodes:
                        reports.append(await self._runner.screen(revision.id, (episode,)))
                        if reports[-1].error or reports[-1].invalid:
                            break
        finally:
            await self._retire(revision)
        for report in reports[-1:]:
            if report.error:
                return Screening(ok=False, reason=report.error.splitlines()[-1].strip())
            if report.invalid:
                return Screening(ok=False, reason=f"an action is outside its limits: {report.first_invalid}")
        return Screening(
            report="\n".join(self._told(number, report) for number, report in enumerate(reports, 1) if report.ticks or report.unrecorded),
            ticks=sum(report.ticks + report.unrecorded for report in reports),
            differing=sum(report.differing + report.unrecorded for report in reports),  # who asks otherwise does otherwise
        )

    async def _retire(self, revision: Revision) -> None:
        try:
            await self._runner.retire(revision.id)
        except AgentdError as error:  # a runner that is gone took the worker with it
            log.info("a replay's worker could not be retired", agent=self._context.agent, error=str(error))

    def _told(self, number: int, report: ScreenReport) -> str:
        """One case in words: how many actions differ, and the first that do, with what was seen and done then."""
        if report.unrecorded:
            return f"Case {number}: it asks a model something else ({report.first_unrecorded}), and what that would answer is not known."
        if not report.differing:
            return f"Case {number}: the same action at each of {report.ticks} ticks."
        steps = {step.tick: step for step in self._episodes[number - 1].steps}
        lines = [f"Case {number}: {report.differing} of {report.ticks} actions differ. The first:"]
        for tick, action in report.changed.items():
            seen, done = shown(steps[tick].observation, _VALUE), shown(steps[tick].action, _VALUE)
            lines.append(f"- tick {tick}, observation {seen}: {shown(action, _VALUE)} instead of {done}")
        return "\n".join(lines)


def _last_line(error: SandboxError) -> str:
    """What went wrong: a program's error may show all of its code before that."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"
