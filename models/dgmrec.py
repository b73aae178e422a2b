"""DGMRec: disentangling and generating modalities for top-N recommendation with missing modalities.

After Kim et al., SIGIR 2025 (arXiv 2504.16352); equation numbers are the paper's. Symbols: items i, users u,
modalities m; z_i^m the signal of a raw feature (see `Projection`); g general and s specific part; p modality preference
("taste"); A^m the item graph; e_id the collaborative part. Where the paper leaves a gap:

* Any number of modalities: after encoding, everything is one `[M, n, d]` tensor; no branch names a modality.
* p_u^m = tanh(W_m e_u) of the *propagated* collaborative part, so that a user who arrives after training has one too.
* The parts' activation is tanh, the centred form of eq. 1's sigmoid: positive parts have a common direction, which
  makes every cosine of an alignment about 1 and leaves the ranking little to learn from them (`activation`).
* An unobserved cell enters as its generated feature, re-encoded by eq. 1, the same way as an observed one.
* Generated features never receive gradients from the ranking losses: the generator is to be true, and it is refreshed
  between epochs. What it is: `models.tower`.
* Users and items are compared by cosine and trained by a softmax over sampled negatives (`ranking`); `bpr` with inner
  products is the paper's form (eq. 19, 23).
* The collaborative embeddings are trained by ranking alone. Alignment (eq. 20) draws the modal parts towards them and
  not the other way, and the content losses read taste without bending it. L_ui (eq. 21) is off by default
  (`user_item`); what it is worth by itself has not been measured.
* The collaborative embeddings start from the leading singular vectors of the largest connected part of the interactions
  (`start`).
* In training, the positive item is taken out of what its user is made of (eq. 6 and LightGCN's last step), since what
  is to be recommended is not in the history yet (`leave_out`).
* A pair counts the less the longer its user's history is (`user_power`): measured is how users are served, and a few
  who touch everything would else be most of the training.
* Each modality's weight beside the collaborative part is learned from a small one on, so that content which tells
  nothing costs little.
* What an item's vector is once training is over, its users' word and its content's: `models.settling`.
* Nothing random happens outside training.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models import losses, vectors
from models.graph import Graph, InteractionGraphs, propagate, spectral_embedding
from models.imputers import Evidence
from models.modality import ModalBatch, ModalitySpec
from models.settling import Settling
from models.tower import EVIDENCE_SCALE, Generation, Tower

START = 0.1  # root mean square of the embeddings at first


class DGMRecConfig(BaseModel):
    """Settings of the model and weights of its losses; a misspelt name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    embedding_size: int = Field(64, ge=2, description="d")
    layers: int = Field(2, ge=1, description="LightGCN layers over the user-item graph")
    item_layers: int = Field(1, ge=1, description="L, layers over each modality's item graph (eq. 5)")
    neighbours: int = Field(10, ge=1, description="k of the item graphs (eq. 4)")
    rank: int = Field(128, ge=1, description="features wider than this are projected once to so many components")
    whitening: float = Field(0.5, ge=0, le=1, description="how far components come to one variance: 0 not, 1 all")
    factors: int = Field(256, ge=0, description="collaborative factors that the generator reads")
    activation: Literal["tanh", "sigmoid"] = Field("tanh", description="of the parts (eq. 1)")
    gate: Literal["sigmoid", "tanh", "none"] = Field("sigmoid", description="how taste denoises parts (eq. 3)")
    start: Literal["spectral", "random"] = Field("spectral", description="what the embeddings are at first")
    modal_weight: float = Field(0.1, gt=0, description="of each modality in eq. 18, before it is learned")
    modal: bool = Field(True, description="False leaves LightGCN alone, without any modality")
    imputation: Literal["generate", "mean", "nn", "neigh-mean", "multi-hop", "pers-pagerank", "heat"] = Field(
        "generate", description="what fills unobserved cells"
    )
    rung: Literal["auto", "neigh-mean", "multi-hop", "pers-pagerank", "heat"] = Field(
        "auto",
        description="imputer that a bundle falls back on for an item with users; auto: the best on held-out cells, "
        "or the imputation itself where it is one of these",
    )
    refine_every: int = Field(5, ge=1, description="epochs between graph refinements (eq. 16)")
    refine_weight: float = Field(0.6, ge=0, le=1, description="lambda of eq. 16; 0 keeps the first graph")
    ranking: Literal["softmax", "bpr"] = Field("softmax", description="loss and score: cosine softmax, or BPR (eq. 23)")
    negatives: int = Field(512, ge=1, description="items sampled a step as negatives of the softmax")
    ranking_temperature: float = Field(0.2, gt=0, description="of the softmax")
    leave_out: bool = Field(True, description="whether a positive is left out of its own user's history")
    user_power: float = Field(0.3, ge=0, le=1, description="a pair weighs its user's degree to minus this power")
    temperature: float = Field(0.2, gt=0, description="of every InfoNCE")
    club: float = Field(0.01, ge=0, description="weight of L_club (eq. 7)")
    nce: float = Field(0.01, ge=0, description="weight of L_nce (eq. 8)")
    behaviour: float = Field(0.2, ge=0, description="weight of L_bm (eq. 20)")
    user_item: float = Field(0.0, ge=0, description="weight of L_ui (eq. 21)")
    reconstruction: float = Field(0.1, ge=0, description="weight of L_recon (eq. 11)")
    generation: float = Field(0.5, ge=0, description="weight of L_gen (eq. 14) and of asking back hidden cells")
    contrast_rows: int = Field(512, ge=2, description="at most so many rows of a batch enter an InfoNCE")
    prior: float = Field(0.07, ge=0, description="of the mean item's users, how many an item's content speaks for")
    cold_neighbours: int = Field(80, ge=1, description="items by each modality that tell who will like a new one")
    cold_temperature: float = Field(0.1, gt=0, description="of their cosines: the lower, the more the nearest weigh")
    cold_popularity: float = Field(0.5, ge=0, le=2, description="each weighs its degree to this power")
    cold_kernel: float = Field(1.0, ge=0, description="weight of what these neighbours tell of a new item")
    cold_linear: float = Field(1.4, ge=0, description="weight of what a linear map of all items tells of it")
    cold_penalty: float = Field(8.0, gt=0, description="of that map")
    cold_spread: float = Field(1.25, ge=0, description="how far what it says of popularity sets new items apart")
    cold_lift: float = Field(0.6, ge=0, description="how much more popular a new item counts than its content says")
    hide_rate: float = Field(0.3, ge=0, lt=1, description="how often a hidden cell also loses other evidence")
    dropout: float = Field(0.2, ge=0, lt=1, description="of the generators' hidden units")
    closest: bool = Field(True, description="whether a guess follows the items nearest by another modality, if near")
    denoise: float = Field(2.0, ge=0, description="of what all else tells of an observed feature, where items settle")
    lean: float = Field(2.0, ge=0, description="of the real features nearest to an unsure guess, beside the guess")
    l2: float = Field(0.0, ge=0, description="weight of the embeddings' L2 norm")
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class ItemSide:
    """What the model reads about the catalogue, besides the interactions.

    Attributes:
        features: by modality `[n, r_m]`, projected; unobserved rows hold the present imputation.
        evidence: what is known of each cell without a trained model.
        graphs: by modality A^m `[n, n]`, directed: rows read from items that have the modality.
        kin: `[n, n]`, each item's nearest by what it has observed; empty for an item without anything.
        kin_without: by modality, the same by the other modalities: what the kin of an item is while its cell of this
            modality is hidden.
    """

    features: Mapping[str, Tensor]
    evidence: Evidence
    graphs: Mapping[str, Graph]
    kin: Graph
    kin_without: Mapping[str, Graph]


