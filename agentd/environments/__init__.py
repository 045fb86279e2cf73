"""Where an agent acts: environments, data sets and callables in this process, and plants behind MQTT. The contract is in `contract`."""

from agentd.environments.contract import Begun, Change, Counters, Device, Environment, Joined, Left, Linked, Rival, Transition
from agentd.environments.factory import make_environment

__all__ = [
    "Begun",
    "Change",
    "Counters",
    "Device",
    "Environment",
    "Joined",
    "Left",
    "Linked",
    "Rival",
    "Transition",
    "make_environment",
]
