"""The ledger: what may be spent is checked with an estimate before a call, and settled with the usage after it.

Pure: rows of usage and the time come in, nothing is read or written here. Limits are over rolling windows, so that no moment of the day
allows twice the budget. Reservations of calls in flight count as spent.

What an agent asks of models while it acts is an account of its own, apart from its optimizer's. Its calls are made by its runner, within a
`Lease` that the ledger grants: since one runner at a time spends from that account, all that is left of it can be granted, and the runner
goes on within that when it no longer hears of the ledger.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from agentd.errors import BudgetExhausted, ModelError
from agentd.opto.contract import BudgetLimits, Llm, LlmReply, LlmRequest, Message
from agentd.records import Record, Usage

DAY = 86_400.0
HOUR = 3_600.0
POLICY = "policy"
"""The purpose of what an agent asks of models while it acts."""
_TOKENS_PER_IMAGE = 1_500
_SHORTEST_ANSWER = 64  # tokens: what is cut off before that is no answer
MAX_LEASED_CALLS = 5_000
"""A runner keeps a row for each call until the ledger has it."""


def account_of(agent: str, purpose: str) -> str:
    """Whose budget a call is from: the agent's own for what it asks while it acts, else its optimizer's, under the agent's name."""
    return f"{agent}/{POLICY}" if purpose == POLICY else agent


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


class Grant(Record, frozen=True):
    """What a runner may spend beyond the first `taken` of the rows that it told. None is no limit.

    `limits` are those that it comes from, in words; `resets_at` (Unix seconds) is when there will be more, where nothing is left.
    """

    taken: int
    dollars: float | None
    calls: int
    limits: tuple[str, str] = ("", "")
    resets_at: float | None = None


class Ledger:
    """What each account spent in the last day. One object for all agents; not for use from several threads."""

    def __init__(self, rows: Iterable[Usage] = ()) -> None:
        self._limits: dict[str, BudgetLimits] = {}
        self._rows: dict[str, deque[Usage]] = {}
        self._held: dict[int, Reservation] = {}
        self._numbers = itertools.count(1)
        for row in sorted(rows, key=lambda row: row.at):
            self._rows.setdefault(account_of(row.agent, row.purpose), deque()).append(row)

    def limit(self, agent: str, limits: BudgetLimits) -> None:
        """Sets what the account `agent` may spend from now on."""
        self._limits[agent] = limits

    def limits_dollars(self, agent: str) -> bool:
        """Whether the account `agent` has a limit of dollars."""
        return self._limits.get(agent, BudgetLimits()).dollars_per_day is not None

    def remaining(self, agent: str, at: float) -> Remaining:
        """What the account `agent` may still spend at time `at`."""
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
            raise BudgetExhausted(_in_words(limits)[0], resets_at=_call_fits_at(rows, limits, at))
        if left.dollars is not None and (dollars > left.dollars or (limits.dollars_per_day == 0)):
            raise BudgetExhausted(_in_words(limits)[1], resets_at=_fits_at(rows, dollars - left.dollars))
        reservation = Reservation(next(self._numbers), agent, dollars, at)
        self._held[reservation.number] = reservation
        return reservation

    def settle(self, reservation: Reservation, usage: Usage) -> None:
        """Replaces a reservation by what the call really used."""
        self._held.pop(reservation.number, None)
        self.record(usage)

    def record(self, usage: Usage) -> None:
        """Counts a call that was made elsewhere, within a lease."""
        self._rows.setdefault(account_of(usage.agent, usage.purpose), deque()).append(usage)

    def rows(self, account: str) -> tuple[Usage, ...]:
        """What the account spent in the last day, as far as it is known here."""
        return tuple(self._rows.get(account, ()))

    def grant(self, account: str, taken: int, at: float) -> Grant:
        """All that is left, for the one runner that spends from this account. `taken`: so many of its rows are recorded here."""
        limits, left = self._limits.get(account, BudgetLimits()), self.remaining(account, at)
        calls = MAX_LEASED_CALLS if left.calls is None else min(left.calls, MAX_LEASED_CALLS)
        dollars = 0.0 if left.dollars is not None and left.dollars <= 0.0 else left.dollars
        resets_at = None
        if calls == 0:
            resets_at = _call_fits_at(self._recent(account, at), limits, at)
        elif dollars == 0.0:
            resets_at = _fits_at(self._recent(account, at), 1e-9)
        return Grant(taken=taken, dollars=dollars, calls=calls, limits=_in_words(limits), resets_at=resets_at)

    def _recent(self, agent: str, at: float) -> deque[Usage]:
        rows = self._rows.setdefault(agent, deque())
        while rows and rows[0].at <= at - DAY:
            rows.popleft()
        return rows

    def _held_by(self, agent: str) -> list[Reservation]:
        return [held for held in self._held.values() if held.agent == agent]


def _in_words(limits: BudgetLimits) -> tuple[str, str]:
    """The limits of calls and of dollars."""
    return f"{limits.calls_per_hour} calls per hour", f"{limits.dollars_per_day or 0.0:g} dollars per day"


def _call_fits_at(rows: Iterable[Usage], limits: BudgetLimits, at: float) -> float | None:
    """When a call will have left the last hour; None if none ever may be made."""
    first = next((row.at for row in rows if row.at > at - HOUR), None)
    return first + HOUR if limits.calls_per_hour and first is not None else None


