"""The metrics: their names and labels are a contract, their values follow what happened."""

import re
import shutil
import subprocess

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agentd.events import EventBus
from agentd.observability.metrics import Metrics
from agentd.records import (
    Episode,
    Event,
    Feedback,
    Mode,
    Outcome,
    Phase,
    Purpose,
    Release,
    ReleaseSettings,
    Role,
    Step,
    Test,
    Usage,
)

Test.__test__ = False  # a record of this name, not a class of tests

CONTRACT = {
    "agentd_build_info": {"version"},
    "agentd_agent_info": {"agent", "revision", "mode"},
    "agentd_episodes_total": {"agent", "role", "outcome"},
    "agentd_episode_score_ratio": {"agent", "role"},
    "agentd_step_duration_seconds": {"agent", "role"},
    "agentd_deadline_misses_total": {"agent"},
    "agentd_safe_actions_total": {"agent", "reason"},
    "agentd_runner_losses_total": {"agent", "what"},
    "agentd_proposals_total": {"agent", "algorithm", "outcome"},
    "agentd_releases_total": {"agent", "outcome"},
    "agentd_release_phase": {"agent", "phase"},
    "agentd_release_start_timestamp_seconds": {"agent"},
    "agentd_release_log_e_value": {"agent", "hypothesis"},
    "agentd_rollbacks_total": {"agent", "reason"},
    "agentd_drift_alarms_total": {"agent"},
    "agentd_score_regret_total": {"agent"},
    "agentd_swap_duration_seconds": {"agent"},
    "agentd_last_episode_timestamp_seconds": {"agent"},
    "agentd_last_proposal_timestamp_seconds": {"agent"},
    "agentd_feedback_delay_seconds": {"agent"},
    "agentd_llm_requests_total": {"agent", "purpose", "model", "outcome"},
    "agentd_llm_tokens_total": {"agent", "purpose", "model", "direction"},
    "agentd_llm_cost_dollars_total": {"agent", "purpose", "model"},
    "agentd_budget_limit_dollars": {"agent", "spender"},
    "agentd_budget_remaining_dollars": {"agent", "spender"},
    "agentd_mqtt_connected": {"agent"},
    "agentd_mqtt_messages_total": {"agent", "direction"},
    "agentd_mqtt_dropped_messages_total": {"agent", "reason"},
    "agentd_devices": {"agent", "status"},
    "agentd_isolation_level": {"agent"},
    "agentd_queue_depth": {"queue"},
    "agentd_store_write_errors_total": set(),
}
"""DESIGN section 5."""
REVISION = "0123456789abcdef" * 4


RUNNER = {
    "messages.in": 3.0,
    "messages.out": 2.0,
    "dropped.late_action": 1.0,
    "safe_actions.late": 2.0,
    "deadline_misses": 2.0,
    "lost.traces": 1.0,
    "step_duration.stable.0.002": 5.0,
    "step_duration.stable.0.01": 2.0,
    "step_duration.stable.inf": 1.0,
    "step_duration_sum.stable": 0.5,
    "swaps": 1.0,
    "swap_seconds": 0.02,
    "something.else": 4.0,
}
"""What a runner tells in one report."""


class FixedClock:
    def time(self) -> float:
        return 1000.0

    def monotonic(self) -> float:
        return 0.0


def make_episode(**changes: object) -> Episode:
    whole = Episode(
        id="e1",
        agent="cartpole",
        device="bench",
        revision=REVISION,
        role=Role.STABLE,
        purpose=Purpose.NORMAL,
        outcome=Outcome.FINISHED,
        started_at=990.0,
        duration=4.0,
        deadline_misses=2,
        steps=(Step(0, [0.0], 1, latency=0.002), Step(1, [0.0], 0, safe="late"), Step(2, [0.0], 0, safe="guardrail: action 7 is out")),
    )
    return msgspec.structs.replace(whole, **changes)


def make_release(phase: Phase) -> Release:
    return Release(
        id="r1",
        agent="cartpole",
        proposal="p",
        candidate=REVISION,
        reference=REVISION,
        phase=phase,
        settings=ReleaseSettings(),
        begun_at=900.0,
        superiority=Test(log_e=1.5),
        harm=Test(log_e=-0.5),
    )


