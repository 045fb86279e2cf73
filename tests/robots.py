"""The stand-in robot's own log: the witness of what it applied at each tick, whatever agentd says of it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any


class RobotLog:
    """What a stand-in robot has written so far of its ticks; how it comes to rest between episodes is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._applied: list[dict[str, Any]] = []

    def applied(self) -> list[dict[str, Any]]:
        """All that it applied so far; what was read once is not read again, for tests ask often."""
        if self._path.exists():
            with self._path.open("rb") as log:
                log.seek(self._read)
                whole, newline, _ = log.read().rpartition(b"\n")
            self._read += len(whole) + len(newline)
            self._applied += [line for line in map(json.loads, whole.splitlines()) if line["source"] != "rest"]
        return self._applied

    def since(self, known: int) -> list[dict[str, Any]]:
        """What it applied after the first `known` ticks."""
        return self.applied()[known:]

    def episodes(self) -> dict[str, list[dict[str, Any]]]:
        """What it applied, by episode."""
        found: dict[str, list[dict[str, Any]]] = {}
        for line in self.applied():
            found.setdefault(line["episode"], []).append(line)
        return found

    def sources(self, known: int = 0) -> Counter[str]:
        """Where the actions came from that it applied after the first `known` ticks."""
        return Counter(line["source"] for line in self.since(known))

    def revisions(self, known: int = 0) -> set[str]:
        """The revisions whose actions it applied after the first `known` ticks."""
        return {line["revision"] for line in self.since(known) if line["source"] == "action"}

    def prove(self) -> None:
        """Within each episode no tick is without its one action."""
        episodes = self.episodes()
        assert episodes
        for name, lines in episodes.items():
            assert [line["step"] for line in lines] == list(range(len(lines))), name
            assert all(line["action"] in (0, 1) for line in lines), name
