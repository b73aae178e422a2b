"""Following the change log: what other workers have written reaches this one's memory.

Every entry names an item or a user; what is read is always the present state, so that entries may be read twice, late
or in any order. Own writes are in memory before they are answered and are skipped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from service.domain import ChangesLostError, NotFollowedError
from service.pipeline import dependents, recalibrate, vectors
from service.pipeline.adopt import adopt
from service.pipeline.catalogue import Derived, Entry
from service.pipeline.engine import Engine
from service.ports import Change, Departure

log = logging.getLogger(__name__)

ENTRIES = 1000  # read at once
ITEMS = 100  # held locked and read at once
REACH_S, RETRY_S = 2.0, 0.05  # longest wait for a position of the log, and between two looks for it
LOG = "/log"  # name of a lock, which no item's id can be

_ITEM = frozenset({"item", "item-generated"})
_OF_A_MODEL = frozenset({"item-generated", "rebuild"})  # which concern no other
_USER = frozenset({"feedback", "feedback-deleted"})


async def start(engine: Engine) -> None:
    """Note, at start, which entry the log has at the position that the catalogue was read at."""
    followed = engine.runtime.followed
    for entry in await engine.store.changes(max(followed.position - 1, 0), limit=1):
        followed.stamp = _stamp(entry) if entry.position == followed.position else ""


async def reach(engine: Engine, position: int, *, within_s: float = REACH_S) -> None:
    """Wait until this worker has all changes up to a position of the log.

    Raises:
        NotFollowedError: it does not in time. StoreUnavailableError: the database does not answer.
    """
    followed = engine.runtime.followed
    limit = asyncio.timeout(within_s)
    try:
        async with limit:
            while followed.position < position:
                await catch_up(engine, position)
                if followed.position < position:  # nobody has written that much yet
                    await asyncio.sleep(RETRY_S)
    except TimeoutError:
        if not limit.expired():
            raise
        raise NotFollowedError(
            f"This worker knows the changes up to {followed.position}, not yet up to {position}."
        ) from None


async def catch_up(engine: Engine, position: int | None = None) -> None:
    """Take over everything that is committed by now, unless the log has been followed up to `position` meanwhile.

    Raises:
        StoreUnavailableError: the database does not answer; nothing is lost, the next call goes on from there.
    """
    followed = engine.runtime.followed
    async with engine.runtime.lock(LOG):
        if position is not None and followed.position >= position:
            return
        more = True
        while more:
            started = time.monotonic()
            more = await _take_over(engine)
        followed.at = started
        if followed.failing:
            log.info("following the change log again")
        followed.failing = False


async def _take_over(engine: Engine) -> bool:
    """The next entries; whether there may be more."""
    followed = engine.runtime.followed
    try:
        entries = await engine.store.changes(followed.position, limit=ENTRIES)
    except ChangesLostError as error:
        log.warning("%s Reading the whole catalogue again.", error)
        await reload(engine)
        return True
    if not entries:
        return False
    departed = _departures(engine, entries)
    await _apply(engine, entries)
    await absorb(engine, entries, departed)
    followed.position, followed.stamp = entries[-1].position, _stamp(entries[-1])
    followed.applied = {position for position in followed.applied if position > followed.position}
    return len(entries) == ENTRIES


def _stamp(entry: Change) -> str:
    return f"{entry.position}@{entry.at.isoformat()}"


async def _apply(engine: Engine, entries: Sequence[Change]) -> None:
    model = engine.store.model
    foreign = [
        entry
        for entry in entries
        if entry.position not in engine.runtime.followed.applied
        and not (entry.kind in _OF_A_MODEL and entry.model != model)
    ]
    items = {entry.key: entry.position for entry in foreign if entry.kind in _ITEM}
    deleted = _deleted(engine, foreign)
    items |= {item: at for item, at in deleted.items() if item not in items}
    for portion in _portions(items):
        await refresh(engine, portion, items)
    if deleted:
        await _forget_deleted(engine, deleted)
    engine.memory.forget_users({entry.key for entry in foreign if entry.kind in _USER})
    erased = {entry.key for entry in foreign if entry.kind == "user-deleted"}
    if erased:
        engine.memory.forget_users(await engine.store.erased_users(erased, engine.memory.known_users()))
    engine.memory.forget_items({entry.key for entry in foreign if entry.kind == "item-feedback"})
    if any(entry.kind == "rebuild" for entry in foreign):
        await engine.runtime.compute(vectors.distrust, engine.active.dgmrec, engine.memory.catalogue)
    if any(entry.kind == "calibration" for entry in foreign):
        await recalibrate.load(engine)
    await _count(engine, {entry.key for entry in entries if entry.kind == "item-feedback"})
    engine.runtime.timer.observe_lag([time.time() - entry.at.timestamp() for entry in foreign])


async def absorb(engine: Engine, entries: Sequence[Change], departed: Sequence[Departure] = ()) -> None:
    """Enqueue what follows, under this model, from what was written under others. `departed` are the items that these
    deleted, as this worker had them."""
    foreign = [entry for entry in entries if entry.model != engine.store.model]
    if foreign and await engine.store.absorb(foreign, entries[-1].position, departed):
        engine.runtime.is_behind = True
        engine.runtime.changed |= {entry.position: None for entry in foreign if entry.kind == "item-deleted"}


def _departures(engine: Engine, entries: Sequence[Change]) -> list[Departure]:
    """The items in memory that others deleted under another model, with their observed features."""
    catalogue, departed = engine.memory.catalogue, []
    for entry in entries:
        if entry.kind == "item-deleted" and entry.model != engine.store.model:
            known = catalogue.entries.get(int(entry.key))
            if known is not None:
                departed.append(Departure(entry.position, known.id, dependents.packed(catalogue, known.key)))
    return departed


def _deleted(engine: Engine, entries: Sequence[Change]) -> dict[str, int]:
    """Deleted items that are in memory, with the positions of their deletions."""
    known = engine.memory.catalogue.entries
    return {
        known[int(entry.key)].id: entry.position
        for entry in entries
        if entry.kind == "item-deleted" and int(entry.key) in known
    }


def _portions(items: Iterable[str]) -> Iterator[list[str]]:
    """Items in lists that may be locked at once."""
    left = iter(items)
    while portion := list(islice(left, ITEMS)):
        yield portion


async def refresh(engine: Engine, item_ids: Sequence[str], changed: Mapping[str, int] | None = None) -> None:
    """Bring items to what the store has of them. With `changed`, the positions of their newest changes, those that
    this worker has made itself meanwhile are left out."""
    runtime, catalogue = engine.runtime, engine.memory.catalogue
    async with runtime.lock(*item_ids):
        applied = runtime.followed.applied
        wanted = [item for item in item_ids if changed is None or changed[item] not in applied]
        stored = await engine.store.get_items(wanted)
        new = [item for item in stored if item not in catalogue]
        rows, foreign = [], []
        for item in stored.values():
            derived = Derived.unpack(item.derived, catalogue.shape)
            if derived is None:
                foreign.append(item)
            else:
                rows.append((Entry.of(item, catalogue.names), derived))
        await runtime.compute(vectors.put, engine.active.dgmrec, catalogue, rows)
        if foreign:  # another model has written them
            await adopt(engine, foreign)
        if new:  # an entry of the log that has counted them may have come before they were there
            counts = await engine.store.item_counts(new, min_rating=engine.active.min_rating)
            await runtime.compute(catalogue.set_popularity, counts)
        for item_id in wanted:
            if item_id not in stored:
                await runtime.compute(catalogue.remove, item_id)


async def _forget_deleted(engine: Engine, deleted: Collection[str]) -> None:
    """Drop the histories, and all profiles, that may hold items which are no more."""
    memory = engine.memory
    memory.forget_profiles()
    cached = memory.histories.cached()
    users = await engine.runtime.compute(
        lambda: [user for user, history in cached if not set(deleted).isdisjoint(history.seen)]
    )
    memory.forget_users(users)
    memory.histories.forget_loading()  # what is being read may be from before


async def _count(engine: Engine, items: Collection[str]) -> None:
    catalogue = engine.memory.catalogue
    for portion in _portions(items):
        async with engine.runtime.lock(*portion):  # of the item that was counted, not of a later one with its id
            users = await engine.store.item_counts(portion, min_rating=engine.active.min_rating)
            counts = {item: users.get(item, 0) for item in portion}
            await engine.runtime.compute(catalogue.set_popularity, counts)


async def reload(engine: Engine) -> None:
    """Read everything again, where the log no longer has what was changed. Requests are answered meanwhile."""
    followed, memory = engine.runtime.followed, engine.memory
    position = await engine.store.last_change()
    await recalibrate.load(engine)
    stored: set[str] = set()
    async for items in engine.store.iter_items(batch=ITEMS):
        ids = [item.id for item in items]
        await refresh(engine, ids)
        await _count(engine, ids)
        stored.update(ids)
    left = [entry.id for entry in list(memory.catalogue.entries.values()) if entry.id not in stored]
    for portion in _portions(left):
        await refresh(engine, portion)
    memory.forget_users([user for user, _ in memory.histories.cached()])
    memory.forget_profiles()
    memory.histories.forget_loading()
    followed.position, followed.stamp = position, ""
    followed.applied.clear()
