"""`agentd optimize`: where the agent is, what is shown meanwhile, and the table at the end."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from agentd.cli import show as views
from agentd.cli.context import FAILED, GOOD, JsonObject, UsageMistake, note, print_json, printable, who
from agentd.clock import SystemClock
from agentd.hosting.offline import Offline, Progress, Result
from agentd.hosting.services import open_services
from agentd.observability.logs import configure_logging
from agentd.records import Source
from agentd.settings import DaemonSettings
from agentd.spec import AgentSpec, EnvironmentKind, load_agent

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for on the command line."""

    proposals: int
    models: tuple[str, ...] = ()
    json: bool = False


async def optimize(agent: str, settings: DaemonSettings, options: Options) -> int:
    """Optimize, show it, and return the exit code. Raises AgentdError where it can't begin."""
    spec, source = _load(agent, settings)
    if spec.environment.kind is EnvironmentKind.HTTP:
        raise UsageMistake(f'{spec.agent.name} has no environment to be run in: kind "http" waits for its clients, so `agentd run` it')
    if options.models:
        spec = spec.model_copy(update={"optimizer": spec.optimizer.model_copy(update={"models": options.models})})
        if spec.models is not None and not spec.models.names:
            spec = spec.model_copy(update={"models": spec.models.model_copy(update={"names": options.models})})
    configure_logging(settings.model_copy(update={"log_level": "error"}))
    result = await _run(spec, source, settings, options)
    print_json(as_json(result)) if options.json else print_result(views.console(), result)
    if result.problem:
        note(f"agentd: {result.problem}")
        return FAILED
    return INTERRUPTED if result.ended == "interrupted" else GOOD


def _load(agent: str, settings: DaemonSettings) -> tuple[AgentSpec, Source]:
    """The agent in the folder `agent`, or the one of this name in the agents directory. Raises SpecError, UsageMistake."""
    folders = [Path(agent), settings.agents / agent]
    for folder in folders:
        if (folder / "agent.toml").is_file():
            return load_agent(folder)
    raise UsageMistake(f"there is no agent.toml in {' nor in '.join(map(str, folders))}")


async def _run(spec: AgentSpec, source: Source, settings: DaemonSettings, options: Options) -> Result:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(RuntimeError):  # not in the main thread: nobody sends us signals
            loop.add_signal_handler(name, stop.set)
    async with open_services(settings, SystemClock()) as services:
        with _bar(options.proposals) as bar:
            work = Offline(spec, source, services, proposals=options.proposals, who=who(), on_progress=bar.show)
            return await work.run(stop)


class _Shown:
    """The progress bar on standard error; where that is no terminal, a line for each attempt."""

    def __init__(self, bar: Bar, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=total, score="", dollars=0.0, accepted=0)
        self._told = 0

    def show(self, progress: Progress) -> None:
        """Show how far it is."""
        for attempt in progress.attempts[self._told :]:
            if not self._bar.console.is_terminal:
                note(f"{attempt.number}: {attempt.algorithm} {attempt.fate}: {attempt.reason}")
        self._told = len(progress.attempts)
        self._bar.update(
            self._task,
            completed=self._told,
            description=printable(progress.doing)[:60],
            score="" if progress.score is None else f"score {progress.score:.3f}",
            dollars=progress.dollars,
            accepted=progress.accepted,
        )


@contextmanager
def _bar(total: int) -> Iterator[_Shown]:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[accepted]} accepted", markup=False),
        TextColumn("{task.fields[score]}", markup=False),
        TextColumn("${task.fields[dollars]:.4f}", markup=False),
        TextColumn("{task.description}", markup=False),
    )
    console = Console(stderr=True, highlight=False)
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield _Shown(bar, total)


def as_json(result: Result) -> JsonObject:
    """For other programs."""
    return {
        "agent": result.agent,
        "before": result.before,
        "after": result.after,
        "improved": result.before != result.after,
        "accepted": result.progress.accepted,
        "score": result.progress.score,
        "dollars": result.progress.dollars,
        "ended": result.ended,
        "problem": result.problem,
        "attempts": [asdict(attempt) for attempt in result.progress.attempts],
    }


def print_result(out: Console, result: Result) -> None:
    """The table, and what serves from now on."""
    rows = [
        (
            attempt.number,
            attempt.algorithm,
            ", ".join(attempt.paths),
            views.word(attempt.fate),
            attempt.pairs or "",
            _score(attempt.reference),
            _score(attempt.candidate),
            f"{attempt.dollars:.4f}",
            attempt.revision[:10],
            attempt.reason,
        )
        for attempt in result.progress.attempts
    ]
    heads = ("#", "by", "changes", "fate", "pairs", "before", "after", "$", "revision", "why")
    if rows:
        out.print(views.table(heads, rows, right=("#", "pairs", "before", "after", "$")))
    if result.ended:
        out.print(views.text(f"ended early: {result.ended}"))
    if result.before == result.after:
        out.print(
            views.text(f"nothing better was found; {result.agent} stays at {result.after[:10]}" if result.after else "nothing was tried")
        )
    else:
        score = "" if result.progress.score is None else f", score {result.progress.score:.3f}"
        out.print(
            views.text(
                f"{result.agent} is at {result.after[:10]} now (was {result.before[:10]}){score}, for ${result.progress.dollars:.4f}"
            )
        )
        out.print(views.text(f"`agentd diff {result.agent}` shows what changed; `agentd run` serves it"))


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
