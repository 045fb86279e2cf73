"""Episodes that only their devices begin: no pairs can be made of them, so each is drawn by itself and counts by itself."""

import random

import pytest

from agentd.errors import ReleaseError
from agentd.records import Goal, Phase, ReleaseKind, ReleaseSettings, Role, Single
from agentd.release import evidence, machine

RULES = ReleaseSettings(exposure=0.2, selection_pairs=0, prune_after_pairs=1000, max_pairs=5000)


def in_canary(settings=RULES):
    release = machine.begin(
        None, id="r", agent="a", candidate="new", reference="old", settings=settings, kind=ReleaseKind.PROBE, anchor="older", at=0.0
    )
    return machine.start(release, at=0.0)


def test_a_single_episode_is_drawn_with_the_declared_share_for_the_candidate():
    dice = random.Random(1)
    plans = [machine.draw_single(in_canary(), id="x", device="d", chance=dice.random(), at=0.0) for _ in range(2000)]
    assert all(len(plan.order) == 1 and plan.probability == 0.2 for plan in plans)
    assert sum(plan.order == (Role.CANDIDATE,) for plan in plans) / 2000 == pytest.approx(0.2, abs=0.03)


def test_a_release_that_is_decided_on_pairs_draws_no_single_episodes():
    with pytest.raises(ReleaseError):
        machine.draw_single(in_canary(ReleaseSettings()), id="x", device="d", chance=0.5, at=0.0)


def test_without_pairs_there_is_no_anchor():
    assert not evidence.has_anchor(in_canary(ReleaseSettings(exposure=0.5, goal=Goal.NO_WORSE, margin=0.1)))


def test_plans_and_evidence_decide_as_they_come():
    release, verdict, dice = in_canary(), None, random.Random(2)
    while verdict is None:
        plan = machine.draw_single(release, id="x", device="d", chance=dice.random(), at=0.0)
        score = 0.9 if plan.order == (Role.CANDIDATE,) else 0.4
        single = Single(id="x", release="r", device="d", role=plan.order[0], probability=plan.probability, score=score)
        release, verdict = machine.observe(release, single, at=0.0)
    assert verdict.phase is Phase.PROMOTED
    assert release.difference == pytest.approx(0.5, abs=0.2)
