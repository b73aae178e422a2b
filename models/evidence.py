"""What is known of each item-modality cell without a trained model: neighbours by the other modalities, co-interaction
means, collaborative factors. DGMRec's generator starts from it, and no evidence of a cell depends on the cell itself.

Features are centred (the modality's mean subtracted), so that zero is the modality mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor

from models import linalg
from models.graph import Graph, InteractionGraphs, nearest
from models.linalg import Numbers

NEIGHBOURS = 5
EVIDENCE_NEIGHBOURS = 40
NEAR_DUPLICATES = 10  # of them, those that may be near duplicates
CROSS_FITTING_FOLDS = 2  # see `cross_fitted_means`; with more, less of what leaves a mean stays unknown


@dataclass(frozen=True)
class Evidence:
    """What is known about each cell without a trained model, as torch tensors or NumPy arrays. No block of a cell
    (i, m) depends on x_i^m itself.

    Attributes:
        own: by modality `[n, r_m]`, the item's own centred features, zero where unobserved.
        neighbour_mean: by modality, mean over the most similar items by the other observed modalities (as imputer NN,
            but over more of them, weighted by their similarity).
        near_duplicates: by modality, the direction of the mean over the few of these that are nearest of all, as long
            as they are near (`near_duplicate_mean`).
        co_interaction_mean: by modality, mean over items that share users with this one.
        cross_fitted_mean: the same as a regression of that very modality reads them (`cross_fitted_means`).
        factors: `[n, q]`, collaborative factors of unit length (`collaborative_factors`), zero for a cold item.
        observed, neighbour_valid, co_interaction_valid: bool `[n, M]`, where the blocks hold anything.
    """

    own: Mapping[str, Numbers]
    neighbour_mean: Mapping[str, Numbers]
    near_duplicates: Mapping[str, Numbers]
    co_interaction_mean: Mapping[str, Numbers]
    cross_fitted_mean: Mapping[str, Numbers]
    factors: Numbers
    observed: Numbers
    neighbour_valid: Numbers
    co_interaction_valid: Numbers

    def __len__(self) -> int:
        return len(self.observed)

    @property
    def names(self) -> tuple[str, ...]:
        """Modalities, in the order of the masks' columns."""
        return tuple(self.own)

    def others(self, target: str) -> list[int]:
        """The columns of the other modalities."""
        return [column for column, name in enumerate(self.own) if name != target]

    def select(self, rows: Tensor) -> Evidence:
        """The evidence of these items only."""
        values = (getattr(self, field.name) for field in fields(Evidence))
        return Evidence(*(_rows_of(value, rows) for value in values))

    def without(self, target: str, *, others: Tensor, interactions: Tensor) -> Evidence:
        """As it would be for the cell of `target` had these items (bool `[n]` each) no other modality observed, or no
        interactions."""
        keep_others, keep_interactions = ~others, ~interactions
        column = self.names.index(target)
        own, neighbours, duplicates = (
            {name: block * keep_others[:, None] for name, block in blocks.items()}
            for blocks in (self.own, self.neighbour_mean, self.near_duplicates)
        )
        co_interactions, cross_fitted = (
            {name: block * keep_interactions[:, None] for name, block in blocks.items()}
            for blocks in (self.co_interaction_mean, self.cross_fitted_mean)
        )
        observed = self.observed & keep_others[:, None]
        observed[:, column] = self.observed[:, column]
        return Evidence(
            own,
            neighbours,
            duplicates,
            co_interactions,
            cross_fitted,
            self.factors * keep_interactions[:, None],
            observed,
            self.neighbour_valid & keep_others[:, None],
            self.co_interaction_valid & keep_interactions[:, None],
        )

    def has_interactions(self) -> Numbers:
        """Items of which interactions say anything, bool `[n]`."""
        return self.co_interaction_valid.any(axis=1) | (self.factors != 0).any(axis=1)

    def has_content(self, target: str) -> Numbers:
        """Items that have another modality than `target`, bool `[n]`."""
        return self.observed[:, self.others(target)].any(axis=1)

    def interaction_evidence(self, target: str) -> Numbers:
        """What an item's users say of `target`: `[n, interaction_width]`, blocks of unit length, then their flags."""
        means = ((self.cross_fitted_mean if name == target else self.co_interaction_mean)[name] for name in self.own)
        flags = linalg.cast(self.co_interaction_valid, self.factors)
        return linalg.library(flags).concatenate([*map(linalg.unit, means), self.factors, flags], axis=1)

    def content_evidence(self, target: str) -> Numbers:
        """What an item's other modalities say of `target`: `[n, content_width]`, as above.

        The target's own feature is not among them.
        """
        others, names = self.others(target), self.names
        blocks = [*(self.own[names[column]] for column in others), self.neighbour_mean[target]]
        flags = self.observed[:, others], self.neighbour_valid[:, [names.index(target)]]
        columns = [*map(linalg.unit, blocks), *(linalg.cast(flag, self.factors) for flag in flags)]
        return linalg.library(self.factors).concatenate(columns, axis=1)


