"""What tests of the store share: opening one on either database, and making items and events."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import sqlalchemy as sa

from service.adapters.sql.store import SqlStore
from service.adapters.sql.tables import metadata
from service.domain import Event, Generated, Observed, Remark, StoredItem
from service.ports import ItemWrite, Media

NOON = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)


@asynccontextmanager
async def emptied(url: str) -> AsyncIterator[SqlStore]:
    """A store on a database that may hold leftovers of another test."""
    store = await SqlStore.open(url)
    try:
        await store.database.write(empty)
        yield store
    finally:
        await store.close()


def empty(connection: sa.Connection) -> None:
    for table in reversed(metadata.sorted_tables):
        connection.execute(sa.delete(table))


def vector(seed: int, dim: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(dim).astype(np.float32)


def item(item_id: str, **changes: Any) -> StoredItem:
    """An item with an observed text and a generated image."""
    plain = StoredItem(
        id=item_id,
        title=f"Title of {item_id}",
        categories=("shoes", "red"),
        metadata={"brand": "Ärmel", "sizes": [41, 42.5], "nested": {"a": None, "nul": "\x00"}},
        available=True,
        version=1,
        created_at=NOON,
        updated_at=NOON + timedelta(hours=1),
        observed={"text": Observed(vector(1), "text", "minilm@abc", "a red shoe")},
        generated={"image": Generated(vector(2), "dgmrec", 0.71, ("text", "neighbours"))},
        model_version="2026-11-21.1",
        derived=b"\x00\x01derived",
        remarks={"text": Remark(truncated=True), "image": Remark("It says nothing.", text="\x00 🧦")},
    )
    return replace(plain, **changes)


def picture(data: bytes) -> tuple[Media, Observed]:
    """A stored file, and the observed image that refers to it."""
    sha256 = hashlib.sha256(data).hexdigest()
    return Media(sha256, data, "image/png"), Observed(vector(3), "media", "net@def", None, sha256, "image/png")


def create(*items: StoredItem) -> list[ItemWrite]:
    return [ItemWrite(each, "create") for each in items]


def event(user: str = "u1", item_id: str = "a", *, minute: int = 0, **changes: Any) -> Event:
    return replace(Event(user, item_id, "view", NOON + timedelta(minutes=minute)), **changes)


def content(stored: StoredItem) -> StoredItem:
    """The item with its vectors as lists and without its row, so that items can be compared."""
    return replace(
        stored,
        row=0,
        observed={name: replace(part, vector=part.vector.tolist()) for name, part in stored.observed.items()},
        generated={name: replace(part, vector=part.vector.tolist()) for name, part in stored.generated.items()},
    )
