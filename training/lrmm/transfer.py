"""Cross-domain: a model that was trained on one dataset rates the pairs of another, as a service with new data would.

Nothing is learned from the target: its training part tells of its users and items, and its test part is rated. Who they
are is new to the model, so that the other side of a review has no known bias or taste. Content is not carried over,
since encoders may differ: it counts as missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.lrmm.factors import Tastes
from models.lrmm.model import ITEM, USER
from models.lrmm.profiles import Array, Biases
from models.lrmm.serving import Rater
from training.lrmm.ratings import RatingParts, Ratings
from training.lrmm.task import Evidence, Pairs


@dataclass(frozen=True)
class Target:
    """A split of the dataset to be rated; `sentences [n, d]` of its reviews are None where there are no texts."""

    ratings: Ratings
    parts: RatingParts
    sentences: Array | None


def transferred(rater: Rater, target: Target) -> Pairs:
    """The test pairs of the target under the profiles of its training part."""
    ratings, parts = target.ratings, target.parts
    vectors = np.zeros((len(ratings), rater.vector_dim), np.float32)
    if rater.encoder is not None and target.sentences is not None:
        vectors = rater.encoder.encode(ratings.text, target.sentences)
    nothing = {
        name: (np.zeros((ratings.n_items, size), np.float32), np.zeros(ratings.n_items, np.bool_))
        for name, size in rater.model.sizes.items()
        if name not in (USER, ITEM)
    }
    evidence = Evidence(ratings, vectors, rater.config, nothing)
    k = rater.tastes.user.shape[1]
    biases = Biases(rater.prior.mean, np.zeros(ratings.n_users), np.zeros(ratings.n_items))
    tastes = Tastes(np.zeros((ratings.n_users, k)), np.zeros((ratings.n_items, k)))
    sides = evidence.sides_given(parts.train, rater.prior, biases, tastes)
    return evidence.pairs(parts.test, sides, rater.scales)
