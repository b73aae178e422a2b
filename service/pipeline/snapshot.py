"""Snapshots of the catalogue in a file, from which a start is quicker than from SQL.

A snapshot holds the state after some position of the change log, and that entry of the log itself. A start takes it
only where its checksum holds, the active bundle made it, and the log still has the same entry there; then the log is
followed from that position on. In every other case the start reads SQL: a snapshot can save time, and never change an
answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors.numpy import load, save

from models.arrays import Counts
from models.files import clear_abandoned, replacing
from service.domain import ChangesLostError, ConflictError, LacunaError, NotReadyError, State
from service.pipeline import follow, recalibrate, regenerate, vectors
from service.pipeline.active import Active
from service.pipeline.catalogue import Catalogue, Derived, Entry, Shape
from service.pipeline.confidence import Confidence
from service.pipeline.engine import Engine
from service.ports import Change

log = logging.getLogger(__name__)

NAME = "catalogue.snapshot"
FORMAT = 5
BATCH = 1000  # items put into the catalogue at once
DIGEST = hashlib.sha256().digest_size
_ABOUT, _POPULARITY, _LATER = "about", "popularity", "later."


class SnapshotError(Exception):
    """A snapshot that cannot be used, and why."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The catalogue after `position` of the change log, whose entry there was made `at` that moment.

    `arrays` by field `[n, ...]` and `popularity` `[n]` are in the order of the entries; `later` has the fields of the
    items that came after training alone, in the same order. `confidence` is the rule by which generated features were
    used.
    """

    bundle: str
    position: int
    at: datetime
    entries: Sequence[Entry]
    arrays: Mapping[str, NDArray[Any]]
    popularity: Counts
    later: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    confidence: Confidence = field(default_factory=Confidence)


# --- making ----------------------------------------------------------------------------------------------------------


async def take(engine: Engine, folder: Path) -> dict[str, Any]:
    """Write a snapshot of now; its position, its size and the time it took.

    Raises:
        NotReadyError: it cannot be written. StoreUnavailableError: the database does not answer.
    """
    started = time.perf_counter()
    await follow.catch_up(engine)
    entry = await _entry_at(engine, engine.runtime.followed.position)
    if entry is None:
        raise ConflictError("The log's newest entry was erased just now; try again.")
    await regenerate.renew_all(engine)
    snapshot = await engine.runtime.compute(_copy, engine.active, engine.memory.catalogue, entry)
    try:
        size = await asyncio.to_thread(write, snapshot, folder / NAME)
    except OSError as error:
        raise NotReadyError(f"The snapshot cannot be written: {error.strerror or error}.") from error
    return {
        "position": snapshot.position,
        "items": len(snapshot.entries),
        "bytes": size,
        "seconds": round(time.perf_counter() - started, 3),
    }


async def take_regularly(engine: Engine, folder: Path, every_s: float, *, restored: bool) -> None:
    """Write a snapshot now and then, where anything has changed, until cancelled; the first in any case, unless the
    start was from one (`restored`): deriving all vectors of a large catalogue takes minutes."""
    last = engine.runtime.followed.position if restored else None
    while True:
        await asyncio.sleep(every_s)
        if engine.runtime.followed.position == last:
            continue
        try:
            last = (await take(engine, folder))["position"]
        except LacunaError as error:
            log.warning("no snapshot was written: %s", error)


async def _entry_at(engine: Engine, position: int) -> Change | None:
    entries = await engine.store.changes(position - 1, limit=1) if position else []
    return entries[0] if entries and entries[0].position == position else None


def _copy(active: Active, catalogue: Catalogue, entry: Change) -> Snapshot:
    """What the catalogue holds. Runs where the catalogue is written, so that nothing is half in it."""
    while vectors.renew(active.dgmrec, catalogue):  # what has become stale since it was last looked at
        pass
    keys = np.array(sorted(catalogue.entries), dtype=np.int64)
    later = keys[catalogue.trained[keys] < 0]
    arrays = {name: catalogue.rows.get(name, keys) for name in catalogue.shape.fields()}
    arrays |= {name: catalogue.read_layer(keys, name) for name in _layers(catalogue.shape)}
    return Snapshot(
        active.identity,
        entry.position,
        entry.at,
        [catalogue.entries[key] for key in keys.tolist()],
        arrays,
        catalogue.popularity[keys],
        {name: catalogue.read_layer(later, name) for name in catalogue.shape.list_fields(later=True)},
        catalogue.confidence,
    )


def _layers(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Shape of each field of the vectors that every item has, with the whole lists of neighbours."""
    layers = shape.layer_fields()
    del layers["near"]
    return layers | shape.list_fields(later=False)


