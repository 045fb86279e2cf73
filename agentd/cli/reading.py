"""The verbs that read: from the daemon, or from the store where none answers."""

import json as encoding
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from agentd.cli import details, differences, rebasing, traces, watching
from agentd.cli import show as views
from agentd.cli.context import (
    GOOD,
    UNREACHABLE,
    Agent,
    Json,
    Limit,
    Where,
    finish,
    note,
    print_json,
    printable,
    seconds,
    where_to_ask,
    where_to_read,
)
from agentd.cli.lasting import Lasting
from agentd.errors import NotFound


def register(app: typer.Typer) -> None:
    """Add these verbs to `app`."""
    for verb in (status, agents, devices, history, show, diff, episodes, trace, logs, events):
        app.command(rich_help_panel="Look")(verb)


def _tell(found: Any, shown: Callable[[], Table], nothing: str, *, json: bool) -> int:
    """A table of what was found, or its document; that there is nothing is said on standard error."""
    if json:
        print_json(found)
    elif found:
        views.console().print(shown())
    else:
        note(nothing)
    return GOOD


def _read(where: Where, work: Callable[[Any], Awaitable[int]]) -> None:
    async def reading() -> int:
        from agentd.cli.offline import open_reader  # noqa: PLC0415 - SQLAlchemy is slow to import

        async with open_reader(where) as reader:
            return await work(reader)

    finish(reading)


@where_to_read
def status(
    agent: Annotated[str | None, typer.Argument(help="One agent, in detail.")] = None,
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay until no agent is starting and no release is in progress.")] = False,
    timeout: Annotated[str | None, typer.Option("--timeout", help='Watch at most so long, such as "10m"; then exit 4.')] = None,
    json: Json = False,
    where: Where,
) -> None:
    """What runs, and how well. Exits 1 if an agent is down, of no use or in quarantine, or a folder is broken; 4 while one is starting.

    Exits 3 if no daemon answers; what is in its store is shown all the same. With --watch also 1 if a release that was in progress
    did not end as promoted, and 4 while one is in progress.
    """
    limit = seconds(timeout, "--timeout")
    if limit is not None and not watch:
        raise typer.BadParameter("goes with --watch only", param_hint="--timeout")
    if watch:
        if where.store is not None:
            raise typer.BadParameter("a store can't be watched; leave out one of --watch and --store", param_hint="--watch")
        finish(lambda: watching.watch(where, agent, limit, json=json))

    async def work(reader: Any) -> int:
        from agentd.cli.client import Client  # noqa: PLC0415 - httpx is slow to import

        out, alone = views.console(), where.store is None and not isinstance(reader, Client)
        if agent is not None:
            found = await reader.agent(agent)
            print_json(found) if json else views.print_agent(out, found)
            return UNREACHABLE if alone else watching.exit_code([found], {})
        whole = await reader.status()
        print_json(whole) if json else _print_whole(out, whole)
        return UNREACHABLE if alone else watching.exit_code(whole["agents"], whole["broken"])

    _read(where, work)


def _print_whole(out: Console, whole: Any) -> None:
    if "pid" in whole:
        up = views.when(whole["started_at"])
        out.print(views.text(f"agentd {whole['version']}, pid {whole['pid']}, since {up}, store {whole['store_url']}", "dim"))
    out.print(views.agents_table(whole["agents"]) if whole["agents"] else views.text("no agent is hosted yet; `agentd new` writes one"))
    problems = [(item["name"], item["problem"]) for item in whole["agents"] if item["problem"] and item["health"] != "stopped"]
    for name, problem in [*problems, *whole["broken"].items()]:
        out.print(views.text(f"{name}: {problem}", "red"))
    if whole["frozen"]:
        words = f"every agent is frozen, those that come included, {views.put_on(whole['frozen'])}; `agentd unfreeze --all` lifts it"
        out.print(views.text(words, "cyan"))
    for item in whole["agents"]:
        for held in views.holds(item):
            out.print(views.text(f"{item['name']}: {held}", "cyan"))


@where_to_read
def agents(json: Json = False, *, where: Where) -> None:
    """All agents, a line each."""

    async def work(reader: Any) -> int:
        found = await reader.agents()
        print_json(found) if json else views.console().print(views.agents_table(found))
        return GOOD

    _read(where, work)


@where_to_ask
def devices(agent: Agent, json: Json = False, *, where: Where) -> None:
    """The devices that an agent drives now."""

    async def work(reader: Any) -> int:
        found = (await reader.agent(agent))["devices"]
        rows = [(device, views.word(status)) for device, status in sorted(found.items())]
        return _tell(found, lambda: views.table(("device", "status"), rows), f"{agent} has no devices now", json=json)

    _read(where, work)


@where_to_read
def history(agent: Agent, *, json: Json = False, limit: Limit = 50, where: Where) -> None:
    """The releases of an agent, newest first: verdict, evidence, who, when, why."""

    async def work(reader: Any) -> int:
        found = await reader.releases(agent, limit)
        nothing = f"{agent} has no releases yet; `agentd propose {agent}` asks for one, `agentd submit` makes one"
        return _tell(found, lambda: views.releases_table(found), nothing, json=json)

    _read(where, work)


