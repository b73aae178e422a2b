"""The queue of items that are pending regeneration."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from sqlalchemy import Connection, bindparam, delete, func, insert, select

from service.adapters.sql.queries import Queries, chunks, item_rows, pairs, reads, writes
from service.adapters.sql.tables import awaiting, items


class RegenerationQueries(Queries):
    """Items that are pending regeneration, each with the position of the change log that it was enqueued for."""

    @reads
    def pending(
        self, connection: Connection, items: Collection[str] | None = None, *, limit: int = 1000
    ) -> dict[str, int]:
        """The items that are pending, of all or of these, with their positions."""
        return pending_items(connection, items, limit)

    @reads
    def count_pending(self, connection: Connection) -> int:
        """Number of items that are pending regeneration."""
        return connection.execute(select(func.count()).select_from(awaiting)).scalar_one()

    @writes
    def dequeue(self, connection: Connection, positions: Mapping[str, int]) -> None:
        """Take items off the queue, unless they were enqueued again for a later position."""
        rows = item_rows(connection, positions.keys())
        dequeue_rows(connection, {row: positions[item_id] for item_id, row in rows.items()})


def enqueue(connection: Connection, rows: Iterable[int], position: int) -> None:
    """Enqueue items for regeneration, for what the change log has at this position."""
    for chunk in chunks(rows):
        connection.execute(delete(awaiting).where(awaiting.c.item_row.in_(chunk)))
        connection.execute(insert(awaiting), [{"item_row": row, "mark": position} for row in chunk])


def pending_items(connection: Connection, item_ids: Collection[str] | None, limit: int) -> dict[str, int]:
    """The items that are pending, of all or of these, with their positions; of all, the longest waiting first."""
    query = select(items.c.id, awaiting.c.mark).join(items, items.c.row_id == awaiting.c.item_row)
    if item_ids is None:
        return pairs(connection.execute(query.order_by(awaiting.c.mark, awaiting.c.item_row).limit(limit)))
    positions: dict[str, int] = {}
    for chunk in chunks(item_ids):
        positions.update(pairs(connection.execute(query.where(items.c.id.in_(chunk)))))
    return positions


def dequeue_rows(connection: Connection, positions: Mapping[int, int]) -> None:
    """Take rows off the queue, unless they were enqueued again for a position after these."""
    if positions:
        done = (awaiting.c.item_row == bindparam("row")) & (awaiting.c.mark <= bindparam("position"))
        values = [{"row": row, "position": position} for row, position in positions.items()]
        connection.execute(delete(awaiting).where(done), values)
