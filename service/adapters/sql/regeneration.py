"""The queue of items that are pending regeneration, and the changes of features that have yet to reach other items."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Connection, bindparam, delete, func, insert, select, update

from service.adapters.sql.changes import log, newest_position
from service.adapters.sql.database import insert_new
from service.adapters.sql.queries import CHOSEN, Queries, chunks, item_rows, pairs, reads, writes
from service.adapters.sql.tables import awaiting, changes, feature_changes, feedback, items
from service.ports import Backlog, FeatureChange, Seen

_OWN = awaiting.c.model == bindparam("own")  # of the store's model
_MARK = update(awaiting).where(awaiting.c.item_row.in_(CHOSEN), _OWN).values(mark=bindparam("position"))
_DONE = delete(awaiting).where(awaiting.c.item_row == bindparam("row"), awaiting.c.mark <= bindparam("position"), _OWN)
_PENDING = select(items.c.id, awaiting.c.mark).join(items, items.c.row_id == awaiting.c.item_row).where(_OWN)
_PENDING_OF = _PENDING.where(items.c.id.in_(CHOSEN))
_ITEMS_CHANGED = select(changes.c.position, changes.c.key).where(
    changes.c.position > bindparam("since"), changes.c.kind.in_(("item", "item-deleted"))
)
_ITEMS_WRITTEN = select(changes.c.position).where(
    changes.c.position > bindparam("since"),
    (changes.c.kind == "item") | ((changes.c.kind == "item-generated") & (changes.c.model == bindparam("own"))),
)
_OWN_CHANGES = feature_changes.c.model == bindparam("own")
_UNSPREAD = select(feature_changes.c.position).where(feature_changes.c.position.in_(CHOSEN), _OWN_CHANGES)
_WAITING_ITEMS = select(func.count(), func.min(awaiting.c.at), func.max(awaiting.c.at)).where(_OWN)
_WAITING_CHANGES = select(func.count(), func.min(feature_changes.c.at), func.min(feature_changes.c.position)).where(
    _OWN_CHANGES
)


class RegenerationQueries(Queries):
    """Items that are pending regeneration, each with the position of the change log that it was enqueued for."""

    @reads
    def pending(
        self, connection: Connection, items: Collection[str] | None = None, *, limit: int = 1000
    ) -> dict[str, int]:
        """The items that are pending, of all or of these, with their positions."""
        return pending_items(connection, self.model, items, limit)

    @reads
    def backlog(self, connection: Connection) -> Backlog:
        """How much is pending, and since when."""
        count, oldest, newest = connection.execute(_WAITING_ITEMS, {"own": self.model}).one()
        changes_count, oldest_change, first_change = connection.execute(_WAITING_CHANGES, {"own": self.model}).one()
        position = newest_position(connection)
        return Backlog(count, changes_count, position, oldest, newest, oldest_change, first_change)

    @writes
    def dequeue(self, connection: Connection, positions: Mapping[str, int], seen: Seen) -> None:
        """Take items off the queue, unless they were enqueued again for a later position, or other items have
        changed."""
        if not others_changed(connection, self.model, seen):
            rows = item_rows(connection, positions.keys())
            dequeue_rows(connection, self.model, {row: positions[item_id] for item_id, row in rows.items()})

    @writes
    def enqueue_all(self, connection: Connection) -> int:
        """Enqueue every item, and log that everything is derived anew."""
        rows = connection.execute(select(items.c.row_id)).scalars().all()
        enqueue(connection, self.model, rows, log(connection, self.model, rebuild=["all"]).start)
        return len(rows)

    @reads
    def feature_changes(self, connection: Connection, *, limit: int = 1000) -> list[FeatureChange]:
        """Changes of features, the oldest first."""
        columns = feature_changes.c
        query = select(columns.position, columns.item, columns.before).where(columns.model == self.model)
        query = query.order_by(columns.position, columns.item).limit(limit)
        return [FeatureChange(position, item, bytes(before)) for position, item, before in connection.execute(query)]

    @writes
    def finish_changes(
        self,
        connection: Connection,
        positions: Collection[int],
        dependents: Collection[str],
        seen: Seen | None = None,
    ) -> dict[str, int] | None:
        """Enqueue the items that changes of features have reached, and forget these changes; None, and nothing is done,
        where any item has been written or completed since what was seen, for they may have reached it."""
        if seen is not None and _items_written(connection, self.model, seen):
            return None
        rows, position = item_rows(connection, dependents), newest_position(connection)
        enqueue(connection, self.model, rows.values(), position)
        for chunk in chunks(positions):
            done = feature_changes.c.position.in_(chunk) & (feature_changes.c.model == self.model)
            connection.execute(delete(feature_changes).where(done))
        return dict.fromkeys(rows, position)

    @reads
    def later_items(self, connection: Connection, items: Collection[str]) -> list[str]:
        """The items that any user of these has met no earlier."""
        rows = item_rows(connection, items)
        return [
            item
            for chunk in chunks(rows.values())
            for item in _ids(connection, later_rows(connection, feedback.c.item_row.in_(chunk)))
        ]


def enqueue(connection: Connection, model: int, rows: Iterable[int], position: int) -> None:
    """Enqueue items for regeneration under a model, for what the change log has at this position."""
    now = datetime.now(UTC)
    for chunk in chunks(rows):
        connection.execute(_MARK, {"chosen": chunk, "position": position, "own": model})
        new = [{"item_row": row, "model": model, "mark": position, "at": now} for row in chunk]
        connection.execute(insert_new(connection, awaiting), new)


def note_changes(connection: Connection, model: int, former: Mapping[int, tuple[str, bytes]]) -> None:
    """Note changes of items' observed features, by position in the change log, with the former ones."""
    now = datetime.now(UTC)
    rows = [
        {"position": position, "model": model, "item": item, "before": before, "at": now}
        for position, (item, before) in former.items()
    ]
    if rows:
        connection.execute(insert(feature_changes), rows)


