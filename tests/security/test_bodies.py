"""What becomes of a request's body: too large, compressed, cut off, or followed by what is none of it."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.main import create_app
from service.ports import Answer
from tests.security.serving import Served, answer_of
from tests.service.running import problem_of
from tests.service.unit import fake_engine
from tests.service.unit.fake_engine import FakeEngine, settings_of

MIB = 1 << 20
JSON = {"Content-Type": "application/json"}
ITEM = json.dumps({"id": "a", "title": "A red shoe"}).encode()
PARTS = b'--x\r\nContent-Disposition: form-data; name="item"\r\n\r\n{"id": "a"}\r\n--x--\r\n'
MULTIPART = {"Content-Type": "multipart/form-data; boundary=x"}
KEYS = "reader:read:key-of-the-reader,writer:write:key-of-the-writer"


class Keeping(FakeEngine):
    """Idempotency keys that are always free."""

    async def claim(self, key: str, fingerprint: str, *, lease_s: float) -> None:
        """Free."""

    async def answered(self, key: str, answer: Answer) -> None:
        """Forgotten."""

    async def release(self, key: str) -> None:
        """Free as it was."""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake_engine.install(monkeypatch)
    return Keeping()


@pytest.fixture
def served(engine: FakeEngine) -> Iterator[Served]:
    with Served(create_app(settings_of(max_body_bytes=MIB), engine=engine)) as service:
        yield service


def pieces(body: bytes, size: int = 1 << 16) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def refusal(url: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    """Status and type of the problem that a client sees which reads nothing before it has sent all."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60)
    with caught.value as answer:
        return answer.code, json.loads(answer.read())["type"]


# --- beyond the limit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [MIB + 1, 20 * MIB, 63 * MIB])
@pytest.mark.parametrize("path", ["/items", "/items/batch", "/feedback", "/recommend", "/impute"])
def test_a_client_sees_that_its_body_is_too_large(served: Served, path: str, size: int) -> None:
    assert refusal(f"{served.url}{path}", bytes(size), JSON) == (413, "/problems/body-too-large")


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "one"}], ids=["plain", "idempotent"])
def test_a_body_of_undeclared_length_is_read_to_its_end(served: Served, headers: dict[str, str]) -> None:
    answer = httpx.post(f"{served.url}/items", content=pieces(bytes(20 * MIB)), headers=JSON | headers, timeout=60)
    assert problem_of(answer)["type"] == "/problems/body-too-large"
    assert "connection" not in answer.headers


def test_a_body_that_has_no_end_is_cut(served: Served) -> None:
    sent = 0
    with socket.create_connection(served.address, timeout=30) as client:
        client.sendall(
            b"POST /items HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        try:
            while sent < 200 * MIB:
                client.sendall(b"100000\r\n" + bytes(MIB) + b"\r\n")
                sent += MIB
        except OSError:
            pass
    assert 64 * MIB <= sent < 80 * MIB


def test_a_body_that_says_to_be_endless_is_not_waited_for(served: Served) -> None:
    with socket.create_connection(served.address, timeout=30) as client:
        client.sendall(
            b"POST /items HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 70000000\r\n\r\n"
        )
        head, _ = answer_of(client)
    assert head.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in head


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/items", {"X-API-Key": "key-of-the-reader"}, 403),
        ("/items", {}, 401),
        ("/nowhere", {}, 404),
        ("/items", {"X-API-Key": "key-of-the-writer", "Content-Type": "text/plain"}, 415),
    ],
)
def test_whatever_is_answered_the_body_is_read_first(
    engine: FakeEngine, path: str, headers: dict[str, str], status: int
) -> None:
    with Served(create_app(settings_of(api_keys=KEYS), engine=engine)) as service:
        assert refusal(f"{service.url}{path}", bytes(30 * MIB), JSON | headers)[0] == status


def test_a_client_that_asks_first_need_not_send(served: Served) -> None:
    with socket.create_connection(served.address, timeout=30) as client:
        client.sendall(
            b"POST /items HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\n"
            b"Expect: 100-continue\r\nContent-Length: 2000000\r\n\r\n"
        )
        head, _ = answer_of(client)
    assert head.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in head


