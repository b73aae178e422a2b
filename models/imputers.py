"""Training-free imputers: baselines, rungs of the fallback ladder, and what DGMRec's generator starts from.

`impute` fills a catalogue by any method of the table `IMPUTERS`; `Evidence` is what the generator reads.
All work on centred features (the modality's mean subtracted), so that zero is the modality mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from numpy.typing import NDArray
from scipy.sparse.linalg import svds
from torch import Tensor

from models import linalg as ridge
from models import vectors
from models.graph import Graph, InteractionGraphs, nearest
from models.modality import ModalBatch

NEIGHBOURS = 5
SHARED_FOLDS = 2  # see `folded_means`; with more, less of what leaves a mean stays unknown
EVIDENCE_NEIGHBOURS = 40
CLOSEST = 10  # of them, those that a guess follows by how near they are
HEAT_REST = 1e-5
HIDDEN = 0.1  # share of the observed cells that a setting is chosen on


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
        blocks = [vectors.unit((self.folded if name == target else self.shared)[name]) for name in self.names]
        return torch.cat([*blocks, self.factors, self.shared_valid.to(self.factors.dtype)], dim=1)

    def from_content(self, target: str) -> Tensor:
        """What an item's other modalities tell about `target`: `[n, content_width]`, as above.

        The target's own feature is not among them.
        """
        others = self._others(target)
        told = [*(self.own[self.names[column]] for column in others), self.near[target]]
        blocks = [vectors.unit(block) for block in told]
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
    binary = sp.csr_matrix(_binary(graphs).matrix.astype(np.float64))
    users, items = (degree.cpu().numpy().clip(1) for degree in (graphs.user_degree, graphs.item_degree))
    scaled = sp.diags(users**-0.25) @ binary @ sp.diags(items**-0.5)
    rank = min(size, *scaled.shape)
    left, values = _singular(scaled, rank, seed)
    factors = np.zeros((len(users), size), dtype=np.float32)
    factors[:, :rank] = left * (users[:, None] ** -0.25) * (values > 1e-6 * values.max(initial=1e-12))
    return torch.from_numpy(factors).to(graphs.user_degree.device)


def _singular(matrix: Any, rank: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The first left singular vectors `[rows, rank]` and values, by a randomised range finder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        coordinates = matrix.tocoo()
        sparse = torch.sparse_coo_tensor(
            torch.from_numpy(np.stack(coordinates.coords)),
            torch.from_numpy(coordinates.data),
            size=matrix.shape,
            check_invariants=False,
        ).coalesce()
        left, values, _ = torch.svd_lowrank(sparse, rank, niter=4)
    return left.numpy(), values.numpy()


def collaborative_factors(graphs: InteractionGraphs, users: Tensor) -> Tensor:
    """Items' collaborative factors `[n, q]`: the sum of their users' `[U, q]` at unit length, zero without users.

    With the factors of `user_factors` this is the direction of V S, whose inner products are the co-interaction
    cosines; a new user or item folds in by the same sum.
    """
    return vectors.unit(graphs.item_mean @ users)


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
    return vectors.unit(mean_of(values, found[:, :CLOSEST], weights)[0]) * cosine.square()[:, None]


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
    binary = _binary(graphs)
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
    binary = _binary(graphs)
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


def _binary(graphs: InteractionGraphs) -> Graph:
    """R `[users, items]`, one where a user has interacted with an item."""
    return Graph(sp.csr_array(graphs.user_mean.matrix.astype(bool).astype(np.float32)), graphs.user_mean.device)


# --- the table of imputers -------------------------------------------------------------------------------------------

Guesses: TypeAlias = dict[str, Tensor]
Features: TypeAlias = Mapping[str, Tensor]


class CoInteractions:
    """The item-item graph of co-interaction counts, C = R^T R without its diagonal `[n, n]`.

    C itself is never built: a product with it is two products with R, so that time and memory stay linear in the number
    of interactions however dense C is.
    """

    def __init__(self, graphs: InteractionGraphs) -> None:
        self._binary = _binary(graphs)
        self._users = graphs.item_degree[:, None]
        strength = self @ torch.ones_like(self._users)  # [n, 1]
        self.scale = strength.clamp_min(1).rsqrt() * (strength > 0)  # D^-1/2, [n, 1]

    def __matmul__(self, dense: Tensor) -> Tensor:
        return self._binary.transposed @ (self._binary @ dense) - self._users * dense

    def spread(self, dense: Tensor) -> Tensor:
        """One hop: D^-1/2 C D^-1/2 @ dense, zero for an item without neighbours."""
        return self.scale * (self @ (self.scale * dense))


def _no_guess(own: Features, observed: Tensor, graphs: InteractionGraphs | None) -> Guesses:
    del observed, graphs
    return {name: torch.zeros_like(block) for name, block in own.items()}


def _nearest_items(own: Features, observed: Tensor, graphs: InteractionGraphs | None) -> Guesses:
    del graphs
    return near_means(own, observed)[0]


def neighbour_means(own: Features, observed: Tensor, graphs: InteractionGraphs | None) -> Guesses:
    """NeighMean: sum_j C_ij x_j / sum_j C_ij over the neighbours j that have the modality."""
    if graphs is None:
        return _no_guess(own, observed, graphs)
    items, guesses = CoInteractions(graphs), {}
    for column, (name, block) in enumerate(own.items()):
        has = observed[:, [column]].to(block.dtype)
        mixed = items @ torch.cat([block, has], dim=1)
        total, weight = mixed[:, :-1], mixed[:, -1:]
        guesses[name] = torch.where(weight > 0, total / weight.clamp_min(1), 0)
    return guesses


def multi_hop(own: Features, observed: Tensor, graphs: InteractionGraphs | None, *, hops: int = 5) -> Guesses:
    """MultiHop: feature propagation, x <- D^-1/2 C D^-1/2 x with the observed cells put back after every hop."""
    if graphs is None:
        return _no_guess(own, observed, graphs)
    items, guesses = CoInteractions(graphs), {}
    for column, (name, block) in enumerate(own.items()):
        state = block
        for _ in range(hops):
            state = torch.where(observed[:, [column]], block, items.spread(state))
        guesses[name] = state
    return guesses


def personal_pagerank(
    own: Features, observed: Tensor, graphs: InteractionGraphs | None, *, restart: float = 0.1, hops: int = 10
) -> Guesses:
    """PersPageRank: x <- restart x_0 + (1 - restart) D^-1/2 C D^-1/2 x, `hops` times from x_0."""
    if graphs is None:
        return _no_guess(own, observed, graphs)
    items, guesses = CoInteractions(graphs), {}
    for name, block in own.items():
        state = block
        for _ in range(hops):
            state = restart * block + (1 - restart) * items.spread(state)
        guesses[name] = state
    return guesses


def heat(own: Features, observed: Tensor, graphs: InteractionGraphs | None, *, time: float = 5.0) -> Guesses:
    """Heat: exp(-time (I - D^-1/2 C D^-1/2)) x_0, as its series e^-time sum_k time^k / k! (D^-1/2 C D^-1/2)^k x_0 up to
    where the rest of the weights is below `HEAT_REST`."""
    if graphs is None:
        return _no_guess(own, observed, graphs)
    return _series(own, CoInteractions(graphs), _heat_weights(time))


def _heat_weights(time: float) -> list[float]:
    """e^-time time^k / k! for k = 0, 1, ..."""
    weights = [math.exp(-time)]
    while 1 - sum(weights) > HEAT_REST:
        weights.append(weights[-1] * time / len(weights))
    return weights


def _series(own: Features, items: CoInteractions, weights: Sequence[float]) -> Guesses:
    """sum_k weights_k (D^-1/2 C D^-1/2)^k x_0."""
    guesses = {}
    for name, block in own.items():
        total, state = weights[0] * block, block
        for weight in weights[1:]:
            state = items.spread(state)
            total = total + weight * state
        guesses[name] = total
    return guesses


@dataclass(frozen=True)
class Spread:
    """A catalogue's features as an imputer over the co-interaction graph has spread them, one hop short of its guess.

    The guess for an item is the mean of the rows of the items co-interacted with it, each as often as users have both.
    For an unobserved cell it has the direction of the imputer's own guess, which needs no more than the item's users to
    be told: so an item that came later can be guessed, too.

    Attributes:
        tables: by modality `[n, r_m]`.
        weights: `[n, M]`, what each row counts in the mean.
    """

    tables: Mapping[str, Tensor]
    weights: Tensor

    def guesses(self, graphs: InteractionGraphs | None) -> Guesses:
        """The guesses for the catalogue itself, by modality `[n, r_m]`; zero where there are none."""
        if graphs is None:
            return _no_guess(self.tables, self.weights > 0, graphs)
        items, guesses = CoInteractions(graphs), {}
        for column, (name, table) in enumerate(self.tables.items()):
            weight = self.weights[:, [column]]
            mixed = items @ torch.cat([weight * table, weight], dim=1)
            # Without neighbours what is left of the weight is an error of rounding.
            some = mixed[:, -1:] > 1e-5 * self.weights.max().clamp_min(1e-12)
            guesses[name] = torch.where(some, mixed[:, :-1] / mixed[:, -1:].where(some, 1), 0)
        return guesses


def _spread_by_scale(tables: Guesses, items: CoInteractions) -> Spread:
    return Spread(tables, items.scale.repeat(1, len(tables)))


def _spread_neighbours(own: Features, observed: Tensor, graphs: InteractionGraphs) -> Spread:
    del graphs
    return Spread(dict(own), observed.to(torch.float32))


def _spread_multi_hop(own: Features, observed: Tensor, graphs: InteractionGraphs, *, hops: int = 5) -> Spread:
    return _spread_by_scale(multi_hop(own, observed, graphs, hops=hops - 1), CoInteractions(graphs))


def _spread_pagerank(
    own: Features, observed: Tensor, graphs: InteractionGraphs, *, restart: float = 0.1, hops: int = 10
) -> Spread:
    tables = personal_pagerank(own, observed, graphs, restart=restart, hops=hops - 1)
    return _spread_by_scale(tables, CoInteractions(graphs))


def _spread_heat(own: Features, observed: Tensor, graphs: InteractionGraphs, *, time: float = 5.0) -> Spread:
    del observed
    items = CoInteractions(graphs)
    return _spread_by_scale(_series(own, items, _heat_weights(time)[1:]), items)


RANK, FACTORS = 128, 64


def regression(own: Features, observed: Tensor, graphs: InteractionGraphs | None) -> Guesses:
    """Ridge regression of each modality on everything else that is known of an item.

    Inputs are the other modalities, the mean over the items nearest by them, co-interaction means and one hop over the
    co-interaction graph of every modality, and factors of the training interactions. Wide modalities enter as their
    first principal components. What is judged is a cosine, so each block and the target enter with unit length. Two
    regressions a modality, for items that have another modality and for those that have none (`ridge.fit`).
    """
    bases = {name: _components(block[observed[:, column]]) for column, (name, block) in enumerate(own.items())}
    narrow = {name: block @ bases[name] for name, block in own.items()}
    near, _ = near_means(narrow, observed)
    shared, _ = shared_means(narrow, observed, graphs)
    interactions = list(shared.values())
    if graphs is not None:
        items = CoInteractions(graphs)
        interactions += [items.spread(block) for block in narrow.values()] + [item_factors(graphs, FACTORS)]
    guesses = {}
    for column, name in enumerate(own):
        others = [c for c in range(len(own)) if c != column]
        has_other = observed[:, others].any(dim=1)
        content = [*(block for other, block in narrow.items() if other != name), near[name]]
        full = _unit_blocks([*content, *interactions], observed[:, others])
        poor = _unit_blocks(interactions, observed[:, :0])
        target, rows = narrow[name], observed[:, column]
        guess = _ridge_guess(poor, target, rows)
        if int((rows & has_other).sum()) >= ridge.FEWEST_ROWS:
            guess = torch.where(has_other[:, None], _ridge_guess(full, target, rows & has_other), guess)
        guesses[name] = guess @ bases[name].T
    return guesses


def _unit_blocks(blocks: Sequence[Tensor], flags: Tensor) -> Tensor:
    """Blocks with rows of unit length side by side, then flags and a constant: `[n, width]`."""
    constant = torch.ones(len(flags), 1, device=flags.device)
    return torch.cat([*(vectors.unit(block) for block in blocks), flags.to(constant.dtype), constant], dim=1)


def item_factors(graphs: InteractionGraphs, rank: int) -> Tensor:
    """Collaborative factors `[n, k]`, the right singular vectors of D_u^-1/2 R D_i^-1/2 scaled by their singular values
    and to unit mean square; k is `rank`, or what the matrix has."""
    matrix = graphs.symmetric.matrix
    k = min(rank, min(matrix.shape) - 1)
    device = graphs.item_degree.device
    if k < 1 or not matrix.nnz:
        return torch.zeros(matrix.shape[1], 0, device=device)
    start = np.ones(min(matrix.shape))  # the solver would draw its own
    _, values, vectors = svds(matrix.astype(np.float64), k=k, v0=start)
    factors = vectors.T * values
    factors /= max(np.sqrt((factors**2).mean()), 1e-12)
    return torch.from_numpy(np.ascontiguousarray(factors, dtype=np.float32)).to(device)


def _components(rows: Tensor) -> Tensor:
    """The first principal directions `[d, r]` of centred rows; all of them where there are not more than `RANK`."""
    width = rows.shape[1]
    if width <= RANK:
        return torch.eye(width, device=rows.device)
    wide = rows.double()
    _, vectors = torch.linalg.eigh(wide.T @ wide)
    leading: Tensor = vectors[:, -RANK:].to(rows.dtype)
    return leading


def _ridge_guess(inputs: Tensor, features: Tensor, rows: Tensor) -> Tensor:
    """Fit on `rows` (bool `[n]`), answer for all: `[n, width]`, `[n, r]` -> `[n, r]`; zero where there are too few."""
    fitted = ridge.fit(inputs, vectors.unit(features), rows)
    answer: Tensor = inputs @ fitted.weights * features[rows].norm(dim=1).sum() / rows.sum().clamp_min(1)
    return answer


@dataclass(frozen=True)
class Imputer:
    """A way to guess cells, and the settings that `tuned` chooses among; the first is the default.

    `guess` reads centred features by modality `[n, d_m]` (zero where unobserved), the observed mask `[n, M]` and the
    training interactions, and answers centred features for all cells; zero, the mean, where it knows nothing. `spread`
    reads the same, where the imputer works over the co-interaction graph.
    """

    guess: Callable[..., Guesses]
    settings: tuple[Mapping[str, Any], ...] = ({},)
    spread: Callable[..., Spread] | None = None


IMPUTERS: Mapping[str, Imputer] = {
    "mean": Imputer(_no_guess),
    "nn": Imputer(_nearest_items),
    "neigh-mean": Imputer(neighbour_means, spread=_spread_neighbours),
    "multi-hop": Imputer(multi_hop, tuple({"hops": hops} for hops in (5, 1, 2, 10)), _spread_multi_hop),
    "pers-pagerank": Imputer(
        personal_pagerank, tuple({"restart": restart} for restart in (0.1, 0.3, 0.5, 0.9)), _spread_pagerank
    ),
    "heat": Imputer(heat, tuple({"time": time} for time in (5.0, 0.5, 1.0, 2.0)), _spread_heat),
    "ridge": Imputer(regression),
}
GRAPH_IMPUTERS = tuple(name for name, imputer in IMPUTERS.items() if imputer.spread is not None)


def impute(
    batch: ModalBatch,
    method: str,
    interactions: InteractionGraphs | None = None,
    setting: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Fill every unobserved cell of raw features by an imputer that needs no training loop.

    `mean` is the modality's mean; `nn` the mean of the 5 most similar items by the observed modalities (centred
    cosine). Over the item-item co-interaction graph, after Malitesta et al. (arXiv 2408.11767): `neigh-mean`,
    `multi-hop`, `pers-pagerank`, `heat`. `ridge`: regression on all of these kinds of evidence.
    Where a method knows nothing of a cell, it takes the modality's mean.

    Args:
        interactions: the training interactions; without any the methods over the graph know nothing.
        setting: one of `IMPUTERS[method].settings`; by default the first.

    Raises:
        ValueError: the method is unknown.
    """
    imputer = _imputer(method)
    means = observed_means(batch)
    own = _centred(batch, means)
    guesses = imputer.guess(own, batch.observed, interactions, **(imputer.settings[0] if setting is None else setting))
    return {
        name: means[name] + torch.where(batch.observed[:, [column]], block, guesses[name])
        for column, (name, block) in enumerate(own.items())
    }


