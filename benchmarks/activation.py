"""Bundles are activated, one after the other, while shops write and a reader reads; with kills, or to measure.

    python -m benchmarks.activation --bundles build/bundles --rounds 10 --kills --json FILE
    python -m benchmarks.activation --bundles build/bundles --rounds 3 --json FILE

Two workers over PostgreSQL and Redis. `--bundles` is a folder with two bundles of one catalogue. A round is an
activation of the one that is not active. With `--kills`, workers, and the whole service, are killed with SIGKILL in
every step of it, and after each round what is stored must be what was acknowledged, and each worker must answer every
list as a service does that has just read the whole database under the active bundle.

The reader asks for lists, and for items that nobody writes to, of which the two bundles are differently sure: the
confidences in an answer must be those of the bundle that it names. Answers of 500 and above, and answers that mix
bundles, are counted; latencies of /recommend are reported for the time in which no bundle is being made ready
(`usual_ms`), and for the rest (`meanwhile_ms`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from service.bootstrap import load
from service.pipeline.active import Active
from service.settings import Settings
from tests.service.crash.harness import Harness
from tests.service.crash.long import database
from tests.service.crash.shop import Shop
from tests.service.processes import within
from tests.service.servers import Redis

READ = 400  # items that the reader may read
APART, NEAR = 0.1, 0.05  # confidences that tell bundles apart, and that are of the same one
READS_S = 0.05  # between two requests of the reader
READY_S = 600.0
SHOWN = 20  # violations of a round that are printed
STEPS = ("bundle", "read", "encoded", "completed", "vectors", "check", "workers")


class Activations(Harness):
    """Rounds of activations under load."""

    def __init__(self, bundles: Path, folder: Path, url: str, *, kills: bool, **settings: Any) -> None:
        found = sorted(path.parent for path in bundles.glob("*/manifest.json"))[:2]
        self.actives = {active.version: active for active in map(_active, found, itertools.repeat(folder))}
        # What calibrates confidences would move them.
        super().__init__(found[0], folder, url, bundles=bundles, calibration_pairs=0, **settings)
        self.kills, self.done = kills, 0
        self.phases: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.latencies: dict[str, list[float]] = {"usual": [], "meanwhile": []}
        self.seconds: list[float] = []
        self.peak_mib = {"usual": 0.0, "meanwhile": 0.0}
        self._step = ""
        self.expected: dict[str, dict[str, dict[str, float]]] = {}
        self.telling: list[str] = []

    def expect(self) -> None:
        """Note what the active bundle says of some items; writes of others move it a little, another bundle by more."""
        with httpx.Client(base_url=self.program.url, timeout=60) as client:
            items = itertools.islice(self._active.dgmrec.items, READ)
            self.expected[self._active.version] = {item: _said(client.get(f"/items/{item}").json()) for item in items}
        if len(self.expected) == len(self.actives):
            one, other = self.expected.values()
            self.telling = [item for item in one if item in other and _distance(one[item], other[item]) > APART]

    def round(self) -> None:
        """Activate the other bundle under load."""
        stop = threading.Event()
        threads = [
            threading.Thread(target=self._shop, args=(shop, stop)) for shop in self.shops[: 2 if self.kills else 1]
        ]
        threads.append(threading.Thread(target=self._read_on, args=(stop,)))
        for thread in threads:
            thread.start()
        time.sleep(5)
        target = next(version for version in self.actives if version != self._active.version)
        self._activate(target)
        time.sleep(2)
        stop.set()
        for thread in threads:
            thread.join()
        for shop in self.shops:
            self.report.violations += shop.violations
            shop.violations.clear()
        self._active = self.actives[target]
        self.done += 1

    def _busy(self) -> list[Shop]:
        """Some 20 requests a second, with those of the reader."""
        return self.shops[: 2 if self.kills else 1]

    def _activate(self, target: str) -> None:
        started = time.monotonic()
        within(READY_S, lambda: self._ask("POST", f"/models/{target}/activate", force="true"))
        killed: set[str] = set()
        while True:
            model = within(READY_S, lambda: self._ask("GET", f"/models/{target}"))
            self._step = (model.get("progress") or {}).get("step", "") if model["state"] == "preparing" else ""
            self._weigh()
            if model["state"] != "preparing":
                break
            if self.kills and self._step in STEPS and self._step not in killed:
                killed.add(self._step)
                self.phases[self._step] += 1
                self.kill_one() if self.rng.random() < 0.8 else self._kill_service()
            time.sleep(0.05)
        if model["state"] != "active":
            self.report.violations.append(f"the bundle is {model['state']}: {model.get('detail')}")
        within(READY_S, self._all_serve(target))
        self.seconds.append(round(time.monotonic() - started, 2))

    def _kill_service(self) -> None:
        self.kill_all()
        self.program.start()

    def _ask(self, method: str, path: str, **query: str) -> Any:
        try:
            answer = httpx.request(method, self.program.url + path, params=query, timeout=60)
        except httpx.TransportError:
            return None
        return answer.json() if answer.status_code < 400 else None

    def _all_serve(self, version: str) -> Any:
        def look() -> bool | None:
            try:
                clients = self.program.clients().values()
                versions = [client.get("/recommend/nobody?n=1").json()["model_version"] for client in clients]
            except (httpx.TransportError, KeyError):
                return None
            return True if versions and set(versions) == {version} else None

        return look

    def _weigh(self) -> None:
        """The memory of all processes of the service, in MiB."""
        try:
            family = [psutil.Process(self.program.pid), *psutil.Process(self.program.pid).children(recursive=True)]
            mib = sum(process.memory_full_info().pss for process in family) / 2**20
        except (psutil.Error, AssertionError):
            return
        key = "meanwhile" if self._step else "usual"
        self.peak_mib[key] = max(self.peak_mib[key], round(mib))

    def _read_on(self, stop: threading.Event) -> None:
        items = self.telling or [f"demo-{number:04d}" for number in range(50)]
        rng = random.Random(self.done)
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(base_url=self.program.url, timeout=60, limits=limits) as client:
            while not stop.is_set():
                item, step, started = rng.choice(items), self._step, time.perf_counter()
                try:
                    listed = client.get(f"/recommend/shopper-{rng.randrange(200):03d}")
                    self.latencies["meanwhile" if step else "usual"].append(time.perf_counter() - started)
                    answer = client.get(f"/items/{item}")
                except httpx.TransportError:
                    self.reads["no answer"] += 1
                    continue
                for one in (listed, answer):
                    self.reads[str(one.status_code)] += 1
                if answer.status_code == 200:
                    self._compare(item, answer.json())
                time.sleep(READS_S)

    def _compare(self, item: str, body: Any) -> None:
        version, said = body["model_version"], _said(body)
        if item in self.telling:
            self.reads["compared"] += 1
            if _distance(said, self.expected[version][item]) > NEAR:
                self.report.violations.append(f"{item} mixes bundles: {version} {said} {self.expected[version][item]}")


def _distance(one: dict[str, float], other: dict[str, float]) -> float:
    """The largest difference between confidences of the same modalities."""
    return max((abs(value - other.get(name, -1.0)) for name, value in one.items()), default=0.0)


def _said(body: Any) -> dict[str, float]:
    """The confidences in an item's answer, by modality."""
    return {name: one["confidence"] for name, one in body["modalities"].items() if "confidence" in one}


