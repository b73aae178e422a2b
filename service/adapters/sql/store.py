"""The store over SQLite or PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, delete, func, insert, select

from models.feedback import Interaction
from service.adapters.sql import feedback as sql_feedback
from service.adapters.sql import idempotency as sql_idempotency
from service.adapters.sql import items as sql_items
from service.adapters.sql import reviews as sql_reviews
from service.adapters.sql.database import Database, Work, open_database, upsert
from service.adapters.sql.tables import changes, imputation_errors, meta
from service.domain import ChangesLostError, Event, Page, Review, StoredItem, StoreUnavailableError, User, Vector
from service.ports import (
    Answer,
    Change,
    Claim,
    Committed,
    EventResult,
    GeneratedWrite,
    ItemWrite,
    Keep,
    Media,
    Side,
    Stored,
)
from service.urls import PostgresServer, SqliteFile, parse_database

T = TypeVar("T")
P = ParamSpec("P")
Query = Callable[Concatenate[Connection, P], T]

MIGRATIONS = Path(__file__).parents[2] / "migrations"
TRIMMED = "changes trimmed"  # the setting that holds the highest position that was trimmed from the change log


class SqlStore:
    """`service.ports.Store` over SQL. Open it with `await SqlStore.open(url)`, end it with `await store.close()`.

    Besides what the port says, every method raises StoreUnavailableError where the database does not answer, and
    InvalidInputError for strings that the database cannot hold (NUL on PostgreSQL, lone surrogates everywhere).

    Attributes:
        database: for what copies tables as they are, such as backups.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    @classmethod
    async def open(cls, url: str, *, check: Callable[[Connection], None] | None = None) -> SqlStore:
        """Connect, create or migrate the tables, and answer the store. Several processes may do so at once.

        Args:
            check: called before the tables are touched; what it raises leaves them as they are.

        Raises:
            ValueError: the URL names neither a SQLite file nor a PostgreSQL database.
            StoreUnavailableError: no answer, or a schema newer than this version's; the message names the setting.
        """

        def prepare(connection: Connection) -> None:
            if check is not None:
                check(connection)
            migrate(connection)

        address = _address(url)
        with _naming(address):
            store = cls(open_database(address))
            await store._begin(store.database.write, prepare)
        return store

    @classmethod
    async def open_existing(cls, url: str, *, older: bool = False) -> SqlStore:
        """Connect to read what is there: nothing is created or migrated, and a SQLite file is only read.

        Args:
            older: whether the tables of an older version will do.

        Raises:
            ValueError: the URL names neither a SQLite file nor a PostgreSQL database.
            StoreUnavailableError: no answer, or no tables of this version; the message names the setting.
        """
        address = _address(url)
        with _naming(address):
            store = cls(open_database(address, existing=True))
            await store._begin(store.database.read, partial(_require_schema, older=older))
        return store

    async def _begin(self, run: Callable[[Work[None]], Awaitable[None]], work: Work[None]) -> None:
        try:
            await run(work)
        except BaseException:
            await self.close()
            raise

    async def ping(self) -> None:
        await self._read(_ping)

    async def write_items(
        self, writes: Sequence[ItemWrite], media: Sequence[Media] = (), keep: Keep[Stored] | None = None
    ) -> Committed[Stored]:
        return await self._write(sql_items.write_items, writes, media, keep)

    async def get_item(self, item_id: str) -> StoredItem | None:
        return (await self.get_items([item_id])).get(item_id)

    async def get_items(self, item_ids: Sequence[str]) -> dict[str, StoredItem]:
        return await self._read(sql_items.get_items, item_ids)

    async def existing(self, item_ids: Collection[str]) -> set[str]:
        return set(await self._read(sql_items.item_rows, item_ids))

    async def list_items(
        self,
        *,
        limit: int,
        cursor: str | None = None,
        categories: Sequence[str] = (),
        missing: str | None = None,
        q: str | None = None,
    ) -> Page[StoredItem]:
        return await self._read(sql_items.list_items, limit, cursor, categories, missing, q)

    async def iter_items(self, *, batch: int = 1000) -> AsyncIterator[list[StoredItem]]:
        row = 0
        while True:
            items, row = await self._read(sql_items.items_after, row, batch)
            if not items:
                return
            yield items

    async def delete_item(self, item_id: str) -> Committed[bool]:
        return await self._write(sql_items.delete_item, item_id)

    async def save_generated(self, saves: Sequence[GeneratedWrite]) -> Committed[list[bool]]:
        return await self._write(sql_items.save_generated, saves)

    async def pending(self, items: Collection[str] | None = None, *, limit: int = 1000) -> dict[str, int]:
        return await self._read(sql_items.marks, items, limit)

    async def count_pending(self) -> int:
        return await self._read(sql_items.count_awaiting)

    async def dequeue(self, marks: Mapping[str, int]) -> None:
        await self._write(sql_items.dismiss, marks)

    async def get_media(self, sha256: str) -> Media | None:
        return await self._read(sql_items.get_media, sha256)

    async def count_items(self) -> int:
        return await self._read(sql_items.count_items)

    async def add_feedback(
        self,
        events: Sequence[Event],
        *,
        strict: bool = False,
        renew: Collection[str] = (),
        keep: Keep[list[EventResult]] | None = None,
    ) -> Committed[list[EventResult]]:
        return await self._write(sql_feedback.add_feedback, events, strict, renew, keep)

    async def list_feedback(
        self,
        *,
        limit: int,
        cursor: str | None = None,
        user: str | None = None,
        item: str | None = None,
        kind: str | None = None,
    ) -> Page[Event]:
        return await self._read(sql_feedback.list_feedback, limit, cursor, user, item, kind)

    async def delete_feedback(
        self, *, user: str | None = None, item: str | None = None, kind: str | None = None
    ) -> Committed[int]:
        return await self._write(sql_feedback.delete_feedback, user, item, kind)

    async def user_items(self, user: str, *, min_rating: float | None) -> list[Interaction]:
        return await self._read(sql_feedback.user_items, user, min_rating)

    async def item_users(self, item: str, *, limit: int) -> list[str]:
        return await self._read(sql_feedback.item_users, item, limit)

    async def interested_users(self, item: str, *, limit: int, min_rating: float | None) -> list[str]:
        return await self._read(sql_feedback.interested_users, item, limit, min_rating)

    async def item_counts(self, items: Collection[str] | None = None, *, min_rating: float | None) -> dict[str, int]:
        return await self._read(sql_feedback.item_counts, items, min_rating)

    async def documents(
        self, side: Side, keys: Collection[str], *, encoder: str, limit: int
    ) -> dict[str, list[Review]]:
        return await self._read(sql_reviews.documents, side, keys, encoder, limit)

    async def save_review_vectors(self, encoder: str, vectors: Sequence[tuple[int, int, Vector]]) -> None:
        await self._write(sql_reviews.save_vectors, encoder, vectors)

    async def get_user(self, user: str) -> User | None:
        return await self._read(sql_feedback.get_user, user)

    async def delete_user(self, user: str) -> Committed[bool]:
        return await self._write(sql_feedback.delete_user, user)

    async def changes(self, since: int, *, limit: int = 1000) -> list[Change]:
        return await self._read(_changes, since, limit)

    async def claim(self, key: str, fingerprint: str, *, lease_s: float) -> Claim:
        return await self._write(sql_idempotency.claim, key, fingerprint, lease_s)

    async def answered(self, key: str, answer: Answer) -> None:
        await self._write(sql_idempotency.answered, key, answer)

    async def release(self, key: str) -> None:
        await self._write(sql_idempotency.release, key)

    async def trim_changes(self, before: datetime) -> int:
        return await self._write(_trim_changes, before)

    async def last_change(self) -> int:
        return await self._read(_last_change)

    async def add_imputation_error(
        self, item: str, modality: str, confidence: float, cosine: float, model_version: str
    ) -> None:
        await self._write(_add_imputation_error, item, modality, confidence, cosine, model_version)

    async def imputation_errors(self) -> dict[str, tuple[int, float, float]]:
        return await self._read(_imputation_errors)

    async def get_meta(self, key: str) -> str | None:
        return await self._read(_get_meta, key)

    async def set_meta(self, key: str, value: str) -> None:
        await self._write(_set_meta, key, value)

    def alone(self) -> AbstractAsyncContextManager[None]:
        return self.database.alone()

    async def close(self) -> None:
        await self.database.close()

    async def _read(self, query: Query[P, T], *args: P.args, **options: P.kwargs) -> T:
        return await self.database.read(lambda connection: query(connection, *args, **options))

    async def _write(self, query: Query[P, T], *args: P.args, **options: P.kwargs) -> T:
        return await self.database.write(lambda connection: query(connection, *args, **options))


