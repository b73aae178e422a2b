"""A cache shared through Redis."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.domain import NotReadyError

T = TypeVar("T")

TIMEOUT_S = 0.5
PAUSE_S = 1.0  # after a failure Redis is left alone this long, so that its absence costs no request a timeout

_logger = logging.getLogger(__name__)


class RedisCache:
    """`service.ports.Cache` over Redis. With Redis away, reads miss and writes are dropped; only `ping` raises.

    Args:
        url: `redis://host:port/db`.
        prefix: put before every key.
        clock: seconds that only ever grow.
    """

    def __init__(self, url: str, *, prefix: str = "lacuna:", clock: Callable[[], float] = time.monotonic) -> None:
        self._redis: Any = Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )
        self._prefix = prefix
        self._clock = clock
        self._away = False
        self._retry_at = 0.0

    async def get(self, key: str) -> bytes | None:
        return await self._attempt(lambda: self._redis.get(self._prefix + key))

    async def set(self, key: str, value: bytes, *, ttl_s: float) -> None:
        if ttl_s <= 0:
            await self.delete(key)
            return
        lifetime = max(1, round(ttl_s * 1000))
        await self._attempt(lambda: self._redis.set(self._prefix + key, value, px=lifetime))

    async def delete(self, *keys: str) -> None:
        if keys:
            await self._attempt(lambda: self._redis.delete(*(self._prefix + key for key in keys)))

    async def ping(self) -> None:
        """Raise NotReadyError where Redis does not answer."""
        try:
            await self._redis.ping()
        except (RedisError, OSError) as error:
            raise NotReadyError("Redis does not answer.") from error

    async def close(self) -> None:
        await self._redis.aclose()

    async def _attempt(self, call: Callable[[], Awaitable[T]]) -> T | None:
        if self._away and self._clock() < self._retry_at:
            return None
        try:
            answer = await call()
        except (RedisError, OSError) as error:
            self._note_failure(error)
            return None
        self._note_success()
        return answer

    def _note_failure(self, error: Exception) -> None:
        if not self._away:
            _logger.warning("Redis does not answer; going on without its cache (%s)", type(error).__name__)
        self._away = True
        self._retry_at = self._clock() + PAUSE_S

    def _note_success(self) -> None:
        if self._away:
            _logger.info("Redis answers again")
        self._away = False
