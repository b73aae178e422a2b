"""The store over SQLite or PostgreSQL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import partial
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from service.adapters.sql.changes import ChangeQueries
from service.adapters.sql.database import Work, open_database
from service.adapters.sql.feedback import FeedbackQueries
from service.adapters.sql.idempotency import IdempotencyQueries
from service.adapters.sql.imputation import ImputationErrorQueries
from service.adapters.sql.items import ItemQueries
from service.adapters.sql.meta import MetaQueries
from service.adapters.sql.models import ModelQueries
from service.adapters.sql.regeneration import RegenerationQueries
from service.adapters.sql.reviews import ReviewQueries
from service.domain import StoreUnavailableError
from service.urls import PostgresServer, SqliteFile, parse_database

MIGRATIONS = Path(__file__).parents[2] / "migrations"


class SqlStore(
    ItemQueries,
    RegenerationQueries,
    ModelQueries,
    FeedbackQueries,
    ReviewQueries,
    ImputationErrorQueries,
    IdempotencyQueries,
    ChangeQueries,
    MetaQueries,
):
    """`service.ports.Store` over SQL. Open it with `await SqlStore.open(url)`, end it with `await store.close()`.

    Besides what the port says, every method raises StoreUnavailableError where the database does not answer, and
    InvalidInputError for strings that the database cannot hold (NUL on PostgreSQL, lone surrogates everywhere).
    The queries of each subject stand in the subject's own module.
    """

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

    def under(self, model: int) -> SqlStore:
        """The same database, with what is derived under a model."""
        return SqlStore(self.database, model)

    async def _begin(self, run: Callable[[Work[None]], Awaitable[None]], work: Work[None]) -> None:
        try:
            await run(work)
        except BaseException:
            await self.close()
            raise

    def alone(self) -> AbstractAsyncContextManager[None]:
        return self.database.alone()

    async def close(self) -> None:
        await self.database.close()


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
