"""What a candidate has to pass before it meets a plant: its values are read, the sandbox loads it, recorded steps are replayed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from agentd.errors import DecodingError, SandboxError
from agentd.hosting.keeper import Keeper
from agentd.hosting.routes import Routes
from agentd.opto.decoding import validate_values
from agentd.records import Parameter, Phase, Release, Screening, Value, Verdict

REASON_LIMIT = 500
DETAIL_LIMIT = 4000
SCREEN_EPISODES = 3


@dataclass(frozen=True, slots=True)
class Passed:
    """The candidate may go on: why, and the figures."""

    reason: str
    figures: Mapping[str, Value] = field(default_factory=dict)
    screening: Screening | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The candidate is rejected. `detail` are the program's own words: untrusted."""

    verdict: Verdict
    detail: str = ""


def validate(values: Mapping[str, Value], parameters: tuple[Parameter, ...], keeper: Keeper) -> Passed | Failed:
    """Static: compiles, signature, imports, types, bounds."""
    try:
        validate_values(values, parameters, {}, keeper.spec.sandbox.allowed_imports)
    except DecodingError as error:
        return Failed(Verdict(phase=Phase.REJECTED, stage="validation", reason=str(error)))
    return Passed("the values compile and keep types, bounds and signature")


async def screen(release: Release, routes: Routes, keeper: Keeper) -> Passed | Failed:
    """The sandbox loads it, and recorded steps are replayed: no exception, actions inside the envelope, in time.

    Raises RunnerError.
    """
    try:
        runner = await routes.load(release.candidate)
        summaries = await keeper.store.episodes(keeper.name, limit=SCREEN_EPISODES, revision=release.reference)
        episodes = tuple([await keeper.store.episode(summary.id) for summary in summaries])
        report = await runner.screen(release.candidate, episodes)
    except SandboxError as error:
        return _failed(f"{type(error).__name__}: {error}", getattr(error, "traceback", ""))
    if report.error or report.invalid:
        return _failed(report.error or f"{report.invalid} of {report.ticks} actions are outside the envelope", report.traceback)
    if report.late:
        return Failed(Verdict(phase=Phase.REJECTED, stage="screening", reason=f"too slow: {report.late}"[:REASON_LIMIT]))
    screening = Screening(
        episodes=len(episodes), ticks=report.ticks, differing=report.differing, invalid=report.invalid, max_latency=report.max_latency
    )
    figures = {"ticks": report.ticks, "differing": report.differing}
    text = f"{report.differing} of {report.ticks} replayed actions differ"
    if report.unrecorded:
        figures["unrecorded"] = report.unrecorded
        text += f"; {report.unrecorded} of {len(episodes)} episodes can't be replayed whole: {report.first_unrecorded}"
    return Passed(text[:REASON_LIMIT], figures, screening)


def _failed(text: str, traceback: str) -> Failed:
    """The last line says what went wrong; a program's error may show all of its code before that."""
    lines = [line for line in text.splitlines() if line.strip()]
    kind = text.partition(":")[0]
    reason = lines[0] if len(lines) == 1 else f"{kind}: {lines[-1]}"
    verdict = Verdict(phase=Phase.REJECTED, stage="screening", reason=reason[:REASON_LIMIT])
    return Failed(verdict, (traceback or text)[-DETAIL_LIMIT:])
