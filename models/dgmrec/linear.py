"""The collaborative part in closed form: EASE's item-item matrix, cut to messages and targets.

EASE (Steck, WWW 2019) is B = I - P diag(P)^-1 with P = (R^T R + l I)^-1 and scores R B. Of all cuts to a rank, the one
nearest to these scores is R B V V^T with V the leading right singular vectors of R B = U S V^T. It gives every item a
message B V S^-1/2, which is what it adds to a user who has it, and a target V S^1/2, which users are compared with.
Scores are inner products of sums of messages with targets: a user is folded in by adding, and items are searched as
those of any other form are.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular
from scipy.sparse.linalg import LinearOperator, aslinearoperator, svds

from models import linalg
from models.arrays import Array, Double
from models.graph import Matrix

DENSE_ITEMS = 10_000  # up to so many, B is a dense matrix; beyond, it is a product of narrow ones,
FEW_USERS = 0.25  # and where users are at most so many times the items
CUT_RANK = 1000  # of the interactions beyond it


def messages_and_targets(interactions: Matrix, penalty: float, size: int) -> tuple[Array, Array]:
    """What EASE makes of binary interactions `[U, n]`: messages and targets `[n, size]`, in the order of EASE's scores
    by inner product. All targets have length 1, so that cosines order items as inner products do: the last column
    brings them there, and that of the messages is zero (Bachrach et al., RecSys 2014). A user's vector, the sum of the
    messages over the root of their number, has length 1 in the root mean square of the users.

    Args:
        penalty: l, of the squared weights.
        size: at least 2; the columns that a small catalogue has no rank for are zero.
    """
    n = interactions.shape[1]
    rank = min(size - 1, n - 1, interactions.shape[0] - 1)
    messages, targets = np.zeros((n, size), np.float32), np.zeros((n, size), np.float32)
    targets[:, -1] = 1
    if rank < 1 or not interactions.nnz:
        return messages, targets
    weights = _weights(interactions, penalty)
    start = np.random.default_rng(0).standard_normal(min(interactions.shape))
    _, values, right = svds(aslinearoperator(interactions.astype(np.float64)) @ weights, k=rank, v0=start)
    root = np.sqrt(np.maximum(values, 1e-12))
    targets[:, :rank] = right.T * root
    longest = float(np.linalg.norm(targets[:, :rank], axis=1).max())
    targets[:, :rank] /= max(longest, 1e-12)
    targets[:, -1] = np.sqrt(np.maximum(1 - (targets[:, :rank] ** 2).sum(axis=1), 0))
    messages[:, :rank] = weights.matmat(right.T) / root
    return messages / _typical_length(interactions, messages), targets


def _typical_length(interactions: Matrix, messages: Array) -> float:
    """The root mean square length of the users' vectors."""
    count = np.asarray(interactions.sum(axis=1)).ravel()
    users = (interactions @ messages)[count > 0] / np.sqrt(count[count > 0, None])
    return max(float(np.sqrt((users**2).sum(axis=1).mean())), 1e-12)


def ease_weights(interactions: Matrix, penalty: float) -> Double:
    """B `[n, n]` of interactions `[U, n]`, in double precision."""
    gram = (interactions.T @ interactions).toarray().astype(np.float64)
    gram[np.diag_indices(len(gram))] += penalty
    inverse = cho_solve(cho_factor(gram, lower=True, overwrite_a=True), np.eye(len(gram)), overwrite_b=True)
    weights: Double = -inverse / np.diagonal(inverse)
    weights[np.diag_indices(len(weights))] = 0
    return weights


def _weights(interactions: Matrix, penalty: float) -> LinearOperator:
    """B `[n, n]`, in the form that takes least memory: it stands there only where users are as many as items."""
    users, n = interactions.shape
    if users <= (n * FEW_USERS if n <= DENSE_ITEMS else CUT_RANK):
        return _product(_by_users(interactions, penalty))
    return aslinearoperator(ease_weights(interactions, penalty)) if n <= DENSE_ITEMS else _cut(interactions, penalty)


def _by_users(interactions: Matrix, penalty: float) -> Double:
    """F `[n, U]` with F F^T = R^T (R R^T + l I)^-1 R, which is I - l P: a matrix of the users is inverted."""
    gram = (interactions @ interactions.T).toarray().astype(np.float64)
    gram[np.diag_indices(len(gram))] += penalty
    root = cholesky(gram, lower=True, overwrite_a=True)
    factor: Double = solve_triangular(root, interactions.toarray().astype(np.float64), lower=True, overwrite_b=True).T
    return factor


def _cut(interactions: Matrix, penalty: float) -> LinearOperator:
    """B of the interactions cut to their leading singular vectors R = U S V^T, of which I - l P is
    V diag(s^2 / (s^2 + l)) V^T."""
    rank = min(CUT_RANK, min(interactions.shape) - 1)
    vectors, values = linalg.randomised_svd(sp.csr_array(interactions.T), rank, seed=0)
    return _product(vectors * np.sqrt(values**2 / (values**2 + penalty)))


def _product(narrow: Double) -> LinearOperator:
    """B from a factor `[n, r]` of G = I - l P: it is (G - diag G) / (1 - diag G) column by column, and never stands in
    memory."""
    diagonal = (narrow**2).sum(axis=1)
    scale = 1 / np.maximum(1 - diagonal, 1e-6)

    def forward(right: Double) -> Double:
        scaled = right.ravel() * scale
        product: Double = narrow @ (narrow.T @ scaled) - diagonal * scaled
        return product

    def backward(left: Double) -> Double:
        column = left.ravel()
        product: Double = (narrow @ (narrow.T @ column) - diagonal * column) * scale
        return product

    n = len(narrow)
    return LinearOperator((n, n), matvec=forward, rmatvec=backward, dtype=np.float64)
