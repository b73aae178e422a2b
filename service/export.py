"""`python -m service.export FOLDER`: what the database holds, as `items.jsonl` and `feedback.jsonl`.

They are streams of POST bodies, which the trainer reads and `lacuna import` sends to another service. Both are read in
one transaction while writing goes on, so that every event's item is there. Only what was given is exported: what Lacuna
generated, and a title that stood in for a text, are made anew from it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import orjson
import sqlalchemy as sa

from models.files import replacing
from models.rows import EVENT_ROW, ITEM_ROW, is_taken
from service.adapters.sql import feedback as sql_feedback
from service.adapters.sql import items as sql_items
from service.adapters.sql import tables
from service.adapters.sql.models import active_model
from service.adapters.sql.store import SqlStore
from service.domain import Event, Observed, StoredItem
from service.logging import PRIVATE_MASK, run, say
from service.settings import Settings

T = TypeVar("T")

ITEMS, FEEDBACK = "items.jsonl", "feedback.jsonl"
PREPARED = "dataset.json"  # what makes a folder with both a dataset that the trainer reads, with a checksum of them
ROWS = 500  # read at once


class ExportError(Exception):
    """An export that is not made, in one sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Export; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m service.export", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--force", action="store_true", help="write an empty database too, or into a prepared dataset")
    return run(lambda: _main(parser.parse_args(arguments)))


def _main(options: argparse.Namespace) -> int:
    left_out: Counter[str] = Counter()
    url = Settings.load().database_url
    items, events = asyncio.run(export(url, options.folder, force=options.force, left_out=left_out))
    say(f"{options.folder} holds {items} items and {events} feedback events")
    for reason, count in left_out.most_common():
        sys.stderr.write(f"left out {count} rows: {reason}\n")
    return 0


async def export(
    url: str, folder: Path, *, force: bool = False, left_out: Counter[str] | None = None
) -> tuple[int, int]:
    """Write both files into a folder, replacing those that are there; the number of items and of events.

    Rows that no service would take any more are left out, and counted by reason in `left_out`.

    The database is only read. What is in the folder stays until both files are whole.

    Args:
        force: write both files though the database is empty, or they belong to a prepared dataset.

    Raises:
        ExportError: one of these two, without `force`. OSError: a file cannot be written.
        StoreUnavailableError: the database cannot be read.
    """
    store = await SqlStore.open_existing(url)
    try:
        if not force:
            await store.database.read(_require_content)
            if (folder / PREPARED).exists():
                raise ExportError(f"{folder} is a prepared dataset (--force replaces its items and feedback).")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ExitStack() as files:
            items, feedback = (files.enter_context(replacing(folder / name, mode=0o600)) for name in (ITEMS, FEEDBACK))
            counts = Counter() if left_out is None else left_out
            return await store.database.read(lambda connection: _write(connection, items, feedback, counts))
    finally:
        await store.close()


def _require_content(connection: sa.Connection) -> None:
    if not any(connection.execute(sa.select(table).limit(1)).first() for table in (tables.items, tables.feedback)):
        raise ExportError("The database that LACUNA_DATABASE_URL names is empty (--force writes two empty files).")


def _write(connection: sa.Connection, items_file: Path, feedback_file: Path, left_out: Counter[str]) -> tuple[int, int]:
    read = partial(sql_items.items_after, model=active_model(connection))
    items = (item_body(connection, item) for item in _all(read, connection))
    events = (event_body(event) for event in _all(sql_feedback.events_after, connection))
    n_items = _write_lines(items_file, (body for body in items if is_taken(ITEM_ROW, body, left_out)))
    return n_items, _write_lines(feedback_file, (body for body in events if _is_event(body, left_out)))


def _is_event(body: dict[str, Any], left_out: Counter[str]) -> bool:
    return is_taken(EVENT_ROW, {**body, "timestamp": body["timestamp"].isoformat()}, left_out)


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
    contents = {name: remark.text for name, remark in item.remarks.items()}  # texts of which nothing could be read
    contents |= {name: _content(connection, observed) for name, observed in item.observed.items()}
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
    media = sql_items.stored_media(connection, observed.media) if observed.media else None
    return {"base64": base64.b64encode(media.data).decode()} if media else None


def event_body(event: Event) -> dict[str, Any]:
    """The row of a `POST /feedback` body that gives this event."""
    body = {name: getattr(event, name) for name in Event.__slots__}
    return {name: value for name, value in body.items() if value is not None}


if __name__ == "__main__":
    os.umask(PRIVATE_MASK)
    sys.exit(main())