def _active(bundle: Path, folder: Path) -> Active:
    return load(Settings(bundle=bundle, data_dir=folder, database_url="sqlite+aiosqlite:///none.db"))[1]


def _milliseconds(values: list[float]) -> dict[str, float]:
    return {
        f"p{percent}": round(float(np.percentile(values, percent)) * 1000, 1) for percent in (50, 95, 99) if values
    } | {"answers": len(values)}


def main() -> int:
    """Run, print, write; the exit code says whether anything was violated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", action="store_true")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="postgresql")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    redis = Redis()
    try:
        with tempfile.TemporaryDirectory() as folder, database(options.database, Path(folder)) as (url, _):
            harness = Activations(
                options.bundles.resolve(), Path(folder), url, kills=options.kills, seed=options.seed, workers=2,
                redis_url=redis.url,
            )  # fmt: skip
            with harness.program:
                harness.expect()
                for number in range(options.rounds):
                    harness.round()
                    harness.check()
                    harness.expect()
                    print(f"round {number + 1}: {len(harness.report.violations)} violations", flush=True)
                    for violation in harness.report.violations[:SHOWN]:
                        print(f"  {violation[:200]}", flush=True)
    finally:
        redis.kill()
    found = _result(options, harness)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 1 if harness.report.violations else 0


def _result(options: argparse.Namespace, harness: Activations) -> dict[str, Any]:
    report = harness.report
    return {
        "what": f"{options.rounds} activations under load, {options.database}, two workers, kills: {options.kills}",
        "command": " ".join(["python", "-m", "benchmarks.activation", *sys.argv[1:]]),
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "activations": harness.done,
        "activation_seconds": harness.seconds,
        "kills": dict(report.kills),
        "kills_by_step": dict(harness.phases),
        "acknowledged": dict(report.acknowledged),
        "unanswered": dict(report.unanswered),
        "failed": dict(report.failed),
        "reads": dict(harness.reads),
        "usual_ms": _milliseconds(harness.latencies["usual"]),
        "meanwhile_ms": _milliseconds(harness.latencies["meanwhile"]),
        "memory_mib": harness.peak_mib,
        "items_checked": report.items_checked,
        "answers_compared": report.answers_compared,
        "violations": report.violations,
    }


if __name__ == "__main__":
    sys.exit(main())
