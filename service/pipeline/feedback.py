"""Feedback in and out; new feedback reaches its users' lists at once and generated parts right after."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from service.domain import Event, FeedbackOutcome, InvalidInputError, Page, User, UserNotFoundError
from service.pipeline import regenerate
from service.pipeline.engine import Engine
from service.ports import EventResult, Keep


async def add_feedback(
    engine: Engine, events: Sequence[Event], *, strict: bool, keep: Keep[FeedbackOutcome] | None = None
) -> FeedbackOutcome:
    """Store events. An event on an item that does not exist is rejected; with `strict` it takes all others with it.
    `keep` is how the answer is kept under an idempotency key.

    Raises:
        InvalidInputError: `strict`, and an item does not exist; nothing was stored.
    """
    if not events:
        return FeedbackOutcome(0, ())
    memory, pending = engine.memory, set[int]()

    def renew(keys: Collection[int]) -> list[int]:
        chosen = regenerate.may_depend(memory.catalogue, keys)
        pending.update(chosen)
        return chosen

    keep_results: Keep[list[EventResult]] | None = None
    if keep is not None:
        answer = keep.answer
        keep_results = Keep(keep.key, lambda results: answer(_outcome(events, results)))
    with engine.runtime.step("commit"):
        added = await engine.store.add_feedback(
            events, strict=strict, min_rating=engine.active.min_rating, renew=renew, keep=keep_results
        )
    outcome = _outcome(events, added.value)
    if outcome.rejected and strict:
        row, detail = outcome.rejected[0]
        raise InvalidInputError(detail, f"/feedback/{row}/item")
    stored = [event for event, result in zip(events, added.value, strict=True) if result in ("new", "replaced")]
    users, items = {event.user for event in stored}, {event.item for event in stored}
    _take_effect(engine, users, items)
    if memory.profiles is not None:
        memory.profiles.encode_soon(users, items)
    engine.runtime.applied(added.positions)
    regenerate.enqueue(engine, memory.catalogue.ids(pending))
    return outcome


def _outcome(events: Sequence[Event], results: Sequence[EventResult]) -> FeedbackOutcome:
    rejected = [
        (row, f"There is no item {event.item!r}.")
        for row, (event, result) in enumerate(zip(events, results, strict=True))
        if result == "orphan"
    ]
    return FeedbackOutcome(len(events) - len(rejected), tuple(rejected))


def _take_effect(engine: Engine, users: Collection[str], items: Collection[str]) -> None:
    """Let changed feedback take effect on its users' lists and on ratings; on what is stored of items it does in the
    background, and on their counts once the change log is followed."""
    engine.memory.forget_items(items)
    engine.memory.forget_users(users)


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
    with engine.runtime.step("commit"):
        deleted = await engine.store.delete_feedback(user=user, item=item, kind=kind)
    if deleted.value:
        entries = await engine.store.changes(deleted.positions.start - 1, limit=len(deleted.positions))
        items = [entry.key for entry in entries if entry.kind == "item-feedback"]
        _take_effect(engine, [entry.key for entry in entries if entry.kind == "feedback-deleted"], items)
    engine.runtime.applied(deleted.positions)
    regenerate.look_up(engine)
    return deleted.value


async def get_user(engine: Engine, user: str) -> User:
    """What is stored of a user, in numbers.

    Raises:
        UserNotFoundError: nothing is.
    """
    stored = await engine.store.get_user(user)
    if stored is None:
        raise _not_found(user)
    return stored


async def delete_user(engine: Engine, user: str) -> None:
    """Erase all that is stored of a user.

    Raises:
        UserNotFoundError: nothing is.
    """
    interactions = await engine.store.user_items([user], min_rating=engine.active.min_rating)
    items = [interaction.item for interaction in interactions.get(user, ())]
    with engine.runtime.step("commit"):
        deleted = await engine.store.delete_user(user)
    _take_effect(engine, [user], items)
    engine.runtime.applied(deleted.positions)
    regenerate.look_up(engine)
    if not deleted.value:
        raise _not_found(user)


def _not_found(user: str) -> UserNotFoundError:
    return UserNotFoundError(f"Nothing is stored of the user {user!r}.")
