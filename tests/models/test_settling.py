"""What an item is ranked by after training, against a plain reading of the closed forms."""

from __future__ import annotations

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
UNTOUCHED_ITEM = ITEMS - 1


@torch.no_grad()
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("count", [2, 100])
def test_relatives_are_the_nearest_items_that_somebody_touched(power: float, count: int) -> None:
    w = world(config=small(cold_popularity=power, cold_temperature=0.3, cold_neighbours=count))
    degree, target = w.graphs.item_degree.numpy(), torch.randn(ITEMS, D, generator=generator())
    relatives = w.model.settling.relatives(w.side.features, w.batch.observed, w.graphs.item_degree)
    mixed = relatives @ target
    assert (degree == 0).any()
    for row, found in enumerate(mixed.numpy()):
        total, weight = np.zeros(D), 0.0
        for column, features in enumerate(w.side.features.values()):
            if not features[row].any():
                continue
            cosines = functional.cosine_similarity(features[[row]], features, dim=1).numpy()
            have = np.flatnonzero(w.batch.observed[:, column].numpy() & (np.arange(ITEMS) != row))
            for other in have[np.argsort(-cosines[have])][:count]:
                if degree[other]:
                    own = np.exp(cosines[other] / 0.3) * degree[other] ** power
                    total, weight = total + own * target[other].numpy(), weight + own
        np.testing.assert_allclose(found, total / max(weight, 1e-9), atol=1e-4)
    changed = target.index_fill(0, torch.tensor([UNTOUCHED_ITEM]), 99.0)  # nobody touched it: it says nothing
    torch.testing.assert_close(relatives @ changed, mixed)


def plain_ridge(x: Any, y: Any, weight: Any, penalty: float) -> tuple[Any, Any]:
    """Weighted ridge regression whose intercept is free, as a system of equations with the intercept in it."""
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    free = np.diag([penalty] * (x.shape[1] - 1) + [0.0])
    solved = np.linalg.solve(x.T @ (weight[:, None] * x) + free, x.T @ (weight[:, None] * y))
    return solved[:-1], solved[-1]


