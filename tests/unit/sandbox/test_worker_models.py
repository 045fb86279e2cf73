"""What a program in a worker may ask of models: within `act`, so many questions, answered by whoever drives it."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from episodes import make_episode

from agentd import codec
from agentd.errors import PolicyError, ProtocolViolation, WorkerTimeout
from agentd.records import Exchange, NodeKind, Source, Step, TraceGraph, make_revision
from agentd.runners.bisection import RAISES, Question
from agentd.runners.rerun import rerun
from agentd.sandbox import Limits, PolicyWorker, Zygote
from agentd.sandbox.wire import MAX_TOLD, Asked, Told
from agentd.trace.host import question_key

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def zygote() -> AsyncIterator[Zygote]:
    async with await Zygote.start(imports=("math",), min_isolation=1) as started:
        yield started


class Desk:
    """Answers with the last message in capitals; what `held` names waits until `release`."""

    most = 4

    def __init__(self, answer: Callable[[Asked], Told] | None = None, held: tuple[str, ...] = ()) -> None:
        self.questions: list[Asked] = []
        self.closed = False
        self._answer = answer or self._echo
        self._held = held
        self._waiting: list[Callable[[], None]] = []

    def ask(self, question: Asked, until: float, tell: Callable[[Told], None]) -> None:
        assert until > asyncio.get_running_loop().time()
        self.questions.append(question)
        if question.messages[-1][1] in self._held:
            self._waiting.append(lambda: tell(self._answer(question)))
        else:
            tell(self._answer(question))
            for waiting in self._waiting:
                waiting()

    def close(self) -> None:
        self.closed = True

    @staticmethod
    def _echo(question: Asked) -> Told:
        return Told(question.id, question.number, question.messages[-1][1].upper())


async def start(zygote: Zygote, act: str, *, calls: int = 4, seconds: float = 10.0) -> PolicyWorker:
    program = (
        "import asyncio\nfrom agentd.errors import BudgetExhausted, ModelError\nfrom agentd.trace import acall_llm, call_llm\nclass P:\n"
    )
    source = Source(digest="d", files={"controller.py": program + act}, entrypoint="controller:P")
    limits = Limits(step_timeout=seconds, load_timeout=30.0, allowed_imports=("asyncio", "os", "sys", "time", "msgspec"), model_calls=calls)
    worker = await PolicyWorker.start(zygote, source=source, revision=make_revision("a", "d", {}), limits=limits, on_log=print)
    await worker.reset("robot", "e", 1)
    return worker


async def test_a_question_and_its_answer_are_an_operation_of_the_trace(zygote: Zygote) -> None:
    desk = Desk()
    async with await start(zygote, "  def act(self, o): return call_llm('Be loud.', o, max_tokens=5, temperature=0)\n") as worker:
        assert await worker.act("robot", 0, "hello", desk=desk) == "HELLO"
        trace = await worker.finish("robot", None)
    [asked] = desk.questions
    assert asked.messages == (("system", "Be loud."), ("user", "hello"))
    assert (asked.number, asked.max_tokens, asked.temperature, asked.model) == (1, 5, 0, None)
    assert desk.closed
    graph = codec.decode(trace or b"", TraceGraph)
    [call] = [node for node in graph.nodes if node.kind is NodeKind.MESSAGE and node.name.startswith("call_llm")]
    assert call.value == "HELLO"


async def test_questions_of_tasks_are_answered_in_any_order_and_a_blocking_one_in_between(zygote: Zygote) -> None:
    act = """
  async def act(self, o):
    first = asyncio.ensure_future(acall_llm('', 'slow'))
    second = asyncio.ensure_future(acall_llm('', 'quick'))
    await asyncio.sleep(0)
    third = call_llm('', 'blocking')
    answers = await asyncio.gather(first, second)
    return [answer.data for answer in (*answers, third)]
"""
    async with await start(zygote, act) as worker:
        assert await worker.act("robot", 0, "o", desk=Desk(held=("slow",))) == ["SLOW", "QUICK", "BLOCKING"]


async def test_a_question_may_be_given_up_and_its_answer_reaches_nobody_later(zygote: Zygote) -> None:
    act = """
  async def act(self, o):
    try:
      return (await asyncio.wait_for(acall_llm('', o), 0.05)).data
    except TimeoutError:
      return 'no patience'
"""
    async with await start(zygote, act) as worker:
        desk = Desk(held=("slow",))
        assert await worker.act("robot", 0, "slow", desk=desk) == "no patience"
        desk._waiting[0]()  # told after the step
        assert await worker.act("robot", 1, "quick", desk=Desk()) == "QUICK"
        late = Desk(held=("slow",))
        assert await worker.act("robot", 2, "slow", desk=late) == "no patience"
        assert await worker.act("robot", 3, "quick", desk=Desk()) == "QUICK"


@pytest.mark.parametrize(
    ("error", "caught"),
    [("ModelError", "ModelError"), ("BudgetExhausted", "BudgetExhausted")],
)
async def test_a_failure_may_be_caught_and_else_is_the_program_s(zygote: Zygote, error: str, caught: str) -> None:
    act = f"""
  def act(self, o):
    try:
      return call_llm('', o)
    except {caught} as error:
      if o == 'careless':
        raise
      return f'sorry: {{error}}'
