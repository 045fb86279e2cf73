"""agentd keeps deployed agents and robot controllers improving after deployment, safely."""

__version__ = "0.1.0"
