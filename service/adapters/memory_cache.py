"""A cache in this process's memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import TLRUCache


@dataclass(frozen=True, slots=True)
class _Entry:
    value: bytes
    size: int  # of key and value, in bytes
    ttl_s: float


class MemoryCache:
    """`service.ports.Cache` in memory: entries leave once they have expired, and the least recently used of them where
    there would be more than `max_bytes`.

    Args:
        max_bytes: cap on the keys and values held.
        clock: seconds that only ever grow.
    """

    def __init__(self, *, max_bytes: int = 64 << 20, clock: Callable[[], float] = time.monotonic) -> None:
        self._entries: TLRUCache[str, _Entry] = TLRUCache(
            max_bytes, lambda _, entry, now: now + entry.ttl_s, clock, lambda entry: entry.size
        )

    async def get(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        return None if entry is None else entry.value

    async def set(self, key: str, value: bytes, *, ttl_s: float) -> None:
        entry = _Entry(value, len(key) + len(value), ttl_s)
        if entry.size > self._entries.maxsize:
            self._entries.pop(key, None)
        else:
            self._entries[key] = entry

    async def close(self) -> None:
        self._entries.clear()