def _address(url: str) -> SqliteFile | PostgresServer:
    try:
        return parse_database(url)
    except ValueError as error:
        raise ValueError(f"The URL of the database {error}.") from None


@contextmanager
def _naming(address: SqliteFile | PostgresServer) -> Iterator[None]:
    """Say of a database that cannot be opened which one it is, where it was named, and why."""
    try:
        yield
    except StoreUnavailableError as error:
        reason = error.reason.rstrip(".")
        message = f"LACUNA_DATABASE_URL names {address}, which cannot be used: {reason}."
        raise type(error)(message, reason) from error


def migrate(connection: Connection, revision: str = "head") -> None:
    """Bring the tables to a version of the schema, this Lacuna's, inside the caller's transaction.

    Raises:
        StoreUnavailableError: the database's schema is newer.
    """
    _known_revision(connection)
    config = _migrations()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _require_schema(connection: Connection, *, older: bool) -> None:
    found = _known_revision(connection)
    if found is None:
        raise StoreUnavailableError("it holds no tables of Lacuna.")
    if not older and found != ScriptDirectory.from_config(_migrations()).get_current_head():
        raise StoreUnavailableError("an older Lacuna wrote it; start the service over it once, which migrates it.")


def _known_revision(connection: Connection) -> str | None:
    """The version of the schema, or None where there are no tables. Raises StoreUnavailableError: it is newer."""
    found = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(_migrations()).walk_revisions()}
    if found is not None and found not in known:
        raise StoreUnavailableError("a newer Lacuna wrote it; use that version.")
    return found


