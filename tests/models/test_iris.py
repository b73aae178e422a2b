"""IRIS against a plain reading of its equations, and the edges of histories."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from models.arrays import Array, Mask
from models.bundle import Bundle, BundleError
from models.iris import serving
from models.iris.config import IRISConfig
from models.iris.model import IRIS, Histories
from models.iris.serving import IRISServing, ItemSides
from models.modality import ModalitySpec
from models.vocabulary import Vocabulary
from tests.models.bundles import bundle_of

SPECS = [ModalitySpec("text", 7), ModalitySpec("image", 5), ModalitySpec("audio", 3)]
ITEMS = 40
CONFIG = IRISConfig(embedding_size=3, members=2, tower_hidden=8, tower_size=5, interest_size=4, rank=4)
IDS = [f"i{row}" for row in range(ITEMS)]


def contents(n: int = ITEMS, seed: int = 1) -> tuple[dict[str, Array], Mask]:
    rng = np.random.default_rng(seed)
    features = {spec.name: rng.normal(size=(n, spec.dim)).astype(np.float32) for spec in SPECS}
    return features, rng.random((n, len(SPECS))) < 0.7


def model(**changes: object) -> IRIS:
    torch.manual_seed(0)
    made = IRIS(CONFIG.model_copy(update=changes), SPECS, ITEMS)
    with torch.no_grad():  # as if it had learned something
        for one in (made.p, made.q, made.h, made.item_bias, made.bias):
            one.normal_(0, 0.7)
    features, present = contents()
    chosen = torch.from_numpy(present)[:, [row for row, spec in enumerate(SPECS) if spec.name in made.names]]
    raw = {name: torch.from_numpy(features[name]) for name in made.names}
    made.fit_projections(raw, chosen)
    met = torch.ones(ITEMS, dtype=torch.bool)
    met[3] = False
    made.fit_prediction(made.signals(raw), chosen, met)
    return made.eval()


def reranker(**changes: object) -> IRISServing:
    return IRISServing(model(**changes), Vocabulary(IDS))


def sides(one: IRISServing) -> ItemSides:
    features, present = contents()
    columns = [row for row, spec in enumerate(SPECS) if spec.name in one.names]
    return one.sides({name: features[name] for name in one.names}, present[:, columns], IDS)


# --- the equations ---------------------------------------------------------------------------------------------------


def plain(one: IRISServing, i: int, without: int | None = None) -> Array:
    """What item i brings as a history item, read literally off eq. 6-8."""
    module = one.model
    features, present = contents()
    here = present[i].copy()
    if without is not None:
        here[without] = False
    weight = {name: array.detach().numpy() for name, array in module.named_parameters()}
    hidden = []
    for column, name in enumerate(module.names):
        signal = module.projections[name](torch.from_numpy(features[name][i : i + 1]))[0].numpy()
        inner = weight[f"towers.first.{name}.weight"] @ signal + weight[f"towers.first.{name}.bias"]
        hidden.append(np.maximum(inner, 0) * here[column])
    total = weight["bias"].copy()
    for column, name in enumerate(module.names):
        z = weight[f"towers.own.{name}.weight"] @ hidden[column]
        if "towers.share.weight" in weight:
            others = [weight["towers.share.weight"] @ one for other, one in enumerate(hidden) if other != column]
            z = z + np.mean(others, axis=0)
        total += weight[f"as_history.{name}.weight"] @ z
    return total


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.8), (0.5, 0.5), (0.0, 1.0)])
def test_scores_and_relevances_are_those_of_the_equations(sharing: bool, alpha: float, beta: float) -> None:
    one = reranker(sharing=sharing, alpha=alpha, beta=beta)
    every = sides(one)
    history, targets = [1, 4, 5, 9, 11], [4, 20, 21]
    same = np.array([[i == j for i in history] for j in targets])
    found = one.explain(every.select(history), every.select(targets), same=same)
    for t, j in enumerate(targets):
        past = [i for i in history if i != j]
        f = {i: np.maximum(plain(one, i) + every.target[j], 0) @ one.model.h.detach().numpy() for i in past}
        total = sum(np.exp(f[i]) for i in past)
        for h, i in enumerate(history):
            expected = 0.0 if i == j else np.exp(f[i]) / total**beta * (every.p[i] @ every.q[j]) / len(past) ** alpha
            assert found.relevance[t, h] == pytest.approx(expected, rel=1e-4, abs=1e-6)
            a = 0.0 if i == j else np.exp(f[i]) / total**beta  # eq. 4
            assert found.interest[t, h] == pytest.approx(a, rel=1e-4, abs=1e-6)
        assert found.score[t] == pytest.approx(found.relevance[t].sum() + every.item_bias[j], abs=1e-5)
    np.testing.assert_allclose(found.score, one.score(every.select(history), every.select(targets), same=same))


def test_shares_are_what_the_relevance_loses_without_a_modality() -> None:
    one = reranker()
    every = sides(one)
    history, j = [1, 4, 5], 20
    found = one.explain(every.select(history), every.select([j]))
    h, beta = one.model.h.detach().numpy(), one.model.config.beta
    interest = np.array([np.exp(np.maximum(plain(one, i) + every.target[j], 0) @ h) for i in history])
    for place, i in enumerate(history):
        change = []
        for column in range(len(SPECS)):
            other = interest.copy()
            other[place] = np.exp(np.maximum(plain(one, i, without=column) + every.target[j], 0) @ h)
            relevance = other[place] / other.sum() ** beta * (every.p[i] @ every.q[j])
            change.append(found.relevance[0, place] - relevance)
        np.testing.assert_allclose(found.effects[0, place], change, rtol=1e-3, atol=1e-5)
        size = np.abs(change)
        np.testing.assert_allclose(found.shares[0, place], size / size.sum(), atol=1e-3)


def test_the_fused_form_scores_alike() -> None:
    """Training scores all users' histories at once; serving one history with its targets."""
    one = reranker(alpha=0.3)
    every = sides(one)
    features, present = contents()
    known = {name: torch.from_numpy(array) for name, array in features.items()}
    roles = one.model.roles(one.model.signals(known), torch.from_numpy(present))
    histories = np.zeros((3, ITEMS), np.float32)
    met: list[list[int]] = [[2, 5, 7, 30], [8], []]
    for user, items in enumerate(met):
        histories[user, items] = 1
    columns = torch.tensor([5, 8, 39])
    with torch.no_grad():
        fused = one.model.score(Histories(sp.csr_array(histories)), one.model.similarities(*roles, columns))
    for user, items in enumerate(met):
        same = np.array([[i == j for i in items] for j in columns.tolist()], dtype=bool)
        same = same.reshape(3, len(items))
        served = one.score(every.select(items), every.select(columns.tolist()), same=same)
        np.testing.assert_allclose(fused[user].numpy(), served, atol=1e-4)


