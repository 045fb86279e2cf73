"""An agent hosted without a daemon around it, until its optimizer has made a number of proposals: `agentd optimize`.

Nothing is decided here. It is the agent that a daemon would host, with the same runner, judge, optimizer, releases and store; the events
of these parts tell what became of each proposal. What was promoted is committed like everywhere, so a daemon that is started on the same
store later serves it, and whatever ends the work early loses nothing of it.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from agentd.errors import AgentdError, IllegalTransition, NotFound, StaleRelease
from agentd.events import Subscription
from agentd.hosting.agent import HostedAgent
from agentd.hosting.services import Services
from agentd.opto.contract import Llm, LlmReply, LlmRequest
from agentd.records import Event, Mode, Parameter, Phase, Source
from agentd.runners.local import LocalRunner
from agentd.spec import AgentSpec

REST = 0.05
"""Seconds between two episodes that nobody waits for: a laptop has other things to do while a model thinks."""
UNLIMITED = "1000000000/day"
"""As many promotions as it makes: somebody sits before it, and no plant is driven by it meanwhile."""
DRAIN_TIMEOUT = 5.0
DRAIN_MARGIN = 20.0
EVENTS_AHEAD = 4096
FAILED = "failed"
_ENDS = {f"release.{phase}" for phase in (Phase.PROMOTED, Phase.REJECTED, Phase.PRUNED, Phase.INCONCLUSIVE, Phase.ABORTED)}


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one proposal. `fate` is the phase that its release ended in, or `failed` where there was none to release.

    `reference` and `candidate` are mean normalised scores over `pairs` pairs, None before the first.
    """

    number: int
    fate: str
    reason: str
    algorithm: str = ""
    paths: tuple[str, ...] = ()
    pairs: int = 0
    reference: float | None = None
    candidate: float | None = None
    dollars: float = 0.0
    revision: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is. `score` is the normalised mean of what serves now, as far as it is known; `doing` says what is waited for."""

    attempts: tuple[Attempt, ...] = ()
    score: float | None = None
    dollars: float = 0.0
    doing: str = "starting"

    @property
    def accepted(self) -> int:
        """How many proposals were promoted."""
        return sum(attempt.fate == Phase.PROMOTED for attempt in self.attempts)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it. `before` and `after` are the stable revisions; `ended` says why it ended early, `problem` what was wrong."""

    agent: str
    before: str
    after: str
    progress: Progress
    parameters: tuple[Parameter, ...] = ()
    ended: str = ""
    problem: str = ""


class _LastCall:
    """The way to the models until the last proposal is made. A further question waits until the end, so that it costs nothing."""

    def __init__(self, llm: Llm) -> None:
        self._llm = llm
        self.closed = False

    async def complete(self, request: LlmRequest) -> LlmReply:
        """As Llm.complete."""
        if self.closed:
            await asyncio.get_running_loop().create_future()
        return await self._llm.complete(request)


