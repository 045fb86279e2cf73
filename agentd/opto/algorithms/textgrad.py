"""TextGrad (Yuksekgonul et al., arXiv 2406.07496): feedback is propagated through the graph step by step, as text, then applied.

From the output backwards, a model is asked for each step what its inputs should have been like for a better result; a parameter collects
what its uses say ("reduce" is concatenation, as published), and one more question turns that into a new value. A long episode has
thousands of steps, so only the last `gradient_calls` that depend on a parameter are asked about; through earlier ones feedback passes
unchanged.
"""

from collections.abc import Sequence

import msgspec

from agentd.errors import OptimizerError
from agentd.opto.asking import UNTRUSTED, AskingOptimizer
from agentd.opto.contract import Llm, LlmRequest, Message, NoScreen, OptimizerContext, Screen, make_proposal
from agentd.opto.rendering import Renderer, shortened, shown
from agentd.opto.space import same
from agentd.records import MemoryEntry, Problem, Proposal, TraceGraph, Value

_GRADIENT = """\
You are part of an optimizer that improves a program by feedback in words. You are shown one step of a run: its inputs, its result and the \
feedback on that result. Say, in at most {limit} characters, what should have been different about the input `{name}` so that the feedback \
would be better. Do not propose a new value.
"""

_UPDATE = """\
You are part of an optimizer that improves a program by feedback in words. You are shown one variable, what it is for, and feedback on \
how it should change, collected from its uses. Propose an improved value.
"""
_KEPT = 4_000


