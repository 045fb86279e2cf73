"""`agentd export` and `agentd import`: what a revision learned, out as a patch or a document, and in again."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agentd.cli.context import Reader, UsageMistake, printable
from agentd.cli.show import number, when
from agentd.errors import CodecError
from agentd.records import Parameter, Value
from agentd.writeback import ExportDocument, ExportedParameter, Written, read_document, unified_diff, write_back

JSON = dict[str, Any]
MAX_RELEASES = 1000


@dataclass(frozen=True, slots=True)
class Export:
    """A revision's learned values, as the patch has them (`written` against `files`) and as a document."""

    document: ExportDocument
    files: Mapping[str, str]
    written: Written

    def patch(self) -> str:
        """The message, then the diff. Empty where there is nothing to change."""
        diff = unified_diff(self.files, self.written.files)
        return f"{message(self.document)}\n{diff}" if diff else ""


async def export(reader: Reader, agent: str, revision: str | None, folder: Path | None) -> Export:
    """What `revision` (the stable one) of `agent` learned.

    `folder` is a checkout of the agent whose line ends the patch takes over.

    Raises:
        UsageMistake: the revision is another agent's, or the checkout is not of its source.
    """
    state = (await reader.agent(agent))["state"]
    if state is None:
        raise UsageMistake(f"{agent} has no revision yet: its runner was never up")
    found = await reader.revision(revision or state["stable"])
    if found["agent"] != agent:
        raise UsageMistake(f"revision {found['id'][:10]} is of the agent {found['agent']}, not of {agent}")
    described: list[JSON] | None = None
    if found["source"] == state["source"]:
        described = await reader.parameter_list(agent, found["id"])
    known = None if described is None else [msgspec.convert(parameter, Parameter) for parameter in described]
    files = found["source_files"] if folder is None else _checked_out(folder, found["source_files"])
    written = write_back(files, found["entrypoint"], known, found["values"])
    if foreign := sorted(file for file in written.files if _unified(files[file]) != found["source_files"][file]):
        raise UsageMistake(f"{', '.join(foreign)} in {folder} differs from what revision {found['id'][:10]} was made on")
    document = ExportDocument(
        agent=agent,
        revision=found["id"],
        source=found["source"],
        learned=_learned(found["values"], known or (), written),
        evidence=await _evidence(reader, agent, found),
    )
    return Export(document, files, written)


