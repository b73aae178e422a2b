"""Ending tasks for good."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

RETRY_S = 0.5


async def stop(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks until they are over, whatever they end with.

    Once is not enough: a cancellation that meets a timeout or a result on its way may be taken for that by a library,
    after which the task goes on.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=RETRY_S)
