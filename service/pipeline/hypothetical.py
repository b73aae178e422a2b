"""A catalogue in which one item is another one: what its vectors would be, with nothing written.

Everything else of it is the real catalogue, which readers and the writer go on using. What would follow for other items
(those whose neighbour it is, or that are generated from it) is not computed.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.dgmrec.serving import DGMRecServing
from service.domain import State
from service.pipeline import vectors
from service.pipeline.catalogue import KERNEL_FIELDS, Catalogue, Derived, Entry
from service.pipeline.rows import Rows
from service.ports import Keys


class _RowsWith(Rows):
    """Rows of which those of one key are others. Only read."""

    def __init__(self, rows: Rows, key: int, values: Mapping[str, Any]) -> None:
        self._rows, self._key = rows, key
        self.values = {name: np.asarray(value, dtype=np.float32) for name, value in values.items()}

    def get(self, name: str, keys: Keys | int, *part: int) -> NDArray[Any]:
        found, own = self._rows.get(name, keys, *part), np.asarray(keys) == self._key
        if name not in self.values or not own.any():
            return found
        found = np.array(found)
        found[own] = self.values[name][part]
        return found

    def table(self, name: str, keys: Keys) -> tuple[NDArray[Any], Keys]:
        return self._rows.table(name, keys)  # of neighbours, of which the item itself is none


class Hypothetical(Catalogue):
    """A catalogue with another `entry` and `derived` in the place of an item that it has, under the same key."""

    def __init__(self, catalogue: Catalogue, model: DGMRecServing, entry: Entry, derived: Derived) -> None:
        self.__dict__.update(vars(catalogue))
        key = entry.key
        own = dict(derived.fields())
        own["parts"] = np.zeros(catalogue.shape.vectors()["parts"], dtype=np.float32)
        self._own = _RowsWith(catalogue.rows, key, own)
        self._lists: dict[str, NDArray[Any]] = {}
        self.rows, self.entries = self._own, ChainMap({key: entry}, catalogue.entries)  # type: ignore[assignment]
        self._key = key
        self.observed, self.used = self.observed.copy(), self.used.copy()
        self.raw_confidence, self.warm = self.raw_confidence.copy(), self.warm.copy()
        self.observed[key] = [entry.states[name] is State.OBSERVED for name in self.names]
        self.raw_confidence[key], self.used[key] = self._raw(entry), self._used(entry)
        keys = np.array([key], dtype=np.int64)
        for layer in vectors.layers(model):
            if layer != vectors.KERNEL or self.trained[key] < 0:
                self._take(vectors.compute(layer, model, self, keys))

    def read_layer(self, keys: Keys, name: str) -> NDArray[Any]:
        found = super().read_layer(keys, name)
        if name in self._lists:
            found = np.array(found)
            found[keys == self._key] = self._lists[name]
        return found

    def _take(self, layer: Mapping[str, NDArray[Any]]) -> None:
        for name, (value,) in layer.items():
            if name.startswith("parts."):
                self._own.values["parts"][int(name.removeprefix("parts."))] = value
            elif name == "warm":
                self.warm[self._key] = value
            elif name in ("near", *KERNEL_FIELDS):
                self._lists[name] = value
            else:
                self._own.values[name] = np.asarray(value, dtype=np.float32)
