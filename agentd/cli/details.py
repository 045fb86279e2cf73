"""`agentd show`: one thing in detail, found by its name or the beginning of its id."""

from functools import partial
from typing import Any

from rich.console import Console

from agentd.cli import differences, show
from agentd.cli.context import Reader, Refused
from agentd.errors import NotFound

JSON = dict[str, Any]


async def find(reader: Reader, name: str) -> tuple[str, JSON]:
    """What `name` is, and its document. Raises NotFound; Ambiguous (or Refused) where a beginning fits several."""
    if name in {agent["name"] for agent in await reader.agents()}:
        return "agent", await reader.agent(name) | {"parameters": await reader.parameter_list(name)}
    for kind, read in (("release", partial(release, reader)), ("revision", reader.revision), ("episode", reader.episode)):
        try:
            return kind, await read(name)
        except NotFound:
            continue
        except Refused as error:
            if error.status not in {404, 422}:
                raise
    raise NotFound("agent, release, revision or episode", name)


async def release(reader: Reader, key: str) -> JSON:
    """A release, and as `changes` (the document of `agentd diff`) what its candidate changes in the revision that it is compared with."""
    found: JSON = await reader.release(key)
    comparison = differences.compare(*await differences.sides(reader, found["reference"], found["candidate"]))
    return found | {"changes": comparison}


def print_details(kind: str, found: JSON) -> None:
    """The document for people."""
    out = show.console()
    {"agent": _agent, "release": _release, "revision": _revision, "episode": _episode}[kind](out, found)


def _agent(out: Console, agent: JSON) -> None:
    show.print_agent(out, agent)
    out.print(show.text("parameters of the stable revision", "bold"))
    show.print_parameters(out, agent["parameters"])


def _release(out: Console, release: JSON) -> None:
    out.print(show.releases_table([release]))
    if release["phase"] == "awaiting_approval":
        agent, key = release["agent"], release["id"]
        out.print(show.text(f"\nwaits for a person: `agentd approve {agent} {key}`, or `agentd abort {agent} {key}`", "yellow"))
    if release["proposed"]:
        proposed = release["proposed"]
        cost = f", {proposed['dollars']:.4f} dollars" if proposed["dollars"] else ""
        out.print(show.text(f"\nproposed by {proposed['who']} ({proposed['algorithm']}{cost})", "bold"))
        out.print(show.indented(show.text(proposed["reasoning"] or "no reasons given")))
    out.print(show.text("\nwhat it changes", "bold"))
    for line in differences.lines(release["changes"]):
        out.print(show.indented(line))
    _screening(out, release["screening"])
    out.print(show.text("\nwhat happened", "bold"))
    rows = [(show.when(change["at"]), show.word(change["phase"]), change["who"], change["reason"]) for change in release["history"]]
    out.print(show.indented(show.table(("when", "phase", "who", "reason"), rows)))
    if release["evidence"]:
        out.print(show.text("\nevidence", "bold"))
        pairs = [(position, *_evidence(one)) for position, one in enumerate(release["evidence"], 1)]
        heads = ("pair", "device", "stable", "candidate", "difference", "note")
        out.print(show.indented(show.table(heads, pairs, right=("pair", "stable", "candidate", "difference"))))


def _evidence(one: JSON) -> tuple[str, ...]:
    """Device, stable's and the candidate's score, their difference, and a note; a single episode has one score."""
    if "role" in one:
        scores = {one["role"]: "silent" if one["score"] is None else show.number(one["score"])}
        note = one["guardrail"] or ("aborted" if one["aborted"] else "")
        return one["device"], scores.get("stable", ""), scores.get("candidate", ""), "", note
    note = one["guardrail"] or ("candidate aborted" if one["candidate_aborted"] else "against the anchor" if one["anchored"] else "")
    difference = show.number(one["candidate"] - one["reference"], "+.3f")
    return one["device"], show.number(one["reference"]), show.number(one["candidate"]), difference, note


def _screening(out: Console, screening: JSON | None) -> None:
    out.print(show.text("\nreplay of recorded steps", "bold"))
    if screening is None:
        out.print(show.indented(show.text("none yet")))
    elif not screening["ticks"]:
        out.print(show.indented(show.text("nothing was recorded yet that could be replayed")))
    else:
        share = screening["differing"] / screening["ticks"]
        facts = [
            ("replayed", f"{screening['ticks']} ticks of {screening['episodes']} episodes"),
            ("acts otherwise", f"{screening['differing']} ({share:.1%})"),
            ("outside the envelope", screening["invalid"]),
            ("longest latency", f"{screening['max_latency'] * 1000:.2f} ms"),
        ]
        out.print(show.indented(show.table(("", ""), facts)))


def _revision(out: Console, revision: JSON) -> None:
    out.print(show.text(f"revision {revision['id']} of {revision['agent']}", "bold"))
    out.print(show.text(f"source {revision['source']}", "dim"))
    for origin in revision["provenance"]:
        parent = f", from {show.short(origin['parent'])}" if origin["parent"] else ""
        out.print(show.text(f"{show.when(origin['at'])}  by {origin['who']} ({origin['origin']}{parent})  {origin['note']}"))
    if not revision["values"]:
        out.print(show.text("all values are the source's defaults"))
    for path, value in revision["values"].items():
        if isinstance(value, str) and "\n" in value:
            out.print(show.text(path, "bold"))
            out.print(show.indented(show.code(value)))
        else:
            out.print(show.text(f"{path} = {value!r}"))


def _episode(out: Console, episode: JSON) -> None:
    judged = episode["feedback"] or {}
    facts = [
        ("agent", episode["agent"]),
        ("device", episode["device"]),
        ("revision", episode["revision"]),
        ("role", f"{episode['role']}, {episode['purpose']}"),
        ("started", show.when(episode["started_at"])),
        ("duration", f"{episode['duration']:.2f} s, {len(episode['steps'])} ticks"),
        ("outcome", show.word(episode["outcome"])),
        ("score", show.number(judged.get("score"))),
        ("feedback", judged.get("text") or judged.get("failed") or show.awaited(episode["awaits_until"]) or "none"),
        ("error", episode["error"] or episode["reason"] or "none"),
    ]
    out.print(show.text(f"episode {episode['id']}", "bold"))
    out.print(show.indented(show.table(("", ""), facts)))
    steps = episode["steps"]
    shown = steps if len(steps) <= 12 else [*steps[:6], *steps[-6:]]
    rows = [
        (
            step["tick"],
            step["observation"],
            step["action"],
            show.number(step["reward"], "g"),
            step["safe"] or "",
            f"{step['latency'] * 1000:.2f}",
        )
        for step in shown
    ]
    out.print(show.table(("tick", "observation", "action", "reward", "safe action because", "ms"), rows, right=("tick", "reward", "ms")))
    for step in shown:
        for exchange in step.get("exchanges", ()):
            question = exchange["messages"][-1][1] if exchange["messages"] else "(not kept)"
            answer = exchange["error"] or exchange["answer"]
            cost = f"{exchange['model']}, {exchange['tokens_in']}+{exchange['tokens_out']} tokens, {exchange['seconds']:.1f} s"
            out.print(show.text(f"tick {step['tick']} asked {_clipped(question, 60)} -> {_clipped(answer, 80)} ({cost})", "dim"))
    if len(shown) < len(steps):
        out.print(show.text(f"the first and last 6 of {len(steps)} ticks; --json has all", "dim"))


def _clipped(text: str, limit: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."
