"""Lengths and directions of rows.

`Tensor.norm` and `F.normalize` go through layers of Python that take longer than the norm of a single row, and a
service computes a few rows at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor


def length(rows: Tensor) -> Tensor:
    """Euclidean length of each row, `[..., k]` -> `[..., 1]`."""
    found: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return found


def unit(rows: Tensor) -> Tensor:
    """Rows `[..., k]` brought to length 1; those of zeros stay."""
    return rows / length(rows).clamp_min(1e-12)
