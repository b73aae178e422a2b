"""Every operation of the OpenAPI document under every role, so that none can be added without one."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import BaseRoute, Mount, Route

from service.main import create_app
from service.pipeline.engine import Engine
from service.settings import Settings
from tests.service.asgi import client_of, settings_of

ROLES = (None, "read", "write", "admin")  # each may do what those before it may
KEYS = {role: f"key-of-{role}-0123456789" for role in ROLES if role is not None}
OPEN = {("get", "/health/live"), ("get", "/health/ready"), ("get", "/problems/{slug}")}
READING_POSTS = {"/impute", "/predict", "/recommend", "/retrieve"}  # they store nothing
PAGES = {"/", "/docs", "/docs/static", "/openapi.json"}  # no operations, and nobody's data


def needed(method: str, path: str) -> str | None:
    """The least role of an operation, by rule: reading reads, everything else writes, /admin administers, and so does
    whoever changes which bundle is served."""
    if (method, path) in OPEN:
        return None
    if path.startswith("/admin/") or (method == "post" and path.startswith("/models/")):
        return "admin"
    reads = path in READING_POSTS or path.endswith("/what-if")
    return "read" if method == "get" or (method == "post" and reads) else "write"


def _document() -> dict[str, Any]:
    return create_app(Settings(data_dir=Path("unused"))).openapi()


OPERATIONS = [(method, path) for path, methods in _document()["paths"].items() for method in methods]


@pytest.fixture
def app(engine: Engine) -> FastAPI:
    keys = ",".join(f"{role}:{role}:{key}" for role, key in KEYS.items())
    return create_app(settings_of(api_keys=keys), engine=engine)


@pytest.fixture
async def api(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_an_operation_is_open_from_its_role_on(
    api: httpx.AsyncClient, method: str, path: str, role: str | None
) -> None:
    headers = {"X-API-Key": KEYS[role]} if role else {}
    answer = await api.request(method, re.sub(r"\{\w+\}", "a", path), headers=headers)
    if ROLES.index(role) >= ROLES.index(needed(method, path)):
        assert answer.status_code not in (401, 403)
    else:
        assert answer.status_code == (403 if role else 401)
        assert answer.json()["type"] == ("/problems/forbidden" if role else "/problems/unauthorized")


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_no_operation_takes_a_key_that_is_none(api: httpx.AsyncClient, method: str, path: str) -> None:
    for headers in (
        {"X-API-Key": "key-of-read-012345678"},
        {"Authorization": "Bearer KEY-OF-ADMIN-0123456789"},
        {"X-API-Key": ""},
    ):
        answer = await api.request(method, re.sub(r"\{\w+\}", "a", path), headers=headers)
        assert (answer.status_code == 401) == (needed(method, path) is not None)


def test_what_the_document_does_not_name_is_a_page(app: FastAPI) -> None:
    documented = set(app.openapi()["paths"])
    assert {path for path in _paths(app.routes) if path not in documented} == PAGES


def _paths(routes: list[BaseRoute]) -> Iterator[str]:
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from _paths(inner.routes)
        elif isinstance(route, Route | Mount):
            yield route.path.replace(":path}", "}")  # as the document has it
        else:
            pytest.fail(f"a route of an unknown kind: {route!r}")


async def test_an_operation_without_a_role_is_found(app: FastAPI) -> None:
    @app.post("/forgotten")
    async def forgotten() -> None:
        """Open to everybody."""

    app.openapi_schema = None
    assert "/forgotten" in app.openapi()["paths"]
    async with client_of(app) as client:
        with pytest.raises(AssertionError):
            await test_an_operation_is_open_from_its_role_on(client, "post", "/forgotten", None)
