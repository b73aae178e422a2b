"""Nothing that is sent holds up those who ask for something else.

The service's event loop is asked to come round every millisecond, while another thread sends what is costliest of its
kind, and the longest time between two rounds is taken.
"""

from __future__ import annotations

import gc
import gzip
import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.security.drawn import plain
from tests.security.watching import least_stall_ms, stall_ms
from tests.service.running import Running, base64_of, fresh_id

STALL_MS = 50.0
MIB = 1 << 20
MULTIPART = "multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'


@pytest.fixture(autouse=True)
def _no_old_garbage() -> Iterator[None]:
    """What the tests of this process have made is no part of the service's memory, and is not searched for garbage."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def filled(piece: bytes, start: bytes = b"[", end: bytes = b"]", size: int = 8 * MIB - 100) -> bytes:
    """A list of as many pieces as a body may hold."""
    return start + b",".join([piece] * ((size - len(start)) // (len(piece) + 1))) + end


def fields(count: int) -> bytes:
    return b"{" + b",".join(b'"%06x":1' % number for number in range(count)) + b"}"


def rows(name: str, row: Any, count: int) -> bytes:
    return json.dumps({name: [row] * count}).encode()


BAD_EVENT = {"user": "", "item": "a/b", "type": "stare", "value": "5", "text": "", "timestamp": 7, "mood": 1, "more": 2}
BAD_ITEM = {
    "id": "a b",
    "title": "",
    "categories": [1],
    "modalities": {"text": {}, "a b": 3},
    **dict.fromkeys("abcdef", 1),
}
NARROW = {"id": "a", **{f"f{number}": 1 for number in range(300)}}
BASE64 = b"QUJD" * (2 * MIB - 100)
DEEP = b'{"metadata":' + b'{"a":' * 900 + b"1" + b"}" * 901
JSON_BODIES: dict[str, tuple[str, str, bytes, int]] = {
    "700,000 unknown fields": ("POST", "/recommend", fields(700_000), 422),
    "9,000 unknown fields": ("POST", "/recommend", fields(9_000), 422),
    "empty lists": ("POST", "/recommend", filled(b"[]"), 422),
    "empty objects": ("POST", "/items", filled(b"{}"), 422),
    "pairs that are none": ("POST", "/predict", filled(b"{}", b'{"pairs":[', b"]}"), 422),
    "pairs, 2,900 bad values": ("POST", "/predict", filled(b"{}", b'{"pairs":[', b"]}", 8_700), 422),
    "session of strings": ("POST", "/recommend", filled(b'"a"', b'{"items":[', b"]}"), 422),
    "vector of numbers": ("POST", "/retrieve", filled(b"1.5", b'{"vector":{"text":[', b"]}}"), 422),
    "vector of fewer numbers": ("POST", "/retrieve", filled(b"0.125", b'{"vector":{"text":[', b"]}}", 6 * MIB), 422),
    "vector of strings": ("POST", "/retrieve", filled(b'"a"', b'{"vector":{"text":[', b"]}}"), 422),
    "modalities that are none": (
        "PUT", "/items/a", b'{"modalities":{' + b",".join(b'"%05x":{"a":1}' % n for n in range(400_000)) + b"}}", 422
    ),
    "modalities, 4,000 bad ones": (
        "PATCH", "/items/a", b'{"modalities":{' + b",".join(b'"%05x":{"a":1}' % n for n in range(4_000)) + b"}}", 422
    ),
    "wide metadata": ("POST", "/items", b'{"id":"a","metadata":' + fields(600_000) + b"}", 422),
    "metadata of 90,000 fields": ("POST", "/items", b'{"id":"a","metadata":' + fields(90_000) + b"}", 422),
    "long list in metadata": ("PATCH", "/items/a", filled(b"1", b'{"metadata":{"a":[', b"]}}"), 422),
    "deep metadata": ("POST", "/impute", DEEP, 422),
    "one text of 8 MiB": ("POST", "/retrieve", filled(b"a", b'{"text":"', b'"}'), 422),
    "base64 of 8 MiB": ("POST", "/impute", b'{"modalities":{"image":{"base64":"' + BASE64 + b'"}}}', 422),
    "commas in a text": ("POST", "/impute", b'{"title":"' + b'\\",{[:' * (8 * MIB // 6 - 100) + b'"}', 422),
    "1,000 bad rows": ("POST", "/items/batch", rows("items", BAD_ITEM, 1_000), 200),
    "1,000 rows of 300 unknown fields": ("POST", "/items/batch", rows("items", NARROW, 330), 200),
    "too many rows": ("POST", "/items/batch", rows("items", {}, 300_000), 422),
    "10,000 bad events": ("POST", "/feedback", rows("feedback", BAD_EVENT, 10_000), 200),
    "10,000 bad events, strict": ("POST", "/feedback?strict=true", rows("feedback", BAD_EVENT, 10_000), 422),
    "not JSON at its end": ("POST", "/recommend", filled(b"{}", b'{"items":[', b"]"), 422),
}  # fmt: skip


def ask(service: Running, method: str, path: str, body: bytes, status: int, **headers: str) -> None:
    connection = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=60)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {"Content-Type": "application/json", **given})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == status, text[:500]
    assert len(text) < 8 * MIB


@pytest.mark.parametrize("name", JSON_BODIES)
def test_json(running: Running, name: str) -> None:
    method, path, body, status = JSON_BODIES[name]
    assert least_stall_ms(running, lambda: ask(running, method, path, body, status), STALL_MS) < STALL_MS


@pytest.mark.parametrize(
    "data",
    [
        plain("PNG", "1", colour=1),
        plain("PNG", "RGBA", colour=(1, 2, 3, 4)),
        plain("PNG", "I;16"),
        plain("GIF", "P"),
        plain("JPEG", "RGB", progressive=True, subsampling=0),
        plain("WEBP", "RGBA", lossless=True, method=0),
        plain("WEBP", "RGB", (1400, 1400)),
    ],
    ids=["PNG of one bit", "PNG of RGBA", "PNG of 16 bits", "GIF", "JPEG", "WebP", "a smaller WebP"],
)
def test_pictures(running: Running, data: bytes) -> None:
    body = json.dumps({"modalities": {"image": base64_of(data)}}).encode()
    assert least_stall_ms(running, lambda: ask(running, "POST", "/impute", body, 200), STALL_MS) < STALL_MS


def test_json_that_is_used(running: Running) -> None:
    """The same for what is right: the largest batch, and the most events."""
    event = {"user": "stalling", "item": "demo-0001", "type": "view"}
    body = rows("feedback", event, 10_000)
    assert least_stall_ms(running, lambda: ask(running, "POST", "/feedback", body, 200), STALL_MS) < STALL_MS

    def batch() -> bytes:
        vector = [0.125] * 384
        return json.dumps(
            {"items": [{"id": fresh_id(), "modalities": {"text": {"vector": vector}}} for _ in range(200)]}
        ).encode()

    bodies = iter([batch() for _ in range(10)])
    assert least_stall_ms(running, lambda: ask(running, "POST", "/items/batch", next(bodies), 200), STALL_MS) < STALL_MS


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (PART + b"\r\n-" * (8 * MIB // 3 - 100) + b"\r\n--x--\r\n", 422),
        (PART + b"\r" * (8 * MIB - 200) + b"\r\n--x--\r\n", 422),
        (PART + b"a\r\n" + (PART + b"\r\n") * 110_000 + b"--x--\r\n", 400),
        (b"--x\r\n" + b"A: b\r\n" * (8 * MIB // 6 - 100), 400),
        (b'--x\r\nContent-Disposition: form-data; name="item"\r\n\r\n' + fields(600_000) + b"\r\n--x--\r\n", 422),
    ],
    ids=["almost boundaries", "returns", "parts", "headers of a part", "fields"],
)
def test_multipart(running: Running, body: bytes, status: int) -> None:
    stall = least_stall_ms(
        running, lambda: ask(running, "POST", "/impute", body, status, Content_Type=MULTIPART), STALL_MS
    )
    assert stall < STALL_MS


def test_queries(running: Running) -> None:
    query = "&".join(f"{number:x}" for number in range(12_000))
    for path in ("/items", "/retrieve", "/feedback"):
        stall = least_stall_ms(running, lambda path=path: ask(running, "GET", f"{path}?{query}", b"", 422), STALL_MS)
        assert stall < STALL_MS
    ask(running, "GET", "/items?" + "&".join(["category=shoes"] * 32), b"", 200)
    ask(running, "GET", "/items?" + "&".join(["category=shoes"] * 33), b"", 422)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (gzip.compress(bytes(64 * MIB), 9) * 8, 413),
        (gzip.compress(b"") * 100_000, 400),
        (gzip.compress(fields(600_000), 1), 422),
    ],
    ids=["bomb", "members", "fields"],
)
def test_compressed(running: Running, body: bytes, status: int) -> None:
    stall = least_stall_ms(
        running, lambda: ask(running, "POST", "/recommend", body, status, Content_Encoding="gzip"), STALL_MS
    )
    assert stall < STALL_MS


def test_the_tests_see_a_stall(running: Running) -> None:
    async def hold() -> None:
        time.sleep(0.2)

    assert stall_ms(running, lambda: running.run(hold())) > 150
