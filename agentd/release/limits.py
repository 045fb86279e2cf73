"""How often an agent may be changed: a rate of promotions, and the restart intensity beyond which it is put into quarantine.

Both look at a sliding period, as supervisors do (Erlang/OTP, "Supervisor Behaviour": more than MaxR restarts within MaxT seconds and the
supervisor gives up). Nothing here is counted twice or forgotten by a crash: the times come from the releases in the store.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from agentd.records import Phase, Release, ReleaseKind


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` times within any `period` seconds."""

    count: int
    period: float

    def free_at(self, times: Iterable[float], now: float) -> float | None:
        """The first moment from `now` on at which it may happen once more; None if never, since `count` is 0.

        `times` are Unix seconds, in any order; one that lies in the future (a clock was set back) counts like any other.
        """
        if self.count <= 0:
            return None
        latest = sorted(times)[-self.count :]
        return now if len(latest) < self.count else max(now, latest[0] + self.period)

    def exceeded(self, times: Iterable[float], now: float) -> bool:
        """Whether it happened more than `count` times within the last `period` seconds."""
        return sum(now - at < self.period for at in times) > self.count


def promotions(releases: Iterable[Release]) -> tuple[float, ...]:
    """When evidence promoted a candidate, Unix seconds. What an operator forced is the operator's affair."""
    return _promoted(release for release in releases if release.kind is ReleaseKind.PROPOSAL and not release.forced)


def rollbacks(releases: Iterable[Release], since: float) -> tuple[float, ...]:
    """When the watch rolled back, Unix seconds, after `since`: its probe found the last good revision better than the stable one."""
    return tuple(at for at in _promoted(release for release in releases if release.kind is ReleaseKind.PROBE) if at > since)


def _promoted(releases: Iterable[Release]) -> tuple[float, ...]:
    # From the history: a later rollback has moved `ended_at` and the phase.
    return tuple(change.at for release in releases for change in release.history if change.phase is Phase.PROMOTED)
