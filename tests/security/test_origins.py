"""A service without keys on this machine: what a web page that somebody has open here can make of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from service.main import create_app
from service.pipeline.engine import Engine
from tests.service.asgi import client_of, settings_of

FORM = (
    b'--x\r\nContent-Disposition: form-data; name="item"\r\n\r\n{"id": "planted"}\r\n--x--\r\n',
    {"content-type": "multipart/form-data; boundary=x"},
)
EVIL = "https://evil.example"
KEY = "a-key-of-the-writer"


def serve(engine: Engine, **settings: Any) -> Any:
    return client_of(create_app(settings_of(**settings), engine=engine))


@pytest.fixture
async def api(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(engine) as client:
        yield client


async def post(api: httpx.AsyncClient, **headers: str) -> httpx.Response:
    """The form that a page can send without asking first."""
    body, kind = FORM
    return await api.post("/items", content=body, headers=kind | {k.replace("_", "-"): v for k, v in headers.items()})


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": EVIL},
        {"origin": "null"},
        {"origin": "http://localhost:3000"},
        {"origin": "http://localhost.evil.example"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"origin": "http://localhost", "sec_fetch_site": "cross-site"},
    ],
)
async def test_a_page_of_another_origin_posts_nothing(
    api: httpx.AsyncClient, engine: Engine, headers: dict[str, str]
) -> None:
    answer = await post(api, **headers)
    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/foreign-origin")
    assert not await engine.store.count_items()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_nor_anything_else_that_changes_something(api: httpx.AsyncClient, method: str) -> None:
    for path in ("/items/a", "/users/u", "/feedback?user=u", "/admin/snapshot", "/recommend"):
        answer = await api.request(method, path, headers={"origin": EVIL})
        assert answer.json()["type"] == "/problems/foreign-origin"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://localhost", "sec_fetch_site": "same-origin"},
        {"origin": "HTTP://LOCALHOST"},
        {"sec_fetch_site": "none"},
        {"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"},
        {"host": "[::1]:8000", "origin": "http://[::1]:8000"},
    ],
)
async def test_its_own_pages_and_programs_may(api: httpx.AsyncClient, engine: Engine, headers: dict[str, str]) -> None:
    assert (await post(api, **headers)).status_code == 201
    assert await engine.store.existing(["planted"])


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.0.0.7",
        "[::2]",
        "a b",
    ],
)
async def test_another_name_is_not_answered(api: httpx.AsyncClient, host: str) -> None:
    for path in ("/items", "/", "/docs", "/health/live", "/metrics", "/openapi.json", "/docs/static/swagger-ui.css"):
        answer = await api.get(path, headers={"host": host})
        assert (answer.status_code, answer.json()["type"]) == (421, "/problems/misdirected-request")


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:1", "127.0.0.1", "127.8.9.1:80", "[::1]", "[::1]:80", "a.localhost"]
)
async def test_its_own_names_are(api: httpx.AsyncClient, host: str) -> None:
    assert (await api.get("/items", headers={"host": host})).status_code == 200


async def test_a_second_host_is_no_way_round(api: httpx.AsyncClient) -> None:
    answer = await api.get("/items", headers=[("host", "localhost"), ("host", "evil.example")])
    assert answer.status_code == 421


async def test_pages_that_the_settings_name_may(engine: Engine) -> None:
    async with serve(engine, cors_origins="https://shop.example") as api:
        allowed = await post(api, origin="https://shop.example", sec_fetch_site="cross-site")
        assert allowed.status_code == 201
        assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
        refused = await post(api, origin=EVIL)
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers
        assert (await api.delete("/items/planted")).status_code == 204
    async with serve(engine, cors_origins="*") as api:
        assert (await post(api, origin=EVIL)).status_code == 201


async def test_a_service_for_everybody_has_any_name_but_no_foreign_pages(engine: Engine) -> None:
    async with serve(engine, allow_anonymous=True) as api:
        assert (await post(api, host="lacuna.example", origin="https://lacuna.example")).status_code == 201
        assert (await post(api, host="lacuna.example", origin=EVIL)).status_code == 403


async def test_with_keys_the_key_decides(engine: Engine) -> None:
    async with serve(engine, api_keys=f"w:write:{KEY}") as api:
        assert (await post(api, host="lacuna.example", origin=EVIL)).status_code == 401
        assert (await post(api, host="lacuna.example", origin=EVIL, x_api_key=KEY)).status_code == 201