@dataclass(frozen=True)
class Embeddings:
    """One forward pass over all users and items. M leads, then rows, then components."""

    users: Tensor  # [U, d], e_u of eq. 18
    items: Tensor  # [n, d], e_i of eq. 18
    user_id: Tensor  # [U, d], LightGCN's
    item_id: Tensor  # [n, d], LightGCN's
    user_modal: Tensor  # [U, d]
    item_modal: Tensor  # [n, d]
    parts: Tensor  # [M, n, 2d], before propagation
    taste: Tensor  # [M, n, d]
    cold: Tensor  # bool [n], items nobody has touched
    user_degree: Tensor  # [U], number of training interactions
    user_residual: Tensor  # [U, d] and
    item_message: Tensor  # [n, d], see `fold_in_tables`


@dataclass(frozen=True)
class Learned:
    """What the learned generator alone makes of one modality, for all rows asked."""

    general: Tensor  # [n, d]
    specific: Tensor  # [n, d]
    signal: Tensor  # [n, r_m]


class DGMRec(nn.Module):
    """The model. Parameters and pure functions; the graphs come in as arguments, so that training over a whole
    catalogue and serving one new item are the same code."""

    def __init__(self, config: DGMRecConfig, specs: Sequence[ModalitySpec], n_users: int, n_items: int) -> None:
        super().__init__()
        self.config, self.specs = config, tuple(specs)
        self.names = tuple(spec.name for spec in specs)
        if not self.names and config.modal:
            raise ValueError("DGMRec needs at least one modality (or modal=False)")
        d, count = config.embedding_size, len(specs)
        self.ranks = ranks = {spec.name: min(spec.dim, config.rank) for spec in specs}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.users = nn.Embedding(n_users, d)
            self.items = nn.Embedding(n_items, d)
            nn.init.normal_(self.users.weight, std=START)
            nn.init.normal_(self.items.weight, std=START)
            self.towers = nn.ModuleDict({spec.name: Tower(spec, config, ranks, n_items) for spec in specs})
            self.weight = nn.Parameter(torch.full((count,), config.modal_weight).log())
            self.general = nn.Linear(d, d)  # F, shared by all modalities
        self.settling = Settling(config, ranks)

    def tower(self, name: str) -> Tower:
        """The parts of one modality."""
        tower = self.towers[name]
        assert isinstance(tower, Tower)
        return tower

    # --- features --------------------------------------------------------------------------------------------

    def fit_projections(self, batch: ModalBatch) -> None:
        """Fit each modality's projection on its observed rows."""
        for column, name in enumerate(self.names):
            self.tower(name).projection.fit(batch.features[name][batch.observed[:, column]])

    def project(self, batch: ModalBatch) -> dict[str, Tensor]:
        """Signals by modality `[n, r_m]`, zero (the mean) where unobserved."""
        return {
            name: self.tower(name).projection(batch.features[name]).where(batch.observed[:, [column]], 0)
            for column, name in enumerate(self.names)
        }

    def denoised(
        self, features: Mapping[str, Tensor], guesses: Mapping[str, Tensor], observed: Tensor
    ) -> dict[str, Tensor]:
        """Completed features `[n, r_m]` as touched items settle by them, see `Tower.denoised`."""
        return {
            name: self.tower(name).denoised(own, guesses[name], observed[:, column])
            for column, (name, own) in enumerate(features.items())
        }

    # --- collaborative part (LightGCN, eq. 18) -----------------------------------------------------------------

    @torch.no_grad()
    def start_from(self, interactions: InteractionGraphs) -> None:
        """Let the embeddings begin as the leading singular vectors of the interactions, if the configuration says so.

        Where data are dense, training then needs a fraction of the epochs.
        """
        if self.config.start == "random":
            return
        degrees = interactions.user_degree, interactions.item_degree
        found = spectral_embedding(interactions, self.config.embedding_size)
        for embedding, told, degree in zip((self.users, self.items), found, degrees, strict=True):
            # A small catalogue has fewer columns, and not all of it hangs together; what is left stays random.
            there = told.any(dim=0) & (told.any(dim=1) | (degree == 0))[:, None]
            embedding.weight.copy_(torch.where(there, told * START, embedding.weight))

    def collaborate(self, interactions: InteractionGraphs) -> tuple[Tensor, Tensor]:
        """LightGCN: the mean over layers of the propagated embeddings. `[U, d]`, `[n, d]`."""
        return _mean_of(self._propagated(interactions))

    def _propagated(self, interactions: InteractionGraphs) -> tuple[list[Tensor], list[Tensor]]:
        users, items = [self.users.weight], [self.items.weight]
        for _ in range(self.config.layers):
            step = interactions.symmetric @ items[-1], interactions.symmetric.transposed @ users[-1]
            users.append(step[0])
            items.append(step[1])
        return users, items

    @torch.no_grad()
    def fold_in_tables(self, interactions: InteractionGraphs) -> dict[str, Tensor]:
        """What reproduces LightGCN one node at a time, for histories that grow after training.

        e_u = user_residual_u + |H_u|^-1/2 sum_{i in H_u} item_message_i equals `collaborate` on the training
        histories, and likewise for items with `user_message`.
        """
        user_layers, item_layers = self._propagated(interactions)
        return {
            "user_residual": self._residual(user_layers),
            "user_message": self._message(user_layers, interactions.user_degree),
            "item_message": self._message(item_layers, interactions.item_degree),
        }

    def _residual(self, layers: list[Tensor]) -> Tensor:
        return layers[0] / len(layers)

    def _message(self, layers: list[Tensor], degree: Tensor) -> Tensor:
        """What a node tells each of its neighbours over all layers, but for their own degree."""
        return _sum(layers[:-1]) * (degree.clamp_min(1).rsqrt()[:, None] / len(layers))

    # --- modality parts (eq. 1-6, 17) --------------------------------------------------------------------------

    def preference(self, user_id: Tensor) -> Tensor:
        """p_u^m from collaborative parts `[U, d]`: `[M, U, d]`."""
        return torch.stack([torch.tanh(self.tower(name).taste(user_id)) for name in self.names])

    def encode(self, features: Mapping[str, Tensor], taste: Tensor) -> Tensor:
        """General and specific parts, denoised by taste `[M, n, d]` (eq. 1, 3): `[M, n, 2d]`."""
        raw = torch.stack([self._raw_parts(name, features[name]) for name in self.names])  # [M, n, 2, d]
        return (raw * self._gate(taste)[:, :, None]).flatten(2)

    def _raw_parts(self, name: str, features: Tensor) -> Tensor:
        return self._activate(torch.stack([self._general(name, features), self.tower(name).specific(features)], dim=1))

    def _general(self, name: str, features: Tensor) -> Tensor:
        general: Tensor = self.general(torch.tanh(self.tower(name).encode(features)))
        return general

    def _activate(self, parts: Tensor) -> Tensor:
        return torch.tanh(parts) if self.config.activation == "tanh" else torch.sigmoid(parts)

    def _gate(self, taste: Tensor) -> Tensor:
        if self.config.gate == "none":
            return torch.ones_like(taste)
        return torch.sigmoid(taste) if self.config.gate == "sigmoid" else taste

    def fuse(self, parts: Tensor) -> Tensor:
        """mean(mean_m g^m, s^1, ..., s^M) (eq. 17), each modality by its learned weight: `[M, n, 2d]` -> `[n, d]`."""
        return self.shares(parts).sum(dim=0)

    def shares(self, parts: Tensor) -> Tensor:
        """What each modality brings into `fuse`: `[M, n, d]`."""
        general, specific = parts.chunk(2, dim=-1)
        return (general / len(parts) + specific) / (1 + len(parts)) * self.weight.exp()[:, None, None]

    def item_taste(self, preference: Tensor, interactions: InteractionGraphs, kin: Graph, cold: Tensor) -> Tensor:
        """p_i^m (eq. 2) `[M, n, d]`, with the neighbours' mean for `cold` items (bool `[n]`)."""
        count, _, d = preference.shape
        flat = preference.transpose(0, 1).flatten(1)  # [U, M*d]
        own = (interactions.item_mean @ flat).view(-1, count, d).transpose(0, 1)  # [M, n, d]
        rows = cold.nonzero().squeeze(1)
        if not len(rows):
            return own
        # Borrowed taste is read, not trained: a few items' share of the gradient for another product over the graph.
        borrowed = self.kin_taste(own.detach(), (interactions.item_degree > 0) & ~cold, kin, rows)
        return own.index_copy(1, rows, borrowed.to(own.dtype))

    def kin_taste(self, taste: Tensor, warm: Tensor, kin: Graph, rows: Tensor) -> Tensor:
        """The taste `[M, k, d]` of some rows `[k]` as their neighbours among the `warm` items (bool `[n]`) have it,
        from everybody's `[M, n, d]`.

        An item without such neighbours takes the mean over all warm items.
        """
        count, n, d = taste.shape
        weight = warm.to(taste.dtype)[:, None]
        own = taste.transpose(0, 1).reshape(n, -1) * weight  # [n, M*d]
        everyone = own.sum(dim=0) / weight.sum().clamp_min(1)
        mixed = kin.rows(rows) @ torch.cat([own, weight], dim=1)
        total, share = mixed[:, :-1], mixed[:, -1:]
        borrowed = torch.where(share > 0, total / share.clamp_min(1e-6), everyone)
        return borrowed.view(len(rows), count, d).transpose(0, 1)

    def hidden_taste(
        self, out: Embeddings, side: ItemSide, name: str, rows: Tensor, *, others: Tensor, interactions: Tensor
    ) -> Tensor:
        """The taste `[M, k, d]` of some rows `[k]` as it would be while their cells of a modality are hidden and so
        are, where the bool `[k]` say so, their other modalities or interactions. Without gradients."""
        taste, warm = out.taste.detach(), ~out.cold
        borrowed = self.kin_taste(taste, warm, side.kin_without[name], rows)
        everyone = taste[:, warm].mean(dim=1, keepdim=True) if warm.any() else taste.mean(dim=1, keepdim=True)
        borrowed = torch.where(others[None, :, None], everyone, borrowed)
        return torch.where((interactions | out.cold[rows])[None, :, None], borrowed, taste[:, rows])

    def combine(self, collaborative: Tensor, modal: Tensor) -> Tensor:
        """e of eq. 18 `[n, d]`: the sum of both parts, at unit length where cosines are the scores."""
        total = collaborative + modal
        return vectors.unit(total) if self.config.ranking == "softmax" else total

    def forward(self, interactions: InteractionGraphs, side: ItemSide | None) -> Embeddings:
        """All users and items (eq. 1-6, 17-18), as training sees them: `settle` comes after it.

        Args:
            interactions: the training interactions.
            side: the catalogue's content; None only with `modal=False`.
        """
        layers = self._propagated(interactions)
        user_id, item_id = _mean_of(layers)
        residual, message = self._residual(layers[0]), self._message(layers[1], interactions.item_degree)
        cold = interactions.item_degree == 0
        if side is None:
            none = user_id.new_zeros(0, 0, 0)
            zero_u, zero_i = torch.zeros_like(user_id), torch.zeros_like(item_id)
            users, items = self.combine(user_id, zero_u), self.combine(item_id, zero_i)
            ids = (user_id, item_id, zero_u, zero_i)
            folded = (interactions.user_degree, residual, message)
            return Embeddings(users, items, *ids, none, none, cold, *folded)
        taste = self.item_taste(self.preference(user_id), interactions, side.kin, cold)  # [M, n, d]
        parts = self.encode(side.features, taste)  # [M, n, 2d]
        # Fusing (eq. 17) and propagating (eq. 5) are linear, so that the narrow sum is propagated and not every part.
        item_modal = torch.stack(
            [
                propagate(side.graphs[name], share, self.config.item_layers)
                for name, share in zip(self.names, self.shares(parts), strict=True)
            ]
        ).sum(dim=0)  # [n, d]
        user_modal = interactions.user_mean @ item_modal
        return Embeddings(
            users=self.combine(user_id, user_modal),
            items=self.combine(item_id, item_modal),
            user_id=user_id,
            item_id=item_id,
            user_modal=user_modal,
            item_modal=item_modal,
            parts=parts,
            taste=taste,
            cold=cold,
            user_degree=interactions.user_degree,
            user_residual=residual,
            item_message=message,
        )

    def propagated(self, side: ItemSide, parts: Tensor) -> Tensor:
        """Every part over its modality's item graph (eq. 5), `[M, n, 2d]`."""
        layers = self.config.item_layers
        return torch.stack(
            [propagate(side.graphs[name], own, layers) for name, own in zip(self.names, parts, strict=True)]
        )

    # --- generation (eq. 12-15) --------------------------------------------------------------------------------

    def known_general(self, name: str, evidence: Evidence, taste: Tensor) -> Tensor:
        """g of a modality where it is observed, the modality's mean g elsewhere: `[n, d]` under its taste `[n, d]`."""
        general = self._activate(self._general(name, evidence.own[name])) * self._gate(taste)
        observed = evidence.observed[:, [self.names.index(name)]]
        return torch.where(observed, general, self.tower(name).mean_general)

    def learned(
        self, name: str, evidence: Evidence, taste: Tensor, *, generator: torch.Generator | None = None
    ) -> Learned:
        """What the learned generator makes of one modality (eq. 12-13), as `generate` without its base.

        Args:
            generator: training only; source of the dropout noise.
        """
        column, tower = self.names.index(name), self.tower(name)
        generals = [self.known_general(other, evidence, taste[c]) for c, other in enumerate(self.names) if c != column]
        # Blocks of unit length have small entries; brought to the size of the parts beside them.
        inputs = torch.cat(tower.known(evidence), dim=1) * EVIDENCE_SCALE
        general = self._activate(self._noisy(tower.general_generator, torch.cat([*generals, inputs], dim=1), generator))
        specific = self._activate(
            self._noisy(tower.specific_generator, torch.cat([taste[column], inputs], dim=1), generator)
        )
        return Learned(general, specific, tower.decode(torch.cat([general, specific], dim=1)))

    def generate(self, name: str, evidence: Evidence, taste: Tensor) -> Generation:
        """Generate one modality for every row of the evidence, see `Tower.generation`.

        Args:
            name: the modality to generate; its own observed feature is not looked at.
            evidence: of `n` rows. taste: `[M, n, d]`.
        """
        tower = self.tower(name)
        return tower.generation(evidence, self.learned(name, evidence, taste).signal if tower.trust > 0 else None)

    def _noisy(self, mlp: nn.Module, inputs: Tensor, generator: torch.Generator | None) -> Tensor:
        assert isinstance(mlp, nn.Sequential)
        hidden = mlp[1](mlp[0](inputs))
        if generator is not None and self.config.dropout:
            keep = torch.rand(hidden.shape, generator=generator, device=generator.device).to(hidden.device)
            hidden = hidden * (keep >= self.config.dropout) / (1 - self.config.dropout)
        output: Tensor = mlp[2](hidden)
        return output

    @torch.no_grad()
    def complete(self, evidence: Evidence, taste: Tensor) -> dict[str, Tensor]:
        """Projected features by modality: observed where observed, generated elsewhere."""
        return {
            name: torch.where(
                evidence.observed[:, [column]], evidence.own[name], self.generate(name, evidence, taste).features
            )
            for column, name in enumerate(self.names)
        }

    # --- losses ------------------------------------------------------------------------------------------------

    def ranking_losses(
        self,
        out: Embeddings,
        users: Tensor,
        positives: Tensor,
        negatives: Tensor,
        interactions: InteractionGraphs,
        side: ItemSide | None,
        excluded: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The ranking loss, its regulariser and the alignments (eq. 20-23) of a batch of `[b]` pairs, weighted.

        Args:
            negatives: for `bpr` one item a pair `[b]`, for `softmax` some for all pairs `[s]`.
            interactions, side: as given to `forward`.
            excluded: bool `[b, s]`, negatives of the softmax that the user has touched.
        """
        c = self.config
        u, i, j = self._without_positive(out, users, positives), out.items[positives], out.items[negatives]
        weights = out.user_degree[users].pow(-c.user_power)
        touched = int((interactions.item_degree > 0).sum())

        def softmax(positive: Tensor, negative: Tensor, rows: slice) -> Tensor:
            others = None if excluded is None else excluded[rows]
            return losses.sampled_softmax(
                positive, negative, c.ranking_temperature, out_of=touched, excluded=others, weights=weights[rows]
            )

        if c.ranking == "bpr":
            ranking = losses.bpr((u * i).sum(dim=1), (u * j).sum(dim=1), weights)
        else:
            ranking = losses.of_scores(u, i, j, weights, softmax)
        parts = {
            "ranking": ranking,
            "l2": c.l2
            * losses.l2(self.users.weight[users], self.items.weight[positives], self.items.weight[negatives]),
        }
        if side is None:
            return parts
        # The batch is in random order already, so that its head is a sample; all pairs of it would cost b^2.
        some_users, some_items = users[: c.contrast_rows], positives[: c.contrast_rows]
        if c.behaviour:
            known = torch.unique(some_items)
            touched = torch.unique(some_users)
            parts["behaviour"] = c.behaviour * (
                losses.info_nce(out.user_id[touched].detach(), out.user_modal[touched], c.temperature)
                + losses.info_nce(out.item_id[known].detach(), out.item_modal[known], c.temperature)
            )
        if c.user_item:
            parts["user_item"] = c.user_item * self._user_item(out, some_users, some_items, interactions, side)
        return parts

    def _without_positive(self, out: Embeddings, users: Tensor, positives: Tensor) -> Tensor:
        """e_u `[b, d]` as it would be folded in from the user's other items.

        What is to be recommended is not in the history yet; left in, every positive would match itself.
        """
        if not self.config.leave_out:
            return out.users[users]
        degree = out.user_degree[users][:, None]
        others = (degree - 1).clamp_min(1)
        own = out.user_residual[users]
        told = ((out.user_id[users] - own) * degree.sqrt() - out.item_message[positives]) / others.sqrt()
        modal = (out.user_modal[users] * degree - out.item_modal[positives]) / others
        return self.combine(own + told, modal)

    def _user_item(
        self, out: Embeddings, users: Tensor, positives: Tensor, interactions: InteractionGraphs, side: ItemSide
    ) -> Tensor:
        """L_ui (eq. 21): general parts summed over modalities, and each modality's specific part."""
        propagated = self.propagated(side, out.parts)  # [M, n, 2d]
        history = interactions.user_mean.rows(users)
        u, i = torch.stack([history @ own for own in propagated]), propagated[:, positives]  # [M, b, 2d]
        user_general, user_specific = u.chunk(2, dim=-1)
        item_general, item_specific = i.chunk(2, dim=-1)
        total = losses.info_nce(user_general.sum(dim=0), item_general.sum(dim=0), self.config.temperature)
        for left, right in zip(user_specific, item_specific, strict=True):
            total = total + losses.info_nce(left, right, self.config.temperature)
        return total

    def content_losses(
        self, out: Embeddings, side: ItemSide, rows: Tensor, cells: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Disentangling, reconstruction and generation (eq. 7-8, 11, 14) over some items, weighted.

        Args:
            rows: `[b]` items. cells: bool `[n, M]`, observed cells the generator may learn from.
            generator: draws which evidence is hidden, and the noise.
        """
        c = self.config
        d = c.embedding_size
        evidence = side.evidence.select(rows)
        observed = evidence.observed
        # Taste comes from the collaborative embeddings. These losses only read it: they are a multiple of the ranking's
        # and would bend the embeddings towards themselves.
        parts = self.encode(evidence.own, out.taste[:, rows].detach())
        total = {key: parts.new_zeros(()) for key in ("club", "nce", "reconstruction", "generation")}
        for a, name in enumerate(self.names):
            tower, have = self.tower(name), observed[:, a]
            general, specific = parts[a].chunk(2, dim=1)
            if c.club:
                mean, log_variance = tower.club_q(general[have], frozen=True)
                total["club"] = total["club"] + c.club * losses.club(specific[have], mean, log_variance)
            for b in range(a + 1, len(self.names)):
                both = have & observed[:, b]
                total["nce"] = total["nce"] + c.nce * losses.info_nce(general[both], parts[b][both, :d], c.temperature)
            total["reconstruction"] = total["reconstruction"] + c.reconstruction * losses.masked_mse(
                tower.decode(parts[a]), evidence.own[name], have
            )
            if c.imputation == "generate" and c.generation:
                total["generation"] = total["generation"] + c.generation * self._ask_back(
                    name, out, side, rows, cells[rows, a], parts[a], generator
                )
        return total

    def _ask_back(
        self,
        name: str,
        out: Embeddings,
        side: ItemSide,
        rows: Tensor,
        cells: Tensor,
        truth: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """L_gen (eq. 14) and the distance to the true feature, with part of the evidence hidden at random."""
        chance = torch.rand(2, len(rows), generator=generator, device=generator.device).to(rows.device)
        others, interactions = chance < self.config.hide_rate
        taste = self.hidden_taste(out, side, name, rows, others=others, interactions=interactions)
        hidden = side.evidence.select(rows).without(name, others=others, interactions=interactions)
        made = self.learned(name, hidden, taste, generator=generator)
        general, specific = truth.detach().chunk(2, dim=1)
        target = side.evidence.own[name][rows]
        direction = self.tower(name).projection.direction
        return (
            losses.masked_mse(made.general, general, cells)
            + losses.masked_mse(made.specific, specific, cells)
            + losses.masked_mse(made.signal, target, cells)
            + losses.cosine_gap(direction(made.signal), direction(target), cells)
        )

    def q_loss(self, out: Embeddings, evidence: Evidence) -> Tensor:
        """Negative log likelihood of q on the present parts, for q's own optimiser."""
        total = out.parts.new_zeros(())
        for column, name in enumerate(self.names):
            have = evidence.observed[:, column]
            if have.any():
                general, specific = out.parts[column][have].detach().chunk(2, dim=1)
                total = total - losses.gaussian_log_likelihood(specific, *self.tower(name).club_q(general)).mean()
        return total

    # --- closed forms ------------------------------------------------------------------------------------------

    def fit_base(self, evidence: Evidence, cells: Tensor) -> dict[str, Tensor]:
        """Fit each modality's closed forms on `cells` (bool `[n, M]`), see `Tower.fit_base`: by modality the base
        `[n, r_m]` of touched items' cells."""
        return {name: self.tower(name).fit_base(evidence, cells[:, column]) for column, name in enumerate(self.names)}

    @torch.no_grad()
    def update_mean_generals(self, out: Embeddings, observed: Tensor) -> None:
        """Record each modality's mean general part over the items that have it (stands in where one is missing)."""
        for column, name in enumerate(self.names):
            have = observed[:, column]
            if have.any():
                self.tower(name).mean_general.copy_(out.parts[column][have, : self.config.embedding_size].mean(dim=0))


def _mean_of(layers: tuple[list[Tensor], list[Tensor]]) -> tuple[Tensor, Tensor]:
    users, items = layers
    return _sum(users) / len(users), _sum(items) / len(items)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    """Without stacking them first, which copies each there and back."""
    return functools.reduce(torch.add, tensors)
