"""Does derived state depend on the order of writes, and what does it cost that it does not?

    python -m benchmarks.convergence import --bundle build/demo-bundle --json FILE
    python -m benchmarks.convergence load --bundle build/demo-bundle --items 10000 --json FILE
    python -m benchmarks.convergence beside --bundle build/demo-bundle --items 10000 --other FOLDER --json FILE

`import`: a service is seeded with the bundle's catalogue, and new items are written to it. Its items and feedback are
exported and imported into an empty service with the same bundle, once items first and then feedback, and once feedback
a second time over. Compared are every user's list of 20, and how many of the items that nobody has touched stand in it.

`load`: a database with so many items, which are synthetic: the demo's features with noise, each lacking every modality
with probability 1/3, and as many events. No item was known to training, which costs most. A start derives everything
(`start_without_derived_seconds`). Then, for a minute, ten writes a second: eight events of feedback, and new, replaced
and deleted items. Reported are the writes' latencies, the share of a core that background work took
(`background_share`: processor time of the service while it was at it until nothing was pending, what it answered
meanwhile included, in shares of that minute), and how long after a write was answered it had taken effect on everything
that is derived (`spread_*`): until `GET /stats`, asked ten times a second, named under `pending` a position `through`
which all is derived that is no less than the one that the write was answered with. At the end a sample of the state is
checked, and the service started again, with and without a snapshot.

`beside`: the same writes, as many of each kind, to this service and to that of another checkout, `--other`, in turns,
ten a second in all, with so many of those items each. Reported are both versions' latencies.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from models.bundle import CATALOGUE_FEATURES, Bundle
from service.adapters.sql.store import SqlStore
from service.domain import Event, Observed, StoredItem
from service.ports import ItemWrite
from tests.service.processes import REPOSITORY, free_port
from training.evaluate.result import write_single_run

BATCH = 500
RATE, SECONDS = 10.0, 60.0
POLL_S = 0.1  # between two looks at how far everything is derived
POSITION = "X-Lacuna-Position"
CHECKED = 1000  # items at the end
MIX = {"event": 8, "create": 1, "replace": 0.6, "delete": 0.4}
START_S = 3600.0


class Service:
    """The service in a process of its own, with a database of its own."""

    def __init__(self, bundle: Path, folder: Path, source: Path = REPOSITORY, **settings: Any) -> None:
        self.port = free_port()
        environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(source),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "LACUNA_BUNDLE": str(bundle),
            "LACUNA_PORT": str(self.port),
            "LACUNA_DATA_DIR": str(folder),
            "LACUNA_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/lacuna.db",
            **{f"LACUNA_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.environment = environment
        self.log = (folder / "log").open("ab")
        begin = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service"], env=environment, cwd=folder, stdout=self.log, stderr=subprocess.STDOUT
        )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=600)
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() - begin > START_S:
                raise RuntimeError(f"the service did not start; its log is {folder}/log")
            time.sleep(0.05)
        self.start_seconds = time.monotonic() - begin

    def _is_ready(self) -> bool:
        try:
            return self.client.get("/health/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(60)
        self.log.close()

    def get(self, path: str, **query: Any) -> Any:
        return self.client.get(path, params=query).raise_for_status().json()

    def post(self, path: str, body: Any, **query: Any) -> Any:
        return self.client.post(path, json=body, params=query).raise_for_status().json()

    def is_idle(self) -> bool:
        """Whether nothing is pending."""
        return self.get("/stats")["awaiting_regeneration"] == 0

    def wait_until_idle(self) -> float:
        """Seconds until nothing was pending."""
        begin = time.monotonic()
        while not self.is_idle():
            time.sleep(0.05)
        return time.monotonic() - begin

    def background_seconds(self) -> float:
        """Processor time of the service during background work since the start."""
        metrics = self.client.get("/metrics").text
        found = re.search(r'lacuna_step_seconds_sum\{step="background_processor"\} (\S+)', metrics)
        return float(found[1]) if found else 0.0

    @property
    def processor_seconds(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def memory_mb(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 2**20


# --- import ----------------------------------------------------------------------------------------------------------


def lists(service: Service, users: list[str]) -> dict[str, dict[str, float]]:
    """Every user's list of 20: items and scores."""
    return {
        user: {hit["id"]: hit["score"] for hit in service.get(f"/recommend/{user}", n=20)["items"]} for user in users
    }


def users_of(folder: Path) -> list[str]:
    lines = (folder / "feedback.jsonl").read_text("utf-8").splitlines()
    return sorted({json.loads(line)["user"] for line in lines})


