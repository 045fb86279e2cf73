"""What an optimizer is shown of an agent's episodes."""

import pytest

from agentd.hosting.improver import REST, informative, pause_after
from agentd.records import EpisodeSummary, Outcome, Purpose, Role


def scored(score):
    return EpisodeSummary(
        id=f"e{score}",
        agent="a",
        device="d",
        revision="r",
        role=Role.STABLE,
        purpose=Purpose.NORMAL,
        outcome=Outcome.FINISHED,
        started_at=1.0,
        duration=1.0,
        ticks=1,
        normalised=score,
    )


@pytest.mark.parametrize(
    ("count", "shown"),
    [(1, [0.0]), (2, [0.0, 0.9]), (3, [0.0, 0.4, 0.9]), (4, [0.0, 0.3, 0.6, 0.9]), (99, [number / 10 for number in range(10)])],
)
def test_the_worst_the_best_for_contrast_and_what_is_between(count, shown):
    evidence = [scored(number / 10) for number in (3, 9, 0, 1, 8, 2, 7, 4, 6, 5)]
    assert [summary.normalised for summary in informative(evidence, count)] == shown
    assert informative([], count) == []


def test_it_rests_longer_after_each_failure_and_never_longer_than_so_long():
    assert [pause_after(failures) for failures in (1, 2, 3, 20, 5_000)] == [1.0, 2.0, 4.0, REST, REST]
