"""Feedback in and out; new feedback reaches its users' lists at once and generated parts right after."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence

from service.domain import Event, FeedbackOutcome, InvalidInputError, Page, User, UserNotFoundError
from service.pipeline import history
from service.pipeline.engine import STALE, Engine
from service.pipeline.ingest import EVERYTHING, regenerate

PARTS = "/parts"  # the name of a lock, which no item's id can be


async def add_feedback(engine: Engine, events: Sequence[Event], *, strict: bool) -> FeedbackOutcome:
    """Store events. An event on an item that does not exist is rejected; with `strict` it takes all others with it.

    Raises:
        InvalidInputError: `strict`, and an item does not exist; nothing was stored.
    """
    rejected = [
        (row, f"There is no item {event.item!r}.")
        for row, event in enumerate(events)
        if event.item not in engine.catalogue
    ]
    if rejected and strict:
        raise InvalidInputError(rejected[0][1], f"/feedback/{rejected[0][0]}/item")
    bad = {row for row, _ in rejected}
    good = [event for row, event in enumerate(events) if row not in bad]
    if good:
        with engine.step("commit"):
            fresh = await engine.store.add_feedback(good)
        changed = [event for event, new in zip(good, fresh, strict=True) if new]
        _digest(engine, changed)
    return FeedbackOutcome(len(good), tuple(rejected))


def _digest(engine: Engine, events: Sequence[Event]) -> None:
    """Let new events take effect: on their users' lists now, on generated parts and counts in the background."""
    if not events:
        return
    history.forget(engine, {event.user for event in events})
    _follow(engine, dict.fromkeys(event.item for event in events))


def _follow(engine: Engine, items: Collection[str]) -> None:
    """Let counts and generated parts of items follow their feedback. An item that waits already waits once."""
    engine.stale |= dict.fromkeys(items)
    engine.background(_count(engine, items))
    engine.background(_regenerate(engine))


async def resume(engine: Engine) -> None:
    """Take up what the last run left to be regenerated."""
    left = await engine.store.get_meta(STALE)
    if left:
        _follow(engine, json.loads(left))
        await engine.store.set_meta(STALE, "")


async def _count(engine: Engine, items: Collection[str]) -> None:
    async with engine.lock(*items):  # what is counted last is noted last, and of the item that was counted
        users = await engine.store.item_counts(items)
        await engine.compute(engine.catalogue.set_popularity, {item: users.get(item, 0) for item in items})


async def _regenerate(engine: Engine) -> None:
    async with engine.lock(PARTS):
        while engine.stale and not engine.is_closing:
            item = next(iter(engine.stale))
            del engine.stale[item]
            entry = engine.catalogue.entry(item)
            untrained = engine.model.trained_row(item) is None
            if entry is not None and (untrained or entry.confidence):
                await regenerate(engine, item)


async def list_feedback(
    engine: Engine, *, limit: int, cursor: str | None, user: str | None, item: str | None
) -> Page[Event]:
    """A page of events, newest first."""
    return await engine.store.list_feedback(limit=limit, cursor=cursor, user=user, item=item)


async def delete_feedback(engine: Engine, *, user: str | None, item: str | None) -> int:
    """Remove the events of a user, of an item, or of the pair; answers how many.

    Raises:
        InvalidInputError: neither is given.
    """
    if user is None and item is None:
        raise InvalidInputError("Name a user, an item, or both.")
    users = [user] if user is not None else await engine.store.item_users(item or "", limit=EVERYTHING)
    touched = [item] if item is not None else await _items_of(engine, user or "")
    count = await engine.store.delete_feedback(user=user, item=item)
    if count:
        _undo(engine, users, touched)
    return count


async def get_user(engine: Engine, user: str) -> User:
    """What is stored of a user, in numbers.

    Raises:
        UserNotFoundError: nothing is.
    """
    found = await engine.store.get_user(user)
    if found is None:
        raise _not_found(user)
    return found


async def delete_user(engine: Engine, user: str) -> None:
    """Erase all that is stored of a user.

    Raises:
        UserNotFoundError: nothing is.
    """
    touched = await _items_of(engine, user)
    if not await engine.store.delete_user(user):
        raise _not_found(user)
    _undo(engine, [user], touched)


async def _items_of(engine: Engine, user: str) -> list[str]:
    return list(dict.fromkeys(event.item for event in await engine.store.user_history(user, limit=EVERYTHING)))


def _undo(engine: Engine, users: Iterable[str], items: Collection[str]) -> None:
    history.forget(engine, users)
    _follow(engine, items)


def _not_found(user: str) -> UserNotFoundError:
    return UserNotFoundError(f"Nothing is stored of the user {user!r}.")
