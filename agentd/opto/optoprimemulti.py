"""OptoPrimeMulti where programs of Trace look for it."""

from agentd.opto.script import OptoPrimeMulti

__all__ = ["OptoPrimeMulti"]
