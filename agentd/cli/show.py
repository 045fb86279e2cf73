"""Documents for people: tables and words. What came from an agent is data: never markup, never control characters."""

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from agentd.cli.context import GOOD, print_json, printable

JSON = Mapping[str, Any]
BARS = "▁▂▃▄▅▆▇█"
PIPE_WIDTH = 200
HOLDS = {"quarantined": "quarantine", "frozen": "frozen", "paused": "paused"}
"""The word for each hold, and its key in an agent's state."""
STYLES = {
    "ok": "green",
    "ready": "green",
    "promoted": "green",
    "failed": "bold red",
    "failing": "bold red",
    "rejected": "red",
    "rolled_back": "red",
    "aborted": "red",
    "lost": "red",
    "degraded": "yellow",
    "pruned": "yellow",
    "inconclusive": "yellow",
    "stopped": "dim",
    "starting": "yellow",
    "paused": "yellow",
    "frozen": "cyan",
    "quarantined": "bold red",
}


def console() -> Console:
    """Standard output; wide where nobody's terminal bounds it."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def tell(document: Any, sentence: str, *, json: bool) -> int:
    """What was done: a sentence, or its document. Returns the exit code."""
    print_json(document) if json else console().print(text(sentence))
    return GOOD


def text(value: Any, style: str = "") -> Text:
    """`value` as it is, whatever it contains."""
    return Text(printable("" if value is None else str(value)), style=style)


def word(value: str) -> Text:
    """A state or verdict, in its colour."""
    return text(value.replace("_", " "), STYLES.get(value, ""))


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()) -> Table:
    """A plain table; the columns named in `right` hold numbers. An empty one without a head is left out: it would narrow the others."""
    cells = [[cell if isinstance(cell, Text) else text(cell) for cell in row] for row in rows]
    shown = [index for index, head in enumerate(heads) if head or any(row[index].plain for row in cells)]
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=any(heads))
    for index in shown:
        made.add_column(heads[index], justify="right" if heads[index] in right else "left", overflow="fold")
    for row in cells:
        made.add_row(*(row[index] for index in shown))
    return made


def indented(content: Table | Text | Syntax, below: int = 0) -> Padding:
    """`content` moved in under its heading."""
    return Padding(content, (0, 0, below, 2), expand=False)


def short(identity: str | None) -> str:
    """The beginning of a revision's id."""
    return identity[:10] if identity else "-"