@pytest.mark.parametrize("reads", [(), None])
def test_equal_interests_are_those_of_an_untaught_network(reads: tuple[str, ...] | None) -> None:
    one = model(reads=reads, alpha=0.2)
    with torch.no_grad():
        one.h.zero_()
    present = torch.ones(ITEMS, len(one.names), dtype=torch.bool)
    signals = one.signals({name: torch.from_numpy(feature) for name, feature in contents()[0].items()})
    rng = np.random.default_rng(0)
    histories = Histories(sp.csr_array((rng.random((9, ITEMS)) < 0.3).astype(np.float32)))
    columns = torch.tensor([5, 8, 39])
    with torch.no_grad():
        slow = one.score(histories, one.similarities(*one.roles(signals, present), columns))
        torch.testing.assert_close(one.equal_score(histories, columns), slow, rtol=1e-4, atol=1e-5)


def test_dropped_entries_keep_the_mean() -> None:
    histories = Histories(sp.csr_array(np.ones((50, 200), np.float32)))
    found = histories.dropped(0.4, np.random.default_rng(0))
    entries = found.own(torch.arange(200))
    assert set(entries.unique().tolist()) == {0.0, np.float32(1 / 0.6)}
    assert entries.mean() == pytest.approx(1, abs=0.03)
    torch.testing.assert_close(found.length, entries.sum(dim=1, keepdim=True))
    assert histories.dropped(0, np.random.default_rng(0)) is histories
    torch.testing.assert_close(found.select(torch.tensor([3, 1])).length, found.length[[3, 1]])


