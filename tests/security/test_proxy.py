"""The proxy of the composition keeps what the service cannot see: whose connections are how many, and how slow."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx
import pytest

from service.connections import ConnectionLimits
from service.settings import Settings
from tests.security.serving import answer_of, serving
from tests.service.processes import free_port, within

CONFIG = (Path(__file__).parents[2] / "deploy" / "haproxy.cfg").read_text("utf-8")
SECONDS = 3
SHARE = 5


def test_the_proxy_lets_no_more_through_than_the_service_takes() -> None:
    most = int(re.findall(r"server-template .* maxconn (\d+)", CONFIG)[0])
    assert most < ConnectionLimits().most
    assert int(re.findall(r"sc0_conn_cur gt (\d+)", CONFIG)[0]) == ConnectionLimits().from_one_address
    assert f"timeout http-request {ConnectionLimits().header_seconds:.0f}s" in CONFIG


@pytest.fixture
def proxy(startable: Callable[..., Settings], tmp_path: Path) -> Iterator[int]:
    """The port of HAProxy before one service, with the limits that a test can reach in its time."""
    program = shutil.which("haproxy")
    if program is None:
        pytest.skip("there is no haproxy")
    with serving(startable(max_body_bytes=1 << 20)) as served:
        port = free_port()
        text = CONFIG.replace("bind :8000", f"bind 127.0.0.1:{port}").replace(
            "http-request 10s", f"http-request {SECONDS}s"
        )
        text = re.sub(r"server-template .*", f"server one 127.0.0.1:{served.address[1]} check inter 1s", text)
        text = re.sub(r"gt \d+", f"gt {SHARE}", text)
        file = tmp_path / "haproxy.cfg"
        file.write_text(text)
        process = subprocess.Popen(
            [program, "-db", "-f", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            within(20, lambda: is_served(port) or None)
            yield port
        finally:
            process.kill()
            process.wait()


def is_served(port: int) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200
    return False


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_connection_without_a_request_is_ended(proxy: int, begun: bytes) -> None:
    with socket.create_connection(("127.0.0.1", proxy), timeout=20) as client:
        start = time.monotonic()
        client.sendall(begun)
        head, _ = answer_of(client)
        assert head.startswith(b"HTTP/1.1 408") or not head
        assert SECONDS - 0.1 <= time.monotonic() - start < 10


def test_large_headers_are_refused(proxy: int) -> None:
    with socket.create_connection(("127.0.0.1", proxy), timeout=20) as client:
        with suppress(ConnectionError):
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 100_000)
        with suppress(ConnectionError):
            assert answer_of(client)[0].startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))


def test_one_address_has_its_share(proxy: int) -> None:
    with ExitStack() as stack:
        for _ in range(SHARE):
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", proxy), timeout=20)))
        with (
            suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", proxy), timeout=20) as refused,
        ):
            refused.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert refused.recv(100) == b""
        with socket.create_connection(("127.0.0.1", proxy), timeout=20, source_address=("127.0.0.2", 0)) as other:
            other.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert answer_of(other)[0].startswith(b"HTTP/1.1 200")


def test_a_body_that_is_too_large_is_told(proxy: int) -> None:
    answer = httpx.post(
        f"http://127.0.0.1:{proxy}/items",
        content=bytes(30 << 20),
        headers={"Content-Type": "application/json"},
        timeout=60,
    )
    assert answer.json()["type"] == "/problems/body-too-large"
