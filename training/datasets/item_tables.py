"""Item tables: RecBole's `NAME.item`, or `items.csv` and `artists.csv`, which have the same columns without types."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.rows import MAX_VALUE, MAX_VECTOR
from training.datasets.base import DatasetError, Located, Place, Record, Vector
from training.datasets.ready import modality_name
from training.datasets.records import Records, as_number, number
from training.datasets.tables import Aliases, find_columns, find_file, read_columns, read_table

ITEM_NAMES = ("item", "itemID", "item_id", "iid", "artist_id", "business_id", "venue_id")

_COLUMNS: Aliases = {
    "item": ITEM_NAMES,
    "title": ("title", "movie_title", "name", "item_name"),
    "text": ("text", "description", "overview", "plot", "tags"),
    "categories": ("categories", "category", "genres", "genre", "class"),
}
_PARTED = re.compile(r"[,|]")
_AROUND = "[]'\" \t"

Row = Mapping[str, str]


class ItemTable:
    """A table of items; `columns` has the type of each where the header names it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.columns = read_columns(file)
        self._found = find_columns(self.columns, _COLUMNS)
        if "item" not in self._found:
            raise Place(file, 1).error(f"the column {' or '.join(ITEM_NAMES)} is missing")

    def described(self, records: Records) -> dict[str, Located[Row]]:
        """The rows by item; a row that stands there again is merged and counted.

        Raises:
            DatasetError: a row is bad, or an item has two that differ.
        """
        rows: dict[str, Located[Row]] = {}
        for place, row in read_table(self.file, (self._found["item"],)):
            key = row[self._found["item"]]
            if key not in rows:
                rows[key] = Located(place, row)
            elif rows[key].row == row:
                records.tally.left_out["repeated rows of items, merged"] += 1
            else:
                raise place.error(f"the item {key!r} stands there twice, and not alike")
        return rows

    def item(self, key: str, row: Row, place: Place, ready: Mapping[str, Any], records: Records) -> Record | None:
        """An item's body: title, text and categories, `float_seq` columns as ready features, the rest as metadata.

        A text goes into the metadata where the item has ready features of the modality text.

        Raises:
            DatasetError: a feature is no list of numbers.
        """
        modalities = {**ready, **self._vectors(row, place)}
        used = {self._found[name] for name in ("item", "title", "categories") if name in self._found}
        if "text" in self._found and "text" not in modalities:
            used.add(self._found["text"])
            modalities["text"] = records.text(row[self._found["text"]])
        return records.item(
            key,
            title=row[self._found["title"]] if "title" in self._found else "",
            modalities=modalities,
            categories=self._categories(row),
            metadata={name: self._value(name, row[name]) for name in self._rest(used)},
        )

    def _rest(self, used: set[str]) -> list[str]:
        return [name for name, kind in self.columns.items() if name and name not in used and kind != "float_seq"]

    def _vectors(self, row: Row, place: Place) -> dict[str, dict[str, Vector]]:
        names = [name for name, kind in self.columns.items() if kind == "float_seq" and row[name]]
        return {modality_name(name): {"vector": _vector(row[name], name, place)} for name in names}

    def _categories(self, row: Row) -> list[str]:
        """Categories are parted by bars or commas, those of a `token_seq` without either by blanks."""
        if "categories" not in self._found:
            return []
        name = self._found["categories"]
        parts = _PARTED.split(row[name])
        if len(parts) == 1 and self.columns[name] == "token_seq":
            parts = row[name].split()
        return [part.strip(_AROUND) for part in parts]

    def _value(self, name: str, raw: str) -> str | float:
        value = as_number(raw) if self.columns[name] == "float" else None
        return raw if value is None else value  # a word where a number should be is no reason to lose the item


def find_item_table(source: Path) -> ItemTable | None:
    """The item table of a folder: `NAME.item`, `items.csv` or `artists.csv`, either also with `.gz`.

    Raises:
        DatasetError: there are several `.item` files, or the table is damaged.
    """
    named = source / f"{source.resolve().name}.item"
    tables = [named] if named.is_file() else sorted(file for file in source.glob("*.item") if file.is_file())
    if len(tables) > 1:
        raise DatasetError(f"{source} holds several item files ({', '.join(file.name for file in tables)})")
    file = tables[0] if tables else find_file(source, "items.csv", "artists.csv")
    return None if file is None else ItemTable(file)


def _vector(raw: str, name: str, place: Place) -> Vector:
    values = np.array([number(value, name, place) for value in raw.replace(",", " ").split()], dtype=np.float64)
    if not 1 <= len(values) <= MAX_VECTOR or np.abs(values).max() > MAX_VALUE:
        raise place.error(f"{name} must be 1 to {MAX_VECTOR} numbers between -1e6 and 1e6")
    return values.astype(np.float32)