def _rows_of(value: Any, rows: Tensor) -> Any:
    """The rows of a block, or of each modality's."""
    return {name: block[rows] for name, block in value.items()} if isinstance(value, Mapping) else value[rows]


@dataclass(frozen=True)
class ImputationEvidence(Evidence):
    """What is known of some items before generation, with their preferences p_i `[M, n, d]`."""

    preference: Numbers


def interaction_width(ranks: Mapping[str, int], factors: int) -> int:
    """Number of columns of `Evidence.interaction_evidence`."""
    return sum(ranks.values()) + factors + len(ranks)


def content_width(ranks: Mapping[str, int]) -> int:
    """Number of columns of `Evidence.content_evidence`, whatever the target."""
    return sum(ranks.values()) + len(ranks)


def interaction_columns(ranks: Mapping[str, int], factors: int, *, without: str | None = None) -> Tensor:
    """Ones for the columns of `Evidence.interaction_evidence`, zeros for the means of the modality `without`."""
    blocks = [torch.full((rank,), float(name != without)) for name, rank in ranks.items()]
    return torch.cat([*blocks, torch.ones(factors + len(ranks))])


def content_columns(ranks: Mapping[str, int], target: str, *, neighbour_mean: bool = True) -> Tensor:
    """Ones for the columns of `Evidence.content_evidence`, zeros for the neighbours' mean of the target if not
    `neighbour_mean`."""
    others = sum(rank for name, rank in ranks.items() if name != target)
    target_columns = torch.full((ranks[target],), float(neighbour_mean))
    return torch.cat([torch.ones(others), target_columns, torch.ones(len(ranks))])


def gather_evidence(
    features: Mapping[str, Tensor],
    observed: Tensor,
    graphs: InteractionGraphs | None,
    factors: Tensor | None = None,
    *,
    folds: Mapping[str, int] | None = None,
) -> Evidence:
    """Evidence of a whole catalogue about itself.

    Args:
        features: centred features by modality `[n, r_m]`; unobserved rows are ignored.
        observed: bool `[n, M]`.
        graphs: the training interactions, or None where there are none.
        factors: collaborative factors `[n, q]`; none by default.
        folds: by modality, of the means that a regression of itself reads, see `cross_fitted_means`; 0 where none does.
            `CROSS_FITTING_FOLDS` by default.
    """
    if factors is None:
        factors = torch.zeros(len(observed), 0, device=observed.device)
    own = {name: block.where(observed[:, [c]], 0) for c, (name, block) in enumerate(features.items())}
    (neighbours, duplicates), neighbour_valid = aggregate_neighbours(
        own, observed, EVIDENCE_NEIGHBOURS, (similarity_weighted_mean, near_duplicate_mean)
    )
    means, means_valid = co_interaction_means(own, observed, graphs)
    cross_fitted = dict(means)
    for column, (name, block) in enumerate(own.items()):
        if count := CROSS_FITTING_FOLDS if folds is None else folds[name]:
            cross_fitted |= cross_fitted_means({name: block}, observed[:, [column]], graphs, count)[0]
    return Evidence(own, neighbours, duplicates, means, cross_fitted, factors, observed, neighbour_valid, means_valid)


# --- collaborative factors -------------------------------------------------------------------------------------------


