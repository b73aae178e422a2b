"""Ridge regression against the normal equations, and the choice of its penalty."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models import linalg


def normal_equations(inputs: Tensor, target: Tensor, penalty: float) -> Tensor:
    return torch.linalg.solve(inputs.T @ inputs + penalty * torch.eye(inputs.shape[1]), inputs.T @ target)


def drawn(rows: int, noise: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(rows, 6, generator=generator)
    return inputs, inputs @ torch.randn(6, 3, generator=generator) + noise * torch.randn(rows, 3, generator=generator)


def test_solve() -> None:
    inputs, target = drawn(30, 0.5)
    expected = normal_equations(inputs, target, 2.0)
    torch.testing.assert_close(linalg.ridge(inputs, target, 2.0), expected)


def test_fit_is_one_of_the_ridges_on_the_chosen_rows() -> None:
    inputs, target = drawn(60, 1.0)
    rows = torch.arange(60) % 3 > 0
    base = target.roll(1, dims=1)
    found = linalg.cross_validated_ridge(inputs, target, rows, base=base).weights
    ridges = [normal_equations(inputs[rows], (target - base)[rows], p) for p in linalg.PENALTIES]
    assert sum(torch.allclose(found, one, atol=1e-5) for one in ridges) == 1
    spoilt = torch.where(rows[:, None], target, 1e6)
    again = linalg.cross_validated_ridge(inputs, spoilt, rows, base=base)
    torch.testing.assert_close(again.weights, found)
    torch.testing.assert_close(again.estimate[~rows], (inputs @ found)[~rows])


def test_noise_asks_for_a_larger_penalty() -> None:
    rows = torch.ones(40, dtype=torch.bool)
    sizes = []
    for noise in (0.0, 30.0):
        inputs, target = drawn(40, noise)
        unit = functional.normalize(target, dim=1)
        free = normal_equations(inputs, unit, 0.0)
        sizes.append(float(linalg.cross_validated_ridge(inputs, unit, rows).weights.norm() / free.norm()))
    assert sizes[1] < 0.7 * sizes[0]


def test_too_few_rows_tell_nothing() -> None:
    inputs, target = drawn(30, 0.1)
    rows = torch.arange(30) < linalg.FEWEST_ROWS - 1
    assert not linalg.cross_validated_ridge(inputs, target, rows).weights.any()
    assert not linalg.cross_validated_ridge(inputs[:0], target[:0], rows[:0]).weights.any()


def test_the_estimate_of_a_row_does_not_know_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linalg, "PENALTIES", (1.0,))
    inputs, target = drawn(40, 1.0)
    rows = torch.arange(40) != 3
    before = linalg.cross_validated_ridge(inputs, target, rows).estimate
    for row in (5, 17):
        changed = target.index_fill(0, torch.tensor([row]), 50.0)
        after = linalg.cross_validated_ridge(inputs, changed, rows).estimate
        torch.testing.assert_close(after[row], before[row])
        assert not torch.allclose(after, before)


def test_fewer_rows_than_columns_and_columns_of_zeros() -> None:
    inputs, target = drawn(14, 1.0)
    rows = torch.ones(14, dtype=torch.bool)
    wide = torch.cat([inputs, torch.zeros(14, 20)], dim=1)
    for some in (wide, wide @ torch.linalg.qr(torch.randn(26, 26, generator=torch.Generator().manual_seed(2))).Q):
        found = linalg.cross_validated_ridge(some, target, rows)
        ridges = [normal_equations(some, target, penalty) for penalty in linalg.PENALTIES]
        assert sum(torch.allclose(found.weights, one, atol=1e-5) for one in ridges) == 1
    torch.testing.assert_close(found.estimate, linalg.cross_validated_ridge(inputs, target, rows).estimate)
