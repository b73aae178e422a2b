"""`python -m service.backup create|restore FILE`: a consistent copy of what the database holds, in one file.

The file is a ZIP archive of a SQLite database with the service's own tables, read in one transaction while writing goes
on, and of `backup.json`, which says what it is: the bundle, the position in the change log, the rows of each table and
the copy's SHA-256. It restores into SQLite and PostgreSQL alike, whichever it came from.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import lzma
import os
import shutil
import sqlite3
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from textwrap import shorten
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError

from models.errors import sentence_of
from models.files import replacing
from service.adapters.sql.database import RefusedStatementError
from service.adapters.sql.store import SqlStore, migrate
from service.adapters.sql.tables import metadata
from service.domain import ModelState, StoreUnavailableError
from service.logging import PRIVATE_MASK, run, say
from service.settings import Settings
from service.urls import SQLITE

FORMAT = 1
ABOUT, DATABASE = "backup.json", "lacuna.db"
ROWS = 500  # copied at once
ABOUT_BYTES = 1 << 20  # more than any backup.json has
PRIVATE = 0o600  # the mode of a file that holds what users did
# What zipfile raises, now and then, for bytes that are no archive, or no whole one.
DAMAGED = (
    *(ArithmeticError, EOFError, LookupError, RuntimeError, ValueError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)


@dataclass(frozen=True, slots=True)
class About:
    """`backup.json`: `rows` of each table, `position` in the change log, `sha256` of the database's file."""

    format: int
    created_at: str
    schema: str
    bundle: dict[str, Any]
    position: int
    rows: dict[str, int]
    sha256: str


class BackupError(Exception):
    """A backup that cannot be made or used, in one sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make or restore a backup; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m service.backup", description=__doc__)
    parser.add_argument("what", choices=("create", "restore"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--force", action="store_true", help="copy an empty database, or replace what is no backup")
    return run(lambda: _main(parser.parse_args(arguments)))


def _main(options: argparse.Namespace) -> int:
    url = Settings.load().database_url
    if options.what == "create":
        about = asyncio.run(create(url, options.file, force=options.force))
    else:
        about = asyncio.run(restore(url, options.file))
    counts = ", ".join(f"{about.rows.get(name, 0)} {name}" for name in ("items", "feedback", "media"))
    done = "holds" if options.what == "create" else "is restored:"
    say(f"{options.file} {done} {counts}, position {about.position} of the change log")
    return 0


async def create(url: str, file: Path, *, force: bool = False) -> About:
    """Copy a database into a file, which appears whole or not at all; what `backup.json` says.

    The database is only read; one that an older Lacuna wrote is copied as it is.

    Args:
        force: copy a database without items and feedback too, and replace a file that is no backup.

    Raises:
        BackupError: the file cannot be written or replaced, or the database is empty. StoreUnavailableError: it cannot
            be read.
    """
    store = await SqlStore.open_existing(url, older=True)
    try:
        _check_place(file, url, force=force)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".backup-") as folder:
            copy = Path(folder) / DATABASE
            about = await store.database.read(lambda source: _copy_out(source, copy, force=force))
            return await asyncio.to_thread(_pack, copy, about, file)
    finally:
        await store.close()


async def restore(url: str, file: Path) -> About:
    """Fill an empty database from a backup, in one transaction; what `backup.json` says.

    Raises:
        BackupError: the file is no whole backup, or the database is not empty. StoreUnavailableError: no answer.
    """
    with tempfile.TemporaryDirectory(prefix="lacuna-restore-") as folder:
        copy = Path(folder) / DATABASE
        about = await asyncio.to_thread(_unpack, file, Path(folder))
        await _migrate(copy, file)
        store = await SqlStore.open(url, check=_require_empty)
        try:
            async with store.alone():
                await store.database.write(lambda target: _copy_in(copy, target))
        except (ValueError, TypeError, RefusedStatementError) as error:
            reason = shorten(str(error), 200)
            raise BackupError(f"{file} holds rows that no service wrote, and nothing was restored: {reason}") from error
        finally:
            await store.close()
    return about


async def _migrate(copy: Path, file: Path) -> None:
    """Bring an older backup to this version's tables."""
    try:
        await (await SqlStore.open(f"{SQLITE}{copy}")).close()
    except StoreUnavailableError as error:
        raise BackupError(f"{file} cannot be restored: {error.reason.removesuffix('.')}.") from error


def _check_place(file: Path, url: str, *, force: bool) -> None:
    """A backup goes into a folder, as a new file or in place of another backup."""
    if not file.parent.is_dir():
        raise BackupError(f"The folder {file.parent} does not exist.")
    if not os.path.lexists(file):
        return
    if not file.is_file():
        raise BackupError(f"{file} exists and is no file.")
    if url.startswith(SQLITE) and file.samefile(url.removeprefix(SQLITE)):
        raise BackupError(f"{file} is the database itself.")
    if file.stat().st_size and not force and not _is_backup(file):
        raise BackupError(f"{file} exists and is no backup (--force replaces it).")


