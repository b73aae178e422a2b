"""Modalities and batches of items with holes in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ModalitySpec:
    """One modality: its name and the length of its raw feature vectors."""

    name: str
    dim: int

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a modality needs a name")
        if self.dim < 1:
            raise ValueError(f"modality {self.name!r} needs a positive dimension, got {self.dim}")


@dataclass(frozen=True, slots=True)
class ModalBatch:
    """Raw features of `n` items in `M` modalities, and which of the cells are real.

    Attributes:
        features: by modality name, float tensors `[n, dim_m]`. Rows that are not observed hold
            placeholders that no result may depend on.
        observed: bool tensor `[n, M]`; columns in the order of `features`.
    """

    features: Mapping[str, Tensor]
    observed: Tensor

    def __post_init__(self) -> None:
        rows, columns = self.observed.shape
        if self.observed.dtype != torch.bool:
            raise TypeError("observed must be a bool tensor")
        if columns != len(self.features):
            raise ValueError(f"{len(self.features)} modalities but {columns} columns in the observed mask")
        for name, feature in self.features.items():
            if feature.dim() != 2 or len(feature) != rows:
                raise ValueError(f"features of {name!r} have shape {tuple(feature.shape)}, expected ({rows}, dim)")

    def __len__(self) -> int:
        return len(self.observed)

    @property
    def names(self) -> tuple[str, ...]:
        """Modality names, in the order of the mask's columns."""
        return tuple(self.features)

    @property
    def specs(self) -> tuple[ModalitySpec, ...]:
        """Names and dimensions, in the order of the mask's columns."""
        return tuple(ModalitySpec(name, feature.shape[1]) for name, feature in self.features.items())

    def masked(self, missing: Tensor) -> ModalBatch:
        """The same items with the cells of `missing` (bool `[n, M]`) withheld: zeroed and marked unobserved."""
        observed = self.observed & ~missing
        features = {
            name: torch.where(observed[:, column, None], feature, torch.zeros_like(feature))
            for column, (name, feature) in enumerate(self.features.items())
        }
        return ModalBatch(features, observed)

    def select(self, rows: Tensor | Sequence[int]) -> ModalBatch:
        """The batch of these rows only."""
        index = torch.as_tensor(rows, dtype=torch.long)
        return ModalBatch({name: feature[index] for name, feature in self.features.items()}, self.observed[index])
