"""What a runner's policies may ask of language models: within its lease, with the keys that the daemon gave it, each exchange noted.

The runner makes the calls itself, so that they go on while the daemon is away. Names, keys and lease come over the daemon's connection;
the keys stay in this process. litellm is loaded with them, so that runners whose agents ask nothing never load it.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from agentd.clock import Clock
from agentd.errors import BudgetExhausted, ModelError, OptimizerError
from agentd.opto.budget import POLICY, Lease
from agentd.opto.contract import LlmReply, LlmRequest, Message
from agentd.opto.llm import LitellmClient, LlmSettings
from agentd.records import Exchange
from agentd.runners.messages import LeaseModels, ModelAccess, ModelReport
from agentd.runners.pilot import Spawn
from agentd.sandbox import Asked, Told
from agentd.sandbox.wire import MAX_TOLD, shortened
from agentd.spec import AgentSpec, ModelsSection, parse_duration
from agentd.trace.host import Recorded, question_key

TEMPERATURE = 0.3
CONCURRENCY = 16
ATTEMPTS = 3
"""Fewer than an optimizer's: somebody waits for the step."""
LONGEST_CALL = 60.0
"""Seconds after which a call is tried again."""
ROWS = 500
"""Rows of usage that are told at once."""
MAX_SHOWN = 2_000
"""Characters of a message that are noted."""
_MARGIN = 0.1
"""Share of a step that is left for the program when a model gave no answer, at most `_LONGEST_MARGIN` seconds."""
_LONGEST_MARGIN = 1.0
_REFUSED = frozenset({400, 413, 422})
"""The question's own fault: too long, or not allowed."""