def user_factors(graphs: InteractionGraphs, size: int, *, seed: int = 0) -> Tensor:
    """Users' collaborative factors `[U, size]`: the left singular vectors of D_u^-1/4 R D_i^-1/2, scaled by D_u^-1/4.

    The power of D_u was chosen on held-out cells of TikTok. Columns beyond the rank of R are zero.
    """
    binary = sp.csr_matrix(graphs.binary.matrix.astype(np.float64))
    users, items = (degree.cpu().numpy().clip(1) for degree in (graphs.user_degree, graphs.item_degree))
    scaled = sp.diags(users**-0.25) @ binary @ sp.diags(items**-0.5)
    rank = min(size, *scaled.shape)
    left, values = linalg.randomised_svd(scaled, rank, seed=seed)
    factors = np.zeros((len(users), size), dtype=np.float32)
    factors[:, :rank] = left * (users[:, None] ** -0.25) * (values > 1e-6 * values.max(initial=1e-12))
    return torch.from_numpy(factors).to(graphs.user_degree.device)


def collaborative_factors(graphs: InteractionGraphs, users: Tensor) -> Tensor:
    """Items' collaborative factors `[n, q]`: the sum of their users' `[U, q]` at unit length, zero without users.

    With the factors of `user_factors` this is the direction of V S, whose inner products are the co-interaction
    cosines; a new user or item folds in by the same sum.
    """
    factors: Tensor = linalg.unit(graphs.item_mean @ users)
    return factors


# --- neighbours by another modality ----------------------------------------------------------------------------------

MeanOf: TypeAlias = Callable[[Numbers], Numbers]
"""The mean `[q, r]` of neighbours' features by weights `[q, j]` of the first j neighbours, nearest first."""

NeighbourAggregate: TypeAlias = Callable[[MeanOf, Numbers], Numbers]
"""What neighbours say of a modality `[q, r]`, from the mean of their features and their cosines `[q, k]`."""


def plain_mean(mean_of: MeanOf, cosines: Numbers) -> Numbers:
    """The mean over neighbours, all weighing the same."""
    return mean_of(linalg.library(cosines).ones_like(cosines))


def similarity_weighted_mean(mean_of: MeanOf, cosines: Numbers) -> Numbers:
    """The mean over neighbours by the squares of their cosines, nothing for one below zero."""
    return mean_of(cosines.clip(min=0) ** 2)


def near_duplicate_mean(mean_of: MeanOf, cosines: Numbers) -> Numbers:
    """The direction of the mean over the first `NEAR_DUPLICATES` neighbours by the fourth powers of their cosines, its
    length the square of their mean cosine: an item with the very same picture says nearly all of a text, a merely
    similar one next to nothing."""
    cosines = cosines[:, :NEAR_DUPLICATES].clip(min=0)
    weights = cosines**4
    cosine = (weights * cosines).sum(axis=1) / weights.sum(axis=1).clip(min=1e-12)
    return linalg.unit(mean_of(weights)) * (cosine**2)[:, None]


def aggregate_neighbours(
    own: Mapping[str, Tensor], observed: Tensor, k: int, aggregates: Sequence[NeighbourAggregate]
) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Per aggregate and target modality, what the `k` items nearest by another modality, among items that have both,
    say of it, averaged over the other modalities that the item has: blocks `[n, r_m]`, and their validity `[n, M]`."""
    rows = torch.arange(len(observed), device=observed.device)
    blocks = [{name: torch.zeros_like(block) for name, block in own.items()} for _ in aggregates]
    valid = torch.zeros_like(observed)
    for target, name in enumerate(own):
        count = torch.zeros(len(rows), device=observed.device)
        for source, other in enumerate(own):
            having = observed[:, source]
            if source == target or not having.any():
                continue
            queries = rows[having]
            neighbours, cosines = nearest(
                own[other][queries], own[other], k, allowed=having & observed[:, target], exclude=queries
            )
            mean_of = _mean_of(own[name], neighbours)
            for aggregate, total in zip(aggregates, blocks, strict=True):
                total[name][queries] += aggregate(mean_of, cosines)
            count[queries] += (neighbours >= 0).any(dim=1)
        for total in blocks:
            total[name] /= count.clamp_min(1)[:, None]
        valid[:, target] = count > 0
    return blocks, valid


def _mean_of(values: Tensor, rows: Tensor) -> MeanOf:
    return lambda weights: weighted_mean(values, rows[:, : weights.shape[1]], weights)[0]


def neighbour_means(
    own: Mapping[str, Tensor], observed: Tensor, k: int = NEIGHBOURS
) -> tuple[dict[str, Tensor], Tensor]:
    """NN: per target modality the mean over the `k` items nearest by another modality (`aggregate_neighbours`)."""
    (means,), valid = aggregate_neighbours(own, observed, k, [plain_mean])
    return means, valid


def weighted_mean(values: Tensor, rows: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean of `values[rows]` for rows `[q, k]` with -1 for none, weighted by `[q, k]`: `[q, d]`, and bool `[q]` where
    there was any.

    A service has few rows, gathered from packed storage, and there `models.dgmrec.inference.mean_of_gathered` computes
    the same; for a catalogue the rows themselves, `[q, k, d]`, would take k times the memory of the answer.
    """
    present = rows >= 0
    counts = present.to(values.dtype) if weights is None else weights.where(present, 0)
    total = F.embedding_bag(rows.clamp_min(0), values, mode="sum", per_sample_weights=counts)
    return total / counts.sum(dim=1).clamp_min(1e-12)[:, None], present.any(dim=1)


