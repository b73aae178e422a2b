"""Items over HTTP, on the fake engine."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from service.domain import UNSET, MediaContent, TextContent, VectorContent
from service.main import create_app
from tests.service.unit import fake_engine
from tests.service.unit.fake_engine import FakeEngine, pointers, settings_of

PICTURE = b"\x89PNG not really"
JSON = {"content-type": "application/json"}


@pytest.fixture
async def api(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings_of(max_body_bytes=100_000), engine=engine)
    async with fake_engine.client_of(app) as client:
        yield client


async def test_create_item_answers_as_the_contract_shows(api: httpx.AsyncClient, engine: FakeEngine) -> None:
    body = {
        "id": "sku-123",
        "title": "Red running shoe",
        "modalities": {
            "text": "Light red running shoe",
            "image": {"base64": base64.b64encode(PICTURE).decode()},
            "audio": {"vector": [0.5, 1, -2.0]},
        },
        "categories": ["shoes", "shoes", "обувь 👟"],
        "metadata": {"brand": "مثال", "sizes": [41, 42.5], "nested": {"a": None}},
        "available": False,
    }
    response = await api.post("/items", json=body)
    assert response.status_code == 201
    assert set(response.json()) == {"id", "version", "model_version", "modalities", "timings_ms"}
    draft = engine.calls[0]["draft"]
    assert draft.modalities["text"] == TextContent("Light red running shoe")
    assert draft.modalities["image"] == MediaContent(PICTURE)
    assert isinstance(draft.modalities["audio"], VectorContent)
    np.testing.assert_array_equal(draft.modalities["audio"].vector, np.array([0.5, 1, -2], np.float32))
    assert draft.categories == ("shoes", "обувь 👟")
    assert draft.metadata == body["metadata"]
    assert not draft.available


async def test_generated_modalities_say_by_what_and_observed_ones_do_not(api: httpx.AsyncClient) -> None:
    modalities = (await api.post("/items", json={"id": "a", "modalities": {"text": "x"}})).json()["modalities"]
    assert modalities["text"] == {"state": "observed"}
    assert modalities["image"] == {
        "state": "generated",
        "generator": "dgmrec",
        "confidence": 0.71,
        "basis": ["text", "neighbours"],
    }


async def test_create_existing_item_is_a_conflict(api: httpx.AsyncClient) -> None:
    await api.post("/items", json={"id": "a"})
    response = await api.post("/items", json={"id": "a"})
    assert response.status_code == 409
    assert response.json()["type"] == "/problems/item-exists"


WRONG_ITEMS: list[tuple[dict[str, Any], str]] = [
    ({}, "/id"),
    ({"id": 5}, "/id"),
    ({"id": ""}, "/id"),
    ({"id": "a/b"}, "/id"),
    ({"id": ".."}, "/id"),
    ({"id": "a\n"}, "/id"),
    ({"id": "é"}, "/id"),
    ({"id": "x" * 129}, "/id"),
    ({"id": "a", "colour": "red"}, "/colour"),
    ({"id": "a", "title": ""}, "/title"),
    ({"id": "a", "title": "a\0b"}, "/title"),
    ({"id": "a", "title": 7}, "/title"),
    ({"id": "a", "modalities": []}, "/modalities"),
    ({"id": "a", "modalities": {"text": ""}}, "/modalities/text/text"),
    ({"id": "a", "modalities": {"text": "   "}}, "/modalities/text/text"),
    ({"id": "a", "modalities": {"text": "x" * 20_001}}, "/modalities/text/text"),
    ({"id": "a", "modalities": {"text": None}}, "/modalities/text"),
    ({"id": "a", "modalities": {"text": 5}}, "/modalities/text"),
    ({"id": "a", "modalities": {"smell": "roses"}}, "/modalities/smell"),
    ({"id": "a", "modalities": {"image": {}}}, "/modalities/image"),
    ({"id": "a", "modalities": {"image": {"base64": "a", "text": "b"}}}, "/modalities/image"),
    ({"id": "a", "modalities": {"image": {"base64": "no base64!"}}}, "/modalities/image/base64"),
    ({"id": "a", "modalities": {"image": {"base64": ""}}}, "/modalities/image/base64"),
    ({"id": "a", "modalities": {"image": {"base64": "äö=="}}}, "/modalities/image/base64"),
    ({"id": "a", "modalities": {"image": {"url": ""}}}, "/modalities/image/url"),
    ({"id": "a", "modalities": {"image": {"url": "https://a.example/" + "x" * 2048}}}, "/modalities/image/url"),
    ({"id": "a", "modalities": {"audio": {"vector": []}}}, "/modalities/audio/vector"),
    ({"id": "a", "modalities": {"audio": {"vector": ["1"]}}}, "/modalities/audio/vector/0"),
    ({"id": "a", "modalities": {"audio": {"vector": [True]}}}, "/modalities/audio/vector/0"),
    ({"id": "a", "modalities": {"audio": {"vector": [1e39]}}}, "/modalities/audio/vector"),
    ({"id": "a", "categories": "shoes"}, "/categories"),
    ({"id": "a", "categories": [""]}, "/categories/0"),
    ({"id": "a", "categories": ["x" * 129]}, "/categories/0"),
    ({"id": "a", "categories": ["x"] * 33}, "/categories"),
    ({"id": "a", "metadata": []}, "/metadata"),
    ({"id": "a", "metadata": {"a": "x" * 65_536}}, "/metadata"),
    ({"id": "a", "metadata": {"a": ["\0"]}}, "/metadata"),
    ({"id": "a", "metadata": {"a\0": 1}}, "/metadata"),
    ({"id": "a", "metadata": json.loads('{"a":' + "[" * 100 + "]" * 100 + "}")}, "/metadata"),
    ({"id": "a", "available": "yes"}, "/available"),
    ({"id": "a", "available": 1}, "/available"),
]


async def test_a_refusal_speaks_of_the_body_and_not_of_our_classes(api: httpx.AsyncClient) -> None:
    for body, detail in (
        ({"id": "a", "modalities": {"text": 5}}, "this has to be an object, or a text"),
        ([], "this has to be an object"),
    ):
        response = await api.post("/items", json=body)
        assert response.status_code == 422
        assert response.json()["errors"][0]["detail"] == detail


@pytest.mark.parametrize(("body", "at"), WRONG_ITEMS)
async def test_wrong_item_is_refused_with_a_pointer(api: httpx.AsyncClient, body: dict[str, Any], at: str) -> None:
    response = await api.post("/items", json=body)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert pointers(response) == [at]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"id": "a", "metadata": {"x": NaN}}',
        b'{"id": "a", "metadata": {"x": Infinity}}',
        b'{"id": "a", "metadata": {"x": 1e999}}',
        b'{"id": "a", "metadata": {"x": 1' + b"0" * 400 + b"}}",
        b'{"id": "a", "title": "\xff\xfe"}',
        b'{"id": "a", "title": "\\ud800"}',
        b'{"id": "a", "metadata": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    ],
)
async def test_bytes_that_are_no_json_are_malformed(api: httpx.AsyncClient, raw: bytes) -> None:
    response = await api.post("/items", content=raw, headers=JSON)
    assert response.status_code == 400
    assert response.json()["type"] == "/problems/malformed-request"


async def test_integers_beyond_64_bits_are_refused_not_rounded(api: httpx.AsyncClient) -> None:
    body = b'{"id": "a", "metadata": {"big": 123456789012345678901234567890}}'
    answer = await api.post("/items", content=body, headers=JSON)
    assert answer.status_code == 422
    assert answer.json()["errors"][0] == {
        "pointer": "/metadata",
        "detail": "an integer beyond 64 bits cannot be kept; send it as a string",
    }
    largest = 2**64 - 1
    body = b'{"id": "a", "metadata": {"big": %d}}' % largest
    assert (await api.post("/items", content=body, headers=JSON)).status_code == 201
    assert (await api.get("/items/a")).json()["metadata"]["big"] == largest


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_other_media_types_are_refused(api: httpx.AsyncClient, media_type: str) -> None:
    response = await api.post("/items", content=b'{"id": "a"}', headers={"content-type": media_type})
    assert response.status_code == 415
    assert "application/json" in response.json()["detail"]


async def test_body_over_the_limit_is_refused_with_and_without_a_length(api: httpx.AsyncClient) -> None:
    body = json.dumps({"id": "a", "title": "x" * 100_000}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    for content in (body, chunks()):
        response = await api.post("/items", content=content, headers=JSON)
        assert response.status_code == 413
        assert "100000 bytes" in response.json()["detail"]


async def test_multipart_brings_files_beside_the_item(api: httpx.AsyncClient, engine: FakeEngine) -> None:
    response = await api.post(
        "/items",
        data={"item": json.dumps({"id": "a", "title": "A", "modalities": {"text": "x"}})},
        files={"image": ("photo.jpg", PICTURE, "image/jpeg")},
    )
    assert response.status_code == 201
    assert engine.calls[0]["draft"].modalities == {
        "text": TextContent("x"),
        "image": MediaContent(PICTURE, "image/jpeg"),
    }


@pytest.mark.parametrize(
    ("data", "files", "status"),
    [
        ({}, [("image", ("a.png", PICTURE))], 422),
        ({"item": "{"}, [("image", ("a.png", PICTURE))], 400),
        ({"item": '{"id": 5}'}, [("image", ("a.png", PICTURE))], 422),
        ({"item": '{"id": "a"}', "other": "x"}, [("image", ("a.png", PICTURE))], 422),
        ({"item": '{"id": "a"}'}, [("image", ("a.png", PICTURE)), ("image", ("b.png", PICTURE))], 422),
        ({"item": '{"id": "a"}'}, [("smell", ("a.png", PICTURE))], 422),
        ({"item": '{"id": "a", "modalities": {"image": "x"}}'}, [("image", ("a.png", PICTURE))], 422),
        ({"item": '{"id": "a"}'}, [("image", ("a.png", b"x" * 100_000))], 413),
    ],
)
async def test_wrong_multipart_is_refused(api: httpx.AsyncClient, data: Any, files: Any, status: int) -> None:
    response = await api.post("/items", data=data, files=files)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("media_type", ["multipart/form-data", "multipart/form-data; boundary=x"])
async def test_unreadable_multipart_is_malformed(api: httpx.AsyncClient, media_type: str) -> None:
    response = await api.post("/items", content=b"no parts at all", headers={"content-type": media_type})
    assert response.status_code in (400, 422)


async def test_put_creates_then_replaces(api: httpx.AsyncClient) -> None:
    assert (await api.put("/items/a", json={"title": "one"})).status_code == 201
    response = await api.put("/items/a", json={"id": "a", "title": "two"})
    assert (response.status_code, response.json()["version"]) == (200, 2)
    assert (await api.get("/items/a")).json()["title"] == "two"


async def test_put_with_another_id_is_refused(api: httpx.AsyncClient) -> None:
    response = await api.put("/items/a", json={"id": "b"})
    assert response.status_code == 422
    assert pointers(response) == ["/id"]


@pytest.mark.parametrize("media_type", ["application/json", "application/merge-patch+json; charset=utf-8"])
async def test_patch_tells_null_from_left_out(api: httpx.AsyncClient, engine: FakeEngine, media_type: str) -> None:
    await api.post("/items", json={"id": "a", "title": "A", "categories": ["x"]})
    body = {"title": None, "modalities": {"image": None, "text": "new"}, "metadata": {"brand": None}}
    response = await api.patch("/items/a", content=json.dumps(body), headers={"content-type": media_type})
    assert response.status_code == 200
    assert set(response.json()) == {"id", "version", "model_version", "modalities", "timings_ms"}
    patch = engine.calls[-1]["patch"]
    assert patch.title is None
    assert patch.modalities == {"image": None, "text": TextContent("new")}
    assert patch.metadata == {"brand": None}
    assert patch.categories is UNSET
    assert patch.available is UNSET


@pytest.mark.parametrize(
    "body",
    [{"id": "b"}, {"available": None}, {"metadata": None}, {"modalities": None}, {"modalities": {"text": {}}}, []],
)
async def test_wrong_patch_is_refused(api: httpx.AsyncClient, body: Any) -> None:
    await api.post("/items", json={"id": "a"})
    assert (await api.patch("/items/a", json=body)).status_code == 422


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/items/no"),
        ("PATCH", "/items/no"),
        ("DELETE", "/items/no"),
        ("GET", "/items/no/similar"),
        ("GET", "/items/no/modalities/text"),
        ("GET", "/items/no/media/image"),
    ],
)
async def test_missing_item_is_not_found(api: httpx.AsyncClient, method: str, path: str) -> None:
    response = await api.request(method, path, json={} if method == "PATCH" else None)
    assert response.status_code == 404
    assert response.json()["type"] == "/problems/item-not-found"


async def test_deleted_item_is_gone(api: httpx.AsyncClient) -> None:
    await api.post("/items", json={"id": "a"})
    response = await api.delete("/items/a")
    assert (response.status_code, response.content) == (204, b"")
    assert (await api.get("/items/a")).status_code == 404


async def test_batch_answers_each_row_as_if_alone(api: httpx.AsyncClient) -> None:
    rows = [{"id": "a", "title": "A"}, {"id": "a"}, {"id": "b", "title": 5}, 7, {"id": "c\0"}, {"id": "d"}]
    response = await api.post("/items/batch", json={"items": rows})
    assert response.status_code == 200
    answers = response.json()["items"]
    assert [row["status"] for row in answers] == [201, 409, 422, 422, 422, 201]
    assert [row["index"] for row in answers] == list(range(6))
    assert [row["id"] for row in answers] == ["a", "a", "b", None, "c\0", "d"]
    assert answers[0]["modalities"]["image"]["state"] == "generated"
    assert answers[1]["problem"]["type"] == "/problems/item-exists"
    assert answers[2]["problem"]["errors"][0]["pointer"] == "/title"


@pytest.mark.parametrize("body", [{}, {"items": []}, {"items": {}}, {"items": [{"id": "a"}], "x": 1}, []])
async def test_wrong_batch_is_refused(api: httpx.AsyncClient, body: Any) -> None:
    assert (await api.post("/items/batch", json=body)).status_code == 422


async def test_batch_takes_a_thousand_and_no_more(api: httpx.AsyncClient) -> None:
    rows = [{"id": str(k)} for k in range(1_001)]
    assert (await api.post("/items/batch", json={"items": rows})).status_code == 422
    assert len((await api.post("/items/batch", json={"items": rows[1:]})).json()["items"]) == 1_000


async def test_list_pages_through_items(api: httpx.AsyncClient) -> None:
    for item_id in "abc":
        await api.post("/items", json={"id": item_id})
    first = (await api.get("/items", params={"limit": 2})).json()
    rest = (await api.get("/items", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert [item["id"] for item in first["items"] + rest["items"]] == ["a", "b", "c"]
    assert rest["next_cursor"] is None


async def test_list_hands_its_filters_on(api: httpx.AsyncClient, engine: FakeEngine) -> None:
    await api.get("/items", params={"category": "обувь", "missing": "image", "q": "red"})
    assert engine.calls[-1] == {"limit": 50, "cursor": None, "categories": ["обувь"], "missing": "image", "q": "red"}
    await api.get("/items?category=a&category=b&category=a")
    assert engine.calls[-1]["categories"] == ["a", "b"]


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=x", "cursor=", "categroy=shoes", "q="])
async def test_wrong_list_query_is_refused(api: httpx.AsyncClient, query: str) -> None:
    response = await api.get(f"/items?{query}")
    assert response.status_code == 422
    assert pointers(response) == [f"/query/{query.partition('=')[0]}"]


async def test_modality_with_neighbours_and_vector(api: httpx.AsyncClient) -> None:
    await api.post("/items", json={"id": "a"})
    plain = (await api.get("/items/a/modalities/text")).json()
    assert plain["state"] == "generated"
    assert [hit["id"] for hit in plain["neighbours"]] == ["a"]
    assert "vector" not in plain
    full = (await api.get("/items/a/modalities/text?neighbours=0&vector=true")).json()
    assert (full["neighbours"], full["vector"]) == ([], [1.0, 1.0, 1.0])


async def test_media_comes_back_with_a_safe_type(api: httpx.AsyncClient) -> None:
    for item_id, media_type in (("a", "image/png"), ("b", "image/svg+xml"), ("c", "text/html")):
        data = {"item": json.dumps({"id": item_id})}
        await api.post("/items", data=data, files={"image": ("x", PICTURE, media_type)})
    shown = await api.get("/items/a/media/image")
    assert (shown.content, shown.headers["content-type"]) == (PICTURE, "image/png")
    assert shown.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in shown.headers["content-security-policy"]
    for item_id in "bc":
        response = await api.get(f"/items/{item_id}/media/image")
        assert response.headers["content-type"] == "application/octet-stream"
    again = await api.get("/items/a/media/image", headers={"if-none-match": shown.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert (await api.get("/items/a")).json()["media"] == {"image": "/items/a/media/image"}


async def test_similar_hands_its_options_on(api: httpx.AsyncClient, engine: FakeEngine) -> None:
    await api.post("/items", json={"id": "a"})
    assert (await api.get("/items/a/similar?n=3&by=text")).json()["items"][0]["id"] == "a"
    assert engine.calls[-1] == {"item_id": "a", "n": 3, "by": "text"}
    assert (await api.get("/items/a/similar?by=smell")).json()["type"] == "/problems/unknown-modality"


async def test_impute_stores_nothing(api: httpx.AsyncClient, engine: FakeEngine) -> None:
    response = await api.post("/impute?neighbours=2", json={"modalities": {"text": "x"}})
    assert response.status_code == 200
    assert response.json()["modalities"]["image"]["vector"] == [1.0, 1.0, 1.0]
    assert engine.calls[-1]["neighbours"] == 2
    assert not engine.items


async def test_impute_takes_no_id(api: httpx.AsyncClient) -> None:
    assert pointers(await api.post("/impute", json={"id": "a"})) == ["/id"]
