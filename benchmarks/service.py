"""Latency and memory of the service: one core, a catalogue of 10,000 items, one connection over loopback.

Fills a fresh database to `--items` items (beyond the bundle's own ones they are synthetic: ready vectors drawn around
the bundle's), gives 2,000 users 30 events each on the bundle's own items and waits until what they regenerate is done.
Then it measures each kind of request beside a bare FastAPI route that returns a recommendation's body, in turns, in the
same run. The server is pinned to one core, the client to another. Where the bundle holds an IRIS, 200 more users have
histories of 200 items, and lists by it and reasons are measured on these; `explain_ms` is the service's own mean time
for the reasons of one list of 20.

    python benchmarks/service.py --bundle build/demo-bundle --json docs/results/service/latency.json
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from models.bundle import CATALOGUE_FEATURES, Bundle
from models.iris.serving import NAME as IRIS

USERS, EVENTS = 2000, 30
LONG_USERS, LONG_EVENTS = 200, 200
BARE = """
import orjson, sys, uvicorn
from fastapi import FastAPI, Response
body = orjson.loads(sys.stdin.buffer.read())
app = FastAPI()
@app.get("/")
async def bare():
    return Response(orjson.dumps(body), media_type="application/json")
uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False, log_level="error",
    timeout_keep_alive=3600)
