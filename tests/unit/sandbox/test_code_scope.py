"""`[sandbox] scope = "code"`: a trusted program whose code parameters run in a locked worker, and what they are given there."""

import asyncio
import contextlib
import os
import signal
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from agentd import codec
from agentd.errors import LoadError, PolicyError, WorkerDied, WorkerTimeout
from agentd.records import NodeKind, Source, TraceGraph, make_revision
from agentd.sandbox import Limits, PolicyWorker, Zygote
from agentd.sandbox.wire import Asked, Told

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scopes() -> AsyncIterator[dict[str, Zygote]]:
    async with contextlib.AsyncExitStack() as stack:
        yield {scope: await stack.enter_async_context(await Zygote.start(imports=IMPORTS, scope=scope)) for scope in ("agent", "code")}


async def start(zygote: Zygote, text: str, values: dict[str, Any] | None = None, **limits: Any) -> PolicyWorker:
    source = Source(digest="d", files={"program.py": text}, entrypoint="program:Program")
    revision = make_revision("agent", "d", values or {})
    chosen = Limits(**{"step_timeout": 20.0, "load_timeout": 20.0, "allowed_imports": IMPORTS} | limits)
    return await PolicyWorker.start(zygote, source=source, revision=revision, limits=chosen, on_log=LOG.append)


LOG: list[str] = []
IMPORTS = ("math", "numpy", "asyncio")

PROGRAM = '''
import math
from math import tau as turn

import numpy as np

from agentd.trace import bundle, model, node

LIMITS = (-2.0, 2.0)


def clipped():
    margin = 0.25

    @bundle(trainable=True)
    def clip(value, low=LIMITS[0], *, high=2.0):
        """Within the limits."""
        print("clips", type(value).__name__)
        return max(low + margin, min(value, high - margin))

    return clip


@bundle(trainable=True)
def factorial(n):
    return 1 if n <= 1 else n * factorial(n - 1)


@model
class Program:
    unit = 3.0

    def __init__(self):
        self.gain = node(2.0, trainable=True, name="gain")
        self.offset = 0.5
        self.clip = clipped()
        self.factorial = factorial
        self.calls = 0

    @bundle(trainable=True)
    def scale(self, value: "no such type", gain) -> Nothing if False else None:
        return value * gain + self.offset + math.sin(0.0) * turn

    @bundle(trainable=True)
    async def waited(self, value, *rest, **more):
        import asyncio
        await asyncio.sleep(0)
        return {"kept": (value, rest, more), 1: {1, 2}}

    @bundle(trainable=True)
    def kinds(self, *values):
        array = values[0].copy()
        array[0] = 7.0
        return array, [type(value).__name__ for value in values], np.float32(1.5)

    @bundle(trainable=True)
    def summed(self, parts):
        return parts[0] + parts[1]

    @staticmethod
    @bundle(trainable=True)
    def helped(value):
        return value + 1

    @bundle(trainable=True)
    @classmethod
    def of_class(cls, value):
        return value * cls.unit

    @bundle(trainable=True)
    def fails(self, how):
        """Raises."""
        if how == "divides":
            return 1 / 0
        if how == "looks up":
            return {}["nothing"]
        if how == "solves":
            return np.linalg.solve(np.zeros((2, 2)), np.ones(2))
        def inner(depth):
            raise ValueError(f"at depth {depth}")
        return inner(3)

    async def act(self, observation):
        self.calls += 1
        what = observation.data
        if what == "state":
            return self.calls
        if what in ("divides", "looks up", "solves", "nests"):
            return self.fails(observation)
        scaled = self.scale(observation, self.gain)
        waited = await self.waited(scaled, 1, two=[2])
        kinds = self.kinds(np.zeros(3), (1, 2), {3}, 2**70, 1j, np.float64(1), b"x", None)
        total = self.summed([scaled, self.helped(self.of_class(2.0))])
        return [self.clip(total, high=1.0), self.shown(waited, kinds), self.factorial(5)]

    @bundle()
    def shown(self, *values):
        return repr(values)

    def state(self):
        return self.calls
'''


