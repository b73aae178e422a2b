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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.settings import Settings
from tests.security.serving import Served, answer_of, serving
from tests.service.running import fresh_id, problem_of, settings_for

MIB = 1 << 20
JSON = {"Content-Type": "application/json"}
ITEM = json.dumps({"id": "a", "title": "A red shoe"}).encode()
PARTS = b'--x\r\nContent-Disposition: form-data; name="item"\r\n\r\n{"id": "a"}\r\n--x--\r\n'
MULTIPART = {"Content-Type": "multipart/form-data; boundary=x"}
KEYS = "reader:read:key-of-the-reader,writer:write:key-of-the-writer"


@pytest.fixture(scope="module")
def served(demo_bundle: Path, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    file = tmp_path_factory.mktemp("served") / "lacuna.db"
    settings = settings_for(demo_bundle, demo_folder, file, seed_catalogue=False, max_body_bytes=MIB)
    with serving(settings) as service:
        yield service


def without_item(served: Served) -> Served:
    """The service without the item that these tests post."""
    assert httpx.delete(f"{served.url}/items/a").status_code in (204, 404)
    return served


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
    startable: Callable[..., Settings], path: str, headers: dict[str, str], status: int
) -> None:
    with serving(startable(api_keys=KEYS)) as service:
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


def test_a_slow_body_is_cut(startable: Callable[..., Settings]) -> None:
    with (
        serving(startable(request_seconds=1)) as service,
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


def test_slow_bodies_that_nobody_wants_are_cut_and_take_no_place(startable: Callable[..., Settings]) -> None:
    with serving(startable(request_seconds=2, api_keys=KEYS, max_concurrency=1)) as service:
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
@pytest.mark.parametrize("idempotent", [False, True])
def test_a_compressed_body(served: Served, name: str, idempotent: bool) -> None:
    coding, body = CODED[name]
    headers = JSON | {"Content-Encoding": coding}
    for content in (body, pieces(body, 7)):
        if idempotent:
            headers["Idempotency-Key"] = fresh_id("key")
        answer = httpx.post(f"{without_item(served).url}/items", content=content, headers=headers)
        assert answer.status_code == 201
        assert "idempotency-replayed" not in answer.headers
        assert httpx.get(f"{served.url}/items/a").json()["title"] == "A red shoe"


def test_a_compressed_upload(served: Served) -> None:
    headers = MULTIPART | {"Content-Encoding": "gzip"}
    answer = httpx.post(f"{without_item(served).url}/items", content=gzip.compress(PARTS), headers=headers)
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
@pytest.mark.parametrize("idempotent", [False, True])
def test_a_body_that_is_not_in_its_coding(served: Served, coding: str, body: bytes, idempotent: bool) -> None:
    headers = JSON | {"Content-Encoding": coding} | ({"Idempotency-Key": fresh_id("key")} if idempotent else {})
    answer = httpx.post(f"{served.url}/items", content=body or pieces(body), headers=headers)
    assert (answer.status_code, problem_of(answer)["type"]) == (400, "/problems/malformed-request")


# --- cut off, and followed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [len(PARTS) - 4, len(PARTS) - 8, len(PARTS) - 12, 30])
def test_an_upload_that_ends_early(served: Served, length: int) -> None:
    answer = httpx.post(f"{without_item(served).url}/items", content=PARTS[:length], headers=MULTIPART)
    assert (answer.status_code, problem_of(answer)["type"]) == (400, "/problems/malformed-request")
    assert httpx.get(f"{served.url}/items/a").status_code == 404


@pytest.mark.parametrize("end", [b"", b"\r\n", b"\r\nan epilogue"])
def test_an_upload_that_is_whole(served: Served, end: bytes) -> None:
    body = PARTS.removesuffix(b"\r\n") + end
    answer = httpx.post(f"{without_item(served).url}/items", content=body, headers=MULTIPART)
    assert answer.status_code == 201


def test_trailers_are_no_headers(startable: Callable[..., Settings]) -> None:
    seen: list[list[tuple[bytes, bytes]]] = []

    class Watching:
        def __init__(self, app: Any) -> None:
            self._app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self._app(scope, receive, send)
            seen.append(scope["headers"]) if scope["type"] == "http" else None

    with (
        serving(startable(), Watching) as service,
        socket.create_connection(service.address, timeout=30) as client,
    ):
        client.sendall(
            b"POST /items HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        client.sendall(b"%x\r\n%s\r\n" % (len(ITEM), ITEM))
        time.sleep(0.2)
        client.sendall(b"0\r\nX-API-Key: secret\r\nContent-Encoding: br\r\n\r\n")
        head, _ = answer_of(client)
        assert head.startswith(b"HTTP/1.1 201")
    names = [name for name, _ in seen[-1]]
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
