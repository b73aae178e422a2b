"""Numbers, times and contents on their way into records."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.training.sources import PICTURE, put
from training.datasets import DatasetError
from training.datasets.base import Place
from training.datasets.records import (
    MAX_PICTURE,
    Records,
    in_scale,
    is_item_id,
    is_user_id,
    moment,
    number,
    whole_number,
)

PLACE = Place(Path("ratings.csv"), 7)


@pytest.mark.parametrize(("raw", "value"), [("3", 3), ("-1", -1), ("4.50", 4.5), (".5", 0.5), ("5.", 5), ("1e3", 1000)])
def test_numbers(raw: str, value: float) -> None:
    assert number(raw, "rating", PLACE) == value


@pytest.mark.parametrize("raw", ["", " ", "three", "3,5", "1_000", "nan", "inf", "1e999", "٣", "0x10", "--1", "1 2"])
def test_what_is_no_number(raw: str) -> None:
    with pytest.raises(DatasetError, match=r"^ratings.csv, line 7: rating must be a number, got "):
        number(raw, "rating", PLACE)


def test_whole_numbers() -> None:
    assert whole_number("881250949", "timestamp", PLACE) == 881250949
    for raw in ("881250949.0", "1e9", "", "9" * 400):
        with pytest.raises(DatasetError, match=r"line 7: timestamp must be a whole number, got "):
            whole_number(raw, "timestamp", PLACE)


def test_scales() -> None:
    assert [in_scale(stars, 0.5, 5, "rating", PLACE) for stars in (0.5, 2.75, 5)] == [1, 3, 5]
    assert in_scale(3.3, 1, 5, "rating", PLACE) == 3.3
    for stars in (0.4, 5.1, float("nan")):
        with pytest.raises(DatasetError, match=r"line 7: rating must lie between 0.5 and 5, got "):
            in_scale(stars, 0.5, 5, "rating", PLACE)


def test_moments() -> None:
    assert moment(0, "timestamp", PLACE) == "1970-01-01T00:00:00+00:00"
    assert moment(1.5, "timestamp", PLACE) == "1970-01-01T00:00:01.500000+00:00"
    assert moment(time.time() + 3600, "timestamp", PLACE)
    for seconds in (-1, 1609459200000, time.time() + 2 * 86_400, float("inf"), float("nan")):
        with pytest.raises(DatasetError, match=r"line 7: timestamp must be in seconds since 1970"):
            moment(seconds, "timestamp", PLACE)


def test_ids() -> None:
    assert all(map(is_item_id, ("1", "B00.x_y:z-", "x" * 128)))
    assert not any(map(is_item_id, ("", ".", "..", "a b", "a/b", "é", "x" * 129, "a\n")))
    assert all(map(is_user_id, ("1", "Zoë, the first", "x" * 128)))
    assert not any(map(is_user_id, ("", ".", "..", "a/b", "a\tb", "x" * 129, "a\n", "\ud83d")))


def test_texts() -> None:
    records = Records()
    assert records.text(" a\0b \ud83d\ude00 \ud83d ") == "a b 😀 \ufffd"
    assert records.text(" \u3000\n") == ""
    assert records.text("x" * 30, "words", 10) == "x" * 10
    assert sum(records.tally.changed.values()) == 2


def test_pictures(tmp_path: Path) -> None:
    records = Records()
    put(tmp_path / "a.webp", PICTURE)
    assert records.picture(tmp_path, "a") is not None
    assert records.picture(tmp_path, "b") is None
    assert records.picture(tmp_path / "deeper", "../a") is None
    put(tmp_path / "large.jpg", b"\0" * (MAX_PICTURE + 1))
    put(tmp_path / "broken.jpg", b"no picture")
    assert records.picture(tmp_path, "large") is records.picture(tmp_path, "broken") is None
    assert dict(records.tally.left_out) == {
        "pictures above 6,000,000 bytes": 1,
        "pictures that cannot be decoded": 1,
    }


def test_a_picture_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "posters" / "a.jpg", PICTURE)

    def denied(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(DatasetError, match=r"posters/a.jpg cannot be read: .*Permission denied"):
        Records().picture(tmp_path / "posters", "a")


def test_metadata() -> None:
    records = Records()
    item = records.item("a", metadata={"brand": " Norr\0 ", "none": None, "blank": " ", "price": 1.5})
    assert item is not None
    assert item["metadata"] == {"brand": "Norr", "price": 1.5}
    item = records.item("a", metadata={f"field {number}": "x" * 10_000 for number in range(7)})
    assert item is not None
    assert item["metadata"] == {}
    assert records.tally.left_out["metadata of an item above 64 KiB"] == 1