def settle(w: World, out: Embeddings, degree: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return w.model.settling.settle(
        out, w.side.features, w.batch.observed, w.graphs.item_degree if degree is None else degree
    )


@torch.no_grad()
@pytest.mark.parametrize("ranking", ["softmax", "bpr"])
def test_items_are_settled_by_their_users_and_their_content(ranking: str) -> None:
    """Untouched ones by content alone: along the users' mean direction popularity, of which the logarithm of the degree
    is what is predicted, and across it whom the item is for.
    Touched ones across that direction by both, as many users as they have against `prior` of the mean item's."""
    w = world(
        config=small(cold_linear=1.7, cold_kernel=0.6, cold_penalty=2.0, cold_spread=3.0, prior=0.3, ranking=ranking)
    )
    out, degree = w.forward(), w.graphs.item_degree.double().numpy()
    found = settle(w, out)[0].numpy()

    users, items = out.users.double().numpy(), out.items.double().numpy()
    axis = users[w.graphs.user_degree.numpy() > 0].mean(axis=0)
    axis /= np.linalg.norm(axis)
    along = np.outer(axis, axis)
    across = np.eye(D) - along
    content = np.concatenate([b.double().numpy() / np.sqrt(b.shape[1]) for b in w.side.features.values()], axis=1)
    sure = degree / (degree + 10)
    relatives = w.model.settling.relatives(w.side.features, w.batch.observed, w.graphs.item_degree)
    mixed = 0.6 * relatives.matrix.toarray() @ items @ across

    cold = degree == 0
    logs, place = np.log(degree.clip(1))[:, None], (items @ axis)[:, None]
    slope, typical = plain_ridge(content, logs, ~cold * 1.0, 2.0)
    gain, start = plain_ridge(logs, place, ~cold * 1.0, 1.0)
    apart = content @ slope + typical - logs[~cold].mean()
    popularity = start + gain * (logs[~cold].mean() + 3.0 * apart)
    expected = (popularity + w.model.settling.untouched_offset.item()) * axis
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
    np.testing.assert_array_equal(settle(w, noise)[0].numpy(), found)  # nobody touched them: they say nothing


@torch.no_grad()
def test_without_a_prior_content_settles_only_what_nobody_touched() -> None:
    w = world(config=small(prior=0.0))
    out = w.forward()
    items, _ = settle(w, out)
    torch.testing.assert_close(items[~out.cold], out.items[~out.cold])
    assert not torch.isclose(items[out.cold], out.items[out.cold]).all(dim=1).any()


@torch.no_grad()
def test_untouched_items_count_as_new_as_far_as_more_are_untouched_than_chance_would_leave() -> None:
    def degrees(never: int, once: int, twice: int) -> Tensor:
        return torch.tensor([0.0] * never + [1.0] * once + [2.0] * twice + [9.0] * 5)

    assert share_of_new(degrees(20, 5, 1)) == 1 - 5 * 4 / (2 * 2) / 20
    assert share_of_new(degrees(4, 5, 1)) == share_of_new(degrees(0, 5, 1)) == 0
    assert share_of_new(degrees(20, 1, 0)) == 1

    w = world(config=small(cold_lift=0.8))
    out, degree = w.forward(), w.graphs.item_degree.clone()
    degree[degree > 0] = 5
    settle(w, out, degree)  # not one touched once: all that are untouched are new
    assert w.model.settling.untouched_offset.item() == pytest.approx(0.8)
    degree[:6] = torch.tensor([1.0, 1, 1, 1, 1, 1])
    settle(w, out, degree)
    assert share_of_new(degree) == 0  # as many are to be expected ignored
    popularity = out.items @ w.model.settling.popularity_axis
    ignored = min((popularity[degree == 1].mean() - popularity[degree > 0].mean()).item(), 0)
    assert w.model.settling.untouched_offset.item() == pytest.approx(ignored, abs=1e-5)


@torch.no_grad()
def test_nothing_is_expected_where_nobody_has_touched_anything() -> None:
    w = world()
    out = w.forward()
    items, expected = settle(w, out, torch.zeros(ITEMS))
    assert torch.equal(items, out.items)
    assert not expected.any()
    assert not w.model.settling.untouched_map.any()
    assert not w.model.settling.popularity_axis.any()


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_touched_items_settle_by_features_with_what_is_guessed_of_them(weight: float) -> None:
    w = world(config=small(denoise=weight))
    guesses = w.model.fit_base(w.evidence, w.batch.observed)
    read = w.model.denoised(w.side.features, guesses, w.batch.observed)
    for column, name in enumerate(w.batch.names):
        own, guess = w.side.features[name].double().numpy(), guesses[name].double().numpy()
        projection = w.model.tower(name).projection
        scale = projection.deviation.double().numpy() ** projection.whitening
        direction = own * scale
        direction /= np.linalg.norm(direction, axis=1, keepdims=True).clip(1e-12)
        direction = (direction + weight * guess) / scale
        expected = direction / np.linalg.norm(direction, axis=1, keepdims=True).clip(1e-12) * np.sqrt(own.shape[1])
        have = w.batch.observed[:, column].numpy() & guess.any(axis=1)
        assert have.any()
        np.testing.assert_allclose(read[name][have], expected[have], atol=1e-4)
        np.testing.assert_array_equal(read[name][~have], w.side.features[name][~have])
        assert torch.equal(read[name], w.side.features[name]) == (weight == 0)
    out, observed, degree = w.forward(), w.batch.observed, w.graphs.item_degree
    plain, expected_plain = w.model.settling.settle(out, w.side.features, observed, degree)
    maps = w.model.settling.untouched_map.clone(), w.model.settling.untouched_typical.clone()
    settled, expected_read = w.model.settling.settle(out, w.side.features, observed, degree, read)
    assert torch.equal(plain[out.cold], settled[out.cold])
    assert torch.equal(maps[0], w.model.settling.untouched_map)
    assert torch.equal(maps[1], w.model.settling.untouched_typical)
    whole, _ = w.model.settling.settle(out, read, observed, degree)
    torch.testing.assert_close(settled[~out.cold], whole[~out.cold])
    assert torch.equal(expected_plain, expected_read) == (weight == 0)
