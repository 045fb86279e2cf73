"""A daemon's API without a daemon: the real application and the real store; the commands are a small in-memory agent."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec

from agentd import codec
from agentd.api.app import create_app
from agentd.api.ports import Acted, AgentStatus, DaemonStatus, FeedbackReceipt
from agentd.api.tokens import Role, Tokens, read_token
from agentd.errors import (
    CodecError,
    DecodingError,
    FeedbackRefused,
    IllegalTransition,
    NotFound,
    Overloaded,
    RequestError,
    StaleRelease,
    Unanswered,
)
from agentd.events import EventBus
from agentd.observability.metrics import Metrics
from agentd.records import (
    AgentState,
    Episode,
    Event,
    Feedback,
    Hold,
    Kind,
    Mode,
    NodeKind,
    Origin,
    Outcome,
    Parameter,
    Phase,
    Proposal,
    Provenance,
    Purpose,
    Release,
    ReleaseSettings,
    Source,
    Step,
    Test,
    TraceGraph,
    TraceNode,
    Value,
    Watch,
    make_revision,
)
from agentd.records import Role as Serving
from agentd.settings import DaemonSettings, load_settings
from agentd.store import SqlStore
from agentd.store.retention import Erased
from agentd.testing.clock import FixedClock

NOW = 1_800_000_000.0
SOURCE = Source(digest="5" * 64, files={"controller.py": "class CartPole: ...\n"}, entrypoint="controller:CartPole")
FIRST = make_revision("cartpole", SOURCE.digest, {})
BETTER = make_revision("cartpole", SOURCE.digest, {"gains.kp": 2.5})
PARAMETERS = (
    Parameter(path="act", kind=Kind.CODE, default="def act(self, x):\n    return 0\n", signature="def act(self, x):"),
    Parameter(path="gains.kp", kind=Kind.NUMBER, default=1.0, bounds=(0.0, 10.0)),
)
STATE = AgentState(
    name="cartpole",
    source=SOURCE.digest,
    stable=FIRST.id,
    desired=FIRST.id,
    mode=Mode.RELEASE,
    watch=Watch(revision=FIRST.id, bound=0.71, episodes=42),
    parameters=PARAMETERS,
)


PROBLEMS = {
    "full": Overloaded("16 requests wait already"),
    "waited": Overloaded("it has waited for 10 s", full=False),
    "late": Unanswered("no answer within 5 s", late=True, episode="e1"),
    "failed": Unanswered("the policy failed", episode="e1"),
    "outside": CodecError("observation: is outside the space"),
    "not served": RequestError("agent cartpole takes no requests"),
}
"""Observations that the agent of this bench can't answer."""


def make_release(release: str, phase: Phase = Phase.CONFIRMATION, **changes: object) -> Release:
    whole = Release(
        id=release,
        agent="cartpole",
        proposal="p1",
        candidate=BETTER.id,
        reference=FIRST.id,
        phase=phase,
        settings=ReleaseSettings(),
        begun_at=NOW - 60,
        superiority=Test(n=12, log_e=1.5),
        pairs=12,
        reference_sum=6.0,
        candidate_sum=7.2,
    )
    return msgspec.structs.replace(whole, **changes)


def make_episode(episode: str, *, trace: bytes | None = None, **changes: object) -> Episode:
    whole = Episode(
        id=episode,
        agent="cartpole",
        device="bench-1",
        revision=FIRST.id,
        role=Serving.STABLE,
        purpose=Purpose.NORMAL,
        outcome=Outcome.FINISHED,
        started_at=NOW - 10,
        duration=2.0,
        steps=(Step(0, [0.1, 0.2], 1, 1.0), Step(1, [0.2, float("nan")], 0, 1.0, terminated=True, safe="late")),
        trace=trace,
    )
    return msgspec.structs.replace(whole, **changes)


TRACE = codec.encode(
    TraceGraph(
        nodes=(
            TraceNode("act", NodeKind.PARAMETER, value="def act(self, x):\n    return 0\n", path="act"),
            TraceNode("reset", NodeKind.MESSAGE, operator="environment_reset", value=[0.1, 0.2]),
            TraceNode(
                "action", NodeKind.MESSAGE, operator="act", parents=(0, 1), arguments=("__function", "x"), value="<script>alert(1)</script>"
            ),
            TraceNode("end", NodeKind.MESSAGE, operator="episode_end", parents=(2,), value=None),
        ),
        output=3,
    )
)


