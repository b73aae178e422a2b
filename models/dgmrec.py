"""DGMRec: disentangling and generating modalities for top-N recommendation with missing modalities.

After Kim et al., SIGIR 2025 (arXiv 2504.16352); equation numbers are the paper's. Symbols: items i, users u,
modalities m; z_i^m the centred, rank-reduced raw feature; g general and s specific part; p modality preference
("taste"); A^m the item graph; e_id the collaborative part. Where the paper leaves a gap:

* Any number of modalities: after encoding, everything is one `[M, n, d]` tensor; no branch names a modality.
* p_u^m = tanh(W_m e_u) of the *propagated* collaborative part, so that a user who arrives after training has one too.
* The parts' activation is tanh, the centred form of eq. 1's sigmoid: positive parts have a common direction, which
  makes every cosine of an alignment about 1 and leaves the ranking little to learn from them (`activation`).
* An unobserved cell enters as its generated feature, re-encoded by eq. 1, the same way as an observed one.
* Generated features never receive gradients from the ranking losses: the generator is to be true, and it is refreshed
  between epochs. It starts from a closed-form ridge over what training-free imputers know (`imputers.Evidence`, whose
  blocks for a cell never contain that cell) and learns the step away from it, trained by hiding observed cells.
* The collaborative embeddings are trained by ranking alone. Alignment (eq. 20) draws the modal parts towards them and
  not the other way, and the content losses read taste without bending it. L_ui (eq. 21) is off by default
  (`user_item`); what it is worth by itself has not been measured.
* In training, the positive item is taken out of its user's mean (eq. 6), since what is to be recommended is not in the
  history yet.
* The collaborative part of a never-seen item is predicted from its content; training drops the collaborative part of
  random items so that the prediction learns to stand in.
* Nothing random happens outside training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models import losses
from models.graph import Graph, InteractionGraphs, propagate
from models.imputers import Evidence, evidence_width
from models.modality import ModalBatch, ModalitySpec


class DGMRecConfig(BaseModel):
    """Settings of the model and weights of its losses; a misspelt name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    embedding_size: int = Field(64, ge=2, description="d")
    layers: int = Field(3, ge=1, description="LightGCN layers over the user-item graph")
    item_layers: int = Field(1, ge=1, description="L, layers over each modality's item graph (eq. 5)")
    neighbours: int = Field(10, ge=1, description="k of the item graphs (eq. 4)")
    rank: int = Field(128, ge=1, description="features wider than this are projected once to so many components")
    activation: Literal["tanh", "sigmoid"] = Field("tanh", description="of the parts (eq. 1)")
    gate: Literal["sigmoid", "tanh", "none"] = Field("sigmoid", description="how taste denoises parts (eq. 3)")
    modal: bool = Field(True, description="False leaves LightGCN alone, without any modality")
    imputation: Literal["generate", "mean", "nn"] = Field("generate", description="what fills unobserved cells")
    refine_every: int = Field(5, ge=1, description="epochs between graph refinements (eq. 16)")
    refine_weight: float = Field(0.6, ge=0, le=1, description="lambda of eq. 16; 0 keeps the first graph")
    temperature: float = Field(0.2, gt=0, description="of every InfoNCE")
    club: float = Field(0.01, ge=0, description="weight of L_club (eq. 7)")
    nce: float = Field(0.01, ge=0, description="weight of L_nce (eq. 8)")
    behaviour: float = Field(0.05, ge=0, description="weight of L_bm (eq. 20)")
    user_item: float = Field(0.0, ge=0, description="weight of L_ui (eq. 21)")
    reconstruction: float = Field(0.1, ge=0, description="weight of L_recon (eq. 11)")
    generation: float = Field(0.5, ge=0, description="weight of L_gen (eq. 14) and of asking back hidden cells")
    contrast_rows: int = Field(512, ge=2, description="at most so many rows of a batch enter an InfoNCE")
    cold: float = Field(1.0, ge=0, description="weight of predicting the collaborative part from content")
    cold_rate: float = Field(0.05, ge=0, lt=1, description="share of items whose collaborative part is dropped a step")
    hide_rate: float = Field(0.3, ge=0, lt=1, description="how often a hidden cell also loses other evidence")
    dropout: float = Field(0.2, ge=0, lt=1, description="of the generators' hidden units")
    l2: float = Field(1e-3, ge=0, description="weight of the embeddings' L2 norm")
    seed: int = 0


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
    predicted_id: Tensor  # [n, d], the collaborative part as content predicts it
    user_modal: Tensor  # [U, d]
    item_modal: Tensor  # [n, d]
    user_parts: Tensor  # [M, U, 2d]
    item_parts: Tensor  # [M, n, 2d], propagated
    parts: Tensor  # [M, n, 2d], before propagation
    taste: Tensor  # [M, n, d]
    cold: Tensor  # bool [n], items that stood in for new ones
    user_degree: Tensor  # [U], number of training interactions


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