def test_weights_count_like_repetition() -> None:
    one = reranker()
    every = sides(one)
    twice = one.score(every.select([1, 4, 4]), every.select([20]))
    weighed = one.score(every.select([1, 4]), every.select([20]), weights=np.array([1.0, 2.0], np.float32))
    np.testing.assert_allclose(twice, weighed, rtol=1e-5)


def test_a_score_does_not_depend_on_what_is_scored_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    one = reranker()
    every = sides(one)
    history, targets = every.select([1, 4, 5, 9, 11]), every.select(range(ITEMS))
    same = np.arange(ITEMS)[:, None] == np.array([1, 4, 5, 9, 11])
    together = one.score(history, targets, same=same)
    for at_once in (1, 12, 40):
        monkeypatch.setattr(serving, "AT_ONCE", at_once)
        np.testing.assert_allclose(one.score(history, targets, same=same), together, rtol=1e-6)


@pytest.mark.parametrize("weights", [None, np.array([1, 0.25, 0.5], np.float32)])
def test_a_query_finds_what_scores_best_were_all_interests_one(weights: Array | None) -> None:
    one = reranker(alpha=0.3)
    with torch.no_grad():
        one.model.h.zero_()  # exp(0)
    every = sides(one)
    history = every.select([1, 4, 5])
    query = one.alike(history, weights=weights)
    found = np.concatenate([every.q, every.item_bias[:, None]], axis=1) @ query
    np.testing.assert_allclose(found, one.score(history, every, weights=weights), atol=1e-5)


def test_rows_have_the_shapes_that_are_told() -> None:
    for one in (reranker(), reranker(reads=("text",)), reranker(reads=())):
        every = sides(one)
        assert one.shapes == {name: getattr(every, name).shape[1:] for name in one.shapes}


# --- edges -----------------------------------------------------------------------------------------------------------


def test_a_target_has_no_say_in_its_own_score() -> None:
    one = reranker()
    every = sides(one)
    same = np.array([[True, False]])
    found = one.explain(every.select([4, 9]), every.select([4]), same=same)
    other = one.explain(every.select([33, 9]), every.select([4]), same=same)  # whatever stands in its place
    np.testing.assert_array_equal(found.score, other.score)
    np.testing.assert_array_equal(found.relevance[:, 0], 0)


@pytest.mark.parametrize("length", [0, 1, 2000])
def test_histories_of_any_length(length: int) -> None:
    one = reranker()
    every = sides(one)
    history = every.select(np.arange(length) % ITEMS)
    found = one.explain(history, every.select([0, 7]))
    assert found.relevance.shape == (2, length)
    assert found.shares.shape == (2, length, len(SPECS))
    assert np.isfinite(found.score).all()
    assert np.isfinite(found.shares).all()
    if length == 0:
        np.testing.assert_array_equal(found.score, every.item_bias[[0, 7]])
    if length:
        sums = found.shares.sum(axis=2)
        assert (np.isclose(sums, 1, atol=1e-3) | (sums == 0)).all()


def test_no_targets() -> None:
    one = reranker()
    every = sides(one)
    assert one.score(every.select([1, 2]), every.select([])).shape == (0,)


