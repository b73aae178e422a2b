"""Tasks end when they are told to, also where a cancellation meets something else."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from service.adapters.redis.notifier import RedisNotifier
from service.tasks import stop


async def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    lost = 0

    async def deaf_once() -> None:
        nonlocal lost
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        lost += 1
        await asyncio.sleep(60)

    tasks = [asyncio.create_task(deaf_once()) for _ in range(2)]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await stop(tasks)
    assert lost == 2
    assert all(task.cancelled() for task in tasks)


async def test_nothing_to_stop() -> None:
    await stop([])


async def test_a_waiter_is_cancelled_though_a_notification_comes_at_the_same_moment() -> None:
    notifier = RedisNotifier("redis://127.0.0.1:1")  # nobody answers there
    waiting = asyncio.create_task(notifier.wait(60))
    await asyncio.sleep(0.05)
    notifier._notified.set()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await notifier.close()
