"""`agentd audit`: what ran on a device at a time, why, and who let it; and whether the log that says so is whole."""

import math
import time
from collections.abc import AsyncIterator
from datetime import datetime
from datetime import time as time_of_day
from typing import Any

from rich.console import Console

from agentd.api.views import plain, release_view, revision_view, summary_view
from agentd.cli import show
from agentd.cli.context import UsageMistake
from agentd.errors import NotFound
from agentd.records import AgentState, EpisodeSummary, Event, Phase, Release, ReleaseKind, Role
from agentd.store import SqlStore
from agentd.store.chain import ChainReport

JSON = dict[str, Any]
PAGE = 500
DEVICES = 1000

CANARY = frozenset({Phase.SELECTION, Phase.CONFIRMATION})
SERVING = ("agent.added", "agent.source_changed", "revision.desired", "release.promoted", "release.probe_ended")
"""Events that may make another revision the stable one."""


def parse_time(text: str, now: float) -> float:
    """Unix seconds of `text`: a Unix time, an ISO date and time (this machine's, unless it has an offset), or a time of today.

    Raises:
        UsageMistake: it is none of these.
    """
    try:
        at = float(text)
        if math.isfinite(at):
            return at
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        pass
    try:
        today = datetime.fromtimestamp(now).astimezone().replace(tzinfo=None)
        return datetime.combine(today, time_of_day.fromisoformat(text)).timestamp()
    except ValueError:
        raise UsageMistake(f'--at should be a time such as "2026-10-17T14:03", "14:03" or 1792245780, not "{text}"') from None


async def ran(store: SqlStore, agent: str, device: str | None, at: float) -> JSON:
    """What ran on `device` (on all devices of `agent`) at `at`, Unix seconds; for each device the episode, its revision, and who let it.

    An episode that had ended before is told with `during` False: then nothing that the store knows of was running.
    """
    state = await store.agent(agent)
    serving = await _serving(store, agent, at)
    found = [await _account(store, state, summary, serving, at) for summary in await _episodes(store, agent, device, at)]
    return {
        "agent": agent,
        "device": device,
        "at": at,
        "stable": None if serving is None else {"revision": _revision_of(serving), "since": serving.at, "event": plain(serving)},
        "devices": found,
        "log": plain(await store.verify_chain()),
    }


async def _episodes(store: SqlStore, agent: str, device: str | None, at: float) -> list[EpisodeSummary]:
    """For each device the episode that was under way, or the last one that had begun."""
    newest: dict[str, EpisodeSummary] = {}
    for summary in await store.episodes(agent, limit=DEVICES, until=at, device=device):
        known = newest.get(summary.device)
        if known is None or summary.started_at > known.started_at:
            newest[summary.device] = summary
    return [newest[name] for name in sorted(newest)]


async def _account(store: SqlStore, state: AgentState, episode: EpisodeSummary, serving: Event | None, at: float) -> JSON:
    release = await _release_of(store, state.name, episode, serving)
    try:
        revision: JSON | None = revision_view(await store.revision(episode.revision), await store.provenance(episode.revision))
    except NotFound:
        revision = None  # forgotten since; the episode still names it
    return {
        "device": episode.device,
        "during": at < episode.started_at + episode.duration,
        "episode": summary_view(episode),
        "revision": revision,
        "release": None if release is None else release_view(release),
        "proposal": None if release is None or not release.proposal else await _proposal(store, release.proposal),
        "let_by": _let_by(episode, release, serving),
    }


async def _proposal(store: SqlStore, key: str) -> JSON | None:
    try:
        view: JSON = plain(await store.proposal(key))
    except NotFound:
        return None
    return view


async def _release_of(store: SqlStore, agent: str, episode: EpisodeSummary, serving: Event | None) -> Release | None:
    """The release that let the episode's revision act: the one that tried it, or the one that made it stable."""
    if episode.role is Role.STABLE:
        if serving is None or _revision_of(serving) != episode.revision or "release" not in serving.data:
            return None
        return await store.release(str(serving.data["release"]))
    async for release in _releases(store, agent):
        ended = math.inf if release.ended_at is None else release.ended_at
        # A pair that had begun is finished when its release ends.
        if release.candidate == episode.revision and release.begun_at <= episode.started_at <= ended:
            return release
    return None


async def _releases(store: SqlStore, agent: str) -> AsyncIterator[Release]:
    before = None
    while page := await store.releases(agent, limit=PAGE, before=before):
        for release in page:
            yield release
        before = page[-1].id


async def _serving(store: SqlStore, agent: str, at: float) -> Event | None:
    """The last event before `at` that made a revision stable."""
    last, after = None, 0
    while page := await store.events(agent, after=after, limit=PAGE, kinds=SERVING):
        for event in page:
            if event.at > at:
                return last
            if event.kind != "release.probe_ended" or event.data.get("phase") == Phase.PROMOTED:
                last = event
        after = page[-1].seq
    return last


