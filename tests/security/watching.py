"""What a service costs while something is asked of it: memory, and turns of its event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.service.running import Running

ENOUGH_TRIES = 6  # the machine may have other work at the time of any one


def memory_mib(pid: int, name: str) -> float:
    """`VmRSS`, what a process holds, or `VmHWM`, the most it has held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def forget_peak(pid: int) -> float:
    """Begin VmHWM anew; what the process holds now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return memory_mib(pid, "VmRSS")


def stall_ms(service: Running, ask: Callable[[], None]) -> float:
    """The longest time that a service's event loop did not come round, while something was asked of it."""
    return service.run(_beat(ask)) * 1e3


async def _beat(ask: Callable[[], None]) -> float:
    asking = asyncio.get_running_loop().run_in_executor(None, ask)
    longest, last = 0.0, time.perf_counter()
    while not asking.done():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    await asking
    return longest


def least_stall_ms(service: Running, ask: Callable[[], None], enough: float) -> float:
    """The least of a few measurements, or the first below `enough`."""
    least = float("inf")
    for _ in range(ENOUGH_TRIES):
        least = min(least, stall_ms(service, ask))
        if least < enough:
            break
    return least
