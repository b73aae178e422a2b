"""The change log, by which workers follow each other's writes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from sqlalchemy import Connection, bindparam, delete, func, insert, select

from service.adapters.sql.idempotency import trim_keys
from service.adapters.sql.meta import get_setting, set_setting
from service.adapters.sql.queries import Queries, reads, writes
from service.adapters.sql.tables import changes
from service.domain import ChangesLostError
from service.ports import Change

TRIMMED = "changes trimmed"  # the setting that holds the highest position that was trimmed from the change log
_ADD_CHANGES = insert(changes).returning(changes.c.position)
_NEWEST = select(func.max(changes.c.position))
_CHANGES = (
    select(changes.c.position, changes.c.kind, changes.c.key, changes.c.at, changes.c.model)
    .where(changes.c.position > bindparam("since"))
    .order_by(changes.c.position)
    .limit(bindparam("most"))
)


class ChangeQueries(Queries):
    """Entries of the change log, by position."""

    @reads
    def changes(self, connection: Connection, since: int, *, limit: int = 1000) -> list[Change]:
        """Entries after a position, in order. Raises ChangesLostError where some of them have been trimmed."""
        rows = connection.execute(_CHANGES, {"since": since, "most": limit})
        entries = [Change(*row) for row in rows]
        if int(get_setting(connection, TRIMMED) or 0) > since:
            raise ChangesLostError("The change log has been trimmed beyond this position.")
        if not entries and newest_position(connection) < since:
            raise ChangesLostError("The change log ends before this position: the database is another one by now.")
        return entries

    @reads
    def last_change(self, connection: Connection) -> int:
        """The newest position, 0 for an empty log."""
        return newest_position(connection)

    @writes
    def trim_changes(self, connection: Connection, before: datetime) -> int:
        """Remove entries, and idempotency keys, older than a moment; answers how many entries."""
        trim_keys(connection, before)
        # The newest entry stays, so that the log still tells its position.
        old = select(func.max(changes.c.position)).where(
            changes.c.at < before, changes.c.position < newest_position(connection)
        )
        bound = connection.execute(old).scalar_one()
        if bound is None:
            return 0
        removed = connection.execute(delete(changes).where(changes.c.position <= bound)).rowcount
        set_setting(connection, TRIMMED, str(bound))
        return removed


def log(connection: Connection, model: int, **keys: Iterable[str]) -> range:
    """Append to the change log, one entry a key under its kind (`item_deleted` is the kind `item-deleted`), and the
    model that it is written under; answers the positions. There is one writer at a time, so they are consecutive."""
    now = datetime.now(UTC)
    rows = [
        {"kind": kind.replace("_", "-"), "key": key, "at": now, "model": model}
        for kind, several in keys.items()
        for key in several
    ]
    if not rows:
        return range(0)
    positions = connection.execute(_ADD_CHANGES, rows).scalars().all()
    return range(min(positions), max(positions) + 1)


def newest_position(connection: Connection) -> int:
    """The newest position, 0 for an empty log."""
    return connection.execute(_NEWEST).scalar_one() or 0
