"""What answers allow a browser to do with them, and those on the way to keep of them."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator

import httpx
import pytest

from service.main import create_app
from service.pipeline.engine import Engine
from tests.service.asgi import client_of, settings_of
from tests.service.running import base64_of, picture


@pytest.fixture
async def api(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(settings_of(), engine=engine)) as client:
        await client.post("/items", json={"id": "a", "modalities": {"image": base64_of(picture())}})
        await client.post("/feedback", json={"feedback": [{"user": "u", "item": "a", "type": "view"}]})
        yield client


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/recommend/u", 200),
        ("/users/u", 200),
        ("/feedback?user=u", 200),
        ("/explain/u/a", 200),
        ("/items", 200),
        ("/stats", 200),
        ("/metrics", 200),
        ("/users/nobody", 404),
        ("/recommend/u?n=x", 422),
        ("/nowhere", 404),
        ("/docs", 200),
        ("/", 307),
    ],
)
async def test_no_answer_is_kept_or_framed(api: httpx.AsyncClient, path: str, status: int) -> None:
    answer = await api.get(path)
    assert answer.status_code == status
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"


async def test_pictures_have_policies_of_their_own(api: httpx.AsyncClient) -> None:
    answer = await api.get("/items/a/media/image")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "private, no-cache"
    assert answer.headers.get_list("content-security-policy") == ["default-src 'none'; sandbox"]


async def test_the_docs_run_their_own_script_alone(api: httpx.AsyncClient) -> None:
    page = await api.get("/docs")
    (policy,) = page.headers.get_list("content-security-policy")
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "'unsafe-inline'" not in rules["script-src"]
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'self' 'sha256-{digest}'"
    for source in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert source.startswith(("/docs/static/", "data:"))
        if source.startswith("/"):
            answer = await api.get(source)
            assert answer.status_code == 200
            assert "cache-control" not in answer.headers


async def test_no_header_comes_twice(api: httpx.AsyncClient) -> None:
    for path in ("/items", "/docs", "/items/a/media/image", "/docs/static/swagger-ui.css", "/nowhere"):
        names = [name for name, _ in (await api.get(path)).headers.raw]
        assert len(names) == len({name.lower() for name in names})
