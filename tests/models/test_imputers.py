"""Training-free imputers against slow loops, and what a cell's evidence may not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.graph import InteractionGraphs
from models.imputers import (
    Evidence,
    evidence_width,
    gather_evidence,
    impute,
    mean_of,
    near_means,
    observed_means,
    shared_means,
)
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


def test_mean_of() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    mean, some = mean_of(values, torch.tensor([[0, 2], [1, -1], [-1, -1]]))
    assert mean.tolist() == [[3, 4], [3, 4], [0, 0]]
    assert some.tolist() == [True, True, False]


@pytest.mark.parametrize("k", [2, 5])
def test_near_means(batch: ModalBatch, k: int) -> None:
    own, has = centred(batch), batch.observed.numpy()
    blocks, valid = near_means(own, batch.observed, k)
    x = {name: block.numpy() for name, block in own.items()}
    for target, name in enumerate(batch.names):
        for item in range(N):
            guesses = []
            for source, other in enumerate(batch.names):
                candidates = [j for j in range(N) if j != item and has[j, source] and has[j, target]]
                if source == target or not has[item, source] or not candidates:
                    continue
                candidates.sort(key=lambda j, other=other, item=item: -cosine(x[other][item], x[other][j]))
                guesses.append(x[name][candidates[:k]].mean(axis=0))
            assert bool(valid[item, target]) == bool(guesses)
            expected = np.mean(guesses, axis=0) if guesses else np.zeros(DIMS[target])
            np.testing.assert_allclose(blocks[name][item].numpy(), expected, atol=1e-5)


def test_near_means_of_one_modality(batch: ModalBatch) -> None:
    blocks, valid = near_means({"m0": centred(batch)["m0"]}, batch.observed[:, :1])
    assert not valid.any()
    assert not blocks["m0"].any()


def test_shared_means(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    own, has = centred(batch), batch.observed.numpy()
    blocks, valid = shared_means(own, batch.observed, graphs)
    histories = [set(row.nonzero()[0]) for row in graphs.user_mean.matrix.toarray()]
    for column, name in enumerate(batch.names):
        for item in range(N):
            means = []
            for history in histories:
                others = [j for j in history if j != item and has[j, column]]
                if item in history and others:
                    means.append(own[name][others].mean(dim=0).numpy())
            assert bool(valid[item, column]) == bool(means)
            expected = np.mean(means, axis=0) if means else np.zeros(DIMS[column])
            np.testing.assert_allclose(blocks[name][item].numpy(), expected, atol=1e-5)


def test_shared_means_without_interactions(batch: ModalBatch) -> None:
    blocks, valid = shared_means(centred(batch), batch.observed, None)
    assert not valid.any()
    assert all(not block.any() for block in blocks.values())
    none = np.array([], dtype=np.int64)
    blocks, valid = shared_means(centred(batch), batch.observed, InteractionGraphs.build(none, none, 2, N))
    assert not valid.any()
    assert all(not block.any() for block in blocks.values())


# --- evidence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", range(len(DIMS)))
def test_inputs_never_depend_on_the_cell_itself(batch: ModalBatch, graphs: InteractionGraphs, column: int) -> None:
    """The item's own feature in the modality is replaced by noise, or taken away: its row of inputs stays."""
    name = batch.names[column]
    features = centred(batch)
    before = gather_evidence(features, batch.observed, graphs).inputs(name)
    generator = torch.Generator().manual_seed(0)
    for item in batch.observed[:, column].nonzero().squeeze(1).tolist():
        changed = {key: feature.clone() for key, feature in features.items()}
        changed[name][item] = 100 * torch.randn(DIMS[column], generator=generator)
        after = gather_evidence(changed, batch.observed, graphs).inputs(name)
        torch.testing.assert_close(after[item], before[item], rtol=1e-3, atol=1e-4)
        fewer = batch.observed.clone()
        fewer[item, column] = False
        after = gather_evidence(features, fewer, graphs).inputs(name)
        torch.testing.assert_close(after[item], before[item], rtol=1e-3, atol=1e-4)


