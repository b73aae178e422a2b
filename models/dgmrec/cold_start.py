"""What an item's vector is once DGMRec has been trained: its users' word and its content's, by closed forms.

* An item's own users tell what its vector is, and where they are few, its content does. The vector of a never-touched
  item is predicted from its completed features.
* How popular an item is and whom it is for are told by different things, so that both are predicted apart: along the
  axis of popularity, the mean direction of the users, by a ridge regression of the logarithms of the touched items'
  degrees; across it by a ridge regression in which items weigh as surely as their vectors are known, and by a kernel
  regression on the touched items nearest by any modality, since whom a sequel is for, the film before it tells better
  than a linear map of all films.
* Nothing brings the prediction to unit length: an unsure one is short, and its scores are cautious.
* A touched item's vector, across the axis, counts as much as its users are many, and for the rest gives way to the same
  prediction, made without the item (`prior`).
* Most of an observed feature tells nothing of who likes the item, and a generated one is free of that noise; lest items
  with all their cells do worse than others, a touched item's observed features are read here together with what is
  guessed of them unseen (`denoise`).
* Whether an untouched item of the training catalogue is new or just ignored nobody knows; by Chao's estimate of unseen
  species a certain number is to be expected ignored, and only what goes beyond counts as new (`untouched_offset`).

To drop the collaborative part from random items in training, so that a prediction learns to stand in, cost the ranking
of all others more than it gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from models import linalg
from models.graph import Graph, nearest, neighbour_graph, rescaled

if TYPE_CHECKING:
    from models.dgmrec.config import DGMRecConfig
    from models.dgmrec.model import Embeddings

SURE_DEGREE = 10.0  # users at which an item's vector is known half as surely as it can be


class Settling(nn.Module):
    """Maps from completed features to vectors, fitted on the touched items of a trained model."""

    popularity_axis: Tensor
    untouched_map: Tensor
    untouched_typical: Tensor
    untouched_offset: Tensor
    prior_users: Tensor

    def __init__(self, config: DGMRecConfig, ranks: Mapping[str, int]) -> None:
        super().__init__()
        self.config, self.names = config, tuple(ranks)
        d = config.embedding_size
        self.register_buffer("popularity_axis", torch.zeros(d))
        self.register_buffer("untouched_map", torch.zeros(sum(ranks.values()), d))
        self.register_buffer("untouched_typical", torch.zeros(d))
        self.register_buffer("untouched_offset", torch.zeros(()))
        self.register_buffer("prior_users", torch.zeros(()))  # as many as an item's content speaks for

    @torch.no_grad()
    def settle(
        self,
        out: Embeddings,
        features: Mapping[str, Tensor],
        observed: Tensor,
        degree: Tensor,
        read: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The vectors `[n, d]` that items are ranked by after training, and what their content leads to expect of each.

        This also fits what the same is expected by of items that come later.

        Args:
            features: completed, by modality `[n, r_m]`. observed: bool `[n, M]`. degree: `[n]`.
            read: what touched items settle by, the features `denoised`; by default the features.
        """
        touched = degree > 0
        if not touched.any():
            return out.items, torch.zeros_like(out.items)
        self.popularity_axis.copy_(linalg.unit(out.users[out.user_degree > 0].mean(dim=0)))
        self.prior_users.copy_(self.config.prior * degree[touched].mean())
        popularity = out.items @ self.popularity_axis
        self._fit_untouched(self._content(features), out.items, degree)
        mixed = self._mixed(features, out.items, observed, degree)
        untouched = self._told(features) + mixed
        if read is not None:
            mixed = self._mixed(read, out.items, observed, degree)
        told = self._told_without_fold(self._content(features if read is None else read), out.items, degree) + mixed
        expected = torch.where(touched[:, None], told, untouched)
        once = popularity[degree == 1]
        ignored = (once.mean() - popularity[touched].mean()).clamp_max(0) if len(once) else popularity.new_zeros(())
        new = share_of_new(degree)
        self.untouched_offset.copy_(new * self.config.cold_lift + (1 - new) * ignored)
        fresh = expected + self.untouched_offset * self.popularity_axis
        return torch.where(touched[:, None], self._settled(out.items, expected, degree), fresh), expected

    def _settled(self, own: Tensor, expected: Tensor, degree: Tensor) -> Tensor:
        """Vectors `[n, d]` of touched items of which, across the axis of popularity, the part that `prior_users` more
        would have settled is what is expected."""
        lacking = self.prior_users / (degree + self.prior_users)
        return own + lacking[:, None] * self._across(expected - own)

    def _across(self, rows: Tensor) -> Tensor:
        """What of the rows `[..., d]` lies across the axis of popularity."""
        return rows - (rows @ self.popularity_axis)[..., None] * self.popularity_axis

    # --- by a linear map ---------------------------------------------------------------------------------------

    def _content(self, features: Mapping[str, Tensor]) -> Tensor:
        """Features side by side `[n, sum of r_m]`, an observed one of length 1."""
        return torch.cat([features[name] / features[name].shape[1] ** 0.5 for name in self.names], dim=1)

    def _told(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.untouched_typical + self._content(features) @ self.untouched_map

    def _fit_untouched(self, content: Tensor, items: Tensor, degree: Tensor) -> None:
        """Fit the maps from content `[n, k]` to vectors `[n, d]`."""
        c = self.config
        slope, typical = self._fit_popularity(content, items @ self.popularity_axis, degree)
        shown, usual = self._fit_across(content, items, degree)
        self.untouched_map.copy_(slope * self.popularity_axis + c.cold_linear * self._across(shown))
        self.untouched_typical.copy_(typical * self.popularity_axis + c.cold_linear * self._across(usual))

    def _fit_popularity(self, content: Tensor, place: Tensor, degree: Tensor) -> tuple[Tensor, Tensor]:
        """Slope `[k, 1]` and intercept `[1]` from content `[n, k]` to an item's place on the axis of popularity `[n]`.

        Content tells more of the logarithm of an item's degree than of its place, which depends on who its users are as
        well; the place is what, along the touched items, goes with that logarithm.
        """
        touched = (degree > 0).to(content.dtype)
        users = degree.clamp_min(1).log()[:, None]
        slope, intercept = linalg.weighted_ridge(content, users, touched, self.config.cold_penalty)
        gain, start = linalg.weighted_ridge(users, place[:, None], touched, 1.0)
        mean = (touched @ users) / touched.sum()
        loud = gain[0] * self.config.cold_spread
        return slope * loud, start + mean * gain[0] + (intercept - mean) * loud

    def _fit_across(self, content: Tensor, items: Tensor, degree: Tensor) -> tuple[Tensor, Tensor]:
        # Popularity is known of every item alike; whom an item is for, the better the more users it has.
        sure = degree / (degree + SURE_DEGREE)
        return linalg.weighted_ridge(content, self._across(items), sure, self.config.cold_penalty)

    def _told_without_fold(self, content: Tensor, items: Tensor, degree: Tensor) -> Tensor:
        """What content `[n, k]` says of vectors `[n, d]` across the axis of popularity, each by a fit without its
        fold."""
        fold, told = torch.arange(len(items), device=items.device) % linalg.FOLDS, torch.zeros_like(items)
        for held in (fold == number for number in range(linalg.FOLDS)):
            if ((degree > 0) & ~held).any():
                shown, usual = self._fit_across(content, items, degree.where(~held, 0))
                told[held] = self._across(content[held] @ shown + usual)
        return told

    # --- by the nearest ----------------------------------------------------------------------------------------

    def _mixed(self, features: Mapping[str, Tensor], items: Tensor, observed: Tensor, degree: Tensor) -> Tensor:
        """What the touched items nearest to each by any modality tell of it, across the axis of popularity."""
        return self.config.cold_kernel * self._across(self.relatives(features, observed, degree) @ items)

    @torch.no_grad()
    def relatives(self, features: Mapping[str, Tensor], observed: Tensor, degree: Tensor) -> Graph:
        """`[n, n]`, each row with the touched ones among the items nearest to it by any modality, real or generated,
        and their weights, from completed features `[n, r_m]`, the observed mask `[n, M]` and degrees `[n]`."""
        everyone = torch.arange(len(degree), device=degree.device)
        total: Any = sp.csr_array((len(degree), len(degree)), dtype=np.float32)
        for column, name in enumerate(self.names):
            found, cosines = nearest(
                features[name],
                features[name],
                self.config.cold_neighbours,
                allowed=observed[:, column],
                exclude=everyone,
            )
            found[features[name].norm(dim=1) == 0] = -1  # says nothing
            total = total + neighbour_graph(found, self.kindred(cosines, degree[found]), len(degree))
        total.eliminate_zeros()
        return Graph(rescaled(total), degree.device)

    def kindred(self, cosines: Tensor, degree: Tensor) -> Tensor:
        """How much neighbours tell of an untouched item `[...]`, from their cosines and degrees `[...]`; untouched ones
        nothing."""
        c = self.config
        near = ((cosines - 1) / c.cold_temperature).exp()
        return torch.where(degree > 0, near * degree.clamp_min(1).pow(c.cold_popularity), 0)


def share_of_new(degree: Tensor) -> float:
    """The share of the untouched items, of degrees `[n]`, that is more than would be ignored by chance.

    Of f_1 items touched once and f_2 touched twice, Chao's estimate (1984, bias-corrected) of those that were there and
    met nobody is f_1 (f_1 - 1) / (2 (f_2 + 1)).
    """
    never, once, twice = (int((degree == count).sum()) for count in range(3))
    return max(0.0, 1 - once * (once - 1) / (2 * (twice + 1)) / never) if never else 0.0
