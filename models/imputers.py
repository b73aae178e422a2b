"""Training-free imputers: baselines, and the fallbacks where the generator cannot answer.

`impute` fills a catalogue by any method of the table `IMPUTERS`; `propagate_features` makes what an imputer over the
co-interaction graph needs for items that come later. All work on centred features (the modality's mean
subtracted), so that zero is the modality mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor

from models import linalg
from models.evidence import co_interaction_means, neighbour_means
from models.graph import InteractionGraphs
from models.modality import ModalBatch

HEAT_REST = 1e-5
HIDDEN = 0.1  # share of the observed cells that a setting is chosen on
RANK, FACTORS = 128, 64  # of what `regression` reads

Imputations: TypeAlias = dict[str, Tensor]
Features: TypeAlias = Mapping[str, Tensor]


class CoInteractions:
    """The item-item graph of co-interaction counts, C = R^T R without its diagonal `[n, n]`.

    C itself is never built: a product with it is two products with R, so that time and memory stay linear in the number
    of interactions however dense C is.
    """

    def __init__(self, graphs: InteractionGraphs) -> None:
        self._binary = graphs.binary
        self._users = graphs.item_degree[:, None]
        strength = self @ torch.ones_like(self._users)  # [n, 1]
        self.scale = strength.clamp_min(1).rsqrt() * (strength > 0)  # D^-1/2, [n, 1]

    def __matmul__(self, dense: Tensor) -> Tensor:
        return self._binary.transposed @ (self._binary @ dense) - self._users * dense

    def hop(self, dense: Tensor) -> Tensor:
        """One hop: D^-1/2 C D^-1/2 @ dense, zero for an item without neighbours."""
        return self.scale * (self @ (self.scale * dense))


def _modality_means(own: Features, observed: Tensor, graphs: InteractionGraphs | None) -> Imputations:
    del observed, graphs
    return {name: torch.zeros_like(block) for name, block in own.items()}


def _nearest_items(own: Features, observed: Tensor, graphs: InteractionGraphs | None) -> Imputations:
    del graphs
    return neighbour_means(own, observed)[0]


def neigh_mean(own: Features, observed: Tensor, graphs: InteractionGraphs | None) -> Imputations:
    """NeighMean: sum_j C_ij x_j / sum_j C_ij over the neighbours j that have the modality."""
    if graphs is None:
        return _modality_means(own, observed, graphs)
    items, imputations = CoInteractions(graphs), {}
    for column, (name, block) in enumerate(own.items()):
        has = observed[:, [column]].to(block.dtype)
        mixed = items @ torch.cat([block, has], dim=1)
        total, weight = mixed[:, :-1], mixed[:, -1:]
        imputations[name] = torch.where(weight > 0, total / weight.clamp_min(1), 0)
    return imputations


def multi_hop(own: Features, observed: Tensor, graphs: InteractionGraphs | None, *, hops: int = 5) -> Imputations:
    """MultiHop: feature propagation, x <- D^-1/2 C D^-1/2 x with the observed cells put back after every hop."""
    if graphs is None:
        return _modality_means(own, observed, graphs)
    items, imputations = CoInteractions(graphs), {}
    for column, (name, block) in enumerate(own.items()):
        state = block
        for _ in range(hops):
            state = torch.where(observed[:, [column]], block, items.hop(state))
        imputations[name] = state
    return imputations


def personal_pagerank(
    own: Features, observed: Tensor, graphs: InteractionGraphs | None, *, restart: float = 0.1, hops: int = 10
) -> Imputations:
    """PersPageRank: x <- restart x_0 + (1 - restart) D^-1/2 C D^-1/2 x, `hops` times from x_0."""
    if graphs is None:
        return _modality_means(own, observed, graphs)
    items, imputations = CoInteractions(graphs), {}
    for name, block in own.items():
        state = block
        for _ in range(hops):
            state = restart * block + (1 - restart) * items.hop(state)
        imputations[name] = state
    return imputations


def heat(own: Features, observed: Tensor, graphs: InteractionGraphs | None, *, time: float = 5.0) -> Imputations:
    """Heat: exp(-time (I - D^-1/2 C D^-1/2)) x_0, as its series e^-time sum_k time^k / k! (D^-1/2 C D^-1/2)^k x_0 up to
    where the rest of the weights is below `HEAT_REST`."""
    if graphs is None:
        return _modality_means(own, observed, graphs)
    return _series(own, CoInteractions(graphs), _heat_weights(time))


def _heat_weights(time: float) -> list[float]:
    """e^-time time^k / k! for k = 0, 1, ..."""
    weights = [math.exp(-time)]
    while 1 - sum(weights) > HEAT_REST:
        weights.append(weights[-1] * time / len(weights))
    return weights


def _series(own: Features, items: CoInteractions, weights: Sequence[float]) -> Imputations:
    """sum_k weights_k (D^-1/2 C D^-1/2)^k x_0."""
    imputations = {}
    for name, block in own.items():
        total, state = weights[0] * block, block
        for weight in weights[1:]:
            state = items.hop(state)
            total = total + weight * state
        imputations[name] = total
    return imputations


@dataclass(frozen=True)
class PropagatedFeatures:
    """A catalogue's features as an imputer over the co-interaction graph has propagated them, one hop short of its
    imputations.

    The imputation of an item is the mean of the rows of the items co-interacted with it, each as often as users have
    both. For an unobserved cell it has the direction of the imputer's own imputation, and needs no more than the item's
    users: an item that came later can be imputed, too.

    Attributes:
        tables: by modality `[n, r_m]`.
        weights: `[n, M]`, what each row counts in the mean.
    """

    tables: Mapping[str, Tensor]
    weights: Tensor

    def imputations(self, graphs: InteractionGraphs | None) -> Imputations:
        """The imputations of the catalogue itself, by modality `[n, r_m]`; zero where there are none."""
        if graphs is None:
            return _modality_means(self.tables, self.weights > 0, graphs)
        items, imputations = CoInteractions(graphs), {}
        for column, (name, table) in enumerate(self.tables.items()):
            weight = self.weights[:, [column]]
            mixed = items @ torch.cat([weight * table, weight], dim=1)
            # Without neighbours what is left of the weight is an error of rounding.
            connected = mixed[:, -1:] > 1e-5 * self.weights.max().clamp_min(1e-12)
            imputations[name] = torch.where(connected, mixed[:, :-1] / mixed[:, -1:].where(connected, 1), 0)
        return imputations


def _weighted_by_scale(tables: Imputations, items: CoInteractions) -> PropagatedFeatures:
    return PropagatedFeatures(tables, items.scale.repeat(1, len(tables)))


def _propagated_neighbours(own: Features, observed: Tensor, graphs: InteractionGraphs) -> PropagatedFeatures:
    del graphs
    return PropagatedFeatures(dict(own), observed.to(torch.float32))


def _propagated_multi_hop(
    own: Features, observed: Tensor, graphs: InteractionGraphs, *, hops: int = 5
) -> PropagatedFeatures:
    return _weighted_by_scale(multi_hop(own, observed, graphs, hops=hops - 1), CoInteractions(graphs))


def _propagated_pagerank(
    own: Features, observed: Tensor, graphs: InteractionGraphs, *, restart: float = 0.1, hops: int = 10
) -> PropagatedFeatures:
    tables = personal_pagerank(own, observed, graphs, restart=restart, hops=hops - 1)
    return _weighted_by_scale(tables, CoInteractions(graphs))


def _propagated_heat(
    own: Features, observed: Tensor, graphs: InteractionGraphs, *, time: float = 5.0
) -> PropagatedFeatures:
    del observed
    items = CoInteractions(graphs)
    return _weighted_by_scale(_series(own, items, _heat_weights(time)[1:]), items)


def regression(own: Features, observed: Tensor, graphs: InteractionGraphs | None) -> Imputations:
    """Ridge regression of each modality on everything else that is known of an item.

    Inputs are the other modalities, the mean over the items nearest by them, co-interaction means and one hop over the
    co-interaction graph of every modality, and factors of the training interactions. Wide modalities enter as their
    first principal components. What is judged is a cosine, so each block and the target enter with unit length. Two
    regressions a modality, for items that have another modality and for those that have none.
    """
    bases = {name: _components(block[observed[:, column]]) for column, (name, block) in enumerate(own.items())}
    narrow = {name: block @ bases[name] for name, block in own.items()}
    neighbours, _ = neighbour_means(narrow, observed)
    means, _ = co_interaction_means(narrow, observed, graphs)
    interactions = list(means.values())
    if graphs is not None:
        items = CoInteractions(graphs)
        interactions += [items.hop(block) for block in narrow.values()] + [item_factors(graphs, FACTORS)]
    imputations = {}
    for column, name in enumerate(own):
        others = [c for c in range(len(own)) if c != column]
        has_other = observed[:, others].any(dim=1)
        content = [*(block for other, block in narrow.items() if other != name), neighbours[name]]
        full = _unit_blocks([*content, *interactions], observed[:, others])
        poor = _unit_blocks(interactions, observed[:, :0])
        target, rows = narrow[name], observed[:, column]
        predicted = _ridge_predictions(poor, target, rows)
        if int((rows & has_other).sum()) >= linalg.FEWEST_ROWS:
            predicted = torch.where(has_other[:, None], _ridge_predictions(full, target, rows & has_other), predicted)
        imputations[name] = predicted @ bases[name].T
    return imputations


def _unit_blocks(blocks: Sequence[Tensor], flags: Tensor) -> Tensor:
    """Blocks with rows of unit length side by side, then flags and a constant: `[n, width]`."""
    constant = torch.ones(len(flags), 1, device=flags.device)
    return torch.cat([*(linalg.unit(block) for block in blocks), flags.to(constant.dtype), constant], dim=1)


def item_factors(graphs: InteractionGraphs, rank: int) -> Tensor:
    """Collaborative factors `[n, k]`, the right singular vectors of D_u^-1/2 R D_i^-1/2 scaled by their singular values
    and to unit mean square; k is `rank`, or what the matrix has."""
    matrix = graphs.symmetric.matrix
    k = min(rank, min(matrix.shape) - 1)
    device = graphs.item_degree.device
    if k < 1 or not matrix.nnz:
        return torch.zeros(matrix.shape[1], 0, device=device)
    _, values, right = linalg.truncated_svd(matrix, k)
    factors = right.T * values
    factors /= max(np.sqrt((factors**2).mean()), 1e-12)
    return torch.from_numpy(np.ascontiguousarray(factors, dtype=np.float32)).to(device)


def _components(rows: Tensor) -> Tensor:
    """The first principal directions `[d, r]` of centred rows; all of them where there are not more than `RANK`."""
    width = rows.shape[1]
    if width <= RANK:
        return torch.eye(width, device=rows.device)
    wide = rows.double()
    axes: Tensor = linalg.principal_axes(wide.T @ wide, RANK)[1].to(rows.dtype)
    return axes


def _ridge_predictions(inputs: Tensor, features: Tensor, rows: Tensor) -> Tensor:
    """Fit on `rows` (bool `[n]`), answer for all: `[n, width]`, `[n, r]` -> `[n, r]`; zero where there are too few."""
    fitted = linalg.cross_validated_ridge(inputs, linalg.unit(features), rows)
    answer: Tensor = inputs @ fitted.weights * features[rows].norm(dim=1).sum() / rows.sum().clamp_min(1)
    return answer


@dataclass(frozen=True)
class Imputer:
    """A way to fill missing cells, and the settings that `tuned` chooses among; the first is the default.

    `impute` reads centred features by modality `[n, d_m]` (zero where unobserved), the observed mask `[n, M]` and the
    training interactions, and answers centred features for all cells; zero, the mean, where it knows nothing.
    `propagate` reads the same, where the imputer works over the co-interaction graph.
    """

    impute: Callable[..., Imputations]
    settings: tuple[Mapping[str, Any], ...] = ({},)
    propagate: Callable[..., PropagatedFeatures] | None = None


IMPUTERS: Mapping[str, Imputer] = {
    "mean": Imputer(_modality_means),
    "nn": Imputer(_nearest_items),
    "neigh-mean": Imputer(neigh_mean, propagate=_propagated_neighbours),
    "multi-hop": Imputer(multi_hop, tuple({"hops": hops} for hops in (5, 1, 2, 10)), _propagated_multi_hop),
    "pers-pagerank": Imputer(
        personal_pagerank, tuple({"restart": restart} for restart in (0.1, 0.3, 0.5, 0.9)), _propagated_pagerank
    ),
    "heat": Imputer(heat, tuple({"time": time} for time in (5.0, 0.5, 1.0, 2.0)), _propagated_heat),
    "ridge": Imputer(regression),
}
GRAPH_IMPUTERS = tuple(name for name, imputer in IMPUTERS.items() if imputer.propagate is not None)


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
    chosen_setting = imputer.settings[0] if setting is None else setting
    imputations = imputer.impute(own, batch.observed, interactions, **chosen_setting)
    return {
        name: means[name] + torch.where(batch.observed[:, [column]], block, imputations[name])
        for column, (name, block) in enumerate(own.items())
    }


def propagate_features(
    own: Features, observed: Tensor, interactions: InteractionGraphs, method: str, setting: Mapping[str, Any]
) -> PropagatedFeatures:
    """Centred features by modality `[n, r_m]` (zero where unobserved, bool `[n, M]`) propagated by one of
    `GRAPH_IMPUTERS`.

    Raises:
        ValueError: the method is unknown, or does not work over the graph.
    """
    propagate = _imputer(method).propagate
    if propagate is None:
        raise ValueError(f"the imputer {method!r} does not propagate features: use {', '.join(GRAPH_IMPUTERS)}")
    return propagate(own, observed, interactions, **setting)


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

    The imputers propagate features over items, which commutes with projecting them: wide modalities are judged by
    their first principal components, for speed.

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
        imputations = _imputer(method).impute(narrow, seen.observed, interactions, **setting)
        cosines = [
            F.cosine_similarity(imputations[name][rows], block[rows] @ bases[name], dim=1)
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
