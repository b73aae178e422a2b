"""Connections that never become a request, become one slowly, or become too many: without a key, and at no cost."""

from __future__ import annotations

import asyncio
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from service.connections import SPARE_FILES, ConnectionLimits, allow_files
from service.settings import Settings, SettingsError
from tests.security.serving import Served, answer_of
from tests.service.processes import Program, within

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
MIB = 1 << 20
OTHER, THIRD = "127.0.0.2", "127.0.0.3"
NO_PROXIES = ConnectionLimits(most=30, from_one_address=10, proxies=(), header_seconds=60)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Says how many headers there were; /slow takes half a second, /large answers much."""
    answer: Response = PlainTextResponse(f"{len(scope['headers'])}")
    if scope["path"] == "/slow":
        await asyncio.sleep(0.5)
    if scope["path"] == "/large":
        answer = Response(bytes(64 * MIB))
    await answer(scope, receive, send)


@pytest.fixture
def serve() -> Iterator[Callable[[ConnectionLimits], Served]]:
    with ExitStack() as stack:

        def start(limits: ConnectionLimits) -> Served:
            served = Served(app, limits)
            served._server.config.lifespan = "off"
            return stack.enter_context(served)

        yield start


Serve = Callable[[ConnectionLimits], Served]


def is_ended(client: socket.socket) -> bool:
    """Whether the other side has nothing more to say."""
    try:
        return client.recv(65536) == b""
    except ConnectionResetError:
        return True


# --- how large --------------------------------------------------------------------------------------------------------


def test_headers_within_the_limit(serve: Serve) -> None:
    served = serve(ConnectionLimits(header_bytes=8192))
    with served.connect() as client:
        for _ in range(3):
            client.sendall(b"GET / HTTP/1.1\r\nA: " + b"x" * 8000 + b"\r\n\r\n")
            assert answer_of(client)[0].startswith(b"HTTP/1.1 200")
        client.sendall(b"GET / HTTP/1.1\r\n" + b"A: x\r\n" * 100 + b"\r\n")
        assert answer_of(client)[1] == b"100"


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nA: " + b"x" * 9000 + b"\r\n\r\n",
        b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: x\r\n" * 101 + b"\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"x" * 200_000,
        b"GET /" + b"x" * 200_000,
    ],
    ids=["header", "URL", "count", "endless header", "endless URL"],
)
@pytest.mark.parametrize("piece", [1000, 10**6])
def test_headers_beyond_the_limit(serve: Serve, head: bytes, piece: int) -> None:
    served = serve(ConnectionLimits(header_bytes=8192))
    with served.connect() as client:
        with suppress(ConnectionError):
            for start in range(0, len(head), piece):
                client.sendall(head[start : start + piece])
        with suppress(ConnectionResetError):
            first, body = answer_of(client)
            assert first.startswith(b"HTTP/1.1 431")
            assert b"application/problem+json" in first
            assert b"x-request-id" in first
            assert b'"/problems/headers-too-large"' in body
            assert is_ended(client)


def test_80_mib_of_headers_cost_nothing(serve: Serve) -> None:
    served = serve(ConnectionLimits())
    sent = 0
    begun = time.thread_time(), time.process_time()
    with served.connect() as client, suppress(ConnectionError):
        client.sendall(b"GET / HTTP/1.1\r\n")
        while sent < 80 * MIB:
            client.sendall(b"A: b\r\n" * 10_000)
            sent += 60_000
    assert sent < 10 * MIB
    assert time.process_time() - begun[1] - (time.thread_time() - begun[0]) < 1


def test_headers_after_the_body_have_the_same_limit(serve: Serve) -> None:
    served = serve(ConnectionLimits(header_bytes=8192))
    with served.connect() as client:
        client.sendall(b"POST /slow HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        with suppress(ConnectionError):
            for _ in range(100):
                client.sendall(b"A: b\r\n" * 1000)
                time.sleep(0.001)
        with suppress(ConnectionError):
            assert b"HTTP/1.1 200" not in answer_of(client)[0]
    assert within(10, lambda: served.connections() == 0 or None)


def test_what_is_no_http_is_a_problem(serve: Serve) -> None:
    served = serve(ConnectionLimits())
    for junk in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nA b\r\n\r\n"):
        with served.connect() as client:
            client.sendall(junk)
            head, body = answer_of(client)
            assert head.startswith(b"HTTP/1.1 400")
            assert b'"/problems/malformed-request"' in body


def test_some_requests_in_one_piece_are_answered_in_order(serve: Serve) -> None:
    served = serve(ConnectionLimits())
    with served.connect() as client:
        client.sendall(b"".join(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * number + b"\r\n" for number in range(1, 16)))
        assert [answer_of_next(client) for _ in range(15)] == [str(number).encode() for number in range(1, 16)]


def answer_of_next(client: socket.socket) -> bytes:
    """The body of the next answer, and no byte of the one after it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += client.recv(1)
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return client.recv(length, socket.MSG_WAITALL)


