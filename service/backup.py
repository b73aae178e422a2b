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
import os
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from service.adapters.sql.store import SqlStore
from service.adapters.sql.tables import metadata
from service.domain import LacunaError
from service.logging import complain
from service.ports import SERVED
from service.settings import Settings, SettingsError

FORMAT = 1
ABOUT, DATABASE = "backup.json", "lacuna.db"
ROWS = 500  # copied at once


class BackupError(Exception):
    """A backup that cannot be made or used, in one sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make or restore a backup; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m service.backup", description=__doc__)
    parser.add_argument("what", choices=("create", "restore"))
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    try:
        settings = Settings.load()
        work = create if options.what == "create" else restore
        about = asyncio.run(work(settings.database_url, options.file))
    except (SettingsError, BackupError, LacunaError, OSError) as error:
        return complain(error)
    counts = ", ".join(f"{about['rows'][name]} {name}" for name in ("items", "feedback", "media"))
    done = "holds" if options.what == "create" else "is restored:"
    sys.stdout.write(f"{options.file} {done} {counts}, position {about['position']} of the change log\n")
    return 0


async def create(url: str, file: Path) -> dict[str, Any]:
    """Copy a database into a file, which appears whole or not at all; what `backup.json` says.

    Raises:
        BackupError: the file cannot be written. StoreUnavailableError: the database does not answer.
    """
    store = await SqlStore.open(url)
    try:
        with tempfile.TemporaryDirectory(dir=_folder(file), prefix=".backup-") as folder:
            copy = Path(folder) / DATABASE
            about = await store.database.read(lambda source: _copy_out(source, copy))
            await asyncio.to_thread(_pack, copy, about, file)
            return about
    finally:
        await store.close()


async def restore(url: str, file: Path) -> dict[str, Any]:
    """Fill an empty database from a backup, in one transaction; what `backup.json` says.

    Raises:
        BackupError: the file is no whole backup, or the database is not empty. StoreUnavailableError: no answer.
    """
    with tempfile.TemporaryDirectory(prefix="lacuna-restore-") as folder:
        about = await asyncio.to_thread(_unpack, file, Path(folder))
        # Opening it migrates an older backup to this version's tables.
        await (await SqlStore.open(f"sqlite+aiosqlite:///{folder}/{DATABASE}")).close()
        store = await SqlStore.open(url)
        try:
            async with store.alone():
                await store.database.write(lambda target: _copy_in(Path(folder) / DATABASE, target))
        finally:
            await store.close()
    return about


def _folder(file: Path) -> Path:
    if not file.parent.is_dir():
        raise BackupError(f"The folder {file.parent} does not exist.")
    return file.parent


# --- copying ---------------------------------------------------------------------------------------------------------


def _copy_out(source: sa.Connection, copy: Path) -> dict[str, Any]:
    engine = sa.create_engine(f"sqlite:///{copy}")
    try:
        with engine.begin() as target:
            metadata.create_all(target)
            target.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
            version = source.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
            target.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (version,))
            rows = {table.name: _copy_table(source, target, table) for table in metadata.sorted_tables}
            settings = metadata.tables["meta"]
            bundle = target.execute(sa.select(settings.c.value).where(settings.c.key == SERVED)).scalar_one_or_none()
            position = target.execute(sa.select(sa.func.max(metadata.tables["changes"].c.position))).scalar_one() or 0
            models = target.execute(sa.select(metadata.tables["items"].c.model_version).distinct()).scalars().all()
    finally:
        engine.dispose()
    return {
        "format": FORMAT,
        "created_at": datetime.now(UTC).isoformat(),
        "schema": version,
        "bundle": {"versions": sorted(models), "identity": bundle},
        "position": position,
        "rows": rows,
    }


def _copy_in(copy: Path, target: sa.Connection) -> None:
    for name in ("items", "feedback", "changes"):
        if target.execute(sa.select(sa.func.count()).select_from(metadata.tables[name])).scalar_one():
            raise BackupError("The database is not empty; restore into a new one, and then name that in the settings.")
    engine = sa.create_engine(f"sqlite:///{copy}")
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


def _pack(copy: Path, about: dict[str, Any], file: Path) -> None:
    about["sha256"] = _sha256(copy)
    packed = copy.with_name("packed")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(ABOUT, json.dumps(about, indent=1))
        archive.write(copy, DATABASE)
    with packed.open("rb") as written:
        os.fsync(written.fileno())
    packed.replace(file)


def _unpack(file: Path, folder: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(file) as archive:
            about: dict[str, Any] = json.loads(archive.read(ABOUT))
            archive.extract(DATABASE, folder)
    except FileNotFoundError:
        raise BackupError(f"{file} does not exist.") from None
    except (OSError, KeyError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise BackupError(f"{file} is no backup, or a damaged one: {error}.") from None
    if about.get("format") != FORMAT:
        raise BackupError(f"{file} was written by another version of Lacuna.")
    if about["sha256"] != _sha256(folder / DATABASE):
        raise BackupError(f"{file} is damaged: the database in it does not match its checksum.")
    return about


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
