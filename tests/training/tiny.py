"""Small data with a known answer: two groups of users, two groups of items, and content that tells the groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.dgmrec.config import DGMRecConfig
from models.modality import ModalBatch
from training.datasets import Dataset, load_dataset, write_dataset
from training.datasets.published import Published
from training.dgmrec.task import TopNData
from training.splits import Parts
from training.trainer import TrainerConfig

USERS, ITEMS, EACH, SLIPS = 24, 60, 14, 2
NEW = (0, 1)  # one item of each group that nobody has touched
# Of so few items, all as negatives at a low temperature would tell the pairs of training from the held-out ones; and so
# few steps need content to count from the start.
CONFIG = DGMRecConfig(
    embedding_size=8,
    layers=2,
    neighbours=4,
    rank=4,
    refine_every=2,
    negatives=8,
    ranking_temperature=1.0,
    modal_weight=1.0,
    behaviour=0.05,
)
TRAINER = TrainerConfig(epochs=6, batch_size=64, learning_rate=0.01, metric="ndcg@20", patience=50)


def group(rows: int) -> NDArray[np.int64]:
    """Checkerboard: even rows in one group, odd ones in the other."""
    return np.arange(rows) % 2


def pairs(seed: int = 0) -> NDArray[np.int64]:
    """Every user likes items of one group, after some slips into the other; nobody has met the new items."""
    rng = np.random.default_rng(seed)
    met = []
    for user in range(USERS):
        own, other = ([i for i in range(ITEMS) if i % 2 == side and i not in NEW] for side in (user % 2, 1 - user % 2))
        met += [(user, item) for item in (*rng.permutation(other)[:SLIPS], *rng.permutation(own)[: EACH - SLIPS])]
    return np.array(met, dtype=np.int64)


def contents(seed: int = 0) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
    """Vectors that point to one side or the other of a mean, and which of them are there (item 5 has none)."""
    rng = np.random.default_rng(seed)
    side = np.where(group(ITEMS) == 0, 1.0, -1.0)[:, None]
    features = {
        name: (3 + side * rng.normal(size=(1, dim)) + 0.4 * rng.normal(size=(ITEMS, dim))).astype(np.float32)
        for name, dim in (("audio", 6), ("scan", 5))
    }
    observed = rng.random((ITEMS, 2)) < 0.75
    observed[5], observed[list(NEW)] = False, True
    return features, observed


def parts() -> Parts:
    """Each user's last pairs are for test and validation."""
    place = np.tile(np.arange(EACH), USERS)
    every = pairs()
    return Parts(every[place < EACH - 4], every[(place >= EACH - 4) & (place < EACH - 2)], every[place >= EACH - 2])


def checkerboard(placeholder: NDArray[np.float32] | float = 0.0) -> TopNData:
    """The task's data; unobserved rows hold the placeholder (a number, or noise `[n, 1]`)."""
    features, observed = contents()
    filled = {
        name: torch.from_numpy(np.where(observed[:, [column]], feature, np.float32(placeholder)))
        for column, (name, feature) in enumerate(features.items())
    }
    return TopNData(ModalBatch(filled, torch.from_numpy(observed)), parts(), USERS, ITEMS)


def vector_records() -> list[dict[str, Any]]:
    """The same items as `POST /items` bodies that hold vectors only."""
    features, observed = contents()
    return [
        {
            "id": f"item-{row}",
            "title": None,
            "modalities": {
                name: {"vector": feature[row].tolist()}
                for column, (name, feature) in enumerate(features.items())
                if observed[row, column]
            },
            "categories": [f"group-{row % 2}"],
        }
        for row in range(ITEMS)
    ]


def events() -> list[dict[str, Any]]:
    """The same feedback as `POST /feedback` events."""
    return [{"user": f"user-{user}", "item": f"item-{item}", "type": "click"} for user, item in pairs()]


def write_vectors(folder: Path) -> Dataset:
    """A prepared dataset of vectors, with a split."""
    split = parts()
    named = [
        (f"user-{user}", f"item-{item}", name)
        for name, part in (("train", split.train), ("valid", split.valid), ("test", split.test))
        for user, item in part
    ]
    write_dataset(
        folder, vector_records(), events(), name="tiny", source="test", synthetic=True, published=Published(split=named)
    )
    return load_dataset(folder)


def lines(file: Path) -> list[dict[str, Any]]:
    """A JSON-lines file."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]
