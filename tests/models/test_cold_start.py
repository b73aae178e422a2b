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
from models.modality import ModalBatch
from models.words import CatalogueWords
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
def test_warm_items_follow_from_users_and_content(ranking: str) -> None:
    """Across the users' mean direction from both, as many users as they have against a pseudo-count."""
    w = world(
        config=small(
            cold_ridge_weight=1.7,
            cold_kernel_weight=0.6,
            cold_ridge_penalty=2.0,
            cold_pseudo_count=0.3,
            ranking=ranking,
        )
    )
    out, degree = w.forward(), w.graphs.item_degree.double().numpy()
    found = fitted(w, out)[0].numpy()

    items, axis = out.items.double().numpy(), axis_of(w, out)
    along = np.outer(axis, axis)
    across = np.eye(D) - along
    content = np.concatenate([b.double().numpy() / np.sqrt(b.shape[1]) for b in w.content.features.values()], axis=1)
    sure = degree / (degree + 10)
    neighbours = w.model.cold_start.neighbours(w.content.features, w.batch.observed, w.graphs.item_degree)
    mixed = 0.6 * neighbours.matrix.toarray() @ items @ across
    cold = degree == 0
    for row in np.flatnonzero(~cold):
        others = np.arange(ITEMS) % 5 != row % 5
        slope, typical = plain_ridge(content, items @ across, sure * others, 2.0)
        told = 1.7 * (content[row] @ slope + typical) + mixed[row]
        share = degree[row] / (degree[row] + 0.3 * degree[~cold].mean())
        np.testing.assert_allclose(
            found[row], items[row] @ along + share * items[row] @ across + (1 - share) * told @ across, atol=1e-4
        )

    noise = replace(out, items=out.items.index_fill(0, torch.from_numpy(np.flatnonzero(cold)), 99.0))
    np.testing.assert_array_equal(fitted(w, noise)[0].numpy(), found)  # without interactions they say nothing


def axis_of(w: World, out: Embeddings) -> Any:
    """The axis of popularity `[d]`."""
    axis = out.users.double().numpy()[w.graphs.user_degree.numpy() > 0].mean(axis=0)
    return axis / np.linalg.norm(axis)


@torch.no_grad()
def test_cold_items_follow_from_the_best_sum_of_predictions_by_what_is_observed() -> None:
    """One modality: of popularity, and of whom an item is for, the ridge and the kernel regression are weighed as least
    squares over the warm items that have it, each of which was predicted without itself."""
    w = world((6,), config=small(cold_ridge_penalty=2.0, prediction_scale=3.0))
    out, degree = w.forward(), w.graphs.item_degree.double().numpy()
    found = fitted(w, out)[0].numpy()
    items, axis, features = out.items.double().numpy(), axis_of(w, out), w.content.features["m0"].double().numpy()
    warm, have = degree > 0, w.batch.observed[:, 0].numpy()
    learned = warm & have
    logs = np.log(degree.clip(1)) - np.log(degree[warm]).mean()
    across = items @ (np.eye(D) - np.outer(axis, axis))
    place = items @ axis
    gain, start = plain_ridge((logs * warm)[:, None], place[:, None], warm * 1.0, 1.0)
    content = features / np.sqrt(features.shape[1])
    cosines = unit_rows(features) @ unit_rows(features).T
    near = np.exp((cosines - 1) / 0.1) * learned[None] * (1 - np.eye(ITEMS))
    targets = [(logs[:, None] * warm[:, None], warm * 1.0, 0.0), (across, degree / (degree + 10), 0.5)]
    told = []
    for target, weight, power in targets:
        ridge = np.zeros_like(target)
        for row in range(ITEMS):
            others = (np.arange(ITEMS) % 5 != row % 5) if learned[row] else np.ones(ITEMS, bool)
            slope, typical = plain_ridge(content, target, weight * learned * others, 2.0)
            ridge[row] = content[row] @ slope + typical
        kernel = near * degree[None] ** power
        sources = np.stack([ridge, kernel @ target / kernel.sum(axis=1, keepdims=True).clip(1e-12)])
        share = weight * learned / (weight * learned).sum()
        gram = np.einsum("n,and,bnd->ab", share, sources, sources)
        gram[np.diag_indices(2)] *= 1 + 0.03 + 3 / (weight * learned).sum()
        moments = np.einsum("n,and,nd->a", share, sources, target)
        weights = np.linalg.solve(gram, moments)
        told.append((np.einsum("a,and->nd", weights, sources), weights @ moments))
    (popularity, variance), (taste, _) = told
    spread = place[warm].std()
    along = start + gain[0] * 3.0 * (popularity[:, 0] - np.sqrt(variance)) + w.model.cold_start.offset.item() * spread
    expected = along[:, None] * axis + 3.0 * taste
    rows = ~warm & have
    assert rows.any()
    np.testing.assert_allclose(found[rows], expected[rows], atol=2e-4)
    nothing = ~warm & ~have
    assert nothing.any()
    low = start + min(w.model.cold_start.offset.item(), 0.0) * spread
    np.testing.assert_allclose(found[nothing], low * axis[None].repeat(nothing.sum(), 0), atol=1e-5)


