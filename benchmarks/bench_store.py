"""How fast the store commits and takes episodes, beside bare sqlite3 with the same pragmas in the same run.

    python benchmarks/bench_store.py [--folder DIRECTORY] [--seconds 2]

A commit is what a canary's pair costs: the pair, its release, an event. Both sides write the same rows; the bare one has no event loop,
no threads, no SQL compiler and no audit chain, and reuses its encoded bytes: it is the disk's and SQLite's share, not a rival.
"""

import argparse
import asyncio
import json
import random
import sqlite3
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

from agentd.records import Event, Pair, Step
from agentd.store import SqlStore
from agentd.store.packing import pack
from agentd.testing.store.examples import SOURCE, episode, feedback, release, revision

PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")


def bare_commits(folder: Path, seconds: float) -> float:
    """Commits per second of the same three upserts in sqlite3 alone."""
    pair = pack(Pair(id="x", release="r", device="d", reference=0.5, candidate=0.5))
    canary = pack(release("r", revision(1.0), revision(0.0)))
    event = pack(Event(kind="pair.done", at=1.0, agent="cartpole"))
    with closing(sqlite3.connect(folder / "bare.db", isolation_level=None)) as connection:
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE releases (seq INTEGER PRIMARY KEY, id TEXT UNIQUE, agent TEXT, content BLOB)")
        connection.execute("CREATE TABLE pairs (seq INTEGER PRIMARY KEY, id TEXT UNIQUE, release TEXT, content BLOB)")
        connection.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, agent TEXT, kind TEXT, content BLOB, hash BLOB)")
        for index in ("releases (agent, seq)", "pairs (release, seq)", "events (agent, seq)", "events (kind, seq)"):
            connection.execute(f"CREATE INDEX {''.join(filter(str.isalpha, index))} ON {index}")
        count, end = 0, time.perf_counter() + seconds
        begin = time.perf_counter()
        while time.perf_counter() < end:
            connection.execute("BEGIN IMMEDIATE")
            upsert = "ON CONFLICT (id) DO UPDATE SET content = excluded.content"
            connection.execute(f"INSERT INTO releases (id, agent, content) VALUES ('r', 'cartpole', ?) {upsert}", (canary,))
            connection.execute(f"INSERT INTO pairs (id, release, content) VALUES (?, 'r', ?) {upsert}", (f"x{count}", pair))
            connection.execute("INSERT INTO events VALUES (NULL, 'cartpole', 'pair.done', ?, zeroblob(32))", (event,))
            connection.execute("COMMIT")
            count += 1
        return count / (time.perf_counter() - begin)


async def store_commits(folder: Path, seconds: float, callers: int) -> tuple[float, float]:
    """(commits per second, median milliseconds of one) with so many callers that each wait for theirs."""
    latencies: list[float] = []
    async with await SqlStore.open(f"sqlite:///{folder}/commits-{callers}.db") as store:
        await store.begin_epoch()
        first, second = revision(0.0), revision(1.0)
        await store.commit(SOURCE, first, second, release("r", second, first))
        begin = time.perf_counter()

        async def commit(caller: int) -> None:
            number = 0
            while time.perf_counter() - begin < seconds:
                started = time.perf_counter()
                pair = Pair(id=f"x{caller}-{number}", release="r", device="d", reference=0.5, candidate=0.5)
                event = Event(kind="pair.done", at=1.0, agent="cartpole")
                await store.commit(pair, release("r", second, first, pairs=number), event)
                latencies.append(time.perf_counter() - started)
                number += 1

        await asyncio.gather(*(commit(caller) for caller in range(callers)))
        elapsed = time.perf_counter() - begin
    return len(latencies) / elapsed, 1000 * statistics.median(latencies)


async def store_episodes(folder: Path, count: int, ticks: int) -> tuple[float, float]:
    """(episodes per second until flushed, stored kilobytes of each); a tick has four numbers, a trace about 100 bytes per tick."""
    chance = random.Random(1)
    steps = tuple(Step(tick, [chance.gauss(0, 1) for _ in range(4)], tick % 2, reward=1.0) for tick in range(ticks))
    trace = b"".join(b'{"operator": "environment_step", "value": %d, "parents": [1, 2]}' % chance.getrandbits(30) for _ in range(ticks))
    path = folder / f"episodes-{ticks}.db"
    async with await SqlStore.open(f"sqlite:///{path}") as store:
        begin = time.perf_counter()
        for number in range(count):
            ran = episode(f"e{number}", revision(0.0), steps=steps, trace=trace)
            await store.add_episode(ran, feedback(ran.id, 0.5), regime=0)
        await store.flush()
        elapsed = time.perf_counter() - begin
        assert store.dropped == {"traces": 0, "episodes": 0}
    return count / elapsed, path.stat().st_size / count / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="on the disk to measure; default: a temporary one")
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        bare = bare_commits(folder, arguments.seconds)
        figures: dict[str, float] = {"bare sqlite3: commits/s": round(bare)}
        for callers in (1, 8, 64):
            rate, latency = asyncio.run(store_commits(folder, arguments.seconds, callers))
            figures[f"store, {callers} callers: commits/s"] = round(rate)
            figures[f"store, {callers} callers: median ms"] = round(latency, 2)
            figures[f"store, {callers} callers: share of bare"] = round(rate / bare, 2)
        for ticks, count in ((200, 1000), (2000, 100)):
            rate, size = asyncio.run(store_episodes(folder, count, ticks))
            figures[f"episodes of {ticks} ticks: /s"] = round(rate)
            figures[f"episodes of {ticks} ticks: kB each"] = round(size, 1)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
