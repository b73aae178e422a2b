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
MOST = 80.0  # of any exponent
NOTHING = 1e-12


def interest(history: A, target: A, h: A, *, bounded: bool) -> tuple[A, A]:
    """exp(f_ij - s_j) `[n, b]`, the interests before they are normalised over the rest of a history, and the shifts s_j
    `[b]`, for `rescaled`. (eq. 4, 6)

    Args:
        history, target: the roles of the history items `[n, k]` and of the targets `[b, k]`.
        h: weights of the hidden units `[k]`.
        bounded: f_ij is cut to `LARGEST` and not shifted; else s_j is the largest f_ij of a target, whatever it is.
    """
    # One hidden unit at a time: one `[n, b, k]` would not fit a processor's cache.
    terms = (_relu(history[:, unit, None] + target[:, unit]) * weight for unit, weight in enumerate(h))
    f: A = reduce(add, terms)
    shift = target[:, 0] * 0 if bounded or not len(f) else _largest(f)
    return (_exp(f) if bounded else shifted(f, shift)), shift


def pair_strength(history: Tensor, target: Tensor, h: Tensor) -> Tensor:
    """f_ij `[e]` of single pairs, from the roles `[e, k]` of their history items and of their targets. (eq. 6)"""
    return _relu(history + target) @ h


def shifted(f: A, shift: A) -> A:
    """exp(f - shift), which may be large where the shift is not of these f."""
    return _exp_of_at_most(f - shift)


def rescaled(shift: A, beta: float) -> A:
    """What is made of interests shifted by s_j, sums and normaliser alike, is to be multiplied by: exp((1 - beta) s_j).
    It depends on no shift then."""
    return _exp_of_at_most(shift * (1 - beta))


def normaliser(total: A, length: A, *, alpha: float, beta: float) -> A:
    """What sums over a history are divided by: (sum of interests)^beta |H|^alpha. (eq. 4-5)"""
    scale = _at_least(total, NOTHING) ** beta
    return scale * _at_least(length, 1) ** alpha if alpha else scale


def _relu(x: A) -> A:
    return F.relu(x) if isinstance(x, Tensor) else np.maximum(x, np.float32(0))


def _exp(x: A) -> A:
    return x.clamp(-LARGEST, LARGEST).exp() if isinstance(x, Tensor) else np.exp(np.clip(x, -LARGEST, LARGEST))


def _exp_of_at_most(x: A) -> A:
    return x.clamp(max=MOST).exp() if isinstance(x, Tensor) else np.exp(np.minimum(x, np.float32(MOST)))


def _at_least(x: A, least: float) -> A:
    return x.clamp_min(least) if isinstance(x, Tensor) else np.maximum(x, np.float32(least))


def _largest(f: A) -> A:
    return f.detach().amax(dim=0) if isinstance(f, Tensor) else np.asarray(f.max(axis=0))
