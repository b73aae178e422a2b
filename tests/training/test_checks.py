"""Rows of datasets: the same are taken that the service takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.sources import PICTURE
from tests.training.test_datasets import feedback, items, native, picture
from training.datasets import READERS, DatasetError, load_dataset

PAST, FUTURE = "1969-12-31T23:59:59Z", "2500-01-01T00:00:00Z"

BAD_ITEMS: list[tuple[Any, str]] = [
    ("{broken", "not valid JSON"),
    ('{"id": "x", "modalities": {"audio": {"vector": [NaN]}}}', "not valid JSON"),
    ('{"id": "x", "title": "\\ud83d"}', "not valid JSON"),
    ("[1]", "this has to be an object"),
    ({"id": "x", "titel": "typo"}, "titel: there is no such field"),
    ({"title": "no id"}, "id: Field required"),
    ({"id": "white space"}, "id: an id is 1 to 128 characters"),
    ({"id": "x\n"}, "id: an id is 1 to 128 characters"),
    ({"id": "x" * 129}, "id: an id is 1 to 128 characters"),
    ({"id": "."}, r"id: '.' and '..' cannot stand in a path"),
    ({"id": 7}, "id: Input should be a valid string"),
    ({"id": "a"}, "the item 'a' stands there twice"),
    ({"id": "x", "title": 3}, "title: Input should be a valid string"),
    ({"id": "x", "title": ""}, "title: this must hold more than blanks"),
    ({"id": "x", "title": "t" * 1001}, "title: String should have at most 1000"),
    ({"id": "x", "available": "yes"}, "available: Input should be a valid boolean"),
    ({"id": "x", "metadata": []}, "metadata: Input should be a valid dictionary"),
    ({"id": "x", "metadata": {"big": 2**64}}, "metadata: an integer beyond 64 bits"),
    ({"id": "x", "metadata": {"long": "x" * 70_000}}, "metadata: metadata may take 65536 bytes"),
    ({"id": "x", "categories": "shoes"}, "categories: Input should be a valid list"),
    ({"id": "x", "categories": None}, "categories: Input should be a valid list"),
    ({"id": "x", "categories": [1]}, "categories/0: Input should be a valid string"),
    ({"id": "x", "categories": ["two\nlines"]}, "categories/0: this is 1 to 128 characters"),
    ({"id": "x", "categories": [str(number) for number in range(33)]}, "categories: List should have at most 32"),
    ({"id": "x", "modalities": ["text"]}, "modalities: Input should be a valid dictionary"),
    ({"id": "x", "modalities": {"text": 5}}, "modalities/text: this has to be an object, or a text"),
    ({"id": "x", "modalities": {"text": " "}}, "this must hold more than blanks"),
    ({"id": "x", "modalities": {"text": "w" * 20_001}}, "this may have 20000 characters at most"),
    ({"id": "x", "modalities": {"text": {"text": "a", "vector": [1]}}}, "exactly one of text, base64, url and vector"),
    ({"id": "x", "modalities": {"image": {"url": "https://shop.example/b.jpg"}}}, "pictures are not fetched here"),
    ({"id": "x", "modalities": {"image": "photos/a.jpg"}}, r"'image': there is no file photos/a.jpg beside"),
    ({"id": "x", "modalities": {"image": "../a.jpg"}}, r"'image': ../a.jpg lies outside the folder"),
    ({"id": "x", "modalities": {"image": "/etc/a.png"}}, r"'image': /etc/a.png lies outside the folder"),
    (
        {"id": "x", "modalities": {"cover": "https://shop.example/b.jpg"}},
        "modalities/cover: this is where a picture lies",
    ),
    ({"id": "x", "modalities": {"image": "a red shoe"}}, "modalities/image: a picture is"),
    ({"id": "x", "modalities": {"image": {"base64": "!"}}}, "modality 'image': this is not base64"),
    ({"id": "x", "modalities": {"image": picture(b"no picture")}}, "modality 'image': the picture is neither JPEG"),
    ({"id": "x", "modalities": {"image": picture(PICTURE[:50])}}, "modality 'image': the picture is broken"),
    ({"id": "x", "modalities": {"sound": {"vector": [1]}}}, "has 1 numbers, those before have 2"),
    ({"id": "x", "modalities": {"sound": {"vector": []}}}, "sound/vector: List should have at least 1"),
    ({"id": "x", "modalities": {"sound": {"vector": [1, "2"]}}}, "vector/1: Input should be a valid number"),
    ({"id": "x", "modalities": {"sound": {"vector": [[1, 2], [3]]}}}, "vector/0: Input should be a valid number"),
    ({"id": "x", "modalities": {"sound": {"vector": [1, 1e39]}}}, "finite numbers between -1e6 and 1e6"),
    ({"id": "x", "modalities": {"sound": {"vector": 1}}}, "sound/vector: Input should be a valid list"),
]

BAD_EVENTS: list[tuple[dict[str, Any], str]] = [
    ({"item": "z"}, "the item 'z' is not in the catalogue"),
    ({"item": None}, "item: Input should be a valid string"),
    ({"user": ""}, "user: a user's id is 1 to 128 characters"),
    ({"user": "a\tb"}, "user: a user's id is 1 to 128 characters"),
    ({"user": "a/b"}, "user: a user's id is 1 to 128 characters"),
    ({"user": ".."}, r"user: '.' and '..' cannot stand in a path"),
    ({"user": 5}, "user: Input should be a valid string"),
    ({"type": "wish"}, "type: Input should be 'view', 'click'"),
    ({"type": ["view"]}, "type: Input should be 'view', 'click'"),
    ({"type": "rating"}, "a rating needs a value between 1 and 5"),
    ({"type": "rating", "value": 0}, "a rating needs a value between 1 and 5"),
    ({"type": "review", "value": 10}, "a review's value lies between 1 and 5"),
    ({"value": "4"}, "value: Input should be a valid number"),
    ({"value": True}, "value: Input should be a valid number"),
    ({"text": 1}, "text: Input should be a valid string"),
    ({"text": "w" * 20_001}, "text: this may have 20000 characters at most"),
    ({"recommendation_id": "r" * 200}, "recommendation_id: this is 1 to 128 characters"),
    ({"timestamp": "yesterday"}, "timestamp: a timestamp is RFC 3339"),
    ({"timestamp": 12}, "timestamp: a timestamp is RFC 3339"),
    ({"timestamp": "20260101T000000Z"}, "timestamp: a timestamp is RFC 3339"),
    ({"timestamp": "2026-01-01T00:00:00"}, "timestamp: a timestamp is RFC 3339 with an offset"),
    ({"timestamp": PAST}, "timestamp: a timestamp lies between 1970"),
    ({"timestamp": FUTURE}, "timestamp: a timestamp lies between 1970"),
    ({"when": "now"}, "when: there is no such field"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ITEMS)
def test_bad_item(tmp_path: Path, row: Any, message: str) -> None:
    source = native(tmp_path / "shop", [*items(), row], feedback())
    with pytest.raises(DatasetError, match=message) as caught:
        READERS["lacuna"].prepare(source, tmp_path / "out")
    assert str(caught.value).startswith("items.jsonl, line 4: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("change", "message"), BAD_EVENTS)
def test_bad_feedback(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"user": "u1", "item": "a", "type": "view", **change}
    source = native(tmp_path / "shop", items(), [feedback()[0], row])
    with pytest.raises(DatasetError, match=message) as caught:
        READERS["lacuna"].prepare(source, tmp_path / "out")
    assert str(caught.value).startswith("feedback.jsonl, line 2: ")


def test_contents_are_brought_into_one_form(tmp_path: Path) -> None:
    wrapped = picture()["base64"]
    wrapped = "\n".join(wrapped[at : at + 76] for at in range(0, len(wrapped), 76))
    rows = [
        {"id": "lines", "modalities": {"text": {"text": "as an object"}, "image": {"base64": wrapped}}},
        {"id": "uri", "modalities": {"image": {"base64": f"data:image/png;base64,{picture()['base64']}"}}},
        {"id": "url-in-a-text", "modalities": {"text": "https://shop.example/b.jpg"}},
    ]
    events = [{"user": "u", "item": "lines", "type": "like", "timestamp": "2026-01-01t00:00:00z"}]
    READERS["lacuna"].prepare(native(tmp_path / "shop", rows, events), tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    assert list(dataset.content("text")) == ["as an object", None, "https://shop.example/b.jpg"]
    assert list(dataset.content("image")) == [PICTURE, PICTURE, None]
    stored = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text("utf-8").splitlines()]
    assert stored[0]["modalities"] == {"text": "as an object", "image": picture()}
    np.testing.assert_allclose(dataset.interactions.timestamp, [1767225600])


def test_a_picture_given_as_a_path_is_read_beside_its_file(tmp_path: Path) -> None:
    rows = [{"id": "a", "modalities": {"image": "photos/a.PNG", "text": "photos/a.png"}}]
    source = native(tmp_path / "shop", rows, [{"user": "u", "item": "a", "type": "view"}])
    (source / "photos").mkdir()
    (source / "photos" / "a.PNG").write_bytes(PICTURE)
    READERS["lacuna"].prepare(source, tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    assert list(dataset.content("image")) == [PICTURE]
    assert list(dataset.content("text")) == ["photos/a.png"]
