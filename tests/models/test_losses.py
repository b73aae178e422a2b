"""Each loss against a plain reading of its formula."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models import losses


@pytest.fixture
def two() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)


def test_bpr() -> None:
    positive, negative = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([1.0, 3.0, 0.0])
    expected = np.mean([-math.log(1 / (1 + math.exp(-x))) for x in (1, -4, 0)])
    assert losses.bpr(positive, negative).item() == pytest.approx(expected, rel=1e-6)


def test_bpr_of_far_scores_stays_finite() -> None:
    assert losses.bpr(torch.tensor([-1e4]), torch.tensor([1e4])).item() == pytest.approx(2e4)
    assert losses.bpr(torch.tensor([1e4]), torch.tensor([-1e4])).item() == 0


def cross_entropy(scores: Sequence[float], target: int, weights: Sequence[float]) -> float:
    """Of one row's scores, each standing for `weights` items."""
    total = sum(weight * math.exp(score) for score, weight in zip(scores, weights, strict=True))
    return -math.log(math.exp(scores[target]) / total)


def test_sampled_softmax_of_all_items_is_the_softmax() -> None:
    scores = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([2, 0, 6, 2])
    rows = torch.arange(4)
    itself = torch.zeros(4, 7, dtype=torch.bool).index_put_((rows, targets), torch.tensor(True))
    found = losses.sampled_softmax(scores[rows, targets], scores, 0.3, out_of=7, excluded=itself)
    pairs = zip((scores / 0.3).tolist(), targets.tolist(), strict=True)
    assert found.item() == pytest.approx(np.mean([cross_entropy(row, t, [1] * 7) for row, t in pairs]), rel=1e-5)


def test_sampled_softmax_counts_a_negative_for_what_it_stands_for() -> None:
    positive = torch.tensor([0.3, -0.2])
    negatives = torch.tensor([[0.1, 0.9, -0.5], [0.0, 0.4, 0.2]])
    excluded = torch.tensor([[False, True, False], [False, False, False]])
    found = losses.sampled_softmax(positive, negatives, 0.2, out_of=12, excluded=excluded)
    expected = [
        cross_entropy([0.3 / 0.2, 0.1 / 0.2, -0.5 / 0.2], 0, [1, 4, 4]),
        cross_entropy([-0.2 / 0.2, 0.0, 0.4 / 0.2, 0.2 / 0.2], 0, [1, 4, 4, 4]),
    ]
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-5)
    every = losses.sampled_softmax(positive, negatives, 0.2, out_of=12)
    assert every > found


def test_excluded_negatives_get_no_gradient() -> None:
    negatives = torch.tensor([[0.1, 0.9], [0.3, 0.4]], requires_grad=True)
    excluded = torch.tensor([[False, True], [True, True]])
    loss = losses.sampled_softmax(torch.zeros(2), negatives, 0.2, out_of=5, excluded=excluded)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert negatives.grad is not None
    assert (negatives.grad != 0).tolist() == (~excluded).tolist()


def test_sampled_softmax_estimates_the_whole_catalogue() -> None:
    """Many samples together come near to all items."""
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(2000, generator=generator) * 0.3
    full = losses.sampled_softmax(torch.tensor([0.5]), scores[None], 0.3, out_of=2000).item()
    samples = scores[torch.rand(200, 2000, generator=generator).argsort(dim=1)[:, :300]]
    estimate = losses.sampled_softmax(torch.full((200,), 0.5), samples, 0.3, out_of=2000).item()
    assert estimate == pytest.approx(full, abs=0.01)


def test_sampled_softmax_without_negatives_costs_nothing() -> None:
    assert losses.sampled_softmax(torch.ones(2), torch.zeros(2, 0), 0.2, out_of=5).item() == 0


@pytest.mark.parametrize("block", [1, 30, 59, 60])  # scores held at once, of 60
@pytest.mark.parametrize("weighted", [False, True])
def test_sampled_softmax_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch, block: int, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    users, positives, negatives = (torch.randn(count, 4, generator=generator) for count in (10, 10, 6))
    excluded = torch.rand(10, 6, generator=generator) < 0.3
    excluded[2] = True
    weights = torch.rand(10, generator=generator) if weighted else torch.ones(10)

    def softmax(positive: Tensor, negative: Tensor, rows: slice) -> Tensor:
        settings: dict[str, Any] = {"out_of": 20, "excluded": excluded[rows], "weights": weights[rows]}
        return losses.sampled_softmax(positive, negative, 0.3, **settings)

    def found(whole: bool) -> list[Tensor]:
        vectors = [rows.clone().requires_grad_() for rows in (users, positives, negatives)]
        u, i, j = vectors
        if whole:
            loss = softmax((u * i).sum(dim=1), u @ j.T, slice(None))
        else:
            loss = losses.of_scores(u, i, j, weights, softmax)
        (3 * loss).backward()  # type: ignore[no-untyped-call]
        return [loss.detach(), *(rows.grad for rows in vectors if rows.grad is not None)]

    monkeypatch.setattr(losses, "BLOCK", block)
    for blockwise, whole in zip(found(whole=False), found(whole=True), strict=True):
        torch.testing.assert_close(blockwise, whole)


