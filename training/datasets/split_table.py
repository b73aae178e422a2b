"""The rows of a split: checked, and aligned with the pairs of a dataset."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.vocabulary import Vocabulary
from training.datasets.base import SPLITS, DatasetError, Interactions, Located, Place

SplitRow = tuple[str, str, str]

_NUMBERS = {name: number for number, name in enumerate(SPLITS)}


class SplitTable:
    """Rows (user, item, part) of a split, whose errors name the file and the line that a row came from.

    A pair that stands there twice in the same part is merged.
    """

    def __init__(self, rows: Iterable[Located[SplitRow]], users: Vocabulary, items: Vocabulary) -> None:
        """Read all rows.

        Raises:
            DatasetError: a user, an item or a part is unknown, or a pair stands in two parts.
        """
        self._users, self._items = users, items
        self._files: list[Path] = []
        self._begins: list[int] = []  # the number of each file's first row
        keys, parts, lines = array("q"), array("B"), array("q")
        for place, row in rows:
            if not self._files or self._files[-1] != place.file:
                self._files.append(place.file)
                self._begins.append(len(keys))
            key, part = self._numbers(row, place)
            keys.append(key)
            parts.append(part)
            lines.append(place.line)
        self._lines = lines
        self.keys, self.parts = np.array(keys, dtype=np.int64), np.array(parts, dtype=np.uint8)
        self._check_repeats()

    def _numbers(self, row: SplitRow, place: Place) -> tuple[int, int]:
        user, item, part = self._users.get(row[0]), self._items.get(row[1]), _NUMBERS.get(row[2])
        if user is None or item is None or part is None:
            raise place.error(f"expected a known user, a known item and one of {', '.join(SPLITS)}")
        return user * len(self._items) + item, part

    def _place(self, row: int) -> Place:
        return Place(self._files[bisect_right(self._begins, row) - 1], self._lines[row])

    def _check_repeats(self) -> None:
        order = np.argsort(self.keys, kind="stable")
        clash = (np.diff(self.keys[order]) == 0) & (np.diff(self.parts[order].astype(np.int64)) != 0)
        if clash.any():
            raise self._place(order[1:][clash].min()).error("the pair stands there twice, in two parts of the split")

    def aligned(self, pairs: NDArray[np.int64], interactions: Interactions) -> NDArray[np.uint8]:
        """The part of each of these pairs, which must be all there.

        Raises:
            DatasetError: a row is of no interaction, or a pair has no row.
        """
        foreign = ~np.isin(self.keys, interactions.user * len(self._items) + interactions.item)
        if foreign.any():
            raise self._place(int(foreign.argmax())).error("the pair is not in the feedback")
        distinct, first = np.unique(self.keys, return_index=True)
        wanted = pairs[:, 0] * len(self._items) + pairs[:, 1]
        row = np.minimum(np.searchsorted(distinct, wanted), max(len(distinct) - 1, 0))
        listed = distinct[row] == wanted if len(distinct) else np.zeros(len(wanted), dtype=np.bool_)
        if not listed.all():
            user, item = pairs[int((~listed).argmax())]
            name = self._files[0].name if self._files else "the split"
            raise DatasetError(f"{name} leaves out the pair {self._users.id(user)!r}, {self._items.id(item)!r}")
        return self.parts[first[row]]

    def distinct(self) -> Iterator[SplitRow]:
        """Each pair once, in the order of the first rows."""
        for row in np.sort(np.unique(self.keys, return_index=True)[1]):
            user, item = divmod(int(self.keys[row]), len(self._items))
            yield self._users.id(user), self._items.id(item), SPLITS[self.parts[row]]
