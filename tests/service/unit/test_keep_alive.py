"""Connections that nobody uses are ended, and no other ones."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from service import workers
from service.connections import ConnectionLimits

SILENCE_S = 1


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers at once, and after /hold holds up the whole process."""
    if scope["path"] == "/hold":
        bell, ringer = socket.socketpair()
        asyncio.get_running_loop().add_reader(bell, hold, bell)
        with ringer:
            ringer.send(b"!")
    await PlainTextResponse("here")(scope, receive, send)


def hold(bell: socket.socket) -> None:
    """Where the loop reads what has arrived, so that timers are what it sees to next, as after SIGCONT."""
    asyncio.get_running_loop().remove_reader(bell)
    bell.close()
    time.sleep(SILENCE_S + 0.5)


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(workers, "KEEP_ALIVE_S", SILENCE_S)
    server = workers.server_of(app, ConnectionLimits())
    server.config.lifespan = "off"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(20)


def test_a_request_that_came_while_the_process_was_held_up_is_answered(port: int) -> None:
    with closing(HTTPConnection("127.0.0.1", port)) as waiting, closing(HTTPConnection("127.0.0.1", port)) as holding:
        waiting.request("GET", "/")
        assert waiting.getresponse().read() == b"here"
        holding.request("GET", "/hold")
        time.sleep(0.2)
        waiting.request("GET", "/")  # on a connection that will have been silent for too long when it is looked at
        assert waiting.getresponse().read() == b"here"
        assert holding.getresponse().read() == b"here"


def test_a_silent_connection_is_ended(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as silent:
        silent.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        assert silent.recv(1 << 16).endswith(b"here")
        begun = time.monotonic()
        assert silent.recv(1) == b""
        assert time.monotonic() - begun < 10 * SILENCE_S
