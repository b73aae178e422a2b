"""How long another worker needs to answer what one has acknowledged.

    python -m tests.service.crash.staleness --bundle build/demo-bundle --database postgresql --writes 200 \\
        --json docs/results/faults/staleness.json

Two services over one database: an item is created at one, and the other is asked for the newest item until it is that.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from tests.service.crash.long import database
from tests.service.processes import Program


def measure(here: httpx.Client, there: httpx.Client, item: str) -> float:
    """Seconds from the answer of the creation to the end of the first answer that lists the item."""
    status = here.post("/items", json={"id": item, "title": "mug"}).status_code
    acknowledged = time.monotonic()
    if status != 201:
        raise RuntimeError(f"the creation was answered {status}")
    while True:
        newest = there.get("/recommend/nobody?n=1&model=latest").json()["items"]
        if newest and newest[0]["id"] == item:
            return time.monotonic() - acknowledged
        time.sleep(0.002)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--redis", help="its URL; without it the change log is polled")
    parser.add_argument("--writes", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, database(options.database, Path(folder)) as (url, _):
        settings = {"bundle": options.bundle, "data_dir": folder, "database_url": url}
        settings |= {"redis_url": options.redis} if options.redis else {}
        with Program(Path(folder) / "one", **settings) as one, Program(Path(folder) / "two", **settings) as two:
            here, there = one.client(), two.client()
            times = [measure(here, there, f"item-{number}") for number in range(options.writes)]
    p50, p99 = np.percentile(times, [50, 99])
    found = {
        "what": f"staleness of another worker, {options.database}, {'woken by Redis' if options.redis else 'polling'}",
        "command": " ".join(["python", "-m", "tests.service.crash.staleness", *sys.argv[1:]]),
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "writes": options.writes,
        "p50_ms": round(p50 * 1000, 1),
        "p99_ms": round(p99 * 1000, 1),
        "max_ms": round(max(times) * 1000, 1),
    }
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
