"""Amazon reviews as McAuley's group publishes them (2014, 2018, 2023), one object a line.

Reviews are in `reviews*`, or else in whatever does not begin with `meta`; metadata, optionally, in `meta*`; either as
`.json` or `.jsonl`, also with `.gz`. A review's text is its summary, as the first line, and its body. Items are the
products of the metadata, also those that nobody has reviewed, and then those that only reviews name. A file
`images/<item>.jpg` (`.png`, `.webp`) becomes an item's picture. `rating_split_*.npz` (`train`, `valid`, `test`: row
numbers into the reviews) is kept as the dataset's rating split.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.feedback import HIGHEST, LOWEST
from training.datasets.base import DatasetError, Located, Place, Progress, Record
from training.datasets.prepared import DatasetInfo, write_dataset
from training.datasets.published import Published
from training.datasets.records import Records, moment
from training.datasets.tables import read_objects, read_rating_split

ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
METADATA = ("brand", "store", "price", "main_cat", "main_category")
_EXACT = 2**53  # whole numbers up to here survive any JSON reader


@dataclass(frozen=True, slots=True)
class Edition:
    """What an edition calls the fields of a review, and how many of its units of time make a second."""

    user: str
    item: str
    value: str
    title: str
    text: str
    time: str
    per_second: int = 1


_2018 = Edition("reviewerID", "asin", "overall", "summary", "reviewText", "unixReviewTime")  # and 2014
_2023 = Edition("user_id", "parent_asin", "rating", "title", "text", "timestamp", per_second=1000)


def prepare(source: Path, out: Path, progress: Progress | None = None) -> DatasetInfo:
    """Amazon reviews and metadata.

    Raises:
        DatasetError: a file is absent or a row is bad; names file and line.
    """
    reviews = _files(source, "reviews") or [file for file in _files(source) if not file.name.startswith("meta")]
    if not reviews:
        raise DatasetError(f"{source} holds no reviews: reviews*.json or .jsonl, or others than meta*, or with .gz")
    counted, uncounted = Records(), Records()  # the reviews are read twice
    reviewed = dict.fromkeys(_item_of(row, place) for file in reviews for place, row in _rows(file, uncounted))
    return write_dataset(
        out,
        _items(source, reviewed, counted),
        (Located(place, _event(row, place, counted)) for file in reviews for place, row in _rows(file, counted)),
        name=source.resolve().name,
        source=f"Amazon reviews, {', '.join(file.name for file in reviews)}",
        published=Published(rating_split=read_rating_split(source)),
        tally=counted.tally,
        progress=progress,
    )


def _files(source: Path, prefix: str = "") -> list[Path]:
    named = (file for file in source.glob(f"{prefix}*") if file.name.endswith(ENDINGS))
    return sorted(file for file in named if not file.name.startswith("."))


def _rows(file: Path, records: Records) -> Iterator[Located[dict[str, Any]]]:
    return read_objects(file, records.mended)


def _key(row: dict[str, Any], name: str, place: Place) -> str:
    key = row.get(name)
    if not isinstance(key, str) or not key:
        raise place.error(f"{name} must be a text, got {reprlib.repr(key)}")
    return key


# --- reviews -----------------------------------------------------------------------------------------------------


def _edition(row: dict[str, Any]) -> Edition:
    return _2018 if _2018.user in row or _2023.user not in row else _2023


def _item_of(row: dict[str, Any], place: Place) -> str:
    return _key(row, _edition(row).item, place)


def _event(row: dict[str, Any], place: Place, records: Records) -> Record | None:
    edition = _edition(row)
    parts = (_text(row.get(edition.title)), _text(row.get(edition.text)))
    return records.event(
        _key(row, edition.user, place),
        _item_of(row, place),
        "review",
        value=_value(row.get(edition.value), edition.value, place, records),
        text=records.text("\n".join(filter(None, parts))),
        timestamp=_timestamp(row.get(edition.time), edition, place),
    )


def _value(value: object, name: str, place: Place, records: Records) -> float | None:
    stars = _number(value)
    if stars == 0:
        records.tally.changed["reviews of 0 stars, kept without a value"] += 1
        return None
    if stars is None or not LOWEST <= stars <= HIGHEST:
        raise place.error(f"{name} must be a number from 1 to 5, got {reprlib.repr(value)}")
    return float(stars)


def _timestamp(value: object, edition: Edition, place: Place) -> str | None:
    if value is None:
        return None
    units = _number(value)
    if units is None:
        raise place.error(f"{edition.time} is no time: {reprlib.repr(value)}")
    return moment(units / edition.per_second, edition.time, place)


def _number(value: object) -> float | None:
    """A finite number that any reader of JSON reads alike, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _EXACT:
        return None
    return value


# --- products ----------------------------------------------------------------------------------------------------


def _items(source: Path, reviewed: dict[str, None], records: Records) -> Iterator[Located[Record | None] | Record]:
    """Bodies of the products: those with metadata in its order, then those that only reviews name."""
    seen: set[str] = set()
    for file in _files(source, "meta"):
        for place, row in _rows(file, records):
            key = _key(row, "parent_asin" if "parent_asin" in row else "asin", place)
            if key in seen:
                records.tally.left_out["metadata of a product that was described before"] += 1
            else:
                seen.add(key)
                yield Located(place, _item(key, row, source, records))
    for key in reviewed:
        if key not in seen and (item := _item(key, {}, source, records)) is not None:
            yield item


def _item(key: str, row: dict[str, Any], source: Path, records: Records) -> Record | None:
    title = _text(row.get("title"))
    description = "\n".join(filter(None, (_text(row.get(name)) for name in ("features", "feature", "description"))))
    categories = _categories(row.get("categories") or row.get("category")) or _categories([row.get("main_category")])
    return records.item(
        key,
        title=title,
        modalities={
            "text": records.text(f"{title}\n{description}" if title else description) if description else "",
            "image": records.picture(source / "images", key),
        },
        categories=categories,
        metadata={name: value for name in METADATA if (value := _plain(row.get(name)))},
    )


def _text(value: object) -> str:
    """A text, or the lines of a list of texts, which the later editions have."""
    if isinstance(value, list):
        return "\n".join(filter(None, map(_text, value)))
    return value.replace("\0", " ").strip() if isinstance(value, str) else ""


def _categories(value: object) -> list[str]:
    """The names of a list: the edition of 2014 lists paths, the later ones a single path."""
    if not isinstance(value, list):
        return []
    flat = [name for entry in value for name in (entry if isinstance(entry, list) else [entry])]
    return [name for name in flat if isinstance(name, str)]


def _plain(value: object) -> str | float | None:
    """A text or a number as it is; of anything else nothing."""
    return value if isinstance(value, str) else _number(value)