def unit_rows(rows: Any) -> Any:
    """Rows brought to length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)


@torch.no_grad()
def test_a_modality_that_says_nothing_gets_little() -> None:
    """Pictures of nobody's taste beside texts that all is made of: by a picture alone, items are hardly told apart."""
    rng, n = np.random.default_rng(0), 200
    text = torch.from_numpy(rng.normal(size=(n, 6)).astype(np.float32))
    noise = torch.from_numpy(rng.normal(size=(n, 6)).astype(np.float32))
    w = world((6, 6), config=small(rank=6), batch=ModalBatch({"m0": text, "m1": noise}, torch.ones(n, 2).bool()))
    degree = (2 + text[:, 0]).exp().round() + 1
    degree[-40:] = 0
    items = torch.cat([text @ torch.randn(6, D - 1, generator=generator()), degree.clamp_min(1).log()[:, None]], dim=1)
    users = torch.zeros(5, D)
    users[:, -1] = 1
    cold_start = w.model.cold_start
    spreads = {}
    for number, name in enumerate(("m0", "m1")):
        observed = torch.ones(n, 2).bool()
        observed[-40:, 1 - number] = False
        found, _ = cold_start.fit(users, items, w.content.features, observed, degree)
        spreads[name] = found[-40:].std(dim=0)
    assert (spreads["m1"] < 0.25 * spreads["m0"]).all()


@torch.no_grad()
def test_cold_items_that_nothing_is_known_of_are_not_raised() -> None:
    w = world(config=small(popularity_offset=3.0))
    out = w.forward()
    nothing = {name: torch.zeros_like(block) for name, block in w.content.features.items()}
    found, _ = fitted(w, out, features=nothing)
    axis = w.model.cold_start.popularity_axis
    mean = out.items[~out.cold] @ axis
    assert (found[out.cold] @ axis <= mean.max()).all()
    torch.testing.assert_close(found[out.cold], (found[out.cold] @ axis)[:, None] * axis)


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
    assert w.model.cold_start.offset.item() * w.model.cold_start.spread == pytest.approx(ignored, abs=1e-5)


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
    maps = w.model.cold_start.slopes.clone(), w.model.cold_start.gram.clone()
    vectors, expected_shrunk = fitted(w, out, shrunk=shrunk)
    assert torch.equal(plain[out.cold], vectors[out.cold])
    assert torch.equal(maps[0], w.model.cold_start.slopes)
    assert torch.equal(maps[1], w.model.cold_start.gram)
    whole, _ = fitted(w, out, features=shrunk)
    torch.testing.assert_close(vectors[~out.cold], whole[~out.cold])
    assert torch.equal(expected_plain, expected_shrunk) == (weight == 0)


@torch.no_grad()
def test_words_tell_of_new_items_what_features_do_not() -> None:
    """An item is as popular as the maker whose name stands in its text; the features are noise."""
    rng, n = np.random.default_rng(0), 120
    maker = rng.integers(0, 4, size=n)
    degree = torch.from_numpy(np.array([1.0, 8, 40, 200], np.float32)[maker])
    degree[-30:] = 0
    noise = torch.from_numpy(rng.normal(size=(n, 6)).astype(np.float32))
    w = world((6,), config=small(rank=6), batch=ModalBatch({"m0": noise}, torch.ones(n, 1).bool()))
    items = torch.zeros(n, D)
    items[:, -1] = degree.clamp_min(1).log()
    users = torch.zeros(5, D)
    users[:, -1] = 1
    texts = [f"by maker{number} and others" for number in maker]
    words = CatalogueWords.of(texts, degree.numpy(), (degree / (degree + 10)).numpy())
    cold_start = w.model.cold_start
    places = {}
    for given in (None, words):
        found, _ = cold_start.fit(users, items, w.content.features, torch.ones(n, 1).bool(), degree, None, given)
        places[given is words] = np.array(
            [found[-30:, -1].numpy()[maker[-30:] == number].mean() for number in range(4)]
        )
    assert (np.diff(places[True]) > 0.3).all()
    assert np.ptp(places[False]) < 0.3 * np.ptp(places[True])
