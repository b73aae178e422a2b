"""Feedback in and out; new feedback reaches its users' lists at once and generated parts right after."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from service.domain import Event, FeedbackOutcome, InvalidInputError, Page, User, UserNotFoundError
from service.pipeline import documents, follow, history
from service.pipeline.engine import Engine
from service.pipeline.ingest import follows_feedback
from service.ports import EventResult, Keep


async def add_feedback(
    engine: Engine, events: Sequence[Event], *, strict: bool, kept: Keep[FeedbackOutcome] | None = None
) -> FeedbackOutcome:
    """Store events. An event on an item that does not exist is rejected; with `strict` it takes all others with it.
    `kept` is how the answer is kept under an idempotency key.

    Raises:
        InvalidInputError: `strict`, and an item does not exist; nothing was stored.
    """
    if not events:
        return FeedbackOutcome(0, ())
    renew = {event.item for event in events if follows_feedback(engine, event.item)}
    keep: Keep[list[EventResult]] | None = None
    if kept is not None:
        keep = Keep(kept.key, lambda found: kept.answer(_outcome(events, found)))
    with engine.step("commit"):
        done = await engine.store.add_feedback(events, strict=strict, renew=renew, keep=keep)
    results = list(zip(events, done.value, strict=True))
    outcome = _outcome(events, done.value)
    if outcome.rejected and strict:
        row, detail = outcome.rejected[0]
        raise InvalidInputError(detail, f"/feedback/{row}/item")
    fresh = [event for event, result in results if result in ("new", "replaced")]
    users, items = {event.user for event in fresh}, {event.item for event in fresh}
    documents.forget(engine, items)
    _follow(engine, users, [event.item for event in fresh if event.item in renew])
    documents.follow(engine, users, items)
    engine.own(done.positions)
    return outcome


def _outcome(events: Sequence[Event], results: Sequence[EventResult]) -> FeedbackOutcome:
    rejected = [
        (row, f"There is no item {event.item!r}.")
        for row, (event, result) in enumerate(zip(events, results, strict=True))
        if result == "orphan"
    ]
    return FeedbackOutcome(len(events) - len(rejected), tuple(rejected))


def _follow(engine: Engine, users: Iterable[str], items: Iterable[str]) -> None:
    """Let changed feedback take effect: on its users' lists now, on generated parts in the background, and on the
    items' counts once the change log is followed."""
    history.forget(engine, users)
    follow.await_turn(engine, items)


async def list_feedback(
    engine: Engine, *, limit: int, cursor: str | None, user: str | None, item: str | None, kind: str | None
) -> Page[Event]:
    """A page of events, newest first; `kind` is their type."""
    return await engine.store.list_feedback(limit=limit, cursor=cursor, user=user, item=item, kind=kind)


async def delete_feedback(engine: Engine, *, user: str | None, item: str | None, kind: str | None) -> int:
    """Remove the events that are of a user, of an item and of a type, as far as these are given; answers how many.

    Raises:
        InvalidInputError: none is given.
    """
    if user is None and item is None and kind is None:
        raise InvalidInputError("Name a user, an item or a type.")
    with engine.step("commit"):
        done = await engine.store.delete_feedback(user=user, item=item, kind=kind)
    if done.value:
        entries = await engine.store.changes(done.positions.start - 1, limit=len(done.positions))
        touched = [entry.key for entry in entries if entry.kind == "item-feedback"]
        documents.forget(engine, touched)
        _follow(engine, [entry.key for entry in entries if entry.kind == "feedback-deleted"], touched)
    engine.own(done.positions)
    return done.value


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
    with engine.step("commit"):
        done = await engine.store.delete_user(user)
    documents.forget(engine, touched)
    _follow(engine, [user], touched)
    engine.own(done.positions)
    if not done.value:
        raise _not_found(user)


async def _items_of(engine: Engine, user: str) -> list[str]:
    return [one.item for one in await engine.store.user_items(user, min_rating=engine.min_rating)]


def _not_found(user: str) -> UserNotFoundError:
    return UserNotFoundError(f"Nothing is stored of the user {user!r}.")
