"""agentd keeps deployed agents and robot controllers improving after deployment, safely.

The public names are resolved on first use (PEP 562), so that `import agentd` costs next to nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Episode": "agentd.records",
    "Feedback": "agentd.records",
    "Module": "agentd.trace",
    "Revision": "agentd.records",
    "bundle": "agentd.trace",
    "load_agent": "agentd.spec",
    "load_settings": "agentd.settings",
    "model": "agentd.trace",
    "node": "agentd.trace",
    "train": "agentd.opto.training",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - names of a table of texts


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
