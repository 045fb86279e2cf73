"""What killed_release.py tells of one agent: the plant, the people, the optimizer. The store alone says how far a story has come."""

import asyncio
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from agentd.records import (
    Episode,
    Kind,
    Outcome,
    Parameter,
    Phase,
    Proposal,
    Purpose,
    Role,
    Source,
    Step,
)
from agentd.runners.local import DevicesChanged, DeviceState, Finished
from agentd.runners.messages import ScreenReport
from agentd.spec import AgentSpec
from agentd.store import SqlStore

BURN_IN = 6
RAMP = {"ramp": [0.5, 1.0], "step_pairs": 1, "selection_pairs": 1}
SOURCE = Source(digest="d" * 64, files={"controller.py": ""}, entrypoint="controller:Plant")
CHANGED = Source(digest="e" * 64, files={"controller.py": "#"}, entrypoint="controller:Plant")
DEFAULTS = {SOURCE.digest: 0.5, CHANGED.digest: 0.55}
DEVICES = tuple(DeviceState(id=name, status="ready", seedable=True) for name in ("left", "right"))


class BrokenError(Exception):
    """What must not be. The story is then over with exit code 1."""


def demand(truth, message: str) -> None:
    if not truth:
        raise BrokenError(message)


def spec_of(**sections) -> AgentSpec:
    return AgentSpec.model_validate(
        {
            "schema": 1,
            "agent": {"name": "plant", "entrypoint": "controller:Plant", "mode": "advise"},
            "environment": {"kind": "gymnasium", "id": "CartPole-v1"},
            "watch": {"burn_in": BURN_IN, "good_after": 20, "alarm_every": 1e6},
            "release": RAMP,
        }
        | sections
    )


async def submit(agent, gain: float, **further: float) -> None:
    """An operator's proposal, unless a release is in progress or waits."""
    if agent.releases.idle:
        await agent.verbs.submit({"gain": gain, **further}, who="ann")


# --- the runner, played -------------------------------------------------------------------------------------------


class Runner:
    """What LocalRunner is to the daemon: two devices whose scores follow from the revision that drives them."""

    adopted = False
    replaced = ""
    paused = False
    spooled = 0
    loaded = ()
    stable = None
    pid = 1
    devices = DEVICES
    isolation = SimpleNamespace(level=2)

    def __init__(self, store: SqlStore, folder: Path) -> None:
        self.session = "played"
        self.folder = folder
        self.routed = None
        self._serving = asyncio.Event()
        self._store = store
        self._ready = set()
        self._told = deque([DevicesChanged(devices=DEVICES)])
        self._count = 0

    async def load(self, source, revision):
        self._ready.add(revision.id)
        default = DEFAULTS[source.digest]
        return tuple(Parameter(path=path, kind=Kind.NUMBER, default=default) for path in ("gain", "trim"))

    async def screen(self, revision, episodes):
        demand(revision in self._ready, "a revision is screened that was not loaded")
        return ScreenReport(ticks=1, differing=1)

    async def route(self, revision):
        demand(revision in self._ready, "a revision is routed that was not loaded")
        demand((await self._store.agent("plant")).stable == revision, f"{revision} was routed before it was committed as stable")
        self.routed = revision
        self._serving.set()

    async def pair(self, plan, lease=10.0):
        demand(self.routed is not None, "a pair came before a route")
        demand(plan in await self._store.plans(plan.release), "a pair was sent before it was committed")
        release = await self._store.release(plan.release)
        demand(plan.device in release.fleet, "a pair was sent to a device that is not exposed")
        for role in plan.order:
            revision = plan.candidate if role is Role.CANDIDATE else plan.reference
            demand(revision in self._ready, "a pair names a revision that was not loaded")
            episode = await self._episode(revision, role, plan.device, Purpose.PAIR, plan.id)
            self._told.append(Finished(episode=self.befallen(episode, release)))

    async def _episode(self, revision, role, device, purpose, pair=None):
        self._count += 1
        name = f"{os.getpid()}-{self._count}"
        known = await self._store.revision(revision)
        gain = known.values.get("gain", DEFAULTS[known.source])
        reward = await self.reward(gain, revision, purpose)
        return Episode(
            id=name,
            agent="plant",
            device=device,
            revision=revision,
            role=role,
            purpose=purpose,
            outcome=Outcome.FINISHED,
            started_at=1.0,
            duration=0.1,
            steps=(Step(0, 0.0, gain, reward, terminated=True),),
            pair=pair,
        )

    async def reward(self, gain, revision, purpose):
        raise NotImplementedError

    def befallen(self, episode, release):
        """What happens to an episode of a pair."""
        return episode

    async def next(self):
        if self._told:
            return self._told.popleft()
        await asyncio.sleep(0.005)
        await self._serving.wait()
        return Finished(episode=await self._episode(self.routed, Role.STABLE, "left", Purpose.NORMAL))

    async def cancel_pairs(self, device=None):
        return ()

    async def nothing(self, *arguments, **keywords):
        return None

    renew = retire = pause = resume = acknowledge = drain = abandon = aclose = nothing


