"""A fleet's ramp: how many devices a release may touch, which ones, and what happens when one fails, leaves or joins."""

from collections import Counter
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.records import Goal, Pair, Phase, Release, ReleaseKind, ReleaseSettings
from agentd.release import fleet, machine

RULES = ReleaseSettings(ramp=(0.05, 0.25, 0.5), step_pairs=2, selection_pairs=0, prune_after_pairs=1000, max_pairs=1000)
TWENTY = {f"robot-{number}": {} for number in range(20)}


def in_canary(settings: ReleaseSettings = RULES, kind: ReleaseKind = ReleaseKind.PROPOSAL, name: str = "r") -> Release:
    release = machine.begin(None, id=name, agent="a", candidate="new", reference="old", settings=settings, kind=kind, at=0.0)
    if kind is ReleaseKind.PROPOSAL:
        for phase in (Phase.VALIDATED, Phase.SCREENED):
            release = machine.advance(release, phase, at=0.0, who="agentd", reason="")
    return machine.start(release, at=0.0)


def pair(device: str, difference: float = 0.1, **fields) -> Pair:
    return Pair(id="p", release="r", device=device, reference=0.4, candidate=0.4 + difference, **fields)


def shown(release: Release, devices, *, pairs: int = 2, difference: float = 0.1) -> Release:
    """The release after so many pairs on each of the devices."""
    for device in devices:
        for _ in range(pairs):
            release, verdict = machine.observe(release, pair(device, difference), at=1.0)
            assert verdict is None
    return release


def at_step(count: int, ready=TWENTY, settings: ReleaseSettings = RULES) -> Release:
    """A release whose ramp has come to expose so many devices."""
    release = fleet.widen(in_canary(settings), ready)
    while len(fleet.exposed(release)) < count:
        release = fleet.widen(shown(release, fleet.exposed(release)), ready)
    assert len(fleet.exposed(release)) == count
    return release


# --- how many -----------------------------------------------------------------------------------------------------


def test_twenty_devices_are_exposed_one_five_ten_and_never_more():
    release, counts = in_canary(), []
    while not (release.fleet and fleet.is_covered(release)):
        release = fleet.widen(release, TWENTY)
        counts.append((len(fleet.exposed(release)), fleet.summary(release)))
        release = shown(release, fleet.exposed(release), difference=0.01)
    assert counts == [
        (1, "step 1 of 3: 1 device"),
        (5, "step 2 of 3: 5 devices"),
        (10, "step 3 of 3: 10 devices"),
        (10, "all 3 steps done: 10 devices"),
    ]
    assert fleet.widen(release, TWENTY) is release


def test_a_step_waits_until_each_exposed_device_has_given_its_pairs():
    release = at_step(5)
    first, *others = fleet.exposed(release)
    waiting = shown(release, others)
    left = RULES.step_pairs - waiting.fleet[first].pairs
    assert left == 0  # it was exposed in the step before
    newest = next(device for device in others if release.fleet[device].step == 1)
    assert fleet.widen(shown(release, [device for device in others if device != newest]), TWENTY).step == 1
    assert fleet.widen(waiting, TWENTY).step == 2


def test_no_further_device_is_shown_a_candidate_whose_mean_is_below_the_pruning_line():
    release = shown(fleet.widen(in_canary(), TWENTY), ["nobody"], pairs=0)
    bad = shown(release, fleet.exposed(release), difference=-0.1)
    assert fleet.widen(bad, TWENTY) is bad
    lenient = msgspec.structs.replace(RULES, goal=Goal.NO_WORSE, margin=0.2)
    release = fleet.widen(in_canary(lenient), TWENTY)
    assert len(fleet.exposed(fleet.widen(shown(release, fleet.exposed(release), difference=-0.1), TWENTY))) == 5


def test_a_single_device_is_the_whole_ramp():
    release = fleet.widen(in_canary(), {"robot": {}})
    assert fleet.exposed(release) == ("robot",)
    assert fleet.is_covered(fleet.widen(shown(release, ["robot"]), {"robot": {}}))


def test_settings_without_a_ramp_expose_one_device():
    release = at_step(1, settings=msgspec.structs.replace(RULES, ramp=()))
    assert fleet.is_covered(fleet.widen(shown(release, fleet.exposed(release)), TWENTY))


