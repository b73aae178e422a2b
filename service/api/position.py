"""Reading what one has just written, whichever worker answers: every write's answer tells where in the change log it
stands, and a request that names such a position is answered by a worker that knows all up to there."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import errors
from service.api.engines import engine_of
from service.domain import LacunaError
from service.pipeline import follow
from service.pipeline.engine import Engine
from service.pipeline.runtime import WRITTEN

HEADER = "X-Lacuna-Position"
LARGEST = 2**63 - 1
WRITES = "lacuna.writes"  # in the scope of a request that may write
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)


async def reach(request: Request) -> None:
    """Wait until this worker knows the writes that the request builds on.

    Raises:
        ProblemError: the header is no position. NotFollowedError: the worker does not know them in time.
    """
    given = request.headers.getlist(HEADER)
    if not given:
        return
    position = int(given[0]) if len(given) == 1 and _NUMBER.fullmatch(given[0]) else -1
    if not 0 <= position <= LARGEST:
        detail = "this is a position that a write was answered with: one whole number"
        raise errors.ProblemError(errors.invalid([errors.FieldError(f"/header/{HEADER}", detail)]))
    engine = engine_of(request.scope)
    if engine is not None:  # without one, the route says so
        await follow.reach(engine, position)


class Position:
    """Tells in the answer of each write where in the change log it stands. One that found nothing to do, or was done
    before, stands at the log's end: what it found is not newer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other protocols pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        token = WRITTEN.set(0)

        async def telling_send(message: Message) -> None:
            if message["type"] == "http.response.start" and scope.get(WRITES) and message["status"] < 500:
                message = {**message, "headers": [*message["headers"], *await _headers(engine_of(scope))]}
            await send(message)

        try:
            await self._app(scope, receive, telling_send)
        finally:
            WRITTEN.reset(token)


async def _headers(engine: Engine | None) -> list[tuple[bytes, bytes]]:
    position = WRITTEN.get()
    if not position and engine is not None:
        try:
            position = await engine.store.last_change()
        except LacunaError:  # the answer itself does not depend on it
            return []
    return [(HEADER.lower().encode(), str(position).encode())] if position else []
