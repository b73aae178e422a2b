"""Which item-modality cells a protocol withholds. All masks are bool `[n, M]`, True = withheld."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from models.arrays import Counts, Mask


def mask_cells(observed: Mask, ratio: float, rng: np.random.Generator) -> Mask:
    """Withhold a share of the observed cells at random.

    One random order of the cells is drawn whatever the ratio and then cut, so that equal generators give nested masks:
    the cells of 20 % are among those of 40 %.

    Raises:
        ValueError: `ratio` is not between 0 and 1.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"the ratio of withheld cells must be between 0 and 1, got {ratio}")
    cells = np.flatnonzero(observed)
    order = rng.permutation(cells)
    mask = np.zeros(observed.size, dtype=np.bool_)
    mask[order[: round(ratio * len(cells))]] = True
    return mask.reshape(observed.shape)


def mask_levels(observed: Mask, rng: np.random.Generator, *, share: float | None = None) -> Mask:
    """The "missing" protocol: equal shares of the items lack 1, 2, ..., M modalities, chosen evenly.

    Args:
        observed: cells that there are; a mask never covers others, so items with holes of their own lack more.
        rng: the source of randomness.
        share: share of the items that lack something; by default M / (M + 1), which makes the items that lack nothing
            one more equal share (thirds for two modalities, quarters for three).

    Raises:
        ValueError: `share` is not between 0 and 1.
    """
    n_items, n_modalities = observed.shape
    share = n_modalities / (n_modalities + 1) if share is None else share
    if not 0 <= share <= 1:
        raise ValueError(f"the share of items that lack something must be between 0 and 1, got {share}")
    lacking = rng.permutation(n_items)[: round(share * n_items)]
    mask = np.zeros_like(observed)
    for level, rows in enumerate(np.array_split(lacking, n_modalities), start=1):
        choices = list(combinations(range(n_modalities), level))
        for columns, part in zip(choices, np.array_split(rows, len(choices)), strict=True):
            mask[part[:, None], columns] = True
    return mask & observed


def levels(observed: Mask) -> Counts:
    """How many modalities each item lacks, `[n]`."""
    lacking: Counts = np.sum(~observed, axis=1, dtype=np.int64)
    return lacking
