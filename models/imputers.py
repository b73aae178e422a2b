"""Training-free imputers: baselines, rungs of the fallback ladder, and what DGMRec's generator starts from.

All work on centred features (the modality's mean subtracted), so that zero is the modality mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from models.graph import Graph, InteractionGraphs, nearest
from models.modality import ModalBatch

NEIGHBOURS = 5


@dataclass(frozen=True)
class Evidence:
    """What is known about each cell without a trained model. No block of a cell (i, m) depends on x_i^m itself.

    Attributes:
        own: by modality `[n, r_m]`, the item's own centred features, zero where unobserved.
        near: by modality, mean over the most similar items by the other observed modalities (imputer NN).
        shared: by modality, mean over items that share users with this one (co-interaction mean).
        observed, near_valid, shared_valid: bool `[n, M]`, where the blocks hold anything.
    """

    own: Mapping[str, Tensor]
    near: Mapping[str, Tensor]
    shared: Mapping[str, Tensor]
    observed: Tensor
    near_valid: Tensor
    shared_valid: Tensor

    def __len__(self) -> int:
        return len(self.observed)

    @property
    def names(self) -> tuple[str, ...]:
        """Modalities, in the order of the masks' columns."""
        return tuple(self.own)

    def select(self, rows: Tensor) -> Evidence:
        """The evidence of these items only."""
        own, near, shared = (
            {name: block[rows] for name, block in blocks.items()} for blocks in (self.own, self.near, self.shared)
        )
        return Evidence(own, near, shared, self.observed[rows], self.near_valid[rows], self.shared_valid[rows])

    def without(self, target: str, *, others: Tensor, interactions: Tensor) -> Evidence:
        """As it would be for the cell of `target` had these items (bool `[n]` each) no other modality observed, or no
        interactions."""
        keep_others, keep_shared = ~others, ~interactions
        column = self.names.index(target)
        own = {name: block * keep_others[:, None] for name, block in self.own.items()}
        near = {name: block * keep_others[:, None] for name, block in self.near.items()}
        shared = {name: block * keep_shared[:, None] for name, block in self.shared.items()}
        observed = self.observed & keep_others[:, None]
        observed[:, column] = self.observed[:, column]
        return Evidence(
            own,
            near,
            shared,
            observed,
            self.near_valid & keep_others[:, None],
            self.shared_valid & keep_shared[:, None],
        )

    def inputs(self, target: str) -> Tensor:
        """The generator's view of the cells of `target`: `[n, width]`, blocks then one flag a block.

        The target's own feature is not among them.
        """
        names, column = self.names, self.names.index(target)
        others = [c for c, name in enumerate(names) if name != target]
        blocks = [self.own[names[c]] for c in others] + [self.near[target]] + [self.shared[name] for name in names]
        flags = torch.cat([self.observed[:, others], self.near_valid[:, [column]], self.shared_valid], dim=1)
        return torch.cat([*blocks, flags.to(blocks[0].dtype)], dim=1)


def evidence_width(ranks: Mapping[str, int], target: str) -> int:
    """Number of columns of `Evidence.inputs(target)`."""
    others = [rank for name, rank in ranks.items() if name != target]
    return sum(others) + ranks[target] + sum(ranks.values()) + len(others) + 1 + len(ranks)


def gather_evidence(features: Mapping[str, Tensor], observed: Tensor, graphs: InteractionGraphs | None) -> Evidence:
    """Evidence of a whole catalogue about itself.

    Args:
        features: centred features by modality `[n, r_m]`; unobserved rows are ignored.
        observed: bool `[n, M]`.
        graphs: the training interactions, or None where there are none.
    """
    own = {name: block.where(observed[:, [c]], 0) for c, (name, block) in enumerate(features.items())}
    near, near_valid = near_means(own, observed)
    shared, shared_valid = shared_means(own, observed, graphs)
    return Evidence(own, near, shared, observed, near_valid, shared_valid)