def _checked_out(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    """The files as they lie in `folder`, where they say the same; else as the store has them."""
    found = dict(files)
    for file in files:
        try:
            text = (folder / file).read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageMistake(f"{folder / file} can't be read: {getattr(error, 'strerror', None) or error}") from error
        found[file] = text
    return found


def _unified(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _learned(values: Mapping[str, Value], known: Sequence[Parameter], written: Written) -> tuple[ExportedParameter, ...]:
    by_path = {parameter.path: parameter for parameter in known}
    learned = []
    for path, value in values.items():
        parameter = by_path.get(path)
        one = ExportedParameter(path=path, value=value, place=written.places.get(path, ""), not_in_patch=written.left_out.get(path, ""))
        if parameter is not None:
            one = msgspec.structs.replace(one, kind=parameter.kind, default=parameter.default, signature=parameter.signature)
        learned.append(one)
    return tuple(learned)


# --- evidence --------------------------------------------------------------------------------------------------------


async def _evidence(reader: Reader, agent: str, revision: JSON) -> JSON:
    """Where the revision came from, and the release that let it serve; that of an ancestor whose values a new source took over."""
    releases = await reader.releases(agent, MAX_RELEASES)
    tried, release, seen = revision, None, set()
    while tried["id"] not in seen:
        seen.add(tried["id"])
        mine = [one for one in releases if one["candidate"] == tried["id"] and one["kind"] == "proposal"]
        release = next((one for one in mine if one["phase"] in {"promoted", "rolled_back"}), mine[0] if mine else None)
        origin = tried["provenance"][-1] if tried["provenance"] else {}
        if release is not None or origin.get("origin") != "source" or not origin.get("parent"):
            break
        tried = await reader.revision(origin["parent"])
    evidence: JSON = {"provenance": revision["provenance"], "release": None}
    if release is None:
        return evidence
    whole = await reader.release(release["id"])
    last = whole["history"][-1] if whole["history"] else {}
    kept = ("id", "candidate", "reference", "phase", "stage", "reason", "forced", "begun_at", "ended_at", "pairs", "difference", "e_value")
    evidence["release"] = {name: whole[name] for name in kept} | {"who": last.get("who", "agentd"), "history": whole["history"]}
    proposed = whole["proposed"] or {}
    evidence["proposal"] = {name: proposed.get(name, "") for name in ("id", "algorithm", "who", "reasoning")}
    return evidence


def message(document: ExportDocument) -> str:
    """What a commit or a pull request should say of the values. No line of it can be taken for a part of a patch."""
    learned = [one for one in document.learned if not one.not_in_patch]
    left_out = [one for one in document.learned if one.not_in_patch]
    names = [one.path for one in learned]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    lines = [_line(f"{document.agent}: {shown} as learned by agentd"), ""]
    lines += [f"Revision: {document.revision}", f"Source: {document.source}"]
    lines += _release_lines(document)
    lines += [_line(f"Left out: {one.path}: {one.not_in_patch}") for one in left_out]
    return "\n".join(lines) + "\n"


def _release_lines(document: ExportDocument) -> list[str]:
    release, provenance = document.evidence["release"], document.evidence["provenance"]
    origin = provenance[-1] if provenance else {}
    made = [_line(f"Made: {when(origin.get('at'))} by {origin.get('who')} ({origin.get('origin')})")] if origin else []
    if release is None:
        return [*made, "Release: none; it serves by an operator's decision or as the author's source"]
    carried = "" if release["candidate"] == document.revision else f", as revision {release['candidate']} on an earlier source"
    forced = ", forced past its canary" if release["forced"] else ""
    verdict = f"{release['phase'].replace('_', ' ')} {when(release['ended_at'])} by {release['who']}"
    lines = [*made, _line(f"Release: {release['id']}, {verdict}{forced}{carried}")]
    if release["reason"]:
        lines.append(_line(f"Because: {release['reason']}"))
    difference, e_value = number(release["difference"], "+.4f"), number(release["e_value"], ".4g")
    evidence = f"{release['pairs']} pairs, mean difference {difference} of the score's range, e-value {e_value}"
    lines.append(f"Evidence: {evidence if release['pairs'] else 'no pairs were run'}")
    proposal = document.evidence.get("proposal") or {}
    if proposal.get("algorithm"):
        lines.append(_line(f"Proposed by: {proposal['who']} ({proposal['algorithm']})"))
    if proposal.get("reasoning"):
        lines += ["Reasoning:", *(f"> {line}" for line in textwrap.wrap(_line(proposal["reasoning"]), 100))]
    return lines


def _line(text: str) -> str:
    """`text` on one line: what a model or an operator wrote must not begin a line of a patch."""
    return printable(" ".join(str(text).split()))


# --- in again --------------------------------------------------------------------------------------------------------


def read(path: Path, agent: str) -> ExportDocument:
    """The document in `path`. Raises UsageMistake for another one, another agent's included."""
    try:
        document = read_document(path.read_bytes())
    except OSError as error:
        raise UsageMistake(f"{path} can't be read: {error.strerror}") from error
    except CodecError as error:
        raise UsageMistake(f"{path}: {error}") from error
    if document.agent != agent:
        raise UsageMistake(f"{path} is of the agent {document.agent}, not of {agent}")
    return document


def values_to_submit(document: ExportDocument, parameters: Sequence[JSON], source: str) -> JSON:
    """What makes the agent's values those of the document's revision: the learned ones, and the defaults of those that it has not.

    On another source than the document's, a learned value fits where the parameter has the same kind, signature and default there.

    Raises:
        UsageMistake: a value doesn't fit, with every path; or there is nothing to change.
    """
    now = {parameter["path"]: parameter for parameter in parameters}
    misfits = {}
    for learned in document.learned:
        parameter = now.get(learned.path)
        if parameter is None:
            misfits[learned.path] = f"the agent has no such parameter; it has {', '.join(sorted(now)) or 'none'}"
        elif document.source != source:
            before = (learned.kind, learned.signature, learned.default)
            if learned.kind is None:
                misfits[learned.path] = "the source is another one, and the document doesn't say what the default was"
            elif before != (parameter["kind"], parameter["signature"], parameter["default"]):
                misfits[learned.path] = "its kind, signature or default in the source has changed since"
    if misfits:
        told = "; ".join(f"{path}: {reason}" for path, reason in misfits.items())
        raise UsageMistake(f"the document is of the source {document.source[:10]}, the agent runs {source[:10]}. {told}")
    values = {learned.path: learned.value for learned in document.learned}
    wanted = {path: values.get(path, parameter["default"]) for path, parameter in now.items()}
    changed = {path: value for path, value in wanted.items() if value != now[path]["value"]}
    if not changed:
        raise UsageMistake(f"nothing to change: the stable revision has the values of {document.revision[:10]} already")
    return changed
