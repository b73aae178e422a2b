"""Modalities and batches: shapes are checked where they are made, masking takes content away for good."""

from __future__ import annotations

import pytest
import torch

from models.modality import ModalBatch, ModalitySpec


@pytest.fixture
def batch() -> ModalBatch:
    observed = torch.tensor([[True, True], [True, False], [False, True]])
    return ModalBatch({"text": torch.arange(6.0).view(3, 2) + 1, "image": torch.arange(9.0).view(3, 3) + 1}, observed)


def test_batch_tells_its_modalities(batch: ModalBatch) -> None:
    assert batch.names == ("text", "image")
    assert batch.specs == (ModalitySpec("text", 2), ModalitySpec("image", 3))
    assert len(batch) == 3


@pytest.mark.parametrize(("name", "dim", "message"), [("", 3, "needs a name"), ("text", 0, "'text' needs a positive")])
def test_spec_refused(name: str, dim: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModalitySpec(name, dim)


def test_mask_must_be_bool() -> None:
    with pytest.raises(TypeError, match="bool"):
        ModalBatch({"text": torch.zeros(2, 3)}, torch.ones(2, 1))


@pytest.mark.parametrize(
    ("feature", "observed", "message"),
    [
        (torch.zeros(2, 3), torch.ones(2, 2), "1 modalities but 2 columns"),
        (torch.zeros(3, 3), torch.ones(2, 1), r"'text' have shape \(3, 3\), expected \(2, dim\)"),
        (torch.zeros(2), torch.ones(2, 1), r"'text' have shape \(2,\)"),
    ],
)
def test_batch_refused(feature: torch.Tensor, observed: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModalBatch({"text": feature}, observed.bool())


def test_masked_withholds_and_zeroes(batch: ModalBatch) -> None:
    masked = batch.masked(torch.tensor([[True, False], [False, False], [False, False]]))
    assert masked.observed.tolist() == [[False, True], [True, False], [False, True]]
    assert masked.features["text"].tolist() == [[0, 0], [3, 4], [0, 0]]
    assert masked.features["image"].tolist() == [[1, 2, 3], [0, 0, 0], [7, 8, 9]]


def test_masked_leaves_the_original(batch: ModalBatch) -> None:
    batch.masked(torch.ones(3, 2, dtype=torch.bool))
    assert batch.observed.sum() == 4
    assert batch.features["text"].all()


def test_masked_hides_even_what_is_no_number(batch: ModalBatch) -> None:
    batch.features["text"][2] = torch.nan  # the placeholder of an unobserved row
    masked = batch.masked(torch.zeros(3, 2, dtype=torch.bool))
    assert masked.features["text"].tolist() == [[1, 2], [3, 4], [0, 0]]


@pytest.mark.parametrize("rows", [[2, 0], torch.tensor([2, 0])])
def test_select(batch: ModalBatch, rows: list[int] | torch.Tensor) -> None:
    chosen = batch.select(rows)
    assert chosen.features["text"].tolist() == [[5, 6], [1, 2]]
    assert chosen.observed.tolist() == [[False, True], [True, True]]


def test_select_nothing(batch: ModalBatch) -> None:
    assert len(batch.select([])) == 0
