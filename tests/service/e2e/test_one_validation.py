"""`lacuna prepare`, `POST`, a bundle's catalogue and `lacuna train --from-db` take the same rows."""

from __future__ import annotations

import base64
import json
import shutil
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import CATALOGUE_FEEDBACK, CATALOGUE_ITEMS
from service.domain import Event
from service.export import export
from tests.service.conftest import AUDIO
from tests.service.running import Running, base64_of, fresh_id, picture, settings_for, sign
from training.datasets import READERS, DatasetError

PNG = base64_of(picture())
WRAPPED = base64.encodebytes(picture()).decode()
VECTOR = [0.5] * AUDIO

# What is changed of a plain item and of a plain event, by what is odd about it.
ITEMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "empty title": {"title": ""},
    "blank title": {"title": " \t"},
    "no title": {"title": None},
    "title of 1,000": {"title": "T" * 1000},
    "title of 1,001": {"title": "T" * 1001},
    "title with NUL": {"title": "a\0b"},
    "title with a line break": {"title": "a\nb"},
    "number as title": {"title": 5},
    "unknown field": {"colour": "red"},
    "category of 128": {"categories": ["c" * 128]},
    "category of 129": {"categories": ["c" * 129]},
    "category of two lines": {"categories": ["a\nb"]},
    "empty category": {"categories": [""]},
    "32 categories": {"categories": [str(k) for k in range(32)]},
    "33 categories": {"categories": [str(k) for k in range(33)]},
    "the same category twice": {"categories": ["a", "a"]},
    "categories null": {"categories": None},
    "categories as text": {"categories": "shoes"},
    "metadata null": {"metadata": None},
    "metadata of 70 kB": {"metadata": {"a": "x" * 70_000}},
    "metadata 16 deep": {"metadata": json.loads('{"a":' * 16 + "1" + "}" * 16)},
    "metadata 18 deep": {"metadata": json.loads('{"a":' * 18 + "1" + "}" * 18)},
    "64-bit integer": {"metadata": {"n": 2**64 - 1}},
    "larger integer": {"metadata": {"n": 2**64}},
    "available as text": {"available": "yes"},
    "available null": {"available": None},
    "text": {"modalities": {"text": "hello"}},
    "text as object": {"modalities": {"text": {"text": "hello"}}},
    "text of 20,000": {"modalities": {"text": "w " * 10_000}},
    "text of 20,001": {"modalities": {"text": "w" * 20_001}},
    "blank text": {"modalities": {"text": "  "}},
    "text null": {"modalities": {"text": None}},
    "text as number": {"modalities": {"text": 5}},
    "text and vector": {"modalities": {"audio": {"text": "a", "vector": VECTOR}}},
    "picture": {"modalities": {"image": PNG}},
    "picture, wrapped": {"modalities": {"image": {"base64": WRAPPED}}},
    "picture as data URI": {"modalities": {"image": {"base64": f"data:image/png;base64,{PNG['base64']}"}}},
    "data URI without base64": {"modalities": {"image": {"base64": "data:image/png,abc"}}},
    "no base64": {"modalities": {"image": {"base64": "@@@"}}},
    "no picture": {"modalities": {"image": base64_of(b"hello")}},
    "half a picture": {"modalities": {"image": base64_of(picture()[:60])}},
    "picture as path": {"modalities": {"image": "photos/a.jpg"}},
    "picture as URL": {"modalities": {"image": "https://shop.example/b.jpg"}},
    "picture by URL": {"modalities": {"image": {"url": "https://shop.example/b.jpg"}}},
    "picture as text": {"modalities": {"image": "a red shoe"}},
    "vector": {"modalities": {"audio": {"vector": VECTOR}}},
    "vector of integers": {"modalities": {"audio": {"vector": [1] * AUDIO}}},
    "vector of texts": {"modalities": {"audio": {"vector": ["1"] * AUDIO}}},
    "vector with null": {"modalities": {"audio": {"vector": [None, *VECTOR[1:]]}}},
    "vector too large": {"modalities": {"audio": {"vector": [2e6, *VECTOR[1:]]}}},
    "vector beyond 32 bits": {"modalities": {"audio": {"vector": [1e39, *VECTOR[1:]]}}},
    "empty vector": {"modalities": {"audio": {"vector": []}}},
    "modality with a space": {"modalities": {"my sound": {"vector": VECTOR}}},
}
EVENTS: dict[str, dict[str, Any]] = {
    "user a/b": {"user": "a/b"},
    "user ..": {"user": ".."},
    "user of 128": {"user": "u" * 128},
    "user of 129": {"user": "u" * 129},
    "user with a tab": {"user": "a\tb"},
    "user as number": {"user": 5},
    "user with emoji": {"user": "\N{SPARKLES} Zoë"},
    "unknown type": {"type": "stare"},
    "like": {"type": "like"},
    "return with a value": {"type": "return", "value": 12.5},
    "year 1960": {"timestamp": "1960-01-01T00:00:00Z"},
    "the epoch": {"timestamp": "1970-01-01T00:00:00Z"},
    "year 2500": {"timestamp": "2500-01-01T00:00:00Z"},
    "basic date": {"timestamp": "20260101T000000Z"},
    "lower-case z": {"timestamp": "2026-01-01t00:00:00z"},
    "no offset": {"timestamp": "2026-01-01T00:00:00"},
    "nanoseconds": {"timestamp": "2026-01-01T00:00:00.123456789Z"},
    "February 30th": {"timestamp": "2026-02-30T00:00:00Z"},
    "epoch seconds": {"timestamp": 1_700_000_000},
    "timestamp null": {"timestamp": None},
    "rating 0": {"type": "rating", "value": 0},
    "rating 1": {"type": "rating", "value": 1},
    "rating 3.5": {"type": "rating", "value": 3.5},
    "rating 5.5": {"type": "rating", "value": 5.5},
    "rating without value": {"type": "rating"},
    "rating as text": {"type": "rating", "value": "4"},
    "review without value": {"type": "review", "text": "nice"},
    "review of 10": {"type": "review", "value": 10},
    "review of 20,001": {"type": "review", "text": "w" * 20_001},
    "blank review": {"type": "review", "text": " "},
    "view of value 99": {"value": 99},
    "recommendation_id of 200": {"recommendation_id": "r" * 200},
    "unknown field of an event": {"when": "now"},
}


