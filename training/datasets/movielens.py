"""MovieLens 100K and 1M with overviews or plots as text and posters as pictures.

A source folder holds the ratings (`ratings.csv.gz` for 100K, `interactions.csv.gz` for 1M), `movies.csv.gz`,
`posters/<item>.jpg`, and optionally a fixed split (`split_*.csv.gz`), masks (`missing_*.npz`), `new_items.npy` and a
split of the ratings (`rating_split_*.npz`). That of 1M may hold two leave-one-out splits: one random interaction each
(`leave_one_out.npz`), and the published one of the last interactions (`ncf_test.csv.gz` with `ncf_negatives.npz`).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from training.datasets.base import LeaveOneOut, Progress, PublishedMask, Record
from training.datasets.prepared import DatasetInfo, mask_name, read_mask, write_dataset
from training.datasets.tables import load_arrays, read_rating_split, read_table

_YEAR = re.compile(r"\((\d{4})\)\s*$")


def prepare_100k(source: Path, out: Path, progress: Progress | None = None, *, page: bool = True) -> DatasetInfo:
    """MovieLens 100K: ratings with timestamps.

    Args:
        page: whether a film's text is all that its page says in words (title, genres, overview), or the overview alone
            with the title where there is none.

    Raises:
        DatasetError: a file is absent or a row is bad.
    """
    return _prepare(source, out, "ml-100k", source / "ratings.csv.gz", text="overview", page=page, progress=progress)


def prepare_1m(source: Path, out: Path, progress: Progress | None = None, *, page: bool = True) -> DatasetInfo:
    """MovieLens 1M: pairs without ratings and times, written as views.

    Args:
        page: as for `prepare_100k`, with plots.

    Raises:
        DatasetError: a file is absent or a row is bad.
    """
    return _prepare(source, out, "ml-1m", source / "interactions.csv.gz", text="plot", page=page, progress=progress)


def _prepare(
    source: Path, out: Path, name: str, ratings: Path, *, text: str, page: bool, progress: Progress | None
) -> DatasetInfo:
    rated = {row["item"] for _, row in read_table(ratings, ("user", "item"))}
    splits = sorted(source.glob("split_*.csv.gz"))
    return write_dataset(
        out,
        _items(source, rated, text, page),
        _feedback(ratings),
        name=name,
        source=f"MovieLens {name.removeprefix('ml-').upper()}, the rated films, with {text}s and posters",
        split=_split(splits[0]) if splits else None,
        masks={mask_name(file): _mask(file, rated) for file in sorted(source.glob("missing_*.npz"))},
        new_items=_new_items(source / "new_items.npy", rated),
        rating_split=read_rating_split(source),
        leave_one_out=_left_out(source),
        progress=progress,
    )


def _items(source: Path, rated: set[str], text: str, page: bool) -> Iterator[Record]:
    """Item bodies of the rated films: a film nobody rated has no place in the fixed splits and masks."""
    for _, row in read_table(source / "movies.csv.gz", ("item", "title", "genres", text)):
        if row["item"] in rated:
            yield _item(row, row[text].strip(), page, source / "posters" / f"{row['item']}.jpg")


def _item(row: Mapping[str, str], text: str, page: bool, poster: Path) -> Record:
    """One film. A text that is left out is the title."""
    genres = [genre for genre in row["genres"].split("|") if genre]
    words = [f"{part}." for part in (row["title"], ", ".join(genres)) if part] if page else []
    modalities: Record = {}
    if told := " ".join([*words, *([text] if text else [])]):
        modalities["text"] = told
    if poster.is_file():
        modalities["image"] = {"base64": base64.b64encode(poster.read_bytes()).decode("ascii")}
    year = _YEAR.search(row["title"])
    return {
        "id": row["item"],
        "title": row["title"],
        "modalities": modalities,
        "categories": genres,
        "metadata": {"year": int(year[1])} if year else {},
    }


def _feedback(ratings: Path) -> Iterator[Record]:
    for _, row in read_table(ratings, ("user", "item")):
        event: Record = {"user": row["user"], "item": row["item"], "type": "view"}
        if "rating" in row:
            event |= {"type": "rating", "value": float(row["rating"])}
        if "timestamp" in row:
            event["timestamp"] = datetime.fromtimestamp(int(row["timestamp"]), UTC).isoformat()
        yield event


def _split(file: Path) -> Iterator[tuple[str, str, str]]:
    for _, row in read_table(file, ("user", "item", "split")):
        yield row["user"], row["item"], row["split"]


def _mask(file: Path, rated: set[str]) -> PublishedMask:
    mask = read_mask(file)
    known = [item in rated for item in mask.items]
    items = tuple(item for item in mask.items if item in rated)
    return PublishedMask(items=items, columns=mask.columns, missing=mask.missing[known])


def _new_items(file: Path, rated: set[str]) -> list[str] | None:
    if not file.is_file():
        return None
    return [str(item) for item in load_arrays(file)["array"] if str(item) in rated]


def _left_out(source: Path) -> dict[str, LeaveOneOut]:
    found = {}
    if (file := source / "leave_one_out.npz").is_file():
        arrays = {name: ids.astype(str) for name, ids in load_arrays(file).items()}
        test, valid = (
            np.concatenate([arrays[f"{part}_item"][:, None], arrays[f"{part}_neg"]], axis=1)
            for part in ("test", "valid")
        )
        found["random"] = LeaveOneOut(arrays["users"], test, valid)
    if (file := source / "ncf_negatives.npz").is_file():
        owners = np.array([row["user"] for _, row in read_table(source / "ncf_test.csv.gz", ("user", "item"))])
        found["last"] = LeaveOneOut(owners, load_arrays(file)["items"].astype(str))
    return found
