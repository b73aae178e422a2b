"""Reading tables, JSON lines and arrays, with errors that name file and line."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from models.rows import parse_json
from training.datasets.base import SPLITS, DatasetError


def read_jsonl(file: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers (from 1) and values of a JSON lines file; blank lines are passed over.

    Raises:
        DatasetError: the file is absent or empty, or a line is not JSON.
    """
    if not file.is_file():
        raise DatasetError(f"{file} does not exist")
    empty = True
    with file.open("rb") as stream:
        for line, raw in enumerate(stream, start=1):
            if not raw.strip():
                continue
            try:
                value = parse_json(raw)
            except ValueError as error:
                raise DatasetError(f"{file.name}, line {line}: not valid JSON ({error})") from None
            empty = False
            yield line, value
    if empty:
        raise DatasetError(f"{file.name} is empty")


def read_table(
    file: Path, required: Sequence[str], rename: Mapping[str, str] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and rows of a comma- or tab-separated table with a header, gzipped if its name ends in .gz.

    `rename` maps column names of the file to those wanted.

    Raises:
        DatasetError: the file is absent or damaged, lacks a required column, or a row is short or long.
    """
    if not file.is_file():
        raise DatasetError(f"{file} does not exist")
    opener = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rt", newline="", encoding="utf-8") as stream:
            yield from _table_rows(stream, file.name, required, rename or {})
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{file.name} cannot be read as a table: {error}") from None


def _table_rows(
    stream: TextIO, name: str, required: Sequence[str], rename: Mapping[str, str]
) -> Iterator[tuple[int, dict[str, str]]]:
    header = stream.readline()
    delimiter = "\t" if "\t" in header else ","
    columns = [rename.get(column, column) for column in header.strip().split(delimiter)]
    absent = [column for column in required if column not in columns]
    if absent:
        raise DatasetError(f"{name}, line 1: the column {absent[0]} is missing")
    rows = csv.reader(stream, delimiter=delimiter)
    for row in rows:
        line = rows.line_num + 1
        if len(row) != len(columns):
            raise DatasetError(f"{name}, line {line}: {len(row)} columns, the header has {len(columns)}")
        yield line, dict(zip(columns, row, strict=True))


def load_arrays(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` (by name) or `.npy` file (under "array"); pickles are refused.

    Raises:
        DatasetError: the file is damaged or holds pickled objects.
    """
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"array": loaded}
        with loaded:
            return dict(loaded)
    except (ValueError, OSError, EOFError) as error:
        raise DatasetError(f"{file.name} cannot be read as plain NumPy arrays: {error}") from None


def read_rating_split(source: Path) -> NDArray[np.uint8] | None:
    """The split that `rating_split_*.npz` of a folder publishes: TRAIN, VALID or TEST of each rated event `[n]`.

    The file lists row numbers of the events under `train`, `valid` and `test`.

    Raises:
        DatasetError: the file is damaged, or a row stands in no part or in several.
    """
    file = next(iter(sorted(source.glob("rating_split*.npz"))), None)
    if file is None:
        return None
    arrays = load_arrays(file)
    if set(arrays) != set(SPLITS):
        raise DatasetError(f"{file.name} must hold the arrays {', '.join(SPLITS)}")
    rows = np.concatenate([arrays[name] for name in SPLITS])
    if not np.array_equal(np.sort(rows), np.arange(len(rows))):
        raise DatasetError(f"{file.name} must name every row in exactly one part")
    split = np.empty(len(rows), dtype=np.uint8)
    for part, name in enumerate(SPLITS):
        split[arrays[name]] = part
    return split