def _is_prepared(folder: Path, item: object, event: object) -> bool:
    folder.mkdir()
    (folder / "items.jsonl").write_text(json.dumps(item) + "\n", "utf-8")
    (folder / "feedback.jsonl").write_text(json.dumps(event) + "\n", "utf-8")
    try:
        READERS["lacuna"].prepare(folder, folder / "out")
    except DatasetError:
        return False
    return True


def _is_posted(service: Running, item: object, event: object) -> bool:
    (row,) = service.post("/items/batch", {"items": [item]})["items"]
    if row["status"] != 201:
        assert row["status"] in (413, 422), row
        return False
    return not service.post("/feedback", {"feedback": [event]})["rejected"]


@pytest.mark.parametrize("odd", [*ITEMS, *EVENTS])
def test_prepare_and_post_take_the_same_rows(running: Running, tmp_path: Path, odd: str) -> None:
    item = {"id": fresh_id("odd"), "title": "Odd thing", **ITEMS.get(odd, {})}
    event = {
        "user": "odd-user", "item": item["id"], "type": "view", "timestamp": "2026-01-01T00:00:00Z",
        **EVENTS.get(odd, {}),
    }  # fmt: skip
    prepared = _is_prepared(tmp_path / "in", item, event)
    assert _is_posted(running, item, event) is prepared
    if prepared:
        running.ask("DELETE", f"/items/{item['id']}", status=204)


