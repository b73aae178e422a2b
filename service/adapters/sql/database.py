"""Where SQL runs. The store writes its queries once, as functions of a SQLAlchemy `Connection`; a `Database` runs each
of them as one transaction, off the event loop.

PostgreSQL goes through asyncpg. SQLite goes through the standard driver in threads of our own: aiosqlite pays a thread
hop for every call of the driver, this pays one for the
whole transaction, and the single writer thread is at the same time the queue that SQLite's single writer needs.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

from sqlalchemy import Connection, Engine, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.exc import (
    DatabaseError,
    DBAPIError,
    InterfaceError,
    OperationalError,
    ResourceClosedError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from service.domain import InvalidInputError, StoreFullError, StoreUnavailableError
from service.metering import metered
from service.urls import PostgresServer, SqliteFile

T = TypeVar("T")
Work = Callable[[Connection], T]

SQLITE_READERS = 4
SQLITE_BUSY_MS = 15_000  # how long one process waits for another one's write
CHECKPOINT_S = 5.0  # after a write: so long the write-ahead log may hold what was erased
POSTGRES_TIMEOUT_S = 30.0
POSTGRES_CONNECT_TIMEOUT_S = 5.0
WRITERS_LOCK = 0x6C6163756E61  # "lacuna"
START_LOCK = WRITERS_LOCK + 1
RETRY_S = 0.1
_TRY_LOCK = text("SELECT pg_try_advisory_lock(:key)")
_UNLOCK = text("SELECT pg_advisory_unlock(:key)")
# SQLSTATE classes: connection, authorisation, no such database, out of resources, operator intervention, system error
UNAVAILABLE = {"08", "28", "3D", "53", "57", "58"}
READ_ONLY_SERVER = "25006"
DISK_FULL = "53100"


class RefusedStatementError(Exception):
    """A statement that the database refuses, which is a defect: says why, and no value that is stored or was to be."""


class Database(Protocol):
    """Runs functions of a connection, each as one transaction."""

    async def read(self, work: Work[T]) -> T:
        """Run queries on one consistent snapshot; never waits for writers."""

    async def write(self, work: Work[T]) -> T:
        """Run queries alone among writers, and commit."""

    def alone(self) -> AbstractAsyncContextManager[None]:
        """Be the only process over this database that is inside, whatever others read and write meanwhile."""

    async def close(self) -> None:
        """Finish what runs and release connections."""


def open_database(address: SqliteFile | PostgresServer, *, existing: bool = False) -> Database:
    """The database at an address; with `existing` nothing is created there, and a SQLite file is only read.

    Raises:
        StoreUnavailableError: the SQLite file's folder cannot be made.
    """
    if isinstance(address, SqliteFile):
        return SqliteDatabase(address.path, existing=existing)
    return PostgresDatabase(address)


class SqliteDatabase:
    """One writer thread with one connection, and some reader threads: in WAL mode readers never wait."""

    def __init__(self, path: Path, *, existing: bool = False) -> None:
        self._path = path
        self._existing = existing
        if not existing:
            with self._errors():
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                with suppress(OSError):  # which SQLite meets again, and says so
                    path.touch(mode=0o600)  # its other files are made alike
        open_engine = partial(_sqlite_engine, path, existing=existing)
        self._opened: tuple[int, int] | None = None
        self._writer = open_engine(begin="BEGIN IMMEDIATE", connections=1)
        event.listen(self._writer, "connect", self._remember)
        self._reader = open_engine(begin="BEGIN", connections=SQLITE_READERS)
        self._lock_file = path.parent / f"{path.name}-lock"
        self._write_thread = ThreadPoolExecutor(1, "sqlite-writer")
        self._read_threads = ThreadPoolExecutor(SQLITE_READERS, "sqlite-reader")
        self._checkpoint: asyncio.TimerHandle | None = None
        self._closed = False

    async def read(self, work: Work[T]) -> T:
        return await self._run(self._read_threads, self._reader, work)

    async def write(self, work: Work[T]) -> T:
        try:
            return await self._run(self._write_thread, self._writer, partial(self._in_place, work))
        finally:
            self._checkpoint_later()

    def _checkpoint_later(self) -> None:
        """Empty the write-ahead log soon: SQLite itself only writes over it from its beginning, some day."""
        if self._checkpoint is None and not (self._closed or self._existing):
            loop = asyncio.get_running_loop()
            self._checkpoint = loop.call_later(CHECKPOINT_S, lambda: asyncio.ensure_future(self._checkpoint_now()))

    async def _checkpoint_now(self) -> None:
        self._checkpoint = None
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        if not await loop.run_in_executor(self._write_thread, _truncate_log, self._writer):
            self._checkpoint_later()

    def _remember(self, _connection: object, _record: object) -> None:
        self._opened = _identity(self._path)

    def _in_place(self, work: Work[T], connection: Connection) -> T:
        # SQLite goes on writing into a file that was deleted or replaced, and what it wrote is gone with the process.
        done = work(connection)
        if _identity(self._path) != self._opened:
            raise StoreUnavailableError("The database's file was taken away; the service has to be started anew.")
        return done

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        with self._errors():
            file = os.fdopen(os.open(self._lock_file, os.O_WRONLY | os.O_CREAT, 0o600), "w")
        with file:  # closing it, or dying, releases the lock
            while not _locked(file):
                await asyncio.sleep(RETRY_S)
            yield

    async def _run(self, threads: ThreadPoolExecutor, engine: Engine, work: Work[T]) -> T:
        if self._closed:
            raise StoreUnavailableError("The database was closed.")
        with self._errors():
            return await asyncio.get_running_loop().run_in_executor(
                threads, partial(metered(_transaction), engine, work)
            )

    async def close(self) -> None:
        self._closed = True
        if self._checkpoint is not None:
            self._checkpoint.cancel()
        for threads, engine in ((self._read_threads, self._reader), (self._write_thread, self._writer)):
            await asyncio.to_thread(threads.shutdown)
            engine.dispose()

    def _errors(self) -> AbstractContextManager[None]:
        return _domain_errors(self._reason)

    def _reason(self, error: Exception) -> str:
        code = getattr(getattr(error, "orig", None), "sqlite_errorcode", 0)
        unopened = code & 0xFF == sqlite3.SQLITE_CANTOPEN
        return (_why_not_opened(self._path, existing=self._existing) if unopened else "") or reason_of(error)


class PostgresDatabase:
    """PostgreSQL, with one writer at a time over all processes."""

    def __init__(self, server: PostgresServer) -> None:
        self._engine: AsyncEngine = create_async_engine(
            server.url,
            pool_size=10,
            max_overflow=10,
            pool_timeout=POSTGRES_TIMEOUT_S,
            hide_parameters=True,
            pool_pre_ping=True,  # after a restart of the server the first request must not pay for dead connections
            connect_args={
                **server.arguments,
                "timeout": POSTGRES_CONNECT_TIMEOUT_S,
                "command_timeout": POSTGRES_TIMEOUT_S,
            },
        )
        self._reader = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._closed = False

    async def read(self, work: Work[T]) -> T:
        return await self._run(self._reader, work)

    async def write(self, work: Work[T]) -> T:
        return await self._run(self._engine, partial(_one_at_a_time, work))

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        connection = self._engine.execution_options(isolation_level="AUTOCOMMIT").connect()
        with _domain_errors():
            await connection.start()
            while not (await connection.execute(_TRY_LOCK, {"key": START_LOCK})).scalar_one():
                await asyncio.sleep(RETRY_S)
        try:
            yield
        finally:
            with _domain_errors():
                await connection.execute(_UNLOCK, {"key": START_LOCK})
                await connection.close()

    async def _run(self, engine: AsyncEngine, work: Work[T]) -> T:
        if self._closed:
            raise StoreUnavailableError("The database was closed.")
        with _domain_errors():
            async with engine.begin() as connection:
                return await connection.run_sync(work)

    async def close(self) -> None:
        self._closed = True
        await self._engine.dispose()


def insert_new(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """`INSERT` that skips rows which are there already."""
    return _insert_new(connection.dialect.name, table)


@cache
def _insert_new(dialect: str, table: Table) -> sqlite.Insert | postgresql.Insert:
    if dialect == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


def upsert(connection: Connection, table: Table, row: dict[str, Any]) -> None:
    """Insert a row, or replace the one with the same primary key."""
    keys = [column.name for column in table.primary_key.columns]
    values = {name: value for name, value in row.items() if not table.c[name].primary_key}
    if connection.dialect.name == "sqlite":
        connection.execute(sqlite.insert(table).values(row).on_conflict_do_update(index_elements=keys, set_=values))
    else:
        connection.execute(postgresql.insert(table).values(row).on_conflict_do_update(index_elements=keys, set_=values))


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _one_at_a_time(work: Work[T], connection: Connection) -> T:
    # A sequence hands out the change log's positions before commit, so two writers could commit them in the wrong
    # order and a follower that has seen the higher one would never look for the lower. The lock, held until commit,
    # makes position order and commit order the same. Taken before everything else, it also rules out deadlocks
    # between writers and lets a version that was read be relied on until commit.
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": WRITERS_LOCK})
    return work(connection)


def _transaction(engine: Engine, work: Work[T]) -> T:
    with engine.begin() as connection:
        return work(connection)


def _truncate_log(engine: Engine) -> bool:
    """Move the write-ahead log into the database and empty it; False where a reader is in the way."""
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 0")  # nobody waits for this
        busy, *_ = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        cursor.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_MS}")
    except sqlite3.Error:  # such as a full disk, which the next write meets and tells
        connection.invalidate()
        return False
    finally:
        connection.close()
    return not busy


def _sqlite_engine(path: Path, *, existing: bool, begin: str, connections: int) -> Engine:
    new = URL.create("sqlite", database=str(path))
    old = URL.create("sqlite", database=path.absolute().as_uri(), query={"mode": "rw", "uri": "true"})
    engine = create_engine(
        old if existing else new,
        connect_args={"check_same_thread": False, "timeout": SQLITE_BUSY_MS / 1000},
        hide_parameters=True,
        pool_size=connections,
        max_overflow=0,
    )

    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver opens no transactions of its own; `start` does
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_MS}")
        if existing:
            cursor.execute("PRAGMA query_only = ON")
        else:
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = FULL")  # an answered write outlives a power cut; NORMAL only a crash
            cursor.execute("PRAGMA foreign_keys = ON")
            cursor.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten with zeros
        cursor.close()

    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", configure)
    event.listen(engine, "begin", start)
    return engine


def reason_of(error: Exception) -> str:
    """What a driver says went wrong, in its own words and without the statement that it happened in."""
    said: BaseException = (error.orig if isinstance(error, DBAPIError) else None) or error
    said = said.__cause__ or said  # SQLAlchemy wraps what asyncpg raises
    if isinstance(said, TimeoutError):
        return "it does not answer in time"
    if isinstance(said, OSError) and said.strerror:
        return f"{said.strerror}: {said.filename}" if said.filename else said.strerror
    # PostgreSQL's details, which asyncpg adds when an error becomes text, quote what is stored.
    is_first_alone = isinstance(said, SQLAlchemyError) or hasattr(said, "detail")
    text = str(said.args[0]) if is_first_alone and said.args else str(said)
    return " ".join(text.split()) or type(said).__name__


def _why_not_opened(path: Path, *, existing: bool) -> str:
    """What SQLite means by "unable to open database file", where that shows."""
    place = path
    try:
        path.parent.stat()
        if stat.S_ISDIR(path.stat().st_mode):
            return "it is a directory"
    except FileNotFoundError:
        place = path.parent
        if not place.exists():
            return "its folder does not exist"
        if existing:
            return "it does not exist"
    except OSError as error:
        return reason_of(error)
    return "" if os.access(place, os.R_OK | os.W_OK, effective_ids=True) else f"permission denied: {place}"


@contextmanager
def _domain_errors(reason: Callable[[Exception], str] = reason_of) -> Iterator[None]:
    """Turn what drivers raise into the service's errors; the rest is a defect and passes."""
    try:
        yield
    except UnicodeEncodeError:
        raise InvalidInputError("text must be valid Unicode, without lone surrogates") from None
    except DBAPIError as error:
        if _is_about_data(error):
            raise InvalidInputError("text must not contain NUL characters or lone surrogates") from error
        if _is_about_room(error):
            raise StoreFullError("The database has no room for this write.", reason(error)) from error
        if _is_about_connection(error):
            raise StoreUnavailableError("The database does not answer.", reason(error)) from error
        said = RefusedStatementError(f"{type(error).__name__}: {reason(error)}")
        raise said.with_traceback(error.__traceback__) from None
    except (OSError, PoolTimeoutError, ResourceClosedError) as error:
        raise StoreUnavailableError("The database does not answer.", reason(error)) from error


def _is_about_data(error: DBAPIError) -> bool:
    return _sqlstate(error).startswith("22")


def _is_about_room(error: DBAPIError) -> bool:
    return _sqlstate(error) == DISK_FULL or getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _is_about_connection(error: DBAPIError) -> bool:
    return (
        error.connection_invalidated
        or isinstance(error, (OperationalError, InterfaceError))
        or type(error) is DatabaseError  # SQLite on a file that is damaged or no database; the subclasses are defects
        or _sqlstate(error)[:2] in UNAVAILABLE
        or _sqlstate(error) == READ_ONLY_SERVER
    )


def _sqlstate(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", None) or "")
