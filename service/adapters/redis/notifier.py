"""Workers wake each other through Redis: a ring says that there are changes, and nothing of what they are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.tasks import stop

TIMEOUT_S = 0.5
PAUSE_S = 1.0  # after a failure Redis is left alone this long
LISTEN_S = 5.0

_logger = logging.getLogger(__name__)


class RedisBell:
    """`service.ports.Bell` over a Redis channel. With Redis away nobody hears it, and it works again by itself.

    Make it inside a running event loop.

    Args:
        url: `redis://host:port/db`. Channels are common to all databases of a server.
        channel: who shares it wakes each other.
    """

    def __init__(self, url: str, *, channel: str = "lacuna:changes") -> None:
        self._redis: Any = Redis.from_url(
            url, socket_timeout=LISTEN_S + TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )
        self._channel = channel
        self._heard = asyncio.Event()
        self._to_ring = asyncio.Event()
        self._away = False
        self._tasks = [asyncio.create_task(self._forever(work)) for work in (self._listen, self._publish)]

    def ring(self) -> None:
        self._to_ring.set()

    async def wait(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):  # `wait_for` would take a cancellation for a ring that comes with it
                await self._heard.wait()
        self._heard.clear()

    async def close(self) -> None:
        await stop(self._tasks)
        await self._redis.aclose()

    async def _forever(self, work: Any) -> None:
        while True:
            try:
                await work()
            except (RedisError, OSError) as error:
                if not self._away:
                    _logger.warning(
                        "Redis does not answer; changes are looked for without it (%s)", type(error).__name__
                    )
                self._away = True
                await asyncio.sleep(PAUSE_S)

    async def _listen(self) -> None:
        async with self._redis.pubsub() as channel:
            await channel.subscribe(self._channel)
            self._heard.set()  # who knows what was missed
            if self._away:
                _logger.info("Redis answers again")
            self._away = False
            while True:
                message = await channel.get_message(ignore_subscribe_messages=True, timeout=LISTEN_S)
                if message is not None:
                    self._heard.set()

    async def _publish(self) -> None:
        while True:
            await self._to_ring.wait()
            self._to_ring.clear()  # rings until then are this one
            await self._redis.publish(self._channel, b"")
