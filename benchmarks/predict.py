"""How fast ratings are predicted: a bundle with DGMRec and LRMM, its service, and requests over one connection.

    lacuna demo --bundle-only
    python benchmarks/predict.py --json docs/results/service/predict.json

Shoppers of the demo catalogue are given reviews (synthetic: ratings from tastes drawn at random, and words that fit
them), LRMM is trained on these into a copy of the demo bundle, and a service of that bundle gets the same reviews.
Every pair is asked once before the clock starts, so that documents are warm, as they are after their reviews have come
in.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from models.lrmm.config import LRMMConfig
from training.content import DataOptions
from training.datasets import Dataset, load_dataset, write_dataset
from training.evaluate import machine
from training.lrmm.recipe import LRMMRecipe
from training.lrmm.task import TRAINER
from training.progress import Terminal
from training.recipe import train_into_bundle

SINGLE, BATCH, BATCHES = 500, 1000, 20
USERS, REVIEWS, SENT = 200, 2000, 500
KIND = 4  # tastes
SAID = {
    1: "awful broke returned waste",
    2: "poor thin weak disappointed",
    3: "fine ordinary okay average",
    4: "good solid nice happy",
    5: "great love perfect best",
}


def main() -> None:
    """Make the bundle, serve it, measure and print; write the raw result where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("build/demo-bundle"))
    parser.add_argument("--data", type=Path, default=Path("build/demo-bundle-data"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset, events = reviewed(load_dataset(options.data), folder / "data")
        shutil.copytree(options.bundle, folder / "bundle")
        with Terminal() as terminal:
            cache = DataOptions(cache=options.data.with_name(f"{options.data.name}-cache"), threads=1)
            train_into_bundle(LRMMRecipe(LRMMConfig(), TRAINER), dataset, folder / "bundle", cache, terminal=terminal)
        with served(folder / "bundle", folder / "service") as client:
            result = measured(client, events)
    print(json.dumps(result["metrics"], indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def reviewed(demo: Dataset, folder: Path) -> tuple[Dataset, list[dict[str, Any]]]:
    """The demo's items with reviews of the demo's shoppers, as a dataset and as feedback."""
    rng = np.random.default_rng(0)
    tastes, kinds = rng.normal(size=(USERS, KIND)), rng.normal(size=(len(demo.items), KIND))
    events = []
    for pair in rng.permutation(USERS * len(demo.items))[:REVIEWS].tolist():
        user, item = divmod(pair, len(demo.items))
        value = int(np.clip(np.rint(3.7 + 0.6 * tastes[user] @ kinds[item] + rng.normal(0, 0.5)), 1, 5))
        text = (
            f"{rng.choice(SAID[value].split())}\n{' '.join(rng.choice(SAID[value].split(), int(rng.integers(5, 60))))}"
        )
        event = {"user": demo.users.id(user), "item": demo.items.id(item), "type": "review"}
        events.append({**event, "value": float(value), "text": text})
    write_dataset(folder, demo.records, events, name="demo, reviewed (synthetic)", source="drawn", synthetic=True)
    return load_dataset(folder), events


@contextmanager
def served(bundle: Path, data: Path) -> Iterator[httpx.Client]:
    """A client of a service that runs meanwhile."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ("--bundle", str(bundle), "--data-dir", str(data), "--port", str(port), "--log-level", "warning")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
    process = subprocess.Popen([sys.executable, "-m", "service", *arguments], env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
            _wait(client, process)
            yield client
    finally:
        process.terminate()
        process.wait(30)


def _wait(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        try:
            if client.get("/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None:
            raise SystemExit(f"the service ended with {process.returncode}")
        time.sleep(0.1)
    raise TimeoutError("the service does not become ready")


def measured(client: httpx.Client, events: list[dict[str, Any]]) -> dict[str, Any]:
    """Send the reviews and ask for pairs."""
    for start in range(0, len(events), SENT):
        client.post("/feedback", json={"feedback": events[start : start + SENT]}).raise_for_status()
    while client.get("/stats").raise_for_status().json()["awaiting_regeneration"]:
        time.sleep(0.5)
    rng = np.random.default_rng(1)
    one, other = rng.integers(len(events), size=(2, BATCH))
    pairs = [{"user": events[a]["user"], "item": events[b]["item"]} for a, b in zip(one, other, strict=True)]
    client.post("/predict", json={"pairs": pairs}).raise_for_status()
    single = [_timed(client, "GET", f"/predict/{pair['user']}/{pair['item']}") for pair in pairs[:SINGLE]]
    batch = [_timed(client, "POST", "/predict", json={"pairs": pairs}) for _ in range(BATCHES)]
    live = [_timed(client, "GET", "/health/live") for _ in range(SINGLE)]
    users, items = ({event[name] for event in events} for name in ("user", "item"))
    return {
        "what": f"predicted ratings: {len(events)} reviews of {len(items)} items by {len(users)} users, one connection",
        "synthetic": True,
        "metrics": {
            "GET /predict/{user}/{item}": _summary(single),
            f"POST /predict, {BATCH} pairs": _summary(batch),
            "GET /health/live": _summary(live),
        },
        "command": "python benchmarks/predict.py",
        "machine": machine() | {"load": round(os.getloadavg()[0], 2)},
    }


def _timed(client: httpx.Client, method: str, path: str, **request: Any) -> float:
    start = time.perf_counter()
    client.request(method, path, **request).raise_for_status()
    return (time.perf_counter() - start) * 1000


def _summary(milliseconds: list[float]) -> dict[str, float]:
    ordered = sorted(milliseconds)
    return {"p50_ms": round(statistics.median(ordered), 2), "p99_ms": round(ordered[int(0.99 * len(ordered))], 2)}


if __name__ == "__main__":
    main()
