"""Records as JSON shows them: every field present, arrays as lists, nothing that JSON can't say. The CLI shows the same from the store."""

import enum
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from agentd import codec
from agentd.api.ports import AgentStatus, DaemonStatus
from agentd.records import (
    AgentState,
    Episode,
    EpisodeSummary,
    Event,
    Feedback,
    Pair,
    Provenance,
    Release,
    Revision,
    Single,
    Source,
    TraceGraph,
)

MAX_E_VALUE = 1e300


def plain(value: Any) -> Any:  # noqa: PLR0911 - one return per kind of value
    """`value` as dicts, lists, texts, numbers, booleans and None. Numbers that JSON lacks become None, bytes their count."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, bytes | bytearray | memoryview):
        return {"bytes": len(value)}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # an array or number of numpy, which need not be loaded here
        return plain(value.tolist())
    return str(value)


def release_view(release: Release) -> dict[str, Any]:
    """A release with its derived figures: mean difference, and e-values (capped at MAX_E_VALUE)."""
    view: dict[str, Any] = plain(release)
    view["difference"] = plain(release.difference)
    view["e_value"] = _e_value(release.superiority.log_e)
    view["e_value_worse"] = _e_value(release.harm.log_e)
    return view


def _e_value(log_e: float) -> float:
    return min(math.exp(min(log_e, 700.0)), MAX_E_VALUE)


def agent_view(status: AgentStatus) -> dict[str, Any]:
    """An agent at a glance. Its parameters have a route of their own."""
    view: dict[str, Any] = plain(status)
    if status.release is not None:
        view["release"] = release_view(status.release)
    if status.state is not None:
        view["state"] = plain(msgspec.structs.replace(status.state, parameters=()))
        del view["state"]["parameters"]
    return view


def daemon_view(status: DaemonStatus) -> dict[str, Any]:
    """The daemon with all its agents."""
    view: dict[str, Any] = plain(status)
    view["agents"] = [agent_view(agent) for agent in status.agents]
    return view


def parameters_view(state: AgentState, revision: Revision) -> list[dict[str, Any]]:
    """The parameters with their values in `revision`, where they differ from the source's defaults or not."""
    return [plain(parameter) | {"value": plain(revision.values.get(parameter.path, parameter.default))} for parameter in state.parameters]


def revision_view(revision: Revision, provenance: tuple[Provenance, ...], source: Source | None = None) -> dict[str, Any]:
    """A revision with where it came from, and its source where that is asked for."""
    view: dict[str, Any] = plain(revision) | {"provenance": plain(provenance)}
    return view if source is None else view | {"entrypoint": source.entrypoint, "source_files": plain(source.files)}


def pairs_view(pairs: tuple[Pair | Single, ...]) -> list[dict[str, Any]]:
    """The evidence of a release."""
    return [plain(pair) for pair in pairs]


def summary_view(summary: EpisodeSummary) -> dict[str, Any]:
    """An episode as lists show it."""
    view: dict[str, Any] = plain(summary)
    return view


def episode_view(episode: Episode, feedback: Feedback | None, awaits_until: float | None) -> dict[str, Any]:
    """An episode with its steps and feedback (until when one is awaited); its trace has a route of its own."""
    view: dict[str, Any] = plain(msgspec.structs.replace(episode, trace=None))
    del view["trace"]
    return view | {"feedback": plain(feedback), "awaits_until": awaits_until}


def trace_view(content: bytes) -> dict[str, Any]:
    """A trace graph. The policy worker wrote it: untrusted text throughout. Raises CodecError where it is none."""
    view: dict[str, Any] = plain(codec.decode_untrusted(content, TraceGraph))
    return view


def event_view(event: Event) -> dict[str, Any]:
    """An event."""
    view: dict[str, Any] = plain(event)
    return view