async def traced(zygote: Zygote, observation: Any, values: dict[str, Any] | None = None) -> tuple[Any, TraceGraph]:
    """The action, or the error's last line, of one episode of one step; and its graph."""
    async with await start(zygote, PROGRAM, values) as worker:
        await worker.reset("robot", "e", 1)
        try:
            action = await worker.act("robot", 0, observation)
        except PolicyError as error:
            action = str(error)
        trace = await worker.finish("robot", 0)
        assert trace is not None
        return action, codec.decode(trace, TraceGraph)


CHANGED = {
    "scale": "def scale(self, value, gain):\n    twice = 2 * value\n    return twice * gain - self.offset",
    "gain": 3.0,
}


@pytest.mark.parametrize("values", [{}, CHANGED], ids=["as written", "as a revision has it"])
async def test_the_same_program_acts_and_is_traced_alike_under_both_scopes(scopes: dict[str, Zygote], values: dict[str, Any]) -> None:
    action, graph = await traced(scopes["agent"], 0.5, values)
    other, same = await traced(scopes["code"], 0.5, values)
    assert codec.encode(other) == codec.encode(action)
    assert codec.encode(same) == codec.encode(graph)
    assert action[0] == 0.75
    assert "clips float" in LOG


@pytest.mark.parametrize("how", ["divides", "looks up", "solves", "nests"])
async def test_errors_are_alike_and_show_the_failing_line(scopes: dict[str, Zygote], how: str) -> None:
    error, graph = await traced(scopes["agent"], how)
    other, same = await traced(scopes["code"], how)
    assert other == error
    failed = next(node for node in same.nodes if node.kind is NodeKind.EXCEPTION)
    assert "# <--" in failed.value
    if how != "solves":  # the lines of numpy can be read by a process that is not locked only
        assert codec.encode(same) == codec.encode(graph)


async def test_devices_have_instances_and_states_of_their_own(scopes: dict[str, Zygote]) -> None:
    async with await start(scopes["code"], PROGRAM) as worker:
        assert worker.parameters[0].path == "gain"
        for device in ("one", "two"):
            await worker.reset(device, "e", 1)
        await worker.act("one", 0, 0.5)
        assert await worker.act("one", 1, "state") == 2
        assert await worker.act("two", 0, "state") == 1
        assert (await worker.state("one"), await worker.state("two")) == (2, 1)


PLAIN = """import socket
import math
from agentd.trace import bundle, model, node
{before}

@model
class Program:
    key = "sk-secret"
    gain = 2.0

    @bundle(trainable=True)
{code}

    def act(self, observation):
        return self.law(observation)
"""


def simple(code: str, before: str = "") -> str:
    return PLAIN.format(code=textwrap.indent(code, "    "), before=before)


REFUSED = {
    "a module that is not allowed": (simple("def law(self, x):\n    return socket.gethostname()"), "module socket.*allowed_imports"),
    "a function of the program": (
        simple("def law(self, x):\n    return helper(x)", "def helper(x):\n    return x"),
        "uses helper, a function.*write it into the function",
    ),
    "another code parameter": (
        simple("def law(self, x):\n    return other(x)", "@bundle(trainable=True)\ndef other(x):\n    return x"),
        "calls other, an operation of its own",
    ),
    "a node": (simple("def law(self, x):\n    return gain * x", "gain = node(1.0, trainable=True)"), "node gain: pass it as an argument"),
    "a global variable": (simple("def law(self, x):\n    global count\n    count = 1", "count = 0"), "says `global count`"),
    "a change of self": (simple("def law(self, x):\n    self.sum = x"), "changes self.sum.*return the value"),
    "a method of self": (simple("def law(self, x):\n    return self.state()"), "calls self.state.*in the program"),
    "self as a whole": (simple("def law(self, x):\n    return vars(self)"), "uses self as a whole"),
    "super": (simple("def law(self, x):\n    return super().law(x)"), r"uses super\(\)"),
    "a decorator": (
        simple(
            "@wrapping\ndef law(self, x):\n    return x",
            "import functools\ndef wrapping(f):\n    return functools.wraps(f)(lambda *a: f(*a))",
        ),
        "decorator below @bundle",
    ),
    "a default that is no value": (simple("def law(self, x, f=math.sin):\n    return x"), "default of f is a builtin_function"),
    "traceable code": (
        simple("def law(self, x):\n    return x").replace("trainable=True", "trainable=True, traceable_code=True"),
        "works on nodes",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_can_not_be_given_is_refused_at_load_by_name(scopes: dict[str, Zygote], what: str) -> None:
    text, words = REFUSED[what]
    with pytest.raises(LoadError, match=words):
        await start(scopes["code"], text)


LAW = simple("def law(self, x):\n    return x * self.gain + OFFSET", "OFFSET = 1.0\nKEY = 'sk-secret'")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("return KEY", "uses KEY, which the author's version doesn't"),
        ("return self.key", "reads self.key, which the author's version doesn't"),
        ("import socket\n    return 1", ""),
        ("return 1 +", "does not compile"),
        ("return x  # changed", ""),
    ],
)
async def test_a_revision_is_given_no_more_than_the_authors_version_names(scopes: dict[str, Zygote], code: str, words: str) -> None:
    values = {"law": f"def law(self, x):\n    {code}"}
    with pytest.raises(LoadError, match=words) if words else contextlib.nullcontext():
        async with await start(scopes["code"], LAW, values) as worker:
            await worker.reset("robot", "e", 1)
            if "socket" in code:
                with pytest.raises(PolicyError, match="may not import 'socket'"):
                    await worker.act("robot", 0, 1.0)