def event(kind: str, **data: object) -> Event:
    return Event(kind=kind, at=950.0, agent="cartpole", data=data)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("1.2.3", FixedClock())


def samples(metrics: Metrics) -> dict[tuple[str, frozenset], float]:
    families = text_string_to_metric_families(metrics.text().decode())
    return {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, frozenset(labels.items())))


def exercise(metrics: Metrics) -> None:
    """Everything that can be observed, once."""
    metrics.episode(make_episode(), Feedback(episode="e1", score=0.8, normalised=0.8))
    metrics.usage(Usage(agent="cartpole", purpose="propose", model="m", outcome="ok", at=0, tokens_in=10, tokens_out=5, dollars=0.25))
    metrics.budget("cartpole", "optimizer", limit=5.0, remaining=4.75)
    metrics.count("cartpole", RUNNER)
    metrics.devices("cartpole", {"a": "ready", "b": "ready", "c": "lost"})
    metrics.store(queued=3, write_errors=2)
    metrics.agent("cartpole", stable=REVISION, mode=Mode.RELEASE, isolation=2, release=make_release(Phase.CONFIRMATION))
    metrics.event(event("release.proposed", algorithm="search"))
    metrics.event(event("release.promoted"))
    metrics.event(event("release.evidence", reference=0.9, candidate=0.4))
    metrics.event(event("release.rolled_back", stage="watch"))
    metrics.event(event("watch.alarm"))
    metrics.event(event("broker.connected"))


def test_names_and_labels_are_those_that_dashboards_and_alerts_rely_on(metrics) -> None:
    exercise(metrics)
    found: dict[str, set[str]] = {}
    for sample, labels in samples(metrics):
        name = re.sub("_(bucket|sum|count)$", "", sample)
        found.setdefault(name, set()).update(key for key, _ in labels if key != "le")
    # `_created` are the client library's own companions of counters and histograms.
    assert {name: labels for name, labels in found.items() if not name.endswith("_created")} == CONTRACT


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_nothing_to_say_against_them(metrics) -> None:
    exercise(metrics)
    answer = subprocess.run(["promtool", "check", "metrics"], input=metrics.text(), capture_output=True, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, b"", b"")


def test_a_revisions_hash_is_only_in_the_info(metrics) -> None:
    exercise(metrics)
    assert {name for name, labels in samples(metrics) if REVISION in dict(labels).values()} == {"agentd_agent_info"}


def test_an_episode_counts_its_outcome_and_score(metrics) -> None:
    metrics.episode(make_episode(), Feedback(episode="e1", score=0.8, normalised=0.8))
    assert value(metrics, "agentd_episodes_total", agent="cartpole", role="stable", outcome="finished") == 1
    assert value(metrics, "agentd_episode_score_ratio_sum", agent="cartpole", role="stable") == 0.8
    assert value(metrics, "agentd_last_episode_timestamp_seconds", agent="cartpole") == 994.0
    assert value(metrics, "agentd_feedback_delay_seconds_sum", agent="cartpole") == 6.0


def test_ticks_are_those_that_the_runner_counted(metrics) -> None:
    for _ in range(2):
        metrics.count("cartpole", RUNNER)
    assert value(metrics, "agentd_safe_actions_total", agent="cartpole", reason="late") == 4
    assert value(metrics, "agentd_deadline_misses_total", agent="cartpole") == 4
    assert value(metrics, "agentd_mqtt_messages_total", agent="cartpole", direction="in") == 6
    assert value(metrics, "agentd_mqtt_dropped_messages_total", agent="cartpole", reason="late_action") == 2
    assert value(metrics, "agentd_runner_losses_total", agent="cartpole", what="traces") == 2
    buckets = {
        le: value(metrics, "agentd_step_duration_seconds_bucket", agent="cartpole", role="stable", le=le)
        for le in ("0.002", "0.01", "+Inf")
    }
    assert buckets == {"0.002": 10, "0.01": 14, "+Inf": 16}
    assert value(metrics, "agentd_step_duration_seconds_sum", agent="cartpole", role="stable") == 1.0
    assert value(metrics, "agentd_step_duration_seconds_count", agent="cartpole", role="stable") == 16
    assert value(metrics, "agentd_swap_duration_seconds_count", agent="cartpole") == 2
    assert value(metrics, "agentd_swap_duration_seconds_sum", agent="cartpole") == pytest.approx(0.04)


