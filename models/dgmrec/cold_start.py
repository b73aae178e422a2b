"""Cold start: the vectors that items are ranked by once DGMRec has been trained, from their users and from their
content, by closed forms.

* A warm item's vector comes from its users, and where these are few, from its content; a cold item's is predicted from
  what is observed of it (`models.dgmrec.expectation`).
* How popular an item is and whom it is for follow from different things, so that both are predicted apart: along the
  axis of popularity, the mean direction of the users, and across it.
* A warm item's vector, across the axis, is shrunk towards a prediction, made without the item, by a pseudo-count of
  users (`cold_pseudo_count`): a ridge regression on its completed features in which items weigh as surely as their
  vectors are known, and a kernel regression on the warm items nearest by any modality.
* Most of an observed feature says nothing of who likes the item, and a generated one is free of that noise; lest items
  with all their cells do worse than others, a warm item's observed features are read here together with what is
  generated for them unseen (`feature_shrinkage`).
* Whether a cold item of the training catalogue is new or just ignored nobody knows; by Chao's estimate of unseen
  species a certain number is to be expected ignored, and only what goes beyond counts as new (`offset`).

To drop the collaborative part from random items in training, so that a prediction learns to stand in, cost the ranking
of all others more than it gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from models import linalg
from models.dgmrec import expectation, inference
from models.dgmrec.config import DGMRecConfig
from models.dgmrec.expectation import POPULARITY, SHRINKAGE, TASTE, ColdMaps
from models.graph import Graph, nearest, rescaled, weighted_graph
from models.words import WORDS, CatalogueWords

SURE_DEGREE = 10.0  # users at which an item's vector is known half as surely as it can be
FEWEST_ITEMS = 2 * linalg.FOLDS  # warm ones with a modality, for anything to be learned of it


class ColdStart(nn.Module):
    """Maps from features to vectors, fitted on the warm items of a trained model."""

    popularity_axis: Tensor
    slopes: Tensor
    intercepts: Tensor
    word_frequency: Tensor
    word_slopes: Tensor
    word_intercept: Tensor
    gram: Tensor
    moments: Tensor
    place: Tensor
    offset: Tensor
    pseudo_count: Tensor

    def __init__(self, config: DGMRecConfig, ranks: Mapping[str, int]) -> None:
        super().__init__()
        self.config, self.names = config, tuple(ranks)
        d, count = config.embedding_size, len(ranks)
        self.register_buffer("popularity_axis", torch.zeros(d))
        self.register_buffer("slopes", torch.zeros(sum(ranks.values()), 1 + d))
        self.register_buffer("intercepts", torch.zeros(count, 1 + d))
        self.register_buffer("word_frequency", torch.zeros(WORDS))
        self.register_buffer("word_slopes", torch.zeros(WORDS, 1 + d))
        self.register_buffer("word_intercept", torch.zeros(1 + d))
        self.register_buffer("gram", torch.zeros(2, 2 * count + 1, 2 * count + 1))
        self.register_buffer("moments", torch.zeros(2, 2 * count + 1))
        self.register_buffer("place", torch.zeros(4))
        self.register_buffer("offset", torch.zeros(()))  # of cold items of the training catalogue
        self.register_buffer("pseudo_count", torch.zeros(()))  # as many users as an item's content counts for
        self.as_new = torch.zeros(0, d)  # [n, d], of the last fit, see `fit`

    @property
    def maps(self) -> ColdMaps:
        """What has been fitted."""
        return ColdMaps(self.popularity_axis, self.slopes, self.intercepts, self.gram, self.moments, self.place)

    @property
    def spread(self) -> float:
        """The standard deviation of the warm items' places along the axis, which offsets are counted in."""
        return float(self.place[3])

    @torch.no_grad()
    def fit(
        self,
        users: Tensor,
        items: Tensor,
        features: Mapping[str, Tensor],
        observed: Tensor,
        degree: Tensor,
        shrunk: Mapping[str, Tensor] | None = None,
        words: CatalogueWords | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Fit the maps; answer the vectors `[n, d]` that items are ranked by after training, and the prediction of each
        from its content. What every item would be ranked by were it new, without an offset, is then in `as_new`.

        Args:
            users: `[W, d]`, vectors of the users with interactions. items: `[n, d]`, as trained.
            features: completed, by modality `[n, r_m]`. observed: bool `[n, M]`. degree: `[n]`.
            shrunk: what warm items are predicted from, the `shrunk_features`; by default the features.
            words: of the items' texts.
        """
        warm = degree > 0
        self.as_new = torch.zeros_like(items)
        if not warm.any():
            return items, torch.zeros_like(items)
        self.popularity_axis.copy_(linalg.unit(users.mean(dim=0)))
        self.pseudo_count.copy_(self.config.cold_pseudo_count * degree[warm].mean())
        self._fit_place(items @ self.popularity_axis, degree)
        told = torch.cat([_told(features, observed, self.names), _worded(words, degree)[:, None]], dim=1)
        predictions = self._fit_sources(items, features, told, degree, words)
        self._fit_offset(items @ self.popularity_axis, degree)
        self.as_new = self._expected(predictions, told, torch.zeros_like(self.offset))
        cold = self._expected(predictions, told, self.offset)
        read = features if shrunk is None else shrunk
        kernel = self.config.cold_kernel_weight * self._across(self.neighbours(read, observed, degree) @ items)
        linear = self.config.cold_ridge_weight * self._cross_fitted_prediction(self._content(read), items, degree)
        prediction = torch.where(warm[:, None], linear + kernel, self.as_new)
        shrunk_vectors = inference.shrink(items, prediction, degree, self.pseudo_count, self.popularity_axis)
        return torch.where(warm[:, None], shrunk_vectors, cold), prediction

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

    # --- what a new item's content leads to expect ----------------------------------------------------------------

    def _fit_place(self, place: Tensor, degree: Tensor) -> None:
        """Fit where the warm items' degrees have them along the axis of popularity, from their places on it `[n]`.

        Content says more of the logarithm of an item's degree than of its place, which depends on who its users are as
        well; the place is what, along the warm items, goes with that logarithm.
        """
        warm, log_degree = degree > 0, degree.clamp_min(1).log()[:, None]
        gain, start = linalg.weighted_ridge(log_degree, place[:, None], warm.to(place.dtype), 1.0)
        mean = log_degree[warm].mean()
        self.place.copy_(torch.stack([mean, start[0] + mean * gain[0, 0], gain[0, 0], place[warm].std(correction=0)]))

    def _fit_sources(
        self,
        items: Tensor,
        features: Mapping[str, Tensor],
        told: Tensor,
        degree: Tensor,
        words: CatalogueWords | None,
    ) -> Tensor:
        """Fit each modality's ridge regression on the warm items that have it told (bool `[n, M + 1]`), that on words,
        and the moments of all predictions; answer these `[n, 2M + 1, 1 + d]`, each item's made without it."""
        warm = degree > 0
        log_degree = degree.clamp_min(1).log()[:, None] - self.place[0]
        truth = torch.cat([log_degree * warm[:, None], self._across(items)], dim=1)
        ridge, kernel = [], []
        start = 0
        for column, name in enumerate(self.names):
            rows, block = told[:, column] & warm, features[name]
            part = slice(start, start := start + block.shape[1])
            if int(rows.sum()) < FEWEST_ITEMS:
                self.slopes[part], self.intercepts[column] = 0, 0
                ridge.append(torch.zeros_like(truth))
                kernel.append(torch.zeros_like(truth))
                continue
            fitted, self.slopes[part], self.intercepts[column] = self._ridge(block, truth, rows, degree)
            ridge.append(fitted)
            kernel.append(self._kernel(block, truth, rows, degree))
        by_words = torch.zeros_like(truth) if words is None else self._fit_words(truth, words)
        predictions: Tensor = torch.stack([*ridge, *kernel, by_words], dim=1) * expectation.sources(told)[:, :, None]
        sure = degree / (degree + SURE_DEGREE)
        for what, columns, weight in (POPULARITY, slice(0, 1), warm.to(sure.dtype)), (TASTE, slice(1, None), sure):
            gram, moments = _second_moments(predictions[..., columns], truth[:, columns], told, weight)
            self.gram[what], self.moments[what] = gram, moments
        return predictions

    def _ridge(self, block: Tensor, truth: Tensor, rows: Tensor, degree: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ridge regressions of the truth `[n, 1 + d]` on a modality's features `[n, r]`, fitted on some rows (bool
        `[n]`): what they answer for every row, for one of these by a fit without its fold, slopes and intercept."""
        content = block / block.shape[1] ** 0.5
        weights = (rows.to(truth.dtype), torch.where(rows, degree / (degree + SURE_DEGREE), 0))

        def fit(among: Tensor) -> tuple[Tensor, Tensor]:
            # Popularity is known of every item alike; whom an item is for, the better the more users it has.
            parts = [
                linalg.weighted_ridge(content, target, weight * among, self.config.cold_ridge_penalty)
                for target, weight in zip((truth[:, :1], truth[:, 1:]), weights, strict=True)
            ]
            return torch.cat([slopes for slopes, _ in parts], dim=1), torch.cat([start for _, start in parts])

        slopes, intercept = fit(torch.ones_like(rows))
        answers = intercept + content @ slopes
        fold = torch.arange(len(rows), device=rows.device) % linalg.FOLDS
        for number in range(linalg.FOLDS):
            held = rows & (fold == number)
            if held.any() and (rows & ~held).any():
                slopes_without, start = fit(fold != number)
                answers[held] = start + content[held] @ slopes_without
        return answers, slopes / block.shape[1] ** 0.5, intercept

    def _fit_words(self, truth: Tensor, words: CatalogueWords) -> Tensor:
        """Fit the ridge regressions of the truth `[n, 1 + d]` on words; their answers `[n, 1 + d]`."""
        given = truth.cpu().numpy()
        popularity, taste = words.popularity.fit(given[:, :1]), words.taste.fit(given[:, 1:])
        fitted = [np.concatenate(pair, axis=-1) for pair in zip(popularity, taste, strict=True)]
        answers: Tensor
        answers, slopes, intercept = (torch.from_numpy(table).to(truth.device) for table in fitted)
        self.word_frequency.copy_(torch.from_numpy(words.frequency))
        self.word_slopes.copy_(slopes)
        self.word_intercept.copy_(intercept)
        return answers

    def _kernel(self, block: Tensor, truth: Tensor, rows: Tensor, degree: Tensor) -> Tensor:
        """Kernel regressions of the truth `[n, 1 + d]` on the nearest of some rows (bool `[n]`) by a modality's
        features `[n, r]`, no item its own neighbour."""
        everyone = torch.arange(len(rows), device=rows.device)
        near, cosines = nearest(block, block, self.config.cold_neighbours, allowed=rows, exclude=everyone)
        means = []
        for power, target in ((0.0, truth[:, :1]), (self.config.cold_popularity, truth[:, 1:])):
            weights = inference.kernel_weight(self.config, cosines, degree[near], power)
            means.append(Graph(rescaled(weighted_graph(near, weights, len(rows))), degree.device) @ target)
        return torch.cat(means, dim=1)

    def _expected(self, predictions: Tensor, told: Tensor, offset: Tensor) -> Tensor:
        """The vectors `[n, d]` to be expected of new items, from the predictions `[n, 2M + 1, 1 + d]`."""
        weights = expectation.source_weights(self.maps, told)
        place = expectation.mean_place(self.config, self.maps, weights, offset.expand(len(told)))
        set_apart = expectation.apart(self.config, self.maps, predictions, weights.popularity, weights.taste)
        expected: Tensor = place[:, None] * self.popularity_axis + set_apart
        return expected

    # --- what warm items are shrunk towards -----------------------------------------------------------------------

    def _content(self, features: Mapping[str, Tensor]) -> Tensor:
        content: Tensor = inference.content_row({name: features[name] for name in self.names})
        return content

    def _across(self, rows: Tensor) -> Tensor:
        component: Tensor = inference.across(rows, self.popularity_axis)
        return component

    def _cross_fitted_prediction(self, content: Tensor, items: Tensor, degree: Tensor) -> Tensor:
        """What content `[n, k]` says of vectors `[n, d]` across the axis of popularity, each by a fit without its
        fold."""
        fold, prediction = torch.arange(len(items), device=items.device) % linalg.FOLDS, torch.zeros_like(items)
        sureness = degree / (degree + SURE_DEGREE)
        for held in (fold == number for number in range(linalg.FOLDS)):
            if ((degree > 0) & ~held).any():
                weight = sureness.where(~held, 0)
                target, penalty = self._across(items), self.config.cold_ridge_penalty
                slopes, intercept = linalg.weighted_ridge(content, target, weight, penalty)
                prediction[held] = self._across(content[held] @ slopes + intercept)
        return prediction

    def _fit_offset(self, place: Tensor, degree: Tensor) -> None:
        """Fit how much more or less popular cold items of the training catalogue are than their content predicts, in
        standard deviations, from items' places on the axis of popularity `[n]`: new ones, and those that are just
        ignored, as items that one user has met are."""
        if self.config.catalogue_offset is not None:
            self.offset.fill_(self.config.catalogue_offset)
            return
        once = place[degree == 1]
        ignored = (once.mean() - place[degree > 0].mean()).clamp_max(0) if len(once) else place.new_zeros(())
        new = share_of_new(degree)
        self.offset.copy_(new * self.config.popularity_offset + (1 - new) * ignored / max(self.spread, 1e-12))


def _told(features: Mapping[str, Tensor], observed: Tensor, names: Sequence[str]) -> Tensor:
    """Which modalities say anything of an item, bool `[n, M]`."""
    return observed & torch.stack([features[name].norm(dim=1) > 0 for name in names], dim=1)


def _worded(words: CatalogueWords | None, degree: Tensor) -> Tensor:
    """Of which items words say anything, bool `[n]`."""
    known = np.zeros(len(degree), dtype=np.bool_) if words is None else words.known
    return torch.from_numpy(known).to(degree.device)


def _second_moments(predictions: Tensor, truth: Tensor, told: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Second moments of predictions `[n, 2M + 1, t]` and of these with the truth `[n, t]`, over the items that have
    both told (bool `[n, M + 1]`), which weigh `[n]`.

    The former are shrunk towards their diagonal, more where items are few: moments of few are chance. As each is of
    other items, they may not be of anything that there can be; the nearest that are have no negative eigenvalue.
    """
    present = expectation.sources(told).to(weight.dtype)
    weighted = predictions * weight[:, None, None]
    both: Tensor = (present * weight[:, None]).T @ present
    gram = torch.einsum("nat,nbt->ab", weighted, predictions) / both.clamp_min(1e-9)
    moments = torch.einsum("nat,nt->a", weighted, truth) / both.diagonal().clamp_min(1e-9)
    values, vectors = torch.linalg.eigh(gram.double())
    gram = ((vectors * values.clamp_min(0)) @ vectors.T).to(gram.dtype)
    gram.diagonal().mul_(1 + SHRINKAGE + len(gram) / both.diagonal().clamp_min(1.0))
    return gram, moments


def share_of_new(degree: Tensor) -> float:
    """The share of the cold items, of degrees `[n]`, that is more than would be ignored by chance.

    Of f_1 items with one user and f_2 with two, Chao's estimate (1984, bias-corrected) of those that were there and
    met nobody is f_1 (f_1 - 1) / (2 (f_2 + 1)).
    """
    never, once, twice = (int((degree == count).sum()) for count in range(3))
    return max(0.0, 1 - once * (once - 1) / (2 * (twice + 1)) / never) if never else 0.0
