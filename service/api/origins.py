"""Requests that a web page makes without the knowledge of who has it open, in plain ASGI.

A browser carries the requests of any page to any address, this machine's own among them. Where there are keys, no page
has one. Where there are none, two things tell such requests from others: the name that the browser looked up (Host),
which a page of another site can make lead here (DNS rebinding), but not rename; and where the page came from (Origin,
Sec-Fetch-Site), which browsers send with whatever changes something.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api import errors
from service.settings import is_loopback

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_SITES = (b"same-origin", b"none")  # none: by whoever uses the browser, not by a page


class Origins:
    """Refuses requests for other names than this machine's, and changes that pages of other origins ask for.

    Args:
        loopback_only: whether only names of the loopback interface are answered.
        allowed: origins whose pages may call, or `*`.
    """

    def __init__(self, app: ASGIApp, *, loopback_only: bool, allowed: Collection[str]) -> None:
        self._app = app
        self._loopback_only = loopback_only
        self._allowed = frozenset(origin.encode() for origin in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other protocols pass through."""
        problem = self._refusal(scope) if scope["type"] == "http" else None
        await (problem.response() if problem else self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> errors.Problem | None:
        hosts, origins, sites = (_values(scope, name) for name in (b"host", b"origin", b"sec-fetch-site"))
        if self._loopback_only and not all(map(_names_this_machine, hosts)):
            return errors.FOREIGN_HOST
        if scope["method"] in _READING or b"*" in self._allowed or (origins and self._allowed.issuperset(origins)):
            return None
        own = {scheme + host for scheme in (b"http://", b"https://") for host in hosts}
        is_own = own.issuperset(origins) and all(site in _OWN_SITES for site in sites)
        return None if is_own else errors.FOREIGN_ORIGIN


def _values(scope: Scope, header: bytes) -> list[bytes]:
    return [value.strip().lower() for name, value in scope["headers"] if name == header]


def _names_this_machine(host: bytes) -> bool:
    """Whether a Host header, with its port or without, is one of the loopback interface."""
    name = host.decode("latin-1")
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    return is_loopback(name) or name.endswith(".localhost")
