"""What `lacuna check`, `lacuna rebuild`, `lacuna retrain` and `lacuna activate` ask of a running service."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx

from training.progress import Terminal

TIMEOUT_S = 3600.0  # a check of everything computes everything
LOOK_S = 1.0  # between two looks at what is pending
FOUND_S = 60.0  # until a service must have found a new bundle


class ServiceError(Exception):
    """What a service refuses, or that it does not answer, in one sentence."""


class RefusedError(ServiceError):
    """A bundle that a service refuses."""


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


def active_model(client: httpx.Client) -> dict[str, Any]:
    """The bundle that a service is active with (`GET /models`)."""
    models: list[dict[str, Any]] = _asked(client, "GET", "/models")["models"]
    return next(model for model in models if model["state"] == "active")


def activate(
    client: httpx.Client,
    version: str,
    terminal: Terminal,
    *,
    force: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Have a bundle activated, and wait; the bundle as it is then: active, refused with its `detail`, or failed.

    Raises:
        ServiceError: the service does not find the bundle, or does not answer.
    """
    until = time.monotonic() + FOUND_S
    while all(model["version"] != version for model in _asked(client, "GET", "/models")["models"]):
        if time.monotonic() > until:
            raise ServiceError(f"the service does not find {version}: is it where its LACUNA_BUNDLES points to?")
        sleep(LOOK_S)
    path = f"/models/{quote(version, safe='')}"
    try:
        model = _asked(client, "POST", f"{path}/activate", params={"force": "true"} if force else None)
    except RefusedError as error:
        return _told(_asked(client, "GET", path) | {"detail": str(error)}, terminal)
    while model["state"] == "preparing":
        progress = model.get("progress") or {}
        if "of" in progress:
            terminal.stage(f"activation: {progress['step']}", progress["done"], progress["of"])
        sleep(LOOK_S)
        model = _asked(client, "GET", path)
    return _told(model, terminal)


def _told(model: dict[str, Any], terminal: Terminal) -> dict[str, Any]:
    detail = f": {model['detail']}" if model.get("detail") else ""
    terminal.say(f"bundle {model['version']} is {model['state']}{detail}")
    return model


def _pending(client: httpx.Client) -> int:
    pending = _asked(client, "GET", "/stats")["pending"]
    return int(pending["items"] + pending["changes"]) or int(pending["vectors"] > 0)


def _asked(client: httpx.Client, method: str, path: str, **options: Any) -> dict[str, Any]:
    try:
        response = client.request(method, path, **options)
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise ServiceError(f"the service at {client.base_url} does not answer: {reason}") from None
    try:
        body = response.json()
    except ValueError:
        body = None
    if response.is_error or not isinstance(body, dict):
        detail = body.get("detail") if isinstance(body, dict) else None
        sentence = f"{path} was answered {response.status_code}: {detail or 'no service of Lacuna'}"
        refused = isinstance(body, dict) and body.get("type") == "/problems/bundle-refused"
        raise (RefusedError if refused else ServiceError)(sentence)
    return body
