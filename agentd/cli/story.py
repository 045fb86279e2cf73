"""What `agentd demo` has seen: events in, a summary out. Pure, so that the summary can be tested without a demo."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HEALTHY, BROKEN, IMPROVING, RECOVERED, ATTACKED = STAGES = ("healthy", "broken", "improving", "recovered", "attacked")
REGAINED = 0.8
"""The score has recovered when this share of what the change cost is regained."""
ENDS = frozenset({"promoted", "rejected", "pruned", "inconclusive", "aborted", "rolled_back"})


@dataclass(slots=True)
class Attempt:
    """One release as the summary shows it."""

    release: str
    candidate: str
    algorithm: str = ""
    verdict: str = ""
    stage: str = ""
    reason: str = ""
    pairs: int = 0
    difference: float | None = None
    log_e: float = 0.0
    forced: bool = False

    @property
    def e_value(self) -> float:
        """The e-value against "not better"."""
        return math.exp(min(self.log_e, 700.0))


@dataclass(slots=True)
class Bad:
    """One bad revision that is submitted on purpose."""

    name: str
    release: str = ""
    verdict: str = ""
    stopped: bool = False
    how: str = ""


@dataclass(slots=True)
class Story:
    """Scores by stage, releases by id, bad revisions by name."""

    stage: str = HEALTHY
    scores: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    latest: list[float] = field(default_factory=list)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)
    alarms: int = 0
    rollbacks: int = 0
    episodes: int = 0
    aborted: int = 0

    def take(self, event: Mapping[str, Any]) -> None:
        """One event of the daemon's stream."""
        kind, data = str(event.get("kind", "")), event.get("data") or {}
        if kind == "episode.finished":
            self._episode(data)
        elif kind == "watch.alarm":
            self.alarms += 1
        elif kind.startswith("release.") and data.get("release"):
            self._release(kind, data)

    def _episode(self, data: Mapping[str, Any]) -> None:
        self.episodes += 1
        self.aborted += data.get("outcome") == "aborted"
        if data.get("role") == "stable" and data.get("purpose") != "recovery" and not data.get("failed"):
            score = float(data["normalised"])
            self.scores[self.stage].append(score)
            self.latest.append(score)
            del self.latest[:-200]

    def _release(self, kind: str, data: Mapping[str, Any]) -> None:
        attempt = self.attempts.setdefault(data["release"], Attempt(data["release"], str(data.get("candidate", ""))))
        attempt.algorithm = data.get("algorithm") or attempt.algorithm or ("probe" if kind.startswith("release.probe") else "")
        attempt.pairs = int(data.get("pairs", attempt.pairs))
        attempt.log_e = float(data.get("log_e", attempt.log_e))
        attempt.forced = bool(data.get("forced", attempt.forced))
        if data.get("difference") is not None:
            attempt.difference = float(data["difference"])
        if data.get("phase") in ENDS:
            attempt.verdict = str(data["phase"])
            attempt.stage = str(data.get("stage", ""))
            attempt.reason = str(data.get("reason", ""))
            if self.stage == BROKEN and attempt.verdict == "promoted":
                self.stage = IMPROVING  # what broke no longer serves; the next revision may still be far from good
            self.rollbacks += attempt.verdict == "rolled_back"

    def mean(self, stage: str, last: int | None = None) -> float | None:
        """The stable revision's mean normalised score in a stage (its last episodes), or None before the first."""
        scores = self.scores[stage][-last:] if last else self.scores[stage]
        return sum(scores) / len(scores) if scores else None

    @property
    def recovered(self) -> bool:
        """Whether the change hurt, and most of what it cost was regained."""
        before, broken, after = self.mean(HEALTHY), self.mean(BROKEN), self.mean(RECOVERED)
        if before is None or broken is None or after is None or before - broken < 0.1:
            return False
        return after - broken >= REGAINED * (before - broken)

    @property
    def all_stopped(self) -> bool:
        """Whether every bad revision was submitted and stopped."""
        return len(self.bad) == 3 and all(bad.stopped for bad in self.bad)
