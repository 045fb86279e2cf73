"""What the daemon does beside hosting agents."""

import asyncio
import contextlib

from agentd import daemon
from agentd.settings import load_settings
from agentd.store import SqlStore
from agentd.testing.store import examples


async def test_the_store_is_kept_within_its_limits_while_the_daemon_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(daemon, "FORGET_EVERY", 0.01)
    settings = load_settings(state_directory=tmp_path, keep_episodes=3, keep_days=1e6)
    async with await SqlStore.open(f"sqlite:///{tmp_path / 'agentd.db'}") as store:
        revision = examples.revision(1.0)
        await store.commit(examples.SOURCE, revision, examples.agent_state(revision))
        for number in range(8):
            await store.add_episode(examples.episode(f"episode-{number}", revision), None, regime=0)
        await store.flush()
        chore = asyncio.create_task(daemon._forget(store, settings))
        async with asyncio.timeout(20):
            while len(await store.episodes("cartpole")) > 3:  # noqa: ASYNC110 - the store tells nobody
                await asyncio.sleep(0.01)
        chore.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await chore
        assert [episode.id for episode in await store.episodes("cartpole")] == ["episode-7", "episode-6", "episode-5"]
