"""The forms of DGMRec's collaborative part, and how each is folded in where histories grow after training.

* `lightgcn` (eq. 18): users and items have embeddings, of which the mean over the layers of propagation is taken.
* `autoencoder`: an item has a message, which it adds to its users, and a target, which users are compared with. Users
  have nothing of their own: one is the sum of the messages of the history, over the root of their number. Trained with
  part of every history hidden (`history_dropout`), so that the rest is asked for from what a user has not yet all met.
* `linear`: the same with messages and targets in closed form (`models.dgmrec.linear`), which training leaves alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from models import linalg
from models.arrays import Mask, Rows
from models.graph import Graph, InteractionGraphs

SURE_DEGREE = 10.0  # users at which an item says half as much of how items and users go together as it can
MAP_PENALTY = 1.0  # of the ridge regressions that `fold_in_maps` are


@dataclass(frozen=True)
class Histories:
    """What users are made of: their training interactions, or what of them is not hidden.

    Attributes:
        mean: `[U, n]`, a user's mean over the items.
        degree: how many items that are, `[U]`.
        interactions: the keys `user * n + item` of all training interactions, ascending `[k]`.
        kept: which of them are not hidden, bool `[k]`; None for all.
    """

    mean: Graph
    degree: Tensor
    interactions: Rows | None = None
    kept: Mask | None = None

    @classmethod
    def whole(cls, interactions: InteractionGraphs) -> Histories:
        """With nothing hidden."""
        return cls(interactions.user_mean, interactions.user_degree)

    @classmethod
    def thinned(cls, interactions: InteractionGraphs, hidden: float, rng: np.random.Generator) -> Histories:
        """With this share of the interactions hidden at random."""
        whole = interactions.user_mean.matrix
        kept = rng.random(whole.nnz) >= hidden
        user = np.repeat(np.arange(whole.shape[0]), np.diff(whole.indptr))
        degree = np.bincount(user[kept], minlength=whole.shape[0])
        values = (1 / np.maximum(degree, 1)).astype(np.float32)[user[kept]]
        indptr = np.concatenate([[0], np.cumsum(degree)])
        mean = sp.csr_array((values, whole.indices[kept], indptr), shape=whole.shape)
        device = interactions.user_degree.device
        keys = user * whole.shape[1] + whole.indices
        return cls(Graph(mean, device), torch.from_numpy(degree.astype(np.float32)).to(device), keys, kept)

    def holds(self, users: Tensor, items: Tensor) -> Tensor:
        """Which of some training interactions `[b]` are not hidden, as numbers `[b]`."""
        if self.kept is None or self.interactions is None:
            return torch.ones(len(users), device=users.device)
        keys = (users * self.mean.shape[1] + items).cpu().numpy()
        kept = self.kept[np.searchsorted(self.interactions, keys)]
        return torch.from_numpy(kept.astype(np.float32)).to(users.device)


@dataclass(frozen=True)
class Collaborative:
    """The collaborative part of users and items: e_u = residual_u + |H_u|^-1/2 sum_{i in H_u} message_i."""

    users: Tensor  # [U, d]
    items: Tensor  # [n, d]
    residual: Tensor  # [U, d], of their own; zero but in LightGCN's form
    messages: Tensor  # [n, d]


# --- LightGCN --------------------------------------------------------------------------------------------------------


def lightgcn(users: Tensor, items: Tensor, interactions: InteractionGraphs, layers: int) -> Collaborative:
    """LightGCN of embeddings `[U, d]` and `[n, d]`: the mean over layers of the propagated ones."""
    user_layers, item_layers = _propagated(users, items, interactions, layers)
    return Collaborative(
        _sum(user_layers) / len(user_layers),
        _sum(item_layers) / len(item_layers),
        user_layers[0] / len(user_layers),
        _message(item_layers, interactions.item_degree),
    )


def lightgcn_user_messages(users: Tensor, items: Tensor, interactions: InteractionGraphs, layers: int) -> Tensor:
    """What users pass on to each of their items `[U, d]`, as items pass on their messages: what an item is made of, but
    for its own embedding."""
    user_layers, _ = _propagated(users, items, interactions, layers)
    return _message(user_layers, interactions.user_degree)


def _propagated(
    users: Tensor, items: Tensor, interactions: InteractionGraphs, layers: int
) -> tuple[list[Tensor], list[Tensor]]:
    of_users, of_items = [users], [items]
    for _ in range(layers):
        step = interactions.symmetric @ of_items[-1], interactions.symmetric.transposed @ of_users[-1]
        of_users.append(step[0])
        of_items.append(step[1])
    return of_users, of_items


def _message(layers: Sequence[Tensor], degree: Tensor) -> Tensor:
    """What a node passes on to each of its neighbours over all layers, but for their own degree."""
    return _sum(layers[:-1]) * (degree.clamp_min(1).rsqrt()[:, None] / len(layers))


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    """Without stacking them first, which copies each there and back."""
    return functools.reduce(torch.add, tensors)


# --- messages and targets --------------------------------------------------------------------------------------------


def autoencoder(messages: Tensor, targets: Tensor, histories: Histories) -> Collaborative:
    """Users from the messages `[n, d]` of their histories, beside the targets `[n, d]`."""
    users = (histories.mean @ messages) * histories.degree.sqrt()[:, None]
    return Collaborative(users, targets, torch.zeros_like(users), messages)


def fold_in_maps(part: Collaborative, interactions: InteractionGraphs) -> tuple[Tensor, Tensor]:
    """What stands in for training where an item's target or message is not known, each `[d, d]`.

    The first maps a user's vector to what the user adds to an item, so that the sum over the item's users, over the
    root of their number, is about its target; the second a target to a message. Both are ridge regressions over the
    items with interactions, by how surely these are known.
    """
    degree = interactions.item_degree
    weight = (degree / (degree + SURE_DEGREE)).sqrt()[:, None]
    from_users = (interactions.item_mean @ part.users) * degree.sqrt()[:, None]
    return (
        linalg.ridge(from_users * weight, part.items * weight, MAP_PENALTY),
        linalg.ridge(part.items * weight, part.messages * weight, MAP_PENALTY),
    )
