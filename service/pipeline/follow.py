"""Following the change log: what other workers have written reaches this one's memory.

Every entry names an item or a user; what is read is always the present state, so that entries may be read twice, late
or in any order. Own writes are in memory before they are answered and are skipped.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice

from service.domain import ChangesLostError, LacunaError, NotFollowedError, StoreUnavailableError
from service.pipeline import documents, history
from service.pipeline.catalogue import Derived
from service.pipeline.engine import Engine
from service.pipeline.ingest import entry_of, regenerate
from service.ports import Change

log = logging.getLogger(__name__)

ENTRIES = 1000  # read at once
ITEMS = 100  # held locked and read at once
REACH_S, RETRY_S = 2.0, 0.05  # longest wait for a position of the log, and between two looks for it
SWEEP_S = 10.0
TRIM_S = 600.0
ADOPTED = 10_000  # of the items left behind by others, taken over at once
LOG, PARTS = "/log", "/parts"  # names of locks, which no item's id can be

_ITEM = frozenset({"item", "item-generated", "item-deleted"})
_USER = frozenset({"feedback", "feedback-deleted", "user-deleted"})


async def follow(engine: Engine, interval_s: float, kept_s: float) -> None:
    """Keep up with the change log until cancelled: every `interval_s`, and whenever the bell rings. Now and then, take
    over what others have left undone, and trim entries older than `kept_s`."""
    seen: dict[str, int] = {}
    swept = trimmed = time.monotonic()
    while True:
        await engine.bell.wait(interval_s)
        try:
            await catch_up(engine)
            await_turn(engine, ())
            now = time.monotonic()
            if now - swept > SWEEP_S:
                swept = now
                seen = await adopt_abandoned(engine, seen)
            if now - trimmed > TRIM_S:
                trimmed = now
                await engine.store.trim_changes(datetime.fromtimestamp(engine.clock() - kept_s, UTC))
        except LacunaError as error:
            _note_failure(engine, error)
        except Exception:
            log.exception("following the change log failed; trying again")


def _note_failure(engine: Engine, error: LacunaError) -> None:
    if not engine.followed.failing:
        log.warning("cannot follow the change log: %s", error.reason)
    engine.followed.failing = True


async def reach(engine: Engine, position: int, *, within_s: float = REACH_S) -> None:
    """Wait until this worker knows all changes up to a position of the log.

    Raises:
        NotFollowedError: it does not in time. StoreUnavailableError: the database does not answer.
    """
    limit = asyncio.timeout(within_s)
    try:
        async with limit:
            while engine.followed.position < position:
                await catch_up(engine, position)
                if engine.followed.position < position:  # nobody has written that much yet
                    await asyncio.sleep(RETRY_S)
    except TimeoutError:
        if not limit.expired():
            raise
        known = engine.followed.position
        raise NotFollowedError(f"This worker knows the changes up to {known}, not yet up to {position}.") from None


async def catch_up(engine: Engine, position: int | None = None) -> None:
    """Take over everything that is committed by now, unless the log has been followed up to `position` meanwhile.

    Raises:
        StoreUnavailableError: the database does not answer; nothing is lost, the next call goes on from there.
    """
    async with engine.lock(LOG):
        if position is not None and engine.followed.position >= position:
            return
        more = True
        while more:
            started = time.monotonic()
            more = await _take_over(engine)
        engine.followed.at = started
        if engine.followed.failing:
            log.info("following the change log again")
        engine.followed.failing = False


async def _take_over(engine: Engine) -> bool:
    """The next entries; whether there may be more."""
    followed = engine.followed
    try:
        entries = await engine.store.changes(followed.position, limit=ENTRIES)
    except ChangesLostError as error:
        log.warning("%s Reading the whole catalogue again.", error)
        await reload(engine)
        return True
    if not entries:
        return False
    await _apply(engine, entries)
    followed.position, followed.stamp = entries[-1].position, _stamp(entries[-1])
    followed.applied = {position for position in followed.applied if position > followed.position}
    return len(entries) == ENTRIES


def _stamp(entry: Change) -> str:
    return f"{entry.position}@{entry.at.isoformat()}"


async def _apply(engine: Engine, entries: Sequence[Change]) -> None:
    foreign = [entry for entry in entries if entry.position not in engine.followed.applied]
    items = {entry.key: entry.position for entry in foreign if entry.kind in _ITEM}
    for some in _portions(items):
        await refresh(engine, some, items)
    gone = {entry.key for entry in foreign if entry.kind == "item-deleted"}
    if gone:
        await _forget_items(engine, gone)
    history.forget(engine, {entry.key for entry in foreign if entry.kind in _USER})
    documents.forget(engine, {entry.key for entry in foreign if entry.kind == "item-feedback"})
    await _count(engine, {entry.key for entry in entries if entry.kind == "item-feedback"})
    engine.timer.observe_lag([time.time() - entry.at.timestamp() for entry in foreign])


def _portions(items: Iterable[str]) -> Iterator[list[str]]:
    """Items in lists that may be locked at once."""
    left = iter(items)
    while some := list(islice(left, ITEMS)):
        yield some


async def refresh(engine: Engine, item_ids: Sequence[str], changed: Mapping[str, int] | None = None) -> None:
    """Bring items to what the store says of them. With `changed`, the positions of their newest changes, those that
    this worker has made itself meanwhile are left out."""
    async with engine.lock(*item_ids):
        applied = engine.followed.applied
        wanted = [item for item in item_ids if changed is None or changed[item] not in applied]
        stored = await engine.store.get_items(wanted)
        rows = []
        for item in stored.values():
            derived = Derived.unpack(item.derived, engine.catalogue.shape)
            if derived is None or item.model_version != engine.model_version:
                engine.superseded = f"The database is served with bundle {item.model_version} by now."
                continue
            rows.append((entry_of(engine, item), derived))
        await engine.compute(engine.catalogue.put, rows)
        for item_id in wanted:
            if item_id not in stored:
                await engine.compute(engine.catalogue.remove, item_id)


async def _forget_items(engine: Engine, gone: Collection[str]) -> None:
    """Drop the histories, and all documents, that may hold items which are no more."""
    documents.forget_all(engine)
    known = list(engine.histories.items())
    users = await engine.compute(lambda: [user for user, one in known if not set(gone).isdisjoint(one.seen)])
    history.forget(engine, users)
    engine.loading.clear()  # what is being read may be from before


async def _count(engine: Engine, items: Collection[str]) -> None:
    for some in _portions(items):
        async with engine.lock(*some):  # of the item that was counted, not of a later one with its id
            users = await engine.store.item_counts(some, min_rating=engine.min_rating)
            await engine.compute(engine.catalogue.set_popularity, {item: users.get(item, 0) for item in some})


async def reload(engine: Engine) -> None:
    """Read everything again, where the log no longer tells what has changed. Requests are answered meanwhile."""
    position = await engine.store.last_change()
    stored: set[str] = set()
    async for items in engine.store.iter_items(batch=ITEMS):
        ids = [item.id for item in items]
        await refresh(engine, ids)
        await _count(engine, ids)
        stored.update(ids)
    left = [entry.id for entry in list(engine.catalogue.entries.values()) if entry.id not in stored]
    for some in _portions(left):
        await refresh(engine, some)
    history.forget(engine, list(engine.histories))
    documents.forget_all(engine)
    engine.loading.clear()
    engine.followed.position, engine.followed.stamp = position, ""
    engine.followed.applied.clear()


# --- what awaits regeneration ----------------------------------------------------------------------------------------


async def resume(engine: Engine) -> None:
    """Take up, at start, what anybody has left to be regenerated."""
    position = engine.followed.position
    for entry in await engine.store.changes(max(position - 1, 0), limit=1):
        engine.followed.stamp = _stamp(entry) if entry.position == position else ""
    _adopt(engine, await engine.store.awaiting(limit=ADOPTED))


async def adopt_abandoned(engine: Engine, seen: dict[str, int]) -> dict[str, int]:
    """Take over what has waited since the last look, `seen`: whoever wanted to regenerate it is gone, or has too much
    to do. Answers what waits now. What this worker could not do itself it tries again."""
    now = await engine.store.awaiting(limit=ADOPTED)
    _adopt(engine, [item for item, mark in now.items() if seen.get(item) == mark and item not in engine.stale])
    return now


def _adopt(engine: Engine, items: Collection[str]) -> None:
    # In any order: several workers may do so at once, and are not to do the same items at the same time.
    await_turn(engine, random.sample(list(items), len(items)))


def await_turn(engine: Engine, items: Iterable[str]) -> None:
    """Let generated parts of items follow their feedback in the background. An item that waits already waits once."""
    engine.stale |= dict.fromkeys(items)
    if engine.stale and not engine.is_locked(PARTS):
        engine.background(_regenerate(engine))


async def _regenerate(engine: Engine) -> None:
    async with engine.lock(PARTS):
        while engine.stale and not engine.is_closing:
            item = next(iter(engine.stale))
            del engine.stale[item]
            try:
                mark = (await engine.store.awaiting([item])).get(item)
                if mark is None:  # gone, or another worker was faster
                    continue
                if mark > engine.followed.position:
                    await catch_up(engine)
                await regenerate(engine, item, mark)
            except StoreUnavailableError as error:
                engine.stale[item] = None
                log.warning("items wait for their generated parts: %s", error.reason)
                return
