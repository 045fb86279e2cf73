"""What becomes of a pair whose plant is lost: nothing may wait for a half that will never be run."""

from types import SimpleNamespace

import msgspec
import pytest
from episodes import make_episode

from agentd.hosting.canary import Canary, LostPair
from agentd.records import MODELS_LOST, Episode, Feedback, Outcome, Pair, PairPlan, Purpose, Role, Step


@pytest.fixture
def canary(make_spec):
    made = Canary(SimpleNamespace(spec=make_spec(), clock=SimpleNamespace(time=lambda: 1.0)), 10.0)
    plan = PairPlan(
        id="p", release="r", agent="a", device="d", order=(Role.CANDIDATE, Role.STABLE), reference="old", candidate="new", drawn_at=0.0
    )
    made._open["p"] = plan
    return made


def half(role: Role, outcome: Outcome, steps: int) -> tuple[Episode, Feedback]:
    recorded = (Step(0, 0.0, 0),) * steps
    episode = make_episode(id=str(role), role=role, purpose=Purpose.PAIR, outcome=outcome, pair="p", steps=recorded)
    failed = "the plant was lost" if outcome is Outcome.LOST else ""
    return episode, Feedback(episode=episode.id, score=0.0, normalised=0.0 if failed else 0.8, failed=failed)


@pytest.mark.parametrize("steps", [0, 3])
def test_a_plant_that_is_lost_in_the_first_half_has_the_pair_drawn_again(canary, steps):
    assert isinstance(canary.take(*half(Role.CANDIDATE, Outcome.LOST, steps)), LostPair)


def test_a_plant_that_is_lost_under_way_in_the_second_half_is_evidence(canary):
    assert canary.take(*half(Role.CANDIDATE, Outcome.FINISHED, 3)) is None
    pair = canary.take(*half(Role.STABLE, Outcome.LOST, 3))
    assert isinstance(pair, Pair)
    assert (pair.reference, pair.candidate) == (0.0, 0.8)


@pytest.mark.parametrize("role", list(Role))
def test_a_half_whose_models_gave_no_answer_is_no_evidence_even_in_the_second_half(canary, role):
    other = Role.STABLE if role is Role.CANDIDATE else Role.CANDIDATE
    assert canary.take(*half(other, Outcome.FINISHED, 3)) is None
    episode, feedback = half(role, Outcome.LOST, 3)
    lost = canary.take(msgspec.structs.replace(episode, reason=MODELS_LOST, error="on fire"), feedback)
    assert isinstance(lost, LostPair)
    assert lost.reason == "models gave no answer: on fire"
