"""How often an agent may be changed by itself."""

from hypothesis import given
from hypothesis import strategies as st

from agentd.records import Change, Phase, Release, ReleaseKind, ReleaseSettings
from agentd.release.limits import Rate, promotions, rollbacks

moments = st.lists(st.integers(0, 100_000).map(float), max_size=12)
rates = st.builds(Rate, st.integers(1, 5), st.integers(1, 5000).map(float))


def release(at, *, kind=ReleaseKind.PROPOSAL, forced=False, phase=Phase.PROMOTED, rolled_back=None):
    history = [Change(phase=Phase.PROPOSED, at=at - 1, who="agentd"), Change(phase=phase, at=at, who="agentd")]
    if rolled_back is not None:
        history.append(Change(phase=Phase.ROLLED_BACK, at=rolled_back, who="watch"))
    return Release(
        id=str(at),
        agent="a",
        proposal="",
        candidate="c",
        reference="r",
        phase=history[-1].phase,
        settings=ReleaseSettings(),
        begun_at=at - 1,
        kind=kind,
        forced=forced,
        ended_at=rolled_back or at,
        history=tuple(history),
    )


@given(rates, moments, st.integers(0, 100_000).map(float))
def test_whoever_waits_until_it_is_free_never_exceeds_the_rate(rate, asked, start):
    happened = []
    now = start
    for gap in asked:
        now = rate.free_at(happened, now + gap % 977)
        happened.append(now)
        assert not rate.exceeded(happened, now)


@given(rates, moments, st.integers(0, 100_000).map(float))
def test_it_is_free_as_soon_as_one_more_would_not_exceed_the_rate_and_no_sooner(rate, times, now):
    times = [at for at in times if at <= now]
    free = rate.free_at(times, now)
    assert not rate.exceeded([*times, free], free)
    if free > now:
        assert rate.exceeded([*times, free - 0.5], free - 0.5)


@given(rates, moments, st.integers(0, 100_000).map(float), st.integers(0, 10_000).map(float))
def test_what_exceeds_the_rate_stops_doing_so_only_by_waiting(rate, times, now, later):
    times = [at for at in times if at <= now]
    if not rate.exceeded(times, now):
        assert not rate.exceeded(times, now + later)
    assert not rate.exceeded(times, now + rate.period)


@given(moments, st.integers(0, 100_000).map(float))
def test_the_order_of_times_does_not_matter(times, now):
    rate = Rate(2, 300.0)
    assert rate.free_at(times, now) == rate.free_at(times[::-1], now)


def test_nothing_is_allowed_where_none_is():
    assert Rate(0, 60.0).free_at((), 100.0) is None
    assert not Rate(0, 60.0).exceeded((), 100.0)
    assert Rate(0, 60.0).exceeded((100.0,), 100.0)


def test_three_a_day_lets_a_fourth_wait_for_the_first_to_be_a_day_old():
    rate = Rate(3, 86_400.0)
    assert rate.free_at((10.0, 20.0), 30.0) == 30.0
    assert rate.free_at((10.0, 20.0, 30.0), 40.0) == 86_410.0
    assert rate.exceeded((1.0, 2.0, 3.0, 4.0), 5.0)
    assert not rate.exceeded((1.0, 2.0, 3.0, 4.0), 86_401.5)


def test_promotions_are_those_that_evidence_decided_also_after_they_were_rolled_back():
    found = [release(10.0), release(20.0, forced=True), release(30.0, rolled_back=99.0), release(40.0, phase=Phase.REJECTED)]
    assert promotions([*found, release(50.0, kind=ReleaseKind.PROBE)]) == (10.0, 30.0)


def test_rollbacks_are_the_watchs_own_and_lifting_a_quarantine_forgets_them():
    probes = [release(at, kind=ReleaseKind.PROBE) for at in (10.0, 20.0, 30.0)]
    lost = release(40.0, kind=ReleaseKind.PROBE, phase=Phase.REJECTED)
    assert rollbacks([*probes, lost, release(50.0)], since=0.0) == (10.0, 20.0, 30.0)
    assert rollbacks(probes, since=20.0) == (30.0,)
