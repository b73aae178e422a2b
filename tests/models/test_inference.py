"""The forward arithmetic gives the same numbers for torch tensors and for NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from models import linalg
from models.dgmrec import inference
from models.evidence import near_duplicate_mean, similarity_weighted_mean, weighted_mean
from tests.models.worlds import SMALL, generator

ROWS, WIDTH = 7, 5


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(3))


@pytest.mark.parametrize(
    "function",
    [
        linalg.length,
        linalg.unit,
        inference.sigmoid,
        lambda rows: inference.across(rows, rows[0]),
        lambda rows: inference.content_row({"m0": rows, "m1": rows[:, :3]}),
        lambda rows: inference.shrink(rows, rows * 2, rows[:, 0] ** 2, 3.0, rows[0]),
        lambda rows: inference.kernel_weight(SMALL, rows, (10 * abs(rows)).round()),
        lambda rows: inference.shares(rows.reshape(1, ROWS, WIDTH)[..., :4], abs(rows[0, :1])),
        *(
            lambda rows, ranking=ranking: inference.combine(
                SMALL.model_copy(update={"ranking": ranking}), rows, rows * 2
            )
            for ranking in ("softmax", "bpr")
        ),
    ],
)
def test_both_kinds_of_numbers(function: Any) -> None:
    rows = drawn(ROWS, WIDTH)
    rows[2] = 0
    expected, found = function(rows), function(rows.numpy())
    assert isinstance(expected, torch.Tensor)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("weights", [None, "cosines"])
def test_means_of_neighbours_by_bags_and_of_gathered_rows(weights: str | None) -> None:
    """The two forms of the one mean that would cost a catalogue too much memory, or a request too much time."""
    values, rows = drawn(ROWS, WIDTH), torch.tensor([[0, 3, -1], [6, -1, -1], [-1, -1, -1], [2, 1, 5]])
    given = None if weights is None else drawn(*rows.shape).abs()
    mean, valid = weighted_mean(values, rows, given)
    keys = rows.numpy()
    gathered = np.where((keys >= 0)[..., None], values.numpy()[keys], np.float32(99))
    found, where = inference.mean_of_gathered(gathered, keys, None if given is None else given.numpy())
    np.testing.assert_allclose(found, mean, atol=1e-6)
    assert where.tolist() == valid.tolist() == [True, True, False, True]


@pytest.mark.parametrize("aggregate", [similarity_weighted_mean, near_duplicate_mean])
def test_aggregates_of_both_kinds(aggregate: Any) -> None:
    values, rows = drawn(40, WIDTH), torch.arange(36).reshape(3, 12)
    cosines = drawn(3, 12)
    expected = aggregate(lambda weights: weighted_mean(values, rows[:, : weights.shape[1]], weights)[0], cosines)
    gathered, keys = values.numpy()[rows.numpy()], rows.numpy()
    found = aggregate(
        lambda weights: inference.mean_of_gathered(
            gathered[:, : weights.shape[1]], keys[:, : weights.shape[1]], weights
        )[0],
        cosines.numpy(),
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
