"""Training-free imputers against slow loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.evidence import (
    neighbour_means,
)
from models.graph import InteractionGraphs
from models.imputers import (
    GRAPH_IMPUTERS,
    IMPUTERS,
    CoInteractions,
    Imputer,
    chosen,
    impute,
    item_factors,
    observed_means,
    propagate_features,
    tuned,
)
from models.linalg import PENALTIES
from models.modality import ModalBatch
from tests.models.worlds import interactions, linear_batch

DIMS = (6, 5, 4)
N = 24


def centred(batch: ModalBatch) -> dict[str, Tensor]:
    means = observed_means(batch)
    return {
        name: (feature - means[name]) * batch.observed[:, [column]]
        for column, (name, feature) in enumerate(batch.features.items())
    }


@pytest.fixture
def batch() -> ModalBatch:
    return linear_batch(DIMS, n=N, missing=0.4, seed=3)


@pytest.fixture
def graphs() -> InteractionGraphs:
    return interactions(users=8, items=N, seed=5)


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# --- impute --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", IMPUTERS)
def test_impute_keeps_what_is_observed(batch: ModalBatch, graphs: InteractionGraphs, method: str) -> None:
    filled = impute(batch, method, graphs)
    for column, name in enumerate(batch.names):
        have = batch.observed[:, column]
        torch.testing.assert_close(filled[name][have], batch.features[name][have])


def test_impute_mean(batch: ModalBatch) -> None:
    filled = impute(batch, "mean")
    for column, name in enumerate(batch.names):
        have = batch.observed[:, column]
        mean = batch.features[name][have].mean(dim=0)
        torch.testing.assert_close(filled[name][~have], mean.expand(int((~have).sum()), -1))


def test_impute_nn(batch: ModalBatch) -> None:
    filled, means = impute(batch, "nn"), observed_means(batch)
    blocks, valid = neighbour_means(centred(batch), batch.observed)
    for column, name in enumerate(batch.names):
        lacks = ~batch.observed[:, column]
        torch.testing.assert_close(filled[name][lacks], (means[name] + blocks[name])[lacks])
        nothing = lacks & ~valid[:, column]
        assert nothing.any()  # the case is there
        torch.testing.assert_close(filled[name][nothing], means[name].expand(int(nothing.sum()), -1))


def test_impute_nn_is_nearer_than_the_mean() -> None:
    full = linear_batch((6, 5), n=120, missing=0)
    missing = torch.zeros(120, 2, dtype=torch.bool)
    missing[:30, 1] = True
    error = {
        method: (impute(full.masked(missing), method)["m1"] - full.features["m1"])[:30].pow(2).mean()
        for method in ("mean", "nn")
    }
    assert error["nn"] < 0.5 * error["mean"]


@pytest.mark.parametrize("method", IMPUTERS)
@pytest.mark.parametrize("placeholder", [7.0, torch.nan])
def test_impute_reads_no_placeholder(
    batch: ModalBatch, graphs: InteractionGraphs, method: str, placeholder: float
) -> None:
    noisy = ModalBatch(
        {
            name: torch.where(batch.observed[:, [column]], feature, torch.tensor(placeholder))
            for column, (name, feature) in enumerate(batch.features.items())
        },
        batch.observed,
    )
    assert tuned(batch, method, graphs) == tuned(noisy, method, graphs)
    before, after = impute(batch, method, graphs), impute(noisy, method, graphs)
    assert all(torch.equal(before[name], after[name]) for name in batch.names)


def test_impute_a_modality_that_nobody_has() -> None:
    batch = linear_batch((4, 3), n=6, missing=0)
    batch = batch.masked(torch.tensor([[False, True]]).expand(6, 2))
    for method in IMPUTERS:
        assert not impute(batch, method, interactions(items=6))["m1"].any()
    assert not observed_means(batch)["m1"].any()


def test_unknown_imputer(batch: ModalBatch) -> None:
    with pytest.raises(ValueError, match="unknown imputer 'median'"):
        impute(batch, "median")


# --- over the co-interaction graph ---------------------------------------------------------------------------------


def counts(graphs: InteractionGraphs) -> NDArray[np.float64]:
    """C, the co-interaction counts without the diagonal."""
    binary = (graphs.user_mean.matrix.toarray() > 0).astype(np.float64)
    found = binary.T @ binary
    np.fill_diagonal(found, 0)
    return found


def hop(graphs: InteractionGraphs) -> NDArray[np.float64]:
    """D^-1/2 C D^-1/2."""
    found = counts(graphs)
    degree = found.sum(axis=1)
    scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1)), 0)
    return scale[:, None] * found * scale


def guesses(batch: ModalBatch, graphs: InteractionGraphs, method: str, **setting: float) -> dict[str, NDArray[Any]]:
    found = IMPUTERS[method].impute(centred(batch), batch.observed, graphs, **setting)
    return {name: block.numpy() for name, block in found.items()}


def test_co_interactions(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    block = batch.features["m0"]
    np.testing.assert_allclose((CoInteractions(graphs) @ block).numpy(), counts(graphs) @ block.numpy(), atol=1e-4)
    np.testing.assert_allclose(CoInteractions(graphs).hop(block).numpy(), hop(graphs) @ block.numpy(), atol=1e-5)


def test_neigh_mean(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    own, has, c = centred(batch), batch.observed.numpy(), counts(graphs)
    found = guesses(batch, graphs, "neigh-mean")
    for column, name in enumerate(batch.names):
        for item in range(N):
            weights = c[item] * has[:, column]
            expected = weights @ own[name].numpy() / weights.sum() if weights.sum() else np.zeros(DIMS[column])
            np.testing.assert_allclose(found[name][item], expected, atol=1e-5)


@pytest.mark.parametrize("hops", [1, 4])
def test_multi_hop(batch: ModalBatch, graphs: InteractionGraphs, hops: int) -> None:
    found, s = guesses(batch, graphs, "multi-hop", hops=hops), hop(graphs)
    for column, (name, own) in enumerate(centred(batch).items()):
        have, x = batch.observed[:, column].numpy(), own.numpy()
        state = x
        for _ in range(hops):
            state = s @ state
            state[have] = x[have]
        np.testing.assert_allclose(found[name], state, atol=1e-5)


@pytest.mark.parametrize("restart", [0.1, 0.9])
def test_pers_pagerank(batch: ModalBatch, graphs: InteractionGraphs, restart: float) -> None:
    """Against the closed form restart (I - (1 - restart) S)^-1 x_0, which the iteration approaches."""
    found = guesses(batch, graphs, "pers-pagerank", restart=restart, hops=300)
    inverse = np.linalg.inv(np.eye(N) - (1 - restart) * hop(graphs))
    for name, own in centred(batch).items():
        np.testing.assert_allclose(found[name], restart * inverse @ own.numpy(), atol=1e-4)


def test_pers_pagerank_of_two_hops(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    found, s = guesses(batch, graphs, "pers-pagerank", restart=0.3, hops=2), hop(graphs)
    x = centred(batch)["m1"].numpy()
    expected = 0.3 * x + 0.7 * s @ (0.3 * x + 0.7 * s @ x)
    np.testing.assert_allclose(found["m1"], expected, atol=1e-5)


@pytest.mark.parametrize("time", [0.5, 5.0])
def test_heat(batch: ModalBatch, graphs: InteractionGraphs, time: float) -> None:
    """Against the matrix exponential by the eigenvectors of the symmetric S."""
    found = guesses(batch, graphs, "heat", time=time)
    values, vectors = np.linalg.eigh(hop(graphs))
    kernel = vectors @ np.diag(np.exp(-time * (1 - values))) @ vectors.T
    for name, own in centred(batch).items():
        np.testing.assert_allclose(found[name], kernel @ own.numpy(), atol=1e-4)


@pytest.mark.parametrize("method", ["neigh-mean", "multi-hop", "pers-pagerank", "heat"])
def test_an_item_without_interactions_takes_the_mean(batch: ModalBatch, graphs: InteractionGraphs, method: str) -> None:
    """The last item has no interaction (`worlds.interactions`), and without any graph no item has."""
    missing = torch.zeros_like(batch.observed)
    missing[-1, 0] = True
    poorer = batch.masked(missing)
    mean = observed_means(poorer)["m0"]
    torch.testing.assert_close(impute(poorer, method, graphs)["m0"][-1], mean)
    lacks = ~poorer.observed[:, 0]
    torch.testing.assert_close(impute(poorer, method)["m0"][lacks], mean.expand(int(lacks.sum()), -1))


# --- ridge ---------------------------------------------------------------------------------------------------------


def test_item_factors(graphs: InteractionGraphs) -> None:
    """They span the leading right singular space, whatever the signs."""
    found = item_factors(graphs, 3).numpy()
    _, values, vectors = np.linalg.svd(graphs.symmetric.matrix.toarray())
    expected = vectors[:3].T * values[:3]
    expected /= np.sqrt((expected**2).mean())
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)
    assert item_factors(graphs, 100).shape == (N, 7)


def test_ridge_finds_a_linear_relation() -> None:
    """Both modalities are linear images of one latent vector: the ridge is nearer than the mean of neighbours."""
    full = linear_batch((6, 5), n=300, missing=0)
    missing = torch.zeros(300, 2, dtype=torch.bool)
    missing[:60, 1] = True
    truth = full.features["m1"][:60]
    batch, graph = full.masked(missing), interactions(users=40, items=300)
    mean = observed_means(batch)["m1"]
    cosines = {
        method: torch.cosine_similarity(impute(batch, method, graph)["m1"][:60] - mean, truth - mean, dim=1).mean()
        for method in ("nn", "ridge")
    }
    assert cosines["ridge"] > 0.95
    assert cosines["ridge"] > cosines["nn"]


def test_ridge_against_a_closed_form() -> None:
    """One modality and no interactions leave a constant, which is what the ridge of a constant on unit rows answers."""
    batch = linear_batch((4,), n=50, missing=0.3)
    lacks = ~batch.observed[:, 0]
    means = observed_means(batch)["m0"]
    own = centred(batch)["m0"][~lacks]
    unit = torch.nn.functional.normalize(own, dim=1)
    answers = [unit.sum(dim=0) / (len(own) + penalty) * own.norm(dim=1).mean() for penalty in PENALTIES]
    found = impute(batch, "ridge")["m0"][lacks] - means
    assert any(torch.allclose(found, answer.expand_as(found), atol=1e-5) for answer in answers)


def test_ridge_with_few_items_that_have_both(graphs: InteractionGraphs) -> None:
    """Too few to learn one modality from the other: what interactions say is left."""
    batch = linear_batch((4, 3), n=N, missing=0)
    missing = torch.zeros(N, 2, dtype=torch.bool)
    missing[:10, 1], missing[15:, 0] = True, True
    batch = batch.masked(missing)
    filled, mean = impute(batch, "ridge", graphs)["m1"], observed_means(batch)["m1"]
    assert not torch.allclose(filled[:10], mean.expand(10, -1))
    assert torch.equal(impute(batch.select(range(9)), "ridge")["m1"], torch.zeros(9, 3))  # nobody has it at all


def test_ridge_projects_wide_modalities() -> None:
    batch = linear_batch((200, 5), n=60, missing=0.3)
    filled = impute(batch, "ridge", interactions(items=60))
    assert filled["m0"].shape == (60, 200)
    assert filled["m0"].isfinite().all()


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", IMPUTERS)
def test_tuned_takes_one_of_the_settings(batch: ModalBatch, graphs: InteractionGraphs, method: str) -> None:
    setting = tuned(batch, method, graphs)
    assert setting in IMPUTERS[method].settings
    filled = impute(batch, method, graphs, setting)
    assert all(feature.isfinite().all() for feature in filled.values())


def test_tuned_takes_the_best(batch: ModalBatch, graphs: InteractionGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the true features and their opposite, offered as two settings, it takes the true ones."""
    truth = centred(batch)

    def guess(own: Any, observed: Any, graphs: Any, *, sign: int) -> dict[str, Tensor]:
        del observed, graphs
        return {name: sign * truth[name] for name in own}

    monkeypatch.setitem(IMPUTERS, "oracle", Imputer(guess, ({"sign": -1}, {"sign": 1})))  # type: ignore[call-overload]
    assert tuned(batch, "oracle", graphs) == {"sign": 1}


