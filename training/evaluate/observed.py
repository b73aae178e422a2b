"""What a rating model makes of what it sees: errors by how much was observed, and modalities beside their
reconstructions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from models.arrays import Double, Rows
from models.lrmm.paper_serving import PaperServing
from models.lrmm.serving import LRMMServing
from training.lrmm.pairs import RatingPairs
from training.plane import plane

DRAWN = 100  # pairs, as in the paper's figure 5
SIDES = ("user", "item")


def errors_by_amount(reviews: Double, difference: Double) -> dict[str, list[dict[str, Any]]]:
    """RMSE of test ratings by the number of training reviews of the user and of the item.

    Args:
        reviews: of user and item `[b, 2]`.
        difference: errors `[b]`.

    Returns:
        By side, bins that double in width, the least reviews first: `reviews`, `rows` and `rmse` of each.
    """
    errors = {}
    for side, count in zip(SIDES, reviews.T, strict=True):
        bins = np.where(count > 0, np.ceil(np.log2(np.maximum(count, 1))) + 1, 0).astype(int)
        errors[side] = [
            {
                "reviews": _span(place),
                "rows": int((bins == place).sum()),
                "rmse": float(np.sqrt(np.mean(difference[bins == place] ** 2))),
            }
            for place in np.unique(bins).tolist()
        ]
    return errors


def _span(place: int) -> str:
    """0, 1, 2, 3-4, 5-8, ..."""
    if place < 3:
        return str(place)
    return f"{2 ** (place - 2) + 1}-{2 ** (place - 1)}"


def reviews_of(user: Rows, item: Rows, train: Rows, rows: Rows) -> Double:
    """How many training rows `[len(rows), 2]` are of each row's user and item."""
    return np.stack(
        [np.bincount(key[train], minlength=key.max() + 1)[key[rows]] for key in (user, item)], axis=1
    ).astype(np.float64)


@torch.inference_mode()
def reconstructions(
    serving: LRMMServing | PaperServing, test: RatingPairs
) -> Mapping[str, Mapping[str, list[list[float]]]]:
    """Some test pairs' modalities and what is rebuilt of each where it is withheld, in one plane by modality."""
    planes = {}
    for column, name in enumerate(serving.names):
        withheld = test.without((name,), serving.names)
        rows = np.flatnonzero(test.present[:, column] & withheld.present.any(axis=1))
        rows = np.random.default_rng(0).permutation(rows)[:DRAWN]
        if len(rows) < 2:
            continue
        embeddings = {other: torch.from_numpy(array[rows]) for other, array in withheld.embeddings.items()}
        affinity = torch.from_numpy(withheld.affinity[rows]).float()
        out = serving.model(embeddings, torch.from_numpy(withheld.present[rows]), affinity)
        rebuilt = out.rebuilt[name].mean(0).numpy()
        places = plane(np.concatenate([test.embeddings[name][rows], rebuilt])).round(1).astype(float).tolist()
        planes[name] = {"observed": places[: len(rows)], "rebuilt": places[len(rows) :]}
    return planes
