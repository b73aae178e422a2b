"""The URLs of the database and of Redis: what they name, and what is said of those that name nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.urls import PostgresServer, SqliteFile, check_redis, parse_database

POSTGRES = "postgresql+asyncpg://"
SECRET = "s3cret"


@pytest.mark.parametrize(("path", "file"), [("x.db", "x.db"), ("/srv/a b.db", "/srv/a b.db"), ("a%20b@c", "a%20b@c")])
def test_a_sqlite_file(path: str, file: str) -> None:
    found = parse_database(f"sqlite+aiosqlite:///{path}")
    assert found == SqliteFile(Path(file))
    assert str(found) == f"the SQLite file {Path(file).absolute()}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("me:s3cret@db/lacuna", "'lacuna' at db"),
        ("me:s3cret@db:5433/lacuna", "'lacuna' at db:5433"),
        ("me:s3cr%2Fet@[::1]:5433/lacuna", "'lacuna' at ::1:5433"),
        ("/lacuna?host=/run/postgresql", "'lacuna' at /run/postgresql"),
        ("/lacuna", "'lacuna' at this machine's socket"),
        ("/lacuna?host=a:1&host=b:2", "'lacuna' at ('a:1', 'b:2')"),
    ],
)
def test_a_postgresql_database(url: str, shown: str) -> None:
    found = parse_database(POSTGRES + url)
    assert isinstance(found, PostgresServer)
    assert str(found) == f"the PostgreSQL database {shown}"
    assert found.arguments == {}
    assert SECRET not in repr(found)


@pytest.mark.parametrize(
    ("query", "dsn"),
    [
        ("sslmode=require", "sslmode=require"),
        ("ssl=verify-full", "sslmode=verify-full"),
        ("application_name=a%20b&sslmode=disable", "application_name=a+b&sslmode=disable"),
        ("options=-csearch_path%3Dx", "options=-csearch_path%3Dx"),
    ],
)
def test_options_of_libpq_reach_asyncpg(query: str, dsn: str) -> None:
    found = parse_database(f"{POSTGRES}db/lacuna?prepared_statement_cache_size=5&{query}")
    assert isinstance(found, PostgresServer)
    assert found.arguments == {"dsn": f"postgresql://?{dsn}"}
    assert dict(found.url.query) == {"prepared_statement_cache_size": "5"}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "must be sqlite"),
        ("s3cret", "must be sqlite"),
        ("mysql://me:s3cret@db/x", "must be sqlite"),
        ("postgresql://me:s3cret@db/x", "must be sqlite"),
        ("sqlite+aiosqlite:///", "must name a file"),
        ("sqlite+aiosqlite:///:memory:", "must name a file"),
        ("sqlite+aiosqlite:///file:x?mode=memory", "must name a file"),
        ("sqlite+aiosqlite:///x.db?mode=ro", "without options"),
        (POSTGRES, "names no database"),
        (f"{POSTGRES}db/", "names no database"),
        (f"{POSTGRES}me:s3cret@db", "names no database"),
        (f"{POSTGRES}me:s3cret@db/?sslmode=require", "names no database"),
        (f"{POSTGRES}me@db:abc/x", "a port that is no number"),
        (f"{POSTGRES}me@db:/x", "a port that is no number"),
        (f"{POSTGRES}me@db:1:2/x", "a port that is no number"),
        (f"{POSTGRES}me@[::1/x", "a port that is no number"),
        (f"{POSTGRES}me@db:0/x", "1 to 65535"),
        (f"{POSTGRES}me@db:65536/x", "1 to 65535"),
        (f"{POSTGRES}/x?host=db&port=99999", "1 to 65535"),
        (f"{POSTGRES}me:pass@s3cret@db/x", "write / as %2F, @ as %40"),
        (f"{POSTGRES}a..b/x", "names a host that is none"),
        (f"{POSTGRES}{'a' * 64}/x", "names a host that is none"),
        (f"{POSTGRES}db/x?host=a&host=b", "host, port or number"),
        (f"{POSTGRES}db/x?prepared_statement_cache_size=many", "host, port or number"),
        (f"{POSTGRES}db/x?sslmode=sometimes", "disable, allow, prefer"),
        (f"{POSTGRES}db/x?ssl=true", "disable, allow, prefer"),
        (f"{POSTGRES}db/x?ssl=require&sslmode=require", "the same option"),
        (f"{POSTGRES}db/x?sslmode=require&sslmode=require", "the option 'sslmode' twice"),
        (f"{POSTGRES}db/x?sslrootcert=/nowhere/ca.pem", "names no file: /nowhere/ca.pem"),
        (f"{POSTGRES}db/x?connect_timeout=5", "the option 'connect_timeout', which is not known; there are "),
        (f"{POSTGRES}db/x%00", "NUL"),
        (f"{POSTGRES}d\0b/x", "NUL"),
    ],
)
def test_a_url_of_no_database(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        parse_database(url)

    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "url",
    [
        "redis://cache",
        "redis://:s3cret@cache:6379/0",
        "rediss://me:s3cret@cache/1?ssl_cert_reqs=required",
        "unix:///run/redis.sock?db=2",
        "redis://[::1]:6379/0",
        "redis://cache?db=3&protocol=3",
    ],
)
def test_a_redis(url: str) -> None:
    check_redis(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "must start with"),
        ("http://:s3cret@cache", "must start with"),
        ("redis://:s3cret/x@cache/0", "write / as %2F"),
        ("redis://cache:abc/0", "cannot be read"),
        ("redis://cache:99999/0", "cannot be read"),
        ("redis://[::1/0", "cannot be read"),
        ("redis://cache?db=s3cret", "cannot be read"),
        ("redis://cache?protocol=9", "cannot be read"),
        ("redis://cache/shop", "by something else than its number"),
        ("redis://cache?decode_responses=1", "the option 'decode_responses', which is not known; there are "),
        ("redis://cache?retry=3", "the option 'retry', which is not known"),
        ("redis://a..b/0", "names a host that is none"),
        ("redis://ca%00che/0", "NUL"),
    ],
)
def test_a_url_of_no_redis(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        check_redis(url)

    assert SECRET not in str(caught.value)
