"""LRMM: rating prediction with missing modalities.

After Wang et al., EMNLP 2018 (arXiv 1808.06791); equation numbers are the paper's. Modalities of a (user, item) pair:
what is known of the user (`user_reviews`), what is known of the item (`item_reviews`), and the item's own content (its
text as metadata, its picture, or whatever else it has). Any subset may be absent. Where the paper leaves a gap:

* No parameter belongs to a user or an item: a side is its reviews' texts (`models.lrmm.reviews`) and the statistics of
  their ratings (`profiles`), so that it is known from its first review on, and the review being predicted can be taken
  out.
* The biases of the pair are part of the sides (`use_biases`): a side that is withheld takes its bias with it.
* A dropped modality's own autoencoder would see zeros; decoders therefore read the joint hidden state, the mean over
  the modalities present (`joint`; False is the paper's form). (eq. 17-18)
* alpha and beta are homoscedastic uncertainty weights, since plain learnable factors shrink to zero. (eq. 22)
* The rating is a linear and a nonlinear function of the same modalities, and the mean of several `members` that differ
  in their initial weights and drops, all computed at once.
* The affinity of both sides, the product of their latent factors with what biases that are fitted together with these
  differ by from the profiles' (`models.lrmm.factors`, `models.lrmm.profiles.fold_in_factors`), is added to the rating
  of a pair whose sides are both known, with a learned scale that starts at one.
* Texts are scaled against the ratings' statistics (`profiles.TEXT_SCALE`), which makes weight decay a prior on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor, nn

from models import losses
from models.lrmm.config import LRMMConfig

USER, ITEM = "user_reviews", "item_reviews"


@dataclass(frozen=True, slots=True)
class Prediction:
    """Ratings `[K, b]` by member, reconstructions `[K, b, d_m]` by modality, joint hidden states `[K, b, h]`."""

    rating: Tensor
    rebuilt: Mapping[str, Tensor]
    hidden: Tensor


class Members(nn.Module):
    """A linear layer for each of K members at once: `[K, b, in]` -> `[K, b, out]`."""

    def __init__(self, members: int, inputs: int, outputs: int, *, zero: bool = False) -> None:
        super().__init__()
        bound = 0.0 if zero else inputs**-0.5
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class LRMM(nn.Module):
    """Modality embeddings and which of them are present -> ratings.

    Args:
        sizes: length d_m of each modality's embedding, by name.
        offset: the mean rating, which is the prediction for a pair of which nothing is known.
    """

    offset: Tensor

    def __init__(self, config: LRMMConfig, sizes: Mapping[str, int], offset: float) -> None:
        super().__init__()
        self.config = config
        self.sizes = dict(sizes)
        self.names = tuple(sizes)
        k, h = config.members, config.hidden
        self.encoders = nn.ModuleDict({name: Members(k, size, h) for name, size in sizes.items()})
        self.decoders = nn.ModuleDict({name: Members(k, h, size) for name, size in sizes.items()})
        inputs = sum(sizes.values()) + len(sizes)
        self.linear = Members(k, inputs, 1, zero=True)
        self.inner = Members(k, inputs, config.rating_hidden)
        self.outer = Members(k, config.rating_hidden, 1, zero=True)
        self.affinity_scale = nn.Parameter(torch.ones(k, 1))
        self.uncertainty = nn.Parameter(torch.zeros(2))  # log variances of rating and reconstruction
        self.register_buffer("offset", torch.tensor(float(offset)))

    @torch.no_grad()
    def start_at(self, name: str, column: int, weight: float, at: float) -> None:
        """Let the linear part start with this weight on a number of a modality's embedding, and add `at`."""
        place = sum(self.sizes[other] for other in self.names[: self.names.index(name)]) + column
        self.linear.weight[:, place] = weight
        self.linear.bias.add_(at)

    def forward(self, embeddings: Mapping[str, Tensor], present: Tensor, affinity: Tensor) -> Prediction:
        """Rate pairs.

        Args:
            embeddings: by modality `[b, d_m]`; rows that are not present hold placeholders.
            present: bool `[b, M]`, or `[K, b, M]` where members see different ones; columns as in `names`.
            affinity: of the sides `[b]`; counts where both are present.
        """
        k = self.config.members
        mask = present.expand(k, -1, -1) if present.dim() == 2 else present
        flags = dict(zip(self.names, torch.split(mask.to(torch.float32), 1, dim=2), strict=True))  # [K, b, 1]
        given = {name: torch.where(flags[name] > 0, embeddings[name], 0.0) for name in self.names}  # [K, b, d_m]
        hidden = {name: torch.sigmoid(self.encoders[name](given[name])) for name in self.names}  # [K, b, h]
        count = torch.stack(list(flags.values())).sum(0).clamp_min(1)  # [K, b, 1]
        joint = torch.stack([hidden[name] * flags[name] for name in self.names]).sum(0) / count  # [K, b, h]
        rebuilt = {
            name: self.decoders[name](joint if self.config.joint else hidden[name] * flags[name]) for name in self.names
        }
        filled = [torch.where(flags[name] > 0, given[name], rebuilt[name] * self.config.impute) for name in self.names]
        x = torch.cat([*filled, *flags.values()], dim=2)  # [K, b, sum d_m + M]
        x = F.dropout(x, self.config.input_dropout, self.training)
        inner = F.dropout(F.relu(self.inner(x)), self.config.dropout, self.training)
        residual = (self.linear(x) + self.outer(inner)).squeeze(2)  # [K, b]
        residual = residual + self.affinity_scale * affinity * (flags[USER] * flags[ITEM]).squeeze(2)
        any_present = mask.any(dim=2)  # where nothing is, the offset alone is predicted
        return Prediction(self.offset + residual * any_present, rebuilt, joint)

    def predict(self, embeddings: Mapping[str, Tensor], present: Tensor, affinity: Tensor) -> Tensor:
        """The members' mean rating `[b]`, within 1..5."""
        return self(embeddings, present, affinity).rating.mean(0).clamp(1.0, 5.0)  # type: ignore[no-any-return]

    def drop(self, present: Tensor, generator: torch.Generator) -> Tensor:
        """m-drop: each modality of each sample is dropped with probability p_m, `[K, b, M]`. (eq. 12-16)"""
        kept = torch.rand(self.config.members, *present.shape, generator=generator) >= self.config.drop
        return present & kept

    def loss(
        self, embeddings: Mapping[str, Tensor], present: Tensor, affinity: Tensor, rating: Tensor, dropped: Tensor
    ) -> Tensor:
        """alpha L_reg + beta L_recon of pairs whose modalities were `dropped` to `[K, b, M]`. (eq. 11, 19-22)"""
        out = self(embeddings, dropped, affinity)
        regression = F.mse_loss(out.rating, rating.expand_as(out.rating))
        members = len(out.rating)
        rebuilt = [
            losses.masked_mse(
                out.rebuilt[name].flatten(0, 1), embeddings[name].repeat(members, 1), observed.repeat(members)
            )
            for name, observed in zip(self.names, present.unbind(1), strict=True)
        ]
        reconstruction = torch.stack(rebuilt).mean()
        reconstruction = reconstruction + self.config.sparsity * losses.sparsity(out.hidden, self.config.rho)
        weights = (-self.uncertainty).exp()
        return weights[0] * regression + weights[1] * reconstruction + self.uncertainty.sum()
