"""Keys and passwords: none that can be guessed, and none where others read."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from service import __main__ as program
from service import backup, export, urls
from service.adapters.sql.store import SqlStore
from service.settings import Settings, SettingsError
from tests.service.processes import REPOSITORY, within


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


# --- keys that can be guessed -----------------------------------------------------------------------------------------


def test_a_short_key_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"entry 2 a key of fewer than 16 characters") as caught:
        Settings.load(api_keys="shop:read:0123456789abcdef,ops:admin:0123456789abcde")
    assert "0123456789abcde" not in str(caught.value)
    assert len(Settings.load(api_keys="shop:read:0123456789abcdef").api_keys) == 1


def test_tests_may_have_short_ones() -> None:
    assert Settings.load(api_keys="ops:admin:abc", allow_short_keys=True).api_keys[0].key == "abc"


# --- passwords in the list of processes -------------------------------------------------------------------------------

POSTGRES, REDIS = "postgresql+asyncpg://me:s3cret@127.0.0.1:1/x", "redis://:s3cret@127.0.0.1:1/0"


@pytest.mark.parametrize(
    ("url", "has"),
    [
        (POSTGRES, True),
        (REDIS, True),
        ("postgresql+asyncpg://me:pa%40ss@host/x", True),
        ("postgresql+asyncpg://me@host/x?password=s3cret", True),
        ("redis://host?password=s3cret", True),
        ("mysql://me:s3cret@host/x", True),
        ("postgresql+asyncpg://me:p@ss@host/x", True),
        ("postgresql+asyncpg://me@host:5432/x", False),
        ("postgresql+asyncpg://me:@host/x", False),
        ("redis://127.0.0.1:6379/0", False),
        ("sqlite+aiosqlite:///a:b@c/lacuna.db", False),
    ],
)
def test_what_holds_a_password(url: str, has: bool) -> None:
    assert urls.has_password(url) is has


@pytest.mark.parametrize(("option", "url"), [("--database-url", POSTGRES), ("--redis-url", REDIS)])
def test_no_password_is_taken_from_the_command_line(capsys: pytest.CaptureFixture[str], option: str, url: str) -> None:
    assert program.main([option, url]) == 2
    said = capsys.readouterr().err
    assert f"{option}-file" in said
    assert "s3cret" not in said


def test_secrets_come_from_files(tmp_path: Path) -> None:
    contents = {"database_url": POSTGRES, "redis_url": REDIS, "api_keys": "ops:admin:0123456789abcdef"}
    files = {}
    for name, content in contents.items():
        files[f"{name}_file"] = tmp_path / name
        files[f"{name}_file"].write_text(f"{content}\n")
    found = Settings.load(**files)
    assert (found.database_url, found.redis_url) == (POSTGRES, REDIS)
    assert found.api_keys[0].key == "0123456789abcdef"
    assert "s3cret" not in f"{found!r}{found}"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"", "no one line"),
        (b"a\nb", "no one line"),
        (b"\xff", "no text"),
        (b"a\0b", "NUL"),
        (b"mysql://me:s3cret@host/x", "LACUNA_DATABASE_URL"),
    ],
)
def test_a_file_of_no_use_is_one_sentence(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "url"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=says) as caught:
        Settings.load(database_url_file=file)
    assert "s3cret" not in str(caught.value)


def test_one_of_both_is_enough(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(REDIS)
    with pytest.raises(SettingsError, match="both set"):
        Settings.load(redis_url=REDIS, redis_url_file=tmp_path / "url")


def test_a_running_service_shows_no_password(tmp_path: Path) -> None:
    """As everybody on the machine sees it: the command line of each of its processes."""
    (tmp_path / "url").write_text(POSTGRES)
    (tmp_path / "keys").write_text("ops:admin:s3cret-s3cret-s3cret")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LACUNA_")}
    command = [sys.executable, "-m", "service", "--port", "0", "--bundle", tmp_path, "--database-url-file"]
    command += [tmp_path / "url", "--api-keys-file", tmp_path / "keys"]
    with subprocess.Popen(
        command, env=environment | {"PYTHONPATH": str(REPOSITORY)}, cwd=tmp_path, stderr=subprocess.PIPE
    ) as process:
        shown = within(10, lambda: " ".join(psutil.Process(process.pid).cmdline()) or None)
        assert "database-url-file" in shown
        assert "s3cret" not in shown
        _, said = process.communicate(timeout=60)
    assert b"manifest.json" in said  # its settings were read, and the bundle was looked for


# --- who may read what it leaves on disk ------------------------------------------------------------------------------


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.rglob("*")}


def test_what_the_service_writes_is_its_users_alone(tmp_path: Path, seeded_file: Path) -> None:
    async def make() -> None:
        store = await SqlStore.open(f"sqlite+aiosqlite:///{tmp_path}/new/lacuna.db")
        async with store.alone():
            await store.set_meta("a", "b")
            assert modes(tmp_path) == {"new": 0o700} | dict.fromkeys(
                ("lacuna.db", "lacuna.db-wal", "lacuna.db-shm", "lacuna.db-lock"), 0o600
            )
        await store.close()
        url = f"sqlite+aiosqlite:///{seeded_file}"
        await backup.create(url, tmp_path / "copy.zip")
        await export.export(url, tmp_path / "export")

    asyncio.run(make())
    found = modes(tmp_path)
    assert found["copy.zip"] == found["items.jsonl"] == found["feedback.jsonl"] == 0o600
    assert found["export"] == 0o700


def test_whatever_mask_it_was_started_with(tmp_path: Path, demo_bundle: Path, demo_folder: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "encoders").symlink_to((demo_folder / "encoders").resolve())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LACUNA_")}
    environment |= {"PYTHONPATH": str(REPOSITORY), "LACUNA_DATA_DIR": str(tmp_path / "data")}
    command = [sys.executable, "-m", "service", "--port", "0", "--bundle", demo_bundle]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, umask=0, stderr=subprocess.DEVNULL) as process:
        try:
            within(60, lambda: list((tmp_path / "data").glob("lacuna.db*")) or None)
            found = modes(tmp_path / "data")
            found.pop("encoders")
            assert set(found.values()) <= {0o600, 0o700}
        finally:
            process.kill()