def test_the_odd_rows_are_of_both_kinds(tmp_path: Path) -> None:
    """The comparison above could not fail if all rows were refused, or all taken."""
    taken = 0
    for number, change in enumerate(ITEMS.values()):
        item = {"id": "a", "title": "A", **change}
        taken += _is_prepared(tmp_path / str(number), item, {"user": "u", "item": "a", "type": "view"})
    assert 15 < taken < len(ITEMS) - 15


def test_what_the_service_exports_is_prepared(alone: Running, tmp_path: Path) -> None:
    for name in ("text as object", "picture, wrapped", "picture as data URI", "64-bit integer", "vector"):
        alone.create(id=fresh_id("kept"), **{"title": "Kept thing", **ITEMS[name]})
    alone.run(export(alone.settings.database_url, tmp_path / "exported"))
    info = READERS["lacuna"].prepare(tmp_path / "exported", tmp_path / "out")
    assert info.counts.items == alone.get("/stats")["items"]


def test_rows_of_an_older_bundle_that_no_route_reaches_are_left_out_of_the_seed(
    plain_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(plain_bundle, bundle)
    items = [json.loads(line) for line in (bundle / CATALOGUE_ITEMS).read_text("utf-8").splitlines()]
    gone, features_of = items[3]["id"], items[4]["id"]
    items[3]["id"] = "."
    (bundle / CATALOGUE_ITEMS).write_text("".join(json.dumps(item) + "\n" for item in items), "utf-8")
    with (bundle / CATALOGUE_FEEDBACK).open("a") as stream:
        stream.write(json.dumps({"user": "a/b", "item": features_of, "type": "view"}) + "\n")
    sign(bundle, CATALOGUE_ITEMS, CATALOGUE_FEEDBACK)
    with Running(settings_for(bundle, tmp_path / "data", tmp_path / "lacuna.db")) as service:
        assert service.get("/stats")["items"] == len(items) - 1
        assert service.ask("GET", f"/items/{gone}", status=404)
        with Running(settings_for(plain_bundle, tmp_path / "data2", tmp_path / "whole.db")) as whole:
            np.testing.assert_array_equal(service.vector(features_of, "image"), whole.vector(features_of, "image"))
    assert "1 rows of the bundle's catalogue were left out: id: '.' and '..' cannot stand in a path" in caplog.text
    assert "1 rows of the bundle's catalogue were left out: user: a user's id is 1 to 128" in caplog.text


def test_what_no_route_took_before_is_still_erasable(alone: Running) -> None:
    odd = "a/b?c"
    alone.run(alone.engine.store.add_feedback([Event(odd, "demo-0001", "view", datetime(2026, 1, 1, tzinfo=UTC))]))
    alone.ask("DELETE", "/users/a%2Fb%3Fc", status=204)
    alone.ask("DELETE", "/users/a%2Fb%3Fc", status=404)
    assert alone.run(alone.engine.store.get_user(odd)) is None
    alone.ask("DELETE", "/items/%2E", status=404)  # reached, though there is none


def test_what_no_route_takes_is_left_out_of_exports(alone: Running, tmp_path: Path) -> None:
    odd = Event("a/b", "demo-0001", "view", datetime(2026, 1, 1, tzinfo=UTC))
    alone.run(alone.engine.store.add_feedback([odd]))
    long = fresh_id("long")
    alone.create(id=long, modalities={"text": "word " * 3_900})
    left_out: Counter[str] = Counter()
    alone.run(export(alone.settings.database_url, tmp_path, left_out=left_out))
    assert list(left_out.values()) == [1]
    assert next(iter(left_out)).startswith("user: a user's id is 1 to 128 characters")
    assert '"a/b"' not in (tmp_path / "feedback.jsonl").read_text("utf-8")
    assert long in (tmp_path / "items.jsonl").read_text("utf-8")
