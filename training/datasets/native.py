"""Lacuna's own files: `items.jsonl` and `feedback.jsonl`, streams of POST bodies, as the service exports them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from training.datasets.base import Progress, Record, decode_base64
from training.datasets.checks import ItemCheck
from training.datasets.prepared import (
    FEEDBACK,
    INFO,
    ITEMS,
    DatasetInfo,
    read_feedback,
    read_info,
    read_items,
    write_dataset,
)


def prepare(source: Path, out: Path, progress: Progress | None = None) -> DatasetInfo:
    """Check the files of the folder `source` and copy them.

    A name and `min_rating` are kept where the folder has a `dataset.json`.

    Raises:
        DatasetError: a file is absent or a row is bad; names file and line.
    """
    known = read_info(source) if (source / INFO).is_file() else None
    return prepare_files(
        source / ITEMS,
        source / FEEDBACK,
        out,
        name=known.name if known else source.resolve().name,
        synthetic=known.synthetic if known else False,
        min_rating=known.min_rating if known else None,
        progress=progress,
    )


def prepare_files(
    items: Path,
    feedback: Path,
    out: Path,
    *,
    name: str,
    synthetic: bool = False,
    min_rating: float | None = None,
    progress: Progress | None = None,
) -> DatasetInfo:
    """Check two files of any name and copy them into a prepared dataset.

    Raises:
        DatasetError: a file is absent or a row is bad; names file and line.
    """
    check = ItemCheck()
    return write_dataset(
        out,
        _decodable(read_items(items, check)),
        (row for row, _ in read_feedback(feedback, check.ids)),
        name=name,
        source=f"{items.name} and {feedback.name}",
        synthetic=synthetic,
        min_rating=min_rating,
        progress=progress,
    )


def _decodable(records: Iterable[Record]) -> Iterator[Record]:
    """The same records, refused where a file in them is not base64: better now than at the first training."""
    for record in records:
        for name, content in (record.get("modalities") or {}).items():
            if isinstance(content, dict) and "base64" in content:
                decode_base64(content["base64"], f"the item {record['id']!r}, modality {name!r}")
        yield record
