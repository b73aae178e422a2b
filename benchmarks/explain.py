"""How long an explanation takes: 20 targets against a history of 200, by a model of the size that is measured.

python benchmarks/explain.py --bundle build/ml-1m-bundle --json docs/results/service/explain.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from models.bundle import Bundle
from models.iris.serving import IRISServing
from training.evaluate import machine

TARGETS, HISTORY, TIMES = 20, 200, 500


def main() -> None:
    """Time it, print the figure and the machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    reranker = IRISServing.load(Bundle.load(given.bundle))
    if reranker is None:
        parser.error(f"the bundle {given.bundle} holds no IRIS")
    rng = np.random.default_rng(0)
    ids = [reranker.items.id(int(row)) for row in rng.permutation(len(reranker.items))[: TARGETS + HISTORY]]
    sizes = {spec.name: spec.dim for spec in reranker.model.specs}
    features = {name: rng.normal(size=(len(ids), dim)).astype(np.float32) for name, dim in sizes.items()}
    sides = reranker.sides(features, np.ones((len(ids), len(sizes)), np.bool_), ids)
    targets, history = sides.select(range(TARGETS)), sides.select(range(TARGETS, len(ids)))
    taken = []
    for _ in range(TIMES):
        begin = time.perf_counter()
        reranker.explain(history, targets)
        taken.append((time.perf_counter() - begin) * 1000)
    metrics = {f"p{share}_ms": round(float(np.percentile(taken, share)), 3) for share in (50, 99)}
    result = {
        "what": "explaining targets against a history",
        "command": "python benchmarks/explain.py --bundle build/ml-1m-bundle --json docs/results/service/explain.json",
        "targets": TARGETS,
        "history": HISTORY,
        "times": TIMES,
        "machine": machine(),
        "metrics": metrics,
    }
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps({"metrics": metrics, "machine": result["machine"]}, indent=1))


if __name__ == "__main__":
    main()
