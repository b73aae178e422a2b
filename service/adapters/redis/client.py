"""Redis that may go away: what needs it goes on without, and uses it again once it is back."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

T = TypeVar("T")

TIMEOUT_S = 0.5
PAUSE_S = 1.0  # after a failure Redis is left alone this long, so that its absence costs no request a timeout

_logger = logging.getLogger(__name__)


class RedisClient:
    """Calls to Redis that answer None where it does not.

    Args:
        url: `redis://host:port/db`.
        use: what is done with it, for the log.
        clock: seconds that only ever grow.
    """

    def __init__(self, url: str, *, use: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.redis: Any = Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )
        self._use = use
        self._clock = clock
        self._away = False
        self._retry_at = 0.0

    async def attempt(self, call: Callable[[Any], Awaitable[T]]) -> T | None:
        """What a call to Redis answers, or None; soon after a failure it is not even tried."""
        if self._away and self._clock() < self._retry_at:
            return None
        try:
            answer = await call(self.redis)
        except (RedisError, OSError) as error:
            self._note_failure(error)
            return None
        self._note_success()
        return answer

    def _note_failure(self, error: Exception) -> None:
        if not self._away:
            _logger.warning("Redis does not answer; going on without its %s (%s)", self._use, type(error).__name__)
        self._away = True
        self._retry_at = self._clock() + PAUSE_S

    def _note_success(self) -> None:
        if self._away:
            _logger.info("Redis answers again")
        self._away = False
