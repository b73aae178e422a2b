"""What is known of each item-modality cell without a trained model: neighbours by the other modalities, co-interaction
means, collaborative factors. DGMRec's generator starts from it, and no evidence of a cell depends on the cell itself.

Features are centred (the modality's mean subtracted), so that zero is the modality mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor

from models import linalg
from models.graph import Graph, InteractionGraphs, nearest

NEIGHBOURS = 5
SHARED_FOLDS = 2  # see `folded_means`; with more, less of what leaves a mean stays unknown
EVIDENCE_NEIGHBOURS = 40
CLOSEST = 10  # of them, those that a guess follows by how near they are


@dataclass(frozen=True)
class Evidence:
    """What is known about each cell without a trained model. No block of a cell (i, m) depends on x_i^m itself.

    Attributes:
        own: by modality `[n, r_m]`, the item's own centred features, zero where unobserved.
        near: by modality, mean over the most similar items by the other observed modalities (as imputer NN, but over
            more of them, weighted by their similarity).
        closest: by modality, the direction of the mean over the few of these that are nearest of all, as long as they
            are near (`closest_mean`).
        shared: by modality, mean over items that share users with this one (co-interaction mean).
        folded: the same as a regression of that very modality reads them (`folded_means`).
        factors: `[n, q]`, collaborative factors of unit length (`collaborative_factors`), zero for an untouched item.
        observed, near_valid, shared_valid: bool `[n, M]`, where the blocks hold anything.
    """

    own: Mapping[str, Tensor]
    near: Mapping[str, Tensor]
    closest: Mapping[str, Tensor]
    shared: Mapping[str, Tensor]
    folded: Mapping[str, Tensor]
    factors: Tensor
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
        own, near, closest, shared, folded = (
            {name: block[rows] for name, block in blocks.items()}
            for blocks in (self.own, self.near, self.closest, self.shared, self.folded)
        )
        masks = self.observed[rows], self.near_valid[rows], self.shared_valid[rows]
        return Evidence(own, near, closest, shared, folded, self.factors[rows], *masks)

    def without(self, target: str, *, others: Tensor, interactions: Tensor) -> Evidence:
        """As it would be for the cell of `target` had these items (bool `[n]` each) no other modality observed, or no
        interactions."""
        keep_others, keep_shared = ~others, ~interactions
        column = self.names.index(target)
        own, near, closest = (
            {name: block * keep_others[:, None] for name, block in blocks.items()}
            for blocks in (self.own, self.near, self.closest)
        )
        shared, folded = (
            {name: block * keep_shared[:, None] for name, block in blocks.items()}
            for blocks in (self.shared, self.folded)
        )
        observed = self.observed & keep_others[:, None]
        observed[:, column] = self.observed[:, column]
        return Evidence(
            own,
            near,
            closest,
            shared,
            folded,
            self.factors * keep_shared[:, None],
            observed,
            self.near_valid & keep_others[:, None],
            self.shared_valid & keep_shared[:, None],
        )

    def touched(self) -> Tensor:
        """Items of which interactions say anything, bool `[n]`."""
        return self.shared_valid.any(dim=1) | (self.factors != 0).any(dim=1)

    def described(self, target: str) -> Tensor:
        """Items that have another modality than `target`, bool `[n]`."""
        return self.observed[:, self._others(target)].any(dim=1)

    def from_interactions(self, target: str) -> Tensor:
        """What an item's users tell about `target`: `[n, interaction_width]`, blocks of unit length, then their
        flags."""
        blocks = [linalg.unit((self.folded if name == target else self.shared)[name]) for name in self.names]
        return torch.cat([*blocks, self.factors, self.shared_valid.to(self.factors.dtype)], dim=1)

    def from_content(self, target: str) -> Tensor:
        """What an item's other modalities tell about `target`: `[n, content_width]`, as above.

        The target's own feature is not among them.
        """
        others = self._others(target)
        told = [*(self.own[self.names[column]] for column in others), self.near[target]]
        blocks = [linalg.unit(block) for block in told]
        flags = torch.cat([self.observed[:, others], self.near_valid[:, [self.names.index(target)]]], dim=1)
        return torch.cat([*blocks, flags.to(self.factors.dtype)], dim=1)

    def _others(self, target: str) -> list[int]:
        return [column for column, name in enumerate(self.names) if name != target]


def interaction_width(ranks: Mapping[str, int], factors: int) -> int:
    """Number of columns of `Evidence.from_interactions`."""
    return sum(ranks.values()) + factors + len(ranks)


def content_width(ranks: Mapping[str, int]) -> int:
    """Number of columns of `Evidence.from_content`, whatever the target."""
    return sum(ranks.values()) + len(ranks)


def interaction_columns(ranks: Mapping[str, int], factors: int, *, unread: str | None = None) -> Tensor:
    """Ones for the columns of `Evidence.from_interactions`, zeros for the means of the modality `unread`."""
    blocks = [torch.full((rank,), float(name != unread)) for name, rank in ranks.items()]
    return torch.cat([*blocks, torch.ones(factors + len(ranks))])


def content_columns(ranks: Mapping[str, int], target: str, *, near: bool = True) -> Tensor:
    """Ones for the columns of `Evidence.from_content`, zeros for the neighbours' mean of the target if not `near`."""
    others = sum(rank for name, rank in ranks.items() if name != target)
    return torch.cat([torch.ones(others), torch.full((ranks[target],), float(near)), torch.ones(len(ranks))])


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
        folds: by modality, of the means that a regression of itself reads, see `folded_means`; 0 where none does.
            `SHARED_FOLDS` by default.
    """
    if factors is None:
        factors = torch.zeros(len(observed), 0, device=observed.device)
    own = {name: block.where(observed[:, [c]], 0) for c, (name, block) in enumerate(features.items())}
    (near, closest), near_valid = told_by_neighbours(own, observed, EVIDENCE_NEIGHBOURS, (similar_mean, closest_mean))
    shared, shared_valid = shared_means(own, observed, graphs)
    folded = dict(shared)
    for column, (name, block) in enumerate(own.items()):
        if count := SHARED_FOLDS if folds is None else folds[name]:
            folded |= folded_means({name: block}, observed[:, [column]], graphs, count)[0]
    return Evidence(own, near, closest, shared, folded, factors, observed, near_valid, shared_valid)


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
    return linalg.unit(graphs.item_mean @ users)


Told: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What neighbours tell of a modality `[q, r]`, from its features `[n, r]`, the neighbours' rows `[q, k]`, nearest first
and -1 for none, and their cosines."""


