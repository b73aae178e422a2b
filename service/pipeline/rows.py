"""Rows of numbers under keys that are never used twice, in memory that follows the number of rows in use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.arrays import Array
from service.ports import Keys

SPARE = 1024  # removed rows that are not worth the work of packing


@dataclass(frozen=True, slots=True)
class _Packed:
    """`arrays` `[rows, ...]` by field, and where in them each key stands, `places` `[keys]`. The first row stays zero:
    it is that of keys which have none."""

    arrays: Mapping[str, Array]
    places: NDArray[np.int32]


class Rows:
    """Several arrays, one row in each for a key.

    One thread writes. Readers take no lock: a row is complete before its key leads to it, and no row is given to
    another key until all are packed anew, which leaves what a reader has begun with as it was.

    Args:
        fields: shape of a row by field.
    """

    def __init__(self, fields: Mapping[str, tuple[int, ...]]) -> None:
        self._fields = dict(fields)
        self._keys: set[int] = set()
        self._packed = _Packed(self._zeros(1), np.zeros(1, np.int32))
        self._used = 1

    def get(self, name: str, keys: Keys | int, *part: int) -> Array:
        """Rows `[..., *shape]` of a field, or a `part` of each; zeros for keys without a row and negative ones."""
        packed = self._packed
        found: Array = packed.arrays[name][(packed.places[np.maximum(keys, 0)], *part)]
        return found

    def put(self, key: int, values: Mapping[str, Array]) -> None:
        """Insert or replace a key's row."""
        place = self._packed.places[key] if key in self._keys else self._room()
        for name, value in values.items():
            self._packed.arrays[name][place] = value
        self._packed.places[key] = place
        self._keys.add(key)

    def remove(self, key: int) -> None:
        """Forget a key. Its row can be read until the rows are packed, which is after as many removals as rows stay."""
        self._keys.discard(key)
        if self._used - 1 - len(self._keys) > max(SPARE, len(self._keys)):
            self._pack()

    def reserve(self, keys: int) -> None:
        """Make a place for every key below `keys`."""
        packed = self._packed
        places = np.zeros(keys, np.int32)
        places[: len(packed.places)] = packed.places
        self._packed = _Packed(packed.arrays, places)

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take, the removed and the free ones too."""
        return sum(array.nbytes for array in self._packed.arrays.values())

    def _room(self) -> int:
        """A free place."""
        if self._used == len(next(iter(self._packed.arrays.values()))):
            self._pack()
        self._used += 1
        return self._used - 1

    def _pack(self) -> None:
        """Into arrays of their own size and half as much again, without the removed ones."""
        old, keys = self._packed, np.array(sorted(self._keys), dtype=np.int64)
        arrays = self._zeros(1 + len(keys) + max(SPARE, len(keys) // 2))
        for name, array in old.arrays.items():
            arrays[name][1 : 1 + len(keys)] = array[old.places[keys]]
        places = np.zeros_like(old.places)
        places[keys] = np.arange(1, 1 + len(keys), dtype=np.int32)
        self._packed = _Packed(arrays, places)
        self._used = 1 + len(keys)

    def _zeros(self, size: int) -> dict[str, Array]:
        return {name: np.zeros((size, *shape), np.float32) for name, shape in self._fields.items()}