def untouched(folder: Path) -> set[str]:
    items = {json.loads(line)["id"] for line in (folder / "items.jsonl").read_text("utf-8").splitlines()}
    return items - {json.loads(line)["item"] for line in (folder / "feedback.jsonl").read_text("utf-8").splitlines()}


def command(service: Service, *arguments: str) -> None:
    """Run `lacuna` against a service, or its database."""
    environment = service.environment | {"LACUNA_URL": f"http://127.0.0.1:{service.port}"}
    environment.pop("LACUNA_PORT")
    subprocess.run([sys.executable, "-m", "training", *arguments], env=environment, check=True)


def compare_imports(options: argparse.Namespace) -> dict[str, float]:
    """Lists before an export and after two imports."""
    metrics: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("seeded", "items-first", "mixed"):
            (folder / part).mkdir()
        with Service(options.bundle, folder / "seeded") as seeded:
            rng = random.Random(1)
            for number in range(options.new):  # with a text alone, as a shop's new items come
                words = " ".join(rng.sample(WORDS, 5))
                seeded.post("/items", {"id": f"new-{number}", "modalities": {"text": f"A {words}."}})
            seeded.wait_until_idle()
            command(seeded, "export", str(folder / "export"))
            users, never = users_of(folder / "export"), untouched(folder / "export")
            before = lists(seeded, users)
            metrics["never_touched_in_20[seeded]"] = _never(before, never)
        files = folder / "export" / "items.jsonl", folder / "export" / "feedback.jsonl"
        for order in ("items-first", "mixed"):
            with Service(options.bundle, folder / order, seed_catalogue=0) as empty:
                if order == "items-first":
                    command(empty, "import", "items", str(files[0]))
                    command(empty, "import", "feedback", str(files[1]))
                else:
                    _import_mixed(empty, *files)
                metrics[f"seconds_until_idle[{order}]"] = empty.wait_until_idle()
                after = lists(empty, users)
                metrics |= {f"{name}[{order}]": value for name, value in _agreement(before, after).items()}
                metrics[f"never_touched_in_20[{order}]"] = _never(after, never)
                metrics[f"differing[{order}]"] = empty.post("/admin/check", None)["differing"]
    return metrics | {"users": len(users), "new_items": options.new}


def _import_mixed(service: Service, items: Path, feedback: Path) -> None:
    """Items in random order, each followed by a part of the feedback that is possible by then; refused events last."""
    rng = random.Random(2)
    bodies = [json.loads(line) for line in items.read_text("utf-8").splitlines()]
    events = [json.loads(line) for line in feedback.read_text("utf-8").splitlines()]
    rng.shuffle(bodies)
    rng.shuffle(events)
    share = len(events) // (len(bodies) // BATCH + 1) + 1
    for start in range(0, len(bodies), BATCH):
        service.post("/items/batch", {"items": bodies[start : start + BATCH]})
        part, events = events[:share], events[share:]
        rejected = service.post("/feedback", {"feedback": part})["rejected"] if part else []
        events += [part[row["index"]] for row in rejected]
    for start in range(0, len(events), 5000):
        service.post("/feedback", {"feedback": events[start : start + 5000]})


