"""Opening a database: to read what is there changes nothing, and one that cannot be used says why."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy as sa

from service.adapters.sql.store import SqlStore, migrate
from service.domain import StoreUnavailableError
from service.urls import parse_database
from tests.conftest import POSTGRES, skip_without
from tests.contracts.stores import create, emptied, item
from tests.service.servers import Postgres, UnavailableError

OLDER = "0003"
NOBODY = 65534


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/store.db"
    return str(request.getfixturevalue("postgres_url"))


async def reason(url: str, *, existing: bool = True) -> str:
    """What is said of a database that cannot be opened, after its name."""
    opening = SqlStore.open_existing(url) if existing else SqlStore.open(url)
    with pytest.raises(StoreUnavailableError) as caught:
        await opening
    named, _, why = str(caught.value).partition(", which cannot be used: ")
    assert named == f"LACUNA_DATABASE_URL names {parse_database(url)}"
    assert "s3cret" not in str(caught.value)
    return why


# --- reading what is there -------------------------------------------------------------------------------------------


async def test_what_is_there_is_read_and_cannot_be_written(url: str) -> None:
    async with emptied(url) as store:
        await store.write_items(create(item("a")))
    store = await SqlStore.open_existing(url)
    assert await store.count_items() == 1
    if url.startswith("sqlite"):
        with pytest.raises(StoreUnavailableError):
            await store.write_items(create(item("b")))
    await store.close()


@pytest.mark.parametrize("name", ["a b%20.db", "ü#x.db", "x&mode=memory.db"])
async def test_a_sqlite_file_of_any_name(tmp_path: Path, name: str) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/{name}"
    await (await SqlStore.open(url)).close()
    await (await SqlStore.open_existing(url)).close()
    assert [file.name for file in tmp_path.iterdir()] == [name]


async def test_what_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert await reason(f"sqlite+aiosqlite:///{tmp_path}/store.db") == "it does not exist."
    assert await reason(f"sqlite+aiosqlite:///{tmp_path}/a/b/store.db") == "its folder does not exist."
    assert list(tmp_path.iterdir()) == []


async def _tables(url: str) -> list[str]:
    engine = sa.ext.asyncio.create_async_engine(url) if url.startswith("postgres") else None
    if engine is None:
        with sqlite3.connect(url.removeprefix("sqlite+aiosqlite:///")) as connection:
            found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        connection.close()
        return [name for (name,) in found]
    async with engine.connect() as connected:
        names = await connected.run_sync(lambda connection: sa.inspect(connection).get_table_names())
    await engine.dispose()
    return names


async def test_an_empty_database_stays_empty(url: str) -> None:
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite+aiosqlite:///")).touch()
    else:
        async with emptied(url) as store:
            await store.database.write(
                lambda connection: [
                    connection.exec_driver_sql(f'DROP TABLE "{table}" CASCADE')
                    for table in sa.inspect(connection).get_table_names()
                ]
            )
    assert await reason(url) == "it holds no tables of Lacuna."
    assert await _tables(url) == []


async def test_an_older_database_stays_as_old(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/store.db"
    _write_older(tmp_path / "store.db")
    said = await reason(url)
    assert said == "an older Lacuna wrote it; start the service over it once, which migrates it."
    assert "review_vectors" not in await _tables(url)
    store = await SqlStore.open_existing(url, older=True)
    assert await store.count_items() == 0
    await store.close()
    assert "review_vectors" not in await _tables(url)
    await (await SqlStore.open(url)).close()
    await (await SqlStore.open_existing(url)).close()


def _write_older(file: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{file}")
    with engine.begin() as connection:
        migrate(connection, OLDER)
    engine.dispose()


async def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/store.db"
    await (await SqlStore.open(url)).close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    for existing in (True, False):
        assert await reason(url, existing=existing) == "a newer Lacuna wrote it; use that version."


async def test_a_check_that_refuses_leaves_the_tables_as_they_are(tmp_path: Path) -> None:
    def refuse(_: sa.Connection) -> None:
        raise StoreUnavailableError("not this one")

    _write_older(tmp_path / "store.db")
    with pytest.raises(StoreUnavailableError, match="not this one"):
        await SqlStore.open(f"sqlite+aiosqlite:///{tmp_path}/store.db", check=refuse)
    assert "review_vectors" not in await _tables(f"sqlite+aiosqlite:///{tmp_path}/store.db")


# --- why not ---------------------------------------------------------------------------------------------------------


def _text(folder: Path) -> Path:
    (folder / "text").write_text("this is no database at all, only a long enough text")
    return folder / "text"


def _damaged(folder: Path) -> Path:
    file = folder / "damaged"
    with sqlite3.connect(file) as connection:
        connection.executescript("CREATE TABLE alembic_version (version_num TEXT); CREATE TABLE x (y)")
    connection.close()
    data = bytearray(file.read_bytes())
    data[100:4000] = b"\xff" * 3900
    file.write_bytes(data)
    return file


def _folder(folder: Path) -> Path:
    (folder / "folder").mkdir()
    return folder / "folder"


@pytest.mark.parametrize(
    ("spoil", "reading", "serving"),
    [
        (_text, "file is not a database.", "file is not a database."),
        (_damaged, "database disk image is malformed.", "database disk image is malformed."),
        (_folder, "it is a directory.", "it is a directory."),
        (
            lambda folder: _text(folder) / "store.db",
            "Not a directory: {folder}/text/store.db.",
            "File exists: {folder}/text.",
        ),
        (lambda _: Path("/proc/store.db"), "it does not exist.", "unable to open database file."),
    ],
)
async def test_sqlite_says_why_not(tmp_path: Path, spoil: Callable[[Path], Path], reading: str, serving: str) -> None:
    url = f"sqlite+aiosqlite:///{spoil(tmp_path)}"
    assert await reason(url) == reading.format(folder=tmp_path)
    assert await reason(url, existing=False) == serving.format(folder=tmp_path)


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Without root's rights, for which no permission counts; everybody may enter the folder."""
    if os.getuid():
        yield
        return
    for above in (folder, *folder.parents[:-2]):  # below the folder of all temporary files
        above.chmod(0o755)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_sqlite_that_may_not_be_read_or_made(tmp_path: Path) -> None:
    locked, closed, barred = tmp_path / "locked.db", tmp_path / "closed", tmp_path / "barred"
    await (await SqlStore.open(f"sqlite+aiosqlite:///{locked}")).close()
    locked.chmod(0)
    closed.mkdir(mode=0)
    barred.mkdir(mode=0o555)
    with as_nobody(tmp_path):
        assert await reason(f"sqlite+aiosqlite:///{locked}") == f"permission denied: {locked}."
        assert await reason(f"sqlite+aiosqlite:///{closed}/x.db") == f"Permission denied: {closed}/x.db."
        assert await reason(f"sqlite+aiosqlite:///{barred}/x.db", existing=False) == f"permission denied: {barred}."


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A PostgreSQL that asks for a password where TLS is spoken or the database is `locked`."""
    try:
        with Postgres() as server:
            yield server
    except UnavailableError as error:
        skip_without(str(error))


async def _execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        ("postgres:s3cret@127.0.0.1:5432/lacuna_none", 'database "lacuna_none" does not exist.'),
        ("lacuna_nobody:s3cret@127.0.0.1:5432/postgres", 'role "lacuna_nobody" does not exist.'),
        ("postgres:s3cret@127.0.0.1:1/x", "Connect call failed ('127.0.0.1', 1)."),
        ("postgres:s3cret@nosuch.invalid/x", "not known"),
        ("postgres@127.0.0.1:5432/postgres?sslmode=require", "rejected SSL upgrade."),
        ("postgres@127.0.0.1:5432/postgres?target_session_attrs=odd", "target_session_attrs"),
    ],
)
async def test_postgresql_says_why_not(postgres_url: str, rest: str, why: str) -> None:
    del postgres_url  # where there is none, there is nothing to test
    rest = rest.replace("127.0.0.1:5432", POSTGRES.rpartition("@")[2])
    for existing in (True, False):
        assert why in await reason(f"postgresql+asyncpg://{rest}", existing=existing)


async def test_postgresql_that_asks_for_a_password_or_may_not_be_written(server: Postgres) -> None:
    await _execute(server.url, "CREATE ROLE shop LOGIN PASSWORD 's3cret'", "CREATE DATABASE shop OWNER shop")
    server.admit("host all all 127.0.0.1/32 scram-sha-256")
    at = f"127.0.0.1:{server.port}/shop"
    for password in (":wrong-s3cret", ""):
        said = await reason(f"postgresql+asyncpg://shop{password}@{at}")
        assert "password" in said
        assert "wrong" not in said
    url = f"postgresql+asyncpg://shop:s3cret@{at}"
    await (await SqlStore.open(url)).close()
    await (await SqlStore.open_existing(url)).close()
    await _execute(url, "DROP TABLE alembic_version", "ALTER ROLE shop SET default_transaction_read_only = on")
    assert "read-only transaction" in await reason(url, existing=False)
    server.admit("host all all 127.0.0.1/32 reject")
    assert "pg_hba.conf" in await reason(url)


async def test_postgresql_with_the_options_of_libpq(server: Postgres) -> None:
    try:
        certificate = server.encrypt()
    except UnavailableError as error:
        pytest.skip(str(error))
    server.admit("hostssl all all 127.0.0.1/32 trust\nhost all all ::1/128 reject")
    at = f"postgresql+asyncpg://postgres@localhost:{server.port}/postgres?host=127.0.0.1"
    assert "no encryption" in await reason(f"{at}&sslmode=disable")
    for mode in ("prefer", "require"):
        store = await SqlStore.open(f"{at}&sslmode={mode}&application_name=shop")
        name = await store.database.read(lambda one: one.exec_driver_sql("SHOW application_name").scalar_one())
        assert name == "shop"
        await store.close()
    checked = f"postgresql+asyncpg://postgres@localhost:{server.port}/postgres?sslmode=verify-full&sslrootcert="
    readable = certificate.with_name("public.crt")
    readable.write_bytes(certificate.read_bytes())
    await (await SqlStore.open(checked + str(readable))).close()
    wrong = certificate.with_name("wrong.crt")
    wrong.write_text("no certificate")
    assert "certificate" in (await reason(checked + str(wrong))).lower()
