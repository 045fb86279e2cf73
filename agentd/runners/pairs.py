"""The pairs that the daemon has committed and the runner shall run, for as long as the daemon's lease lasts."""

import collections

from agentd.clock import Clock
from agentd.records import PairPlan

MAX_QUEUED = 64


class Pairs:
    """Queued plans by device, and those that are under way: one on a device, several where requests share one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lease_until = -1.0
        self._queued: dict[str, collections.deque[PairPlan]] = {}
        self._current: dict[str, PairPlan] = {}
        """By id."""

    @property
    def valid(self) -> bool:
        """Whether the lease holds now."""
        return self._clock.monotonic() < self._lease_until

    @property
    def pending(self) -> bool:
        """Whether any pair is queued or under way."""
        return bool(self._current) or any(self._queued.values())

    @property
    def remaining(self) -> float:
        """Seconds that the lease holds."""
        return self._lease_until - self._clock.monotonic()

    def renew(self, lease: float) -> None:
        """Let the lease end `lease` seconds from now."""
        self._lease_until = self._clock.monotonic() + lease

    def add(self, plan: PairPlan) -> None:
        """Queue a plan; a plan that is known already is not queued twice."""
        queue = self._queued.setdefault(plan.device, collections.deque())
        if plan.id not in self._current and plan not in queue and len(queue) < MAX_QUEUED:
            queue.append(plan)

    def waiting(self, device: str) -> bool:
        """Whether the device has a plan that the runner may begin."""
        queue = self._queued.get(device)
        return self.valid and queue is not None and len(queue) > 0 and queue[0].probability is None

    def take(self, device: str, *, begun: bool = False) -> PairPlan | None:
        """The device's next plan, which is its current one from now on; None where there is none or the lease is over.

        `begun`: the device has begun an episode by itself; only a plan for a single episode fits that, and that fits nothing else.
        """
        queue = self._queued.get(device)
        if not queue or not self.valid or (queue[0].probability is not None) != begun:
            return None
        plan = queue.popleft()
        self._current[plan.id] = plan
        return plan

    def holds(self, plan: PairPlan) -> bool:
        """Whether the plan may still go on."""
        return self.valid and plan.id in self._current

    def done(self, plan: PairPlan) -> None:
        """The plan has ended, one way or the other."""
        self._current.pop(plan.id, None)

    def drop(self, device: str | None = None) -> tuple[PairPlan, ...]:
        """Forget what is queued and under way (on one device, or everywhere), and return it."""
        dropped = [plan for plan in self._current.values() if device in {None, plan.device}]
        for plan in dropped:
            del self._current[plan.id]
        for name in [device] if device is not None else [*self._queued]:
            dropped.extend(self._queued.pop(name, ()))
        return tuple(dropped)
