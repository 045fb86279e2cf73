"""When an agent that is up counts as failing."""

import msgspec
import pytest
from episodes import make_episode

from agentd.hosting.failing import FAILING_AFTER, Failing
from agentd.records import Episode, Feedback, Outcome, Role, Step

EPISODE = make_episode(id="e1", device="bench", steps=(Step(0, 0.0, 0), Step(1, 0.0, 0, safe="late")))
JUDGED = Feedback(episode="e1", score=1.0, normalised=1.0)
UNJUDGED = msgspec.structs.replace(JUDGED, failed="feedback.py: Traceback\n  line 3\nKeyError: 'x'")


def episode(*safe: str | None, **changes: object) -> Episode:
    return msgspec.structs.replace(EPISODE, steps=tuple(Step(tick, 0.0, 0, safe=why) for tick, why in enumerate(safe)), **changes)


def weighed(*episodes: Episode, feedback: Feedback = JUDGED, times: int = FAILING_AFTER) -> str:
    failing = Failing()
    for _ in range(times):
        for one in episodes:
            failing.weigh(one, feedback)
    return failing.trouble


@pytest.mark.parametrize(
    "refused",
    [
        episode("invalid", "invalid"),
        episode("late", "latched"),
        episode("error", outcome=Outcome.ABORTED, error="Traceback\nKeyError: 'x'"),
        episode(outcome=Outcome.ABORTED, reason="exception"),
    ],
)
def test_episodes_in_a_row_without_an_accepted_action_are_told_with_their_reason_and_an_episode_to_look_at(refused) -> None:
    trouble = weighed(refused)
    assert "agentd show e1" in trouble
    assert all(step.safe in trouble for step in refused.steps)
    assert refused.error.splitlines()[-1:] == [line for line in refused.error.splitlines()[-1:] if line in trouble]
    assert weighed(refused, times=FAILING_AFTER - 1) == ""
    assert weighed(refused, EPISODE) == ""


@pytest.mark.parametrize(
    "nobodys",
    [
        EPISODE,
        episode("paused", "paused"),
        episode("dead_man"),
        episode(),
        episode("invalid", role=Role.CANDIDATE),
        episode("late", outcome=Outcome.LOST),
    ],
)
def test_what_nobody_was_asked_for_what_was_lost_and_candidates_are_no_trouble(nobodys) -> None:
    assert weighed(nobodys, times=20) == ""


def test_a_judge_that_always_fails_is_told_with_its_error_until_it_judges_once() -> None:
    assert "KeyError: 'x'" in weighed(EPISODE, feedback=UNJUDGED)
    assert weighed(EPISODE, feedback=UNJUDGED, times=FAILING_AFTER - 1) == ""
    assert weighed(episode("late", outcome=Outcome.LOST), feedback=UNJUDGED, times=20) == ""
    failing = Failing()
    for _ in range(20):
        failing.weigh(EPISODE, UNJUDGED)
    failing.weigh(EPISODE, JUDGED)
    assert failing.trouble == ""


def test_a_plant_whose_safe_action_has_latched_waits_for_a_person_and_is_told_until_its_policy_is_asked_again_or_it_is_gone() -> None:
    failing = Failing()
    for device in ("left", "right", "right"):
        failing.weigh(episode("latched", "latched", device=device, outcome=Outcome.LOST, id=f"of-{device}"), None)
    assert "the safe action of left, right has latched, until `agentd resume`: `agentd show of-right`" in failing.trouble
    failing.weigh(episode("late", None, device="left"), JUDGED)
    failing.keep({"left", "right"})
    assert "of right has" in failing.trouble
    failing.keep({"left"})
    assert failing.trouble == ""