class TextGrad:
    """The baseline of the Trace paper. Options are `AskingOptions`."""

    algorithm = "textgrad"

    def __init__(self, context: OptimizerContext, llm: Llm, screen: Screen | None = None) -> None:
        self._context = context
        self._llm = llm
        self._screen = screen or NoScreen()
        self._update = _Update(context, llm)  # refuses bad options now

    async def propose(self, problems: Sequence[Problem], memory: Sequence[MemoryEntry], seed: int) -> Proposal:
        """New values for the parameters that feedback reached. Raises as OptoPrime.propose does."""
        if not problems:
            raise OptimizerError("there is no scored episode to learn from yet")
        gradients: dict[str, list[str]] = {}
        for problem in problems:
            for path, texts in (await self._backward(problem, seed)).items():
                gradients.setdefault(path, []).extend(text for text in texts if text not in gradients.get(path, ()))
        values: dict[str, Value] = {}
        parts: list[Proposal] = []
        for parameter in self._context.parameters:
            if parameter.path not in gradients:
                continue
            alone = msgspec.structs.replace(
                self._context, parameters=(parameter,), values={parameter.path: self._context.values.get(parameter.path, parameter.default)}
            )
            part = await _Update(alone, self._llm, gradients[parameter.path]).propose(problems, (), seed)
            values |= part.values
            parts.append(part)
        if not values:
            raise OptimizerError("the feedback reached no parameter: none is in the graph of the episodes")
        full = {**self._context.values, **values}
        if any(entry.regime == self._context.regime and same(entry.values, full) for entry in memory):
            raise OptimizerError("TextGrad proposed values that were tried before")
        screening = await self._screen(values)
        if not screening.ok:
            raise OptimizerError(f"the values failed when recorded runs were replayed: {screening.reason}")
        return make_proposal(
            self._context,
            problems,
            values,
            algorithm=self.algorithm,
            seed=seed,
            reasoning="\n".join(f"{path}: {' '.join(texts)}" for path, texts in gradients.items())[:_KEPT],
            dollars=sum(part.dollars for part in parts),
            exchange="\n\n".join(part.exchange for part in parts),
        )

    async def _backward(self, problem: Problem, seed: int) -> dict[str, list[str]]:
        """Feedback in words by parameter path."""
        feedback = f"Score {problem.feedback.normalised:.4g} of 1. {problem.feedback.text}".strip()
        paths = {parameter.path for parameter in self._context.parameters}
        graph = problem.graph
        if graph is None or graph.output is None:
            return {path: [feedback] for path in paths}
        nodes = graph.nodes
        trainable = _depends_on(graph, paths)
        said: dict[int, list[str]] = {graph.output: [feedback]}
        calls = self._update.options.gradient_calls
        for index in range(graph.output, -1, -1):
            texts = said.get(index)
            if not texts or not trainable[index]:
                continue
            for parent in dict.fromkeys(nodes[index].parents):
                if not trainable[parent]:
                    continue
                if calls > 0:
                    calls -= 1
                    words = [await self._gradient(problem, (index, parent), texts, seed)]
                else:
                    words = texts
                said.setdefault(parent, []).extend(word for word in words if word not in said.get(parent, ()))
            if nodes[index].path not in paths:
                del said[index]
        found: dict[str, list[str]] = {}
        for index, texts in said.items():
            path = nodes[index].path
            if path in paths and path is not None:
                found.setdefault(path, []).extend(texts)
        return found

    async def _gradient(self, problem: Problem, edge: tuple[int, int], texts: Sequence[str], seed: int) -> str:
        """What the result's feedback means for one input of a step; `edge` is (step, input)."""
        graph = problem.graph or TraceGraph()
        index, parent = edge
        renderer, options = Renderer([problem]), self._update.options
        node, source = graph.nodes[index], graph.nodes[parent]
        function = graph.functions.get(node.operator)
        inputs = "\n".join(
            f"{role or 'input'} = {shown(graph.nodes[each].value, 400)}" for role, each in _roles(node.arguments, node.parents)
        )
        question = "\n\n".join(
            part
            for part in (
                "#Step\n" + renderer.fenced(f"{node.operator} {function.documentation if function else ''}"),
                "#Inputs\n" + renderer.fenced(inputs),
                "#Result\n" + renderer.fenced(shown(node.value, 400)),
                "#Feedback on the result\n" + renderer.fenced("\n".join(texts)),
            )
        )
        system = _GRADIENT.format(limit=options.reasoning_limit, name=source.path or source.name[:60]) + UNTRUSTED.format(
            mark=renderer.mark
        )
        reply = await self._llm.complete(
            LlmRequest(
                agent=self._context.agent,
                purpose="textgrad",
                messages=(Message(role="system", content=system), Message(role="user", content=question)),
                models=self._context.models,
                max_tokens=options.reasoning_limit,
                temperature=options.temperature,
                seed=seed % 2**31,
            )
        )
        return shortened(reply.text.strip(), options.reasoning_limit)


class _Update(AskingOptimizer):
    """The descent step: one variable and the feedback that reached it."""

    algorithm = "textgrad"

    def __init__(self, context: OptimizerContext, llm: Llm, gradients: Sequence[str] = ()) -> None:
        super().__init__(context, llm)
        self._gradients = gradients

    async def _prompt(self, problems: Sequence[Problem], memory: Sequence[MemoryEntry]) -> tuple[str, str]:  # noqa: ARG002 - as published, without
        context, renderer = self._context, self._renderer(problems)
        parts = (
            renderer.shared(context.parameters, context.values, self._objective(problems)),
            "#Feedback\n" + renderer.fenced("\n".join(self._gradients)),
        )
        return _UPDATE + "\n" + UNTRUSTED.format(mark=renderer.mark), "\n\n".join(filter(None, parts))


def _depends_on(graph: TraceGraph, paths: set[str]) -> list[bool]:
    """For each node whether it is one of the parameters or was computed from one. Parents come first."""
    depends: list[bool] = []
    for node in graph.nodes:
        depends.append(node.path in paths or any(depends[parent] for parent in node.parents if parent < len(depends)))
    return depends


def _roles(arguments: Sequence[str], parents: Sequence[int]) -> list[tuple[str, int]]:
    padded = [*arguments, *[""] * len(parents)]
    return list(zip(padded, parents, strict=False))
