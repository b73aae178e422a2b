"""`python -m service.export FOLDER`: what the database holds, as `items.jsonl` and `feedback.jsonl`.

They are streams of POST bodies, which the trainer reads and `lacuna import` sends to another service. Both are read in
one transaction while writing goes on, so that every event's item is there. Only what was given is exported: what Lacuna
generated, and a title that stood in for a text, are made anew from it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orjson
import sqlalchemy as sa

from service.adapters.sql import feedback as sql_feedback
from service.adapters.sql import items as sql_items
from service.adapters.sql.store import SqlStore
from service.domain import Event, LacunaError, Observed, StoredItem
from service.logging import complain
from service.settings import Settings, SettingsError

T = TypeVar("T")

ITEMS, FEEDBACK = "items.jsonl", "feedback.jsonl"
ROWS = 500  # read at once


def main(arguments: Sequence[str] | None = None) -> int:
    """Export; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m service.export", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    try:
        items, events = asyncio.run(export(Settings.load().database_url, folder))
    except (SettingsError, LacunaError, OSError) as error:
        return complain(error)
    sys.stdout.write(f"{folder} holds {items} items and {events} feedback events\n")
    return 0


async def export(url: str, folder: Path) -> tuple[int, int]:
    """Write both files into a folder, replacing those that are there; the number of items and of events.

    Raises:
        OSError: a file cannot be written. StoreUnavailableError: the database does not answer.
    """
    store = await SqlStore.open(url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as held:
            unfinished = Path(held)
            counts = await store.database.read(lambda connection: _write(connection, unfinished))
            for name in (ITEMS, FEEDBACK):
                (unfinished / name).replace(folder / name)
        return counts
    finally:
        await store.close()


def _write(connection: sa.Connection, folder: Path) -> tuple[int, int]:
    items = (item_body(connection, item) for item in _all(sql_items.items_after, connection))
    events = (event_body(event) for event in _all(sql_feedback.events_after, connection))
    return _write_lines(folder / ITEMS, items), _write_lines(folder / FEEDBACK, events)


def _write_lines(file: Path, bodies: Iterator[dict[str, Any]]) -> int:
    count = 0
    with file.open("wb") as stream:
        for body in bodies:
            stream.write(orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY))
            count += 1
    return count


def _all(read: Callable[[sa.Connection, int, int], tuple[list[T], int]], connection: sa.Connection) -> Iterator[T]:
    """All that `read` gives some at a time, from the beginning on."""
    after = 0
    while True:
        some, after = read(connection, after, ROWS)
        if not some:
            return
        yield from some


def item_body(connection: sa.Connection, item: StoredItem) -> dict[str, Any]:
    """The `POST /items` body that gives this item."""
    contents = {name: _content(connection, observed) for name, observed in item.observed.items()}
    body = {
        "id": item.id,
        "title": item.title,
        "modalities": {name: content for name, content in contents.items() if content is not None},
        "categories": list(item.categories),
        "metadata": item.metadata,
        "available": item.available,
    }
    return {name: value for name, value in body.items() if value is not None}


def _content(connection: sa.Connection, observed: Observed) -> Any:
    if observed.source == "vector":
        return {"vector": observed.vector}
    if observed.source == "text":
        return observed.text
    media = sql_items.get_media(connection, observed.media) if observed.media else None
    return {"base64": base64.b64encode(media.data).decode()} if media else None


def event_body(event: Event) -> dict[str, Any]:
    """The row of a `POST /feedback` body that gives this event."""
    body = {name: getattr(event, name) for name in Event.__slots__}
    return {name: value for name, value in body.items() if value is not None}


if __name__ == "__main__":
    sys.exit(main())
