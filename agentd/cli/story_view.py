"""The demo in the terminal: live progress while it runs, a summary at its end."""

import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agentd.cli.story import BROKEN, HEALTHY, RECOVERED, Story

_BARS = "▁▂▃▄▅▆▇█"
_SHOWN = (
    "watch.",
    "drift.",
    "optimizer.",
    "release.",
    "runner.",
    "agent.",
    "guardrail.",
    "worker.",
    "revision.",
)
_QUIET = frozenset({"release.evidence", "release.validated"})


def sparkline(scores: list[float], width: int = 72) -> str:
    """The latest scores as bars, oldest first."""
    return "".join(_BARS[min(len(_BARS) - 1, int(score * len(_BARS)))] for score in scores[-width:])


class View:
    """What is shown while the demo runs: a live panel on a terminal, lines elsewhere, nothing with `quiet`."""

    def __init__(self, story: Story, *, quiet: bool) -> None:
        self.url = ""
        self._story = story
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)
        self._events: deque[Text] = deque(maxlen=12)
        self._stage = "starting a broker, a robot and the daemon"
        self._done: list[str] = []
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if not self._quiet and self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=8, get_renderable=self._render, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
            self._live = None

    def stage(self, text: str) -> None:
        """A new stage begins."""
        self._done.append(self._stage)
        self._stage = text
        self._line(Text(f"● {text}", style="bold"))

    def event(self, event: Mapping[str, Any]) -> None:
        """An event of the daemon's."""
        kind = str(event.get("kind", ""))
        if not kind.startswith(_SHOWN) or kind in _QUIET:
            return
        style = "red" if "alarm" in kind or "rolled_back" in kind or "failed" in kind else "green" if "promoted" in kind else "dim"
        message = str(event.get("message", ""))
        text = Text(f"  {kind:<22} ", style=style).append(Text(message[:160], style="default"))
        self._events.append(text)
        self._line(text)

    def serving(self) -> None:
        """The demo has ended; the daemon goes on."""
        if not self._quiet:
            self._console.print(f"\nThe daemon goes on serving; Ctrl-C ends it.\n{self.url}", soft_wrap=True)

    def _line(self, text: Text) -> None:
        if not self._quiet and self._live is None:
            self._console.print(text)

    def _render(self) -> Group:
        story = self._story
        head = Table.grid(padding=(0, 2))
        head.add_row("status page", Text(self.url or "…", style="underline"))
        head.add_row("scores", Text(sparkline(story.latest)))
        head.add_row("episodes", f"{story.episodes} ({story.aborted} aborted)   alarms {story.alarms}   rollbacks {story.rollbacks}")
        running = [attempt for attempt in story.attempts.values() if not attempt.verdict]
        for attempt in running[-1:]:
            difference = "" if attempt.difference is None else f", difference {attempt.difference:+.3f}"
            head.add_row("canary", f"{attempt.candidate[:10]} pair {attempt.pairs}, e = {attempt.e_value:.2f}{difference}")
        stages = Text("\n".join(f"✓ {done}" for done in self._done), style="green")
        stages.append(f"\n▶ {self._stage}", style="bold yellow")
        return Group(Panel(stages, title="agentd demo"), Panel(head), Panel(Group(*self._events), title="what the daemon says"))


def as_json(story: Story, *, failure: str, robot: Mapping[str, Any], state: Path, url: str, change: str) -> dict[str, Any]:
    """The summary as plain values."""
    scores = {"before": story.mean(HEALTHY), "broken": story.mean(BROKEN), "after": story.mean(RECOVERED)}
    return {
        "passed": not failure and story.recovered and story.all_stopped,
        "failure": failure,
        "change": change,
        "scores": {name: None if score is None else round(score, 4) for name, score in scores.items()},
        "recovered": story.recovered,
        "alarms": story.alarms,
        "rollbacks": story.rollbacks,
        "releases": [
            {
                "release": attempt.release,
                "candidate": attempt.candidate[:10],
                "by": attempt.algorithm,
                "verdict": attempt.verdict or "in progress",
                "stage": attempt.stage,
                "e_value": None if math.isinf(attempt.e_value) else round(attempt.e_value, 3),
                "pairs": attempt.pairs,
                "difference": None if attempt.difference is None else round(attempt.difference, 4),
                "forced": attempt.forced,
                "reason": attempt.reason,
            }
            for attempt in story.attempts.values()
        ],
        "bad_revisions": [{"it": bad.name, "release": bad.release, "stopped": bad.stopped, "how": bad.how} for bad in story.bad],
        "robot": dict(robot),
        "episodes": story.episodes,
        "state": str(state),
        "status_page": url,
        "next": [
            f"agentd history cartpole --state {state}",
            f"agentd diff cartpole --state {state}",
            f"agentd episodes cartpole --state {state}",
            f"agentd events --state {state}",
        ],
    }


def print_summary(summary: Mapping[str, Any]) -> None:
    """The summary for a person. Reasons hold words of programs: they are text, not markup."""
    console = Console(highlight=False, markup=False)
    console.print(_scores(summary))
    console.print(_releases(summary["releases"]))
    bad = Table("a revision that", "stopped", "how", title="Bad revisions, submitted on purpose", box=SIMPLE_HEAD, pad_edge=False)
    for row in summary["bad_revisions"]:
        bad.add_row(row["it"], "yes" if row["stopped"] else "NO", row["how"][:300])
    console.print(bad)
    robot = summary["robot"]
    console.print(
        f"The robot's own count: {robot['ticks']} ticks; {robot['actions']} got the policy's action, {robot['safe']} the safe action, "
        f"{robot['fallback']} its own fallback; none was without an action."
    )
    verdict = "The score recovered and every bad revision was stopped." if summary["passed"] else "It did not go as it should."
    console.print(f"\n{verdict} {summary['failure']}".rstrip(), style="bold green" if summary["passed"] else "bold red")
    console.print(f"State: {summary['state']}\nWhat to type next:", soft_wrap=True)
    for command in summary["next"]:
        console.print(f"  {command}", soft_wrap=True)


def _scores(summary: Mapping[str, Any]) -> Table:
    table = Table(title="Scores, 0 to 1", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("before", f"broken ({summary['change']})", "after"):
        table.add_column(column, justify="right")
    scores = summary["scores"]
    table.add_row(*("-" if scores[name] is None else f"{scores[name]:.3f}" for name in ("before", "broken", "after")))
    return table


def _releases(rows: list[dict[str, Any]]) -> Group:
    """Two lines a release: a table with a column for the reason leaves it a few letters a line on a terminal of 80 columns."""
    shown: list[Text | Padding] = [Text(f"{'Releases, oldest first':<32}{'e':>8}{'pairs':>7}{'difference':>12}", style="bold")]
    for row in rows:
        difference = "" if row["difference"] is None else f"{row['difference']:+.3f}"
        e_value = "∞" if row["e_value"] is None else f"{row['e_value']:.3g}"
        who = f"{row['by']:<10}{row['verdict'].replace('_', ' '):<13}{row['stage']:<9}"
        style = {"promoted": "green", "rolled_back": "red", "rejected": "red"}.get(row["verdict"], "")
        shown.append(Text(f"{who}{e_value:>8}{row['pairs']:>7}{difference:>12}", style=style))
        shown.append(Padding(Text(row["reason"][:200], style="dim"), (0, 0, 0, 10)))
    return Group(*shown)
