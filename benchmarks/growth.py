"""How the time and memory of training grow with the data.

Resamples a dataset to 10 and 30 times its users, items and interactions: each user and item has so many copies, and
each interaction of a user's copy goes to a random copy of its item; a copy's features are the item's with noise. What
comes out is synthetic. Each size is trained in a process of its own with the same number of steps an epoch, the batch
growing with the data, for a step reads the whole graph.

    python benchmarks/growth.py --data build/ml-100k --json docs/results/growth/ml-100k/dgmrec.json

`prepare_seconds` is the preparation before the first epoch (projections, neighbours of all items, closed forms),
`epoch_seconds` the second epoch, `refresh_seconds` regenerating and refining, which is done every fifth epoch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from models.dgmrec.config import DGMRecConfig
from models.modality import ModalBatch
from training.content import DataOptions, prepare_features
from training.datasets.prepared import load_dataset
from training.dgmrec.recipe import split_parts
from training.dgmrec.task import DGMRecTask, TopNData
from training.evaluate.result import write_single_run
from training.progress import Terminal
from training.splits import Parts
from training.trainer import TrainerConfig, keep_freed_memory, peak_memory_mb

NOISE = 0.5  # of a copy's features, in standard deviations of the modality


def resampled(data: TopNData, size: int, rng: np.random.Generator) -> TopNData:
    """`size` times the users, items and interactions."""
    base = data.parts.train
    pairs = np.concatenate(
        [
            np.stack(
                [base[:, 0] + copy * data.n_users, base[:, 1] + rng.integers(size, size=len(base)) * data.n_items], 1
            )
            for copy in range(size)
        ]
    )
    features = {}
    for name, block in data.batch.features.items():
        copies = block.repeat(size, 1)
        noise = torch.from_numpy(rng.standard_normal(copies.shape, dtype=np.float32))
        features[name] = copies + noise * (block.std() * NOISE if size > 1 else 0)
    batch = ModalBatch(features, data.batch.observed.repeat(size, 1))
    nothing = np.empty((0, 2), np.int64)
    return TopNData(batch, Parts(pairs, nothing, nothing), data.n_users * size, data.n_items * size)


def measure(options: argparse.Namespace, size: int) -> dict[str, float]:
    """Seconds and MiB of one size."""
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    dataset = load_dataset(options.data)
    prepared = prepare_features(dataset, DataOptions(levels=True, image_weights=options.image_weights), Terminal())
    base = TopNData(prepared.batch, split_parts(dataset, 1), len(dataset.users), len(dataset.items))
    data = resampled(base, size, np.random.default_rng(1))
    trainer = TrainerConfig(batch_size=options.batch * size)
    begin = time.perf_counter()
    task = DGMRecTask(data, DGMRecConfig(), trainer)
    prepared_at = time.perf_counter()
    task.train_epoch(1, _quietly)
    first_at = time.perf_counter()
    task.train_epoch(2, _quietly)
    second_at = time.perf_counter()
    task.refresh()
    end = time.perf_counter()
    return {
        "prepare_seconds": prepared_at - begin,
        "epoch_seconds": second_at - first_at,
        "refresh_seconds": end - second_at,
        "peak_rss_mb": peak_memory_mb(),
        "users": data.n_users,
        "items": data.n_items,
        "interactions": len(data.parts.train),
    }


def _quietly(_done: int, _total: int) -> None:
    """No progress."""


def main() -> None:
    """Measure every size, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a prepared dataset")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 3, 10, 30])
    parser.add_argument("--batch", type=int, default=4096, help="at size 1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--image-weights", type=Path, help="as LACUNA_IMAGE_WEIGHTS")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options, options.only)))
        return
    torch.set_num_threads(options.threads)
    metrics: dict[str, float] = {}
    begin = time.perf_counter()
    for size in options.sizes:
        found: dict[str, float] = json.loads(
            subprocess.run(
                [sys.executable, *sys.argv, "--only", str(size)], check=True, stdout=subprocess.PIPE, text=True
            ).stdout.splitlines()[-1]
        )
        print(size, found, flush=True)
        metrics |= {f"{name}[size={size}]": value for name, value in found.items()}
    what = {
        "protocol": "growth",
        "dataset": load_dataset(options.data).name,
        "synthetic": True,
        "model": "dgmrec",
        "variant": None,
        "config": {"model": DGMRecConfig().model_dump(exclude={"seed"}), "batch_size": f"{options.batch} x size"},
    }
    write_single_run(options.json, what, metrics, " ".join(["python", *sys.argv]), begin)


if __name__ == "__main__":
    main()
