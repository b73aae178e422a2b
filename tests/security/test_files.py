"""Bundles and backups that somebody has made up: refused in a sentence, and nothing outside of them is read."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models.bundle import MANIFEST, Bundle, BundleError, file_sha256
from service import backup
from service.backup import BackupError
from tests.models.test_bundle import write

SECRET = b"what only the service may read"
Spoil = Callable[[Path, dict[str, Any]], object]

# --- bundles ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(SECRET)
    write(tmp_path / "bundle")
    return tmp_path / "bundle"


def refusal(bundle: Path, spoil: Spoil) -> str:
    manifest = json.loads((bundle / MANIFEST).read_text())
    spoil(bundle, manifest)
    if not (bundle / MANIFEST).is_symlink():
        (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError) as caught:
        Bundle.load(bundle)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert len(said) < 1000
    assert SECRET.decode() not in said
    return said


def linked(name: str, target: str) -> Spoil:
    """One of the bundle's files as a link, with the checksum of what it leads to."""

    def spoil(bundle: Path, manifest: dict[str, Any]) -> None:
        file = bundle / name
        file.unlink(missing_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(target)
        manifest["files"][name] = file_sha256(bundle.parent / "secret")

    return spoil


def linked_folder(bundle: Path, manifest: dict[str, Any]) -> None:
    (bundle / "below").symlink_to("..")
    manifest["files"]["below/secret"] = file_sha256(bundle.parent / "secret")


def linked_manifest(bundle: Path, _: dict[str, Any]) -> None:
    (bundle / MANIFEST).rename(bundle.parent / "elsewhere")
    (bundle / MANIFEST).symlink_to("../elsewhere")


def pipe(bundle: Path, manifest: dict[str, Any]) -> None:
    os.mkfifo(bundle / "pipe")
    manifest["files"]["pipe"] = "0" * 64


def weights_at(name: str) -> Spoil:
    def spoil(_: Path, manifest: dict[str, Any]) -> None:
        manifest["modalities"][0]["encoder"]["file"] = name

    return spoil


def model_at(name: str) -> Spoil:
    return lambda _, manifest: manifest["models"]["dgmrec"].update(file=name)


def listing(name: str) -> Spoil:
    return lambda _, manifest: manifest["files"].update({name: "0" * 64})


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (linked("items.json", "../secret"), "is a link"),
        (linked("new.json", "/etc/hostname"), "is a link"),
        (linked("new.json", "nowhere"), "is a link"),
        (linked("new.json", "new.json"), "is a link"),
        (linked_folder, "is a link"),
        (linked_manifest, "is a link"),
        (weights_at("../secret"), "which it names"),
        (weights_at("/etc/hostname"), "which it names"),
        (model_at("../secret"), "which it names"),
        (listing("../secret"), "outside itself"),
        (listing("a/../../secret"), "outside itself"),
        (listing("/etc/hostname"), "outside itself"),
        (listing("a\0b"), "outside itself"),
        (listing("a\nb"), "outside itself"),
        (listing("."), "missing"),
        (listing(""), "missing"),
        (listing("x" * 5000), "missing"),
        (pipe, "missing"),
        (lambda _, manifest: manifest["models"]["dgmrec"].update(config=nested(100)), "not valid JSON"),
        (lambda _, manifest: manifest.update(modalities=nested(50)), "field modalities"),
        (lambda _, manifest: manifest.update({"x" * 5000: 1}), "field xxx"),
        (lambda _, manifest: manifest.update({"a\nb": 1}), "field a b"),
    ],
)
def test_a_bundle_that_leads_elsewhere_is_refused(bundle: Path, spoil: Spoil, says: str) -> None:
    assert says in refusal(bundle, spoil)


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b'{"schema_version": 1, "a": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"schema_version": 1, "version": ' + b"9" * 10_000 + b"}",
        b'{"schema_version": 1e999}',
        b'{"schema_version": [1]}',
        b"null",
        b'"1"',
        b"\xff",
        b" " * (17 << 20),
    ],
    ids=["deep", "nested", "long number", "endless", "list", "null", "text", "no text", "large"],
)
def test_a_manifest_of_odd_shape_is_refused(bundle: Path, raw: bytes) -> None:
    (bundle / MANIFEST).write_bytes(raw)
    with pytest.raises(BundleError) as caught:
        Bundle.load(bundle)
    assert len(str(caught.value).splitlines()) == 1


