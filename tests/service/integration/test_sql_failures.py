"""What only shows on the real databases: migrations, several processes, crashes, and a database that goes away."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import numpy as np
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from models.calibration import identity
from service.adapters.sql import database as sql_engine
from service.adapters.sql.store import MIGRATIONS, SqlStore
from service.adapters.sql.tables import metadata
from service.domain import ModelState, StoreUnavailableError
from service.ports import Answer, GeneratedWrite, Seen, StoredCalibration
from tests.contracts.stores import NOON, create, emptied, empty, event, item

ROOT = Path(__file__).parents[3]
NOWHERE = "postgresql+asyncpg://nobody@127.0.0.1:1/nothing"
Call = Callable[[SqlStore], Awaitable[object]]


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/store.db"
    return str(request.getfixturevalue("postgres_url"))


async def _iterate(store: SqlStore) -> None:
    async for _ in store.iter_items():
        pass


async def _enter(store: SqlStore) -> None:
    async with store.alone():
        pass


EVERY_METHOD: dict[str, Call] = {
    "ping": lambda store: store.ping(),
    "write_items": lambda store: store.write_items(create(item("a"))),
    "get_item": lambda store: store.get_item("a"),
    "get_items": lambda store: store.get_items(["a"]),
    "list_items": lambda store: store.list_items(limit=1),
    "iter_items": _iterate,
    "delete_item": lambda store: store.delete_item("a"),
    "save_generated": lambda store: store.save_generated([GeneratedWrite("a", 1, {}, "v", b"")]),
    "existing": lambda store: store.existing(["a"]),
    "pending": lambda store: store.pending(),
    "backlog": lambda store: store.backlog(),
    "enqueue_all": lambda store: store.enqueue_all(),
    "feature_changes": lambda store: store.feature_changes(),
    "finish_changes": lambda store: store.finish_changes([1], ["a"]),
    "erased_users": lambda store: store.erased_users(["x"], ["u"]),
    "later_items": lambda store: store.later_items(["a"]),
    "dequeue": lambda store: store.dequeue({"a": 1}, Seen(1)),
    "claim": lambda store: store.claim("k", "f", lease_s=1),
    "answered": lambda store: store.answered("k", Answer(200, b"")),
    "release": lambda store: store.release("k"),
    "trim_changes": lambda store: store.trim_changes(NOON),
    "alone": _enter,
    "get_media": lambda store: store.get_media("0"),
    "count_items": lambda store: store.count_items(),
    "add_feedback": lambda store: store.add_feedback([event()]),
    "list_feedback": lambda store: store.list_feedback(limit=1),
    "delete_feedback": lambda store: store.delete_feedback(user="u"),
    "user_items": lambda store: store.user_items(["u"], min_rating=None),
    "interested_users": lambda store: store.interested_users(["a"], limit=1, min_rating=None),
    "item_users": lambda store: store.item_users("a", limit=1),
    "item_counts": lambda store: store.item_counts(min_rating=None),
    "documents": lambda store: store.documents("user", ["u"], encoder="e", limit=1),
    "save_review_vectors": lambda store: store.save_review_vectors("e", [(1, 1, np.zeros(2, np.float32))]),
    "get_user": lambda store: store.get_user("u"),
    "delete_user": lambda store: store.delete_user("u"),
    "changes": lambda store: store.changes(0),
    "last_change": lambda store: store.last_change(),
    "count_pairs": lambda store: store.count_pairs("b"),
    "pairs": lambda store: store.pairs("b", "image", limit=1),
    "calibrations": lambda store: store.calibrations("b"),
    "save_calibration": lambda store: store.save_calibration(
        "b", "image", StoredCalibration(identity(), 1, 1, 0.5, 0.5, NOON)
    ),
    "imputation_errors": lambda store: store.imputation_errors(),
    "newest_users": lambda store: store.newest_users(NOON, limit=1),
    "sample_users": lambda store: store.sample_users(1, seed=0),
    "register": lambda store: store.register("i", "v"),
    "served_models": lambda store: store.served_models(),
    "set_model": lambda store: store.set_model(1, ModelState.FAILED, {}),
    "note_progress": lambda store: store.note_progress(1, "w", {}),
    "lease": lambda store: store.lease(1, "w", 1),
    "activate": lambda store: store.activate(1, "v"),
    "drop_derived": lambda store: store.drop_derived(1),
    "absorb": lambda store: store.absorb([], 1),
    "start_over": lambda store: store.start_over(1),
    "beat": lambda store: store.beat("w", 1, 0),
    "leave": lambda store: store.leave(["w"]),
    "serving_workers": lambda store: store.serving_workers(),
    "get_meta": lambda store: store.get_meta("a"),
    "set_meta": lambda store: store.set_meta("a", "b"),
}


async def _all_unavailable(store: SqlStore) -> None:
    assert set(EVERY_METHOD) | {"open", "open_existing", "under", "close"} == {
        name for name in dir(SqlStore) if not name.startswith("_")
    }
    for name, call in EVERY_METHOD.items():
        with pytest.raises(StoreUnavailableError):
            assert await call(store) is NotImplemented, name


async def test_migrations_make_the_tables_that_the_queries_expect(url: str) -> None:
    async with emptied(url) as store:
        difference = await store.database.read(
            lambda connection: compare_metadata(
                MigrationContext.configure(connection, opts={"compare_type": True}), metadata
            )
        )
    assert difference == []


def _as_it_was(connection: sa.Connection, revision: str) -> None:
    """An empty database with an older schema."""
    metadata.drop_all(connection)
    connection.execute(sa.text("DROP TABLE IF EXISTS alembic_version"))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _add_old_items(connection: sa.Connection) -> None:
    columns = "id, title, categories, metadata, available, version, created_at, updated_at, model_version, search_text"
    add = sa.text(
        f"INSERT INTO items ({columns}, derived) "
        "VALUES (:id, :title, '[]', '{}', true, 1, :now, :now, '', :search_text, :derived)"
    ).bindparams(sa.bindparam("now", NOON), sa.bindparam("derived", b""))
    titles = [None, *(f"Cafe\u0301 nume\u0301ro {number}" for number in range(2500))]
    rows = [{"id": f"Old-{number:04d}", "title": title} for number, title in enumerate(titles)]
    connection.execute(add, [{**row, "search_text": f"{row['id']}\n{row['title'] or ''}".casefold()} for row in rows])


async def test_a_migration_lets_older_titles_be_found_however_they_are_written(url: str) -> None:
    store = await SqlStore.open(url)
    await store.database.write(lambda connection: _as_it_was(connection, "0004"))
    await store.database.write(_add_old_items)
    await store.close()
    store = await SqlStore.open(url)
    for q in ("CAF\u00c9 NUM\u00c9RO 2499", "cafe\u0301 nume\u0301ro 2499"):
        (found,) = (await store.list_items(limit=9, q=q)).items
        assert (found.id, found.title, found.remarks) == ("Old-2500", "Cafe\u0301 nume\u0301ro 2499", {})
    assert [found.id for found in (await store.list_items(limit=9, q="old-0000")).items] == ["Old-0000"]
    assert await store.count_items() == 2501
    await store.database.write(empty)
    await store.close()


async def test_newer_schema_is_refused(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/store.db"
    await (await SqlStore.open(url)).close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StoreUnavailableError, match="newer"):
        await SqlStore.open(url)


def _python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)


OPEN_AND_WRITE = """
import asyncio, sys
from service.adapters.sql.store import SqlStore
from tests.contracts.stores import create, item

