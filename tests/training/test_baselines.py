"""Baselines against slow readings of their formulas, and their tuning on validation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import training.baselines.ranking as module
from models.modality import ModalBatch
from tests.training.tiny import ITEMS, USERS, checkerboard
from training.baselines.ranking import (
    BASELINES,
    Baseline,
    BaselineData,
    BaselineError,
    content_profile,
    ease,
    fitted_als,
    graph_filter,
    graph_filter_content,
    item_knn,
    popularity,
    tune,
)
from training.metrics import ScoreFunction, Scores, evaluate_ranking


@pytest.fixture(scope="module")
def data() -> BaselineData:
    tiny = checkerboard()
    return BaselineData(tiny.parts, USERS, ITEMS, tiny.batch)


@pytest.fixture(scope="module")
def r(data: BaselineData) -> NDArray[np.float64]:
    """R, dense."""
    table = np.zeros((USERS, ITEMS))
    table[tuple(data.parts.train.T)] = 1
    return table


@pytest.mark.parametrize(("hops", "popularity"), [(1, 0.0), (3, 0.5)])
def test_graph_filter(data: BaselineData, r: NDArray[np.float64], hops: int, popularity: float) -> None:
    users, items = (np.maximum(r.sum(axis=axis), 1) for axis in (1, 0))
    normalised = r / np.sqrt(users[:, None] * items)
    once = normalised.T @ normalised
    total = sum(np.linalg.matrix_power(once, hop) for hop in range(1, hops + 1))
    found = all_scores(graph_filter(data, hops=hops, popularity=popularity))
    np.testing.assert_allclose(found, normalised @ total * items**popularity, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_graph_filter_with_content(data: BaselineData, r: NDArray[np.float64], weight: float) -> None:
    assert data.batch is not None
    users, items = (np.maximum(r.sum(axis=axis), 1) for axis in (1, 0))
    normalised = r / np.sqrt(users[:, None] * items)
    total, near = normalised.T @ normalised, np.zeros((ITEMS, ITEMS))
    for column, feature in enumerate(data.batch.features.values()):
        has = data.batch.observed[:, column].numpy()
        x = feature.numpy().astype(np.float64)
        x = x - x[has].mean(axis=0)
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        graph = np.zeros((ITEMS, ITEMS))
        for item in np.flatnonzero(has):
            others = np.flatnonzero(has & (np.arange(ITEMS) != item))
            for other in others[np.argsort(-(x[others] @ x[item]))][:3]:
                cosine = max(float(x[other] @ x[item]), 0.0)
                graph[item, other] = max(graph[item, other], cosine)
                graph[other, item] = max(graph[other, item], cosine)
        degree = np.maximum(graph.sum(axis=1), 1e-12)
        near += graph / np.sqrt(np.outer(degree, degree)) / len(data.batch.features)
    found = all_scores(graph_filter_content(data, hops=1, popularity=0.25, weight=weight, neighbours=3))
    np.testing.assert_allclose(found, normalised @ (total + weight * near) * items**0.25, rtol=1e-3, atol=1e-5)
    with pytest.raises(BaselineError, match="needs features"):
        graph_filter_content(replace(data, batch=None), hops=1, popularity=0.0, weight=1.0, neighbours=3)


def test_graph_filter_of_many_items(data: BaselineData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EASE_ITEMS", 5)
    with pytest.raises(BaselineError, match="dense items x items"):
        graph_filter(data, hops=1, popularity=0.0)


def all_scores(scores: ScoreFunction) -> Scores:
    """In two blocks, as the metrics ask for them."""
    return np.concatenate([scores(np.arange(10)), scores(np.arange(10, USERS))])


def test_popularity(data: BaselineData, r: NDArray[np.float64]) -> None:
    np.testing.assert_array_equal(all_scores(popularity(data)), np.tile(r.sum(axis=0), (USERS, 1)))


@pytest.mark.parametrize(("k", "shrinkage"), [(3, 0.0), (3, 10.0), (ITEMS, 1.0), (500, 1.0)])
def test_item_knn(
    data: BaselineData, r: NDArray[np.float64], monkeypatch: pytest.MonkeyPatch, k: int, shrinkage: float
) -> None:
    monkeypatch.setattr(module, "SIMILAR_BLOCK", 7)
    counts = r.T @ r
    length = np.sqrt(np.diagonal(counts))
    np.fill_diagonal(counts, 0)
    similarity = counts / np.maximum(np.outer(length, length) + shrinkage, 1e-12)
    found = module.most_similar(data.train, k, shrinkage).toarray()
    for item in range(ITEMS):
        kept = found[item] > 0
        np.testing.assert_allclose(found[item][kept], similarity[item][kept], rtol=1e-5)
        assert np.sort(found[item][kept])[::-1] == pytest.approx(
            np.sort(similarity[item][similarity[item] > 0])[::-1][:k], rel=1e-5
        )
    scores = all_scores(item_knn(data, k=k, shrinkage=shrinkage))
    expected = [[sum(found[i, j] for j in np.flatnonzero(r[u])) for i in range(ITEMS)] for u in range(USERS)]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize("l2", [0.5, 100.0])
def test_ease(data: BaselineData, r: NDArray[np.float64], l2: float) -> None:
    """Each column of B is the ridge regression of the item on all the others."""
    gram = r.T @ r
    expected = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        rest = np.arange(ITEMS) != item
        expected[rest, item] = np.linalg.solve(gram[np.ix_(rest, rest)] + l2 * np.eye(ITEMS - 1), gram[rest, item])
    np.testing.assert_allclose(all_scores(ease(data, l2=l2)), r @ expected, atol=1e-4)


def test_scaled_ease_is_ease_of_the_scaled_matrix(data: BaselineData, r: NDArray[np.float64]) -> None:
    scale = np.maximum(r.sum(axis=0), 1) ** 0.5
    gram = (r / scale).T @ (r / scale)
    expected = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        rest = np.arange(ITEMS) != item
        expected[rest, item] = np.linalg.solve(gram[np.ix_(rest, rest)] + 3 * np.eye(ITEMS - 1), gram[rest, item])
    scores = all_scores(ease(data, l2=3.0, scaling=0.5))
    np.testing.assert_allclose(scores, r / scale @ expected * scale, atol=1e-4)


def test_als_solves_each_user(data: BaselineData, r: NDArray[np.float64]) -> None:
    """A user's factors are the weighted ridge regression of what the user met on the items' factors."""
    users, items = fitted_als(data.train, factors=4, regularization=2.0, alpha=3.0, seed=0)
    again, _ = fitted_als(data.train, factors=4, regularization=2.0, alpha=3.0, seed=0)
    np.testing.assert_array_equal(users, again)
    for user in (0, 7):
        weight = 1 + 2.0 * r[user]  # implicit's alpha is the confidence of what was met, 1 that of what was not
        gram = (items.T * weight) @ items + 2.0 * np.eye(4)
        expected = np.linalg.solve(gram, items.T @ (weight * r[user]))
        cosine = expected @ users[user] / np.linalg.norm(expected) / np.linalg.norm(users[user])
        assert cosine > 0.999


def test_ease_refuses_what_it_cannot_invert(data: BaselineData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EASE_ITEMS", ITEMS - 1)
    with pytest.raises(BaselineError, match="60 items are more than the 59"):
        ease(data, l2=1.0)


@pytest.mark.parametrize("centred", [True, False])
def test_content_profile(data: BaselineData, r: NDArray[np.float64], centred: bool) -> None:
    assert data.batch is not None
    blocks = []
    for column, feature in enumerate(data.batch.features.values()):
        has = data.batch.observed[:, column].numpy()
        x = feature.numpy().astype(np.float64)
        mean = x[has].mean(axis=0)
        filled = np.where(has[:, None], x, mean) - (mean if centred else 0)
        blocks.append(filled / np.maximum(np.linalg.norm(filled, axis=1, keepdims=True), 1e-9))
    items = np.concatenate(blocks, axis=1)
    profile = (r @ items) / np.maximum(r.sum(axis=1, keepdims=True), 1)
    length = np.maximum(np.outer(np.linalg.norm(profile, axis=1), np.linalg.norm(items, axis=1)), 1e-9)
    cosines = profile @ items.T / length
    scores = all_scores(content_profile(data, centred=centred))
    scale = (scores * cosines).sum(axis=1, keepdims=True) / (cosines**2).sum(axis=1, keepdims=True)  # a user's own
    np.testing.assert_allclose(scores, cosines * scale, atol=1e-3)
    assert (scale > 0).all()


def test_content_profile_without_features(data: BaselineData) -> None:
    for batch in (None, ModalBatch({}, torch.zeros(ITEMS, 0, dtype=torch.bool))):
        with pytest.raises(BaselineError, match="needs features"):
            content_profile(BaselineData(data.parts, USERS, ITEMS, batch), centred=True)


@pytest.mark.parametrize("placeholder", [7.0, torch.nan])
def test_content_profile_reads_no_placeholder(data: BaselineData, placeholder: float) -> None:
    noisy = BaselineData(data.parts, USERS, ITEMS, checkerboard(placeholder).batch)
    np.testing.assert_array_equal(*(all_scores(content_profile(x, centred=True)) for x in (data, noisy)))


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_find_the_groups(data: BaselineData, name: str) -> None:
    """All but popularity tell the two groups of the checkerboard apart."""
    baseline = BASELINES[name]
    if name == "als":  # its penalties are for more than two dozen users
        baseline = replace(baseline, grid=({"factors": 4, "regularization": 1.0, "alpha": 5.0},))
    seen: list[tuple[int, int]] = []
    found = tune(baseline, data, progress=lambda done, total: seen.append((done, total)))
    assert found.setting in baseline.grid
    assert seen == [(number, len(baseline.grid)) for number in range(1, len(baseline.grid) + 1)]
    assert found.valid == evaluate_ranking(found.scores, data.parts.valid, data.parts.train)
    rival = evaluate_ranking(popularity(data), data.parts.test, data.parts.train)["ndcg@20"]
    mine = evaluate_ranking(found.scores, data.parts.test, data.parts.train)["ndcg@20"]
    assert mine == rival if name == "popularity" else mine > 1.2 * rival


def test_tune_takes_the_best_on_validation(data: BaselineData) -> None:
    """Not the one that knows the answers of the test part."""

    def oracle(data: BaselineData, *, knows: str) -> ScoreFunction:
        table = np.zeros((USERS, ITEMS), dtype=np.float32)
        table[tuple(getattr(data.parts, knows).T)] = 1
        return lambda rows: table[rows]

    grid: tuple[dict[str, Any], ...] = ({"knows": "test"}, {"knows": "valid"})
    assert tune(Baseline(oracle, grid), data).setting == {"knows": "valid"}
