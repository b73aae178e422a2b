"""Requests' bodies, in plain ASGI: decoded, within the limits, and read to their end before anything is answered.

A server that answers and closes while a client still sends resets the connection, and the client never sees the
answer. So whatever is answered, the rest of the body is read and thrown away first, up to `DRAINED_BYTES`.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import errors

DRAINED_BYTES = 64 << 20
CODINGS = ("gzip", "deflate")
_PIECE = 64 << 10  # of decoded bytes, at a time
_MOST_MEMBERS = 100  # of a gzip body; one is usual
_LENGTH_DIGITS = 20  # longer numbers are none that a server lets through
_CLOSE = (b"connection", b"close")


class Bodies:
    """What the layers below receive of a body is decoded, and a problem once it is larger than it may be.

    Args:
        most: the largest body, in bytes, as it comes and decoded.
        together: the most bytes of all bodies that are held at once; more are answered 503.
        seconds: how long a body that nobody wants may take to come.
    """

    def __init__(self, app: ASGIApp, most: int, together: int, seconds: float) -> None:
        self._app = app
        self._seconds = seconds
        self.most = most
        self.together = max(most, together)
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; those without a body pass through."""
        if scope["type"] != "http" or not _announces_a_body(scope):
            await self._app(scope, receive, send)
            return
        body = _Body(self, scope, receive, send, asyncio.get_running_loop().time() + self._seconds)
        try:
            await self._app(scope, body.receive, body.send)
        except errors.ProblemError as error:  # of the body, met by a layer that answers no problems
            await error.problem.response()(scope, receive, body.send)
        finally:
            self.held -= body.held
        await body.finish()


class _Body:
    """One request's body."""

    __slots__ = (
        "_bodies", "_coding", "_declared", "_decoder", "_is_told", "_kept", "_more", "_pieces", "_read", "_receive",
        "_send", "_until", "_waits", "held",
    )  # fmt: skip

    def __init__(self, bodies: Bodies, scope: Scope, receive: Receive, send: Send, until: float) -> None:
        self.held = 0
        self._kept: list[Message] = []  # of the answer
        self._bodies = bodies
        self._receive = receive
        self._send = send
        self._until = until
        self._declared, self._coding, self._waits = _described(scope)
        self._read = 0
        self._more = True  # to come from the client
        self._is_told = False  # to its end, to whoever receives
        self._decoder: _Inflater | None = None
        self._pieces: Iterator[bytes] = iter(())

    async def receive(self) -> Message:
        """The next piece of the body, then whatever comes after it.

        Raises:
            ProblemError: the body is too large, in a coding that is not read, or not in the one it says.
        """
        if self._is_told:
            return await self._receive()
        if not self._read:
            self._begin()
        while (piece := next(self._pieces, None)) is None:
            if not self._more:
                return self._end()
            message = await self._take()
            if message["type"] != "http.request":
                self._is_told = True
                return message
            data = message.get("body", b"")
            self._pieces = iter((data,) if data else ()) if self._decoder is None else self._decoder.decode(data)
        self._hold(len(piece))
        if self._decoder is not None:
            await asyncio.sleep(0)  # a few bytes may become many pieces
        else:
            self._is_told = not self._more
        return {"type": "http.request", "body": piece, "more_body": not self._is_told}

    def _begin(self) -> None:
        if self._declared > self._bodies.most:
            raise errors.too_large(self._bodies.most)
        if self._coding not in ("", *CODINGS):
            raise errors.unsupported_coding(CODINGS)
        if self._coding and self._decoder is None:
            self._decoder = _Inflater()

    def _end(self) -> Message:
        self._is_told = True
        if self._decoder is not None:
            self._decoder.check_end()
        return {"type": "http.request", "body": b"", "more_body": False}

    def _hold(self, size: int) -> None:
        self.held += size
        self._bodies.held += size
        if max(self.held, self._read) > self._bodies.most:
            raise errors.too_large(self._bodies.most)
        if self._bodies.held > self._bodies.together:
            raise errors.ProblemError(errors.OVERLOADED)

    async def _take(self) -> Message:
        message = await self._receive()
        self._read += len(message.get("body", b""))
        self._more = message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the answer, or keep it where the client still sends."""
        if self._more or self._kept:
            self._kept.append(message)
        else:
            await self._send(message)

    async def finish(self) -> None:
        """Read on to the body's end, then send what was kept. By now the request takes nobody's place."""
        if not self._kept:
            return
        with suppress(TimeoutError):
            await self._drain()
        if self._more:
            start = self._kept[0]
            start["headers"] = [*start.get("headers", ()), _CLOSE]
        for message in self._kept:
            await self._send(message)

    async def _drain(self) -> None:
        if self._declared > DRAINED_BYTES or (self._waits and not self._read):
            return  # too much to wait for, or it was not asked for
        async with asyncio.timeout_at(self._until):
            while self._more and self._read <= DRAINED_BYTES:
                await self._take()


class _Inflater:
    """gzip, zlib and raw deflate, told from their first bytes, in pieces of bounded size."""

    def __init__(self) -> None:
        self._stream: zlib._Decompress | None = None
        self._members = 0

    def decode(self, data: bytes) -> Iterator[bytes]:
        """What the bytes decode to. Raises ProblemError where they are no such data."""
        may_hold_more = False
        while data or may_hold_more:
            if self._stream is None:
                self._stream = self._begin(data)
            try:
                piece = self._stream.decompress(data, _PIECE)
            except zlib.error as error:
                raise errors.malformed(f"The body is not in the coding that it says: {error}.") from None
            data, may_hold_more = self._stream.unconsumed_tail, len(piece) == _PIECE
            if self._stream.eof:
                data, may_hold_more, self._stream = self._stream.unused_data, False, None
            if piece:
                yield piece

    def _begin(self, data: bytes) -> zlib._Decompress:
        self._members += 1
        if self._members > _MOST_MEMBERS:
            raise errors.malformed(f"The body is compressed in more than {_MOST_MEMBERS} members.")
        if data[0] == 0x1F:
            return zlib.decompressobj(16 + zlib.MAX_WBITS)
        return zlib.decompressobj(zlib.MAX_WBITS if data[0] & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS)

    def check_end(self) -> None:
        """Raise ProblemError unless the data came to their end."""
        if self._stream is not None or not self._members:
            raise errors.malformed("The compressed body ends early.")


def _announces_a_body(scope: Scope) -> bool:
    for name, value in scope["headers"]:
        if (name == b"content-length" and value != b"0") or name == b"transfer-encoding":
            return True
    return False


def _described(scope: Scope) -> tuple[int, str, bool]:
    """The length that is declared (0 for none), the coding, and whether the client waits to be asked for the body.

    The layers below see the body decoded, so its coding and length are taken from the headers.
    """
    length, codings, waits = 0, [], False
    for name, value in scope["headers"]:
        if name == b"content-length" and len(value) < _LENGTH_DIGITS and value.isdigit():
            length = int(value)
        elif name == b"content-encoding":
            codings += [part.strip().lower() for part in value.decode("latin-1").split(",")]
        elif name == b"expect":
            waits = value.lower() == b"100-continue"
    coding = ",".join(name.removeprefix("x-") for name in codings if name not in ("", "identity"))
    if coding:
        consumed = (b"content-encoding", b"content-length")
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name not in consumed]
    return length, coding, waits
