"""The same calls on the limiter in memory and on the one in Redis."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from service.adapters.limiters import MemoryLimiter, RedisLimiter
from service.ports import Limiter

Make = Callable[[Callable[[], float]], Limiter]
NOON = 1_790_000_040.0  # the beginning of a minute


@pytest.fixture(params=["memory", "redis", "redis away"])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    made: list[Limiter] = []

    def limiter(clock: Callable[[], float]) -> Limiter:
        if request.param == "memory":
            one: Any = MemoryLimiter(3, clock=clock)
        else:
            url = "redis://127.0.0.1:1" if "away" in request.param else request.getfixturevalue("redis_url")
            one = RedisLimiter(url, 3, prefix=f"test:{uuid.uuid4().hex}:", clock=clock)
        made.append(one)
        return one

    yield limiter
    for one in made:
        await one.close()


async def test_each_name_has_its_own_count_each_minute(make: Make) -> None:
    now = NOON
    limiter = make(lambda: now)
    assert [await limiter.take("a") for _ in range(5)] == [0, 0, 0, 60, 60]
    now += 45
    assert await limiter.take("a") == 15
    assert await limiter.take("b") == 0
    now += 15
    assert [await limiter.take("a") for _ in range(4)] == [0, 0, 0, 60]


async def test_processes_count_together_in_redis(redis_url: str) -> None:
    prefix = f"test:{uuid.uuid4().hex}:"
    one, other = (RedisLimiter(redis_url, 3, prefix=prefix, clock=lambda: NOON) for _ in range(2))
    waits = [await limiter.take("a") for limiter in (one, other, one, other)]
    assert waits == [0, 0, 0, 60]
    await one.close()
    await other.close()