def told_by_neighbours(
    own: Mapping[str, Tensor], observed: Tensor, k: int, ways: Sequence[Told]
) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Per way and target modality, what the `k` items nearest by another modality, among items that have both, tell of
    it, averaged over the other modalities that the item has: blocks `[n, r_m]`, and their validity `[n, M]`."""
    names = list(own)
    rows = torch.arange(len(observed), device=observed.device)
    blocks = [{name: torch.zeros_like(block) for name, block in own.items()} for _ in ways]
    valid = torch.zeros_like(observed)
    for target, name in enumerate(names):
        count = torch.zeros(len(rows), device=observed.device)
        for source, other in enumerate(names):
            having = observed[:, source]
            if source == target or not having.any():
                continue
            queries = rows[having]
            found, cosines = nearest(
                own[other][queries], own[other], k, allowed=having & observed[:, target], exclude=queries
            )
            for way, told in zip(ways, blocks, strict=True):
                told[name][queries] += way(own[name], found, cosines)
            count[queries] += (found >= 0).any(dim=1)
        for told in blocks:
            told[name] /= count.clamp_min(1)[:, None]
        valid[:, target] = count > 0
    return blocks, valid


def near_means(own: Mapping[str, Tensor], observed: Tensor, k: int = NEIGHBOURS) -> tuple[dict[str, Tensor], Tensor]:
    """NN: per target modality the mean over the `k` items nearest by another modality (`told_by_neighbours`)."""
    (means,), valid = told_by_neighbours(own, observed, k, [lambda values, found, _: mean_of(values, found)[0]])
    return means, valid


def similar_mean(values: Tensor, found: Tensor, cosines: Tensor) -> Tensor:
    """The mean over neighbours by the squares of their cosines, nothing for one below zero."""
    return mean_of(values, found, cosines.clamp_min(0).square())[0]


def closest_mean(values: Tensor, found: Tensor, cosines: Tensor) -> Tensor:
    """The direction of the mean over the first `CLOSEST` neighbours by the fourth powers of their cosines, its length
    the square of their mean cosine: a poster's twin tells its text, and a merely similar one next to nothing."""
    cosines = cosines[:, :CLOSEST].clamp_min(0)
    weights = cosines.pow(4)
    cosine = (weights * cosines).sum(dim=1) / weights.sum(dim=1).clamp_min(1e-12)
    return linalg.unit(mean_of(values, found[:, :CLOSEST], weights)[0]) * cosine.square()[:, None]


