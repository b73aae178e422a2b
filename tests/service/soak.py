"""Half of the maximal load for half an hour: whether memory, or the cost or the time of a request grow.

    python -m tests.service.soak --bundle build/demo-bundle --minutes 30 --json docs/results/faults/soak.json

First the service is filled, and its maximal load measured: the requests a second that some connections get answered.
Then requests of every kind arrive at half that rate, whether or not the service keeps up. They leave its content as
large as it was: the same items are created, replaced and deleted, the same users come and are forgotten. A trend is the
Theil-Sen slope after a part of the time, with its 95 % interval (Sen 1968).

The exit code is 0 where every answer came and was no 5xx, the rate was reached, and nothing grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from scipy import stats

from tests.service.crash.long import database
from tests.service.processes import Program

ITEMS, USERS = 300, 100
CONNECTIONS = 16
LOAD = 0.5
REACHED = 0.95  # of the wanted rate
FILL_S = 60.0
WARM = 0.15  # of the time, left out of trends
# Growth over the whole time that nobody minds, as a share of the median. What is held is anonymous memory. Resident
# memory counts the pages of program files too, of which the kernel decides how many there are; it is told, not judged.
TOLERATED = {"held_mib": 0.02, "cpu_ms_per_request": 0.05, "p50_ms": 0.1, "p99_ms": 0.1}
WORDS = ("red", "blue", "striped", "linen", "leather", "running", "winter", "kitchen", "soft", "mug", "shoe", "lamp")


def request_of(rng: random.Random, vectors: dict[str, int]) -> tuple[str, str, Any]:
    """Method, path and body of a request of any kind; most ask for lists, as they do."""
    item, user = f"soak-{rng.randrange(ITEMS)}", f"soak-{rng.randrange(USERS)}"
    words = " ".join(rng.sample(WORDS, 3))
    kind = rng.choices(
        ("recommend", "known", "similar", "retrieve", "get", "feedback", "put", "post", "delete", "forget", "patch"),
        (30, 20, 10, 8, 8, 10, 5, 3, 3, 1, 2),
    )[0]
    match kind:
        case "recommend":
            return "GET", f"/recommend/{user}?n=20", None
        case "known":
            return "GET", f"/recommend/shopper-{rng.randrange(40):03d}?n=50&diversity={rng.choice((0, 0.5))}", None
        case "similar":
            return "GET", f"/items/{item}/similar?by={rng.choice(('final', *vectors))}", None
        case "retrieve":
            return "GET", f"/retrieve?text={words}&target={rng.choice(('any', *vectors))}", None
        case "get":
            return "GET", f"/items/{item}", None
        case "feedback":
            second = rng.randrange(50)
            event = {"user": user, "item": item, "type": "view", "timestamp": f"2026-01-01T00:00:{second:02d}Z"}
            return "POST", "/feedback", {"feedback": [event]}
        case "put":
            return "PUT", f"/items/{item}", {"title": words, "categories": [rng.choice(WORDS)]}
        case "post":
            name, length = rng.choice(list(vectors.items()))
            vector = [round(rng.gauss(0, 1), 3) for _ in range(length)]
            return "POST", "/items", {"id": item, "modalities": {name: {"vector": vector}}}
        case "delete":
            return "DELETE", f"/items/{item}", None
        case "patch":
            return "PATCH", f"/items/{item}", {"title": words}
    return "DELETE", f"/users/{user}", None


@dataclass
class Window:
    """What was seen in some seconds."""

    times_ms: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    late: int = 0  # requests that waited for a connection when they should have been sent

    async def ask(self, client: httpx.AsyncClient, request: tuple[str, str, Any]) -> None:
        """Send a request and note its time and status; where there was no answer, the name of the error."""
        method, path, body = request
        begun = time.perf_counter()
        try:
            status = str((await client.request(method, path, json=body)).status_code)
        except httpx.TransportError as error:
            status = type(error).__name__
        self.times_ms.append((time.perf_counter() - begun) * 1000)
        self.statuses[status] += 1


async def full_load(url: str, requests: random.Random, vectors: dict[str, int], seconds: float) -> Window:
    """As many requests as some connections get answered."""
    window, until = Window(), time.monotonic() + seconds

    async def one(client: httpx.AsyncClient) -> None:
        while time.monotonic() < until:
            await window.ask(client, request_of(requests, vectors))

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        await asyncio.gather(*(one(client) for _ in range(CONNECTIONS)))
    return window


async def steady_load(
    url: str, requests: random.Random, vectors: dict[str, int], seconds: float, rate: float
) -> Window:
    """Requests at a steady rate."""
    window, tasks = Window(), set()
    limits = httpx.Limits(max_connections=CONNECTIONS * 4)
    patience = httpx.Timeout(60, pool=None)  # waiting for a connection is not the service's doing
    async with httpx.AsyncClient(base_url=url, timeout=patience, limits=limits) as client:
        start = time.monotonic()
        for number in range(round(seconds * rate)):
            await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
            window.late += len(tasks) >= CONNECTIONS * 4
            task = asyncio.create_task(window.ask(client, request_of(requests, vectors)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
    return window


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and those it started have spent and take."""

    processor_s: float
    held_mib: float  # anonymous memory
    resident_mib: float

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Of a running process."""
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        spent = sum(sum(one.cpu_times()[:2]) for one in family)
        memory = [one.memory_info() for one in family]
        resident = sum(one.rss for one in memory)
        return cls(spent, (resident - sum(one.shared for one in memory)) / 2**20, resident / 2**20)


def trend(minutes: Sequence[float], values: Sequence[float], tolerated: float = 0.02) -> dict[str, Any]:
    """The slope of a series by the minute with its 95 % interval, and whether that is growth: an interval above zero,
    and over the whole time more than is tolerated, as a share of the median."""
    slope, _, low, high = stats.theilslopes(values, minutes, 0.95)
    median = float(np.median(values))
    growth = slope * (minutes[-1] - minutes[0])
    return {
        "median": round(median, 4),
        "slope_per_minute": round(float(slope), 6),
        "interval": [round(float(low), 6), round(float(high), 6)],
        "growth_of_median": round(float(growth) / median, 4),
        "grows": bool(low > 0 and growth > tolerated * median),
    }


def maximal_load(program: Program, requests: random.Random, vectors: dict[str, int], fill_s: float) -> dict[str, Any]:
    """Fill the service, pay for first calls, and measure what it bears at most."""
    asyncio.run(full_load(program.url, requests, vectors, fill_s))
    before, started = Usage.of(program.pid), time.monotonic()
    full = asyncio.run(full_load(program.url, requests, vectors, fill_s))
    seconds = time.monotonic() - started
    spent = Usage.of(program.pid).processor_s - before.processor_s
    return {
        "requests_per_second": round(full.statuses.total() / seconds, 1),
        "processors_busy": round(spent / seconds, 3),
        "cpu_ms_per_request": round(spent / full.statuses.total() * 1000, 4),
        "statuses": dict(sorted(full.statuses.items())),
    }


def sample(
    program: Program, requests: random.Random, vectors: dict[str, int], seconds: float, rate: float
) -> dict[str, Any]:
    """Some seconds under a steady load."""
    before, started = Usage.of(program.pid), time.monotonic()
    window = asyncio.run(steady_load(program.url, requests, vectors, seconds, rate))
    after, count = Usage.of(program.pid), window.statuses.total()
    p50, p99 = np.percentile(window.times_ms, [50, 99])
    return {
        "requests_per_second": round(count / (time.monotonic() - started), 1),
        "held_mib": round(after.held_mib, 2),
        "resident_mib": round(after.resident_mib, 2),
        "cpu_ms_per_request": round((after.processor_s - before.processor_s) / count * 1000, 4),
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
        "late": window.late,
        "statuses": dict(sorted(window.statuses.items())),
        "machine_load": round(os.getloadavg()[0], 2),
    }


def soak(program: Program, vectors: dict[str, int], minutes: float, window_s: float, seed: int) -> dict[str, Any]:
    """The raw result of one run against a service."""
    requests = random.Random(seed)
    most = maximal_load(program, requests, vectors, min(FILL_S, minutes * 10))
    rate = LOAD * most["requests_per_second"]
    started, samples = time.monotonic(), []
    while (now := time.monotonic() - started) < minutes * 60:
        samples.append({"minute": round(now / 60, 3), **sample(program, requests, vectors, window_s, rate)})
    statuses = sum((Counter(one["statuses"]) for one in samples), Counter[str]())
    kept = [one for one in samples if one["minute"] >= WARM * minutes]
    at = [one["minute"] for one in kept]
    return {
        "full_load": most,
        "wanted_requests_per_second": round(rate, 1),
        "requests_per_second": round(statuses.total() / (time.monotonic() - started), 1),
        "requests": statuses.total(),
        "statuses": dict(sorted(statuses.items())),
        "server_errors": sum(count for status, count in statuses.items() if not "200" <= status < "500"),
        "trends": {
            name: trend(at, [one[name] for one in kept], TOLERATED.get(name, 0.02))
            for name in ("held_mib", "resident_mib", "cpu_ms_per_request", "p50_ms", "p99_ms")
        },
        "samples": samples,
    }


def complaints(found: Mapping[str, Any]) -> list[str]:
    """What is wrong with a run, a sentence each; none where it is as it should be."""
    wrong = [f"{name} grew" for name in TOLERATED if found["trends"][name]["grows"]]
    if found["server_errors"]:
        wrong.append(f"{found['server_errors']} requests had no answer or a 5xx")
    if found["requests_per_second"] < REACHED * found["wanted_requests_per_second"]:
        wrong.append(
            f"the rate was {found['requests_per_second']} a second, not {found['wanted_requests_per_second']}: "
            "the machine was busy with something else, or the service slower than before"
        )
    return wrong


def main() -> int:
    """Run, print, write; the exit code says whether there is anything to complain of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--window", type=float, default=15, help="seconds that make one sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, database(options.database, Path(folder)) as (url, _):
        settings = {"bundle": options.bundle, "data_dir": folder, "database_url": url, "workers": options.workers}
        with Program(Path(folder) / "log", fresh=True, **settings) as program:
            program.stop()  # the first start of all exports the encoders, and has more memory for it
        with Program(Path(folder) / "log", fresh=True, **settings) as program:
            modalities = httpx.get(f"{program.url}/models").json()["models"][0]["modalities"]
            vectors = {modality["name"]: modality["dim"] for modality in modalities}
            found = soak(program, vectors, options.minutes, options.window, options.seed)
    found = {
        "what": f"half of the maximal load for {options.minutes:g} minutes, {options.database}",
        "command": " ".join(["python", "-m", "tests.service.soak", *sys.argv[1:]]),
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "complaints": complaints(found),
        **found,
    }
    print(json.dumps({name: value for name, value in found.items() if name != "samples"}, indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 1 if found["complaints"] else 0


if __name__ == "__main__":
    sys.exit(main())
