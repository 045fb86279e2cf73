"""Opening a store: what is created, migrated, copied first, and refused; and reading beside a daemon, or without one."""

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from agentd.errors import NotFound, StoreError, StoreUnavailable, StoreVersionError
from agentd.records import Event
from agentd.store import SqlStore, migrations, schema
from agentd.testing.store.examples import SOURCE, agent_state, episode, revision


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "agentd.db"


@pytest.fixture
def url(path):
    return f"sqlite:///{path}"


async def fill(url):
    """One committed source and one event in a store that is closed again."""
    async with await SqlStore.open(url) as store:
        await store.commit(SOURCE, Event(kind="made", at=1.0))


def in_database(path, *statements):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return [connection.execute(statement).fetchall() for statement in statements]


async def test_a_new_store_is_for_its_owner_only(url, path):
    await fill(url)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_the_path_may_hold_what_urls_find_special(tmp_path):
    for name in ("a b.db", "100%25.db", "déjà.db", "a#b.db"):
        await fill(f"sqlite:///{tmp_path}/{name}")
    assert {found.name for found in tmp_path.iterdir() if found.suffix == ".db"} == {"a b.db", "100%.db", "déjà.db", "a#b.db"}


async def test_the_database_is_in_wal_mode_and_durable_commits_are_synced(url, path):
    async with await SqlStore.open(url) as store:

        async def pragmas(transaction):
            names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "auto_vacuum")
            return [(await transaction.connection.exec_driver_sql(f"PRAGMA {name}")).scalar() for name in names]

        assert await store._writer.run(pragmas) == ["wal", 2, 1, 5000, 2]


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite://", "sqlite:///:memory:", "not a url", "postgres"])
async def test_other_urls_are_refused(url):
    with pytest.raises(StoreError):
        await SqlStore.open(url)


async def test_a_url_s_password_is_not_in_the_error():
    with pytest.raises(StoreError) as refused:
        await SqlStore.open("postgresql://agentd:hunter2@127.0.0.1:1/agentd")
    assert "hunter2" not in str(refused.value)


async def test_a_folder_that_can_not_be_made_is_unavailable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable):
        await SqlStore.open(f"sqlite:///{tmp_path}/file/agentd.db")


# --- versions -------------------------------------------------------------------------------------------------------


async def test_the_migrations_lead_to_the_schema(url, path):
    await fill(url)
    engine = create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), schema.metadata) == []
    engine.dispose()
    config = Config()
    config.set_main_option("script_location", str(next(iter(migrations.__path__))))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.SCHEMA_VERSION]


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_database_from_a_newer_agentd_is_left_alone_and_the_error_says_what_to_do(url, path, read_only):
    await fill(url)
    in_database(path, "UPDATE alembic_version SET version_num = '9999'", "PRAGMA wal_checkpoint(TRUNCATE)")
    before = path.read_bytes()
    with pytest.raises(StoreVersionError, match=r"9999.*newer agentd.*Upgrade agentd, or restore the backup"):
        await SqlStore.open(url, read_only=read_only)
    assert path.read_bytes() == before


