"""The policy worker's program: one policy instance per device, an episode's graph around each call of `act`."""

import asyncio
import contextvars
import inspect
import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from types import CoroutineType
from typing import Any

import msgspec

from agentd import codec
from agentd.errors import LoadError, TraceError
from agentd.records import Kind, Parameter, Value
from agentd.sandbox.loader import load_entrypoint
from agentd.sandbox.wire import MAX_PART, MAX_TRACE, Act, Assign, Fetch, Finish, Load, LoadState, Request, Reset, State, Trace
from agentd.trace.core import AbstractNode
from agentd.trace.errors import ExecutionError
from agentd.trace.export import Limits, export_slices
from agentd.trace.graph import Graph
from agentd.trace.nodes import Node
from agentd.trace.operations import unwrap
from agentd.trace.parameters import assign, describe, find_parameters

_log = logging.getLogger("agentd")

MAX_INSTANCES = 2_000
"""Devices come and go: beyond this many, the instance that was reset longest ago is let go."""
MAX_GRAPH_NODES = 200_000
"""An episode whose graph grows beyond this begins a new graph at the current observation; what was before is counted as dropped."""
MAX_CUT = 4
"""Episodes of one device whose traces wait to be fetched: of more, the oldest is let go."""
SLICE_SECONDS = 0.0005
"""Work on a trace stops after this long: a tick may be waiting."""
_CLEARED_AT_ONCE = 1_000


class Seat:
    """A device's policy instance and the graph of its episode. Calls run in a context of their own, whose graph this is."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.act: Callable[[AbstractNode], Any] = policy.act
        self.traces: dict[int, _Trace] = {}
        """Of episodes that ended, by the request that ended them."""
        self.context = contextvars.copy_context()
        self.begin()

    def begin(self) -> None:
        """Open a new episode's graph, in the context that the program knows."""
        self.graph = Graph()
        self.context.run(self.graph.__enter__)
        self.observation: AbstractNode | None = None
        self.action: Any = None
        self.error: AbstractNode | None = None
        self.dropped = 0

    def observe(self, observation: Value) -> AbstractNode:
        """The node of what the device sees now: what the environment made of the last observation and action."""
        if self.observation is None:
            made = self.graph.message("environment_reset", {}, observation, "The first observation of the episode.")
        else:
            inputs = {"observation": self.observation, "action": self.action}
            made = self.graph.message("environment_step", inputs, observation, "What the environment made of the action.")
        if len(self.graph) > MAX_GRAPH_NODES:
            self.dropped += len(self.graph) - 1
            self.graph.clear()
            self.graph.nodes.append(made)
        self.observation = made
        return made


class _Trace:
    """The encoded trace of an episode that has ended, in the making: it is worked on between ticks, for a slice of time each."""

    def __init__(self, graph: Graph, end: Node, dropped: int) -> None:
        self.parts: deque[bytes] = deque()
        self.done = False
        self._work = self._slices(graph, end, dropped)

    def work(self, until: float) -> bool:
        """Go on until then (by `time.perf_counter`), and tell whether it is done."""
        while not self.done and time.perf_counter() < until:
            self.done = next(self._work, True) is True
        return self.done

    def _slices(self, graph: Graph, end: Node, dropped: int) -> Generator[None, None, None]:
        record = yield from export_slices(graph, end, Limits())
        if dropped:
            record = msgspec.structs.replace(record, dropped_nodes=record.dropped_nodes + dropped)
        trace = codec.encode(record)
        yield
        while graph.clear(_CLEARED_AT_ONCE):
            yield
        if len(trace) <= MAX_TRACE:
            self.parts.extend(trace[start : start + MAX_PART] for start in range(0, len(trace), MAX_PART))
        else:
            size = len(trace)
            _log.warning("the trace of the episode has %d bytes, more than the %d that can travel, and was dropped", size, MAX_TRACE)