async def test_defaults_of_a_revision_are_evaluated_in_the_sandbox(scopes: dict[str, Zygote]) -> None:
    values = {"law": "def law(self, x=__import__('os').getpid()):\n    return x"}
    with pytest.raises(LoadError, match="may not import 'os'"):
        await start(scopes["code"], LAW, values)


@pytest.mark.parametrize("values", ["x: object()", "x: [object()]", "x: lambda: 1"])
async def test_values_that_are_not_plain_are_the_policys_error(scopes: dict[str, Zygote], values: str) -> None:
    returned = simple(f"def law(self, x):\n    return {values.removeprefix('x: ')}")
    async with await start(scopes["code"], returned) as worker:
        await worker.reset("robot", "e", 1)
        with pytest.raises(PolicyError, match=r"law returned a (object|function), which can't leave the sandbox"):
            await worker.act("robot", 0, 1.0)


async def test_what_the_code_changes_in_an_argument_stays_in_the_sandbox(scopes: dict[str, Zygote]) -> None:
    changes = simple("def law(self, x, given):\n    given[0] += 1\n    return given[0]", "import numpy as np").replace(
        "return self.law(observation)", "given = np.zeros(1)\n        return [self.law(observation, given), given[0]]"
    )
    async with await start(scopes["code"], changes) as worker:
        await worker.reset("robot", "e", 1)
        assert await worker.act("robot", 0, 1.0) == [1.0, 0.0]


async def test_an_argument_that_is_not_plain_is_refused_with_its_type(scopes: dict[str, Zygote]) -> None:
    text = LAW.replace("self.law(observation)", "self.law(object())")
    async with await start(scopes["code"], text) as worker:
        await worker.reset("robot", "e", 1)
        with pytest.raises(PolicyError, match="x is a object, which can't enter the sandbox"):
            await worker.act("robot", 0, 1.0)


class Desk:
    """Answers with the last message in capitals."""

    most = 4

    def ask(self, question: Asked, until: float, tell: Callable[[Told], None]) -> None:
        assert until > asyncio.get_running_loop().time()
        tell(Told(question.id, question.number, question.messages[-1][1].upper()))

    def close(self) -> None: ...


ASKS = """
import asyncio
from agentd.trace import acall_llm, bundle, call_llm, model

@model
class Program:
    @bundle(trainable=True)
    def law(self, said, how):
        if how == "import":
            from agentd.trace import call_llm as ask
            return ask("", "spend")
        elif how == "host":
            from agentd.trace.host import current_host
            return current_host().complete([{"role": "user", "content": "spend"}])
        return said + "!"

    async def act(self, observation):
        later = asyncio.ensure_future(acall_llm("", "later"))
        await asyncio.sleep(0)
        now = call_llm("Be loud.", observation)
        return [self.law(now, observation), self.law(await later, "")]
"""