class Projection(nn.Module):
    """A fixed affine map of a raw feature to its centred principal components, scaled to unit mean variance.

    Keeps centred cosines (up to the components cut off); `mean`, `components [dim, r]` and `scale` are fitted on
    observed rows only.
    """

    mean: Tensor
    components: Tensor
    scale: Tensor

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("components", torch.eye(dim, rank))
        self.register_buffer("scale", torch.ones(()))

    def fit(self, rows: Tensor) -> None:
        """Fit on observed rows `[k, dim]`; without any the map stays the identity."""
        if len(rows) == 0:
            return
        centred = (rows - rows.mean(dim=0)).double()
        if self.components.shape[1] < self.components.shape[0]:
            _, vectors = torch.linalg.eigh(centred.T @ centred)
            components = vectors.flip(1)[:, : self.components.shape[1]]
            # Eigenvectors have no sign of their own: the largest entry is made positive.
            sign = components.gather(0, components.abs().argmax(dim=0, keepdim=True)).sign()
            self.components.copy_(components * sign)
        projected = centred.float() @ self.components
        self.mean.copy_(rows.mean(dim=0))
        spread = projected.pow(2).mean().sqrt()
        self.scale.copy_(spread.where(spread > 1e-6, 1))  # rows that do not differ say nothing of the scale

    def forward(self, raw: Tensor) -> Tensor:
        """`[n, dim]` -> `[n, r]`."""
        return (raw - self.mean) @ self.components / self.scale

    def back(self, projected: Tensor) -> Tensor:
        """`[n, r]` -> `[n, dim]`."""
        return projected @ self.components.T * self.scale + self.mean


class Tower(nn.Module):
    """Everything that one modality has of its own."""

    ridge: Tensor
    mean_general: Tensor
    calibration: Tensor
    trust: Tensor

    def __init__(self, spec: ModalitySpec, config: DGMRecConfig, ranks: Mapping[str, int]) -> None:
        super().__init__()
        d, rank, width = config.embedding_size, ranks[spec.name], evidence_width(ranks, spec.name)
        hidden = 2 * d
        self.projection = Projection(spec.dim, rank)
        self.encode = nn.Linear(rank, d)  # enc_m
        self.specific = nn.Linear(rank, d)  # F_m
        self.taste = nn.Linear(d, d)  # W_m
        self.decode = _mlp(2 * d, hidden, rank)  # D_m
        self.general_generator = _mlp((len(ranks) - 1) * d + width, hidden, d)  # MLP_m
        self.specific_generator = _mlp(d + width, hidden, d)  # MLP'_m
        self.step = nn.Parameter(torch.full((rank,), -1.0))  # sigmoid: share of the way from the ridge to the decoder
        self.q = _mlp(d, hidden, 2 * d)  # CLUB's q(s | g): mean and log variance
        self.register_buffer("ridge", torch.zeros(width, rank))
        self.register_buffer("mean_general", torch.zeros(d))
        self.register_buffer("calibration", torch.zeros(Generation.FACTS))
        self.register_buffer("trust", torch.ones(()))  # share of the learned step that held-out cells bear out


