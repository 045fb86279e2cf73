"""What differs between two sets of parameter values: code and texts by line, everything else as before and after."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from agentd.cli.context import Reader
from agentd.cli.show import text
from agentd.errors import AgentdError

SOURCE = "source"
STYLES = {"+": "green", "-": "red", "@": "cyan"}


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison. `values` has every known path; `label` is what people call it."""

    label: str
    values: Mapping[str, Any]


async def sides(reader: Reader, first: str, second: str | None) -> tuple[Side, Side]:
    """The two sides that `agentd diff FIRST SECOND` means.

    Each may be a revision (id or prefix), an agent's name (its stable revision) or `source` (the defaults). An agent alone is compared
    with its source, a revision alone with its parent.
    """
    agents = {agent["name"]: agent for agent in await reader.agents()}
    if second is None and first in agents:
        stable = agents[first]["state"]["stable"]
        return await _source_side(reader, first), await _revision_side(reader, stable, f"{first}, stable")
    if second is None:
        revision = await reader.revision(first)
        parent = next((item["parent"] for item in revision["provenance"] if item["parent"]), None)
        before = await _revision_side(reader, parent, "parent") if parent else await _source_side(reader, revision["agent"])
        return before, await _revision_side(reader, first, "revision")
    named = next((name for name in (first, second) if name != SOURCE), None)
    if named is None:
        raise AgentdError("one of the two must be an agent or a revision")
    agent = named if named in agents else (await reader.revision(named))["agent"]
    made = []
    for name in (first, second):
        if name == SOURCE:
            made.append(await _source_side(reader, agent))
        elif name in agents:
            made.append(await _revision_side(reader, agents[name]["state"]["stable"], f"{name}, stable"))
        else:
            made.append(await _revision_side(reader, name, "revision"))
    return made[0], made[1]


async def _source_side(reader: Reader, agent: str) -> Side:
    return Side(SOURCE, {parameter["path"]: parameter["default"] for parameter in await reader.parameter_list(agent)})


async def _revision_side(reader: Reader, key: str, label: str) -> Side:
    revision = await reader.revision(key)
    agent = await reader.agent(revision["agent"])
    # The defaults of an older source are not known here; what the revision itself says is.
    same_source = agent["state"] and agent["state"]["source"] == revision["source"]
    defaults = (await _source_side(reader, revision["agent"])).values if same_source else {}
    return Side(f"{label} {revision['id'][:10]}", {**defaults, **revision["values"]})


def compare(before: Side, after: Side) -> dict[str, Any]:
    """The document of `agentd diff --json`: for each path that differs before, after and, for texts, the unified diff."""
    paths = {}
    for path in sorted({*before.values, *after.values}):
        old, new = before.values.get(path), after.values.get(path)
        if old == new and path in before.values and path in after.values:
            continue
        change: dict[str, Any] = {"before": old, "after": new}
        if isinstance(old, str) and isinstance(new, str) and ("\n" in old or "\n" in new):
            names = (f"{path} ({before.label})", f"{path} ({after.label})")
            change["diff"] = list(difflib.unified_diff(old.splitlines(), new.splitlines(), *names, lineterm=""))
        paths[path] = change
    return {"before": before.label, "after": after.label, "parameters": paths}


def lines(comparison: Mapping[str, Any]) -> list[Text]:
    """The comparison for people."""
    found = [text(f"{comparison['before']} -> {comparison['after']}", "bold")]
    for path, change in comparison["parameters"].items():
        if "diff" in change:
            found += [text(line, STYLES.get(line[:1], "")) for line in change["diff"]]
        else:
            found.append(text(f"{path}: {json.dumps(change['before'])} -> {json.dumps(change['after'])}"))
    if not comparison["parameters"]:
        found.append(text("no differences"))
    return found
