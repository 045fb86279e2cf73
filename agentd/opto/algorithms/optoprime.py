"""OptoPrime (arXiv 2406.16218, section 3.3): a model reads the problem as a report of what was computed and suggests better values.

As published: the problem's format, and memory of earlier values with their feedback. Beyond it: scores and fates in memory, a schema made
from the parameters, capped reasoning without a stop word, one repair round with the precise error, one more where nothing would change,
several samples, and a screening of every candidate before one is returned.
"""

from collections.abc import Sequence

from agentd.opto.asking import UNTRUSTED, AskingOptimizer
from agentd.opto.contract import NoScreen
from agentd.opto.rendering import Renderer, Section, chosen_memory
from agentd.opto.space import same
from agentd.records import MemoryEntry, Problem

_INTRODUCTION = """\
You improve a program that runs again and again. You are shown what one or more runs computed and how well they went, in these parts:
- #Instruction: what the program is for.
- #Documentation: what the functions do that appear in #Code.
- #Memory: values that were tried before, and how that went. Learn from them; do not propose them again.
- #Variables: what you can change, with its value in the runs below, as (type) name = value. A (code) value is the source text of one \
Python function. Each value goes into #Code where its name stands there; give what brings about the wanted output in that place, not the \
wanted output itself.
- #Constraints: what their values must respect.
- #Code: what was computed, line by line. Its functions are fixed unless they are among #Variables.
- #Inputs: values that you can't change.
- #Others: intermediate values.
- #Outputs: what came out.
- #Feedback: how good that was, and why.
"""

_TASK = "Change the values of #Variables so that the outputs get better according to #Feedback."


class OptoPrime(AskingOptimizer):
    """The optimizer of the Trace paper."""

    algorithm = "optoprime"

    async def _prompt(self, problems: Sequence[Problem], memory: Sequence[MemoryEntry]) -> tuple[str, str]:
        context, renderer = self._context, self._renderer(problems)
        objective = "\n".join(filter(None, (_TASK, self._objective(problems))))
        chosen = chosen_memory(memory, context.regime, context.history)
        parts = [
            renderer.problem(context.parameters, context.values, objective, renderer.memory(chosen, context.parameters, context.values)),
            await self._counterfactuals(renderer, chosen),
        ]
        system = _INTRODUCTION + "\n" + UNTRUSTED.format(mark=renderer.mark)
        return system, "\n\n".join(filter(None, parts))

    async def _counterfactuals(self, renderer: Renderer, entries: Sequence[MemoryEntry]) -> str:
        """What the recorded runs' actions would have been under values that were tried, where they can be replayed."""
        if isinstance(self._screen, NoScreen) or Section.MEMORY in self.options.mask:
            return ""
        known = {parameter.path for parameter in self._context.parameters}
        scored = sorted((entry for entry in entries if entry.mean is not None), key=lambda entry: -(entry.mean or 0.0))
        lines = []
        for entry in scored[: self.options.counterfactuals]:
            values = {path: value for path, value in entry.values.items() if path in known}
            changed = {path: value for path, value in values.items() if not same(value, self._context.values.get(path))}
            report = (await self._screen(changed)).report if changed else ""
            if report:
                lines.append(f"Values that scored {entry.mean:.4g} ({', '.join(changed)} changed):\n{renderer.fenced(report)}")
        return "#Replay\nWhat recorded runs would have done under values tried before:\n" + "\n".join(lines) if lines else ""
