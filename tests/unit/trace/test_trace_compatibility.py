"""Programs written for Trace run after changing their imports; the examples of the documentation run as they stand."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "trace-compatibility.md").read_text(), re.DOTALL)


def run(tmp_path, source):
    path = tmp_path / "program.py"
    path.write_text(source)
    return runpy.run_path(str(path))


def run_changed(tmp_path, source):
    """Run a program of Trace; only its imports are changed. It asserts what it expects itself."""
    return run(tmp_path, source.replace("opto.trace", "agentd.trace").replace("opto.optimizers", "agentd.opto"))


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_the_documentation_run(tmp_path, number):
    run(tmp_path, EXAMPLES[number])


def test_every_test_that_the_documentation_names_exists():
    text = (ROOT / "docs" / "trace-compatibility.md").read_text()
    named = re.findall(r"`(test_\w+)::(test_\w+)`", text)
    assert len(named) > 50
    sources = {path.stem: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    assert [f"{file}::{name}" for file, name in named if f"def {name}(" not in sources[file]] == []


def test_there_are_examples():
    assert len(EXAMPLES) >= 2


PROGRAMS = {
    "a prompt and a bundle": """
import opto.trace as trace
from opto.trace import bundle, node, GRAPH

GRAPH.clear()
prompt = node("You are helpful.", trainable=True, description="[system] the prompt", constraint="one sentence")

@bundle(description="[answer] Answers a question.")
def answer(system, question):
    return f"{system} {question}"

reply = answer(prompt, "Why?")
assert reply.data == "You are helpful. Why?"
assert isinstance(reply, trace.Node)
reply.backward(feedback="be brief", visualize=False)
feedback = [item for items in prompt.feedback.values() for item in items][0]
assert feedback.user_feedback == "be brief"
assert [item.py_name for level, item in feedback.graph][0] == prompt.py_name
""",
    "recovering from an error with feedback": '''
from opto.trace import bundle, node, ExecutionError
from opto.trace.nodes import ExceptionNode
from opto.trace.bundle import FunModule

@bundle(trainable=True)
def pick(items):
    """Picks one."""
    return items[5]

assert isinstance(pick, FunModule)
try:
    target = pick(node([1, 2, 3]))
    feedback = "fine"
except ExecutionError as error:
    target = error.exception_node
    feedback = target.create_feedback("full")
assert isinstance(target, ExceptionNode)
assert "items[5]" in feedback
target.backward(feedback)
assert pick.parameter.feedback
assert "<--" in str(target.info["error_comment"])
''',
    "modules within modules": """
from opto.trace import Module, bundle, model, node
from opto.trace.containers import Seq, Map
from opto.trace.nodes import ParameterNode

class Layer(Module):
    def __init__(self, weight):
        self.weight = node(weight, trainable=True)
    def forward(self, x):
        return x * self.weight

@model
class Net:
    def __init__(self):
        self.layers = Seq(Layer(2), Layer(3))
        self.named = Map({"bias": node(1, trainable=True)})
    @bundle()
    def add(self, x, y):
        return x + y
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.add(x, self.named["bias"])

net = Net()
out = net(node(5))
assert out.data == 31
assert len(net.parameters()) == 3
assert all(isinstance(p, ParameterNode) for p in net.parameters())
out.backward("x")
assert all(p.feedback for p in net.parameters())
""",
    "propagators": """
from opto.trace import node
from opto.trace.propagators import GraphPropagator
from opto.trace.propagators.graph_propagator import TraceGraph
from opto.trace.propagators.propagators import Propagator, SumPropagator
from opto.trace.utils import sum_feedback, contain

x = node(2.0, trainable=True)
y = x * 3.0
propagator = SumPropagator()
propagator.register("multiply", lambda child: {p: 3.0 * sum(sum(v) for v in child.feedback.values()) for p in child.parents})
y.backward(1.0, propagator=propagator, retain_graph=True)
assert sum_feedback([x]) == 3.0
x.zero_feedback()
y.backward("words", propagator=GraphPropagator())
assert isinstance(sum_feedback([x]), TraceGraph)
assert contain(y.parents, x)

class Count(Propagator):
    def init_feedback(self, node, feedback):
        return feedback
    def _propagate(self, child):
        return {parent: 1 + max(max(v) for v in child.feedback.values()) for parent in child.parents}

w = node(1, trainable=True)
((w + 1) * 2 - 3).backward(0, propagator=Count())
assert sum_feedback([w]) == 3
""",
    "async bundles": """
import asyncio
from opto.trace import bundle, node

@bundle()
async def ask(question):
    await asyncio.sleep(0)
    return question.upper()

async def main():
    return await asyncio.gather(*(ask(node(word)) for word in ("a", "b")))

first, second = asyncio.run(main())
assert (first.data, second.data) == ("A", "B")
""",
    "an optimizer that reads the graph as data": """
from opto.optimizers.optimizer import Optimizer
from opto.optimizers.optoprime import node_to_function_feedback
from opto.trace import bundle, node
from opto.trace.nodes import GRAPH
from opto.trace.utils import sum_feedback