# --- co-interaction means --------------------------------------------------------------------------------------------


def co_interaction_means(
    own: Mapping[str, Tensor], observed: Tensor, graphs: InteractionGraphs | None
) -> tuple[dict[str, Tensor], Tensor]:
    """Over an item's users, the mean of what each of them has besides the item itself.

    With S_u the sum and C_u the number of observed features in u's history, an item i of that history contributes
    (S_u - o_i x_i) / (C_u - o_i); the two possible values of o_i make this four sparse products a modality.
    Returns blocks `[n, r_m]` and their validity `[n, M]`.
    """
    if graphs is None:
        return {name: torch.zeros_like(block) for name, block in own.items()}, torch.zeros_like(observed)
    binary = graphs.binary
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


def cross_fitted_means(
    own: Mapping[str, Tensor], observed: Tensor, graphs: InteractionGraphs | None, folds: int = CROSS_FITTING_FOLDS
) -> tuple[dict[str, Tensor], Tensor]:
    """Co-interaction means as the generator learns from them: over an item's users, the mean of what each has.

    The means for an observed cell leave out all items of the cell's fold, one of `folds`, the item among them.
    Were it the item alone, then what is missing from a mean would give away the very feature that is to be predicted,
    where the whole can be predicted from the item's users: a regression would learn that, and could use it for no other
    item. Returns blocks `[n, r_m]` and their validity `[n, M]`.
    """
    if graphs is None:
        return {name: torch.zeros_like(block) for name, block in own.items()}, torch.zeros_like(observed)
    binary = graphs.binary
    fold = cross_fitting_fold(len(observed), folds).to(observed.device)
    blocks: dict[str, Tensor] = {}
    valid = torch.zeros_like(observed)
    for column, (name, block) in enumerate(own.items()):
        has = observed[:, column]
        held = torch.cat([block, torch.ones_like(block[:, :1])], dim=1) * has[:, None]
        everything = binary @ held  # [U, r + 1], sums and counts
        means = _mean_of_means(binary.transposed, everything)
        for number in range(folds):
            inside = fold == number
            rows = (inside & has).nonzero().squeeze(1)
            rest = everything - binary @ (held * inside[:, None])
            means[rows] = _mean_of_means(binary.transposed.rows(rows), rest)
        blocks[name], valid[:, column] = means[:, :-1], means[:, -1] > 0
    return blocks, valid


def cross_fitting_fold(n: int, folds: int = CROSS_FITTING_FOLDS) -> Tensor:
    """The fold `[n]` of each item in `cross_fitted_means`, at random: items often stand in an order that means
    something."""
    return torch.from_numpy(np.random.default_rng(0).permutation(n) % folds)


def _mean_of_means(users_of: Graph, sums: Tensor) -> Tensor:
    """Over the users of each of `k` items, the mean of their means, from users' sums and counts `[U, r + 1]`: `[k, r]`,
    and in one more column how many users there were who have any."""
    count = sums[:, -1:].round()
    counted = (count > 0).to(sums.dtype)
    total = users_of @ torch.cat([sums[:, :-1] / count.clamp_min(1) * counted, counted], dim=1)
    users = total[:, -1:]
    return torch.cat([total[:, :-1] / users.clamp_min(1), users], dim=1)
