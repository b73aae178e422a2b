"""The Amazon reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.sources import DATA, PICTURE, events_of, put, put_lines
from training.datasets import READERS, Dataset, DatasetError, load_dataset
from training.datasets.prepared import read_info

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
    put_lines(folder / name, rows)


def prepared(source: Path, out: Path) -> Dataset:
    READERS["amazon"].prepare(source, out)
    return load_dataset(out, min_rating=None)


def test_reviews_and_metadata(tmp_path: Path) -> None:
    write(tmp_path / "shop", "reviews_Shop_5.json.gz", REVIEWS)
    write(tmp_path / "shop", "meta_Shop.json", META)
    dataset = prepared(tmp_path / "shop", tmp_path / "out")

    assert dataset.name == "shop"
    assert dataset.items.ids == ["B2", "unreviewed", "0001"]  # ids are texts, and what nobody reviewed is a new item
    assert dataset.records[0]["categories"] == ["Music", "Straps"]
    assert list(dataset.content("text")) == ["A strap\nHolds it.", "Nobody has one", None]
    assert dataset.interactions.value.tolist() == [5, 2, 1]
    assert dataset.interactions.texts == {0: "good\nDoes what it should.", 2: "Broke."}
    np.testing.assert_array_equal(dataset.interactions.timestamp, [1393545600, np.nan, 1393545601])
    assert dataset.rating_split is None


def test_the_later_edition_and_python_literals(tmp_path: Path) -> None:
    write(tmp_path / "shop", "reviews.jsonl", REVIEWS)
    python = "{'asin': '0001', 'title': \"It's a pick\", 'description': ['Thin.', ''], 'category': ['Music', 'Picks']}"
    write(tmp_path / "shop", "meta.jsonl", [python])
    put(tmp_path / "shop" / "images" / "0001.jpg", PICTURE)
    dataset = prepared(tmp_path / "shop", tmp_path / "out")

    assert dataset.content("text")[0] == "It's a pick\nThin."
    assert list(dataset.content("image")) == [PICTURE, None]
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
        ({**REVIEWS[0], "unixReviewTime": 1393545600000}, "line 4: unixReviewTime must be in seconds since 1970"),
        ({**REVIEWS[0], "unixReviewTime": True}, "line 4: unixReviewTime is no time: True"),
        ({**REVIEWS[0], "reviewerID": None}, "line 4: reviewerID must be a text, got None"),
        ({"user_id": "u", "rating": 3}, "line 4: parent_asin must be a text, got None"),
        ({"user_id": "u", "parent_asin": "p", "rating": "3"}, "line 4: rating must be a number from 1 to 5, got '3'"),
        ("{" * 100_000, "line 4: not valid JSON"),
        ("[" * 2000 + "]" * 2000, "line 4: not valid JSON"),
        ('{"overall": NaN}', "line 4: not valid JSON"),
        ("{'a': b'x', 'reviewerID': {1, 2}}", "line 4: asin must be a text, got None"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: Any, message: str) -> None:
    write(tmp_path / "shop", "reviews.json", [*REVIEWS, row])
    with pytest.raises(DatasetError, match=r"reviews\.json, ") as error:
        prepared(tmp_path / "shop", tmp_path / "out")
    assert message in str(error.value)


# --- editions as they are published ------------------------------------------------------------------------------


def test_2014(tmp_path: Path) -> None:
    """Reviews in JSON, metadata as Python literals with paths of categories."""
    write(
        tmp_path / "shop",
        "reviews_Musical_Instruments_5.json.gz",
        [
            '{"reviewerID": "A2IBPI20UZIR0U", "asin": "1384719342", "reviewerName": "cassandra tu \\"Yeah\\"", '
            '"helpful": [0, 0], "reviewText": "Not much to write.", "overall": 5.0, "summary": "good", '
            '"unixReviewTime": 1393545600, "reviewTime": "02 28, 2014"}'
        ],
    )
    write(
        tmp_path / "shop",
        "meta_Musical_Instruments.json.gz",
        [
            "{'asin': '1384719342', 'description': \"It's a filter\", 'title': 'Pop \\d', 'price': 8.15, "
            "'imUrl': 'http://x', 'related': {'also_viewed': ['B1']}, 'salesRank': {'Music': 1}, "
            "'categories': [['Musical Instruments', 'Microphones'], ['Musical Instruments']], 'brand': 'Norr'}"
        ],
    )
    dataset = prepared(tmp_path / "shop", tmp_path / "out")
    assert events_of(dataset) == [("A2IBPI20UZIR0U", "1384719342", "review", 5.0, 1393545600.0)]
    assert dataset.interactions.texts == {0: "good\nNot much to write."}
    assert dataset.records == [
        {
            "id": "1384719342",
            "title": "Pop \\d",
            "modalities": {"text": "Pop \\d\nIt's a filter"},
            "categories": ["Musical Instruments", "Microphones"],
            "metadata": {"brand": "Norr", "price": 8.15},
        }
    ]


def test_2018(tmp_path: Path) -> None:
    """Files named by the category alone, repeated rows, lists for descriptions, verified, style and images."""
    review = {
        "overall": 4.0,
        "vote": "2",
        "verified": True,
        "reviewTime": "09 22, 2016",
        "reviewerID": "A1",
        "asin": "B017",
        "style": {"Size:": " 9"},
        "reviewerName": "ron",
        "reviewText": "always fine",
        "summary": "Four Stars",
        "unixReviewTime": 1474502400,
        "image": ["https://x/a.jpg"],
    }
    write(tmp_path / "shop", "AMAZON_FASHION_5.json.gz", [review, review, {**review, "overall": 0.0}])
    meta = {
        "asin": "B017",
        "title": "A shoe",
        "brand": "Norr",
        "feature": ["Leather", "Import"],
        "description": ["For feet.", ""],
        "category": ["Fashion", "Shoes"],
        "price": "$10.99",
        "rank": "1,2 in Fashion (",
        "also_buy": ["B1"],
        "imageURL": ["https://x/b.jpg"],
        "main_cat": "Fashion",
        "details": {"x": "y"},
    }
    write(tmp_path / "shop", "meta_AMAZON_FASHION.json.gz", [meta, {**meta, "rank": "other"}])
    dataset = prepared(tmp_path / "shop", tmp_path / "out")
    assert events_of(dataset) == [
        ("A1", "B017", "review", 4.0, 1474502400.0),
        ("A1", "B017", "review", None, 1474502400.0),
    ]
    assert list(dataset.content("text")) == ["A shoe\nLeather\nImport\nFor feet."]
    assert dataset.records[0]["metadata"] == {"brand": "Norr", "price": "$10.99", "main_cat": "Fashion"}
    info = read_info(tmp_path / "out")
    assert info.left_out == {
        "metadata of a product that was described before": 1,
        "repeated rows of feedback, merged": 1,
    }
    assert info.changed == {"reviews of 0 stars, kept without a value": 1}


def test_2023(tmp_path: Path) -> None:
    """Reviews of variants by parent_asin with milliseconds, pictures as dicts, metadata with features and lists."""
    review = {
        "rating": 5.0,
        "title": "Such a scent",
        "text": "This spray is nice.",
        "images": [{"small_image_url": "https://x/s.jpg", "attachment_type": "IMAGE"}],
        "asin": "B00YQ6X8EO",
        "parent_asin": "B00PARENT",
        "user_id": "AGKHLEW2SOWHNMFQIJGBECAF7INQ",
        "timestamp": 1588687728923,
        "helpful_vote": 0,
        "verified_purchase": True,
    }
    write(tmp_path / "shop", "All_Beauty.jsonl.gz", [review, {**review, "timestamp": 0, "text": "", "title": ""}])
    meta = {
        "main_category": "All Beauty",
        "title": "Howard",
        "average_rating": 4.8,
        "rating_number": 10,
        "features": ["Smooth", "Long"],
        "description": ["A spray."],
        "price": None,
        "images": [{"thumb": "https://x", "large": "https://y", "variant": "MAIN", "hi_res": None}],
        "videos": [],
        "store": "Howard Products",
        "categories": [],
        "details": {"Package": "7 x 1"},
        "parent_asin": "B00PARENT",
        "bought_together": None,
    }
    write(
        tmp_path / "shop", "meta_All_Beauty.jsonl.gz", [meta, {**meta, "parent_asin": "B00NEW", "categories": ["Hair"]}]
    )
    for name in ("B00PARENT.png", "B00NEW.webp"):
        put(tmp_path / "shop" / "images" / name, PICTURE)
    dataset = prepared(tmp_path / "shop", tmp_path / "out")
    assert events_of(dataset) == [
        ("AGKHLEW2SOWHNMFQIJGBECAF7INQ", "B00PARENT", "review", 5.0, 1588687728.923),
        ("AGKHLEW2SOWHNMFQIJGBECAF7INQ", "B00PARENT", "review", 5.0, 0.0),
    ]
    assert dataset.interactions.texts == {0: "Such a scent\nThis spray is nice."}
    assert [record["categories"] for record in dataset.records] == [["All Beauty"], ["Hair"]]
    assert dataset.records[0]["metadata"] == {"store": "Howard Products", "main_category": "All Beauty"}
    assert dataset.content("text")[0] == "Howard\nSmooth\nLong\nA spray."
    assert list(dataset.content("image")) == [PICTURE, PICTURE]


def test_half_characters_are_replaced_and_counted(tmp_path: Path) -> None:
    texts = '"reviewText": "so nice \\ud83d", "summary": "\\ude00 \\ud83d\\ude00"'
    cut = f'{{"reviewerID": "A1", "asin": "B2", "overall": 5, {texts}}}'
    write(tmp_path / "shop", "reviews.json", [*REVIEWS, cut])
    write(
        tmp_path / "shop",
        "meta.json",
        ["{'asin': 'B2', 'title': 'cut \\ud83d', 'description': 'whole \\ud83d\\ude00'}"],
    )
    dataset = prepared(tmp_path / "shop", tmp_path / "out")
    assert dataset.interactions.texts[3] == "\ufffd 😀\nso nice \ufffd"
    assert dataset.content("text")[0] == "cut \ufffd\nwhole 😀"
    told = "texts with half characters (cut surrogate pairs), replaced by U+FFFD"
    assert read_info(tmp_path / "out").changed[told] == 4  # two of the review, the title, and the pair in two halves


def test_what_is_too_long_is_cut(tmp_path: Path) -> None:
    write(tmp_path / "shop", "reviews.json", [{**REVIEWS[0], "reviewText": "x" * 30_000}])
    meta = {
        "asin": "0001",
        "title": "t" * 2000,
        "description": "d" * 30_000,
        "category": [*(f"c{number}" for number in range(40)), "c" * 200, "  ", "c1"],
        "brand": "b" * 30_000,
    }
    write(
        tmp_path / "shop",
        "meta.json",
        [meta, {"asin": "B9", "title": " ", "description": [" ", 5], "category": ["a\tb"]}],
    )
    dataset = prepared(tmp_path / "shop", tmp_path / "out")
    record = dataset.records[0]
    assert (len(record["title"]), len(record["modalities"]["text"])) == (1000, 20_000)
    assert record["categories"] == [f"c{number}" for number in range(32)]
    assert dataset.records[1] == {"id": "B9", "title": None, "modalities": {}, "categories": ["a b"], "metadata": {}}
    info = read_info(tmp_path / "out")
    assert info.changed == {
        "texts cut at 20,000 characters": 3,
        "titles cut at 1,000 characters": 1,
        "categories cut at 128 characters": 1,
    }
    assert info.left_out == {"categories of an item beyond the first 32": 9}


def test_users_and_products_whose_ids_are_none(tmp_path: Path) -> None:
    rows = [*REVIEWS, {**REVIEWS[0], "asin": "a b"}, {**REVIEWS[0], "reviewerID": "a/b"}]
    write(tmp_path / "shop", "reviews.json", rows)
    dataset = prepared(tmp_path / "shop", tmp_path / "out")
    assert len(dataset.interactions) == len(REVIEWS)
    assert sum(read_info(tmp_path / "out").left_out.values()) == 3


def test_no_reviews_and_damaged_ones(tmp_path: Path) -> None:
    write(tmp_path / "shop", "meta.json", META)
    with pytest.raises(DatasetError, match=r"holds no reviews: reviews\*\.json"):
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
        ({"train": [0], "valid": [], "test": [1]}, "names 2 rows, the source has 3"),
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
