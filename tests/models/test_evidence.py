"""What is known of a cell against slow loops, and what it may not depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.dgmrec.weights import Array
from models.evidence import (
    NEAR_DUPLICATES,
    Evidence,
    NeighbourAggregate,
    aggregate_neighbours,
    co_interaction_means,
    collaborative_factors,
    content_columns,
    content_width,
    cross_fitted_means,
    cross_fitting_fold,
    gather_evidence,
    interaction_columns,
    interaction_width,
    near_duplicate_mean,
    neighbour_means,
    similarity_weighted_mean,
    user_factors,
    weighted_mean,
)
from models.graph import InteractionGraphs
from models.imputers import (
    observed_means,
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


def test_weighted_mean() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    mean, some = weighted_mean(values, torch.tensor([[0, 2], [1, -1], [-1, -1]]))
    assert mean.tolist() == [[3, 4], [3, 4], [0, 0]]
    assert some.tolist() == [True, True, False]
    weights = torch.tensor([[3.0, 1.0], [0.5, 9.0], [1.0, 1.0]])
    mean, some = weighted_mean(values, torch.tensor([[0, 2], [1, -1], [-1, -1]]), weights)
    assert mean.tolist() == [[2, 3], [3, 4], [0, 0]]
    assert some.tolist() == [True, True, False]


def mean(features: Array, _: Array) -> Array:
    return features.mean(axis=0)


def mean_by_squares(features: Array, cosines: Array) -> Array:
    weights = cosines.clip(0) ** 2
    return weights @ features / max(weights.sum(), 1e-12)


def mean_of_near_duplicates(features: Array, cosines: Array) -> Array:
    features, cosines = features[:NEAR_DUPLICATES], cosines[:NEAR_DUPLICATES].clip(0)
    weights = cosines**4
    total = weights @ features
    cosine = weights @ cosines / max(weights.sum(), 1e-12)
    return total / max(float(np.linalg.norm(total)), 1e-12) * cosine**2


@pytest.mark.parametrize("k", [2, 5, NEAR_DUPLICATES + 5])
@pytest.mark.parametrize(
    ("way", "expected_of"),
    [(None, mean), (similarity_weighted_mean, mean_by_squares), (near_duplicate_mean, mean_of_near_duplicates)],
)
def test_aggregates_of_neighbours(
    batch: ModalBatch, k: int, way: NeighbourAggregate | None, expected_of: Callable[[Array, Array], Array]
) -> None:
    own, has = centred(batch), batch.observed.numpy()
    if way is None:
        blocks, valid = neighbour_means(own, batch.observed, k)
    else:
        (blocks,), valid = aggregate_neighbours(own, batch.observed, k, [way])
    x = {name: block.numpy() for name, block in own.items()}
    for target, name in enumerate(batch.names):
        for item in range(N):
            guesses = []
            for source, other in enumerate(batch.names):
                candidates = [j for j in range(N) if j != item and has[j, source] and has[j, target]]
                if source == target or not has[item, source] or not candidates:
                    continue
                candidates.sort(key=lambda j, other=other, item=item: -cosine(x[other][item], x[other][j]))
                cosines = np.array([cosine(x[other][item], x[other][j]) for j in candidates[:k]])
                guesses.append(expected_of(x[name][candidates[:k]], cosines))
            assert bool(valid[item, target]) == bool(guesses)
            expected = np.mean(guesses, axis=0) if guesses else np.zeros(DIMS[target])
            np.testing.assert_allclose(blocks[name][item].numpy(), expected, atol=1e-5)


def test_neighbour_means_of_one_modality(batch: ModalBatch) -> None:
    blocks, valid = neighbour_means({"m0": centred(batch)["m0"]}, batch.observed[:, :1])
    assert not valid.any()
    assert not blocks["m0"].any()


def test_co_interaction_means(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    own, has = centred(batch), batch.observed.numpy()
    blocks, valid = co_interaction_means(own, batch.observed, graphs)
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


def test_cross_fitted_means(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    own, has = centred(batch), batch.observed.numpy()
    blocks, valid = cross_fitted_means(own, batch.observed, graphs)
    fold = cross_fitting_fold(N).tolist()
    histories = [set(row.nonzero()[0]) for row in graphs.user_mean.matrix.toarray()]
    for column, name in enumerate(batch.names):
        for item in range(N):
            means = []
            for history in histories:
                apart = has[item, column]  # then the items of its fold stay out, the item among them
                others = [j for j in history if has[j, column] and not (apart and fold[j] == fold[item])]
                if item in history and others:
                    means.append(own[name][others].mean(dim=0).numpy())
            assert bool(valid[item, column]) == bool(means)
            expected = np.mean(means, axis=0) if means else np.zeros(DIMS[column])
            np.testing.assert_allclose(blocks[name][item].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("means", [co_interaction_means, cross_fitted_means])
def test_co_interaction_means_without_interactions(means: Any, batch: ModalBatch) -> None:
    blocks, valid = means(centred(batch), batch.observed, None)
    assert not valid.any()
    assert all(not block.any() for block in blocks.values())
    none = np.array([], dtype=np.int64)
    blocks, valid = means(centred(batch), batch.observed, InteractionGraphs.build(none, none, 2, N))
    assert not valid.any()
    assert all(not block.any() for block in blocks.values())


# --- evidence ------------------------------------------------------------------------------------------------------


def test_only_the_target_itself_reads_cross_fitted_means(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    own = centred(batch)
    evidence = gather_evidence(own, batch.observed, graphs, folds={"m0": 0, "m1": 3, "m2": 2})
    alone, valid = co_interaction_means(own, batch.observed, graphs)
    assert torch.equal(evidence.co_interaction_valid, valid)
    assert all(torch.equal(evidence.co_interaction_mean[name], alone[name]) for name in batch.names)
    assert torch.equal(evidence.cross_fitted_mean["m0"], alone["m0"])  # nothing reads it
    for name, folds in (("m1", 3), ("m2", 2)):
        assert torch.equal(
            evidence.cross_fitted_mean[name], cross_fitted_means(own, batch.observed, graphs, folds)[0][name]
        )
        assert not torch.allclose(evidence.cross_fitted_mean[name], alone[name])
    assert torch.equal(
        gather_evidence(own, batch.observed, graphs).cross_fitted_mean["m2"], evidence.cross_fitted_mean["m2"]
    )  # by default
    for target in batch.names:
        blocks = evidence.interaction_evidence(target)[:, : sum(DIMS)].split(DIMS, dim=1)
        for name, block in zip(batch.names, blocks, strict=True):
            means = evidence.cross_fitted_mean[name] if name == target else alone[name]
            torch.testing.assert_close(block, functional.normalize(means, dim=1))


def test_columns_of_what_is_read(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    """One for each column, zero for the block that is not read and for nothing else."""
    ranks, evidence = dict(zip(batch.names, DIMS, strict=True)), evidence_of(batch, graphs)
    assert interaction_columns(ranks, 4).all()
    assert len(interaction_columns(ranks, 4)) == interaction_width(ranks, 4)
    assert content_columns(ranks, "m1").all()
    assert len(content_columns(ranks, "m1")) == content_width(ranks)
    gone = {name: torch.zeros_like(block) for name, block in evidence.cross_fitted_mean.items()}
    read = evidence.interaction_evidence("m1") * interaction_columns(ranks, 4, without="m1")
    assert torch.equal(read, replace(evidence, cross_fitted_mean=gone).interaction_evidence("m1"))
    read = evidence.content_evidence("m1") * content_columns(ranks, "m1", neighbour_mean=False)
    assert torch.equal(read, replace(evidence, neighbour_mean=gone).content_evidence("m1"))


def evidence_of(batch: ModalBatch, graphs: InteractionGraphs | None, observed: Tensor | None = None) -> Evidence:
    """With the factors of the graphs, and fewer observed cells where told."""
    factors = None if graphs is None else collaborative_factors(graphs, user_factors(graphs, 4))
    return gather_evidence(centred(batch), batch.observed if observed is None else observed, graphs, factors)


def inputs(evidence: Evidence, target: str) -> Tensor:
    """All that is told about a modality."""
    return torch.cat([evidence.content_evidence(target), evidence.interaction_evidence(target)], dim=1)


@pytest.mark.parametrize("column", range(len(DIMS)))
def test_inputs_never_depend_on_the_cell_itself(batch: ModalBatch, graphs: InteractionGraphs, column: int) -> None:
    """The item's own feature in the modality is replaced by noise, observed or not: its row of inputs stays."""
    name = batch.names[column]
    features = centred(batch)
    before = inputs(gather_evidence(features, batch.observed, graphs), name)
    generator = torch.Generator().manual_seed(0)
    for item in batch.observed[:, column].nonzero().squeeze(1).tolist():
        changed = {key: feature.clone() for key, feature in features.items()}
        changed[name][item] = 100 * torch.randn(DIMS[column], generator=generator)
        after = inputs(gather_evidence(changed, batch.observed, graphs), name)
        torch.testing.assert_close(after[item], before[item], rtol=1e-3, atol=1e-4)
        fewer = batch.observed.clone()
        fewer[item, column] = False
        unseen = [inputs(gather_evidence(content, fewer, graphs), name) for content in (features, changed)]
        torch.testing.assert_close(unseen[0][item], unseen[1][item], rtol=1e-3, atol=1e-4)


