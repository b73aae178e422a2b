"""Ranking: candidates by inner product, IRIS over them, diversity, and the named fallbacks."""

from __future__ import annotations

import numpy as np

from models.arrays import Array, Double, Mask
from models.iris.serving import IRISServing
from service.pipeline.catalogue import FINAL, TARGETS, Catalogue
from service.pipeline.history import Past
from service.ports import Keys

Numbers = Double
Scores = Array | Numbers

# Whatever is asked for, the first places of a list are filled in the same way; so none of these depends on its length.
BLOCK, POOL = 20, 100  # where diversity re-orders, each next so many places are filled from so many more candidates
CANDIDATES = 500  # of each kind, that IRIS chooses from


def best(catalogue: Catalogue, vector: Array, n: int, allowed: Mask, diversity: float = 0.0) -> tuple[Keys, Array]:
    """The `n` best items for a user vector `[d]`: keys and scores, best first, ties by key."""
    keys, scores = catalogue.indexes[FINAL].search(vector[None], _depth(n, diversity), allowed)
    valid = keys[0] >= 0
    return diversified(catalogue, keys[0][valid], scores[0][valid], n, diversity)


def reranked(
    catalogue: Catalogue, iris: IRISServing, vector: Array, past: Past, n: int, allowed: Mask, diversity: float = 0.0
) -> tuple[Keys, Array]:
    """The `n` best by IRIS for a history, of the best by DGMRec for the user vector `[d]` and of the best by IRIS' own
    item similarities, were every interest alike: keys and scores, best first, ties by key. Where these are too few, the
    list goes on with the best of as many more."""
    query = iris.alike(past.sides, weights=past.weights)
    keys, scores = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    for depth in range(CANDIDATES, len(allowed) + CANDIDATES, CANDIDATES):
        more = np.setdiff1d(_candidates(catalogue, vector, query, depth, allowed), keys)
        more_scores = _scored(catalogue, iris, past, more)
        order = np.lexsort((more, -more_scores))
        keys, scores = np.append(keys, more[order]), np.append(scores, more_scores[order])
        if len(keys) >= _depth(n, diversity) or not len(more):
            break
    return diversified(catalogue, keys, scores, n, diversity)


def _depth(n: int, diversity: float) -> int:
    """How many candidates the first `n` places are filled from."""
    return n if diversity == 0 else POOL * -(-n // BLOCK)


def _candidates(catalogue: Catalogue, vector: Array, query: Array, depth: int, allowed: Mask) -> Keys:
    """The union of what two indexes answer, in ascending order."""
    final, _ = catalogue.indexes[FINAL].search(vector[None], depth, allowed)
    targets, _ = catalogue.indexes[TARGETS].search(query[None], depth, allowed)
    keys = np.union1d(final, targets)
    return keys[keys >= 0]


def _scored(catalogue: Catalogue, iris: IRISServing, past: Past, keys: Keys) -> Array:
    """Scores `[t]` by IRIS. Items that it cannot tell apart are scored once: a matrix product may give equal rows
    different last bits, and then these would decide between them instead of the key."""
    if not len(keys):
        return np.empty(0, dtype=np.float32)
    targets, same = catalogue.sides(keys), past.same(keys)
    own = np.where(same.any(axis=1), keys, -1).astype(np.float64)  # what stands in the history has a history of its own
    rows = np.concatenate(
        [targets.q, targets.item_bias[:, None], targets.target, own[:, None]], axis=1, dtype=np.float64
    )
    _, first, which = np.unique(rows.view(np.dtype((np.void, rows.strides[0]))), return_index=True, return_inverse=True)
    scores = iris.score(past.sides, targets.select(first), weights=past.weights, same=same[first])
    return scores[which.reshape(-1)]


def diversified(catalogue: Catalogue, keys: Keys, scores: Array, n: int, diversity: float) -> tuple[Keys, Array]:
    """Maximal marginal relevance: each next item is the best of (1 - diversity) * score - diversity * likeness, scores
    scaled to 0..1, likeness the highest cosine of modal parts to an item already chosen. Scores stay what they were.

    Args:
        keys: `[k]`, best first, with their scores; of them the first `_depth(n, diversity)` are looked at.
    """
    if diversity == 0 or len(keys) == 0:
        return keys[:n], scores[:n]
    modal = catalogue.rows.get("modal", keys)
    modal = modal - modal[:POOL].mean(axis=0)
    modal /= np.maximum(np.linalg.norm(modal, axis=1, keepdims=True), 1e-6)
    likeness = np.full(len(keys), -1.0, dtype=np.float32)
    left = np.ones(len(keys), dtype=np.bool_)
    order: list[int] = []
    while len(order) < min(n, len(keys)):
        pool = slice(_depth(len(order) + 1, diversity))
        if len(order) % BLOCK == 0:
            relevance = _scaled(scores[pool])
        value = np.where(left[pool], (1 - diversity) * relevance - diversity * likeness[pool], -np.inf)
        place = int(value.argmax())
        order.append(place)
        left[place] = False
        likeness = np.maximum(likeness, np.vecdot(modal, modal[place]))  # row by row, however many there are
    return keys[order], scores[order]


def appended(keys: Keys, scores: Scores, more: Keys, low: Scores) -> tuple[Keys, Scores]:
    """A list with another behind it, whose scores are lowered as one where they reach into those before them."""
    if len(scores) and len(low):
        low = np.minimum(low - max(float(low[0] - scores[-1]), 0.0), scores[-1])  # rounding may leave it above
    return np.concatenate([keys, more]), np.concatenate([scores, low])


def _scaled(scores: Array) -> Array:
    spread = float(scores.max() - scores.min())
    return (scores - scores.min()) / spread if spread > 0 else np.ones_like(scores)


def popular(catalogue: Catalogue, n: int, allowed: Mask) -> tuple[Keys, Numbers]:
    """The items with the most users, whose number is the score; ties by age, the newest first, then by key."""
    return _top(catalogue.popularity.astype(np.float64), catalogue.created, n, allowed)


def latest(catalogue: Catalogue, n: int, allowed: Mask) -> tuple[Keys, Numbers]:
    """The newest items, of those created at once the later row first; the score is the creation time in epoch
    seconds."""
    created = catalogue.created
    return _top(created, np.arange(len(created), dtype=np.float64), n, allowed)


def _top(scores: Numbers, then: Numbers, n: int, allowed: Mask) -> tuple[Keys, Numbers]:
    keys = np.flatnonzero(allowed)
    if len(keys) > n:
        # Everything that ties with the n-th stays in, so that the second criterion decides.
        bound = np.partition(scores[keys], len(keys) - n)[len(keys) - n]
        keys = keys[scores[keys] >= bound]
    order = np.lexsort((keys, -then[keys], -scores[keys]))[:n]
    return keys[order], scores[keys[order]]
