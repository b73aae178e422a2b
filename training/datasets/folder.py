"""Folders of the literature: MMRec's, RecBole's atomic files, and tables of the same content.

Interactions: `NAME.inter` (userID, itemID, x_label and optionally rating, timestamp; x_label 0, 1, 2 is train, valid,
test; or RecBole's `user_id:token`, `item_id:token`, `rating:float`, `timestamp:float`), a published split as
`NAME.train.inter`, `NAME.valid.inter`, `NAME.test.inter`, or `interactions.csv[.gz]` (user, item, split).

Items: ready features as `<modality>_feat.npy`, row = item id, or as `<modality>_feat/<item>.npy`; both beside the
table or in a folder `feat` or `features`. Titles, texts and categories in `NAME.item`, `items.csv[.gz]` or
`artists.csv[.gz]`. With features by row, the items are the rows; otherwise those of the item table and those that
somebody interacted with.

Optionally masks as `missing*.npz` (`missing` bool `[n, M]`, optionally `items` and `columns`), and `new_items.npy`.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from models.feedback import AUTO, HIGHEST, LOWEST
from training.datasets.base import SPLITS, DatasetError, Located, Place, Progress, PublishedMask, Record
from training.datasets.item_tables import ITEM_NAMES, ItemTable, find_item_table
from training.datasets.prepared import DatasetInfo, write_dataset
from training.datasets.published import Published, mask_name, published_mask
from training.datasets.ready import Features, find_features
from training.datasets.records import (
    HALF_STARS,
    MAPPED,
    Records,
    is_item_id,
    is_user_id,
    number,
)
from training.datasets.tables import Aliases, find_columns, id_list, load_array, load_arrays, read_columns, read_table

_COLUMNS: Aliases = {
    "user": ("user", "userID", "user_id", "uid"),
    "item": ITEM_NAMES,
    "split": ("split", "x_label"),
}
_MASK_COLUMNS = ("text", "image", "audio")  # the order of published masks that do not name their columns
_PARTS = {**dict(zip("012", SPLITS, strict=True)), **{part: part for part in SPLITS}}


class InteractionTable:
    """The interactions: one file, or three that are the parts of a split."""

    def __init__(self, source: Path) -> None:
        self.files = _interaction_files(source)
        self.has_split = all("split" in find_columns(read_columns(file), _COLUMNS) or part for file, part in self.files)

    @property
    def name(self) -> str:
        """The names of the files."""
        return ", ".join(file.name for file, _ in self.files)

    def rows(self) -> Iterator[Located[dict[str, str]]]:
        """The interactions of all files; `split` is the part's name.

        Raises:
            DatasetError: a file is damaged, lacks a column, or a row is of no part.
        """
        for file, part in self.files:
            for place, row in read_table(file, ("user", "item"), _COLUMNS):
                if self.has_split:
                    row["split"] = part or _part(row["split"], place)
                yield Located(place, row)

    def split(self) -> Iterator[Located[tuple[str, str, str]]]:
        """The part of each row whose ids can be ids."""
        for place, row in self.rows():
            if is_item_id(row["item"]) and is_user_id(row["user"]):
                yield Located(place, (row["user"], row["item"], row["split"]))


def prepare(source: Path, out: Path, progress: Progress | None = None) -> DatasetInfo:
    """Read a folder of interactions with ready features, an item table, or both.

    Raises:
        DatasetError: files are absent, of the wrong shape, hold pickles or values that are not finite, or disagree, or
            a row is bad; names file and line.
    """
    interactions, features, records = InteractionTable(source), find_features(source), Records()
    catalogue = find_item_table(source)
    if not features.names and catalogue is None:
        raise DatasetError(f"{source} holds no <modality>_feat.npy file and no item table (NAME.item or items.csv)")
    masks = sorted(source.glob("missing*.npz"))
    return write_dataset(
        out,
        _items(interactions, features, catalogue, records),
        _feedback(interactions, features.n_items, records),
        name=source.resolve().name,
        source=_told(interactions, features, catalogue),
        min_rating=None if interactions.has_split else AUTO,  # a published split lists what counts, whatever its rating
        published=Published(
            split=interactions.split() if interactions.has_split else None,
            masks={mask_name(file): _mask(file, features.n_items) for file in masks},
            new_items=_new_items(source / "new_items.npy"),
        ),
        tally=records.tally,
        progress=progress,
    )


def _told(interactions: InteractionTable, features: Features, catalogue: ItemTable | None) -> str:
    parts = [f"ready {', '.join(features.names)} features"] if features.names else []
    return f"{interactions.name} with " + " and ".join([*parts, *([catalogue.file.name] if catalogue else [])])


def _part(label: str, place: Place) -> str:
    part = _PARTS.get(label.removesuffix(".0"))
    if part is None:
        raise place.error(f"a row's part must be 0, 1, 2 or {', '.join(SPLITS)}, got {reprlib.repr(label)}")
    return part


# --- interactions ------------------------------------------------------------------------------------------------


def _interaction_files(source: Path) -> list[tuple[Path, str]]:
    """The files of interactions, each with the part that its name tells, "" where it tells none."""
    name = source.resolve().name
    tables = sorted(file for file in source.glob("*.inter") if file.is_file())
    named = [file for file in tables if file.name == f"{name}.inter"]
    parts = [(file, part) for part in SPLITS for file in tables if file.name.endswith(f".{part}.inter")]
    if not named and len(parts) == len(tables) == len(SPLITS) == len({part for _, part in parts}):
        return parts
    candidates = named or tables or sorted([*source.glob("interactions.csv"), *source.glob("interactions.csv.gz")])
    if not candidates:
        raise DatasetError(f"{source} holds neither a NAME.inter nor an interactions.csv file")
    if len(candidates) > 1:
        raise DatasetError(f"{source} holds several interaction files ({', '.join(file.name for file in candidates)})")
    return [(candidates[0], "")]


def _feedback(table: InteractionTable, n_items: int | None, records: Records) -> Iterator[Located[Record | None]]:
    known = None if n_items is None else set(map(str, range(n_items)))
    scale = _scale(table, records)
    for place, row in table.rows():
        if known is not None and row["item"] not in known:
            raise place.error(f"the item {reprlib.repr(row['item'])} is none of the {n_items} rows of the features")
        yield Located(place, records.interaction(row, place, scale, number))


def _scale(table: InteractionTable, records: Records) -> tuple[float, float] | None:
    """The scale that the ratings are of: 1..5, MovieLens's half stars, or None where they are no stars or absent."""
    count, lowest, highest = 0, math.inf, -math.inf
    for place, row in table.rows():
        if "rating" not in row:
            return None
        value = number(row["rating"], "rating", place)
        count, lowest, highest = count + 1, min(lowest, value), max(highest, value)
    if lowest >= LOWEST and highest <= HIGHEST:
        return LOWEST, HIGHEST
    if lowest >= HALF_STARS and highest <= HIGHEST:
        records.tally.changed[MAPPED] += count
        return HALF_STARS, HIGHEST
    records.tally.changed[f"ratings from {lowest:g} to {highest:g}, no scale of 1..5, read as views"] += count
    return None


