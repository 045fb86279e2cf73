"""TextGrad where programs of Trace look for it."""

from agentd.opto.script import TextGrad

__all__ = ["TextGrad"]
