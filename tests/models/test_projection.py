"""A raw feature and its signal: what is kept of it, what is forgotten, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.dgmrec.model import DGMRec
from models.modality import ModalBatch, ModalitySpec
from models.projection import Projection
from tests.models.worlds import ITEMS, generator, linear_batch, small


def pairwise(rows: Tensor) -> Tensor:
    unit = functional.normalize(rows, dim=1)
    return unit @ unit.T


def fitted(rows: Tensor, rank: int, whitening: float) -> Projection:
    projection = Projection(rows.shape[1], rank, whitening)
    projection.fit(rows)
    return projection


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rank", [3, 6])
def test_projection_keeps_centred_cosines(rank: int, whitening: float) -> None:
    """In the directions of the signals. Rank 3 holds all there is (the content is an image of three numbers), up to
    the noise."""
    rows = linear_batch((6,), missing=0, noise=0.01).features["m0"]
    projection = fitted(rows, rank, whitening)
    tolerance = 1e-4 if rank == 6 else 0.05
    signal, centred = projection(rows), rows - rows.mean(dim=0)
    torch.testing.assert_close(pairwise(projection.direction(signal)), pairwise(centred), atol=tolerance, rtol=0)
    torch.testing.assert_close(signal.norm(dim=1), torch.full((ITEMS,), rank**0.5), atol=1e-4, rtol=0)
    usual = centred.pow(2).sum(dim=1).mean().sqrt()
    back = functional.normalize(centred, dim=1) * usual + rows.mean(dim=0)
    torch.testing.assert_close(projection.back(signal), back, atol=tolerance * 10, rtol=0)


def test_signals_without_whitening_keep_centred_cosines() -> None:
    rows = linear_batch((6,), missing=0).features["m0"]
    signal = fitted(rows, 6, 0.0)(rows)
    torch.testing.assert_close(pairwise(signal), pairwise(rows - rows.mean(dim=0)), atol=1e-5, rtol=0)
    assert not torch.allclose(pairwise(fitted(rows, 6, 0.5)(rows)), pairwise(signal), atol=0.05)


@pytest.mark.parametrize("whitening", [0.5, 1.0])
def test_signals_are_whitened_components(whitening: float) -> None:
    """Against plain principal components, whose signs do not matter to cosines."""
    rows = linear_batch((6,), missing=0, noise=0.5).features["m0"]
    centred = (rows - rows.mean(dim=0)).double().numpy()
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    expected = torch.from_numpy((left * values ** (1 - whitening)).astype(np.float32))
    torch.testing.assert_close(pairwise(fitted(rows, 6, whitening)(rows)), pairwise(expected), atol=1e-4, rtol=0)


def test_signal_and_direction_are_inverse() -> None:
    """Also in length, which is what the generator is sure of."""
    projection = fitted(linear_batch((6,), missing=0, noise=0.3).features["m0"], 4, 0.5)
    length = torch.linspace(0, 1, 9)[:, None]
    directions = functional.normalize(torch.randn(9, 4, generator=generator()), dim=1) * length
    signals = projection.signal(directions)
    torch.testing.assert_close(signals.norm(dim=1), 2 * length[:, 0])  # sqrt(r)
    torch.testing.assert_close(projection.direction(signals), directions)
    torch.testing.assert_close(projection.signal(projection.direction(signals)), signals)
    assert not signals[0].any()


def test_projection_takes_the_largest_components() -> None:
    rows = torch.randn(50, 4, generator=generator()) * torch.tensor([1.0, 10.0, 0.1, 5.0])
    projection = fitted(rows, 2, 0.5)
    assert projection.components.abs().argmax(dim=0).tolist() == [1, 3]
    assert (projection.components.gather(0, projection.components.abs().argmax(0, keepdim=True)) > 0).all()
    spread = (rows - rows.mean(dim=0)).pow(2).mean(dim=0).sqrt()
    torch.testing.assert_close(projection.deviation, torch.stack([spread[1], spread[3]]) / spread[1], atol=0.02, rtol=0)


def test_rank_beyond_the_feature() -> None:
    model = DGMRec(small(rank=50), [ModalitySpec("m", 3)], 2, 2)
    assert model.tower("m").content_weights.shape[1] == 3
    rows = torch.randn(10, 3, generator=generator())
    batch = ModalBatch({"m": rows}, torch.ones(10, 1, dtype=torch.bool))
    model.fit_projections(batch)
    projection, centred = model.tower("m").projection, rows - rows.mean(dim=0)
    back = projection.back(model.project(batch)["m"]) - rows.mean(dim=0)
    torch.testing.assert_close(functional.normalize(back, dim=1), functional.normalize(centred, dim=1))


def test_projection_of_nothing_only_scales() -> None:
    projection = fitted(torch.zeros(0, 3), 3, 0.5)
    rows = torch.randn(4, 3, generator=generator())
    torch.testing.assert_close(projection(rows), functional.normalize(rows, dim=1) * 3**0.5)
    torch.testing.assert_close(projection.back(projection(rows)), functional.normalize(rows, dim=1))


@pytest.mark.parametrize("count", [1, 4])
def test_projection_of_equal_rows(count: int) -> None:
    row = torch.tensor([[1.0, 2.0, 3.0]])
    projection = fitted(row.expand(count, 3), 2, 0.5)
    assert not projection(row).any()
    assert projection(torch.tensor([[2.0, 2.0, 3.0], [9.0, -7.0, 3.0]])).norm(dim=1).max() <= 2**0.5 + 1e-5
    torch.testing.assert_close(projection.back(torch.zeros(1, 2)), row)


def test_the_mean_has_no_signal() -> None:
    rows = linear_batch((6,), missing=0).features["m0"]
    projection = fitted(rows, 4, 0.5)
    assert not projection(projection.mean[None]).any()
