"""Baselines of top-N ranking, tuned on validation by small grids that are declared here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking
from scipy.linalg import LinAlgError
from scipy.linalg.lapack import dpotrf, dpotri
from threadpoolctl import threadpool_limits

from models.arrays import Array, Rows
from models.graph import Matrix, nearest
from models.imputers import impute, observed_means
from models.modality import ModalBatch
from training.metrics import ScoreFunction, Scores, evaluate_ranking
from training.splits import Parts

EASE_ITEMS = 10_000
SIMILAR_BLOCK = 512
SEED = 0
Setting = Mapping[str, Any]
Progress = Callable[[int, int], None]


class BaselineError(ValueError):
    """A baseline that cannot run on this data; the message is one sentence."""


@dataclass(frozen=True)
class BaselineData:
    """What baselines read: (user, item) pairs by part, and the features with holes for those that read content."""

    parts: Parts
    n_users: int
    n_items: int
    batch: ModalBatch | None = None

    @cached_property
    def train(self) -> Matrix:
        """R of the training part `[users, items]`, binary."""
        users, items = self.parts.train.T
        ones = np.ones(len(users), dtype=np.float32)
        return sp.csr_array((ones, (users, items)), shape=(self.n_users, self.n_items))


@dataclass(frozen=True)
class Tuned:
    """A baseline with its best setting, and that setting's validation metrics."""

    scores: ScoreFunction
    setting: Setting
    valid: dict[str, float]


def popularity(data: BaselineData) -> ScoreFunction:
    """An item's number of training interactions, for everyone."""
    count = np.bincount(data.parts.train[:, 1], minlength=data.n_items).astype(np.float32)
    return lambda rows: np.tile(count, (len(rows), 1))


def item_knn(data: BaselineData, *, k: int, shrinkage: float) -> ScoreFunction:
    """Sum over the user's items j of c_ij / (sqrt(c_ii c_jj) + shrinkage), for j among the k most similar to i."""
    train, similar = data.train, most_similar(data.train, k, shrinkage)
    into = sp.csr_array(similar.T)

    def scores(rows: Rows) -> Scores:
        table: Scores = (train[rows] @ into).toarray()
        return table

    return scores


def most_similar(train: Matrix, k: int, shrinkage: float) -> Matrix:
    """Each item's k most similar items `[n, n]`, a block of rows at a time."""
    by_item = sp.csr_array(train.T)
    length = np.sqrt(np.asarray(train.sum(axis=0)).ravel())
    n = train.shape[1]
    parts = []
    for start in range(0, n, SIMILAR_BLOCK):
        rows = np.arange(start, min(start + SIMILAR_BLOCK, n))
        counts = (by_item[rows] @ train).toarray()
        counts[np.arange(len(rows)), rows] = 0
        similarity = counts / np.maximum(length[rows, None] * length + shrinkage, 1e-12)
        width = min(k, n)
        best = np.argpartition(-similarity, width - 1, axis=1)[:, :width]
        values = np.take_along_axis(similarity, best, axis=1)
        owner = np.repeat(np.arange(len(rows)), width)
        parts.append(sp.csr_array((values.ravel(), (owner, best.ravel())), shape=(len(rows), n)))
    similarities = sp.csr_array(sp.vstack(parts, format="csr"))
    similarities.eliminate_zeros()
    return similarities


def ease(data: BaselineData, *, l2: float, scaling: float = 0.0) -> ScoreFunction:
    """EASE (Steck, WWW 2019): B = I - P / diag(P) with P = (R^T R + l2 I)^-1; scores R B.

    Args:
        scaling: exponent of the items' counts by which the columns of R are divided before the fit, and the scores
            multiplied again.

    Raises:
        BaselineError: more than `EASE_ITEMS` items; P is dense.
    """
    count = np.maximum(np.asarray(data.train.sum(axis=0)).ravel(), 1.0)
    scale = (count**scaling).astype(np.float32)
    train = sp.csr_array(data.train @ sp.diags_array(1 / scale))
    weights = _ease_weights(train, l2) * scale

    def scores(rows: Rows) -> Scores:
        table: Scores = train[rows] @ weights
        return table

    return scores


def _ease_weights(train: Matrix, l2: float) -> Array:
    n = train.shape[1]
    if n > EASE_ITEMS:
        raise BaselineError(
            f"EASE inverts a dense items x items matrix: {n} items are more than the {EASE_ITEMS} it takes"
        )
    gram = np.asfortranarray((train.T @ train).toarray(), dtype=np.float64)
    gram[np.diag_indices(n)] += l2
    factor, failed = dpotrf(gram, lower=1, overwrite_a=1)
    inverse, singular = dpotri(factor, lower=1, overwrite_c=1)
    if failed or singular:
        raise LinAlgError(f"R^T R + {l2} I has no Cholesky factor")
    lower = np.tril(inverse, -1).astype(np.float32)  # dpotri leaves the other triangle alone
    weights: Array = lower + lower.T
    weights /= -np.diagonal(inverse).astype(np.float32)
    return weights


