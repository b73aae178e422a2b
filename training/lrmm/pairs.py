"""Pairs to rate, with profiles of any part of the reviews: in training each is predicted from the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from models.arrays import Array, Double, Mask, Rows
from models.lrmm.config import LRMMConfig
from models.lrmm.factors import LatentFactors, fit_factors
from models.lrmm.model import ITEM, USER
from models.lrmm.profiles import (
    ITEM_SHRINKAGE,
    USER_SHRINKAGE,
    Biases,
    Prior,
    Reviewed,
    Scale,
    bias_shrinkage,
    fit_biases,
    fold_in_factors,
    in_document,
    profiles,
)
from training.lrmm.ratings import Ratings, newest_first, newest_of


@dataclass(frozen=True)
class RatingPairs:
    """Pairs to rate: embeddings by modality `[b, d_m]`, which are present `[b, M]`, products of the sides' latent
    factors `[b]`, true ratings `[b]`, and the number of reviews of each side `[b, 2]` (user, item)."""

    embeddings: Mapping[str, Array]
    present: Mask
    affinity: Double
    value: Double
    review_count: Double

    def without(self, withheld: tuple[str, ...], names: tuple[str, ...]) -> RatingPairs:
        """The same with some modalities withheld."""
        kept = np.array([name not in withheld for name in names])
        return replace(self, present=self.present & kept)

    def with_missing(self, share: float, seed: int) -> RatingPairs:
        """The same with each modality of each pair missing with this probability."""
        kept = np.random.default_rng(seed).random(self.present.shape) >= share
        return replace(self, present=self.present & kept)

    def present_reviews(self, names: tuple[str, ...]) -> Double:
        """Number of reviews of the sides that are present `[b]`."""
        sides = self.present[:, [names.index(USER), names.index(ITEM)]]
        total: Double = (self.review_count * sides).sum(axis=1)
        return total


def concatenated(parts: list[RatingPairs]) -> RatingPairs:
    """Several lots of pairs as one."""
    return RatingPairs(
        {name: np.concatenate([part.embeddings[name] for part in parts]) for name in parts[0].embeddings},
        np.concatenate([part.present for part in parts]),
        np.concatenate([part.affinity for part in parts]),
        np.concatenate([part.value for part in parts]),
        np.concatenate([part.review_count for part in parts]),
    )


@dataclass(frozen=True)
class SideProfiles:
    """All users or all items under some reviews: raw profiles `[n, d]`, what they bring to affinities `[n, k + 2]`, who
    has any review `[n]`, and how many `[n]`."""

    raw: Double
    factors: Double
    known: Mask
    review_count: Double


class PairBuilder:
    """Makes pairs from any part of the reviews.

    Args:
        vectors: of all reviews `[n, d + 1]`; `length` their words.
        contents: embeddings of the items' own content by the pair's name of the modality, and which are observed.
        item_reviews: how many reviews of an item are read at most, the newest ones; None for all.
    """

    def __init__(
        self,
        ratings: Ratings,
        vectors: Array,
        config: LRMMConfig,
        contents: Mapping[str, tuple[Array, Mask]],
        item_reviews: int | None = None,
    ) -> None:
        self.item_reviews = item_reviews
        self.ratings, self.vectors, self.config, self.contents = ratings, vectors, config, contents
        self.length = np.array([min(len(text.split()), config.review_words) for text in ratings.text], dtype=np.int64)
        self._newest_first = newest_first(ratings)

    @property
    def names(self) -> tuple[str, ...]:
        """Modalities of a pair."""
        return (USER, ITEM, *self.contents)

    def biases(self, source: Rows) -> Biases:
        """Fitted to some reviews."""
        ratings = self.ratings
        columns = ratings.user[source], ratings.item[source], ratings.value[source]
        return fit_biases(*columns, ratings.n_users, ratings.n_items, (USER_SHRINKAGE, ITEM_SHRINKAGE))

    def factors(self, source: Rows, mean: float) -> LatentFactors:
        """Fitted to some reviews' ratings, with biases of their own."""
        ratings, config = self.ratings, self.config
        user, item = ratings.user[source], ratings.item[source]
        size = config.factor_size if config.use_biases else 0
        counts = ratings.n_users, ratings.n_items
        return fit_factors(user, item, ratings.value[source] - mean, *counts, size=size, penalties=config.penalties)

    def reviewed(self, side: str, source: Rows, biases: Biases, factors: LatentFactors) -> Reviewed:
        """Some reviews by user or item, in the order of their documents."""
        ratings = self.ratings
        key, other, other_bias, other_factors = (
            (ratings.user, ratings.item, biases.item, factors.item)
            if side == USER
            else (ratings.item, ratings.user, biases.user, factors.user)
        )
        rows = self._newest(source)
        if side == ITEM and self.item_reviews is not None:
            rows = newest_of(key, rows, self.item_reviews)
        rows = rows[np.argsort(key[rows], kind="stable")]
        in_limit = in_document(key[rows], self.length[rows], self.config.document_words)
        return Reviewed(
            group=key[rows],
            value=ratings.value[rows],
            other_bias=other_bias[other[rows]],
            other_factors=other_factors[other[rows]],
            vector=self.vectors[rows],
            has_text=in_limit & (self.length[rows] > 0),
        )

    def _newest(self, source: Rows) -> Rows:
        chosen = np.zeros(len(self.ratings), np.bool_)
        chosen[source] = True
        return self._newest_first[chosen[self._newest_first]]

    def sides(self, source: Rows, prior: Prior) -> dict[str, SideProfiles]:
        """All users and all items from some reviews."""
        rated = source
        if self.item_reviews is not None:
            rated = newest_of(self.ratings.item, self._newest(source), self.item_reviews)
        biases = self.biases(rated)
        return self.sides_given(source, prior, biases, self.factors(rated, prior.mean))

    def sides_given(
        self, source: Rows, prior: Prior, biases: Biases, factors: LatentFactors
    ) -> dict[str, SideProfiles]:
        """All users and all items from some reviews, whose other sides have these biases and factors."""
        sides = {}
        for side, n in ((USER, self.ratings.n_users), (ITEM, self.ratings.n_items)):
            reviewed = self.reviewed(side, source, biases, factors)
            raw, known = profiles(reviewed, n, prior, bias_shrinkage(side))
            own_factors = fold_in_factors(side, reviewed, raw, prior, self.config.penalties)
            count = np.bincount(reviewed.group, minlength=n).astype(np.float64)
            sides[side] = SideProfiles(raw, own_factors, known, count)
        return sides

    def pairs(self, rows: Rows, sides: Mapping[str, SideProfiles], scales: Mapping[str, Scale]) -> RatingPairs:
        """The pairs of some ratings under the profiles of `sides`."""
        ratings = self.ratings
        embeddings, present, counts = {}, [], []
        key = {USER: ratings.user[rows], ITEM: ratings.item[rows]}
        for side, profile in sides.items():
            embeddings[side] = scales[side](profile.raw[key[side]])
            present.append(profile.known[key[side]])
            counts.append(profile.review_count[key[side]])
        affinity = (sides[USER].factors[key[USER]] * sides[ITEM].factors[key[ITEM]]).sum(axis=1)
        for name, (vectors, observed) in self.contents.items():
            embeddings[name] = vectors[ratings.item[rows]]
            present.append(observed[ratings.item[rows]])
        return RatingPairs(
            embeddings, np.stack(present, axis=1), affinity, ratings.value[rows], np.stack(counts, axis=1)
        )

    def held_out(self, train: Rows, prior: Prior, rng: np.random.Generator) -> tuple[RatingPairs, dict[str, Scale]]:
        """The training part, each fold of it under the profiles of the others, several times over; and their scales."""
        config = self.config
        folds = []
        for _ in range(config.repeats):
            for fold in np.array_split(rng.permutation(train), config.folds):
                folds.append((fold, self.sides(np.setdiff1d(train, fold), prior)))
        key = {USER: self.ratings.user, ITEM: self.ratings.item}
        scales = {
            side: Scale.fit(
                np.concatenate([sides[side].raw[key[side][fold]] for fold, sides in folds]),
                use_biases=config.use_biases,
            )
            for side in (USER, ITEM)
        }
        return concatenated([self.pairs(fold, sides, scales) for fold, sides in folds]), scales
