"""Filling an empty store from the catalogue that a bundle brings: the items with their observed features, and the
feedback. What an interrupted start has left undone, the next one does."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from models.bundle import CATALOGUE_FEATURES, CATALOGUE_FEEDBACK, CATALOGUE_ITEMS, Bundle
from models.rows import EVENT_ROW, ITEM_ROW, decode_base64, is_taken
from service.domain import TITLE_SOURCE, Event, Observed, Remark, StoredItem, Vector
from service.pipeline.active import Active
from service.pipeline.encode import TEXT, media_type, silence, unread
from service.pipeline.engine import Engine
from service.ports import ItemWrite, Media

log = logging.getLogger(__name__)

META = "seeded"
UNDER_WAY = "under way"
ITEMS, EVENTS = 500, 10_000


async def seed(engine: Engine, bundle: Bundle) -> None:
    """Copy the bundle's catalogue into a store that has never held anything."""
    items, feedback = bundle.file(CATALOGUE_ITEMS), bundle.file(CATALOGUE_FEEDBACK)
    state = await engine.store.get_meta(META)
    untouched = state is None and await engine.store.last_change() == 0
    if items is None or not (untouched or state == UNDER_WAY):
        return
    await engine.store.set_meta(META, UNDER_WAY)
    features = bundle.tensors(CATALOGUE_FEATURES)
    now = datetime.fromtimestamp(engine.runtime.clock(), UTC)
    undated = bundle.manifest.created_at  # the same in a second attempt, so that no event is stored twice
    left_out: Counter[str] = Counter()
    read = stored = events = silent = 0
    for rows in _chunked(items, ITEMS):
        valid_items = [
            _item(engine.active, body, features, read + place, now)
            for place, body in enumerate(rows)
            if is_taken(ITEM_ROW, body, left_out)
        ]
        read += len(rows)
        silent += sum(remark.detail is not None for item, _ in valid_items for remark in item.remarks.values())
        media = {file.sha256: file for _, files in valid_items for file in files}
        await engine.store.write_items([ItemWrite(item, "create") for item, _ in valid_items], list(media.values()))
        stored += len(valid_items)
    for rows in _chunked(feedback, EVENTS) if feedback else ():
        valid_events = [_event(row, undated) for row in rows if is_taken(EVENT_ROW, row, left_out)]
        added = await engine.store.add_feedback(valid_events)
        events += added.value.count("new")
    if silent:
        log.warning("%d features of the bundle's items say nothing and count as missing", silent)
    await engine.store.set_meta(META, bundle.version)
    log.info("seeded the empty database with %d items and %d events of bundle %s", stored, events, bundle.version)
    for reason, count in left_out.most_common():
        log.warning("%d rows of the bundle's catalogue were left out: %s", count, reason)


def _chunked(file: Path, size: int) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    with file.open(encoding="utf-8") as stream:
        for line in stream:
            rows.append(orjson.loads(line))
            if len(rows) == size:
                yield rows
                rows = []
    if rows:
        yield rows


def _item(
    active: Active, body: Mapping[str, Any], features: Mapping[str, Any], row: int, now: datetime
) -> tuple[StoredItem, list[Media]]:
    observed: dict[str, Observed] = {}
    media: list[Media] = []
    remarks: dict[str, Remark] = {}
    for name in active.dgmrec.names:
        if not features[f"{name}.observed"][row]:
            continue
        feature, files = _observed(active, name, body, np.asarray(features[name][row], dtype=np.float32))
        remark = _remark(active, name, feature, body.get("title"))
        if remark is not None:
            remarks[name] = remark
        if remark is None or remark.detail is None:
            observed[name] = feature
            media += files
    item = StoredItem(
        id=body["id"],
        title=body.get("title"),
        categories=tuple(body.get("categories") or ()),
        metadata=body.get("metadata") or {},
        available=body.get("available", True),
        version=1,
        created_at=now,
        updated_at=now,
        observed=observed,
        generated={},
        model_version="",
        derived=b"",
        remarks=remarks,
    )
    return item, media


def _observed(active: Active, name: str, body: Mapping[str, Any], vector: Vector) -> tuple[Observed, list[Media]]:
    """A feature with the content that it came from, and the files of that."""
    content = (body.get("modalities") or {}).get(name)
    if isinstance(content, dict) and "base64" in content:
        data = decode_base64(content["base64"])
        file = Media(hashlib.sha256(data).hexdigest(), data, media_type(data))
        identity = active.encoder_identity(name)
        return Observed(vector, "media", identity, media=file.sha256, media_type=file.media_type), [file]
    if isinstance(content, str):
        return Observed(vector, "text", active.encoder_identity(name), text=content), []
    if name == TEXT and name in active.encoders and body.get("title"):
        return Observed(vector, TITLE_SOURCE, active.encoder_identity(name)), []
    return Observed(vector, "vector"), []


def _remark(active: Active, name: str, feature: Observed, title: str | None) -> Remark | None:
    text = title if feature.is_title else feature.text
    remark = silence(active, name, feature.vector)
    return remark if remark is not None or text is None else unread(active, name, text, feature.source)


def _event(row: Mapping[str, Any], undated: datetime) -> Event:
    stamp = row.get("timestamp")
    return Event(
        user=row["user"],
        item=row["item"],
        type=row["type"],
        timestamp=datetime.fromisoformat(stamp).astimezone(UTC) if stamp else undated,
        value=row.get("value"),
        text=row.get("text"),
    )
