"""`agentd rebase`: what holds where a learned value and its author's new default contradict each other."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from agentd.cli import differences, show
from agentd.cli.context import GOING_ON, GOOD, Agent, Json, Reason, UsageMistake, Where, change, print_json, where_to_ask

if TYPE_CHECKING:
    from agentd.cli.client import Client

JSON = Mapping[str, Any]
Paths = list[str] | None


def register(app: typer.Typer) -> None:
    """Add this verb to `app`."""
    app.command(rich_help_panel="Decide")(rebase)


@where_to_ask
def rebase(
    agent: Agent,
    *,
    keep: Annotated[Paths, typer.Option("--keep", help="Propose the learned value of this parameter again. May be repeated.")] = None,
    take: Annotated[Paths, typer.Option("--take", help="Leave the source's value of this parameter. May be repeated.")] = None,
    keep_all: Annotated[bool, typer.Option("--keep-all", help="Keep all that --take does not name.")] = False,
    take_all: Annotated[bool, typer.Option("--take-all", help="Take all that --keep does not name.")] = False,
    reason: Reason = "",
    json: Json = False,
    where: Where,
) -> None:
    """Settle conflicts between what was learned and a changed source. On a terminal and without options it asks for each.

    The source's values serve meanwhile. What is kept becomes a proposal: validated, screened and tried like any other. Exits 4 while
    conflicts are left.
    """
    if keep_all and take_all:
        raise typer.BadParameter("give one of --keep-all and --take-all", param_hint="--keep-all")

    async def work(client: "Client") -> int:
        conflicts = ((await client.agent(agent))["state"] or {}).get("conflicts") or []
        chosen = _chosen(conflicts, keep or [], take or [], keep_all=keep_all, take_all=take_all)
        if not any(chosen):
            if not conflicts:
                return show.tell({"release": None, "conflicts": []}, f"{agent} has no conflicts with its source", json=json)
            if json:
                print_json({"release": None, "conflicts": conflicts})
                return GOING_ON
            chosen = _ask(conflicts)
        answer = await client.rebase(agent, keep=chosen[0], take=chosen[1], reason=reason) if any(chosen) else {"conflicts": conflicts}
        return _tell(agent, answer, json=json)

    change(where, work)


def _chosen(
    conflicts: Sequence[JSON], keep: Sequence[str], take: Sequence[str], *, keep_all: bool, take_all: bool
) -> tuple[list[str], list[str]]:
    rest = [conflict["path"] for conflict in conflicts if conflict["path"] not in {*keep, *take}]
    return [*keep, *(rest if keep_all else ())], [*take, *(rest if take_all else ())]


def _ask(conflicts: Sequence[JSON]) -> tuple[list[str], list[str]]:
    """Show each conflict, and ask where somebody is there to answer. Raises UsageMistake where nobody is."""
    out = show.console()
    for conflict in conflicts:
        print_conflict(out, conflict)
    import sys  # noqa: PLC0415 - only here

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        paths = ", ".join(conflict["path"] for conflict in conflicts)
        raise UsageMistake(f"say what holds: --keep PATH or --take PATH, --keep-all or --take-all, for {paths}")
    keep: list[str] = []
    take: list[str] = []
    for conflict in conflicts:
        answer = typer.prompt(f"{conflict['path']}: [k]eep what was learned, [t]ake the source's, [l]eave open", default="l")
        {"k": keep, "t": take}.get(answer.strip().lower()[:1], []).append(conflict["path"])
    return keep, take


def print_conflict(out: Console, conflict: JSON) -> None:
    """What was learned and what the author changed, each against the default that both began with."""
    base = differences.Side("the default before", {conflict["path"]: conflict["base"]})
    for label, key in (("learned", "learned"), ("the source now", "source")):
        comparison = differences.compare(base, differences.Side(label, {conflict["path"]: conflict[key]}))
        for line in differences.lines(comparison):
            out.print(line)


def _tell(agent: str, answer: JSON, *, json: bool) -> int:
    left = [conflict["path"] for conflict in answer["conflicts"]]
    if json:
        print_json(answer)
    else:
        out = show.console()
        release = answer.get("release")
        if release:
            out.print(show.text(f"release {release['id']} of revision {show.short(release['candidate'])} tries what is kept"))
        out.print(show.text(f"open: {', '.join(left)}" if left else f"{agent} has no conflicts with its source any more"))
    return GOING_ON if left else GOOD