def write(snapshot: Snapshot, path: Path) -> int:
    """Write a snapshot in one step: whoever reads the path finds the old one or the new one whole. Answers its size.

    Raises:
        OSError: it cannot be written; the old one is still there.
    """
    about = {
        "format": FORMAT,
        "bundle": snapshot.bundle,
        "position": snapshot.position,
        "at": snapshot.at,
        "entries": snapshot.entries,
        "confidence": snapshot.confidence.dump(),
    }
    tensors: dict[str, NDArray[Any]] = {name: np.ascontiguousarray(array) for name, array in snapshot.arrays.items()}
    tensors |= {_LATER + name: np.ascontiguousarray(array) for name, array in snapshot.later.items()}
    tensors[_POPULARITY] = snapshot.popularity
    tensors[_ABOUT] = np.frombuffer(orjson.dumps(about), dtype=np.uint8)
    data = save(tensors)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    clear_abandoned(path)
    with replacing(path, mode=0o600) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.write(hashlib.sha256(data).digest())
    return len(data) + DIGEST


# --- using -----------------------------------------------------------------------------------------------------------


async def restore(engine: Engine, folder: Path) -> bool:
    """Fill the empty catalogue from the folder's snapshot and follow the log from there; False, and an empty
    catalogue, where that cannot be done.

    Raises:
        StoreUnavailableError: the database does not answer.
    """
    path = folder / NAME
    if not path.exists():
        return False
    try:
        snapshot = await asyncio.to_thread(read, path, engine.memory.catalogue.shape)
        await _check(engine, snapshot)
    except SnapshotError as error:
        log.warning("the snapshot is not used: %s; reading the database instead", error)
        return False
    await engine.runtime.compute(fill, engine.memory.catalogue, snapshot)
    engine.runtime.followed.position = snapshot.position
    await recalibrate.load(engine)
    await follow.catch_up(engine)
    log.info("started from the snapshot at position %d", snapshot.position)
    return True


async def _check(engine: Engine, snapshot: Snapshot) -> None:
    if snapshot.bundle != engine.active.identity:
        raise SnapshotError("another bundle made it")
    try:
        entry = await _entry_at(engine, snapshot.position)
    except ChangesLostError as error:
        raise SnapshotError(str(error).rstrip(".")) from None
    if entry is None or entry.at != snapshot.at:
        raise SnapshotError("the database's log has another entry at its position")


def read(path: Path, shape: Shape) -> Snapshot:
    """A snapshot of a catalogue of this shape, verified.

    Raises:
        SnapshotError: it cannot be read, is damaged, or of another shape or format.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SnapshotError(f"it cannot be read ({error.strerror})") from error
    if len(data) < DIGEST or hashlib.sha256(memoryview(data)[:-DIGEST]).digest() != data[-DIGEST:]:
        raise SnapshotError("it is damaged")
    tensors = load(data[:-DIGEST])
    about = orjson.loads(tensors.pop(_ABOUT).tobytes())
    if about["format"] != FORMAT:
        raise SnapshotError("another version of Lacuna wrote it")
    popularity = tensors.pop(_POPULARITY)
    entries = [_entry(values) for values in about["entries"]]
    later = {name.removeprefix(_LATER): tensors.pop(name) for name in list(tensors) if name.startswith(_LATER)}
    if {name: array.shape[1:] for name, array in tensors.items()} != shape.fields() | _layers(shape):
        raise SnapshotError("it is of another model")
    at = datetime.fromisoformat(about["at"])
    confidence = Confidence.load(about["confidence"])
    return Snapshot(about["bundle"], about["position"], at, entries, tensors, popularity, later, confidence)


def _entry(values: Mapping[str, Any]) -> Entry:
    states = {name: State(state) for name, state in values["states"].items()}
    tuples = {name: tuple(values[name]) for name in ("categories", "titled")}
    return Entry(**{**values, **tuples, "states": states})


def fill(catalogue: Catalogue, snapshot: Snapshot) -> None:
    """Put a snapshot's items into a catalogue."""
    catalogue.set_confidence(snapshot.confidence)
    stored, layers = catalogue.shape.fields(), _layers(catalogue.shape)
    for start in range(0, len(snapshot.entries), BATCH):
        rows = range(start, min(start + BATCH, len(snapshot.entries)))
        derived = [Derived.of({name: snapshot.arrays[name][row] for name in stored}) for row in rows]
        catalogue.put(list(zip(snapshot.entries[start : rows.stop], derived, strict=True)))
    keys = np.array([entry.key for entry in snapshot.entries], dtype=np.int64)
    if len(keys):
        catalogue.write_layer(keys, {name: snapshot.arrays[name] for name in layers})
        catalogue.write_layer(keys[catalogue.trained[keys] < 0], snapshot.later)
    catalogue.stale.clear()
    users = dict(zip((entry.id for entry in snapshot.entries), snapshot.popularity.tolist(), strict=True))
    catalogue.set_popularity(users)
