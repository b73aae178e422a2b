"""Settings come from the environment, `.env` and overrides, and every error is one sentence with the key's name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.settings import ApiKey, Role, Settings, SettingsError, describe_settings


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.upper().startswith("LACUNA_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_defaults() -> None:
    settings = Settings.load()
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8000, 1)
    assert settings.database_url == "sqlite+aiosqlite:///lacuna-data/lacuna.db"
    assert settings.max_body_bytes == 8 * 1024 * 1024
    assert settings.redis_url is None
    assert settings.bundle is None
    assert settings.seed_catalogue
    assert not settings.allow_anonymous


def test_environment_wins_over_dotenv_and_overrides_over_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LACUNA_PORT=1\nLACUNA_MAX_N=11\nLACUNA_WORKERS=2\nOTHER=ignored\n")
    monkeypatch.setenv("LACUNA_PORT", "2")
    monkeypatch.setenv("LACUNA_MAX_N", "12")
    settings = Settings.load(max_n=13, host=None)
    assert (settings.workers, settings.port, settings.max_n, settings.host) == (2, 2, 13, "127.0.0.1")


def test_data_dir_moves_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACUNA_DATA_DIR", "/srv/lacuna")
    assert Settings.load().database_url == "sqlite+aiosqlite:////srv/lacuna/lacuna.db"
    monkeypatch.setenv("LACUNA_DATA_DIR", "~/lacuna")
    assert Settings.load().data_dir == Path.home() / "lacuna"


def test_empty_value_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACUNA_REDIS_URL", "")
    monkeypatch.setenv("LACUNA_PORT", "")
    assert (Settings.load().redis_url, Settings.load().port) == (None, 8000)


def test_api_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACUNA_API_KEYS", "shop:read:with:colons-and-more, ops:admin:s3cret-s3cret-s3cret,")
    settings = Settings.load(host="0.0.0.0")
    assert settings.api_keys == (
        ApiKey("shop", Role.READ, "with:colons-and-more"),
        ApiKey("ops", Role.ADMIN, "s3cret-s3cret-s3cret"),
    )


def test_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load().cors_origins == ()
    monkeypatch.setenv("LACUNA_CORS_ORIGINS", "https://shop.example, http://localhost:3000,, http://[::1]:8080")
    expected = ("https://shop.example", "http://localhost:3000", "http://[::1]:8080")
    assert Settings.load().cors_origins == expected
    assert Settings.load(cors_origins="*").cors_origins == ("*",)


def test_secrets_stay_out_of_the_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACUNA_API_KEYS", "ops:admin:s3cret-s3cret-s3cret")
    monkeypatch.setenv("LACUNA_DATABASE_URL", "postgresql+asyncpg://me:s3cret@db/lacuna")
    monkeypatch.setenv("LACUNA_REDIS_URL", "redis://:s3cret@cache/0")
    settings = Settings.load()
    assert "s3cret" not in f"{settings!r}{settings}{settings.api_keys!r}"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PORT", "http", "valid integer"),
        ("CORS_ORIGINS", "shop.example", "takes origins as browsers send them"),
        ("CORS_ORIGINS", "https://shop.example/", "takes origins as browsers send them"),
        ("PORT", "70000", "65535"),
        ("WORKERS", "0", "greater than or equal to 1"),
        ("LOG_LEVEL", "loud", "'debug'"),
        ("ALLOW_ANONYMOUS", "perhaps", "boolean"),
        ("DATABASE_URL", "mysql://me:s3cret@db/x", r"sqlite\+aiosqlite"),
        ("DATABASE_URL", "sqlite+aiosqlite:///:memory:", "FILE"),
        ("REDIS_URL", "http://:s3cret@cache", "redis://"),
        ("API_KEYS", "s3cret", "entry 1"),
        ("API_KEYS", "ops:root:s3cret", "read, write, admin"),
        ("API_KEYS", "ops:admin:s3cret,ops:read:other", "twice"),
        ("API_KEYS", "ops:admin:s3cret,shop:read:s3cret", "twice"),
        ("API_KEYS", "ops:admin:s3cret-s3cret-s3cret,shop:read:s3cret", "entry 2 .* fewer than 16"),
    ],
)
def test_bad_value_is_one_sentence_with_the_key(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(f"LACUNA_{name}", value)
    with pytest.raises(SettingsError, match=says) as caught:
        Settings.load()
    message = str(caught.value)
    assert message.startswith(f"LACUNA_{name} ")
    assert message.endswith(".")
    assert "\n" not in message
    assert "s3cret" not in message


def test_unknown_name_proposes_the_nearest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LACUNA_PROT", "1")
    with pytest.raises(SettingsError, match=r"LACUNA_PROT is no setting.*LACUNA_PORT\?"):
        Settings.load()
    monkeypatch.delenv("LACUNA_PROT")
    (tmp_path / ".env").write_text("LACUNA_REDIS=redis://x\n")
    with pytest.raises(SettingsError, match=r"LACUNA_REDIS .*LACUNA_REDIS_URL\?"):
        Settings.load()
    (tmp_path / ".env").unlink()
    with pytest.raises(SettingsError, match="LACUNA_BUNDEL"):
        Settings.load(bundel="x")


def test_names_of_the_tests_are_not_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LACUNA_TEST_DATA", "/data")
    (tmp_path / ".env").write_text("LACUNA_TEST_POSTGRES=x\n")
    assert Settings.load().port == 8000


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "shop.example", ""])
def test_strangers_are_refused_without_keys(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    with pytest.raises(SettingsError, match=r"LACUNA_HOST.*LACUNA_API_KEYS.*LACUNA_ALLOW_ANONYMOUS"):
        Settings.load(host=host)
    assert Settings.load(host=host, allow_anonymous=True).host == host
    monkeypatch.setenv("LACUNA_API_KEYS", "ops:admin:s3cret-s3cret-s3cret")
    assert Settings.load(host=host).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert Settings.load(host=host).host == host


def test_every_setting_is_described() -> None:
    rows = {name: (default, description) for name, default, description in describe_settings()}
    assert set(rows) == {f"LACUNA_{name}".upper() for name in Settings.model_fields}
    assert rows["LACUNA_PORT"][0] == "8000"
    assert rows["LACUNA_SEED_CATALOGUE"][0] == "1"
    assert rows["LACUNA_DATABASE_URL"][0] == "sqlite+aiosqlite:///{DATA_DIR}/lacuna.db"
    assert all(description for _, description in rows.values())
