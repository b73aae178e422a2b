"""The Amazon reader."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.test_datasets import DATA
from training.datasets import READERS, Dataset, DatasetError, load_dataset

REVIEWS: list[dict[str, Any]] = [
    {
        "reviewerID": "A1",
        "asin": "0001",
        "reviewText": "Does what it should.",
        "summary": "good",
        "overall": 5.0,
        "unixReviewTime": 1393545600,
    },
    {"reviewerID": "A2", "asin": "B2", "reviewText": "", "summary": "", "overall": 2},
    {"reviewerID": "A1", "asin": "B2", "reviewText": "Broke.", "overall": 1.0, "unixReviewTime": 1393545601},
]
META: list[dict[str, Any]] = [
    {"asin": "B2", "title": "A strap", "description": "Holds it.", "categories": [["Music", "Straps"], ["Music"]]},
    {"asin": "unreviewed", "title": "Nobody has one"},
]


def write(folder: Path, name: str, rows: list[Any]) -> None:
    folder.mkdir(exist_ok=True)
    raw = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows).encode()
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)


def prepared(source: Path, out: Path) -> Dataset:
    READERS["amazon"].prepare(source, out)
    return load_dataset(out)


def test_reviews_and_metadata(tmp_path: Path) -> None:
    write(tmp_path / "shop", "reviews_Shop_5.json.gz", REVIEWS)
    write(tmp_path / "shop", "meta_Shop.json", META)
    dataset = prepared(tmp_path / "shop", tmp_path / "out")

    assert dataset.name == "shop"
    assert dataset.items.ids == ["B2", "0001"]  # ids are texts, and what nobody reviewed is left out
    assert dataset.records[0]["categories"] == ["Music", "Straps"]
    assert dataset.content("text") == ["A strap\nHolds it.", None]
    assert dataset.interactions.value.tolist() == [5, 2, 1]
    assert dataset.interactions.texts == {0: "good\nDoes what it should.", 2: "Broke."}
    np.testing.assert_array_equal(dataset.interactions.timestamp, [1393545600, np.nan, 1393545601])
    assert dataset.rating_split is None


def test_the_later_edition_and_python_literals(tmp_path: Path) -> None:
    write(tmp_path / "shop", "reviews.jsonl", REVIEWS)
    python = "{'asin': '0001', 'title': \"It's a pick\", 'description': ['Thin.', ''], 'category': ['Music', 'Picks']}"
    write(tmp_path / "shop", "meta.jsonl", [python])
    (tmp_path / "shop" / "images").mkdir()
    (tmp_path / "shop" / "images" / "0001.jpg").write_bytes(b"picture")
    dataset = prepared(tmp_path / "shop", tmp_path / "out")

    assert dataset.content("text")[0] == "It's a pick\nThin."
    assert dataset.content("image") == [b"picture", None]
    assert dataset.records[0]["categories"] == ["Music", "Picks"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", "line 4: not valid JSON"),
        ("[1]", "line 4: must be a JSON object"),
        ({**REVIEWS[0], "asin": 7}, "line 4: asin must be a text, got 7"),
        ({**REVIEWS[0], "overall": 6.0}, "line 4: overall must be a number from 1 to 5, got 6.0"),
        ({**REVIEWS[0], "overall": None}, "line 4: overall must be a number from 1 to 5, got None"),
        ({**REVIEWS[0], "unixReviewTime": "soon"}, "line 4: unixReviewTime is no time: 'soon'"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: Any, message: str) -> None:
    write(tmp_path / "shop", "reviews.json", [*REVIEWS, row])
    with pytest.raises(DatasetError, match=r"reviews\.json, ") as error:
        prepared(tmp_path / "shop", tmp_path / "out")
    assert message in str(error.value)


def test_no_reviews_and_damaged_ones(tmp_path: Path) -> None:
    write(tmp_path / "shop", "meta.json", META)
    with pytest.raises(DatasetError, match=r"holds no reviews\*\.json"):
        prepared(tmp_path / "shop", tmp_path / "out")
    (tmp_path / "shop" / "reviews.json.gz").write_bytes(b"no gzip")
    with pytest.raises(DatasetError, match=r"reviews\.json\.gz cannot be read"):
        prepared(tmp_path / "shop", tmp_path / "out")


def test_a_published_split_of_the_ratings(tmp_path: Path) -> None:
    write(tmp_path / "shop", "reviews.json", REVIEWS)
    split = {"train": np.array([2]), "valid": np.array([0]), "test": np.array([1])}
    np.savez(tmp_path / "shop" / "rating_split_80_10_10.npz", **split)  # type: ignore[arg-type]
    dataset = prepared(tmp_path / "shop", tmp_path / "out")
    assert dataset.rating_split is not None
    assert dataset.rating_split.tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train": [0, 1, 2]}, "must hold the arrays train, valid, test"),
        ({"train": [0, 1], "valid": [1], "test": [2]}, "must name every row in exactly one part"),
        ({"train": [0], "valid": [], "test": [1]}, "names 2 rows, feedback.jsonl has 3"),
    ],
)
def test_a_split_that_does_not_fit(tmp_path: Path, arrays: dict[str, list[int]], message: str) -> None:
    write(tmp_path / "shop", "reviews.json", REVIEWS)
    rows = {name: np.array(part, dtype=np.int64) for name, part in arrays.items()}
    np.savez(tmp_path / "shop" / "rating_split.npz", **rows)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match=message):
        prepared(tmp_path / "shop", tmp_path / "out")


@pytest.mark.skipif(not (DATA / "musical-instruments").is_dir(), reason=f"no data in {DATA}")
def test_musical_instruments(tmp_path: Path) -> None:
    dataset = prepared(DATA / "musical-instruments", tmp_path / "out")
    assert (len(dataset.users), len(dataset.items), len(dataset.interactions)) == (1429, 900, 10261)
    assert dataset.rating_split is not None
    assert np.bincount(dataset.rating_split).tolist() == [8208, 1026, 1027]
    assert dataset.items.row("1384719342") == 0
