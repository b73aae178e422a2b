"""How many requests, how often and for how long."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from service.adapters.sql.store import SqlStore
from service.domain import User
from service.main import create_app
from service.pipeline.active import Active
from service.ports import Store
from tests.service.asgi import Failing, client_of, engine_over, settings_of

KEYS = "reader:read:key-of-the-reader,other:read:key-of-another-reader"
Serve = Callable[..., Any]


class Slow(Failing):
    """A store that says what it has of a user when it is told to."""

    def __init__(self, store: SqlStore) -> None:
        super().__init__(store)
        self.go = asyncio.Event()
        self.begun = 0
        self.cancelled = 0

    async def get_user(self, user: str) -> User | None:
        self.begun += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        found: User | None = await super().__getattr__("get_user")(user)
        return found


@pytest.fixture
async def slow(empty_file: Path, tmp_path: Path) -> Slow:
    file = shutil.copy(empty_file, tmp_path / "lacuna.db")
    return Slow(await SqlStore.open(f"sqlite+aiosqlite:///{file}"))


@pytest.fixture
async def serve(active: Active, slow: Slow) -> AsyncIterator[Serve]:
    """Apps over one engine, in which there is a user `u`."""
    engine = await engine_over(active, cast(Store, slow))

    def start(**settings: Any) -> Any:
        return client_of(create_app(settings_of(**settings), engine=engine))

    async with start() as api:
        await api.put("/items/a", json={})
        await api.post("/feedback", json={"feedback": [{"user": "u", "item": "a", "type": "view"}]})
    yield start
    await engine.close()


async def test_more_requests_than_can_be_worked_on_are_refused_at_once(slow: Slow, serve: Serve) -> None:
    async with serve(max_concurrency=2) as api:
        working = [asyncio.create_task(api.get("/users/u")) for _ in range(2)]
        while slow.begun < 2:
            await asyncio.sleep(0)
        refused = await api.get("/items")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["type"] == "/problems/overloaded"
        assert refused.headers["x-request-id"] == refused.json()["request_id"]
        assert (await api.get("/health/live")).status_code == 200
        assert 'status="503"' in (await api.get("/metrics")).text
        slow.go.set()
        assert [(await one).status_code for one in working] == [200, 200]
        assert (await api.get("/items")).status_code == 200


async def test_a_request_has_its_time(slow: Slow, serve: Serve) -> None:
    async with serve(max_concurrency=1, request_seconds=0.2) as api:
        for _ in range(2):
            late = await api.get("/users/u")
            assert (late.status_code, late.json()["type"]) == (503, "/problems/timed-out")
            assert "retry-after" in late.headers
        assert slow.cancelled == 2
        slow.go.set()
        assert (await api.get("/users/u")).status_code == 200


async def test_a_timeout_of_something_else_is_a_fault(slow: Slow, serve: Serve) -> None:
    slow.failure = TimeoutError()
    async with serve() as api:
        assert (await api.get("/items/a")).json()["type"] == "/problems/internal-error"


async def test_a_key_has_so_many_requests_a_minute(serve: Serve) -> None:
    async with serve(api_keys=KEYS, rate_limit=3) as api:

        async def ask(key: str) -> httpx.Response:
            return await api.get("/items", headers={"X-API-Key": key})

        answers = [await ask("key-of-the-reader") for _ in range(3)]
        assert [one.status_code for one in answers] == [200, 200, 200]
        refused = await ask("key-of-the-reader")
        assert (refused.status_code, refused.json()["type"]) == (429, "/problems/too-many-requests")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert (await ask("key-of-another-reader")).status_code == 200
        assert (await ask("no key")).status_code == 401
        assert (await api.get("/health/ready")).status_code == 200
    async with serve(rate_limit=1) as api:  # without keys, the address counts
        assert [(await api.get("/items")).status_code for _ in range(2)] == [200, 429]
