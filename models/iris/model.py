"""Multimodal IRIS: item similarity with a relevance for every item of a history.

After "Multimodal Interest-Related Item Similarity model"; equation numbers are the paper's. History items i, targets j;
p_i, q_j latent factors; z_i^m the output of modality m's tower; a_ij the interest of i for j. Where the
paper leaves a gap, or another choice measured better:

* Any number of modalities: what the others share with one is the mean over them, which for two is eq. 7-8.
* The target is never part of its own history, in training and in testing.
* A target's item bias b_j, its popularity, is added to the similarities, as in NAIS and FISM (eq. 1).
* The interest of i for j depends on no user. So all users share one matrix of interests, and the sums over their
  histories are a product with it: no pair is computed twice (`Similarities`).
* p and q are those of several `members` side by side, which were trained apart from different initialisations.
* A missing modality enters as the feature that a generator made; as zero, its mean, in the ablation.
* An item without interactions in training has p, q and b predicted from its content, by ridge regression over the
  others.

With `form=paper` only the first two hold, and the sharing of interests where a step takes all users: one member, no
item bias, features at their raw width, divided by one number each modality, and zero for a missing modality. A new
item, of which the paper says nothing, has the mean factors of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor, nn

from models import linalg
from models.graph import Graph, Matrix
from models.iris import inference
from models.iris.config import IRISConfig
from models.modality import ModalitySpec
from models.projection import Projection


class Towers(nn.Module):
    """Signals of raw features -> hidden units, and what the interest-related network reads of them, knowledge shared
    between the modalities. (eq. 7-8)

    The second step is linear: each modality adds its part to all that is read, whatever the others bring. W_share being
    one matrix, what enters that step is of one width: in `form=paper` that of the shortest raw feature, which enters as
    it is ([768 -> d]), while longer ones have a hidden layer of so many units ([2048 -> 768 -> d]).
    """

    def __init__(self, config: IRISConfig, ranks: Mapping[str, int]) -> None:
        super().__init__()
        hidden, size = config.tower_hidden or min(ranks.values(), default=1), config.tower_size
        self.names = tuple(ranks)
        as_they_are = config.form == "paper"
        self.first = nn.ModuleDict(
            {name: nn.Linear(rank, hidden) for name, rank in ranks.items() if not (as_they_are and rank == hidden)}
        )
        self.own = nn.ModuleDict({name: nn.Linear(hidden, size, bias=False) for name in ranks})  # W_m2m
        self.share = nn.Linear(hidden, size, bias=False) if config.sharing and len(ranks) > 1 else None  # W_share

    def forward(self, signals: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Signals `[n, r_m]` and which of them are present, bool `[n, M]` -> hidden units `[M, n, h]`."""
        hidden = torch.stack([self._hidden(name, signals[name]) for name in self.names])
        return torch.where(present.T[..., None], hidden, 0.0)

    def _hidden(self, name: str, signal: Tensor) -> Tensor:
        return F.relu(self.first[name](signal)) if name in self.first else signal

    def read(self, by: Sequence[Tensor]) -> Tensor:
        """The matrices `[M, h, k]` that take each modality's hidden units to what is read, where each modality's output
        is read by a matrix `[k, s]`."""
        matrices = [matrix @ _matrix(self.own, name) for name, matrix in zip(self.names, by, strict=True)]
        if self.share is not None:
            others = (torch.stack(list(by)).sum(dim=0) - matrix for matrix in by)
            shared = (other @ self.share.weight / (len(by) - 1) for other in others)
            matrices = [matrix + from_others for matrix, from_others in zip(matrices, shared, strict=True)]
        return torch.stack(matrices).transpose(1, 2)


def _matrix(layers: nn.ModuleDict, name: str) -> Tensor:
    layer = layers[name]
    assert isinstance(layer, nn.Linear)
    return layer.weight


