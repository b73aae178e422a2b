"""Recommendations and searches over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from service.main import create_app
from service.pipeline.engine import Engine, Limits
from tests.service.asgi import client_of, pointers, settings_of
from tests.service.running import base64_of, picture

PICTURE = picture()
STATES = {"text": "observed", "image": "generated", "audio": "generated"}
SHOES, RARE = ("a", "b", "c"), ("b", "c")


@pytest.fixture
async def api(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings_of(), engine=engine)
    async with client_of(app) as client:
        for item_id in SHOES:
            categories = ["shoes", "rare"] if item_id in RARE else ["shoes"]
            item = {"id": item_id, "title": item_id.upper(), "categories": categories}
            await client.post("/items", json={**item, "modalities": {"text": f"red shoe of kind {item_id}"}})
        await client.post("/items", json={"id": "d", "modalities": {"image": base64_of(PICTURE)}})
        await client.post("/feedback", json={"feedback": [{"user": "u1", "item": "a", "type": "view"}]})
        yield client


def _ids(response: httpx.Response) -> list[str]:
    assert response.status_code == 200
    return [hit["id"] for hit in response.json()["items"]]


async def test_recommend_answers_as_the_contract_shows(api: httpx.AsyncClient, engine: Engine) -> None:
    answer = (await api.get("/recommend/u1")).json()
    assert set(answer) == {"user", "recommendation_id", "model", "model_version", "fallback", "items"}
    assert (answer["user"], answer["model"], answer["fallback"]) == ("u1", "dgmrec", None)
    assert answer["recommendation_id"]
    assert answer["model_version"] == engine.model_version
    hit = next(hit for hit in answer["items"] if hit["id"] == "b")
    assert hit == {"id": "b", "title": "B", "score": hit["score"], "modalities": STATES}
    assert {hit["id"] for hit in answer["items"]} == {"b", "c", "d"}


async def test_recommend_explains_where_asked(api: httpx.AsyncClient) -> None:
    for hit in (await api.get("/recommend/u1?explain=true")).json()["items"]:
        (reason,) = hit["reasons"]
        _check_reason(reason)


def _check_reason(reason: dict[str, Any]) -> None:
    assert set(reason) == {"item", "title", "relevance", "interest", "effects", "modalities", "states"}
    assert (reason["item"], reason["title"], reason["states"]) == ("a", "A", STATES)
    assert set(reason["modalities"]) == set(reason["effects"]) == set(STATES)


async def test_a_pair_is_explained(api: httpx.AsyncClient, engine: Engine) -> None:
    answer = (await api.get("/explain/u1/b")).json()
    (reason,) = answer["reasons"]
    _check_reason(reason)
    assert answer == {
        "user": "u1",
        "item": "b",
        "title": "B",
        "score": answer["score"],
        "item_bias": answer["item_bias"],
        "modalities": STATES,
        "reasons": [reason],
        "model_version": engine.model_version,
        "fallback": None,
    }


async def test_a_pair_that_cannot_be_explained(api: httpx.AsyncClient) -> None:
    assert (await api.get("/explain/u1/none")).status_code == 404
    assert (await api.get("/explain/u1/a%20b")).status_code == 422


async def test_recommend_goes_by_its_options(api: httpx.AsyncClient) -> None:
    assert _ids(await api.get("/recommend/u1?model=latest&category=shoes")) == ["c", "b"]
    assert _ids(await api.get("/recommend/u1?model=latest&category=shoes&exclude_seen=false")) == ["c", "b", "a"]
    assert _ids(await api.get("/recommend/u1?model=latest&category=shoes&n=1")) == ["c"]
    assert len(_ids(await api.get("/recommend/u1?diversity=0.5"))) == 3
    answer = (await api.get("/recommend/u1?model=popular&strict=true")).json()
    assert (answer["model"], answer["fallback"]) == ("popular", None)
    assert "reasons" not in answer["items"][0]


@pytest.mark.parametrize("path", ["/items", "/recommend/u2", "/retrieve?text=a"])
async def test_categories_may_be_repeated(api: httpx.AsyncClient, path: str) -> None:
    query = path + ("&" if "?" in path else "?")
    assert set(_ids(await api.get(query + "category=shoes"))) == set(SHOES)
    assert set(_ids(await api.get(query + "category=shoes&category=rare"))) == set(RARE)
    response = await api.get(query + "category=x&category=")
    assert (response.status_code, pointers(response)) == (422, ["/query/category/1"])
    response = await api.get(query + "&".join(f"category={number}" for number in range(33)))
    assert (response.status_code, pointers(response)) == (422, ["/query/category"])


@pytest.mark.parametrize(("path", "body"), [("/recommend", {"items": [{"id": "d"}]}), ("/retrieve", {"text": "a"})])
async def test_a_body_takes_one_category_or_several(api: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    everything = set(_ids(await api.post(path, json=body)))
    assert everything >= set(SHOES)
    for given, found in (
        ("shoes", set(SHOES)),
        (["shoes", "rare", "shoes"], set(RARE)),
        ([], everything),
        (None, everything),
    ):
        assert set(_ids(await api.post(path, json={**body, "category": given}))) == found
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


async def test_model_that_the_bundle_lacks_is_not_served(api: httpx.AsyncClient, engine: Engine) -> None:
    engine.active = replace(engine.active, iris=None)
    for response in (
        await api.get("/recommend/u1?model=iris"),
        await api.post("/recommend", json={"items": [{"id": "a"}], "model": "iris"}),
    ):
        assert response.status_code == 503
        assert response.json()["type"] == "/problems/not-served"
        assert "retry-after" not in response.headers


async def test_session_goes_by_its_options(api: httpx.AsyncClient) -> None:
    session = {"items": [{"id": "a"}, {"id": "b", "weight": 2}]}
    answer = await api.post("/recommend", json={**session, "n": 3})
    assert answer.json()["user"] is None
    assert set(_ids(answer)) == {"c", "d"}
    assert len(_ids(await api.post("/recommend", json={**session, "n": 1}))) == 1
    assert set(_ids(await api.post("/recommend", json={**session, "exclude_seen": False}))) == {*SHOES, "d"}


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


async def test_retrieve_by_text_says_through_what_it_matched(api: httpx.AsyncClient) -> None:
    def matched(response: httpx.Response) -> dict[str, dict[str, str]]:
        return {hit["id"]: hit["matched"] for hit in response.json()["items"]}

    found = matched(await api.get("/retrieve?text=red%20shoe"))
    assert found["a"] == {"modality": "text", "state": "observed"}
    assert found["d"] == {"modality": "text", "state": "generated"}
    found = matched(await api.get("/retrieve?text=red%20shoe&target=image&category=shoes&n=2"))
    assert list(found.values()) == [{"modality": "image", "state": "generated"}] * 2
    found = matched(await api.get("/retrieve?text=red%20shoe&target=image&include_generated=false"))
    assert found == {"d": {"modality": "image", "state": "observed"}}


@pytest.mark.parametrize("query", ["", "text=", "text=%20", "text=a&n=0", "text=a&target=", "text=a&x=1"])
async def test_wrong_retrieve_query_is_refused(api: httpx.AsyncClient, query: str) -> None:
    assert (await api.get(f"/retrieve?{query}")).status_code == 422


async def test_retrieve_by_picture_and_by_vector(api: httpx.AsyncClient) -> None:
    assert _ids(await api.post("/retrieve", json={"image": base64_of(PICTURE)}))[0] == "d"
    answer = await api.post("/retrieve", json={"image": base64_of(PICTURE), "target": "text"})
    assert {hit["matched"]["modality"] for hit in answer.json()["items"]} == {"text"}
    vector = (await api.get("/items/d/modalities/image?vector=true")).json()["vector"]
    assert _ids(await api.post("/retrieve", json={"vector": {"image": vector}}))[0] == "d"


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({"image": {"base64": "aGVsbG8="}}, "/image"),
        ({"vector": {"audio": [1, 2]}}, "/vector/audio"),
        ({"text": "x" * 200}, "/text"),
    ],
)
async def test_a_query_that_cannot_be_encoded_is_pointed_at(
    api: httpx.AsyncClient, engine: Engine, body: dict[str, Any], at: str
) -> None:
    engine.limits = Limits(text_chars=100)  # below what the body's schema lets through
    response = await api.post("/retrieve", json=body)
    assert (response.status_code, pointers(response)) == (422, [at])
    if "text" in body:
        assert pointers(await api.get("/retrieve", params=body)) == ["/query/text"]


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
