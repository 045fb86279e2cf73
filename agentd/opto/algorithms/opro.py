"""OPRO (Yang et al., arXiv 2309.03409): a model is shown earlier solutions in ascending order of their scores, and asked for a better one.

It sees no graph. As in the Trace paper's comparison, the words of feedback on the current values are shown as well.
"""

from collections.abc import Sequence

from agentd.opto.asking import UNTRUSTED, AskingOptimizer
from agentd.opto.rendering import Section, chosen_memory
from agentd.records import MemoryEntry, Problem

_INTRODUCTION = """\
You optimize the values of variables. You are shown what they are for, what they must respect, and earlier solutions with their scores in \
ascending order: 0 is worst, 1 is best. Propose a new solution that differs from all of them and scores higher.
"""


class OPRO(AskingOptimizer):
    """The baseline of the Trace paper: memory with scores, no graph."""

    algorithm = "opro"

    async def _prompt(self, problems: Sequence[Problem], memory: Sequence[MemoryEntry]) -> tuple[str, str]:
        context = self._context
        renderer = self._renderer(problems)
        scored = [entry for entry in chosen_memory(memory, context.regime, context.history) if entry.mean is not None]
        scored.sort(key=lambda entry: entry.mean or 0.0)
        parts = [
            renderer.shared(context.parameters, context.values, self._objective(problems)),
            renderer.memory(scored, context.parameters, context.values),
            *(renderer.feedback(problem) for problem in problems if Section.FEEDBACK not in self.options.mask),
        ]
        return _INTRODUCTION + "\n" + UNTRUSTED.format(mark=renderer.mark), "\n\n".join(filter(None, parts))
