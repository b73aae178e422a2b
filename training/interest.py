"""From which rating on ratings count as interest, as the validation part has it.

Ratings below the usual 4 are no wish for the same again, yet they say what a person chooses among: where feedback is
sparse, training finds more of what people like when these count too; where it is dense, less.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.arrays import Double, Mask
from models.feedback import deciding_events, interest_of
from training.baselines.ranking import EASE_ITEMS, BaselineData, ease
from training.datasets.base import TEST, TRAIN, VALID, Dataset
from training.metrics import evaluate_ranking
from training.splits import Parts, SplitName, random_split, time_split

LOWER = (3.0, 2.0)  # thresholds that are tried below the usual one
PENALTIES = (100.0, 300.0, 1000.0)  # of EASE
GAIN = 0.01  # relatively, by which a lower threshold must be better


@dataclass(frozen=True)
class Rated:
    """All pairs by what decides them, in parts; those of validation and test are what is liked.

    Attributes:
        kinds, values: type and rating (nan where it has none) of the training pairs' deciding events `[k]`.
    """

    parts: Parts
    kinds: NDArray[np.uint8]
    values: Double
    n_users: int
    n_items: int

    def interest(self, min_rating: float | None) -> Mask:
        """Which training pairs `[k]` show interest under a threshold."""
        return interest_of(self.kinds, self.values, min_rating)


@dataclass(frozen=True)
class InterestChoice:
    """The threshold, and the validation part's geometric mean of Recall@20 and NDCG@20 by each that was tried."""

    min_rating: float | None
    tried: dict[float, float]

    def __str__(self) -> str:
        """In a line."""
        if not self.tried:
            return "there is no rating to choose from; what counts as interest stays"
        found = ", ".join(f"from {threshold:g} on {value:.4f}" for threshold, value in self.tried.items())
        return f"how well what is liked is found (validation part, EASE), by what counts as interest: {found}"


def rated(dataset: Dataset, seed: int, split: SplitName = SplitName.RANDOM) -> Rated:
    """The dataset's pairs, also those that show no interest, split by user at random or by time. Held out is what shows
    interest by the dataset's own threshold, of users who have something like it in training."""
    events, n_items = dataset.interactions, len(dataset.items)
    rows = deciding_events(events.user * n_items + events.item, events.type, events.timestamp)
    pairs = np.stack([events.user[rows], events.item[rows]], axis=1)
    kinds, values, rng = events.type[rows], events.value[rows], np.random.default_rng(seed)
    part = time_split(pairs, events.timestamp[rows], rng) if split is SplitName.TIME else random_split(pairs, rng)
    liked = interest_of(kinds, values, dataset.min_rating)
    parts = Parts.of(pairs, part)
    known = np.unique(pairs[liked & (part == TRAIN), 0])

    valid, test = (
        held[liked[part == place] & np.isin(held[:, 0], known)]
        for place, held in ((VALID, parts.valid), (TEST, parts.test))
    )
    return Rated(
        Parts(parts.train, valid, test), kinds[part == TRAIN], values[part == TRAIN], len(dataset.users), n_items
    )


def choose_min_rating(dataset: Dataset, seed: int, split: SplitName = SplitName.RANDOM) -> InterestChoice:
    """The dataset's own threshold, or a lower one if EASE then finds more of what the validation part likes by the own.

    Nobody is recommended what they have rated in training, whatever it counts for.
    """
    own = dataset.min_rating
    if own is None or len(dataset.items) > EASE_ITEMS or not np.isfinite(dataset.interactions.value).any():
        return InterestChoice(own, {})
    data = rated(dataset, seed, split)
    if not len(data.parts.valid):
        return InterestChoice(own, {})
    tried = {threshold: _quality(data, threshold) for threshold in (own, *(low for low in LOWER if low < own))}
    best = max(tried, key=lambda threshold: tried[threshold])
    return InterestChoice(best if tried[best] > tried[own] * (1 + GAIN) else own, tried)


def _quality(data: Rated, threshold: float) -> float:
    """Geometric mean of Recall@20 and NDCG@20 on the validation part, of EASE with the best of the penalties."""
    parts = data.parts
    counted = Parts(parts.train[data.interest(threshold)], parts.valid, parts.test)
    found = []
    for penalty in PENALTIES:
        scores = ease(BaselineData(counted, data.n_users, data.n_items), l2=penalty)
        metrics = evaluate_ranking(scores, parts.valid, parts.train)
        found.append((metrics["recall@20"] * metrics["ndcg@20"]) ** 0.5)
    return float(max(found))
