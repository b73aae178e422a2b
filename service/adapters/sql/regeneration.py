"""Items whose generated parts have yet to follow their feedback."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from sqlalchemy import Connection, bindparam, delete, func, insert, select

from service.adapters.sql.queries import Queries, chunks, item_rows, pairs, reads, writes
from service.adapters.sql.tables import awaiting, items


class RegenerationQueries(Queries):
    """Items that await regeneration, each with its mark: the position in the change log of what asked for it last."""

    @reads
    def pending(
        self, connection: Connection, items: Collection[str] | None = None, *, limit: int = 1000
    ) -> dict[str, int]:
        """Marks of the items that await regeneration, the longest waiting first; of all items or of these."""
        return marks(connection, items, limit)

    @reads
    def count_pending(self, connection: Connection) -> int:
        """Number of items that await regeneration."""
        return connection.execute(select(func.count()).select_from(awaiting)).scalar_one()

    @writes
    def dequeue(self, connection: Connection, marks: Mapping[str, int]) -> None:
        """Take marks off, unless they have grown."""
        rows = item_rows(connection, marks.keys())
        unmark(connection, {row: marks[item_id] for item_id, row in rows.items()})


def mark(connection: Connection, rows: Iterable[int], position: int) -> None:
    """Let items await regeneration, for what the log says at this position."""
    for chunk in chunks(rows):
        connection.execute(delete(awaiting).where(awaiting.c.item_row.in_(chunk)))
        connection.execute(insert(awaiting), [{"item_row": row, "mark": position} for row in chunk])


def marks(connection: Connection, item_ids: Collection[str] | None, limit: int) -> dict[str, int]:
    """Marks of the items that await regeneration, the longest waiting first."""
    query = select(items.c.id, awaiting.c.mark).join(items, items.c.row_id == awaiting.c.item_row)
    if item_ids is None:
        return pairs(connection.execute(query.order_by(awaiting.c.mark, awaiting.c.item_row).limit(limit)))
    found: dict[str, int] = {}
    for chunk in chunks(item_ids):
        found.update(pairs(connection.execute(query.where(items.c.id.in_(chunk)))))
    return found


def unmark(connection: Connection, followed: Mapping[int, int]) -> None:
    """Take the marks off rows, unless they have grown beyond what was followed."""
    if followed:
        done = (awaiting.c.item_row == bindparam("row")) & (awaiting.c.mark <= bindparam("followed"))
        values = [{"row": row, "followed": position} for row, position in followed.items()]
        connection.execute(delete(awaiting).where(done), values)
