"""The verbs that hold an agent back, and those that let it go on: pause its episodes, freeze its releases, lift its quarantine."""

from typing import TYPE_CHECKING, Annotated

import typer

from agentd.cli import show as views
from agentd.cli.context import Agent, Json, Reason, UsageMistake, Where, change, where_to_ask

if TYPE_CHECKING:
    from agentd.cli.client import Client

Release = Annotated[str | None, typer.Argument(help="A release's id: then only its canary.")]
Which = Annotated[str | None, typer.Argument(help="The agent's name.")]
All = Annotated[bool, typer.Option("--all", help="Every agent: those that are not up, and those that come later, too.")]


def register(app: typer.Typer) -> None:
    """Add these verbs to `app`."""
    for verb in (pause, resume, freeze, unfreeze, unquarantine):
        app.command(rich_help_panel="Decide")(verb)


@where_to_ask
def pause(agent: Agent, release: Release = None, *, reason: Reason = "", json: Json = False, where: Where) -> None:
    """Pause an agent: no more episodes, the plant stays in its safe state. With a release: draw no more of its pairs."""
    _pause_or_resume("pause", agent, release, reason, where, json=json)


@where_to_ask
def resume(agent: Agent, release: Release = None, *, reason: Reason = "", json: Json = False, where: Where) -> None:
    """Go on after `pause`, with the agent or with its release."""
    _pause_or_resume("resume", agent, release, reason, where, json=json)


def _pause_or_resume(verb: str, agent: str, release: str | None, reason: str, where: Where, *, json: bool) -> None:
    async def work(client: "Client") -> int:
        if release is not None:
            decided = await client.decide(verb, agent, release, reason=reason)
            return views.tell(decided, f"release {decided['id']} is {decided['phase'].replace('_', ' ')}", json=json)
        status = await (client.pause_agent(agent, reason=reason) if verb == "pause" else client.resume_agent(agent, reason=reason))
        return views.tell(status, f"{agent} is {'paused' if status['state']['paused'] else 'running'}", json=json)

    change(where, work)


@where_to_ask
def freeze(agent: Which = None, *, all_: All = False, reason: Reason = "", json: Json = False, where: Where) -> None:
    """Let no proposal, release or promotion begin or go on. The agent goes on serving; the watch may still roll it back."""
    name = _one_or_all(agent, everyone=all_)

    async def work(client: "Client") -> int:
        found = await client.freeze(name, reason=reason)
        names = ", ".join(status["name"] for status in found)
        words = f"frozen: {names}" if name else f"frozen: {names or 'no agent is hosted now'}, and every agent that comes"
        return views.tell(found, words, json=json)

    change(where, work)


@where_to_ask
def unfreeze(agent: Which = None, *, all_: All = False, reason: Reason = "", json: Json = False, where: Where) -> None:
    """Go on after `freeze`: what was in progress is in progress again. After `--all`, an agent that was frozen by itself stays so."""
    name = _one_or_all(agent, everyone=all_)

    async def work(client: "Client") -> int:
        found = await client.unfreeze(name, reason=reason)
        still = [status["name"] for status in found if (status["state"] or {}).get("frozen")]
        words = "not frozen: " + (", ".join(status["name"] for status in found if status["name"] not in still) or "no agent that is hosted")
        if still:
            words += f"; frozen by itself: {', '.join(still)}"
        return views.tell(found, words, json=json)

    change(where, work)


def _one_or_all(agent: str | None, *, everyone: bool) -> str | None:
    if (agent is None) is not everyone:
        raise typer.BadParameter("name one agent, or give --all", param_hint="AGENT|--all")
    return agent


@where_to_ask
def unquarantine(agent: Agent, *, reason: Reason = "", json: Json = False, where: Where) -> None:
    """Let an agent that rolled back too often release again. Its rollbacks so far no longer count."""

    async def work(client: "Client") -> int:
        if not ((await client.agent(agent))["state"] or {}).get("quarantine"):
            raise UsageMistake(f"{agent} is not in quarantine")
        found = await client.unquarantine(agent, reason=reason)
        return views.tell(found[0], f"{agent} may release again", json=json)

    change(where, work)
