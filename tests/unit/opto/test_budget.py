"""The ledger says no before money is spent, and when it will say yes again."""

import asyncio

import pytest

from agentd.errors import BudgetExhausted, ModelError
from agentd.opto.budget import DAY, HOUR, POLICY, Grant, Lease, Ledger, Metered, account_of
from agentd.opto.contract import BudgetLimits, LlmReply, LlmRequest, Message
from agentd.records import Usage


def usage(at, dollars=0.0, agent="a"):
    return Usage(agent=agent, purpose="p", model="m", outcome="ok", at=at, dollars=dollars)


def ledger(*rows, **limits):
    made = Ledger(rows)
    made.limit("a", BudgetLimits(**limits))
    return made


def test_a_budget_of_zero_allows_nothing_and_never_resets():
    for limits in ({"dollars_per_day": 0.0}, {"calls_per_hour": 0}):
        with pytest.raises(BudgetExhausted) as caught:
            ledger(**limits).reserve("a", 0.0, 1000.0)
        assert caught.value.resets_at is None


def test_calls_are_counted_over_the_last_hour():
    book = ledger(usage(1000.0), usage(2000.0), calls_per_hour=2)
    with pytest.raises(BudgetExhausted) as caught:
        book.reserve("a", 0.0, 2500.0)
    assert caught.value.resets_at == 1000.0 + HOUR
    book.reserve("a", 0.0, 1000.0 + HOUR)


def test_dollars_are_counted_over_the_last_day_and_the_reset_is_when_the_call_would_fit():
    book = ledger(usage(1000.0, 3.0), usage(5000.0, 1.0), dollars_per_day=5.0, calls_per_hour=None)
    assert book.remaining("a", 6000.0).dollars == pytest.approx(1.0)
    with pytest.raises(BudgetExhausted) as caught:
        book.reserve("a", 2.0, 6000.0)
    assert caught.value.resets_at == 1000.0 + DAY
    with pytest.raises(BudgetExhausted) as caught:
        book.reserve("a", 50.0, 6000.0)
    assert caught.value.resets_at is None
    book.reserve("a", 2.0, 1000.0 + DAY)


def test_a_call_in_flight_counts_with_its_estimate_until_it_is_settled():
    book = ledger(dollars_per_day=1.0, calls_per_hour=None)
    held = book.reserve("a", 0.8, 10.0)
    with pytest.raises(BudgetExhausted):
        book.reserve("a", 0.8, 10.0)
    book.settle(held, usage(11.0, 0.1))
    assert book.remaining("a", 12.0).dollars == pytest.approx(0.9)
    book.reserve("a", 0.8, 12.0)


def test_agents_have_budgets_of_their_own():
    book = ledger(usage(1.0, 5.0, agent="b"), dollars_per_day=5.0)
    book.reserve("a", 4.0, 2.0)
    with pytest.raises(BudgetExhausted):
        book.reserve("b", 1.0, 2.0)


def test_no_limit_is_no_limit():
    book = ledger(dollars_per_day=None, calls_per_hour=None)
    for at in range(1000):
        book.settle(book.reserve("a", 100.0, float(at)), usage(float(at), 100.0))
    assert book.remaining("a", 1000.0).dollars is None


class Answering:
    """An Llm that takes 40 tokens and gives as many as it may."""

    def __init__(self):
        self.asked = []

    async def complete(self, request):
        self.asked.append(request.max_tokens)
        await asyncio.sleep(0)
        return LlmReply(text="x", model="m", tokens_in=40, tokens_out=request.max_tokens, dollars=0.5)


def question(content="word " * 10, images=(), max_tokens=400):
    return LlmRequest(agent="a", purpose="p", messages=(Message(role="user", content=content, images=images),), max_tokens=max_tokens)


async def test_a_proposal_never_passes_its_tokens_its_last_answer_is_shorter_and_then_none_is_asked_for():
    model = Answering()
    metered = Metered(model, 1_000)
    for _ in range(3):
        await metered.complete(question())
    with pytest.raises(BudgetExhausted, match="1000 tokens per proposal"):
        await metered.complete(question())
    assert model.asked == [400, 400, 100]
    assert (metered.tokens, metered.dollars, metered.calls) == (1020, 1.5, 3)  # the estimate of a question was 20 short


async def test_questions_side_by_side_are_paid_from_one_budget():
    model = Answering()
    metered = Metered(model, 1_000)
    answers = await asyncio.gather(*(metered.complete(question()) for _ in range(9)), return_exceptions=True)
    assert [isinstance(answer, BudgetExhausted) for answer in answers] == [False, False, False, *[True] * 6]
    assert sum(model.asked) <= 1_000


