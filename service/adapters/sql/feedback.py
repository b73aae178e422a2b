"""Feedback and users."""

from __future__ import annotations

import hashlib
import hmac
import random
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Subquery,
    bindparam,
    case,
    delete,
    func,
    select,
    tuple_,
    update,
)

from models.feedback import EVENT_TYPES, NEGATIVE, RATED, Interaction
from service.adapters.sql.changes import log
from service.adapters.sql.cursors import decode_cursor, decode_number, encode_cursor
from service.adapters.sql.database import insert_new
from service.adapters.sql.idempotency import keep_answer
from service.adapters.sql.meta import get_setting, set_setting
from service.adapters.sql.queries import CHOSEN, Queries, chunks, item_rows, pairs, reads, writes
from service.adapters.sql.regeneration import enqueue, later_rows
from service.adapters.sql.tables import changes, feedback, items, review_vectors
from service.domain import Event, InvalidInputError, Page, User
from service.ports import Committed, EventResult, Keep

CURSOR = "feedback"
DRAWN = 8  # events for each user of a sample
SECRET = "erasure secret"  # the setting that digests of erased ids are made with
USER_KINDS = ("feedback", "feedback-deleted", "user-deleted")
YEAR_ONE = datetime.min.replace(tzinfo=UTC)
EVENT_COLUMNS = (
    feedback.c.id,
    feedback.c.user_id,
    items.c.id.label("item"),
    feedback.c.type,
    feedback.c.timestamp,
    feedback.c.value,
    feedback.c.text,
    feedback.c.recommendation_id,
)
Key = tuple[str, int, str, datetime]  # what tells an event from every other
_MET_SINCE = (
    select(feedback.c.item_row)
    .where(feedback.c.user_id == bindparam("user"), feedback.c.timestamp >= bindparam("moment"))
    .distinct()
)
_KEY = (feedback.c.user_id, feedback.c.item_row, feedback.c.type, feedback.c.timestamp)


