"""Time and randomness are passed in, so that tests and replays can pass their own."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def time(self) -> float:
        """Unix time in seconds: what records and people see."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start that never go backwards: what durations are measured with."""
        ...


class SystemClock:
    """The machine's own clock."""

    def time(self) -> float:
        """Unix time in seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds from an arbitrary start."""
        return time.monotonic()