def spread(
    own: Features, observed: Tensor, interactions: InteractionGraphs, method: str, setting: Mapping[str, Any]
) -> Spread:
    """Centred features by modality `[n, r_m]` (zero where unobserved, bool `[n, M]`) spread by one of `GRAPH_IMPUTERS`.

    Raises:
        ValueError: the method is unknown, or does not work over the graph.
    """
    spreading = _imputer(method).spread
    if spreading is None:
        raise ValueError(f"the imputer {method!r} does not spread features: use {', '.join(GRAPH_IMPUTERS)}")
    return spreading(own, observed, interactions, **setting)


def tuned(
    batch: ModalBatch, method: str, interactions: InteractionGraphs | None = None, *, seed: int = 0
) -> Mapping[str, Any]:
    """The imputer's setting that `chosen` takes.

    Raises:
        ValueError: the method is unknown.
    """
    return chosen(batch, [method], interactions, seed=seed)[1]


def chosen(
    batch: ModalBatch, methods: Sequence[str], interactions: InteractionGraphs | None = None, *, seed: int = 0
) -> tuple[str, Mapping[str, Any]]:
    """Which of the imputers, and which of its settings, has the best mean centred cosine on a tenth of the observed
    cells, hidden for it; the first of equals.

    They spread features over items, which commutes with projecting them: wide modalities are judged by their first
    principal components, for speed.

    Raises:
        ValueError: a method is unknown.
    """
    candidates = [(method, setting) for method in methods for setting in _imputer(method).settings]
    if len(candidates) == 1:
        return candidates[0]
    chance = torch.rand(batch.observed.shape, generator=torch.Generator().manual_seed(seed)).to(batch.observed.device)
    hidden = batch.observed & (chance < HIDDEN)
    seen = batch.masked(hidden)
    centred = _centred(batch, observed_means(seen))
    own = _centred(seen, observed_means(seen))
    bases = {name: _components(block[seen.observed[:, column]]) for column, (name, block) in enumerate(own.items())}
    narrow = {name: block @ bases[name] for name, block in own.items()}

    def quality(candidate: tuple[str, Mapping[str, Any]]) -> float:
        method, setting = candidate
        guesses = _imputer(method).guess(narrow, seen.observed, interactions, **setting)
        cosines = [
            F.cosine_similarity(guesses[name][rows], block[rows] @ bases[name], dim=1)
            for (name, block), rows in zip(centred.items(), hidden.T, strict=True)
        ]
        return float(torch.cat(cosines).mean())

    return max(candidates, key=quality)


def _imputer(method: str) -> Imputer:
    if method not in IMPUTERS:
        raise ValueError(f"unknown imputer {method!r}: use {', '.join(IMPUTERS)}")
    return IMPUTERS[method]


def _centred(batch: ModalBatch, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: (feature - means[name]).where(batch.observed[:, [column]], 0)
        for column, (name, feature) in enumerate(batch.features.items())
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
