"""The verbs about this machine: run, demo, check, new, init, optimize, token, backup."""

from pathlib import Path
from typing import Annotated

import typer

from agentd.cli import show as views
from agentd.cli.context import GOOD, Config, Json, State, UsageMistake, Where, complain, exit_code, finish, note, print_json
from agentd.errors import AgentdError

CHANGES = ("flip-motor", "flip-gyro", "flip-angle", "long-pole")


def register(app: typer.Typer) -> None:
    """Add these verbs to `app`."""
    for verb in (demo, run, check, new, init, optimize, token, backup):
        app.command(rich_help_panel="Set up")(verb)


def demo(
    *,
    change: Annotated[str, typer.Option(help=f"How the robot changes: {', '.join(CHANGES)}.")] = CHANGES[0],
    seed: Annotated[int | None, typer.Option(help="Fixes episode seeds, pair order and the optimizer's generator.")] = None,
    once: Annotated[bool, typer.Option("--once", help="End after the summary instead of serving until Ctrl-C.")] = False,
    model: Annotated[list[str] | None, typer.Option(help="A litellm model name; again for the next in preference. None: search.")] = None,
    json: Json = False,
    state: Annotated[Path | None, typer.Option(help="Where its state is kept (default: a new folder in the temporary one).")] = None,
) -> None:
    """Watch a robot break and agentd recover, in one to four minutes: no account, no network, no broker."""
    if change not in CHANGES:
        raise typer.BadParameter(f"should be one of {', '.join(CHANGES)}, not {change}", param_hint="--change")
    if state is not None and (state / "agentd.db").exists():
        raise typer.BadParameter(f"{state} holds the state of an earlier demo: name another folder, or none", param_hint="--state")
    from agentd.cli.demo import Options, run_demo  # noqa: PLC0415 - costs what `--help` must not

    code = run_demo(Options(change=change, seed=seed, once=once, json=json, state=state, models=tuple(model or ())))
    raise typer.Exit(code)


def run(
    *,
    config: Config = None,
    state: State = None,
    agents: Annotated[Path | None, typer.Option(help="The agents directory (default: its setting).")] = None,
) -> None:
    """Run the daemon until SIGTERM or Ctrl-C; SIGHUP reads the agents directory again."""
    from agentd.settings import load_settings  # noqa: PLC0415 - pydantic-settings is slow to import

    try:
        settings = load_settings(config, state_directory=state and state.absolute(), agents=agents and agents.absolute())
    except AgentdError as error:
        complain(error)
        raise typer.Exit(exit_code(error)) from error
    import agentd.daemon  # noqa: PLC0415 - everything is imported there

    raise typer.Exit(agentd.daemon.run(settings))


def check(
    folders: Annotated[list[Path] | None, typer.Argument(help="Folders, or names in the agents directory (default: all of it).")] = None,
    *,
    json: Json = False,
    config: Config = None,
    state: State = None,
) -> None:
    """Find what would go wrong: every mistake in every agent.toml, isolation, store, broker, models. Exits 1 if something would."""

    async def work() -> int:
        from agentd.cli import checks  # noqa: PLC0415 - it imports much of agentd

        found = await checks.check_all(Where(config, state), folders or [])
        print_json(checks.as_json(found)) if json else checks.print_findings(views.console(), found)
        return checks.exit_code(found)

    finish(work)


def new(
    name: Annotated[str, typer.Argument(help="The agent's name, and its folder's.")],
    *,
    template: Annotated[str, typer.Option(help="blank, served (an agent behind HTTP), or a ready agent such as cartpole.")] = "blank",
    into: Annotated[Path, typer.Option("--into", help="The folder to write it into.")] = Path(),
) -> None:
    """Write a new agent's folder: agent.toml, controller.py, feedback.py."""

    async def work() -> int:
        from agentd.cli import scaffold  # noqa: PLC0415 - only here

        folder = scaffold.write(name, template, into)
        note(f"wrote {folder}; `agentd check {folder}` finds mistakes, `agentd run --agents {folder.parent}` hosts it")
        return GOOD

    finish(work)