def test_many_requests_in_one_piece_end_the_connection(serve: Serve) -> None:
    served = serve(ConnectionLimits())
    with served.connect() as client:
        client.sendall(GET * 2000)
        got = b""
        with suppress(ConnectionResetError):
            while more := client.recv(65536):
                got += more
        assert got.count(b"HTTP/1.1 200") <= 21
    with served.connect() as client:
        client.sendall(GET)
        assert answer_of(client)[1] == b"1"


# --- how long ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"", b"GET / HTT", b"GET / HTTP/1.1\r\nHost: a\r\n", b"\r\n"])
def test_a_connection_without_a_request_is_ended(serve: Serve, begun: bytes) -> None:
    served = serve(ConnectionLimits(header_seconds=1))
    with served.connect() as client:
        start = time.monotonic()
        client.sendall(begun)
        head, body = answer_of(client)
        assert 1 <= time.monotonic() - start < 5
        is_request = begun.startswith(b"GET")
        assert head.startswith(b"HTTP/1.1 408") == is_request
        assert (b'"/problems/request-timeout"' in body) == is_request


def test_headers_that_trickle_in_are_ended(serve: Serve) -> None:
    served = serve(ConnectionLimits(header_seconds=1))
    with served.connect() as client:
        start = time.monotonic()
        client.sendall(b"GET / HTTP/1.1\r\n")
        with suppress(ConnectionError):
            while time.monotonic() - start < 10:
                client.sendall(b"A: b\r\n")
                time.sleep(0.05)
        assert 1 <= time.monotonic() - start < 5


@pytest.mark.parametrize("trickle", [b"\r\n", b"GET / HTTP/1.1\r\n", b"A"])
def test_also_after_a_request(serve: Serve, trickle: bytes) -> None:
    served = serve(ConnectionLimits(header_seconds=1))
    with served.connect() as client:
        client.sendall(GET)
        assert answer_of(client)[1] == b"1"
        start = time.monotonic()
        client.sendall(trickle)
        while not is_ended(client):
            pass
        assert 1 <= time.monotonic() - start < 5


def test_a_request_under_way_is_not_ended(serve: Serve) -> None:
    served = serve(ConnectionLimits(header_seconds=0.2))
    with served.connect() as client:
        for _ in range(3):
            client.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
            assert answer_of(client)[1] == b"1"
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\nGET / HT")  # the next one is cut, not this
        assert answer_of_next(client) == b"1"


def test_a_connection_may_be_idle_between_requests(serve: Serve) -> None:
    served = serve(ConnectionLimits(header_seconds=0.3))
    with served.connect() as client:
        for _ in range(3):
            client.sendall(GET)
            assert answer_of(client)[1] == b"1"
            time.sleep(1)


def test_an_answer_that_nobody_takes_is_given_up(serve: Serve) -> None:
    served = serve(ConnectionLimits(header_seconds=0.5))
    with served.connect() as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert within(5, lambda: served.connections() == 1 or None)
        assert within(10, lambda: served.connections() == 0 or None)
        client.recv(1)
    with served.connect() as client:  # one that is taken slowly is not
        client.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        taken = 0
        while got := client.recv(MIB):
            taken += len(got)
            time.sleep(0.03)
        assert taken > 64 * MIB


# --- how many ---------------------------------------------------------------------------------------------------------


def test_connections_from_one_address_have_a_limit(serve: Serve) -> None:
    served = serve(NO_PROXIES)
    with ExitStack() as stack:
        held = [stack.enter_context(closing(served.connect())) for _ in range(10)]
        with served.connect() as refused:
            head, body = answer_of(refused)
            assert head.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1" in head.lower()
            assert b'"/problems/too-many-connections"' in body
        with served.connect(OTHER) as other:
            other.sendall(GET)
            assert answer_of(other)[1] == b"1"
        held[0].close()
        within(5, lambda: served.connections() == 9 or None)
        with served.connect() as free:
            free.sendall(GET)
            assert answer_of(free)[1] == b"1"


def test_proxies_have_no_limit_of_their_own(serve: Serve) -> None:
    served = serve(ConnectionLimits(most=30, from_one_address=3, proxies=("127.0.0.2",)))
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(closing(served.connect(OTHER)))
        for _ in range(3):
            stack.enter_context(closing(served.connect()))
        with served.connect() as refused:
            assert answer_of(refused)[0].startswith(b"HTTP/1.1 503")
        with served.connect(OTHER) as other:
            other.sendall(GET)
            assert answer_of(other)[1] == b"1"


