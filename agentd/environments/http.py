"""Requests as an environment: the plant is whoever sends them. Each is an episode of one step, and its answer is the action.

The daemon takes requests over HTTP and passes them on (`ask`). They wait in a bounded queue for a free seat; a seat is driven like a device
that begins its episodes by itself. All seats are one plant, "http", as far as releases are concerned: their roles are drawn for it.

A conversation of several turns would be a seat whose `step` gives the answer and waits for the same client's next request.
"""

import asyncio
import collections
from random import Random

from agentd.clock import Clock
from agentd.environment_spec import EnvironmentSection
from agentd.environments.contract import Begun, Transition
from agentd.environments.inprocess import InProcessDevice, InProcessEnvironment
from agentd.environments.spaces import fit
from agentd.errors import CodecError, Overloaded, PlantError, Unanswered
from agentd.ids import make_id
from agentd.records import Answered, Purpose, Space, Value

PLANT = "http"


class _Request:
    """A request in the queue, then in a seat."""

    def __init__(self, observation: Value, client: str, instruction: str) -> None:
        self.observation = observation
        self.client = client
        self.instruction = instruction
        self.taken = asyncio.Event()
        self.answer: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()


class HttpSeat(InProcessDevice):
    """Where one request is answered at a time."""

    seedable = False

    def __init__(self, id: str, environment: "HttpEnvironment") -> None:  # noqa: A002 - the contract's name
        super().__init__(id)
        self._environment = environment
        self._request: _Request | None = None
        self._episode = ""
        self._taken_at = 0.0

    async def begun(self) -> Begun:
        """The next request."""
        environment = self._environment
        request = self._request = await environment.next_request()
        self._episode, self._taken_at = environment.new_id(), environment.clock.monotonic()
        first = Transition(observation=request.observation, received_at=self._taken_at)
        return Begun(self._episode, first, waits=True, client=request.client, instruction=request.instruction)

    async def reset(self, episode: str, seed: int | None, max_steps: int, purpose: Purpose = Purpose.NORMAL) -> Transition:  # noqa: ARG002 - the contract's
        """Nobody but a client begins an episode here."""
        raise PlantError(f"{self.id}: only a request begins an episode")

    async def step(self, action: Value, *, revision: str, safe: bool) -> Transition:
        """Give the answer. There is no observation after it."""
        self._answer(Answered(episode=self._episode, action=action, revision=revision, safe=safe))
        return Transition(observation=None, terminated=True, tick=1, received_at=self._environment.clock.monotonic())

    async def rest(self, action: Value) -> None:
        """The request is answered without a policy: the agent is paused, has no worker, or is about to end."""
        self._answer(Answered(episode="", action=action, safe=True))

    def _answer(self, answered: Answered) -> None:
        request, self._request = self._request, None
        if request is None or request.answer.done():
            return
        environment = self._environment
        if not answered.safe or environment.has_safe_action:
            request.answer.set_result(answered)
            return
        late = environment.clock.monotonic() - self._taken_at >= environment.step_timeout
        if not answered.episode:
            error = Unanswered("no policy can be asked now: the agent is paused, starting or stopping, and declares no safe_action")
        elif late:
            error = Unanswered(f"the policy gave no answer within {environment.step_timeout:g} s", late=True, episode=answered.episode)
        else:
            error = Unanswered("the policy failed, or its answer is outside the action space", episode=answered.episode)
        request.answer.set_exception(error)


class HttpPlant(InProcessDevice):
    """All seats, as the one device that releases know. It is its seats that are driven."""

    seedable = False

    def __init__(self, seats: tuple[HttpSeat, ...]) -> None:
        super().__init__(PLANT)
        self.seats = seats

    async def reset(self, episode: str, seed: int | None, max_steps: int, purpose: Purpose = Purpose.NORMAL) -> Transition:
        """As that of a seat."""
        return await self.seats[0].reset(episode, seed, max_steps, purpose)

    async def step(self, action: Value, *, revision: str, safe: bool) -> Transition:
        """As that of a seat."""
        return await self.seats[0].step(action, revision=revision, safe=safe)


class HttpEnvironment(InProcessEnvironment):
    """The requests to one agent. `step_timeout` (seconds) is what a policy has for its answer."""

    def __init__(
        self,
        section: EnvironmentSection,
        spaces: tuple[Space, Space],
        *,
        step_timeout: float,
        clock: Clock,
        generator: Random,
    ) -> None:
        try:
            safe_action = None if section.safe_action is None else fit(spaces[1], section.safe_action.value)
        except ValueError as error:
            raise PlantError(f"[environment.safe_action] value: {error}") from error
        seats = tuple(HttpSeat(f"{PLANT}-{number}", self) for number in range(1, section.http.concurrency + 1))
        super().__init__([HttpPlant(seats)], spaces, safe_action)
        self.clock = clock
        self.has_safe_action = section.safe_action is not None
        self.step_timeout = step_timeout
        self._section = section.http
        self._generator = generator
        self._queue: collections.deque[_Request] = collections.deque()
        self._news = asyncio.Event()
        self._closed = False

    def new_id(self) -> str:
        """An identifier for an episode."""
        return make_id(self.clock.time(), self._generator)

    async def ask(self, observation: Value, *, client: str = "", instruction: str = "") -> Answered:
        """The action for a request.

        Raises:
            CodecError: the observation is outside its space.
            Overloaded: as many requests wait as may, or this one has waited for as long as it may.
            Unanswered: there is neither an answer of the policy nor a safe action.
        """
        try:
            observation = fit(self.observation_space, observation)
        except ValueError as error:
            raise CodecError(f"observation: {error}") from error
        if self._closed:
            raise Unanswered("the agent is stopping")
        if len(self._queue) >= self._section.queue:
            raise Overloaded(f"{len(self._queue)} requests wait already, and no more may")
        request = _Request(observation, client, instruction)
        self._queue.append(request)
        self._news.set()
        try:
            try:
                async with asyncio.timeout(self._section.queue_timeout):
                    await request.taken.wait()
            except TimeoutError:
                waited = f"the request has waited {self._section.queue_timeout:g} s for its turn"
                raise Overloaded(waited, full=False) from None
            return await request.answer
        finally:
            request.answer.cancel()  # nobody waits for it any more
            if request in self._queue:
                self._queue.remove(request)

    async def next_request(self) -> _Request:
        """The request that has waited longest; waits for one."""
        while not self._queue:
            self._news.clear()
            await self._news.wait()
        request = self._queue.popleft()
        request.taken.set()
        return request

    async def announce(self, status: str) -> None:
        """At the end nobody is left in the queue without an answer."""
        if status != "stopped":
            return
        self._closed = True
        while self._queue:
            request = self._queue.popleft()
            request.answer.set_exception(Unanswered("the agent is stopping"))
            request.taken.set()