def init(
    program: Annotated[str, typer.Argument(help="The program: module:Class or module:function of the folder.")],
    *,
    guide: Annotated[str, typer.Option(help="The function that judges: of (answer, reference), (input, answer, reference) or (episode).")],
    data: Annotated[Path, typer.Option(help='The cases: JSON lines such as {"input": ..., "reference": ...}.')],
    folder: Annotated[Path, typer.Option("--folder", help="Where the program is.")] = Path(),
    name: Annotated[str, typer.Option(help="The agent's name (default: the module's).")] = "",
    arg: Annotated[list[str] | None, typer.Option(help="An argument of the class, as name=value; again for the next.")] = None,
    input: Annotated[str, typer.Option(help="The key of a case's input.")] = "input",  # noqa: A002 - the option's name
    reference: Annotated[str, typer.Option(help="The key of what the guide compares with.")] = "reference",
    json: Json = False,
) -> None:
    """Host an existing Trace program without editing it: writes agent.toml beside it, and says what it found trainable."""

    async def work() -> int:
        from agentd.cli import initiating  # noqa: PLC0415 - only here

        args = dict(initiating.argument(text) for text in arg or ())
        options = initiating.Options(program, guide, data, folder, name, input, reference, args)
        written = await initiating.init(options)
        print_json(initiating.as_json(written)) if json else initiating.print_written(views.console(), written, folder)
        return GOOD

    finish(work)


def optimize(
    agent: Annotated[str, typer.Argument(help="An agent's folder, or its name in the agents directory.")],
    *,
    proposals: Annotated[int, typer.Option("--proposals", "-n", min=1, help="End after so many proposals.")] = 10,
    model: Annotated[
        list[str] | None, typer.Option(help="A litellm model name; again for the next in preference (default: agent.toml's).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes episode seeds, pair order and the optimizer's generator.")] = None,
    json: Json = False,
    config: Config = None,
    state: State = None,
) -> None:
    """Improve an agent here and now, without a daemon; `agentd run` serves what was found. Ctrl-C keeps it."""

    async def work() -> int:
        from agentd.cli import optimizing  # noqa: PLC0415 - it imports nearly everything

        settings = Where(config, state).settings()
        if seed is not None:
            settings = settings.model_copy(update={"seed": seed})
        options = optimizing.Options(proposals=proposals, models=tuple(model or ()), json=json)
        return await optimizing.optimize(agent, settings, options)

    finish(work)


def token(
    *,
    viewer: Annotated[bool, typer.Option("--viewer", help="The token that can only read.")] = False,
    client: Annotated[bool, typer.Option("--client", help="The token that can only ask agents served over HTTP, and judge.")] = False,
    link: Annotated[bool, typer.Option("--link", help="A link to the status page that needs no typing.")] = False,
    config: Config = None,
    state: State = None,
) -> None:
    """Print the operator's token (or the viewer's, or the client's), which the daemon made at its first start."""

    async def work() -> int:
        from agentd.api.tokens import Role, read_token, token_path  # noqa: PLC0415 - with the settings

        where = Where(config, state)
        if link:
            async with where.client() as daemon:
                typer.echo(daemon.page_url)
            return GOOD
        if viewer and client:
            raise UsageMistake("give one of --viewer and --client")
        role = Role.VIEWER if viewer else Role.CLIENT if client else Role.OPERATOR
        directory = where.settings().state_directory
        found = read_token(directory, role)
        if found is None:
            raise UsageMistake(f"{token_path(directory, role)} is not there, or not yours to read; the daemon makes it at its first start")
        typer.echo(found)
        return GOOD

    finish(work)


def backup(
    path: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")],
    *,
    config: Config = None,
    state: State = None,
) -> None:
    """Copy the store, while the daemon uses it, to a file that appears whole or not at all."""

    async def work() -> int:
        from agentd.store import SqlStore  # noqa: PLC0415 - SQLAlchemy is slow to import

        if path.exists():
            raise UsageMistake(f"{path} is there already")
        settings = Where(config, state).settings()
        async with await SqlStore.open(settings.store_url, read_only=True) as store:
            await store.backup(path)
        note(f"the store {settings.shown_store_url} was copied to {path}")
        return GOOD

    finish(work)
