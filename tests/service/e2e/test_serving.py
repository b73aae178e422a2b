"""Lists and searches on the real service."""

from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.pipeline.rank import POOL
from tests.service.running import Running, base64_of, fresh_id, picture
from training.demo.catalogue import demo_item

PRODUCT = demo_item(k=3)
LANGUAGE = "A cherry red canvas low-top sneaker with polka dots, made for long walks."
USER = "shopper-005"


def seen_by(service: Running, user: str) -> set[str]:
    return {event["item"] for event in service.get("/feedback", user=user, limit=500)["items"]}


# --- recommend ----------------------------------------------------------------------------------------------------


def test_a_list_is_ranked_and_holds_nothing_seen(anywhere: Running) -> None:
    answer = anywhere.get(f"/recommend/{USER}", n=15)
    assert (answer["user"], answer["model"], answer["fallback"]) == (USER, "dgmrec", None)
    assert answer["model_version"] == anywhere.engine.model_version
    assert answer["recommendation_id"]
    scores = [hit["score"] for hit in answer["items"]]
    assert len(scores) == 15
    assert scores == sorted(scores, reverse=True)
    seen = seen_by(anywhere, USER)
    assert seen
    assert not seen & anywhere.found_by(f"/recommend/{USER}", n=500).keys()
    assert seen <= anywhere.found_by(f"/recommend/{USER}", n=500, exclude_seen=False).keys()


def test_lists_are_what_training_ranks(alone: Running) -> None:
    """For a user of the training set, whose history is all in it, the score is that of the exported model."""
    engine = alone.engine
    row = engine.active.dgmrec.users.row(USER)
    liked = sorted(seen_by(alone, USER))
    messages = engine.active.dgmrec.tables["item_message"][[engine.active.dgmrec.items.row(item) for item in liked]]
    user_id = engine.active.dgmrec.tables["user_residual"][row] + messages.sum(axis=0) / np.sqrt(len(liked))
    keys = engine.memory.catalogue.keys(liked)
    vector = engine.active.dgmrec.combine(user_id, engine.memory.catalogue.rows.get("modal", keys).mean(axis=0))
    for hit in alone.get(f"/recommend/{USER}", n=5)["items"]:
        item = engine.memory.catalogue.final(engine.memory.catalogue.keys([hit["id"]]))[0]
        assert hit["score"] == pytest.approx(float(vector @ item), abs=1e-4)


def test_a_new_item_comes_up_in_somebodys_list(alone: Running) -> None:
    item_id = alone.create(modalities={"image": base64_of(PRODUCT.picture)})["id"]
    ranks = []
    for number in range(40):
        answer = alone.get(f"/recommend/shopper-{number:03d}", n=500)
        ids = [hit["id"] for hit in answer["items"]]
        ranks.append(ids.index(item_id))
        states = next(hit["modalities"] for hit in answer["items"] if hit["id"] == item_id)
        assert states == {"text": "generated", "image": "observed", "audio": "generated"}
    assert min(ranks) < 30
    assert len(set(ranks)) > 1


def test_an_unknown_user_gets_a_named_fallback(alone: Running) -> None:
    answer = alone.get("/recommend/nobody", n=10)
    assert (answer["fallback"], answer["model"], len(answer["items"])) == ("popular", "popular", 10)
    users: dict[str, set[str]] = {}
    for number in range(40):
        for item in seen_by(alone, f"shopper-{number:03d}"):
            users.setdefault(item, set()).add(f"shopper-{number:03d}")
    counts = sorted((len(found) for found in users.values()), reverse=True)
    assert [hit["score"] for hit in answer["items"]] == counts[:10]
    assert all(len(users[hit["id"]]) == hit["score"] for hit in answer["items"])
    assert alone.get("/recommend/nobody", strict=True, status=404)["type"] == "/problems/user-not-found"
    assert alone.get("/stats")["fallbacks"] == {"popular": 1}
    assert 'lacuna_fallbacks_total{fallback="popular"} 1.0' in alone.client.get("/metrics").text


def test_popular_and_latest(alone: Running) -> None:
    first = alone.create(title="first", categories=["brand-new"])["id"]
    second = alone.create(title="second", categories=["brand-new"])["id"]
    latest = alone.get(f"/recommend/{USER}", model="latest", n=2)
    assert [hit["id"] for hit in latest["items"]] == [second, first]
    assert latest["items"][0]["score"] > latest["items"][1]["score"]
    assert (latest["model"], latest["fallback"]) == ("latest", None)
    popular = alone.get("/recommend/nobody", model="popular", category="brand-new")
    assert [(hit["id"], hit["score"]) for hit in popular["items"]] == [(second, 0.0), (first, 0.0)]
    assert popular["fallback"] is None


