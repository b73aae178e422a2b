"""Sources of data as others publish them, in small, and what the readers make of them."""

from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.feedback import EVENT_TYPES
from training.datasets import READERS, Dataset, load_dataset
from training.datasets.prepared import DatasetInfo, read_info

DATA = Path(os.environ.get("LACUNA_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
Event = tuple[str, str, str, float | None, float | None]


def png() -> bytes:
    """A small picture."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(stream, "PNG")
    return stream.getvalue()


PICTURE = png()


def put(file: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    """Write a file, gzipped if its name ends in .gz."""
    file.parent.mkdir(parents=True, exist_ok=True)
    raw = content.encode(encoding) if isinstance(content, str) else content
    file.write_bytes(gzip.compress(raw) if file.suffix == ".gz" else raw)
    return file


def put_lines(file: Path, rows: list[Any]) -> Path:
    """Write JSON lines; texts stand as they are."""
    return put(file, "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))


def prepared(reader: str, source: Path, out: Path) -> tuple[Dataset, DatasetInfo]:
    """What a reader makes of a source, loaded again with every rating counting."""
    READERS[reader].prepare(source, out)
    return load_dataset(out, min_rating=None), read_info(out)


def events_of(dataset: Dataset) -> list[Event]:
    """(user, item, type, value, epoch seconds) of every event, None where there is none."""
    told = dataset.interactions
    return [
        (
            dataset.users.id(told.user[row]),
            dataset.items.id(told.item[row]),
            EVENT_TYPES[told.type[row]],
            None if np.isnan(told.value[row]) else float(told.value[row]),
            None if np.isnan(told.timestamp[row]) else float(told.timestamp[row]),
        )
        for row in range(len(told))
    ]


def real(name: str) -> Path:
    """A folder of real data; the test is skipped where it is not."""
    if not (DATA / name).is_dir():
        pytest.skip(f"the dataset {name} is not on this machine (LACUNA_TEST_DATA names its folder)")
    return DATA / name
