"""Many clients on few items: whether what they were answered is one history for each item.

    python -m tests.service.crash.linear --bundle build/demo-bundle --database postgresql --workers 2 --clients 200 \\
        --items 100 --seconds 60 --json docs/results/faults/linear.json

An answer fits an item's state where the state is its version, 0 for no item: POST makes 1 of 0 and is refused
otherwise, PUT adds 1, PATCH adds 1 to what is there, DELETE makes 0 of what is there, GET tells it. A history is linear
when the answers fit some order of the requests in which none comes before one that had ended when it began (Wing and
Gong 1993; Lowe 2017).
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
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.service.crash.long import database
from tests.service.processes import Program


@dataclass(frozen=True)
class Call:
    """One request on an item: when it began and ended, and what it was answered."""

    method: str
    began: float
    ended: float
    status: int
    version: int = 0

    def after(self, state: int) -> int | None:
        """The state after this call, where its answer fits the state before."""
        match self.method, self.status:
            case "POST", 201:
                return 1 if state == 0 else None
            case "POST", 409:
                return state if state else None
            case ("PUT", 201) | ("PUT", 200):
                fits = self.version == state + 1 and (self.status == 201) == (state == 0)
                return state + 1 if fits else None
            case "PATCH", 200:
                return state + 1 if state and self.version == state + 1 else None
            case "DELETE", 204:
                return 0 if state else None
            case ("PATCH", 404) | ("DELETE", 404) | ("GET", 404):
                return state if state == 0 else None
            case "GET", 200:
                return state if state == self.version else None
            case ("PUT", 409) | ("PATCH", 409):  # it kept being changed: nothing was done
                return state
        return None


def is_linear(calls: Sequence[Call]) -> bool:
    """Whether some order of the calls explains every answer."""
    ordered = sorted(calls, key=lambda call: call.began)
    seen: set[tuple[int, frozenset[int], int]] = set()
    # What is done: all calls before the first open one, and some after it.
    stack: list[tuple[int, frozenset[int], int]] = [(0, frozenset(), 0)]
    while stack:
        first, done, state = stack.pop()
        while first in done:
            done, first = done - {first}, first + 1
        if first == len(ordered):
            return True
        if (first, done, state) in seen:
            continue
        seen.add((first, done, state))
        soonest = min(call.ended for place, call in enumerate(ordered[first : first + 500], first) if place not in done)
        for place in range(first, len(ordered)):
            if ordered[place].began > soonest:
                break
            if place not in done and (new := ordered[place].after(state)) is not None:
                stack.append((first, done | {place}, new))
    return False


async def contend(
    url: str, items: Sequence[str], clients: int, seconds: float, seed: int
) -> tuple[Mapping[str, list[Call]], Counter[str]]:
    """What many clients were answered, by item; and the statuses of all answers."""
    calls: dict[str, list[Call]] = defaultdict(list)
    statuses: Counter[str] = Counter()
    until = time.monotonic() + seconds

    async def work(client: httpx.AsyncClient, number: int) -> None:
        rng = random.Random(f"{seed}-{number}")
        while time.monotonic() < until:
            item, method = (
                rng.choice(items),
                rng.choices(("POST", "PUT", "PATCH", "DELETE", "GET"), (2, 3, 3, 2, 2))[0],
            )
            body: Any = {"title": f"by {number}", "available": rng.random() < 0.5}
            path = "/items" if method == "POST" else f"/items/{item}"
            sent = {"POST": body | {"id": item}, "PUT": body, "PATCH": body}.get(method)
            began = time.monotonic()
            answer = await client.request(method, path, json=sent)
            version = answer.json().get("version", 0) if answer.status_code in (200, 201) else 0
            calls[item].append(Call(method, began, time.monotonic(), answer.status_code, version))
            statuses[f"{method} {answer.status_code}"] += 1

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=0)  # so that any worker gets a request
    async with httpx.AsyncClient(base_url=url, timeout=180, limits=limits) as client:
        await asyncio.gather(*(work(client, number) for number in range(clients)))
    return calls, statuses


def main() -> int:
    """Run, print, write; the exit code says whether any history was not linear or any answer a 5xx."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    items = [f"contended-{number}" for number in range(options.items)]
    with tempfile.TemporaryDirectory() as folder, database(options.database, Path(folder)) as (url, _):
        settings = {"bundle": options.bundle, "data_dir": folder, "database_url": url, "workers": options.workers}
        with Program(Path(folder) / "log", **settings) as program:
            program.clients()
            calls, statuses = asyncio.run(contend(program.url, items, options.clients, options.seconds, options.seed))
    found = {
        "what": f"{options.clients} clients on {options.items} items, {options.workers} workers on {options.database}",
        "command": " ".join(["python", "-m", "tests.service.crash.linear", *sys.argv[1:]]),
        "seconds": options.seconds,
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "answers": dict(sorted(statuses.items())),
        "requests": statuses.total(),
        "histories": len(calls),
        "not_linear": [item for item, one in sorted(calls.items()) if not is_linear(one)],
        "server_errors": sum(count for name, count in statuses.items() if name.split()[1].startswith("5")),
    }
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 1 if found["not_linear"] or found["server_errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
