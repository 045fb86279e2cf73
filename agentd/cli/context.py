"""What the verbs share: their options, where the daemon is, how they end."""

import asyncio
import functools
import getpass
import inspect
import json
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from agentd.errors import AgentdError, Ambiguous, DaemonUnreachable, NotFound, SpecError

if TYPE_CHECKING:
    from agentd.cli.client import Client
    from agentd.settings import DaemonSettings

JsonObject = dict[str, Any]

GOOD, FAILED, USAGE, UNREACHABLE, GOING_ON = 0, 1, 2, 3, 4

Config = Annotated[Path | None, typer.Option("--config", help="The daemon's agentd.toml (default: AGENTD_CONFIG, else ./agentd.toml).")]
State = Annotated[Path | None, typer.Option("--state", help="The daemon's state directory (default: its setting).")]
StoreOption = Annotated[str | None, typer.Option("--store", help="Read this store (URL or SQLite file); no daemon is asked.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many, the newest.")]
Agent = Annotated[str, typer.Argument(help="The agent's name.")]
Reason = Annotated[str, typer.Option("--reason", "-m", help="Why: kept for the audit.")]


class UsageMistake(AgentdError):  # noqa: N818 - not a fault of this program
    """What was asked for can't be; the message says what can."""


class Refused(AgentdError):  # noqa: N818 - the daemon's answer, not a fault of this program
    """The daemon answered with a problem document (RFC 9457). `problem` is the whole of it."""

    def __init__(self, problem: Mapping[str, Any]) -> None:
        self.problem = dict(problem)
        self.status = int(self.problem.get("status", 0))
        self.kind = str(self.problem.get("type", "")).removeprefix("urn:agentd:")
        super().__init__(str(self.problem.get("detail") or self.problem.get("title") or "the daemon refused"))


class Reader(Protocol):
    """What reading verbs need: agentd.cli.client.Client has it (and the docstrings), agentd.cli.offline.StoreReader has it."""

    async def status(self) -> JsonObject: ...  # noqa: D102 - see above
    async def agents(self) -> list[JsonObject]: ...  # noqa: D102 - see above
    async def agent(self, agent: str) -> JsonObject: ...  # noqa: D102 - see above
    async def parameter_list(self, agent: str, revision: str | None = None) -> list[JsonObject]: ...  # noqa: D102 - see above
    async def revisions(self, agent: str, limit: int = 100) -> list[JsonObject]: ...  # noqa: D102 - see above
    async def revision(self, revision: str) -> JsonObject: ...  # noqa: D102 - see above
    async def releases(self, agent: str, limit: int = 100) -> list[JsonObject]: ...  # noqa: D102 - see above
    async def release(self, release: str) -> JsonObject: ...  # noqa: D102 - see above
    async def episodes(  # noqa: D102 - see above
        self, agent: str, limit: int = 100, *, revision: str | None = None, role: str | None = None
    ) -> list[JsonObject]: ...
    async def episode(self, episode: str) -> JsonObject: ...  # noqa: D102 - see above
    async def trace(self, episode: str) -> JsonObject: ...  # noqa: D102 - see above
    async def logs(self, agent: str, limit: int = 200) -> list[str]: ...  # noqa: D102 - see above
    async def events(  # noqa: D102 - see above
        self, agent: str | None = None, limit: int = 100, *, after: int | None = None
    ) -> list[JsonObject]: ...


@dataclass(frozen=True, slots=True)
class Where:
    """Which daemon, which store."""

    config: Path | None = None
    state: Path | None = None
    store: str | None = None

    def settings(self) -> "DaemonSettings":
        """The daemon's settings, as far as they matter for finding it. Raises SpecError."""
        from agentd.settings import CONFIG_NAME, load_settings  # noqa: PLC0415 - pydantic-settings is slow to import

        if self.state is None:
            return load_settings(self.config)
        # A state directory names a daemon by itself; a configuration file of another one that happens to be here must not mix in.
        beside = self.state / CONFIG_NAME
        if self.config is None and not beside.exists():
            return load_settings(Path(os.devnull), state_directory=self.state.absolute())
        return load_settings(self.config or beside, state_directory=self.state.absolute())

    def client(self) -> "Client":
        """The daemon's API. Raises DaemonUnreachable."""
        from agentd.cli.client import Client  # noqa: PLC0415 - httpx is slow to import

        return Client.from_state(self.settings().state_directory, who=who())