def when(at: float | None) -> str:
    """A Unix time as this machine's date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if at else "-"


def number(value: float | None, form: str = ".3f") -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else format(value, form)


def sparkline(scores: Sequence[float | None], width: int = 40) -> str:
    """The latest scores on [0, 1] as bars, oldest first."""
    known = [score for score in scores if score is not None]
    return "".join(BARS[max(0, min(len(BARS) - 1, int(score * len(BARS))))] for score in known[-width:])


def health(agent: JSON) -> str:
    """How the agent is, in one word: what holds it back comes before how it does."""
    state = agent.get("state") or {}
    held = next((word for word in ("quarantined", "frozen", "paused") if state.get(HOLDS[word])), None)
    return held if held and agent["health"] not in {"failed", "failing", "stopped"} else str(agent["health"])


def put_on(hold: JSON) -> str:
    """Who put a hold on, when, and why."""
    return f"by {hold['who']} since {when(hold['at'])}" + (f": {hold['reason']}" if hold["reason"] else "")


def holds(agent: JSON) -> list[str]:
    """What holds the agent back: by whom, since when, why, and what lets it go on."""
    state, found = agent.get("state") or {}, []
    for word, lift in (("quarantined", "unquarantine"), ("frozen", "unfreeze")):
        hold = state.get(HOLDS[word])
        if hold:
            whose = "--all" if hold["everywhere"] else agent["name"]
            found.append(f"{word} {put_on(hold)}; `agentd {lift} {whose}` lets its releases go on")
    if state.get("paused"):
        found.append(f"paused: no episodes; `agentd resume {agent['name']}` goes on")
    return found


def doing(agent: JSON) -> str:
    """The release in progress in a few words, or a dash."""
    release = agent.get("release")
    if not release:
        return "-"
    phase = release["phase"].replace("_", " ")
    waiting = f" ({agent['waiting']})" if agent.get("waiting") else ""
    return f"{phase} of {short(release['candidate'])}, {release['pairs']} pairs{waiting}"


def agents_table(agents: Iterable[JSON]) -> Table:
    """A line for each agent."""
    rows = []
    for agent in agents:
        state = agent.get("state") or {}
        recent = agent["recent"][-10:]
        score = number(sum(recent) / len(recent)) if recent else "-"
        bars = sparkline(agent["recent"], 24)
        rows.append((agent["name"], word(health(agent)), agent["mode"], short(state.get("stable")), score, bars, doing(agent)))
    return table(("agent", "health", "mode", "stable", "score", "recent", "release"), rows, right=("score",))


def print_agent(out: Console, agent: JSON) -> None:
    """One agent, all that an operator asks first."""
    state = agent.get("state") or {}
    watch = state.get("watch") or {}
    if watch.get("alarmed"):
        watching = "alarm"
    elif watch.get("bound") is not None:
        watching = f"at least {watch['bound']:.3f} expected, {watch['episodes']} episodes seen"
    else:
        watching = f"burn-in, {watch.get('episodes', 0)} episodes seen"
    facts: list[tuple[str, Any]] = [
        ("health", word(agent["health"])),
        ("problem", agent["problem"] or "none"),
        ("held", "\n".join(holds(agent)) or "no"),
        ("mode", agent["mode"]),
        ("stable", state.get("stable")),
        ("last good", state.get("last_good") or "none yet"),
        ("scores", f"{sparkline(agent['recent'], 60)} {number(agent['recent'][-1]) if agent['recent'] else 'none yet'}"),
        ("watch", watching),
        ("regime", state.get("regime", 0)),
        ("devices", ", ".join(f"{device}: {status}" for device, status in agent["devices"].items()) or "none"),
        ("optimizer", agent["optimizer"] or "-"),
    ]
    if agent.get("models_dollars") is not None:
        facts.append(("models", f"{agent['models_remaining']:.2f} of {agent['models_dollars']:g} dollars a day are left"))
    if agent.get("windows"):
        closes = when(agent["windows_close_at"])
        facts.append(("feedback", f"{agent['windows']} episodes may still be judged; the oldest window closes {closes}"))
    if agent["runner_session"]:
        runner = f"pid {agent['runner_pid']}, session {agent['runner_session']}{', adopted' if agent['runner_adopted'] else ''}"
        facts += [
            ("runner", runner),
            ("isolation", f"level {agent['isolation']}"),
            ("episodes", f"{agent['episodes']} since the daemon started"),
        ]
    out.print(text(agent["name"], "bold"))
    out.print(indented(table(("", ""), facts)))
    if state.get("conflicts"):
        paths = ", ".join(conflict["path"] for conflict in state["conflicts"])
        out.print(text(f"the source has changed under learned values of {paths}: `agentd rebase {agent['name']}` settles it", "yellow"))
    if agent["release"]:
        out.print(text("release in progress" + (f": {agent['waiting']}" if agent.get("waiting") else ""), "bold"))
        out.print(indented(releases_table([agent["release"]])))


def releases_table(releases: Iterable[JSON]) -> Table:
    """The history of releases: what became of each, and on what evidence."""
    rows = []
    for release in releases:
        last = release["history"][-1] if release["history"] else {}
        verdict = word(release["phase"])
        if release["forced"]:
            verdict.append(" (forced)")
        if release["kind"] != "proposal":
            verdict.append(f" ({release['kind']})")
        reason = release["reason"] or last.get("reason", "")
        rows.append(
            (
                when(release["ended_at"] or release["begun_at"]),
                release["id"],
                short(release["candidate"]),
                verdict,
                release["stage"] or "-",
                release["pairs"],
                number(release["difference"], "+.3f"),
                number(release["e_value"], ".3g"),
                last.get("who", "agentd"),
                reason,
            )
        )
    heads = ("when", "release", "candidate", "verdict", "stage", "pairs", "difference", "e-value", "who", "reason")
    return table(heads, rows, right=("pairs", "difference", "e-value"))


def awaited(until: float | None) -> str:
    """That somebody may still judge an episode; empty where nobody is waited for."""
    return "" if until is None else f"may be judged until {when(until)}"


def episodes_table(episodes: Iterable[JSON]) -> Table:
    """A line for each episode."""
    rows = [
        (
            when(episode["started_at"]),
            episode["id"],
            episode["device"],
            short(episode["revision"]),
            episode["role"],
            episode["purpose"],
            word(episode["outcome"]),
            episode["ticks"],
            number(episode["score"]),
            episode["safe_actions"] or "",
            episode["error"] or episode["feedback"] or episode["reason"] or awaited(episode["awaits_until"]),
        )
        for episode in episodes
    ]
    heads = ("started", "episode", "device", "revision", "role", "purpose", "outcome", "ticks", "score", "safe", "feedback")
    return table(heads, rows, right=("ticks", "score", "safe"))


def event_line(event: JSON) -> Text:
    """An event on a line of its own."""
    line = text(when(event["at"]), "dim")
    line.append_text(text(f"  {event['agent'] or '-':<14}"))
    line.append_text(text(f"  {event['kind']:<22}", "bold"))
    line.append_text(text(f"  {event['message']}".replace("\n", " ")))
    if event["who"] != "agentd":
        line.append_text(text(f"  ({event['who']})", "dim"))
    return line


def print_parameters(out: Console, parameters: Iterable[JSON]) -> None:
    """Parameters with their values; code and long texts on lines of their own."""
    for parameter in parameters:
        changed = "" if parameter["value"] == parameter["default"] else "  changed"
        head = text(parameter["path"], "bold")
        head.append_text(text(f"  {parameter['kind']}", "dim"))
        head.append_text(text(changed, "yellow"))
        value = parameter["value"]
        if parameter["kind"] == "code":
            out.print(head)
            out.print(indented(code(str(value)), 1))
        elif isinstance(value, str) and "\n" in value:
            out.print(head)
            out.print(indented(text(value), 1))
        else:
            head.append_text(text(f"  = {value!r}"))
            out.print(head)


def code(source: str) -> Syntax:
    """Python, coloured."""
    return Syntax(printable(source).rstrip("\n"), "python", theme="ansi_dark", background_color="default", word_wrap=True)