def test_other_cells_do_depend_on_it(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    """So that the test above would notice."""
    features = centred(batch)
    item = int(batch.observed.all(dim=1).nonzero()[0])
    changed = {key: feature.clone() for key, feature in features.items()}
    changed["m0"][item] += 5
    before, after = (gather_evidence(x, batch.observed, graphs) for x in (features, changed))
    assert not torch.allclose(before.content_evidence("m1")[item], after.content_evidence("m1")[item])
    rest = torch.arange(N) != item
    assert not torch.allclose(before.content_evidence("m0")[rest], after.content_evidence("m0")[rest])
    assert not torch.allclose(before.interaction_evidence("m1")[rest], after.interaction_evidence("m1")[rest])


@pytest.mark.parametrize("placeholder", [7.0, torch.nan, torch.inf])
def test_unobserved_rows_are_never_read(batch: ModalBatch, graphs: InteractionGraphs, placeholder: float) -> None:
    features = centred(batch)
    noisy = {
        name: torch.where(batch.observed[:, [column]], feature, torch.tensor(placeholder))
        for column, (name, feature) in enumerate(features.items())
    }
    before, after = (gather_evidence(x, batch.observed, graphs) for x in (features, noisy))
    for name in batch.names:
        assert torch.equal(inputs(before, name), inputs(after, name))


def test_widths(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    evidence = evidence_of(batch, graphs)
    ranks = dict(zip(batch.names, DIMS, strict=True))
    for name in batch.names:
        assert evidence.content_evidence(name).shape == (N, content_width(ranks))
        assert evidence.interaction_evidence(name).shape == (N, interaction_width(ranks, 4))
    assert len(evidence) == N


def test_widths_of_one_modality() -> None:
    batch = linear_batch((4,), n=N)
    evidence = evidence_of(batch, None)
    assert evidence.content_evidence("m0").shape == (N, content_width({"m0": 4}))
    assert evidence.interaction_evidence("m0").shape == (N, interaction_width({"m0": 4}, 0))


def test_blocks_have_unit_length(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    evidence = evidence_of(batch, graphs)
    told = [*evidence.interaction_evidence("m1")[:, : sum(DIMS)].split(DIMS, dim=1), evidence.factors]
    shown = evidence.content_evidence("m1")
    own_m0, own_m2, near = shown[:, : sum(DIMS)].split((DIMS[0], DIMS[2], DIMS[1]), dim=1)
    shared = [
        evidence.co_interaction_valid[:, 0],
        evidence.cross_fitted_mean["m1"].any(dim=1),
        evidence.co_interaction_valid[:, 2],
    ]
    flags = [*shared, evidence.has_interactions(), *evidence.observed[:, [0, 2]].T, evidence.neighbour_valid[:, 1]]
    for block, there in zip([*told, own_m0, own_m2, near], flags, strict=True):
        torch.testing.assert_close(block.norm(dim=1), there.float())
        assert there.any()
    torch.testing.assert_close(own_m2, torch.nn.functional.normalize(evidence.own["m2"], dim=1))
    torch.testing.assert_close(near, torch.nn.functional.normalize(evidence.neighbour_mean["m1"], dim=1))
    assert torch.equal(shown[:, sum(DIMS) :], torch.stack(flags[-3:], dim=1).float())
    assert torch.equal(evidence.interaction_evidence("m1")[:, -3:], evidence.co_interaction_valid.float())


def test_items_with_interactions_and_with_content(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    evidence, degree = evidence_of(batch, graphs), graphs.item_degree
    assert torch.equal(evidence.has_interactions(), degree > 0)
    assert not evidence_of(batch, None).has_interactions().any()
    for column, name in enumerate(batch.names):
        others = [c for c in range(3) if c != column]
        expected = [any(batch.observed[item, c] for c in others) for item in range(N)]
        assert evidence.has_content(name).tolist() == expected
    assert not evidence_of(linear_batch((4,), n=N), None).has_content("m0").any()


def test_select(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    evidence = evidence_of(batch, graphs)
    rows = torch.tensor([5, 2])
    assert torch.equal(inputs(evidence.select(rows), "m1"), inputs(evidence, "m1")[rows])


def test_without_others(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    """An item whose other modalities are hidden looks like one that never had them."""
    evidence = evidence_of(batch, graphs)
    hide = torch.arange(N) == int(batch.observed.all(dim=1).nonzero()[0])
    nobody = torch.zeros(N, dtype=torch.bool)
    hidden = evidence.without("m1", others=hide, interactions=nobody)
    item = int(hide.nonzero())
    poorer = batch.observed.clone()
    poorer[item, [0, 2]] = False
    assert torch.equal(hidden.observed, poorer)
    assert not hidden.has_content("m1")[item]
    assert not hidden.content_evidence("m1")[item].any()
    expected = evidence_of(batch, None, poorer)
    assert torch.equal(hidden.content_evidence("m1")[item], expected.content_evidence("m1")[item])
    assert torch.equal(hidden.interaction_evidence("m1"), evidence.interaction_evidence("m1"))  # still there
    assert torch.equal(hidden.content_evidence("m1")[~hide], evidence.content_evidence("m1")[~hide])


def test_without_interactions(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    evidence = evidence_of(batch, graphs)
    everybody, nobody = torch.ones(N, dtype=torch.bool), torch.zeros(N, dtype=torch.bool)
    hidden = evidence.without("m1", others=nobody, interactions=everybody)
    assert torch.equal(hidden.content_evidence("m1"), evidence_of(batch, None).content_evidence("m1"))
    assert not hidden.interaction_evidence("m1").any()
    assert not hidden.has_interactions().any()


def test_without_nothing_is_the_same(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    evidence, nobody = evidence_of(batch, graphs), torch.zeros(N, dtype=torch.bool)
    same = evidence.without("m1", others=nobody, interactions=nobody)
    assert torch.equal(inputs(same, "m1"), inputs(evidence, "m1"))


def test_without_does_not_touch_the_original(batch: ModalBatch, graphs: InteractionGraphs) -> None:
    evidence, everybody = evidence_of(batch, graphs), torch.ones(N, dtype=torch.bool)
    before = inputs(evidence, "m0").clone()
    evidence.without("m1", others=everybody, interactions=everybody)
    assert torch.equal(inputs(evidence, "m0"), before)
    assert torch.equal(evidence.observed, batch.observed)


# --- collaborative factors -----------------------------------------------------------------------------------------


def incidence(graphs: InteractionGraphs) -> NDArray[np.float64]:
    dense: NDArray[np.float64] = (graphs.user_mean.matrix.toarray() > 0).astype(np.float64)
    return dense


def unit_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 1e-9)


@pytest.mark.parametrize(("users", "size"), [(8, 8), (8, 20), (40, 40)])
def test_factors_of_full_rank_hold_the_co_interaction_cosines(users: int, size: int) -> None:
    """Of the columns of D_u^-1/4 R; with fewer users than items, and with more."""
    graphs = interactions(users=users, items=N, seed=5)
    table = user_factors(graphs, size)
    assert table.shape == (users, size)
    found = collaborative_factors(graphs, table).numpy()
    r = incidence(graphs)
    columns = unit_rows((r * np.clip(r.sum(axis=1, keepdims=True), 1, None) ** -0.25).T)
    np.testing.assert_allclose(found @ found.T, columns @ columns.T, atol=1e-4)
    rank = np.linalg.matrix_rank(r)
    assert not table[:, rank:].any()
    assert table[:, :rank].any(dim=0).all()


def test_few_factors_are_the_first_singular_vectors() -> None:
    """Two groups of users who hardly meet, so that two values stand out."""
    rng = np.random.default_rng(0)
    same = np.arange(30)[:, None] % 2 == np.arange(N) % 2
    who, what = (rng.random((30, N)) < np.where(same, 0.8, 0.05)).nonzero()
    graphs = InteractionGraphs.build(who, what, 30, N)
    r = incidence(graphs)
    degrees = r.sum(axis=1, keepdims=True)
    left, values, right = np.linalg.svd(degrees**-0.25 * r * r.sum(axis=0) ** -0.5)
    table = user_factors(graphs, 2).numpy()
    expected = left[:, :2] * degrees**-0.25
    np.testing.assert_allclose(table @ table.T, expected @ expected.T, atol=1e-4)
    items = collaborative_factors(graphs, torch.from_numpy(table)).numpy()
    directions = unit_rows((values[:2, None] * right[:2]).T)
    np.testing.assert_allclose(items @ items.T, directions @ directions.T, atol=1e-3)
    own_group = (items @ items.T)[np.ix_(np.arange(N) % 2 == 0, np.arange(N) % 2 == 0)]
    assert own_group.min() > (items @ items.T)[np.ix_(np.arange(N) % 2 == 0, np.arange(N) % 2 == 1)].max()


def test_factors_of_a_new_item_fold_in(graphs: InteractionGraphs) -> None:
    """The sum of its users' rows, at unit length: what an item of training with the same users has."""
    table = user_factors(graphs, 6)
    trained = collaborative_factors(graphs, table)
    r = incidence(graphs)
    for item in range(N):
        users = np.flatnonzero(r[:, item])
        total = table[users].sum(dim=0)
        expected = total / total.norm() if len(users) else torch.zeros(6)
        torch.testing.assert_close(trained[item], expected, atol=1e-5, rtol=1e-4)
    who, what = np.column_stack([r, r[:, :1]]).nonzero()  # one item more, with the users of the first
    more = collaborative_factors(InteractionGraphs.build(who, what, len(r), N + 1), table)
    torch.testing.assert_close(more[N], trained[0])
    assert not trained[-1].any()


def test_factors_without_interactions_or_without_size(graphs: InteractionGraphs) -> None:
    none = np.array([], dtype=np.int64)
    empty = InteractionGraphs.build(none, none, 3, N)
    assert not user_factors(empty, 4).any()
    assert not collaborative_factors(empty, user_factors(empty, 4)).any()
    assert user_factors(graphs, 0).shape == (8, 0)


def test_factors_are_the_same_bits_and_leave_global_randomness_alone(graphs: InteractionGraphs) -> None:
    state = torch.get_rng_state()
    one = user_factors(graphs, 3)
    torch.manual_seed(5)
    assert torch.equal(one, user_factors(graphs, 3))
    torch.set_rng_state(state)
    user_factors(graphs, 3)
    assert torch.equal(torch.get_rng_state(), state)
