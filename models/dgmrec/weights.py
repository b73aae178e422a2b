"""Weights of trained modules for NumPy.

A service computes a row or two at a time, and there a call of torch takes several times as long as the arithmetic. What
these compute is what the modules of `models.dgmrec.generator` compute without gradients and noise. Large weights are
shared with the modules, which must not be trained any further.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from models.dgmrec.generator import Tower
from models.projection import Projection

Array = NDArray[np.float32]


def numpy_of(tensor: Tensor) -> Array:
    """A tensor's numbers, shared with it where they lie in order."""
    array: Array = tensor.detach().contiguous().numpy()
    return array


def length(rows: Array) -> Array:
    """Euclidean length of each row, `[..., k]` -> `[..., 1]`; a row's is the same alone and among others."""
    found: Array = np.sqrt(np.vecdot(rows, rows))[..., None]
    return found


def unit(rows: Array) -> Array:
    """Rows `[..., k]` brought to length 1; those of zeros stay."""
    at_least: Array = np.maximum(length(rows), np.float32(1e-12))
    return rows / at_least


def sigmoid(values: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    half = np.float32(0.5)
    found: Array = np.tanh(values * half) * half + half
    return found


def answer(told: Array, weights: Array) -> Array:
    """The generator's closed forms: `[n, w]`, `[w + 1, r]` -> `[n, r]`, the last weights those of the constant."""
    found: Array = told @ weights[:-1] + weights[-1]
    return found


class Linear:
    """Linear layers over the same inputs as one, their outputs side by side: `[..., in]` -> `[..., sum of out]`."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        self._weight = np.concatenate([numpy_of(layer.weight) for layer in linear]).T
        self._bias = np.concatenate([numpy_of(layer.bias) for layer in linear])

    def __call__(self, inputs: Array) -> Array:
        """Outputs of inputs."""
        return np.asarray(inputs @ self._weight + self._bias, dtype=np.float32)


class MLP:
    """A hidden layer with tanh, and an output layer."""

    def __init__(self, layers: nn.Module) -> None:
        assert isinstance(layers, nn.Sequential)
        self._hidden, self._output = Linear([layers[0]]), Linear([layers[2]])

    def __call__(self, inputs: Array) -> Array:
        """Outputs `[n, out]` of inputs `[n, in]`."""
        return self._output(np.tanh(self._hidden(inputs)))


class FrozenProjection:
    """`models.projection.Projection`."""

    def __init__(self, projection: Projection) -> None:
        self.mean, self._components = numpy_of(projection.mean), numpy_of(projection.components)
        self._scale = numpy_of(projection.deviation**projection.whitening)
        self._length = np.float32(projection.length)
        self._root = np.float32(self._components.shape[1] ** 0.5)

    def __call__(self, raw: Array) -> Array:
        """Signals `[n, r]` of raw features `[n, dim]`; zero where a feature is the mean."""
        centred = np.asarray((raw - self.mean) @ self._components, dtype=np.float32)
        tiny = length(centred) <= self._length * np.float32(1e-5)
        return np.where(tiny, np.float32(0), unit(centred / self._scale) * self._root)

    def signal(self, direction: Array) -> Array:
        """The signals `[n, r]` of directions among the components, of length up to 1."""
        return unit(direction / self._scale) * (length(direction) * self._root)

    def direction(self, signal: Array) -> Array:
        """The inverse of `signal`."""
        return unit(signal * self._scale) * (length(signal) / self._root)

    def back(self, signal: Array) -> Array:
        """Raw features `[n, dim]` of signals, at the modality's usual distance from its mean."""
        centred = (self.direction(signal) * self._length) @ self._components.T
        return np.asarray(centred + self.mean, dtype=np.float32)


class FrozenTower:
    """`models.dgmrec.generator.Tower`, but for what only training needs."""

    def __init__(self, tower: Tower) -> None:
        self.projection = FrozenProjection(tower.projection)
        self.parts = Linear([tower.encode, tower.specific])  # what goes into F, and s, before their activations
        self.decode = MLP(tower.decode)
        self.general_generator, self.specific_generator = MLP(tower.general_generator), MLP(tower.specific_generator)
        self.from_interactions, self.from_content = numpy_of(tower.from_interactions), numpy_of(tower.from_content)
        self.from_content_alone = numpy_of(tower.from_content_alone)
        self.from_closest = numpy_of(tower.from_closest)
        self.mean_general, self.calibration = numpy_of(tower.mean_general), numpy_of(tower.calibration)
        self.read = np.concatenate([numpy_of(tower.told_by), numpy_of(tower.shown_by)])
        self.near = bool(tower.shown_by.all())
        self.trust = np.float32(tower.trust)
        self.real = numpy_of(tower.real[tower.real.any(dim=1)])