def near_means(own: Mapping[str, Tensor], observed: Tensor, k: int = NEIGHBOURS) -> tuple[dict[str, Tensor], Tensor]:
    """NN: per target modality the mean over the `k` items nearest by another modality, among items that have both,
    averaged over the other modalities that the item has. Returns blocks `[n, r_m]` and their validity `[n, M]`."""
    names = list(own)
    rows = torch.arange(len(observed), device=observed.device)
    blocks: dict[str, Tensor] = {}
    valid = torch.zeros_like(observed)
    for target, name in enumerate(names):
        total = torch.zeros_like(own[name])
        count = torch.zeros(len(rows), device=observed.device)
        for source, other in enumerate(names):
            having = observed[:, source]
            if source == target or not having.any():
                continue
            queries = rows[having]
            found, _ = nearest(
                own[other][queries], own[other], k, allowed=having & observed[:, target], exclude=queries
            )
            mean, some = mean_of(own[name], found)
            total[queries] += mean
            count[queries] += some
        blocks[name] = total / count.clamp_min(1)[:, None]
        valid[:, target] = count > 0
    return blocks, valid


def mean_of(values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of `values[rows]` for rows `[q, k]` with -1 for none: `[q, d]`, and bool `[q]` where there was any."""
    there = (rows >= 0).to(values.dtype)
    count = there.sum(dim=1)
    total = (values[rows.clamp_min(0)] * there[..., None]).sum(dim=1)
    return total / count.clamp_min(1)[:, None], count > 0


def shared_means(
    own: Mapping[str, Tensor], observed: Tensor, graphs: InteractionGraphs | None
) -> tuple[dict[str, Tensor], Tensor]:
    """Co-interaction means: over an item's users, the mean of what each of them has besides the item itself.

    With S_u the sum and C_u the number of observed features in u's history, an item i of that history contributes
    (S_u - o_i x_i) / (C_u - o_i); the two possible values of o_i make this four sparse products a modality.
    Returns blocks `[n, r_m]` and their validity `[n, M]`.
    """
    if graphs is None:
        return {name: torch.zeros_like(block) for name, block in own.items()}, torch.zeros_like(observed)
    binary = Graph(sp.csr_array(graphs.user_mean.matrix.astype(bool).astype(np.float32)), graphs.user_mean.device)
    blocks: dict[str, Tensor] = {}
    valid = torch.zeros_like(observed)
    for column, (name, block) in enumerate(own.items()):
        has = observed[:, [column]].to(block.dtype)
        sums = binary @ torch.cat([block * has, has], dim=1)
        total, count = sums[:, :-1], sums[:, -1:]
        options = []
        for itself in (0.0, 1.0):
            rest = count - itself
            weight = torch.where(rest > 0, 1 / rest.clamp_min(1), torch.zeros_like(rest))
            options.append(binary.transposed @ torch.cat([total * weight, weight, (rest > 0).float()], dim=1))
        chosen = torch.where(has > 0, options[1], options[0])
        mean, weights, users = chosen[:, :-2], chosen[:, -2:-1], chosen[:, -1:]
        blocks[name] = (mean - block * has * weights) / users.clamp_min(1)
        valid[:, column] = users[:, 0] > 0
    return blocks, valid


def impute(batch: ModalBatch, method: str) -> dict[str, Tensor]:
    """Fill every unobserved cell of raw features by a training-free imputer.

    Args:
        method: `mean` (the modality's mean) or `nn` (mean of the 5 most similar items by the observed modalities;
            the modality's mean where the item has none). Similarity is centred cosine.

    Raises:
        ValueError: the method is unknown.
    """
    if method not in ("mean", "nn"):
        raise ValueError(f"unknown imputer {method!r}: use mean or nn")
    means = observed_means(batch)
    centred = {
        name: (feature - means[name]) * batch.observed[:, [column]]
        for column, (name, feature) in enumerate(batch.features.items())
    }
    guesses = near_means(centred, batch.observed)[0] if method == "nn" else {}
    return {
        name: means[name] + torch.where(batch.observed[:, [column]], block, guesses.get(name, torch.zeros_like(block)))
        for column, (name, block) in enumerate(centred.items())
    }


def observed_means(batch: ModalBatch) -> dict[str, Tensor]:
    """Mean of the observed rows by modality `[dim_m]`; zero where nobody has the modality."""
    return {
        name: (
            feature[batch.observed[:, column]].mean(dim=0)
            if batch.observed[:, column].any()
            else torch.zeros_like(feature[0])
        )
        for column, (name, feature) in enumerate(batch.features.items())
    }