@dataclass(frozen=True)
class Generation:
    """The generator's output for one modality, for all rows asked."""

    FACTS = 8

    general: Tensor  # [n, d]
    specific: Tensor  # [n, d]
    features: Tensor  # [n, r_m]
    facts: Tensor  # [n, FACTS], what the confidence is read from


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
        ranks = {spec.name: min(spec.dim, config.rank) for spec in specs}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.users = nn.Embedding(n_users, d)
            self.items = nn.Embedding(n_items, d)
            nn.init.normal_(self.users.weight, std=0.1)
            nn.init.normal_(self.items.weight, std=0.1)
            self.towers = nn.ModuleDict({spec.name: Tower(spec, config, ranks) for spec in specs})
            self.general = nn.Linear(d, d)  # F, shared by all modalities
            self.predict = _mlp(4 * d * max(count, 1), 2 * d, d)

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
        """Projected features by modality `[n, r_m]`, zero (the mean) where unobserved."""
        return {
            name: self.tower(name).projection(batch.features[name]).where(batch.observed[:, [column]], 0)
            for column, name in enumerate(self.names)
        }

    # --- collaborative part (LightGCN, eq. 18) -----------------------------------------------------------------

    def collaborate(self, interactions: InteractionGraphs) -> tuple[Tensor, Tensor]:
        """LightGCN: the mean over layers of the propagated embeddings. `[U, d]`, `[n, d]`."""
        user_layers, item_layers = self._propagated(interactions)
        return torch.stack(user_layers).mean(dim=0), torch.stack(item_layers).mean(dim=0)

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
        share = 1 / (self.config.layers + 1)
        user_scale, item_scale = (
            degree.clamp_min(1).rsqrt()[:, None] * share
            for degree in (interactions.user_degree, interactions.item_degree)
        )
        return {
            "user_residual": user_layers[0] * share,
            "user_message": torch.stack(user_layers[:-1]).sum(dim=0) * user_scale,
            "item_message": torch.stack(item_layers[:-1]).sum(dim=0) * item_scale,
        }

    # --- modality parts (eq. 1-6, 17) --------------------------------------------------------------------------

    def preference(self, user_id: Tensor) -> Tensor:
        """p_u^m from collaborative parts `[U, d]`: `[M, U, d]`."""
        return torch.stack([torch.tanh(self.tower(name).taste(user_id)) for name in self.names])

    def encode(self, features: Mapping[str, Tensor], taste: Tensor) -> Tensor:
        """General and specific parts, denoised by taste `[M, n, d]` (eq. 1, 3): `[M, n, 2d]`."""
        raw = torch.stack([self._raw_parts(name, features[name]) for name in self.names])  # [M, n, 2d]
        return raw * self._gate(taste)

    def _raw_parts(self, name: str, features: Tensor) -> Tensor:
        tower = self.tower(name)
        general = self.general(torch.tanh(tower.encode(features)))
        return self._activate(torch.cat([general, tower.specific(features)], dim=1))

    def _activate(self, parts: Tensor) -> Tensor:
        return torch.tanh(parts) if self.config.activation == "tanh" else torch.sigmoid(parts)

    def _gate(self, taste: Tensor) -> Tensor | float:
        if self.config.gate == "none":
            return 1.0
        gate = torch.sigmoid(taste) if self.config.gate == "sigmoid" else taste
        return torch.cat([gate, gate], dim=-1)

    def fuse(self, parts: Tensor) -> Tensor:
        """mean(mean_m g^m, s^1, ..., s^M) (eq. 17): `[M, n, 2d]` -> `[n, d]`."""
        general, specific = parts.chunk(2, dim=-1)
        return (general.mean(dim=0) + specific.sum(dim=0)) / (1 + len(parts))

    def predict_id(self, parts: Tensor, propagated: Tensor) -> Tensor:
        """The collaborative part that content predicts, from parts `[M, n, 2d]` before and after propagation."""
        predicted: Tensor = self.predict(torch.cat([*parts, *propagated], dim=1))
        return predicted

    def item_taste(self, preference: Tensor, interactions: InteractionGraphs, kin: Graph, cold: Tensor) -> Tensor:
        """p_i^m (eq. 2) `[M, n, d]`, with the neighbours' mean for `cold` items (bool `[n]`)."""
        count, _, d = preference.shape
        flat = preference.transpose(0, 1).flatten(1)  # [U, M*d]
        own = (interactions.item_mean @ flat).view(-1, count, d).transpose(0, 1)  # [M, n, d]
        return torch.where(cold[:, None], self.kin_taste(own, interactions.item_degree > 0, kin), own)

    def kin_taste(self, taste: Tensor, warm: Tensor, kin: Graph) -> Tensor:
        """Each item's taste `[M, n, d]` as its neighbours among the `warm` items (bool `[n]`) have it.

        An item without such neighbours takes the mean over all warm items.
        """
        count, n, d = taste.shape
        weight = warm.to(taste.dtype)[:, None]
        own = taste.transpose(0, 1).reshape(n, -1) * weight  # [n, M*d]
        everyone = own.sum(dim=0) / weight.sum().clamp_min(1)
        mixed = kin @ torch.cat([own, weight], dim=1)
        total, share = mixed[:, :-1], mixed[:, -1:]
        borrowed = torch.where(share > 0, total / share.clamp_min(1e-6), everyone)
        return borrowed.view(n, count, d).transpose(0, 1)

    def hidden_taste(
        self, out: Embeddings, side: ItemSide, name: str, *, others: Tensor, interactions: Tensor
    ) -> Tensor:
        """Taste `[M, n, d]` as it would be while the cells of a modality are hidden and so are, where the bool `[n]`
        say so, the items' other modalities or interactions. Without gradients."""
        taste, warm = out.taste.detach(), ~out.cold
        borrowed = self.kin_taste(taste, warm, side.kin_without[name])
        everyone = taste[:, warm].mean(dim=1, keepdim=True) if warm.any() else taste.mean(dim=1, keepdim=True)
        borrowed = torch.where(others[None, :, None], everyone, borrowed)
        return torch.where((interactions | out.cold)[None, :, None], borrowed, taste)

    def forward(
        self, interactions: InteractionGraphs, side: ItemSide | None, dropped: Tensor | None = None
    ) -> Embeddings:
        """All users and items (eq. 1-6, 17-18).

        Args:
            interactions: the training interactions.
            side: the catalogue's content; None only with `modal=False`.
            dropped: bool `[n]`, items to treat as if nobody had touched them; the untouched ones always are.
        """
        user_id, item_id = self.collaborate(interactions)
        cold = interactions.item_degree == 0
        if dropped is not None:
            cold = cold | dropped
        if side is None:
            none = user_id.new_zeros(0, 0, 0)
            zero_u, zero_i = torch.zeros_like(user_id), torch.zeros_like(item_id)
            return Embeddings(
                *(user_id, item_id, user_id, item_id, zero_i, zero_u, zero_i, none, none, none, none, cold),
                interactions.user_degree,
            )
        preference = self.preference(user_id)  # [M, U, d]
        taste = self.item_taste(preference, interactions, side.kin, cold)  # [M, n, d]
        parts = self.encode(side.features, taste)  # [M, n, 2d]
        propagated = torch.stack(
            [
                propagate(side.graphs[name], own, self.config.item_layers)
                for name, own in zip(self.names, parts, strict=True)
            ]
        )  # [M, n, 2d]
        count, items, width = propagated.shape
        user_parts = interactions.user_mean @ propagated.transpose(0, 1).reshape(items, -1)  # [U, M*2d]
        user_parts = user_parts.view(-1, count, width).transpose(0, 1)  # [M, U, 2d]
        item_modal, user_modal = self.fuse(propagated), self.fuse(user_parts)
        # What content is, is not for the prediction to bend: left free, its gradient swamps the ranking's.
        predicted = self.predict_id(parts.detach(), propagated.detach())  # [n, d]
        return Embeddings(
            users=user_id + user_modal,
            items=torch.where(cold[:, None], predicted, item_id) + item_modal,
            user_id=user_id,
            item_id=item_id,
            predicted_id=predicted,
            user_modal=user_modal,
            item_modal=item_modal,
            user_parts=user_parts,
            item_parts=propagated,
            parts=parts,
            taste=taste,
            cold=cold,
            user_degree=interactions.user_degree,
        )

    # --- generation (eq. 12-15) --------------------------------------------------------------------------------

    def generals(self, evidence: Evidence, taste: Tensor) -> Tensor:
        """g of the observed modalities, the modality's mean g elsewhere: `[M, n, d]`."""
        parts = self.encode(evidence.own, taste)
        means = torch.stack([self.tower(name).mean_general for name in self.names])[:, None]
        return torch.where(evidence.observed.T[..., None], parts[..., : self.config.embedding_size], means)

    def generate(
        self, name: str, evidence: Evidence, taste: Tensor, *, generator: torch.Generator | None = None
    ) -> Generation:
        """Generate one modality for every row of the evidence, whether it is observed or not.

        Args:
            name: the modality to generate; its own observed feature is not looked at.
            evidence: of `n` rows. taste: `[M, n, d]`.
            generator: training only; source of the dropout noise.
        """
        column = self.names.index(name)
        tower = self.tower(name)
        inputs = evidence.inputs(name)  # [n, width]
        generals = self.generals(evidence, taste)
        others = [generals[c] for c in range(len(self.names)) if c != column]
        general = self._activate(self._noisy(tower.general_generator, torch.cat([*others, inputs], dim=1), generator))
        specific = self._activate(
            self._noisy(tower.specific_generator, torch.cat([taste[column], inputs], dim=1), generator)
        )
        base = inputs @ tower.ridge  # [n, r]
        decoded = tower.decode(torch.cat([general, specific], dim=1))  # [n, r]
        features = base + tower.trust * torch.sigmoid(tower.step) * (decoded - base)
        length = features.norm(dim=1, keepdim=True) / features.shape[1] ** 0.5
        other_columns = [c for c in range(len(self.names)) if c != column]
        own = evidence.observed[:, other_columns].to(base.dtype).mean(dim=1, keepdim=True) if others else length * 0
        near = evidence.near_valid[:, [column]].to(base.dtype)
        shared = evidence.shared_valid[:, [column]].to(base.dtype)
        ones = torch.ones_like(length)
        facts = torch.cat([ones, length, own, near, shared, length * own, length * near, length * shared], dim=1)
        return Generation(general, specific, features, facts)

    def _noisy(self, mlp: nn.Module, inputs: Tensor, generator: torch.Generator | None) -> Tensor:
        assert isinstance(mlp, nn.Sequential)
        hidden = mlp[1](mlp[0](inputs))
        if generator is not None and self.config.dropout:
            keep = torch.rand(hidden.shape, generator=generator, device=generator.device).to(hidden.device)
            hidden = hidden * (keep >= self.config.dropout) / (1 - self.config.dropout)
        output: Tensor = mlp[2](hidden)
        return output

    def confidence(self, name: str, generation: Generation) -> Tensor:
        """Expected centred cosine between the generated and the true feature `[n]`, in 0..1."""
        return (generation.facts @ self.tower(name).calibration).clamp(0, 1)

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

    def ranking_losses(self, out: Embeddings, users: Tensor, positives: Tensor, negatives: Tensor) -> dict[str, Tensor]:
        """BPR, its regulariser and the alignments (eq. 20-23) of a batch of `[b]` triples, weighted."""
        c = self.config
        u, i, j = self._without_positive(out, users, positives), out.items[positives], out.items[negatives]
        parts = {
            "bpr": losses.bpr((u * i).sum(dim=1), (u * j).sum(dim=1)),
            "l2": c.l2
            * losses.l2(self.users.weight[users], self.items.weight[positives], self.items.weight[negatives]),
        }
        if not self.config.modal:
            return parts
        # The batch is in random order already, so that its head is a sample; all pairs of it would cost b^2.
        some_users, some_items = users[: c.contrast_rows], positives[: c.contrast_rows]
        known = torch.unique(some_items[~out.cold[some_items]])
        touched = torch.unique(some_users)
        parts["behaviour"] = c.behaviour * (
            losses.info_nce(out.user_id[touched].detach(), out.user_modal[touched], c.temperature)
            + losses.info_nce(out.item_id[known].detach(), out.item_modal[known], c.temperature)
        )
        parts["user_item"] = c.user_item * self._user_item(out, some_users, some_items)
        rows = out.cold & torch.zeros_like(out.cold).index_fill_(0, positives, value=True)
        target = out.item_id.detach()
        scale = target.pow(2).mean().clamp_min(1e-8)
        parts["cold"] = c.cold * losses.masked_mse(out.predicted_id, target, rows) / scale
        return parts

    def _without_positive(self, out: Embeddings, users: Tensor, positives: Tensor) -> Tensor:
        """e_u `[b, d]` with the positive taken out of the mean over the user's items (eq. 6).

        What is to be recommended is not in the history yet; left in, every positive would match itself.
        """
        if not self.config.modal:
            return out.users[users]
        degree = out.user_degree[users][:, None]
        rest = (out.user_modal[users] * degree - out.item_modal[positives]) / (degree - 1).clamp_min(1)
        return out.user_id[users] + rest

    def _user_item(self, out: Embeddings, users: Tensor, positives: Tensor) -> Tensor:
        """L_ui (eq. 21): general parts summed over modalities, and each modality's specific part."""
        u, i = out.user_parts[:, users], out.item_parts[:, positives]  # [M, b, 2d]
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
                mean, log_variance = self.q(name, general[have], frozen=True)
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
        chance = torch.rand(2, len(out.cold), generator=generator, device=generator.device).to(rows.device)
        others, interactions = chance < self.config.hide_rate
        taste = self.hidden_taste(out, side, name, others=others, interactions=interactions)[:, rows]
        hidden = side.evidence.select(rows).without(name, others=others[rows], interactions=interactions[rows])
        made = self.generate(name, hidden, taste, generator=generator)
        general, specific = truth.detach().chunk(2, dim=1)
        target = side.evidence.own[name][rows]
        return (
            losses.masked_mse(made.general, general, cells)
            + losses.masked_mse(made.specific, specific, cells)
            + losses.masked_mse(made.features, target, cells)
            + losses.cosine_gap(made.features, target, cells)
        )

    def q(self, name: str, general: Tensor, *, frozen: bool = False) -> tuple[Tensor, Tensor]:
        """CLUB's q(s | g): mean and log variance `[b, d]`. `frozen` keeps gradients out of q's own weights."""
        mlp = self.tower(name).q
        if frozen:
            weights = {key: value.detach() for key, value in mlp.named_parameters()}
            output = torch.func.functional_call(mlp, weights, (general,))
        else:
            output = mlp(general)
        mean, log_variance = output.chunk(2, dim=1)
        return mean, torch.tanh(log_variance)

    def q_loss(self, out: Embeddings, evidence: Evidence) -> Tensor:
        """Negative log likelihood of q on the present parts, for q's own optimiser."""
        total = out.parts.new_zeros(())
        for column, name in enumerate(self.names):
            have = evidence.observed[:, column]
            if have.any():
                general, specific = out.parts[column][have].detach().chunk(2, dim=1)
                total = total - losses.gaussian_log_likelihood(specific, *self.q(name, general)).mean()
        return total

    # --- closed forms ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_ridge(self, evidence: Evidence, cells: Tensor, penalties: Sequence[float] = (10, 100, 1000)) -> None:
        """Fit each modality's ridge regression from evidence to feature on `cells` (bool `[n, M]`).

        Rows enter four times: as they are, without other modalities, without interactions, without both. The penalty
        is chosen by the mean cosine on a fifth of the rows.
        """
        n = len(evidence)
        nothing, everything = torch.zeros(n, dtype=torch.bool), torch.ones(n, dtype=torch.bool)
        for column, name in enumerate(self.names):
            tower = self.tower(name)
            rows = cells[:, column].nonzero().squeeze(1)
            if len(rows) < 10:
                continue
            views = []
            for others in (nothing, everything):
                for interactions in (nothing, everything):
                    hidden = evidence.without(
                        name, others=others.to(rows.device), interactions=interactions.to(rows.device)
                    )
                    views.append(hidden.inputs(name)[rows])
            target = evidence.own[name][rows]
            held = torch.arange(len(rows), device=rows.device) % 5 == 0
            inputs = torch.stack(views)  # [4, k, width]
            best, best_penalty = -2.0, float(penalties[0])
            for penalty in penalties:
                weights = _ridge(inputs[:, ~held].flatten(0, 1), target[~held].repeat(4, 1), penalty)
                score = F.cosine_similarity(inputs[0, held] @ weights, target[held], dim=1).mean().item()
                if score > best:
                    best, best_penalty = score, float(penalty)
            tower.ridge.copy_(_ridge(inputs.flatten(0, 1), target.repeat(4, 1), best_penalty))

    @torch.no_grad()
    def update_mean_generals(self, out: Embeddings, observed: Tensor) -> None:
        """Record each modality's mean general part over the items that have it (stands in where one is missing)."""
        for column, name in enumerate(self.names):
            have = observed[:, column]
            if have.any():
                self.tower(name).mean_general.copy_(out.parts[column][have, : self.config.embedding_size].mean(dim=0))

    @torch.no_grad()
    def fit_calibration(self, name: str, facts: Tensor, cosines: Tensor) -> None:
        """Least squares from generation facts `[k, FACTS]` to the measured centred cosines `[k]`."""
        if len(cosines):
            self.tower(name).calibration.copy_(_ridge(facts, cosines[:, None], 1.0)[:, 0])


def _ridge(inputs: Tensor, target: Tensor, penalty: float) -> Tensor:
    left = inputs.double()
    gram = left.T @ left
    gram.diagonal().add_(penalty)
    weights: Tensor = torch.linalg.solve(gram, left.T @ target.double())
    return weights.to(inputs.dtype)