def _ping(connection: Connection) -> None:
    connection.execute(select(1))


def _changes(connection: Connection, since: int, limit: int) -> list[Change]:
    query = select(changes.c.position, changes.c.kind, changes.c.key, changes.c.at)
    rows = connection.execute(query.where(changes.c.position > since).order_by(changes.c.position).limit(limit))
    found = [Change(*row) for row in rows]
    if int(_get_meta(connection, TRIMMED) or 0) > since:
        raise ChangesLostError("The change log has been trimmed beyond this position.")
    if not found and _last_change(connection) < since:
        raise ChangesLostError("The change log ends before this position: the database is another one by now.")
    return found


def _trim_changes(connection: Connection, before: datetime) -> int:
    sql_idempotency.trim(connection, before)
    # The newest entry stays, so that the log still tells its position.
    old = select(func.max(changes.c.position)).where(
        changes.c.at < before, changes.c.position < _last_change(connection)
    )
    bound = connection.execute(old).scalar_one()
    if bound is None:
        return 0
    removed = connection.execute(delete(changes).where(changes.c.position <= bound)).rowcount
    _set_meta(connection, TRIMMED, str(bound))
    return removed


def _last_change(connection: Connection) -> int:
    return connection.execute(select(func.max(changes.c.position))).scalar_one() or 0


def _add_imputation_error(
    connection: Connection, item: str, modality: str, confidence: float, cosine: float, model_version: str
) -> None:
    row = {"item": item, "modality": modality, "confidence": float(confidence), "cosine": float(cosine)}
    connection.execute(insert(imputation_errors), {**row, "model_version": model_version, "at": datetime.now(UTC)})


def _imputation_errors(connection: Connection) -> dict[str, tuple[int, float, float]]:
    table = imputation_errors.c
    query = select(table.modality, func.count(), func.avg(table.confidence), func.avg(table.cosine))
    rows = connection.execute(query.group_by(table.modality).order_by(table.modality))
    return {modality: (pairs, confidence, cosine) for modality, pairs, confidence, cosine in rows}


def _get_meta(connection: Connection, key: str) -> str | None:
    return connection.execute(select(meta.c.value).where(meta.c.key == key)).scalar_one_or_none()


def _set_meta(connection: Connection, key: str, value: str) -> None:
    upsert(connection, meta, {"key": key, "value": value})
