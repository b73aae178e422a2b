"""Forward arithmetic of IRIS as pure functions: torch tensors in training, NumPy arrays in a request."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TypeVar

import numpy as np
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor

from models.arrays import Array

A = TypeVar("A", Tensor, Array)

LARGEST = 20.0  # of f_ij: its exponential stays far from overflow
NOTHING = 1e-12


def interest(history: A, target: A, h: A) -> A:
    """exp(f_ij) `[n, b]`, the interests before they are normalised over the rest of a history. (eq. 4, 6)

    Args:
        history, target: the roles of the history items `[n, k]` and of the targets `[b, k]`.
        h: weights of the hidden units `[k]`.
    """
    # One hidden unit at a time: one `[n, b, k]` would not fit a processor's cache.
    terms = (_relu(history[:, unit, None] + target[:, unit]) * weight for unit, weight in enumerate(h))
    f: A = reduce(add, terms)
    return _exp(f)


def pair_interest(history: Tensor, target: Tensor, h: Tensor) -> Tensor:
    """The same `[e]` of single pairs, from the roles `[e, k]` of their history items and of their targets."""
    return _exp(_relu(history + target) @ h)


def normaliser(total: A, length: A, *, alpha: float, beta: float) -> A:
    """What sums over a history are divided by: (sum of interests)^beta |H|^alpha. (eq. 4-5)"""
    scale = _at_least(total, NOTHING) ** beta
    return scale * _at_least(length, 1) ** alpha if alpha else scale


def _relu(x: A) -> A:
    return F.relu(x) if isinstance(x, Tensor) else np.maximum(x, np.float32(0))


def _exp(x: A) -> A:
    return x.clamp(-LARGEST, LARGEST).exp() if isinstance(x, Tensor) else np.exp(np.clip(x, -LARGEST, LARGEST))


def _at_least(x: A, least: float) -> A:
    return x.clamp_min(least) if isinstance(x, Tensor) else np.maximum(x, np.float32(least))