def test_the_link_to_the_broker_is_shown_as_it_is(metrics) -> None:
    metrics.event(event("broker.connected"))
    assert value(metrics, "agentd_mqtt_connected", agent="cartpole") == 1
    metrics.event(event("broker.disconnected", reason="refused"))
    assert value(metrics, "agentd_mqtt_connected", agent="cartpole") == 0


def test_an_episode_without_a_verdict_has_no_score(metrics) -> None:
    metrics.episode(make_episode(), Feedback(episode="e1", score=0.0, normalised=0.0, failed="feedback.py hung"))
    assert value(metrics, "agentd_episodes_total", agent="cartpole", role="stable", outcome="finished") == 1
    assert value(metrics, "agentd_episode_score_ratio_count", agent="cartpole", role="stable") is None


def test_each_end_of_a_release_is_counted_and_nothing_on_its_way(metrics) -> None:
    for kind in ("release.promoted", "release.pruned", "release.validated", "release.screened", "release.probe_ended", "release.evidence"):
        metrics.event(event(kind))
    counted = {dict(labels)["outcome"] for name, labels in samples(metrics) if name == "agentd_releases_total"}
    assert counted == {"promoted", "pruned"}


def test_regret_is_what_candidates_cost_and_never_falls(metrics) -> None:
    metrics.event(event("release.evidence", reference=0.9, candidate=0.4))
    metrics.event(event("release.evidence", reference=0.4, candidate=0.9))
    metrics.event(event("release.evidence", reference=None, candidate="x"))
    assert value(metrics, "agentd_score_regret_total", agent="cartpole") == pytest.approx(0.5)


def test_the_phase_is_one_for_the_phase_of_the_release_in_progress_only(metrics) -> None:
    metrics.agent("cartpole", stable=REVISION, mode=Mode.RELEASE, isolation=2, release=make_release(Phase.CONFIRMATION))
    phases = {dict(labels)["phase"]: number for (name, labels), number in samples(metrics).items() if name == "agentd_release_phase"}
    assert phases["confirmation"] == 1
    assert sum(phases.values()) == 1
    metrics.agent("cartpole", stable=REVISION, mode=Mode.RELEASE, isolation=2, release=None)
    assert value(metrics, "agentd_release_phase", agent="cartpole", phase="confirmation") == 0
    assert value(metrics, "agentd_release_log_e_value", agent="cartpole", hypothesis="better") == 0


def test_a_new_stable_revision_replaces_the_old_one_in_the_info(metrics) -> None:
    for revision in ("old", "new"):
        metrics.agent("cartpole", stable=revision, mode=Mode.RELEASE, isolation=2, release=None)
    assert [dict(labels)["revision"] for name, labels in samples(metrics) if name == "agentd_agent_info"] == ["new"]


def test_an_agent_that_is_gone_leaves_no_series(metrics) -> None:
    exercise(metrics)
    metrics.forget_all_but({"pendulum"})
    assert [name for name, labels in samples(metrics) if dict(labels).get("agent") == "cartpole"] == []


def test_the_stores_counter_of_errors_is_taken_over_without_counting_twice(metrics) -> None:
    for errors in (2, 2, 5):
        metrics.store(queued=1, write_errors=errors)
    assert value(metrics, "agentd_store_write_errors_total") == 5


async def test_events_are_followed_from_the_bus_until_it_closes(metrics) -> None:
    import asyncio

    async with EventBus() as bus, asyncio.TaskGroup() as tasks:
        tasks.create_task(metrics.follow(bus))
        await asyncio.sleep(0)
        bus.publish(event("watch.alarm"))
        await bus.aclose()
    assert value(metrics, "agentd_drift_alarms_total", agent="cartpole") == 1


def test_two_daemons_in_one_process_share_nothing() -> None:
    first, second = Metrics("1"), Metrics("2")
    first.event(event("watch.alarm"))
    assert value(second, "agentd_drift_alarms_total", agent="cartpole") is None
