"""Sparse graphs in CSR form: the interaction graph, item-item kNN graphs, and products with dense matrices."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from models import linalg

Matrix: TypeAlias = "sp.csr_array[Any, tuple[int, int]]"


class Graph:
    """A constant sparse matrix `[rows, cols]`, multiplied from the left and differentiable in the dense operand.

    The transpose is built once, so that the backward pass is one CSR product too.
    """

    def __init__(self, matrix: Matrix, device: torch.device | str = "cpu") -> None:
        self.matrix = sp.csr_array(matrix).astype(np.float32)
        self.matrix.sort_indices()
        self.device = torch.device(device)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, cols = self.matrix.shape
        return rows, cols

    @cached_property
    def _csr(self) -> Tensor:
        return _to_torch(self.matrix, self.device)

    @cached_property
    def _csr_transposed(self) -> Tensor:
        return _to_torch(sp.csr_array(self.matrix.T), self.device)

    @cached_property
    def transposed(self) -> Graph:
        """The transpose, sharing this graph's tensors."""
        other = Graph(sp.csr_array(self.matrix.T), self.device)
        other.__dict__["_csr"], other.__dict__["_csr_transposed"] = self._csr_transposed, self._csr
        return other

    def rows(self, rows: Tensor) -> Graph:
        """These rows `[k]` alone: `[k, cols]`."""
        return Graph(sp.csr_array(self.matrix[rows.cpu().numpy()]), self.device)

    def __matmul__(self, dense: Tensor) -> Tensor:
        product: Tensor = _Product.apply(dense, self)  # type: ignore[no-untyped-call]  # torch's apply is untyped
        return product

    def to(self, device: torch.device | str) -> Graph:
        """The same graph on another device."""
        return self if torch.device(device) == self.device else Graph(self.matrix, device)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dense: Tensor, graph: Graph) -> Tensor:
        ctx.graph = graph
        with torch.autocast(dense.device.type, enabled=False):  # sparse products know no bfloat16
            return graph._csr @ dense.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.graph._csr_transposed @ gradients[0].float(), None


def _to_torch(matrix: Matrix, device: torch.device) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data),
            size=matrix.shape,
            device=device,
            check_invariants=False,
        )


@dataclass(frozen=True)
class InteractionGraphs:
    """The three normalisations of one user-item matrix R `[users, items]`.

    Attributes:
        symmetric: D_u^-1/2 R D_i^-1/2, LightGCN's.
        user_mean: D_u^-1 R, a user's mean over items (eq. 6).
        item_mean: D_i^-1 R^T, an item's mean over users (eq. 2).
        user_degree, item_degree: number of interactions `[users]`, `[items]`.
    """

    symmetric: Graph
    user_mean: Graph
    item_mean: Graph
    user_degree: Tensor
    item_degree: Tensor

    @property
    def binary(self) -> Graph:
        """R `[users, items]`, one where a user has interacted with an item."""
        return Graph(sp.csr_array(self.user_mean.matrix.astype(bool).astype(np.float32)), self.user_mean.device)

    @classmethod
    def build(
        cls,
        users: NDArray[np.int64],
        items: NDArray[np.int64],
        n_users: int,
        n_items: int,
        device: torch.device | str = "cpu",
    ) -> InteractionGraphs:
        """Build from the rows of distinct (user, item) pairs."""
        ones = np.ones(len(users), dtype=np.float32)
        matrix = sp.csr_array((ones, (users, items)), shape=(n_users, n_items))
        user_degree: NDArray[np.float32] = np.asarray(matrix.sum(axis=1)).ravel()
        item_degree: NDArray[np.float32] = np.asarray(matrix.sum(axis=0)).ravel()
        user_inverse, item_inverse = (1 / np.maximum(degree, 1) for degree in (user_degree, item_degree))
        symmetric = sp.diags_array(np.sqrt(user_inverse)) @ matrix @ sp.diags_array(np.sqrt(item_inverse))
        return cls(
            Graph(sp.csr_array(symmetric), device),
            Graph(sp.csr_array(sp.diags_array(user_inverse) @ matrix), device),
            Graph(sp.csr_array(sp.diags_array(item_inverse) @ matrix.T), device),
            torch.from_numpy(user_degree.astype(np.float32)).to(device),
            torch.from_numpy(item_degree.astype(np.float32)).to(device),
        )


def nearest(
    queries: Tensor,
    keys: Tensor,
    k: int,
    *,
    allowed: Tensor | None = None,
    exclude: Tensor | None = None,
    block: int = 2048,
) -> tuple[Tensor, Tensor]:
    """The `k` rows of `keys` with the highest cosine to each query, computed in blocks so that memory stays linear.

    Args:
        queries: `[q, d]`. keys: `[n, d]`. allowed: bool `[n]`, rows that may be answered.
        exclude: `[q]`, per query one row that may not be (itself), -1 for none.

    Returns:
        Indices `[q, k]` (-1 where there are too few) and cosines `[q, k]` (0 there), best first. A zero query or key
        has cosine 0 with everything.
    """
    candidates = torch.arange(len(keys)) if allowed is None else allowed.nonzero().squeeze(1).cpu()
    candidates = candidates.to(keys.device)
    normalised = F.normalize(keys[candidates], dim=1)
    width = min(k + (exclude is not None), len(candidates))
    indices = torch.full((len(queries), k), -1, dtype=torch.long, device=queries.device)
    cosines = torch.zeros(len(queries), k, device=queries.device)
    if width == 0:
        return indices, cosines
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        top, order = (F.normalize(queries[rows], dim=1) @ normalised.T).topk(width, dim=1)
        neighbours = candidates[order]
        if exclude is not None:
            # Its own row goes last, then the tail is cut off.
            itself = neighbours == exclude[rows, None]
            by_place = itself.to(torch.int8).argsort(dim=1, stable=True)
            neighbours, top, itself = (table.gather(1, by_place) for table in (neighbours, top, itself))
            neighbours, top = neighbours.masked_fill(itself, -1), top.masked_fill(itself, 0)
        count = min(k, width)
        indices[rows, :count], cosines[rows, :count] = neighbours[:, :count], top[:, :count]
    return indices, cosines