@dataclass
class Bench:
    """The commands of one agent, as plain as they can be: what is asked is remembered."""

    store: SqlStore
    state: AgentState = STATE
    current: Release | None = None
    asked: list[tuple[object, ...]] = field(default_factory=list)
    problem: str = ""
    broken: dict[str, str] = field(default_factory=dict)
    frozen: Hold | None = None

    def status(self) -> DaemonStatus:
        return DaemonStatus(
            version="0",
            pid=1,
            started_at=NOW - 3600,
            epoch=3,
            state_directory="/state",
            store_url="sqlite:///state/agentd.db",
            agents=(self.agent_status("cartpole"),),
            broken=self.broken,
            frozen=self.frozen,
        )

    def agent_status(self, agent: str) -> AgentStatus:
        if agent != "cartpole":
            raise NotFound("agent", agent)
        return AgentStatus(
            name="cartpole",
            mode=Mode.RELEASE,
            health="failed" if self.problem else "ok",
            problem=self.problem,
            state=self.state.under(self.frozen),
            release=self.current,
            devices={"bench-1": "ready"},
            isolation=2,
            episodes=57,
            recent=(0.7, 0.72, 0.75, 0.2, 0.74),
        )

    def logs(self, agent: str) -> tuple[str, ...]:
        self.agent_status(agent)
        return ("first", "second", "third")

    async def submit(self, agent: str, values: Mapping[str, Value], *, who: str, note: str = "") -> Release:
        self.agent_status(agent)
        unknown = {path: "there is no such parameter" for path in values if path not in {"act", "gains.kp"}}
        if unknown:
            raise DecodingError(unknown)
        self.asked.append(("submit", dict(values), who, note))
        self.current = make_release(f"r{len(self.asked)}", Phase.PROPOSED)
        return self.current

    async def _decide(self, verb: str, agent: str, release: str, who: str, reason: str) -> Release:
        self.agent_status(agent)
        if self.current is None or self.current.id != release:
            raise StaleRelease(f"release {release} is not the one in progress")
        if verb == "approve" and self.current.phase is not Phase.AWAITING_APPROVAL:
            raise IllegalTransition(release, self.current.phase, "approved")
        self.asked.append((verb, release, who, reason))
        return self.current

    async def approve(self, agent: str, release: str, *, who: str, reason: str = "") -> Release:
        return await self._decide("approve", agent, release, who, reason)

    async def promote(self, agent: str, release: str, *, who: str, reason: str = "", full: bool = False) -> Release:
        return await self._decide("promote full" if full else "promote", agent, release, who, reason)

    async def abort(self, agent: str, release: str, *, who: str, reason: str = "") -> Release:
        return await self._decide("abort", agent, release, who, reason)

    async def pause(self, agent: str, release: str, *, who: str, reason: str = "") -> Release:
        return await self._decide("pause", agent, release, who, reason)

    async def resume(self, agent: str, release: str, *, who: str, reason: str = "") -> Release:
        return await self._decide("resume", agent, release, who, reason)

    async def retry(self, agent: str, release: str, *, who: str, reason: str = "") -> Release:
        return await self._decide("retry", agent, release, who, reason)

    def _change(self, verb: str, agent: str, who: str, reason: str, **changes: object) -> AgentStatus:
        self.agent_status(agent)
        self.asked.append((verb, agent, who, reason))
        self.state = msgspec.structs.replace(self.state, **changes)
        return self.agent_status(agent)

    async def pause_agent(self, agent: str, *, who: str, reason: str = "") -> AgentStatus:
        return self._change("pause_agent", agent, who, reason, paused=True)

    async def resume_agent(self, agent: str, *, who: str, reason: str = "") -> AgentStatus:
        return self._change("resume_agent", agent, who, reason, paused=False)

    async def freeze(self, agent: str, *, who: str, reason: str = "") -> AgentStatus:
        return self._change("freeze", agent, who, reason, frozen=Hold(at=NOW, who=who, reason=reason))

    async def unfreeze(self, agent: str, *, who: str, reason: str = "") -> AgentStatus:
        return self._change("unfreeze", agent, who, reason, frozen=None)

    async def freeze_all(self, *, who: str, reason: str = "") -> DaemonStatus:
        self.asked.append(("freeze_all", who, reason))
        self.frozen = Hold(at=NOW, who=who, reason=reason, everywhere=True)
        return self.status()

    async def unfreeze_all(self, *, who: str, reason: str = "") -> DaemonStatus:
        self.asked.append(("unfreeze_all", who, reason))
        self.frozen = None
        return self.status()

    async def unquarantine(self, agent: str, *, who: str, reason: str = "") -> AgentStatus:
        return self._change("unquarantine", agent, who, reason, quarantine=None)

    async def rebase(self, agent: str, *, keep: Sequence[str], take: Sequence[str], who: str, reason: str = "") -> Release | None:
        known = {conflict.path for conflict in (await self.store.agent(agent)).conflicts}
        unknown = {path: "has no conflict" for path in (*keep, *take) if path not in known}
        if unknown:
            raise DecodingError(unknown)
        self.asked.append(("rebase", tuple(keep), tuple(take), who, reason))
        return make_release("r-rebase", Phase.PROPOSED) if keep else None

    async def set_desired(self, agent: str, revision: str, *, who: str, reason: str = "") -> AgentStatus:
        self.agent_status(agent)
        found = await self.store.revision(revision)
        self.asked.append(("set_desired", found.id, who, reason))
        self.state = msgspec.structs.replace(self.state, stable=found.id, desired=found.id)
        return self.agent_status(agent)

    async def forget(self, agent: str, *, device: str | None, episodes: Sequence[str], who: str, reason: str = "") -> Erased:
        return await self.store.erase(agent, device=device, episodes=episodes, who=who, reason=reason)

    async def act(self, agent: str, observation: Value, *, client: str = "", instruction: str = "") -> Acted:
        self.agent_status(agent)
        if isinstance(observation, str) and observation in PROBLEMS:
            raise PROBLEMS[observation]
        self.asked.append(("act", observation, client, instruction))
        return Acted(episode="e1", action=observation, revision=FIRST.id)

    async def give_feedback(self, episode: str, score: float, *, text: str, metrics: Mapping[str, float], who: str) -> FeedbackReceipt:
        found = await self.store.summary(episode)
        if not 0.0 <= score <= 1.0:
            raise DecodingError({"score": "is outside its range"})
        if text == "another":
            raise FeedbackRefused(f"episode {found.id} has its feedback already")
        self.asked.append(("feedback", found.id, score, text, dict(metrics), who))
        return FeedbackReceipt(episode=found.id, score=score, normalised=score, evidence=text != "late")

    async def propose(self, agent: str, *, who: str) -> None:
        self.agent_status(agent)
        self.asked.append(("propose", agent, who))

    async def reload(self) -> None:
        self.asked.append(("reload",))


