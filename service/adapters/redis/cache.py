"""A cache shared through Redis."""

from __future__ import annotations

import time
from collections.abc import Callable

from service.adapters.redis.client import RedisClient


class RedisCache:
    """`service.ports.Cache` over Redis. With Redis away, reads miss and writes are dropped.

    Args:
        url: `redis://host:port/db`.
        prefix: put before every key.
        clock: seconds that only ever grow.
    """

    def __init__(self, url: str, *, prefix: str = "lacuna:", clock: Callable[[], float] = time.monotonic) -> None:
        self.client = RedisClient(url, use="cache", clock=clock)
        self._prefix = prefix

    async def get(self, key: str) -> bytes | None:
        return await self.client.attempt(lambda redis: redis.get(self._prefix + key))

    async def set(self, key: str, value: bytes, *, ttl_s: float) -> None:
        if ttl_s <= 0:
            await self.client.attempt(lambda redis: redis.delete(self._prefix + key))
            return
        lifetime = max(1, round(ttl_s * 1000))
        await self.client.attempt(lambda redis: redis.set(self._prefix + key, value, px=lifetime))

    async def close(self) -> None:
        await self.client.redis.aclose()