# --- a release ----------------------------------------------------------------------------------------------------


class Wearing(Runner):
    """The first pair is lost, a device of the second step fails, and what is promoted wears out before its burn-in is over."""

    served = 0

    async def reward(self, gain, revision, purpose):
        state = await self._store.agent("plant")
        self.served += gain != 0.5 and purpose is Purpose.NORMAL
        worn = gain != 0.5 and state.stable == revision and (state.watch.bound is not None or self.served > BURN_IN)
        return 0.1 if worn else gain

    def befallen(self, episode, release):
        if release.proposal and not release.pairs and not release.lost_pairs:
            return msgspec.structs.replace(episode, outcome=Outcome.LOST, steps=())
        if release.proposal and release.step and episode.role is Role.CANDIDATE and episode.device == min(release.fleet):
            return msgspec.structs.replace(episode, outcome=Outcome.ABORTED, reason="invalid", error="too much")
        return episode


async def conduct(agent, store, happened, folder) -> None:
    """One release is aborted; the next is approved, paused, resumed and promoted."""
    current = agent.releases.current
    if current is None:
        if happened["watch.good"] and not happened["release.promoted"]:
            await submit(agent, 1.0 if happened["release.aborted"] else 0.7)
        return
    history = {change.phase for change in current.history}
    if current.phase is Phase.AWAITING_APPROVAL and not happened["release.aborted"]:
        await agent.verbs.abort(current.id, who="ann")
    elif current.phase is Phase.AWAITING_APPROVAL:
        await agent.verbs.approve(current.id, who="ann")
    elif current.phase is Phase.CONFIRMATION and current.proposal and Phase.PAUSED not in history:
        await agent.verbs.pause(current.id, who="ann")
    elif current.phase is Phase.PAUSED:
        await agent.verbs.resume(current.id, who="ann")


# --- a changing world ---------------------------------------------------------------------------------------------


class Changing(Runner):
    """The world turns round while a file says so: then the other sign is right. Of 0.7 nothing is left once another release waits."""

    async def reward(self, gain, revision, purpose):
        if (self.folder / "turned").exists():
            gain = -gain
        active = await self._store.releases("plant", active=True) if gain == 0.7 else ()
        waiting = any(release.phase is Phase.AWAITING_APPROVAL for release in active)
        return {0.1: 0.0, 0.5: 0.6, 0.55: 1.0, 0.6: 0.3, 0.7: 0.1 if waiting else 0.6, 0.9: 1.0, 0.95: 1.0}.get(gain, 0.05)


class Optimizer:
    """Its first attempt in a world is bad, the next ones are good."""

    async def propose(self, context, problems, memory, seed, **_):
        demand(problems, "nothing to learn from")
        tried = any(entry.regime == context.regime and entry.algorithm == "played" for entry in memory)
        gain = -0.5 if tried or context.regime != 1 else -0.1
        return Proposal(
            id=f"{os.getpid()}{gain}{seed}", agent="plant", parent=context.stable, values={"gain": gain}, algorithm="played", at=1.0
        )


