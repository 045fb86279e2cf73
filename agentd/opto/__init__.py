"""How to improve: OPTO problems and memory in, a proposal out.

For scripts, as in Trace: `from agentd.opto import OptoPrime`. The public names are resolved on first use (PEP 562), so that the
optimizer's process and the daemon load only what they need.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "OPRO": "agentd.opto.script",
    "Hybrid": "agentd.opto.script",
    "Optimizer": "agentd.opto.contract",
    "OptimizerContext": "agentd.opto.contract",
    "OptoPrime": "agentd.opto.script",
    "OptoPrimeMulti": "agentd.opto.script",
    "Search": "agentd.opto.script",
    "TextGrad": "agentd.opto.script",
    "make_optimizer": "agentd.opto.factory",
    "train": "agentd.opto.training",
}

__all__ = [*_HOMES]  # noqa: PLE0604 - names of a table of texts


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
