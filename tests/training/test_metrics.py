"""Ranking metrics against a plain reference and cases worked out by hand."""

from __future__ import annotations

from collections import defaultdict
from math import log2

import numpy as np
import pytest

from training.metrics import Ranks, evaluate_ranking, ndcg, rank_all, rank_first, recall, summarise


def reference(table: np.ndarray, test: np.ndarray, seen: np.ndarray, k: int) -> tuple[float, float]:
    """The definitions, word for word, for scores without ties."""
    wanted, known = defaultdict(set), defaultdict(set)
    for user, item in test:
        wanted[user].add(item)
    for user, item in seen:
        known[user].add(item)
    recalls, gains = [], []
    for user, items in wanted.items():
        ranking = [item for item in np.argsort(-table[user]) if item not in known[user]][:k]
        hits = [rank for rank, item in enumerate(ranking, start=1) if item in items]
        ideal = sum(1 / log2(rank + 1) for rank in range(1, min(k, len(items)) + 1))
        recalls.append(len(hits) / len(items))
        gains.append(sum(1 / log2(rank + 1) for rank in hits) / ideal)
    return float(np.mean(recalls)), float(np.mean(gains))


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores `[40, 60]` without ties, test pairs of some users and seen pairs of all, disjoint and shuffled."""
    rng = np.random.default_rng(1)
    table = rng.permutation(40 * 60).reshape(40, 60).astype(np.float32)
    pairs = rng.permutation(np.argwhere(rng.random((40, 60)) < 0.3))
    test = pairs[(np.arange(len(pairs)) % 3 == 0) & (pairs[:, 0] % 4 != 1)]
    return table, test, pairs[np.arange(len(pairs)) % 3 != 0]


@pytest.mark.parametrize("k", [1, 5, 20, 100])
@pytest.mark.parametrize("block", [1, 7, 256])
def test_agrees_with_the_reference(case: tuple[np.ndarray, np.ndarray, np.ndarray], k: int, block: int) -> None:
    table, test, seen = case
    found = evaluate_ranking(lambda rows: table[rows], test, seen, (k,), block=block)
    expected = reference(table, test, seen, k)
    assert (found[f"recall@{k}"], found[f"ndcg@{k}"]) == pytest.approx(expected)


def test_large_tables_are_compared_in_parts(
    case: tuple[np.ndarray, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    table, test, seen = case
    whole = rank_all(lambda rows: table[rows], test, seen)
    monkeypatch.setattr("training.metrics.CELLS", 100)
    parts = rank_all(lambda rows: table[rows], test, seen)
    assert (whole.above == parts.above).all()
    assert (whole.tied == parts.tied).all()


def test_by_hand() -> None:
    scores = np.array([[9.0, 8.0, 7.0, 6.0, 5.0]])
    ranks = rank_all(lambda _: scores, np.array([[0, 4], [0, 1]]), np.array([[0, 0], [0, 2]]))
    assert ranks.above.tolist() == [2, 0]
    assert recall(ranks, 2) == 0.5
    assert ndcg(ranks, 2) == pytest.approx(1 / (1 + 1 / log2(3)))
    assert recall(ranks, 3) == 1.0
    assert ndcg(ranks, 3) == pytest.approx((1 + 1 / log2(4)) / (1 + 1 / log2(3)))
    assert (scores == [[9.0, 8.0, 7.0, 6.0, 5.0]]).all()  # the caller's scores stay as they are


def test_perfect_ranking_is_one() -> None:
    test = np.array([[0, 0], [0, 1], [1, 2]])
    table = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    assert summarise(rank_all(lambda rows: table[rows], test, np.empty((0, 2), np.int64)), (2, 5)) == {
        "recall@2": 1.0,
        "ndcg@2": 1.0,
        "recall@5": 1.0,
        "ndcg@5": 1.0,
    }


@pytest.mark.parametrize("item", [0, 7, 99])
def test_a_constant_scorer_gets_the_expectation_wherever_the_item_stands(item: int) -> None:
    ranks = rank_all(lambda rows: np.zeros((len(rows), 100)), np.array([[0, item]]), np.empty((0, 2), np.int64))
    assert recall(ranks, 20) == pytest.approx(0.2)
    assert ndcg(ranks, 20) == pytest.approx(sum(1 / log2(rank + 1) for rank in range(1, 21)) / 100)


def test_ties_are_the_mean_over_random_orders() -> None:
    rng = np.random.default_rng(3)
    table = rng.integers(4, size=(1, 30)).astype(np.float64)
    test = np.stack([np.zeros(6, np.int64), rng.permutation(30)[:6]], axis=1)
    seen = np.array([[0, item] for item in range(30) if item not in test[:, 1]][:5])
    exact = rank_all(lambda _: table, test, seen)
    draws = [rank_all(lambda _: table + 0.1 * rng.random(table.shape), test, seen) for _ in range(3000)]
    assert recall(exact, 8) == pytest.approx(np.mean([recall(draw, 8) for draw in draws]), abs=0.01)
    assert ndcg(exact, 8) == pytest.approx(np.mean([ndcg(draw, 8) for draw in draws]), abs=0.01)


def test_select_measures_a_group_of_items() -> None:
    ranks = Ranks(np.array([0, 0, 1]), np.array([3, 4, 5]), np.array([0, 50, 1]), np.array([1, 1, 1]))
    assert recall(ranks, 10) == pytest.approx(0.75)
    assert recall(ranks.select(np.array([False, True, True])), 10) == pytest.approx(0.5)
    assert recall(ranks.select(np.array([True, False, False])), 10) == 1.0


def test_nothing_to_rank() -> None:
    nothing = np.empty((0, 2), np.int64)
    assert evaluate_ranking(lambda rows: np.zeros((len(rows), 5)), nothing, nothing, (20,)) == {
        "recall@20": 0.0,
        "ndcg@20": 0.0,
    }


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        rank_all(lambda _: np.array([[0.0, bad]]), np.array([[0, 0]]), np.empty((0, 2), np.int64))
    with pytest.raises(ValueError, match="finite"):
        rank_first(np.array([[0.0, bad]]))


def test_a_test_pair_that_was_seen() -> None:
    with pytest.raises(ValueError, match="a test pair stands among the seen ones"):
        rank_all(lambda _: np.zeros((1, 2)), np.array([[0, 0]]), np.array([[0, 0]]))


def test_rank_first_is_the_hit_rate_among_given_candidates() -> None:
    scores = np.array([[3.0, 5.0, 1.0], [2.0, 2.0, 1.0], [9.0, 1.0, 1.0]])
    ranks = rank_first(scores)
    assert recall(ranks, 1) == pytest.approx((0 + 0.5 + 1) / 3)
    assert ndcg(ranks, 2) == pytest.approx((1 / log2(3) + (1 + 1 / log2(3)) / 2 + 1) / 3)
    without = rank_first(scores, np.array([[True, False, True], [True, False, True], [True, True, True]]))
    assert recall(without, 1) == 1.0