def others_changed(connection: Connection, model: int, seen: Seen, but: Collection[str] = ()) -> bool:
    """Whether any item, `but` these, has been written or deleted since what was seen, unless what it changed has yet to
    reach others: that will be compared with what is stored now (see `finish_changes`)."""
    later = connection.execute(_ITEMS_CHANGED, {"since": seen.position})
    unseen = {position for position, key in later if position not in seen.applied and key not in but}
    for chunk in chunks(unseen):
        unseen.difference_update(connection.execute(_UNSPREAD, {"chosen": chunk, "own": model}).scalars().all())
    return bool(unseen)


def _items_written(connection: Connection, model: int, seen: Seen) -> bool:
    """Whether any item has been written or completed since what was seen."""
    later = connection.execute(_ITEMS_WRITTEN, {"since": seen.position, "own": model}).scalars()
    return any(position not in seen.applied for position in later)


def later_rows(connection: Connection, *chosen: ColumnElement[bool]) -> list[int]:
    """Rows of the items that users of some events have met no earlier than by these."""
    later = feedback.alias("later")
    query = (
        select(later.c.item_row)
        .join(feedback, (feedback.c.user_id == later.c.user_id) & (feedback.c.timestamp <= later.c.timestamp))
        .where(*chosen)
        .distinct()
    )
    return list(connection.execute(query).scalars())


def pending_items(connection: Connection, model: int, item_ids: Collection[str] | None, limit: int) -> dict[str, int]:
    """The items that are pending, of all or of these, with their positions; of all, the longest waiting first."""
    if item_ids is None:
        first = _PENDING.order_by(awaiting.c.mark, awaiting.c.item_row).limit(limit)
        return pairs(connection.execute(first, {"own": model}))
    positions: dict[str, int] = {}
    for chunk in chunks(item_ids):
        positions.update(pairs(connection.execute(_PENDING_OF, {"chosen": chunk, "own": model})))
    return positions


def dequeue_rows(connection: Connection, model: int, positions: Mapping[int, int]) -> None:
    """Take rows off the queue, unless they were enqueued again for a position after these."""
    if positions:
        done = [{"row": row, "position": position, "own": model} for row, position in positions.items()]
        connection.execute(_DONE, done)


def _ids(connection: Connection, rows: Iterable[int]) -> Iterable[str]:
    for chunk in chunks(rows):
        yield from connection.execute(select(items.c.id).where(items.c.row_id.in_(chunk))).scalars()
