"""Workers notify each other through Redis that there are changes, and nothing of what they are."""

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


class NoNotifier:
    """`service.ports.ChangeNotifier` of a worker that nobody notifies: it looks for changes whenever its time is up."""

    def notify(self) -> None:
        """Nothing."""

    async def wait(self, timeout_s: float) -> None:
        await asyncio.sleep(timeout_s)

    async def close(self) -> None:
        """Nothing."""


class RedisNotifier:
    """`service.ports.ChangeNotifier` over a Redis channel. With Redis away nobody is notified, and it works again by
    itself.

    Make it inside a running event loop.

    Args:
        url: `redis://host:port/db`. Channels are common to all databases of a server.
        channel: workers that share it notify each other.
    """

    def __init__(self, url: str, *, channel: str = "lacuna:changes") -> None:
        self._redis: Any = Redis.from_url(
            url, socket_timeout=LISTEN_S + TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )
        self._channel = channel
        self._notified = asyncio.Event()
        self._to_publish = asyncio.Event()
        self._away = False
        self._tasks = [asyncio.create_task(self._forever(work)) for work in (self._listen, self._publish)]

    def notify(self) -> None:
        self._to_publish.set()

    async def wait(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(
                timeout_s
            ):  # `wait_for` would take a cancellation for a notification that comes with it
                await self._notified.wait()
        self._notified.clear()

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
            self._notified.set()  # something may have been missed before
            if self._away:
                _logger.info("Redis answers again")
            self._away = False
            while True:
                message = await channel.get_message(ignore_subscribe_messages=True, timeout=LISTEN_S)
                if message is not None:
                    self._notified.set()

    async def _publish(self) -> None:
        while True:
            await self._to_publish.wait()
            self._to_publish.clear()  # all notifications until then are this one
            await self._redis.publish(self._channel, b"")
