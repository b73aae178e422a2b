"""What a source publishes beside its items and feedback: splits, masks of withheld cells, new items."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.vocabulary import Vocabulary
from training.datasets.base import (
    FEEDBACK,
    ITEMS,
    SPLITS,
    DatasetError,
    Interactions,
    LeaveOneOut,
    Located,
    Place,
    PublishedMask,
    distinct_pairs,
)
from training.datasets.split_table import SplitRow, SplitTable
from training.datasets.tables import id_list, load_arrays, read_rating_split, read_table

SPLIT, NEW_ITEMS, RATING_SPLIT = "split.csv", "new_items.json", "rating_split.npz"
LEAVE_ONE_OUT = "leave_one_out_"


@dataclass(frozen=True, slots=True)
class Published:
    """What is written beside items and feedback.

    Attributes:
        split: (user, item, part) for every distinct pair.
        masks: cells that a protocol withholds, by the mask's name.
        new_items: ids of the items that a protocol shows in the test part only.
        rating_split: the part of every event `[n]`, those that are left out included.
        leave_one_out: splits in ids, by name.
    """

    split: Iterable[SplitRow | Located[SplitRow]] | None = None
    masks: Mapping[str, PublishedMask] = field(default_factory=dict)
    new_items: Sequence[str] | None = None
    rating_split: NDArray[np.uint8] | None = None
    leave_one_out: Mapping[str, LeaveOneOut] = field(default_factory=dict)

    @property
    def splits_pairs(self) -> bool:
        """Whether something splits the pairs of users and items, and is checked against them."""
        return self.split is not None or bool(self.leave_one_out)

    def write(
        self,
        folder: Path,
        users: Vocabulary,
        items: Vocabulary,
        interactions: Interactions,
        min_rating: float | None,
        kept: NDArray[np.bool_],
    ) -> None:
        """Write all of it into a prepared folder.

        Args:
            interactions: what was written, if `splits_pairs`.
            kept: which rows `[n]` of the source's feedback were written.

        Raises:
            DatasetError: something does not fit the items or the interactions.
        """
        if self.splits_pairs:
            self._write_splits(folder, users, items, interactions, min_rating)
        self._write_masks(folder, items)
        if self.rating_split is not None:
            self._write_rating_split(folder / RATING_SPLIT, self.rating_split, kept)

    def _write_splits(
        self, folder: Path, users: Vocabulary, items: Vocabulary, interactions: Interactions, min_rating: float | None
    ) -> None:
        pairs = distinct_pairs(interactions, len(items), min_rating)
        if self.split is not None:
            table = SplitTable(_located_rows(self.split, folder / SPLIT), users, items)
            table.aligned(pairs, interactions)
            with (folder / SPLIT).open("w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream, lineterminator="\n")
                writer.writerow(("user", "item", "split"))
                writer.writerows(table.distinct())
        for name, split in self.leave_one_out.items():
            _in_rows(split, f"the leave-one-out split {name!r}", users, items, pairs)
            arrays = {"users": split.users, "test": split.test, "valid": split.valid}
            given = {part: ids for part, ids in arrays.items() if ids is not None}
            np.savez_compressed(folder / f"{LEAVE_ONE_OUT}{name}.npz", allow_pickle=False, **given)

    def _write_masks(self, folder: Path, items: Vocabulary) -> None:
        for name, mask in self.masks.items():
            file = folder / f"missing_{name}.npz"
            _check_known(mask.items, items, file.name)
            ids, columns = np.array(mask.items, dtype=np.str_), np.array(mask.columns, dtype=np.str_)
            np.savez_compressed(file, items=ids, columns=columns, missing=mask.missing)
        if self.new_items is not None:
            _check_known(self.new_items, items, "the list of new items")
            (folder / NEW_ITEMS).write_text(json.dumps(list(self.new_items)) + "\n", "utf-8")

    @staticmethod
    def _write_rating_split(file: Path, split: NDArray[np.uint8], kept: NDArray[np.bool_]) -> None:
        """The parts of the rows that were kept, by their numbers among these."""
        if len(split) != len(kept):
            raise DatasetError(f"the rating split names {len(split)} rows, the source has {len(kept)}")
        parts = {part: np.flatnonzero(split[kept] == number) for number, part in enumerate(SPLITS)}
        np.savez_compressed(file, allow_pickle=False, **parts)


NOTHING = Published()


def _located_rows(rows: Iterable[SplitRow | Located[SplitRow]], file: Path) -> Iterator[Located[SplitRow]]:
    for line, row in enumerate(rows, start=2):  # below the header
        yield row if isinstance(row, Located) else Located(Place(file, line), row)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_split(
    folder: Path, users: Vocabulary, items: Vocabulary, pairs: NDArray[np.int64], interactions: Interactions
) -> NDArray[np.uint8] | None:
    """The part of each distinct pair.

    Raises:
        DatasetError: a row is bad or of no interaction, or a pair has no row.
    """
    file = folder / SPLIT
    if not file.is_file():
        return None
    rows = (
        Located(place, (row["user"], row["item"], row["split"]))
        for place, row in read_table(file, ("user", "item", "split"))
    )
    return SplitTable(rows, users, items).aligned(pairs, interactions)


def read_mask(file: Path) -> PublishedMask:
    """Read a mask that names its items and columns.

    Raises:
        DatasetError: the file is damaged, or one of its arrays is absent or of the wrong shape.
    """
    arrays = load_arrays(file)
    if not {"items", "columns", "missing"} <= arrays.keys():
        raise DatasetError(f"{file.name} must hold the arrays items, columns and missing")
    return published_mask(file, id_list(arrays["items"], file), id_list(arrays["columns"], file), arrays["missing"])


def published_mask(file: Path, items: Iterable[str], columns: Iterable[str], missing: NDArray[Any]) -> PublishedMask:
    """The mask that a file publishes.

    Raises:
        DatasetError: `missing` is not bool `[items, columns]`; names the file.
    """
    try:
        return PublishedMask(tuple(items), tuple(columns), missing)
    except DatasetError as error:
        raise DatasetError(f"{file.name}: {error}") from None


def mask_name(file: Path) -> str:
    """The name of the mask in `missing_<name>.npz`."""
    return file.stem.removeprefix("missing").lstrip("_") or "default"


def read_masks(folder: Path, items: Vocabulary) -> dict[str, PublishedMask]:
    """The masks of a prepared folder by name.

    Raises:
        DatasetError: one is damaged or names an unknown item.
    """
    masks = {}
    for file in sorted(folder.glob("missing*.npz")):
        masks[mask_name(file)] = mask = read_mask(file)
        _check_known(mask.items, items, file.name)
    return masks


def _check_known(ids: Iterable[str], items: Vocabulary, whose: str) -> None:
    unknown = next((item for item in ids if item not in items), None)
    if unknown is not None:
        raise DatasetError(f"{whose} names the item {unknown!r}, which is not in {ITEMS}")


def read_leave_one_out(
    folder: Path, users: Vocabulary, items: Vocabulary, pairs: NDArray[np.int64]
) -> dict[str, LeaveOneOut]:
    """The leave-one-out splits of a prepared folder by name, in rows.

    Raises:
        DatasetError: one is damaged, names an unknown user or item, or holds out a pair that is not in the feedback.
    """
    splits = {}
    for file in sorted(folder.glob(f"{LEAVE_ONE_OUT}*.npz")):
        arrays = load_arrays(file)
        if not {"users", "test"} <= arrays.keys():
            raise DatasetError(f"{file.name} must hold the arrays users and test")
        named = LeaveOneOut(arrays["users"], arrays["test"], arrays.get("valid"))
        splits[file.stem.removeprefix(LEAVE_ONE_OUT)] = _in_rows(named, file.name, users, items, pairs)
    return splits


def _in_rows(
    named: LeaveOneOut, whose: str, users: Vocabulary, items: Vocabulary, pairs: NDArray[np.int64]
) -> LeaveOneOut:
    owners = _rows(named.users, users, f"{whose} names the user")
    trials = [
        None if part is None else _rows(part, items, f"{whose} names the item") for part in (named.test, named.valid)
    ]
    known = pairs[:, 0] * len(items) + pairs[:, 1]
    for part in trials:
        if part is not None and not np.isin(owners * len(items) + part[:, 0], known).all():
            raise DatasetError(f"{whose} holds out a pair that is not in {FEEDBACK}")
    assert trials[0] is not None
    return LeaveOneOut(owners, trials[0], trials[1])


def _rows(ids: NDArray[np.str_], vocabulary: Vocabulary, whose: str) -> NDArray[np.int64]:
    """The rows of ids, in their shape."""
    distinct, place = np.unique(ids, return_inverse=True)
    unknown = next((name for name in map(str, distinct) if name not in vocabulary), None)
    if unknown is not None:
        raise DatasetError(f"{whose} {unknown!r}, which is not in the data")
    rows = np.array([vocabulary.row(name) for name in map(str, distinct)], dtype=np.int64)
    return rows[place].reshape(ids.shape)


def read_new_items(folder: Path, items: Vocabulary) -> NDArray[np.int64] | None:
    """Rows of the items that are shown in the test part only.

    Raises:
        DatasetError: one of them is unknown.
    """
    file = folder / NEW_ITEMS
    if not file.is_file():
        return None
    ids = json.loads(file.read_text("utf-8"))
    _check_known(ids, items, file.name)
    return np.array([items.row(item) for item in ids], dtype=np.int64)


def read_fitting_rating_split(folder: Path, events: int) -> NDArray[np.uint8] | None:
    """The part of each event `[n]`.

    Raises:
        DatasetError: the file is damaged, or names another number of events.
    """
    split = read_rating_split(folder)
    if split is not None and len(split) != events:
        raise DatasetError(f"{RATING_SPLIT} names {len(split)} rows, {FEEDBACK} has {events}")
    return split