def test_a_slow_body_is_cut(engine: FakeEngine) -> None:
    with (
        Served(create_app(settings_of(request_seconds=1), engine=engine)) as service,
        socket.create_connection(service.address, timeout=30) as client,
    ):
        begun = time.monotonic()
        client.sendall(
            b"POST /items HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        )
        client.settimeout(0.2)
        got = b""
        while time.monotonic() - begun < 20 and not got:
            try:
                got = client.recv(65536)
            except TimeoutError:
                client.sendall(b" ")
        assert got.startswith(b"HTTP/1.1 503")
        assert b"connection: close" in got
        assert 1 <= time.monotonic() - begun < 5


def test_slow_bodies_that_nobody_wants_are_cut_and_take_no_place(engine: FakeEngine) -> None:
    app = create_app(settings_of(request_seconds=2, api_keys=KEYS, max_concurrency=1), engine=engine)
    with Served(app) as service:
        begun = time.monotonic()
        clients = [service.connect() for _ in range(5)]
        for client in clients:
            client.sendall(b"POST /items HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        time.sleep(0.3)
        assert httpx.get(f"{service.url}/items", headers={"X-API-Key": "key-of-the-reader"}).status_code == 200
        for client in clients:
            head, _ = answer_of(client)
            client.close()
            assert head.startswith(b"HTTP/1.1 401")
            assert b"connection: close" in head
        assert 2 <= time.monotonic() - begun < 8


# --- compressed -------------------------------------------------------------------------------------------------------


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


CODED = {
    "gzip": ("gzip", gzip.compress(ITEM)),
    "x-gzip": ("X-GZip", gzip.compress(ITEM)),
    "two members": ("gzip", gzip.compress(ITEM[:9]) + gzip.compress(ITEM[9:])),
    "deflate": ("deflate", zlib.compress(ITEM)),
    "raw deflate": ("deflate", raw_deflate(ITEM)),
    "identity": ("identity", ITEM),
    "listed": ("identity, gzip", gzip.compress(ITEM)),
}


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("key", [None, "a-key"])
def test_a_compressed_body(served: Served, engine: FakeEngine, name: str, key: str | None) -> None:
    coding, body = CODED[name]
    headers = JSON | {"Content-Encoding": coding} | ({"Idempotency-Key": key} if key else {})
    for content in (body, pieces(body, 7)):
        engine.items.clear()
        answer = httpx.post(f"{served.url}/items", content=content, headers=headers)
        assert answer.status_code == 201
        assert engine.items["a"].title == "A red shoe"


def test_a_compressed_upload(served: Served) -> None:
    answer = httpx.post(
        f"{served.url}/items", content=gzip.compress(PARTS), headers=MULTIPART | {"Content-Encoding": "gzip"}
    )
    assert answer.status_code == 201


@pytest.mark.parametrize("size", [MIB - 100, MIB + 100])
def test_the_limit_is_of_what_was_decompressed(served: Served, size: int) -> None:
    whole = b'{"id": "a", "metadata": {"a": "' + b"x" * (size - 34) + b'"}}'
    answer = httpx.post(
        f"{served.url}/items", content=gzip.compress(whole), headers=JSON | {"Content-Encoding": "gzip"}, timeout=30
    )
    assert answer.status_code == (422 if size < MIB else 413)


def test_a_bomb_is_cut_at_the_limit(served: Served) -> None:
    bomb = gzip.compress(bytes(64 * MIB), 9) * 8
    begun = time.monotonic()
    answer = httpx.post(f"{served.url}/items", content=bomb, headers=JSON | {"Content-Encoding": "gzip"}, timeout=30)
    assert problem_of(answer)["type"] == "/problems/body-too-large"
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "?"])
def test_an_unknown_coding(served: Served, coding: str) -> None:
    answer = httpx.post(f"{served.url}/items", content=ITEM, headers=JSON | {"Content-Encoding": coding})
    assert problem_of(answer)["type"] == "/problems/unsupported-media-type"
    assert answer.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(ITEM)[:-1]),
        ("gzip", gzip.compress(ITEM)[:12]),
        ("gzip", ITEM),
        ("gzip", b""),
        ("deflate", zlib.compress(ITEM)[:-1]),
        ("gzip", gzip.compress(ITEM)[:-8] + bytes(8)),
        ("gzip", gzip.compress(ITEM) + b"more"),
        ("gzip", gzip.compress(b"") * 200),
    ],
    ids=["cut", "cut short", "plain", "empty", "cut deflate", "wrong sum", "more behind it", "many members"],
)
@pytest.mark.parametrize("key", [None, "a-key"])
def test_a_body_that_is_not_in_its_coding(served: Served, coding: str, body: bytes, key: str | None) -> None:
    headers = JSON | {"Content-Encoding": coding} | ({"Idempotency-Key": key} if key else {})
    answer = httpx.post(f"{served.url}/items", content=body or pieces(body), headers=headers)
    assert (answer.status_code, problem_of(answer)["type"]) == (400, "/problems/malformed-request")


# --- cut off, and followed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [len(PARTS) - 4, len(PARTS) - 8, len(PARTS) - 12, 30])
def test_an_upload_that_ends_early(served: Served, engine: FakeEngine, kept: int) -> None:
    answer = httpx.post(f"{served.url}/items", content=PARTS[:kept], headers=MULTIPART)
    assert (answer.status_code, problem_of(answer)["type"]) == (400, "/problems/malformed-request")
    assert not engine.items


@pytest.mark.parametrize("end", [b"", b"\r\n", b"\r\nan epilogue"])
def test_an_upload_that_is_whole(served: Served, end: bytes) -> None:
    answer = httpx.post(f"{served.url}/items", content=PARTS.removesuffix(b"\r\n") + end, headers=MULTIPART)
    assert answer.status_code == 201


def test_trailers_are_no_headers(engine: FakeEngine) -> None:
    seen: list[list[tuple[bytes, bytes]]] = []

    class Watching:
        def __init__(self, app: Any) -> None:
            self._app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self._app(scope, receive, send)
            seen.append(scope["headers"]) if scope["type"] == "http" else None

    app = create_app(settings_of(), engine=engine)
    with Served(Watching(app)) as service, socket.create_connection(service.address, timeout=30) as client:
        client.sendall(
            b"POST /items HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        client.sendall(b"%x\r\n%s\r\n" % (len(ITEM), ITEM))
        time.sleep(0.2)
        client.sendall(b"0\r\nX-API-Key: secret\r\nContent-Encoding: br\r\n\r\n")
        head, _ = answer_of(client)
        assert head.startswith(b"HTTP/1.1 201")
    names = [name for name, _ in seen[0]]
    assert names == [b"host", b"content-type", b"transfer-encoding"]


def test_a_connection_is_good_for_more_after_a_refusal(served: Served) -> None:
    connection = http.client.HTTPConnection(*served.address, timeout=30)
    for _ in range(3):
        connection.request("POST", "/items", bytes(2 * MIB), JSON)
        refused = connection.getresponse()
        assert (refused.status, len(refused.read()) > 0) == (413, True)
        connection.request("GET", "/health/live")
        assert connection.getresponse().read() == b'{"status":"live"}'
    connection.close()
