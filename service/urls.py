"""The URLs among the settings: which database or server they name, or in one sentence why none.

The sentences go on after the name of the setting. They hold no part of a URL but the names of its options, since what
cannot be read may be a password.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError
from sqlalchemy import make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

SQLITE, POSTGRES = "sqlite+aiosqlite:///", "postgresql+asyncpg://"
REDIS = ("redis://", "rediss://", "unix://")
KINDS = f"{SQLITE}FILE or {POSTGRES}USER:PASSWORD@HOST/DATABASE"
# Options of libpq, which asyncpg reads from a URL of its own and not as arguments; SQLAlchemy takes the others.
_LIBPQ = (
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslcrl",
    "target_session_attrs",
    "application_name",
    "options",
)
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_OTHER = ("host", "port", "user", "password", "prepared_statement_cache_size")
_ESCAPES = "(in a password, write / as %2F, @ as %40, : as %3A)"
_SSL = "ssl"  # what asyncpg calls sslmode
_REDIS_OPTIONS = (
    *("db", "username", "password", "protocol"),
    *("ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"),
)
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


@dataclass(frozen=True, slots=True)
class SqliteFile:
    """A SQLite database."""

    path: Path

    def __str__(self) -> str:
        return f"the SQLite file {self.path.absolute()}"


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A PostgreSQL database: what SQLAlchemy reads of its URL, and in `arguments` what asyncpg does."""

    url: URL = field(repr=False)
    arguments: dict[str, str] = field(repr=False)

    def __str__(self) -> str:
        host = self.url.host or self.url.query.get("host") or "this machine's socket"
        at = f"{host}:{self.url.port}" if self.url.port else f"{host}"
        return f"the PostgreSQL database {self.url.database!r} at {at}"


def parse_database(url: str) -> SqliteFile | PostgresServer:
    """The database that LACUNA_DATABASE_URL names. Raises ValueError."""
    if url.startswith(SQLITE):
        return _sqlite(url.removeprefix(SQLITE))
    if not url.startswith(POSTGRES):
        raise ValueError(f"must be {KINDS}")
    _check_nul(url)
    try:
        found = make_url(url)
    except ArgumentError:
        raise ValueError(f"cannot be read; it must be {KINDS}") from None
    except ValueError:
        raise ValueError(f"has a port that is no number {_ESCAPES}") from None
    return _postgres(found)


def _sqlite(path: str) -> SqliteFile:
    if not path or path == ":memory:" or path.startswith("file:"):
        raise ValueError(f"must name a file: {SQLITE}FILE")
    if "?" in path:
        raise ValueError(f"must be {SQLITE}FILE, without options")
    return SqliteFile(Path(path))


def _postgres(url: URL) -> PostgresServer:
    if not url.database:
        raise ValueError(f"names no database; it must be {POSTGRES}USER:PASSWORD@HOST/DATABASE")
    known = (*_LIBPQ, *_OTHER, _SSL)
    for name in url.query:
        _check_option(name, known)
    options = {name: _only(name, value) for name, value in url.query.items() if name in (*_LIBPQ, _SSL)}
    _check_ssl(options)
    rest = url.difference_update_query(list(options))
    _check_address(rest)
    if _SSL in options:
        options["sslmode"] = options.pop(_SSL)
    return PostgresServer(rest, {"dsn": f"postgresql://?{urlencode(options)}"} if options else {})


def _only(name: str, value: str | tuple[str, ...]) -> str:
    if not isinstance(value, str):
        raise ValueError(f"has the option {name!r} twice")
    return value


def _check_ssl(options: dict[str, str]) -> None:
    if _SSL in options and "sslmode" in options:
        raise ValueError("has both sslmode and ssl, which are the same option")
    mode = options.get("sslmode", options.get(_SSL, "prefer"))
    if mode not in _SSL_MODES:
        raise ValueError(f"has an sslmode that is none; there are {', '.join(_SSL_MODES)}")
    for name in _FILES:
        if name in options and not Path(options[name]).is_file():
            raise ValueError(f"has the option {name!r}, which names no file: {options[name]}")


def _check_address(url: URL) -> None:
    try:
        _, arguments = url.get_dialect()().create_connect_args(url)
    except (ArgumentError, ValueError, AssertionError):
        raise ValueError("has a host, port or number among its options that is none") from None
    if "@" in (url.host or ""):
        raise ValueError(f"names a host that is none {_ESCAPES}")
    for host in _listed(arguments.get("host", "localhost")):
        check_host(str(host))
    for port in (5432 if url.port is None else url.port, *_listed(arguments.get("port", 5432))):
        if not 0 < int(port) < 1 << 16:
            raise ValueError("has a port that is none; ports are 1 to 65535")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def check_host(host: str) -> None:
    """Raises ValueError where no machine can be called that."""
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError("names a host that is none") from None


def check_redis(url: str) -> None:
    """Raises ValueError where LACUNA_REDIS_URL names no Redis. Nothing connects."""
    if not url.startswith(REDIS):
        raise ValueError(f"must start with {', '.join(REDIS[:-1])} or {REDIS[-1]}")
    _check_nul(url)
    for name in parse_qs(url.partition("?")[2], keep_blank_values=True):
        _check_option(name, _REDIS_OPTIONS)
    try:
        parts = urlsplit(url)
        pool = ConnectionPool.from_url(url)
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError, RedisError):
        raise ValueError(f"cannot be read {_ESCAPES}") from None
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not database.isdecimal():
        raise ValueError("names a database by something else than its number")
    check_host(parts.hostname or "")


def has_password(url: str) -> bool:
    """Whether a URL holds a password, also one that cannot be read otherwise."""
    authority = url.partition("://")[2].partition("/")[0] if not url.startswith(SQLITE) else ""
    user, at, _ = authority.rpartition("@")
    return bool(at and user.partition(":")[2]) or "password" in parse_qs(url.partition("?")[2])


def _check_nul(url: str) -> None:
    if "\0" in url or "%00" in url:
        raise ValueError("holds a NUL character")


def _check_option(name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"has the option {name!r}, which is not known; there are {', '.join(sorted(known))}")
