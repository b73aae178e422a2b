"""Weights of trained modules as NumPy arrays, for `models.dgmrec.inference`.

A service computes a row or two at a time, and there a call of torch takes several times as long as the arithmetic.
Large weights are shared with the modules, which must not be trained any further.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import Tensor, nn

from models.arrays import Array
from models.dgmrec.generator import ModalityTower, smoothing_neighbours
from models.projection import Projection, ProjectionMaps


def numpy_of(tensor: Tensor) -> Array:
    """A tensor's numbers, shared with it where they lie in order."""
    array: Array = tensor.detach().contiguous().numpy()
    return array


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


class ProjectionWeights(ProjectionMaps):
    """A fitted `Projection`."""

    def __init__(self, projection: Projection) -> None:
        self.is_raw = projection.is_raw
        self.mean, self.components = numpy_of(projection.mean), numpy_of(projection.components)
        self.scale, self.length = numpy_of(projection.scale), np.float32(projection.length)


class TowerWeights:
    """A trained `ModalityTower`, but for what only training needs."""

    def __init__(self, tower: ModalityTower) -> None:
        self.projection: ProjectionMaps = ProjectionWeights(tower.projection)
        self.encode, self.specific = Linear([tower.encode]), Linear([tower.specific])
        self.preference, self.decode = Linear([tower.preference]), MLP(tower.decode)
        self.general_generator, self.specific_generator = MLP(tower.general_generator), MLP(tower.specific_generator)
        self.interaction_weights, self.content_weights = (
            numpy_of(tower.interaction_weights),
            numpy_of(tower.content_weights),
        )
        self.content_only_weights = numpy_of(tower.content_only_weights)
        self.near_duplicate_weights = numpy_of(tower.near_duplicate_weights)
        self.interaction_mask, self.content_mask = numpy_of(tower.interaction_mask), numpy_of(tower.content_mask)
        self.mean_general, self.calibration = numpy_of(tower.mean_general), numpy_of(tower.calibration)
        self.trust = np.float32(tower.trust)
        self.search_scale = numpy_of(tower.search_scale)
        self._directions = numpy_of(tower.directions[tower.directions.any(dim=1)])

    def mean_of_nearest(self, directions: Array) -> Array | None:
        """As `ModalityTower.mean_of_nearest`, by a partial sort and a plain mean: for one row, a fraction of the time
        of a search in blocks."""
        if not len(self._directions):
            return None
        count = smoothing_neighbours(len(self._directions))
        rows = np.argpartition(directions @ self._directions.T, -count, axis=1)[:, -count:]
        mean: Array = self._directions[rows].mean(axis=1)
        return mean