def test_a_promotion_waits_for_the_end_of_the_ramp_and_a_probe_s_does_not():
    release = fleet.widen(in_canary(), TWENTY)
    (device,) = fleet.exposed(release)
    release = shown(release, [device], pairs=60, difference=0.5)
    assert all(test.decided for test in machine.weighing.promotion_tests(release).values())
    for _ in range(3):
        release = fleet.widen(release, TWENTY)
        if not fleet.is_covered(release):
            release = shown(release, fleet.exposed(release), difference=0.5)
    _, verdict = machine.observe(release, pair(device, 0.5), at=1.0)
    assert verdict.phase is Phase.PROMOTED
    probe = fleet.widen(in_canary(msgspec.structs.replace(RULES, ramp=(0.5,)), ReleaseKind.PROBE), TWENTY)
    verdict = None
    while verdict is None:
        probe, verdict = machine.observe(probe, pair(fleet.exposed(probe)[0], 0.5), at=1.0)
    assert verdict.phase is Phase.PROMOTED


def test_a_superior_candidate_is_not_given_up_for_its_pairs_before_the_ramp_is_done():
    release = fleet.widen(in_canary(msgspec.structs.replace(RULES, max_pairs=20)), TWENTY)
    (device,) = fleet.exposed(release)
    assert shown(release, [device], pairs=60, difference=0.5).phase is Phase.CONFIRMATION


# --- which ones ---------------------------------------------------------------------------------------------------


def test_the_devices_are_drawn_anew_for_each_release_and_the_same_for_one():
    drawn = {fleet.exposed(fleet.widen(in_canary(name=f"r{number}"), TWENTY)) for number in range(30)}
    assert len(drawn) > 5
    assert fleet.widen(in_canary(), TWENTY) == fleet.widen(in_canary(), dict(reversed(TWENTY.items())))


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    ramp=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=4, unique=True).map(sorted).map(tuple),
    name=st.text("abc", min_size=1, max_size=4),
)
def test_each_step_has_its_part_of_every_group(sizes, ramp, name):
    ready = {f"{group}-{number}": {"site": str(group)} for group, size in enumerate(sizes) for number in range(size)}
    settings = msgspec.structs.replace(RULES, ramp=ramp, stratify=("site",))
    release = fleet.widen(in_canary(settings, name=name), ready)
    for _ in ramp:
        counts = Counter(ready[device]["site"] for device in fleet.exposed(release))
        share = len(fleet.exposed(release)) / len(ready)
        for group, size in enumerate(sizes):
            assert abs(counts[str(group)] - share * size) <= len(sizes)
        if all(share * size >= len(sizes) for size in sizes):
            assert len(counts) == len(sizes)
        done = {device: msgspec.structs.replace(exposure, pairs=2) for device, exposure in release.fleet.items()}
        release = fleet.widen(msgspec.structs.replace(release, fleet=done), ready)
    assert len(fleet.exposed(release)) == max(1, int(ramp[-1] * len(ready) + 1e-9))


# --- who fails ----------------------------------------------------------------------------------------------------


def violated(release: Release, device: str):  # as the canary makes it of an aborted episode
    return machine.observe(release, pair(device, -0.4, guardrail="too hot", candidate_aborted=True), at=1.0)


def test_the_first_device_that_fails_its_guardrail_goes_back_alone():
    release = at_step(5)
    failing = fleet.exposed(release)[2]
    after, verdict = violated(release, failing)
    assert verdict is None
    assert fleet.withdrawn(after) == (failing,)
    assert failing not in fleet.exposed(after)
    assert after.pairs == release.pairs + 1  # its pair is evidence: bad outcomes are not hidden
    later = fleet.widen(shown(after, fleet.exposed(after)), TWENTY)
    assert failing not in fleet.exposed(later)
    assert fleet.summary(later).endswith("1 withdrawn")


def test_the_second_device_that_fails_ends_the_release():
    release = at_step(5)
    first, second, *_ = fleet.exposed(release)
    release, _ = violated(release, first)
    _, verdict = violated(release, second)
    assert (verdict.phase, verdict.stage) == (Phase.REJECTED, "guardrail")
    assert second in verdict.reason
    assert first in verdict.reason


