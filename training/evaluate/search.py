"""What a search finds among observed and generated features: how many of the first ten are what was asked for, in
either state, and how much of the page generated features take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from models.arrays import Array, Mask, Rows
from models.linalg import unit
from models.modality import ModalBatch

PAGE = 10
QUERIES = 1000
ALIKE = 0.5  # of the categories that two items have together, those that they share, for one to answer the other


def search_page(
    batch: ModalBatch, signals: Mapping[str, Tensor], scales: Mapping[str, Array], categories: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Items with a modality observed ask for others like them; by modality, and once more with plain cosines as
    `[name, plain]`:

    - `precision@10`: of the first ten, those that share at least half of all categories with the item that asks;
      `[name, observed]` and `[name, generated]` of those in that state. Left out where there are no categories.
    - `generated_share@10`: of the first ten, those found by a generated feature.

    Args:
        signals: by modality `[n, r_m]`, every cell filled. scales: by modality `[n]`, of cosines with generated ones.
        categories: of each item.
    """
    alike = _alike(categories)
    metrics: dict[str, float] = {}
    for column, name in enumerate(batch.names):
        observed = batch.observed[:, column].numpy()
        asking = np.random.default_rng(0).permutation(np.flatnonzero(observed))[:QUERIES]
        if not len(asking) or observed.all():
            continue
        directions = unit(signals[name])
        cosines = (directions[asking] @ directions.T).numpy()
        cosines[np.arange(len(asking)), asking] = -np.inf
        for label, scale in ((name, scales[name]), (f"{name}, plain", np.ones_like(scales[name]))):
            scaled = np.where(observed, cosines, cosines * scale)
            first = np.argsort(-scaled, axis=1, kind="stable")[:, :PAGE]
            metrics |= _page(first, ~observed, alike[asking] if alike is not None else None, label)
    return metrics


def _page(first: Rows, generated: Mask, alike: Mask | None, label: str) -> dict[str, float]:
    """The figures of pages `[q, 10]`, with who is alike whom who asks `[q, n]`."""
    state = generated[first]
    metrics = {f"generated_share@{PAGE}[{label}]": float(state.mean())}
    if alike is None:
        return metrics
    found = np.take_along_axis(alike, first, axis=1)
    metrics[f"precision@{PAGE}[{label}]"] = float(found.mean())
    for name, chosen in (("observed", ~state), ("generated", state)):
        if chosen.any():
            metrics[f"precision@{PAGE}[{label}, {name}]"] = float(found[chosen].mean())
    return metrics


def _alike(categories: Sequence[Sequence[str]]) -> Mask | None:
    names = {name: column for column, name in enumerate(sorted({name for own in categories for name in own}))}
    if not names:
        return None
    has = torch.zeros(len(categories), len(names))
    for row, own in enumerate(categories):
        has[row, [names[name] for name in own]] = 1
    shared, count = has @ has.T, has.sum(dim=1)
    alike: Mask = (shared >= ALIKE * (count[:, None] + count[None] - shared).clamp_min(1)).numpy()
    return alike
