"""`agentd status --watch`: stays until what is going on has ended, and says with its exit code how."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from agentd.cli import show
from agentd.cli.context import FAILED, GOING_ON, GOOD, Refused, Where, print_json
from agentd.cli.lasting import Lasting
from agentd.errors import DaemonUnreachable

if TYPE_CHECKING:
    from agentd.cli.client import Client

JSON = Mapping[str, Any]
PAUSE = 0.5
"""Seconds between two looks."""
LOADING = 30.0
"""Seconds in which a daemon that has come back finds the agents that it had."""
NOT_FOUND = 404


def exit_code(agents: list[JSON], broken: Mapping[str, str]) -> int:
    """Of a status: 1 if an agent has failed, is failing or in quarantine, or a folder can't be loaded; 4 while one is starting; else 0."""
    if broken or any(agent["health"] in {"failed", "failing"} or (agent["state"] or {}).get("quarantine") for agent in agents):
        return FAILED
    return GOING_ON if any(agent["health"] == "starting" for agent in agents) else GOOD


async def watch(where: Where, agent: str | None, limit: float | None, *, json: bool) -> int:
    """Show the agents (or one) until none is starting and no release is in progress, at most `limit` seconds.

    It waits for a daemon that is restarted meanwhile. Returns 0 if all is well and each release that was in progress was promoted, 1 if
    not, 4 if it is still going on. Raises DaemonUnreachable where no daemon answers at first, or at the end of the time.
    """
    out = show.console()
    until = None if limit is None else time.monotonic() + limit
    seen: dict[str, str] = {}
    known: set[str] = set()
    loading = 0.0
    ended: list[JSON] = []
    async with Lasting(where) as daemon:
        with _display(out, json=json) as display:
            while True:
                try:
                    agents, broken = await _look(daemon.client, agent, loading=time.monotonic() < loading)
                    seen |= {found["name"]: found["release"]["id"] for found in agents if found["release"]}
                    releases = [await daemon.client.release(key) for key in seen.values()]
                except DaemonUnreachable:
                    await daemon.again(until)
                    loading = time.monotonic() + LOADING
                    continue
                display(agents)
                ended = [release for release in releases if release["ended_at"] is not None]
                code = exit_code(agents, broken)
                names = {found["name"] for found in agents}
                missing = known - names if time.monotonic() < loading else set()
                known |= names
                # a daemon that has just come back knows its agents a little later, and their releases later still
                going = code == GOING_ON or len(ended) < len(releases) or any(found["release"] for found in agents) or bool(missing)
                over = until is not None and time.monotonic() >= until
                if code == FAILED or not going or over:
                    break
                await asyncio.sleep(PAUSE if until is None else min(PAUSE, max(0.0, until - time.monotonic())))
    if json:
        print_json({"agents": agents, "broken": dict(broken), "ended": ended})
    else:
        _tell_end(out, agents, broken, ended)
    if code == FAILED or any(release["phase"] != "promoted" for release in ended):
        return FAILED
    return GOING_ON if going else GOOD


async def _look(client: "Client", agent: str | None, *, loading: bool) -> tuple[list[JSON], Mapping[str, str]]:
    if agent is not None:
        try:
            return [await client.agent(agent)], {}
        except Refused as error:
            if not loading or error.status != NOT_FOUND:
                raise
            return [], {}
    whole = await client.status()
    return whole["agents"], whole["broken"]


def _tell_end(out: Console, agents: list[JSON], broken: Mapping[str, str], ended: Sequence[JSON]) -> None:
    if ended:
        out.print(show.releases_table(ended))
    for name, problem in [*((agent["name"], agent["problem"]) for agent in agents if agent["problem"]), *broken.items()]:
        out.print(show.text(f"{name}: {problem}", "red"))


@contextlib.contextmanager
def _display(out: Console, *, json: bool) -> Iterator[Callable[[list[JSON]], None]]:
    """What shows the agents: a table that is redrawn on a terminal, else a line whenever something has changed."""
    if json:
        yield lambda _: None
    elif out.is_terminal:
        with Live(console=out, auto_refresh=False) as live:
            yield lambda agents: live.update(show.agents_table(agents), refresh=True)
    else:
        last: dict[str, str] = {}

        def tell(agents: list[JSON]) -> None:
            for agent in agents:
                line = _line(agent)
                if last.get(agent["name"]) != line.plain:
                    last[agent["name"]] = line.plain
                    out.print(line)

        yield tell


def _line(agent: JSON) -> Text:
    doing = show.doing(agent)
    return show.text(f"{agent['name']}: {show.health(agent)}" + (f", {doing}" if doing != "-" else ""))