class FeedbackQueries(Queries):
    """Events, and the users and items that they belong to."""

    @writes
    def add_feedback(
        self,
        connection: Connection,
        events: Sequence[Event],
        *,
        strict: bool = False,
        min_rating: float | None = None,
        renew: Callable[[Collection[int]], Collection[int]] | None = None,
        keep: Keep[list[EventResult]] | None = None,
    ) -> Committed[list[EventResult]]:
        """Insert the events that are new and whose item exists, and correct those that came before with another value
        or text; says what became of each. Of events that repeat each other here, the last one counts."""
        rows = item_rows(connection, {event.item for event in events})
        results: list[EventResult] = ["unchanged" if event.item in rows else "orphan" for event in events]
        first: dict[Key, int] = {}
        values: dict[Key, dict[str, Any]] = {}
        for index, event in enumerate(events):
            if event.item in rows:
                key = _key(event, rows[event.item])
                first.setdefault(key, index)
                values[key] = _values(event, rows[event.item])
        if not first or (strict and "orphan" in results):
            return Committed(results)
        for row in connection.execute(insert_new(connection, feedback).returning(*_KEY), list(values.values())):
            results[first[row[0], row[1], row[2], row[3]]] = "new"
        repeated = {key: values[key] for key, index in first.items() if results[index] == "unchanged"}
        for key in _correct(connection, repeated):
            results[first[key]] = "replaced"
        fresh = [event for event, result in zip(events, results, strict=True) if result in ("new", "replaced")]
        touched = dict.fromkeys(event.item for event in fresh)
        positions = log(
            connection, self.model, feedback=dict.fromkeys(event.user for event in fresh), item_feedback=touched
        )
        if renew is not None and fresh:
            affected = {rows[item] for item in touched} | set(_met_later(connection, fresh, rows, min_rating))
            enqueue(connection, self.model, sorted(renew(affected)), positions.stop - 1)
        keep_answer(connection, keep, results)
        return Committed(results, positions)

    @reads
    def list_feedback(
        self,
        connection: Connection,
        *,
        limit: int,
        cursor: str | None = None,
        user: str | None = None,
        item: str | None = None,
        kind: str | None = None,
    ) -> Page[Event]:
        """A page of events, newest first."""
        query = _events().where(*_about(connection, user, item, kind)).limit(limit + 1)
        if cursor is not None:
            moment, number = decode_cursor(cursor, CURSOR, 2)
            query = query.where(tuple_(feedback.c.timestamp, feedback.c.id) < (_moment(moment), decode_number(number)))
        rows = connection.execute(query).all()
        last = rows[limit - 1] if len(rows) > limit else None
        return Page([_to_event(row) for row in rows[:limit]], None if last is None else _cursor(last))

    @writes
    def delete_feedback(
        self, connection: Connection, *, user: str | None = None, item: str | None = None, kind: str | None = None
    ) -> Committed[int]:
        """Remove the events that are of a user, of an item and of a type, as far as these are given."""
        if user is None and item is None and kind is None:
            raise InvalidInputError("name a user, an item or a type whose feedback is to be removed")
        chosen = _about(connection, user, item, kind)
        users = connection.execute(select(feedback.c.user_id).where(*chosen).distinct()).scalars().all()
        if not users:
            return Committed(0)
        touched = _items_of(connection, chosen)
        later = later_rows(connection, *chosen)
        removed = connection.execute(delete(feedback).where(*chosen)).rowcount
        positions = log(connection, self.model, feedback_deleted=sorted(users), item_feedback=touched)
        enqueue(connection, self.model, sorted({*touched.values(), *later}), positions.stop - 1)
        return Committed(removed, positions)

    @reads
    def user_items(
        self, connection: Connection, users: Collection[str], *, min_rating: float | None
    ) -> dict[str, list[Interaction]]:
        """The items of users, however many, each with the event that decides, newest first; users without any are left
        out."""
        found: dict[str, list[Interaction]] = {}
        for chunk in chunks(users):
            rows = connection.execute(_items_of_users(min_rating), {"chosen": chunk})
            for user, item, moment, interested, first in rows:
                found.setdefault(user, []).append(Interaction(item, moment, bool(interested), first))
        return found

    @reads
    def newest_users(self, connection: Connection, since: datetime, *, limit: int) -> list[str]:
        """Users with events after a moment, those with the newest first."""
        query = select(feedback.c.user_id).where(feedback.c.timestamp > since).group_by(feedback.c.user_id)
        newest = func.max(feedback.c.timestamp).desc()
        return list(connection.execute(query.order_by(newest, feedback.c.user_id).limit(limit)).scalars())

    @reads
    def item_users(self, connection: Connection, item: str, *, limit: int) -> list[str]:
        """Users with events on an item, newest first."""
        query = (
            select(feedback.c.user_id)
            .where(*_about(connection, None, item))
            .group_by(feedback.c.user_id)
            .order_by(func.max(feedback.c.timestamp).desc(), func.max(feedback.c.id).desc())
            .limit(limit)
        )
        return list(connection.execute(query).scalars())

    @reads
    def sample_users(self, connection: Connection, size: int, *, seed: int) -> list[str]:
        """Users of events that are drawn at random, each once."""
        first, last = connection.execute(select(func.min(feedback.c.id), func.max(feedback.c.id))).one()
        if first is None:
            return []
        every = range(first, last + 1)
        drawn = random.Random(seed).sample(every, min(DRAWN * size, len(every)))
        users: dict[str, None] = {}
        for chunk in chunks(drawn):
            query = select(feedback.c.id, feedback.c.user_id).where(feedback.c.id.in_(chunk))
            owners = pairs(connection.execute(query))
            users |= dict.fromkeys(owners[row] for row in chunk if row in owners)
            if len(users) >= size:
                break
        return list(users)[:size]

    @reads
    def interested_users(
        self, connection: Connection, items: Collection[str], *, limit: int, min_rating: float | None
    ) -> dict[str, list[str]]:
        """Users who are interested in items, newest first, at most so many of each; items without any are left out."""
        ids = {row: item_id for item_id, row in item_rows(connection, items).items()}
        users: dict[str, list[str]] = {}
        for chunk in chunks(ids):
            for row, user in connection.execute(_users_of_items(min_rating), {"chosen": chunk}):
                of_item = users.setdefault(ids[row], [])
                if len(of_item) < limit:
                    of_item.append(user)
        return users

    @reads
    def item_counts(
        self, connection: Connection, items: Collection[str] | None = None, *, min_rating: float | None
    ) -> dict[str, int]:
        """Number of interested users by item, of all items or of these; items without any are left out."""
        if items is None:
            return _all_counts(connection, min_rating)
        ids = {row: item_id for item_id, row in item_rows(connection, items).items()}
        counts: dict[str, int] = {}
        for chunk in chunks(ids):
            for row, users in connection.execute(_counted_of(min_rating), {"chosen": chunk}):
                counts[ids[row]] = users
        return counts

    @reads
    def get_user(self, connection: Connection, user: str) -> User | None:
        """What is stored of a user."""
        moment = feedback.c.timestamp
        query = select(func.count(), func.count(feedback.c.item_row.distinct()), func.min(moment), func.max(moment))
        events, seen, first, last = connection.execute(query.where(feedback.c.user_id == user)).one()
        return User(user, events, seen, first, last) if events else None

    @writes
    def delete_user(self, connection: Connection, user: str) -> Committed[bool]:
        """Erase all that is stored of a user, but for one `user-deleted` entry with a digest of the id, by which other
        workers forget too."""
        touched = _items_of(connection, [feedback.c.user_id == user])
        events = connection.execute(delete(feedback).where(feedback.c.user_id == user)).rowcount
        entries = connection.execute(
            delete(changes).where(changes.c.key == user, changes.c.kind.in_(USER_KINDS))
        ).rowcount
        if not (events or entries):
            return Committed(False)
        positions = log(
            connection, self.model, user_deleted=[digest_of(_secret(connection), user)], item_feedback=touched
        )
        enqueue(connection, self.model, touched.values(), positions.stop - 1)
        return Committed(events > 0, positions)

    @reads
    def erased_users(self, connection: Connection, digests: Collection[str], users: Collection[str]) -> list[str]:
        """Those of some users whom `user-deleted` entries of the change log are about."""
        secret = bytes.fromhex(get_setting(connection, SECRET) or "")
        return [user for user in users if digest_of(secret, user) in digests]


