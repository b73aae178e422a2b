"""The outermost layers of a request, in plain ASGI: its id and its metrics; the last resort when all else fails; the
count of each caller's requests; then the gate that lets in only as many as can be worked on, for as long as they may
take."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections import Counter
from collections.abc import Callable
from time import perf_counter
from urllib.parse import unquote_to_bytes

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import errors
from service.api.deps import caller_of
from service.api.engines import keep_engine
from service.api.limits import LIMITS, Limits
from service.logging import REQUEST_ID
from service.metrics import Metrics
from service.ports import Limiter

logger = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_HEALTH = frozenset({"/health/live", "/health/ready"})
_ALWAYS_OPEN = _HEALTH | {"/metrics"}
_MOST_PARAMETERS = 100
_STATIC = "/docs/static/"
_DEFAULTS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"referrer-policy", b"same-origin"),  # `no-referrer` would take its Origin from a page's own form
)
_CLIENT_CLOSED = 499  # no answer was sent; the number that nginx made customary


class RequestContext:
    """Gives every request an id and the app's limits, and counts it.

    A HEAD is routed as the GET it asks about, and answered without the body; a path that ends with a slash leads where
    it leads without.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, limits: Limits) -> None:
        self._app = app
        self._metrics = metrics
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other protocols pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        is_head = scope["method"] == "HEAD"
        inner = _routed(scope)
        keep_engine(inner)
        request_id = _request_id(scope)
        token = REQUEST_ID.set(request_id)
        limits_token = LIMITS.set(self._limits)
        status = 0

        async def tagged_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *_with_defaults(message["headers"], inner["path"]),
                    (b"x-request-id", request_id.encode()),
                ]
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(inner, receive, tagged_send)
        except ClientDisconnect:
            status = _CLIENT_CLOSED
        except asyncio.CancelledError:  # by a server that stops, which would answer 500 itself
            if not status:
                await errors.STOPPING.response()(inner, receive, tagged_send)
        finally:
            self._metrics.observe_request(scope["method"], _route(inner), status, perf_counter() - started)
            LIMITS.reset(limits_token)
            REQUEST_ID.reset(token)


class LastResort:
    """Refuses URLs that nobody could read, and turns what nobody caught into a 500 problem."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other protocols pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        try:
            refused = _odd_url(scope)
            await (refused.response() if refused else self._app)(scope, receive, answer.send)
        except (ClientDisconnect, errors.ProblemError):  # a problem of the body, which `Bodies` answers
            raise
        except Exception:
            logger.exception("%s %s failed", scope["method"], _route(scope))
            if answer.has_begun:
                raise
            await errors.INTERNAL.response()(scope, receive, send)


class Counting:
    """Counts every request under its caller before anything else is done for it, whatever is answered: a request that
    is refused for its key, or was answered before, counts too. Health checks are not counted."""

    def __init__(self, app: ASGIApp, limiter: Limiter) -> None:
        self._app = app
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other protocols pass through."""
        is_counted = scope["type"] == "http" and scope["path"] not in _HEALTH
        wait_s = await self._limiter.take(caller_of(scope).name) if is_counted else 0.0
        if wait_s:
            await errors.too_many_requests(wait_s).problem.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)


class Gate:
    """Lets in `most` requests at once, each for `seconds`; what says how the service is doing is always let in.

    A request that is cut off may leave a write done and not taken into memory. The change log heals that.

    Args:
        most_each: of one caller.
        is_proxy: whether many others call from an address.
    """

    def __init__(
        self, app: ASGIApp, *, most: int, most_each: int, seconds: float, is_proxy: Callable[[str], bool]
    ) -> None:
        self._app = app
        self._most = most
        self._most_each = most_each
        self._seconds = seconds
        self._is_proxy = is_proxy
        self._inside = 0
        self._inside_of: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other protocols pass through."""
        if scope["type"] != "http" or scope["path"] in _ALWAYS_OPEN:
            await self._app(scope, receive, send)
            return
        caller = caller_of(scope)
        has_share = caller.key is not None or not self._is_proxy(caller.address)
        if self._inside >= self._most or (has_share and self._inside_of[caller.name] >= self._most_each):
            await errors.OVERLOADED.response()(scope, receive, send)
            return
        self._inside += 1
        self._inside_of[caller.name] += 1
        try:
            await self._within_time(scope, receive, send)
        finally:
            self._inside -= 1
            self._inside_of[caller.name] -= 1
            if not self._inside_of[caller.name]:
                del self._inside_of[caller.name]

    async def _within_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(send)
        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                await self._app(scope, receive, answer.send)
        except TimeoutError:
            if answer.has_begun or not limit.expired():
                raise
            logger.warning("%s %s took longer than %g s", scope["method"], _route(scope), self._seconds)
            await errors.TIMED_OUT.response()(scope, receive, send)


class _Answer:
    """What is sent of an answer, and whether anything was."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False

    async def send(self, message: Message) -> None:
        """Send a message of the answer."""
        self.has_begun = True
        await self._send(message)


def _routed(scope: Scope) -> Scope:
    """The request as it is routed."""
    changes: dict[str, object] = {"method": "GET"} if scope["method"] == "HEAD" else {}
    raw: bytes = scope.get("raw_path") or b""
    if len(raw) > 1 and raw.endswith(b"/"):  # of the URL as it was sent: an encoded slash belongs to a name
        changes |= {"path": scope["path"].removesuffix("/"), "raw_path": raw.removesuffix(b"/")}
    return {**scope, **changes} if changes else scope


def _request_id(scope: Scope) -> str:
    """The client's id where it is harmless, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return secrets.token_hex(8)


def _with_defaults(headers: Headers, path: str) -> Headers:
    """The headers of an answer, with those that it does not set itself: no answer is shown in another page's frame, and
    none but files that are everybody's is kept on its way."""
    said = {name.lower() for name, _ in headers}
    wanted = _DEFAULTS if path.startswith(_STATIC) else (*_DEFAULTS, (b"cache-control", b"no-store"))
    return [*headers, *(pair for pair in wanted if pair[0] not in said)]


def _route(scope: Scope) -> str:
    """The route's template; all unknown paths count as one."""
    return getattr(scope.get("route"), "path", "unmatched")


def _odd_url(scope: Scope) -> errors.Problem | None:
    """What is wrong with the URL's bytes, if anything: they are percent-encoded UTF-8 without NUL, and few."""
    url: bytes = scope.get("raw_path", b"") + b"?" + scope["query_string"]
    if not url.isascii():
        return errors.malformed("The URL holds bytes that must be percent-encoded.").problem
    if scope["query_string"].count(b"&") >= _MOST_PARAMETERS:
        return errors.invalid([errors.FieldError("", f"the URL may have {_MOST_PARAMETERS} parameters at most")])
    if b"%" not in url:
        return None
    plain = unquote_to_bytes(url)
    if b"\0" in plain:
        return errors.invalid([errors.FieldError("", "the URL may not hold the NUL character")])
    try:
        plain.decode()
    except UnicodeDecodeError:
        return errors.malformed("The URL is not UTF-8.").problem
    return None