def graph_filter(data: BaselineData, *, hops: int, popularity: float) -> ScoreFunction:
    """A linear low-pass filter over the interaction graph (after GF-CF, Shen et al., CIKM 2021): with
    R~ = D_u^-1/2 R D_i^-1/2 and P = R~^T R~, scores R~ (P + ... + P^hops) D_i^popularity.

    Raises:
        BaselineError: more than `EASE_ITEMS` items; P is dense.
    """
    return _filtered(data, _low_pass(data, hops), popularity)


def graph_filter_content(
    data: BaselineData, *, hops: int, popularity: float, weight: float, neighbours: int
) -> ScoreFunction:
    """The graph filter with the items that are alike by content beside those with common users: scores
    R~ (P + ... + P^hops + weight C) D_i^popularity, where C is the mean over the modalities of D^-1/2 A D^-1/2 with A
    the cosines of each item with its nearest ones by centred features. An item that lacks a modality has no edge in it.

    Raises:
        BaselineError: there are no features, or more than `EASE_ITEMS` items.
    """
    if data.batch is None or not data.batch.features:
        raise BaselineError("the graph filter with content needs features")
    weights = _low_pass(data, hops)
    for name in data.batch.names:
        graph = _content_graph(data.batch, name, neighbours) * np.float32(weight / len(data.batch.names))
        weights = weights + graph.toarray()
    return _filtered(data, weights, popularity)


def _normalised(train: Matrix) -> Matrix:
    """D_u^-1/2 R D_i^-1/2 `[users, items]`."""
    by_user, by_item = (np.maximum(np.asarray(train.sum(axis=axis)).ravel(), 1.0) for axis in (1, 0))
    return sp.csr_array(sp.diags_array(by_user**-0.5) @ train @ sp.diags_array(by_item**-0.5)).astype(np.float32)


def _low_pass(data: BaselineData, hops: int) -> Array:
    """P + ... + P^hops `[items, items]`."""
    if data.n_items > EASE_ITEMS:
        raise BaselineError(
            f"the graph filter is a dense items x items matrix: more than the {EASE_ITEMS} items it takes"
        )
    normalised = _normalised(data.train)
    once = (normalised.T @ normalised).toarray()
    total = power = once
    for _ in range(hops - 1):
        power = power @ once
        total = total + power
    return total


def _filtered(data: BaselineData, weights: Array, popularity: float) -> ScoreFunction:
    by_item = np.maximum(np.asarray(data.train.sum(axis=0)).ravel(), 1.0)
    normalised, weights = _normalised(data.train), weights * (by_item**popularity).astype(np.float32)

    def scores(rows: Rows) -> Scores:
        table: Scores = normalised[rows] @ weights
        return table

    return scores


def _content_graph(batch: ModalBatch, name: str, neighbours: int) -> Matrix:
    """D^-1/2 A D^-1/2 `[items, items]` of the positive cosines with the nearest items by a modality, either way."""
    n, observed = len(batch), batch.observed[:, batch.names.index(name)]
    centred = batch.features[name] - observed_means(batch)[name]
    near, cosines = nearest(centred, centred, neighbours, allowed=observed, exclude=torch.arange(n))
    kept = ((near >= 0) & (cosines > 0) & observed[:, None]).numpy()
    rows = np.broadcast_to(np.arange(n)[:, None], kept.shape)[kept]
    one_way = sp.csr_array((cosines.numpy()[kept], (rows, near.numpy()[kept])), shape=(n, n))
    graph = one_way.maximum(one_way.T)
    scale = sp.diags_array(np.maximum(np.asarray(graph.sum(axis=1)).ravel(), 1e-12) ** -0.5)
    return sp.csr_array(scale @ graph @ scale).astype(np.float32)


def als(data: BaselineData, *, factors: int, regularization: float, alpha: float) -> ScoreFunction:
    """Implicit ALS (Hu et al., ICDM 2008) of the package implicit."""
    users, items = fitted_als(data.train, factors=factors, regularization=regularization, alpha=alpha, seed=SEED)
    return inner_products(users, items)


def bpr(data: BaselineData, *, factors: int, learning_rate: float, regularization: float, epochs: int) -> ScoreFunction:
    """BPR (Rendle et al., UAI 2009) of the package implicit."""
    model = BayesianPersonalizedRanking(
        factors=factors,
        learning_rate=learning_rate,
        regularization=regularization,
        iterations=epochs,
        random_state=SEED,
        num_threads=1,
    )
    model.fit(sp.csr_matrix(data.train), show_progress=False)
    return inner_products(model.user_factors, model.item_factors)


