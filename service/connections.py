"""Connections, before there is a request: how many there are, how long their headers take and how large they grow.

Nothing here has seen a key yet, so nothing here may cost much: a connection holds one timer, and a request pays for a
few comparisons.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import resource
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api import errors
from service.api.limits import network_of
from service.logging import REQUEST_ID
from service.settings import Settings

logger = logging.getLogger(__name__)

LOOK_S = 0.2
MOST_HEADERS = 100
MOST_PIPELINED = 20
SPARE_FILES = 128  # for the database, the index and the log, beside the connections
LEAST_WAIT_S = 1.0  # a connection that waits for so long makes room for another one


@dataclass(frozen=True)
class ConnectionLimits:
    """What a process takes of connections."""

    most: int = 1_000
    from_one_address: int = 500
    proxies: tuple[str, ...] = ("127.0.0.0/8", "::1")  # addresses and networks that connect for many others
    header_bytes: int = 64 << 10
    header_seconds: float = 10.0

    @classmethod
    def of(cls, settings: Settings) -> ConnectionLimits:
        """The limits that the settings name."""
        return cls(
            settings.max_connections,
            settings.max_address_connections,
            settings.proxies,
            settings.max_header_bytes,
            settings.header_seconds,
        )

    @cached_property
    def _networks(self) -> Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        return [ipaddress.ip_network(proxy) for proxy in self.proxies]

    def is_proxy(self, address: str) -> bool:
        """Whether any number of connections may come from an address."""
        try:
            found = ipaddress.ip_address(address)
        except ValueError:  # of a socket in the file system
            return True
        found = getattr(found, "ipv4_mapped", None) or found
        return any(found in network for network in self._networks)


def allow_files(connections: int) -> None:
    """Let the process open as many files as its connections take, as far as the system lets it."""
    wanted = connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard):
        return
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    if hard < wanted:
        logger.warning(
            "The system lets this process open %d files: LACUNA_MAX_CONNECTIONS=%d needs %d", hard, connections, wanted
        )


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits. `of` gives it those of a server, and a count of its own.

    A silent connection is looked at twice before it is ended: the loop runs timers before it reads what has arrived, so
    after a process was held up, requests that came meanwhile would be reset, not answered.
    """

    limits: ClassVar[ConnectionLimits]
    addresses: ClassVar[Counter[str]]  # of connections

    @classmethod
    def of(cls, limits: ConnectionLimits) -> type[LimitedProtocol]:
        """The protocol of one server."""
        return type("LimitedProtocol", (cls,), {"limits": limits, "addresses": Counter()})

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._address: str | None = None  # while it is counted
        self._waiting_since: float | None = None  # for headers, complete ones
        self._in_head = False
        self._is_last_look = False
        self._unsent = -1
        self._fruitless = 0  # bytes since the last end of headers or piece of a body
        self._refusal: errors.Problem | None = None

    # --- how many ---------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it, and refuse it where there are too many."""
        super().connection_made(transport)
        self._waiting_since = self.loop.time()
        self._watch_in(self.limits.header_seconds)
        address = self.client[0] if self.client else ""
        if len(self.connections) > self.limits.most and not self._takes_a_place():
            self._refuse(errors.TOO_MANY_CONNECTIONS)
        elif not self.limits.is_proxy(address):
            self._address = network_of(address)
            self.addresses[self._address] += 1
            if self.addresses[self._address] > self.limits.from_one_address:
                self._refuse(errors.TOO_MANY_CONNECTIONS)

    def _takes_a_place(self) -> bool:
        """End the connection that has waited for its headers the longest, if that is long."""
        waiting = [
            (one._waiting_since, one)
            for one in self.connections
            if isinstance(one, LimitedProtocol) and one._waiting_since is not None and not one.transport.is_closing()
        ]
        since, longest = min(waiting, key=lambda pair: pair[0])
        if self.loop.time() - since < LEAST_WAIT_S or longest._is_answering():
            return False
        longest.transport.abort()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it no longer."""
        super().connection_lost(exc)
        self._watch.cancel()
        if self._address is not None:
            self.addresses[self._address] -= 1
            if not self.addresses[self._address]:
                del self.addresses[self._address]
            self._address = None

    # --- how long ---------------------------------------------------------------------------------------------------

    def _watch_in(self, seconds: float) -> None:
        self._watch = self.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """End the connection if it has waited for headers for too long, or its last answer is not taken."""
        if self.transport.is_closing():
            self._look_at_the_rest()
            return
        now, since = self.loop.time(), self._waiting_since
        if since is None or self._is_answering():
            self._watch_in(self.limits.header_seconds)
        elif (left := since + self.limits.header_seconds - now) > 0:
            self._watch_in(left)
        elif not self._is_last_look:
            self._is_last_look = True
            self._watch_in(LOOK_S)
        elif self._in_head:
            self._refuse(errors.HEADERS_TOO_SLOW)
        else:
            self.transport.close()

    def _look_at_the_rest(self) -> None:
        """What is left of the answer keeps a closing connection open: for as long as somebody takes it."""
        size = self.transport.get_write_buffer_size()
        if size == self._unsent:
            self.transport.abort()
        else:
            self._unsent = size
            self._watch_in(self.limits.header_seconds)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def timeout_keep_alive_handler(self) -> None:
        """End the connection if nothing has come by the next look either."""
        self.timeout_keep_alive_task = self.loop.call_later(LOOK_S, super().timeout_keep_alive_handler)

    # --- how large --------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        self._fruitless += len(data)
        super().data_received(data)
        if self._fruitless > self.limits.header_bytes and not self.transport.is_closing():
            self._refuse(errors.HEADERS_TOO_LARGE)
        elif self._waiting_since is None and not self._is_answering():
            self._wait()  # something has come that began no request

    def _wait(self) -> None:
        self._waiting_since = self.loop.time()
        self._is_last_look = False

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._in_head = True
        self._wait()

    def on_headers_complete(self) -> None:
        """The end of the headers."""
        if len(self.headers) > MOST_HEADERS or (self._fruitless > self.limits.header_bytes and self._is_too_large()):
            self._refusal = errors.HEADERS_TOO_LARGE
            raise ValueError("the headers are too large")  # ends the parser, which calls for `send_400_response`
        if len(self.pipeline) >= MOST_PIPELINED:
            raise ValueError("there are too many requests at once")
        self._in_head = False
        self._waiting_since = None
        self._fruitless = 0
        super().on_headers_complete()
        self.headers = []  # what comes after the body is none of the request's

    def _is_too_large(self) -> bool:
        """Whether the headers are, and not only what came with them."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        return size > self.limits.header_bytes

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._fruitless = 0
        super().on_body(body)

    # --- refusing ---------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the words are uvicorn's
        """Refuse what the parser has stumbled over."""
        self._refuse(self._refusal or errors.NO_HTTP)

    def _refuse(self, problem: errors.Problem) -> None:
        """Answer without a request, and close; where an answer is under way, which this would corrupt, only close."""
        if self._is_answering():
            self.transport.abort()
            return
        request_id = secrets.token_hex(8)
        token = REQUEST_ID.set(request_id)
        answer = problem.response()
        REQUEST_ID.reset(token)
        headers = [*answer.raw_headers, (b"x-request-id", request_id.encode()), (b"connection", b"close")]
        lines = [STATUS_LINE[problem.status].rstrip(), *(name + b": " + value for name, value in headers)]
        self.transport.write(b"\r\n".join((*lines, b"", bytes(answer.body))))
        self.transport.close()