# --- items -------------------------------------------------------------------------------------------------------


def _items(
    interactions: InteractionTable, features: Features, catalogue: ItemTable | None, records: Records
) -> Iterator[Located[Record | None] | Record]:
    """The items: the rows of the features where these come by row, else those described and those interacted with."""
    described = catalogue.described(records) if catalogue else {}
    if features.n_items is None:
        keys = list(dict.fromkeys([*described, *(row["item"] for _, row in interactions.rows())]))
    else:
        keys = list(map(str, range(features.n_items)))
        _check_rows(described, set(keys))
    for key in keys:
        ready = features.of(key) if is_item_id(key) else {}
        if catalogue and key in described:
            place, row = described[key]
            yield Located(place, catalogue.item(key, row, place, ready, records))
        elif (item := records.item(key, modalities=ready)) is not None:
            yield item


def _check_rows(described: Mapping[str, Located[object]], keys: set[str]) -> None:
    for key, (place, _) in described.items():
        if key not in keys:
            raise place.error(f"the item {reprlib.repr(key)} is none of the {len(keys)} rows of the features")


def _mask(file: Path, n_items: int | None) -> PublishedMask:
    """A mask that names its items, or whose rows are those of the features."""
    arrays = load_arrays(file)
    missing = arrays.get("missing")
    if missing is None or missing.ndim != 2:
        raise DatasetError(f"{file.name} must hold an array `missing` [items, modalities]")
    items = id_list(arrays["items"], file) if "items" in arrays else [str(row) for row in range(n_items or 0)]
    if len(missing) != len(items):
        raise DatasetError(f"{file.name} must hold an array `missing` of {len(items)} items, got {len(missing)}")
    named = id_list(arrays["columns"], file) if "columns" in arrays else _MASK_COLUMNS[: missing.shape[1]]
    return published_mask(file, items, named, missing)


def _new_items(file: Path) -> list[str] | None:
    return id_list(load_array(file), file) if file.is_file() else None
