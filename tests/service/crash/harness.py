"""Rounds of writing and dying: the service is killed at random moments while shops write to it, and then looked at.

After each restart what is stored must be what was acknowledged, the index must be what is stored, to the bit, and every
worker must answer every list as a service does that has just read the whole database.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx

from models.bundle import Bundle
from service import backup
from service.adapters.memory_cache import MemoryCache
from service.adapters.redis.notifier import NoNotifier
from service.adapters.sql.store import SqlStore
from service.bootstrap import compose, load
from service.domain import StoreUnavailableError
from service.main import create_app
from service.pipeline.active import Active
from service.pipeline.engine import Engine
from service.pipeline.rebuild import load_catalogue
from service.pipeline.snapshot import NAME, fill, read
from service.settings import Settings
from tests.service.crash.shop import Act, Shop
from tests.service.crash.stored import read_states
from tests.service.processes import Program, within
from tests.service.running import check_index, open_active

SETTLE_S = 120.0
DUST_S = 1.0  # until a killed process's transactions are over
SHOPS = 4
SAMPLED = 12  # items whose neighbourhoods are compared


class Trouble(Protocol):
    """What goes wrong around the service while shops write: anything but harm to its database's content."""

    made: Counter[str]

    def make(self, rng: random.Random) -> None:
        """Make some, now."""

    def end(self) -> None:
        """Let everything be in order again."""


class NoTrouble:
    """Nothing goes wrong."""

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()

    def make(self, rng: random.Random) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


@dataclass
class Report:
    """What was done and what was found."""

    kills: Counter[str] = field(default_factory=Counter)
    acknowledged: Counter[str] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)  # answers of 500 and above
    snapshots: Counter[str] = field(default_factory=Counter)  # what was done to them before a restart
    backups_restored: int = 0
    answers_compared: int = 0
    items_checked: int = 0
    restart_s: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


