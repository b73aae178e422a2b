"""What ratings should count as interest, and by what weight: tried on the validation part, measured on the test part.

Every pair is in one of the parts, at random or by time. What is to be found are the held-out ratings that show interest
by the dataset's own threshold; nobody is recommended what they have rated in training. EASE is fitted to the training
ratings under each of `CANDIDATES`, its penalty chosen on the validation part for each; with `--lightgcn`, DGMRec
without content is trained under each of the thresholds instead.

    python benchmarks/interest.py --data build/ml-100k --json docs/results/interest/ml-100k/ease.json
    python benchmarks/interest.py --data build/ml-100k --split time --json docs/results/interest/ml-100k/ease-time.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from models.dgmrec.config import DGMRecConfig
from models.graph import Matrix
from models.modality import ModalBatch
from training.baselines.ranking import BaselineData, ease
from training.datasets import Dataset, load_dataset
from training.dgmrec.task import DGMRecTask, TopNData
from training.evaluate.result import Measured, result_of, run_record
from training.interest import PENALTIES, Rated, rated
from training.metrics import ScoreFunction, evaluate_ranking
from training.splits import Parts, SplitName
from training.trainer import TrainerConfig, train

# What ratings of 1, 2, 3, 4 and 5 count for.
THRESHOLDS: Mapping[str, tuple[float, ...]] = {
    "from 5": (0, 0, 0, 0, 1),
    "from 4": (0, 0, 0, 1, 1),
    "from 3": (0, 0, 1, 1, 1),
    "from 2": (0, 1, 1, 1, 1),
    "all": (1, 1, 1, 1, 1),
}
CANDIDATES: Mapping[str, tuple[float, ...]] = {
    **THRESHOLDS,
    "3 at 0.3": (0, 0, 0.3, 1, 1),
    "by value": (0.2, 0.4, 0.6, 0.8, 1),
    "3 at 0.3, 4 at 0.7": (0, 0, 0.3, 0.7, 1),
}
Found = tuple[float, dict[str, float]]  # quality on the validation part, metrics of the test part


@dataclass(frozen=True)
class Weighted(BaselineData):
    """What baselines read, with a weight `[k]` of each training pair."""

    weights: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    @cached_property
    def train(self) -> Matrix:
        """The weights `[users, items]`."""
        users, items = self.parts.train.T
        return sp.csr_array((self.weights, (users, items)), shape=(self.n_users, self.n_items))


def weights_of(data: Rated, weights: tuple[float, ...]) -> NDArray[np.float32]:
    """What the training pairs count for `[k]`; 1 where there is no rating."""
    values = np.nan_to_num(data.values, nan=5)
    of_value: NDArray[np.float32] = np.array(weights, np.float32)[np.clip(np.round(values).astype(int), 1, 5) - 1]
    return of_value


def quality(found: Mapping[str, float]) -> float:
    """What decides, as `lacuna train` has it: the geometric mean of Recall@20 and NDCG@20."""
    return float((found["recall@20"] * found["ndcg@20"]) ** 0.5)


def of_ease(data: Rated, weights: tuple[float, ...]) -> Found:
    """EASE with the penalty that validation prefers."""
    weighted = Weighted(data.parts, data.n_users, data.n_items, None, weights_of(data, weights))
    fits = [ease(weighted, l2=penalty) for penalty in PENALTIES]
    return max((measured(data, scores) for scores in fits), key=lambda found: found[0])


def of_lightgcn(data: Rated, weights: tuple[float, ...], seed: int) -> Found:
    """DGMRec without content, trained on the pairs with any weight."""
    counted = data.parts.train[weights_of(data, weights) > 0]
    parts = Parts(counted, data.parts.valid, data.parts.test).evaluable()
    nothing = ModalBatch({}, torch.zeros(data.n_items, 0, dtype=torch.bool))
    trainer = TrainerConfig(seed=seed)
    config = DGMRecConfig(modal=False, seed=seed)
    task = DGMRecTask(TopNData(nothing, parts, data.n_users, data.n_items), config, trainer)
    train(task, trainer)
    out = task.embed()
    users, items = out.users.cpu().numpy(), out.items.cpu().numpy()
    return measured(data, lambda rows: users[rows] @ items.T)


def measured(data: Rated, scores: ScoreFunction) -> Found:
    """Of all items that were not rated in training."""
    parts = data.parts
    valid, test = (evaluate_ranking(scores, held, parts.train) for held in (parts.valid, parts.test))
    return quality(valid), test


def run(dataset: Dataset, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """All candidates on one split."""
    begin, data = time.perf_counter(), rated(dataset, seed, SplitName(options.split))
    found = {}
    for name, weights in (THRESHOLDS if options.lightgcn else CANDIDATES).items():
        found[name] = of_lightgcn(data, weights, seed) if options.lightgcn else of_ease(data, weights)
        sys.stderr.write(f"seed {seed}, {name}: {found[name][0]:.4f} {quality(found[name][1]):.4f}\n")
    chosen = max(found, key=lambda name: found[name][0])
    metrics = {f"{metric}[{name}]": test[metric] for name, (_, test) in found.items() for metric in test}
    metrics |= {f"valid quality[{name}]": valid for name, (valid, _) in found.items()}
    metrics |= {f"{metric}[chosen]": value for metric, value in found[chosen][1].items()}
    return run_record(seed, begin, {"metrics": metrics, "setting": {"interest": chosen}})


def main() -> None:
    """Measure and write the raw result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a prepared dataset with ratings")
    parser.add_argument("--split", choices=["random", "time"], default="random")
    parser.add_argument("--lightgcn", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_dataset(options.data)
    runs = [run(dataset, seed, options) for seed in range(1, options.seeds + 1)]
    model = "lightgcn" if options.lightgcn else "ease"
    what = Measured("interest", dataset.name, dataset.synthetic, model, None, f"python {' '.join(sys.argv)}")
    config = {"split": options.split, "candidates": CANDIDATES, "penalties": PENALTIES}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result_of(what, config, runs), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