GRAPH.clear()  # what another program left in this process may still have its names

@bundle()
def triple(x):
    \"\"\"Three times x.\"\"\"
    return 3 * x

class Halving(Optimizer):
    def _step(self):
        self.read = node_to_function_feedback(sum_feedback(self.parameters))
        return {parameter: parameter.data / 2 for parameter in self.parameters if parameter.py_name in self.read.roots}

x = node(2.0, trainable=True, name="x", constraint="small")
optimizer = Halving([x])
y = triple(x) + 1
optimizer.zero_feedback()
optimizer.backward(y, "less")
optimizer.step()
read = optimizer.read
assert x.data == 1.0
assert [call for level, call in read.graph] == ["triple0 = triple(x=x0)", "add0 = add(x=triple0, y=int0)"]
assert [level for level, call in read.graph] == [1, 2]
assert read.roots == {"x0": (2.0, "small"), "int0": (1, None)}
assert read.others == {"triple0": (6.0, None)}
assert read.output == {"add0": (7.0, None)}
assert read.user_feedback == "less"
assert "Three times x." in read.documentation["triple"]
""",
    "an optimizer's loop over a batch": """
import json
from types import SimpleNamespace
import opto.trace as trace
from opto.optimizers import OptoPrime, OptoPrimeMulti
from opto.trace.utils import render_opt_step

def llm(messages, max_tokens=100, **_):
    answer = {"reasoning": "It is too small.", "suggestion": {"slope": slope.data + 1.0}}
    return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=json.dumps(answer)))])

slope = trace.node(0.0, name="slope", trainable=True)

@trace.bundle()
def loss(y_hat, y):
    return (y_hat - y) ** 2

for optimizer in (OptoPrime([slope], llm=llm, memory_size=5), OptoPrimeMulti([slope], llm, num_responses=2)):
    for _ in range(2):
        total = 0
        for x in (1, 2):
            total = total + loss(slope * x, 4.0 * x)
        optimizer.zero_feedback()
        total.backward(f"The loss is {total.data}. Make it smaller.")
        optimizer.step(verbose=False)
    assert "The loss is" in str(optimizer.log[-1]["user_prompt"])
    assert "too small" in render_opt_step(0, optimizer)
assert slope.data == 4.0
""",
    "strings, containers and iteration": """
import opto.trace.operators as ops
from opto.trace import node
from opto.trace.iterators import iterate

words = node("b,a").split(",")
assert [w.data for w in iterate(words)] == ["b", "a"]
table = node({"k": [1, 2]})
for key, value in table.items():
    assert key.data == "k" and value[0].data == 1
assert ops.list_sort(words).data == ["a", "b"]
assert ops.join(node("-"), *words).data == "b-a"
first, second = words
assert (first + second).data == "ba"
assert node("{}!").format(first).data == "b!"
if first == "b" and not node(0):
    pass
else:
    raise AssertionError
""",
}


IMPORTS = """
from opto.trace import GRAPH, ExecutionError, Module, NodeContainer, apply_op, bundle, model, node, operators, propagators, stop_tracing
from opto.trace.broadcast import apply_op, recursive_conversion
from opto.trace.bundle import ExceptionNode, ExecutionError, FunModule, TraceMissingInputsError, bundle, node
from opto.trace.containers import Map, NodeContainer, ParameterContainer, Seq
from opto.trace.errors import ExecutionError, TraceMissingInputsError
from opto.trace.iterators import DictIterable, SeqIterable, iterate
from opto.trace.modules import Module, NodeContainer, apply_op, model
from opto.trace.nodes import GRAPH, AbstractNode, ExceptionNode, MessageNode, Node, ParameterNode, get_op_name, node
from opto.trace.operators import call_llm, cond, identity, len_
from opto.trace.propagators import GraphPropagator, Propagator, SumPropagator, TraceGraph
from opto.trace.propagators.graph_propagator import GraphPropagator, TraceGraph
from opto.trace.propagators.propagators import AbstractPropagator, Propagator, SumPropagator
from opto.trace.utils import contain, for_all_methods, parse_eqs_to_dict, render_opt_step, sum_feedback
from opto.optimizers import OPRO, OptoPrime, OptoPrimeMulti, TextGrad
from opto.optimizers.optimizer import Optimizer
from opto.optimizers.opro import OPRO
from opto.optimizers.optoprime import FunctionFeedback, OptoPrime, node_to_function_feedback
from opto.optimizers.optoprimemulti import OptoPrimeMulti
from opto.optimizers.textgrad import TextGrad
""".strip().splitlines()


@pytest.mark.parametrize("line", IMPORTS)
def test_what_programs_of_trace_import_is_where_they_look_for_it(tmp_path, line):
    run_changed(tmp_path, line)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_of_trace_runs_with_its_imports_changed(tmp_path, name):
    run_changed(tmp_path, PROGRAMS[name])
