"""One agent's life, killed after each of its commits: run by test_release_killed.py, in a process of its own.

    python killed_release.py FOLDER points STORY   dies once at each *kind* of commit, and goes on from there until the story is over
    python killed_release.py FOLDER every STORY    the same after each commit with which anything has come further

Everything is the daemon's own but runner and optimizer, which are played: they answer at once, so that a whole story takes a second. Each
life is forked from this process, which never has a loop or a thread. `witness.jsonl` has what was acknowledged before each death, and where
in the program it was committed. The stories are in killed_stories.py.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import structlog
from killed_stories import STORIES, Optimizer, Story, demand

import agentd.hosting
import agentd.hosting.agent as hosting
from agentd.clock import SystemClock
from agentd.errors import ReleaseError, RunnerError
from agentd.hosting.agent import HostedAgent
from agentd.hosting.keeper import Keeper
from agentd.hosting.services import open_services
from agentd.records import AgentState, Event, Pair, PairPlan, Phase, Release, make_revision
from agentd.release import machine
from agentd.settings import DaemonSettings
from agentd.store import SqlStore

ENDS = {Phase.PROMOTED, Phase.REJECTED, Phase.PRUNED, Phase.INCONCLUSIVE, Phase.ABORTED, Phase.ROLLED_BACK}
HOSTING = Path(agentd.hosting.__file__).parent
ALIKE = 4
"""From so many pairs on one more is like the one before. (Whoever dies at each for ever never hears of the device that answers second.)"""
COMMITTING: ContextVar[str] = ContextVar("COMMITTING", default="")
"""The place in the program that a commit comes from: it is written by a task of its own."""


def place(frame) -> str:
    """The first place up the stack in agentd.hosting, but for the keeper, which commits for everybody: "releases.Releases.finish:330"."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.parent == HOSTING and path.stem != "keeper":
            return f"{path.stem}.{frame.f_code.co_qualname}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


async def _commit(self, *records, commit=Keeper.commit, **changes):
    COMMITTING.set(place(sys._getframe()))
    return await commit(self, *records, **changes)


Keeper.commit = _commit


# --- the witness --------------------------------------------------------------------------------------------------


class Witness:
    """Writes down every commit as soon as it is acknowledged, and kills this process after the one that `deadly` names."""

    def __init__(self, path: Path, deadly) -> None:
        self._path = path
        self._deadly = deadly
        self.lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self._reached = self.lines[-1]["reached"] if self.lines else {"state": None, "active": {}}
        """How far the agent has come, and each release that has not ended."""

    def wrap(self, store: SqlStore) -> None:
        commit = store.commit

        async def witnessed(*records):
            where = place(sys._getframe()) or COMMITTING.get()
            events = await commit(*records)
            self._note(records, events, where)
            return events

        store.commit = witnessed

    def _note(self, records, events, where) -> None:
        line = {
            "point": point(records),
            "place": where,
            "events": [event.seq for event in events],
            "pairs": [],
            "plans": [],
            "releases": {},
        }
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
                    line["state"] += [record.regime, record.improving, record.attempts, record.source]
        further = {name: [phase, min(pairs, ALIKE), step] for name, (phase, pairs, step) in line["releases"].items()}
        active = {name: far for name, far in (self._reached["active"] | further).items() if far[0] not in ENDS}
        self._reached = {"state": line.get("state", self._reached["state"]), "active": active}
        line["reached"] = self._reached
        deadly = self._deadly(line, self.lines)
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
        found = [agent.stable, agent.release, agent.last_good, agent.anchor, agent.regime, agent.improving, agent.attempts, agent.source]
        demand(found == state, f"the state {agent} is not {state}")
        for name, known in releases.items():
            found = await store.release(name)
            demand([found.phase, found.pairs, found.step] == known, f"{found} is not {known}")
            ledger = await store.pairs(name)
            demand(machine.agrees(found, ledger), f"{found} does not agree with its ledger")
            pairs -= {pair.id for pair in ledger}
            plans -= {plan.id for plan in await store.plans(name)}
            await every_change_was_told(store, found)
        demand(not pairs | plans, f"evidence is missing: {pairs} {plans}")
        there = {event.seq for event in await store.events(limit=100_000)}
        demand(seqs <= there, f"events are missing: {seqs - there}")
        demand((await store.verify_chain()).intact, "the chain of events is broken")


