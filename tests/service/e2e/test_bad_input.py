"""What nobody should send, sent to the real service: a clear 4xx, and nothing is lost or broken by it."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from service.pipeline.encode import UNREAD
from tests.service.conftest import AUDIO
from tests.service.running import Running, base64_of, fresh_id, picture, problem_of

JPEG = picture(kind="JPEG", size=(200, 200))


@pytest.fixture(autouse=True)
def _nothing_changes(request: pytest.FixtureRequest) -> Iterator[None]:
    """A refused request leaves the catalogue as it was."""
    name = "anywhere" if "anywhere" in request.fixturenames else "running"
    service: Running = request.getfixturevalue(name)
    before = service.run(service.engine.store.last_change())
    yield
    assert service.run(service.engine.store.last_change()) == before


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims to be larger than its few bytes could fill."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 10_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"title": "no id"}, "/id"),
        ({"id": 7}, "/id"),
        ({"id": ""}, "/id"),
        ({"id": "a/b"}, "/id"),
        ({"id": "a b"}, "/id"),
        ({"id": ".."}, "/id"),
        ({"id": "x" * 129}, "/id"),
        ({"id": "ü"}, "/id"),
        ({"id": "a\n"}, "/id"),
        ({"title": ""}, "/title"),
        ({"title": " \t\n "}, "/title"),
        ({"title": "a\0b"}, "/title"),
        ({"title": 5}, "/title"),
        ({"title": "x" * 1001}, "/title"),
        ({"titel": "x"}, "/titel"),
        ({"available": "yes"}, "/available"),
        ({"available": 1}, "/available"),
        ({"categories": "shoes"}, "/categories"),
        ({"categories": [""]}, "/categories/0"),
        ({"categories": ["a\x1f"]}, "/categories/0"),
        ({"categories": [str(number) for number in range(33)]}, "/categories"),
        ({"metadata": []}, "/metadata"),
        ({"metadata": {"a": "\0"}}, "/metadata"),
        ({"metadata": {"a": "x" * 70_000}}, "/metadata"),
        ({"modalities": {"text": ""}}, "/modalities/text/text"),
        ({"modalities": {"text": "  "}}, "/modalities/text/text"),
        ({"modalities": {"text": "x" * 20_001}}, "/modalities/text/text"),
        ({"modalities": {"text": {"text": "a", "vector": [1]}}}, "/modalities/text"),
        ({"modalities": {"text": {}}}, "/modalities/text"),
        ({"modalities": {"text": None}}, "/modalities/text"),
        ({"modalities": {"text": 3}}, "/modalities/text"),
        ({"modalities": {"image": {"base64": "!!"}}}, "/modalities/image/base64"),
        ({"modalities": {"image": {"url": "http://127.0.0.1/"}}}, "/modalities/image/url"),
        ({"modalities": {"image": "words"}}, "/modalities/image"),
        ({"modalities": {"audio": "words"}}, "/modalities/audio"),
        ({"modalities": {"smell": "roses"}}, "/modalities/smell"),
        ({"modalities": {"a/b": "roses"}}, "/modalities/a~1b/[key]"),
        ({"modalities": {"text": base64_of(JPEG)}}, "/modalities/text"),
        ({"modalities": {"audio": base64_of(JPEG)}}, "/modalities/audio"),
        ({"modalities": {"audio": {"vector": []}}}, "/modalities/audio/vector"),
        ({"modalities": {"audio": {"vector": [1.0] * (AUDIO - 1)}}}, "/modalities/audio/vector"),
        ({"modalities": {"audio": {"vector": [1.0] * (AUDIO + 1)}}}, "/modalities/audio/vector"),
        ({"modalities": {"audio": {"vector": ["1"] * AUDIO}}}, "/modalities/audio/vector/0"),
        ({"modalities": {"audio": {"vector": [True] * AUDIO}}}, "/modalities/audio/vector/0"),
        ({"modalities": {"audio": {"vector": [1e300] * AUDIO}}}, "/modalities/audio/vector"),
        ({"modalities": {"audio": {"vector": [1e7] * AUDIO}}}, "/modalities/audio/vector"),
        ({"modalities": {"audio": {"vector": [None] * AUDIO}}}, "/modalities/audio/vector/0"),
    ],
)
def test_an_item_that_cannot_be(running: Running, body: dict[str, Any], pointer: str) -> None:
    given = "id" in body or body == {"title": "no id"}
    whole = body if given else {"id": fresh_id(), **body}
    problem = running.post("/items", whole, status=422)
    assert problem["errors"][0]["pointer"] == pointer
    row = running.post("/items/batch", {"items": [whole]})["items"][0]
    assert (row["status"], row["problem"]["type"]) == (422, problem["type"])
    if not given:
        running.ask("PUT", f"/items/{whole['id']}", status=422, json=body)
        running.post("/impute", body, status=422)
        running.get(f"/items/{whole['id']}", status=404)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("nothing", b"\x89PNG\r\n\x1a\n"),
        ("words", b"this is no picture"),
        ("html", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("cut short", JPEG[: len(JPEG) // 2]),
        ("cut shorter", JPEG[:20]),
        ("cut GIF", picture(kind="GIF")[:15]),
        ("bomb", png_of(50_000, 50_000)),
        ("half-empty PNG", png_of(1000, 1000)),
        ("no pixels", png_of(0, 0)),
        ("a TIFF", picture(kind="TIFF")),
        ("too many pixels", picture(size=(5001, 4001), mode="1")),
        ("noise", bytes(range(256)) * 10),
    ],
)
def test_bytes_that_are_no_picture(running: Running, name: str, data: bytes) -> None:
    item_id = fresh_id()
    problem = running.post("/items", {"id": item_id, "modalities": {"image": base64_of(data)}}, status=422)
    assert problem["type"] == "/problems/invalid-image", name
    assert problem["errors"][0]["pointer"] == "/modalities/image"
    upload = {"item": (None, json.dumps({"id": item_id})), "image": ("a.png", data, "image/png")}
    assert running.ask("POST", "/items", status=422, files=upload)["type"] == "/problems/invalid-image"
    assert running.post("/retrieve", {"image": base64_of(data)}, status=422)["type"] == "/problems/invalid-image"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b'{"id": "a", "title": "\\ud800"}', 400),
        (b'{"id": "a", "modalities": {"audio": {"vector": [NaN]}}}', 400),
        (b'{"id": "a", "modalities": {"audio": {"vector": [Infinity]}}}', 400),
        (b'{"id": "a", "metadata": ' + b'{"a":' * 2000 + b"1" + b"}" * 2001, 400),
        (b'{"id": "a", "metadata": ' + b'{"a":' * 20 + b"1" + b"}" * 21, 422),
        (b"[]", 422),
        (b"null", 422),
        (b'"a"', 422),
        (b'{"id": "a", "metadata": {"x": "' + b"y" * (8 << 20) + b'"}}', 413),
    ],
)
def test_bodies_that_are_none(running: Running, body: bytes, status: int) -> None:
    headers = {"Content-Type": "application/json"}
    for method, path in (("POST", "/items"), ("PUT", "/items/a"), ("POST", "/impute"), ("POST", "/items/batch")):
        running.ask(method, path, status=status, content=body, headers=headers)
    running.ask("POST", "/items", status=415, content=body, headers={"Content-Type": "text/plain"})
    running.get("/items/a", status=404)


@pytest.mark.parametrize(
    "path",
    [
        "/recommend/shopper-001?n=0",
        "/recommend/shopper-001?n=501",
        "/recommend/shopper-001?n=-1",
        "/recommend/shopper-001?n=ten",
        "/recommend/shopper-001?n=99999999999999999999999",
        "/recommend/shopper-001?diversity=2",
        "/recommend/shopper-001?diversity=nan",
        "/recommend/shopper-001?model=best",
        "/recommend/shopper-001?category=",
        "/recommend/shopper-001?nn=3",
        "/recommend/" + "x" * 129,
        "/recommend/a%0Ab",
        "/items?limit=0",
        "/items?limit=1000",
        "/items?cursor=abc",
        "/items?cursor=" + base64.urlsafe_b64encode(b'["feedback","1","2"]').decode(),
        "/items?cursor=" + base64.urlsafe_b64encode(b'["item",1]').decode(),
        "/items?missing=smell",
        "/items/demo-0001/modalities/text?neighbours=101",
        "/items/demo-0001/similar?by=items",
        "/items/demo-0001/similar?n=0",
        "/retrieve",
        "/retrieve?text=",
        "/retrieve?text=%20",
        "/retrieve?text=a&target=items",
        "/retrieve?text=a&target=final",
        "/retrieve?text=a%00b",
        "/feedback?limit=0",
        "/feedback?cursor=xyz",
        "/feedback?cursor=" + base64.urlsafe_b64encode(b'["feedback","99999999999999999999","1"]').decode(),
        "/items/a%20b",
    ],
)
def test_queries_that_cannot_be(anywhere: Running, path: str) -> None:
    anywhere.get(path, status=422)


def test_urls_that_are_no_text(anywhere: Running) -> None:
    for path in ("/recommend/%ff", "/items?q=%c3%28"):
        assert anywhere.get(path, status=400)["type"] == "/problems/malformed-request"


@pytest.mark.parametrize(
    "event",
    [
        {"user": "", "item": "demo-0001", "type": "view"},
        {"user": "a/b", "item": "demo-0001", "type": "view"},
        {"user": "a\0", "item": "demo-0001", "type": "view"},
        {"user": 5, "item": "demo-0001", "type": "view"},
        {"user": "u", "item": "nothing", "type": "view"},
        {"user": "u", "item": "demo-0001", "type": "stare"},
        {"user": "u", "item": "demo-0001"},
        {"user": "u", "item": "demo-0001", "type": "rating", "value": 6},
        {"user": "u", "item": "demo-0001", "type": "rating", "value": "5"},
        {"user": "u", "item": "demo-0001", "type": "review", "text": "a\0"},
        {"user": "u", "item": "demo-0001", "type": "view", "timestamp": "2026-02-30T00:00:00Z"},
        {"user": "u", "item": "demo-0001", "type": "view", "timestamp": "2026-01-01T00:00:00"},
        {"user": "u", "item": "demo-0001", "type": "view", "timestamp": "9999-12-31T23:59:59Z"},
        {"user": "u", "item": "demo-0001", "type": "view", "timestamp": "0001-01-01T00:00:00+23:59"},
        {"user": "u", "item": "demo-0001", "type": "view", "timestamp": 1_700_000_000},
        {"user": "u", "item": "demo-0001", "type": "view", "mood": "good"},
        [],
        None,
    ],
)
def test_events_that_cannot_be(anywhere: Running, event: Any) -> None:
    answer = anywhere.post("/feedback", {"feedback": [event]})
    assert answer["accepted"] == 0
    assert answer["rejected"][0]["index"] == 0
    assert answer["rejected"][0]["detail"]
    anywhere.post("/feedback", {"feedback": [event]}, strict=True, status=422)


def test_too_much_at_once(running: Running) -> None:
    running.post("/items/batch", {"items": [{}] * 1001}, status=422)
    running.post("/items/batch", {"items": []}, status=422)
    running.post("/feedback", {"feedback": [{}] * 10_001}, status=422)
    running.post("/recommend", {"items": []}, status=422)
    running.post("/recommend", {"items": [{"id": "demo-0001", "weight": 0}]}, status=422)
    many = running.post("/items/batch", {"items": [{}] * 1000})["items"]
    assert {row["status"] for row in many} == {422}


def test_odd_words_are_words(running: Running) -> None:
    """Right-to-left text, control characters and accents are searched for like any; of what the encoder knows nothing,
    the answer says so."""
    for text in ("حذاء رياضي أحمر", "a\u202eb", "e\u0301" * 100, "\U0001f460 red", "x " * 10_000):
        found = running.post("/impute", {"modalities": {"text": text}})
        assert found["modalities"]["text"]["state"] == "observed"
        assert running.post("/retrieve", {"text": text})["items"]
    for text in ("\U0001f460\u200d\U0001f3fd", "\x01", "x" * 20_000, "\U0010ffff"):
        report = running.post("/impute", {"modalities": {"text": text}})["modalities"]["text"]
        assert (report["state"], report["detail"]) == ("generated", UNREAD)
        running.post("/retrieve", {"text": text}, status=422)


def test_the_server_never_chokes_on_a_broken_multipart_body(running: Running) -> None:
    for content in (b"", b"--x\r\n", b"--x\r\nContent-Disposition: form-data; name=item\r\n\r\n{}"):
        answer = running.client.post(
            "/items", content=content, headers={"Content-Type": "multipart/form-data; boundary=x"}
        )
        assert answer.status_code in (400, 422)
        problem_of(answer)
    for files in (
        {"image": ("a.png", picture(), "image/png")},
        {"item": (None, "{}"), "smell": ("a", b"x", "text/plain")},
        {"item": (None, '{"id": "a", "modalities": {"image": "b"}}'), "image": ("a", picture(), "image/png")},
    ):
        running.ask("POST", "/items", status=422, files=files)


def test_after_all_this_it_is_as_it_was(anywhere: Running) -> None:
    anywhere.check_index()
    assert anywhere.get("/stats")["items"] == 120
    assert anywhere.get("/health/ready") == {"status": "ready"}
