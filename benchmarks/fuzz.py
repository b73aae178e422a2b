"""Every endpoint fuzzed for half an hour: no 5xx, every answer as the OpenAPI document says, no stall of the event loop
above 250 ms, memory that does not grow and stays below 1.5 GiB.

    python -m benchmarks.fuzz --bundle build/demo-bundle --minutes 30 --json docs/results/faults/fuzz.json

schemathesis makes requests up from the service's own OpenAPI document, right ones and wrong ones, with another seed in
each round; names that lead somewhere are put into some of them. Between rounds, shops write what is right and must be
answered so, and what is stored must be what they were told. The service runs in a process of its own, watched from
within (`benchmarks/watched.py`), and the items of a round are deleted at its end. Its memory is its resident
size after each round, and its highest. It is flat if the median of the last third of the rounds is not above that of
the middle third by more than 2 %; the first third fills caches.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import schemathesis

from tests.service.crash.long import database
from tests.service.crash.shop import Shop
from tests.service.fuzz import Found, fuzz, trade
from tests.service.processes import free_port, keep_encoders, within

CEILING_MIB = 1536
STALL_MS = 250.0
GROWTH = 0.02
LISTS = ("answers", "resident_mib")  # written, and not printed
KEPT = 20  # failures told in full
START_S = 180.0
ROOT = Path(__file__).parents[1]


@dataclass
class Watched:
    """A service under watch."""

    url: str
    pid: int
    log: Path
    stalls: Path
    operations: int = 0
    resident: list[float] = field(default_factory=list)  # MiB after each round

    def memory_mib(self, name: str) -> float:
        """VmRSS or VmHWM."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return round(int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024, 1)


@contextmanager
def service(bundle: Path, folder: Path, database_url: str) -> Iterator[Watched]:
    """The service, ready, with settings of its own alone."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LACUNA_")}
    environment |= {
        "LACUNA_BUNDLE": str(bundle.resolve()),
        "LACUNA_DATA_DIR": str(folder),
        "LACUNA_DATABASE_URL": database_url,
    }
    environment |= {"LACUNA_PORT": str(port), "LACUNA_LOG_LEVEL": "warning", "OMP_NUM_THREADS": "1"}
    environment |= {"ORT_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
    keep_encoders(folder)
    log, stalls = folder / "log", folder / "stalls.json"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.watched", str(stalls)], cwd=folder, env=environment, stderr=stream
        )
    try:
        found = Watched(f"http://127.0.0.1:{port}", process.pid, log, stalls)
        within(START_S, lambda: _is_ready(found.url, process, log) or None)
        yield found
    finally:
        process.kill()
        process.wait()


def _is_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        return httpx.get(f"{url}/health/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def catalogue(url: str) -> set[str]:
    """The items that there are."""
    found: set[str] = set()
    query: dict[str, Any] = {"limit": 500}
    while True:
        page = httpx.get(f"{url}/items", params=query, timeout=60).json()
        found |= {item["id"] for item in page["items"]}
        if page["next_cursor"] is None:
            return found
        query["cursor"] = page["next_cursor"]


def clear(url: str, known: set[str]) -> None:
    """Delete the items that a round has made, so that the catalogue does not grow with the rounds."""
    with httpx.Client(base_url=url, timeout=60) as client:
        for item in catalogue(url) - known:
            client.delete(f"/items/{quote(item, safe='')}").raise_for_status()


def rounds_of(options: argparse.Namespace, watched: Watched, database_url: str, found: Found) -> None:
    """Ask, for as long as is wanted."""
    schema = schemathesis.openapi.from_dict(httpx.get(f"{watched.url}/openapi.json").json())
    operations = [operation.ok() for operation in schema.get_all_operations()]
    watched.operations = len(operations)
    modalities = httpx.get(f"{watched.url}/models").json()["models"][0]["modalities"]
    known, dims = catalogue(watched.url), {one["name"]: one["dim"] for one in modalities}
    started = time.monotonic()
    while not watched.resident or time.monotonic() - started < options.minutes * 60:
        told = len(found.failures)
        seed = options.seed + len(watched.resident) + 1
        for operation in operations:
            fuzz(operation, watched.url, found, options.examples, seed)
        shop = Shop(f"fuzz{seed}", dims, random.Random(seed))  # of a round's own, as its items do not outlive it
        found.failures += trade(shop, watched.url, database_url)
        found.right += shop.acknowledged
        clear(watched.url, known)
        watched.resident.append(watched.memory_mib("VmRSS"))
        said = f"{found.statuses.total()} requests, {len(found.failures)} failures, {watched.resident[-1]:.0f} MiB"
        print(f"round {len(watched.resident)}: {said}", *found.failures[told:], sep="\n", flush=True)


def growth(resident: Sequence[float]) -> float:
    """By how much of itself memory grew from the middle third of the rounds to the last."""
    third = max(1, len(resident) // 3)
    middle, last = statistics.median(resident[-2 * third : -third] or resident), statistics.median(resident[-third:])
    return last / middle - 1


def account(options: argparse.Namespace, watched: Watched, found: Found, seconds: float) -> dict[str, Any]:
    """What there is to tell."""
    by_class = Counter[str]()
    for name, count in found.statuses.items():
        by_class[f"{name.rpartition(' ')[2][0]}xx"] += count
    return {
        "what": f"every endpoint fuzzed for {seconds / 60:.0f} minutes, {options.database}",
        "command": " ".join(["python", "-m", "benchmarks.fuzz", *sys.argv[1:]]),
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "seconds": round(seconds),
        "rounds": len(watched.resident),
        "operations": watched.operations,
        "requests": found.statuses.total(),
        "statuses": dict(sorted(by_class.items())),
        "server_errors": by_class["5xx"] - found.not_served,
        "not_served": found.not_served,
        "right_requests": dict(found.right),
        "tracebacks_in_the_log": watched.log.read_text().count("Traceback"),
        "failures": len(found.failures),
        "first_failures": found.failures[:KEPT],
        **json.loads(watched.stalls.read_text()),
        "peak_mib": watched.memory_mib("VmHWM"),
        "growth": round(growth(watched.resident), 4),
        "resident_mib": watched.resident,
        "answers": dict(sorted(found.statuses.items())),
    }


def faults(result: dict[str, Any]) -> list[str]:
    """What of it should not be."""
    kept = {
        "answers of 5xx that nobody asked for": not result["server_errors"],
        "answers that are not as documented, or writes that are not stored": not result["failures"],
        "tracebacks in the log": not result["tracebacks_in_the_log"],
        f"a stall above {STALL_MS:g} ms": result["own_stall_ms"] <= STALL_MS,
        f"more than {CEILING_MIB} MiB": result["peak_mib"] <= CEILING_MIB,
        f"memory that grows by more than {GROWTH:.0%}": result["growth"] <= GROWTH,
    }
    return [what for what, is_kept in kept.items() if not is_kept]


def main() -> int:
    """Run, print, write; the exit code says whether anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--minutes", type=float, default=30, help="one round at least")
    parser.add_argument("--examples", type=int, default=20, help="requests of one kind in a round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    found, started = Found(), time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        database(options.database, Path(folder)) as (url, _),
        service(options.bundle, Path(folder), url) as watched,
    ):
        with suppress(KeyboardInterrupt):  # what was found by then is told
            rounds_of(options, watched, url, found)
        result = account(options, watched, found, time.monotonic() - started)
    wrong = faults(result)
    print(
        json.dumps({name: value for name, value in result.items() if name not in ("answers", "resident_mib")}, indent=1)
    )
    print("\n".join(f"found: {one}" for one in wrong) or "found: nothing")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
