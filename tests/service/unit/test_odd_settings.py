"""Settings of every odd kind, in the environment and in `.env`: they can be used, or one sentence says which cannot."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from models.errors import sentence_of
from service.adapters.redis.client import RedisClient
from service.adapters.sql.database import open_database
from service.api.limits import Limits
from service.bootstrap import limiter_of
from service.settings import Settings, SettingsError
from service.urls import PostgresServer, parse_database

FUZZ = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SECRET = "s3cret"
NAMES = [f"LACUNA_{name}".upper() for name in Settings.model_fields]
ODD = [
    *(
        "",
        " ",
        "\t",
        "0",
        "-1",
        "1e9",
        "1e400",
        "-0.0",
        "nan",
        "inf",
        "-Infinity",
        "1_000",
        "٣",
        "0x10",
        "9" * 30,
        "1.5",
    ),
    *("true", "None", "null", "[]", "{}", '"', "'", "${HOME}", "$(id)", "%00", "a\nb", "\x1b[31m", "\u2028", "\ufeff"),
    *("\0", "a\0b", "\udcff", "\ud800", "e\u0301", "🙂", "x" * 5000, "~", "~nobody-at-all", "~nobody-at-all/x", ".."),
    *(
        "/",
        "/dev/null",
        "/proc/self/mem",
        ".",
        "a/b\\c",
        "-",
        "--help",
        "C:\\x",
        "file:///x",
        "http://x",
        "://",
        "@",
        ":",
    ),
    *("0.0.0.0", "::", "::1", "[::1]", "256.1.1.1", "a..b", "localhost", "-.-", "a" * 64, "ü.example", "*", "127.1"),
    *("name:read:key", "a:b:c", "a:read:", ":::", ",,,", "a:read:k,a:read:l", "ü:read:ü", "a:admin:k:k"),
    *("redis://", "redis://h:x", f"redis://:{SECRET}/x@h", "redis://h?x=1", "unix://", "redis://h/\0", "rediss://[::1"),
    *("sqlite+aiosqlite:///", "sqlite+aiosqlite:////", "sqlite+aiosqlite:///a\0", "sqlite+aiosqlite:///?", "sqlite://"),
    *(f"postgresql+asyncpg://{rest}" for rest in ("", "h", "h/", "h:x/d", "h/d?x", "h/d?sslmode=", "u:p@h:1/d?ssl=x")),
    *(f"postgresql+asyncpg://u:{SECRET}{rest}" for rest in ("/x@h/d", "@x@h/d", ":x@h/d", "@h:x/d", "@h", "?x@h/d")),
    *("postgresql+asyncpg://[::1/d", "postgresql+asyncpg://h/d?host=a&host=b", "postgresql+asyncpg:///d?port=1,2"),
]
VALUES = st.sampled_from(ODD) | st.text(max_size=40) | st.integers().map(str) | st.floats().map(str)


def load() -> Settings | str:
    """The settings, or the sentence about them."""
    try:
        return Settings.load()
    except SettingsError as error:
        said = sentence_of(error)
    assert said == " ".join(said.split())
    return said


def use(found: Settings) -> None:
    """What a start makes of them before it connects to anything."""
    Limits.of(found)
    limiter_of(found)
    if found.redis_url is not None:
        RedisClient(found.redis_url, use="test")
    address = parse_database(found.database_url)
    assert str(address)
    if isinstance(address, PostgresServer):  # of SQLite, the folder would be made
        open_database(address)


def tells_no_secret(said: str) -> bool:
    """Whatever is mistaken for a host is no secret."""
    return SECRET not in said or said.startswith("LACUNA_HOST is ")


@pytest.fixture(autouse=True)
def _in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("LACUNA_")]:
        monkeypatch.delenv(name)


@FUZZ
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=1, max_size=4))
def test_in_the_environment(values: dict[str, str]) -> None:
    # What the system takes: no NUL, and half characters only as those that stand for bytes.
    held = {name: value for name, value in values.items() if _can_be_in_the_environment(value)}
    with mock.patch.dict(os.environ, held):
        found = load()
    if isinstance(found, Settings):
        use(found)
    else:
        assert "LACUNA_" in found
        assert tells_no_secret(found)


def _can_be_in_the_environment(value: str) -> bool:
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


@pytest.mark.parametrize("name", NAMES)
def test_each_setting_with_each_odd_value(name: str) -> None:
    """As an option, where nothing keeps NUL out either."""
    for value in ODD:
        try:
            use(Settings.load(**{name.removeprefix("LACUNA_").lower(): value}))
        except SettingsError as error:
            said = str(error)
            assert "LACUNA_" in said, (value, said)
            assert "\n" not in said.strip(), (value, said)
            assert tells_no_secret(said)
            assert len(said) < 600 + len(value)


LINES = (
    st.builds("{}={}".format, st.sampled_from(NAMES), VALUES)
    | st.builds('{}="{}'.format, st.sampled_from(NAMES), VALUES)
    | st.builds("export {} = '{}'  # {}".format, st.sampled_from(NAMES), VALUES, VALUES)
    | st.sampled_from(
        [*NAMES, "OTHER=1", "=", "#", "'", "LACUNA_", "LACUNA_=1", "lacuna_port=7", "\ufeffLACUNA_PORT=8"]
    )
    | VALUES
)


@FUZZ
@given(st.lists(LINES, max_size=6))
@example(["\ufeffLACUNA_PORT=1", "LACUNA_WORKERS"])
def test_in_the_file(lines: list[str]) -> None:
    Path(".env").write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    found = load()
    if isinstance(found, Settings):
        use(found)
    else:
        assert "LACUNA_" in found or ".env" in found
        assert tells_no_secret(found)


@FUZZ
@given(st.binary(max_size=200))
def test_a_file_of_any_bytes(data: bytes) -> None:
    Path(".env").write_bytes(data)
    load()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"OTHER=\xe4\nLACUNA_PORT=1\n", ", line 1: this is not valid UTF-8."),
        (b"A=1\nLACUNA_PORT=\xff\n", ", line 2: this is not valid UTF-8."),
        (b"\n\nLACUNA_BUNDLE='x\n", ", line 3: this is no NAME=VALUE."),
        (b"LACUNA_BUNDLE x\n", ", line 1: this is no NAME=VALUE."),
        (b"LACUNA_DATA_DIR=a\0b\n", "LACUNA_DATA_DIR holds a NUL character."),
        (b"LACUNA_PROT=1\n", "LACUNA_PROT is no setting of Lacuna; did you mean LACUNA_PORT?"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(data: bytes, said: str) -> None:
    Path(".env").write_bytes(data)
    found = load()
    assert isinstance(found, str)
    assert found.removeprefix(str(Path(".env").absolute())) == said


def test_a_byte_order_mark_does_not_hide_the_first_setting() -> None:
    Path(".env").write_bytes("\ufeffLACUNA_PORT=7\n".encode())
    assert Settings.load().port == 7


def test_a_folder_or_a_broken_line_of_another_program_is_passed_over() -> None:
    Path(".env").mkdir()
    assert Settings.load().port == 8000
    Path(".env").rmdir()
    Path(".env").write_text("this is = none 'of ours\nan other\nLACUNA_PORT=9\n")
    assert Settings.load().port == 9
