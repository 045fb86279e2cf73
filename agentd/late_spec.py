"""What `agent.toml` may say of feedback that comes later: mistakes in `feedback_timeout`, `silent_score`, and what goes with them."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from agentd.configuration import parse_duration
from agentd.environment_spec import EnvironmentKind


def late_mistakes(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Windows where none is ever open, none where nobody else judges, and what doesn't fit into them."""
    release, environment = _table(table, "release"), _table(table, "environment")
    served, window = environment.get("kind") == EnvironmentKind.HTTP, release.get("feedback_timeout")
    if window is None:
        if served and "feedback" not in table:
            yield (
                "release.feedback_timeout",
                'required for kind "http" without [feedback]: how long after its end an episode may be judged, such as "48h"',
            )
        if "silent_score" in release:
            yield "release.silent_score", "only together with feedback_timeout: it is for episodes that nobody judged in that time"
        return
    if not served:
        yield "release.feedback_timeout", f'only for kind "http": kind "{environment.get("kind")}" judges at the end'
    elif "feedback" in table:
        yield "release.feedback_timeout", "not together with [feedback], which judges every episode when it ends"
    with contextlib.suppress(ValueError, TypeError):  # no durations: that is told already
        longest = release.get("max_duration", "24h")
        if parse_duration(window) >= parse_duration(longest):
            yield "release.max_duration", f"should be longer than feedback_timeout, not {longest}: evidence may take as long as a window"
    silent, ends = release.get("silent_score"), [0.0, 1.0]
    metrics = table.get("metrics")
    if isinstance(metrics, list) and metrics and isinstance(metrics[0], Mapping):
        ends = metrics[0].get("range", ends)
    with contextlib.suppress(ValueError, TypeError):
        low, high = ends
        if silent is not None and not low <= silent <= high:
            yield "release.silent_score", f"should lie in the score's range, from {low:g} to {high:g}"


def _table(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = data.get(key)
    return table if isinstance(table, Mapping) else {}
