"""From the name in `agent.toml` to an optimizer."""

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from agentd.errors import OptimizerError
from agentd.opto.asking import AskingOptions
from agentd.opto.contract import Llm, NoScreen, Optimizer, OptimizerContext, Screen

_BUILT_IN = {
    "search": "agentd.opto.search:Search",
    "hybrid": "agentd.opto.hybrid:Hybrid",
    "opro": "agentd.opto.algorithms.opro:OPRO",
    "optoprime": "agentd.opto.algorithms.optoprime:OptoPrime",
    "textgrad": "agentd.opto.algorithms.textgrad:TextGrad",
}

OPTIONS = frozenset({*AskingOptions.__struct_fields__, "parts", "startup"})
"""All options of the built-in optimizers; each ignores those of others."""


def make_optimizer(context: OptimizerContext, llm: Llm, screen: Screen | None = None) -> Optimizer:
    """The optimizer that `context.algorithm` names.

    Raises OptimizerError for an unknown one, a plug-in that can't be made, and options of a built-in one that do not exist.
    """
    if context.algorithm in _BUILT_IN:
        check_options(context.options)
    made = _load(context.algorithm)
    try:
        optimizer = made(context, llm, screen or NoScreen())
    except OptimizerError:
        raise
    except Exception as error:
        raise OptimizerError(f"the optimizer {context.algorithm!r} can't be made: {type(error).__name__}: {error}") from error
    if not callable(getattr(optimizer, "propose", None)):
        raise OptimizerError(f"the optimizer {context.algorithm!r} has no method `propose`")
    return optimizer  # type: ignore[no-any-return]  # a plug-in's class is known by name only


def check_options(options: Mapping[str, Any]) -> None:
    """Raises OptimizerError for options that no built-in optimizer has: they would have no effect."""
    for name in options:
        if name not in OPTIONS:
            meant = difflib.get_close_matches(str(name), sorted(OPTIONS), 1)
            there = f"did you mean {meant[0]!r}?" if meant else f"there are {', '.join(sorted(OPTIONS))}"
            raise OptimizerError(f"[optimizer] options: there is no option {name!r}; {there}")


def _load(algorithm: str) -> Callable[..., Any]:
    module_name, colon, attribute = _BUILT_IN.get(algorithm, algorithm).partition(":")
    if not colon:
        names = ", ".join(sorted(_BUILT_IN))
        raise OptimizerError(f"there is no optimizer {algorithm!r}; built in are: {names}; a plug-in is named `module:Class`")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise OptimizerError(f"the optimizer {algorithm!r} can't be loaded: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise OptimizerError(f"the optimizer {algorithm!r} is not a class")
    return found  # type: ignore[no-any-return]  # as above
