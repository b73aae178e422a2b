"""The service's settings: the only reader of the environment."""

from __future__ import annotations

import difflib
import io
import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from dotenv.parser import parse_stream
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from service import urls

PREFIX = "LACUNA_"
NOT_OURS = "LACUNA_TEST_"  # read by the tests
OF_COMMANDS = ("LACUNA_URL", "LACUNA_KEY", "LACUNA_CACHE")  # read by other commands than the service
ENV_FILE = ".env"
MOST = 2**31 - 1  # of anything that is counted
FROM_FILES = ("database_url", "redis_url", "api_keys")  # settings that hold secrets
LEAST_KEY = 16  # characters of an API key, which nobody can guess if they are random
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]+)?|https?://\[[0-9a-f:]+\](:[0-9]+)?")


class SettingsError(ValueError):
    """Settings that cannot be used; the message is one sentence that names the LACUNA_ key and holds no secret."""


class Role(StrEnum):
    """What an API key may do; each role includes the ones before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One entry of LACUNA_API_KEYS."""

    name: str
    role: Role
    key: str = field(repr=False)


class _DotEnv(DotEnvSettingsSource):
    """`.env`, of which only our names count: the file may serve other programs too."""

    def __call__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__call__().items() if name in self.settings_cls.model_fields}


class Settings(BaseSettings):
    """Settings by their names without the prefix. Make them with `Settings.load`, whose errors are sentences."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=ENV_FILE,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    workers: int = Field(1, ge=1, le=64, description="number of processes")
    data_dir: Path = Field(Path("./lacuna-data"), description="folder for the SQLite database and index snapshots")
    database_url: str = Field(
        default_factory=lambda values: f"{urls.SQLITE}{values.get('data_dir', '.')}/lacuna.db",
        validate_default=True,
        repr=False,
        description=urls.KINDS,
    )
    database_url_file: Path | None = Field(None, description="a file that holds LACUNA_DATABASE_URL instead")
    redis_url: str | None = Field(
        None, repr=False, description="redis://HOST:PORT/DB, to share caches and limits between replicas"
    )
    redis_url_file: Path | None = Field(None, description="a file that holds LACUNA_REDIS_URL instead")
    follow_seconds: float = Field(
        0.2, gt=0, le=10, description="seconds between two looks for what other workers have changed"
    )
    changes_kept_hours: float = Field(
        72,
        gt=0,
        le=1_000_000,
        description="hours that the change log reaches back; a worker that was away longer reads everything anew",
    )
    snapshot_minutes: float = Field(
        10, ge=0, le=1_000_000, description="minutes between two snapshots of the index; 0 writes none"
    )
    bundle: Path | None = Field(None, description="folder of the model bundle to serve")
    bundles: str | None = Field(
        None,
        description="folder with bundles, or fsspec URL (s3://bucket/path), any of which can be activated",
    )
    image_weights: Path | None = Field(None, description="file with the image encoder's weights")
    seed_catalogue: bool = Field(True, description="fill an empty database from the bundle's catalogue")
    min_confidence: str = Field(
        "0",
        description="least confidence of a generated feature that counts in searches and vectors, of all modalities or "
        "by modality: 0.2 or text=0.2,image=0.1; 0 for any",
    )
    calibration_pairs: int = Field(
        200,
        ge=0,
        le=MOST,
        description="pairs of a generated feature and the real one that replaced it from which on the confidence of a "
        "modality is calibrated on them; 0 for never",
    )
    warn_calibration_error: float = Field(
        0.15,
        ge=0,
        le=1,
        description="calibration error of a modality's newest generated features, against the real ones that replaced "
        "them, beyond which the service warns; 0 for never",
    )
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode] = Field(
        (), repr=False, description="name:role:key,... with the roles read, write and admin"
    )
    api_keys_file: Path | None = Field(None, description="a file that holds LACUNA_API_KEYS instead")
    allow_short_keys: bool = Field(
        False, description=f"take API keys of fewer than {LEAST_KEY} characters; for tests, never on a network"
    )
    allow_anonymous: bool = Field(False, description="serve other machines without API keys")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="origins whose web pages may call the service, comma-separated; * for any"
    )
    allow_image_urls: bool = Field(False, description="fetch pictures from public URLs that clients name")
    image_url_seconds: float = Field(10, gt=0, le=3600, description="longest time that fetching a picture may take")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["text", "json"] = Field("text", description="text, or json for one object a line")
    traces: Literal["none", "console", "otlp"] = Field(
        "none",
        description="OpenTelemetry spans: none, console or otlp; takes `pip install lacuna[otel]`",
    )
    rate_limit: int = Field(
        0, ge=0, le=MOST, description="requests per minute and API key (or address, without keys); 0 for any"
    )
    max_concurrency: int = Field(
        256, ge=1, le=MOST, description="requests worked on at once by a process; more are answered 503"
    )
    max_key_concurrency: int = Field(
        128,
        ge=1,
        le=MOST,
        description="of these, most of one API key (or address that is none of LACUNA_PROXIES, without keys); an only "
        "key may take all",
    )
    request_seconds: float = Field(120, gt=0, le=86_400, description="longest time that a request may take")
    max_body_bytes: int = Field(8 << 20, ge=1024, le=MOST, description="largest request body, in bytes")
    max_image_pixels: int = Field(20_000_000, ge=1, le=MOST, description="largest picture, in pixels")
    max_text_chars: int = Field(20_000, ge=1, le=MOST, description="longest text, in characters")
    max_n: int = Field(500, ge=1, le=MOST, description="longest list that may be asked for")
    max_batch: int = Field(1000, ge=1, le=MOST, description="most items, or pairs, in one request")
    max_feedback: int = Field(10_000, ge=1, le=MOST, description="most feedback events in one request")
    max_request_pixels: int = Field(
        100_000_000, ge=1, le=MOST, description="most pixels of all the pictures in one request together"
    )
    max_bodies_bytes: int = Field(
        64 << 20,
        ge=1024,
        le=2**40,
        description="most bytes of request bodies that a process holds at once; more are answered 503",
    )
    max_connections: int = Field(1_000, ge=1, le=MOST, description="most connections to a process")
    max_address_connections: int = Field(
        500, ge=1, le=MOST, description="most connections to a process from one address that is none of LACUNA_PROXIES"
    )
    proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        ("127.0.0.0/8", "::1"), description="addresses and networks, with commas, that connect for many others"
    )
    max_header_bytes: int = Field(
        64 << 10, ge=4096, le=1 << 20, description="largest URL and headers of a request, in bytes"
    )
    header_seconds: float = Field(
        10, gt=0, le=3600, description="longest time that a request's headers may take to come"
    )

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Settings from the environment, `.env` and, before both, the overrides that are not None.

        Raises:
            SettingsError: an unknown LACUNA_ name, or a value that cannot be used.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        _refuse_unknown([*os.environ, *_names_in_file(Path(ENV_FILE)), *(_env_name(name) for name in given)])
        try:
            return cls(**given)
        except ValidationError as error:
            raise SettingsError(_sentence(error)) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _DotEnv(settings_cls)

    @field_validator("api_keys", mode="before")
    @classmethod
    def _parse_keys(cls, value: object) -> object:
        return parse_api_keys(value) if isinstance(value, str) else value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _parse_origins(cls, value: object) -> object:
        return parse_origins(value) if isinstance(value, str) else value

    @field_validator("proxies", mode="before")
    @classmethod
    def _parse_proxies(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        networks = tuple(part.strip() for part in value.split(",") if part.strip())
        for number, network in enumerate(networks, start=1):
            try:
                ipaddress.ip_network(network)
            except ValueError:
                raise ValueError(f"takes addresses and networks like 10.0.0.0/8, and entry {number} is none") from None
        return networks

    @model_validator(mode="before")
    @classmethod
    def _check_characters(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        for name, value in values.items():
            if isinstance(value, str | Path):
                _check_text(_env_name(name), str(value))
        return values

    @model_validator(mode="before")
    @classmethod
    def _read_files(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        read = {name: _content(name, values[f"{name}_file"]) for name in FROM_FILES if values.get(f"{name}_file")}
        for name in read.keys() & values.keys():
            raise ValueError(f"{_env_name(name)} and {_env_name(name)}_FILE are both set; one of them is enough")
        return {**values, **read}

    @field_validator("data_dir", "bundle", "image_weights", "database_url_file", "redis_url_file", "api_keys_file")
    @classmethod
    def _expand_home(cls, value: Path | None) -> Path | None:
        try:
            return None if value is None else value.expanduser()
        except RuntimeError:
            raise ValueError("names the home of a user that there is none of") from None

    @field_validator("host")
    @classmethod
    def _check_host(cls, value: str) -> str:
        urls.check_host(value)
        return value

    @field_validator("min_confidence")
    @classmethod
    def _check_confidence(cls, value: str) -> str:
        parse_confidence(value)
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: str) -> str:
        urls.parse_database(value)
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str | None) -> str | None:
        if value is not None:
            urls.check_redis(value)
        return value

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        for number, key in enumerate(self.api_keys, start=1):
            if len(key.key) < LEAST_KEY and not self.allow_short_keys:
                raise ValueError(
                    f"LACUNA_API_KEYS has in entry {number} a key of fewer than {LEAST_KEY} characters, "
                    "which can be guessed: `openssl rand -hex 24` makes a good one"
                )
        return self

    @model_validator(mode="after")
    def _guard_strangers(self) -> Self:
        if not self.api_keys and not self.allow_anonymous and not is_loopback(self.host):
            raise ValueError(
                f"LACUNA_HOST is {self.host!r}, which other machines can reach: set LACUNA_API_KEYS, "
                "or LACUNA_ALLOW_ANONYMOUS=1 to serve everybody"
            )
        return self


def parse_api_keys(text: str) -> tuple[ApiKey, ...]:
    """The entries of `name:role:key,...`; a key may hold colons, not commas.

    Raises:
        ValueError: an entry is malformed, or a name or key is given twice. The message never holds a key.
    """
    entries = [entry.strip() for entry in text.split(",")]
    keys = tuple(_parse_key(number, entry) for number, entry in enumerate(entries, 1) if entry)
    if len({key.name for key in keys}) < len(keys) or len({key.key for key in keys}) < len(keys):
        raise ValueError("gives a name or a key twice")
    return keys


def parse_confidence(text: str) -> dict[str, float]:
    """The numbers of `0.2`, under the name `""`, or of `text=0.2,image=0.1`, by modality.

    Raises:
        ValueError: an entry is no number from 0 to 1, or a modality is named twice.
    """
    least: dict[str, float] = {}
    for entry in text.split(","):
        name, _, number = entry.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1 or name.strip() in least or (not name.strip() and "," in text):
            raise ValueError("takes a number from 0 to 1, or one for each modality, like text=0.2,image=0.1")
        least[name.strip()] = value
    return least


def parse_origins(text: str) -> tuple[str, ...]:
    """The entries of `https://shop.example,...`, or `*`.

    Raises:
        ValueError: an entry is no origin.
    """
    origins = tuple(dict.fromkeys(entry.strip() for entry in text.split(",") if entry.strip()))
    for number, origin in enumerate(origins, start=1):
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"takes origins as browsers send them, like https://shop.example:8443, and entry {number} is none"
            )
    return origins


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def describe_settings() -> list[tuple[str, str, str]]:
    """Every setting: its environment name, its default as it would be written there, what it is."""
    return [
        (_env_name(name), _default_text(name, info.get_default()), info.description or "")
        for name, info in Settings.model_fields.items()
    ]


def _default_text(name: str, default: object) -> str:
    if name == "database_url":
        return "sqlite+aiosqlite:///{DATA_DIR}/lacuna.db"
    if default is None or default == ():
        return ""
    if isinstance(default, tuple):
        return ",".join(default)
    return str(int(default)) if isinstance(default, bool) else str(default)


def _parse_key(number: int, entry: str) -> ApiKey:
    name, _, rest = entry.partition(":")
    role, _, key = rest.partition(":")
    if not (name and role and key):
        raise ValueError(f"needs entries name:role:key, and entry {number} is none")
    if role not in tuple(Role):
        raise ValueError(f"knows the roles {', '.join(Role)}, and entry {number} has another")
    return ApiKey(name, Role(role), key)


def _content(name: str, file: str | Path) -> str:
    """The one line of a file that holds a setting."""
    try:
        text = Path(file).expanduser().read_text("utf-8").strip()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ValueError(f"{_env_name(name)}_FILE names a file that cannot be read: {reason}") from None
    if not text or len(text.splitlines()) > 1:
        raise ValueError(f"{_env_name(name)}_FILE names a file that holds no one line of text")
    _check_text(f"{_env_name(name)}_FILE", text)
    return text


def _check_text(name: str, value: str) -> None:
    if "\0" in value:
        raise ValueError(f"{name} holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is not valid UTF-8") from None


def _names_in_file(file: Path) -> list[str]:
    """The names that `.env` sets.

    Raises:
        SettingsError: it cannot be read, or a line that names one of our settings cannot.
    """
    try:
        text = file.read_bytes().decode() if file.is_file() else ""
    except OSError as error:
        raise SettingsError(f"{file.absolute()} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SettingsError(f"{file.absolute()}, line {line}: this is not valid UTF-8.") from None
    bindings = list(parse_stream(io.StringIO(text)))
    for one in bindings:
        if one.error and PREFIX in one.original.string.upper():
            line = one.original.line + one.original.string[: -len(one.original.string.lstrip()) or None].count("\n")
            raise SettingsError(f"{file.absolute()}, line {line}: this is no NAME=VALUE.")
    return [one.key for one in bindings if one.key is not None]


def _env_name(name: str) -> str:
    return f"{PREFIX}{name}".upper()


def _refuse_unknown(names: Iterable[str]) -> None:
    known = [_env_name(name) for name in Settings.model_fields]
    for name in map(str.upper, names):
        if name.startswith(PREFIX) and not name.startswith(NOT_OURS) and name not in (*known, *OF_COMMANDS):
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
            raise SettingsError(f"{name} is no setting of Lacuna; did you mean {nearest[0]}?")


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    problem = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not first["loc"]:
        return f"{problem}."
    return f"{_env_name(str(first['loc'][0]))} {_lower_first(problem)}."


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
