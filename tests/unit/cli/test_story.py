"""What `agentd demo` makes of the daemon's events."""

from pathlib import Path

import pytest

from agentd.cli.story import BROKEN, HEALTHY, RECOVERED, Bad, Story
from agentd.cli.story_view import as_json, print_summary, sparkline


def episode(score, role="stable", purpose="normal", failed=""):
    data = {"role": role, "purpose": purpose, "normalised": score, "outcome": "finished", "failed": failed}
    return {"kind": "episode.finished", "data": data}


def release(phase, kind=None, **data):
    return {"kind": kind or f"release.{phase}", "data": {"release": "r1", "candidate": "abc", "phase": phase} | data}


def told(story, stage, scores):
    story.stage = stage
    for score in scores:
        story.take(episode(score))


def summary(story, failure=""):
    return as_json(story, failure=failure, robot={}, state=Path("state"), url="", change="flip-motor")


def good_story():
    story = Story()
    told(story, HEALTHY, [0.97, 0.95])
    told(story, BROKEN, [0.05, 0.03])
    told(story, RECOVERED, [0.96, 0.96])
    story.bad = [Bad(name, stopped=True) for name in ("reads a file", "is worse", "is subtly worse")]
    return story


def test_the_stable_revisions_scores_count_in_the_stage_in_which_they_came():
    story = good_story()
    assert story.mean(HEALTHY) == pytest.approx(0.96)
    assert story.mean(BROKEN) == pytest.approx(0.04)
    assert story.mean(RECOVERED, last=1) == pytest.approx(0.96)


def test_candidates_recoveries_and_episodes_without_a_verdict_do_not_count():
    story = Story()
    story.take(episode(0.5, role="candidate"))
    story.take(episode(0.5, purpose="recovery"))
    story.take(episode(0.0, failed="feedback.py raised"))
    assert story.mean(HEALTHY) is None
    assert story.episodes == 3


def test_the_score_has_recovered_when_most_of_what_the_change_cost_is_regained():
    assert good_story().recovered
    half = good_story()
    half.scores[RECOVERED] = [0.5]
    assert not half.recovered


def test_a_half_good_revision_on_the_way_counts_neither_as_broken_nor_as_recovered():
    story = good_story()
    story.stage = BROKEN
    story.take(release("promoted"))
    story.take(episode(0.7))
    assert story.mean(BROKEN) == pytest.approx(0.04)
    assert story.mean(RECOVERED) == pytest.approx(0.96)
    assert story.recovered


def test_a_change_that_cost_nothing_is_no_recovery():
    story = good_story()
    story.scores[BROKEN] = [0.95]
    assert not story.recovered


def test_a_release_is_told_with_its_last_verdict_and_evidence():
    story = Story()
    story.take(release("proposed", algorithm="search"))
    story.take({"kind": "release.evidence", "data": {"release": "r1", "pairs": 4, "log_e": 1.0, "phase": "confirmation"}})
    story.take(release("promoted", pairs=9, log_e=3.5, difference=0.9, stage="canary", reason="better"))
    (attempt,) = story.attempts.values()
    assert (attempt.algorithm, attempt.verdict, attempt.pairs, attempt.difference) == ("search", "promoted", 9, 0.9)
    assert attempt.e_value == pytest.approx(33.1, abs=0.1)


def test_a_promoted_release_that_is_rolled_back_ends_as_rolled_back():
    story = Story()
    story.take(release("promoted", forced=True))
    story.take(release("rolled_back", stage="watch", forced=True))
    assert story.attempts["r1"].verdict == "rolled_back"
    assert story.rollbacks == 1


def test_the_summary_passes_only_with_a_recovery_and_all_three_stopped():
    assert summary(good_story())["passed"]
    assert not summary(good_story(), failure="a stage took too long")["passed"]
    two = good_story()
    two.bad[2].stopped = False
    assert not summary(two)["passed"]
    fewer = good_story()
    del fewer.bad[0]
    assert not summary(fewer)["passed"]


def test_what_a_program_said_is_shown_as_it_is(capsys):
    story = good_story()
    story.bad[0].how = "rejected: [sandbox] allowed_imports has [red]only[/red] numpy"
    robot = {"ticks": 3, "actions": 2, "safe": 1, "fallback": 0}
    print_summary(as_json(story, failure="", robot=robot, state=Path("state"), url="", change="flip-motor"))
    shown = "".join(capsys.readouterr().out.split())
    assert "[sandbox]" in shown
    assert "[red]only[/red]" in shown


def test_on_a_terminal_of_80_columns_a_reason_can_be_read(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    story, reason = Story(), "better: +0.927 over 9 pairs, e = 44.2 against 40"
    story.take(release("promoted", algorithm="search", stage="canary", pairs=9, difference=0.927, log_e=3.8, reason=reason))
    robot = {"ticks": 1, "actions": 1, "safe": 0, "fallback": 0}
    print_summary(as_json(story, failure="", robot=robot, state=Path("state"), url="", change="flip-motor"))
    lines = capsys.readouterr().out.splitlines()
    assert reason in [line.strip() for line in lines]
    assert max(map(len, lines)) <= 80


def test_events_of_other_kinds_change_nothing():
    story = Story()
    story.take({"kind": "agent.added"})
    story.take({"kind": "release.proposed", "data": {}})
    assert story.attempts == {}


def test_a_sparkline_shows_the_latest_scores_within_its_bars():
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert len(sparkline([0.5] * 500, width=72)) == 72