def where_to_ask(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options --config and --state, which it gets as `where`."""
    return _located(verb, {"config": Config, "state": State})


def where_to_read(verb: Callable[..., None]) -> Callable[..., None]:
    """As `where_to_ask`, with --store beside them: the verb can do without a daemon."""
    return _located(verb, {"config": Config, "state": State, "store": StoreOption})


def _located(verb: Callable[..., None], options: Mapping[str, Any]) -> Callable[..., None]:
    @functools.wraps(verb)
    def located(**values: Any) -> None:
        where = Where(**{name: values.pop(name, None) for name in options})
        verb(**values, where=where)

    # typer makes its options from the signature: `where` is replaced by what it is made from
    shown = [parameter for parameter in inspect.signature(verb).parameters.values() if parameter.name != "where"]
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind) for name, kind in options.items()]
    located.__signature__ = inspect.Signature([*shown, *added])  # type: ignore[attr-defined] # what inspect.signature looks for
    located.__annotations__ = {parameter.name: parameter.annotation for parameter in (*shown, *added)}
    return located


def who() -> str:
    """The name that the audit shows: this user's."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "operator"


def finish(work: Callable[[], Coroutine[Any, Any, int]]) -> None:
    """Do `work` and end with its exit code, or with that of its error."""
    try:
        code = asyncio.run(work())
    except AgentdError as error:
        complain(error)
        code = exit_code(error)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # The reader (head, less) has had enough; Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = GOOD
    raise typer.Exit(code)


def change(where: Where, work: Callable[["Client"], Awaitable[int]]) -> None:
    """Do `work` with the daemon's API and end with its exit code."""

    async def changing() -> int:
        async with where.client() as client:
            await client.ping()  # what hangs is told in seconds, and before anything was asked of it
            return await work(client)

    finish(changing)


def seconds(text: str | None, option: str) -> float | None:
    """Seconds of a duration that an option was given. Raises typer.BadParameter."""
    if text is None:
        return None
    from agentd.configuration import parse_duration  # noqa: PLC0415 - only where one is given

    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def complain(error: AgentdError) -> None:
    """Say what is wrong on standard error."""
    typer.echo(f"agentd: {printable(str(error))}", err=True)
    if isinstance(error, Refused):
        for path, problem in (error.problem.get("problems") or {}).items():
            typer.echo(f"  {printable(str(path))}: {printable(str(problem))}", err=True)
    if isinstance(error, DaemonUnreachable) and not error.hangs:
        typer.echo("  `agentd run` starts one; --config or --state says which one is meant", err=True)


def exit_code(error: AgentdError) -> int:
    """The exit code of an error."""
    if isinstance(error, DaemonUnreachable):
        return UNREACHABLE
    if isinstance(error, SpecError | UsageMistake | NotFound | Ambiguous):
        return USAGE
    if isinstance(error, Refused):
        return USAGE if error.status in {400, 404, 422} or error.kind == "ambiguous" else FAILED
    return FAILED


def note(text: str) -> None:
    """Something that the reader should know, out of the way of what is piped on."""
    typer.echo(printable(text), err=True)


def print_json(document: Any) -> None:
    """`document` for other programs."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def printable(text: str) -> str:
    """`text` without control characters, which could move the terminal's cursor or recolour what an operator decides on."""
    return "".join(character if character.isprintable() or character in "\n\t" else repr(character)[1:-1] for character in text)