def spectral_embedding(interactions: InteractionGraphs, size: int) -> tuple[Tensor, Tensor]:
    """The leading singular vectors of D_u^-1/2 R D_i^-1/2, each times the root of its singular value: users `[U, size]`
    and items `[n, size]`, brought to a root mean square of 1. Columns that the matrix is too small for are zero.

    Of a graph in several parts only the largest is looked at, and the rows of all others are zero. Each part, be it a
    single pair, has a singular value of 1 to itself: in sparse data the small ones would fill most of the columns with
    what concerns nobody else, and which mixture of them is found depends on rounding.
    """
    whole = sp.csr_array(interactions.symmetric.matrix.astype(np.float64))
    parts = _largest_part(whole)
    matrix = whole[parts[0]][:, parts[1]]
    rank = min(size, min(matrix.shape) - 1)
    sides = [np.zeros((count, size), np.float32) for count in whole.shape]
    if rank > 0 and matrix.nnz:
        left, values, right = linalg.truncated_svd(matrix, rank)
        for side, part, vectors in zip(sides, parts, (left, right.T), strict=True):
            scaled = vectors * np.sqrt(np.maximum(values, 0))
            side[part, :rank] = scaled / max(float(np.sqrt((scaled**2).mean())), 1e-12)
    users, items = (torch.from_numpy(side).to(interactions.user_degree.device) for side in sides)
    return users, items


def _largest_part(matrix: Matrix) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows and columns of a bipartite graph `[U, n]` that are in its largest connected part; all of them where no
    edge is outside."""
    (users, items), edges = matrix.shape, matrix.tocoo()
    square = (users + items, users + items)
    graph = sp.csr_array((edges.data, (edges.row, users + edges.col)), shape=square)
    _, part = connected_components(graph, directed=False)
    inside = part == np.bincount(part).argmax()
    if inside[:users][np.diff(matrix.indptr) > 0].all():
        return np.arange(users), np.arange(items)
    return inside[:users].nonzero()[0], inside[users:].nonzero()[0]


def mean_graph(neighbours: Tensor, n_columns: int) -> Matrix:
    """The matrix `[q, n_columns]` whose rows average their neighbours `[q, k]` (-1 for none).

    This is D^-1/2 A D^-1/2 (eq. 4) of a binary top-k graph: every row has degree k, so each entry is 1/k. A row
    without neighbours is empty.
    """
    return rescaled(weighted_graph(neighbours, torch.ones(neighbours.shape), n_columns))


def weighted_graph(neighbours: Tensor, weights: Tensor, n_columns: int) -> Matrix:
    """The matrix `[q, n_columns]` with these weights `[q, k]` of the rows' neighbours `[q, k]` (-1 for none)."""
    columns = neighbours.cpu().numpy()
    valid = columns >= 0
    indptr = np.concatenate([[0], np.cumsum(valid.sum(axis=1))])
    data = weights.cpu().numpy()[valid].astype(np.float32)
    return sp.csr_array((data, columns[valid], indptr), shape=(len(columns), n_columns))


def blend_rows(old: Matrix, new: Matrix, rows: NDArray[np.bool_], weight: float, floor: float = 1e-3) -> Matrix:
    """Graph refinement (eq. 16): `(1 - weight) old + weight new` in the given rows, `old` elsewhere.

    A row that was empty takes the new one whole. Entries that have faded below `floor` are dropped and the row is
    rescaled, so that the graph does not grow with every refinement.
    """
    empty = np.diff(old.indptr) == 0
    share = np.where(rows, np.where(empty, 1.0, weight), 0.0).astype(np.float32)
    blended = sp.csr_array(sp.diags_array(1 - share) @ old + sp.diags_array(share) @ new)
    blended.data[blended.data < floor] = 0
    blended.eliminate_zeros()
    return rescaled(blended)


def rescaled(matrix: Matrix) -> Matrix:
    """The matrix with every non-empty row's sum made 1."""
    totals = np.asarray(matrix.sum(axis=1), dtype=np.float32).ravel()
    return sp.csr_array(sp.diags_array(1 / np.where(totals > 0, totals, 1)) @ matrix)


def with_self_loops(matrix: Matrix) -> Matrix:
    """Give every empty row of a square matrix itself as its only neighbour."""
    empty = (np.diff(matrix.indptr) == 0).astype(np.float32)
    return sp.csr_array(matrix + sp.diags_array(empty))


def propagate(graph: Graph, parts: Tensor, layers: int) -> Tensor:
    """`layers` products with the graph, the last one kept (eq. 5)."""
    apply: Callable[[Tensor], Tensor] = graph.__matmul__
    for _ in range(layers):
        parts = apply(parts)
    return parts
