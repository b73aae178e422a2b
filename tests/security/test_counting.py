"""What is counted, for whom, and what answers are kept of it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.adapters.limiters import MOST_NAMES, MemoryLimiter, RedisLimiter
from service.adapters.sql import idempotency as kept
from service.adapters.sql.store import SqlStore
from service.adapters.sql.tables import idempotency
from service.api.idempotency import Idempotency
from service.api.limits import network_of
from service.bootstrap import limiter_of
from service.domain import StoreUnavailableError
from service.main import create_app
from service.pipeline.engine import Engine
from service.ports import Answer
from service.settings import Settings
from tests.security.serving import Served, answer_of, serving
from tests.service.asgi import Failing, client_of, settings_of
from tests.service.processes import within

READER, WRITER = "a-key-of-the-reader", "a-key-of-the-writer"
KEYS = f"reader:read:{READER},writer:write:{WRITER}"
NOON = 1_767_225_600.0  # a whole minute


def serve(engine: Engine, **settings: Any) -> Any:
    return client_of(create_app(settings_of(**settings), engine=engine))


async def statuses(api: httpx.AsyncClient, times: int, path: str = "/items", **headers: str) -> list[int]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return [(await api.get(path, headers=sent)).status_code for _ in range(times)]


# --- what is counted --------------------------------------------------------------------------------------------------


async def test_a_replayed_answer_counts(engine: Engine) -> None:
    async with serve(engine, api_keys=KEYS, rate_limit=3) as api:
        headers = {"X-API-Key": WRITER, "Idempotency-Key": "one"}
        answers = [await api.post("/items", json={"id": "a"}, headers=headers) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [201, 201, 201, 429, 429]
        assert answers[1].headers["idempotency-replayed"] == "true"
        assert await engine.store.claim("writer:one", "of another request", lease_s=1) == "other"


async def test_wrong_keys_count_by_address_and_take_nothing_from_right_ones(engine: Engine) -> None:
    async with serve(engine, api_keys=KEYS, rate_limit=3) as api:
        assert await statuses(api, 5, x_api_key="guessed") == [401, 401, 401, 429, 429]
        assert await statuses(api, 2, x_api_key="another guess", path="/metrics") == [429, 429]
        assert await statuses(api, 2) == [429, 429]
        assert await statuses(api, 4, x_api_key=READER) == [200, 200, 200, 429]
        assert await statuses(api, 1, authorization=f"Bearer {WRITER}") == [200]
        assert await statuses(api, 3, path="/health/ready") == [200] * 3
        assert await statuses(api, 1, x_api_key=READER, path="/metrics") == [429]


async def test_a_key_whose_role_does_not_reach_counts_too(engine: Engine) -> None:
    async with serve(engine, api_keys=KEYS, rate_limit=2) as api:
        answers = [await api.delete("/items/a", headers={"X-API-Key": READER}) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [403, 403, 429]


def test_addresses_are_counted_by_whom_they_may_belong_to() -> None:
    assert network_of("198.51.100.7") == "198.51.100.7"
    assert network_of("::ffff:198.51.100.7") == "198.51.100.7"
    assert network_of("2001:db8:1:2:3:4:5:6") == network_of("2001:db8:1:2::9") == "2001:db8:1:2::/64"
    assert network_of("2001:db8:1:3::9") != network_of("2001:db8:1:2::9")
    assert network_of("") == ""


async def test_processes_that_count_by_themselves_share_the_limit(redis_url: str) -> None:
    async def allowed(limiter: Any) -> int:
        name = uuid.uuid4().hex
        found = sum([not await limiter.take(name) for _ in range(20)])
        await limiter.close()
        return found

    assert await allowed(limiter_of(settings_of(rate_limit=10))) == 10
    assert await allowed(limiter_of(settings_of(rate_limit=10, workers=4))) == 3
    assert await allowed(limiter_of(settings_of(rate_limit=10, workers=4, redis_url=redis_url))) == 10
    away = limiter_of(settings_of(rate_limit=10, workers=4, redis_url="redis://127.0.0.1:1/0"))
    assert isinstance(away, RedisLimiter)
    assert await allowed(away) == 3


async def test_names_without_end_take_no_memory_without_end() -> None:
    limiter = MemoryLimiter(2, clock=lambda: NOON)
    for number in range(MOST_NAMES + 1000):
        await limiter.take(f"address:{number}")
    assert len(limiter) == MOST_NAMES + 1
    assert await limiter.take("address:new")  # those that came last share a count
    assert not await limiter.take("address:1")


# --- answers that are kept --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "is_kept"),
    [(201, True), (422, True), (409, True), (429, False), (503, False), (507, False), (408, False)],
)
@pytest.mark.parametrize("headers", [{}, {"Retry-After": "1"}])
async def test_only_final_answers_are_kept(engine: Engine, status: int, is_kept: bool, headers: dict[str, str]) -> None:
    app = create_app(settings_of(), engine=engine)
    answers = iter([status, 202])

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        await Response("{}", next(answers), headers)(scope, receive, send)

    once = Idempotency(answering, lease_s=60)

    async def within_the_app(scope: Scope, receive: Receive, send: Send) -> None:
        await once({**scope, "app": app}, receive, send)

    async with client_of(within_the_app) as api:
        first, second = [await api.post("/items", headers={"Idempotency-Key": "one"}) for _ in range(2)]
    is_kept = is_kept and not headers
    assert (first.status_code, second.status_code) == (status, status if is_kept else 202)
    assert ("idempotency-replayed" in second.headers) == is_kept


async def test_a_write_that_the_database_refused_is_done_the_second_time(engine: Engine, store: Failing) -> None:
    async with serve(engine) as api:
        headers = {"Idempotency-Key": "one"}
        store.failure, store.failing = StoreUnavailableError("away"), ["write_items"]
        assert (await api.post("/items", json={"id": "a"}, headers=headers)).status_code == 503
        store.failure = None
        assert (await api.post("/items", json={"id": "a"}, headers=headers)).status_code == 201


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/a.db"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
async def anywhere(url: str) -> AsyncIterator[SqlStore]:
    opened = await SqlStore.open(url)
    yield opened
    await opened.close()


async def kept_of(store: SqlStore, sender: str) -> tuple[int, int]:
    size = func.coalesce(func.sum(func.length(idempotency.c.body)), 0)
    query = select(func.count(), size).where(idempotency.c.key.startswith(f"{sender}:"))
    count, total = await store.database.read(lambda connection: connection.execute(query).one())
    return int(count), int(total)


async def test_the_answers_of_a_sender_have_a_limit(anywhere: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_ANSWERS", 50)
    await anywhere.claim("other:first", "f", lease_s=60)
    await anywhere.answered("other:first", Answer(201, b"x"))
    await anywhere.claim("me:under way", "f", lease_s=60)
    for number in range(200):
        await anywhere.claim(f"me:{number}", "f", lease_s=60)
        await anywhere.answered(f"me:{number}", Answer(201, b"x"))
        assert (await kept_of(anywhere, "me"))[0] <= 50 + kept.LOOK
    assert await anywhere.claim("me:199", "f", lease_s=60) == Answer(201, b"x")
    assert await anywhere.claim("me:under way", "f", lease_s=60) == "busy"
    assert await anywhere.claim("other:first", "f", lease_s=60) == Answer(201, b"x")
    assert await anywhere.claim("me:0", "f", lease_s=60) == "mine"


async def test_and_so_have_their_bytes(anywhere: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_BYTES", 100_000)
    for number in range(100):
        await anywhere.claim(f"large:{number}", "f", lease_s=60)
        await anywhere.answered(f"large:{number}", Answer(201, b"x" * 5000))
        assert (await kept_of(anywhere, "large"))[1] <= 100_000 + kept.LOOK * 5000
    assert (await kept_of(anywhere, "large"))[0] >= 10


# --- places -----------------------------------------------------------------------------------------------------------


def test_slow_bodies_of_one_key_leave_places_to_the_others(startable: Callable[..., Settings]) -> None:
    settings = startable(api_keys=KEYS, max_concurrency=6, max_key_concurrency=3)
    slow = b"POST /items HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nX-API-Key: %s\r\n" % WRITER.encode()
    with serving(settings) as service:
        held = [service.connect() for _ in range(8)]
        for client in held:
            client.sendall(slow + b"Content-Length: 1000\r\n\r\n{")
        within(10, lambda: _is_refused(service, WRITER) or None)
        for _ in range(3):
            answer = httpx.get(f"{service.url}/items", headers={"X-API-Key": READER})
            assert answer.status_code == 200
        for client in held:
            client.close()
        within(10, lambda: not _is_refused(service, WRITER) or None)


def _is_refused(service: Served, key: str) -> bool:
    return httpx.get(f"{service.url}/items", headers={"X-API-Key": key}).status_code == 503


async def test_an_only_key_has_all_places(engine: Engine) -> None:
    async with serve(engine, api_keys=f"w:write:{WRITER}", max_concurrency=4, max_key_concurrency=1) as api:
        headers = {"X-API-Key": WRITER}
        answers = await asyncio.gather(*(api.get("/items", headers=headers) for _ in range(4)))
        assert {answer.status_code for answer in answers} == {200}


def test_an_address_without_a_key_has_its_share_too(startable: Callable[..., Settings]) -> None:
    settings = startable(allow_anonymous=True, max_concurrency=6, max_key_concurrency=2, proxies="::1")
    slow = b"POST /items HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    with serving(settings) as service:
        held = [service.connect() for _ in range(4)]
        for client in held:
            client.sendall(slow)
        within(10, lambda: httpx.get(f"{service.url}/items").status_code == 503 or None)
        with service.connect("127.0.0.2") as other:
            other.sendall(b"GET /items HTTP/1.1\r\nHost: a\r\n\r\n")
            assert answer_of(other)[0].startswith(b"HTTP/1.1 200")
        for client in held:
            client.close()
