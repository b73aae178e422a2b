"""What a worker runs on: the writer's thread, locks by name, background tasks, the timer, and how far it has followed
the change log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import Context, ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from service.metering import metered
from service.pipeline.progress import Progress
from service.ports import ChangeNotifier, Seen, StepTimer
from service.tasks import stop

log = logging.getLogger(__name__)
T = TypeVar("T")

# The newest position in the change log of what the request at hand has written; 0 for nothing.
WRITTEN: ContextVar[int] = ContextVar("written", default=0)


class NoTimer:
    """Records no times."""

    def observe_step(self, step: str, seconds: float) -> None:
        """Nothing."""

    def observe_lag(self, seconds: Sequence[float]) -> None:
        """Nothing."""


@dataclass
class Followed:
    """How far this worker has followed the change log.

    Every change up to `position` is in memory, and so are those at `applied`, which this worker made itself. `at` is
    when it last was up to date (`time.monotonic`), `failing` whether the last attempt failed. `stamp` tells the log's
    entry at `position` from that of any other database, or is empty.
    """

    position: int = 0
    stamp: str = ""
    applied: set[int] = field(default_factory=set)
    at: float = field(default_factory=time.monotonic)
    failing: bool = False

    def has(self, position: int) -> bool:
        """Whether every change up to a position of the log is in memory."""
        return self.applied.issuperset(range(self.position + 1, position + 1))

    @property
    def lag_s(self) -> float:
        """Seconds since this worker last had every change."""
        return time.monotonic() - self.at


@dataclass
class Runtime:
    """One worker's threads, locks and tasks.

    `writer` runs everything that encodes or computes embeddings, one after the other, so that the event loop keeps
    answering; the catalogue is only written from there. `pending` are the items that this worker is about to
    regenerate, in order, and `changed` the positions of changes of features that it is about to spread; the store has
    all that are pending. `busy_at` is when a request last needed the writer, and `round_at` when the last round of
    background work ended (`time.monotonic`). `progress` tells how far what is derived follows the change log.
    """

    notifier: ChangeNotifier
    timer: StepTimer = field(default_factory=NoTimer)
    clock: Callable[[], float] = time.time
    followed: Followed = field(default_factory=Followed)
    progress: Progress = field(default_factory=Progress)
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="writer"))
    pending: dict[str, None] = field(default_factory=dict)
    changed: dict[int, None] = field(default_factory=dict)
    is_behind: bool = False  # whether the store may have more that is pending because of this worker's writes
    busy_at: float = -math.inf
    computing: int = 0  # computations that the writer's thread has, or is to have
    round_at: float = -math.inf
    share: float = 1.0  # of the time that computations may take, while another engine serves
    fallbacks: Counter[str] = field(default_factory=Counter)
    is_reviewing: bool = False  # whether somebody is about to look at the newest pairs of generated and real features
    warned: set[str] = field(default_factory=set)  # modalities whose calibration error was warned of
    superseded: str | None = None  # why this worker's answers are no longer right
    is_closing: bool = False
    _awaited: asyncio.Event = field(default_factory=asyncio.Event)  # whether somebody waits for background work
    _locks: dict[str, tuple[asyncio.Lock, int]] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _services: list[asyncio.Task[None]] = field(default_factory=list)

    def seen(self) -> Seen:
        """Which changes are in memory."""
        return Seen(self.followed.position, frozenset(self.followed.applied))

    def applied(self, positions: range) -> None:
        """Note that changes which this worker has committed are in its memory, and notify the other workers."""
        if positions:
            WRITTEN.set(positions[-1])
            self.followed.applied.update(positions)
            self.notifier.notify()

    async def compute(self, function: Callable[..., T], *arguments: object) -> T:
        """Run a computation on the writer's thread."""
        self.computing += 1
        started = time.monotonic()
        try:
            return await asyncio.get_running_loop().run_in_executor(self.writer, metered(function), *arguments)
        finally:
            self.computing -= 1
            if self.share < 1:
                await self.rest((time.monotonic() - started) * (1 / self.share - 1))

    @contextmanager
    def step(self, name: str, timings: dict[str, float] | None = None) -> Iterator[None]:
        """Time one step, for the metrics and, in milliseconds, for an answer's `timings_ms`."""
        start, self.busy_at = time.perf_counter(), time.monotonic()
        yield
        seconds = time.perf_counter() - start
        self.timer.observe_step(name, seconds)
        if timings is not None:
            timings[name] = round(timings.get(name, 0.0) + seconds * 1000, 3)

    # --- locks ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def lock(self, *names: str) -> AsyncIterator[None]:
        """One holder at a time per name (an item's id), in the order of arrival. Several are taken in order of name, so
        that no two holders ever wait for each other."""
        async with AsyncExitStack() as held:
            for name in sorted(set(names)):
                await held.enter_async_context(_Lock(self._locks, name))
            yield

    def is_locked(self, name: str) -> bool:
        """Whether anybody holds a lock, or waits for it."""
        return name in self._locks

    # --- tasks ---------------------------------------------------------------------------------------------------

    def background(self, work: Coroutine[Any, Any, None], *, apart: bool = False) -> None:
        """Let something happen after the answer; `drain` waits for it. `apart`: it is of no one request."""
        task = asyncio.get_running_loop().create_task(work, context=Context() if apart else None)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background work failed", exc_info=error)

    async def rest(self, seconds: float) -> None:
        """Wait between two pieces of background work, unless somebody waits for it (`drain`)."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._awaited.wait(), seconds)

    async def drain(self) -> None:
        """Wait until all background work is done."""
        self._awaited.set()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._awaited.clear()

    def run(self, service: Coroutine[Any, Any, None]) -> None:
        """Let something run until the worker is closed."""
        task = asyncio.get_running_loop().create_task(service)
        task.add_done_callback(self._finished)
        self._services.append(task)

    async def close(self) -> None:
        """Finish what was begun, and leave to the next start what can wait."""
        self.is_closing = True
        await stop(self._services)
        await self.drain()
        self.writer.shutdown(wait=True)
        await self.notifier.close()


class _Lock:
    """A lock per name that exists only while somebody wants it."""

    def __init__(self, locks: dict[str, tuple[asyncio.Lock, int]], name: str) -> None:
        self._locks, self._name = locks, name

    async def __aenter__(self) -> None:
        lock, users = self._locks.get(self._name) or (asyncio.Lock(), 0)
        self._locks[self._name] = (lock, users + 1)
        try:
            await lock.acquire()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(self, *exc: object) -> None:
        self._locks[self._name][0].release()
        self._leave()

    def _leave(self) -> None:
        lock, users = self._locks[self._name]
        if users == 1:
            del self._locks[self._name]
        else:
            self._locks[self._name] = (lock, users - 1)
