"""Items from their arrival to their end, on the real service."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.rows import MAX_METADATA_BYTES
from service.ports import ItemWrite
from tests.service.conftest import AUDIO
from tests.service.running import Running, base64_of, fresh_id, picture
from training.demo.catalogue import DemoProduct, demo_item

PRODUCT = demo_item(k=3)
LANGUAGE = "A cherry red canvas low-top sneaker with polka dots, made for long walks."


def states(answer: Any) -> dict[str, str]:
    return {name: report["state"] for name, report in answer["modalities"].items()}


def picture_of(product: DemoProduct) -> dict[str, str]:
    return base64_of(product.picture)


# --- create -------------------------------------------------------------------------------------------------------


def test_with_a_picture_alone_the_rest_is_generated(anywhere: Running) -> None:
    answer = anywhere.create(modalities={"image": picture_of(PRODUCT)})
    assert states(answer) == {"text": "generated", "image": "observed", "audio": "generated"}
    assert answer["modalities"]["image"] == {"state": "observed"}
    text = answer["modalities"]["text"]
    assert text["generator"] in ("dgmrec", "dgmrec-base")
    assert -1 <= text["confidence"] <= 1
    assert text["basis"] == ["image", "neighbours"]
    assert answer["version"] == 1
    assert answer["model_version"] == anywhere.engine.model_version
    assert answer["timings_ms"].keys() == {"encode", "impute", "index", "commit"}
    assert all(value >= 0 for value in answer["timings_ms"].values())


def test_with_text_and_a_vector_only_the_picture_is_generated(anywhere: Running) -> None:
    answer = anywhere.create(title="Sneaker", modalities={"text": LANGUAGE, "audio": {"vector": [0.5] * AUDIO}})
    assert states(answer) == {"text": "observed", "image": "generated", "audio": "observed"}
    basis = answer["modalities"]["image"]["basis"]  # neighbours only where training found that they tell something
    assert basis in (["text", "audio"], ["text", "audio", "neighbours"])
    assert anywhere.vector(answer["id"], "audio") == [0.5] * AUDIO
    detail = anywhere.get(f"/items/{answer['id']}/modalities/text")
    assert (detail["source"], detail["text"], detail["media"]) == ("text", LANGUAGE, None)


def test_the_title_stands_in_for_the_text(anywhere: Running) -> None:
    answer = anywhere.create(title=LANGUAGE)
    assert states(answer)["text"] == "observed"
    detail = anywhere.get(f"/items/{answer['id']}/modalities/text", vector=True)
    assert detail["source"] == "title"
    spoken = anywhere.create(modalities={"text": LANGUAGE})
    assert detail["vector"] == anywhere.vector(spoken["id"], "text")


def test_without_any_modality_the_means_are_generated(anywhere: Running) -> None:
    answer = anywhere.create(categories=["mugs"])
    assert states(answer) == {"text": "generated", "image": "generated", "audio": "generated"}
    for report in answer["modalities"].values():
        assert report == {"state": "generated", "generator": "mean", "confidence": 0.0, "basis": []}
    # A mean is like nothing in particular, so no search leads to it; a list may.
    assert anywhere.get(f"/items/{answer['id']}/similar", by="text")["items"] == []
    assert len(anywhere.get(f"/items/{answer['id']}/similar")["items"]) == 20


def test_an_id_is_taken_once(anywhere: Running) -> None:
    answer = anywhere.create(title="First")
    problem = anywhere.post("/items", {"id": answer["id"], "title": "Second"}, status=409)
    assert problem["type"] == "/problems/item-exists"
    assert anywhere.get(f"/items/{answer['id']}")["title"] == "First"


def test_a_picture_is_kept_and_given_back(anywhere: Running) -> None:
    item_id = fresh_id()
    files = {"item": (None, f'{{"id": "{item_id}"}}'), "image": ("a.png", picture("blue"), "image/png")}
    assert states(anywhere.ask("POST", "/items", status=201, files=files))["image"] == "observed"
    media = anywhere.get(f"/items/{item_id}")["media"]
    assert media == {"image": f"/items/{item_id}/media/image"}
    answer = anywhere.client.get(media["image"])
    assert (answer.content, answer.headers["content-type"]) == (picture("blue"), "image/png")
    assert anywhere.get(f"/items/{item_id}/media/text", status=404)["type"] == "/problems/item-not-found"


def test_neighbours_of_a_generated_modality_are_observed_ones(anywhere: Running) -> None:
    answer = anywhere.create(modalities={"image": picture_of(PRODUCT)})
    detail = anywhere.get(f"/items/{answer['id']}/modalities/text", neighbours=7)
    assert detail["state"] == "generated"
    assert len(detail["neighbours"]) == 7
    scores = [near["score"] for near in detail["neighbours"]]
    assert scores == sorted(scores, reverse=True)
    for near in detail["neighbours"]:
        assert near["id"] != answer["id"]
        assert near["matched"] == {"modality": "text", "state": "observed"}
        assert anywhere.get(f"/items/{near['id']}")["modalities"]["text"] == {"state": "observed"}
    assert "vector" not in detail


def test_reading_what_is_not_there(anywhere: Running) -> None:
    for path in ("", "/modalities/text", "/media/image", "/similar", "/similar?by=text"):
        assert anywhere.get(f"/items/nobody{path}", status=404)["type"] == "/problems/item-not-found"
    for path in ("/items/demo-0001/modalities/smell", "/items/demo-0001/similar?by=smell"):
        assert anywhere.get(path, status=422)["type"] == "/problems/unknown-modality"


# --- replace and patch --------------------------------------------------------------------------------------------


def test_put_creates_and_replaces(anywhere: Running) -> None:
    item_id = fresh_id()
    body = {"title": "Mug", "modalities": {"image": picture_of(PRODUCT)}, "metadata": {"a": 1}, "categories": ["mugs"]}
    assert anywhere.ask("PUT", f"/items/{item_id}", status=201, json=body)["version"] == 1
    answer = anywhere.ask("PUT", f"/items/{item_id}", json={"modalities": {"text": LANGUAGE}})
    assert answer["version"] == 2
    assert states(answer) == {"text": "observed", "image": "generated", "audio": "generated"}
    item = anywhere.get(f"/items/{item_id}")
    assert (item["title"], item["metadata"], item["categories"], item["media"]) == (None, {}, [], {})
    assert item_id not in anywhere.found_by("/recommend/shopper-001", category="mugs", n=500)
    anywhere.check_index()


def test_null_takes_a_modality_away_and_it_is_generated(anywhere: Running) -> None:
    item_id = anywhere.create(modalities={"text": LANGUAGE, "image": picture_of(PRODUCT)})["id"]
    real = anywhere.vector(item_id, "image")
    answer = anywhere.patch(item_id, {"modalities": {"image": None}})
    assert answer["version"] == 2
    assert answer["modalities"]["image"]["state"] == "generated"
    assert anywhere.vector(item_id, "image") != real
    assert anywhere.get(f"/items/{item_id}")["media"] == {}
    anywhere.check_index()


def test_a_patch_leaves_alone_what_it_does_not_name(anywhere: Running) -> None:
    item_id = anywhere.create(
        title="Old", modalities={"text": LANGUAGE}, categories=["shoes"], metadata={"a": {"b": 1, "c": 2}, "d": [1]}
    )["id"]
    before = {name: anywhere.vector(item_id, name) for name in ("text", "image", "audio")}
    anywhere.patch(item_id, {"title": "New", "available": False, "metadata": {"a": {"b": None, "e": 3}, "d": None}})
    item = anywhere.get(f"/items/{item_id}")
    assert (item["title"], item["available"], item["categories"]) == ("New", False, ["shoes"])
    assert item["metadata"] == {"a": {"c": 2, "e": 3}}
    assert item["text"] == LANGUAGE
    assert {name: anywhere.vector(item_id, name) for name in before} == before
    assert item_id not in anywhere.found_by("/retrieve", text=LANGUAGE)
    anywhere.patch(item_id, {"available": True})
    assert item_id in anywhere.found_by("/retrieve", text=LANGUAGE)
    anywhere.check_index()


def test_a_new_title_is_the_new_text_where_the_old_one_was(anywhere: Running) -> None:
    titled = anywhere.create(title="A wooden chair")["id"]
    before = anywhere.vector(titled, "text")
    assert anywhere.patch(titled, {"title": "A glass vase"})["modalities"]["text"] == {
        "state": "observed",
        "source": "title",
    }
    assert anywhere.vector(titled, "text") != before
    assert anywhere.patch(titled, {"title": None})["modalities"]["text"]["state"] == "generated"
    assert anywhere.patch(titled, {"title": "A wooden chair"})["modalities"]["text"]["state"] == "observed"
    assert anywhere.vector(titled, "text") == before
    told = anywhere.create(title="A wooden chair", modalities={"text": LANGUAGE})["id"]
    before = anywhere.vector(told, "text")
    anywhere.patch(told, {"title": "A glass vase"})
    assert anywhere.vector(told, "text") == before
    # Without the text, the title is all the words there are.
    assert anywhere.patch(told, {"modalities": {"text": None}})["modalities"]["text"]["state"] == "observed"
    assert anywhere.get(f"/items/{told}/modalities/text")["source"] == "title"


def test_a_patch_of_something_else_makes_no_text_of_a_title(alone: Running) -> None:
    """A catalogue may bring an item that has a title and whose text was withheld on purpose."""
    item_id = alone.create(modalities={"image": picture_of(PRODUCT)})["id"]
    stored = alone.run(alone.engine.store.get_item(item_id))
    assert stored is not None
    write = ItemWrite(replace(stored, title="Withheld", version=2), "upsert", 1)
    assert alone.run(alone.engine.store.write_items([write])).value.results == ["replaced"]
    answer = alone.patch(item_id, {"categories": ["mugs"], "title": "Withheld"})
    assert answer["modalities"]["text"]["state"] == "generated"


def test_metadata_stays_bounded_however_it_grows(anywhere: Running) -> None:
    half = "x" * (MAX_METADATA_BYTES // 2)
    item_id = anywhere.create(metadata={"a": half})["id"]
    problem = anywhere.patch(item_id, {"metadata": {"b": half}}, status=422)
    assert problem["errors"][0]["pointer"] == "/metadata"
    assert anywhere.get(f"/items/{item_id}")["metadata"] == {"a": half}
    anywhere.patch(item_id, {"metadata": {"a": None, "b": half}})


def test_patching_what_is_not_there(anywhere: Running) -> None:
    assert anywhere.patch("nobody", {"title": "x"}, status=404)["type"] == "/problems/item-not-found"
    item_id = anywhere.create(title="x")["id"]
    for content in (None, "words", {"vector": [1.0]}):
        problem = anywhere.patch(item_id, {"modalities": {"smell": content}}, status=422)
        assert problem["type"] == "/problems/unknown-modality"
        assert problem["errors"][0]["pointer"] == "/modalities/smell"
    assert anywhere.get(f"/items/{item_id}")["version"] == 1


def test_the_real_modality_replaces_the_generated_one_and_the_error_is_noted(alone: Running) -> None:
    item_id = alone.create(modalities={"text": LANGUAGE})["id"]
    guess = np.array(alone.vector(item_id, "image"))
    served = alone.get(f"/items/{item_id}")["modalities"]["image"]["confidence"]
    assert alone.get("/stats")["imputation_error"] == {}
    answer = alone.patch(item_id, {"modalities": {"image": picture_of(PRODUCT)}})
    assert answer["modalities"]["image"] == {"state": "observed"}
    real = np.array(alone.vector(item_id, "image"))
    mean = alone.engine.active.dgmrec.model.tower("image").projection.mean.numpy()
    cosine = (guess - mean) @ (real - mean) / np.linalg.norm(guess - mean) / np.linalg.norm(real - mean)
    found = alone.get("/stats")["imputation_error"]["image"]
    assert found["pairs"] == 1
    assert found["mean_confidence"] == pytest.approx(served)
    assert found["mean_centred_cosine"] == pytest.approx(cosine, abs=1e-5)
    assert alone.found_by("/retrieve", text=LANGUAGE, target="image", n=500)[item_id]["matched"]["state"] == "observed"


# --- delete -------------------------------------------------------------------------------------------------------


def test_a_deleted_item_is_gone_from_every_answer(anywhere: Running) -> None:
    item_id = anywhere.create(title=LANGUAGE, categories=["gone"])["id"]
    anywhere.view(item_id, "shopper-001", "shopper-002")
    answer = anywhere.client.delete(f"/items/{item_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    for path in ("", "/modalities/text", "/similar"):
        anywhere.get(f"/items/{item_id}{path}", status=404)
    anywhere.ask("DELETE", f"/items/{item_id}", status=404)
    anywhere.patch(item_id, {"title": "x"}, status=404)
    lists = [
        anywhere.found_by("/recommend/shopper-003", n=500),
        anywhere.found_by("/recommend/shopper-003", n=500, model="popular"),
        anywhere.found_by("/recommend/shopper-003", n=500, model="latest"),
        anywhere.found_by("/retrieve", text=LANGUAGE, n=500),
        anywhere.found_by("/retrieve", text=LANGUAGE, n=500, target="image"),
        anywhere.found_by("/items/demo-0001/similar", n=500),
        anywhere.found_by("/items/demo-0001/similar", n=500, by="image"),
        anywhere.found_by("/items", limit=500),
        {near["id"]: near for near in anywhere.get("/items/demo-0001/modalities/text", neighbours=100)["neighbours"]},
    ]
    assert all(found and item_id not in found for found in lists)
    assert anywhere.get("/recommend/shopper-003", category="gone")["items"] == []
    assert "gone" not in anywhere.get("/stats")["categories"]
    assert anywhere.get("/feedback", item=item_id)["items"] == []
    anywhere.check_index()
    # The id is free again, and nothing of the old item clings to it.
    assert anywhere.create(id=item_id, title="Another")["version"] == 1
    assert anywhere.found_by("/recommend/shopper-001", n=500, model="popular")[item_id]["score"] == 0


# --- batch --------------------------------------------------------------------------------------------------------


def test_a_bad_row_never_takes_the_good_ones_down(anywhere: Running) -> None:
    taken, one, two = anywhere.create(title="taken")["id"], fresh_id(), fresh_id()
    rows: list[Any] = [
        {"id": one, "modalities": {"text": LANGUAGE}},
        {"id": taken, "title": "again"},
        {"id": "no/slash"},
        {"id": two, "modalities": {"image": {"base64": base64.b64encode(b"no picture").decode()}}},
        {"id": two, "title": "second try"},
        {"id": two, "title": "third try"},
        {"id": one},
        "not even an object",
        {"id": fresh_id(), "modalities": {"audio": {"vector": [1.0, 2.0]}}},
        {"id": fresh_id(), "modalities": {"smell": "roses"}},
    ]
    answers = anywhere.post("/items/batch", {"items": rows})["items"]
    assert [row["index"] for row in answers] == list(range(10))
    assert [row["status"] for row in answers] == [201, 409, 422, 422, 201, 409, 409, 422, 422, 422]
    assert answers[3]["problem"]["type"] == "/problems/invalid-image"
    assert answers[8]["problem"]["type"] == "/problems/invalid-vector"
    assert answers[9]["problem"]["type"] == "/problems/unknown-modality"
    assert anywhere.get(f"/items/{two}")["title"] == "second try"
    assert anywhere.get(f"/items/{one}")["text"] == LANGUAGE
    assert anywhere.get(f"/items/{taken}")["title"] == "taken"
    anywhere.check_index()


def test_a_batch_makes_of_an_item_what_it_would_be_alone(alone: Running) -> None:
    body = {"modalities": {"image": picture_of(PRODUCT)}, "categories": ["mugs"]}
    alone.create(id="single", **body)
    single = {name: alone.vector("single", name) for name in ("text", "image", "audio")}
    alone.client.delete("/items/single")
    rows = [{"id": f"row-{number}", **body} for number in range(70)]  # more than are computed at once
    assert {row["status"] for row in alone.post("/items/batch", {"items": rows})["items"]} == {201}
    for name, vector in single.items():
        np.testing.assert_allclose(alone.vector("row-5", name), vector, atol=1e-5)
    assert alone.get("/stats")["items"] == 190
    alone.check_index()


# --- lists --------------------------------------------------------------------------------------------------------


def test_lists_go_on_where_the_page_before_ended(alone: Running) -> None:
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = alone.get("/items", limit=50, **cursor)
        seen += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == [f"demo-{number:04d}" for number in range(120)]


def test_lists_can_be_narrowed(anywhere: Running) -> None:
    marker = fresh_id("tag")
    item_id = anywhere.create(title=f"Ünïque {marker}", categories=[marker], modalities={"text": LANGUAGE})["id"]
    assert [item["id"] for item in anywhere.get("/items", category=marker)["items"]] == [item_id]
    assert [item["id"] for item in anywhere.get("/items", q=f"ÜNÏQUE {marker.upper()}")["items"]] == [item_id]
    for q in (f"ünïque {marker}", f"u\u0308ni\u0308que {marker}", f"\uff31\uff35\uff25 {marker}"):
        assert [item["id"] for item in anywhere.get("/items", q=q)["items"]] == [item_id]
    assert anywhere.get("/items", category=marker, missing="text")["items"] == []
    lacking = anywhere.get("/items", missing="image", limit=500)["items"]
    assert item_id in {item["id"] for item in lacking}
    assert {item["modalities"]["image"]["state"] for item in lacking} == {"generated"}
    assert anywhere.get("/items", missing="smell", status=422)["type"] == "/problems/unknown-modality"


# --- impute -------------------------------------------------------------------------------------------------------


def test_impute_answers_the_same_bits_twice_and_stores_nothing(anywhere: Running) -> None:
    count = anywhere.get("/stats")["items"]
    body = {"modalities": {"text": LANGUAGE}}
    first, second = (anywhere.post("/impute", body, neighbours=3) for _ in range(2))
    del first["timings_ms"], second["timings_ms"]
    assert first == second
    image = first["modalities"]["image"]
    assert (image["state"], len(image["neighbours"])) == ("generated", 3)
    assert image["generator"] in ("dgmrec", "dgmrec-base")
    assert len(image["vector"]) == 128
    assert anywhere.get("/stats")["items"] == count
    created = anywhere.create(**body)
    assert {key: image[key] for key in ("state", "generator", "confidence", "basis")} == created["modalities"]["image"]
    assert anywhere.vector(created["id"], "image") == image["vector"]