def digest_of(secret: bytes, user: str) -> str:
    """What stands for an erased user: an HMAC-SHA256 of the id, which without the secret cannot be tried for."""
    return hmac.new(secret, user.encode(), hashlib.sha256).hexdigest()


def _secret(connection: Connection) -> bytes:
    """The secret of this database, made when it is first needed."""
    secret = get_setting(connection, SECRET)
    if secret is None:
        secret = secrets.token_hex(32)
        set_setting(connection, SECRET, secret)
    return bytes.fromhex(secret)


def _correct(connection: Connection, values: Mapping[Key, Mapping[str, Any]]) -> list[Key]:
    """Replace the value and text of stored events where they differ; which ones did."""
    corrected: dict[int, Key] = {}
    for keys in chunks(values):
        stored = select(feedback.c.id, *_KEY, feedback.c.value, feedback.c.text).where(tuple_(*_KEY).in_(keys))
        for number, *key, value, text in connection.execute(stored):
            place = (key[0], key[1], key[2], key[3])
            if (value, text) != (values[place]["value"], values[place]["text"]):
                corrected[number] = place
    if corrected:
        change = update(feedback).where(feedback.c.id == bindparam("number"))
        change = change.values(value=bindparam("stars"), text=bindparam("words"))
        connection.execute(
            change,
            [
                {"number": number, "stars": values[key]["value"], "words": values[key]["text"]}
                for number, key in corrected.items()
            ],
        )
        for numbers in chunks(corrected):
            connection.execute(delete(review_vectors).where(review_vectors.c.feedback_id.in_(numbers)))
    return list(corrected.values())


def _met_later(
    connection: Connection, events: Sequence[Event], rows: Mapping[str, int], min_rating: float | None
) -> list[int]:
    """Rows of the items that users of new events have met no earlier than what they are interested in by these, or no
    longer are: from the first event of a pair on, where the new one is the first, or any of them is against."""
    fresh: dict[tuple[str, int], datetime] = {}
    for event in events:
        pair = (event.user, rows[event.item])
        fresh[pair] = min(fresh.get(pair, event.timestamp), event.timestamp)
    since: dict[str, datetime] = {}
    for chunk in chunks(fresh):
        for user, row, first, was_against in connection.execute(_firsts(min_rating), {"chosen": chunk}):
            if was_against or fresh[user, row] <= first:
                since[user] = min(since.get(user, first), first)
    later: set[int] = set()
    for user, moment in since.items():
        later.update(connection.execute(_MET_SINCE, {"user": user, "moment": moment}).scalars())
    return list(later)


def events_after(connection: Connection, number: int, limit: int) -> tuple[list[Event], int]:
    """The next events in the order in which they were stored, and the number to go on from."""
    query = select(*EVENT_COLUMNS).join(items, items.c.row_id == feedback.c.item_row)
    rows = connection.execute(query.where(feedback.c.id > number).order_by(feedback.c.id).limit(limit)).all()
    return [_to_event(row) for row in rows], rows[-1].id if rows else number


def _all_counts(connection: Connection, min_rating: float | None) -> dict[str, int]:
    counted = _counted(min_rating).subquery()
    query = select(items.c.id, counted.c.users).join(counted, counted.c.item_row == items.c.row_id)
    return pairs(connection.execute(query))


# Built once for each `min_rating`, of which a service has one: to build such a statement takes longer than to run it.


@cache
def _items_of_users(min_rating: float | None) -> Select[Any]:
    newest = _deciding(min_rating, feedback.c.user_id.in_(CHOSEN))
    columns = (newest.c.user_id, items.c.id, newest.c.timestamp, newest.c.interested, newest.c.first)
    query = select(*columns).join(items, items.c.row_id == newest.c.item_row)
    return query.order_by(newest.c.timestamp.desc(), newest.c.id.desc())


