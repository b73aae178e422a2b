"""Idempotency keys, in plain ASGI: a request that is sent again is answered as it was, and done once.

The answer is kept in the transaction of the write itself, so that a service that dies between the two still knows it.
(A batch is written in several: rows that a dying service had stored answer 409 when the batch is sent again.)
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import errors
from service.api.deps import key_name
from service.api.engines import engine_of
from service.api.position import WRITES
from service.domain import LacunaError, StoreUnavailableError
from service.pipeline.engine import Engine
from service.ports import Answer

logger = logging.getLogger(__name__)

HEADER = "idempotency-key"
PATHS = frozenset({"/items", "/items/batch", "/feedback"})
LONGEST = 255
SCOPE = "lacuna.idempotency_key"
_TRANSIENT = frozenset({401, 403, 408, 421, 425, 429})  # beside all 5xx
REPLAYED = (b"idempotency-replayed", b"true")


def key_of(request: Request) -> str | None:
    """The key under which this request's write keeps its answer."""
    key: str | None = request.scope.get(SCOPE)
    return key


class Idempotency:
    """Answers repeated requests. Keys belong to who sends them: an API key, or everybody without keys.

    Args:
        lease_s: after so long, a request that was never answered counts as dead, and its key can be taken again.
    """

    def __init__(self, app: ASGIApp, lease_s: float) -> None:
        self._app = app
        self._lease_s = lease_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; those without a key pass through."""
        can_have_one = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in PATHS
        given = Headers(scope=scope).get(HEADER) if can_have_one else None
        if given is None:
            await self._app(scope, receive, send)
            return
        sender, engine = key_name(scope), engine_of(scope)
        if sender is None or engine is None:  # without a right to write, the route says so
            await self._app(scope, receive, send)
            return
        if not (0 < len(given) <= LONGEST and given.isascii() and given.isprintable()):
            detail = f"the header Idempotency-Key takes 1 to {LONGEST} printable ASCII characters"
            await errors.invalid([errors.FieldError("", detail)]).response()(scope, receive, send)
            return
        body = await _read(receive)
        try:
            await self._once(engine, f"{sender}:{given}", body, scope, send)
        except LacunaError as error:  # of the keys' table, before anything was answered
            await errors.answer(error)(scope, body.receive, send)

    async def _once(self, engine: Engine, key: str, body: _Body, scope: Scope, send: Send) -> None:
        claim = await engine.store.claim(key, _fingerprint(scope, body.data), lease_s=self._lease_s)
        scope[WRITES] = True
        if isinstance(claim, Answer):
            await _replay(claim, send)
        elif claim == "busy":
            await errors.IN_PROGRESS.response()(scope, body.receive, send)
        elif claim == "other":
            await errors.KEY_REUSED.response()(scope, body.receive, send)
        else:
            await self._first(engine, key, body, scope, send)

    async def _first(self, engine: Engine, key: str, body: _Body, scope: Scope, send: Send) -> None:
        held: list[Message] = []

        async def hold(message: Message) -> None:
            held.append(message)

        try:
            scope[SCOPE] = key  # not in a copy: whoever counts the request looks at this one for its route
            await self._app(scope, body.receive, hold)
            if _is_final(held[0]):
                await engine.store.answered(key, _answer(held))
        finally:
            await _release(engine, key)
        for message in held:
            await send(message)


async def _release(engine: Engine, key: str) -> None:
    """Let a request by which nothing was done be tried again; where the database is away, once its lease is over."""
    try:
        await engine.store.release(key)
    except StoreUnavailableError as error:
        logger.warning("an idempotency key stays taken until its lease is over: %s", error.reason)


@dataclass
class _Body:
    """A request's body that was read, to be read again."""

    data: bytes
    rest: Receive
    is_told: bool = False

    async def receive(self) -> Message:
        """The body at once, and then whatever comes after it."""
        if self.is_told:
            return await self.rest()
        self.is_told = True
        return {"type": "http.request", "body": self.data, "more_body": False}


async def _read(receive: Receive) -> _Body:
    """The body. Raises ProblemError where it cannot be used, ClientDisconnect where its sender is gone."""
    parts: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return _Body(b"".join(parts), receive)


def _fingerprint(scope: Scope, body: bytes) -> str:
    total = hashlib.sha256()
    content_type = Headers(scope=scope).get("content-type", "")
    for part in (scope["path"].encode(), scope["query_string"], content_type.encode(), body):
        total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()


def _is_final(start: Message) -> bool:
    """Whether the same request would be answered so again, which what says to come back later does not promise."""
    says_later = any(name == b"retry-after" for name, _ in start["headers"])
    return start["status"] < 500 and start["status"] not in _TRANSIENT and not says_later


def _answer(messages: list[Message]) -> Answer:
    body = b"".join(message.get("body", b"") for message in messages if message["type"] == "http.response.body")
    return Answer(messages[0]["status"], body)


async def _replay(answer: Answer, send: Send) -> None:
    kind = b"application/json" if answer.status < 400 else b"application/problem+json"
    headers = [(b"content-type", kind), (b"content-length", str(len(answer.body)).encode()), REPLAYED]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