@dataclass
class Api:
    """The application with all that it was given, and clients for its three roles and for nobody."""

    app: object
    bench: Bench
    store: SqlStore
    bus: EventBus
    metrics: Metrics
    settings: DaemonSettings
    clock: FixedClock
    tokens: Tokens
    operator: httpx.AsyncClient
    viewer: httpx.AsyncClient
    client: httpx.AsyncClient
    nobody: httpx.AsyncClient


def make_client(app: object, token: str | None, **headers: str) -> httpx.AsyncClient:
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8420", headers=headers)


async def fill(store: SqlStore) -> None:
    """One agent with a past."""
    events = [Event(kind="agent.added", at=NOW - 100, agent="cartpole", message="cartpole is new")]
    events += [Event(kind="release.evidence", at=NOW - 50 + number, agent="cartpole", message=f"pair {number}") for number in range(5)]
    await store.commit(
        SOURCE,
        FIRST,
        BETTER,
        STATE,
        Provenance(revision=FIRST.id, origin=Origin.SOURCE, at=NOW - 100, who="author"),
        Provenance(revision=BETTER.id, origin=Origin.OPERATOR, at=NOW - 60, parent=FIRST.id, proposal="p1", who="operator", note="a hunch"),
        Proposal(
            id="p1", agent="cartpole", parent=FIRST.id, values={"gains.kp": 2.5}, algorithm="operator", at=NOW - 60, reasoning="a hunch"
        ),
        make_release("r-old", Phase.PROMOTED, ended_at=NOW - 20, reason="better"),
        *events,
    )
    judged = Feedback(episode="e1", score=0.8, normalised=0.8, text="fell to the right <b>at step 37</b>")
    await store.add_episode(make_episode("e1", trace=TRACE), judged, regime=0)
    await store.add_episode(make_episode("e2"), None, regime=0)
    await store.flush()


@asynccontextmanager
async def open_api(folder: Path) -> AsyncIterator[Api]:
    settings = load_settings(None, state_directory=folder)
    clock = FixedClock(NOW)
    async with await SqlStore.open(settings.store_url, clock=clock) as store, EventBus() as bus:
        await fill(store)
        tokens = Tokens.load_or_create(folder)
        metrics = Metrics("0", clock)
        bench = Bench(store)
        app = create_app(bench, store=store, bus=bus, metrics=metrics, tokens=tokens, settings=settings, clock=clock)
        operator = make_client(app, read_token(folder))
        viewer = make_client(app, read_token(folder, Role.VIEWER))
        client = make_client(app, read_token(folder, Role.CLIENT))
        nobody = make_client(app, None)
        async with operator, viewer, client, nobody:
            yield Api(app, bench, store, bus, metrics, settings, clock, tokens, operator, viewer, client, nobody)