class Harness:
    """A service over one database, and the shops that write to it.

    Args:
        bundle: what is served.
        folder: for the service's data and log.
        database: its URL.
        seed: of everything random.
        trouble: what goes wrong around the service.
        settings: more settings of the service, by their names without the prefix.
    """

    def __init__(
        self,
        bundle: Path,
        folder: Path,
        database: str,
        *,
        seed: int,
        trouble: Trouble | None = None,
        **settings: Any,
    ) -> None:
        self.rng = random.Random(seed)
        self.report = Report()
        self.database = database
        self.settings = Settings(bundle=bundle, data_dir=folder, database_url=database)
        self.program = Program(
            folder / "service.log", bundle=bundle, data_dir=folder, database_url=database, **settings
        )
        self.workers = int(settings.get("workers", 1))
        _, self._active = load(self.settings)
        dims = {modality.name: modality.dim for modality in Bundle.load(bundle).manifest.modalities}
        self.shops = [Shop(f"w{seed}s{number}", dims, random.Random(f"{seed}-{number}")) for number in range(SHOPS)]
        self._trouble = trouble or NoTrouble()
        self._backup = folder / "backup.zip"
        self._backed_up: dict[str, int] = {}  # length of each shop's history when the backup was begun
        self._snapshot = folder / "snapshots" / NAME
        self._older: bytes | None = None

    def run(self, rounds: int, seconds: float, progress: Callable[[int], None] = lambda _: None) -> Report:
        """Write for a quarter of `seconds` up to all of them, kill, restart and check, so many times; then die once
        more with nothing to do."""
        with self.program:
            for number in range(rounds):
                self.write(self.rng.uniform(seconds / 4, seconds))
                self.harm_snapshot()
                self.restart()
                self.check()
                progress(number)
            paths = self.sample()
            before = self.lists(paths)
            self.kill_all()
            self.restart()
            if self.lists(paths) != before:
                self.report.violations.append("the lists before an idle kill are not those after it")
        return self.report

    # --- writing and dying -----------------------------------------------------------------------------------------

    def write(self, seconds: float) -> None:
        """Let the shops write, and kill the service in the middle of it."""
        stop = threading.Event()
        threads = [threading.Thread(target=self._shop, args=(shop, stop)) for shop in self.shops]
        for thread in threads:
            thread.start()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, self.rng.uniform(0.2, 1.5)))
            self._trouble.make(self.rng)
            if self.workers > 1 and self.rng.random() < 0.7:
                self.kill_one()
            if self.rng.random() < 0.3:
                self.take_snapshot()
            if not self._backed_up and self.rng.random() < 0.5:
                self.take_backup()
        self.kill_all()
        stop.set()
        self._trouble.end()
        for thread in threads:
            thread.join()
        for shop in self.shops:
            self.report.violations += shop.violations
            shop.violations.clear()

    def _shop(self, shop: Shop, stop: threading.Event) -> None:
        # A connection for each request, so that any worker may get it.
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(base_url=self.program.url, timeout=30, limits=limits) as client:

            def ask(act: Act) -> httpx.Response:
                answer = client.request(act.method, act.path, json=act.body)
                if answer.status_code >= 500:
                    self.report.failed[f"{act.name} {answer.status_code}"] += 1
                return answer

            while not stop.is_set() and not shop.violations:
                shop.work(ask, lambda: not stop.is_set())
                if shop.pending is not None:
                    self._find_out(shop)

    def _find_out(self, shop: Shop) -> None:
        """What became of a request that was not answered, as the database says once the dust has settled."""
        self.report.unanswered[shop.pending.name if shop.pending else ""] += 1
        time.sleep(DUST_S)
        states, _ = within(SETTLE_S, self._read_if_there)
        fault = shop.resolve(states[shop.name])
        if fault is not None:
            shop.violations.append(fault)

    def kill_all(self) -> None:
        """SIGKILL to every process of the service at once."""
        self.program.kill()
        self.report.kills["service"] += 1

    def kill_one(self) -> None:
        """SIGKILL to one worker, which the supervisor then replaces."""
        pids = sorted(self.program.worker_pids())
        if pids:
            try:
                os.kill(self.rng.choice(pids), signal.SIGKILL)
            except ProcessLookupError:
                return
            self.report.kills["worker"] += 1

    def take_snapshot(self) -> None:
        """Ask for a snapshot, and do not insist."""
        with contextlib.suppress(httpx.TransportError):
            status = httpx.post(f"{self.program.url}/admin/snapshot", timeout=30).status_code
            self.report.snapshots[f"answered {status}"] += 1

    def take_backup(self) -> None:
        """Back the database up while it is written to."""
        begun = {shop.name: len(shop.history) - 1 for shop in self.shops}
        with contextlib.suppress(StoreUnavailableError):
            asyncio.run(backup.create(self.database, self._backup))
            self._backed_up = begun

    def harm_snapshot(self) -> None:
        """Leave the snapshot alone, flip a bit of it, cut it, put an older one in its place, or take it away."""
        if not self._snapshot.exists():
            return
        data = self._snapshot.read_bytes()
        what = self.rng.choice(["kept", "flipped", "cut", "removed", "older" if self._older else "kept"])
        if what == "flipped":
            place = self.rng.randrange(len(data))
            self._snapshot.write_bytes(
                data[:place] + bytes([data[place] ^ 1 << self.rng.randrange(8)]) + data[place + 1 :]
            )
        elif what == "cut":
            self._snapshot.write_bytes(data[: self.rng.randrange(len(data))])
        elif what == "older" and self._older is not None:
            self._snapshot.write_bytes(self._older)
        elif what == "removed":
            self._snapshot.unlink()
        self.report.snapshots[what] += 1
        if self._older is None or self.rng.random() < 0.5:
            self._older = data

    def restart(self) -> None:
        """Start again, and wait for all workers."""
        started = time.monotonic()
        self.program.start()
        self.report.restart_s.append(round(time.monotonic() - started, 2))

    # --- looking ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Compare what is stored with what was acknowledged, and what each worker answers with what is stored."""
        clients = self.program.clients()
        if not self._settled(clients.values()):
            self.report.violations.append("the service does not come to rest")
        states, wrong = asyncio.run(self._read())
        self.report.violations += wrong
        for shop in self.shops:
            fault = shop.resolve(states[shop.name])
            if fault is not None:
                self.report.violations.append(fault)
            self.report.items_checked += len(shop.state.items)
        self.report.violations += self._backup_faults()
        for shop in self.shops:
            shop.history = [shop.state]
        self.report.acknowledged = sum((shop.acknowledged for shop in self.shops), Counter())
        paths = self.sample()
        wanted = asyncio.run(self._reference(paths))
        for pid, client in clients.items():
            found = [_body(client.get(path)) for path in paths]
            for path, one, other in zip(paths, wanted, found, strict=True):
                self.report.answers_compared += 1
                if one != other:
                    self.report.violations.append(f"worker {pid} answers {path} in another way than the database")
        self.report.violations += asyncio.run(self._snapshot_faults(next(iter(clients.values()))))
        for client in clients.values():
            client.close()

    def _backup_faults(self) -> list[str]:
        """A backup of this round must hold, of each shop, a state that it was in since the backup was begun."""
        if not self._backed_up:
            return []
        file = self._backup.with_suffix(".db")
        url = f"sqlite+aiosqlite:///{file}"
        asyncio.run(backup.restore(url, self._backup))
        states, wrong = asyncio.run(self._read(url))
        faults = [f"in the backup {fault}" for fault in wrong if "was generated from" not in fault]  # it may be awaited
        for shop in self.shops:
            if states[shop.name] not in shop.history[self._backed_up[shop.name] :]:
                faults.append(f"the backup holds a state of shop {shop.name} that never was")
        self._backed_up = {}
        for left in file.parent.glob(f"{file.name}*"):
            left.unlink()
        self.report.backups_restored += 1
        return faults

    async def _snapshot_faults(self, client: httpx.Client) -> list[str]:
        """A worker's memory, as it writes it to a snapshot, beside what is stored: ids, and every vector to the bit."""
        status = client.post("/admin/snapshot").status_code
        if status != 200:
            return [f"a snapshot at rest answers {status}"]
        engine = bare_engine(self._active, await open_active(self.database))
        try:
            fill(engine.memory.catalogue, read(self._snapshot, engine.memory.catalogue.shape))
            await check_index(engine)
        except AssertionError as error:
            return [f"a worker's memory is not what is stored: {error}"]
        finally:
            await engine.close()
        return []

    def _settled(self, clients: Any) -> bool:
        until = time.monotonic() + SETTLE_S
        for client in clients:
            while time.monotonic() < until:
                stats = client.get("/stats").json()
                if not stats["awaiting_regeneration"] and stats["worker"]["position"] == stats["last_change"]:
                    break
                time.sleep(0.1)
            else:
                return False
        return True

    def _read_if_there(self) -> tuple[Mapping[str, Any], list[str]] | None:
        try:
            return asyncio.run(self._read())
        except StoreUnavailableError:
            return None

    async def _read(self, url: str | None = None) -> tuple[Mapping[str, Any], list[str]]:
        store = await open_active(url or self.database)
        try:
            return await read_states(store, [shop.name for shop in self.shops])
        finally:
            await store.close()

    def sample(self) -> list[str]:
        """Questions about every shop's users, and the neighbourhoods of some items."""
        users = [f"{shop.name}-u{number}" for shop in self.shops for number in range(4)]
        items = sorted(item for shop in self.shops for item in shop.state.items)
        some = self.rng.sample(items, min(SAMPLED, len(items)))
        spaces = ("final", *self._active.dgmrec.names)
        return [
            *(f"/recommend/{user}?n=500" for user in [*users, "shopper-001", "shopper-007"]),
            "/recommend/nobody?n=500",
            "/recommend/nobody?n=500&model=latest",
            "/recommend/shopper-001?n=100&category=mugs&diversity=0.5",
            *(f"/recommend/{user}?n=500&model=iris&explain=true" for user in (*users[:4], "shopper-001")),
            *(f"/explain/shopper-001/{item}" for item in some),
            *(f"/items/{item}/similar?n=500&by={space}" for item in some for space in spaces),
            *(f"/items/{item}" for item in some),
            "/items?limit=500",
        ]

    def lists(self, paths: Sequence[str]) -> list[Any]:
        """What each worker answers."""
        answers = []
        for client in self.program.clients().values():
            self._settled([client])
            answers += [_body(client.get(path)) for path in paths]
        return answers

    async def _reference(self, paths: Sequence[str]) -> list[Any]:
        """What a service answers that has read the whole database just now, its index checked against it."""
        engine = await reference_engine(self._active, self.database)
        try:
            await check_index(engine)
            transport = httpx.ASGITransport(create_app(self.settings, engine=engine))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return [_body(await client.get(path)) for path in paths]
        finally:
            await engine.close()


async def reference_engine(active: Active, database: str) -> Engine:
    """An engine that has read a database and does not follow it."""
    engine = bare_engine(active, await open_active(database))
    await load_catalogue(engine)
    return engine


def bare_engine(active: Active, store: SqlStore) -> Engine:
    """An engine whose catalogue is empty."""
    return compose(active, store, cache=MemoryCache(), notifier=NoNotifier())


def _body(response: httpx.Response) -> Any:
    body = response.json()
    for name in ("recommendation_id", "request_id"):
        body.pop(name, None)
    return response.status_code, body