async def main(url, name):
    store = await SqlStore.open(url)
    for number in range(20):
        await store.write_items(create(item(f"{name}-{number}")))
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_processes_may_open_a_new_database_at_once(url: str) -> None:
    processes = [_python(OPEN_AND_WRITE, url, name) for name in "abc"]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    for process in processes:
        process.communicate()
    store = await SqlStore.open(url)
    assert await store.count_items() == 60
    await store.close()


WRITE_FOR_EVER = """
import asyncio, sys
from service.adapters.sql.store import SqlStore
from tests.contracts.stores import create, item

async def main(url):
    store = await SqlStore.open(url)
    for number in range(100_000):
        await store.write_items(create(item(f"k{number}")))
        print(number, flush=True)

asyncio.run(main(sys.argv[1]))
"""


async def test_answered_write_outlives_a_kill(url: str) -> None:
    process = _python(WRITE_FOR_EVER, url)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(50)]
    os.kill(process.pid, signal.SIGKILL)
    lines += process.communicate()[0].splitlines()
    store = await SqlStore.open(url)
    answered = {f"k{int(line)}" for line in lines}
    assert len(answered) >= 50
    assert set(await store.get_items(sorted(answered))) == answered
    await store.close()


async def test_sqlite_is_told_to_survive_a_power_cut(tmp_path: Path) -> None:
    store = await SqlStore.open(f"sqlite+aiosqlite:///{tmp_path}/store.db")
    settings = {}
    for name in ("synchronous", "journal_mode", "foreign_keys"):
        settings[name] = await store.database.write(
            lambda connection, name=name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
        )
    assert settings == {"synchronous": 2, "journal_mode": "wal", "foreign_keys": 1}
    await store.close()


