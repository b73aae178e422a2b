"""From a raw feature to what it says of its item: its signal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models import linalg
from models.linalg import Numbers, library


class ProjectionMaps:
    """What a fitted projection computes, for torch tensors and NumPy arrays alike; the parameters are of either kind.

    Attributes:
        mean: `[dim]`. components: `[dim, r]`.
        scale: `[r]`, the components' deviations to the power `whitening`.
        length: of a centred raw feature, root mean square.
        is_raw: whether a feature is its own signal.
    """

    is_raw: bool
    mean: Any
    components: Any
    scale: Any
    length: Any

    def project(self, raw: Numbers) -> Numbers:
        """Signals `[n, r]` of raw features `[n, dim]`; zero where a feature is the mean."""
        if self.is_raw:
            return raw
        centred = (raw - self.mean) @ self.components
        tiny = linalg.length(centred) <= 1e-5 * self.length
        return library(raw).where(tiny, 0, linalg.unit(centred / self.scale) * centred.shape[1] ** 0.5)

    def tells(self, raw: Numbers) -> Any:
        """Which raw features `[n, dim]` tell anything of an item, bool `[n]`: zeros do not, and the mean does not,
        within rounding."""
        zero = linalg.length(raw)[:, 0] <= 1e-5 * self.length
        return ~zero & (self.project(raw) != 0).any(1)

    def signal(self, direction: Numbers) -> Numbers:
        """The signals `[n, r]` of directions among the components, of length up to 1."""
        if self.is_raw:
            return direction
        return linalg.unit(direction / self.scale) * (linalg.length(direction) * direction.shape[1] ** 0.5)

    def direction(self, signal: Numbers) -> Numbers:
        """The inverse of `signal`."""
        if self.is_raw:
            return signal
        return linalg.unit(signal * self.scale) * (linalg.length(signal) / signal.shape[1] ** 0.5)

    def back(self, signal: Numbers) -> Numbers:
        """Raw features `[n, dim]` of signals, at the modality's usual distance from its mean."""
        if self.is_raw:
            return signal
        return (self.direction(signal) * self.length) @ self.components.T + self.mean


class Projection(ProjectionMaps, nn.Module):
    """From a raw feature to its signal: centred, rotated to principal components whose deviations are raised to the
    power 1 - `whitening`, and brought to the length sqrt(r). Fitted on observed rows only.

    With `is_raw`, features stay as they are, and only mean and length are fitted.

    What tells items apart in a centred feature is its direction, and little of it lies in the few components that hold
    most of the variance. Signals keep the direction and forget the length; `direction` undoes the whitening.
    """

    mean: Tensor
    components: Tensor
    deviation: Tensor
    length: Tensor

    def __init__(self, dim: int, rank: int, whitening: float, *, is_raw: bool = False) -> None:
        super().__init__()
        self.whitening, self.is_raw = whitening, is_raw
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("components", torch.eye(dim, rank))
        self.register_buffer("deviation", torch.ones(min(dim, rank)))  # of each component, largest 1
        self.register_buffer("length", torch.ones(()))

    @property
    def scale(self) -> Tensor:
        """The components' deviations to the power `whitening`, `[r]`."""
        return self.deviation**self.whitening

    def fit(self, rows: Tensor) -> None:
        """Fit on observed rows `[k, dim]`; without any the map only scales."""
        if len(rows) == 0:
            return
        centred = (rows - rows.mean(dim=0)).double()
        self.mean.copy_(rows.mean(dim=0))
        length = centred.pow(2).sum(dim=1).mean().sqrt()
        self.length.copy_(length.where(length > 1e-6, 1))  # rows that do not differ say nothing of the length
        if self.is_raw:
            return
        _, components = linalg.principal_axes(centred.T @ centred, self.components.shape[1])
        # Eigenvectors have no sign of their own: the largest entry is made positive.
        sign = components.gather(0, components.abs().argmax(dim=0, keepdim=True)).sign()
        self.components.copy_(components * sign)
        deviation = (centred.float() @ self.components).pow(2).mean(dim=0).sqrt()
        # Components that hardly vary are noise of rounding; blown up they would be all that counts.
        self.deviation.copy_((deviation / deviation.max().clamp_min(1e-12)).clamp_min(1e-2))

    def forward(self, raw: Tensor) -> Tensor:
        """Signals `[n, r]` of raw features `[n, dim]`; zero where a feature is the mean."""
        signals: Tensor = self.project(raw)
        return signals
