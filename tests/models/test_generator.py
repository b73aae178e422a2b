"""What generates a modality: it sees no cell that it fills, knows how sure it is, and learns from given cells only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models import linalg
from models.dgmrec.generator import smoothing_neighbours
from models.evidence import gather_evidence
from models.linalg import PENALTIES
from models.modality import ModalBatch
from tests.models.worlds import ITEMS, SMALL, World, generator, linear_batch, small, world


@torch.no_grad()
def test_generated_cell_does_not_depend_on_its_true_feature() -> None:
    w = world((6, 5, 4))
    preference = w.forward().preference
    for column, name in enumerate(w.batch.names):
        before = w.model.generate(name, w.evidence, preference)
        for item in w.batch.observed[:, column].nonzero().squeeze(1)[:6].tolist():
            own = {key: feature.clone() for key, feature in w.evidence.own.items()}
            own[name][item] = 50 * torch.randn(own[name].shape[1], generator=generator(item))
            evidence = gather_evidence(own, w.batch.observed, w.graphs, w.evidence.factors)
            after = w.model.generate(name, evidence, preference)
            torch.testing.assert_close(after.features[item], before.features[item], atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(after.facts[item], before.facts[item], atol=1e-4, rtol=1e-3)
            fewer = w.batch.observed.clone()
            fewer[item, column] = False
            unseen = [
                w.model.generate(name, gather_evidence(content, fewer, w.graphs, w.evidence.factors), preference)
                for content in (own, w.evidence.own)
            ]
            torch.testing.assert_close(unseen[0].features[item], unseen[1].features[item], atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_trust_leads_from_the_base_to_what_was_learned() -> None:
    w = world(config=SMALL.model_copy(update={"knn_smoothing": 0.0}))
    preference = w.forward().preference
    tower = w.model.tower("m1")
    base = w.model.tower("m1").base(w.evidence)
    lengths = base.norm(dim=1).clamp_max(1)
    some = lengths > 0
    assert some.any()
    made = {}
    for trust in (0.0, 0.5, 1.0):
        tower.trust.fill_(trust)
        generation = w.model.generate("m1", w.evidence, preference)
        made[trust] = tower.projection.direction(generation.features)
        torch.testing.assert_close(made[trust].norm(dim=1), lengths)  # as sure as the base, whatever the step
        torch.testing.assert_close(generation.facts[:, 1], lengths)
    learned = tower.projection.direction(w.model.learned("m1", w.evidence, preference).signal)
    ends = [functional.normalize(rows, dim=1) for rows in (base, learned)]
    for trust, expected in ((0.0, ends[0]), (0.5, (ends[0] + ends[1]) / 2), (1.0, ends[1])):
        cosines = functional.cosine_similarity(made[trust], expected, dim=1)[some]
        torch.testing.assert_close(cosines, torch.ones_like(cosines), atol=1e-4, rtol=0)
    assert functional.cosine_similarity(*ends, dim=1)[some].mean() < 0.9


@torch.no_grad()
@pytest.mark.parametrize("knn_smoothing", [0.5, 2.0])
def test_unsure_guesses_are_smoothed_over_the_real_features_nearest_to_them(knn_smoothing: float) -> None:
    full = linear_batch((6, 5), n=150, missing=0.4)
    w = world(config=SMALL.model_copy(update={"knn_smoothing": knn_smoothing}), batch=full)
    tower, observed = w.model.tower("m1"), w.batch.observed[:, 1]
    base = w.model.tower("m1").base(w.evidence).numpy()
    length = np.linalg.norm(base, axis=1, keepdims=True).clip(1e-12, 1)
    guess = base / np.linalg.norm(base, axis=1, keepdims=True).clip(1e-12)
    own = tower.projection.direction(w.evidence.own["m1"])[observed].numpy()
    real = own / np.linalg.norm(own, axis=1, keepdims=True)
    assert smoothing_neighbours(len(real)) == 5  # a twentieth of about 90
    nearest = np.argsort(-guess @ real.T, axis=1)[:, :5]
    mean = real[nearest].mean(axis=1)
    drawn = guess + knn_smoothing * (1 - length) * mean / np.linalg.norm(mean, axis=1, keepdims=True)
    expected = drawn / np.linalg.norm(drawn, axis=1, keepdims=True) * length
    made = w.model.generate("m1", w.evidence, w.forward().preference)
    some = (length > 1e-6)[:, 0]
    assert some.sum() > 100
    np.testing.assert_allclose(tower.projection.direction(made.features)[some], expected[some], atol=1e-5)
    np.testing.assert_allclose(made.facts[:, 1], length[:, 0], atol=1e-6)  # smoothing makes nothing surer
    assert np.abs(drawn - guess)[some].max() > 0.1


@torch.no_grad()
def test_without_real_features_or_weight_guesses_stay() -> None:
    w = world()
    preference = w.forward().preference
    smoothed = w.model.generate("m1", w.evidence, preference).features
    tower = w.model.tower("m1")
    tower.config = small(knn_smoothing=0.0)
    alone = w.model.generate("m1", w.evidence, preference).features
    assert not torch.allclose(smoothed, alone)
    tower.config = small(knn_smoothing=2.0)
    tower.directions.zero_()
    assert torch.equal(w.model.generate("m1", w.evidence, preference).features, alone)


@pytest.mark.parametrize(("real", "count"), [(1, 1), (20, 1), (21, 2), (800, 40), (8192, 40)])
def test_over_how_many_real_features_is_smoothed(real: int, count: int) -> None:
    assert smoothing_neighbours(real) == count


@torch.no_grad()
def test_what_smoothing_looks_among(monkeypatch: pytest.MonkeyPatch) -> None:
    w = world()
    cells = w.batch.observed.clone()
    cells[::2] = False
    w.model.fit_base(w.evidence, cells)
    tower, rows = w.model.tower("m0"), cells[:, 0]
    own = functional.normalize(tower.projection.direction(w.evidence.own["m0"][rows]), dim=1)
    torch.testing.assert_close(tower.directions[: len(own)], own)
    assert not tower.directions[len(own) :].any()
    monkeypatch.setattr("models.dgmrec.generator.SMOOTHING_ROWS", 4)  # of many a sample, always the same
    few, again = world(), world()
    real = few.model.tower("m0").directions
    assert real.shape[0] == 4
    assert real.any(dim=1).all()
    assert torch.equal(real, again.model.tower("m0").directions)
    everything = tower.projection.direction(w.evidence.own["m0"][w.batch.observed[:, 0]])
    near = functional.cosine_similarity(real[:, None], everything[None], dim=2).max(dim=1).values
    torch.testing.assert_close(near, torch.ones(4))


def linear_world(n: int = 150, hidden: int = 40, **settings: Any) -> tuple[World, ModalBatch]:
    """Content without holes but for the second modality of the first items, and the content in full."""
    full = linear_batch((6, 5), n=n, missing=0)
    missing = torch.zeros(n, 2, dtype=torch.bool)
    missing[:hidden, 1] = True
    w = world(batch=full.masked(missing), config=small(**settings))
    w.model.tower("m1").select_inputs(
        co_interaction_mean=False, neighbour_mean=False
    )  # what training would choose: the histories are random
    w.model.fit_base(w.evidence, w.batch.observed)
    return w, full


@torch.no_grad()
def test_base_beats_the_mean_on_linear_content() -> None:
    w, full = linear_world()
    projection = w.model.tower("m1").projection
    base = w.model.tower("m1").base(w.evidence)[:40]
    made = projection.back(projection.signal(base))
    truth, mean = full.features["m1"][:40], projection.mean
    assert (made - truth).pow(2).mean() < 0.5 * (mean - truth).pow(2).mean()
    assert functional.cosine_similarity(made - mean, truth - mean, dim=1).mean() > 0.9


@torch.no_grad()
@pytest.mark.parametrize(("duplicates", "longest"), [(False, 1.3), (True, 1.5)])
def test_base_is_as_long_as_it_is_sure(duplicates: bool, longest: float) -> None:
    """Regressions on unit vectors: about as long as the cosine they reach, and seldom over 1, where it is cut."""
    w, full = linear_world(near_duplicates=duplicates)
    projection = w.model.tower("m1").projection
    base = w.model.tower("m1").base(w.evidence)[:40]
    length = base.norm(dim=1)
    truth = projection.direction(projection(full.features["m1"][:40]))
    cosine = functional.cosine_similarity(base, truth, dim=1)
    assert length.quantile(0.9) < longest
    made = w.model.generate("m1", w.evidence, w.forward().preference).features[:40]
    torch.testing.assert_close(projection.direction(made).norm(dim=1), length.clamp_max(1))
    assert length.mean().item() == pytest.approx(cosine.mean().item(), abs=0.15)
    nobody = torch.zeros(150, dtype=torch.bool)
    poorer = w.evidence.without("m1", others=~nobody, interactions=nobody)
    assert (
        w.model.tower("m1").base(poorer)[:40].norm(dim=1).mean() < 0.6 * length.mean()
    )  # random histories tell little


def directions(duplicates: Tensor, w: World) -> Tensor:
    """`Evidence.near_duplicates` of the second modality among its components, as long as it was."""
    turned = w.model.tower("m1").projection.direction(duplicates)
    return functional.normalize(turned, dim=1) * duplicates.norm(dim=1, keepdim=True)


def with_constant(known: Tensor) -> Tensor:
    return torch.cat([known, torch.ones(len(known), 1)], dim=1)


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
def test_a_guess_follows_near_duplicates() -> None:
    w, full = twins()
    tower = w.model.tower("m1")
    lacking = ~w.evidence.observed[:, 1]

    def cosine(duplicates: bool) -> float:
        tower.config = small(near_duplicates=duplicates, knn_smoothing=0.0)
        tower.select_inputs(co_interaction_mean=False, neighbour_mean=False)
        tower.near_duplicate_weights.zero_()
        w.model.fit_base(w.evidence, w.batch.observed)
        assert bool(tower.near_duplicate_weights.all()) == duplicates
        made = tower.projection.signal(tower.base(w.evidence))[lacking]
        truth = tower.projection(full.features["m1"][lacking])
        return functional.cosine_similarity(made, truth, dim=1).mean().item()

    assert cosine(duplicates=True) > cosine(duplicates=False) + 0.3


@torch.no_grad()
def test_what_is_no_near_duplicate_is_not_followed() -> None:
    """Neighbours by chance: their features say nothing, and they get no say, rather than one against themselves."""
    rng = np.random.default_rng(5)
    features = {name: torch.from_numpy(rng.standard_normal((200, 8)).astype(np.float32)) for name in ("m0", "m1")}
    w = world(batch=ModalBatch(features, torch.ones(200, 2, dtype=torch.bool)))
    w.model.fit_base(w.evidence, w.batch.observed)
    for name in features:
        assert (w.model.tower(name).near_duplicate_weights >= 0).all()
        assert (w.model.tower(name).near_duplicate_weights < 0.2).all()


@torch.no_grad()
def test_directions_have_a_mean_of_their_own() -> None:
    """Centred features of a skewed modality: most lie a little to one side, a few far to the other."""
    rng = np.random.default_rng(6)
    far = rng.random((300, 1)) < 0.05
    skewed = np.where(far, 10.0, -0.5) + 0.3 * rng.standard_normal((300, 8))
    noise = rng.standard_normal((300, 8))
    features = {"m0": torch.from_numpy(noise).float(), "m1": torch.from_numpy(skewed).float()}
    w = world(batch=ModalBatch(features, torch.ones(300, 2, dtype=torch.bool)))
    w.model.fit_base(w.evidence, w.batch.observed)
    mean = functional.normalize(directions(w.evidence.own["m1"], w), dim=1).mean(dim=0)
    assert mean.norm() > 0.7
    everybody, nobody = torch.ones(300, dtype=torch.bool), torch.zeros(300, dtype=torch.bool)
    for others, interactions in ((nobody, nobody), (everybody, nobody), (nobody, everybody)):
        hidden = w.evidence.without("m1", others=others, interactions=interactions)
        known = hidden.has_interactions() | hidden.has_content("m1")
        base = w.model.tower("m1").base(hidden)[known]
        assert functional.cosine_similarity(base, mean[None], dim=1).mean() > 0.9
    for weights in ("interaction_weights", "content_only_weights"):
        assert getattr(w.model.tower("m1"), weights)[-1] @ mean > 0.05


@torch.no_grad()
def test_base_is_staged() -> None:
    """Interactions first, then what they leave, from content; against the normal equations of each stage."""
    w, _ = linear_world()
    tower, rows = w.model.tower("m1"), w.evidence.observed[:, 1]
    interactions, content = (with_constant(block).double() for block in tower.selected_inputs(w.evidence))
    direction = tower.projection.direction(w.evidence.own["m1"])
    target = functional.normalize(direction, dim=1).double()
    warm, described = rows & w.evidence.has_interactions(), rows & w.evidence.has_content("m1")

    def among_ridges(weights: Tensor, inputs: Tensor, target: Tensor, chosen: Tensor) -> bool:
        a, t = inputs[chosen], target[chosen]
        gram = a.T @ a
        eye = torch.eye(len(gram), dtype=torch.double)
        paths = [torch.linalg.solve(gram + penalty * eye, a.T @ t) for penalty in PENALTIES]
        return any(torch.allclose(weights.double(), path, atol=1e-5) for path in paths)

    def share_of(duplicates: Tensor, rest: Tensor, chosen: Tensor) -> Any:
        a, t = duplicates[chosen].flatten().numpy(), rest[chosen].flatten().numpy()
        return pytest.approx(max(float(a @ t / (a @ a + 1)), 0), abs=1e-4)

    assert among_ridges(tower.interaction_weights, interactions, target, warm)
    first = linalg.cross_validated_ridge(interactions.float(), target.float(), warm).estimate
    rest = target - first.double()
    fit = linalg.cross_validated_ridge(content.float(), target.float(), warm & described, base=first)
    duplicates = directions(w.evidence.near_duplicates["m1"], w).double()
    assert among_ridges(tower.content_weights, content, rest, warm & described)
    assert among_ridges(tower.content_only_weights, content, target, described)
    assert tower.near_duplicate_weights[0] == share_of(duplicates, rest - fit.estimate.double(), warm & described)
    alone = linalg.cross_validated_ridge(content.float(), target.float(), described).estimate.double()
    assert tower.near_duplicate_weights[1] == share_of(duplicates, target - alone, described)
    expected = interactions @ tower.interaction_weights.double() + content @ tower.content_weights.double()
    expected += tower.near_duplicate_weights[0] * duplicates
    found = w.model.tower("m1").base(w.evidence).double()
    both = w.evidence.has_interactions() & w.evidence.has_content("m1")
    torch.testing.assert_close(found[both], expected[both], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_guesses_do_not_look_at_the_cell() -> None:
    """Of a cell that was learned from, by a fit without its fold; of the others, the base itself."""
    w, _ = linear_world()
    cells = w.evidence.observed.clone()
    cells[100:120] = False
    guesses = w.model.fit_base(w.evidence, cells)["m1"]
    base = w.model.tower("m1").base(w.evidence)
    warm = w.evidence.has_interactions()
    torch.testing.assert_close(guesses[100:120][warm[100:120]], base[100:120][warm[100:120]])
    assert not guesses[~warm].any()
    learned = cells[:, 1] & warm
    target = w.model.tower("m1").projection.direction(w.evidence.own["m1"])
    closer = functional.cosine_similarity(base, target, dim=1)[learned].mean()
    honest = functional.cosine_similarity(guesses, target, dim=1)[learned].mean()
    assert 0.5 < honest < closer

    item = int(learned.nonzero()[5])
    features = {name: block.clone() for name, block in w.evidence.own.items()}
    features["m1"][item] = torch.randn(features["m1"].shape[1])
    again = w.model.fit_base(replace(w.evidence, own=features), cells)["m1"]
    moved, usual = (guesses - again)[item].norm(), (guesses - again)[learned].norm(dim=1).mean()
    assert moved < 2 * usual  # no more than any other: only the share of the duplicates items has seen it


@torch.no_grad()
def test_base_of_a_cold_item_is_from_content_alone() -> None:
    w, _ = linear_world()
    tower = w.model.tower("m1")
    everybody, nobody = torch.ones(150, dtype=torch.bool), torch.zeros(150, dtype=torch.bool)
    cold = w.evidence.without("m1", others=nobody, interactions=everybody)
    alone = with_constant(cold.content_evidence("m1")) @ tower.content_only_weights
    alone += tower.near_duplicate_weights[1] * directions(cold.near_duplicates["m1"], w)
    torch.testing.assert_close(w.model.tower("m1").base(cold), alone)
    assert not w.evidence.has_interactions()[-1]
    torch.testing.assert_close(w.model.tower("m1").base(w.evidence)[-1], alone[-1])
    assert not torch.allclose(tower.content_weights, tower.content_only_weights, atol=1e-3)
    lonely = w.evidence.without("m1", others=everybody, interactions=nobody)
    from_users = with_constant(w.evidence.interaction_evidence("m1")) @ tower.interaction_weights
    torch.testing.assert_close(w.model.tower("m1").base(lonely), from_users * w.evidence.has_interactions()[:, None])


@torch.no_grad()
@pytest.mark.parametrize("unread", ["cross_fitted_mean", "neighbour_mean"])
def test_what_is_not_read_changes_nothing(unread: str) -> None:
    w = world()
    tower = w.model.tower("m1")
    w.model.tower("m1").select_inputs(
        co_interaction_mean=unread != "cross_fitted_mean", neighbour_mean=unread != "neighbour_mean"
    )
    w.model.fit_base(w.evidence, w.batch.observed)
    tower.trust.fill_(0.5)
    kept = {name: block.clone() for name, block in w.model.state_dict().items()}
    noise = {name: torch.randn_like(block) for name, block in w.evidence.own.items()}
    noisy = replace(w.evidence, **{unread: noise})
    w.model.fit_base(noisy, w.batch.observed)
    tower.trust.fill_(0.5)
    for name, block in w.model.state_dict().items():
        assert not name.startswith("towers.m1") or torch.equal(block, kept[name]), name
    preference = w.forward().preference
    made, other = (w.model.generate("m1", evidence, preference).features for evidence in (w.evidence, noisy))
    assert torch.equal(made, other)
    w.model.tower("m1").select_inputs(co_interaction_mean=True, neighbour_mean=True)
    w.model.fit_base(w.evidence, w.batch.observed)
    made, other = (w.model.generate("m1", evidence, preference).features for evidence in (w.evidence, noisy))
    assert not torch.allclose(made, other)


@torch.no_grad()
def test_weights_of_what_is_not_read_are_zero() -> None:
    w = world()
    w.model.tower("m0").select_inputs(co_interaction_mean=False, neighbour_mean=False)
    w.model.fit_base(w.evidence, w.batch.observed)
    tower, rank = w.model.tower("m0"), w.model.ranks["m0"]
    assert not tower.interaction_weights[:rank].any()
    assert tower.interaction_weights[rank:].any()
    near = slice(w.model.ranks["m1"], w.model.ranks["m1"] + rank)
    for weights in (tower.content_weights, tower.content_only_weights):
        assert not weights[near].any()
        assert weights[: near.start].any()


@torch.no_grad()
def test_where_nothing_is_known_the_mean_is_generated() -> None:
    w, _ = linear_world()
    everybody = torch.ones(150, dtype=torch.bool)
    nothing = w.evidence.without("m1", others=everybody, interactions=everybody)
    assert not w.model.tower("m1").base(nothing).any()
    preference = w.forward().preference
    for trust in (0.0, 1.0):
        tower = w.model.tower("m1")
        tower.trust.fill_(trust)
        made = w.model.generate("m1", nothing, preference).features
        torch.testing.assert_close(tower.projection.back(made), tower.projection.mean.expand(150, -1))


@torch.no_grad()
def test_base_learns_from_the_given_cells_only() -> None:
    w = world()
    cells = w.batch.observed.clone()
    cells[:, 1] &= cells[:, 1].cumsum(dim=0) < 10  # nine, too few
    w.model.fit_base(w.evidence, cells)
    for name, learns in (("m0", True), ("m1", False)):
        tower = w.model.tower(name)
        for weights in (tower.interaction_weights, tower.content_weights, tower.content_only_weights):
            assert bool(weights.any()) == learns
    before = w.model.tower("m0").content_only_weights.clone()
    own = {name: block.clone() for name, block in w.evidence.own.items()}
    own["m0"][~cells[:, 0]] = 7.0
    w.model.fit_base(replace(w.evidence, own=own), cells)
    assert torch.equal(w.model.tower("m0").content_only_weights, before)


@torch.no_grad()
def test_confidence_is_between_0_and_1() -> None:
    w = world()
    made = w.model.generate("m0", w.evidence, w.forward().preference)
    for calibration in (3.0, -3.0):
        w.model.tower("m0").calibration.fill_(calibration)
        confidence = w.model.tower("m0").confidence(made)
        assert confidence.shape == (ITEMS,)
        assert confidence.min() >= 0
        assert confidence.max() <= 1


@torch.no_grad()
def test_calibration_finds_what_the_facts_tell() -> None:
    w = world()
    tower = w.model.tower("m0")
    made = w.model.generate("m0", w.evidence, w.forward().preference)
    truth = 0.2 + 0.3 * made.facts[:, 2]
    tower.fit_calibration(made.facts.repeat(20_000, 1), truth.repeat(20_000))
    torch.testing.assert_close(tower.confidence(made), truth, atol=0.02, rtol=0)


@torch.no_grad()
def test_few_cells_hardly_move_what_the_base_forecasts() -> None:
    w = world()
    tower = w.model.tower("m0")
    made = w.model.generate("m0", w.evidence, w.forward().preference)
    length = made.features.norm(dim=1) / w.model.ranks["m0"] ** 0.5
    tower.fit_calibration(made.facts[:0], torch.zeros(0))
    torch.testing.assert_close(tower.confidence(made), length)
    tower.fit_calibration(made.facts[:5], torch.full((5,), 0.9))
    few = (tower.confidence(made) - length).abs().max()
    tower.fit_calibration(made.facts.repeat(100, 1), torch.full((100 * ITEMS,), 0.9))
    many = (tower.confidence(made) - length).abs().max()
    assert 0 < few < 0.05 < 0.2 < many


def test_cosines_with_generated_features_spread_as_those_with_true_ones() -> None:
    """Generated ones that lie about one direction are near to many queries, or far from them; unseen of fewer cells."""
    tower, rng = world((6, 6)).model.tower("m0"), generator()
    rank = int(tower.content_weights.shape[1])
    queries, truth = torch.randn(50, rank, generator=rng), torch.randn(40, rank, generator=rng)
    about = torch.randn(1, rank, generator=rng) + 0.2 * torch.randn(40, rank, generator=rng)
    queries[:, 0] *= 3  # they vary along one direction
    about[:, 0] += 5 * torch.randn(40, generator=rng)
    tower.fit_search_scale(queries, about, truth, warm=True)
    unit = functional.normalize

    def spread(signals: Tensor) -> float:
        return float((unit(queries, dim=1) @ unit(signals, dim=1).T).std())

    expected = spread(truth) / spread(about)
    assert expected < 0.9
    assert tower.search_scale.tolist() == pytest.approx([expected, 1.0], rel=1e-4)
    tower.fit_search_scale(queries, about[:10], truth[:10], warm=False)
    assert float(tower.search_scale[1]) == 1.0
