"""DGMRec: shapes for any number of modalities and any holes, what may not leak, what must learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from models import losses, ridge
from models.dgmrec import DGMRec, DGMRecConfig, Embeddings, Projection, leaned_on, share_of_new
from models.graph import Graph, InteractionGraphs, mean_graph
from models.imputers import gather_evidence
from models.modality import ModalBatch, ModalitySpec
from models.ridge import PENALTIES
from tests.models.worlds import ITEMS, SMALL, USERS, World, interactions, linear_batch, world

DIMS = (6, 5, 3, 7)
D = SMALL.embedding_size
LONELY_USER, UNTOUCHED_ITEM = USERS - 1, ITEMS - 1


def config(**changes: object) -> DGMRecConfig:
    return DGMRecConfig.model_validate(SMALL.model_dump() | changes)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_losses(w: World, out: Embeddings) -> dict[str, Tensor]:
    users = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    positives, negatives = torch.tensor([3, 5, 8, 13, 2, 1, 0]), torch.tensor([9, 10, 11, 12, 13, 14, 15])
    terms = w.model.ranking_losses(out, users, positives, negatives, w.graphs, w.side)
    rows = torch.arange(ITEMS)
    return terms | w.model.content_losses(out, w.side, rows, w.evidence.observed, generator())


# --- config --------------------------------------------------------------------------------------------------------


def test_misspelt_setting() -> None:
    with pytest.raises(ValidationError, match="embeding_size"):
        DGMRecConfig.model_validate({"embeding_size": 8})


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", 0), ("cold_popularity", 3), ("gate", "relu"), ("layers", 0)]
)
def test_setting_out_of_range(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        DGMRecConfig.model_validate({name: value})


def test_it_needs_a_modality() -> None:
    with pytest.raises(ValueError, match="at least one modality"):
        DGMRec(SMALL, (), USERS, ITEMS)
    DGMRec(config(modal=False), (), USERS, ITEMS)


# --- projection ----------------------------------------------------------------------------------------------------


def pairwise(rows: Tensor) -> Tensor:
    unit = functional.normalize(rows, dim=1)
    return unit @ unit.T


def fitted(rows: Tensor, rank: int, whitening: float) -> Projection:
    projection = Projection(rows.shape[1], rank, whitening)
    projection.fit(rows)
    return projection


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rank", [3, 6])
def test_projection_keeps_centred_cosines(rank: int, whitening: float) -> None:
    """In the directions of the signals. Rank 3 holds all there is (the content is an image of three numbers), up to
    the noise."""
    rows = linear_batch((6,), missing=0, noise=0.01).features["m0"]
    projection = fitted(rows, rank, whitening)
    tolerance = 1e-4 if rank == 6 else 0.05
    signal, centred = projection(rows), rows - rows.mean(dim=0)
    torch.testing.assert_close(pairwise(projection.direction(signal)), pairwise(centred), atol=tolerance, rtol=0)
    torch.testing.assert_close(signal.norm(dim=1), torch.full((ITEMS,), rank**0.5), atol=1e-4, rtol=0)
    usual = centred.pow(2).sum(dim=1).mean().sqrt()
    back = functional.normalize(centred, dim=1) * usual + rows.mean(dim=0)
    torch.testing.assert_close(projection.back(signal), back, atol=tolerance * 10, rtol=0)


def test_signals_without_whitening_keep_centred_cosines() -> None:
    rows = linear_batch((6,), missing=0).features["m0"]
    signal = fitted(rows, 6, 0.0)(rows)
    torch.testing.assert_close(pairwise(signal), pairwise(rows - rows.mean(dim=0)), atol=1e-5, rtol=0)
    assert not torch.allclose(pairwise(fitted(rows, 6, 0.5)(rows)), pairwise(signal), atol=0.05)


@pytest.mark.parametrize("whitening", [0.5, 1.0])
def test_signals_are_whitened_components(whitening: float) -> None:
    """Against plain principal components, whose signs do not matter to cosines."""
    rows = linear_batch((6,), missing=0, noise=0.5).features["m0"]
    centred = (rows - rows.mean(dim=0)).double().numpy()
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    expected = torch.from_numpy((left * values ** (1 - whitening)).astype(np.float32))
    torch.testing.assert_close(pairwise(fitted(rows, 6, whitening)(rows)), pairwise(expected), atol=1e-4, rtol=0)


def test_signal_and_direction_are_inverse() -> None:
    """Also in length, which is what the generator is sure of."""
    projection = fitted(linear_batch((6,), missing=0, noise=0.3).features["m0"], 4, 0.5)
    length = torch.linspace(0, 1, 9)[:, None]
    directions = functional.normalize(torch.randn(9, 4, generator=generator()), dim=1) * length
    signals = projection.signal(directions)
    torch.testing.assert_close(signals.norm(dim=1), 2 * length[:, 0])  # sqrt(r)
    torch.testing.assert_close(projection.direction(signals), directions)
    torch.testing.assert_close(projection.signal(projection.direction(signals)), signals)
    assert not signals[0].any()


def test_projection_takes_the_largest_components() -> None:
    rows = torch.randn(50, 4, generator=generator()) * torch.tensor([1.0, 10.0, 0.1, 5.0])
    projection = fitted(rows, 2, 0.5)
    assert projection.components.abs().argmax(dim=0).tolist() == [1, 3]
    assert (projection.components.gather(0, projection.components.abs().argmax(0, keepdim=True)) > 0).all()
    spread = (rows - rows.mean(dim=0)).pow(2).mean(dim=0).sqrt()
    torch.testing.assert_close(projection.deviation, torch.stack([spread[1], spread[3]]) / spread[1], atol=0.02, rtol=0)


def test_rank_beyond_the_feature() -> None:
    model = DGMRec(config(rank=50), [ModalitySpec("m", 3)], 2, 2)
    assert model.tower("m").from_content.shape[1] == 3
    rows = torch.randn(10, 3, generator=generator())
    batch = ModalBatch({"m": rows}, torch.ones(10, 1, dtype=torch.bool))
    model.fit_projections(batch)
    projection, centred = model.tower("m").projection, rows - rows.mean(dim=0)
    back = projection.back(model.project(batch)["m"]) - rows.mean(dim=0)
    torch.testing.assert_close(functional.normalize(back, dim=1), functional.normalize(centred, dim=1))


def test_projection_of_nothing_only_scales() -> None:
    projection = fitted(torch.zeros(0, 3), 3, 0.5)
    rows = torch.randn(4, 3, generator=generator())
    torch.testing.assert_close(projection(rows), functional.normalize(rows, dim=1) * 3**0.5)
    torch.testing.assert_close(projection.back(projection(rows)), functional.normalize(rows, dim=1))


@pytest.mark.parametrize("count", [1, 4])
def test_projection_of_equal_rows(count: int) -> None:
    row = torch.tensor([[1.0, 2.0, 3.0]])
    projection = fitted(row.expand(count, 3), 2, 0.5)
    assert not projection(row).any()
    assert projection(torch.tensor([[2.0, 2.0, 3.0], [9.0, -7.0, 3.0]])).norm(dim=1).max() <= 2**0.5 + 1e-5
    torch.testing.assert_close(projection.back(torch.zeros(1, 2)), row)


def test_the_mean_has_no_signal() -> None:
    rows = linear_batch((6,), missing=0).features["m0"]
    projection = fitted(rows, 4, 0.5)
    assert not projection(projection.mean[None]).any()


def test_project_reads_no_placeholder() -> None:
    w = world()
    noisy = ModalBatch(
        {
            name: torch.where(w.batch.observed[:, [column]], feature, torch.nan)
            for column, (name, feature) in enumerate(w.batch.features.items())
        },
        w.batch.observed,
    )
    model = DGMRec(SMALL, w.batch.specs, USERS, ITEMS)
    model.fit_projections(noisy)
    clean, dirty = w.model.project(w.batch), model.project(noisy)
    assert all(torch.equal(clean[name], dirty[name]) for name in w.batch.names)
    assert not clean["m0"][~w.batch.observed[:, 0]].any()


# --- forward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_forward_shapes(count: int) -> None:
    w = world(DIMS[:count])
    out = w.forward()
    for table in (out.users, out.user_id, out.user_modal):
        assert table.shape == (USERS, D)
    for table in (out.items, out.item_id, out.item_modal):
        assert table.shape == (ITEMS, D)
    assert w.model.propagated(w.side, out.parts).shape == out.parts.shape == (count, ITEMS, 2 * D)
    assert out.taste.shape == (count, ITEMS, D)
    terms = all_losses(w, out)
    assert {"ranking", "l2", "behaviour", "club", "nce", "reconstruction", "generation"} == set(terms)
    assert all(term.isfinite() for term in terms.values())
    assert (terms["nce"] == 0) == (count == 1)
    for name in w.batch.names:
        learned = w.model.learned(name, w.evidence, out.taste)
        assert learned.general.shape == learned.specific.shape == (ITEMS, D)
        made = w.model.generate(name, w.evidence, out.taste)
        assert made.features.shape == learned.signal.shape == w.evidence.own[name].shape


@pytest.mark.parametrize("ranking", ["softmax", "bpr"])
def test_forward_without_modalities_is_lightgcn(ranking: str) -> None:
    model, graphs = DGMRec(config(modal=False, ranking=ranking), (), USERS, ITEMS), interactions()
    out = model(graphs, None)
    for found, expected in zip((out.users, out.items), model.collaborate(graphs), strict=True):
        torch.testing.assert_close(found, functional.normalize(expected, dim=1) if ranking == "softmax" else expected)
    some = torch.arange(4)
    assert set(model.ranking_losses(out, some, some, some + 1, graphs, None)) == {"ranking", "l2"}


@pytest.mark.parametrize("name", ["behaviour", "user_item"])
def test_a_term_without_weight_is_left_out(name: str) -> None:
    for weight in (0.0, 0.1):
        w = world(config=config(**{name: weight}))
        assert (name in all_losses(w, w.forward())) == (weight > 0)


def test_collaborate_is_lightgcn() -> None:
    w = world()
    s = w.graphs.symmetric.matrix.toarray()
    users, items = w.model.users.weight.detach().numpy(), w.model.items.weight.detach().numpy()
    layers = [(users, items)]
    for _ in range(SMALL.layers):
        layers.append((s @ layers[-1][1], s.T @ layers[-1][0]))
    for side, found in enumerate(w.model.collaborate(w.graphs)):
        np.testing.assert_allclose(
            found.detach().numpy(), np.mean([layer[side] for layer in layers], axis=0), atol=1e-6
        )


@torch.no_grad()
@pytest.mark.parametrize("ranking", ["softmax", "bpr"])
@pytest.mark.parametrize("layers", [1, 2])
def test_users_and_items_are_sums_of_their_parts(ranking: str, layers: int) -> None:
    """Of unit length where cosines are the scores."""
    w = world(config=config(ranking=ranking, item_layers=layers))
    out = w.forward()
    assert out.cold.any()

    def final(total: Tensor) -> Tensor:
        return total / total.norm(dim=1, keepdim=True) if ranking == "softmax" else total

    torch.testing.assert_close(out.users, final(out.user_id + out.user_modal))
    torch.testing.assert_close(out.items, final(out.item_id + out.item_modal))
    propagated = out.parts  # eq. 5
    for _ in range(layers):
        steps = [w.side.graphs[name].matrix.toarray() for name in w.batch.names]
        propagated = torch.stack([torch.from_numpy(a) @ own for a, own in zip(steps, propagated, strict=True)])
    torch.testing.assert_close(w.model.propagated(w.side, out.parts), propagated)
    general, specific = propagated.chunk(2, dim=-1)  # eq. 17
    weight = w.model.weight.exp()[:, None, None]
    expected = ((general / 2 + specific) * weight).sum(dim=0) / 3
    torch.testing.assert_close(out.item_modal, expected)
    history = w.graphs.user_mean.matrix[[0]].indices  # eq. 6
    torch.testing.assert_close(out.user_modal[0], out.item_modal[history].mean(dim=0))


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_sum_to_what_is_fused(count: int) -> None:
    """Eq. 17 as written, where every modality weighs 1: the mean of the mean general part and every specific one."""
    model = world(DIMS[:count]).model
    model.weight.zero_()
    parts = torch.randn(count, 5, 2 * D, generator=generator())
    general, specific = parts[..., :D], parts[..., D:]
    expected = torch.stack([general.mean(dim=0), *specific]).mean(dim=0)
    torch.testing.assert_close(model.fuse(parts), expected)
    shares = model.shares(parts)
    torch.testing.assert_close(shares.sum(dim=0), expected)
    alone = parts * (torch.arange(count) == 0)[:, None, None]  # a modality's share is what the others do not bring
    torch.testing.assert_close(model.fuse(alone), shares[0])
    model.weight[0] = float(np.log(0.5))
    torch.testing.assert_close(model.shares(parts)[0], shares[0] / 2)
    torch.testing.assert_close(model.shares(parts)[1:], shares[1:])


@torch.no_grad()
def test_user_without_history() -> None:
    w = world()
    out = w.forward()
    assert w.graphs.user_degree[LONELY_USER] == 0
    torch.testing.assert_close(out.user_id[LONELY_USER], w.model.users.weight[LONELY_USER] / (SMALL.layers + 1))
    assert not out.user_modal[LONELY_USER].any()


@torch.no_grad()
def test_untouched_items_are_cold_and_borrow_their_taste() -> None:
    w = world()
    out = w.forward()
    assert out.cold.tolist() == (w.graphs.item_degree == 0).tolist()
    assert out.cold[UNTOUCHED_ITEM]
    own = (w.graphs.item_mean @ w.model.preference(out.user_id).transpose(0, 1).flatten(1)).view(ITEMS, -1, D)
    borrowed = w.model.kin_taste(own.transpose(0, 1), ~out.cold, w.side.kin, torch.tensor([UNTOUCHED_ITEM]))
    torch.testing.assert_close(out.taste[:, UNTOUCHED_ITEM], borrowed[:, 0])


@torch.no_grad()
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("count", [2, 100])
def test_relatives_are_the_nearest_items_that_somebody_touched(power: float, count: int) -> None:
    w = world(config=config(cold_popularity=power, cold_temperature=0.3, cold_neighbours=count))
    degree, target = w.graphs.item_degree.numpy(), torch.randn(ITEMS, D, generator=generator())
    relatives = w.model.relatives(w.side.features, w.batch.observed, w.graphs.item_degree)
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
    return w.model.settle(out, w.side.features, w.batch.observed, w.graphs.item_degree if degree is None else degree)


@torch.no_grad()
@pytest.mark.parametrize("ranking", ["softmax", "bpr"])
def test_items_are_settled_by_their_users_and_their_content(ranking: str) -> None:
    """Untouched ones by content alone: along the users' mean direction popularity, of which the logarithm of the degree
    is what is predicted, and across it whom the item is for.
    Touched ones across that direction by both, as many users as they have against `prior` of the mean item's."""
    w = world(
        config=config(cold_linear=1.7, cold_kernel=0.6, cold_penalty=2.0, cold_spread=3.0, prior=0.3, ranking=ranking)
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
    relatives = w.model.relatives(w.side.features, w.batch.observed, w.graphs.item_degree)
    mixed = 0.6 * relatives.matrix.toarray() @ items @ across

    cold = degree == 0
    logs, place = np.log(degree.clip(1))[:, None], (items @ axis)[:, None]
    slope, typical = plain_ridge(content, logs, ~cold * 1.0, 2.0)
    gain, start = plain_ridge(logs, place, ~cold * 1.0, 1.0)
    apart = content @ slope + typical - logs[~cold].mean()
    popularity = start + gain * (logs[~cold].mean() + 3.0 * apart)
    expected = (popularity + w.model.untouched_offset.item()) * axis
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
    w = world(config=config(prior=0.0))
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

    w = world(config=config(cold_lift=0.8))
    out, degree = w.forward(), w.graphs.item_degree.clone()
    degree[degree > 0] = 5
    settle(w, out, degree)  # not one touched once: all that are untouched are new
    assert w.model.untouched_offset.item() == pytest.approx(0.8)
    degree[:6] = torch.tensor([1.0, 1, 1, 1, 1, 1])
    settle(w, out, degree)
    assert share_of_new(degree) == 0  # as many are to be expected ignored
    popularity = out.items @ w.model.popularity_axis
    ignored = min((popularity[degree == 1].mean() - popularity[degree > 0].mean()).item(), 0)
    assert w.model.untouched_offset.item() == pytest.approx(ignored, abs=1e-5)


@torch.no_grad()
def test_nothing_is_expected_where_nobody_has_touched_anything() -> None:
    w = world()
    out = w.forward()
    items, expected = settle(w, out, torch.zeros(ITEMS))
    assert torch.equal(items, out.items)
    assert not expected.any()
    assert not w.model.untouched_map.any()
    assert not w.model.popularity_axis.any()


@torch.no_grad()
def test_a_modality_nobody_has() -> None:
    batch = linear_batch((6, 5))
    nobody = torch.tensor([[False, True]]).expand(ITEMS, 2)
    w = world(batch=batch.masked(nobody))
    out = w.forward()
    assert out.items.isfinite().all()
    terms = all_losses(w, out)
    assert all(term.isfinite() for term in terms.values())
    made = w.model.generate("m1", w.evidence, out.taste)
    assert made.features.isfinite().all()
    assert w.model.q_loss(out, w.evidence).isfinite()


@torch.no_grad()
def test_an_item_that_misses_everything() -> None:
    item = 3
    batch = linear_batch((6, 5), missing=0)
    w = world(batch=batch.masked(torch.arange(ITEMS)[:, None].eq(item).expand(ITEMS, 2)))
    assert not w.evidence.observed[item].any()
    assert w.side.kin.matrix[[item]].nnz == 0
    out = w.forward()
    filled = w.model.complete(w.evidence, out.taste)
    for name in w.batch.names:
        assert filled[name][item].isfinite().all()
        assert filled[name][item].any()  # generated from its users and its taste
        assert torch.equal(filled[name][:item], w.evidence.own[name][:item])
    assert out.items[item].isfinite().all()


def item_taste_loop(w: World, preference: Tensor, cold: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 2 and its stand-in, item by item."""
    histories = w.graphs.user_mean.matrix.toarray() > 0
    kin = w.side.kin.matrix.toarray()
    users = [np.flatnonzero(histories[:, item]) for item in range(ITEMS)]
    touched = [item for item in range(ITEMS) if len(users[item]) and not cold[item]]
    own = {item: preference[:, users[item]].mean(dim=1) for item in touched}
    everyone = torch.stack([own[item] for item in touched]).mean(dim=0)
    taste, borrowed = [], []
    for item in range(ITEMS):
        near = [other for other in np.flatnonzero(kin[item]) if other in own]
        weights = [float(kin[item, other]) for other in near]
        mean = sum(weight * own[other] for weight, other in zip(weights, near, strict=True)) if near else None
        borrowed.append(everyone if mean is None else mean / sum(weights))
        taste.append(borrowed[-1] if cold[item] else own[item])
    return torch.stack(taste, dim=1), torch.stack(borrowed, dim=1)


@torch.no_grad()
def test_item_taste() -> None:
    w = world()
    preference = w.model.preference(torch.randn(USERS, D, generator=generator()))
    cold = (w.graphs.item_degree == 0) | (torch.arange(ITEMS) % 7 == 0)
    expected = item_taste_loop(w, preference, cold)
    found = (
        w.model.item_taste(preference, w.graphs, w.side.kin, cold),
        w.model.kin_taste(
            w.model.item_taste(preference, w.graphs, w.side.kin, cold), ~cold, w.side.kin, torch.arange(ITEMS)
        ),
    )
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_taste_of_an_item_without_neighbours_is_everyones() -> None:
    w = world()
    alone = Graph(mean_graph(torch.full((ITEMS, 1), -1), ITEMS))
    preference = w.model.preference(w.model.users.weight)
    taste = w.model.item_taste(preference, w.graphs, alone, w.graphs.item_degree == 0)
    borrowed = w.model.kin_taste(taste, w.graphs.item_degree > 0, alone, torch.arange(ITEMS))
    warm = w.graphs.item_degree > 0
    everyone = taste[:, warm].mean(dim=1)
    torch.testing.assert_close(taste[:, UNTOUCHED_ITEM], everyone)
    torch.testing.assert_close(borrowed, everyone[:, None].expand_as(borrowed))


@torch.no_grad()
def test_taste_while_a_cell_is_hidden() -> None:
    """An item's own, unless its interactions are hidden too: then its kin's by the other modalities, and everyone's
    where those are hidden as well."""
    w = world()
    out = w.forward()
    warm = (~out.cold).nonzero().squeeze(1)
    kin = w.side.kin_without["m1"].matrix.toarray()
    read = [item for item in warm.tolist() if kin[item, warm].any()]
    rows = torch.tensor([*read[:4], UNTOUCHED_ITEM])
    others, hidden = torch.tensor([False, True, False, True, False]), torch.tensor([False, False, True, True, False])
    found = w.model.hidden_taste(out, w.side, "m1", rows, others=others, interactions=hidden)
    everyone = out.taste[:, warm].mean(dim=1)

    def borrowed(item: int) -> Tensor:
        weights = torch.from_numpy(kin[item]).index_fill(0, out.cold.nonzero().squeeze(1), 0)
        return torch.einsum("i,mid->md", weights, out.taste) / weights.sum()

    torch.testing.assert_close(found[:, :2], out.taste[:, rows[:2]])
    torch.testing.assert_close(found[:, 2], borrowed(int(rows[2])))
    torch.testing.assert_close(found[:, 3], everyone)
    last = borrowed(UNTOUCHED_ITEM) if kin[UNTOUCHED_ITEM, warm].any() else everyone
    torch.testing.assert_close(found[:, 4], last)


@torch.no_grad()
@pytest.mark.parametrize("gate", ["sigmoid", "tanh", "none"])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_parts(gate: str, activation: str) -> None:
    """Eq. 1 and 3 as they are written."""
    w = world(config=config(gate=gate, activation=activation))
    taste = torch.tanh(torch.randn(2, ITEMS, D, generator=generator()))
    parts = w.model.encode(w.evidence.own, taste)
    act = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}[activation]
    for column, name in enumerate(w.batch.names):
        tower, x = w.model.tower(name), w.evidence.own[name]
        factor = {"sigmoid": torch.sigmoid(taste[column]), "tanh": taste[column], "none": torch.ones(())}[gate]
        general = act(w.model.general(torch.tanh(tower.encode(x)))) * factor
        specific = act(tower.specific(x)) * factor
        torch.testing.assert_close(parts[column], torch.cat([general, specific], dim=1))


# --- the same bits -------------------------------------------------------------------------------------------------


def test_same_seed_same_bits() -> None:
    state = torch.get_rng_state()
    one, two = world(), world()
    assert torch.equal(torch.get_rng_state(), state)  # global randomness is left alone
    for key, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[key]), key
    first, second = one.forward(), two.forward()
    assert torch.equal(first.items, second.items)
    for key, term in all_losses(one, first).items():
        assert torch.equal(term, all_losses(two, second)[key]), key


def test_another_seed_other_weights() -> None:
    other = world(config=config(seed=1))
    assert not torch.equal(world().model.users.weight, other.model.users.weight)


@torch.no_grad()
def test_nothing_is_random_outside_training() -> None:
    w = world()
    taste = w.forward().taste
    w.model.tower("m1").trust.fill_(0.5)
    plain = w.model.generate("m1", w.evidence, taste).features
    assert torch.equal(plain, w.model.generate("m1", w.evidence, taste).features)
    certain = w.model.learned("m1", w.evidence, taste).signal
    assert torch.equal(certain, w.model.learned("m1", w.evidence, taste).signal)
    noisy = w.model.learned("m1", w.evidence, taste, generator=generator()).signal
    assert not torch.equal(certain, noisy)
    assert torch.equal(noisy, w.model.learned("m1", w.evidence, taste, generator=generator()).signal)


# --- fold-in -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 3])
def test_fold_in_tables_reproduce_lightgcn(layers: int) -> None:
    w = world(config=config(layers=layers))
    tables = w.model.fold_in_tables(w.graphs)
    users, items = w.model.collaborate(w.graphs)
    histories = w.graphs.user_mean.matrix.toarray() > 0
    for user in range(USERS):
        history = np.flatnonzero(histories[user])
        folded = tables["item_message"][history].sum(dim=0) / max(len(history), 1) ** 0.5
        torch.testing.assert_close(tables["user_residual"][user] + folded, users[user], atol=1e-6, rtol=1e-5)
    for item in range(ITEMS):
        touching = np.flatnonzero(histories[:, item])
        folded = tables["user_message"][touching].sum(dim=0) / max(len(touching), 1) ** 0.5
        torch.testing.assert_close(
            w.model.items.weight[item] / (layers + 1) + folded, items[item], atol=1e-6, rtol=1e-5
        )


# --- learning ------------------------------------------------------------------------------------------------------

Q = {"q.0.weight", "q.0.bias", "q.2.weight", "q.2.bias"}
GENERATORS = {
    *(
        f"{which}_generator.{layer}.{kind}"
        for which in ("general", "specific")
        for layer in (0, 2)
        for kind in ("weight", "bias")
    ),
}


def without_gradient(w: World) -> set[str]:
    """Names of the parameters that the losses do not reach, without the tower's own part."""
    torch.stack(list(all_losses(w, w.forward()).values())).sum().backward()  # type: ignore[no-untyped-call]
    return {
        name.removeprefix("towers.m0.").removeprefix("towers.m1.")
        for name, parameter in w.model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }


@pytest.mark.parametrize("dims", [(6,), (6, 5), (6, 5, 3)])
def test_gradients_reach_everything_but_q(dims: tuple[int, ...]) -> None:
    """q has an optimiser of its own."""
    assert {name.removeprefix("towers.m2.") for name in without_gradient(world(dims))} == Q


@pytest.mark.parametrize("imputation", ["mean", "nn"])
def test_plain_imputation_trains_no_generator(imputation: str) -> None:
    assert without_gradient(world(config=config(imputation=imputation))) == Q | GENERATORS


@pytest.mark.parametrize(
    ("weight", "idle"),
    [
        ("generation", GENERATORS),
        ("reconstruction", set()),
        ("club", set()),
    ],
)
def test_what_a_loss_alone_reaches(weight: str, idle: set[str]) -> None:
    assert without_gradient(world(config=config(**{weight: 0}))) == Q | idle


def test_q_loss_reaches_q_alone() -> None:
    w = world()
    w.model.q_loss(w.forward(), w.evidence).backward()  # type: ignore[no-untyped-call]
    reached = {name for name, parameter in w.model.named_parameters() if parameter.grad is not None}
    assert reached == {f"towers.{name}.{part}" for name in w.batch.names for part in Q}


def test_q_loss_is_the_negative_likelihood_of_observed_parts() -> None:
    w = world()
    out = w.forward()
    expected = 0.0
    for column, name in enumerate(w.batch.names):
        general, specific = out.parts[column, w.batch.observed[:, column]].chunk(2, dim=1)
        expected -= losses.gaussian_log_likelihood(specific, *w.model.q(name, general)).mean().item()
    assert w.model.q_loss(out, w.evidence).item() == pytest.approx(expected, rel=1e-5)


def test_ranking_does_not_train_the_generator() -> None:
    """It is to be true, not useful to the ranking."""
    w = world()
    out = w.forward()
    some = torch.arange(6)
    terms = w.model.ranking_losses(out, some, some + 3, some + 9, w.graphs, w.side)
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in w.model.named_parameters():
        if any(part in name for part in GENERATORS):
            assert parameter.grad is None, name


def some_pairs(w: World) -> tuple[Tensor, Tensor]:
    """A training pair of each of four users, one of whom has no other item."""
    histories = w.graphs.user_mean.matrix
    users = torch.tensor([0, 1, 2, int((w.graphs.user_degree == 1).nonzero()[0])])
    return users, torch.tensor([int(histories[[user]].indices[-1]) for user in users.tolist()])


def history_of(w: World, user: int) -> list[int]:
    items: list[int] = np.flatnonzero(w.graphs.user_mean.matrix.toarray()[user]).tolist()
    return items


def seen_without(w: World, out: Embeddings, user: int, positive: int) -> Tensor:
    """e_u as it was before the user met the positive."""
    rest = [item for item in history_of(w, user) if item != positive]
    told = w.model.fold_in_tables(w.graphs)["item_message"][rest].sum(dim=0) / max(len(rest), 1) ** 0.5
    own = w.model.users.weight[user] / (1 + w.model.config.layers)
    total = own + told + (out.item_modal[rest].mean(dim=0) if rest else torch.zeros(D))
    return total / total.norm() if w.model.config.ranking == "softmax" else total


def test_a_positive_may_stay_in_its_users_history() -> None:
    w = world(config=config(leave_out=False, user_power=0, ranking="bpr"))
    u, i = some_pairs(w)
    j = torch.tensor([9, 10, 11, 12])
    out = w.forward()
    gap = (out.users[u] * (out.items[i] - out.items[j])).sum(dim=1)
    terms = w.model.ranking_losses(out, u, i, j, w.graphs, w.side)
    torch.testing.assert_close(terms["ranking"], -functional.logsigmoid(gap).mean())


@pytest.mark.parametrize("user_power", [0.0, 0.5])
@pytest.mark.parametrize("ranking", ["softmax", "bpr"])
def test_ranking_losses_are_the_formulas(ranking: str, user_power: float) -> None:
    weights = {"behaviour": 0.5, "user_item": 0.25, "l2": 0.1}
    w = world(config=config(ranking=ranking, user_power=user_power, **weights))
    u, i = some_pairs(w)
    j = torch.tensor([9, 10, 11, 12] if ranking == "bpr" else [9, 10, 11, 12, 13, 14])
    out = w.forward()
    excluded = None
    if ranking == "softmax":
        excluded = torch.tensor([[item in history_of(w, user) for item in j.tolist()] for user in u.tolist()])
        assert excluded.any()
    terms = w.model.ranking_losses(out, u, i, j, w.graphs, w.side, excluded)
    pairs = list(zip(u.tolist(), i.tolist(), strict=True))
    users = torch.stack([seen_without(w, out, user, positive) for user, positive in pairs])
    positive = (users * out.items[i]).sum(dim=1)
    if ranking == "bpr":
        each = -functional.logsigmoid(positive - (users * out.items[j]).sum(dim=1))
    else:
        touched = int((w.graphs.item_degree > 0).sum())
        t, stands_for = w.model.config.ranking_temperature, touched / len(j)
        others = ((users @ out.items[j].T / t).exp() * ~excluded).sum(dim=1) * stands_for  # type: ignore[operator]
        each = -((positive / t).exp() / ((positive / t).exp() + others)).log()
    counts = torch.tensor([len(history_of(w, user)) ** -user_power for user in u.tolist()])
    torch.testing.assert_close(terms["ranking"], (each * counts).sum() / counts.sum())
    t = w.model.config.temperature
    known = torch.unique(i)
    behaviour = losses.info_nce(out.user_id[u.sort()[0]], out.user_modal[u.sort()[0]], t) + losses.info_nce(
        out.item_id[known], out.item_modal[known], t
    )
    torch.testing.assert_close(terms["behaviour"], 0.5 * behaviour)
    propagated = w.model.propagated(w.side, out.parts)
    item_parts = propagated[:, i]
    user_parts = torch.stack([propagated[:, history_of(w, user)].mean(dim=1) for user in u.tolist()], dim=1)
    general = losses.info_nce(user_parts[..., :D].sum(0), item_parts[..., :D].sum(0), t)
    specific = sum(losses.info_nce(user_parts[m, :, D:], item_parts[m, :, D:], t) for m in range(2))
    torch.testing.assert_close(terms["user_item"], 0.25 * (general + specific))
    embeddings = (w.model.users.weight[u], w.model.items.weight[i], w.model.items.weight[j])
    norms = torch.stack([rows.pow(2).sum() for rows in embeddings]).sum()
    torch.testing.assert_close(terms["l2"], 0.1 * norms / 2 / len(u))


@torch.no_grad()
def test_combine() -> None:
    left, right = torch.randn(2, 5, D, generator=generator())
    cosine, product = (world(config=config(ranking=ranking)).model for ranking in ("softmax", "bpr"))
    torch.testing.assert_close(product.combine(left, right), left + right)
    combined = cosine.combine(left, right)
    torch.testing.assert_close(combined.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(combined * (left + right).norm(dim=1, keepdim=True), left + right)
    assert not cosine.combine(left, -left).any()  # no direction, and no division by zero


def test_content_losses_look_at_observed_cells_only() -> None:
    """Noise in the imputation of an unobserved cell changes none of them."""
    w = world()
    terms = w.model.content_losses(w.forward(), w.side, torch.arange(ITEMS), w.evidence.observed, generator())
    noisy = {
        name: torch.where(w.evidence.observed[:, [c]], block, torch.randn(block.shape, generator=generator()))
        for c, (name, block) in enumerate(w.side.features.items())
    }
    side = replace(w.side, features=noisy)
    out = w.model(w.graphs, side)
    again = w.model.content_losses(out, side, torch.arange(ITEMS), w.evidence.observed, generator())
    for key, term in terms.items():
        torch.testing.assert_close(term, again[key])


def test_generator_learns_from_the_given_cells_only() -> None:
    w = world()
    none = torch.zeros_like(w.evidence.observed)
    terms = w.model.content_losses(w.forward(), w.side, torch.arange(ITEMS), none, generator())
    assert terms["generation"] == 0
    assert terms["reconstruction"] > 0


# --- generation ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_generated_cell_does_not_depend_on_its_true_feature() -> None:
    w = world((6, 5, 4))
    taste = w.forward().taste
    for column, name in enumerate(w.batch.names):
        before = w.model.generate(name, w.evidence, taste)
        for item in w.batch.observed[:, column].nonzero().squeeze(1)[:6].tolist():
            own = {key: feature.clone() for key, feature in w.evidence.own.items()}
            own[name][item] = 50 * torch.randn(own[name].shape[1], generator=generator(item))
            evidence = gather_evidence(own, w.batch.observed, w.graphs, w.evidence.factors)
            after = w.model.generate(name, evidence, taste)
            torch.testing.assert_close(after.features[item], before.features[item], atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(after.facts[item], before.facts[item], atol=1e-4, rtol=1e-3)
            fewer = w.batch.observed.clone()
            fewer[item, column] = False
            unseen = [
                w.model.generate(name, gather_evidence(content, fewer, w.graphs, w.evidence.factors), taste)
                for content in (own, w.evidence.own)
            ]
            torch.testing.assert_close(unseen[0].features[item], unseen[1].features[item], atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_complete_fills_and_keeps() -> None:
    w = world()
    taste = w.forward().taste
    filled = w.model.complete(w.evidence, taste)
    for column, name in enumerate(w.batch.names):
        have = w.batch.observed[:, column]
        assert torch.equal(filled[name][have], w.evidence.own[name][have])
        assert torch.equal(filled[name][~have], w.model.generate(name, w.evidence, taste).features[~have])


@torch.no_grad()
def test_generals_stand_in_with_the_mean() -> None:
    w = world()
    out = w.forward()
    w.model.update_mean_generals(out, w.batch.observed)
    for column, name in enumerate(w.batch.names):
        general = w.model.known_general(name, w.evidence, out.taste[column])
        have = w.batch.observed[:, column]
        torch.testing.assert_close(general[have], out.parts[column, have, :D])
        mean = out.parts[column, have, :D].mean(dim=0)
        torch.testing.assert_close(general[~have], mean.expand(int((~have).sum()), -1))


@torch.no_grad()
def test_trust_leads_from_the_base_to_what_was_learned() -> None:
    w = world(config=SMALL.model_copy(update={"lean": 0.0}))
    taste = w.forward().taste
    tower = w.model.tower("m1")
    base = w.model.base("m1", w.evidence)
    lengths = base.norm(dim=1).clamp_max(1)
    some = lengths > 0
    assert some.any()
    made = {}
    for trust in (0.0, 0.5, 1.0):
        tower.trust.fill_(trust)
        generation = w.model.generate("m1", w.evidence, taste)
        made[trust] = tower.projection.direction(generation.features)
        torch.testing.assert_close(made[trust].norm(dim=1), lengths)  # as sure as the base, whatever the step
        torch.testing.assert_close(generation.facts[:, 1], lengths)
    learned = tower.projection.direction(w.model.learned("m1", w.evidence, taste).signal)
    ends = [functional.normalize(rows, dim=1) for rows in (base, learned)]
    for trust, expected in ((0.0, ends[0]), (0.5, (ends[0] + ends[1]) / 2), (1.0, ends[1])):
        cosines = functional.cosine_similarity(made[trust], expected, dim=1)[some]
        torch.testing.assert_close(cosines, torch.ones_like(cosines), atol=1e-4, rtol=0)
    assert functional.cosine_similarity(*ends, dim=1)[some].mean() < 0.9


@torch.no_grad()
@pytest.mark.parametrize("lean", [0.5, 2.0])
def test_unsure_guesses_lean_on_the_real_features_nearest_to_them(lean: float) -> None:
    full = linear_batch((6, 5), n=150, missing=0.4)
    w = world(config=SMALL.model_copy(update={"lean": lean}), batch=full)
    tower, observed = w.model.tower("m1"), w.batch.observed[:, 1]
    base = w.model.base("m1", w.evidence).numpy()
    length = np.linalg.norm(base, axis=1, keepdims=True).clip(1e-12, 1)
    guess = base / np.linalg.norm(base, axis=1, keepdims=True).clip(1e-12)
    own = tower.projection.direction(w.evidence.own["m1"])[observed].numpy()
    real = own / np.linalg.norm(own, axis=1, keepdims=True)
    assert leaned_on(len(real)) == 5  # a twentieth of about 90
    nearest = np.argsort(-guess @ real.T, axis=1)[:, :5]
    mean = real[nearest].mean(axis=1)
    drawn = guess + lean * (1 - length) * mean / np.linalg.norm(mean, axis=1, keepdims=True)
    expected = drawn / np.linalg.norm(drawn, axis=1, keepdims=True) * length
    made = w.model.generate("m1", w.evidence, w.forward().taste)
    some = (length > 1e-6)[:, 0]
    assert some.sum() > 100
    np.testing.assert_allclose(tower.projection.direction(made.features)[some], expected[some], atol=1e-5)
    np.testing.assert_allclose(made.facts[:, 1], length[:, 0], atol=1e-6)  # leaning makes nothing surer
    assert np.abs(drawn - guess)[some].max() > 0.1


@torch.no_grad()
def test_without_real_features_or_weight_guesses_stay() -> None:
    w = world()
    taste = w.forward().taste
    leaning = w.model.generate("m1", w.evidence, taste).features
    w.model.config = w.model.config.model_copy(update={"lean": 0.0})
    alone = w.model.generate("m1", w.evidence, taste).features
    assert not torch.allclose(leaning, alone)
    w.model.config = w.model.config.model_copy(update={"lean": 2.0})
    w.model.tower("m1").real.zero_()
    assert torch.equal(w.model.generate("m1", w.evidence, taste).features, alone)


@pytest.mark.parametrize(("real", "count"), [(1, 1), (20, 1), (21, 2), (800, 40), (8192, 40)])
def test_how_many_real_features_a_guess_leans_on(real: int, count: int) -> None:
    assert leaned_on(real) == count


@torch.no_grad()
def test_what_guesses_may_lean_on(monkeypatch: pytest.MonkeyPatch) -> None:
    w = world()
    cells = w.batch.observed.clone()
    cells[::2] = False
    w.model.fit_base(w.evidence, cells)
    tower, rows = w.model.tower("m0"), cells[:, 0]
    own = functional.normalize(tower.projection.direction(w.evidence.own["m0"][rows]), dim=1)
    torch.testing.assert_close(tower.real[: len(own)], own)
    assert not tower.real[len(own) :].any()
    monkeypatch.setattr("models.dgmrec.REAL_ROWS", 4)  # a large catalogue gives a sample, always the same
    few, again = world(), world()
    real = few.model.tower("m0").real
    assert real.shape[0] == 4
    assert real.any(dim=1).all()
    assert torch.equal(real, again.model.tower("m0").real)
    everything = tower.projection.direction(w.evidence.own["m0"][w.batch.observed[:, 0]])
    near = functional.cosine_similarity(real[:, None], everything[None], dim=2).max(dim=1).values
    torch.testing.assert_close(near, torch.ones(4))


# --- the base ------------------------------------------------------------------------------------------------------


def linear_world(n: int = 150, hidden: int = 40, **settings: Any) -> tuple[World, ModalBatch]:
    """Content without holes but for the second modality of the first items, and the content in full."""
    full = linear_batch((6, 5), n=n, missing=0)
    missing = torch.zeros(n, 2, dtype=torch.bool)
    missing[:hidden, 1] = True
    w = world(batch=full.masked(missing), config=config(**settings))
    w.model.read("m1", shared=False, near=False)  # what training would choose: the histories are random
    w.model.fit_base(w.evidence, w.batch.observed)
    return w, full


@torch.no_grad()
def test_base_beats_the_mean_on_linear_content() -> None:
    w, full = linear_world()
    projection = w.model.tower("m1").projection
    base = w.model.base("m1", w.evidence)[:40]
    made = projection.back(projection.signal(base))
    truth, mean = full.features["m1"][:40], projection.mean
    assert (made - truth).pow(2).mean() < 0.5 * (mean - truth).pow(2).mean()
    assert functional.cosine_similarity(made - mean, truth - mean, dim=1).mean() > 0.9


@torch.no_grad()
@pytest.mark.parametrize(("closest", "longest"), [(False, 1.3), (True, 1.5)])
def test_base_is_as_long_as_it_is_sure(closest: bool, longest: float) -> None:
    """Regressions on unit vectors: about as long as the cosine they reach, and seldom over 1, where it is cut."""
    w, full = linear_world(closest=closest)
    projection = w.model.tower("m1").projection
    base = w.model.base("m1", w.evidence)[:40]
    length = base.norm(dim=1)
    truth = projection.direction(projection(full.features["m1"][:40]))
    cosine = functional.cosine_similarity(base, truth, dim=1)
    assert length.quantile(0.9) < longest
    made = w.model.generate("m1", w.evidence, w.forward().taste).features[:40]
    torch.testing.assert_close(projection.direction(made).norm(dim=1), length.clamp_max(1))
    assert length.mean().item() == pytest.approx(cosine.mean().item(), abs=0.15)
    nobody = torch.zeros(150, dtype=torch.bool)
    poorer = w.evidence.without("m1", others=~nobody, interactions=nobody)
    assert w.model.base("m1", poorer)[:40].norm(dim=1).mean() < 0.6 * length.mean()  # random histories tell little


def directions(closest: Tensor, w: World) -> Tensor:
    """`Evidence.closest` of the second modality among its components, as long as it was."""
    turned = w.model.tower("m1").projection.direction(closest)
    return functional.normalize(turned, dim=1) * closest.norm(dim=1, keepdim=True)


def twins(n: int = 200, hidden: int = 40) -> tuple[World, ModalBatch]:
    """Pairs of items alike in both modalities, which otherwise tell nothing of each other: no linear map can see it."""
    rng = np.random.default_rng(4)
    rows = {name: rng.standard_normal((n // 2, dim)).repeat(2, axis=0) for name, dim in (("m0", 30), ("m1", 20))}
    features = {
        name: torch.from_numpy((own + 0.1 * rng.standard_normal(own.shape)).astype(np.float32))
        for name, own in rows.items()
    }
    full = ModalBatch(features, torch.ones(n, 2, dtype=torch.bool))
    missing = torch.zeros(n, 2, dtype=torch.bool)
    missing[: 2 * hidden : 2, 1] = True
    return world(batch=full.masked(missing), config=SMALL.model_copy(update={"rank": 20})), full


@torch.no_grad()
def test_a_guess_follows_what_is_close() -> None:
    w, full = twins()
    lacking = ~w.evidence.observed[:, 1]

    def cosine(closest: bool) -> float:
        w.model.config = w.model.config.model_copy(update={"closest": closest, "lean": 0.0})
        w.model.read("m1", shared=False, near=False)
        w.model.tower("m1").from_closest.zero_()
        w.model.fit_base(w.evidence, w.batch.observed)
        assert bool(w.model.tower("m1").from_closest.all()) == closest
        projection = w.model.tower("m1").projection
        made = projection.signal(w.model.base("m1", w.evidence))[lacking]
        return functional.cosine_similarity(made, projection(full.features["m1"][lacking]), dim=1).mean().item()

    assert cosine(closest=True) > cosine(closest=False) + 0.3


@torch.no_grad()
def test_what_is_not_close_is_not_followed() -> None:
    """Neighbours by chance: their features say nothing, and they get no say, rather than one against themselves."""
    rng = np.random.default_rng(5)
    features = {name: torch.from_numpy(rng.standard_normal((200, 8)).astype(np.float32)) for name in ("m0", "m1")}
    w = world(batch=ModalBatch(features, torch.ones(200, 2, dtype=torch.bool)))
    w.model.fit_base(w.evidence, w.batch.observed)
    for name in features:
        assert (w.model.tower(name).from_closest >= 0).all()
        assert (w.model.tower(name).from_closest < 0.2).all()


@torch.no_grad()
def test_base_is_staged() -> None:
    """Interactions first, then what they leave, from content; against the normal equations of each stage."""
    w, _ = linear_world()
    tower, rows = w.model.tower("m1"), w.evidence.observed[:, 1]
    told, shown = (block.double() for block in w.model._evidence("m1", w.evidence))
    direction = tower.projection.direction(w.evidence.own["m1"])
    target = functional.normalize(direction, dim=1).double()
    touched, described = rows & w.evidence.touched(), rows & w.evidence.described("m1")

    def among_ridges(weights: Tensor, inputs: Tensor, target: Tensor, chosen: Tensor) -> bool:
        a, t = inputs[chosen], target[chosen]
        gram = a.T @ a
        eye = torch.eye(len(gram), dtype=torch.double)
        paths = [torch.linalg.solve(gram + penalty * eye, a.T @ t) for penalty in PENALTIES]
        return any(torch.allclose(weights.double(), path, atol=1e-5) for path in paths)

    def share_of(closest: Tensor, rest: Tensor, chosen: Tensor) -> Any:
        a, t = closest[chosen].flatten().numpy(), rest[chosen].flatten().numpy()
        return pytest.approx(max(float(a @ t / (a @ a + 1)), 0), abs=1e-4)

    assert among_ridges(tower.from_interactions, told, target, touched)
    first = ridge.fit(told.float(), target.float(), touched).estimate
    rest = target - first.double()
    fit = ridge.fit(shown.float(), target.float(), touched & described, base=first)
    closest = directions(w.evidence.closest["m1"], w).double()
    assert among_ridges(tower.from_content, shown, rest, touched & described)
    assert among_ridges(tower.from_content_alone, shown, target, described)
    assert tower.from_closest[0] == share_of(closest, rest - fit.estimate.double(), touched & described)
    alone = ridge.fit(shown.float(), target.float(), described).estimate.double()
    assert tower.from_closest[1] == share_of(closest, target - alone, described)
    expected = told @ tower.from_interactions.double() + shown @ tower.from_content.double()
    expected += tower.from_closest[0] * closest
    found = w.model.base("m1", w.evidence).double()
    both = w.evidence.touched() & w.evidence.described("m1")
    torch.testing.assert_close(found[both], expected[both], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_guesses_do_not_look_at_the_cell() -> None:
    """Of a cell that was learned from, by a fit without its fold; of the others, the base itself."""
    w, _ = linear_world()
    cells = w.evidence.observed.clone()
    cells[100:120] = False
    guesses = w.model.fit_base(w.evidence, cells)["m1"]
    base = w.model.base("m1", w.evidence)
    touched = w.evidence.touched()
    torch.testing.assert_close(guesses[100:120][touched[100:120]], base[100:120][touched[100:120]])
    assert not guesses[~touched].any()
    learned = cells[:, 1] & touched
    target = w.model.tower("m1").projection.direction(w.evidence.own["m1"])
    closer = functional.cosine_similarity(base, target, dim=1)[learned].mean()
    honest = functional.cosine_similarity(guesses, target, dim=1)[learned].mean()
    assert 0.5 < honest < closer

    item = int(learned.nonzero()[5])
    features = {name: block.clone() for name, block in w.evidence.own.items()}
    features["m1"][item] = torch.randn(features["m1"].shape[1])
    again = w.model.fit_base(replace(w.evidence, own=features), cells)["m1"]
    moved, usual = (guesses - again)[item].norm(), (guesses - again)[learned].norm(dim=1).mean()
    assert moved < 2 * usual  # no more than any other: only the share of the closest items has seen it


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_touched_items_settle_by_features_with_what_is_guessed_of_them(weight: float) -> None:
    w = world(config=config(denoise=weight))
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
    plain, expected_plain = w.model.settle(out, w.side.features, observed, degree)
    maps = w.model.untouched_map.clone(), w.model.untouched_typical.clone()
    settled, expected_read = w.model.settle(out, w.side.features, observed, degree, read)
    assert torch.equal(plain[out.cold], settled[out.cold])
    assert torch.equal(maps[0], w.model.untouched_map)
    assert torch.equal(maps[1], w.model.untouched_typical)
    whole, _ = w.model.settle(out, read, observed, degree)
    torch.testing.assert_close(settled[~out.cold], whole[~out.cold])
    assert torch.equal(expected_plain, expected_read) == (weight == 0)


@torch.no_grad()
def test_base_of_an_untouched_item_is_from_content_alone() -> None:
    w, _ = linear_world()
    tower = w.model.tower("m1")
    everybody, nobody = torch.ones(150, dtype=torch.bool), torch.zeros(150, dtype=torch.bool)
    untouched = w.evidence.without("m1", others=nobody, interactions=everybody)
    alone = untouched.from_content("m1") @ tower.from_content_alone
    alone += tower.from_closest[1] * directions(untouched.closest["m1"], w)
    torch.testing.assert_close(w.model.base("m1", untouched), alone)
    assert not w.evidence.touched()[-1]
    torch.testing.assert_close(w.model.base("m1", w.evidence)[-1], alone[-1])
    assert not torch.allclose(tower.from_content, tower.from_content_alone, atol=1e-3)
    lonely = w.evidence.without("m1", others=everybody, interactions=nobody)
    told = w.evidence.from_interactions("m1") @ tower.from_interactions
    torch.testing.assert_close(w.model.base("m1", lonely), told * w.evidence.touched()[:, None])


@torch.no_grad()
@pytest.mark.parametrize("unread", ["shared", "near"])
def test_what_is_not_read_changes_nothing(unread: str) -> None:
    w = world()
    tower = w.model.tower("m1")
    w.model.read("m1", shared=unread != "shared", near=unread != "near")
    w.model.fit_base(w.evidence, w.batch.observed)
    tower.trust.fill_(0.5)
    kept = {name: block.clone() for name, block in w.model.state_dict().items()}
    noise = {name: torch.randn_like(block) for name, block in w.evidence.own.items()}
    noisy = replace(w.evidence, **{"folded" if unread == "shared" else "near": noise})
    w.model.fit_base(noisy, w.batch.observed)
    tower.trust.fill_(0.5)
    for name, block in w.model.state_dict().items():
        assert not name.startswith("towers.m1") or torch.equal(block, kept[name]), name
    taste = w.forward().taste
    made, other = (w.model.generate("m1", evidence, taste).features for evidence in (w.evidence, noisy))
    assert torch.equal(made, other)
    w.model.read("m1", shared=True, near=True)
    w.model.fit_base(w.evidence, w.batch.observed)
    made, other = (w.model.generate("m1", evidence, taste).features for evidence in (w.evidence, noisy))
    assert not torch.allclose(made, other)


@torch.no_grad()
def test_weights_of_what_is_not_read_are_zero() -> None:
    w = world()
    w.model.read("m0", shared=False, near=False)
    w.model.fit_base(w.evidence, w.batch.observed)
    tower, rank = w.model.tower("m0"), w.model.ranks["m0"]
    assert not tower.from_interactions[:rank].any()
    assert tower.from_interactions[rank:].any()
    near = slice(w.model.ranks["m1"], w.model.ranks["m1"] + rank)
    for weights in (tower.from_content, tower.from_content_alone):
        assert not weights[near].any()
        assert weights[: near.start].any()


@torch.no_grad()
def test_where_nothing_is_known_the_mean_is_generated() -> None:
    w, _ = linear_world()
    everybody = torch.ones(150, dtype=torch.bool)
    nothing = w.evidence.without("m1", others=everybody, interactions=everybody)
    assert not w.model.base("m1", nothing).any()
    taste = w.forward().taste
    for trust in (0.0, 1.0):
        tower = w.model.tower("m1")
        tower.trust.fill_(trust)
        made = w.model.generate("m1", nothing, taste).features
        torch.testing.assert_close(tower.projection.back(made), tower.projection.mean.expand(150, -1))


@torch.no_grad()
def test_base_learns_from_the_given_cells_only() -> None:
    w = world()
    cells = w.batch.observed.clone()
    cells[:, 1] &= cells[:, 1].cumsum(dim=0) < 10  # nine, too few
    w.model.fit_base(w.evidence, cells)
    for name, learns in (("m0", True), ("m1", False)):
        tower = w.model.tower(name)
        for weights in (tower.from_interactions, tower.from_content, tower.from_content_alone):
            assert bool(weights.any()) == learns
    before = w.model.tower("m0").from_content_alone.clone()
    own = {name: block.clone() for name, block in w.evidence.own.items()}
    own["m0"][~cells[:, 0]] = 7.0
    w.model.fit_base(replace(w.evidence, own=own), cells)
    assert torch.equal(w.model.tower("m0").from_content_alone, before)


@torch.no_grad()
def test_confidence_is_between_0_and_1() -> None:
    w = world()
    made = w.model.generate("m0", w.evidence, w.forward().taste)
    for calibration in (3.0, -3.0):
        w.model.tower("m0").calibration.fill_(calibration)
        confidence = w.model.confidence("m0", made)
        assert confidence.shape == (ITEMS,)
        assert confidence.min() >= 0
        assert confidence.max() <= 1


@torch.no_grad()
def test_calibration_finds_what_the_facts_tell() -> None:
    w = world()
    made = w.model.generate("m0", w.evidence, w.forward().taste)
    w.model.fit_calibration("m0", made.facts.repeat(50, 1), 0.2 + 0.3 * made.facts[:, 2].repeat(50))
    torch.testing.assert_close(w.model.confidence("m0", made), 0.2 + 0.3 * made.facts[:, 2], atol=0.02, rtol=0)
    before = w.model.tower("m0").calibration.clone()
    w.model.fit_calibration("m0", made.facts[:0], torch.zeros(0))
    assert torch.equal(w.model.tower("m0").calibration, before)


def test_a_graph_without_interactions() -> None:
    none = np.array([], dtype=np.int64)
    w = world()
    graphs = InteractionGraphs.build(none, none, USERS, ITEMS)
    out = w.model(graphs, w.side)
    assert out.cold.all()
    assert out.items.isfinite().all()