def test_the_same_device_failing_twice_is_still_alone():
    release = at_step(5)
    release, _ = violated(release, fleet.exposed(release)[0])
    _, verdict = violated(release, fleet.withdrawn(release)[0])
    assert verdict is None


def test_the_abort_of_a_device_that_went_back_alone_is_no_part_of_the_error_rate():
    release = fleet.widen(in_canary(msgspec.structs.replace(RULES, ramp=(0.5,))), {device: {} for device in "abcd"})
    failing, other = fleet.exposed(release)
    release, verdict = violated(release, failing)
    for _ in range(2):
        release, verdict = machine.observe(release, pair(other, -0.4, candidate_aborted=True), at=1.0)
        assert verdict is None
    _, verdict = machine.observe(release, pair(other, -0.4, candidate_aborted=True), at=1.0)
    assert "error rate 75% (3 of 4 episodes)" in verdict.reason


@pytest.mark.parametrize("ready", [TWENTY, {"robot": {}}])
def test_a_guardrail_ends_the_release_where_no_other_device_is_exposed(ready):
    release = fleet.widen(in_canary(), ready)
    _, verdict = violated(release, fleet.exposed(release)[0])
    assert verdict.phase is Phase.REJECTED


# --- who leaves and joins -----------------------------------------------------------------------------------------


def test_a_device_that_leaves_and_comes_back_is_still_exposed_and_nobody_takes_its_place():
    release = at_step(5)
    away = fleet.exposed(release)[0]
    without = {device: labels for device, labels in TWENTY.items() if device != away}
    assert fleet.widen(release, without) is release
    assert away in fleet.exposed(fleet.widen(release, TWENTY))


def test_where_all_exposed_devices_have_left_the_ramp_begins_again_with_others():
    release = at_step(5)
    others = {device: labels for device, labels in TWENTY.items() if device not in release.fleet}
    again = fleet.widen(release, others)
    assert len(set(fleet.exposed(again)) - set(fleet.exposed(release))) == 1
    assert again.step == 0


def test_a_device_that_joins_waits_for_a_step_and_is_then_drawn_like_the_others():
    release = at_step(10)
    joined = TWENTY | {f"newcomer-{number}": {} for number in range(20)}
    assert fleet.widen(release, joined) is release
    wider = fleet.widen(shown(release, fleet.exposed(release)), joined)
    assert len(fleet.exposed(wider)) == 20
    assert any(device.startswith("newcomer") for device in fleet.exposed(wider))


def test_a_fleet_that_appears_after_its_first_device_is_ramped_and_not_leapt_to():
    release = fleet.widen(in_canary(), {"robot-3": {}})
    release = fleet.widen(shown(release, ["robot-3"]), {"robot-3": {}})
    assert fleet.is_covered(release)
    release = fleet.widen(release, TWENTY)
    assert not fleet.is_covered(release)
    assert len(fleet.exposed(release)) == 5


@given(st.data())
def test_whatever_comes_and_goes_exposure_is_sticky_and_within_the_last_share(data):
    release = in_canary()
    largest = 0
    history = [release]
    for _ in range(data.draw(st.integers(1, 12))):
        ready = {device: {} for device in data.draw(st.sets(st.sampled_from(sorted(TWENTY)), min_size=1))}
        largest = max(largest, len(ready.keys() | release.fleet.keys()))
        before = set(fleet.exposed(release)) & ready.keys()
        release = fleet.widen(release, ready)
        history.append(release)
        added = set(fleet.exposed(release)) - set(fleet.exposed(history[-2]))
        assert added <= ready.keys()
        if added:
            assert len(before) + len(added) <= max(1, largest // 2)
        release = shown(
            release, [device for device in fleet.exposed(release) if device in ready], pairs=data.draw(st.integers(0, 2)), difference=0.0
        )
    for earlier, later in pairwise(history):
        assert earlier.fleet.keys() <= later.fleet.keys()


def test_each_exposed_device_may_lose_as_many_pairs_as_one_may():
    release = at_step(5)
    for _ in range(RULES.max_lost_pairs * 5):
        release, verdict = machine.lost(release, at=1.0)
        assert verdict is None
    assert machine.lost(release, at=1.0)[1].phase is Phase.INCONCLUSIVE
