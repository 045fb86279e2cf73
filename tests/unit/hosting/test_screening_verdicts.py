"""What screening makes of a replay, on the real store; the runner's report is given."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentd.hosting.screening import Failed, Passed, screen
from agentd.records import Phase, Release, ReleaseKind, ReleaseSettings
from agentd.runners.messages import ScreenReport
from agentd.store import SqlStore

RELEASE = Release(
    id="r", agent="a", proposal="p", candidate="c", reference="s", phase=Phase.VALIDATED, settings=ReleaseSettings(),
    kind=ReleaseKind.PROPOSAL, begun_at=0.0,
)  # fmt: skip


async def screened(path: Path, report: ScreenReport) -> Passed | Failed:
    class Runner:
        async def screen(self, revision: str, episodes: tuple[Any, ...]) -> ScreenReport:
            assert (revision, episodes) == ("c", ())
            return report

    async def load(revision: str) -> Runner:
        return Runner()

    async with await SqlStore.open(f"sqlite:///{path / 'agentd.db'}") as store:
        return await screen(RELEASE, cast("Any", SimpleNamespace(load=load)), cast("Any", SimpleNamespace(name="a", store=store)))


async def test_a_candidate_that_is_too_slow_is_rejected_with_the_figures(tmp_path: Path) -> None:
    found = await screened(tmp_path, ScreenReport(ticks=5, max_latency=0.3, late="more answers than that were late"))
    assert isinstance(found, Failed)
    assert (found.verdict.phase, found.verdict.stage) == (Phase.REJECTED, "screening")
    assert found.verdict.reason == "too slow: more answers than that were late"


@pytest.mark.parametrize(
    ("report", "reason"), [(ScreenReport(ticks=5, invalid=2, late="x"), "2 of 5"), (ScreenReport(error="E: x"), "E: x")]
)
async def test_what_is_worse_than_slow_is_said_first(tmp_path: Path, report: ScreenReport, reason: str) -> None:
    found = await screened(tmp_path, report)
    assert isinstance(found, Failed)
    assert found.verdict.reason.startswith(reason)


async def test_a_candidate_in_time_passes_with_its_longest_latency(tmp_path: Path) -> None:
    found = await screened(tmp_path, ScreenReport(ticks=5, differing=1, max_latency=0.3))
    assert isinstance(found, Passed)
    assert found.screening is not None
    assert (found.screening.differing, found.screening.max_latency) == (1, 0.3)
