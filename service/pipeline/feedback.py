"""Feedback in and out; new feedback reaches its users' lists at once and generated parts right after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from service.domain import Event, FeedbackOutcome, InvalidInputError, Page, User, UserNotFoundError
from service.pipeline import history
from service.pipeline.engine import Engine
from service.pipeline.ingest import regenerate


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
    engine.catalogue.add_popularity(Counter(item for _, item in {(event.user, event.item) for event in events}))
    engine.background(_regenerate(engine, dict.fromkeys(event.item for event in events)))


async def _regenerate(engine: Engine, items: Iterable[str]) -> None:
    for item in items:
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
    users = [user] if user is not None else await engine.store.item_users(item or "", limit=1_000_000)
    touched = await _items_of(engine, [user]) if user is not None else [item or ""]
    count = await engine.store.delete_feedback(user=user, item=item)
    if count:
        await _undo(engine, users, [one for one in touched if item is None or one == item])
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
    touched = await _items_of(engine, [user])
    if not await engine.store.delete_user(user):
        raise _not_found(user)
    await _undo(engine, [user], touched)


async def _items_of(engine: Engine, users: Iterable[str]) -> list[str]:
    found: dict[str, None] = {}
    for user in users:
        found |= dict.fromkeys((await history.history(engine, user)).seen)
    return list(found)


async def _undo(engine: Engine, users: Iterable[str], items: Sequence[str]) -> None:
    history.forget(engine, users)
    engine.catalogue.add_popularity(dict.fromkeys(items, -1))
    engine.background(_regenerate(engine, items))


def _not_found(user: str) -> UserNotFoundError:
    return UserNotFoundError(f"Nothing is stored of the user {user!r}.")
