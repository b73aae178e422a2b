"""Baselines of rating prediction, tuned on validation by small grids that are declared here.

Their documents hold training reviews only, and while they are fitted, never the pair's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import Ridge
from surprise import NMF, SVD, AlgoBase, BaselineOnly, Reader, SVDpp
from surprise import Dataset as SurpriseData

from models.arrays import Double, Rows
from models.feedback import HIGHEST, LOWEST
from training.lrmm.ratings import RatingParts, Ratings

MIN_REVIEWS = 3  # of the training part that a word stands in
Setting = Mapping[str, Any]
Predict = Callable[[Rows], Double]
Progress = Callable[[int, int], None]
Matrix = sp.csr_matrix


@dataclass(frozen=True)
class Words:
    """Counts of words in every review `[n, words]`, and their weights by how many training reviews hold them.

    The words are those of the training part.
    """

    counts: Matrix
    weigh: TfidfTransformer


@dataclass(frozen=True)
class BaselineRatings:
    """What baselines read: the ratings, of which only those of the training part, and `seed` for what is random."""

    ratings: Ratings
    parts: RatingParts
    seed: int = 0

    @cached_property
    def words(self) -> Mapping[int, Words]:
        """What every review says, in words (1) and in words and pairs of words (2)."""
        return {longest: self._words(longest) for longest in (1, 2)}

    def _words(self, longest: int) -> Words:
        counter = CountVectorizer(min_df=MIN_REVIEWS, ngram_range=(1, longest), token_pattern=r"[a-z0-9']+")
        counter.fit([self.ratings.text[row] for row in self.parts.train])
        counts = sp.csr_matrix(counter.transform(self.ratings.text), dtype=np.float64)
        return Words(counts, TfidfTransformer(sublinear_tf=True).fit(counts[self.parts.train]))


@dataclass(frozen=True)
class TunedBaseline:
    """A baseline with its best setting, and its validation RMSE."""

    predict: Predict
    setting: Setting
    rmse: float


def offset(data: BaselineRatings) -> Predict:
    """The mean rating."""
    mean = float(data.ratings.value[data.parts.train].mean())
    return lambda rows: np.full(len(rows), mean)


def one_sided(data: BaselineRatings, *, side: str, shrinkage: float) -> Predict:
    """The mean rating and a shrunk bias of the `user` or the `item` alone: what is left when the other is unknown."""
    ratings, train = data.ratings, data.parts.train
    key, n = (ratings.user, ratings.n_users) if side == "user" else (ratings.item, ratings.n_items)
    mean = float(ratings.value[train].mean())
    total = np.bincount(key[train], ratings.value[train] - mean, n)
    bias = total / (np.bincount(key[train], minlength=n) + shrinkage)
    return lambda rows: mean + bias[key[rows]]


def biases(data: BaselineRatings, *, user: float, item: float) -> Predict:
    """User and item biases by alternating least squares (scikit-surprise's baseline)."""
    return _surprise(data, BaselineOnly(bsl_options={"method": "als", "n_epochs": 15, "reg_u": user, "reg_i": item}))


def svd(data: BaselineRatings, *, factors: int, penalty: float, epochs: int) -> Predict:
    """Biased matrix factorisation (scikit-surprise)."""
    return _surprise(data, SVD(n_factors=factors, reg_all=penalty, n_epochs=epochs, random_state=data.seed))


def svdpp(data: BaselineRatings, *, factors: int, penalty: float, epochs: int) -> Predict:
    """SVD++ (scikit-surprise)."""
    model = SVDpp(n_factors=factors, reg_all=penalty, n_epochs=epochs, random_state=data.seed, cache_ratings=True)
    return _surprise(data, model)


def nmf(data: BaselineRatings, *, factors: int) -> Predict:
    """Non-negative matrix factorisation (scikit-surprise)."""
    return _surprise(data, NMF(n_factors=factors, random_state=data.seed))


def _surprise(data: BaselineRatings, model: AlgoBase) -> Predict:
    ratings, train = data.ratings, data.parts.train
    columns = (ratings.user[train].tolist(), ratings.item[train].tolist(), ratings.value[train].tolist())
    rated = [(user, item, value, None) for user, item, value in zip(*columns, strict=True)]
    model.verbose = False
    model.fit(SurpriseData(Reader(rating_scale=(LOWEST, HIGHEST))).construct_trainset(rated))

    def predict(rows: Rows) -> Double:
        pairs = zip(ratings.user[rows].tolist(), ratings.item[rows].tolist(), strict=True)
        return np.array([model.predict(user, item).est for user, item in pairs])

    return predict


def tfidf_ridge(data: BaselineRatings, *, ngrams: int, penalty: float, bias: float = 0.0) -> Predict:
    """Ridge regression on the TF-IDF of the user's and of the item's document; with `bias`, on who they are besides.

    Args:
        ngrams: words in a row that are read as one, at most.
        bias: weight of the columns that name the user and the item, 0 for none.
    """
    ratings, train, words = data.ratings, data.parts.train, data.words[ngrams]
    model = Ridge(alpha=penalty, solver="sparse_cg", tol=1e-3)
    model.fit(_columns(data, words, train, bias, own=False), ratings.value[train])

    def predict(rows: Rows) -> Double:
        predicted: Double = model.predict(_columns(data, words, rows, bias, own=True))
        return predicted

    return predict


def _columns(data: BaselineRatings, words: Words, rows: Rows, bias: float, *, own: bool) -> Matrix:
    """TF-IDF of the users' and the items' documents `[len(rows), 2 words]`, beside who they are.

    `own`: whether a document may hold the row's own review, which none of validation and test does anyway.
    """
    ratings, train = data.ratings, data.parts.train
    columns = []
    for key, n in ((ratings.user, ratings.n_users), (ratings.item, ratings.n_items)):
        gather = sp.csr_matrix((np.ones(len(train)), (key[train], train)), shape=(n, len(ratings)))
        documents = sp.csr_matrix(gather @ words.counts)[key[rows]]
        columns.append(words.weigh.transform(documents if own else documents - words.counts[rows]))
        if bias:
            ones = (np.full(len(rows), bias), (np.arange(len(rows)), key[rows]))
            columns.append(sp.csr_matrix(ones, shape=(len(rows), n)))
    return sp.csr_matrix(sp.hstack(columns))


@dataclass(frozen=True)
class RatingBaseline:
    """How a baseline is fitted, and the settings to choose among."""

    fit: Callable[..., Predict]
    grid: tuple[Setting, ...] = ({},)


def _grid(**options: tuple[Any, ...]) -> tuple[Setting, ...]:
    return tuple(dict(zip(options, values, strict=True)) for values in product(*options.values()))


SHRINKAGE = (1.0, 2.0, 5.0, 10.0, 20.0)
RATING_BASELINES: Mapping[str, RatingBaseline] = {
    "offset": RatingBaseline(offset),
    "user-bias": RatingBaseline(one_sided, _grid(side=("user",), shrinkage=SHRINKAGE)),
    "item-bias": RatingBaseline(one_sided, _grid(side=("item",), shrinkage=SHRINKAGE)),
    "biases": RatingBaseline(biases, _grid(user=(2.0, 3.0, 5.0, 7.0, 10.0), item=(3.0, 5.0, 7.0, 10.0, 15.0))),
    "svd": RatingBaseline(svd, _grid(factors=(5, 20, 100), penalty=(0.05, 0.1), epochs=(20, 60))),
    "svdpp": RatingBaseline(svdpp, _grid(factors=(5, 20), penalty=(0.05, 0.1), epochs=(20, 40))),
    "nmf": RatingBaseline(nmf, _grid(factors=(5, 15))),
    "tfidf-ridge": RatingBaseline(tfidf_ridge, _grid(ngrams=(1, 2), penalty=(5.0, 10.0, 20.0))),
    "biases-tfidf-ridge": RatingBaseline(
        tfidf_ridge, _grid(ngrams=(1, 2), penalty=(5.0, 10.0, 20.0, 40.0), bias=(0.5, 1.0, 2.0))
    ),
}


def tune_rating_baseline(
    baseline: RatingBaseline, data: BaselineRatings, progress: Progress | None = None
) -> TunedBaseline:
    """Fit the baseline with each of its settings; the one with the lowest validation RMSE, the first among equals."""
    best: TunedBaseline | None = None
    valid = data.parts.valid
    for done, setting in enumerate(baseline.grid, start=1):
        predict = baseline.fit(data, **setting)
        error = rmse(data.ratings.value[valid], predict(valid))
        if best is None or error < best.rmse:
            best = TunedBaseline(predict, setting, error)
        if progress:
            progress(done, len(baseline.grid))
    assert best is not None  # a grid has at least one setting
    return best


def rmse(truth: Double, predicted: NDArray[np.floating[Any]]) -> float:
    """Root mean squared error of predictions, cut to 1..5."""
    return float(np.sqrt(np.mean((truth - np.clip(predicted, LOWEST, HIGHEST)) ** 2)))