def test_info_nce(two: tuple[Tensor, Tensor]) -> None:
    left, right = (side.numpy().astype(np.float64) for side in two)
    total = 0.0
    for i, row in enumerate(left):
        similar = [math.exp(row @ o / np.linalg.norm(row) / np.linalg.norm(o) / 0.3) for o in right]
        total -= math.log(similar[i] / sum(similar)) / len(left)
    assert losses.info_nce(*two, 0.3).item() == pytest.approx(total, rel=1e-5)


def test_info_nce_prefers_the_own_partner(two: tuple[Tensor, Tensor]) -> None:
    left, _ = two
    assert losses.info_nce(left, left, 0.1) < losses.info_nce(left, left.flip(0), 0.1)


def test_info_nce_at_a_low_temperature_stays_finite(two: tuple[Tensor, Tensor]) -> None:
    assert losses.info_nce(*two, 1e-4).isfinite()


def test_gaussian_log_likelihood(two: tuple[Tensor, Tensor]) -> None:
    value, mean = two
    log_variance = torch.tensor([[0.5, -0.5, 0.0]]).expand(5, 3)
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    constant = 3 * 0.5 * math.log(2 * math.pi)
    expected = normal.log_prob(value).sum(dim=1) + constant
    assert torch.allclose(losses.gaussian_log_likelihood(value, mean, log_variance), expected, atol=1e-5)


def test_club_is_the_mean_over_all_pairs(two: tuple[Tensor, Tensor]) -> None:
    value, mean = two
    log_variance = torch.randn(5, 3, generator=torch.Generator().manual_seed(4))
    joint, marginal = [], []
    for i in range(5):
        joint.append(losses.gaussian_log_likelihood(value[i], mean[i], log_variance[i]).item())
        marginal += [losses.gaussian_log_likelihood(value[j], mean[i], log_variance[i]).item() for j in range(5)]
    expected = np.mean(joint) - np.mean(marginal)
    assert losses.club(value, mean, log_variance).item() == pytest.approx(expected, rel=1e-4)


def test_club_of_independent_parts_is_zero() -> None:
    value = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(400, 2)  # q that knows nothing of the condition
    assert abs(losses.club(value, nothing, nothing).item()) < 1e-6
    assert losses.club(value, value, nothing).item() > 1  # q that knows everything


def test_masked_mse(two: tuple[Tensor, Tensor]) -> None:
    left, right = two
    mask = torch.tensor([True, False, True, False, False])
    expected = np.mean((left.numpy()[[0, 2]] - right.numpy()[[0, 2]]) ** 2)
    assert losses.masked_mse(left, right, mask).item() == pytest.approx(expected, rel=1e-6)


def test_cosine_gap(two: tuple[Tensor, Tensor]) -> None:
    left, right = two
    mask = torch.tensor([True, False, True, False, False])
    gaps = [1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(left.numpy(), right.numpy(), strict=True)]
    assert losses.cosine_gap(left, right, mask).item() == pytest.approx(np.mean([gaps[0], gaps[2]]), rel=1e-5)


def test_l2(two: tuple[Tensor, Tensor]) -> None:
    left, right = two
    expected = 0.5 * (np.sum(left.numpy() ** 2) + np.sum(right.numpy() ** 2)) / 5
    assert losses.l2(left, right).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: losses.info_nce(x, x, 0.2),
        lambda x: losses.club(x, x, x),
        lambda x: losses.l2(x),
        lambda x: losses.masked_mse(x, x, torch.zeros(0, dtype=torch.bool)),
        lambda x: losses.cosine_gap(x, x, torch.zeros(0, dtype=torch.bool)),
    ],
    ids=["info_nce", "club", "l2", "masked_mse", "cosine_gap"],
)
def test_nothing_costs_nothing(loss: object) -> None:
    empty = torch.zeros(0, 3, requires_grad=True)
    value = loss(empty)  # type: ignore[operator]
    value.backward()
    assert value.item() == 0


@pytest.mark.parametrize("loss", [losses.masked_mse, losses.cosine_gap])
def test_rows_outside_the_mask_get_no_gradient(loss: object, two: tuple[Tensor, Tensor]) -> None:
    left, right = two[0].clone().requires_grad_(), two[1]
    mask = torch.tensor([True, False, True, False, False])
    loss(left, right, mask).backward()  # type: ignore[operator]
    assert left.grad is not None
    assert (left.grad.abs().sum(dim=1) > 0).tolist() == mask.tolist()
    assert loss(left, right, torch.zeros(5, dtype=torch.bool)).item() == 0  # type: ignore[operator]
