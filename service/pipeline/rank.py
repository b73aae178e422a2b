"""Ranking: candidates by inner product, IRIS over them, diversity, and the named fallbacks."""

from __future__ import annotations

import numpy as np

from models.arrays import Array, Double, Mask
from models.iris.serving import IRISServing
from service.pipeline.catalogue import FINAL, TARGETS
from service.pipeline.engine import Engine
from service.pipeline.history import Past
from service.ports import Keys

Numbers = Double
Scores = Array | Numbers

POOL = 5  # candidates looked at for each item asked, when diversity re-orders them
CANDIDATES = 200  # of each kind, that IRIS chooses from


def best(engine: Engine, vector: Array, n: int, allowed: Mask, diversity: float = 0.0) -> tuple[Keys, Array]:
    """The `n` best items for a user vector `[d]`: keys and scores, best first."""
    wanted = n if diversity == 0 else n * POOL
    keys, scores = engine.catalogue.indexes[FINAL].search(vector[None], wanted, allowed)
    found = keys[0] >= 0
    if diversity == 0:
        return keys[0][found], scores[0][found]
    return diversified(engine, keys[0][found], scores[0][found], n, diversity)


def reranked(
    engine: Engine, reranker: IRISServing, vector: Array, past: Past, n: int, allowed: Mask, diversity: float = 0.0
) -> tuple[Keys, Array]:
    """The `n` best by IRIS for a history, of the best by DGMRec for the user vector `[d]` and of the best by IRIS' own
    item similarities, were every interest alike: keys and scores, best first."""
    keys = _candidates(engine, vector, reranker.alike(past.sides, weights=past.weights), max(n, CANDIDATES), allowed)
    targets = engine.catalogue.sides(keys)
    scores = reranker.score(past.sides, targets, weights=past.weights, same=past.same(keys))
    order = np.lexsort((keys, -scores))
    if diversity == 0:
        return keys[order[:n]], scores[order[:n]]
    return diversified(engine, keys[order], scores[order], n, diversity)


def _candidates(engine: Engine, vector: Array, query: Array, depth: int, allowed: Mask) -> Keys:
    """The union of what two indexes answer, in ascending order."""
    final, _ = engine.catalogue.indexes[FINAL].search(vector[None], depth, allowed)
    targets, _ = engine.catalogue.indexes[TARGETS].search(query[None], depth, allowed)
    keys = np.union1d(final, targets)
    return keys[keys >= 0]


def diversified(engine: Engine, keys: Keys, scores: Array, n: int, diversity: float) -> tuple[Keys, Array]:
    """Maximal marginal relevance: each next item is the best of (1 - diversity) * score - diversity * likeness, scores
    scaled to 0..1, likeness the highest cosine of modal parts to an item already chosen. Scores stay what they were."""
    if len(keys) == 0:
        return keys, scores
    modal = engine.catalogue.rows.get("modal", keys)
    modal = modal - modal.mean(axis=0)
    modal /= np.maximum(np.linalg.norm(modal, axis=1, keepdims=True), 1e-6)
    spread = float(scores.max() - scores.min())
    relevance = (scores - scores.min()) / spread if spread > 0 else np.ones_like(scores)
    likeness = np.full(len(keys), -1.0, dtype=np.float32)
    left = np.ones(len(keys), dtype=np.bool_)
    order = []
    for _ in range(min(n, len(keys))):
        value = np.where(left, (1 - diversity) * relevance - diversity * likeness, -np.inf)
        place = int(value.argmax())
        order.append(place)
        left[place] = False
        likeness = np.maximum(likeness, modal @ modal[place])
    return keys[order], scores[order]


def appended(keys: Keys, scores: Scores, more: Keys, low: Scores) -> tuple[Keys, Scores]:
    """A list with another behind it, whose scores are lowered as one where they reach into those before them."""
    if len(scores) and len(low):
        low = low - max(float(low[0] - scores[-1]), 0.0)
    return np.concatenate([keys, more]), np.concatenate([scores, low])


def popular(engine: Engine, n: int, allowed: Mask) -> tuple[Keys, Numbers]:
    """The items with the most users, whose number is the score; ties by age, the newest first."""
    catalogue = engine.catalogue
    return _top(catalogue.popularity.astype(np.float64), catalogue.created, n, allowed)


def latest(engine: Engine, n: int, allowed: Mask) -> tuple[Keys, Numbers]:
    """The newest items; the score is the creation time in epoch seconds."""
    created = engine.catalogue.created
    return _top(created, created, n, allowed)


def _top(scores: Numbers, then: Numbers, n: int, allowed: Mask) -> tuple[Keys, Numbers]:
    keys = np.flatnonzero(allowed)
    if len(keys) > n:
        # Everything that ties with the n-th stays in, so that the second criterion decides.
        bound = np.partition(scores[keys], len(keys) - n)[len(keys) - n]
        keys = keys[scores[keys] >= bound]
    order = np.lexsort((keys, -then[keys], -scores[keys]))[:n]
    return keys[order], scores[keys[order]]