def test_an_absent_modality_may_hold_noise_and_speaks_for_nothing() -> None:
    one = reranker()
    features, present = contents()
    noisy = {
        name: np.where(present[:, [column]], feature, np.float32(1e4))
        for column, (name, feature) in enumerate(features.items())
    }
    left, right = (one.sides(given, present, IDS) for given in (features, noisy))
    for name in ("p", "q", "item_bias", "history", "target", "without"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    lacking = np.flatnonzero(~present[:, 1] & present[:, 0])
    found = one.explain(left.select(lacking), left.select([0]))
    np.testing.assert_allclose(found.shares[:, :, 1], 0, atol=1e-6)


def test_items_that_training_did_not_meet_have_predicted_factors() -> None:
    one = reranker()
    features, present = contents()
    known = one.sides(features, present, IDS)
    new = one.sides(features, present, [f"new-{item}" for item in IDS])
    np.testing.assert_array_equal(known.p[4], one.model.p[4].numpy())
    np.testing.assert_array_equal(known.q[3], new.q[3])  # in the catalogue, but nobody touched it
    assert np.abs(known.p[4] - new.p[4]).max() > 1e-3
    np.testing.assert_array_equal(known.history, new.history)


def test_prediction_from_content_finds_what_content_tells() -> None:
    made = IRIS(CONFIG.model_copy(update={"rank": 7}), SPECS[:1], 300)
    feature = torch.randn(300, 7, generator=torch.Generator().manual_seed(0))
    met = torch.arange(300) < 200
    with torch.no_grad():
        made.fit_projections({"text": feature}, torch.ones(300, 1, dtype=torch.bool))
        signal = made.signals({"text": feature})
        truth = torch.nn.functional.normalize(signal["text"], dim=1) @ torch.randn(7, 13)
        made.p.copy_(truth[:, :6])
        made.q.copy_(truth[:, 6:12])
        made.item_bias.copy_(truth[:, 12])
        made.fit_prediction(signal, torch.ones(300, 1, dtype=torch.bool), met)
    ids = [f"item-{row}" for row in range(300)]
    one = IRISServing(made, Vocabulary(ids)).sides({"text": feature.numpy()}, np.ones((300, 1), np.bool_), ids)
    found = np.concatenate([one.p, one.q, one.item_bias[:, None]], axis=1)
    np.testing.assert_array_equal(found[:200], truth[:200])
    assert np.square(found - truth.numpy())[200:].mean() < 0.05 * float(truth.var())


@pytest.mark.parametrize("reads", [("image",), ()])
def test_modalities_can_be_left_out(reads: tuple[str, ...]) -> None:
    one = reranker(reads=reads)
    assert one.names == reads
    every = sides(one)
    found = one.explain(every.select([1, 2, 3]), every.select([9]))
    assert found.shares.shape == (1, 3, len(reads))
    if not reads:  # every interest is the same
        expected = every.p[[1, 2, 3]] @ every.q[9]
        np.testing.assert_allclose(found.relevance[0] / found.relevance[0, 0], expected / expected[0], rtol=1e-4)


# --- bundle ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", [None, ("text",)])
def test_a_bundle_brings_the_same_scores_back(tmp_path: Path, reads: tuple[str, ...] | None) -> None:
    one = reranker(reads=reads)
    found = IRISServing.load(bundle_of(tmp_path / "bundle", "iris", one))
    assert found is not None
    assert (found.names, found.items, found.model.config) == (one.names, one.items, one.model.config)
    answers = [made.explain(sides(made).select([1, 2]), sides(made).select([3, 4, 5])) for made in (one, found)]
    for name in ("score", "relevance", "shares"):
        np.testing.assert_array_equal(getattr(answers[0], name), getattr(answers[1], name))


def test_a_bundle_without_or_with_a_damaged_one(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", "iris", reranker())
    assert IRISServing.load(Bundle(bundle.path, bundle.manifest.model_copy(update={"models": {}}))) is None
    entry = bundle.manifest.models["iris"]
    for config in ({"model": {"mispelt": 1}, "sizes": {}}, {**entry.config, "sizes": {"text": 9}}, {}):
        odd = entry.model_copy(update={"config": config})
        with pytest.raises(BundleError, match=r"the iris model of .* does not fit this Lacuna"):
            IRISServing.load(Bundle(bundle.path, bundle.manifest.model_copy(update={"models": {"iris": odd}})))
