"""The contract of agentd.store.contract.Store as tests, for any implementation of it.

Subclass `StoreContract` in a test module, its name beginning with `Test`, and give it a fixture `open_store` (`OpenStore`): an async
function that opens the test's own store, again and again, on the same data. pytest-asyncio runs it in mode `auto`.
"""

from agentd.testing.store.committing import CommittingContract
from agentd.testing.store.episodes import EpisodesContract
from agentd.testing.store.examples import OpenStore
from agentd.testing.store.finding import FindingContract
from agentd.testing.store.forgetting import ForgettingContract
from agentd.testing.store.remembering import RememberingContract

__all__ = ["OpenStore", "StoreContract"]


class StoreContract(CommittingContract, FindingContract, EpisodesContract, RememberingContract, ForgettingContract):
    """What every store must do."""