async def test_a_database_from_an_older_agentd_is_copied_before_it_is_migrated(url, path, monkeypatch, tmp_path):
    await fill(url)
    before = schema.SCHEMA_VERSION
    older = shutil.copytree(next(iter(migrations.__path__)), tmp_path / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    newer = (
        f'from alembic import op\nrevision = "0099"\ndown_revision = "{before}"\n'
        'def upgrade():\n    op.execute("CREATE TABLE novelty (x INT)")\n'
    )
    (older / "versions" / "0099_novelty.py").write_text(newer)
    monkeypatch.setattr(migrations, "__file__", str(older / "__init__.py"))
    monkeypatch.setattr(migrations, "SCHEMA_VERSION", "0099")

    with pytest.raises(StoreVersionError, match="older agentd"):
        await SqlStore.open(url, read_only=True)
    async with await SqlStore.open(url) as store:
        assert await store.source(SOURCE.digest) == SOURCE
    tables = in_database(path, "SELECT name FROM sqlite_master WHERE name = 'novelty'", "SELECT version_num FROM alembic_version")
    assert tables == [[("novelty",)], [("0099",)]]
    (backup,) = path.parent.glob(f"agentd.db.backup-{before}-*")
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    monkeypatch.undo()
    async with await SqlStore.open(f"sqlite:///{backup}") as old:  # what the older agentd would see
        assert len(await old.events()) == 1


async def test_a_migration_that_fails_leaves_the_old_schema(url, path, monkeypatch, tmp_path):
    await fill(url)
    broken = shutil.copytree(next(iter(migrations.__path__)), tmp_path / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    half = (
        f'from alembic import op\nrevision = "0099"\ndown_revision = "{schema.SCHEMA_VERSION}"\n'
        'def upgrade():\n    op.execute("DROP TABLE episodes")\n    op.execute("nonsense")\n'
    )
    (broken / "versions" / "0099_half.py").write_text(half)
    monkeypatch.setattr(migrations, "__file__", str(broken / "__init__.py"))
    monkeypatch.setattr(migrations, "SCHEMA_VERSION", "0099")
    with pytest.raises(StoreError):
        await SqlStore.open(url)
    monkeypatch.undo()
    async with await SqlStore.open(url) as store:
        assert await store.episodes("cartpole") == ()


async def test_two_daemons_that_start_at_once_both_open_a_new_store(url):
    stores = await asyncio.gather(*(SqlStore.open(url) for _ in range(8)))
    assert sorted([await store.begin_epoch() for store in stores]) == list(range(1, 9))
    for store in stores:
        await store.aclose()


async def test_a_foreign_database_is_not_touched(url, path):
    path.parent.mkdir()
    in_database(path, "CREATE TABLE customers (x INT)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="customers"):
        await SqlStore.open(url)
    assert path.read_bytes() == before


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_file_that_is_no_database_is_an_error_not_a_crash(url, path, read_only):
    path.parent.mkdir()
    path.write_bytes(b"once upon a time " * 1000)
    with pytest.raises(StoreError):
        await SqlStore.open(url, read_only=read_only)


# --- reading only ---------------------------------------------------------------------------------------------------


async def test_reading_a_store_that_is_not_there_creates_nothing(url, path):
    with pytest.raises(NotFound):
        await SqlStore.open(url, read_only=True)
    assert not path.parent.exists()


async def test_a_reader_sees_a_live_store_and_each_new_commit(url):
    async with await SqlStore.open(url) as daemon, await SqlStore.open(url, read_only=True) as reader:
        assert await reader.agents() == ()
        await daemon.commit(SOURCE, revision(1.0), agent_state(revision(1.0)))
        assert await reader.agents() == (agent_state(revision(1.0)),)


async def test_a_reader_can_not_write(url):
    await fill(url)
    async with await SqlStore.open(url, read_only=True) as reader:
        for attempt in (reader.begin_epoch(), reader.commit(SOURCE), reader.flush(), reader.prune(keep_bytes=0)):
            with pytest.raises(StoreError, match="read only"):
                await attempt
        with pytest.raises(StoreError, match="read only"):
            await reader.add_episode(episode("e", revision(1.0)), None, regime=0)
        assert (reader.dropped, reader.write_errors, reader.queued) == ({}, 0, 0)


async def test_a_reader_leaves_the_database_as_it_is(url, path):
    await fill(url)
    before = path.read_bytes()
    async with await SqlStore.open(url, read_only=True) as reader:
        assert len(await reader.events()) == 1
    assert path.read_bytes() == before


READ_AS_NOBODY = """
import asyncio, os, sys
from agentd.errors import StoreError
from agentd.store import SqlStore
async def read(url):
    try:
        async with await SqlStore.open(url, read_only=True) as store:
            return len(await store.events())
    except StoreError as error:
        return f"{type(error).__name__} {error}"
asyncio.run(read(sys.argv[1]))  # loads all modules, which nobody may have no right to read
os.setgid(65534); os.setuid(65534)
print(asyncio.run(read(sys.argv[2])))
"""


def read_as_nobody(any_url, url):
    """What somebody without any right to write reads; root's rights would hide the difference."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", READ_AS_NOBODY, any_url, url]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.fixture
def open_folder():
    """A store in a folder that everybody may read and only root may write."""
    if os.geteuid() != 0:
        pytest.skip("only root can read as somebody else")
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is below a folder that only root may enter
        Path(folder).chmod(0o755)
        yield Path(folder)


async def test_a_store_in_a_folder_that_may_not_be_written_can_be_read_while_it_is_live_and_after(open_folder, url):
    await fill(url)
    own, url = url, f"sqlite:///{open_folder}/agentd.db"
    async with await SqlStore.open(url) as store:
        await store.commit(Event(kind="made", at=1.0))
        for name in ("agentd.db", "agentd.db-wal", "agentd.db-shm"):
            (open_folder / name).chmod(0o644)
        assert await asyncio.to_thread(read_as_nobody, own, url) == "1"
    assert [found.name for found in open_folder.iterdir()] == ["agentd.db"]
    assert await asyncio.to_thread(read_as_nobody, own, url) == "1"


async def test_commits_that_a_crash_left_in_the_log_are_never_silently_missing(open_folder, url):
    await fill(url)
    own, url = url, f"sqlite:///{open_folder}/agentd.db"
    async with await SqlStore.open(url) as store:
        await store.commit(Event(kind="made", at=1.0))
        for suffix in ("", "-wal"):
            shutil.copy(open_folder / f"agentd.db{suffix}", open_folder / f"crashed.db{suffix}")
            (open_folder / f"crashed.db{suffix}").chmod(0o644)
    told = await asyncio.to_thread(read_as_nobody, own, f"sqlite:///{open_folder}/crashed.db")
    assert told.startswith("StoreUnavailable")
    assert "copy both" in told


# --- closing and copying --------------------------------------------------------------------------------------------


async def test_closing_writes_what_was_queued(url):
    store = await SqlStore.open(url)
    for number in range(100):
        await store.add_episode(episode(f"e{number}", revision(1.0)), None, regime=0)
    await store.aclose()
    await store.aclose()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.commit(SOURCE)
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.add_episode(episode("late", revision(1.0)), None, regime=0)
    async with await SqlStore.open(url, read_only=True) as reader:
        assert len(await reader.episodes("cartpole", 1000)) == 100


async def test_a_backup_is_a_store_of_its_own_and_has_what_was_queued(url, tmp_path):
    async with await SqlStore.open(url) as store:
        await store.commit(SOURCE, Event(kind="made", at=1.0))
        await store.add_episode(episode("e", revision(1.0)), None, regime=0)
        await store.backup(tmp_path / "copy.db")
        await store.commit(Event(kind="later", at=2.0))
    async with await SqlStore.open(f"sqlite:///{tmp_path}/copy.db") as copy:
        assert [event.kind for event in await copy.events()] == ["made"]
        assert (await copy.episode("e")).id == "e"
        assert (await copy.verify_chain()).intact


async def test_a_backup_that_can_not_be_written_leaves_nothing_behind(url, tmp_path):
    async with await SqlStore.open(url) as store:
        with pytest.raises(StoreUnavailable):
            await store.backup(tmp_path / "nowhere" / "copy.db")
        (tmp_path / "folder").mkdir()
        with pytest.raises(StoreUnavailable):
            await store.backup(tmp_path / "folder")
    assert {found.name for found in tmp_path.iterdir()} == {"folder", "state"}


async def test_a_store_can_be_read_only_and_backed_up(url, tmp_path):
    await fill(url)
    async with await SqlStore.open(url, read_only=True) as reader:
        await reader.backup(tmp_path / "copy.db")
    async with await SqlStore.open(f"sqlite:///{tmp_path}/copy.db", read_only=True) as copy:
        assert len(await copy.events()) == 1
