"""The verbs that change: they need the daemon, and exit 3 without one."""

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentd.cli import details, submission
from agentd.cli import show as views
from agentd.cli.context import FAILED, GOING_ON, GOOD, Agent, Json, Reason, UsageMistake, Where, change, print_json, seconds, where_to_ask

if TYPE_CHECKING:
    from agentd.cli.client import Client

ENDED = frozenset({"promoted", "rejected", "pruned", "inconclusive", "aborted", "rolled_back"})
REVISION = re.compile("[0-9a-f]{4,64}")
EXAMPLE = "3f9a04c21b"

Release = Annotated[str | None, typer.Argument(help="The release's id (default: the one in progress).")]
Wait = Annotated[
    str | None, typer.Option("--wait", help='Wait so long for the verdict, such as "10m"; exits 0 promoted, 1 not, 4 still going on.')
]


def register(app: typer.Typer) -> None:
    """Add these verbs to `app`."""
    for verb in (propose, submit, approve, promote, abort, retry, rollback, pin, feedback):
        app.command(rich_help_panel="Decide")(verb)
    app.command(rich_help_panel="Account")(forget)
    app.command("import", rich_help_panel="Decide")(import_)


@where_to_ask
def propose(agent: Agent, json: Json = False, *, where: Where) -> None:
    """Ask the optimizer for a proposal now. `agentd events --follow` tells what comes of it."""

    async def work(client: "Client") -> int:
        return views.tell(await client.propose(agent), f"the optimizer of {agent} is at work", json=json)

    change(where, work)


@where_to_ask
def submit(
    agent: Agent,
    file: Annotated[Path, typer.Argument(help="Values by parameter path (.toml, .json), or functions (.py).")],
    *,
    note: Annotated[str, typer.Option("--note", "-m", help="Why: kept with the proposal.")] = "",
    wait: Wait = None,
    json: Json = False,
    where: Where,
) -> None:
    """Propose values yourself. They are validated, screened and tried like any other proposal; `promote` forces them past the canary."""
    limit = seconds(wait, "--wait")

    async def work(client: "Client") -> int:
        values, written = submission.read(file, await client.parameters(agent))
        release = await client.submit(agent, values, note=note or written)
        return await _begun(client, release, limit, json=json)

    change(where, work)


@where_to_ask
def import_(
    agent: Agent,
    file: Annotated[Path, typer.Argument(help="What `agentd export --format json` wrote.")],
    *,
    note: Annotated[str, typer.Option("--note", "-m", help="Why: kept with the proposal.")] = "",
    wait: Wait = None,
    json: Json = False,
    where: Where,
) -> None:
    """Propose the values of an exported revision. They are validated, screened and tried like any other proposal."""
    limit = seconds(wait, "--wait")

    async def work(client: "Client") -> int:
        from agentd.cli import exporting  # noqa: PLC0415 - only here

        document = exporting.read(file, agent)
        current = (await client.agent(agent))["state"]
        if current is None:
            raise UsageMistake(f"{agent} has no revision yet: its runner was never up")
        values = exporting.values_to_submit(document, await client.parameter_list(agent), current["source"])
        release = await client.submit(agent, values, note=note or f"imported: the values of revision {document.revision}")
        return await _begun(client, release, limit, json=json)

    change(where, work)


async def _begun(client: "Client", release: dict[str, Any], limit: float | None, *, json: bool) -> int:
    if limit is None:
        return views.tell(release, f"release {release['id']} of revision {views.short(release['candidate'])} has begun", json=json)
    return await _await_verdict(client, release, limit, json=json)


async def _await_verdict(client: "Client", release: dict[str, Any], limit: float, *, json: bool) -> int:
    import asyncio  # noqa: PLC0415 - only here

    until = time.monotonic() + limit
    while release["phase"] not in ENDED and time.monotonic() < until:
        await asyncio.sleep(min(0.5, max(0.0, until - time.monotonic())))
        release = await client.release(release["id"])
    print_json(release) if json else views.console().print(views.releases_table([release]))
    if release["phase"] not in ENDED:
        return GOING_ON
    return GOOD if release["phase"] == "promoted" else FAILED


def _decide(verb: str, agent: str, release: str | None, reason: str, where: Where, *, json: bool) -> None:
    async def work(client: "Client") -> int:
        decided = await client.decide(verb, agent, release or await _in_progress(client, agent), reason=reason)
        return views.tell(decided, f"release {decided['id']} is {decided['phase'].replace('_', ' ')}", json=json)

    change(where, work)


async def _in_progress(client: "Client", agent: str) -> str:
    current = (await client.agent(agent))["release"]
    if current is None:
        raise UsageMistake(f"{agent} has no release in progress; `agentd history {agent}` lists the ended ones")
    return str(current["id"])


@where_to_ask
def approve(
    agent: Agent,
    release: Release = None,
    *,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Don't show the release first and ask, on a terminal and without its id.")
    ] = False,
    reason: Reason = "",
    json: Json = False,
    where: Where,
) -> None:
    """Let a release that awaits approval go on to its canary. `agentd show RELEASE` has its changes, reasons and replay."""

    async def work(client: "Client") -> int:
        chosen = release or await _in_progress(client, agent)
        if release is None and not yes and not json and sys.stdin.isatty() and sys.stdout.isatty():
            details.print_details("release", await details.release(client, chosen))
            typer.confirm(f"let release {chosen} go on to its canary?", abort=True)
        decided = await client.decide("approve", agent, chosen, reason=reason)
        return views.tell(decided, f"release {decided['id']} is {decided['phase'].replace('_', ' ')}", json=json)

    change(where, work)


