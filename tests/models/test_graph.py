"""Sparse graphs against dense NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch.nn import functional

from models.graph import (
    Graph,
    InteractionGraphs,
    Matrix,
    blend_rows,
    mean_graph,
    nearest,
    propagate,
    rescaled,
    spectral_embedding,
    with_self_loops,
)


def sparse(rows: object) -> Matrix:
    return sp.csr_array(np.array(rows, dtype=np.float32))


@pytest.fixture
def dense() -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(7, 5)) * (rng.random((7, 5)) < 0.4)
    matrix[2] = 0
    return matrix.astype(np.float32)


def test_product(dense: NDArray[np.float32]) -> None:
    graph, right = Graph(sp.csr_array(dense)), torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    assert graph.shape == (7, 5)
    np.testing.assert_allclose((graph @ right).numpy(), dense @ right.numpy(), rtol=1e-5, atol=1e-6)


def test_product_of_shapes_that_do_not_fit(dense: NDArray[np.float32]) -> None:
    with pytest.raises(RuntimeError):
        Graph(sp.csr_array(dense)) @ torch.zeros(7, 3)


def test_product_gradient(dense: NDArray[np.float32]) -> None:
    right = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weights = torch.randn(7, 3, generator=torch.Generator().manual_seed(2))
    ((Graph(sp.csr_array(dense)) @ right) * weights).sum().backward()
    assert right.grad is not None
    np.testing.assert_allclose(right.grad.numpy(), dense.T @ weights.numpy(), rtol=1e-5, atol=1e-6)


def test_transposed(dense: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[object] = []
    build = torch.sparse_csr_tensor

    def counted(*parts: torch.Tensor, **options: Any) -> torch.Tensor:
        built.append(parts)
        return build(*parts, **options)

    monkeypatch.setattr(torch, "sparse_csr_tensor", counted)
    graph = Graph(sp.csr_array(dense))
    left = torch.randn(7, 2, generator=torch.Generator().manual_seed(3)).requires_grad_()
    product = graph.transposed @ left
    product.sum().backward()
    np.testing.assert_allclose(product.detach().numpy(), dense.T @ left.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert left.grad is not None
    np.testing.assert_allclose(left.grad.numpy(), dense @ np.ones((5, 2)), rtol=1e-5, atol=1e-6)
    _ = graph @ torch.ones(5, 2)
    assert len(built) == 2  # the matrix and its transpose, once each


def test_graph_to_device(dense: NDArray[np.float32]) -> None:
    graph = Graph(sp.csr_array(dense))
    assert graph.to("cpu") is graph
    moved = graph.to("meta")
    assert moved.device.type == "meta"
    assert moved.matrix.nnz == graph.matrix.nnz


def test_interaction_graphs() -> None:
    r = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]], dtype=np.float64)  # the last user and item 2 have nothing
    graphs = InteractionGraphs.build(*r.nonzero(), 3, 4)
    du, di = r.sum(1), r.sum(0)
    assert graphs.user_degree.tolist() == du.tolist()
    assert graphs.item_degree.tolist() == di.tolist()
    du, di = np.maximum(du, 1), np.maximum(di, 1)
    expected = {
        "symmetric": np.diag(du**-0.5) @ r @ np.diag(di**-0.5),
        "user_mean": np.diag(1 / du) @ r,
        "item_mean": np.diag(1 / di) @ r.T,
    }
    for name, matrix in expected.items():
        np.testing.assert_allclose(getattr(graphs, name).matrix.toarray(), matrix, rtol=1e-6, err_msg=name)


def test_interaction_graphs_without_interactions() -> None:
    none = np.array([], dtype=np.int64)
    graphs = InteractionGraphs.build(none, none, 2, 3)
    assert (graphs.symmetric @ torch.ones(3, 2)).abs().sum() == 0
    assert (graphs.item_mean @ torch.ones(2, 2)).shape == (3, 2)


# --- nearest -------------------------------------------------------------------------------------------------------


def brute_force(
    queries: torch.Tensor, keys: torch.Tensor, k: int, allowed: list[bool], exclude: list[int]
) -> tuple[list[list[int]], list[list[float]]]:
    indices, cosines = [], []
    for query, own in zip(queries, exclude, strict=True):
        scored = sorted(
            (-float(functional.cosine_similarity(query, key, dim=0)), row)
            for row, key in enumerate(keys)
            if allowed[row] and row != own
        )[:k]
        short = k - len(scored)
        indices.append([row for _, row in scored] + [-1] * short)
        cosines.append([-score for score, _ in scored] + [0.0] * short)
    return indices, cosines


@pytest.mark.parametrize("block", [1, 4, 2048])
@pytest.mark.parametrize("k", [1, 3, 9, 20])
@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("excluding", [False, True])
def test_nearest(block: int, k: int, restricted: bool, excluding: bool) -> None:
    generator = torch.Generator().manual_seed(k)
    keys = torch.randn(9, 4, generator=generator)
    allowed = [row % 3 != 0 for row in range(9)] if restricted else [True] * 9
    exclude = [0, 1, 2, -1, 4, 4] if excluding else [-1] * 6
    queries = keys[[0, 1, 2, 3, 4, 5]]
    found, cosines = nearest(
        queries,
        keys,
        k,
        allowed=torch.tensor(allowed) if restricted else None,
        exclude=torch.tensor(exclude) if excluding else None,
        block=block,
    )
    indices, values = brute_force(queries, keys, k, allowed, exclude)
    assert found.tolist() == indices
    np.testing.assert_allclose(cosines.numpy(), values, atol=1e-6)


def test_nearest_does_not_look_at_lengths() -> None:
    keys = torch.tensor([[100.0, 90.0], [0.01, 0.0], [-5.0, 0.0]])
    found, cosines = nearest(torch.tensor([[3.0, 0.0]]), keys, 3)
    assert found.tolist() == [[1, 0, 2]]
    assert cosines[0].tolist() == pytest.approx([1, 100 / np.hypot(100, 90), -1])


def test_nearest_of_zero_vectors() -> None:
    keys = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    found, cosines = nearest(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), keys, 3)
    assert sorted(found[0].tolist()) == [0, 1, 2]
    assert cosines[0].tolist() == [0, 0, 0]
    assert found[1].tolist() == [0, 1, 2]
    assert cosines[1].tolist() == [1, 0, -1]


@pytest.mark.parametrize("exclude", [None, torch.tensor([0, 1])])
def test_nearest_among_none(exclude: torch.Tensor | None) -> None:
    keys = torch.ones(3, 2)
    found, cosines = nearest(keys[:2], keys, 2, allowed=torch.zeros(3, dtype=torch.bool), exclude=exclude)
    assert found.tolist() == [[-1, -1], [-1, -1]]
    assert cosines.tolist() == [[0, 0], [0, 0]]


def test_nearest_of_nothing() -> None:
    found, cosines = nearest(torch.zeros(0, 2), torch.ones(3, 2), 2, exclude=torch.zeros(0, dtype=torch.long))
    assert found.shape == cosines.shape == (0, 2)


def test_nearest_leaves_out_only_itself() -> None:
    """A copy of the query is not the query."""
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found, _ = nearest(keys[:1], keys, 2, exclude=torch.tensor([0]))
    assert found.tolist() == [[1, 2]]


# --- item graphs ---------------------------------------------------------------------------------------------------


def test_mean_graph() -> None:
    graph = mean_graph(torch.tensor([[1, 2], [0, -1], [-1, -1], [-1, 3]]), 4)
    assert graph.toarray().tolist() == [[0, 0.5, 0.5, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_mean_graph_is_the_normalised_graph_of_the_paper() -> None:
    """D^-1/2 A D^-1/2 with D the out-degrees, which are all k."""
    found, _ = nearest(keys := torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), keys, 2)
    adjacency = np.zeros((6, 6))
    np.put_along_axis(adjacency, found.numpy(), 1, axis=1)
    scale = np.diag(adjacency.sum(1) ** -0.5)
    np.testing.assert_allclose(mean_graph(found, 6).toarray(), scale @ adjacency @ scale, rtol=1e-6)


def test_blend_rows() -> None:
    old = sparse([[0, 1, 0], [0.5, 0, 0.5], [0, 0, 0], [0, 1, 0]])
    new = sparse([[0, 0, 1], [0, 0, 1], [1, 0, 0], [0, 0, 0]])
    blended = blend_rows(old, new, np.array([False, True, True, True]), 0.6).toarray()
    expected = [
        [0, 1, 0],  # not asked for
        [0.2, 0, 0.8],
        [1, 0, 0],  # an empty row takes the new one whole
        [0, 1, 0],  # nothing new: the old one, at its full weight
    ]
    np.testing.assert_allclose(blended, expected, rtol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_blend_rows_at_the_ends(weight: float) -> None:
    old, new = sparse([[0.5, 0.5, 0], [0, 0, 0]]), sparse([[0, 0, 1], [0, 0, 0]])
    blended = blend_rows(old, new, np.array([True, True]), weight)
    assert blended.toarray().tolist() == (new if weight else old).toarray().tolist()
    assert blended.nnz == (1 if weight else 2)


@pytest.mark.parametrize("weight", [0.0, 1e-4])
def test_blend_rows_fills_an_empty_row_whatever_the_weight(weight: float) -> None:
    blended = blend_rows(sparse([[0, 0]]), sparse([[0.5, 0.5]]), np.array([True]), weight)
    assert blended.toarray().tolist() == [[0.5, 0.5]]


def test_blend_rows_forgets_what_has_faded() -> None:
    old, new = sparse([[1, 0, 0]]), sparse([[0, 0.5, 0.5]])
    for _ in range(12):
        old = blend_rows(old, new, np.array([True]), 0.5)
    assert old.nnz == 2
    np.testing.assert_allclose(old.toarray(), [[0, 0.5, 0.5]], rtol=1e-5)


def test_rescaled() -> None:
    matrix = rescaled(sparse([[1, 3], [0, 0], [0, 0.1]]))
    np.testing.assert_allclose(matrix.toarray(), [[0.25, 0.75], [0, 0], [0, 1]], rtol=1e-6)


def test_with_self_loops() -> None:
    looped = with_self_loops(sparse([[0, 1, 0], [0, 0, 0], [0.5, 0.5, 0]]))
    assert looped.toarray().tolist() == [[0, 1, 0], [0, 1, 0], [0.5, 0.5, 0]]


def test_propagate_keeps_the_last_layer() -> None:
    matrix = np.array([[0, 1, 0], [0.5, 0, 0.5], [0, 0, 1]], dtype=np.float32)
    parts = torch.arange(6.0).view(3, 2)
    for layers, power in ((0, np.eye(3)), (1, matrix), (3, matrix @ matrix @ matrix)):
        result = propagate(Graph(sp.csr_array(matrix)), parts, layers)
        np.testing.assert_allclose(result.numpy(), power @ parts.numpy(), rtol=1e-6)


def test_spectral_embedding() -> None:
    """Against a dense singular value decomposition, up to the scale; twice the same bits; too wide for the matrix."""
    r = np.random.default_rng(0).random((9, 7)) < 0.4
    graphs = InteractionGraphs.build(*r.nonzero(), 9, 7)
    users, items = spectral_embedding(graphs, 3)
    left, values, right = np.linalg.svd(graphs.symmetric.matrix.toarray())
    expected = (left[:, :3] * values[:3]) @ right[:3]
    found = (users @ items.T).numpy()
    np.testing.assert_allclose(found / np.abs(found).max(), expected / np.abs(expected).max(), atol=1e-5)
    assert users.pow(2).mean().item() == pytest.approx(1, rel=1e-5)
    assert torch.equal(spectral_embedding(graphs, 3)[1], items)
    users, items = spectral_embedding(graphs, 20)
    assert users.shape == (9, 20)
    assert users[:, :6].any(dim=0).all()
    assert not users[:, 6:].any()
    none = np.array([], dtype=np.int64)
    assert not spectral_embedding(InteractionGraphs.build(none, none, 4, 3), 2)[0].any()


def test_spectral_embedding_looks_at_the_largest_part() -> None:
    """Pairs that nothing joins to the rest have singular values of 1, and no say; nor has an item without users."""
    r = np.zeros((19, 18), dtype=bool)
    r[:9, :7] = np.random.default_rng(0).random((9, 7)) < 0.4
    alone = InteractionGraphs.build(*r[:9, :7].nonzero(), 9, 7)
    r[np.arange(9, 19), np.arange(7, 17)] = True
    graphs = InteractionGraphs.build(*r.nonzero(), 19, 18)
    for found, expected in zip(spectral_embedding(graphs, 3), spectral_embedding(alone, 3), strict=True):
        torch.testing.assert_close(found[: len(expected)], expected)
        assert not found[len(expected) :].any()
    for found, again in zip(spectral_embedding(graphs, 5), spectral_embedding(graphs, 5), strict=True):
        assert torch.equal(found, again)
