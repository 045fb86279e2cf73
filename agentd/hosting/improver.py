"""From an alarm to proposals: the optimizer at work until the score is back, its budget is gone or its patience ends."""

import asyncio
import contextlib
import hashlib
from collections.abc import Mapping, Sequence

import msgspec
import structlog

from agentd import codec
from agentd.errors import AgentdError, BudgetExhausted, CodecError, NotFound, OptimizerError, ReleaseError
from agentd.hosting.counterfactual import Replay
from agentd.hosting.keeper import Keeper
from agentd.hosting.releases import Releases
from agentd.opto import images
from agentd.opto.contract import BudgetLimits, Llm, OptimizerContext, Screen, whole
from agentd.opto.process import OptimizerProcess
from agentd.records import (
    Episode,
    EpisodeSummary,
    Event,
    Mode,
    Parameter,
    Phase,
    Problem,
    Proposal,
    Purpose,
    Release,
    ReleaseKind,
    Role,
    Source,
    TraceGraph,
    Value,
)
from agentd.runners.local import LocalRunner
from agentd.spec import AgentSpec
from agentd.trace.propagation import minimal_subgraph

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PATIENCE = 60
"""Proposals without a promotion after which the optimizer rests until the next alarm.

A world may have become harder for good, and the target out of reach. No score tells that from a search that has not found it yet; what
tells is that proposals no longer improve. `continuous` goes on, more slowly, and no longer aims at the target.
"""
REST = 300.0


def budget_limits(spec: AgentSpec) -> BudgetLimits:
    """What an agent's optimizer may spend, as the ledger knows it."""
    budget = spec.optimizer.budget
    return BudgetLimits(
        dollars_per_day=budget.dollars_per_day, calls_per_hour=budget.calls_per_hour, tokens_per_proposal=budget.tokens_per_proposal
    )


