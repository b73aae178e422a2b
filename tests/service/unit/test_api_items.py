"""Items over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import httpx
import numpy as np
import pytest

from service.domain import StoredItem
from service.main import create_app
from service.pipeline.engine import Engine
from service.ports import Media, Store
from tests.service.asgi import Failing, client_of, pointers, settings_of
from tests.service.running import base64_of, picture

PICTURE = picture()
SOUND = [0.5, 1, -2.0, *[0.0] * 9]
JSON = {"content-type": "application/json"}


@pytest.fixture
async def api(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings_of(max_body_bytes=100_000), engine=engine)
    async with client_of(app) as client:
        yield client


async def _stored(engine: Engine, item_id: str) -> StoredItem:
    item = await engine.store.get_item(item_id)
    assert item is not None
    return item


async def test_create_item_answers_as_the_contract_shows(api: httpx.AsyncClient, engine: Engine) -> None:
    body = {
        "id": "sku-123",
        "title": "Red running shoe",
        "modalities": {
            "text": "Light red running shoe",
            "image": base64_of(PICTURE),
            "audio": {"vector": SOUND},
        },
        "categories": ["shoes", "shoes", "обувь 👟"],
        "metadata": {"brand": "مثال", "sizes": [41, 42.5], "nested": {"a": None}},
        "available": False,
    }
    response = await api.post("/items", json=body)
    assert response.status_code == 201
    assert set(response.json()) == {"id", "version", "model_version", "modalities", "timings_ms"}
    item = await _stored(engine, "sku-123")
    assert item.title == "Red running shoe"
    assert item.observed["text"].text == "Light red running shoe"
    assert item.observed["text"].source == "text"
    media = await engine.store.get_media(item.observed["image"].media or "")
    assert media is not None
    assert (media.data, media.media_type) == (PICTURE, "image/png")
    np.testing.assert_array_equal(item.observed["audio"].vector, np.array(SOUND, np.float32))
    assert item.categories == ("shoes", "обувь 👟")
    assert item.metadata == body["metadata"]
    assert not item.available


async def test_generated_modalities_say_by_what_and_observed_ones_do_not(api: httpx.AsyncClient) -> None:
    modalities = (await api.post("/items", json={"id": "a", "modalities": {"text": "x"}})).json()["modalities"]
    assert modalities["text"] == {"state": "observed"}
    generated = modalities["image"]
    assert set(generated) == {"state", "generator", "confidence", "basis"}
    assert (generated["state"], generated["basis"]) == ("generated", ["text"])
    assert generated["generator"] in ("dgmrec", "dgmrec-base")
    assert 0 < generated["confidence"] < 1


async def test_a_title_that_stands_in_for_a_text_says_so(api: httpx.AsyncClient) -> None:
    created = (await api.post("/items", json={"id": "a", "title": "Red shoe"})).json()
    assert created["modalities"]["text"] == {"state": "observed", "source": "title"}
    assert (await api.get("/items/a")).json()["modalities"]["text"] == {"state": "observed", "source": "title"}


async def test_stats_tell_titles_from_texts(api: httpx.AsyncClient) -> None:
    async def text() -> dict[str, Any]:
        return cast(dict[str, Any], (await api.get("/stats")).json()["modalities"]["text"])

    await api.post("/items", json={"id": "a", "title": "Red shoe"})
    await api.post("/items", json={"id": "b", "title": "Blue shoe"})
    await api.post("/items", json={"id": "c", "title": "Green shoe", "modalities": {"text": "Light and green"}})
    assert await text() == {"observed": 3, "generated": 0, "absent": 0, "source": {"title": 2}}
    assert 'lacuna_items{modality="text",state="observed"} 3.0' in (await api.get("/metrics")).text
    await api.patch("/items/a", json={"modalities": {"text": "Light and red"}})
    assert (await text())["source"] == {"title": 1}
    await api.delete("/items/b")
    assert await text() == {"observed": 2, "generated": 0, "absent": 0}


async def test_a_title_is_no_text_where_the_bundle_says_so(api: httpx.AsyncClient, engine: Engine) -> None:
    manifest = engine.active.manifest
    data = manifest.data.model_copy(update={"title_as_text": False})
    engine.active = replace(engine.active, manifest=manifest.model_copy(update={"data": data}))
    body = {"id": "a", "title": "Red shoe", "modalities": {"audio": {"vector": SOUND}}}
    assert (await api.post("/items", json=body)).json()["modalities"]["text"]["state"] == "generated"
    assert (await api.get("/items/a")).json()["title"] == "Red shoe"
    told = (await api.patch("/items/a", json={"modalities": {"text": "Light and red"}})).json()
    assert told["modalities"]["text"] == {"state": "observed"}


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


async def test_multipart_brings_files_beside_the_item(api: httpx.AsyncClient, engine: Engine) -> None:
    response = await api.post(
        "/items",
        data={"item": json.dumps({"id": "a", "title": "A", "modalities": {"text": "x"}})},
        files={"image": ("photo.jpg", PICTURE, "image/jpeg")},
    )
    assert response.status_code == 201
    item = await _stored(engine, "a")
    assert (item.title, item.observed["text"].text) == ("A", "x")
    media = await engine.store.get_media(item.observed["image"].media or "")
    assert media is not None
    assert media.data == PICTURE


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
async def test_patch_tells_null_from_left_out(api: httpx.AsyncClient, engine: Engine, media_type: str) -> None:
    first = {"id": "a", "title": "A", "categories": ["x"], "metadata": {"brand": "B", "size": 1}, "available": False}
    await api.post("/items", json={**first, "modalities": {"image": base64_of(PICTURE)}})
    body = {"title": None, "modalities": {"image": None, "text": "new"}, "metadata": {"brand": None}}
    response = await api.patch("/items/a", content=json.dumps(body), headers={"content-type": media_type})
    assert response.status_code == 200
    assert set(response.json()) == {"id", "version", "model_version", "modalities", "timings_ms"}
    item = await _stored(engine, "a")
    assert item.title is None
    assert set(item.observed) == {"text"}
    assert item.observed["text"].text == "new"
    assert item.metadata == {"size": 1}
    assert item.categories == ("x",)
    assert not item.available


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


async def test_list_goes_by_its_filters(api: httpx.AsyncClient) -> None:
    await api.post("/items", json={"id": "a", "title": "Red shoe", "categories": ["обувь", "x"]})
    await api.post("/items", json={"id": "b", "title": "Red boot", "categories": ["обувь"]})
    await api.post("/items", json={"id": "c", "title": "Red mug", "categories": ["x"]})
    image = {"image": base64_of(PICTURE)}
    await api.post("/items", json={"id": "d", "title": "Red hat", "categories": ["обувь"], "modalities": image})

    async def listed(**query: str) -> str:
        return "".join(item["id"] for item in (await api.get("/items", params=query)).json()["items"])

    assert await listed() == "abcd"
    assert await listed(category="обувь", missing="image", q="RED") == "ab"
    assert await listed(category="обувь", missing="image", q="shoe") == "a"
    both = await api.get("/items?category=%D0%BE%D0%B1%D1%83%D0%B2%D1%8C&category=x&category=x")
    assert [item["id"] for item in both.json()["items"]] == ["a"]


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=x", "cursor=", "categroy=shoes", "q="])
async def test_wrong_list_query_is_refused(api: httpx.AsyncClient, query: str) -> None:
    response = await api.get(f"/items?{query}")
    assert response.status_code == 422
    assert pointers(response) == [f"/query/{query.partition('=')[0]}"]


async def test_modality_with_neighbours_and_vector(api: httpx.AsyncClient) -> None:
    for item_id in "ab":
        await api.post("/items", json={"id": item_id, "modalities": {"image": base64_of(PICTURE)}})
    plain = (await api.get("/items/b/modalities/text")).json()
    assert plain["state"] == "generated"
    assert "vector" not in plain
    assert [hit["id"] for hit in (await api.get("/items/b/modalities/image")).json()["neighbours"]] == ["a"]
    full = (await api.get("/items/b/modalities/image?neighbours=0&vector=true")).json()
    assert (full["neighbours"], len(full["vector"])) == ([], 128)


class Typed(Failing):
    """A store with files of another type than the service gives any."""

    def __init__(self, store: Failing, media_type: str) -> None:
        super().__init__(store)
        self._media_type = media_type

    async def get_media(self, sha256: str) -> Media | None:
        found: Media = await self._store.get_media(sha256)
        return replace(found, media_type=self._media_type)


async def test_media_comes_back_with_a_safe_type(api: httpx.AsyncClient, engine: Engine, store: Failing) -> None:
    for item_id, media_type in (("a", "image/png"), ("b", "text/html")):  # what it is says the file, not the client
        data = {"item": json.dumps({"id": item_id})}
        await api.post("/items", data=data, files={"image": ("x", PICTURE, media_type)})
        shown = await api.get(f"/items/{item_id}/media/image")
        assert (shown.content, shown.headers["content-type"]) == (PICTURE, "image/png")
        assert shown.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in shown.headers["content-security-policy"]
    again = await api.get("/items/a/media/image", headers={"if-none-match": shown.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert (await api.get("/items/a")).json()["media"] == {"image": "/items/a/media/image"}
    for media_type in ("image/svg+xml", "text/html"):
        engine.store = cast(Store, Typed(store, media_type))
        response = await api.get("/items/a/media/image")
        assert response.headers["content-type"] == "application/octet-stream"


async def test_similar_goes_by_its_options(api: httpx.AsyncClient) -> None:
    for item_id in "abcde":
        await api.post("/items", json={"id": item_id, "modalities": {"text": "red shoe"}})
    found = (await api.get("/items/a/similar?n=3&by=text")).json()["items"]
    assert [hit["id"] for hit in found] == ["b", "c", "d"]
    assert (await api.get("/items/a/similar?by=smell")).json()["type"] == "/problems/unknown-modality"


async def test_impute_stores_nothing(api: httpx.AsyncClient, engine: Engine) -> None:
    for item_id in "abc":
        await api.post("/items", json={"id": item_id, "modalities": {"text": "red shoe"}})
    response = await api.post("/impute?neighbours=2", json={"modalities": {"text": "x"}})
    assert response.status_code == 200
    assert len(response.json()["modalities"]["image"]["vector"]) == 128
    assert len(response.json()["modalities"]["text"]["neighbours"]) == 2
    assert await engine.store.count_items() == 3


async def test_impute_takes_no_id(api: httpx.AsyncClient) -> None:
    assert pointers(await api.post("/impute", json={"id": "a"})) == ["/id"]