def inner_products(users: Array, items: Array) -> ScoreFunction:
    """Scores of factors `[u, d]` and `[n, d]`."""
    return lambda rows: users[rows] @ items.T


def fitted_als(train: Matrix, *, factors: int, regularization: float, alpha: float, seed: int) -> tuple[Array, Array]:
    """Factors of users `[u, d]` and items `[n, d]` by the ALS of the package implicit."""
    with threadpool_limits(1, "blas"):  # its own threads and those of BLAS would get in each other's way
        model = AlternatingLeastSquares(
            factors=factors, regularization=regularization, alpha=alpha, random_state=seed, num_threads=1
        )
        model.fit(sp.csr_matrix(train), show_progress=False)
    return model.user_factors, model.item_factors


def content_profile(data: BaselineData, *, centred: bool) -> ScoreFunction:
    """Cosine between an item's features and the mean of the user's items' features.

    Missing cells hold the modality's mean; each modality has unit length, so that all count alike.

    Args:
        centred: whether the modality's mean is subtracted first.

    Raises:
        BaselineError: there are no features.
    """
    if data.batch is None or not data.batch.features:
        raise BaselineError("the content profile needs features")
    means, filled = observed_means(data.batch), impute(data.batch, "mean")
    blocks = [F.normalize(filled[name] - means[name] * centred, dim=1).numpy() for name in data.batch.names]
    items = np.concatenate(blocks, axis=1)
    unit = items / np.maximum(np.linalg.norm(items, axis=1, keepdims=True), 1e-12)
    train = data.train

    def scores(rows: Rows) -> Scores:
        profile = train[rows] @ items  # a user's cosines are in the order of the products with the sum
        table: Scores = profile @ unit.T
        return table

    return scores


@dataclass(frozen=True)
class Baseline:
    """How a baseline is fitted, the settings to choose among, and whether it reads features."""

    fit: Callable[..., ScoreFunction]
    grid: tuple[Setting, ...] = ({},)
    content: bool = False


BASELINES: Mapping[str, Baseline] = {
    "popularity": Baseline(popularity),
    "item-knn": Baseline(
        item_knn,
        tuple(
            {"k": k, "shrinkage": shrinkage} for k, shrinkage in product((20, 50, 100, 200), (0.0, 10.0, 100.0, 1000.0))
        ),
    ),
    "ease": Baseline(ease, tuple({"l2": l2} for l2 in (3.0, 10.0, 30.0, 100.0, 300.0, 500.0, 1000.0, 3000.0))),
    "ease-scaled": Baseline(
        ease,
        tuple(
            {"l2": l2, "scaling": scaling}
            for scaling, found in ((0.2, (30.0, 100.0, 300.0)), (0.5, (1.0, 3.0, 10.0)), (0.8, (0.03, 0.1, 0.3)))
            for l2 in found
        ),
    ),
    "graph-filter": Baseline(
        graph_filter,
        tuple({"hops": hops, "popularity": popularity} for popularity, hops in product((0.0, 0.25, 0.5), (1, 2, 3))),
    ),
    "graph-filter-content": Baseline(
        graph_filter_content,
        tuple(
            {"hops": hops, "popularity": popularity, "weight": weight, "neighbours": 10}
            for popularity, hops, weight in product((0.0, 0.25, 0.5), (1, 3), (0.1, 0.3, 1.0))
        ),
        content=True,
    ),
    "als": Baseline(
        als,
        tuple(
            {"factors": factors, "regularization": regularization, "alpha": alpha}
            for factors, regularization, alpha in product((64, 128, 256), (20.0, 50.0, 100.0), (5.0,))
        ),
    ),
    "bpr": Baseline(
        bpr,
        tuple(
            {"factors": factors, "learning_rate": rate, "regularization": 0.01, "epochs": 50}
            for factors, rate in product((32, 128), (0.01, 0.05))
        ),
    ),
    "content": Baseline(content_profile, ({"centred": True}, {"centred": False}), content=True),
}


def tune(
    baseline: Baseline,
    data: BaselineData,
    *,
    metric: str = "recall@20",
    progress: Progress | None = None,
    measure: Callable[[ScoreFunction], dict[str, float]] | None = None,
) -> Tuned:
    """Fit a baseline with each of its settings and keep the one with the best validation metric, the first of equals.

    Args:
        measure: gives the validation metrics; by default of the full ranking.

    Raises:
        BaselineError: the baseline cannot run on this data.
    """
    best: Tuned | None = None
    for done, setting in enumerate(baseline.grid, start=1):
        scores = baseline.fit(data, **setting)
        valid = measure(scores) if measure else evaluate_ranking(scores, data.parts.valid, data.parts.train)
        if best is None or valid[metric] > best.valid[metric]:
            best = Tuned(scores, setting, valid)
        if progress:
            progress(done, len(baseline.grid))
    assert best is not None  # a grid has at least one setting
    return best