def _revision_of(event: Event) -> str:
    return str(event.data.get("revision") or event.data.get("candidate") or "")


def _let_by(episode: EpisodeSummary, release: Release | None, serving: Event | None) -> JSON:
    """Who let the revision act on this device: `who`, `when`, and `why` in words."""
    if episode.role is Role.CANDIDATE:
        if release is None:
            return {"who": "unknown", "when": None, "why": "it was a candidate, of a release that the store doesn't have"}
        # The step that began the canary names who approved it, where somebody had to.
        begun = [change for change in release.history if change.phase in CANARY and change.at <= episode.started_at]
        who, when, reason = (begun[0].who, begun[0].at, begun[0].reason) if begun else ("agentd", release.begun_at, "")
        why = f"release {release.id} tried it beside the stable revision"
        return {"who": who, "when": when, "why": f"{why}: {reason}" if reason else why}
    if serving is None or _revision_of(serving) != episode.revision:
        return {"who": "unknown", "when": None, "why": "the log has no event that made it stable before"}
    if release is not None and release.kind is ReleaseKind.PROBE:
        why = f"probe {release.id} found the last good revision better: {release.reason}"
    elif release is not None:
        why = f"release {release.id} promoted it{', forced past its canary' if release.forced else ''}: {release.reason}"
    elif serving.kind == "revision.desired":
        why = f"an operator's decision: {serving.data.get('reason') or serving.message}"
    else:
        why = serving.message
    return {"who": "author" if serving.kind.startswith("agent.") else serving.who, "when": serving.at, "why": why}


# --- for people ------------------------------------------------------------------------------------------------------


def print_answer(out: Console, answer: JSON) -> None:
    """The answer as an auditor reads it."""
    if not answer["devices"]:
        where = f"device {answer['device']}" if answer["device"] else answer["agent"]
        out.print(show.text(f"the store has no episode of {where} that had begun by {show.when(answer['at'])}", "yellow"))
    for found in answer["devices"]:
        _print_device(out, found, answer)
    stable = answer["stable"]
    if stable is not None:
        since = f"{show.short(stable['revision'])}, since {show.when(stable['since'])}"
        out.print(show.text(f"stable revision of {answer['agent']} at that time: {since}"))
    log = answer["log"]
    if log["broken_at"] is None:
        out.print(show.text(f"the log is whole: {log['events']} events, head {log['head']}", "dim"))
    else:
        out.print(show.text(f"THE LOG IS NOT WHOLE, don't rely on this answer: {log['reason']}", "bold red"))


def _print_device(out: Console, found: JSON, answer: JSON) -> None:
    episode, release, let = found["episode"], found["release"], found["let_by"]
    ended = episode["started_at"] + episode["duration"]
    ran_then = "" if found["during"] else f"; it had ended {answer['at'] - ended:.1f} s before, and no other is known to have begun"
    pair = f", pair {episode['pair']}" if episode["pair"] else ""
    facts: list[tuple[str, Any]] = [
        ("episode", f"{episode['id']}, {show.when(episode['started_at'])}, {episode['duration']:.1f} s{ran_then}"),
        ("revision", episode["revision"] + (f", on source {show.short(found['revision']['source'])}" if found["revision"] else "")),
        ("as", f"{episode['role']}, {episode['purpose']}{pair}"),
        ("outcome", episode["error"] or episode["feedback"] or episode["outcome"]),
        ("let by", f"{let['who']}, {show.when(let['when'])}"),
        ("why", let["why"]),
    ]
    facts += [
        ("made by", f"{origin['who']} ({origin['origin']}), {show.when(origin['at'])} {origin['note']}")
        for origin in (found["revision"] or {"provenance": ()})["provenance"]
    ]
    if release is not None:
        figures = f"difference {show.number(release['difference'], '+.3f')}, e-value {show.number(release['e_value'], '.3g')}"
        facts.append(("evidence", f"release {release['id']} ({release['phase'].replace('_', ' ')}): {release['pairs']} pairs, {figures}"))
        for one in release["history"]:
            phase = one["phase"].replace("_", " ")
            facts.append(("", f"{show.when(one['at'])}  {phase}  {one['who']}  {one['reason']}"))
    if found["proposal"] and found["proposal"]["reasoning"]:
        facts.append(("reasoning", found["proposal"]["reasoning"]))
    out.print(show.text(f"device {found['device']} of {answer['agent']} at {show.when(answer['at'])}", "bold"))
    out.print(show.indented(show.table(("", ""), facts), 1))


def print_report(out: Console, report: ChainReport) -> None:
    """What became of the chain's check."""
    if report.intact:
        out.print(show.text(f"the log is whole: {report.events} events"))
        out.print(show.text(f"head {report.head}"))
        out.print(show.text("write the head down elsewhere; `agentd audit verify --head` then also finds a log that was cut off", "dim"))
    else:
        out.print(show.text(f"the log is not whole from event {report.broken_at} on: {report.reason}", "bold red"))


def now() -> float:
    """Unix seconds."""
    return time.time()