def test_other_cells_do_depend_on_it(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    """So that the test above would notice."""
    features = centred(batch)
    item = int(batch.observed.all(dim=1).nonzero()[0])
    changed = {key: feature.clone() for key, feature in features.items()}
    changed["m0"][item] += 5
    before, after = (gather_evidence(x, batch.observed, graphs) for x in (features, changed))
    assert not torch.allclose(before.inputs("m1")[item], after.inputs("m1")[item])
    rest = torch.arange(N) != item
    assert not torch.allclose(before.inputs("m0")[rest], after.inputs("m0")[rest])


@pytest.mark.parametrize("placeholder", [7.0, torch.nan, torch.inf])
def test_unobserved_rows_are_never_read(batch: ModalBatch, graphs: InteractionGraphs, placeholder: float) -> None:
    features = centred(batch)
    noisy = {
        name: torch.where(batch.observed[:, [column]], feature, torch.tensor(placeholder))
        for column, (name, feature) in enumerate(features.items())
    }
    before, after = (gather_evidence(x, batch.observed, graphs) for x in (features, noisy))
    for name in batch.names:
        assert torch.equal(before.inputs(name), after.inputs(name))


def test_width(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    evidence = gather_evidence(centred(batch), batch.observed, graphs)
    ranks = dict(zip(batch.names, DIMS, strict=True))
    for name in batch.names:
        assert evidence.inputs(name).shape == (N, evidence_width(ranks, name))
    assert len(evidence) == N


def test_width_of_one_modality() -> None:
    batch = linear_batch((4,), n=N)
    evidence = gather_evidence(centred(batch), batch.observed, None)
    assert evidence.inputs("m0").shape == (N, evidence_width({"m0": 4}, "m0"))


def evidence_of(batch: ModalBatch, graphs: InteractionGraphs) -> Evidence:
    return gather_evidence(centred(batch), batch.observed, graphs)


def test_select(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    evidence = evidence_of(batch, graphs)
    rows = torch.tensor([5, 2])
    assert torch.equal(evidence.select(rows).inputs("m1"), evidence.inputs("m1")[rows])


def test_without_others(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    """An item whose other modalities are hidden looks like one that never had them."""
    evidence = evidence_of(batch, graphs)
    hide = torch.arange(N) == int(batch.observed.all(dim=1).nonzero()[0])
    nobody = torch.zeros(N, dtype=torch.bool)
    hidden = evidence.without("m1", others=hide, interactions=nobody)
    item = int(hide.nonzero())
    poorer = batch.observed.clone()
    poorer[item, [0, 2]] = False
    expected = gather_evidence(centred(batch), poorer, None)
    assert torch.equal(hidden.observed, poorer)
    widths = [DIMS[0], DIMS[2], DIMS[1]]  # own m0, own m2, near m1
    lonely = hidden.inputs("m1")[item]
    assert torch.equal(lonely[: sum(widths)], expected.inputs("m1")[item, : sum(widths)])
    assert not lonely[: sum(widths)].any()
    assert torch.equal(lonely[sum(widths) : -6], evidence.inputs("m1")[item, sum(widths) : -6])  # shared: still there
    assert lonely[-6:-3].tolist() == [0, 0, 0]  # flags: own m0, own m2, near
    assert torch.equal(hidden.inputs("m1")[~hide], evidence.inputs("m1")[~hide])


def test_without_interactions(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    evidence = evidence_of(batch, graphs)
    everybody, nobody = torch.ones(N, dtype=torch.bool), torch.zeros(N, dtype=torch.bool)
    hidden = evidence.without("m1", others=nobody, interactions=everybody)
    assert torch.equal(hidden.inputs("m1"), gather_evidence(centred(batch), batch.observed, None).inputs("m1"))


def test_without_nothing_is_the_same(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    evidence, nobody = evidence_of(batch, graphs), torch.zeros(N, dtype=torch.bool)
    same = evidence.without("m1", others=nobody, interactions=nobody)
    assert torch.equal(same.inputs("m1"), evidence.inputs("m1"))


def test_without_does_not_touch_the_original(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    evidence, everybody = evidence_of(batch, graphs), torch.ones(N, dtype=torch.bool)
    before = evidence.inputs("m0").clone()
    evidence.without("m1", others=everybody, interactions=everybody)
    assert torch.equal(evidence.inputs("m0"), before)
    assert torch.equal(evidence.observed, batch.observed)


# --- impute --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["mean", "nn"])
def test_impute_keeps_what_is_observed(batch: ModalBatch, method: str) -> None:
    filled = impute(batch, method)
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
    blocks, valid = near_means(centred(batch), batch.observed)
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


@pytest.mark.parametrize("method", ["mean", "nn"])
@pytest.mark.parametrize("placeholder", [7.0, torch.nan])
def test_impute_reads_no_placeholder(batch: ModalBatch, method: str, placeholder: float) -> None:
    noisy = ModalBatch(
        {
            name: torch.where(batch.observed[:, [column]], feature, torch.tensor(placeholder))
            for column, (name, feature) in enumerate(batch.features.items())
        },
        batch.observed,
    )
    before, after = impute(batch, method), impute(noisy, method)
    assert all(torch.equal(before[name], after[name]) for name in batch.names)


def test_impute_a_modality_that_nobody_has() -> None:
    batch = linear_batch((4, 3), n=6, missing=0)
    batch = batch.masked(torch.tensor([[False, True]]).expand(6, 2))
    for method in ("mean", "nn"):
        assert not impute(batch, method)["m1"].any()
    assert not observed_means(batch)["m1"].any()


def test_unknown_imputer(batch: ModalBatch) -> None:
    with pytest.raises(ValueError, match="unknown imputer 'median'"):
        impute(batch, "median")
