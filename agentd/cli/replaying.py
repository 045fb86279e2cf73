"""`agentd replay`: what a revision would have done, tick by tick, on what a recorded episode saw. In the sandbox, never on the plant."""

from collections.abc import Callable
from typing import Any

from rich.console import Console

from agentd.api.views import plain
from agentd.cli import show
from agentd.cli.bisecting import FORKED, Replays, envelope_of
from agentd.cli.context import UsageMistake
from agentd.records import Record
from agentd.runners.bisection import invalid_of
from agentd.sandbox import Limits, Zygote
from agentd.spec import AgentSpec, SandboxSection
from agentd.store import SqlStore
from agentd.trace.replay import Replay, compare

SHOWN = 20


class Replayed(Record, frozen=True):
    """An episode through a revision. `invalid` is its first action outside of the limits; `unchecked`: the limits are not known."""

    episode: str
    agent: str
    recorded: str
    revision: str
    comparison: Replay
    invalid: str = ""
    unchecked: bool = False

    @property
    def same(self) -> bool:
        """Whether it acted as recorded in every tick that could be compared, inside of the limits."""
        return self.comparison.same and not self.invalid

    def as_json(self) -> dict[str, Any]:
        """For other programs."""
        view: dict[str, Any] = plain(self)
        return view | {"same": self.same}


async def replay(store: SqlStore, key: str, *, revision: str | None, spec: Callable[[str], AgentSpec | None]) -> Replayed:
    """The episode `key` (an id, or its beginning) through `revision`: without one, through the one that it ran.

    Raises:
        NotFound: there is no such episode or revision.
        UsageMistake: the revision is another agent's, it can't be loaded, or the episode has no steps.
        IsolationError, SandboxError: this machine can't run the program.
    """
    episode = await store.episode(key)
    chosen = await store.revision(revision or episode.revision)
    if chosen.agent != episode.agent:
        raise UsageMistake(f"revision {chosen.id[:10]} is of {chosen.agent}, and the episode of {episode.agent}")
    if not episode.steps:
        raise UsageMistake("the episode has no recorded steps: the store keeps them for a limited time, or it ended before the first")
    found = spec(episode.agent)
    section = found.sandbox if found is not None else SandboxSection()
    envelope = None if found is None else await envelope_of(found)
    limits = Limits.from_spec(section)
    async with await Zygote.start(imports=limits.allowed_imports, min_isolation=section.min_isolation, scope=section.scope) as zygote:
        run = await Replays(store, zygote, limits, episode, envelope).of(chosen)
    if isinstance(run, str):
        raise UsageMistake(f"revision {chosen.id[:10]} can't be replayed: {run}")
    return Replayed(
        episode=episode.id,
        agent=episode.agent,
        recorded=episode.revision,
        revision=chosen.id,
        comparison=compare(episode.steps, run.actions, error=run.fault, failed_at=run.failed_at),
        invalid=invalid_of(run),
        unchecked=envelope is None,
    )


def print_replayed(out: Console, found: Replayed) -> None:
    """What it would have done otherwise, and what a replay doesn't show."""
    told = found.comparison
    out.print(
        show.text(f"episode {found.episode} of {found.agent}, recorded with {found.recorded[:10]}, through {found.revision[:10]}", "bold")
    )
    rows = [(str(one.tick), str(one.recorded), str(one.replayed), show.number(one.size, ".4g")) for one in told.differences[:SHOWN]]
    if rows:
        out.print(show.indented(show.table(("tick", "recorded", "replayed", "difference"), rows)))
    if told.differing > len(rows):
        out.print(show.text(f"... and {told.differing - len(rows)} more; --json has the first {len(told.differences)}", "dim"))
    verdict = f"of {told.compared} ticks {told.differing} differ"
    out.print(show.text(verdict if told.differing else f"{verdict}: it acts as recorded"))
    for reason, count in told.skipped.items():
        out.print(show.text(f"{count} ticks not compared: {reason}", "dim"))
    if told.error:
        where = "before the first tick" if told.failed_at is None else f"at tick {told.failed_at}"
        out.print(show.text(f"it fails {where}: {told.error}", "red"))
    if found.invalid:
        out.print(show.text(f"outside of the limits {found.invalid}", "red"))
    if found.unchecked:
        out.print(show.text(f"the folder of {found.agent} was not found (--folder): action limits were not checked", "dim"))
    out.print(show.text(f"{FORKED} what would have come of them is not shown.", "dim"))