class PolicyProgram:
    """Serves Load, Assign, Reset, Act, Finish, State and LoadState."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._seats: dict[str, Seat] = {}
        self._spare: Any = None
        self._make: Callable[[], Any] = _nothing
        self._handlers: dict[type[Request], Callable[[Any], Value]] = {
            Assign: self._assign,
            Act: self._act,
            Reset: self._reset,
            Finish: self._finish,
            Fetch: self._fetch,
            State: self._state,
            LoadState: self._load_state,
        }

    def load(self, request: Load) -> list[Parameter]:
        """Build the program's first instance, and tell its parameters as the source has them."""
        factory = load_entrypoint(request.files, request.allowed_imports, request.entrypoint)
        program = self._complete(factory(**request.args))
        if not callable(getattr(program, "act", None)):
            raise LoadError(f"{request.entrypoint} makes a {type(program).__name__}, which has no method act(observation)")
        parameters = [describe(path, node) for path, node in find_parameters(program).items()]
        if request.data_only and any(parameter.kind is Kind.CODE for parameter in parameters):
            raise LoadError("isolation level 0 is for programs whose parameters are data, but this one has code parameters")
        self._spare = program
        self._make = lambda: self._complete(factory(**request.args))
        return parameters

    def _assign(self, request: Assign) -> None:
        """Give the first instance, and all that are made later, the revision's values."""
        _assign(self._spare, request.values)
        make = self._make

        def make_revision() -> Any:
            made = make()
            _assign(made, request.values)
            return made

        self._make = make_revision

    def handle(self, request: Request) -> Value:
        """Do a request of an episode."""
        return self._handlers[type(request)](request)

    def _act(self, request: Act) -> Value:
        seat = self._seats[request.device]
        if request.replaced:
            seat.action = request.previous
        try:
            result = seat.context.run(self._call, seat, seat.observe(request.observation))
        except ExecutionError as error:
            seat.error = error.exception_node
            raise
        if isinstance(result, AbstractNode):
            seat.action = result
            return result._data  # noqa: SLF001 - reading it here must not count as a read by the program
        found: list[AbstractNode] = []
        plain = unwrap(result, found)
        inputs: dict[str, Any] = {f"part{number}": part for number, part in enumerate(found)}
        seat.action = seat.graph.message("action", inputs, plain, "The action, put together from its parts.") if found else plain
        return plain

    def _call(self, seat: Seat, observation: AbstractNode) -> Any:
        result = seat.act(observation)
        return self._complete(result) if type(result) is CoroutineType or isinstance(result, Awaitable) else result

    def _reset(self, request: Reset) -> None:
        seat = self._seats.pop(request.device, None)
        if seat is None:
            policy, self._spare = self._spare or self._make(), None
            seat = Seat(policy)
        else:
            seat.begin()
        self._seats[request.device] = seat  # last in the dict: reset most recently
        if len(self._seats) > MAX_INSTANCES:
            del self._seats[next(iter(self._seats))]
        reset = getattr(seat.policy, "reset", None)
        if reset is not None:
            self._complete(seat.context.run(reset, request.seed))

    def _finish(self, request: Finish) -> None:
        seat = self._seats[request.device]
        if seat.observation is None:
            return
        last = seat.observation if request.final_observation is None else seat.observe(request.final_observation)
        inputs: dict[str, Any] = {"observation": last}
        if request.final_observation is None and isinstance(seat.action, AbstractNode) and seat.error is None:
            last, inputs = seat.action, {"answer": seat.action}  # of a request the answer is the output
        if seat.error is not None:
            inputs["error"] = seat.error
        end = seat.graph.message("episode_end", inputs, _plain(last), "The end of the episode.")
        seat.traces[request.id] = _Trace(seat.graph, end, seat.dropped)
        if len(seat.traces) > MAX_CUT:
            del seat.traces[next(iter(seat.traces))]
        seat.begin()

    def _fetch(self, request: Fetch) -> Trace:
        traces = self._seats[request.device].traces
        wanted = traces.get(request.finished)
        if wanted is None:
            return Trace(request.id, b"")
        until = time.perf_counter() + SLICE_SECONDS
        for making in traces.values():  # the oldest first: a later graph may go on from an earlier one, until that is cleared
            if not making.work(until) or making is wanted:
                break
        content = wanted.parts.popleft() if wanted.parts else b""
        if wanted.done and not wanted.parts:
            del traces[request.finished]
        return Trace(request.id, content, more=request.finished in traces)

    def _state(self, request: State) -> Value:
        state = getattr(self._seats[request.device].policy, "state", None)
        return unwrap(self._complete(state()), []) if callable(state) else None

    def _load_state(self, request: LoadState) -> None:
        load_state = getattr(self._seats[request.device].policy, "load_state", None)
        if callable(load_state):
            self._complete(load_state(request.value))

    def _complete(self, result: Any) -> Any:
        """The result of what may be a coroutine: authors may write `async def` anywhere."""
        if not inspect.isawaitable(result) or isinstance(result, AbstractNode):
            return result
        return self._loop.run_until_complete(_await(result))


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _nothing() -> Any:
    raise LoadError("the program was not loaded")


def _plain(node: AbstractNode) -> Value:
    return node._data  # noqa: SLF001 - as in _act


def _assign(program: Any, values: dict[str, Value]) -> None:
    nodes = find_parameters(program)
    for path, value in values.items():
        if path not in nodes:
            known = ", ".join(itertools.islice(nodes, 10)) or "none"
            raise LoadError(f"the revision has a value for {path!r}, but the program's parameters are: {known}")
        try:
            assign(nodes[path], value)
        except TraceError as error:
            raise LoadError(f"{path}: {error}") from error
