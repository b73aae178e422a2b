"""`lacuna backup` and `lacuna restore`: a consistent copy, while writing goes on, between both databases."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import random
import shutil
import sqlite3
import threading
import zipfile
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import backup
from service.adapters.sql.store import SqlStore, migrate
from tests.service.crash.shop import Act, Shop, State
from tests.service.crash.stored import read_states
from tests.service.e2e.test_restart import answers, busy
from tests.service.processes import within
from tests.service.running import Running, settings_for
from tests.service.servers import UnavailableError, small_disk


def run(capsys: pytest.CaptureFixture[str], what: str, file: Path, url: str, *options: str) -> tuple[int, str]:
    """The exit code of `lacuna backup` or `lacuna restore`, and what it said."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LACUNA_DATABASE_URL", url)
        code = backup.main([what, *options, str(file)])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_a_backup_restores_to_the_same_answers_on_the_other_database(
    demo_bundle: Path,
    demo_folder: Path,
    tmp_path: Path,
    postgres_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, first, last = (
        tmp_path / "copy.zip",
        f"sqlite+aiosqlite:///{tmp_path}/a.db",
        f"sqlite+aiosqlite:///{tmp_path}/b.db",
    )
    with Running(settings_for(demo_bundle, demo_folder, first)) as service:
        busy(service)
        before = answers(service)
        code, said = run(capsys, "create", file, first)
        assert (code, "123 items" in said) == (0, True), said
        service.create(id="later", title="not in the backup")
    for source, target in ((first, postgres_url), (postgres_url, last)):
        if source == postgres_url:
            assert run(capsys, "create", file, source)[0] == 0
        assert run(capsys, "restore", file, target)[0] == 0
        with Running(settings_for(demo_bundle, demo_folder, target)) as service:
            service.check_index()
            assert answers(service) == before
        code, said = run(capsys, "restore", file, target)
        assert (code, "not empty" in said) == (2, True), said
    with Running(settings_for(demo_bundle, demo_folder, last)) as service:
        service.create(id="later", title="counting goes on where it was")
        service.view("later", "shopper-001")
        service.check_index()


def test_a_backup_of_a_database_that_is_written_to_is_one_moment_of_it(anywhere: Running, tmp_path: Path) -> None:
    file, url = tmp_path / "copy.zip", anywhere.settings.database_url
    dims = {modality.name: modality.dim for modality in anywhere.engine.active.manifest.modalities}
    shops = [Shop(f"b{number}", dims, random.Random(number)) for number in range(3)]
    history: dict[str, list[State]] = {shop.name: [shop.state] for shop in shops}
    stop = threading.Event()

    def work(shop: Shop) -> None:
        with httpx.Client(base_url=anywhere.url, timeout=60) as client:

            def ask(act: Act) -> httpx.Response:
                history[shop.name].append(act.after)  # before it is sent: the backup may hold it before its answer came
                return client.request(act.method, act.path, json=act.body)

            shop.work(ask, lambda: not stop.is_set())

    threads = [threading.Thread(target=work, args=(shop,)) for shop in shops]
    for thread in threads:
        thread.start()
    within(60, lambda: sum(map(len, history.values())) > 40 or None)
    answered = {shop.name: shop.state for shop in shops}
    asyncio.run(backup.create(url, file))
    stop.set()
    for thread in threads:
        thread.join()
    assert [shop.violations for shop in shops] == [[], [], []]
    restored = f"sqlite+aiosqlite:///{tmp_path}/restored.db"
    asyncio.run(backup.restore(restored, file))
    states = asyncio.run(_states(restored, list(history)))
    for name, state in states.items():
        since = history[name].index(answered[name])
        assert state in history[name][since:]
    assert sum(len(state.items) for state in states.values()) > 5


async def _states(url: str, shops: list[str]) -> dict[str, State]:
    store = await SqlStore.open(url)
    try:
        return (await read_states(store, shops))[0]
    finally:
        await store.close()


@pytest.fixture
def database(seeded_file: Path, tmp_path: Path) -> str:
    """A database's URL, in a folder of its own."""
    folder = tmp_path / "database"
    folder.mkdir()
    return f"sqlite+aiosqlite:///{shutil.copy(seeded_file, folder / 'lacuna.db')}"


def test_a_backup_of_nothing_leaves_the_good_copy(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "copy.zip"
    assert run(capsys, "create", file, database)[0] == 0
    good = file.read_bytes()
    empty = f"sqlite+aiosqlite:///{tmp_path}/empty.db"
    asyncio.run(_make(empty))
    for url, reason in (
        (f"sqlite+aiosqlite:///{tmp_path}/mistyped.db", "it does not exist"),
        (f"sqlite+aiosqlite:///{tmp_path}/elsewhere/lacuna.db", "its folder does not exist"),
        (empty, "is empty (--force copies it)"),
    ):
        code, said = run(capsys, "create", file, url)
        assert (code, reason in said, "LACUNA_DATABASE_URL" in said) == (2, True, True), said
        assert file.read_bytes() == good
    assert sorted(one.name for one in tmp_path.iterdir()) == ["copy.zip", "database", "empty.db"]
    assert run(capsys, "create", file, empty, "--force")[0] == 0
    assert "0 items" in run(capsys, "restore", file, f"sqlite+aiosqlite:///{tmp_path}/restored.db")[1]


async def _make(url: str) -> None:
    await (await SqlStore.open(url)).close()


def test_a_backup_replaces_a_backup_and_nothing_else(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(database.removeprefix("sqlite+aiosqlite:///")).parent
    letter, kept, link = tmp_path / "letter.txt", tmp_path / "copy.zip", tmp_path / "link.zip"
    letter.write_text("dear")
    link.symlink_to(kept)
    before = (folder / "lacuna.db").read_bytes()
    for file, reason in (
        (letter, "exists and is no backup"),
        (folder / "lacuna.db", "is the database itself"),
        (folder, "exists and is no file"),
        (Path("/dev/null"), "exists and is no file"),
        (tmp_path / "nowhere" / "copy.zip", "nowhere does not exist"),
    ):
        code, said = run(capsys, "create", file, database)
        assert (code, reason in said) == (2, True), said
    assert (letter.read_text(), (folder / "lacuna.db").read_bytes()) == ("dear", before)
    code, said = run(capsys, "create", folder / "lacuna.db", database, "--force")
    assert (code, "the database itself" in said) == (2, True), said
    kept.touch()  # as mktemp makes one
    for file in (kept, kept, link):
        assert run(capsys, "create", file, database)[0] == 0
    assert link.is_symlink()
    assert run(capsys, "create", letter, database, "--force")[0] == 0
    assert zipfile.is_zipfile(letter)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["copy.zip", "database", "letter.txt", "link.zip"]


def test_a_backup_without_room_leaves_the_good_copy(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        with small_disk(tmp_path / "small", 4) as disk:
            file = disk.folder / "copy.zip"
            assert run(capsys, "create", file, database)[0] == 0
            good = file.read_bytes()
            for left in (1 << 16, 1 << 20):
                disk.fill(left)
                code, said = run(capsys, "create", file, database)
                assert (code, "no room" in said or "No space left" in said) == (2, True), said
                assert "LACUNA_DATABASE_URL" not in said
                assert file.read_bytes() == good
                assert sorted(one.name for one in disk.folder.iterdir()) == ["ballast", "copy.zip"]
                disk.relieve()
    except UnavailableError as error:
        pytest.skip(str(error))


def test_a_backup_reads_an_older_database_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As before an upgrade, with the new version; it restores into today's tables."""
    old, new, file = tmp_path / "old.db", f"sqlite+aiosqlite:///{tmp_path}/new.db", tmp_path / "copy.zip"
    engine = sa.create_engine(f"sqlite:///{old}")
    with engine.begin() as connection:
        migrate(connection, "0001")
    engine.dispose()
    with sqlite3.connect(old) as plain:
        plain.execute("INSERT INTO meta VALUES ('kept', 'since then')")
        plain.execute("INSERT INTO changes (kind, key, at) VALUES ('item', 'a', '2026-01-01')")
    plain.close()
    code, said = run(capsys, "create", file, f"sqlite+aiosqlite:///{old}", "--force")
    assert (code, "position 1" in said) == (0, True), said
    with sqlite3.connect(old) as plain:
        assert plain.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
    plain.close()
    assert run(capsys, "restore", file, new)[0] == 0
    assert asyncio.run(_meta(new, "kept")) == "since then"


async def _meta(url: str, key: str) -> str | None:
    store = await SqlStore.open_existing(url)
    try:
        return await store.get_meta(key)
    finally:
        await store.close()


def test_a_restore_does_not_even_migrate_what_is_not_empty(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, old = tmp_path / "copy.zip", tmp_path / "old.db"
    assert run(capsys, "create", file, database)[0] == 0
    engine = sa.create_engine(f"sqlite:///{old}")
    with engine.begin() as connection:
        migrate(connection, "0001")
        connection.exec_driver_sql("INSERT INTO changes (kind, key, at) VALUES ('item', 'a', '2026-01-01')")
    engine.dispose()
    code, said = run(capsys, "restore", file, f"sqlite+aiosqlite:///{old}")
    assert (code, "not empty" in said) == (2, True), said
    with sqlite3.connect(old) as plain:
        assert plain.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
    plain.close()


def test_what_is_no_whole_backup_is_refused(seeded_file: Path, tmp_path: Path) -> None:
    file, target = tmp_path / "copy.zip", f"sqlite+aiosqlite:///{tmp_path}/new.db"
    asyncio.run(backup.create(f"sqlite+aiosqlite:///{seeded_file}", file))
    assert [one.name for one in tmp_path.iterdir()] == [file.name]
    data = file.read_bytes()
    for damaged in (b"", data[:1000], data[:-1], data[: len(data) // 2] + b"\0" + data[len(data) // 2 + 1 :]):
        if damaged == data:
            continue
        file.write_bytes(damaged)
        with pytest.raises(backup.BackupError, match="damaged"):
            asyncio.run(backup.restore(target, file))
    for about, said in (
        ('{"format": 99}', "another version"),
        ("[]", "damaged one"),
        ('{"format": 1}', "damaged one"),
        ("NaN", "damaged one"),
    ):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(backup.ABOUT, about)
            archive.writestr(backup.DATABASE, "")
        with pytest.raises(backup.BackupError, match=said):
            asyncio.run(backup.restore(target, file))
    _repack(file, data, b"no database, although its checksum is right")
    with pytest.raises(backup.BackupError, match="cannot be restored: file is not a database"):
        asyncio.run(backup.restore(target, file))
    for folder in (tmp_path, tmp_path / "copy.zip" / "below"):
        with pytest.raises(backup.BackupError, match="cannot be read"):
            asyncio.run(backup.restore(target, folder))
    with pytest.raises(backup.BackupError, match="does not exist"):
        asyncio.run(backup.restore(target, tmp_path / "nothing.zip"))
    with pytest.raises(backup.BackupError, match="does not exist"):
        asyncio.run(backup.create(f"sqlite+aiosqlite:///{seeded_file}", tmp_path / "nowhere" / "copy.zip"))
    assert not (tmp_path / "new.db").exists()


def _repack(file: Path, good: bytes, database: bytes) -> None:
    """A backup with something else in it."""
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        about = json.loads(archive.read(backup.ABOUT))
    about["sha256"] = hashlib.sha256(database).hexdigest()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(backup.ABOUT, json.dumps(about))
        archive.writestr(backup.DATABASE, database)


@given(st.data())
@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_backup_is_one_sentence_and_makes_no_database(
    backed_up: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    file, target = tmp_path / "damaged.zip", tmp_path / "new.db"
    damaged = bytearray(backed_up)
    central = backed_up.rindex(b"PK\x01\x02", 0, backed_up.rindex(b"PK\x01\x02"))  # where what goes wrong is told
    for place in data.draw(st.lists(st.integers(central, len(damaged) - 1) | st.integers(0, 400), max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    file.write_bytes(damaged[: data.draw(st.integers(len(damaged) - 200, len(damaged)))])
    try:
        asyncio.run(backup.restore(f"sqlite+aiosqlite:///{target}", file))
    except backup.BackupError as error:
        said = str(error)
    else:
        said = ""  # the damage is where it does no harm
    assert "\n" not in said
    assert target.exists() == (not said)
    for left in tmp_path.glob("new.db*"):
        left.unlink()


@pytest.fixture(scope="module")
def backed_up(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("backed-up") / "copy.zip"
    store = tmp_path_factory.mktemp("small") / "small.db"
    asyncio.run(_make(f"sqlite+aiosqlite:///{store}"))
    asyncio.run(backup.create(f"sqlite+aiosqlite:///{store}", file, force=True))
    return file.read_bytes()
