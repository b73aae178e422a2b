"""Lacuna's own files: `items.jsonl` and `feedback.jsonl`, streams of POST bodies, as the service exports them."""

from __future__ import annotations

from pathlib import Path

from models.feedback import AUTO, MinRating
from models.rows import MAX_TEXT_CHARS, read_pictures
from training.datasets.base import FEEDBACK, ITEMS, Progress, Record
from training.datasets.checks import ItemCheck, RowError
from training.datasets.prepared import (
    INFO,
    DatasetInfo,
    read_feedback,
    read_info,
    read_items,
    write_dataset,
)


def prepare(source: Path, out: Path, progress: Progress | None = None) -> DatasetInfo:
    """Check the files of the folder `source` and copy them; without `feedback.jsonl` there is no feedback.

    A name and `min_rating` are kept where the folder has a `dataset.json`.

    Raises:
        DatasetError: a file is absent or a row is bad; names file and line.
    """
    known = read_info(source) if (source / INFO).is_file() else None
    return prepare_files(
        source / ITEMS,
        source / FEEDBACK if (source / FEEDBACK).exists() else None,
        out,
        name=known.name if known else source.resolve().name,
        synthetic=known.synthetic if known else False,
        min_rating=known.min_rating if known else AUTO,
        progress=progress,
    )


def prepare_files(
    items: Path,
    feedback: Path | None,
    out: Path,
    *,
    name: str,
    synthetic: bool = False,
    min_rating: MinRating = AUTO,
    text_chars: int = MAX_TEXT_CHARS,
    progress: Progress | None = None,
) -> DatasetInfo:
    """Check two files of any name, or the items alone, and copy them into a prepared dataset; pictures given as paths
    are read.

    Raises:
        DatasetError: a file is absent or a row is bad; names file and line.
    """
    check = ItemCheck(pictures=True, text_chars=text_chars)

    def complete(row: object) -> Record:
        try:
            return check(read_pictures(row, items.parent))
        except ValueError as error:
            raise RowError(str(error)) from None

    return write_dataset(
        out,
        read_items(items, complete),
        (row for row, _ in (read_feedback(feedback, check.ids, text_chars) if feedback else ())),
        name=name,
        source=f"{items.name} and {feedback.name if feedback else 'no feedback'}",
        synthetic=synthetic,
        min_rating=min_rating,
        progress=progress,
    )
