"""What agentd remembers: agents, revisions, releases and their evidence, episodes, events."""

from agentd.store.chain import ChainReport
from agentd.store.contract import Store
from agentd.store.retention import Pruned
from agentd.store.sql import SqlStore

__all__ = ["ChainReport", "Pruned", "SqlStore", "Store"]