def test_tuned_unknown() -> None:
    with pytest.raises(ValueError, match="unknown imputer 'median': use mean, nn"):
        tuned(linear_batch((4,)), "median")


def test_chosen_is_the_best_on_hidden_cells(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    chance = torch.rand(batch.observed.shape, generator=torch.Generator().manual_seed(4))
    hidden = batch.observed & (chance < 0.1)
    assert hidden.any()
    seen = batch.masked(hidden)
    means = observed_means(seen)

    def quality(method: str, setting: Any) -> float:
        filled = impute(seen, method, graphs, setting)
        cosines = [
            float(
                functional.cosine_similarity(*((x[name] - means[name])[row] for x in (filled, batch.features)), dim=0)
            )
            for column, name in enumerate(batch.names)
            for row in hidden[:, column].nonzero().squeeze(1).tolist()
        ]
        return float(np.mean(cosines))

    found = {
        (method, str(setting)): quality(method, setting)
        for method in GRAPH_IMPUTERS
        for setting in IMPUTERS[method].settings
    }
    assert len(found) == 13
    method, setting = chosen(batch, GRAPH_IMPUTERS, graphs, seed=4)
    assert found[method, str(setting)] == pytest.approx(max(found.values()), abs=1e-5)
    assert max(found.values()) > sorted(found.values())[-2] + 1e-4  # there is one best
    assert chosen(batch, GRAPH_IMPUTERS, graphs, seed=4) == (method, setting)


# --- one hop short of the guess --------------------------------------------------------------------------------------


def test_the_imputers_over_the_graph() -> None:
    assert GRAPH_IMPUTERS == ("neigh-mean", "multi-hop", "pers-pagerank", "heat")


@pytest.mark.parametrize(
    ("method", "setting"), [(name, setting) for name in GRAPH_IMPUTERS for setting in IMPUTERS[name].settings], ids=str
)
def test_propagated_features_guess_as_the_imputer(
    batch: ModalBatch, graphs: InteractionGraphs, method: str, setting: dict[str, Any]
) -> None:
    """Unobserved cells get the direction of its guesses, and no more than the longest row's length."""
    own = centred(batch)
    expected = IMPUTERS[method].impute(own, batch.observed, graphs, **setting)
    told = propagate_features(own, batch.observed, graphs, method, setting)
    found = told.imputations(graphs)
    assert told.weights.shape == (N, len(DIMS))
    seen = 0
    for column, name in enumerate(batch.names):
        for row in (~batch.observed[:, column]).nonzero().squeeze(1).tolist():
            one, other = found[name][row], expected[name][row]
            if other.any():
                assert cosine(one.numpy(), other.numpy()) == pytest.approx(1, abs=1e-5)
                seen += 1
            else:
                assert not one.any()
        assert found[name].norm(dim=1).max() <= told.tables[name].norm(dim=1).max() * (1 + 1e-5)
        if method == "neigh-mean":
            torch.testing.assert_close(found[name], expected[name])
            assert torch.equal(told.tables[name], own[name])
        else:
            assert not torch.equal(found[name], expected[name])
    assert seen > 10
    assert not any(guess.any() for guess in told.imputations(None).values())


def test_not_every_imputer_propagates(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    with pytest.raises(ValueError, match="the imputer 'nn' does not propagate features: use neigh-mean, multi-hop"):
        propagate_features(centred(batch), batch.observed, graphs, "nn", {})
