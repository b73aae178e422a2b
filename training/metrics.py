"""Recall@K and NDCG@K over full rankings.

For a user with test items T, Recall@K = |top K and T| / |T|, and NDCG@K = DCG / ideal DCG with gain 1 / log2(rank + 1)
and min(K, |T|) hits in the ideal; both are means over the users that have test items.

Ties favour nobody: an item that shares its score with others counts with the mean over all places that the tied group
covers, which is the expectation under a random order of the group. A scorer that answers one constant thus gets what a
random order gets, however the items are numbered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.arrays import Double, Mask, Rows
from training.splits import Pairs

Scores = NDArray[np.floating]
ScoreFunction = Callable[[Rows], Scores]

CELLS = 4_000_000  # scores compared at once


@dataclass(frozen=True, slots=True)
class Ranks:
    """Where each test pair stands in its user's ranking.

    Attributes:
        users, items: the pairs, `[p]`.
        above: number of candidates with a greater score, `[p]`.
        tied: number of candidates with the same score, itself included, `[p]`.
    """

    users: Rows
    items: Rows
    above: Rows
    tied: Rows

    def select(self, chosen: Mask) -> Ranks:
        """Only these pairs: the measures then are those of users whose test items are these."""
        return Ranks(self.users[chosen], self.items[chosen], self.above[chosen], self.tied[chosen])

    def hits(self, k: int) -> Double:
        """Probability of each pair to stand among the first `k`, `[p]`."""
        return self._mean_over_places(np.arange(k + 1, dtype=np.float64))

    def gains(self, k: int) -> Double:
        """Expected discounted gain of each pair in the first `k`, `[p]`."""
        return self._mean_over_places(_cumulative_discount(k))

    def _mean_over_places(self, total: Double) -> Double:
        """Mean of a quantity over the places of each pair's tied group; `total[r]` is its sum over the first r places,
        `[k + 1]`, and it is zero beyond k."""
        k = len(total) - 1
        mean: Double = total[np.minimum(self.above + self.tied, k)] - total[np.minimum(self.above, k)]
        return mean / self.tied


def evaluate_ranking(
    scores: ScoreFunction, test: Pairs, seen: Pairs, ks: Sequence[int] = (20, 50), *, block: int = 256
) -> dict[str, float]:
    """`recall@k` and `ndcg@k` for each k; arguments and errors as for `rank_all`."""
    return summarise(rank_all(scores, test, seen, block=block), ks)


def rank_all(scores: ScoreFunction, test: Pairs, seen: Pairs, *, block: int = 256) -> Ranks:
    """Rank the test items of each user among all items that the user has not seen in training.

    Args:
        scores: from user rows `[b]` to finite scores `[b, n_items]`; called with blocks of users that have test items.
        test: (user, item) pairs, `[p, 2]`. Users without training pairs are for the caller to leave out
            (`splits.Parts.evaluable`).
        seen: pairs `[q, 2]` that are no candidates; a test pair among them is an error.
        block: number of users scored at once.

    Returns:
        The ranks, sorted by user and in the given order within a user.

    Raises:
        ValueError: a score is not finite, or a test pair was seen.
    """
    users, items = test[np.argsort(test[:, 0], kind="stable")].T
    seen_users, seen_items = seen[np.argsort(seen[:, 0], kind="stable")].T
    above, tied = np.empty_like(users), np.empty_like(users)
    distinct = np.unique(users)
    for start in range(0, len(distinct), block):
        batch = distinct[start : start + block]
        part = slice(*np.searchsorted(users, (batch[0], batch[-1] + 1)))
        known = slice(*np.searchsorted(seen_users, (batch[0], batch[-1] + 1)))
        table = _candidates(scores(batch), batch, seen_users[known], seen_items[known])
        above[part], tied[part] = _places(table, np.searchsorted(batch, users[part]), items[part])
    return Ranks(users, items, above, tied)


def rank_first(scores: Scores, candidates: Mask | None = None) -> Ranks:
    """Rank column 0 of each row among the row's candidates, for protocols with a given list of negatives.

    Args:
        scores: finite scores `[b, c]`.
        candidates: bool `[b, c]`; False keeps a column out (a copy of the positive among its negatives).

    Raises:
        ValueError: a score is not finite.
    """
    _require_finite(scores)
    others = np.ones(scores.shape, dtype=np.bool_) if candidates is None else candidates
    positive = scores[:, :1]
    rows = np.arange(len(scores))
    above = ((scores > positive) & others).sum(axis=1)
    tied = 1 + ((scores == positive) & others)[:, 1:].sum(axis=1)
    return Ranks(rows, np.zeros_like(rows), above, tied)


def recall(ranks: Ranks, k: int) -> float:
    """Recall@k, the mean over users; 0 without any. With one test item per user it is the hit rate."""
    hits, count = _by_user(ranks, ranks.hits(k))
    return float((hits / count).mean()) if len(hits) else 0.0


def ndcg(ranks: Ranks, k: int) -> float:
    """NDCG@k, the mean over users; 0 without any."""
    gains, count = _by_user(ranks, ranks.gains(k))
    return float((gains / _cumulative_discount(k)[np.minimum(count, k)]).mean()) if len(gains) else 0.0


def summarise(ranks: Ranks, ks: Sequence[int] = (20, 50)) -> dict[str, float]:
    """`recall@k` and `ndcg@k` for each k."""
    measures = {"recall": recall, "ndcg": ndcg}
    return {f"{name}@{k}": measure(ranks, k) for k in ks for name, measure in measures.items()}


def _cumulative_discount(k: int) -> Double:
    """Sum of 1 / log2(rank + 1) over the first 0, 1, ..., k ranks, `[k + 1]`."""
    return np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])


def _by_user(ranks: Ranks, values: Double) -> tuple[Double, Rows]:
    """Sum of the values and number of test items of each user that has some."""
    _, owner, count = np.unique(ranks.users, return_inverse=True, return_counts=True)
    return np.bincount(owner, weights=values, minlength=len(count)).astype(np.float64), count.astype(np.int64)


def _candidates(scores: Scores, users: Rows, seen_users: Rows, seen_items: Rows) -> Scores:
    """The scores of a block with the seen items out of the way."""
    _require_finite(scores)
    table = scores.copy()
    listed = np.isin(seen_users, users)  # a user without test items may lie between two that have
    table[np.searchsorted(users, seen_users[listed]), seen_items[listed]] = -np.inf
    return table


def _places(table: Scores, rows: Rows, items: Rows) -> tuple[Rows, Rows]:
    own = table[rows, items]
    if np.isneginf(own).any():
        raise ValueError("a test pair stands among the seen ones")
    above, tied = np.empty_like(rows), np.empty_like(rows)
    step = max(1, CELLS // table.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        others, mine = table[rows[part]], own[part, None]
        above[part] = (others > mine).sum(axis=1)
        tied[part] = (others == mine).sum(axis=1)
    return above, tied


def _require_finite(scores: Scores) -> None:
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite numbers")
