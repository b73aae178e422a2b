"""How many requests, how often and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.api import recommend as routes
from service.main import create_app
from tests.service.unit import fake_engine
from tests.service.unit.fake_engine import FakeEngine, settings_of

KEYS = "reader:read:key-of-the-reader,other:read:key-of-another-reader"
Serve = Callable[..., Any]


class Slow:
    """A pipeline that answers when it is told to."""

    def __init__(self, then: Callable[..., Any]) -> None:
        self.go = asyncio.Event()
        self.begun = 0
        self.cancelled = 0
        self._then = then

    async def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.begun += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await self._then(*arguments, **options)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    fake_engine.install(monkeypatch)
    one = Slow(routes.recommend.recommend_user)
    monkeypatch.setattr(routes.recommend, "recommend_user", one)
    return one


@pytest.fixture
def serve() -> Serve:
    def start(**settings: Any) -> Any:
        return fake_engine.client_of(create_app(settings_of(**settings), engine=FakeEngine()))

    return start


async def test_more_requests_than_can_be_worked_on_are_refused_at_once(slow: Slow, serve: Serve) -> None:
    async with serve(max_concurrency=2) as api:
        working = [asyncio.create_task(api.get("/recommend/u")) for _ in range(2)]
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
    async with serve(max_concurrency=1, request_seconds=0.05) as api:
        for _ in range(2):
            late = await api.get("/recommend/u")
            assert (late.status_code, late.json()["type"]) == (503, "/problems/timed-out")
            assert "retry-after" in late.headers
        assert slow.cancelled == 2
        slow.go.set()
        assert (await api.get("/recommend/u")).status_code == 200


async def test_a_timeout_of_something_else_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, slow: Slow, serve: Serve
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(routes.recommend, "recommend_user", fail)
    async with serve() as api:
        assert (await api.get("/recommend/u")).json()["type"] == "/problems/internal-error"
    assert slow.begun == 0


@pytest.mark.usefixtures("slow")
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
