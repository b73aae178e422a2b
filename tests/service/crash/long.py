"""The long form of the crash test: many rounds, and the raw result as JSON.

    python -m tests.service.crash.long --bundle build/demo-bundle --rounds 50 --database sqlite --workers 1 \\
        --json docs/results/faults/sqlite-1.json

`--trouble redis` runs a Redis of its own for the service, and kills, pauses and flushes it meanwhile.
`--trouble cut` cuts all connections to PostgreSQL now and then; `--trouble outage` runs a PostgreSQL of its own for the
service, stops it now and then, as a crash would, and starts it a moment later. The database is made anew and removed
afterwards; PostgreSQL is otherwise the one that LACUNA_TEST_POSTGRES names.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from tests.conftest import POSTGRES
from tests.service.crash.harness import Harness, NoTrouble, Report, Trouble
from tests.service.servers import Postgres, Redis


class RedisTrouble(NoTrouble):
    """Kills and restarts a Redis, pauses it for a moment, flushes it, or leaves it alone."""

    def __init__(self, server: Redis) -> None:
        super().__init__()
        self._server = server

    def make(self, rng: random.Random) -> None:
        what = rng.choice(("killed", "paused", "flushed", "nothing"))
        match what:
            case "killed":
                self._server.kill()
                self._server.start()
            case "paused":
                self._server.pause(rng.uniform(0.1, 1.0))
            case "flushed":
                self._server.flush()
        self.made[f"redis {what}"] += 1


class CutConnections(NoTrouble):
    """Ends every connection to a database of PostgreSQL, one time in three."""

    def __init__(self, database: str) -> None:
        super().__init__()
        self._database = database

    def make(self, rng: random.Random) -> None:
        if rng.random() < 1 / 3:
            query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1"
            asyncio.run(_execute(query, self._database))
            self.made["connections cut"] += 1


class Outage(NoTrouble):
    """Stops a PostgreSQL of its own, every other time, and starts it a moment later, whatever happens meanwhile."""

    def __init__(self, server: Postgres) -> None:
        super().__init__()
        self._server = server
        self._starting: threading.Timer | None = None

    def make(self, rng: random.Random) -> None:
        if rng.random() < 1 / 2:
            self.end()
            mode = rng.choice(("immediate", "fast"))
            self._server.stop(mode)
            self.made[f"postgresql stopped ({mode})"] += 1
            self._starting = threading.Timer(rng.uniform(0.1, 2.0), self._server.start)
            self._starting.start()

    def end(self) -> None:
        if self._starting is not None:
            self._starting.join()
            self._starting = None


async def _execute(statement: str, *arguments: object) -> None:
    connection = await asyncpg.connect(f"{POSTGRES}/postgres")
    try:
        await connection.execute(statement, *arguments)
    finally:
        await connection.close()


@contextmanager
def database(kind: str, folder: Path) -> Iterator[tuple[str, str]]:
    """The URL and name of a fresh database."""
    if kind == "sqlite":
        yield f"sqlite+aiosqlite:///{folder}/lacuna.db", ""
        return
    name = f"lacuna_crash_{uuid.uuid4().hex[:12]}"
    asyncio.run(_execute(f'CREATE DATABASE "{name}"'))
    try:
        yield f"{POSTGRES}/{name}".replace("postgresql://", "postgresql+asyncpg://"), name
    finally:
        asyncio.run(_execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))


@contextmanager
def trouble_of(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, dict[str, Any], Trouble]]:
    """The database's URL, more settings of the service, and what will go wrong."""
    if options.trouble == "outage":
        with Postgres() as server:
            trouble = Outage(server)
            yield server.url, {}, trouble
            trouble.end()
        return
    with database(options.database, folder) as (url, name):
        if options.trouble == "redis":
            redis = Redis()
            try:
                yield url, {"redis_url": redis.url}, RedisTrouble(redis)
            finally:
                redis.kill()
        else:
            yield url, {}, CutConnections(name) if options.trouble == "cut" else NoTrouble()


def result(options: argparse.Namespace, report: Report, trouble: Trouble, seconds: float) -> dict[str, Any]:
    """The raw result."""
    restarts = sorted(report.restart_s)
    return {
        "what": f"{options.rounds} rounds of kill -9 under writes, {options.database}, workers: {options.workers}",
        "command": " ".join(["python", "-m", "tests.service.crash.long", *sys.argv[1:]]),
        "seed": options.seed,
        "trouble": dict(trouble.made),
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        },
        "seconds": round(seconds),
        "kills": dict(report.kills),
        "acknowledged": dict(report.acknowledged),
        "unanswered": dict(report.unanswered),
        "failed": dict(report.failed),
        "snapshots": dict(report.snapshots),
        "backups_restored": report.backups_restored,
        "items_checked": report.items_checked,
        "answers_compared": report.answers_compared,
        "restart_seconds": {"median": restarts[len(restarts) // 2], "max": restarts[-1]} if restarts else {},
        "violations": report.violations,
    }


def main() -> int:
    """Run, print, write; the exit code says whether anything was violated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=4.0, help="longest time of writing in a round")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--trouble", choices=("none", "redis", "cut", "outage"), default="none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.trouble in ("cut", "outage") and options.database != "postgresql":
        parser.error(f"--trouble {options.trouble} is PostgreSQL's")
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        trouble_of(options, Path(folder)) as (url, settings, trouble),
    ):
        harness = Harness(
            options.bundle,
            Path(folder),
            url,
            seed=options.seed,
            workers=options.workers,
            trouble=trouble,
            **settings,
        )
        report = harness.run(
            options.rounds,
            options.seconds,
            lambda number: print(f"round {number + 1}: {len(harness.report.violations)} violations", flush=True),
        )
    found = result(options, report, trouble, time.monotonic() - started)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
