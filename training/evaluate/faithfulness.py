"""Whether what IRIS names as reasons is what its scores rest on.

Deletion and insertion (Petsiuk et al., 2018): a history is taken away from its most relevant item on, or built up from
nothing in that order, and the item held out is scored and ranked after each step. Orders that know less stand beside:
by similarity alone, with every interest alike; by likeness of content; at random. If the relevances meant nothing,
their curves would be those of the random order; if interests added nothing, those of the similarities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.arrays import Array, Rows
from models.iris.serving import IRISServing, ItemSides
from models.linalg import unit
from training.held_out import Trials
from training.iris.source import TopNSource
from training.metrics import rank_first

USERS = 500  # whose explanations are checked
STEPS = 10  # of a curve, each a tenth of the history
ORDERS = ("relevance", "interest", "similarity", "content", "random")
WAYS = ("deletion", "insertion")
HITS = 10  # among the first so many the item held out is to stand


@dataclass(frozen=True)
class Faithfulness:
    """What was found.

    Attributes:
        metrics: by name. `faithful`: share of the users whose score falls by more without the item named first than
            without a random other one; `fall ratio`: the mean fall without the former by the mean size of that without
            the latter; `deletion score[ORDER]`, `insertion score[ORDER]`: area under the curve of the item's score,
            over the share of the history from 0 to 1; `deletion hr@10[ORDER]`, `insertion hr@10[ORDER]`: that of hits.
            After a deletion less is better, after an insertion more.
        curves: the same names with the means of every step.
    """

    metrics: dict[str, float]
    curves: dict[str, list[float]]


def faithfulness(serving: IRISServing, source: TopNSource, trials: Trials, seed: int) -> Faithfulness:
    """Check the explanations of the items held out, for `USERS` users with more than one item of history."""
    rng = np.random.default_rng(seed)
    histories = source.histories.rows.matrix
    long = np.flatnonzero(np.diff(histories.indptr)[trials.users] > 1)
    chosen = rng.permutation(long)[:USERS]
    if not len(chosen):
        return Faithfulness({}, {})
    sides, likeness = _sides(serving, source), _directions(serving, source)
    falls, curves = np.empty((len(chosen), 2)), []
    for place, row in enumerate(chosen):
        user, items = trials.users[row], trials.items[row][trials.counted[row]]
        history = histories.indices[histories.indptr[user] : histories.indptr[user + 1]].astype(np.int64)
        case = _Case(serving, sides.select(history), sides.select(items))
        orders = case.orders(likeness[history] @ likeness[items[0]], rng)
        falls[place] = case.falls(orders, rng)
        curves.append({f"{way}[{order}]": case.curve(orders[order], way) for order in ORDERS for way in WAYS})
    metrics = {
        "faithful": float((falls[:, 0] > falls[:, 1]).mean()),
        "fall ratio": float(falls[:, 0].mean() / max(np.abs(falls[:, 1]).mean(), 1e-12)),
    }
    means: dict[str, Array] = {}
    for way, order in ((way, order) for way in WAYS for order in ORDERS):
        mean = np.mean([curve[f"{way}[{order}]"] for curve in curves], axis=0)  # [STEPS + 1, 2]
        means |= {f"{way} score[{order}]": mean[:, 0], f"{way} hr@{HITS}[{order}]": mean[:, 1]}
    areas = {name: float(np.trapezoid(mean) / STEPS) for name, mean in means.items()}
    return Faithfulness(metrics | areas, {name: np.round(mean, 5).tolist() for name, mean in means.items()})


@dataclass(frozen=True)
class _Case:
    """One user's history and the items that are ranked, the one held out first."""

    serving: IRISServing
    history: ItemSides
    items: ItemSides

    def orders(self, likeness: Array, rng: np.random.Generator) -> dict[str, Rows]:
        """Places in the history, what speaks most for the item held out first."""
        target = self.items.select([0])
        explained = self.serving.explain(self.history, target)
        values: Mapping[str, Any] = {
            "relevance": explained.relevance[0],
            "interest": explained.interest[0],
            "similarity": self.history.p @ target.q[0],
            "content": likeness,
            "random": rng.random(len(self.history)),
        }
        return {name: np.argsort(-values[name], kind="stable") for name in ORDERS}

    def falls(self, orders: Mapping[str, Rows], rng: np.random.Generator) -> tuple[float, float]:
        """By how much the score falls without the item named first, and without a random other one."""
        named = orders["relevance"]
        whole, *less = (
            self.serving.score(self.history.select(np.delete(np.arange(len(named)), left)), self.items.select([0]))[0]
            for left in ([], [named[0]], [rng.choice(named[1:])])
        )
        return whole - less[0], whole - less[1]

    def curve(self, order: Rows, way: str) -> Array:
        """Score of the item held out and whether it is a hit, `[STEPS + 1, 2]`, with ever more of the history taken
        away or given in an order."""
        counts = [round(len(order) * step / STEPS) for step in range(STEPS + 1)]
        parts = [order[:count] if way == "insertion" else order[count:] for count in counts]
        scores = np.array([self.serving.score(self.history.select(part), self.items) for part in parts])
        return np.stack([scores[:, 0], rank_first(scores).hits(HITS)], axis=1)


def _sides(serving: IRISServing, source: TopNSource) -> ItemSides:
    content = source.content
    features = {name: content.features[name].numpy() for name in serving.names}
    present = content.observed[:, [content.names.index(name) for name in serving.names]].numpy()
    return serving.sides(features, present, source.items.ids)


def _directions(serving: IRISServing, source: TopNSource) -> Array:
    """Unit features side by side `[n, sum dim_m]`, centred and 0 where missing: their products are cosines, summed over
    the modalities."""
    parts = [np.zeros((len(source.items), 1), np.float32)]
    for name in serving.names:
        feature = source.content.features[name].numpy()
        here = source.content.observed[:, source.content.names.index(name)].numpy()
        if here.any():
            parts.append(unit(feature - feature[here].mean(axis=0)) * here[:, None])
    return np.concatenate(parts, axis=1)
