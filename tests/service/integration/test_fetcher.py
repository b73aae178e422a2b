"""Pictures from URLs, fetched from a real server on this machine, which is called public here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from service.adapters.fetcher import MAX_REDIRECTS, UrlFetcher, is_public_address
from service.domain import FetchError
from tests.service.running import picture

PICTURE = picture("red")
LIMIT = 100_000
PUBLIC, PRIVATE = "127.0.0.1", "127.0.0.2"  # to these tests; the server listens on both
NAMES = {
    "pictures.example": [PUBLIC],
    "inside.example": [PRIVATE],
    "both.example": [PUBLIC, PRIVATE],
    "old-first.example": ["127.0.0.3", PUBLIC],  # nobody listens on the first
    "nowhere.example": [],
}


class Pictures(BaseHTTPRequestHandler):
    """One path for each thing that a host may do."""

    def do_GET(self) -> None:
        name, _, argument = self.path.strip("/").partition("/")
        getattr(self, f"answer_{name}")(argument)

    def answer(self, status: int, *, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def answer_picture(self, _: str) -> None:
        self.answer(200, body=PICTURE, content_type="image/png", content_length=str(len(PICTURE)))

    def answer_untyped(self, _: str) -> None:
        self.answer(200, body=PICTURE)

    def answer_moved(self, where: str) -> None:
        self.answer(302, location=f"/{where}")

    def answer_away(self, where: str) -> None:
        self.answer(302, location=where.replace("~", "//"))

    def answer_lost(self, _: str) -> None:
        self.answer(302)

    def answer_page(self, _: str) -> None:
        self.answer(200, body=b"<p>no picture</p>", content_type="text/html")

    def answer_packed(self, _: str) -> None:
        self.answer(200, body=PICTURE, content_type="image/png", content_encoding="gzip")

    def answer_noise(self, _: str) -> None:
        self.answer(200, body=bytes(range(256)), content_type="image/png")

    def answer_missing(self, _: str) -> None:
        self.answer(404)

    def answer_silent(self, _: str) -> None:
        self.close_connection = True

    def answer_endless(self, _: str) -> None:
        self.answer(200, content_type="image/png")
        try:
            while True:
                self.wfile.write(b"\0" * 10_000)
        except OSError:
            self.close_connection = True

    def answer_slow(self, _: str) -> None:
        self.answer(200, content_type="image/png")
        try:
            for _ in range(200):
                self.wfile.write(b"\0")
                time.sleep(0.05)
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a server on all of this machine's loopback addresses."""
    ThreadingHTTPServer.daemon_threads = True
    with ThreadingHTTPServer(("0.0.0.0", 0), Pictures) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def resolved() -> list[str]:
    """The names that were resolved, in order."""
    return []


def fetching(resolved: list[str], is_public: Callable[[str], bool]) -> UrlFetcher:
    async def resolve(host: str, _: int) -> list[str]:
        resolved.append(host)
        if host not in NAMES and not host.replace(".", "").isdecimal():
            raise OSError("no such name")
        return NAMES.get(host, [host])

    return UrlFetcher(seconds=2, max_bytes=LIMIT, resolve=resolve, is_public=is_public)


@pytest.fixture
def fetcher(resolved: list[str]) -> UrlFetcher:
    return fetching(resolved, lambda address: address == PUBLIC)


@pytest.mark.parametrize("path", ["picture", "untyped", "moved/picture", "moved/moved/picture"])
async def test_a_picture_is_fetched(fetcher: UrlFetcher, resolved: list[str], port: int, path: str) -> None:
    assert await fetcher.fetch(f"http://pictures.example:{port}/{path}") == PICTURE
    # The name exists nowhere else, and each connection resolved it once: what was checked is what was connected to.
    assert resolved == ["pictures.example"] * (1 + path.count("moved"))


async def test_the_next_address_is_tried(resolved: list[str], port: int) -> None:
    fetcher = fetching(resolved, lambda _: True)
    assert await fetcher.fetch(f"http://old-first.example:{port}/picture") == PICTURE


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://inside.example:{port}/picture", "not public"),
        ("http://both.example:{port}/picture", "not public"),
        ("http://nowhere.example:{port}/picture", "not public"),
        ("http://127.0.0.2:{port}/picture", "not public"),
        ("http://pictures.example:{port}/away/http:~inside.example:{port}/picture", "not public"),
        ("http://pictures.example:{port}/away/http:~127.0.0.2:{port}/picture", "not public"),
        ("http://pictures.example:{port}/moved/away/http:~127.0.0.2:{port}/picture", "not public"),
        ("http://unknown.example:{port}/picture", "not known"),
        ("http://pictures.example:{port}/away/file:~/etc/passwd", "starts with http:// or https://"),
        ("http://pictures.example:{port}" + "/moved" * (MAX_REDIRECTS + 1) + "/picture", "leads to more than"),
        ("http://pictures.example:{port}/lost", "leads to more than"),
        ("http://pictures.example:{port}/page", "does not call a picture"),
        ("http://pictures.example:{port}/packed", "packed"),
        ("http://pictures.example:{port}/missing", "answers 404"),
        ("http://pictures.example:{port}/silent", "does not answer as it should"),
        ("http://pictures.example:{port}/endless", "larger than the limit of 100000 bytes"),
        ("http://pictures.example:{port}/slow", "did not arrive within 2 s"),
        ("https://pictures.example:{port}/picture", "does not answer as it should"),  # it does not speak TLS
        ("http://pictures.example:1/picture", "does not answer as it should"),
        ("http://me:secret@pictures.example:{port}/picture", "no user name or password"),
        ("ftp://pictures.example/picture", "starts with http:// or https://"),
        ("http:///picture", "starts with http:// or https://"),
        ("pictures.example/picture", "starts with http:// or https://"),
        ("http://pictures.example:99999999/", "no URL"),
        ("http://[::1", "no URL"),
        ("http://a\nb/", "no URL"),
    ],
)
async def test_what_is_not_fetched(fetcher: UrlFetcher, port: int, url: str, said: str) -> None:
    with pytest.raises(FetchError, match=said) as refused:
        await fetcher.fetch(url.format(port=port))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433"])
async def test_this_machine_is_not_public(port: int, host: str) -> None:
    with pytest.raises(FetchError, match=r"not public|not known"):
        await UrlFetcher(seconds=5, max_bytes=LIMIT).fetch(f"http://{host}:{port}/picture")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07::1", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("172.16.5.4", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
    ],
)
def test_public_addresses(address: str, expected: bool) -> None:
    assert is_public_address(address) is expected
