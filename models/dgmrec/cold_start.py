"""Cold start: the vectors that items are ranked by once DGMRec has been trained, from their users and from their
content, by closed forms.

* A warm item's vector comes from its users, and where these are few, from its content; a cold item's is predicted from
  its completed features.
* How popular an item is and whom it is for follow from different things, so that both are predicted apart: along the
  axis of popularity, the mean direction of the users, by a ridge regression of the logarithms of the warm items'
  degrees; across it by a ridge regression in which items weigh as surely as their vectors are known, and by a kernel
  regression on the warm items nearest by any modality, since whom a sequel is for follows better from the film before
  it than from a linear map of all films.
* Nothing brings the prediction to unit length: an unsure one is short, and its scores are cautious.
* A warm item's vector, across the axis, is shrunk towards the same prediction, made without the item, by a pseudo-count
  of users (`cold_pseudo_count`).
* Most of an observed feature says nothing of who likes the item, and a generated one is free of that noise; lest items
  with all their cells do worse than others, a warm item's observed features are read here together with what is
  generated for them unseen (`feature_shrinkage`).
* Whether a cold item of the training catalogue is new or just ignored nobody knows; by Chao's estimate of unseen
  species a certain number is to be expected ignored, and only what goes beyond counts as new (`offset`).

To drop the collaborative part from random items in training, so that a prediction learns to stand in, cost the ranking
of all others more than it gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from models import linalg
from models.dgmrec import inference
from models.dgmrec.config import DGMRecConfig
from models.graph import Graph, nearest, rescaled, weighted_graph

USUAL_SPREAD = 0.4  # of warm items along the axis of popularity in LightGCN's form, which `popularity_offset` is for
SURE_DEGREE = 10.0  # users at which an item's vector is known half as surely as it can be


class ColdStart(nn.Module):
    """Maps from completed features to vectors, fitted on the warm items of a trained model."""

    popularity_axis: Tensor
    slopes: Tensor
    intercept: Tensor
    offset: Tensor
    pseudo_count: Tensor

    def __init__(self, config: DGMRecConfig, ranks: Mapping[str, int]) -> None:
        super().__init__()
        self.config, self.names = config, tuple(ranks)
        d = config.embedding_size
        self.register_buffer("popularity_axis", torch.zeros(d))
        self.register_buffer("slopes", torch.zeros(sum(ranks.values()), d))
        self.register_buffer("intercept", torch.zeros(d))
        self.register_buffer("offset", torch.zeros(()))  # of cold items of the training catalogue, along the axis
        self.spread = USUAL_SPREAD  # of the warm items along the axis, see `unit`
        self.register_buffer("pseudo_count", torch.zeros(()))  # as many users as an item's content counts for

    @torch.no_grad()
    def fit(
        self,
        users: Tensor,
        items: Tensor,
        features: Mapping[str, Tensor],
        observed: Tensor,
        degree: Tensor,
        shrunk: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Fit the maps; answer the vectors `[n, d]` that items are ranked by after training, and the prediction of each
        from its content.

        Args:
            users: `[W, d]`, vectors of the users with interactions. items: `[n, d]`, as trained.
            features: completed, by modality `[n, r_m]`. observed: bool `[n, M]`. degree: `[n]`.
            shrunk: what warm items are predicted from, the `shrunk_features`; by default the features.
        """
        warm = degree > 0
        if not warm.any():
            return items, torch.zeros_like(items)
        self.popularity_axis.copy_(linalg.unit(users.mean(dim=0)))
        self.pseudo_count.copy_(self.config.cold_pseudo_count * degree[warm].mean())
        self._fit_maps(self._content(features), items, degree)
        neighbours = self.neighbours(features, observed, degree) @ items
        cold_prediction = self.predict(features, neighbours)
        if shrunk is not None:
            neighbours = self.neighbours(shrunk, observed, degree) @ items
        content = self._content(features if shrunk is None else shrunk)
        kernel = self.config.cold_kernel_weight * self._across(neighbours)
        warm_prediction = self._cross_fitted_prediction(content, items, degree) + kernel
        prediction = torch.where(warm[:, None], warm_prediction, cold_prediction)
        self._fit_offset(items @ self.popularity_axis, degree)
        shrunk_vectors = inference.shrink(items, prediction, degree, self.pseudo_count, self.popularity_axis)
        return torch.where(warm[:, None], shrunk_vectors, prediction + self.offset * self.popularity_axis), prediction

    def predict(self, features: Mapping[str, Tensor], neighbours: Tensor) -> Tensor:
        """The vectors `[n, d]` to be expected of cold items from completed features `[n, r_m]` and the kernel-weighted
        means of their neighbours' vectors `[n, d]`."""
        prediction: Tensor = inference.content_prediction(
            self.config, self.slopes, self.intercept, self.popularity_axis, self._content(features), neighbours
        )
        return prediction

    @torch.no_grad()
    def neighbours(self, features: Mapping[str, Tensor], observed: Tensor, degree: Tensor) -> Graph:
        """`[n, n]`, each row with the warm items nearest to it by any modality, real or generated, and their kernel
        weights, from completed features `[n, r_m]`, the observed mask `[n, M]` and degrees `[n]`."""
        everyone = torch.arange(len(degree), device=degree.device)
        total: Any = sp.csr_array((len(degree), len(degree)), dtype=np.float32)
        for column, name in enumerate(self.names):
            rows, cosines = nearest(
                features[name],
                features[name],
                self.config.cold_neighbours,
                allowed=observed[:, column] & (degree > 0),
                exclude=everyone,
            )
            rows[features[name].norm(dim=1) == 0] = -1  # says nothing
            weights = inference.kernel_weight(self.config, cosines, degree[rows])
            total = total + weighted_graph(rows, weights, len(degree))
        total.eliminate_zeros()
        return Graph(rescaled(total), degree.device)

    # --- linear maps -------------------------------------------------------------------------------------------

    def _content(self, features: Mapping[str, Tensor]) -> Tensor:
        content: Tensor = inference.content_row({name: features[name] for name in self.names})
        return content

    def _across(self, rows: Tensor) -> Tensor:
        component: Tensor = inference.across(rows, self.popularity_axis)
        return component

    def _fit_maps(self, content: Tensor, items: Tensor, degree: Tensor) -> None:
        """Fit the maps from content `[n, k]` to vectors `[n, d]`."""
        weight = self.config.cold_ridge_weight
        along, along_intercept = self._fit_popularity(content, items @ self.popularity_axis, degree)
        across, across_intercept = self._fit_across(content, items, degree)
        self.slopes.copy_(along * self.popularity_axis + weight * self._across(across))
        self.intercept.copy_(along_intercept * self.popularity_axis + weight * self._across(across_intercept))

    def _fit_popularity(self, content: Tensor, place: Tensor, degree: Tensor) -> tuple[Tensor, Tensor]:
        """Slope `[k, 1]` and intercept `[1]` from content `[n, k]` to an item's place on the axis of popularity `[n]`.

        Content says more of the logarithm of an item's degree than of its place, which depends on who its users are as
        well; the place is what, along the warm items, goes with that logarithm.
        """
        warm = (degree > 0).to(content.dtype)
        log_degree = degree.clamp_min(1).log()[:, None]
        slope, intercept = linalg.weighted_ridge(content, log_degree, warm, self.config.cold_ridge_penalty)
        gain, start = linalg.weighted_ridge(log_degree, place[:, None], warm, 1.0)
        mean = (warm @ log_degree) / warm.sum()
        widened = gain[0] * self.config.popularity_slope
        return slope * widened, start + mean * gain[0] + (intercept - mean) * widened

    def _fit_across(self, content: Tensor, items: Tensor, degree: Tensor) -> tuple[Tensor, Tensor]:
        # Popularity is known of every item alike; whom an item is for, the better the more users it has.
        sureness = degree / (degree + SURE_DEGREE)
        return linalg.weighted_ridge(content, self._across(items), sureness, self.config.cold_ridge_penalty)

    def _cross_fitted_prediction(self, content: Tensor, items: Tensor, degree: Tensor) -> Tensor:
        """What content `[n, k]` says of vectors `[n, d]` across the axis of popularity, each by a fit without its
        fold."""
        fold, prediction = torch.arange(len(items), device=items.device) % linalg.FOLDS, torch.zeros_like(items)
        for held in (fold == number for number in range(linalg.FOLDS)):
            if ((degree > 0) & ~held).any():
                slopes, intercept = self._fit_across(content, items, degree.where(~held, 0))
                prediction[held] = self._across(content[held] @ slopes + intercept)
        return prediction

    @property
    def unit(self) -> float:
        """What a `popularity_offset` of 1 is along the axis: other forms than LightGCN's have other lengths."""
        return 1.0 if self.config.collaborative == "lightgcn" else self.spread / USUAL_SPREAD

    def _fit_offset(self, popularity: Tensor, degree: Tensor) -> None:
        """Fit how much more or less popular cold items of the training catalogue are than their content predicts, from
        items' places on the axis of popularity `[n]`: new ones, and those that are just ignored, as items that one user
        has met are."""
        self.spread = float(popularity[degree > 0].std(correction=0))
        if self.config.catalogue_offset is not None:
            self.offset.fill_(self.config.catalogue_offset * self.spread)
            return
        once = popularity[degree == 1]
        mean = popularity[degree > 0].mean()
        ignored = (once.mean() - mean).clamp_max(0) if len(once) else popularity.new_zeros(())
        new = share_of_new(degree)
        self.offset.copy_(new * self.config.popularity_offset * self.unit + (1 - new) * ignored)


def share_of_new(degree: Tensor) -> float:
    """The share of the cold items, of degrees `[n]`, that is more than would be ignored by chance.

    Of f_1 items with one user and f_2 with two, Chao's estimate (1984, bias-corrected) of those that were there and
    met nobody is f_1 (f_1 - 1) / (2 (f_2 + 1)).
    """
    never, once, twice = (int((degree == count).sum()) for count in range(3))
    return max(0.0, 1 - once * (once - 1) / (2 * (twice + 1)) / never) if never else 0.0
