"""What an item is ranked by after training, against a plain reading of the closed forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.dgmrec.cold_start import share_of_new
from models.dgmrec.model import Embeddings
from tests.models.worlds import ITEMS, SMALL, World, generator, small, world

D = SMALL.embedding_size
COLD_ITEM = ITEMS - 1


@torch.no_grad()
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("count", [2, 100])
def test_neighbours_are_the_nearest_warm_items(power: float, count: int) -> None:
    w = world(config=small(cold_popularity=power, cold_temperature=0.3, cold_neighbours=count))
    degree, target = w.graphs.item_degree.numpy(), torch.randn(ITEMS, D, generator=generator())
    neighbours = w.model.cold_start.neighbours(w.content.features, w.batch.observed, w.graphs.item_degree)
    mixed = neighbours @ target
    assert (degree == 0).any()
    for row, found in enumerate(mixed.numpy()):
        total, weight = np.zeros(D), 0.0
        for column, features in enumerate(w.content.features.values()):
            if not features[row].any():
                continue
            cosines = functional.cosine_similarity(features[[row]], features, dim=1).numpy()
            have = np.flatnonzero(w.batch.observed[:, column].numpy() & (degree > 0) & (np.arange(ITEMS) != row))
            for other in have[np.argsort(-cosines[have])][:count]:
                own = np.exp(cosines[other] / 0.3) * degree[other] ** power
                total, weight = total + own * target[other].numpy(), weight + own
        np.testing.assert_allclose(found, total / max(weight, 1e-9), atol=1e-4)
    changed = target.index_fill(0, torch.tensor([COLD_ITEM]), 99.0)  # without interactions it says nothing
    torch.testing.assert_close(neighbours @ changed, mixed)


def plain_ridge(x: Any, y: Any, weight: Any, penalty: float) -> tuple[Any, Any]:
    """Weighted ridge regression whose intercept is free, as a system of equations with the intercept in it."""
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    free = np.diag([penalty] * (x.shape[1] - 1) + [0.0])
    solved = np.linalg.solve(x.T @ (weight[:, None] * x) + free, x.T @ (weight[:, None] * y))
    return solved[:-1], solved[-1]


def fitted(
    w: World,
    out: Embeddings,
    degree: Tensor | None = None,
    *,
    features: Mapping[str, Tensor] | None = None,
    shrunk: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """What `ColdStart.fit` answers."""
    return w.model.cold_start.fit(
        out.users[out.histories.degree > 0],
        out.items,
        w.content.features if features is None else features,
        w.batch.observed,
        w.graphs.item_degree if degree is None else degree,
        shrunk,
    )


@torch.no_grad()
@pytest.mark.parametrize("ranking", ["softmax", "bpr"])
def test_vectors_follow_from_users_and_content(ranking: str) -> None:
    """Of cold items from content alone: along the users' mean direction popularity, of which the logarithm of the
    degree is what is predicted, and across it whom the item is for.
    Of warm ones across that direction from both, as many users as they have against a pseudo-count."""
    w = world(
        config=small(
            cold_ridge_weight=1.7,
            cold_kernel_weight=0.6,
            cold_ridge_penalty=2.0,
            popularity_slope=3.0,
            cold_pseudo_count=0.3,
            ranking=ranking,
        )
    )
    out, degree = w.forward(), w.graphs.item_degree.double().numpy()
    found = fitted(w, out)[0].numpy()

    users, items = out.users.double().numpy(), out.items.double().numpy()
    axis = users[w.graphs.user_degree.numpy() > 0].mean(axis=0)
    axis /= np.linalg.norm(axis)
    along = np.outer(axis, axis)
    across = np.eye(D) - along
    content = np.concatenate([b.double().numpy() / np.sqrt(b.shape[1]) for b in w.content.features.values()], axis=1)
    sure = degree / (degree + 10)
    neighbours = w.model.cold_start.neighbours(w.content.features, w.batch.observed, w.graphs.item_degree)
    mixed = 0.6 * neighbours.matrix.toarray() @ items @ across

    cold = degree == 0
    logs, place = np.log(degree.clip(1))[:, None], (items @ axis)[:, None]
    slope, typical = plain_ridge(content, logs, ~cold * 1.0, 2.0)
    gain, start = plain_ridge(logs, place, ~cold * 1.0, 1.0)
    apart = content @ slope + typical - logs[~cold].mean()
    popularity = start + gain * (logs[~cold].mean() + 3.0 * apart)
    expected = (popularity + w.model.cold_start.offset.item()) * axis
    slope, typical = plain_ridge(content, items @ across, sure, 2.0)
    expected += 1.7 * (content @ slope + typical) + mixed
    np.testing.assert_allclose(found[cold], expected[cold], atol=1e-4)

    for row in np.flatnonzero(~cold):
        others = np.arange(ITEMS) % 5 != row % 5
        slope, typical = plain_ridge(content, items @ across, sure * others, 2.0)
        told = content[row] @ slope + typical + mixed[row]
        share = degree[row] / (degree[row] + 0.3 * degree[~cold].mean())
        np.testing.assert_allclose(
            found[row], items[row] @ along + share * items[row] @ across + (1 - share) * told, atol=1e-4
        )

    noise = replace(out, items=out.items.index_fill(0, torch.from_numpy(np.flatnonzero(cold)), 99.0))
    np.testing.assert_array_equal(fitted(w, noise)[0].numpy(), found)  # without interactions they say nothing


@torch.no_grad()
def test_without_a_pseudo_count_content_changes_cold_items_only() -> None:
    w = world(config=small(cold_pseudo_count=0.0))
    out = w.forward()
    items, _ = fitted(w, out)
    torch.testing.assert_close(items[~out.cold], out.items[~out.cold])
    assert not torch.isclose(items[out.cold], out.items[out.cold]).all(dim=1).any()


@torch.no_grad()
def test_cold_items_count_as_new_as_far_as_there_are_more_than_chance_would_leave() -> None:
    def degrees(never: int, once: int, twice: int) -> Tensor:
        return torch.tensor([0.0] * never + [1.0] * once + [2.0] * twice + [9.0] * 5)

    assert share_of_new(degrees(20, 5, 1)) == 1 - 5 * 4 / (2 * 2) / 20
    assert share_of_new(degrees(4, 5, 1)) == share_of_new(degrees(0, 5, 1)) == 0
    assert share_of_new(degrees(20, 1, 0)) == 1

    w = world(config=small(popularity_offset=0.8))
    out, degree = w.forward(), w.graphs.item_degree.clone()
    degree[degree > 0] = 5
    fitted(w, out, degree)  # no item with one user: all cold ones are new
    assert w.model.cold_start.offset.item() == pytest.approx(0.8)
    degree[:6] = torch.tensor([1.0, 1, 1, 1, 1, 1])
    fitted(w, out, degree)
    assert share_of_new(degree) == 0  # as many are to be expected ignored
    popularity = out.items @ w.model.cold_start.popularity_axis
    ignored = min((popularity[degree == 1].mean() - popularity[degree > 0].mean()).item(), 0)
    assert w.model.cold_start.offset.item() == pytest.approx(ignored, abs=1e-5)


@torch.no_grad()
def test_nothing_is_predicted_without_interactions() -> None:
    w = world()
    out = w.forward()
    items, expected = fitted(w, out, torch.zeros(ITEMS))
    assert torch.equal(items, out.items)
    assert not expected.any()
    assert not w.model.cold_start.slopes.any()
    assert not w.model.cold_start.popularity_axis.any()


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_warm_items_are_predicted_from_features_shrunk_towards_generated_ones(weight: float) -> None:
    w = world(config=small(feature_shrinkage=weight))
    guesses = w.model.fit_base(w.evidence, w.batch.observed)
    shrunk = w.model.shrunk_features(w.content.features, guesses, w.batch.observed)
    for column, name in enumerate(w.batch.names):
        own, guess = w.content.features[name].double().numpy(), guesses[name].double().numpy()
        projection = w.model.tower(name).projection
        scale = projection.deviation.double().numpy() ** projection.whitening
        direction = own * scale
        direction /= np.linalg.norm(direction, axis=1, keepdims=True).clip(1e-12)
        direction = (direction + weight * guess) / scale
        expected = direction / np.linalg.norm(direction, axis=1, keepdims=True).clip(1e-12) * np.sqrt(own.shape[1])
        have = w.batch.observed[:, column].numpy() & guess.any(axis=1)
        assert have.any()
        np.testing.assert_allclose(shrunk[name][have], expected[have], atol=1e-4)
        np.testing.assert_array_equal(shrunk[name][~have], w.content.features[name][~have])
        assert torch.equal(shrunk[name], w.content.features[name]) == (weight == 0)
    out = w.forward()
    plain, expected_plain = fitted(w, out)
    maps = w.model.cold_start.slopes.clone(), w.model.cold_start.intercept.clone()
    vectors, expected_shrunk = fitted(w, out, shrunk=shrunk)
    assert torch.equal(plain[out.cold], vectors[out.cold])
    assert torch.equal(maps[0], w.model.cold_start.slopes)
    assert torch.equal(maps[1], w.model.cold_start.intercept)
    whole, _ = fitted(w, out, features=shrunk)
    torch.testing.assert_close(vectors[~out.cold], whole[~out.cold])
    assert torch.equal(expected_plain, expected_shrunk) == (weight == 0)