class IRIS(nn.Module):
    """Items' latent factors and content -> scores of targets for histories.

    Args:
        specs: the modalities of the data; `config.reads` may choose among them.
        n_items: number of items with latent factors of their own.
    """

    scales: Tensor
    mean_factors: Tensor
    from_content: Tensor
    warm: Tensor

    def __init__(self, config: IRISConfig, specs: Sequence[ModalitySpec], n_items: int) -> None:
        super().__init__()
        read = {spec.name: spec for spec in specs if config.reads is None or spec.name in config.reads}
        paper = config.form == "paper"
        ranks = {name: spec.dim if paper else min(config.rank, spec.dim) for name, spec in read.items()}
        d, k, s = config.members * config.embedding_size, config.interest_size, config.tower_size
        self.config, self.names, self.specs = config, tuple(read), tuple(read.values())
        self.p = nn.Parameter(torch.randn(n_items, d) * 0.03)
        self.q = nn.Parameter(torch.randn(n_items, d) * 0.03)
        self.item_bias = nn.Parameter(torch.zeros(n_items))
        self.projections = nn.ModuleDict(  # none in the paper's form, whose signals are the raw features by their scale
            {} if paper else {n: Projection(spec.dim, ranks[n], config.whitening) for n, spec in read.items()}
        )
        # Root mean squares of the modalities' entries, which only the paper's form reads.
        self.register_buffer("scales", torch.ones(len(read)), persistent=paper)
        self.towers = Towers(config, ranks)
        self.as_history = nn.ModuleDict({name: nn.Linear(s, k, bias=False) for name in read})  # W_1, W_3
        self.as_target = nn.ModuleDict({name: nn.Linear(s, k, bias=False) for name in read})  # W_2, W_4
        self.bias = nn.Parameter(torch.zeros(k))
        self.h = nn.Parameter(torch.zeros(k))  # all interests are equal at first
        # The factors of a cold item: [p; q; b] = mean_factors + content @ W.
        self.register_buffer("mean_factors", torch.zeros(2 * d + 1))
        self.register_buffer("from_content", torch.zeros(sum(ranks.values()) + len(ranks), 2 * d + 1))
        self.register_buffer("warm", torch.zeros(n_items, dtype=torch.bool))

    # --- content -----------------------------------------------------------------------------------------------------

    def fit_projections(self, features: Mapping[str, Tensor], observed: Tensor) -> None:
        """Fit each modality's projection, or else its scale, on its observed rows; raw `[n, dim_m]`, bool `[n, M]`,
        columns as `names`."""
        for column, name in enumerate(self.names):
            rows = features[name][observed[:, column]]
            if (projection := self.projection(name)) is not None:
                projection.fit(rows)
            elif rows.any():
                self.scales[column] = rows.square().mean().sqrt()

    def signals(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Signals `[n, r_m]` of raw features `[n, dim_m]`."""
        maps = zip(self.names, map(self.projection, self.names), self.scales, strict=True)
        return {name: features[name] / scale if one is None else one(features[name]) for name, one, scale in maps}

    def roles(self, signals: Mapping[str, Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        """What items bring into the interest-related network as history and as target, `[n, k]` each. (eq. 6)

        Args:
            signals: by modality `[n, r_m]`; rows that are not present hold anything finite.
            present: bool `[n, M]`, columns as in `names`.
        """
        history, target = self.shares(signals, present, self.readers()).sum(dim=0).chunk(2, dim=1)
        return history + self.bias, target

    def shares(self, signals: Mapping[str, Tensor], present: Tensor, readers: Tensor) -> Tensor:
        """What each modality brings into both roles, `[M, n, 2k]`, side by side and without the bias."""
        if not self.names:
            return self.bias.new_zeros(1, len(present), 2 * len(self.bias))
        return torch.bmm(self.towers(signals, present), readers)

    def readers(self) -> Tensor:
        """What reads both roles from the towers' hidden units, `[M, h, 2k]`."""
        if not self.names:
            return self.bias.new_zeros(0, 0, 2 * len(self.bias))
        both = [torch.cat([_matrix(self.as_history, name), _matrix(self.as_target, name)]) for name in self.names]
        return self.towers.read(both)

    # --- scores ------------------------------------------------------------------------------------------------------

    def similarities(self, history: Tensor, target: Tensor, columns: Tensor) -> Similarities:
        """Interests and similarities of all items for the targets in `columns` `[b]`, from the roles `[n, k]`."""
        interest, shift = inference.interest(history, target[columns], self.h, bounded=self.config.bounded)
        return Similarities(interest, shift, self.p @ self.q[columns].T, columns)

    def score(self, histories: Histories, similarities: Similarities) -> Tensor:
        """r_uj + b_j `[u, b]` of some targets, which are left out of the histories. (eq. 5)"""
        own = histories.own(similarities.columns)  # [u, b]
        total, weighted = similarities.over(histories, own)
        scores = self._normalised(weighted, total, histories.length - own)
        return scores * inference.rescaled(similarities.shift, self.config.beta) + self.item_bias[similarities.columns]

    def pair_score(self, histories: Histories, users: Tensor, targets: Tensor, roles: tuple[Tensor, Tensor]) -> Tensor:
        """r_uj + b_j `[s]` of `s` single pairs of a user and a target, which is left out of the history. (eq. 4-6)

        Args:
            roles: of all items, as history and as target, `[n, k]` each.
        """
        pair, item = histories.entries(users)
        other = item != targets[pair]
        pair, item = pair[other], item[other]
        target = targets[pair]
        f = inference.pair_strength(roles[0][item], roles[1][target], self.h)  # [entries]
        zeros = f.new_zeros(len(users))
        shift = zeros.scatter_reduce(0, pair, f.detach(), "amax", include_self=False)
        interest = inference.shifted(f, shift[pair])
        similarity = (self.p[item] * self.q[target]).sum(dim=1)
        total, weighted = zeros.index_add(0, pair, interest), zeros.index_add(0, pair, interest * similarity)
        length = zeros.index_add(0, pair, torch.ones_like(interest))
        scores = self._normalised(weighted, total, length) * inference.rescaled(shift, self.config.beta)
        return scores + self.item_bias[targets]

    def equal_score(self, histories: Histories, columns: Tensor) -> Tensor:
        """The same for equal interests: FISM. The factors are multiplied one after the other."""
        own, q = histories.own(columns), self.q[columns]
        weighted = (histories.rows @ self.p) @ q.T - own * (self.p[columns] * q).sum(dim=1)  # [u, b]
        length = histories.length - own
        return self._normalised(weighted, length, length) + self.item_bias[columns]

    def _normalised(self, weighted: Tensor, total: Tensor, length: Tensor) -> Tensor:
        return weighted / inference.normaliser(total, length, alpha=self.config.alpha, beta=self.config.beta)

    # --- cold items --------------------------------------------------------------------------------------------------

    def fit_prediction(self, signals: Mapping[str, Tensor], present: Tensor, warm: Tensor) -> None:
        """Fit the prediction of factors from content on the items with interactions, `warm` (bool `[n]`)."""
        self.warm.copy_(warm)
        factors = torch.cat([self.p, self.q, self.item_bias[:, None]], dim=1).detach()
        if warm.any():
            self.mean_factors.copy_(factors[warm].mean(dim=0))
        if self.config.form == "paper":
            return
        inputs = self._content(signals, present)
        ridge = linalg.cross_validated_ridge(inputs, factors, warm, base=self.mean_factors.expand_as(factors))
        self.from_content.copy_(ridge.weights)

    def _content(self, signals: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Signals of unit length where they are present, and flags: `[n, sum r_m + M]`."""
        flags = present.to(self.p.dtype)
        units = [linalg.unit(signals[name]) * flags[:, [column]] for column, name in enumerate(self.names)]
        return torch.cat([*units, flags], dim=1)

    def projection(self, name: str) -> Projection | None:
        """The projection of one modality; None in the paper's form."""
        if name not in self.projections:
            return None
        projection = self.projections[name]
        assert isinstance(projection, Projection)
        return projection


class Histories:
    """The items of `u` users' histories: a sparse matrix `[u, n]` of ones, or of weights."""

    def __init__(self, matrix: Matrix) -> None:
        self.rows = Graph(matrix)
        self.length = torch.from_numpy(np.asarray(self.rows.matrix.sum(axis=1), np.float32))[:, None]  # [u, 1]
        self._by_item = sp.csc_array(self.rows.matrix)

    def own(self, columns: Tensor) -> Tensor:
        """The entries of some items, `[u, b]`."""
        return torch.from_numpy(np.ascontiguousarray(self._by_item[:, columns.numpy()].toarray()))

    def entries(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """The entries of some users' histories, one after the other: whose of `users` each is, and its item."""
        starts, items = self.rows.matrix.indptr, self.rows.matrix.indices
        begin = starts[users.numpy()].astype(np.int64)
        count = starts[users.numpy() + 1] - begin
        owner = np.repeat(np.arange(len(count)), count)
        offset = np.arange(len(owner)) - (count.cumsum() - count)[owner]
        return torch.from_numpy(owner), torch.from_numpy(items[begin[owner] + offset].astype(np.int64))

    def select(self, users: Tensor) -> Histories:
        """The histories of these users alone."""
        return Histories(sp.csr_array(self.rows.matrix[users.numpy()]))

    def dropped(self, rate: float, rng: np.random.Generator) -> Histories:
        """Dropout of a random share of the entries; the others are scaled up."""
        if not rate:
            return self
        matrix = self.rows.matrix.copy()
        matrix.data *= (rng.random(matrix.nnz, dtype=np.float32) >= rate) / np.float32(1 - rate)
        matrix.eliminate_zeros()
        return Histories(matrix)


@dataclass(frozen=True)
class Similarities:
    """Interests and similarities of all items for some targets; they depend on no user.

    Attributes:
        interest: `[n, b]`, exp(f_ij - s_j).
        shift: `[b]`, s_j.
        similarity: `[n, b]`, p_i . q_j.
        columns: `[b]`, the targets' rows among the items.
    """

    interest: Tensor
    shift: Tensor
    similarity: Tensor
    columns: Tensor

    def over(self, histories: Histories, own: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the histories, without the targets' own entries `[u, b]`, of the interests and of the interests
        times similarities, `[u, b]` each."""
        place = torch.arange(len(self.columns))
        weighted = self.interest * self.similarity
        both = histories.rows @ torch.cat([self.interest, weighted], dim=1)  # [u, 2b]
        total, products = both[:, : len(place)], both[:, len(place) :]
        return total - own * self.interest[self.columns, place], products - own * weighted[self.columns, place]
