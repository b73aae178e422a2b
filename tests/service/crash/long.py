"""The long form of the crash test: many rounds, and the raw result as JSON.

    python -m tests.service.crash.long --bundle build/demo-bundle --rounds 50 --database sqlite --workers 1 \\
        --json docs/results/faults/sqlite-1.json

`--disturb redis` runs a Redis of its own for the service, and kills, pauses and flushes it meanwhile.
`--disturb postgres` cuts all connections to the database now and then. The database is made anew and removed
afterwards; PostgreSQL is the one that LACUNA_TEST_POSTGRES names.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from tests.conftest import POSTGRES
from tests.service.crash.harness import Harness, Report
from tests.service.processes import free_port

Disturb = Callable[[random.Random], None]


class Redis:
    """A Redis server that can be harmed."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._start()

    def _start(self) -> None:
        options = ["--port", str(self.port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]
        self.process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)

    def disturb(self, rng: random.Random) -> None:
        """Kill and restart it, pause it for a moment, flush it, or leave it alone."""
        match rng.choice(("kill", "pause", "flush", "nothing")):
            case "kill":
                self.close()
                self._start()
            case "pause":
                os.kill(self.process.pid, signal.SIGSTOP)
                time.sleep(rng.uniform(0.1, 1.0))
                os.kill(self.process.pid, signal.SIGCONT)
            case "flush":
                subprocess.run(["redis-cli", "-p", str(self.port), "flushall"], stdout=subprocess.DEVNULL, check=False)

    def close(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()


async def _execute(statement: str, *arguments: object) -> None:
    connection = await asyncpg.connect(f"{POSTGRES}/postgres")
    try:
        await connection.execute(statement, *arguments)
    finally:
        await connection.close()


def cut_connections(name: str) -> Disturb:
    """Something that ends every connection to a database of PostgreSQL, one time in three."""

    def disturb(rng: random.Random) -> None:
        if rng.random() < 1 / 3:
            query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1"
            asyncio.run(_execute(query, name))

    return disturb


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


def result(options: argparse.Namespace, report: Report, seconds: float) -> dict[str, Any]:
    """The raw result."""
    restarts = sorted(report.restart_s)
    return {
        "what": f"{options.rounds} rounds of kill -9 under writes, {options.database}, workers: {options.workers}",
        "command": " ".join(["python", "-m", "tests.service.crash.long", *sys.argv[1:]]),
        "seed": options.seed,
        "disturbed": options.disturb,
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        },
        "seconds": round(seconds),
        "kills": dict(report.kills),
        "acknowledged": dict(report.acknowledged),
        "unanswered": dict(report.unanswered),
        "snapshots": dict(report.snapshots),
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
    parser.add_argument("--disturb", choices=("nothing", "redis", "postgres"), default="nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    redis = Redis() if options.disturb == "redis" else None
    settings = {"redis_url": redis.url} if redis else {}
    try:
        with tempfile.TemporaryDirectory() as folder, database(options.database, Path(folder)) as (url, name):
            disturb = redis.disturb if redis else cut_connections(name) if options.disturb == "postgres" else None
            harness = Harness(
                options.bundle,
                Path(folder),
                url,
                seed=options.seed,
                workers=options.workers,
                disturb=disturb,
                **settings,
            )
            report = harness.run(
                options.rounds,
                options.seconds,
                lambda number: print(f"round {number + 1}: {len(harness.report.violations)} violations", flush=True),
            )
    finally:
        if redis:
            redis.close()
    found = result(options, report, time.monotonic() - started)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