def _is_backup(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return ABOUT in archive.namelist()
    except (*DAMAGED, OSError):
        return False


# --- copying ---------------------------------------------------------------------------------------------------------


def _copy_out(source: sa.Connection, copy: Path, *, force: bool) -> dict[str, Any]:
    schema = source.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
    engine = sa.create_engine(f"sqlite:///{copy}", hide_parameters=True)
    try:
        with engine.begin() as target:
            migrate(target, schema)
            rows = {table.name: _copy_table(source, target, table) for table in _tables(target)}
            if not force and not rows["items"] and not rows["feedback"]:
                raise BackupError("The database that LACUNA_DATABASE_URL names is empty (--force copies it).")
            bundle = _bundle(target) if sa.inspect(target).has_table("models") else {"versions": [], "identity": None}
            position = target.execute(sa.select(sa.func.max(metadata.tables["changes"].c.position))).scalar_one() or 0
    except sa.exc.DBAPIError as error:
        if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise BackupError(f"There is no room for the copy in {copy.parent.parent}.") from error
        raise
    finally:
        engine.dispose()
    return {
        "format": FORMAT,
        "created_at": datetime.now(UTC).isoformat(),
        "schema": schema,
        "bundle": bundle,
        "position": position,
        "rows": rows,
    }


def _bundle(connection: sa.Connection) -> dict[str, Any]:
    """What the active bundle is called, and what tells it from every other."""
    models = metadata.tables["models"].c
    active = sa.select(models.version, models.identity).where(models.state == ModelState.ACTIVE)
    found = connection.execute(active).one_or_none()
    return {"versions": [found.version] if found else [], "identity": found.identity if found else None}


def _tables(connection: sa.Connection) -> Iterator[sa.Table]:
    """The tables that a database has, in whatever version of the schema, parents before children; values go to SQL and
    back as this version's do."""
    found = sa.MetaData()
    found.reflect(connection, only=lambda name, _: name in metadata.tables)
    for table in found.sorted_tables:
        known = metadata.tables[table.name].columns
        for column in table.columns:
            if column.name in known:
                column.type = known[column.name].type
        yield table


def _require_empty(target: sa.Connection) -> None:
    there = sa.inspect(target)
    for name in ("items", "feedback", "changes"):
        table = metadata.tables[name]
        if there.has_table(name) and target.execute(sa.select(sa.func.count()).select_from(table)).scalar_one():
            raise BackupError("The database is not empty; restore into a new one, and then name that in the settings.")


def _copy_in(copy: Path, target: sa.Connection) -> None:
    _require_empty(target)
    engine = sa.create_engine(f"sqlite:///{copy}", hide_parameters=True)
    try:
        with engine.connect() as source:
            for table in metadata.sorted_tables:
                target.execute(sa.delete(table))
                _copy_table(source, target, table)
                _go_on_counting(target, table)
    finally:
        engine.dispose()


def _copy_table(source: sa.Connection, target: sa.Connection, table: sa.Table) -> int:
    count = 0
    for rows in _pages(source, table):
        target.execute(sa.insert(table), rows)
        count += len(rows)
    return count


def _pages(source: sa.Connection, table: sa.Table) -> Iterator[list[dict[str, Any]]]:
    """All rows in order of the primary key, some at a time."""
    key = list(table.primary_key.columns)
    after: tuple[Any, ...] | None = None
    while True:
        query = sa.select(table).order_by(*key).limit(ROWS)
        if after is not None:
            query = query.where(sa.tuple_(*key) > after)
        rows = [dict(row._mapping) for row in source.execute(query)]
        if not rows:
            return
        yield rows
        after = tuple(rows[-1][column.name] for column in key)


def _go_on_counting(target: sa.Connection, table: sa.Table) -> None:
    """PostgreSQL's counters do not see numbers that are brought along; SQLite's do."""
    column = table.autoincrement_column
    if column is not None and target.dialect.name == "postgresql":
        highest = sa.select(sa.func.coalesce(sa.func.max(column), 1)).scalar_subquery()
        target.execute(sa.select(sa.func.setval(sa.func.pg_get_serial_sequence(table.name, column.name), highest)))


# --- the file --------------------------------------------------------------------------------------------------------


def _pack(copy: Path, about: dict[str, Any], file: Path) -> About:
    whole = About(**about, sha256=_sha256(copy))
    with (
        replacing(file, mode=PRIVATE) as packed,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        archive.writestr(ABOUT, json.dumps(asdict(whole), indent=1))
        archive.write(copy, DATABASE)
    return whole


def _unpack(file: Path, folder: Path) -> About:
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.getinfo(ABOUT).file_size > ABOUT_BYTES:
                raise ValueError(f"its {ABOUT} is larger than any can be")
            raw = json.loads(archive.read(ABOUT))
            if raw.get("format") != FORMAT:
                raise BackupError(f"{file} was written by another version of Lacuna.")
            about = _about(raw)
            if archive.getinfo(DATABASE).file_size > shutil.disk_usage(folder).free:
                raise BackupError(f"There is no room for what {file} holds in {folder.parent}.")
            archive.extract(DATABASE, folder)
    except FileNotFoundError:
        raise BackupError(f"{file} does not exist.") from None
    except OSError as error:
        raise BackupError(f"{file} cannot be read: {sentence_of(error)}.") from None
    except (*DAMAGED, AttributeError) as error:
        raise BackupError(f"{file} is no backup, or a damaged one: {error}.") from None
    if about.sha256 != _sha256(folder / DATABASE):
        raise BackupError(f"{file} is damaged: the database in it does not match its checksum.")
    if _runs_something(folder / DATABASE):
        raise BackupError(f"{file} is no backup: the database in it has triggers or views, which none has.")
    return about


def _about(raw: object) -> About:
    """`backup.json`. Raises ValueError, in one line, where it is none."""
    try:
        return TypeAdapter(About).validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = shorten(".".join(map(str, first["loc"])), 100)
        raise ValueError(f"its {ABOUT} is none, field {where}: {first['msg']}") from None


def _runs_something(file: Path) -> bool:
    """Whether a SQLite file holds statements that run when others read or write its tables."""
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        try:
            found = connection.execute(
                "SELECT count(*) FROM sqlite_schema WHERE type IN ('trigger', 'view')"
            ).fetchone()
        except sqlite3.Error:
            return False  # what it is instead, opening it tells
    return bool(found[0])


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    os.umask(PRIVATE_MASK)
    sys.exit(main())
