"""How often somebody may ask: counted in windows of a minute, in this process or for all of them in Redis."""

from __future__ import annotations

import time
from collections.abc import Callable

from service.adapters.redis.client import RedisClient

WINDOW_S = 60
MOST_NAMES = 100_000  # counted apart in a window; addresses are more than memory has room for


class MemoryLimiter:
    """`service.ports.Limiter` that counts in this process.

    Args:
        per_minute: requests that one name may make in a minute.
        clock: seconds since the epoch.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.time) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._window = 0
        self._counts: dict[str, int] = {}

    async def take(self, name: str) -> float:
        now = self._clock()
        window = int(now // WINDOW_S)
        if window != self._window:
            self._window, self._counts = window, {}
        if len(self._counts) >= MOST_NAMES and name not in self._counts:
            name = ""  # all further names together
        self._counts[name] = self._counts.get(name, 0) + 1
        return _wait(self._counts[name], self._per_minute, now)

    def __len__(self) -> int:
        """How many names are counted just now."""
        return len(self._counts)

    async def close(self) -> None:
        self._counts.clear()


class RedisLimiter:
    """`service.ports.Limiter` that counts for all processes in Redis; with Redis away, each counts for itself.

    Args:
        url: `redis://host:port/db`.
        per_minute: requests that one name may make in a minute.
        alone: the same for this process, while Redis is away.
        prefix: put before every key.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        url: str,
        per_minute: int,
        *,
        alone: int | None = None,
        prefix: str = "lacuna:rate:",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = RedisClient(url, use="rate limits")
        self._alone = MemoryLimiter(alone or per_minute, clock=clock)
        self._per_minute = per_minute
        self._prefix = prefix
        self._clock = clock

    async def take(self, name: str) -> float:
        now = self._clock()
        key = f"{self._prefix}{name}:{int(now // WINDOW_S)}"
        count = await self._client.attempt(lambda redis: _counted(redis, key))
        return await self._alone.take(name) if count is None else _wait(count, self._per_minute, now)

    async def close(self) -> None:
        await self._client.redis.aclose()


async def _counted(redis: object, key: str) -> int:
    async with redis.pipeline(transaction=True) as calls:  # type: ignore[attr-defined]  # a Redis
        calls.incr(key)
        calls.expire(key, 2 * WINDOW_S)
        count, _ = await calls.execute()
    return int(count)


def _wait(count: int, per_minute: int, now: float) -> float:
    return 0.0 if count <= per_minute else WINDOW_S - now % WINDOW_S