def test_a_category_narrows_the_list(anywhere: Running) -> None:
    answer = anywhere.get(f"/recommend/{USER}", category="lamps", n=500, exclude_seen=False)
    lamps = {item["id"] for item in anywhere.get("/items", category="lamps", limit=500)["items"]}
    assert {hit["id"] for hit in answer["items"]} == lamps
    assert anywhere.get(f"/recommend/{USER}", category="unheard-of")["items"] == []


def test_of_several_categories_all_must_hold(alone: Running) -> None:
    both = alone.create(title="Mug", categories=["mugs", "rare"])["id"]
    alone.create(title="Lamp", categories=["lamps", "rare"])
    two = {"category": ["rare", "mugs"]}
    for path in ("/items", f"/recommend/{USER}", "/recommend/nobody", "/retrieve?text=mug"):
        found = alone.ask("GET", path, params=httpx.QueryParams(path.partition("?")[2]).merge(two))["items"]
        assert [item["id"] for item in found] == [both]
    assert alone.ask("GET", f"/recommend/{USER}", params={**two, "n": 500})["items"][0]["id"] == both  # made or kept
    for path, body in (("/recommend", {"items": [{"id": "demo-0001"}]}), ("/retrieve", {"text": "mug"})):
        assert [hit["id"] for hit in alone.post(path, {**body, **two})["items"]] == [both]
        assert len(alone.post(path, {**body, "category": "rare"})["items"]) == 2
    assert alone.ask("GET", "/items", params={"category": ["mugs", "lamps"]})["items"] == []


def test_diversity_trades_score_for_difference(anywhere: Running) -> None:
    """By the likeness that the re-ranking itself goes by: modal parts, centred on the candidates."""
    users = [f"shopper-{number:03d}" for number in range(10)]

    def ask(user: str, n: int, diversity: float) -> list[dict[str, Any]]:
        hits: list[dict[str, Any]] = anywhere.get(f"/recommend/{user}", n=n, diversity=diversity)["items"]
        return hits

    def modal(hits: list[dict[str, Any]]) -> NDArray[np.float32]:
        catalogue = anywhere.engine.memory.catalogue
        return catalogue.rows.get("modal", catalogue.keys(hit["id"] for hit in hits))

    def of_user(user: str, diversity: float) -> tuple[float, float]:
        """How like each item is to the likest before it, and how well it scores, on average."""
        hits = ask(user, 10, diversity)
        vectors = modal(hits) - modal(ask(user, POOL, 0)).mean(axis=0)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        alike = vectors @ vectors.T
        likest = [float(alike[row, :row].max()) for row in range(1, len(hits))]
        return float(np.mean(likest)), float(np.mean([hit["score"] for hit in hits]))

    plain, half, full = (np.mean([of_user(user, diversity) for user in users], axis=0) for diversity in (0, 0.5, 1))
    assert full[0] < half[0] < plain[0]
    assert full[1] < half[1] < plain[1]
    for user in users:
        assert ask(user, 10, 0.9)[0] == ask(user, 10, 0)[0]


def test_a_session_without_a_user(anywhere: Running) -> None:
    items = [{"id": "demo-0001"}, {"id": "demo-0002", "weight": 3}]
    answer = anywhere.post("/recommend", {"items": items, "n": 500})
    assert (answer["user"], answer["fallback"], answer["model"]) == (None, None, "dgmrec")
    found = {hit["id"] for hit in answer["items"]}
    assert found
    assert not found & {"demo-0001", "demo-0002"}
    with_seen = anywhere.post("/recommend", {"items": items, "n": 500, "exclude_seen": False})
    assert {"demo-0001", "demo-0002"} <= {hit["id"] for hit in with_seen["items"]}
    doubled = [{"id": item["id"], "weight": 2 * float(str(item.get("weight", 1)))} for item in items]
    again = anywhere.post("/recommend", {"items": doubled, "n": 500})
    assert [hit["id"] for hit in again["items"]] == [hit["id"] for hit in answer["items"]]
    problem = anywhere.post("/recommend", {"items": [*items, {"id": "nothing"}]}, status=422)
    assert problem["errors"][0]["pointer"] == "/items/2/id"
    tiny = anywhere.post("/recommend", {"items": [{"id": "demo-0001", "weight": 1e-300}]})
    assert len(tiny["items"]) == 20


def test_one_visit_of_a_new_user_is_a_session(anywhere: Running) -> None:
    user = fresh_id("user")
    anywhere.view("demo-0001", user)
    listed = anywhere.get(f"/recommend/{user}")["items"]
    assert listed == anywhere.post("/recommend", {"items": [{"id": "demo-0001"}]})["items"]