async def test_pictures_count():
    with pytest.raises(BudgetExhausted):
        await Metered(Answering(), 1_000).complete(question(images=("data:image/png;base64,AA",)))


async def test_a_question_that_is_still_open_when_the_time_for_models_is_over_is_an_error_of_the_model():
    class Hangs:
        async def complete(self, request):
            await asyncio.get_running_loop().create_future()

    metered = Metered(Hangs(), None, until=asyncio.get_running_loop().time() + 0.01)
    with pytest.raises(ModelError, match="propose_timeout"):
        await metered.complete(question())


# --- what an agent asks while it acts, in its runner ---------------------------------------------------------------------------------

ACCOUNT = account_of("a", POLICY)


def asked(at, dollars=0.0):
    return Usage(agent="a", purpose=POLICY, model="m", outcome="ok", at=at, dollars=dollars)


def test_an_agent_and_its_optimizer_spend_from_accounts_of_their_own():
    book = Ledger([usage(1000.0, 1.0), asked(1000.0, 2.0)])
    book.limit("a", BudgetLimits(dollars_per_day=5.0))
    book.limit(ACCOUNT, BudgetLimits(dollars_per_day=5.0))
    assert (book.remaining("a", 1001.0).dollars, book.remaining(ACCOUNT, 1001.0).dollars) == (4.0, 3.0)


def spend(lease, dollars, at=1000.0):
    lease.settle(lease.reserve("a", dollars, at), asked(at, dollars))


def test_a_lease_is_spent_and_told_until_it_is_recorded_and_nothing_is_spent_twice():
    book, lease = Ledger(), Lease()
    book.limit(ACCOUNT, BudgetLimits(dollars_per_day=1.0, calls_per_hour=4))
    with pytest.raises(BudgetExhausted, match="no budget was leased yet"):
        lease.reserve("a", 0.0, 1000.0)
    lease.renew(book.grant(ACCOUNT, 0, 1000.0))
    assert lease.refusal is None
    spend(lease, 0.3)
    spend(lease, 0.3)
    late = book.grant(ACCOUNT, 0, 1000.0)  # made before the ledger heard of the two calls
    lease.renew(late)
    for row in lease.rows(10):
        book.record(row)
    lease.renew(book.grant(ACCOUNT, lease.told, 1001.0))
    assert lease.rows(10) == ()
    spend(lease, 0.3)
    with pytest.raises(BudgetExhausted, match="1 dollars per day"):
        lease.reserve("a", 0.2, 1001.0)
    spend(lease, 0.1)
    with pytest.raises(BudgetExhausted, match="4 calls per hour"):
        lease.reserve("a", 0.0, 1001.0)
    assert lease.told == 4


def test_without_a_ledger_a_runner_goes_on_within_its_last_lease_and_no_further():
    lease = Lease()
    lease.renew(Grant(taken=0, dollars=None, calls=3, limits=("3 calls per hour", "")))
    for _ in range(3):
        spend(lease, 0.0)
    with pytest.raises(BudgetExhausted):
        lease.reserve("a", 0.0, 1000.0 + DAY)


def test_after_a_refusal_there_must_be_room_for_more_than_one_call():
    lease = Lease(calls=3)
    for calls, refused in ((0, True), (1, True), (2, True), (3, False)):
        lease.renew(Grant(taken=0, dollars=None, calls=calls, limits=("1 call", "")))
        if calls == 0:
            with pytest.raises(BudgetExhausted):
                lease.reserve("a", 0.0, 1.0)
        assert (lease.refusal is not None) is refused


@pytest.mark.parametrize(
    ("rows", "limits", "resets_at"),
    [
        ([asked(1000.0)], {"calls_per_hour": 1}, 1000.0 + HOUR),
        ([asked(1000.0, 2.0)], {"dollars_per_day": 1.0, "calls_per_hour": None}, 1000.0 + DAY),
        ([], {"calls_per_hour": 0}, None),
    ],
)
def test_a_grant_of_nothing_says_when_there_will_be_more(rows, limits, resets_at):
    book = Ledger(rows)
    book.limit(ACCOUNT, BudgetLimits(**limits))
    granted = book.grant(ACCOUNT, 0, 1001.0)
    assert granted.calls == 0 or granted.dollars == 0.0
    assert granted.resets_at == resets_at
