"""Where new items stand beside warm ones, chosen on the validation part.

A fifth of the warm items are hidden: each stands where its content alone would place it were it new. Whoever is to meet
one of them in the validation part is a hit if it is among the first 20. A new item has all of its interactions before
it and the validation part is a sample of these, so that its hits count as many times as there are interactions for one
of that part; a warm item's count once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.arrays import Mask, Rows
from training.dgmrec.task import DGMRecTask
from training.metrics import rank_all
from training.splits import Pairs

OFFSETS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
HIDDEN = 0.2  # share of the warm items
FIRST = 20
TOLERANCE = 0.05  # of the hits, for new items to stand higher: what warm ones lose by it is certain


@dataclass(frozen=True)
class Placement:
    """The chosen `popularity_offset`, and the hits by which it was chosen: of the list before the hidden items are
    posted, and afterwards."""

    offset: float
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"chosen: popularity_offset={self.offset}, by items hidden as if they were new: "
            f"{self.before:.0f} hits before they are posted, {self.after:.0f} after"
        )


def choose_new_offset(task: DGMRecTask) -> Placement | None:
    """Choose the `popularity_offset` and give it to the task; None where there is no content or nothing to judge by."""
    train, valid = task.data.parts.train, task.data.parts.valid
    valid = valid[np.isin(valid[:, 1], task.warm)]
    if task.content is None or not len(valid):
        return None
    out, cold_start = task.final_embeddings()[0], task.module.cold_start
    hidden = np.zeros(task.data.n_items, dtype=np.bool_)
    order = np.random.default_rng(task.trainer.seed).permutation(task.warm)
    hidden[order[: round(HIDDEN * len(order))]] = True
    users, items = out.users.cpu().numpy(), out.items.cpu().numpy()
    new, axis = cold_start.as_new.cpu().numpy(), cold_start.popularity_axis.cpu().numpy()
    shown = np.zeros(len(items), dtype=np.bool_)
    shown[task.warm] = True
    worth = 1 + len(train) / len(valid)

    def hits(offset: float | None) -> float:
        raised = new + np.float32((offset or 0.0) * cold_start.spread) * axis
        vectors = np.where(hidden[:, None], raised, items)
        among = shown if offset is not None else shown & ~hidden
        return _hits(users, vectors, among, valid, train, np.where(hidden, worth, 1.0))

    scores = {offset: hits(offset) for offset in OFFSETS}
    best = max(scores.values())
    chosen = next(offset for offset, score in scores.items() if score >= best * (1 - TOLERANCE))
    task.reconfigure(popularity_offset=chosen)
    return Placement(chosen, hits(None), scores[chosen])


def _hits(users: Rows, items: Rows, among: Mask, pairs: Pairs, seen: Pairs, worth: Rows) -> float:
    ranks = rank_all(lambda rows: np.where(among, users[rows] @ items.T, np.float32(-1e6)), pairs, seen)
    counted: float = float((ranks.hits(FIRST) * worth[ranks.items] * among[ranks.items]).sum())
    return counted
