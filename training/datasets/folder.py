"""The folder format of the multimodal recommendation literature.

`NAME.inter` (tab- or comma-separated; userID, itemID, x_label and optionally rating, timestamp; x_label 0, 1, 2 is
train, valid, test) or `interactions.csv[.gz]` (user, item, split); ready features as `<modality>_feat.npy`, row = item
id; masks as `missing*.npz` (`missing` bool `[n, M]`, optionally `columns`); optionally `new_items.npy`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.feedback import AUTO
from training.datasets.base import SPLITS, DatasetError, Progress, PublishedMask, Record
from training.datasets.prepared import DatasetInfo, mask_name, write_dataset
from training.datasets.tables import load_arrays, read_table

_NAMES = {"userID": "user", "user_id": "user", "itemID": "item", "item_id": "item", "x_label": "split"}
_COLUMNS = ("text", "image", "audio")  # the order of published masks that do not name their columns


def prepare(source: Path, out: Path, progress: Progress | None = None) -> DatasetInfo:
    """Read a folder of interactions and ready features.

    Raises:
        DatasetError: files are absent, of the wrong shape, hold pickles or values that are not finite, or disagree.
    """
    table = _interactions_file(source)
    features = _features(source)
    n_items = len(next(iter(features.values())))
    has_split = _has_split(table)
    return write_dataset(
        out,
        _items(features),
        _feedback(table, n_items),
        name=source.resolve().name,
        source=f"{table.name} with ready {', '.join(features)} features",
        split=_split(table) if has_split else None,
        min_rating=None if has_split else AUTO,  # a published split lists what counts, whatever its rating
        masks={mask_name(file): _mask(file, n_items) for file in sorted(source.glob("missing*.npz"))},
        new_items=_new_items(source / "new_items.npy"),
        progress=progress,
    )


def _interactions_file(source: Path) -> Path:
    named = source / f"{source.resolve().name}.inter"
    tables = sorted(source.glob("*.inter"))
    candidates = [named] if named.is_file() else tables or sorted(source.glob("interactions.csv*"))
    if not candidates:
        raise DatasetError(f"{source} holds neither a NAME.inter nor an interactions.csv file")
    if len(candidates) > 1:
        raise DatasetError(f"{source} holds several interaction files ({', '.join(file.name for file in candidates)})")
    return candidates[0]


def _features(source: Path) -> dict[str, NDArray[Any]]:
    features: dict[str, NDArray[Any]] = {}
    for file in sorted(source.glob("*_feat.npy")):
        array = load_arrays(file)["array"]
        if array.ndim != 2 or array.dtype.kind != "f":
            raise DatasetError(f"{file.name} must be floats [items, dim], got {array.dtype}{list(array.shape)}")
        if not np.isfinite(array).all():
            raise DatasetError(f"{file.name} holds values that are not finite")
        features[file.name.removesuffix("_feat.npy")] = array
    if not features:
        raise DatasetError(f"{source} holds no <modality>_feat.npy file")
    if len({len(array) for array in features.values()}) > 1:
        sizes = ", ".join(f"{name} {len(array)}" for name, array in features.items())
        raise DatasetError(f"the feature files of {source} disagree on the number of items ({sizes})")
    return features


def _items(features: Mapping[str, NDArray[Any]]) -> Iterator[Record]:
    for row in range(len(next(iter(features.values())))):
        vectors = {name: {"vector": array[row].astype(np.float32)} for name, array in features.items()}
        yield {"id": str(row), "modalities": vectors}


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    return read_table(table, ("user", "item"), rename=_NAMES)


def _feedback(table: Path, n_items: int) -> Iterator[Record]:
    known = set(map(str, range(n_items)))
    for line, row in _rows(table):
        if row["item"] not in known:
            raise DatasetError(
                f"{table.name}, line {line}: the item {row['item']!r} is none of the {n_items} rows of the features"
            )
        try:
            yield _event(row)
        except (ValueError, OverflowError):
            raise DatasetError(f"{table.name}, line {line}: rating and timestamp must be numbers") from None


def _event(row: Mapping[str, str]) -> Record:
    event: Record = {"user": row["user"], "item": row["item"], "type": "view"}
    if row.get("rating"):
        event |= {"type": "rating", "value": float(row["rating"])}
    if row.get("timestamp"):
        event["timestamp"] = datetime.fromtimestamp(float(row["timestamp"]), UTC).isoformat()
    return event


def _has_split(table: Path) -> bool:
    return any("split" in row for _, row in islice(_rows(table), 1))


def _split(table: Path) -> Iterator[tuple[str, str, str]]:
    numbered = {str(number): name for number, name in enumerate(SPLITS)}
    for _, row in _rows(table):
        yield row["user"], row["item"], numbered.get(row["split"], row["split"])


def _mask(file: Path, n_items: int) -> PublishedMask:
    arrays = load_arrays(file)
    missing = arrays.get("missing")
    if missing is None or missing.ndim != 2 or len(missing) != n_items:
        raise DatasetError(f"{file.name} must hold an array `missing` of {n_items} items")
    columns = tuple(map(str, arrays["columns"])) if "columns" in arrays else _COLUMNS[: missing.shape[1]]
    return PublishedMask(items=tuple(map(str, range(n_items))), columns=columns, missing=missing)


def _new_items(file: Path) -> list[str] | None:
    return [str(item) for item in load_arrays(file)["array"]] if file.is_file() else None