@where_to_ask
def promote(
    agent: Agent,
    release: Release = None,
    *,
    full: Annotated[bool, typer.Option("--full", help="Past all steps of its ramp at once.")] = False,
    reason: Reason = "",
    json: Json = False,
    where: Where,
) -> None:
    """Force a release on to the next step of its ramp; where no device is left for one, or with --full, past its canary.

    What is made stable so is watched against its predecessor's bound, and rolled back if it falls below.
    """

    async def work(client: "Client") -> int:
        decided = await client.promote(agent, release or await _in_progress(client, agent), reason=reason, full=full)
        exposed = sum(not device["withdrawn"] for device in decided["fleet"].values())
        ramp = f", on {exposed} devices" if decided["ended_at"] is None and decided["fleet"] else ""
        return views.tell(decided, f"release {decided['id']} is {decided['phase'].replace('_', ' ')}{ramp}", json=json)

    change(where, work)


@where_to_ask
def abort(agent: Agent, release: Release = None, *, reason: Reason = "", json: Json = False, where: Where) -> None:
    """End a release; all devices go back to the stable revision."""
    _decide("abort", agent, release, reason, where, json=json)


@where_to_ask
def retry(
    agent: Agent,
    release: Annotated[str, typer.Argument(help="The id of an ended release.")],
    *,
    reason: Reason = "",
    json: Json = False,
    where: Where,
) -> None:
    """Try an ended release's proposal again, as a new release."""
    _decide("retry", agent, release, reason, where, json=json)


@where_to_ask
def rollback(
    agent: Agent,
    revision: Annotated[str | None, typer.Argument(help="The revision to go back to (default: the last good one before).")] = None,
    *,
    reason: Reason = "",
    json: Json = False,
    where: Where,
) -> None:
    """Serve an earlier revision from the next episode on."""
    _serve(agent, revision, reason, where, json=json)


def _serve(agent: str, revision: str | None, reason: str, where: Where, *, json: bool) -> None:
    if revision is not None and not REVISION.fullmatch(revision):
        raise typer.BadParameter(
            f"{revision!r} is no revision: its id is 64 of 0-9 and a-f, of which the first 4 to 10 do, such as {EXAMPLE}; "
            f"`agentd status {agent}` shows the stable one, `agentd history {agent}` those that were tried",
            param_hint="REVISION",
        )

    async def work(client: "Client") -> int:
        current = (await client.agent(agent))["state"] or {}
        known_good = [current.get("last_good"), *(found for found, _ in reversed(current.get("good", [])))]
        target = revision or next((found for found in known_good if found not in {None, current.get("stable")}), None)
        if target is None:
            raise UsageMistake(f"there is no other revision of {agent} known to be good; name one: `agentd history {agent}` lists them")
        status = await client.set_desired(agent, target, reason=reason)
        return views.tell(status, f"{agent} serves {views.short(status['state']['stable'])} from the next episode on", json=json)

    change(where, work)


@where_to_ask
def forget(
    agent: Agent,
    episodes: Annotated[list[str] | None, typer.Argument(help="Whole ids of episodes to erase.")] = None,
    *,
    device: Annotated[str | None, typer.Option("--device", help="Erase all episodes of this device, or of this person's client.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask; needed where there is no terminal.")] = False,
    reason: Reason = "",
    json: Json = False,
    where: Where,
) -> None:
    """Erase episodes of a device or a person, with steps, traces and feedback. It can't be undone; the log keeps who, when and why."""
    if not episodes and device is None:
        raise typer.BadParameter("name episodes, or a device with --device")

    async def work(client: "Client") -> int:
        if not yes:
            if not sys.stdin.isatty():
                raise UsageMistake("erasing can't be undone: say --yes")
            what = [f"all episodes of device {device}"] if device is not None else []
            typer.confirm(f"erase {' and '.join([*what, *(episodes or ())])} of {agent} for good?", abort=True)
        erased = await client.forget(agent, device=device, episodes=episodes or (), reason=reason)
        left = "" if erased["overwritten"] else "; their bytes leave the database's files later, when nothing reads them"
        return views.tell(erased, f"{erased['erased']} episodes of {agent} are erased{left}", json=json)

    change(where, work)


@where_to_ask
def pin(
    agent: Agent,
    revision: Annotated[str, typer.Argument(help="The revision's id, or its beginning.")],
    *,
    reason: Reason = "",
    json: Json = False,
    where: Where,
) -> None:
    """Serve this revision from the next episode on, whatever served before."""
    _serve(agent, revision, reason, where, json=json)


@where_to_ask
def feedback(
    episode: Annotated[str, typer.Argument(help="The episode's id, or its beginning.")],
    score: Annotated[float, typer.Argument(help="What it was worth, in the declared range.")],
    *,
    message: Annotated[str, typer.Option("--message", "-m", help="In words: what an optimizer can learn from.")] = "",
    metric: Annotated[list[str] | None, typer.Option(help="A further metric, as name=value; again for the next.")] = None,
    json: Json = False,
    where: Where,
) -> None:
    """Say what an episode was worth, of an agent whose episodes are judged later. After its window it is kept, but is no evidence."""
    metrics = dict(_metric(text) for text in metric or ())

    async def work(client: "Client") -> int:
        receipt = await client.feedback(episode, score, text=message, metrics=metrics)
        counts = "counts" if receipt["evidence"] else "does not count"
        return views.tell(receipt, f"the feedback on {receipt['episode']} {counts}: {receipt['detail']}", json=json)

    change(where, work)


def _metric(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise typer.BadParameter(f'should be name=value such as cost=0.5, not "{text}"', param_hint="--metric") from None
