"""How fast ratings are predicted: `python benchmarks/predict.py --url http://127.0.0.1:8000 --json FILE`.

The service must serve a bundle with LRMM and its own catalogue. Users and items are those of the feedback that is
stored; every pair is asked once before the clock starts, so that documents are warm, as they are after their reviews
have come in.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import httpx

from training.evaluate import machine

SINGLE, BATCH, BATCHES = 500, 1000, 20


def main() -> None:
    """Measure and print; write the raw result where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with httpx.Client(base_url=options.url, timeout=300) as client:
        events = client.get("/feedback", params={"limit": 500}).raise_for_status().json()["items"]
        pairs = [{"user": one["user"], "item": other["item"]} for one in events[:40] for other in events[-40:]][:BATCH]
        client.post("/predict", json={"pairs": pairs}).raise_for_status()
        single = [_timed(client, "GET", f"/predict/{one['user']}/{one['item']}") for one in pairs[:SINGLE]]
        batch = [_timed(client, "POST", "/predict", json={"pairs": pairs}) for _ in range(BATCHES)]
        live = [_timed(client, "GET", "/health/live") for _ in range(SINGLE)]
    result: dict[str, Any] = {
        "what": "predicted ratings over loopback, one connection, warm documents",
        "metrics": {
            "GET /predict/{user}/{item}": _summary(single),
            f"POST /predict, {len(pairs)} pairs": _summary(batch),
            "GET /health/live": _summary(live),
        },
        "command": "python benchmarks/predict.py",
        "machine": machine(),
    }
    print(json.dumps(result["metrics"], indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def _timed(client: httpx.Client, method: str, path: str, **request: Any) -> float:
    start = time.perf_counter()
    client.request(method, path, **request).raise_for_status()
    return (time.perf_counter() - start) * 1000


def _summary(milliseconds: list[float]) -> dict[str, float]:
    ordered = sorted(milliseconds)
    return {"p50_ms": round(statistics.median(ordered), 2), "p99_ms": round(ordered[int(0.99 * len(ordered))], 2)}


if __name__ == "__main__":
    main()
