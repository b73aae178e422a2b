"""DGMRec: disentangling and generating modalities for top-N recommendation with missing modalities.

After Kim et al., SIGIR 2025 (arXiv 2504.16352); equation numbers are the paper's. Symbols: items i, users u,
modalities m; z_i^m the signal of a raw feature (see `Projection`); g general and s specific part; p modality
preference; A^m the item graph; e_id the collaborative part. The arithmetic is `models.dgmrec.inference`, which a
service computes with as well. Where the paper leaves a gap:

* Any number of modalities: after encoding, everything is one `[M, n, d]` tensor; no branch names a modality.
* p_u^m = tanh(W_m e_u) of the *propagated* collaborative part, so that a user who arrives after training has one too.
* The parts' activation is tanh, the centred form of eq. 1's sigmoid: positive parts have a common direction, which
  makes every cosine of an alignment about 1 and leaves the ranking little to learn from them (`activation`).
* An unobserved cell enters as its generated feature, re-encoded by eq. 1, the same way as an observed one.
* Generated features never receive gradients from the ranking losses: the generator is to be true, and it is refreshed
  between epochs. What it is: `models.dgmrec.generator`.
* Users and items are compared by cosine and trained by a softmax over sampled negatives (`ranking`); `bpr` with inner
  products is the paper's form (eq. 19, 23).
* The collaborative embeddings are trained by ranking alone. Alignment (eq. 20) draws the modal parts towards them and
  not the other way, and the content losses read preferences without bending them. L_ui (eq. 21) is off by default
  (`user_item`); what it is worth by itself has not been measured.
* The collaborative embeddings start from the leading singular vectors of the largest connected part of the interactions
  (`initialisation`).
* In training, the positive item is taken out of what its user is made of (eq. 6 and LightGCN's last step), since what
  is to be recommended is not in the history yet (`leave_positive_out`).
* A pair counts the less the longer its user's history is (`user_power`): measured is how users are served, and a few
  with very long histories would else be most of the training.
* Each modality's weight beside the collaborative part is learned from a small one on, so that content which says
  nothing costs little.
* The vectors that items are ranked by once training is over, from their users and their content:
  `models.dgmrec.cold_start`.
* Nothing random happens outside training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from models import losses
from models.dgmrec import collaborative, inference
from models.dgmrec.cold_start import ColdStart
from models.dgmrec.collaborative import Collaborative, Histories
from models.dgmrec.config import DGMRecConfig
from models.dgmrec.generator import Generation, ModalityTower
from models.dgmrec.inference import Towers
from models.dgmrec.linear import messages_and_targets
from models.evidence import Evidence
from models.graph import Graph, InteractionGraphs, propagate, spectral_embedding
from models.modality import ModalBatch, ModalitySpec
from models.words import CatalogueWords

INITIAL_SIZE = 0.1  # root mean square of the embeddings at first
HIDE_RATE = 0.3  # how often a hidden cell also loses other evidence


@dataclass(frozen=True)
class ItemContent:
    """What the model reads about the catalogue, besides the interactions.

    Attributes:
        features: by modality `[n, r_m]`, projected; unobserved rows hold the present imputation.
        evidence: what is known of each cell without a trained model.
        graphs: by modality A^m `[n, n]`, directed: rows read from items that have the modality.
        neighbour_graph: `[n, n]`, each item's nearest by what it has observed; empty for an item without anything.
        neighbour_graph_without: by modality, the same by the other modalities: the neighbours of an item while its cell
            of this modality is hidden.
        words: of the items' texts, where there are any.
    """

    features: Mapping[str, Tensor]
    evidence: Evidence
    graphs: Mapping[str, Graph]
    neighbour_graph: Graph
    neighbour_graph_without: Mapping[str, Graph]
    words: CatalogueWords | None = None


@dataclass(frozen=True)
class Embeddings:
    """One forward pass over all users and items. M leads, then rows, then components."""

    users: Tensor  # [U, d], e_u of eq. 18
    items: Tensor  # [n, d], e_i of eq. 18
    user_id: Tensor  # [U, d], the collaborative part
    item_id: Tensor  # [n, d], likewise
    user_modal: Tensor  # [U, d]
    item_modal: Tensor  # [n, d]
    parts: Tensor  # [M, n, 2d], before propagation
    preference: Tensor  # [M, n, d], p_i^m of items
    cold: Tensor  # bool [n], items without interactions
    histories: Histories  # what the users are made of
    user_residual: Tensor  # [U, d] and
    item_message: Tensor  # [n, d], see `Collaborative`


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
        if len(self.names) == 1 and config.generator == "parts":
            raise ValueError("generator=parts needs two modalities: one is generated from the other (eq. 12)")
        d = config.embedding_size
        self.ranks = ranks = {
            spec.name: spec.dim if config.raw_features else min(spec.dim, config.rank) for spec in specs
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            # The one thing that is propagated beside the items: users, or what items add to them.
            name, count = ("users", n_users) if config.collaborative == "lightgcn" else ("messages", n_items)
            self.add_module(name, nn.Embedding(count, d))
            self.items = nn.Embedding(n_items, d)
            for embedding in self._embeddings:
                nn.init.normal_(embedding.weight, std=INITIAL_SIZE)
            self.towers = nn.ModuleDict({spec.name: ModalityTower(spec, config, ranks, n_items) for spec in specs})
            self.weight = nn.Parameter(
                torch.full((len(specs),), config.modal_weight).log(), requires_grad=config.learn_modal_weight
            )
            if config.preference == "free":
                self.preferences = nn.Parameter(torch.randn(len(specs), n_users, d) * INITIAL_SIZE)
            self.general = nn.Linear(d, d)  # F, shared by all modalities
        self.cold_start = ColdStart(config, ranks)

    def tower(self, name: str) -> ModalityTower:
        """The parts of one modality."""
        tower = self.towers[name]
        assert isinstance(tower, ModalityTower)
        return tower

    @property
    def _towers(self) -> Towers:
        return cast(Towers, self.towers)

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

    def shrunk_features(
        self, features: Mapping[str, Tensor], base: Mapping[str, Tensor], observed: Tensor
    ) -> dict[str, Tensor]:
        """Completed features `[n, r_m]` as warm items' vectors are predicted from them, see
        `ModalityTower.shrunk_features`."""
        return {
            name: self.tower(name).shrunk_features(own, base[name], observed[:, column])
            for column, (name, own) in enumerate(features.items())
        }

    # --- collaborative part (eq. 18) ---------------------------------------------------------------------------

    @property
    def _embeddings(self) -> tuple[nn.Embedding, nn.Embedding]:
        """Users or messages, and items."""
        first = self.get_submodule("users" if self.config.collaborative == "lightgcn" else "messages")
        assert isinstance(first, nn.Embedding)
        return first, self.items

    @torch.no_grad()
    def initialise(self, interactions: InteractionGraphs) -> None:
        """Let the embeddings begin as the leading singular vectors of the interactions, if the configuration says so;
        those of the linear form are set for good.

        Where data are dense, training then needs a fraction of the epochs.
        """
        c, (first, items) = self.config, self._embeddings
        if c.initialisation == "spectral" and c.collaborative != "linear":
            of_users, of_items = spectral_embedding(interactions, c.embedding_size)
            given = (of_items, interactions.item_degree)
            self._begin(first, *((of_users, interactions.user_degree) if c.collaborative == "lightgcn" else given))
            self._begin(items, *given)
        linear = c.embedding_size if c.collaborative == "linear" else c.linear_size
        if linear:
            matrix = interactions.binary.matrix
            for embedding, rows in zip(
                (first, items), messages_and_targets(matrix, c.linear_penalty, linear), strict=True
            ):
                embedding.weight[:, -linear:] = torch.from_numpy(rows)
                embedding.requires_grad_(linear < c.embedding_size)

    def _begin(self, embedding: nn.Embedding, singular: Tensor, degree: Tensor) -> None:
        # A small catalogue has fewer columns, and not all of it hangs together; what is left stays random.
        given = singular.any(dim=0) & (singular.any(dim=1) | (degree == 0))[:, None]
        embedding.weight.copy_(torch.where(given, singular * INITIAL_SIZE, embedding.weight))

    def collaborate(self, interactions: InteractionGraphs, histories: Histories | None = None) -> Collaborative:
        """The collaborative part in the configured form.

        Args:
            histories: with part of them hidden; LightGCN's form reads them whole.
        """
        first, items = (self._without_gradient_of_linear(embedding.weight) for embedding in self._embeddings)
        if self.config.collaborative == "lightgcn":
            return collaborative.lightgcn(first, items, interactions, self.config.layers)
        return collaborative.autoencoder(first, items, histories or Histories.whole(interactions))

    def _without_gradient_of_linear(self, rows: Tensor) -> Tensor:
        size = self.config.linear_size
        return torch.cat([rows[:, :-size], rows[:, -size:].detach()], dim=1) if size else rows

    @torch.no_grad()
    def fold_in_tables(self, interactions: InteractionGraphs) -> dict[str, Tensor]:
        """What reproduces the collaborative part one node at a time, for histories that grow after training.

        e_u = user_residual_u + |H_u|^-1/2 sum_{i in H_u} item_message_i equals `collaborate` on the training
        histories; what an item's users add to it in the same way is `user_message`. Without embeddings of users, two
        maps say what new users and items pass on (`fold_in_maps`).
        """
        part = self.collaborate(interactions)
        tables = {"user_residual": part.residual, "item_message": part.messages}
        if self.config.collaborative == "lightgcn":
            users, items = (embedding.weight for embedding in self._embeddings)
            messages = collaborative.lightgcn_user_messages(users, items, interactions, self.config.layers)
            return tables | {"user_message": messages}
        target_map, message_map = collaborative.fold_in_maps(part, interactions)
        maps = {"target_map": target_map, "message_map": message_map}
        return tables | {"user_message": part.users @ target_map} | maps

    # --- modality parts (eq. 1-6, 17) --------------------------------------------------------------------------

    def user_preference(self, user_id: Tensor) -> Tensor:
        """p_u^m of all users `[M, U, d]`, from their collaborative parts `[U, d]` or as they were learned."""
        if self.config.preference == "free":
            return self.preferences
        preference: Tensor = inference.user_preference(self._towers, user_id)
        return preference

    def encode(self, features: Mapping[str, Tensor], preference: Tensor) -> Tensor:
        """General and specific parts, gated by preferences `[M, n, d]` (eq. 1, 3): `[M, n, 2d]`."""
        parts: Tensor = inference.encode(self.config, self._towers, self.general, features, preference)
        return parts

    def fuse(self, parts: Tensor) -> Tensor:
        """mean(mean_m g^m, s^1, ..., s^M) (eq. 17), each modality by its learned weight: `[M, n, 2d]` -> `[n, d]`."""
        return self.shares(parts).sum(dim=0)

    def shares(self, parts: Tensor) -> Tensor:
        """What each modality brings into `fuse`: `[M, n, d]`."""
        shares: Tensor = inference.shares(parts, self.weight.exp())
        return shares

    def item_preference(
        self, preference: Tensor, interactions: InteractionGraphs, neighbour_graph: Graph, cold: Tensor
    ) -> Tensor:
        """p_i^m (eq. 2) `[M, n, d]` from the users' `[M, U, d]`, with the neighbours' mean for `cold` items (bool
        `[n]`)."""
        count, _, d = preference.shape
        flat = preference.transpose(0, 1).flatten(1)  # [U, M*d]
        own = (interactions.item_mean @ flat).view(-1, count, d).transpose(0, 1)  # [M, n, d]
        rows = cold.nonzero().squeeze(1)
        if not len(rows):
            return own
        # The neighbours' mean is read, not trained: a few items' share of the gradient for another product over the
        # graph.
        warm = (interactions.item_degree > 0) & ~cold
        mean = self.neighbour_preference(own.detach(), warm, neighbour_graph, rows)
        return own.index_copy(1, rows, mean.to(own.dtype))

    def neighbour_preference(self, preference: Tensor, warm: Tensor, neighbour_graph: Graph, rows: Tensor) -> Tensor:
        """The preference `[M, k, d]` of some rows `[k]` as the mean over their neighbours among the `warm` items (bool
        `[n]`), from everybody's `[M, n, d]`.

        An item without such neighbours takes the mean over all warm items; with `cold_start=modal`, a mean over no
        users (eq. 2) is zero.
        """
        count, n, d = preference.shape
        if self.config.cold_start == "modal":
            return preference.new_zeros(count, len(rows), d)
        weight = warm.to(preference.dtype)[:, None]
        own = preference.transpose(0, 1).reshape(n, -1) * weight  # [n, M*d]
        everyone = own.sum(dim=0) / weight.sum().clamp_min(1)
        mixed = neighbour_graph.rows(rows) @ torch.cat([own, weight], dim=1)
        total, share = mixed[:, :-1], mixed[:, -1:]
        mean = torch.where(share > 0, total / share.clamp_min(1e-6), everyone)
        return mean.view(len(rows), count, d).transpose(0, 1)

    def hidden_preference(
        self, out: Embeddings, content: ItemContent, name: str, rows: Tensor, *, others: Tensor, interactions: Tensor
    ) -> Tensor:
        """The preference `[M, k, d]` of some rows `[k]` as it would be while their cells of a modality are hidden and
        so are, where the bool `[k]` say so, their other modalities or interactions. Without gradients."""
        preference, warm = out.preference.detach(), ~out.cold
        mean = self.neighbour_preference(preference, warm, content.neighbour_graph_without[name], rows)
        counted = preference[:, warm] if warm.any() else preference
        mean = torch.where(others[None, :, None], counted.mean(dim=1, keepdim=True), mean)
        return torch.where((interactions | out.cold[rows])[None, :, None], mean, preference[:, rows])

    def combine(self, collaborative: Tensor, modal: Tensor) -> Tensor:
        """e of eq. 18 `[n, d]`: the sum of both parts, at unit length where cosines are the scores."""
        total: Tensor = inference.combine(self.config, collaborative, modal)
        return total

    def forward(
        self, interactions: InteractionGraphs, content: ItemContent | None, histories: Histories | None = None
    ) -> Embeddings:
        """All users and items (eq. 1-6, 17-18), as training sees them: `final_embeddings` comes after it.

        Args:
            interactions: the training interactions.
            content: of the catalogue; None only with `modal=False`.
            histories: what users are made of; all of the interactions by default, and always for LightGCN's part.
        """
        histories = histories or Histories.whole(interactions)
        part = self.collaborate(interactions, histories)
        user_id, item_id = part.users, part.items
        cold = interactions.item_degree == 0
        if content is None:
            none = user_id.new_zeros(0, 0, 0)
            user_modal, item_modal = torch.zeros_like(user_id), torch.zeros_like(item_id)
            parts, preference = none, none
        else:
            users = self.user_preference(user_id)
            preference = self.item_preference(users, interactions, content.neighbour_graph, cold)  # [M, n, d]
            parts = self.encode(content.features, preference)  # [M, n, 2d]
            item_modal = self._item_modal(content, parts)
            user_modal = histories.mean @ item_modal
        return Embeddings(
            users=self.combine(user_id, user_modal),
            items=self.combine(item_id, item_modal),
            user_id=user_id,
            item_id=item_id,
            user_modal=user_modal,
            item_modal=item_modal,
            parts=parts,
            preference=preference,
            cold=cold,
            histories=histories,
            user_residual=part.residual,
            item_message=part.messages,
        )

    def _item_modal(self, content: ItemContent, parts: Tensor) -> Tensor:
        """The modal part `[n, d]`. Fusing (eq. 17) and propagating (eq. 5) are linear, so that the narrow sum is
        propagated and not every part."""
        layers = self.config.item_layers
        return torch.stack(
            [
                propagate(content.graphs[name], share, layers)
                for name, share in zip(self.names, self.shares(parts), strict=True)
            ]
        ).sum(dim=0)

    @torch.no_grad()
    def final_embeddings(
        self, out: Embeddings, content: ItemContent, degree: Tensor, base: Mapping[str, Tensor] | None = None
    ) -> tuple[Embeddings, Tensor]:
        """The embeddings with the vectors that items are ranked by once training is over, and each item's prediction
        from its content `[n, d]` (`ColdStart.fit`).

        Args:
            degree: number of training interactions by item `[n]`.
            base: by modality `[n, r_m]`, what `fit_base` answered; without them observed features stay as they are.
        """
        if self.config.cold_start == "modal":
            return out, torch.zeros_like(out.items)
        observed, shrunk = content.evidence.observed, None
        if self.config.feature_shrinkage and base:
            shrunk = self.shrunk_features(content.features, base, observed)
        users = out.users[out.histories.degree > 0]
        items, prediction = self.cold_start.fit(
            users, out.items, content.features, observed, degree, shrunk, content.words
        )
        return replace(out, items=items), prediction

    def propagated(self, content: ItemContent, parts: Tensor) -> Tensor:
        """Every part over its modality's item graph (eq. 5), `[M, n, 2d]`."""
        layers = self.config.item_layers
        return torch.stack(
            [propagate(content.graphs[name], own, layers) for name, own in zip(self.names, parts, strict=True)]
        )

    # --- generation (eq. 12-15) --------------------------------------------------------------------------------

    def known_general(self, name: str, evidence: Evidence, preference: Tensor) -> Tensor:
        """g of a modality where it is observed, the modality's mean g elsewhere: `[n, d]`, preferences `[M, n, d]`."""
        general: Tensor = inference.known_general(self.config, self._towers, self.general, evidence, preference, name)
        return general

    def learned(
        self, name: str, evidence: Evidence, preference: Tensor, *, generator: torch.Generator | None = None
    ) -> Learned:
        """What the learned generator makes of one modality (eq. 12-13), as `generate` without its base.

        Args:
            preference: `[M, n, d]`.
            generator: training only; source of the dropout noise.
        """

        def run(mlp: Any, inputs: Tensor) -> Tensor:
            return self._noisy(mlp, inputs, generator)

        general, specific = inference.learned_parts(
            self.config, self._towers, self.general, evidence, preference, name, run
        )
        return Learned(general, specific, self.tower(name).decode(torch.cat([general, specific], dim=1)))

    def generate(self, name: str, evidence: Evidence, preference: Tensor) -> Generation:
        """Generate one modality for every row of the evidence, see `ModalityTower.generation`.

        Args:
            name: the modality to generate; its own observed feature is not looked at.
            evidence: of `n` rows. preference: `[M, n, d]`.
        """
        tower = self.tower(name)
        return tower.generation(evidence, self.learned(name, evidence, preference).signal if tower.trust > 0 else None)

    def _noisy(self, mlp: Any, inputs: Tensor, generator: torch.Generator | None) -> Tensor:
        assert isinstance(mlp, nn.Sequential)
        hidden = mlp[1](mlp[0](inputs))
        if generator is not None and self.config.dropout:
            keep = torch.rand(hidden.shape, generator=generator, device=generator.device).to(hidden.device)
            hidden = hidden * (keep >= self.config.dropout) / (1 - self.config.dropout)
        output: Tensor = mlp[2](hidden)
        return output

    @torch.no_grad()
    def complete(self, evidence: Evidence, preference: Tensor) -> dict[str, Tensor]:
        """Projected features by modality: observed where observed, generated elsewhere."""
        return {
            name: torch.where(
                evidence.observed[:, [column]], evidence.own[name], self.generate(name, evidence, preference).features
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
        content: ItemContent | None,
        excluded: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The ranking loss, its regulariser and the alignments (eq. 20-23) of a batch of `[b]` pairs, weighted.

        Args:
            negatives: for `bpr` one item a pair `[b]`, for `softmax` some for all pairs `[s]`.
            interactions, content: as given to `forward`.
            excluded: bool `[b, s]`, negatives of the softmax that the user has interacted with.
        """
        c = self.config
        warm = int((interactions.item_degree > 0).sum())
        weights = interactions.user_degree[users].pow(-c.user_power)
        ranking = self._ranking(out, users, positives, negatives, warm, excluded, weights)
        first, items = (embedding.weight for embedding in self._embeddings)
        own = first[users if c.collaborative == "lightgcn" else positives]
        norms = losses.l2(own, items[positives], items[negatives])
        terms = {"ranking": ranking, "l2": c.l2 * norms}
        if content is None:
            return terms
        # The batch is in random order already, so that its head is a sample; all pairs of it would cost b^2.
        some = slice(c.contrast_rows or None)
        some_users, some_items = users[some], positives[some]
        if c.behaviour:
            terms["behaviour"] = c.behaviour * self._behaviour(out, torch.unique(some_users), torch.unique(some_items))
        if c.user_item:
            terms["user_item"] = c.user_item * self._user_item(out, some_users, some_items, interactions, content)
        return terms

    def _ranking(
        self,
        out: Embeddings,
        users: Tensor,
        positives: Tensor,
        negatives: Tensor,
        warm: int,
        excluded: Tensor | None,
        weights: Tensor,
    ) -> Tensor:
        """BPR (eq. 23), or the softmax over the negatives, which stand for all `warm` items; pairs weigh `[b]`."""
        c = self.config
        u, i, j = self._without_positive(out, users, positives), out.items[positives], out.items[negatives]

        def softmax(positive: Tensor, negative: Tensor, rows: slice) -> Tensor:
            others = None if excluded is None else excluded[rows]
            return losses.sampled_softmax(
                positive, negative, c.ranking_temperature, out_of=warm, excluded=others, weights=weights[rows]
            )

        if c.ranking == "bpr":
            return losses.bpr((u * i).sum(dim=1), (u * j).sum(dim=1), weights)
        return losses.of_scores(u, i, j, weights, softmax)

    def _without_positive(self, out: Embeddings, users: Tensor, positives: Tensor) -> Tensor:
        """e_u `[b, d]` as it would be folded in from the user's other items.

        What is to be recommended is not in the history yet; left in, every positive would match itself.
        """
        if not self.config.leave_positive_out:
            return out.users[users]
        degree, held = out.histories.degree[users][:, None], out.histories.holds(users, positives)[:, None]
        others = (degree - held).clamp_min(1)
        own = out.user_residual[users]
        folded = ((out.user_id[users] - own) * degree.sqrt() - held * out.item_message[positives]) / others.sqrt()
        modal = (out.user_modal[users] * degree - held * out.item_modal[positives]) / others
        return self.combine(own + folded, modal)

    def _behaviour(self, out: Embeddings, users: Tensor, items: Tensor) -> Tensor:
        """L_bm (eq. 20) of different users and items."""
        of_users = losses.info_nce(self._read(out.user_id[users]), out.user_modal[users], self.config.temperature)
        of_items = losses.info_nce(self._read(out.item_id[items]), out.item_modal[items], self.config.temperature)
        return of_users + of_items

    def _read(self, rows: Tensor) -> Tensor:
        """What the losses on content read of the collaborative part, and bend only with `align=both`."""
        return rows if self.config.align == "both" else rows.detach()

    def _user_item(
        self, out: Embeddings, users: Tensor, positives: Tensor, interactions: InteractionGraphs, content: ItemContent
    ) -> Tensor:
        """L_ui (eq. 21): general parts summed over modalities, and each modality's specific part."""
        propagated = self.propagated(content, out.parts)  # [M, n, 2d]
        history = interactions.user_mean.rows(users)
        u, i = torch.stack([history @ own for own in propagated]), propagated[:, positives]  # [M, b, 2d]
        user_general, user_specific = u.chunk(2, dim=-1)
        item_general, item_specific = i.chunk(2, dim=-1)
        total = losses.info_nce(user_general.sum(dim=0), item_general.sum(dim=0), self.config.temperature)
        for left, right in zip(user_specific, item_specific, strict=True):
            total = total + losses.info_nce(left, right, self.config.temperature)
        return total

    def content_losses(
        self, out: Embeddings, content: ItemContent, rows: Tensor, cells: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Disentangling, reconstruction and generation (eq. 7-8, 11, 14) over some items, weighted.

        Args:
            rows: `[b]` items. cells: bool `[n, M]`, observed cells the generator may learn from.
            generator: draws which evidence is hidden, and the noise.
        """
        c = self.config
        evidence = content.evidence.select(rows)
        # Preferences come from the collaborative embeddings. These losses are a multiple of the ranking's and would
        # bend the embeddings towards themselves.
        parts = self.encode(evidence.own, self._read(out.preference[:, rows]))
        total = {key: parts.new_zeros(()) for key in ("club", "nce", "reconstruction", "generation")}
        for column, name in enumerate(self.names):
            for key, loss in self._disentangling(evidence, parts, column).items():
                total[key] = total[key] + loss
            reconstruction = losses.masked_mse(
                self.tower(name).decode(parts[column]), evidence.own[name], evidence.observed[:, column]
            )
            total["reconstruction"] = total["reconstruction"] + c.reconstruction * reconstruction
            if c.imputation == "generate" and c.generation:
                own = cells[rows, column]
                if c.generator == "parts":
                    loss = self._generation_loss(name, out.preference[:, rows], evidence, own, parts[column])
                else:
                    loss = self._held_out_loss(name, out, content, rows, own, parts[column], generator)
                total["generation"] = total["generation"] + c.generation * loss
        return total

    def _generation_loss(
        self, name: str, preference: Tensor, evidence: Evidence, cells: Tensor, truth: Tensor
    ) -> Tensor:
        """L_gen (eq. 14) as the paper has it, of cells (bool `[b]`) with parts `[b, 2d]`."""
        learned = self.learned(name, evidence, self._read(preference))
        return losses.masked_mse(torch.cat([learned.general, learned.specific], dim=1), truth, cells) * 2

    def _disentangling(self, evidence: Evidence, parts: Tensor, column: int) -> dict[str, Tensor]:
        """L_club (eq. 7) of one modality, and L_nce (eq. 8) between it and each that follows, weighted."""
        c, d, present = self.config, self.config.embedding_size, evidence.observed[:, column]
        general, specific = parts[column].chunk(2, dim=1)
        terms = {}
        if c.club:
            mean, log_variance = self.tower(self.names[column]).club_q(general[present], frozen=True)
            terms["club"] = c.club * losses.club(specific[present], mean, log_variance)
        for other in range(column + 1, len(self.names)):
            both = present & evidence.observed[:, other]
            nce = c.nce * losses.info_nce(general[both], parts[other][both, :d], c.temperature)
            terms["nce"] = terms["nce"] + nce if "nce" in terms else nce
        return terms

    def _held_out_loss(
        self,
        name: str,
        out: Embeddings,
        content: ItemContent,
        rows: Tensor,
        cells: Tensor,
        truth: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """L_gen (eq. 14) and the distance to the true feature, with part of the evidence hidden at random."""
        chance = torch.rand(2, len(rows), generator=generator, device=generator.device).to(rows.device)
        others, interactions = chance < HIDE_RATE
        preference = self.hidden_preference(out, content, name, rows, others=others, interactions=interactions)
        hidden = content.evidence.select(rows).without(name, others=others, interactions=interactions)
        learned = self.learned(name, hidden, preference, generator=generator)
        general, specific = truth.detach().chunk(2, dim=1)
        target = content.evidence.own[name][rows]
        direction = self.tower(name).projection.direction
        return (
            losses.masked_mse(learned.general, general, cells)
            + losses.masked_mse(learned.specific, specific, cells)
            + losses.masked_mse(learned.signal, target, cells)
            + losses.cosine_gap(direction(learned.signal), direction(target), cells)
        )

    def q_loss(self, out: Embeddings, evidence: Evidence) -> Tensor:
        """Negative log likelihood of CLUB's q(s | g) (eq. 7) on the present parts, for q's own optimiser."""
        total = out.parts.new_zeros(())
        for column, name in enumerate(self.names):
            present = evidence.observed[:, column]
            if present.any():
                general, specific = out.parts[column][present].detach().chunk(2, dim=1)
                total = total - losses.gaussian_log_likelihood(specific, *self.tower(name).club_q(general)).mean()
        return total

    # --- closed forms ------------------------------------------------------------------------------------------

    def fit_base(self, evidence: Evidence, cells: Tensor) -> dict[str, Tensor]:
        """Fit each modality's closed forms on `cells` (bool `[n, M]`), see `ModalityTower.fit_base`: by modality the
        base `[n, r_m]` of warm items' cells. None with `generator=parts`."""
        if self.config.generator == "parts":
            return {}
        return {name: self.tower(name).fit_base(evidence, cells[:, column]) for column, name in enumerate(self.names)}

    @torch.no_grad()
    def update_mean_generals(self, out: Embeddings, observed: Tensor) -> None:
        """Record each modality's mean general part over the items that have it (stands in where one is missing)."""
        for column, name in enumerate(self.names):
            present = observed[:, column]
            if present.any():
                self.tower(name).mean_general.copy_(
                    out.parts[column][present, : self.config.embedding_size].mean(dim=0)
                )
