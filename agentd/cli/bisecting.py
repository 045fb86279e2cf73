"""`agentd bisect`: which revision introduced a failure. What the failed episode saw is shown, in the sandbox, to the revisions before it.

Revisions are taken in the order of their provenance: the failing one, the one that it was made from, and so on. What counts as failing is
decided on the failing revision's own replay: it raises (or its process ends), it answers with an action outside of the envelope, or,
where it does neither, it acts as it does. Then an earlier revision fails too if in more ticks it acts like the failing one than like the
last good one.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from agentd.api.views import plain
from agentd.cli import show
from agentd.cli.context import UsageMistake, Where
from agentd.clock import SystemClock
from agentd.environments import make_environment
from agentd.errors import LoadError, NotFound, SandboxError, SpecError
from agentd.records import Episode, Outcome, Provenance, Revision, Source
from agentd.runners.bisection import ACTS, INVALID, RAISES, Bisection, Question, Tested, fault_of, invalid_of
from agentd.runners.envelope import Envelope
from agentd.runners.rerun import Rerun, rerun, was_asked
from agentd.sandbox import Limits, PolicyWorker, Zygote
from agentd.spec import AgentSpec, EnvironmentKind, SandboxSection, load_agent, space_record
from agentd.store import SqlStore
from agentd.trace.replay import compare

MAX_REVISIONS = 1000

FORKED = "A replay shows what each revision would have done on what this episode saw. Other actions would have met other observations:"
ALWAYS_HIDDEN = (
    f"{FORKED} whether the plant would have come through is not shown.",
    "Times are not replayed, nor what a policy carried over from earlier episodes.",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer. `introduced` are the revisions that may have introduced the failure: one, unless some could not be replayed.

    None at all: it can't be told, and `reason` says why. `hidden` is what the replay doesn't show.
    """

    episode: Episode
    failure: str
    hidden: tuple[str, ...]
    introduced: tuple[str, ...] = ()
    good: str | None = None
    how: str = ""
    reason: str = ""
    tested: tuple[Tested, ...] = ()
    made: Mapping[str, Sequence[Provenance]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For other programs."""
        return {
            "episode": self.episode.id,
            "agent": self.episode.agent,
            "failing": self.episode.revision,
            "failure": self.failure,
            "introduced": list(self.introduced),
            "good": self.good,
            "how": self.how,
            "reason": self.reason,
            "tested": [{"revision": one.revision, "fails": one.fails, "words": one.words} for one in self.tested],
            "provenance": {revision: plain(list(rows)) for revision, rows in self.made.items()},
            "not_shown": list(self.hidden),
        }


def find_spec(where: Where, agent: str, folder: Path | None) -> AgentSpec | None:
    """The agent's agent.toml, for its sandbox and action space: in `folder`, or in the agents directory. None where it isn't there."""
    if folder is not None:
        spec, _ = load_agent(folder)
        if spec.agent.name != agent:
            raise UsageMistake(f"{folder} is of the agent {spec.agent.name}, not of {agent}")
        return spec
    for file in sorted(where.settings().agents.glob("*/agent.toml")):
        try:
            spec, _ = load_agent(file.parent)
        except SpecError:
            continue  # another agent's mistakes; `agentd check` tells them
        if spec.agent.name == agent:
            return spec
    return None


async def bisect(store: SqlStore, key: str, *, good: str | None, spec: Callable[[str], AgentSpec | None]) -> Finding:
    """Which revision introduced what went wrong in the episode `key` (an id, or its beginning).

    `good` is a revision that does it right, where the store's word for it (the last good one) is not wanted; `spec` finds an agent's.

    Raises:
        NotFound: there is no such episode or revision.
        UsageMistake: `good` is not one that the failing revision comes from.
        IsolationError, SandboxError: this machine can't run the programs.
    """
    episode = await store.episode(key)
    found = spec(episode.agent)
    finding = Finding(episode, _last_line(episode.error) or episode.reason or str(episode.outcome), ALWAYS_HIDDEN)
    if found is None:
        finding = _hiding(finding, f"The folder of {episode.agent} was not found (--folder): action limits were not checked.")
    refusal = _refusal(episode)
    if refusal:
        return replace(finding, reason=refusal)
    line, whole = await _lineage(store, episode)
    if not whole:
        finding = _hiding(finding, "Older revisions are no longer kept.")
    section = found.sandbox if found is not None else SandboxSection()
    limits = Limits.from_spec(section)
    if any(step.exchanges for step in episode.steps):
        limits = msgspec.structs.replace(limits, model_calls=max(len(step.exchanges) for step in episode.steps) + 1)
    envelope = None if found is None else await envelope_of(found)
    async with await Zygote.start(imports=limits.allowed_imports, min_isolation=section.min_isolation, scope=section.scope) as zygote:
        return await _search(store, Replays(store, zygote, limits, episode, envelope), line, good, finding)


def _hiding(finding: Finding, *lines: str) -> Finding:
    return replace(finding, hidden=(*finding.hidden, *lines))


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _refusal(episode: Episode) -> str:
    """Why a replay can't say anything about this episode; empty where it can."""
    if not episode.steps:
        return "the episode has no recorded steps: the store keeps them for a limited time, or it ended before the first"
    if not any(was_asked(step, episode) for step in episode.steps):
        return "in no tick of the episode was the policy asked, or what it saw was not recorded whole"
    if episode.outcome is Outcome.LOST:
        return f"the plant was lost ({episode.reason}): that is no revision's doing that a replay could show"
    if episode.reason == "deadline":
        return "its answers came too late: a replay doesn't show times"
    return ""


async def envelope_of(spec: AgentSpec) -> Envelope:
    """The action limits. Only a Gymnasium environment has to be made to know its space."""
    if spec.environment.kind is not EnvironmentKind.GYMNASIUM:
        return Envelope.from_spec(spec, space_record(spec.environment.action_space))
    made = make_environment(spec, session="bisect", broker=None, clock=SystemClock(), generator=random.Random(0))  # noqa: S311 - no secret
    async with AsyncExitStack() as stack:
        stack.push_async_callback(made.aclose)
        return Envelope.from_spec(spec, made.action_space)


async def _lineage(store: SqlStore, episode: Episode) -> tuple[list[Revision], bool]:
    """The failing revision and those that it came from, oldest first; and whether that is all of them.

    Equal values may be proposed twice, so that a revision may have several parents: the one that counts is the last before what followed.
    """
    line = [await store.revision(episode.revision)]
    before, seen = episode.started_at, {episode.revision}
    while len(line) < MAX_REVISIONS:
        rows = [row for row in await store.provenance(line[-1].id) if row.at <= before]
        row = next((row for row in reversed(rows) if row.parent is not None and row.parent not in seen), None)
        if row is None or row.parent is None:
            return line[::-1], True
        try:
            line.append(await store.revision(row.parent))
        except NotFound:
            break
        before = row.at
        seen.add(row.parent)
    return line[::-1], False


class Replays:
    """Replays of one episode, each revision's once."""

    def __init__(self, store: SqlStore, zygote: Zygote, limits: Limits, episode: Episode, envelope: Envelope | None) -> None:
        self.episode = episode
        self.envelope = envelope
        self._store = store
        self._zygote = zygote
        self._limits = limits
        self._done: dict[str, Rerun | str] = {}

    async def of(self, revision: Revision) -> Rerun | str:
        """The replay, or why there is none: the program doesn't load. Raises SandboxError where nothing runs any more."""
        if revision.id not in self._done:
            self._done[revision.id] = await self._run(await self._store.source(revision.source), revision)
        return self._done[revision.id]

    async def _run(self, source: Source, revision: Revision) -> Rerun | str:
        check = None if self.envelope is None else self.envelope.check
        try:
            starting = PolicyWorker.start(self._zygote, source=source, revision=revision, limits=self._limits, on_log=_unheard)
            async with await starting as worker:
                return await rerun(worker, self.episode, check)
        except LoadError as error:
            return f"it does not load: {_last_line(str(error))[:200]}"
        except SandboxError as error:
            if not self._zygote.alive:
                raise
            return f"{type(error).__name__}: {_last_line(str(error))[:200]}"


def _unheard(line: str) -> None:
    del line  # what a program prints while it is replayed is nobody's news


async def _search(store: SqlStore, replays: Replays, line: list[Revision], good: str | None, finding: Finding) -> Finding:
    own = await replays.of(line[-1])
    if isinstance(own, str):
        return replace(finding, reason=f"the failing revision can't be replayed: {own}")
    if own.unrecorded:
        return replace(finding, reason=f"the failing revision can't be replayed: {own.unrecorded}")
    finding = _hiding(finding, *_departures(replays.episode, own))
    unlike = _not_reproduced(replays.episode, own, checked=replays.envelope is not None)
    if unlike:
        return replace(finding, reason=unlike)
    kind = RAISES if own.fault else INVALID if own.invalid else ACTS
    finding = replace(finding, failure=fault_of(own) or invalid_of(own) or f"what it did ({finding.failure})")
    line, reference = await _from_good(store, line, good, needed=kind == ACTS)
    finding = replace(finding, good=reference.id if reference else None)
    question = Question(kind)
    if kind == ACTS:
        begin = await replays.of(reference) if reference is not None else "there is no earlier one"
        if isinstance(begin, str):
            return replace(finding, reason=f"no good revision that it could be compared with: {begin}")
        question = Question(kind, own.actions, begin.actions)
    return await _conclude(store, Bisection(line, question, replays.of), finding)


async def _conclude(store: SqlStore, bisection: Bisection, finding: Finding) -> Finding:
    line = bisection.line
    if await bisection.fails(len(line) - 1) is not True:
        reason = "on what it saw, the failing revision acts like the good one: what changed is the plant or the world, not the revision"
        return replace(finding, reason=reason, tested=bisection.tested)
    ends = await bisection.search()
    suspects = line[0 if ends.good is None else ends.good + 1 : ends.failing + 1]
    if ends.good is None:
        reason = f"none of the {len(line)} revisions that are known does it right: it has been so since the oldest"
    elif len(suspects) > 1:
        reason = "those between the last good and the first failing one could not be replayed"
    else:
        reason = f"the one that it was made from, {line[ends.good].id[:10]}, does not fail"
    return replace(
        finding,
        introduced=tuple(one.id for one in suspects),
        good=None if ends.good is None else line[ends.good].id,
        how=ends.how,
        reason=reason,
        tested=bisection.tested,
        made={one.id: await store.provenance(one.id) for one in suspects},
    )


async def _from_good(store: SqlStore, line: list[Revision], good: str | None, *, needed: bool) -> tuple[list[Revision], Revision | None]:
    """The line from a good revision on, and that revision. Where nobody names one and none is needed, the whole line."""
    places = {revision.id: index for index, revision in enumerate(line[:-1])}
    if good is not None:
        wanted = (await store.revision(good)).id
        if wanted not in places:
            raise UsageMistake(f"revision {line[-1].id[:10]} does not come from {wanted[:10]}: --good should name one that it comes from")
        return line[places[wanted] :], line[places[wanted]]
    if not needed or not places:
        return line, None
    state = await store.agent(line[-1].agent)
    known = [places[name] for name in (state.last_good, state.anchor, *(name for name, _ in state.good)) if name in places]
    begin = max(known, default=0)
    return line[begin:], line[begin]


def _departures(episode: Episode, own: Rerun) -> list[str]:
    """What makes the failing revision's own replay another run than the recorded one."""
    said = []
    report = compare(episode.steps, own.actions, error=own.fault, failed_at=own.failed_at)
    if report.differing:
        shares = f"In {report.differing} of {report.compared} ticks the failing revision itself acts otherwise than recorded"
        said.append(f"{shares} (chance, or a memory of earlier episodes): take the answer with care.")
    if own.skipped:
        said.append(f"{own.skipped} of {len(episode.steps)} ticks could not be shown to the policies.")
    return said


def _not_reproduced(episode: Episode, own: Rerun, *, checked: bool) -> str:
    """Why the replay is not of the recorded failure; empty where it is."""
    raised = episode.reason in {"exception", "timeout", "died", "violation"}
    if raised and not own.fault:
        return "the failing revision doesn't raise in the replay: what it raised depended on something that isn't recorded"
    invalid = episode.reason == "invalid" or (not raised and any(step.safe == "invalid" for step in episode.steps))
    if invalid and not own.invalid and not own.fault:
        if checked:
            return "the failing revision's actions are inside of the limits in the replay"
        return "an action was outside of the limits, and the limits are in the agent's folder: name it with --folder"
    return ""


# --- for people ------------------------------------------------------------------------------------------------------


def print_finding(out: Console, found: Finding) -> None:
    """The answer, the replays behind it, and what they don't show."""
    out.print(show.text(f"episode {found.episode.id} of {found.episode.agent}, revision {found.episode.revision[:10]}", "bold"))
    out.print(show.text(f"failure: {found.failure}"))
    if found.tested:
        rows = [(show.short(one.revision), _verdict(one), one.words) for one in found.tested]
        out.print(show.indented(show.table(("revision", "replay", ""), rows)))
    if found.how:
        out.print(show.text(f"searched {found.how}", "dim"))
    for revision in found.introduced:
        named = "introduced by" if len(found.introduced) == 1 else "introduced by one of"
        out.print(show.text(f"{named} {revision}", "bold red"))
        for row in found.made.get(revision, ()):
            out.print(show.text(f"  {show.when(row.at)} by {row.who} ({row.origin}) {row.note}"))
    if found.introduced:
        out.print(show.text(found.reason))
    else:
        out.print(show.text(f"can't be told: {found.reason}", "yellow"))
    for line in found.hidden:
        out.print(show.text(line, "dim"))


def _verdict(tested: Tested) -> str:
    return "not replayed" if tested.fails is None else "fails" if tested.fails else "good"
