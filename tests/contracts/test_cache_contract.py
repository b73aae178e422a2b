"""The same calls on every Cache."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator

import cachetools
import pytest

from service.adapters.memory_cache import MemoryCache
from service.adapters.redis.cache import RedisCache
from service.ports import Cache

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture(params=["memory", "redis"])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[Cache]:
    made: Cache = MemoryCache()
    if request.param == "redis":
        made = RedisCache(request.getfixturevalue("redis_url"), prefix=f"test:{uuid.uuid4().hex}:")
    yield made
    await made.close()


async def test_value_comes_back(cache: Cache) -> None:
    assert await cache.get("a") is None
    await cache.set("a", b"\x00\xff", ttl_s=30)
    await cache.set("b", b"", ttl_s=30)
    assert await cache.get("a") == b"\x00\xff"
    assert await cache.get("b") == b""
    await cache.set("a", b"new", ttl_s=30)
    assert await cache.get("a") == b"new"


async def test_value_expires(cache: Cache) -> None:
    await cache.set("a", b"1", ttl_s=0.03)
    await cache.set("b", b"1", ttl_s=30)
    await cache.set("b", b"1", ttl_s=0)
    await asyncio.sleep(0.06)
    assert await cache.get("a") is None
    assert await cache.get("b") is None


async def test_memory_lets_the_least_recently_used_go() -> None:
    cache = MemoryCache(max_bytes=30)
    for key in "abc":
        await cache.set(key, bytes(9), ttl_s=9)
    await cache.get("a")
    await cache.set("d", bytes(9), ttl_s=9)
    assert [await cache.get(key) is not None for key in "abcd"] == [True, False, True, True]


async def test_memory_refuses_what_never_fits_and_forgets_the_old_value() -> None:
    cache = MemoryCache(max_bytes=30)
    await cache.set("a", b"old", ttl_s=9)
    await cache.set("b", b"kept", ttl_s=9)
    await cache.set("a", bytes(31), ttl_s=9)
    assert await cache.get("a") is None
    assert await cache.get("b") == b"kept"


async def test_memory_expires_by_the_given_clock() -> None:
    now = 100.0
    cache = MemoryCache(clock=lambda: now)
    await cache.set("a", b"1", ttl_s=5)
    now = 104.9
    assert await cache.get("a") == b"1"
    now = 105.0
    assert await cache.get("a") is None


async def test_redis_away_is_a_miss_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = iter(range(100))
    cache = RedisCache(NOWHERE, clock=lambda: next(clock))
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            await cache.set("a", b"1", ttl_s=9)
            assert await cache.get("a") is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    await cache.close()


async def test_redis_is_used_again_once_it_is_back(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    cache = RedisCache(NOWHERE, prefix=f"test:{uuid.uuid4().hex}:", clock=lambda: now)
    await cache.set("a", b"1", ttl_s=9)
    back = RedisCache(redis_url)
    cache.client.redis, back.client.redis = back.client.redis, cache.client.redis
    await cache.set("a", b"early", ttl_s=9)
    assert await cache.get("a") is None
    now = 2.0
    with caplog.at_level(logging.INFO):
        await cache.set("a", b"2", ttl_s=9)
    assert await cache.get("a") == b"2"
    assert "again" in caplog.text
    await cache.close()
    await back.close()


async def test_expired_entries_take_no_memory_though_nobody_asks_for_them() -> None:
    now = 0.0
    cache = MemoryCache(clock=lambda: now)
    for number in range(1000):
        now = float(number)
        await cache.set(f"list:{number}", b"x", ttl_s=60)
    assert cachetools.Cache.__len__(cache._entries) == 60  # its own counts only what has not expired
    assert await cache.get("list:999") == b"x"