async def test_a_trusted_program_asks_models_and_its_code_parameters_may_not(scopes: dict[str, Zygote]) -> None:
    async with await start(scopes["code"], ASKS, model_calls=4) as worker:
        await worker.reset("robot", "e", 1)
        assert await worker.act("robot", 0, "hello", desk=Desk()) == ["HELLO!", "LATER!"]
        for tick, how in enumerate(("import", "host"), 1):
            with pytest.raises(PolicyError, match=r"ModelError.*can ask no models: ask in the program, and pass the answer on"):
                await worker.act("robot", tick, how, desk=Desk())
        assert await worker.act("robot", 3, "again", desk=Desk()) == ["AGAIN!", "LATER!"]


@pytest.mark.parametrize("asking", ["call_llm('', said)", "acall_llm('', said)"])
async def test_a_code_parameter_that_asks_models_is_refused_at_load(scopes: dict[str, Zygote], asking: str) -> None:
    with pytest.raises(LoadError, match=r"law asks models \(a?call_llm\).*ask in the program, and pass the answer on"):
        await start(scopes["code"], ASKS, {"law": f"def law(self, said, how):\n    return {asking}"}, model_calls=4)


def lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123 - one line of /proc
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone, or just going
        return False


@pytest.mark.parametrize("which", ["program", "leaf"])
async def test_program_and_leaf_end_together(scopes: dict[str, Zygote], which: str) -> None:
    async with await start(scopes["code"], LAW) as worker:
        await worker.reset("robot", "e", 1)
        assert worker.leaf_pid is not None
        os.kill(worker.pid if which == "program" else worker.leaf_pid, signal.SIGKILL)
        await asyncio.wait_for(worker.died.wait(), 10)
        assert isinstance(worker.reason, WorkerDied)
        assert "SIGKILL" in str(worker.reason)
        assert ("code parameters" in str(worker.reason)) == (which == "leaf")
    assert not await asyncio.to_thread(lambda: lives(worker.pid) or lives(worker.leaf_pid or 0))


async def test_the_end_of_a_program_is_told_also_where_its_leaf_is_seen_to_end_first(scopes: dict[str, Zygote]) -> None:
    """The leaf ends by itself when the program is gone; which of the two is noticed first is a matter of luck."""
    async with await start(scopes["code"], LAW) as worker:
        await worker.reset("robot", "e", 1)
        assert worker.leaf_pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        while lives(worker.leaf_pid):
            time.sleep(0.01)  # noqa: ASYNC251 - nothing may be noticed before both have ended
        await asyncio.wait_for(worker.died.wait(), 10)
        assert "SIGKILL" in str(worker.reason)
        assert "code parameters" not in str(worker.reason)


CHILD = simple("def law(self, x):\n    return x", "import subprocess\nimport time\n").replace(
    "return self.law(observation)",
    "self.child = subprocess.Popen(['/bin/sleep', '600'])\n        if observation.data: time.sleep(600)\n        return self.child.pid",
)


async def test_what_a_killed_program_started_ends_with_it(scopes: dict[str, Zygote]) -> None:
    async with await start(scopes["code"], CHILD, step_timeout=2.0) as worker:
        await worker.reset("robot", "e", 1)
        child = await worker.act("robot", 0, 0)
        assert await asyncio.to_thread(lives, child)
        with pytest.raises(WorkerTimeout):
            await worker.act("robot", 1, 1)
    for _ in range(500):
        if not await asyncio.to_thread(lives, child):
            return
        await asyncio.sleep(0.02)
    pytest.fail("the child lives on")


ENVIRONMENT = simple("def law(self, x):\n    return x", "import os").replace("self.law(observation)", "sorted(os.environ)")


async def test_a_trusted_program_sees_no_key_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTD_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    async with await Zygote.start(imports=(), scope="code") as zygote, await start(zygote, ENVIRONMENT, allowed_imports=()) as worker:
        await worker.reset("robot", "e", 1)
        names = await worker.act("robot", 0, 0)
        assert "PATH" in names
        assert not any("KEY" in name for name in names)
