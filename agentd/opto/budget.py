"""The ledger: what may be spent is checked with an estimate before a call, and settled with the usage after it.

Pure: rows of usage and the time come in, nothing is read or written here. Limits are over rolling windows, so that no moment of the day
allows twice the budget. Reservations of calls in flight count as spent.
"""

import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from agentd.errors import BudgetExhausted
from agentd.opto.contract import BudgetLimits, Llm, LlmReply, LlmRequest
from agentd.records import Usage

DAY = 86_400.0
HOUR = 3_600.0


@dataclass(frozen=True, slots=True)
class Reservation:
    """What is held back for one call until its usage is known."""

    number: int
    agent: str
    dollars: float
    at: float


@dataclass(frozen=True, slots=True)
class Remaining:
    """What is left now; None is no limit."""

    dollars: float | None
    calls: int | None


class Ledger:
    """What each agent spent in the last day. One object for all agents; not for use from several threads."""

    def __init__(self, rows: Iterable[Usage] = ()) -> None:
        self._limits: dict[str, BudgetLimits] = {}
        self._rows: dict[str, deque[Usage]] = {}
        self._held: dict[int, Reservation] = {}
        self._numbers = itertools.count(1)
        for row in sorted(rows, key=lambda row: row.at):
            self._rows.setdefault(row.agent, deque()).append(row)

    def limit(self, agent: str, limits: BudgetLimits) -> None:
        """Sets what `agent` may spend from now on."""
        self._limits[agent] = limits

    def remaining(self, agent: str, at: float) -> Remaining:
        """What `agent` may still spend at time `at`."""
        limits = self._limits.get(agent, BudgetLimits())
        spent = [(row.at, row.dollars) for row in self._recent(agent, at)] + [(held.at, held.dollars) for held in self._held_by(agent)]
        dollars = None if limits.dollars_per_day is None else max(0.0, limits.dollars_per_day - sum(cost for _, cost in spent))
        calls = None if limits.calls_per_hour is None else max(0, limits.calls_per_hour - sum(when > at - HOUR for when, _ in spent))
        return Remaining(dollars, calls)

    def reserve(self, agent: str, dollars: float, at: float) -> Reservation:
        """Holds `dollars` (an estimate) and one call back. Raises BudgetExhausted with the time from which it would fit, if ever."""
        limits, left = self._limits.get(agent, BudgetLimits()), self.remaining(agent, at)
        rows = list(self._recent(agent, at))
        if left.calls is not None and left.calls < 1:
            last_hour = [row.at for row in rows if row.at > at - HOUR]
            resets = last_hour[0] + HOUR if limits.calls_per_hour and last_hour else None
            raise BudgetExhausted(f"{limits.calls_per_hour} calls per hour", resets_at=resets)
        if left.dollars is not None and (dollars > left.dollars or (limits.dollars_per_day == 0)):
            raise BudgetExhausted(f"{limits.dollars_per_day:g} dollars per day", resets_at=_fits_at(rows, dollars - left.dollars))
        reservation = Reservation(next(self._numbers), agent, dollars, at)
        self._held[reservation.number] = reservation
        return reservation

    def settle(self, reservation: Reservation, usage: Usage) -> None:
        """Replaces a reservation by what the call really used."""
        self._held.pop(reservation.number, None)
        self._rows.setdefault(usage.agent, deque()).append(usage)

    def _recent(self, agent: str, at: float) -> deque[Usage]:
        rows = self._rows.setdefault(agent, deque())
        while rows and rows[0].at <= at - DAY:
            rows.popleft()
        return rows

    def _held_by(self, agent: str) -> list[Reservation]:
        return [held for held in self._held.values() if held.agent == agent]


def _fits_at(rows: Iterable[Usage], missing: float) -> float | None:
    """When enough rows have left the window for `missing` dollars more; None if they never suffice."""
    freed = 0.0
    for row in rows:
        freed += row.dollars
        if freed >= missing > 0:
            return row.at + DAY
    return None


class Metered:
    """An Llm for one proposal: counts its tokens and dollars, and stops it before it passes `tokens`."""

    def __init__(self, llm: Llm, tokens: int | None) -> None:
        self._llm = llm
        self._limit = tokens
        self.tokens = 0
        self.dollars = 0.0
        self.calls = 0

    async def complete(self, request: LlmRequest) -> LlmReply:
        """As Llm.complete. Raises BudgetExhausted if the question itself would pass the limit."""
        asked = sum(estimate_tokens(message.content) for message in request.messages)
        if self._limit is not None and self.tokens + asked > self._limit:
            raise BudgetExhausted(f"{self._limit} tokens per proposal")
        reply = await self._llm.complete(request)
        self.calls += 1
        self.tokens += reply.tokens_in + reply.tokens_out
        self.dollars += reply.dollars
        return reply


def estimate_tokens(text: str) -> int:
    """A careful guess without a tokenizer: English and code have three to four bytes per token."""
    return len(text.encode()) // 3 + 4
