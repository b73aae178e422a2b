"""An app behind the server that the program runs, in a thread of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import httpx

from service.connections import ConnectionLimits
from service.main import create_app
from service.settings import Settings
from service.workers import server_of
from tests.service.processes import within


class Served:
    """`address` is where it listens."""

    def __init__(self, app: Any, limits: ConnectionLimits | None = None) -> None:
        self._server = server_of(app, limits or ConnectionLimits())

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    def connections(self) -> int:
        """How many the server has."""
        return len(self._server.server_state.connections)

    def connect(self, source: str = "127.0.0.1", seconds: float = 20) -> socket.socket:
        """A connection, from any of this machine's own addresses."""
        return socket.create_connection(self.address, timeout=seconds, source_address=(source, 0))


@contextmanager
def serving(settings: Settings, around: Callable[[Any], Any] = lambda app: app) -> Iterator[Served]:
    """The app with the engine that it starts itself, and what is put around it."""
    with Served(around(create_app(settings))) as service:
        within(60, lambda: httpx.get(f"{service.url}/health/ready").status_code == 200 or None)
        yield service


def answer_of(client: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of an answer that names its length; what there was of it where the connection is closed."""
    got = b""
    while b"\r\n\r\n" not in got and (more := client.recv(65536)):
        got += more
    head, _, body = got.partition(b"\r\n\r\n")
    lines = [line.partition(b":") for line in head.lower().split(b"\r\n")]
    length = next((int(value) for name, _, value in lines if name == b"content-length"), 0)
    while len(body) < length and (more := client.recv(65536)):
        body += more
    return head, body