async def operate(agent, store, happened, folder) -> None:  # noqa: C901, PLR0912 - a story, told in its order
    current = agent.releases.current
    state = await store.agent("plant")
    awaits = current is not None and current.phase is Phase.AWAITING_APPROVAL
    if not happened["watch.good"]:
        return
    for kind, act in HOLDS.items():
        if not happened[kind]:
            await getattr(agent.holds, act)(who="ann")
            return
    if not happened["release.promoted"]:  # one is forced, and turns bad once another one waits for a person
        await (agent.verbs.promote(current.id, who="ann", full=True) if awaits else submit(agent, 0.7))
    elif not happened["agent.quarantined"]:
        await submit(agent, 0.6)
    elif not happened["agent.unquarantined"]:
        await agent.holds.lift(who="ann")
    elif not happened[
        "release.aborted"
    ]:  # of two that wait the one that has not begun is aborted, the other one is pruned, and tried again
        waiting = [one for one in await store.releases("plant", active=True) if current is not None and one.id != current.id]
        if waiting:
            await agent.verbs.abort(waiting[0].id, who="ann")
        elif awaits:
            await agent.verbs.submit({"gain": 0.65}, who="ann")
    elif not happened["release.pruned"]:
        await (agent.verbs.approve(current.id, who="ann") if awaits else submit(agent, 0.6))
    elif happened["revision.desired"] < 2:
        releases = await store.releases("plant", 100)
        forced = next(release for release in releases if release.forced)
        retried = next(release for release in releases if release.phase is Phase.PRUNED)
        if happened["revision.desired"]:
            await agent.verbs.set_desired(forced.reference, who="ann")
        elif awaits:
            await agent.verbs.set_desired(forced.candidate, who="ann")
        elif agent.releases.idle:
            await agent.verbs.retry(retried.id, who="ann")
    elif state.regime < 1:
        if state.watch.bound is not None:
            (folder / "turned").touch()
    elif happened["watch.good"] < 2:
        if awaits:
            await agent.verbs.approve(current.id, who="ann")
    elif not happened["optimizer.stopped"] or state.regime < 2 or state.improving:
        (folder / "turned").unlink(missing_ok=True)
        if awaits:
            await agent.verbs.approve(current.id, who="ann")
    elif not any(one.phase is Phase.PROMOTED and not one.forced and one.regime == 2 for one in await better(store, 0.9)):
        await (agent.verbs.approve(current.id, who="ann") if awaits else submit(agent, 0.9, trim=0.9))
    elif not happened["agent.source_changed"]:
        if current is not None and current.phase in {Phase.SELECTION, Phase.CONFIRMATION}:
            (folder / "changed").touch()
        else:
            await (agent.verbs.approve(current.id, who="ann") if awaits else submit(agent, 0.95))
    elif len(state.conflicts) > 1:
        await agent.verbs.rebase(keep=["gain"], take=[], who="ann")
    elif state.conflicts:
        await agent.verbs.rebase(keep=[], take=["trim"], who="ann")
    elif awaits:
        await agent.verbs.abort(current.id, who="ann")


HOLDS = {"agent.paused": "pause", "agent.resumed": "resume", "agent.frozen": "freeze", "agent.unfrozen": "unfreeze"}


async def better(store: SqlStore, gain: float):
    """The releases of this gain."""
    releases = await store.releases("plant", 100)
    return [release for release in releases if (await store.revision(release.candidate)).values.get("gain") == gain]


# --- stories ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """`operate` is what people do next. `over` are events: once each has happened, and no release is active, the story is over."""

    spec: AgentSpec
    runner: type[Runner]
    operate: Any
    over: str
    source: Source
    """What the folder holds in the end, and what is then stable."""

    def folder_holds(self, folder: Path) -> Source:
        return CHANGED if (folder / "changed").exists() else SOURCE

    async def is_over(self, store: SqlStore, happened) -> bool:
        return bool(happened[self.over]) and not await store.releases("plant", active=True)


STORIES = {
    "release": Story(spec_of(optimizer={"trigger": "manual"}), Wearing, conduct, "release.rolled_back", SOURCE),
    "world": Story(
        spec_of(optimizer={"trigger": "alarm"}, guardrails={"max_rollbacks": "0/day"}, release=RAMP | {"prune": {"after_pairs": 2}}),
        Changing,
        operate,
        "agent.rebased",
        CHANGED,
    ),
}
