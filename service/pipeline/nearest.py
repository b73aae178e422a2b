"""Lists of the items nearest to each item, by each modality, that follow arrivals and departures without a search.

Of a list, the first `size` items count. Some more stand ready for when any of these depart, and what arrives is put in
its place. Only once a list has become too short does it have to be searched for again.
"""

from __future__ import annotations

import numpy as np

from models.arrays import Array, Mask
from service.pipeline.rows import Rows
from service.ports import Keys

LAST = np.iinfo(np.int32).max  # sorts behind every key


class Nearest:
    """Keys and cosines `[M, size + spare + 1]` of each item's neighbours, the best first, ties by smaller key, padded
    with -1 and -inf. The last column tells how far a list is known: nothing that is missing from it is nearer than this
    item, or this cosine; -inf where nothing is missing, inf where there are to be no neighbours.

    One thread writes.
    """

    def __init__(self, modalities: int, size: int, spare: int) -> None:
        self.size, self.length = size, size + spare
        shape = (modalities, self.length + 1)
        self.keys = Rows({"keys": shape}, np.int32, -1)
        self.cosines = Rows({"cosines": shape})

    @property
    def rows(self) -> tuple[Rows, Rows]:
        """What it keeps its lists in."""
        return self.keys, self.cosines

    def of(self, keys: Keys, column: int) -> tuple[Keys, Array]:
        """Whole lists of items `[n]` by one modality: keys and cosines `[n, size + spare + 1]`."""
        return self.keys.get("keys", keys, column), self.cosines.get("cosines", keys, column)

    def put(self, keys: Keys, column: int, lists: tuple[Keys, Array]) -> Mask:
        """Write whole lists of items by one modality; of which `[n]` has changed what counts."""
        old_keys, old_cosines = self.of(keys, column)
        self.keys.put_all("keys", keys, lists[0], column)
        self.cosines.put_all("cosines", keys, lists[1], column)
        changed = (old_keys != lists[0]) | (old_cosines != lists[1])
        return np.asarray(changed[:, : self.size].any(axis=1))

    def holding(self, keys: Keys, capacity: int, column: int | None = None, *, spare: bool = False) -> Keys:
        """Items which have any of these, below `capacity`, in their lists, by one modality or any: among what counts,
        or at all."""
        owners, lists = self.keys.all("keys")
        named = np.zeros(capacity + 1, dtype=np.bool_)  # the last place is that of -1, of no item
        named[keys] = True
        count = self.length if spare else self.size
        held = named[lists[:, :, :count] if column is None else lists[:, column, :count]]
        holding: Keys = owners[held.reshape(len(owners), -1).any(axis=1) & (owners >= 0)]
        return holding


def found(keys: Keys, cosines: Array, says: Mask) -> tuple[Keys, Array]:
    """Whole lists from the answer of a search for `[n, size + spare]`; `says` `[n]` whether a query said anything."""
    known = np.where(says, cosines[:, -1], np.float32(np.inf))
    return np.column_stack([keys, keys[:, -1]]).astype(np.int32), np.column_stack([cosines, known])


def with_new(lists: tuple[Keys, Array], new: Keys, cosines: Array) -> tuple[Keys, Array]:
    """Whole lists `[n, length + 1]` into which items `[c]` at these cosines `[n, c]`, -inf for none, are put, as far as
    they belong there."""
    keys, known = lists
    bound, bound_key = known[:, -1:], keys[:, -1:]
    belongs = (cosines > bound) | ((cosines == bound) & (new < bound_key))
    belongs &= (keys[:, None, :-1] != new[:, None]).all(axis=2)
    length = keys.shape[1] - 1
    all_keys = np.concatenate([keys[:, :-1], np.where(belongs, new, -1)], axis=1)
    all_cosines = np.concatenate([known[:, :-1], np.where(belongs, cosines, np.float32(-np.inf))], axis=1)
    order = np.lexsort((np.where(all_keys < 0, LAST, all_keys), -all_cosines), axis=-1)[:, :length]
    kept, kept_cosines = np.take_along_axis(all_keys, order, axis=1), np.take_along_axis(all_cosines, order, axis=1)
    cut = ((all_keys >= 0).sum(axis=1) > length)[:, None]
    bound_key, bound = np.where(cut, kept[:, -1:], bound_key), np.where(cut, kept_cosines[:, -1:], bound)
    return np.concatenate([kept, bound_key], axis=1).astype(np.int32), np.concatenate([kept_cosines, bound], axis=1)


def without(lists: tuple[Keys, Array], gone: Mask, size: int) -> tuple[tuple[Keys, Array], Mask]:
    """Whole lists `[n, length + 1]` without some of their items `[n, length]`, and which of them `[n]` may now lack
    some of the `size` that count."""
    keys, cosines = lists
    order = np.argsort(gone, axis=1, kind="stable")
    kept = np.take_along_axis(np.where(gone, np.int32(-1), keys[:, :-1]), order, axis=1)
    kept_cosines = np.take_along_axis(np.where(gone, np.float32(-np.inf), cosines[:, :-1]), order, axis=1)
    short = (kept[:, size - 1] < 0) & np.isfinite(cosines[:, -1])
    whole = np.concatenate([kept, keys[:, -1:]], axis=1), np.concatenate([kept_cosines, cosines[:, -1:]], axis=1)
    return whole, short
