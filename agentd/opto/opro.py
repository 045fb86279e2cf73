"""OPRO where programs of Trace look for it."""

from agentd.opto.script import OPRO

__all__ = ["OPRO"]
