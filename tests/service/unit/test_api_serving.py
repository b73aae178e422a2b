"""Recommendations and searches over HTTP, on the fake engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from service.domain import MediaContent, TextContent, VectorContent
from service.main import create_app
from tests.service.unit import fake_engine
from tests.service.unit.fake_engine import FakeEngine, pointers, settings_of

REASON = {
    "item": "a",
    "title": "A",
    "relevance": 0.8,
    "modalities": {"text": 0.6, "image": 0.4},
    "states": {"text": "observed", "image": "generated"},
}


@pytest.fixture
async def api(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings_of(), engine=engine)
    async with fake_engine.client_of(app) as client:
        await client.post("/items", json={"id": "a", "title": "A", "modalities": {"text": "x"}})
        await client.post("/feedback", json={"feedback": [{"user": "u1", "item": "a", "type": "view"}]})
        yield client


async def test_recommend_answers_as_the_contract_shows(api: httpx.AsyncClient) -> None:
    answer = (await api.get("/recommend/u1")).json()
    assert (answer["user"], answer["fallback"], answer["recommendation_id"]) == ("u1", None, "r-1")
    assert answer["items"] == [
        {
            "id": "a",
            "title": "A",
            "score": 0.5,
            "modalities": {"text": "observed", "image": "generated", "audio": "generated"},
        }
    ]


async def test_recommend_explains_where_asked(api: httpx.AsyncClient) -> None:
    answer = (await api.get("/recommend/u1?explain=true")).json()
    assert answer["items"][0]["reasons"] == [REASON]


async def test_a_pair_is_explained(api: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = (await api.get("/explain/u1/a")).json()
    assert engine.calls[-1] == {"user": "u1", "item_id": "a", "hidden": True}
    assert answer == {
        "user": "u1",
        "item": "a",
        "title": "A",
        "score": 1.3,
        "item_bias": 0.5,
        "modalities": {"text": "observed", "image": "generated", "audio": "generated"},
        "reasons": [REASON],
        "model_version": "2026-01-02.1",
        "fallback": None,
    }


async def test_a_pair_that_cannot_be_explained(api: httpx.AsyncClient) -> None:
    assert (await api.get("/explain/u1/b")).status_code == 404
    assert (await api.get("/explain/u1/a%20b")).status_code == 422


async def test_recommend_hands_its_options_on(api: httpx.AsyncClient, engine: FakeEngine) -> None:
    query = {"n": 7, "model": "popular", "category": "c", "exclude_seen": "false", "diversity": 0.5, "strict": "true"}
    await api.get("/recommend/u1", params=query)
    assert engine.calls[-1] == {
        "user": "u1",
        "n": 7,
        "explain": False,
        "hidden": True,
        "model": "popular",
        "categories": ["c"],
        "exclude_seen": False,
        "diversity": 0.5,
        "strict": True,
    }


@pytest.mark.parametrize("path", ["/items", "/recommend/u1", "/retrieve?text=a"])
async def test_categories_may_be_repeated(api: httpx.AsyncClient, engine: FakeEngine, path: str) -> None:
    response = await api.get(path + ("&" if "?" in path else "?") + "category=x&category=y")
    assert response.status_code == 200
    assert engine.calls[-1]["categories"] == ["x", "y"]
    response = await api.get(path + ("&" if "?" in path else "?") + "category=x&category=")
    assert (response.status_code, pointers(response)) == (422, ["/query/category/1"])
    many = "&".join(f"category={number}" for number in range(33))
    response = await api.get(path + ("&" if "?" in path else "?") + many)
    assert (response.status_code, pointers(response)) == (422, ["/query/category"])


@pytest.mark.parametrize(("path", "body"), [("/recommend", {"items": [{"id": "a"}]}), ("/retrieve", {"text": "a"})])
async def test_a_body_takes_one_category_or_several(
    api: httpx.AsyncClient, engine: FakeEngine, path: str, body: dict[str, Any]
) -> None:
    for given, read in (("x", ["x"]), (["x", "y", "x"], ["x", "y"]), ([], []), (None, [])):
        assert (await api.post(path, json={**body, "category": given})).status_code == 200
        assert engine.calls[-1]["categories"] == read
    for given, at in (("", "/category"), (["x", ""], "/category/1"), (5, "/category"), ([["x"]], "/category/0")):
        response = await api.post(path, json={**body, "category": given})
        assert (response.status_code, pointers(response)) == (422, [at])


async def test_unknown_user_gets_a_fallback_or_404(api: httpx.AsyncClient) -> None:
    assert (await api.get("/recommend/nobody")).json()["fallback"] == "popular"
    assert (await api.get("/recommend/nobody?strict=true")).status_code == 404
    assert 'lacuna_fallbacks_total{fallback="popular"} 1.0' in (await api.get("/metrics")).text


@pytest.mark.parametrize(
    "query", ["n=0", "n=501", "n=1.5", "n=99999999999999999999", "model=svd", "diversity=1.1", "diversity=nan", "x=1"]
)
async def test_wrong_recommend_query_is_refused(api: httpx.AsyncClient, query: str) -> None:
    response = await api.get(f"/recommend/u1?{query}")
    assert response.status_code == 422
    assert pointers(response) == [f"/query/{query.partition('=')[0]}"]


async def test_model_that_the_bundle_lacks_is_not_served(api: httpx.AsyncClient) -> None:
    response = await api.get("/recommend/u1?model=iris")
    assert response.status_code == 503
    assert response.json()["type"] == "/problems/not-served"
    assert "retry-after" not in response.headers


async def test_session_hands_its_options_on(api: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = await api.post("/recommend", json={"items": [{"id": "a"}, {"id": "b", "weight": 2}], "n": 3})
    assert answer.json()["user"] is None
    call = engine.calls[-1]
    assert call["items"] == [("a", 1.0), ("b", 2.0)]
    assert (call["n"], call["exclude_seen"], call["diversity"]) == (3, True, 0.0)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"items": []},
        {"items": [{"id": "a", "weight": 0}]},
        {"items": [{"id": "a", "weight": "1"}]},
        {"items": [{"id": "a b"}]},
        {"items": ["a"]},
        {"items": [{"id": "a"}], "n": 501},
        {"items": [{"id": "a"}], "strict": True},
    ],
)
async def test_wrong_session_is_refused(api: httpx.AsyncClient, body: Any) -> None:
    assert (await api.post("/recommend", json=body)).status_code == 422


async def test_retrieve_by_text_says_through_what_it_matched(api: httpx.AsyncClient, engine: FakeEngine) -> None:
    query = {"text": "red shoe", "n": 3, "target": "image", "include_generated": "false", "category": "c"}
    answer = (await api.get("/retrieve", params=query)).json()
    assert answer["items"][0]["matched"] == {"modality": "text", "state": "generated"}
    assert engine.calls[-1] == {
        "query": {"text": TextContent("red shoe")},
        "n": 3,
        "target": "image",
        "include_generated": False,
        "categories": ["c"],
        "at": "/query/text",
    }


@pytest.mark.parametrize("query", ["", "text=", "text=%20", "text=a&n=0", "text=a&target=", "text=a&x=1"])
async def test_wrong_retrieve_query_is_refused(api: httpx.AsyncClient, query: str) -> None:
    assert (await api.get(f"/retrieve?{query}")).status_code == 422


async def test_retrieve_by_picture_and_by_vector(api: httpx.AsyncClient, engine: FakeEngine) -> None:
    await api.post("/retrieve", json={"image": {"base64": "aGVsbG8="}, "target": "text"})
    assert engine.calls[-1]["query"] == {"image": MediaContent(b"hello")}
    assert (engine.calls[-1]["target"], engine.calls[-1]["at"]) == ("text", "/image")
    await api.post("/retrieve", json={"text": "a"})
    assert engine.calls[-1]["at"] == "/text"
    await api.post("/retrieve", json={"vector": {"audio": [1, 2]}})
    assert engine.calls[-1]["at"] == "/vector/audio"
    (content,) = engine.calls[-1]["query"].values()
    assert isinstance(content, VectorContent)
    np.testing.assert_array_equal(content.vector, np.array([1, 2], np.float32))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": "a", "vector": {"text": [1]}},
        {"vector": {}},
        {"vector": {"text": [1], "image": [1]}},
        {"vector": {"text": []}},
        {"vector": {"text": [1e39]}},
        {"image": {"base64": "?"}},
        {"image": {"url": 5}},
    ],
)
async def test_wrong_retrieve_body_is_refused(api: httpx.AsyncClient, body: Any) -> None:
    assert (await api.post("/retrieve", json=body)).status_code == 422
