"""Prometheus metrics: an observer of episodes, events, the ledger and the runners' counters.

Names and labels are those of DESIGN section 5; revision hashes appear only in `agentd_agent_info`. What can be read from the state at a
scrape (`agent`) is read there, so that it is right after a restart; the rest counts from the daemon's start.
"""

from collections.abc import Mapping
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from agentd.clock import Clock, SystemClock
from agentd.events import EventBus
from agentd.observability.folded import FoldedHistogram, FoldedSummary
from agentd.records import AgentState, Episode, Event, Feedback, Mode, Phase, Release, Usage

M = TypeVar("M", bound=MetricWrapperBase)

CAPACITY = 4096
"""Events that may wait for this observer before some are dropped (and counted)."""
ENDED = (Phase.PROMOTED, Phase.REJECTED, Phase.PRUNED, Phase.INCONCLUSIVE, Phase.ABORTED)
_SCORES = tuple(tenth / 10 for tenth in range(1, 11))
_DELAY = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21_600.0, 86_400.0, 172_800.0)


class Metrics:
    """All metrics of one daemon, in a registry of their own."""

    def __init__(self, version: str, clock: Clock | None = None) -> None:
        self.registry = CollectorRegistry()
        self._clock = clock or SystemClock()
        self._of_agents: list[MetricWrapperBase] = []
        self._seen: set[str] = set()
        build = Info("agentd_build", "The running agentd.", registry=self.registry)
        build.info({"version": version})
        self._info = Info("agentd_agent", "What each agent serves now.", ["agent"], registry=self.registry)
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self._episodes = counter("episodes", "Finished episodes.", "role", "outcome")
        self._score = histogram("episode_score_ratio", "Scores on the declared range, 1 is best.", _SCORES, "role")
        self._step = FoldedHistogram("agentd_step_duration_seconds", "From observation to action.", ("agent", "role"))
        self._misses = counter("deadline_misses", "Ticks at which the policy was late.")
        self._safe = counter("safe_actions", "Ticks at which the plant got the safe action.", "reason")
        self._brake_faults = counter("brake_faults", "Safe actions that were the value because the function gave none.", "reason")
        self._hand_overs = counter("handovers", "States of policies that were handed over at a switch.", "outcome")
        self._stale = counter("stale_ticks", "Ticks of a fixed rate without a fresh observation.")
        self._missed = counter("missed_ticks", "Ticks of a fixed rate that the runner was too slow for.")
        self._last_episode = gauge("last_episode_timestamp_seconds", "When the last episode ended.")
        self._feedback_delay = histogram("feedback_delay_seconds", "From an episode's end to its feedback.", _DELAY)
        self._windowed = counter("feedback_windows", "Windows for late feedback, by what became of them.", "outcome")
        self._windows_open = gauge("feedback_windows_open", "Episodes that may still be judged.")
        self._proposals = counter("proposals", "Proposals, and attempts that gave none.", "algorithm", "outcome")
        self._last_proposal = gauge("last_proposal_timestamp_seconds", "When the last proposal was made.")
        self._releases = counter("releases", "Ended releases.", "outcome")
        self._phase = gauge("release_phase", "1 for the phase that the release in progress is in.", "phase")
        self._start = gauge("release_start_timestamp_seconds", "When the release in progress began; 0 without one.")
        self._log_e = gauge("release_log_e_value", "Evidence in the release in progress, natural logarithm.", "hypothesis")
        self._rollbacks = counter("rollbacks", "Revisions that were promoted and rolled back.", "reason")
        self._alarms = counter("drift_alarms", "Alarms of the watch on the stable revision.")
        self._regret = counter("score_regret", "What trying candidates cost: the sum of max(0, stable - candidate) over pairs.")
        self._swap = FoldedSummary("agentd_swap_duration_seconds", "From a new route to the first action of its revision.", ("agent",))
        self._requests = counter("llm_requests", "Calls of models.", "purpose", "model", "outcome")
        self._tokens = counter("llm_tokens", "Tokens of models.", "purpose", "model", "direction")
        self._cost = counter("llm_cost_dollars", "What models cost.", "purpose", "model")
        self._limit = gauge("budget_limit_dollars", "What optimizer and policy may each spend on models in a day.", "spender")
        self._remaining = gauge("budget_remaining_dollars", "What of that is left.", "spender")
        self._connected = gauge("mqtt_connected", "1 while the runner is connected to the broker.")
        self._messages = counter("mqtt_messages", "MQTT messages of the runner.", "direction")
        self._dropped = counter("mqtt_dropped_messages", "MQTT messages that the runner ignored.", "reason")
        self._devices = gauge("devices", "Devices by status.", "status")
        self._held = gauge("held", "1 while this keeps the agent from going on: paused its episodes, the others its releases.", "by")
        self._healthy = gauge("healthy", "1 while the agent is up, its actions are accepted and its episodes can be judged.")
        self._conflicts = gauge("source_conflicts", "Learned values that a changed source puts in question.")
        self._isolation = gauge("isolation_level", "How the agent's code is isolated: 0 not at all, 3 in namespaces.")
        for folded in (self._step, self._swap):
            self.registry.register(folded)
        self._counted = {
            "brake_faults": self._brake_faults,
            "deadline_misses": self._misses,
            "dropped": self._dropped,
            "handovers": self._hand_overs,
            "lost": counter("runner_losses", "Episodes, messages and traces that a runner could not keep, or could not get.", "what"),
            "messages": self._messages,
            "missed_ticks": self._missed,
            "safe_actions": self._safe,
            "stale_ticks": self._stale,
        }
        """What a runner counts, by its word for it."""
        self._queue = Gauge("agentd_queue_depth", "What waits in a queue.", ["queue"], registry=self.registry)
        self._write_errors_seen = 0
        self._write_errors = Counter("agentd_store_write_errors", "Writes that the store refused.", registry=self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return self._kept(Counter(f"agentd_{name}", help_text, ["agent", *labels], registry=self.registry))

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return self._kept(Gauge(f"agentd_{name}", help_text, ["agent", *labels], registry=self.registry))

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return self._kept(Histogram(f"agentd_{name}", help_text, ["agent", *labels], buckets=buckets, registry=self.registry))

    def _kept(self, metric: M) -> M:
        self._of_agents.append(metric)
        return metric

    # --- what happens ------------------------------------------------------------------------------------------------

    def episode(self, episode: Episode, feedback: Feedback | None) -> None:
        """A finished episode, and its feedback if that is there already."""
        agent, role = episode.agent, str(episode.role)
        self._episodes.labels(agent, role, str(episode.outcome)).inc()
        ended = episode.started_at + episode.duration
        self._last_episode.labels(agent).set(ended)
        if feedback is not None:
            self.judged(agent, role, feedback, delay=self._clock.time() - ended)

    def judged(self, agent: str, role: str, feedback: Feedback, *, delay: float) -> None:
        """The feedback on an episode that ended `delay` seconds ago; a failed one has no score."""
        if not feedback.failed:
            self._score.labels(agent, role).observe(feedback.normalised)
        self._feedback_delay.labels(agent).observe(max(0.0, delay))

    def windowed(self, agent: str, outcome: str) -> None:
        """What became of a window: answered, silent; or of a feedback without one: late; or of an episode that got none: unwatched."""
        self._windowed.labels(agent, outcome).inc()

    def usage(self, usage: Usage) -> None:
        """A call of a model, as the ledger settled it."""
        self._requests.labels(usage.agent, usage.purpose, usage.model, usage.outcome).inc()
        self._tokens.labels(usage.agent, usage.purpose, usage.model, "input").inc(usage.tokens_in)
        self._tokens.labels(usage.agent, usage.purpose, usage.model, "output").inc(usage.tokens_out)
        self._cost.labels(usage.agent, usage.purpose, usage.model).inc(usage.dollars)

    def budget(self, agent: str, spender: str, *, limit: float, remaining: float) -> None:
        """Dollars a day, and what is left of them, of the agent's `optimizer` or its `policy`."""
        self._limit.labels(agent, spender).set(limit)
        self._remaining.labels(agent, spender).set(remaining)

    def count(self, agent: str, deltas: Mapping[str, float]) -> None:
        """What a runner counted since it last said so, by dotted name (agentd.runners.messages.Counted).

        It counts every tick itself, also those that no episode records or that are recorded twice because a daemon died.
        """
        for name, amount in deltas.items():
            match name.split(".", 2):
                case [kind, label] if kind in self._counted:
                    self._counted[kind].labels(agent, label).inc(amount)
                case [kind] if kind in self._counted:
                    self._counted[kind].labels(agent).inc(amount)
                case ["step_duration", role, bound]:
                    self._step.add((agent, role), float(bound), amount)
                case ["step_duration_sum", role]:
                    self._step.add_sum((agent, role), amount)
                case ["swaps"]:
                    self._swap.add((agent,), count=int(amount))
                case ["swap_seconds"]:
                    self._swap.add((agent,), amount=amount)

    def devices(self, agent: str, devices: Mapping[str, str]) -> None:
        """The agent's devices: status by id."""
        statuses = list(devices.values())
        for status in {"ready", "stopped", "lost", *statuses}:
            self._devices.labels(agent, status).set(statuses.count(status))

    async def follow(self, bus: EventBus) -> None:
        """Observe the events of `bus` until it is closed."""
        async with bus.subscribe(CAPACITY) as events:
            async for event in events:
                self.event(event)

    def event(self, event: Event) -> None:
        """One event: releases, proposals, alarms, links."""
        agent, data = event.agent, event.data
        topic, _, word = event.kind.partition(".")
        if topic == "release" and word in set(ENDED):
            self._releases.labels(agent, word).inc()
        match event.kind:
            case "release.proposed":
                self._proposals.labels(agent, str(data.get("algorithm", "")), "proposed").inc()
                self._last_proposal.labels(agent).set(event.at)
            case "optimizer.failed":
                self._proposals.labels(agent, str(data.get("algorithm", "")), "failed").inc()
            case "optimizer.budget_exhausted":
                self._proposals.labels(agent, str(data.get("algorithm", "")), "no_budget").inc()
            case "release.evidence":
                self._regret.labels(agent).inc(max(0.0, _number(data.get("reference")) - _number(data.get("candidate"))))
            case "release.rolled_back":
                self._rollbacks.labels(agent, str(data.get("stage") or event.who)).inc()
            case "watch.alarm":
                self._alarms.labels(agent).inc()
            case "broker.connected" | "broker.disconnected":
                self._connected.labels(agent).set(word == "connected")

    # --- what is -----------------------------------------------------------------------------------------------------

    def agent(self, name: str, *, stable: str, mode: Mode, isolation: int, release: Release | None) -> None:
        """What an agent is doing now; called before a scrape."""
        self._seen.add(name)
        self._info.labels(name).info({"revision": stable, "mode": str(mode)})
        self._isolation.labels(name).set(isolation)
        for phase in Phase:
            self._phase.labels(name, str(phase)).set(release is not None and release.phase is phase)
        self._start.labels(name).set(release.begun_at if release else 0.0)
        self._log_e.labels(name, "better").set(release.superiority.log_e if release else 0.0)
        self._log_e.labels(name, "worse").set(release.harm.log_e if release else 0.0)

    def windows(self, agent: str, waiting: int) -> None:
        """How many episodes of an agent may still be judged; called before a scrape."""
        self._windows_open.labels(agent).set(waiting)

    def health(self, name: str, *, healthy: bool) -> None:
        """Whether the agent is up and of use; called before a scrape."""
        self._seen.add(name)
        self._healthy.labels(name).set(healthy)

    def holds(self, state: AgentState) -> None:
        """What an operator or a rule holds back now, and what waits for a person; called before a scrape."""
        for word, held in (("paused", state.paused), ("frozen", state.frozen), ("quarantined", state.quarantine)):
            self._held.labels(state.name, word).set(bool(held))
        self._conflicts.labels(state.name).set(len(state.conflicts))

    def store(self, *, queued: int, write_errors: int) -> None:
        """How many episodes wait to be written, and how many writes have failed so far."""
        self._queue.labels("episodes").set(queued)
        self._write_errors.inc(write_errors - self._write_errors_seen)
        self._write_errors_seen = write_errors

    def forget_all_but(self, agents: set[str]) -> None:
        """Forget agents that are gone, so that no series stands still for ever."""
        for name in self._seen - agents:
            for metric in (*self._of_agents, self._info):
                metric.remove_by_labels({"agent": name})
            self._step.forget(name)
            self._swap.forget(name)
        self._seen &= agents

    def text(self) -> bytes:
        """The exposition format, for a scrape."""
        return generate_latest(self.registry)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
