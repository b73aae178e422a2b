"""Settings of the service itself, and whether the database answers."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, select

from service.adapters.sql.database import upsert
from service.adapters.sql.queries import Queries, reads, writes
from service.adapters.sql.tables import meta

_SETTING = select(meta.c.value).where(meta.c.key == bindparam("name"))


class MetaQueries(Queries):
    """Stored settings, by key."""

    @reads
    def ping(self, connection: Connection) -> None:
        """Whether the database answers."""
        connection.execute(select(1))

    @reads
    def get_meta(self, connection: Connection, key: str) -> str | None:
        """A stored setting."""
        return get_setting(connection, key)

    @writes
    def set_meta(self, connection: Connection, key: str, value: str) -> None:
        """Store a setting."""
        set_setting(connection, key, value)


def get_setting(connection: Connection, key: str) -> str | None:
    """A stored setting."""
    return connection.execute(_SETTING, {"name": key}).scalar_one_or_none()


def set_setting(connection: Connection, key: str, value: str) -> None:
    """Store a setting."""
    upsert(connection, meta, {"key": key, "value": value})