@cache
def _users_of_items(min_rating: float | None) -> Select[Any]:
    newest = _deciding(min_rating, feedback.c.item_row.in_(CHOSEN))
    query = select(newest.c.item_row, newest.c.user_id).where(newest.c.interested)
    return query.order_by(newest.c.item_row, newest.c.timestamp.desc(), newest.c.user_id)


@cache
def _firsts(min_rating: float | None) -> Select[Any]:
    """Of some pairs of user and item the first event, and whether any is against."""
    pair = (feedback.c.user_id, feedback.c.item_row)
    against = func.max(case((_shows_interest(min_rating), 0), else_=1))
    query = select(*pair, func.min(feedback.c.timestamp), against)
    return query.where(tuple_(*pair).in_(CHOSEN)).group_by(*pair)


@cache
def _counted_of(min_rating: float | None) -> Select[Any]:
    return _counted(min_rating, feedback.c.item_row.in_(CHOSEN))


def _counted(min_rating: float | None, *chosen: ColumnElement[bool]) -> Select[Any]:
    newest = _deciding(min_rating, *chosen)
    counted = select(newest.c.item_row, func.count().label("users")).where(newest.c.interested)
    return counted.group_by(newest.c.item_row)


def _deciding(min_rating: float | None, *chosen: ColumnElement[bool]) -> Subquery:
    """Of each (user, item) pair the event that decides, and whether it shows interest (`models.feedback`)."""
    rank = case({name: number for number, name in enumerate(EVENT_TYPES)}, value=feedback.c.type)
    newest_first = (feedback.c.timestamp.desc(), rank.desc())
    pair = (feedback.c.user_id, feedback.c.item_row)
    place = func.row_number().over(partition_by=pair, order_by=newest_first)
    numbered = select(
        feedback.c.id,
        feedback.c.user_id,
        feedback.c.item_row,
        feedback.c.timestamp,
        func.min(feedback.c.timestamp).over(partition_by=pair).label("first"),
        _shows_interest(min_rating).label("interested"),
        place.label("place"),
    ).where(*chosen)
    every = numbered.subquery()
    return select(every).where(every.c.place == 1).subquery()


def _shows_interest(min_rating: float | None) -> ColumnElement[bool]:
    """`models.feedback.shows_interest` as SQL; a test compares the two."""
    against: ColumnElement[bool] = feedback.c.type.in_(NEGATIVE)
    if min_rating is not None:
        against = against | feedback.c.type.in_(RATED) & feedback.c.value.is_not(None) & (feedback.c.value < min_rating)
    return ~against


def _items_of(connection: Connection, chosen: Sequence[ColumnElement[bool]]) -> dict[str, int]:
    """The items of some events, with their rows."""
    rows = select(feedback.c.item_row).where(*chosen)
    query = select(items.c.id, items.c.row_id).where(items.c.row_id.in_(rows)).order_by(items.c.id)
    return pairs(connection.execute(query))


def _events() -> Select[Any]:
    newest_first = (feedback.c.timestamp.desc(), feedback.c.id.desc())
    return select(*EVENT_COLUMNS).join(items, items.c.row_id == feedback.c.item_row).order_by(*newest_first)


def _about(
    connection: Connection, user: str | None, item: str | None, kind: str | None = None
) -> list[ColumnElement[bool]]:
    chosen: list[ColumnElement[bool]] = []
    if user is not None:
        chosen.append(feedback.c.user_id == user)
    if item is not None:
        chosen.append(feedback.c.item_row == item_rows(connection, [item]).get(item, -1))
    if kind is not None:
        chosen.append(feedback.c.type == kind)
    return chosen


def _key(event: Event, row: int) -> Key:
    return event.user, row, event.type, event.timestamp


def _values(event: Event, row: int) -> dict[str, Any]:
    return {
        "user_id": event.user,
        "item_row": row,
        "type": event.type,
        "timestamp": event.timestamp,
        "value": event.value,
        "text": event.text,
        "recommendation_id": event.recommendation_id,
    }


def _to_event(row: Sequence[Any]) -> Event:
    return Event(*row[1:])  # EVENT_COLUMNS after the id are in the order of Event's fields


def _cursor(row: Row[Any]) -> str:
    return encode_cursor(CURSOR, str((row.timestamp - YEAR_ONE) // timedelta(microseconds=1)), str(row.id))


def _moment(part: str) -> datetime:
    try:
        return YEAR_ONE + timedelta(microseconds=decode_number(part))
    except OverflowError:
        raise InvalidInputError("the cursor is not one that this list handed out", "/cursor") from None