@where_to_read
def show(
    name: Annotated[str, typer.Argument(metavar="AGENT|RELEASE|REVISION|EPISODE", help="A name, an id, or the beginning of one.")],
    json: Json = False,
    *,
    where: Where,
) -> None:
    """An agent with its parameters, a release with its evidence, a revision, or an episode."""

    async def work(reader: Any) -> int:
        kind, found = await details.find(reader, name)
        print_json(found) if json else details.print_details(kind, found)
        return GOOD

    _read(where, work)


@where_to_read
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A revision, an agent (its stable revision) or `source`.")],
    second: Annotated[
        str | None, typer.Argument(metavar="[B]", help="The same; without it A is compared with its parent or source.")
    ] = None,
    *,
    json: Json = False,
    where: Where,
) -> None:
    """What differs in parameters: `diff AGENT` shows what was learned, `diff A B` compares two revisions."""

    async def work(reader: Any) -> int:
        comparison = differences.compare(*await differences.sides(reader, first, second))
        if second is None and first in {found["name"] for found in await reader.agents()}:
            comparison["conflicts"] = ((await reader.agent(first))["state"] or {}).get("conflicts", [])
        if json:
            print_json(comparison)
        else:
            out = views.console()
            for line in differences.lines(comparison):
                out.print(line)
            for conflict in comparison.get("conflicts", ()):
                out.print(
                    views.text(f"\nconflict in {conflict['path']}: its author has changed what was learned; `agentd rebase`", "yellow")
                )
                rebasing.print_conflict(out, conflict)
        return GOOD

    _read(where, work)


@where_to_read
def episodes(
    agent: Agent,
    *,
    role: Annotated[str | None, typer.Option("--role", help="stable or candidate.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Only of this revision.")] = None,
    json: Json = False,
    limit: Limit = 30,
    where: Where,
) -> None:
    """The episodes of an agent, newest first."""
    if role not in {None, "stable", "candidate"}:
        raise typer.BadParameter("should be stable or candidate", param_hint="--role")

    async def work(reader: Any) -> int:
        found = await reader.episodes(agent, limit, revision=revision, role=role)
        asked = "" if role is None and revision is None else " of that role or revision"
        return _tell(found, lambda: views.episodes_table(found), f"{agent} has no finished episodes{asked} yet", json=json)

    _read(where, work)


@where_to_read
def trace(
    episode: Annotated[str, typer.Argument(help="An episode's id, or an agent's name for its newest traced one.")],
    *,
    everything: Annotated[bool, typer.Option("--all", help="Every tick.")] = False,
    json: Json = False,
    where: Where,
) -> None:
    """Why an episode went as it did: what the program computed, tick by tick."""

    async def work(reader: Any) -> int:
        names = {agent["name"] for agent in await reader.agents()}
        key = episode
        if episode in names:
            recent = await reader.episodes(episode, 100)
            key = next((item["id"] for item in recent if item["has_trace"]), "")
            if not key:
                raise NotFound("traced episode of the agent", episode)
        graph = await reader.trace(key)
        if json:
            print_json(graph)
            return GOOD
        out = views.console()
        for part in traces.trees(graph, everything=everything):
            out.print(part)
        found = await reader.episode(key)
        judged = found["feedback"] or {}
        score = f"{judged['score']:.3f}" if judged.get("score") is not None else "none"
        out.print(views.text(f"{found['outcome']}; score {score}; {judged.get('text') or found['error'] or found['reason']}", "bold"))
        return GOOD

    _read(where, work)


@where_to_ask
def logs(agent: Agent, json: Json = False, limit: Limit = 200, *, where: Where) -> None:
    """What the agent's programs printed and logged, oldest first. Kept by the daemon, so it must run."""

    async def work(reader: Any) -> int:
        found = await reader.logs(agent, limit)
        if json:
            print_json(found)
            return GOOD
        for line in found:
            typer.echo(printable(line))
        if not found:
            note(f"the programs of {agent} have printed nothing since the daemon started; `agentd events {agent}` tells what happened")
        return GOOD

    _read(where, work)


@where_to_read
def events(
    agent: Annotated[str | None, typer.Argument(help="Only this agent's.")] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens; the daemon must run.")] = False,
    json: Json = False,
    limit: Limit = 50,
    where: Where,
) -> None:
    """What happened, oldest first. With --json --follow: one JSON document a line.

    A follower waits for a daemon that is restarted, and misses no event of its log; Ctrl-C ends it.
    """
    if follow and where.store is not None:
        raise typer.BadParameter("a store can't be followed; leave out one of --follow and --store")

    if follow:
        finish(lambda: _follow(where, agent, limit, json=json))

    async def work(reader: Any) -> int:
        found = await reader.events(agent, limit)
        if json:
            print_json(found)
        elif found:
            out = views.console()
            for event in found:
                out.print(views.event_line(event))
        else:
            note(f"nothing has happened yet{f' to {agent}' if agent else ''}")
        return GOOD

    _read(where, work)


async def _follow(where: Where, agent: str | None, limit: int, *, json: bool) -> int:
    out = views.console()

    def tell(event: Any) -> None:
        if json:
            typer.echo(encoding.dumps(event, ensure_ascii=False))
        else:
            out.print(views.event_line(event))

    async with Lasting(where) as daemon:
        found = await daemon.client.events(agent, limit)
        for event in found:
            tell(event)
        async for event in daemon.follow(agent, after=found[-1]["seq"] if found else 0):
            tell(event)
    return GOOD