def test_connections_in_all_have_a_limit(serve: Serve) -> None:
    served = serve(NO_PROXIES)
    with ExitStack() as stack:
        for source in ("127.0.0.1", OTHER, THIRD):
            for _ in range(10):
                used = stack.enter_context(closing(served.connect(source)))
                used.sendall(GET)
                assert answer_of(used)[1] == b"1"
        with served.connect("127.0.0.4") as refused:
            assert answer_of(refused)[0].startswith(b"HTTP/1.1 503")


def test_silent_connections_make_room(serve: Serve) -> None:
    served = serve(NO_PROXIES)
    with ExitStack() as stack:
        for source in ("127.0.0.1", OTHER, THIRD):
            for _ in range(10):
                stack.enter_context(closing(served.connect(source)))
        with served.connect("127.0.0.4") as early:
            assert answer_of(early)[0].startswith(b"HTTP/1.1 503")
        time.sleep(1.2)
        with served.connect("127.0.0.4") as late:
            late.sendall(GET)
            assert answer_of(late)[1] == b"1"


def test_nothing_is_left_of_connections_that_are_gone(serve: Serve) -> None:
    served = serve(NO_PROXIES)
    for _ in range(50):
        with served.connect() as client:
            client.sendall(GET)
            assert answer_of(client)[1] == b"1"
    within(5, lambda: served.connections() == 0 or None)
    assert not served._server.config.http_protocol_class.addresses  # type: ignore[attr-defined]


# --- the program ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_the_program_is_there_beside_silent_connections(
    demo_bundle: Path, data_dir: Path, tmp_path: Path, workers: int
) -> None:
    """With fewer files than connections: without limits, nobody else would be let in for as long as these stay."""
    settings = {
        "bundle": demo_bundle,
        "data_dir": data_dir,
        "database_url": f"sqlite+aiosqlite:///{tmp_path}/lacuna.db",
        "workers": workers,
        "header_seconds": 2,
        "max_connections": 100,
        "snapshot_minutes": 0,
    }
    with Program(tmp_path / "log", **settings) as program, ExitStack() as stack:
        for pid in program.worker_pids():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (400, 400))
        for _ in range(1000):
            with suppress(OSError):
                stack.enter_context(closing(socket.create_connection(("127.0.0.1", program.port), timeout=5)))
        time.sleep(1.5)
        begun = time.monotonic()
        while not is_served(program.url):
            assert time.monotonic() - begun < 20
        time.sleep(3)
        assert all(is_served(program.url) for _ in range(20))


def is_served(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


# --- settings ---------------------------------------------------------------------------------------------------------


def test_limits_come_from_the_settings() -> None:
    settings = Settings(
        max_connections=7,
        max_address_connections=3,
        proxies="10.0.0.0/8, ::1",
        max_header_bytes=5000,
        header_seconds=2,  # type: ignore[arg-type]
    )
    assert ConnectionLimits.of(settings) == ConnectionLimits(7, 3, ("10.0.0.0/8", "::1"), 5000, 2)
    assert ConnectionLimits.of(Settings()) == ConnectionLimits()


@pytest.mark.parametrize("proxies", ["proxy", "10.0.0.1/8", "10.0.0.0/33"])
def test_a_proxy_is_an_address_or_a_network(monkeypatch: pytest.MonkeyPatch, proxies: str) -> None:
    monkeypatch.setenv("LACUNA_PROXIES", proxies)
    with pytest.raises(SettingsError, match="LACUNA_PROXIES"):
        Settings.load()


def test_addresses_of_proxies() -> None:
    limits = ConnectionLimits(proxies=("10.0.0.0/8", "fd00::/8", "127.0.0.1"))
    for address in ("10.1.2.3", "fd00::1", "127.0.0.1", "::ffff:10.0.0.1", ""):
        assert limits.is_proxy(address)
    for address in ("11.1.2.3", "fe80::1", "127.0.0.2", "::ffff:11.0.0.1"):
        assert not limits.is_proxy(address)


FILES = """
import resource, sys
from service.connections import allow_files
resource.setrlimit(resource.RLIMIT_NOFILE, (200, int(sys.argv[1])))
allow_files(1000)
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("hard", "soft", "warns"), [(5000, 1000 + SPARE_FILES, False), (600, 600, True)])
def test_files_are_as_many_as_connections_need(hard: int, soft: int, warns: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILES, str(hard)], capture_output=True, check=True, text=True, timeout=60
    )
    assert done.stdout.split() == [str(soft), str(hard)]
    assert ("LACUNA_MAX_CONNECTIONS" in done.stderr) == warns


def test_enough_files_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "setrlimit", lambda *_: pytest.fail("changed"))
    allow_files(1)