# --- retrieve -----------------------------------------------------------------------------------------------------


def test_words_find_what_was_told_and_what_was_generated(alone: Running) -> None:
    told = alone.create(modalities={"text": LANGUAGE})["id"]
    shown = alone.create(modalities={"image": base64_of(PRODUCT.picture)})["id"]
    found = alone.found_by("/retrieve", text=LANGUAGE, n=500)
    assert found[told]["matched"] == {"modality": "text", "state": "observed"}
    assert found[told]["score"] == pytest.approx(1, abs=1e-4)
    assert next(iter(found)) == told
    assert found[shown]["matched"] == {"modality": "text", "state": "generated"}
    real = alone.found_by("/retrieve", text=LANGUAGE, n=500, include_generated=False)
    assert told in real
    assert shown not in real
    assert {hit["matched"]["state"] for hit in real.values()} == {"observed"}


def test_a_target_is_reached_through_the_querys_generated_feature(alone: Running) -> None:
    told = alone.create(modalities={"text": LANGUAGE})["id"]
    shown = alone.create(modalities={"image": base64_of(PRODUCT.picture)})["id"]
    found = alone.found_by("/retrieve", text=LANGUAGE, target="image", n=500)
    assert found[shown]["matched"] == {"modality": "image", "state": "observed"}
    # The query is completed just as the item with these words was.
    assert found[told]["matched"] == {"modality": "image", "state": "generated"}
    assert next(iter(found)) == told
    assert found[told]["score"] == pytest.approx(1, abs=1e-4)


def test_pictures_and_vectors_search_too(alone: Running) -> None:
    shown = alone.create(modalities={"image": base64_of(PRODUCT.picture)})["id"]
    by_image = alone.post("/retrieve", {"image": base64_of(PRODUCT.picture), "n": 5})["items"]
    assert by_image[0]["id"] == shown
    vector = alone.vector(shown, "image")
    by_vector = alone.post("/retrieve", {"vector": {"image": vector}, "n": 5})["items"]
    assert [hit["id"] for hit in by_vector] == [hit["id"] for hit in by_image]
    crossing = alone.post("/retrieve", {"image": base64_of(PRODUCT.picture), "target": "audio", "n": 5})["items"]
    assert {hit["matched"]["modality"] for hit in crossing} == {"audio"}
    narrowed = alone.post("/retrieve", {"text": "lamp", "category": "lamps", "n": 500})["items"]
    assert {hit["id"] for hit in narrowed} <= {item["id"] for item in alone.get("/items", category="lamps")["items"]}


def test_searches_that_cannot_be(anywhere: Running) -> None:
    assert anywhere.get("/retrieve", text="x", target="smell", status=422)["type"] == "/problems/unknown-modality"
    problem = anywhere.post("/retrieve", {"vector": {"smell": [1.0]}}, status=422)
    assert problem["type"] == "/problems/unknown-modality"
    assert anywhere.post("/retrieve", {"vector": {"image": [1.0]}}, status=422)["type"] == "/problems/invalid-vector"
    assert anywhere.post("/retrieve", {"image": "a text"}, status=422)["type"] == "/problems/invalid-input"


@pytest.mark.parametrize("by", ["final", "text", "image", "audio"])
def test_similar_items(anywhere: Running, by: str) -> None:
    hits = anywhere.get("/items/demo-0001/similar", by=by, n=10)["items"]
    assert len(hits) == 10
    assert "demo-0001" not in {hit["id"] for hit in hits}
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert -1.001 <= scores[-1] <= scores[0] <= 1.001


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "CMYK"), ("JPEG", "L"), ("PNG", "RGBA"), ("PNG", "1"), ("WEBP", "RGB"), ("BMP", "RGB")]
)
def test_every_usual_kind_of_picture_is_taken(anywhere: Running, kind: str, mode: str) -> None:
    data = picture(mode=mode, kind=kind)
    answer = anywhere.create(modalities={"image": base64_of(data)})
    assert answer["modalities"]["image"] == {"state": "observed"}
    stored = anywhere.client.get(f"/items/{answer['id']}/media/image")
    assert (stored.content, stored.headers["content-type"]) == (data, f"image/{kind.lower()}")


def test_of_a_moving_picture_the_first_frame_counts(anywhere: Running) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    moving = anywhere.create(modalities={"image": base64_of(stream.getvalue())})["id"]
    still = anywhere.create(modalities={"image": base64_of(picture("red", (32, 32), "GIF"))})["id"]
    np.testing.assert_allclose(anywhere.vector(moving, "image"), anywhere.vector(still, "image"), atol=1e-5)
