"""The pairs of a canary: drawn, committed, sent to the runner, and made into evidence when both halves have been judged."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from agentd.hosting.keeper import Keeper
from agentd.records import MODELS_LOST, Episode, Feedback, Metric, Outcome, Pair, PairPlan, Purpose, Release, Role, Single
from agentd.release import fleet, machine
from agentd.runners.local import DeviceState, LocalRunner
from agentd.spec import EnvironmentKind, feedback_window, metric_record

REQUESTS_AHEAD = 8  # the same where clients begin several episodes at once
PLANS_AHEAD = 2  # per device: the next pair is there when the last ends, and little is lost when a verdict comes
GUARDRAILS = {
    "deadline": "its answers came late",
    "invalid": "an action was outside the envelope",
    "violation": "its worker broke the protocol",
}
"""Reasons of an aborted episode that end the candidate's release at once, outside the statistics (DESIGN sections 7 and 8)."""


@dataclass(frozen=True, slots=True)
class LostPair:
    """A pair that gave no evidence."""

    plan: str
    reason: str


class Canary:
    """Which pairs are under way, and the halves of them that have been judged."""

    def __init__(self, keeper: Keeper, lease: float) -> None:
        self._keeper = keeper
        self._lease = lease
        self._open: dict[str, PairPlan] = {}
        self._earlier: dict[str, PairPlan] = {}
        """Plans for single episodes that were drawn before a restart: some were run, and their episodes are on their way."""
        self._ahead = REQUESTS_AHEAD if keeper.spec.environment.kind is EnvironmentKind.HTTP else PLANS_AHEAD
        self.count_waiting: Callable[[str], int] = lambda _: 0
        """How many judged or silent episodes of a release wait for their turn."""
        self._halves: dict[str, dict[Role, tuple[Episode, Feedback]]] = {}
        self._metrics: tuple[Metric, ...] = tuple(metric_record(section) for section in keeper.spec.metrics[1:])
        self.devices: Mapping[str, DeviceState] = {}
        """The devices that are ready, by id."""

    @property
    def labels(self) -> Mapping[str, Mapping[str, str]]:
        """The labels of the devices that are ready."""
        return {device: state.labels for device, state in self.devices.items()}

    def clear(self, device: str | None = None) -> None:
        """Forget all pairs (of one device): what comes of them is an episode like any other."""
        for plan in [plan for plan in self._open.values() if device in {None, plan.device}]:
            self.forget(plan.id)

    def forget(self, plan: str) -> PairPlan | None:
        """Forget one pair, and return it if it was under way."""
        self._halves.pop(plan, None)
        earlier = self._earlier.pop(plan, None)
        return self._open.pop(plan, None) or earlier

    def recall(self, plans: Iterable[PairPlan]) -> None:
        """Single episodes of these plans still count, though another life has drawn them: their clients have their answers."""
        self._earlier = {plan.id: plan for plan in plans if plan.probability is not None}

    # --- drawing -----------------------------------------------------------------------------------------------------

    async def top_up(self, release: Release, runner: LocalRunner) -> None:
        """Keep the lease alive and pairs waiting on every exposed device. The caller holds `deciding`: no pair outlives its release."""
        await runner.renew(self._lease)
        for device in fleet.exposed(release):
            if device in self.devices:
                open_here = sum(plan.device == device for plan in self._open.values())
                plans = [self._draw(release, device) for _ in range(min(self._ahead - open_here, self._wanted(release)))]
                if plans:
                    await self._keeper.commit(*plans)  # committed before anything is run
                for plan in plans:
                    self._open[plan.id] = plan
                    await runner.pair(plan, self._lease)

    def _wanted(self, release: Release) -> int:
        """How many more plans are of use: where feedback comes later, `max_pairs` may be under way long before it is seen."""
        if feedback_window(self._keeper.spec) is None:
            return self._ahead
        return machine.missing(release, len(self._open) + self.count_waiting(release.id))

    def _draw(self, release: Release, device: str) -> PairPlan:
        keeper = self._keeper
        name, now, chance = keeper.new_id(), keeper.clock.time(), keeper.random.random()
        if release.settings.exposure is not None:
            return machine.draw_single(release, id=name, device=device, chance=chance, at=now)
        seed = keeper.random.getrandbits(31) if self.devices[device].seedable else None
        return machine.draw_pair(release, id=name, device=device, seed=seed, flip=chance < 0.5, at=now)

    def ended(self, episode: Episode) -> PairPlan | None:
        """The plan for a single episode that this one was run for; it is under way no longer. None for an episode like any other."""
        return self.forget(episode.pair or "")

    # --- evidence ----------------------------------------------------------------------------------------------------

    def take(self, episode: Episode, feedback: Feedback) -> Pair | Single | LostPair | None:
        """Take in one half of a pair, or a single episode; what is whole is evidence, or to be drawn again."""
        plan = self._open.get(episode.pair or "") or self._earlier.get(episode.pair or "")
        if plan is None or episode.purpose not in {Purpose.PAIR, Purpose.UNSOLICITED}:
            return None  # of an earlier life or an ended release: an episode like any other
        halves = self._halves.setdefault(plan.id, {})
        halves[episode.role] = (episode, feedback)
        if episode.outcome is Outcome.LOST and (why := _worthless(episode, first=len(halves) < len(plan.order))):
            return LostPair(plan.id, why)
        if plan.probability is not None:
            return self._single(plan, plan.probability, episode, feedback)
        if len(halves) < len(Role):
            return None
        reference, reference_feedback = halves[Role.STABLE]
        if reference_feedback.failed and reference.outcome is not Outcome.LOST:
            return LostPair(plan.id, reference_feedback.failed)
        # Where only the candidate's episode could not be judged it scores the minimum: else a candidate could unmake its bad
        # episodes by driving the plant to where feedback.py fails. So does either role's that lost the plant under way.
        self.forget(plan.id)
        return self._pair(plan, reference, reference_feedback, *halves[Role.CANDIDATE])

    def _pair(self, plan: PairPlan, reference: Episode, expected: Feedback, candidate: Episode, found: Feedback) -> Pair:
        return Pair(
            id=plan.id,
            release=plan.release,
            device=plan.device,
            reference=expected.normalised,
            candidate=found.normalised,
            anchored=plan.anchored,
            metrics={metric.name: (_further(metric, reference, expected), _further(metric, candidate, found)) for metric in self._metrics},
            reference_aborted=reference.outcome is Outcome.ABORTED,
            candidate_aborted=candidate.outcome is Outcome.ABORTED,
            guardrail=violated(candidate),
            at=self._keeper.clock.time(),
        )

    def _single(self, plan: PairPlan, probability: float, episode: Episode, feedback: Feedback) -> Single | LostPair:
        candidate = episode.role is Role.CANDIDATE
        if feedback.failed and episode.outcome is not Outcome.LOST and not candidate:
            return LostPair(plan.id, feedback.failed)  # a candidate's scores the minimum, as in a pair
        self.forget(plan.id)
        return Single(
            id=plan.id,
            release=plan.release,
            device=plan.device,
            role=episode.role,
            probability=probability,
            score=feedback.normalised,
            aborted=episode.outcome is Outcome.ABORTED,
            guardrail=violated(episode) if candidate else "",
            at=self._keeper.clock.time(),
            metrics={metric.name: _further(metric, episode, feedback) for metric in self._metrics},
        )


def _worthless(lost: Episode, *, first: bool) -> str:
    """Why nothing can be made of a pair of which this half was lost; "" where it can."""
    if lost.reason == MODELS_LOST:
        return f"models gave no answer: {lost.error}"  # the runner's own word, not the program's
    if first and lost.steps:
        return f"the plant was lost in the first half, after which there is no other: {lost.reason}"
    return "" if lost.steps else f"the plant was lost before the first action: {lost.reason}"


def violated(candidate: Episode) -> str:
    """The guardrail that the candidate violated in this episode, and how; empty if it did not."""
    guardrail = GUARDRAILS.get(candidate.reason) if candidate.outcome is Outcome.ABORTED else None
    if guardrail is None:
        return ""
    lines = candidate.error.strip().splitlines()
    return f"{guardrail}: {lines[-1][:300] if lines else candidate.reason}"


def _further(metric: Metric, episode: Episode, feedback: Feedback) -> float:
    """A further metric, normalised. An episode that was aborted, lost under way or could not be judged has the worst of it, too."""
    if episode.outcome is not Outcome.FINISHED or feedback.failed:
        return 0.0
    return metric.normalised(feedback.metrics[metric.name])
