"""Which graph new nodes join: one ContextVar, so that unrelated tasks and threads never meet.

A `Scope` is what the current context points at. Three kinds exist: the root (outside any episode, keeps nothing), a graph's (keeps its
nodes in order), and a frame (a bundle's function is running: what it reads from outside becomes a dependency of its result).
Tasks and `asyncio.to_thread` copy the context, hence join the graph they were started in.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    import weakref

    from agentd.trace.core import AbstractNode
    from agentd.trace.graph import Graph

P = ParamSpec("P")
T = TypeVar("T")


class Origin:
    """What a node remembers of where it was made: its graph, weakly (the graph owns its nodes), and the name scope."""

    __slots__ = ("graph", "prefix")

    def __init__(self, graph: weakref.ref[Graph] | None = None, prefix: str = "") -> None:
        self.graph = graph
        self.prefix = prefix


class Scope:
    """Where new nodes go. `append` takes each new message node; `reads` and `touched` are None outside a bundle's function.

    `reads` are nodes whose `.data` was read, which a bundle must have been given; `touched` are nodes that decided or converted
    implicitly (`if node`, `float(node)`), which become dependencies silently.
    """

    __slots__ = ("append", "module", "nodes", "origin", "reads", "touched", "tracing")

    def __init__(self, append: Callable[[AbstractNode], Any], origin: Origin, *, tracing: bool = True) -> None:
        self.append = append
        self.origin = origin
        self.tracing = tracing
        self.nodes: list[AbstractNode] = []
        self.reads: list[AbstractNode] | None = None
        self.touched: list[AbstractNode] | None = None
        self.module: object = None


class Frame(Scope):
    """The scope of one running call of a bundle: keeps what its function makes and reads until the call ends."""

    __slots__ = ()

    def __init__(self, outer: Scope, module: object) -> None:
        self.nodes = []
        self.append = self.nodes.append
        self.origin = outer.origin
        self.tracing = outer.tracing
        self.reads = []
        self.touched = []
        self.module = module


def _keep_nothing(_: AbstractNode) -> None:
    """The root owns no nodes: they live as long as somebody uses them."""


ROOT = Scope(_keep_nothing, Origin())
current: contextvars.ContextVar[Scope] = contextvars.ContextVar("agentd_trace_scope", default=ROOT)


def derive(scope: Scope, *, tracing: bool | None = None, prefix: str | None = None) -> Scope:
    """A scope like `scope` that differs in one thing and feeds the same graph or frame."""
    origin = scope.origin if prefix is None else Origin(scope.origin.graph, prefix)
    made = Scope(scope.append, origin, tracing=scope.tracing if tracing is None else tracing)
    made.nodes, made.reads, made.touched, made.module = scope.nodes, scope.reads, scope.touched, scope.module
    return made


class stop_tracing(contextlib.ContextDecorator):  # noqa: N801 - the name that Trace programs use
    """Within `with stop_tracing():` results are nodes without parents. Holds for this context only, nests, and survives errors."""

    def __init__(self) -> None:
        self._tokens: list[contextvars.Token[Scope]] = []

    def _recreate_cm(self) -> stop_tracing:
        return stop_tracing()  # a decorated function may run in many tasks: each call has its own

    def __enter__(self) -> None:
        self._tokens.append(current.set(derive(current.get(), tracing=False)))

    def __exit__(self, *_: object) -> None:
        current.reset(self._tokens.pop())


@contextlib.contextmanager
def name_scope(name: str) -> Iterator[None]:
    """Nodes made within are named `name/...`; scopes nest as paths do."""
    scope = current.get()
    prefix = f"{scope.origin.prefix}{name}/"
    token = current.set(derive(scope, prefix=prefix))
    try:
        yield
    finally:
        current.reset(token)


def submit(executor: Executor, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """`executor.submit` for a pool of bare threads, which, unlike `asyncio.to_thread`, would leave the graph behind."""
    context = contextvars.copy_context()
    return executor.submit(lambda: context.run(function, *args, **kwargs))
