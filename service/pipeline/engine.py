"""The parts a request works with, gathered once at start."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from models.bundle import Manifest
from models.dgmrec.serving import DGMRecServing
from models.encoders import ImageEncoder, TextEncoder
from models.iris.serving import IRISServing
from service.pipeline.catalogue import Catalogue
from service.ports import Bell, Cache, Fetcher, StepTimer, Store
from service.tasks import stop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from service.pipeline.documents import Documents
    from service.pipeline.history import History

log = logging.getLogger(__name__)
T = TypeVar("T")

HISTORIES = 50_000
# The newest position in the change log of what the request at hand has written; 0 for nothing.
WRITTEN: ContextVar[int] = ContextVar("written", default=0)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request."""

    image_pixels: int = 20_000_000
    text_chars: int = 20_000
    request_pixels: int = 100_000_000  # of all its pictures together


class NoTimer:
    """Forgets the times."""

    def observe_step(self, step: str, seconds: float) -> None:
        """Nothing."""

    def observe_lag(self, seconds: Sequence[float]) -> None:
        """Nothing."""


class NoBell:
    """For a worker that nobody wakes: it looks for changes whenever its time is up."""

    def ring(self) -> None:
        """Nothing."""

    async def wait(self, timeout_s: float) -> None:
        """Sleep."""
        await asyncio.sleep(timeout_s)

    async def close(self) -> None:
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

    @property
    def lag_s(self) -> float:
        """Seconds since this worker last knew everything."""
        return time.monotonic() - self.at


@dataclass
class Engine:
    """One running catalogue under one bundle.

    `writer` runs everything that encodes or computes embeddings, one after the other, so that the event loop keeps
    answering; the catalogue is only written from there. `histories` caches users' histories, dropped when they change.
    `stale` are the items that this worker is about to regenerate; the store knows all that await it.
    """

    store: Store
    cache: Cache
    manifest: Manifest
    model: DGMRecServing
    encoders: Mapping[str, TextEncoder | ImageEncoder]
    catalogue: Catalogue
    limits: Limits = field(default_factory=Limits)
    timer: StepTimer = field(default_factory=NoTimer)
    bell: Bell = field(default_factory=NoBell)
    fetcher: Fetcher | None = None  # without one, pictures' URLs are refused
    followed: Followed = field(default_factory=Followed)
    snapshots: Path = Path("snapshots")  # the folder
    superseded: str | None = None  # why this worker can no longer answer rightly
    clock: Callable[[], float] = time.time
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="writer"))
    histories: OrderedDict[str, History] = field(default_factory=OrderedDict)
    documents: Documents | None = None  # where the bundle predicts ratings
    reranker: IRISServing | None = None  # where the bundle explains
    loading: dict[str, asyncio.Task[History]] = field(default_factory=dict)
    fallbacks: Counter[str] = field(default_factory=Counter)
    stale: dict[str, None] = field(default_factory=dict)
    is_closing: bool = False
    _locks: dict[str, tuple[asyncio.Lock, int]] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _services: list[asyncio.Task[None]] = field(default_factory=list)
    closers: list[Callable[[], None]] = field(default_factory=list)

    @property
    def model_version(self) -> str:
        """The bundle's version, as answers carry it."""
        return self.manifest.version

    @cached_property
    def identity(self) -> str:
        """What tells the active bundle from every other; versions are counted per folder and do not."""
        return hashlib.sha256(self.manifest.model_dump_json().encode()).hexdigest()

    def own(self, positions: range) -> None:
        """Note that changes of this worker's own are in its memory, and tell the other workers."""
        if positions:
            WRITTEN.set(positions[-1])
            self.followed.applied.update(positions)
            self.bell.ring()

    @property
    def min_rating(self) -> float | None:
        """Ratings below it show no interest."""
        return self.manifest.data.min_rating

    async def compute(self, function: Callable[..., T], *arguments: object) -> T:
        """Run a computation on the writer's thread."""
        return await asyncio.get_running_loop().run_in_executor(self.writer, function, *arguments)

    @contextmanager
    def step(self, name: str, timings: dict[str, float] | None = None) -> Iterator[None]:
        """Time one step, for the metrics and, in milliseconds, for an answer's `timings_ms`."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.timer.observe_step(name, seconds)
        if timings is not None:
            timings[name] = round(timings.get(name, 0.0) + seconds * 1000, 3)

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

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something happen after the answer; `settle` waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background work failed", exc_info=error)

    async def settle(self) -> None:
        """Wait until all background work is done."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def run(self, service: Coroutine[Any, Any, None]) -> None:
        """Let something run until the engine is closed."""
        task = asyncio.get_running_loop().create_task(service)
        task.add_done_callback(self._finished)
        self._services.append(task)

    async def close(self) -> None:
        """Finish what was begun, leave to the next start what can wait, and let go of everything."""
        self.is_closing = True
        await stop(self._services)
        await self.settle()
        self.writer.shutdown(wait=True)
        for close in self.closers:
            close()
        await self.bell.close()
        await self.cache.close()
        await self.store.close()


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
