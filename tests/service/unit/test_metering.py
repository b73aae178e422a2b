from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from service.metering import Meter, metered


def spin(seconds: float) -> float:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass
    return seconds


async def elsewhere(function: Callable[[float], float], seconds: float) -> float:
    return await asyncio.get_running_loop().run_in_executor(None, metered(function), seconds)


async def test_work_is_counted_in_the_loop_and_in_threads_without_what_else_goes_on() -> None:
    async def work() -> float:
        own = spin(0.02)
        await asyncio.sleep(0.05)
        return own + await elsewhere(spin, 0.03)

    async def other() -> None:
        for _ in range(10):
            await asyncio.sleep(0.005)
            spin(0.01)
            await elsewhere(spin, 0.01)

    meter = Meter()
    result, _ = await asyncio.gather(meter.run(work()), other())
    assert result == 0.05
    assert 0.05 <= meter.seconds < 0.08


async def test_errors_and_cancellations_reach_the_work() -> None:
    seen: list[str] = []

    async def failing() -> None:
        try:
            await elsewhere(lambda seconds: 1 / seconds, 0.0)
        except ZeroDivisionError:
            seen.append("error")
            raise

    async def waiting() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    with pytest.raises(ZeroDivisionError):
        await Meter().run(failing())

    async def metered_waiting() -> None:
        await Meter().run(waiting())

    task = asyncio.create_task(metered_waiting())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["error", "cancelled"]
