"""The limits that settings move."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from service.main import create_app
from service.pipeline.engine import Engine
from tests.service.asgi import client_of, settings_of


@pytest.fixture
async def api(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    settings = settings_of(max_n=600, max_batch=2, max_feedback=1, max_text_chars=5, max_body_bytes=2_000)
    async with client_of(create_app(settings, engine=engine)) as client:
        yield client


@pytest.mark.parametrize(("n", "status"), [(600, 200), (601, 422)])
async def test_n(api: httpx.AsyncClient, n: int, status: int) -> None:
    assert (await api.get(f"/recommend/u1?n={n}")).status_code == status
    assert (await api.get(f"/items?limit={n}")).status_code == status
    assert (await api.post("/retrieve", json={"text": "a", "n": n})).status_code == status


@pytest.mark.parametrize(("text", "status"), [("12345", 201), ("123456", 422)])
async def test_text(api: httpx.AsyncClient, text: str, status: int) -> None:
    assert (await api.post("/items", json={"id": "a", "modalities": {"text": text}})).status_code == status


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/items/batch", {"items": [{"id": "a"}] * 2}, 200),
        ("/items/batch", {"items": [{"id": "a"}] * 3}, 422),
        ("/feedback", {"feedback": [7]}, 200),
        ("/feedback", {"feedback": [7] * 2}, 422),
        ("/items", {"id": "a", "title": "x" * 900}, 201),
        ("/items", {"id": "a", "metadata": {"x": "x" * 2_000}}, 413),
    ],
)
async def test_rows_and_bytes(api: httpx.AsyncClient, path: str, body: Any, status: int) -> None:
    assert (await api.post(path, json=body)).status_code == status