def _fits_at(rows: Iterable[Usage], missing: float) -> float | None:
    """When enough rows have left the window for `missing` dollars more; None if they never suffice."""
    freed = 0.0
    for row in rows:
        freed += row.dollars
        if freed >= missing > 0:
            return row.at + DAY
    return None


class Lease:
    """A runner's ledger: it spends what it was granted, and tells what it spent until that is recorded.

    `calls` and `dollars` are the room that there must be again after a refusal: a budget that comes back a call at a time would begin
    episodes that it can't end.
    """

    def __init__(self, *, calls: int = 1, dollars: float = 0.0) -> None:
        self._room = calls, dollars
        self._grant = Grant(taken=0, dollars=0.0, calls=0, limits=("no budget was leased yet",) * 2)
        self._rows: deque[Usage] = deque()  # bounded by the calls that a grant allows
        self._held: dict[int, Reservation] = {}
        self._numbers = itertools.count(1)
        self._wanted = 0.0
        self.taken = 0
        self.refusal: BudgetExhausted | None = None
        """Why the last call could not be made, until a grant has room again."""

    @property
    def told(self) -> int:
        """How many rows there were so far."""
        return self.taken + len(self._rows)

    def rows(self, most: int) -> tuple[Usage, ...]:
        """The first rows that the ledger has not recorded."""
        return tuple(itertools.islice(self._rows, most))

    def renew(self, grant: Grant) -> None:
        """Spends from now on what `grant` leaves, and forgets what it says is recorded."""
        while self._rows and self.taken < grant.taken:
            self._rows.popleft()
            self.taken += 1
        self._grant = grant
        if self.refusal is not None:
            self.refusal.resets_at = grant.resets_at
            calls, dollars = self._room
            if self._lacks(max(dollars, self._wanted), calls) is None:
                self.refusal = None

    def reserve(self, agent: str, dollars: float, at: float) -> Reservation:
        """Holds `dollars` (an estimate) and one call back. Raises BudgetExhausted."""
        limit = self._lacks(dollars)
        if limit is not None:
            self._wanted = dollars
            self.refusal = BudgetExhausted(limit, resets_at=self._grant.resets_at)
            raise BudgetExhausted(limit, resets_at=self._grant.resets_at)
        reservation = Reservation(next(self._numbers), agent, dollars, at)
        self._held[reservation.number] = reservation
        return reservation

    def settle(self, reservation: Reservation, usage: Usage) -> None:
        """Replaces a reservation by what the call really used."""
        self._held.pop(reservation.number, None)
        self._rows.append(usage)

    def limits_dollars(self, agent: str) -> bool:  # noqa: ARG002 - it is one agent's
        """Whether the grant has a limit of dollars."""
        return self._grant.dollars is not None

    def _lacks(self, dollars: float, calls: int = 1) -> str | None:
        """The limit that so many calls of `dollars` together would pass."""
        grant = self._grant
        if len(self._rows) + len(self._held) + calls > grant.calls:
            return grant.limits[0]
        if grant.dollars is None:
            return None
        spent = sum(row.dollars for row in self._rows) + sum(held.dollars for held in self._held.values())
        return grant.limits[1] if spent + dollars > grant.dollars or grant.dollars == 0.0 else None


class Metered:
    """An Llm for one proposal: counts its tokens and dollars, and ends it before it passes `tokens`, or with an answer `until` then.

    `until` is a time of the running event loop. An optimizer hears that it is over while there is still time to do without a model.
    """

    def __init__(self, llm: Llm, tokens: int | None, until: float | None = None) -> None:
        self._llm = llm
        self._limit = tokens
        self._until = until
        self._held = 0
        self.tokens = 0
        self.dollars = 0.0
        self.calls = 0

    async def complete(self, request: LlmRequest) -> LlmReply:
        """As Llm.complete, with an answer no longer than the limit leaves room for. Raises BudgetExhausted where that is hardly any."""
        asked = tokens_of(request.messages)
        if self._limit is not None:
            room = self._limit - self.tokens - self._held - asked
            if room < min(request.max_tokens, _SHORTEST_ANSWER):
                raise BudgetExhausted(f"{self._limit} tokens per proposal")
            request = msgspec.structs.replace(request, max_tokens=min(request.max_tokens, room))
        held = asked + request.max_tokens
        self._held += held  # what is asked side by side is paid from the same budget
        try:
            async with asyncio.timeout_at(self._until):
                reply = await self._llm.complete(request)
        except TimeoutError:
            text = "no answer in the time for a proposal: [optimizer] propose_timeout is too short for this model, or the model hangs"
            raise ModelError(text, model=", ".join(request.models), retryable=True) from None
        finally:
            self._held -= held
        self.calls += 1
        self.tokens += reply.tokens_in + reply.tokens_out
        self.dollars += reply.dollars
        return reply


def tokens_of(messages: Sequence[Message]) -> int:
    """A careful guess of what a question takes."""
    return sum(estimate_tokens(message.content) + _TOKENS_PER_IMAGE * len(message.images) for message in messages)


def estimate_tokens(text: str) -> int:
    """A careful guess without a tokenizer: English and code have three to four bytes per token."""
    return len(text.encode()) // 3 + 4