class Offline:
    """One agent at work until `proposals` have been made and decided. `on_progress` is told of every step."""

    def __init__(
        self, spec: AgentSpec, source: Source, services: Services, *, proposals: int, who: str, on_progress: Callable[[Progress], None]
    ) -> None:
        self._spec = spec
        self._services = services
        self._proposals = proposals
        self._who = who
        self._on_progress = on_progress
        self._llm = _LastCall(services.llm)
        self._agent = HostedAgent(_released_by_itself(spec), source, dataclasses.replace(services, llm=self._llm))
        self._progress = Progress()
        self._begun_at = services.clock.time()
        self._open: set[str] = set()
        self._made = 0
        self._before = ""
        self._ended = ""
        self._problem = ""

    async def run(self, stop: asyncio.Event) -> Result:
        """Optimize until done, or until `stop` is set. What went wrong is in the result; the runner is gone afterwards in any case."""
        name = self._spec.agent.name
        async with self._services.bus.subscribe(EVENTS_AHEAD) as events:
            hosting = asyncio.create_task(self._agent.run(), name=f"agent {name}")
            following = asyncio.create_task(self._follow(events), name=f"follow {name}")
            stopping = asyncio.create_task(stop.wait(), name="stop")
            try:
                await asyncio.wait({hosting, following, stopping}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stopping.cancel()
                following.cancel()
                await asyncio.wait({following, stopping})
                await self._end(hosting, interrupted=stop.is_set())
        if following.done() and not following.cancelled():
            following.result()
        if hosting.done() and not hosting.cancelled():
            hosting.result()
        after, parameters = await self._left(name)
        if stop.is_set():
            self._ended = "interrupted"
        progress = dataclasses.replace(self._progress, dollars=await self._dollars(), doing="")
        return Result(name, self._before or after, after, progress, parameters, self._ended, self._problem)

    # --- following ---------------------------------------------------------------------------------------------------

    async def _follow(self, events: Subscription) -> None:
        async for event in events:
            if event.agent == self._spec.agent.name and not await self._goes_on(event):
                return

    async def _goes_on(self, event: Event) -> bool:
        """Take in one event; False if nothing more is to come."""
        kind = event.kind
        self._problem, self._ended = self._why_over(event)
        if self._problem or self._ended:
            return False
        if kind in {"runner.started", "runner.adopted"} or (kind == "optimizer.stopped" and self._made < self._proposals):
            state = self._agent.status().state
            self._before = self._before or (state.stable if state is not None else "")
            await self._agent.verbs.propose(who=self._who)
            self._show("the optimizer is at work")
        elif kind == "release.proposed" and event.who == "optimizer":
            self._began(str(event.data["release"]))
            self._show("a proposal is screened and compared")
        elif kind == "release.evidence":
            self._show(event.message, score=float(event.data["reference"]) if self._progress.score is None else None)
        elif kind == "optimizer.failed":
            self._made += 1
            algorithm = str(event.data.get("algorithm", ""))
            await self._note(Attempt(number=self._made, fate=FAILED, reason=event.message, algorithm=algorithm))
        elif kind in _ENDS and str(event.data["release"]) in self._open:
            await self._note(await self._attempt(str(event.data["release"])))
        elif kind in {"models.unavailable", "models.available"}:
            self._show(event.message)
        return len(self._progress.attempts) < self._proposals

    def _why_over(self, event: Event) -> tuple[str, str]:
        """What is wrong, or else why it ended early, after this event; both empty where it goes on."""
        match event.kind:
            case "agent.failed" | "agent.source_rejected":
                return event.message, ""
            case "release.awaiting_approval":
                return "", "a parameter that the proposal changes needs approval: `agentd run`, then `agentd approve`"
            case "optimizer.budget_exhausted":
                return "", f"the budget is used up: {event.message}"
            case "models.unavailable" if event.data.get("budget"):
                return "", f"what the agent may ask of models is used up: {event.message}"
            case "models.unavailable" if not self._agent.status().recent:  # they never answered: waiting won't help
                return f"the agent's models don't answer: {event.message}", ""
            case _:
                return "", ""

    def _began(self, release: str) -> None:
        self._open.add(release)
        self._made += 1
        self._llm.closed = self._made >= self._proposals

    async def _attempt(self, key: str) -> Attempt:
        release = await self._services.store.release(key)
        proposal = await self._services.store.proposal(release.proposal)
        return Attempt(
            number=len(self._progress.attempts) + 1,
            fate=str(release.phase),
            reason=f"{release.stage}: {release.reason}" if release.stage else release.reason,
            algorithm=proposal.algorithm,
            paths=tuple(sorted(proposal.values)),
            pairs=release.pairs,
            reference=release.reference_sum / release.pairs if release.pairs else None,
            candidate=release.candidate_sum / release.pairs if release.pairs else None,
            dollars=proposal.dollars,
            revision=release.candidate,
        )

    async def _note(self, attempt: Attempt) -> None:
        accepted = attempt.fate == Phase.PROMOTED
        self._progress = dataclasses.replace(
            self._progress, attempts=(*self._progress.attempts, attempt), dollars=await self._dollars(), doing="the optimizer is at work"
        )
        self._show("the optimizer is at work", score=attempt.candidate if accepted else attempt.reference)

    def _show(self, doing: str, score: float | None = None) -> None:
        known = self._progress.score if score is None else score
        self._progress = dataclasses.replace(self._progress, doing=doing, score=known)
        self._on_progress(self._progress)

    async def _dollars(self) -> float:
        rows = await self._services.store.usage(self._spec.agent.name, since=self._begun_at)
        return sum(row.dollars for row in rows)

    # --- the end -----------------------------------------------------------------------------------------------------

    async def _end(self, hosting: "asyncio.Task[None]", *, interrupted: bool) -> None:
        """Take the agent down in good order: a release in progress is aborted, since nobody looks after it any more."""
        self._llm.closed = True
        current = None
        with contextlib.suppress(AgentdError):
            current = self._agent.releases.current
        if current is not None and current.phase is not Phase.AWAITING_APPROVAL:
            reason = "interrupted" if interrupted else "`agentd optimize` ended"
            with contextlib.suppress(StaleRelease, IllegalTransition):  # it was decided just now
                await self._agent.releases.abort(current.id, who=self._who, reason=reason)
                self._progress = dataclasses.replace(self._progress, attempts=(*self._progress.attempts, await self._attempt(current.id)))
        self._agent.drain(DRAIN_TIMEOUT)
        done, _ = await asyncio.wait({hosting}, timeout=DRAIN_TIMEOUT + DRAIN_MARGIN)
        if not done:
            hosting.cancel()
            await asyncio.wait({hosting})
            services = self._services
            await LocalRunner.dismiss(self._spec.agent.name, services.state_directory, services.epoch, services.clock, timeout=0.0)

    async def _left(self, name: str) -> tuple[str, tuple[Parameter, ...]]:
        """Leave the agent to a daemon: in its own mode, its optimizer waiting until it is asked. Returns stable revision and parameters."""
        store = self._services.store
        try:
            state = await store.agent(name)
        except NotFound:  # it never came up
            return "", ()
        at = self._services.clock.time()
        await store.flush()
        await store.commit(msgspec.structs.replace(state, mode=self._spec.agent.mode, improving=False, target=None, updated_at=at))
        return state.stable, state.parameters


def _released_by_itself(spec: AgentSpec) -> AgentSpec:
    """The agent as its author declared it, but released by evidence alone, improved when asked, and with a rest between episodes."""
    environment = spec.environment
    return spec.model_copy(
        update={
            "agent": spec.agent.model_copy(update={"mode": Mode.RELEASE}),
            "environment": environment.model_copy(update={"episode_interval": max(REST, environment.episode_interval)}),
            "optimizer": spec.optimizer.model_copy(update={"trigger": "manual"}),
            "release": spec.release.model_copy(update={"max_promotions": UNLIMITED}),
        }
    )
