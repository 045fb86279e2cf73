"""A clock for tests, to be passed wherever agentd takes one."""


class FixedClock:
    """Stands still where it is put: `clock.now += 60` is a minute later."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        """The second it was put to."""
        return self.now

    def monotonic(self) -> float:
        """As `time`."""
        return self.now
