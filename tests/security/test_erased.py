"""What was erased is in none of SQLite's files, the write-ahead log among them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import insert

from service.adapters.sql import database
from service.adapters.sql.store import SqlStore
from service.adapters.sql.tables import feedback, items

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TEXT = "the words of somebody who left"
SOON_S = 0.1


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SqlStore]:
    monkeypatch.setattr(database, "CHECKPOINT_S", SOON_S)
    opened = await SqlStore.open(f"sqlite+aiosqlite:///{tmp_path}/lacuna.db")
    yield opened
    await opened.close()


async def write_and_erase(store: SqlStore) -> None:
    item = {"id": "a", "categories": [], "metadata": {}, "available": True, "version": 1, "created_at": NOW}
    item |= {"updated_at": NOW, "search_text": "a"}
    event = {"user_id": "leaving", "item_row": 1, "type": "review", "timestamp": NOW, "text": TEXT * 500}

    await store.database.write(lambda connection: connection.execute(insert(items).values(row_id=1, **item)))
    await store.database.write(lambda connection: connection.execute(insert(feedback).values(**event)))
    assert (await store.delete_user("leaving")).value


def holds(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if TEXT.encode() in file.read_bytes()]


async def gone(folder: Path) -> None:
    async with asyncio.timeout(10):
        while holds(folder):
            await asyncio.sleep(SOON_S / 2)


async def test_an_erased_text_leaves_the_files(store: SqlStore, tmp_path: Path) -> None:
    await write_and_erase(store)
    assert holds(tmp_path)  # until the log is emptied
    await gone(tmp_path)
    assert (tmp_path / "lacuna.db-wal").stat().st_size == 0
    assert await store.count_items() == 1


async def test_also_where_somebody_reads_meanwhile(store: SqlStore, tmp_path: Path) -> None:
    reader = sqlite3.connect(tmp_path / "lacuna.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM items").fetchone()
    await write_and_erase(store)
    await asyncio.sleep(5 * SOON_S)
    assert holds(tmp_path)
    async with asyncio.timeout(5):
        await store.set_meta("a", "b")  # nobody who writes waits for the reader
    reader.execute("COMMIT")
    reader.close()
    await gone(tmp_path)


async def test_a_store_that_is_closed_meanwhile(tmp_path: Path) -> None:
    store = await SqlStore.open(f"sqlite+aiosqlite:///{tmp_path}/lacuna.db")
    await write_and_erase(store)
    await store.close()
    assert not holds(tmp_path)