async def every_change_was_told(store: SqlStore, release: Release) -> None:
    """Each change of a release is an event of the log: who, why, and the evidence by then."""
    events = [event for event in await store.events(limit=100_000) if event.data.get("release") == release.id]
    beside = {"release.step", "release.device_withdrawn", "release.waits", "agent.rebased"}
    told = [event for event in events if event.kind not in beside]
    changes = [(change.who, change.phase, change.reason) for change in release.history[1:]]
    demand([(event.who, event.data["phase"], event.data["reason"]) for event in told[1:]] == changes, f"{told} do not tell {changes}")
    demand(told[0].who == release.history[0].who, f"{told[0]} does not say who began {release.id}")
    demand(all({"pairs", "log_e", "difference"} <= event.data.keys() for event in told[1:]), f"evidence is missing in {told}")


async def what_was_kept_was_proposed_once(store: SqlStore, releases) -> None:
    """Each rebase that kept a learned value began the release that it names, and no other was begun for one."""
    named = [event.data["release"] for event in await store.events(limit=100_000) if event.kind == "agent.rebased" and event.data["kept"]]
    proposals = {release.id: await store.proposal(release.proposal) for release in releases if release.proposal}
    begun = [release for release, proposal in proposals.items() if proposal.reasoning.startswith("rebase")]
    demand(begun == named, f"{begun} were begun for what was kept, not {named}")


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


# --- lives --------------------------------------------------------------------------------------------------------


async def live(folder: Path, deadly, story: Story) -> None:
    """From wherever the store stands to the story's end."""
    settings = DaemonSettings(state_directory=folder, store_url=f"sqlite:///{folder}/agentd.db", agents=folder, seed=1)
    witness = Witness(folder / "witness.jsonl", deadly)
    async with open_services(settings, SystemClock()) as services:
        store = services.store
        await witness.check(store)
        witness.wrap(store)
        runners = []

        async def started(**_):
            runners.append(story.runner(store, folder))
            return runners[-1]

        async def dismiss(*_, **__):
            return None

        hosting.LocalRunner.adopt_or_start = started
        hosting.LocalRunner.dismiss = dismiss
        hosting.OptimizerProcess = Optimizer
        happened, last = Counter(), 0
        while not await story.is_over(store, happened):
            source = story.folder_holds(folder)
            agent = HostedAgent(story.spec, source, services)
            life = asyncio.create_task(agent.run())
            try:
                async with asyncio.timeout(60):
                    while story.folder_holds(folder) == source and not await story.is_over(store, happened):
                        await asyncio.sleep(0.005)
                        demand(not life.done(), "the agent's life has ended")
                        demand(agent.status().problem in {"", "starting"}, agent.status().problem)
                        for event in await store.events(after=last, limit=1000):
                            last = event.seq
                            happened[event.kind] += 1
                        with contextlib.suppress(RunnerError, ReleaseError):  # before it is up, or after it went on by itself
                            await story.operate(agent, store, happened, folder)
                    state = await store.agent("plant")
                    while not runners or runners[-1].routed != state.stable:  # noqa: ASYNC110 - what is played here tells nobody
                        await asyncio.sleep(0.002)
            finally:
                life.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await life
        await witness.check(store)
        state = await store.agent("plant")
        demand(state.stable == make_revision("plant", story.source.digest, {}).id, "the author's own values are not stable")
        demand(state.release is None, "a release is still in progress")
        ended = await store.releases("plant", 100)
        demand(all(release.phase in ENDS for release in ended), [release.phase for release in ended])
        await what_was_kept_was_proposed_once(store, ended)


def fork(folder: Path, deadly, story: Story) -> bool:
    """One life. True if it came to the story's end, False if it was killed."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
            asyncio.run(live(folder, deadly, story))
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


def tell(folder: Path, name: str, key: Callable[[dict], Any]) -> None:
    """The story, with a death after each commit of which the key is new."""
    died, known = [], set()

    def deadly(line, lines):
        return key(line) not in known | {key(other) for other in lines}

    while not fork(folder, deadly, STORIES[name]):
        died.append(json.loads((folder / "witness.jsonl").read_text().splitlines()[-1]))
        known.add(key(died[-1]))
    places = sorted({line["place"] for line in died})
    print(json.dumps({"lives": len(died) + 1, "places": places}))  # noqa: T201 - the test reads it


def far(line: dict) -> str:
    """How far the agent and what is active have come: without the names of releases, for who is killed begins new ones."""
    state = line["reached"]["state"]
    return json.dumps([state and [state[0], *state[2:]], sorted(line["reached"]["active"].values())])


KEYS = {
    "points": lambda line: (line["place"], line["point"]),
    "every": lambda line: (line["place"], line["point"], far(line)),
}


if __name__ == "__main__":
    tell(Path(sys.argv[1]), sys.argv[3], KEYS[sys.argv[2]])