"""
WORDS = ("red", "blue", "striped", "linen", "leather", "running", "winter", "kitchen", "soft", "light", "shoe", "lamp")


class Client:
    """One keep-alive connection."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and decoded answer."""
        status, raw = self.send(method, path, None if body is None else json.dumps(body).encode())
        return status, json.loads(raw) if raw else None

    def send(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and raw answer."""
        headers = {"Content-Type": "application/json"} if body else {}
        self.connection.request(method, path, body, headers)
        answer = self.connection.getresponse()
        return answer.status, answer.read()


def start(arguments: Sequence[str], core: int, stdin: bytes | None = None) -> subprocess.Popen[bytes]:
    """A process pinned to one core."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
    process = subprocess.Popen(arguments, env=environment, stdin=subprocess.PIPE if stdin else None)
    os.sched_setaffinity(process.pid, {core})
    if stdin and process.stdin:
        process.stdin.write(stdin)
        process.stdin.close()
    return process


def wait(port: int, path: str) -> None:
    """Until the server answers 200."""
    for _ in range(1200):
        try:
            if Client(port).send("GET", path)[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"nothing answers on port {port}")


def fill(client: Client, bundle: Bundle, target: int, rng: np.random.Generator) -> list[str]:
    """Items up to `target`, and feedback; the ids of all items."""
    features = bundle.tensors(CATALOGUE_FEATURES)
    names = [modality.name for modality in bundle.manifest.modalities]
    ids = bundle.vocabulary("items").ids
    while len(ids) < target:
        rows = []
        for _ in range(min(200, target - len(ids))):
            kept = [name for name in names if rng.random() < 0.8] or names[:1]
            rows.append({"id": f"synthetic-{len(ids)}", "modalities": {n: _vector(features, n, rng) for n in kept}})
            ids.append(rows[-1]["id"])
        status, answer = client.ask("POST", "/items/batch", {"items": rows})
        assert status == 200, answer
        assert all(row["status"] == 201 for row in answer["items"]), answer["items"][0]
    own = len(bundle.vocabulary("items"))
    told = [(f"bench-{user}", EVENTS) for user in range(USERS)]
    if IRIS in bundle.manifest.models:
        told += [(f"long-{user}", min(LONG_EVENTS, own)) for user in range(LONG_USERS)]
    for start in range(0, len(told), 40):
        events = [
            {"user": user, "item": ids[item], "type": "view", "timestamp": "2026-01-01T00:00:00Z"}
            for user, count in told[start : start + 40]
            for item in rng.choice(own, count, replace=False).tolist()
        ]
        status, answer = client.ask("POST", "/feedback", {"feedback": events})
        assert status == 200, answer
    while client.ask("GET", "/stats")[1]["awaiting_regeneration"]:
        time.sleep(0.5)
    return ids


def _vector(features: dict[str, Any], name: str, rng: np.random.Generator) -> dict[str, list[float]]:
    rows = np.flatnonzero(features[f"{name}.observed"])
    vector = features[name][rng.choice(rows)]
    noise = rng.normal(0, float(vector.std()) / 2 + 1e-6, len(vector))
    return {"vector": [round(float(value), 5) for value in vector + noise]}


def measure(calls: Sequence[Callable[[], int]]) -> list[float]:
    """Milliseconds of each call."""
    times = []
    for call in calls:
        begin = time.perf_counter()
        status = call()
        times.append((time.perf_counter() - begin) * 1000)
        assert status in (200, 201), status
    return times


def quantiles(times: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds."""
    return {"p50_ms": round(float(np.percentile(times, 50)), 3), "p99_ms": round(float(np.percentile(times, 99)), 3)}


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=1000, help="of each kind")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    bundle = Bundle.load(options.bundle)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as data:
        arguments = [sys.executable, "-m", "service", "--bundle", str(options.bundle), "--data-dir", data]
        server = start([*arguments, "--port", "8791", "--log-level", "warning"], cores[0])
        bare = None
        try:
            wait(8791, "/health/ready")
            alone = psutil.Process(server.pid).memory_info().rss / 2**20
            client = Client(8791)
            begin = time.perf_counter()
            ids = fill(client, bundle, options.items, rng)
            filled = time.perf_counter() - begin
            _, body = client.send("GET", "/recommend/bench-0?n=20")
            bare = start([sys.executable, "-c", BARE, "8792"], cores[0], body)
            wait(8792, "/")
            rows = run(client, Client(8792), bundle, ids, options.requests, rng)
            explaining = explain_ms(client, options.requests) if IRIS in bundle.manifest.models else None
            memory = psutil.Process(server.pid).memory_info().rss / 2**20
        finally:
            for process in (server, bare):
                if process:
                    process.terminate()
                    process.wait(20)
    result = {
        "what": f"one core, {options.items} items, one connection, {options.requests} requests of each kind",
        "synthetic": True,
        "command": " ".join(["python", *sys.argv]),
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": len(cores),
            "load": os.getloadavg()[0],
            "versions": {"python": platform.python_version()} | {n: version(n) for n in ("fastapi", "faiss-cpu")},
        },
        "memory_mb": {"with the bundle's own catalogue": round(alone), f"with {options.items} items": round(memory)},
        "fill_seconds": round(filled, 1),
        **({} if explaining is None else {"explain_ms": explaining}),
        "metrics": rows,
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def run(
    client: Client, bare: Client, bundle: Bundle, ids: Sequence[str], requests: int, rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Every kind of request, in rounds, so that a slow moment of the machine hits all kinds alike."""
    features = bundle.tensors(CATALOGUE_FEATURES)
    name = bundle.manifest.modalities[0].name
    count = iter(range(10**9))

    def text() -> str:
        return " ".join(rng.choice(WORDS, 12).tolist())

    def post(modalities: Any) -> Callable[[], int]:
        body = json.dumps({"id": f"bench-{next(count)}", "modalities": modalities}).encode()
        return lambda: client.send("POST", "/items", body)[0]

    def get(path: str) -> Callable[[], int]:
        return lambda: client.send("GET", path)[0]

    kinds: dict[str, Callable[[], Callable[[], int]]] = {
        "bare FastAPI route, same body": lambda: lambda: bare.send("GET", "/")[0],
        "GET /recommend/{user}": lambda: get(f"/recommend/bench-{rng.integers(USERS)}?n=20"),
        "GET /recommend/{user} of a category": lambda: get(
            f"/recommend/bench-{rng.integers(USERS)}?n=20&category=bags"
        ),
        "GET /items/{id}/similar": lambda: get(f"/items/{ids[int(rng.integers(len(ids)))]}/similar?n=20"),
        "GET /items/{id}": lambda: get(f"/items/{ids[int(rng.integers(len(ids)))]}"),
        "GET /retrieve?text=": lambda: get(f"/retrieve?text={text().replace(' ', '%20')}&n=20"),
        "POST /items with a vector": lambda: post({name: _vector(features, name, rng)}),
        "POST /items with a text": lambda: post({"text": text()}),
        "POST /feedback, one event": lambda: (lambda body: lambda: client.send("POST", "/feedback", body)[0])(
            json.dumps(
                {
                    "feedback": [
                        {
                            "user": f"bench-{rng.integers(USERS)}",
                            "item": ids[int(rng.integers(len(ids)))],
                            "type": "click",
                        }
                    ]
                }
            ).encode()
        ),
    }
    if IRIS in bundle.manifest.models:

        def long(query: str) -> Callable[[], Callable[[], int]]:
            return lambda: get(f"/recommend/long-{rng.integers(LONG_USERS)}?n=20{query}")

        kinds |= {
            f"GET /recommend/{{user}}, history of {LONG_EVENTS}": long(""),
            f"GET /recommend/{{user}}, history of {LONG_EVENTS}, by IRIS": long("&model=iris"),
            f"GET /recommend/{{user}}, history of {LONG_EVENTS}, with reasons": long("&explain=true"),
            f"GET /explain/{{user}}/{{item}}, history of {LONG_EVENTS}": lambda: get(
                f"/explain/long-{rng.integers(LONG_USERS)}/{ids[int(rng.integers(len(ids)))]}"
            ),
        }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    rounds = 10
    for _ in range(rounds):
        for kind, make in kinds.items():
            times[kind] += measure([make() for _ in range(requests // rounds)])
    base = float(np.percentile(times["bare FastAPI route, same body"], 50))
    return {
        kind: quantiles(taken) | {"p50 over bare": round(float(np.percentile(taken, 50)) / base, 2)}
        for kind, taken in times.items()
    }


def explain_ms(client: Client, requests: int) -> float:
    """The service's own mean time for the reasons of one list of 20 items, from its metrics."""
    seconds, count = _explained(client)
    for row in range(requests):
        status, _ = client.send("GET", f"/recommend/long-{row % LONG_USERS}?n=20&explain=true")
        assert status == 200, status
    seconds_then, count_then = _explained(client)
    return round((seconds_then - seconds) / (count_then - count) * 1000, 3)


def _explained(client: Client) -> tuple[float, float]:
    """Seconds that explaining has taken so far, and how often it was done."""
    text = client.send("GET", "/metrics")[1].decode()
    (seconds,), (count,) = (
        re.findall(rf'^lacuna_step_seconds_{name}{{step="explain"}} (\S+)$', text, re.MULTILINE)
        for name in ("sum", "count")
    )
    return float(seconds), float(count)


if __name__ == "__main__":
    main()
