"""One agent's life, killed after each of its commits: run by test_release_killed.py, in a process of its own.

    python killed_release.py FOLDER points     dies once at each *kind* of commit, and goes on from there until the story is over
    python killed_release.py FOLDER every      the story again and again, killed after its 1st, 2nd, 3rd... commit until one life is whole

Everything is the daemon's own but the runner, which is played here: it answers at once, so that a whole story takes a second. Each life
is forked from this process, which never has a loop or a thread. `witness.jsonl` has what was acknowledged before each death.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import msgspec
import structlog

import agentd.hosting.agent as hosting
from agentd.clock import SystemClock
from agentd.errors import ReleaseError, RunnerError
from agentd.hosting.agent import HostedAgent
from agentd.hosting.services import open_services
from agentd.records import (
    AgentState,
    Episode,
    Event,
    Kind,
    Outcome,
    Pair,
    PairPlan,
    Parameter,
    Phase,
    Proposal,
    Purpose,
    Release,
    Role,
    Source,
    Step,
)
from agentd.release import machine
from agentd.runners.local import DevicesChanged, DeviceState, Finished
from agentd.runners.messages import ScreenReport
from agentd.settings import DaemonSettings
from agentd.spec import AgentSpec
from agentd.store import SqlStore

BURN_IN = 6
SPEC = AgentSpec.model_validate(
    {
        "schema": 1,
        "agent": {"name": "plant", "entrypoint": "controller:Plant", "mode": "advise"},
        "environment": {"kind": "gymnasium", "id": "CartPole-v1"},
        "optimizer": {"trigger": "manual"},
        "watch": {"burn_in": BURN_IN, "good_after": 20, "alarm_every": 1e6},
        "release": {"ramp": [0.5, 1.0], "step_pairs": 1, "selection_pairs": 1},
    }
)
SOURCE = Source(digest="d" * 64, files={"controller.py": ""}, entrypoint="controller:Plant")
DEVICES = tuple(DeviceState(id=name, status="ready", seedable=True) for name in ("left", "right"))
ENDS = {Phase.PROMOTED, Phase.REJECTED, Phase.PRUNED, Phase.INCONCLUSIVE, Phase.ABORTED, Phase.ROLLED_BACK}


class BrokenError(Exception):
    """What must not be. The story is then over with exit code 1."""


# --- the witness --------------------------------------------------------------------------------------------------


class Witness:
    """Writes down every commit as soon as it is acknowledged, and kills this process after the one that `deadly` names."""

    def __init__(self, path: Path, deadly) -> None:
        self._path = path
        self._deadly = deadly
        self.lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wrap(self, store: SqlStore) -> None:
        commit = store.commit

        async def witnessed(*records):
            events = await commit(*records)
            self._note(records, events)
            return events

        store.commit = witnessed

    def _note(self, records, events) -> None:
        line = {"point": point(records), "events": [event.seq for event in events], "pairs": [], "plans": [], "releases": {}}
        for record in records:
            match record:
                case Pair(id=name):
                    line["pairs"].append(name)
                case PairPlan(id=name):
                    line["plans"].append(name)
                case Release(id=name):
                    line["releases"][name] = [record.phase, record.pairs, record.step]
                case AgentState():
                    line["state"] = [record.stable, record.release, record.last_good, record.anchor]
        deadly = self._deadly(line["point"], self.lines)
        self.lines.append(line)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    async def check(self, store: SqlStore) -> None:
        """Nothing acknowledged is missing or older than it was."""
        state, releases, pairs, plans, seqs = None, {}, set(), set(), set()
        for line in self.lines:
            state = line.get("state", state)
            releases |= line["releases"]
            pairs |= {*line["pairs"]}
            plans |= {*line["plans"]}
            seqs |= {*line["events"]}
        if state is None:
            return
        agent = await store.agent("plant")
        demand([agent.stable, agent.release, agent.last_good, agent.anchor] == state, f"the state {agent} is not {state}")
        for name, known in releases.items():
            found = await store.release(name)
            demand([found.phase, found.pairs, found.step] == known, f"{found} is not {known}")
            ledger = await store.pairs(name)
            demand(machine.agrees(found, ledger), f"{found} does not agree with its ledger")
            pairs -= {pair.id for pair in ledger}
            plans -= {plan.id for plan in await store.plans(name)}
        demand(not pairs | plans, f"evidence is missing: {pairs} {plans}")
        there = {event.seq for event in await store.events(limit=100_000)}
        demand(seqs <= there, f"events are missing: {seqs - there}")
        demand((await store.verify_chain()).intact, "the chain of events is broken")


def point(records) -> str:
    """Where in the product a commit was made, as far as its records tell."""
    names = []
    for record in records:
        match record:
            case Event(kind=kind):
                names.append(kind)
            case Release(phase=phase, kind=kind):
                names.append(f"{kind}: {phase}")
            case _:
                names.append(type(record).__name__)
    return ", ".join(sorted(names))


def demand(truth, message: str) -> None:
    if not truth:
        raise BrokenError(message)


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

    def __init__(self, store: SqlStore) -> None:
        self.session = "played"
        self.routed = None
        self._serving = asyncio.Event()
        self._store = store
        self._ready = set()
        self._told = deque([DevicesChanged(devices=DEVICES)])
        self._count = 0
        self._served = 0
        """Episodes of the candidate as the stable revision: it is as good as in its canary for no longer than its burn-in."""

    async def load(self, source, revision):
        self._ready.add(revision.id)
        return (Parameter(path="gain", kind=Kind.NUMBER, default=0.5),)

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
            if release.proposal and not release.pairs and not release.lost_pairs:  # the plant is out of reach at first
                episode = msgspec.structs.replace(episode, outcome=Outcome.LOST, steps=())
            if release.proposal and release.step and role is Role.CANDIDATE and plan.device == min(release.fleet):
                episode = msgspec.structs.replace(episode, outcome=Outcome.ABORTED, reason="invalid", error="too much")
            self._told.append(Finished(episode=episode))

    async def _episode(self, revision, role, device, purpose, pair=None):
        self._count += 1
        name = f"{os.getpid()}-{self._count}"
        gain = (await self._store.revision(revision)).values.get("gain", 0.5)
        state = await self._store.agent("plant")
        self._served += gain != 0.5 and purpose is Purpose.NORMAL
        worn = gain != 0.5 and state.stable == revision and (state.watch.bound is not None or self._served > BURN_IN)
        reward = 0.1 if worn else gain
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


# --- the story ----------------------------------------------------------------------------------------------------


async def live(folder: Path, deadly) -> None:
    """From wherever the store stands to the story's end.

    A revision becomes good. One release is aborted; the next is approved, loses a pair, is paused and resumed, loses a device to a
    guardrail, is promoted, wears out before it was good, and is rolled back.
    """
    settings = DaemonSettings(state_directory=folder, store_url=f"sqlite:///{folder}/agentd.db", agents=folder, seed=1)
    witness = Witness(folder / "witness.jsonl", deadly)
    async with open_services(settings, SystemClock()) as services:
        store = services.store
        await witness.check(store)
        witness.wrap(store)
        happened, last = set(), 0

        runners = []

        async def started(**_):
            runners.append(Runner(store))
            return runners[-1]

        hosting.LocalRunner.adopt_or_start = started
        hosting.LocalRunner.dismiss = Runner.nothing
        agent = HostedAgent(SPEC, SOURCE, services)
        life = asyncio.create_task(agent.run())
        try:
            async with asyncio.timeout(60):
                while "release.rolled_back" not in happened:
                    await asyncio.sleep(0.002)
                    demand(not life.done(), "the agent's life has ended")
                    demand(agent.status().problem in {"", "starting"}, agent.status().problem)
                    for event in await store.events(after=last, limit=1000):
                        last = event.seq
                        happened.add(event.kind)
                    with contextlib.suppress(RunnerError, ReleaseError):  # before it is up, or after it went on by itself
                        await operate(agent, store, happened)
                state = await store.agent("plant")
                while not runners or runners[-1].routed != state.stable:  # noqa: ASYNC110 - what is played here tells nobody
                    await asyncio.sleep(0.002)
        finally:
            life.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await life
        await witness.check(store)
        state = await store.agent("plant")
        first = (await store.events(limit=1_000, kinds=["agent.added"]))[0].data["revision"]
        demand(state.stable == first, "the last good revision is not stable again")
        demand(state.release is None, "a release is still in progress")
        ended = await store.releases("plant", 100)
        demand(all(release.phase in ENDS for release in ended), [release.phase for release in ended])


async def operate(agent, store, happened) -> None:
    """What people do in this story."""
    current = agent.releases.current
    if current is None:
        if "watch.good" in happened and "release.promoted" not in happened and not await store.releases("plant", active=True):
            gain = 1.0 if "release.aborted" in happened else 0.7
            name = f"{os.getpid()}-{gain}"
            await agent.releases.propose(
                Proposal(id=name, agent="plant", parent="", values={"gain": gain}, algorithm="operator", at=1.0, who="ann")
            )
        return
    history = {change.phase for change in current.history}
    if current.phase is Phase.AWAITING_APPROVAL and "release.aborted" not in happened:
        await agent.releases.abort(current.id, who="ann")
    elif current.phase is Phase.AWAITING_APPROVAL:
        await agent.releases.approve(current.id, who="ann")
    elif current.phase is Phase.CONFIRMATION and current.proposal and Phase.PAUSED not in history:
        await agent.releases.pause(current.id, who="ann")
    elif current.phase is Phase.PAUSED:
        await agent.releases.resume(current.id, who="ann")


# --- lives --------------------------------------------------------------------------------------------------------


def fork(folder: Path, deadly) -> bool:
    """One life. True if it came to the story's end, False if it was killed."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
            asyncio.run(live(folder, deadly))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
            import traceback

            traceback.print_exception(error)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if status != 0:
        sys.exit(f"a life ended with status {status}")
    return True


def points(folder: Path) -> None:
    killed = set()

    def deadly(name, lines):
        return name not in killed and name not in {line["point"] for line in lines}

    lives = 1
    while not fork(folder, deadly):
        killed.add(json.loads((folder / "witness.jsonl").read_text().splitlines()[-1])["point"])
        lives += 1
    print(json.dumps({"lives": lives, "points": sorted(killed)}))  # noqa: T201 - the test reads it


def every(folder: Path) -> None:
    number, finished = 0, False
    while not finished:
        number += 1
        shutil.rmtree(folder / "life", ignore_errors=True)
        (folder / "life").mkdir()
        finished = fork(folder / "life", lambda name, lines, number=number: len(lines) + 1 == number)
        if not finished and not fork(folder / "life", lambda name, lines: False):
            sys.exit("a life that nothing kills was killed")
    print(json.dumps({"lives": number}))  # noqa: T201 - the test reads it


if __name__ == "__main__":
    {"points": points, "every": every}[sys.argv[2]](Path(sys.argv[1]))