def _agreement(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> dict[str, float]:
    shared = [len(before[user].keys() & after[user].keys()) for user in before]
    gaps = [
        abs(before[user][item] - after[user][item])
        for user in before
        for item in before[user].keys() & after[user].keys()
    ]
    return {"shared_of_20": float(np.mean(shared)), "least_shared": float(min(shared)), "largest_score_gap": max(gaps)}


def _never(found: dict[str, dict[str, float]], never: set[str]) -> float:
    return float(np.mean([len(items.keys() & never) for items in found.values()]))


WORDS = ("red", "teal", "mug", "lamp", "sneaker", "cushion", "canvas", "knit", "striped", "dotted", "wool", "frosted")

# --- load ------------------------------------------------------------------------------------------------------------


class Catalogue:
    """Synthetic items: a bundle's features with noise."""

    def __init__(self, bundle: Path, seed: int) -> None:
        loaded = Bundle.load(bundle)
        tensors = loaded.tensors(CATALOGUE_FEATURES)
        self.features = {
            modality.name: np.asarray(tensors[modality.name], np.float32)[
                np.asarray(tensors[f"{modality.name}.observed"]).astype(bool)
            ]
            for modality in loaded.manifest.modalities
        }
        self.rng = np.random.default_rng(seed)

    def body(self, item: str) -> dict[str, Any]:
        modalities = {}
        for name, block in self.features.items():
            if self.rng.random() < 2 / 3:
                noise = self.rng.standard_normal(block.shape[1]) * block.std() * 0.5
                vector = block[self.rng.integers(len(block))] + noise
                modalities[name] = {"vector": [round(float(value), 5) for value in vector]}
        return {"id": item, "modalities": modalities}


def load(options: argparse.Namespace) -> dict[str, float]:
    """Fill, write at a rate, check, start again."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        catalogue = Catalogue(options.bundle, 1)
        settings = {"seed_catalogue": 0, "snapshot_minutes": 0}
        asyncio.run(_fill(folder / "lacuna.db", catalogue, options.items))
        with Service(options.bundle, folder, **settings) as service:
            metrics = {
                "items": float(options.items),
                "start_without_derived_seconds": service.start_seconds,
                "memory_mb": service.memory_mb,
            }
            service.wait_until_idle()
            metrics |= _writes(service, catalogue, options)
            metrics["seconds_until_idle_after_writes"] = service.wait_until_idle()
            begin = time.monotonic()
            report = service.post("/admin/check", None, sample=min(CHECKED, options.items))
            for row in report["differences"]:
                print(row)
            metrics["differing"] = float(report["differing"])
            metrics["check_seconds"] = time.monotonic() - begin
        with Service(options.bundle, folder, **settings) as again:
            metrics["start_seconds"] = again.start_seconds
            again.post("/admin/snapshot", None)
        with Service(options.bundle, folder, **settings) as quick:
            metrics["start_from_snapshot_seconds"] = quick.start_seconds
    return metrics


def _events(items: int) -> Iterator[Event]:
    """Of a tenth as many users, ten each."""
    now, rng = datetime(2026, 1, 1, tzinfo=UTC), random.Random(3)
    for number in range(items):
        user, item = f"u{rng.randrange(max(items // 10, 10))}", f"i{int(items * rng.random() ** 2)}"
        yield Event(user, item, "view", now + timedelta(seconds=number))


async def _fill(database: Path, catalogue: Catalogue, items: int) -> None:
    """Items and feedback as they came; nothing is derived yet."""
    store = await SqlStore.open(f"sqlite+aiosqlite:///{database}")
    now, events = datetime(2026, 1, 1, tzinfo=UTC), list(_events(items))
    for start in range(0, items, BATCH):
        stored = [_stored(catalogue, f"i{number}", now) for number in range(start, min(start + BATCH, items))]
        await store.write_items([ItemWrite(item, "create") for item in stored])
    for start in range(0, items, 5000):
        await store.add_feedback(events[start : start + 5000])
    await store.close()


def _stored(catalogue: Catalogue, item: str, now: datetime) -> StoredItem:
    vectors = catalogue.body(item)["modalities"]
    observed = {name: Observed(np.array(part["vector"], np.float32), "vector") for name, part in vectors.items()}
    return StoredItem(item, None, (), {}, True, 1, now, now, observed, {}, "", b"")


def _writes(service: Service, catalogue: Catalogue, options: argparse.Namespace) -> dict[str, float]:
    """Ten writes a second."""
    rng = random.Random(4)
    latencies: dict[str, list[float]] = {kind: [] for kind in MIX}
    written: list[tuple[float, int]] = []  # when, and at which position of the change log
    derived: list[tuple[float, int]] = []  # when it was known that all up to a position was
    done = threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=service.client.base_url, timeout=60) as client:
            while not done.is_set():
                through = client.get("/stats").json()["pending"]["through"]
                derived.append((time.monotonic(), through))
                time.sleep(POLL_S)

    watching = threading.Thread(target=watch)
    watching.start()
    background, processor, begin = service.background_seconds(), service.processor_seconds, time.monotonic()
    for number, kind in enumerate(_kinds(rng, int(RATE * options.seconds))):
        time.sleep(max(0.0, begin + number / RATE - time.monotonic()))
        started = time.monotonic()
        answer = _write(service, catalogue, kind, number, rng, options)
        ended = time.monotonic()
        if POSITION in answer.headers:
            written.append((ended, int(answer.headers[POSITION])))
        latencies[kind].append(ended - started)
    took = time.monotonic() - begin
    processor = service.processor_seconds - processor
    service.wait_until_idle()
    background = service.background_seconds() - background
    time.sleep(2 * POLL_S)
    done.set()
    watching.join()
    spread = [next(known for known, through in derived if through >= position) - at for at, position in written]
    return {
        "writes_per_second": sum(map(len, latencies.values())) / took,
        "background_share": background / took,
        "processor_share": processor / took,
        **{f"spread_{name}_seconds": float(np.percentile(spread, at)) for name, at in (("p50", 50), ("p99", 99))},
        **{
            f"{kind}_{name}_ms": float(np.percentile(times, at)) * 1000
            for kind, times in latencies.items()
            if times
            for name, at in (("p50", 50), ("p99", 99))
        },
    }


def _kinds(rng: random.Random, count: int) -> Iterator[str]:
    yield from rng.choices(list(MIX), list(MIX.values()), k=count)


def _write(
    service: Service, catalogue: Catalogue, kind: str, number: int, rng: random.Random, options: argparse.Namespace
) -> httpx.Response:
    path, method, body = _request(catalogue, kind, number, rng, options)
    answer = service.client.request(method, path, json=body)
    return answer if kind == "delete" else answer.raise_for_status()  # what is to be deleted may be gone already


def _request(
    catalogue: Catalogue, kind: str, number: int, rng: random.Random, options: argparse.Namespace
) -> tuple[str, str, Any]:
    """Path, method and body of a write."""
    item = f"i{int(options.items * rng.random() ** 2)}"
    if kind == "event":
        user = f"u{rng.randrange(max(options.items // 10, 10))}"
        return "/feedback", "POST", {"feedback": [{"user": user, "item": item, "type": "view"}]}
    if kind == "create":
        return "/items", "POST", catalogue.body(f"new-{number}")
    if kind == "replace":
        return f"/items/{item}", "PUT", {"modalities": catalogue.body(item)["modalities"]}
    return f"/items/{item}", "DELETE", None


# --- beside another version ------------------------------------------------------------------------------------------


def beside(options: argparse.Namespace) -> dict[str, float]:
    """The same writes to two versions, in turns."""
    catalogue, rng = Catalogue(options.bundle, 1), random.Random(5)
    latencies: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as running:
        services = {}
        versions = {
            "this": (REPOSITORY, options.bundle),
            "other": (options.other.resolve(), (options.other_bundle or options.bundle).resolve()),
        }
        for version, (source, bundle) in versions.items():
            folder = Path(name) / version
            folder.mkdir()
            services[version] = running.enter_context(
                Service(bundle, folder, source, seed_catalogue=0, snapshot_minutes=0)
            )
        for start in range(0, options.items, BATCH):
            rows = [catalogue.body(f"i{number}") for number in range(start, min(start + BATCH, options.items))]
            for service in services.values():
                service.post("/items/batch", {"items": rows})
        events = [
            {"user": event.user, "item": event.item, "type": event.type, "timestamp": event.timestamp.isoformat()}
            for event in _events(options.items)
        ]
        for service in services.values():
            for start in range(0, len(events), BATCH):
                service.post("/feedback", {"feedback": events[start : start + BATCH]})
            service.wait_until_idle()
        begin = time.monotonic()
        kinds = rng.choices(("event", "create", "replace", "delete"), k=int(RATE * options.seconds / 2))
        for number, kind in enumerate(kinds):
            path, method, body = _request(catalogue, kind, number, rng, options)
            for turn, version in enumerate(sorted(services, reverse=bool(number % 2))):
                time.sleep(max(0.0, begin + (2 * number + turn) / RATE - time.monotonic()))
                started = time.monotonic()
                services[version].client.request(method, path, json=body)
                latencies.setdefault(f"{kind}[{version}]", []).append(time.monotonic() - started)
    return {
        f"{name}_{part}_ms": float(np.percentile(times, at)) * 1000
        for name, times in latencies.items()
        for part, at in (("p50", 50), ("p90", 90))
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("import", "load", "beside"))
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--new", type=int, default=100, help="items that are written to the seeded service")
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--other", type=Path, help="the checkout of another version")
    parser.add_argument("--other-bundle", type=Path, help="a bundle that it can read, by default the same")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.bundle = options.bundle.resolve()
    begin = time.perf_counter()
    measure = {"import": compare_imports, "load": load, "beside": beside}[options.what]
    metrics = measure(options)
    for name, value in metrics.items():
        print(f"{name}: {value:.4g}")
    what = {
        "protocol": "service",
        "dataset": "demo",
        "synthetic": True,
        "model": "dgmrec",
        "variant": f"convergence-{options.what}",
        "config": {"items": options.items, "rate": RATE, "mix": MIX},
    }
    write_single_run(options.json, what, metrics, " ".join(["python -m benchmarks.convergence", *sys.argv[1:]]), begin)


if __name__ == "__main__":
    main()
