"""`lacuna check` and `lacuna rebuild`: what they ask of a running service."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx

from models.errors import sentence_of
from training.progress import Terminal

TIMEOUT_S = 3600.0  # a check of everything computes everything
LOOK_S = 1.0  # between two looks at what is pending


class ServiceError(Exception):
    """What a service refuses, or that it does not answer, in one sentence."""


def client_of(url: str, key: str | None, timeout_s: float = TIMEOUT_S) -> httpx.Client:
    """A client of a service.

    Raises:
        ServiceError: the URL or the key is none.
    """
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ServiceError("the API key holds characters that no header can")
    try:
        parsed = httpx.URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ServiceError(f"{url!r} is no URL: it must be http://HOST:PORT")
        return httpx.Client(
            base_url=parsed, headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=timeout_s
        )
    except (httpx.InvalidURL, ValueError) as error:  # ValueError: of a proxy in the environment
        raise ServiceError(f"{url!r} is no URL: {error}") from None


def check(client: httpx.Client, sample: int | None) -> dict[str, Any]:
    """What a check of a sample, or of everything, has found (`POST /admin/check`)."""
    return _asked(client, "POST", "/admin/check", params=None if sample is None else {"sample": sample})


def rebuild(client: httpx.Client, terminal: Terminal, sleep: Callable[[float], None] = time.sleep) -> int:
    """Have everything derived anew, and wait until it is; how many items were."""
    items: int = _asked(client, "POST", "/admin/rebuild")["items"]
    while left := _pending(client):
        terminal.stage("items", max(items - left, 0), items)
        sleep(LOOK_S)
    terminal.stage("items", items, items)
    return items


def _pending(client: httpx.Client) -> int:
    pending = _asked(client, "GET", "/stats")["pending"]
    return int(pending["items"] + pending["changes"]) or int(pending["vectors"] > 0)


def _asked(client: httpx.Client, method: str, path: str, **options: Any) -> dict[str, Any]:
    try:
        response = client.request(method, path, **options)
    except httpx.HTTPError as error:
        raise ServiceError(f"the service at {client.base_url} does not answer: {sentence_of(error)}") from None
    try:
        body = response.json()
    except ValueError:
        body = None
    if response.is_error or not isinstance(body, dict):
        detail = body.get("detail") if isinstance(body, dict) else None
        raise ServiceError(f"{path} was answered {response.status_code}: {detail or 'no service of Lacuna'}")
    return body
