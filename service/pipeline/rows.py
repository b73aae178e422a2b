"""Rows of numbers under keys that are never used twice, in memory that follows the number of rows in use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from service.ports import Keys

SPARE = 1024  # removed rows that are not worth the work of packing


@dataclass(frozen=True, slots=True)
class _Packed:
    """`arrays` `[rows, ...]` by field, where in them each key stands, `places` `[keys]`, and whose each row is,
    `owners` `[rows]`, -1 for nobody's. The first row is that of keys which have none."""

    arrays: Mapping[str, NDArray[Any]]
    places: NDArray[np.int32]
    owners: Keys


class Rows:
    """Several arrays, one row in each for a key.

    One thread writes. Readers take no lock: a row is complete before its key leads to it, and no row is given to
    another key until all are packed anew, which leaves what a reader has begun with as it was.

    Args:
        fields: shape of a row by field.
        dtype: of all fields.
        fill: what keys without a row have.
    """

    def __init__(self, fields: Mapping[str, tuple[int, ...]], dtype: DTypeLike = np.float32, fill: int = 0) -> None:
        self._fields, self._dtype, self._fill = dict(fields), dtype, fill
        self._keys: set[int] = set()
        self._packed = _Packed(self._filled(1), np.zeros(1, np.int32), np.full(1, -1, np.int64))
        self._used = 1

    def get(self, name: str, keys: Keys | int, *part: int) -> NDArray[Any]:
        """Rows `[..., *shape]` of a field, or a `part` of each; what keys without a row have for those and for negative
        ones."""
        packed = self._packed
        places = np.where(np.asarray(keys) < 0, 0, packed.places[np.maximum(keys, 0)])
        index: tuple[Any, ...] = (places, *part)
        rows: NDArray[Any] = packed.arrays[name][index]
        return rows

    def table(self, name: str, keys: Keys) -> tuple[NDArray[Any], Keys]:
        """All rows of a field as they are kept, which are not to be changed, and where in them those of some keys are:
        for what would gather many rows many times."""
        packed = self._packed
        places = np.where(keys < 0, 0, packed.places[np.maximum(keys, 0)])
        return packed.arrays[name], places.astype(np.int64, copy=False)

    def all(self, name: str) -> tuple[Keys, NDArray[Any]]:
        """Whose each row of a field is `[r]`, -1 for nobody's, and the rows themselves `[r, ...]`, which are not to be
        changed."""
        packed, used = self._packed, self._used
        return packed.owners[:used], packed.arrays[name][:used]

    def put(self, key: int, values: Mapping[str, Any]) -> None:
        """Insert or replace a key's row; fields that are left out stay as they are."""
        place = int(self._packed.places[key]) if key in self._keys else self._room()
        for name, value in values.items():
            self._packed.arrays[name][place] = value
        self._own(key, place)

    def put_all(self, name: str, keys: Keys, values: NDArray[Any], *part: int) -> None:
        """Replace one field, or a `part` of it, of several keys `[n]` by rows `[n, ...]`."""
        for key in keys.tolist():
            if key not in self._keys:
                self._own(key, self._room())
        index: tuple[Any, ...] = (self._packed.places[keys], *part)
        self._packed.arrays[name][index] = values

    def remove(self, key: int) -> None:
        """Forget a key. Its row can be read until the rows are packed, which is after as many removals as rows stay."""
        if key in self._keys:
            self._keys.discard(key)
            self._packed.owners[self._packed.places[key]] = -1
        if self._used - 1 - len(self._keys) > max(SPARE, len(self._keys)):
            self._pack()

    def reserve(self, keys: int) -> None:
        """Make a place for every key below `keys`."""
        packed = self._packed
        places = np.zeros(keys, np.int32)
        places[: len(packed.places)] = packed.places
        self._packed = _Packed(packed.arrays, places, packed.owners)

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take, the removed and the free ones too."""
        return sum(array.nbytes for array in self._packed.arrays.values())

    def _own(self, key: int, place: int) -> None:
        self._packed.owners[place] = key
        self._packed.places[key] = place
        self._keys.add(key)

    def _room(self) -> int:
        """A free place."""
        if self._used == len(self._packed.owners):
            self._pack()
        self._used += 1
        return self._used - 1

    def _pack(self) -> None:
        """Into arrays of their own size and half as much again, without the removed ones."""
        old, keys = self._packed, np.array(sorted(self._keys), dtype=np.int64)
        size = 1 + len(keys) + max(SPARE, len(keys) // 2)
        arrays = self._filled(size)
        for name, array in old.arrays.items():
            arrays[name][1 : 1 + len(keys)] = array[old.places[keys]]
        places, owners = np.zeros_like(old.places), np.full(size, -1, np.int64)
        places[keys] = np.arange(1, 1 + len(keys), dtype=np.int32)
        owners[1 : 1 + len(keys)] = keys
        self._packed = _Packed(arrays, places, owners)
        self._used = 1 + len(keys)

    def _filled(self, size: int) -> dict[str, NDArray[Any]]:
        return {name: np.full((size, *shape), self._fill, self._dtype) for name, shape in self._fields.items()}