async def test_sqlite_readers_do_not_wait_for_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_engine, "SQLITE_BUSY_MS", 50)
    store = await SqlStore.open(f"sqlite+aiosqlite:///{tmp_path}/store.db")
    await store.write_items(create(item("a")))
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM items")
    assert await store.get_item("a") is not None
    with pytest.raises(StoreUnavailableError, match="does not answer") as caught:
        await store.write_items(create(item("b")))
    assert caught.value.reason == "database is locked"
    other.execute("ROLLBACK")
    other.close()
    assert (await store.write_items(create(item("b")))).value.results == ["created"]
    await store.close()


async def test_damaged_sqlite_file_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"no database at all" * 500)
    with pytest.raises(StoreUnavailableError):
        await SqlStore.open(f"sqlite+aiosqlite:///{tmp_path}/store.db")
    with pytest.raises(StoreUnavailableError):
        await SqlStore.open(f"sqlite+aiosqlite:///{tmp_path}/store.db/below/a/file.db")


@pytest.mark.parametrize("bad", ["", "mysql://x/y", "sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:", "::"])
async def test_url_of_no_database_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="database"):
        await SqlStore.open(bad)


async def test_sqlite_gone_is_unavailable_everywhere(tmp_path: Path) -> None:
    store = await SqlStore.open(f"sqlite+aiosqlite:///{tmp_path}/store.db")
    await store.database.write(
        lambda connection: [connection.exec_driver_sql(f"DROP TABLE {table}") for table in _dropping_order()]
    )
    calls = {name: call for name, call in EVERY_METHOD.items() if name not in ("ping", "alone")}
    for call in calls.values():
        with pytest.raises(StoreUnavailableError):
            await call(store)
    await store.close()


@pytest.mark.parametrize("replaced", [False, True])
async def test_nothing_is_acknowledged_into_a_file_that_was_taken_away(tmp_path: Path, replaced: bool) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/store.db"
    store = await SqlStore.open(url)
    await store.write_items(create(item("a")))
    kept = tmp_path / "kept"
    kept.mkdir()
    for file in tmp_path.glob("store.db*"):
        file.rename(kept / file.name)
    if replaced:
        await (await SqlStore.open(url)).close()
    for call in (lambda: store.write_items(create(item("b"))), lambda: store.add_feedback([event()])):
        with pytest.raises(StoreUnavailableError):
            await call()
    for file in kept.iterdir():
        file.replace(tmp_path / file.name)
    assert (await store.write_items(create(item("c")))).value.results == ["created"]
    assert set(await store.get_items(["a", "b", "c"])) == {"a", "c"}
    await store.close()


def _dropping_order() -> list[str]:
    return [table.name for table in reversed(metadata.sorted_tables)]


async def test_postgres_that_does_not_answer_is_unavailable() -> None:
    with pytest.raises(StoreUnavailableError):
        await SqlStore.open(NOWHERE)


async def test_postgres_connections_cut_are_replaced(postgres_url: str) -> None:
    async with emptied(postgres_url) as store:
        await asyncio.gather(*(store.ping() for _ in range(5)))
        plain = await asyncpg.connect(postgres_url.replace("+asyncpg", ""))
        await plain.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await plain.close()
        assert (await store.write_items(create(item("a")))).value.results == ["created"]


async def test_postgres_cut_in_the_middle_is_unavailable_and_undone(postgres_url: str) -> None:
    def cut(connection: sa.Connection) -> None:
        connection.exec_driver_sql("INSERT INTO meta VALUES ('half', 'done')")
        connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    async with emptied(postgres_url) as store:
        with pytest.raises(StoreUnavailableError):
            await store.database.write(cut)
        assert await store.get_meta("half") is None


async def test_postgres_gone_is_unavailable_everywhere(postgres_url: str) -> None:
    """Last of this module: its database is dropped under the open store."""
    server, _, name = postgres_url.replace("+asyncpg", "").rpartition("/")
    store = await SqlStore.open(postgres_url)
    plain = await asyncpg.connect(f"{server}/postgres")
    await plain.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await plain.close()
    await _all_unavailable(store)
    await store.close()
