"""The built-in optimizers keep the contract that plug-ins are held to."""

import json
import re
from pathlib import Path

from agentd.opto.algorithms.opro import OPRO
from agentd.opto.algorithms.optoprime import OptoPrime
from agentd.opto.algorithms.textgrad import TextGrad
from agentd.opto.contract import LlmReply
from agentd.opto.hybrid import Hybrid
from agentd.opto.search import Search
from agentd.testing.optimizers import OptimizerContract


class Model:
    """Proposes a fixed change, and another when it is told to."""

    async def complete(self, request):
        asked = len(request.messages) > 2
        names = request.schema["properties"]["suggestion"]["properties"]
        answers = {"gain": -4 if asked else 4, "prompt": "Be quick." if asked else "Think first.", "steps": 5, "mode": "fast"}
        values = {name: answers[name] for name in names}
        return LlmReply(text=json.dumps({"reasoning": "", "suggestion": values}), model="scripted")


class TestSearch(OptimizerContract):
    def make(self, context, llm, screen):
        return Search(context, llm, screen)


class TestOptoPrime(OptimizerContract):
    def make(self, context, llm, screen):
        return OptoPrime(context, llm, screen)

    def make_llm(self, parameters):
        return Model()


class TestOPRO(OptimizerContract):
    def make(self, context, llm, screen):
        return OPRO(context, llm, screen)

    def make_llm(self, parameters):
        return Model()


class TestTextGrad(OptimizerContract):
    def make(self, context, llm, screen):
        return TextGrad(context, llm, screen)

    def make_llm(self, parameters):
        return Model()


class TestTheOneInTheManual(OptimizerContract):
    def make(self, context, llm, screen):
        manual = (Path(__file__).parents[2] / "docs" / "optimizers.md").read_text()
        names = {}
        exec(re.search(r"```python\n(.*?)```", manual, re.DOTALL)[1], names)
        return names["Halving"](context, llm, screen)


class TestHybridWithoutModel(OptimizerContract):
    def make(self, context, llm, screen):
        return Hybrid(context, llm, screen)


class TestHybridWithModel(OptimizerContract):
    def make(self, context, llm, screen):
        return Hybrid(
            type(context)(**{name: getattr(context, name) for name in context.__struct_fields__} | {"models": ("m",)}), llm, screen
        )

    def make_llm(self, parameters):
        return Model()
