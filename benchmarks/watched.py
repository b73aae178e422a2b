"""The service as `python -m service` runs it, with somebody beside its event loop who notes how long that was held.

A coroutine sleeps 2 ms at a time. What it oversleeps is a stall; of that, `own` is the part that the process itself was
running, as the rest of it went to other programs of the machine. FILE is written anew whenever either is longer than
ever, and once a second.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from service import __main__ as program

BEAT_S = 0.002
TOLD_S = 1.0


async def _watch(file: Path) -> None:
    longest = {"stall_ms": 0.0, "own_stall_ms": 0.0}
    told = time.perf_counter()
    while True:
        wall, ran = time.perf_counter(), time.process_time()
        await asyncio.sleep(BEAT_S)
        now = time.perf_counter()
        over, own = (now - wall - BEAT_S) * 1e3, (time.process_time() - ran) * 1e3
        found = {
            "stall_ms": max(longest["stall_ms"], over),
            "own_stall_ms": max(longest["own_stall_ms"], min(over, own)),
        }
        if found != longest or now - told > TOLD_S:
            longest, told = found, now
            file.write_text(json.dumps({name: round(value, 1) for name, value in longest.items()}))


def main(file: Path) -> int:
    """Serve until told to stop."""
    create = program.create_app

    def watched(settings: Any, *, on_ready: Callable[[Any], Awaitable[None]], **options: Any) -> Any:
        async def ready(engine: Any) -> None:
            watching.append(asyncio.create_task(_watch(file)))
            await on_ready(engine)

        watching: list[asyncio.Task[None]] = []
        return create(settings, on_ready=ready, **options)

    program.create_app = watched
    return program.main([])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