class Improver:
    """The optimizer of one agent. It never touches the running agent: what it proposes goes the way of every release."""

    def __init__(self, keeper: Keeper, releases: Releases, process: OptimizerProcess, llm: Llm, models: tuple[str, ...], seed: int) -> None:
        self._keeper = keeper
        self._releases = releases
        self._process = process
        self._llm = llm
        self._models = models
        self._seed = seed
        self._wake = asyncio.Event()
        self._asked = asyncio.Event()
        self._parameters: tuple[Parameter, ...] = ()
        self._runner: LocalRunner | None = None
        self._source: Source | None = None
        self.status = "idle"

    def attach(self, parameters: tuple[Parameter, ...], runner: LocalRunner, source: Source) -> None:
        """This runner serves `source`, which has these parameters; what is proposed is replayed there first."""
        self._parameters, self._runner, self._source = parameters, runner, source
        self._wake.set()

    def wake(self) -> None:
        """Look again whether a proposal is wanted."""
        self._wake.set()

    async def start(self, reason: str, *, who: str = "agentd") -> None:
        """Work on this agent from now on. The caller holds `deciding`."""
        event, changes = self.starting(reason, who=who)
        self._keeper.tell(*await self._keeper.commit(event, **changes))
        self._asked.set()
        self.wake()

    def starting(self, reason: str, *, who: str = "agentd") -> tuple[Event, dict[str, object]]:
        """What `start` commits, for who commits it together with its cause."""
        event = self._keeper.event("optimizer.started", reason, who=who, algorithm=self._keeper.spec.optimizer.algorithm)
        return event, {"improving": True, "attempts": 0}

    async def stop(self, reason: str, **changes: object) -> None:
        """Rest until the next alarm. `changes` of the agent's state are committed with it. The caller holds `deciding`."""
        event, stopping = self.stopping(reason)
        self._keeper.tell(*await self._keeper.commit(event, **stopping, **changes))

    def stopping(self, reason: str) -> tuple[Event, dict[str, object]]:
        """What `stop` commits, for who commits it together with its cause."""
        self.status = "idle"
        return self._keeper.event("optimizer.stopped", reason), {"improving": False, "target": None}

    async def release_ended(self, release: Release) -> None:
        """Stop when a promoted candidate reached what was lost; count what did not. The caller holds `deciding`.

        With the trigger `continuous` it never stops: what was reached is the start of the next improvement.
        """
        keeper, state = self._keeper, self._keeper.state
        if release.kind is ReleaseKind.PROPOSAL and state.improving:
            promoted = release.phase is Phase.PROMOTED
            mean = release.candidate_sum / release.pairs if promoted and release.pairs else None
            reached = mean is not None and (state.target is None or mean >= state.target)
            attempts = state.attempts if promoted else state.attempts + 1  # evidence that promotes has set them to 0
            wanted = f", wanted {state.target:.3f}" if state.target else ""
            if self._continuous:
                given_up = reached or attempts >= PATIENCE
                await keeper.commit(attempts=0 if reached else attempts, target=None if given_up else state.target)
            elif reached:
                await self.stop(f"{release.candidate[:10]} scores {mean:.3f}{wanted}")
            elif attempts >= PATIENCE:
                await self.stop(f"{PATIENCE} proposals without a promotion{wanted}", attempts=attempts)
            else:
                await keeper.commit(attempts=attempts)
        self.wake()

    @property
    def told(self) -> str:
        """What it does, or waits for, and for how long it goes on: in words, for people."""
        state = self._keeper.state
        if not state.improving:
            rests = f"rests: {state.attempts} proposals without a promotion; `agentd propose {state.name}` asks again"
            return rests if state.attempts >= PATIENCE else self.status
        aim = "" if state.target is None else f"; aims at {state.target:.3f} again"
        tries = "" if self._continuous else f"; {state.attempts} of {PATIENCE} proposals without a promotion"
        return f"{self.status}{aim}{tries}"

    @property
    def _continuous(self) -> bool:
        """Whether what was reached is the start of the next improvement."""
        return self._keeper.spec.optimizer.trigger == "continuous"

    async def run(self) -> None:
        """Propose whenever a proposal is wanted. Runs until cancelled."""
        failures = 0
        while True:
            await self._wait_until_wanted()
            try:
                if self._keeper.state.attempts >= PATIENCE:  # continuous: it goes on, but not at this pace
                    self.status = f"resting after {self._keeper.state.attempts} proposals without a promotion"
                    await self._rest(REST)
                if await self._revive():
                    continue
                self.status = "proposing"
                proposal = await self._propose()
                await self._releases.propose(proposal)
                failures = 0
            except BudgetExhausted as error:
                self.status = f"waiting: {error}"
                await self._keeper.say("optimizer.budget_exhausted", str(error), limit=error.limit)
                now = self._keeper.clock.time()
                await self._rest(max(1.0, min(REST, (error.resets_at or now + REST) - now)))  # a budget of nothing never resets
            except (OptimizerError, ReleaseError, CodecError) as error:
                failures += 1
                self.status = f"waiting: {error}"
                await self._keeper.say("optimizer.failed", str(error), algorithm=self._keeper.spec.optimizer.algorithm)
                await self._rest(pause_after(failures))
            else:
                self.status = "waiting for the verdict"

    async def _rest(self, seconds: float) -> None:
        """Until the time is over, or somebody asks for the optimizer again."""
        self._asked.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._asked.wait()

    async def _wait_until_wanted(self) -> None:
        while True:
            state = self._keeper.state
            wanted = (
                state.mode is not Mode.OBSERVE and state.improving and not state.paused and not self._keeper.held and self._releases.idle
            )
            if wanted and await self._evidence():
                return
            self._wake.clear()
            with contextlib.suppress(TimeoutError):  # not `wait_for`: that of Python 3.11 swallows a cancellation that meets a wake-up
                async with asyncio.timeout(5.0):
                    await self._wake.wait()

    async def _evidence(self) -> tuple[EpisodeSummary, ...]:
        """Scored episodes of the stable revision in this regime: nothing is proposed before there is something to learn from."""
        state = self._keeper.state
        summaries = await self._keeper.store.episodes(state.name, limit=50, revision=state.stable, role=Role.STABLE, regime=state.regime)
        scored = tuple(summary for summary in summaries if summary.normalised is not None and self._may_see(summary.purpose))
        return scored if len(scored) >= min(3, self._keeper.spec.optimizer.batch_episodes) else ()

    def _may_see(self, purpose: Purpose) -> bool:
        """Whether the optimizer may learn from such episodes: what decides on a data set's held-back cases would be spoiled by it."""
        dataset = self._keeper.spec.environment.dataset
        return dataset is None or dataset.validation == 0 or purpose is not Purpose.PAIR

    async def _revive(self) -> bool:
        """Try revisions that were good in an earlier world first: plants are often repaired as suddenly as they broke."""
        keeper, state = self._keeper, self._keeper.state
        for revision, regime in reversed(state.good):
            if regime == state.regime or revision == state.stable or revision in state.tried:
                continue
            known = await keeper.store.revision(revision)
            if known.source != state.source:
                continue
            current = await self._full(state.stable)
            wanted = {parameter.path: known.values.get(parameter.path, parameter.default) for parameter in self._parameters}
            changed = {path: value for path, value in wanted.items() if value != current[path]}
            if not changed:
                continue
            reasoning = f"It was good in regime {regime}."
            proposal = self._proposal(changed, algorithm="revival", reasoning=reasoning)
            async with keeper.deciding:
                await self._releases.add(proposal, tried=(*keeper.state.tried, revision))
            return True
        return False

    def _proposal(self, values: Mapping[str, Value], *, algorithm: str, reasoning: str) -> Proposal:
        keeper = self._keeper
        return Proposal(
            id=keeper.new_id(),
            agent=keeper.name,
            parent=keeper.state.stable,
            values=dict(values),
            algorithm=algorithm,
            at=keeper.clock.time(),
            reasoning=reasoning,
        )

    async def _full(self, revision: str) -> dict[str, Value]:
        """All parameters' values in `revision`, defaults included."""
        values = (await self._keeper.store.revision(revision)).values
        return {parameter.path: values.get(parameter.path, parameter.default) for parameter in self._parameters}

    async def _propose(self) -> Proposal:
        keeper, state, options = self._keeper, self._keeper.state, self._keeper.spec.optimizer
        evidence = await self._evidence()
        values = await self._full(state.stable)
        memory = whole(await keeper.store.memory(keeper.name, limit=200), self._parameters)
        if not self._may_see(Purpose.PAIR):
            memory = tuple(msgspec.structs.replace(entry, feedback="") for entry in memory)  # words on held-back cases, for the most part
        problems, episodes = await self._problems(evidence, values)
        scores = [summary.normalised for summary in evidence if summary.normalised is not None]
        context = OptimizerContext(
            agent=keeper.name,
            stable=state.stable,
            parameters=self._parameters,
            values=values,
            objective=keeper.spec.agent.objective,
            algorithm=options.algorithm,
            models=self._models,
            regime=state.regime,
            stable_mean=sum(scores) / len(scores) if scores else None,
            history=options.history,
            allowed_imports=keeper.spec.sandbox.allowed_imports,
            budget=budget_limits(keeper.spec),
            options=options.options,
            at=keeper.clock.time(),
        )
        seed = int.from_bytes(hashlib.sha256(f"{self._seed}/{keeper.name}/{len(memory)}/{state.attempts}".encode()).digest()[:4])
        screen = self._screen(context, episodes)
        return await self._process.propose(context, problems, memory, seed, timeout=options.propose_timeout, llm=self._llm, screen=screen)

    def _screen(self, context: OptimizerContext, episodes: tuple[Episode, ...]) -> Screen | None:
        """Replay of the problems' episodes in the sandbox, by the runner that serves the agent now."""
        if self._runner is None or self._source is None:
            return None
        return Replay(self._runner, self._source, context, episodes)

    async def _problems(
        self, evidence: tuple[EpisodeSummary, ...], values: dict[str, Value]
    ) -> tuple[tuple[Problem, ...], tuple[Episode, ...]]:
        """The episodes that inform most, as problems and as recorded: the worst, the best for contrast, and what is typical."""
        problems, episodes = [], []
        for summary in informative(evidence, self._keeper.spec.optimizer.batch_episodes):
            try:
                feedback = await self._keeper.store.feedback(summary.id)
                episode = await self._keeper.store.episode(summary.id)
                encoded = await self._keeper.store.trace(summary.id)
            except NotFound:  # forgotten meanwhile, by age or by a person's wish
                continue
            if feedback is None:
                continue
            episodes.append(episode)
            graph = await asyncio.to_thread(_minimal, encoded) if encoded else None
            problems.append(
                Problem(
                    episode=summary.id,
                    objective=self._keeper.spec.agent.objective,
                    parameters=self._parameters,
                    values=values,
                    feedback=feedback,
                    graph=graph,
                    instruction=episode.instruction,
                    outcome=summary.outcome,
                    rewards=tuple(step.reward for step in episode.steps),
                    images=await asyncio.to_thread(images.of_steps, episode.steps, episode.final_observation),
                )
            )
        return tuple(problems), tuple(episodes)


def pause_after(failures: int) -> float:
    """Seconds before the optimizer is asked again that failed so often in a row: a model may be out of reach for weeks."""
    return min(REST, 0.5 * 2.0 ** min(failures, 16))


def informative(evidence: Sequence[EpisodeSummary], count: int) -> list[EpisodeSummary]:
    """At most `count` scored episodes from the worst to the best, evenly between them; the worst alone where one is wanted."""
    by_score = sorted(evidence, key=lambda summary: summary.normalised or 0.0)
    wanted = min(count, len(by_score))
    ranks = {round(index * (len(by_score) - 1) / max(1, wanted - 1)) for index in range(wanted)}
    return [by_score[rank] for rank in sorted(ranks)]


def _minimal(encoded: bytes) -> TraceGraph | None:
    """The part of a worker's trace that matters; None where the worker sent something else: it is not trusted to send a graph."""
    try:
        graph = codec.decode_untrusted(encoded, TraceGraph)
        return minimal_subgraph(graph, graph.output) if graph.output is not None else None
    except AgentdError as error:
        log.warning("a trace could not be used", error=str(error), kind=type(error).__name__)
        return None