def mean_of(values: Tensor, rows: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean of `values[rows]` for rows `[q, k]` with -1 for none, weighted by `[q, k]`: `[q, d]`, and bool `[q]` where
    there was any."""
    there = rows >= 0
    counts = there.to(values.dtype) if weights is None else weights.where(there, 0)
    # As sums of bags: the rows themselves, `[q, k, d]`, would take k times the memory of the answer.
    total = F.embedding_bag(rows.clamp_min(0), values, mode="sum", per_sample_weights=counts)
    return total / counts.sum(dim=1).clamp_min(1e-12)[:, None], there.any(dim=1)


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


def folded_means(
    own: Mapping[str, Tensor], observed: Tensor, graphs: InteractionGraphs | None, folds: int = SHARED_FOLDS
) -> tuple[dict[str, Tensor], Tensor]:
    """Co-interaction means as the generator learns from them: over an item's users, the mean of what each has.

    The means for an observed cell leave out all items of the cell's fold, one of `folds`, the item among them.
    Were it the item alone, then what is missing from a mean would tell the very feature that is to be guessed, where
    the whole can be guessed from the item's users: a regression would learn that, and could use it for no other item.
    Returns blocks `[n, r_m]` and their validity `[n, M]`.
    """
    if graphs is None:
        return {name: torch.zeros_like(block) for name, block in own.items()}, torch.zeros_like(observed)
    binary = graphs.binary
    fold = shared_fold(len(observed), folds).to(observed.device)
    blocks: dict[str, Tensor] = {}
    valid = torch.zeros_like(observed)
    for column, (name, block) in enumerate(own.items()):
        has = observed[:, column]
        held = torch.cat([block, torch.ones_like(block[:, :1])], dim=1) * has[:, None]
        everything = binary @ held  # [U, r + 1], sums and counts
        found = _mean_of_means(binary.transposed, everything)
        for number in range(folds):
            inside = fold == number
            rows = (inside & has).nonzero().squeeze(1)
            rest = everything - binary @ (held * inside[:, None])
            found[rows] = _mean_of_means(binary.transposed.rows(rows), rest)
        blocks[name], valid[:, column] = found[:, :-1], found[:, -1] > 0
    return blocks, valid


def shared_fold(n: int, folds: int = SHARED_FOLDS) -> Tensor:
    """The fold `[n]` of each item in `folded_means`, at random: items often stand in an order that means something."""
    return torch.from_numpy(np.random.default_rng(0).permutation(n) % folds)


def _mean_of_means(users_of: Graph, sums: Tensor) -> Tensor:
    """Over the users of each of `k` items, the mean of their means, from users' sums and counts `[U, r + 1]`: `[k, r]`,
    and in one more column how many users there were who have any."""
    count = sums[:, -1:].round()
    some = (count > 0).to(sums.dtype)
    total = users_of @ torch.cat([sums[:, :-1] / count.clamp_min(1) * some, some], dim=1)
    users = total[:, -1:]
    return torch.cat([total[:, :-1] / users.clamp_min(1), users], dim=1)
