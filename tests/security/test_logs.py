"""The log: a line for each record, and nothing in it that is stored or was sent, but where it says so."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, text

from service.adapters.sql import database
from service.adapters.sql.database import RefusedStatementError
from service.adapters.sql.store import SqlStore
from service.adapters.sql.tables import feedback, idempotency, items
from service.domain import StoreUnavailableError
from service.logging import RequestIdFilter, TextFormatter
from service.main import create_app
from service.pipeline.engine import Engine
from tests.service.asgi import Failing, client_of, settings_of

FORGED = "2026-01-01 00:00:00,000 INFO    service [-] all is well"
USER = "alice-of-the-secret-life"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the root logger writes, as the service has it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RequestIdFilter())
    handler.setFormatter(TextFormatter())
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


# --- lines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\v", "\f", "\x85", "\u2028", "\x1b[2K\x1b[1A", "\x1b[0G"])
def test_a_message_is_one_line(log: io.StringIO, end: str) -> None:
    logging.getLogger("service.test").warning("no user %s", f"u{end}{FORGED}")
    (line,) = log.getvalue().rstrip("\n").splitlines()
    assert "no user u\\" in line
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in line)


def test_a_traceback_begins_no_line_with_what_it_quotes(log: io.StringIO) -> None:
    try:
        raise ValueError(f"odd\n{FORGED}\r{FORGED}")
    except ValueError:
        logging.getLogger("service.test").exception("it failed")
    first, *rest = log.getvalue().rstrip("\n").splitlines()
    assert first.endswith("it failed")
    assert rest[0].strip() == "Traceback (most recent call last):"
    assert all(line.startswith("    ") for line in rest)


# --- what is stored ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/a.db"
    found: str = request.getfixturevalue("postgres_url")
    return found


def taken_twice(connection: Connection) -> None:
    row = {"key": USER, "fingerprint": USER, "at": NOW}
    connection.execute(insert(idempotency), [row, row])


def of_nothing(connection: Connection) -> None:
    connection.execute(insert(feedback).values(user_id=USER, item_row=-1, type="view", timestamp=NOW, text=USER))


def without_a_title(connection: Connection) -> None:
    connection.execute(insert(items).values(id=USER, title=USER))


def no_such_table(connection: Connection) -> None:
    connection.execute(text("INSERT INTO nowhere VALUES (:user)"), {"user": USER})


@pytest.mark.parametrize("work", [taken_twice, of_nothing, without_a_title])
async def test_a_statement_that_is_refused_tells_no_values(url: str, work: Any, log: io.StringIO) -> None:
    store = await SqlStore.open(url)
    try:
        with pytest.raises(RefusedStatementError) as caught:
            await store.database.write(work)
        logging.getLogger("service.test").error("it failed", exc_info=caught.value)
    finally:
        await store.close()
    assert "IntegrityError" in log.getvalue()
    assert work.__name__ in log.getvalue()  # the traceback says where
    assert USER not in log.getvalue()


async def test_nor_does_one_that_fails_otherwise(url: str, log: io.StringIO) -> None:
    store = await SqlStore.open(url)
    try:
        with pytest.raises((StoreUnavailableError, RefusedStatementError)) as caught:
            await store.database.write(no_such_table)
        logging.getLogger("service.test").error("it failed", exc_info=caught.value)
    finally:
        await store.close()
    assert "nowhere" in log.getvalue()
    assert USER not in log.getvalue()


def test_reasons_are_the_first_line_that_postgresql_says() -> None:
    class RefusedError(Exception):
        detail = f"Key (user_id)=({USER}) already exists."

        def __str__(self) -> str:
            return f"{self.args[0]}\nDETAIL:  {self.detail}"

    assert database.reason_of(RefusedError("duplicate key value")) == "duplicate key value"


async def test_a_fault_names_the_route_and_not_the_user(engine: Engine, store: Failing, log: io.StringIO) -> None:
    store.failure = RuntimeError("surprise")
    async with client_of(create_app(settings_of(), engine=engine)) as api:
        assert (await api.get(f"/recommend/{USER}")).status_code == 500
        assert (await api.get(f"/recommend/{USER}?n=x")).status_code == 422
        assert (await api.get(f"/nowhere/{USER}")).status_code == 404
    said = "\n".join(line for line in log.getvalue().splitlines() if "httpx" not in line)  # the test's own requests
    assert "GET /recommend/{user} failed" in said
    assert USER not in said
