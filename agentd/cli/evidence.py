"""The verbs that account for what runs: export, replay, bisect, audit."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentd.cli import show as views
from agentd.cli.context import (
    FAILED,
    GOOD,
    Agent,
    Config,
    Json,
    State,
    StoreOption,
    UsageMistake,
    Where,
    finish,
    note,
    print_json,
    printable,
)

if TYPE_CHECKING:
    from agentd.store import SqlStore

FORMATS = ("patch", "json")
VERIFY = "verify"

Folder = Annotated[Path | None, typer.Option("--folder", help="The agent's folder; without it the one in the agents directory.")]


def register(app: typer.Typer) -> None:
    """Add these verbs to `app`."""
    for verb in (export, replay, bisect, audit):
        app.command(rich_help_panel="Account")(verb)


def _with_store(where: Where, work: Callable[["SqlStore"], Awaitable[int]]) -> None:
    async def reading() -> int:
        from agentd.cli.offline import open_store  # noqa: PLC0415 - SQLAlchemy is slow to import

        async with open_store(where) as store:
            return await work(store)

    finish(reading)


def export(
    agent: Agent,
    *,
    format: Annotated[str, typer.Option("--format", help="patch: a diff against the author's source. json: a document.")] = FORMATS[0],  # noqa: A002 - the option's name
    revision: Annotated[str | None, typer.Option("--revision", help="Which one; without it the stable one.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write; without it standard output.")] = None,
    folder: Annotated[Path | None, typer.Option("--folder", help="A checkout of the agent: the patch takes its line ends over.")] = None,
    json: Annotated[bool, typer.Option("--json", help="As --format json.")] = False,
    config: Config = None,
    state: State = None,
    store: StoreOption = None,
) -> None:
    """What a revision learned, for a pull request (`git apply` in the agent's folder) or for `agentd import`.

    Exits 1 if a value has no place in the source that could be told for certain: it is named, and only the JSON has it.
    """
    wanted = "json" if json else format
    if format not in FORMATS:
        raise typer.BadParameter(f"should be {' or '.join(FORMATS)}", param_hint="--format")

    async def work() -> int:
        from agentd.cli.exporting import export as gather  # noqa: PLC0415 - only here
        from agentd.cli.offline import open_reader  # noqa: PLC0415 - SQLAlchemy is slow to import

        async with open_reader(Where(config, state, store)) as reader:
            found = await gather(reader, agent, revision, folder)
        _write(found.document.encode().decode() if wanted == "json" else found.patch(), output)
        if not found.document.learned:
            note(f"revision {found.document.revision[:10]} of {agent} has learned nothing: its values are those of the source")
        left_out = {one.path: one.not_in_patch for one in found.document.learned if one.not_in_patch}
        for path, reason in left_out.items():
            note(f"not in the patch: {path}: {reason}")
        if left_out and wanted == "patch":
            note("`agentd export --format json` has the values of these too")
        return FAILED if left_out else GOOD

    finish(work)


def _write(text: str, output: Path | None) -> None:
    if output is None:
        # A terminal must not be moved by what a model wrote; a pipe gets it as it is, or the patch would not apply.
        typer.echo(printable(text) if _is_terminal() else text, nl=False)
        return
    try:
        output.write_bytes(text.encode())
    except OSError as error:
        raise UsageMistake(f"{output} can't be written: {error.strerror}") from error


def _is_terminal() -> bool:
    import sys  # noqa: PLC0415 - looked up anew: tests and shells replace it

    return sys.stdout.isatty()


def replay(
    episode: Annotated[str, typer.Argument(help="The id of an episode, or its beginning.")],
    *,
    revision: Annotated[str | None, typer.Option("--revision", help="Through this one; without it the one that the episode ran.")] = None,
    folder: Folder = None,
    json: Json = False,
    config: Config = None,
    state: State = None,
    store: StoreOption = None,
) -> None:
    """What a revision would have done on what an episode saw, tick by tick: in the sandbox, never on the plant.

    Exits 1 if it acts otherwise than recorded, outside of the limits, or fails.
    """
    where = Where(config, state, store)

    async def work(opened: "SqlStore") -> int:
        from agentd.cli import bisecting, replaying  # noqa: PLC0415 - they import the sandbox

        found = await replaying.replay(opened, episode, revision=revision, spec=lambda agent: bisecting.find_spec(where, agent, folder))
        print_json(found.as_json()) if json else replaying.print_replayed(views.console(), found)
        return GOOD if found.same else FAILED

    _with_store(where, work)


def bisect(
    episode: Annotated[str, typer.Argument(help="The id of the episode that failed.")],
    *,
    good: Annotated[str | None, typer.Option("--good", help="A revision that does it right; without it the last good one before.")] = None,
    folder: Folder = None,
    json: Json = False,
    config: Config = None,
    state: State = None,
    store: StoreOption = None,
) -> None:
    """Find the revision that introduced a failure: what the episode saw is replayed, in the sandbox, through the revisions before it.

    Exits 1 if it can't be told, and says why.
    """
    where = Where(config, state, store)

    async def work(opened: "SqlStore") -> int:
        from agentd.cli import bisecting  # noqa: PLC0415 - it imports the sandbox

        found = await bisecting.bisect(opened, episode, good=good, spec=lambda agent: bisecting.find_spec(where, agent, folder))
        print_json(found.as_json()) if json else bisecting.print_finding(views.console(), found)
        return GOOD if found.introduced else FAILED

    _with_store(where, work)


def audit(
    name: Annotated[str, typer.Argument(metavar="AGENT|verify", help="An agent's name; or `verify`, to check the log itself.")],
    *,
    device: Annotated[str | None, typer.Option("--device", help="Only this device; without it all of the agent's.")] = None,
    at: Annotated[
        str | None, typer.Option("--at", help='When: "2026-10-17T14:03", "14:03" (today) or Unix seconds; without it now.')
    ] = None,
    head: Annotated[str | None, typer.Option("--head", help="With verify: a head that was written down earlier.")] = None,
    json: Json = False,
    config: Config = None,
    state: State = None,
    store: StoreOption = None,
) -> None:
    """What ran on a device at a time, why, and who let it. `agentd audit verify` checks that nobody changed the log.

    Exits 1 if the log is not whole, or has no episode of that time.
    """
    verifies = name == VERIFY and device is None and at is None
    if head is not None and not verifies:
        raise typer.BadParameter("only with `agentd audit verify`", param_hint="--head")

    async def work(opened: "SqlStore") -> int:
        from agentd.api.views import plain  # noqa: PLC0415 - only here
        from agentd.cli import audits  # noqa: PLC0415 - it imports the store

        if verifies:
            report = await opened.verify_chain(head.lower() if head is not None else None)
            print_json(plain(report) | {"intact": report.intact}) if json else audits.print_report(views.console(), report)
            return GOOD if report.intact else FAILED
        time = audits.parse_time(at, audits.now()) if at is not None else audits.now()
        answer: dict[str, Any] = await audits.ran(opened, name, device, time)
        print_json(answer) if json else audits.print_answer(views.console(), answer)
        return GOOD if answer["devices"] and answer["log"]["broken_at"] is None else FAILED

    _with_store(Where(config, state, store), work)
