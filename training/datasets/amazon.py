"""Amazon reviews as McAuley's group publishes them: `reviews*` and optionally `meta*`, one object a line.

Both editions' field names are read. A review's text is its summary, as the first line, and its body. Items are those
that have reviews; `images/<asin>.jpg` beside the files becomes an item's picture. `rating_split_*.npz` (`train`,
`valid`, `test`: row numbers into the reviews) is kept as the dataset's rating split.
"""

from __future__ import annotations

import ast
import base64
import gzip
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from training.datasets.base import DatasetError, Progress, Record
from training.datasets.prepared import DatasetInfo, write_dataset
from training.datasets.tables import read_rating_split

ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
METADATA = ("brand", "price")


def prepare(source: Path, out: Path, progress: Progress | None = None) -> DatasetInfo:
    """Amazon reviews and metadata.

    Raises:
        DatasetError: a file is absent or a row is bad; names file and line.
    """
    reviews = _files(source, "reviews")
    if not reviews:
        raise DatasetError(f"{source} holds no reviews*.json, .jsonl or either with .gz")
    reviewed = dict.fromkeys(_key(row, "asin", file, line) for file in reviews for line, row in _rows(file))
    return write_dataset(
        out,
        _items(source, reviewed),
        (_event(row, file, line) for file in reviews for line, row in _rows(file)),
        name=source.resolve().name,
        source="Amazon reviews, the reviewed items",
        rating_split=read_rating_split(source),
        progress=progress,
    )


def _files(source: Path, prefix: str) -> list[Path]:
    return sorted(file for file in source.glob(f"{prefix}*") if file.name.endswith(ENDINGS))


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    opener = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rb") as stream:
            for line, raw in enumerate(stream, start=1):
                if raw.strip():
                    yield line, _object(raw, file, line)
    except (OSError, EOFError) as error:
        raise DatasetError(f"{file.name} cannot be read: {error}") from None


def _object(raw: bytes, file: Path, line: int) -> dict[str, Any]:
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            row = ast.literal_eval(raw.decode("utf-8"))  # metadata of the 2014 edition is Python, not JSON
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise DatasetError(f"{file.name}, line {line}: not valid JSON") from None
    if not isinstance(row, dict):
        raise DatasetError(f"{file.name}, line {line}: must be a JSON object")
    return row


def _key(row: dict[str, Any], name: str, file: Path, line: int) -> str:
    key = row.get(name)
    if not isinstance(key, str) or not key:
        raise DatasetError(f"{file.name}, line {line}: {name} must be a text, got {key!r}")
    return key


def _event(row: dict[str, Any], file: Path, line: int) -> Record:
    value, moment = row.get("overall"), row.get("unixReviewTime")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 5:
        raise DatasetError(f"{file.name}, line {line}: overall must be a number from 1 to 5, got {value!r}")
    event: Record = {
        "user": _key(row, "reviewerID", file, line),
        "item": _key(row, "asin", file, line),
        "type": "review",
        "value": float(value),
    }
    text = "\n".join(part for part in (_text(row.get("summary")), _text(row.get("reviewText"))) if part)
    if text:
        event["text"] = text
    if moment is not None:
        try:
            event["timestamp"] = datetime.fromtimestamp(moment, UTC).isoformat()
        except (TypeError, ValueError, OverflowError, OSError):
            raise DatasetError(f"{file.name}, line {line}: unixReviewTime is no time: {moment!r}") from None
    return event


def _items(source: Path, reviewed: dict[str, None]) -> Iterator[Record]:
    """Bodies of the reviewed items: those with metadata in its order, then the others."""
    left = dict(reviewed)
    for file in _files(source, "meta"):
        for line, row in _rows(file):
            key = _key(row, "asin", file, line)
            if key in left:
                del left[key]
                yield _item(key, row, source)
    for key in left:
        yield _item(key, {}, source)


def _item(key: str, row: dict[str, Any], source: Path) -> Record:
    title, description = _text(row.get("title")), _text(row.get("description"))
    modalities: Record = {}
    if description:
        modalities["text"] = f"{title}\n{description}" if title else description
    picture = source / "images" / f"{key}.jpg"
    if picture.is_file():
        modalities["image"] = {"base64": base64.b64encode(picture.read_bytes()).decode("ascii")}
    return {
        "id": key,
        "title": title or None,
        "modalities": modalities,
        "categories": _categories(row.get("categories") or row.get("category") or []),
        "metadata": {name: row[name] for name in METADATA if row.get(name)},
    }


def _text(value: object) -> str:
    """A text, or the lines of a list of texts, which the later edition has."""
    if isinstance(value, list):
        return "\n".join(filter(None, map(_text, value)))
    return value.replace("\0", " ").strip() if isinstance(value, str) else ""


def _categories(value: object) -> list[str]:
    """Each category once: the earlier edition lists paths, the later one a single path."""
    if not isinstance(value, list):
        return []
    flat = [name for entry in value for name in (entry if isinstance(entry, list) else [entry])]
    return list(dict.fromkeys(name.strip() for name in flat if isinstance(name, str) and name.strip()))