def test_each_field_with_each_odd_value(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    for field in manifest:
        for odd in (None, [], {}, [[]], "x", -1, 1e300, True, [None], {"": None}, {"a": {"b": []}}):
            (bundle / MANIFEST).write_text(json.dumps(manifest | {field: odd}))
            said = ""
            try:
                Bundle.load(bundle)
            except BundleError as error:
                said = str(error)
            assert len(said.splitlines()) <= 1


@pytest.mark.usefixtures("bundle")
def test_a_bundle_may_be_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to("bundle")
    assert Bundle.load(tmp_path / "current").version
    assert Bundle.load(Path(os.path.relpath(tmp_path / "current"))).version


# --- backups ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(seeded_file: Path, tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """What a good backup says of itself, and its database, which may be changed."""
    file = tmp_path / "good.zip"
    asyncio.run(backup.create(f"sqlite+aiosqlite:///{seeded_file}", file))
    with zipfile.ZipFile(file) as archive:
        about = json.loads(archive.read(backup.ABOUT))
        archive.extract(backup.DATABASE, tmp_path)
    return about, tmp_path / backup.DATABASE


def restored(folder: Path, about: bytes, database: Path, **entry: Any) -> str:
    """What is said of a backup of these."""
    file, target = folder / "odd.zip", folder / "target.db"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(backup.ABOUT, about)
        info = zipfile.ZipInfo(backup.DATABASE)
        for name, value in entry.items():
            setattr(info, name, value)
        archive.writestr(info, database.read_bytes())
    with pytest.raises(BackupError) as caught:
        asyncio.run(backup.restore(f"sqlite+aiosqlite:///{target}", file))
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert len(said) < 1000
    return said


def signed(about: dict[str, Any], database: Path) -> bytes:
    return json.dumps(about | {"sha256": hashlib.sha256(database.read_bytes()).hexdigest()}).encode()


@pytest.mark.parametrize("field", ["format", "created_at", "schema", "bundle", "position", "rows", "sha256"])
def test_a_backup_that_says_odd_things_is_refused(
    copied: tuple[dict[str, Any], Path], tmp_path: Path, field: str
) -> None:
    about, database = copied
    for odd in (None, [], [[]], -1.5, {"": None}, nested(50), "\n"):
        if isinstance(odd, type(about[field])) and field != "sha256":
            continue
        said = restored(tmp_path, json.dumps(about | {field: odd}).encode(), database)
        assert said.startswith(str(tmp_path / "odd.zip"))


@pytest.mark.parametrize(
    "about",
    [b"[" * 100_000, b"null", b"[]", b'"1"', b"\xff", b'{"format": ' + b"9" * 10_000 + b"}", b" " * (2 << 20)],
    ids=["deep", "null", "list", "text", "no text", "long number", "large"],
)
def test_a_backup_of_odd_shape_is_refused(copied: tuple[dict[str, Any], Path], tmp_path: Path, about: bytes) -> None:
    assert "is no backup, or a damaged one" in restored(tmp_path, about, copied[1])


def restored_after(statement: str, copied: tuple[dict[str, Any], Path], folder: Path) -> str:
    """What a restore says of a backup in whose database a statement was executed."""
    about, database = copied
    with sqlite3.connect(database) as connection:
        connection.execute(statement)
    connection.close()
    return restored(folder, signed(about, database), database)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER DELETE ON items BEGIN DELETE FROM feedback; END",
        "CREATE VIEW v AS SELECT 1",
    ],
)
def test_a_backup_that_runs_something_is_refused(
    copied: tuple[dict[str, Any], Path], tmp_path: Path, statement: str
) -> None:
    assert "triggers or views" in restored_after(statement, copied, tmp_path)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE items SET categories = 'no JSON'",
        "UPDATE items SET created_at = 'some day'",
        "UPDATE feedback SET item_row = 10000000",
    ],
)
def test_rows_that_are_none_are_refused_and_nothing_is_restored(
    copied: tuple[dict[str, Any], Path], tmp_path: Path, statement: str
) -> None:
    restored_after(statement, copied, tmp_path)
    with sqlite3.connect(tmp_path / "target.db") as target:
        assert target.execute("SELECT count(*) FROM items").fetchone() == (0,)
    target.close()


def test_a_link_in_an_archive_is_no_link(copied: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    about, _ = copied
    (tmp_path / "leading").write_bytes(b"/etc/hostname")
    said = restored(tmp_path, signed(about, tmp_path / "leading"), tmp_path / "leading", external_attr=0o120777 << 16)
    assert "is not a database" in said


def test_more_than_there_is_room_for_is_refused_unread(
    copied: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about, database = copied
    monkeypatch.setattr(backup.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    assert "no room" in restored(tmp_path, json.dumps(about).encode(), database)