"""
    desk = Desk(lambda question: Told(question.id, question.number, "nothing left", error=error, model="m", status=429, retryable=True))
    async with await start(zygote, act) as worker:
        assert "nothing left" in await worker.act("robot", 0, "careful", desk=desk)
        with pytest.raises(PolicyError, match=f"{error}.*nothing left"):
            await worker.act("robot", 1, "careless", desk=desk)
        graph = codec.decode(await worker.finish("robot", None) or b"", TraceGraph)
    assert [node for node in graph.nodes if node.kind is NodeKind.EXCEPTION and "nothing left" in str(node.value)]


@pytest.mark.parametrize(
    ("act", "calls", "words"),
    [
        ("  def act(self, o): return call_llm('', o)\n", 0, r"agent.toml has no \[models\]"),
        ("  def reset(self, seed): call_llm('', 'o')\n  def act(self, o): return 1\n", 4, "within `act` only"),
        ("  def act(self, o): return [call_llm('', o) for _ in range(5)]\n", 4, "4 questions to models are allowed in a step"),
        ("  def act(self, o): return call_llm('', 'x' * 300_000)\n", 4, "a question of 300010 bytes"),
        ("  def act(self, o): return call_llm('', o, top_k=3)\n", 4, "options are max_tokens"),
        ("  def act(self, o): return call_llm('', o, max_tokens='many')\n", 4, "max_tokens is a whole number"),
    ],
    ids=["no models", "in reset", "too many", "too long", "unknown option", "bad option"],
)
async def test_what_may_not_be_asked_is_the_program_s_error(zygote: Zygote, act: str, calls: int, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        async with await start(zygote, act, calls=calls) as worker:
            await worker.act("robot", 0, "o", desk=Desk() if calls else None)


async def test_without_a_desk_there_are_no_models(zygote: Zygote) -> None:
    async with await start(zygote, "  def act(self, o): return call_llm('', o)\n") as worker:
        with pytest.raises(PolicyError, match="no models here"):
            await worker.act("robot", 0, "o")


async def test_waiting_for_a_model_is_part_of_the_step(zygote: Zygote) -> None:
    desk = Desk(held=("slow",))
    async with await start(zygote, "  def act(self, o): return call_llm('', o)\n", seconds=0.3) as worker:
        with pytest.raises(WorkerTimeout):
            await worker.act("robot", 0, "slow", desk=desk)
    assert desk.closed


async def test_long_answers_to_many_questions_arrive_though_nobody_reads_for_a_while(zygote: Zygote) -> None:
    act = """
  async def act(self, o):
    asked = [asyncio.ensure_future(acall_llm('', str(n))) for n in range(16)]
    await asyncio.sleep(0)
    sum(range(3_000_000))
    return [len(answer.data) for answer in await asyncio.gather(*asked)]
"""
    desk = Desk(lambda question: Told(question.id, question.number, "x" * MAX_TOLD))
    desk.most = 16  # type: ignore[misc]
    async with await start(zygote, act, calls=16) as worker:
        assert await worker.act("robot", 0, "o", desk=desk) == [MAX_TOLD] * 16


LIAR = """
  def act(self, o):
    import os, sys
    import msgspec
    from agentd.sandbox.wire import packets
    frame = sys._getframe()
    while not hasattr(frame.f_locals.get("request"), "id"):
        frame = frame.f_back
    id = frame.f_locals["request"].id
    def asked(number, messages=(("user", "x"),), max_tokens=None, temperature=None, **more):
        question = ["Asked", id if "id" not in more else more["id"], number, messages, None, max_tokens, temperature]
        for packet in packets(msgspec.msgpack.encode(question)):
            os.write(3, packet)
    {lie}
    import time
    time.sleep(60)
"""


@pytest.mark.parametrize(
    "lie",
    [
        "asked(2)",
        "asked(1); asked(1)",
        "[asked(number + 1) for number in range(5)]",
        "asked(1, id=id ^ 1)",
        "asked(1, messages=5)",
        "asked(1, messages=())",
        "asked(1, messages=[('user', 'y' * 300_000)])",
        "asked(1, messages=[('user', '')] * 70_000)",
        "asked(1, messages=[('developer', 'y')])",
        "asked(1, max_tokens=-1_000_000_000)",
        "asked(1, temperature=float('nan'))",
    ],
    ids=[
        *("skips a number", "asks twice", "asks too often", "asks in another request", "asks what is no question", "asks nothing"),
        *("asks at length", "asks in many words", "asks as somebody else"),
        *("wants to be paid for the answer", "asks in no temperature"),
    ],
)
async def test_a_worker_that_asks_out_of_turn_is_ended(zygote: Zygote, lie: str) -> None:
    async with await start(zygote, LIAR.format(lie=lie)) as worker:
        with pytest.raises(ProtocolViolation):
            await worker.act("robot", 0, "o", desk=Desk(held=("x",)))


async def test_a_worker_that_asks_though_it_may_not_is_ended(zygote: Zygote) -> None:
    async with await start(zygote, LIAR.format(lie="asked(1)"), calls=0) as worker:
        with pytest.raises(ProtocolViolation, match="allows none"):
            await worker.act("robot", 0, "o")


async def test_a_failed_episode_is_run_again_with_recorded_answers_and_stops_where_there_is_none(zygote: Zygote) -> None:
    asked = (("system", "Be loud."), ("user", "hello"))
    exchange = Exchange(key=question_key(asked), messages=asked, answer="HELLO")
    steps = (Step(0, "hello", "HELLO", exchanges=(exchange,)), Step(1, "again", "AGAIN"))
    async with await start(zygote, "  def act(self, o): return call_llm('Be loud.', o)\n") as worker:
        found = await rerun(worker, make_episode(steps=steps), None)
    assert found.actions == {0: "HELLO"}
    assert found.unrecorded == "at tick 1 a model is asked what is not recorded: 'again'"
    assert found.fault == "", "what the program made of that is no finding"
    assert Question(RAISES).answer("r", found).fails is None