class Models:
    """The models of one agent's policies. `trouble` says in words what keeps it from answering, if anything does."""

    def __init__(self, spec: AgentSpec, section: ModelsSection, clock: Clock, spawn: Spawn) -> None:
        budget = section.budget
        self.calls_per_step = section.calls_per_step
        self.clock = clock
        self._spawn = spawn
        self._open: set[asyncio.Task[None]] = set()
        self._agent = spec.agent.name
        self._max_tokens = section.max_tokens
        self._step = parse_duration(spec.sandbox.step_timeout)
        room = max(section.calls_per_step, budget.calls_per_hour // 10)
        self._lease = Lease(calls=min(room, budget.calls_per_hour), dollars=budget.dollars_per_day / 10)
        self._access: ModelAccess | None = None
        self._client: LitellmClient | None = None
        self._outage = ""

    @property
    def exhausted(self) -> bool:
        """Whether the budget is used up: no episode is begun that would ask in vain."""
        return self._lease.refusal is not None

    @property
    def trouble(self) -> str:
        """What keeps models from answering."""
        return str(self._lease.refusal) if self._lease.refusal is not None else self._outage

    async def renew(self, message: LeaseModels) -> ModelReport:
        """Spend from now on within this lease, and tell what was spent that the ledger has not recorded yet."""
        self._lease.renew(message.grant)
        if message.access is not None and message.access != self._access:
            await self._use(message.access)
        return ModelReport(usage=self._lease.rows(ROWS), taken=self._lease.taken, trouble=self.trouble, exhausted=self.exhausted)

    async def _use(self, access: ModelAccess) -> None:
        before, self._access = self._client, access
        os.environ.update(access.variables)  # where litellm looks for them; a zygote, and so each worker, begins with an empty one
        settings = LlmSettings(
            models=access.names,
            api_base=access.api_base,
            api_key=access.api_key,
            call_timeout=min(LONGEST_CALL, self._step),
            total_timeout=self._step,
            attempts=ATTEMPTS,
            concurrency=CONCURRENCY,
        )
        self._client = client = LitellmClient(settings, self._lease, self.clock)
        if before is not None:
            await before.aclose()
        await client.load()  # before anything is routed, rather than within the first step

    async def complete(self, question: Asked, until: float, waited: Callable[[], float]) -> LlmReply:
        """A model's answer before the step ends at `until` (the loop's time). Raises ModelError, BudgetExhausted.

        `waited`: for how many seconds of the step models have been asked. Who left them less than half of it asked too late.
        """
        if self._client is None or self._access is None:
            raise ModelError("no daemon has told this runner yet which models it may ask", model="", retryable=True)
        names = self._access.names
        if question.model is not None and question.model not in names:
            raise ModelError(f"this agent may ask {', '.join(names)}, not {question.model[:100]}", model="", status=400)
        request = LlmRequest(
            agent=self._agent,
            purpose=POLICY,
            messages=tuple(Message(role=role, content=text) for role, text in question.messages),
            models=(question.model,) if question.model is not None else names,
            max_tokens=min(question.max_tokens or self._max_tokens, self._max_tokens),
            temperature=TEMPERATURE if question.temperature is None else question.temperature,
        )
        left = until - asyncio.get_running_loop().time() - min(_LONGEST_MARGIN, _MARGIN * self._step)
        try:
            async with asyncio.timeout(max(0.0, left)):
                reply = await self._client.complete(request)
        except TimeoutError:
            text = f"{request.models[0]}: no answer before the end of the step ([sandbox] step_timeout)"
            if waited() < self._step / 2:
                raise ModelError(f"{text}, in the second half of which it was asked", model=request.models[0], status=400) from None
            raise ModelError(text, model=request.models[0], retryable=True) from None
        size = len(reply.text.encode())
        if size > MAX_TOLD:
            text = f"an answer of {size} bytes, where at most {MAX_TOLD} can be passed on: ask for fewer max_tokens"
            raise ModelError(text, model=reply.model, status=413)
        return reply

    def noted(self, error: OptimizerError | None) -> str:
        """Remember what a call showed of the models' service; the words of an outage, "" if there is none."""
        if isinstance(error, BudgetExhausted):
            return str(error)
        outage = isinstance(error, ModelError) and error.status not in _REFUSED
        self._outage = str(error) if outage else self._outage if error is not None else ""
        return self._outage if outage else ""

    def spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """A task of the runner, which ends with these models at the latest."""
        task = self._spawn(work, "model")
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        return task

    def desk(self) -> "LiveDesk":
        """Who answers the questions of one step."""
        return LiveDesk(self)

    async def aclose(self) -> None:
        """Give up what is open, and close the connections."""
        for task in list(self._open):
            task.cancel()
        if self._client is not None:
            await self._client.aclose()


class LiveDesk:
    """The questions of one step, on their way to models and back. `outage` says what of that failed without the program's fault."""

    def __init__(self, models: Models) -> None:
        self.most = models.calls_per_step
        self.outage = ""
        self._models = models
        self._exchanges: list[Exchange] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._open = 0
        self._since = self._waited = 0.0

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """What was asked and answered so far."""
        return tuple(self._exchanges)

    def ask(self, question: Asked, until: float, tell: Callable[[Told], None]) -> None:
        """Answer by `tell` when the answer is there."""
        shown = tuple((role, shortened(text, MAX_SHOWN)) for role, text in question.messages)
        self._exchanges.append(Exchange(key=key_of(question), messages=shown, error="ModelError: the step ended before the answer came"))
        if self._open == 0:
            self._since = self._models.clock.monotonic()
        self._open += 1
        self._tasks.append(self._models.spawn(self._answer(question, until, tell)))

    def _seconds(self) -> float:
        """For how long models have been asked in this step, one or several at once."""
        return self._waited + (self._models.clock.monotonic() - self._since if self._open else 0.0)

    def close(self) -> None:
        """The step is over."""
        for task in self._tasks:
            task.cancel()

    async def _answer(self, question: Asked, until: float, tell: Callable[[Told], None]) -> None:
        began = self._models.clock.monotonic()
        place = question.number - 1
        exchange = msgspec.structs.replace(self._exchanges[place], error="")
        try:
            reply = await self._models.complete(question, until, self._seconds)
        except (ModelError, BudgetExhausted) as error:
            self.outage = self._models.noted(error) or self.outage
            told = _failed(question, error)
            exchange = msgspec.structs.replace(exchange, error=f"{type(error).__name__}: {told.text}", model=told.model)
        else:
            self._models.noted(None)
            told = Told(question.id, question.number, reply.text, model=reply.model)
            exchange = msgspec.structs.replace(
                exchange,
                answer=reply.text,
                model=reply.model,
                tokens_in=reply.tokens_in,
                tokens_out=reply.tokens_out,
                dollars=reply.dollars,
            )
        self._exchanges[place] = msgspec.structs.replace(exchange, seconds=self._models.clock.monotonic() - began)
        self._waited, self._open, self._since = self._seconds(), self._open - 1, self._models.clock.monotonic()
        tell(told)


class RecordedDesk:
    """Answers from what was recorded of a step, for a replay."""

    def __init__(self, exchanges: tuple[Exchange, ...], most: int) -> None:
        self.most = most
        self._recorded = Recorded(exchanges)

    @property
    def missing(self) -> str:
        """The first question that has no recorded answer: what the program did after it is no replay."""
        return self._recorded.missing

    def ask(self, question: Asked, until: float, tell: Callable[[Told], None]) -> None:  # noqa: ARG002 - the contract's argument
        """The recorded answer, or error."""
        exchange = self._recorded.take(key_of(question), question.messages)
        if exchange is None:
            tell(Told(question.id, question.number, self.missing, error="ModelError"))
            return
        kind, _, text = exchange.error.partition(": ")
        tell(Told(question.id, question.number, text or exchange.answer, error=kind, model=exchange.model))

    def close(self) -> None:
        """Nothing is open."""


def key_of(question: Asked) -> str:
    """The question's name in the record."""
    return question_key(question.messages, model=question.model, max_tokens=question.max_tokens, temperature=question.temperature)


def _failed(question: Asked, error: ModelError | BudgetExhausted) -> Told:
    if isinstance(error, BudgetExhausted):
        return Told(question.id, question.number, error.limit, error="BudgetExhausted", resets_at=error.resets_at)
    return Told(
        question.id,
        question.number,
        str(error),
        error="ModelError",
        model=error.model,
        status=error.status,
        retryable=error.retryable,
    )
