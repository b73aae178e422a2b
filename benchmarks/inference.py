"""How long the service's arithmetic takes for one item: generating its missing modalities, and embedding it.

    python benchmarks/inference.py BUNDLE [--before TREE --before-bundle BUNDLE]

With `--before`, a checkout of an earlier commit, by its own copy of this script, and a bundle that it made are measured
in the same run, in turns, so that what else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROUNDS, CALLS = 7, 200


def main() -> None:
    """Print the median milliseconds of each part, by tree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit")
    parser.add_argument("--before-bundle", type=Path, help="a bundle that it made")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(measured(given.bundle)))
        return
    trees = {"now": (ROOT, given.bundle)}
    if given.before:
        trees = {"before": (given.before, given.before_bundle)} | trees
    rounds = [{name: run(*tree) for name, tree in trees.items()} for _ in range(ROUNDS)]
    print(f"{platform.processor() or platform.machine()}, one thread; median of {ROUNDS} rounds of {CALLS} calls, ms")
    for part in rounds[0]["now"]:
        medians = {name: median(found[name][part] for found in rounds) for name in trees}
        print(f"{part}: " + ", ".join(f"{name} {value:.3f}" for name, value in medians.items()))


def run(tree: Path, bundle: Path) -> dict[str, float]:
    """One round in a tree of its own."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(tree / "benchmarks" / "inference.py"), str(bundle.resolve()), "--worker"]
    done = subprocess.run(command, env=environment, cwd=tree, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measured(bundle: Path) -> dict[str, float]:
    """Median milliseconds of each part, for an item with one modality and ten users, and for one without users."""
    import numpy as np

    from service.pipeline import vectors
    from service.pipeline.catalogue import Derived, Entry
    from service.pipeline.impute import impute

    model, catalogue, inputs = prepared(bundle)
    times = {}
    for key, (name, item) in enumerate(inputs.items(), len(catalogue)):
        (completed,) = impute(model, catalogue, [item])
        folded = model.folded(np.array([user.message for user in item.users], dtype=np.float32).reshape(-1, model.size))
        entry = Entry(key, name, None, (), True, 1, 0.0, completed.states, {})
        rows = [(entry, Derived(completed.features, folded, float(len(item.users)), completed.reach))]

        def generate(item: Any = item) -> object:
            return impute(model, catalogue, [item])

        def place(rows: Any = rows) -> None:
            vectors.put(model, catalogue, rows)

        times[f"generation, {name}"] = timed(generate)
        times[f"embedding, {name}"] = timed(place)
    return times


def timed(call: Callable[[], object]) -> float:
    """Median milliseconds of a call."""
    for _ in range(20):
        call()
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * median(times)


def prepared(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The bundle's model, a catalogue of its items, and what is to be completed."""
    import numpy as np

    from models.bundle import Bundle
    from models.dgmrec.serving import DGMRecServing
    from service.adapters.faiss_index import FaissIndex
    from service.domain import State
    from service.pipeline import vectors
    from service.pipeline.catalogue import Catalogue, Derived, Entry, Shape
    from service.pipeline.impute import ImputationInput, UserEvidence

    model = DGMRecServing.load(Bundle.load(path))
    config = model.config
    shape = Shape(model.ranks, model.size, model.layers, config.neighbours, config.cold_neighbours)
    catalogue = Catalogue(shape, FaissIndex, model.trained_row)
    rng, count = np.random.default_rng(0), len(model.items)
    observed, generated = (dict.fromkeys(model.names, state) for state in (State.OBSERVED, State.GENERATED))
    rows = []
    for row in range(count):
        fields = {name: rng.standard_normal(dims).astype(np.float32) for name, dims in shape.fields().items()}
        fields |= {f"feature.{name}": model.tables[f"feature.{name}"][row] for name in model.names}
        rows.append(
            (
                Entry(row, model.items.id(row), None, (), True, 1, 0.0, generated if row % 4 == 3 else observed, {}),
                Derived.of(fields),
            )
        )
    catalogue.put(rows)
    for _ in vectors.derive(model, catalogue):
        pass
    catalogue.set_popularity({model.items.id(row): 1 + row % 9 for row in range(count)})
    users = [
        UserEvidence(
            rng.standard_normal((len(model.names), model.size)).astype(np.float32),
            rng.standard_normal(model.size).astype(np.float32),
            rng.choice(count, 20, replace=False),
            model.tables["user_factor"][user],
        )
        for user in range(10)
    ]
    name = model.names[0]
    features = {name: model.tables[f"feature.{name}"][0]}
    inputs = {"ten users": ImputationInput(features, users), "no users": ImputationInput(features)}
    return model, catalogue, inputs


if __name__ == "__main__":
    main()
