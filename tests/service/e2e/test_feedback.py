"""What people do reaches their lists, counts and generated features on the real service."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.service.running import Running, base64_of, fresh_id, settings_for
from training.demo.catalogue import demo_item

PRODUCT = demo_item(k=3)


def test_feedback_changes_the_users_list_at_once(anywhere: Running) -> None:
    user = fresh_id("user")
    assert anywhere.get(f"/recommend/{user}")["fallback"] == "popular"
    anywhere.post("/feedback", {"feedback": [{"user": user, "item": "demo-0001", "type": "view"}]})
    first = anywhere.get(f"/recommend/{user}")
    assert first["fallback"] is None
    best = first["items"][0]["id"]
    anywhere.post("/feedback", {"feedback": [{"user": user, "item": best, "type": "purchase"}]})
    second = anywhere.get(f"/recommend/{user}", n=500)
    assert best not in {hit["id"] for hit in second["items"]}
    assert [hit["id"] for hit in second["items"]][:20] != [hit["id"] for hit in first["items"]][1:21]
    anywhere.wait_until_idle()
    anywhere.check_index()


def test_rows_that_cannot_be_are_named_and_the_rest_is_kept(anywhere: Running) -> None:
    user = fresh_id("user")
    rows = [
        {"user": user, "item": "demo-0001", "type": "view", "timestamp": "2026-01-01T00:00:00Z"},
        {"user": user, "item": "nothing", "type": "view"},
        {"user": user, "item": "demo-0002", "type": "stare"},
        {"user": user, "item": "demo-0001", "type": "view", "timestamp": "2026-01-01T01:00:00+01:00"},  # the first one
        {"user": user, "item": "demo-0002", "type": "rating"},
        {"user": user, "item": "demo-0002", "type": "rating", "value": 4.5, "timestamp": "yesterday"},
        {"user": user, "item": "demo-0003", "type": "review", "text": "Lovely \N{SPARKLES}", "value": 5},
    ]
    strict = anywhere.post("/feedback", {"feedback": rows}, status=422, strict=True)
    assert strict["errors"][0]["pointer"].startswith("/feedback/")
    assert anywhere.get("/feedback", user=user)["items"] == []
    unknown = anywhere.post("/feedback", {"feedback": rows[:2]}, status=422, strict=True)
    assert unknown["errors"][0]["pointer"] == "/feedback/1/item"
    assert anywhere.get("/feedback", user=user)["items"] == []
    answer = anywhere.post("/feedback", {"feedback": rows})
    assert answer["accepted"] == 3
    assert [row["index"] for row in answer["rejected"]] == [1, 2, 4, 5]
    events = anywhere.get("/feedback", user=user)["items"]
    assert [event["item"] for event in events] == ["demo-0003", "demo-0001"]
    assert events[0]["text"] == "Lovely \N{SPARKLES}"
    assert anywhere.get(f"/users/{user}")["events"] == 2


def test_feedback_is_listed_newest_first_page_by_page(anywhere: Running) -> None:
    user = fresh_id("user")
    rows = [
        {"user": user, "item": f"demo-{day:04d}", "type": "view", "timestamp": f"2026-01-{day:02d}T00:00:00Z"}
        for day in range(1, 8)
    ]
    anywhere.post("/feedback", {"feedback": rows})
    pages, cursor = [], {}
    while True:
        page = anywhere.get("/feedback", user=user, limit=3, **cursor)
        pages.append([event["item"] for event in page["items"]])
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [item for page in pages for item in page] == [f"demo-{day:04d}" for day in range(7, 0, -1)]
    both = anywhere.get("/feedback", user=user, item="demo-0003")["items"]
    assert [event["timestamp"] for event in both] == ["2026-01-03T00:00:00Z"]


def test_popularity_counts_people_not_events(anywhere: Running) -> None:
    item_id, category = fresh_id(), fresh_id("category")
    anywhere.create(id=item_id, title="A mug", categories=[category])
    one, two = fresh_id("user"), fresh_id("user")

    def score() -> float:
        (hit,) = anywhere.get("/recommend/nobody", model="popular", category=category)["items"]
        found: float = hit["score"]
        return found

    anywhere.view(item_id, one)
    anywhere.view(item_id, one, kind="click")
    anywhere.view(item_id, one, two)
    assert score() == 2
    anywhere.ask("DELETE", "/feedback", params={"user": one, "item": item_id})
    anywhere.wait_until_idle()
    assert score() == 1
    anywhere.view(item_id, one)
    assert anywhere.ask("DELETE", "/feedback", params={"item": item_id}) == {"deleted": 2}
    anywhere.wait_until_idle()
    assert score() == 0
    anywhere.check_index()


def test_feedback_of_a_type_is_taken_back(anywhere: Running) -> None:
    """At once on the user's list, then on counts and on what was generated."""
    user, other = fresh_id("user"), fresh_id("user")
    item_id, second = (anywhere.create(modalities={"image": base64_of(PRODUCT.picture)})["id"] for _ in range(2))
    for kind in ("view", "click"):
        anywhere.view(item_id, user, kind=kind)
    anywhere.view(second, user, other, kind="click")
    assert [event["type"] for event in anywhere.get("/feedback", user=user, item=item_id, type="click")["items"]] == [
        "click"
    ]
    assert "users" in anywhere.get(f"/items/{second}")["modalities"]["text"]["basis"]
    taken = {"user": user, "type": "click"}
    assert anywhere.ask("DELETE", "/feedback", params=taken) == {"deleted": 2}
    assert anywhere.ask("DELETE", "/feedback", params=taken) == {"deleted": 0}
    seen = anywhere.found_by(f"/recommend/{user}", n=500)
    assert second in seen
    assert item_id not in seen  # viewed, still
    left = anywhere.ask("DELETE", "/feedback", params={"type": "click", "item": second})
    assert left == {"deleted": 1}
    assert anywhere.get(f"/recommend/{other}")["fallback"] == "popular"
    anywhere.wait_until_idle()
    assert "users" not in anywhere.get(f"/items/{second}")["modalities"]["text"]["basis"]
    anywhere.check_index()


def test_all_feedback_of_a_type_is_taken_back(alone: Running) -> None:
    users = [fresh_id("user") for _ in range(3)]
    alone.view("demo-0001", *users, kind="cart")
    alone.view("demo-0002", users[0])
    assert alone.get(f"/recommend/{users[1]}")["fallback"] is None
    count = len(alone.get("/feedback", type="cart", limit=500)["items"])
    assert count >= 3
    assert alone.ask("DELETE", "/feedback", params={"type": "cart"}) == {"deleted": count}
    assert alone.get("/feedback", type="cart")["items"] == []
    assert [alone.get(f"/recommend/{user}")["fallback"] for user in users] == [None, "popular", "popular"]
    alone.wait_until_idle()
    alone.check_index()


def test_new_feedback_makes_generated_features_anew(alone: Running) -> None:
    item_id = alone.create(modalities={"image": base64_of(PRODUCT.picture)})["id"]
    before = {name: alone.vector(item_id, name) for name in ("text", "image", "audio")}
    (place,) = alone.engine.memory.catalogue.keys([item_id])
    final = alone.engine.memory.catalogue.final(alone.engine.memory.catalogue.keys([item_id])).tolist()
    alone.view(item_id, "shopper-001", "shopper-002", "shopper-003")
    item = alone.get(f"/items/{item_id}")
    assert item["version"] == 1
    assert item["modalities"]["text"]["basis"] == ["image", "neighbours", "users"]
    assert alone.vector(item_id, "image") == before["image"]
    assert alone.vector(item_id, "text") != before["text"]
    assert alone.engine.memory.catalogue.key(item_id) == place
    assert alone.engine.memory.catalogue.final(alone.engine.memory.catalogue.keys([item_id])).tolist() != final
    alone.check_index()
    # Taken back, it is as if nothing had happened.
    for user in ("shopper-001", "shopper-002", "shopper-003"):
        alone.ask("DELETE", "/feedback", params={"user": user, "item": item_id})
    alone.wait_until_idle()
    assert {name: alone.vector(item_id, name) for name in before} == before


def test_an_item_without_content_learns_from_its_users(alone: Running) -> None:
    item_id = alone.create()["id"]
    assert alone.get(f"/items/{item_id}")["modalities"]["text"]["generator"] == "mean"
    alone.view(item_id, "shopper-001", "shopper-002")
    text = alone.get(f"/items/{item_id}")["modalities"]["text"]
    assert text["generator"] in ("dgmrec", "dgmrec-base")
    assert text["basis"] == ["users"]


def test_a_deleted_user_is_forgotten(anywhere: Running) -> None:
    user, item_id = fresh_id("user"), anywhere.create(title="A mug")["id"]
    anywhere.view(item_id, user)
    assert anywhere.get(f"/users/{user}") | {"first_event": 0, "last_event": 0} == {
        "id": user,
        "events": 1,
        "items": 1,
        "first_event": 0,
        "last_event": 0,
    }
    anywhere.ask("DELETE", f"/users/{user}", status=204)
    assert anywhere.get(f"/users/{user}", status=404)["type"] == "/problems/user-not-found"
    anywhere.ask("DELETE", f"/users/{user}", status=404)
    assert anywhere.get("/feedback", user=user)["items"] == []
    assert anywhere.get(f"/recommend/{user}")["fallback"] == "popular"
    anywhere.check_index()


def test_deleting_feedback_needs_a_name(anywhere: Running) -> None:
    anywhere.ask("DELETE", "/feedback", status=422)
    assert anywhere.ask("DELETE", "/feedback", params={"user": "nobody"}) == {"deleted": 0}
    assert anywhere.ask("DELETE", "/feedback", params={"item": "nothing"}) == {"deleted": 0}


@pytest.mark.parametrize("kind", ["view", "click", "cart", "purchase"])
def test_every_kind_of_interest_counts(anywhere: Running, kind: str) -> None:
    user = fresh_id("user")
    anywhere.view("demo-0004", user, kind=kind)
    assert anywhere.get(f"/recommend/{user}")["fallback"] is None


@pytest.mark.parametrize("patch", [{"modalities": {"text": "A blue mug."}}, {"available": False}])
def test_a_writer_that_has_not_heard_of_feedback_does_not_undo_it(
    patch: dict[str, object], seeded_file: Path, demo_bundle: Path, demo_folder: Path, tmp_path: Path
) -> None:
    """It computes without the item's new user, whom it takes for one who has seen nothing of it."""
    file = Path(shutil.copy(seeded_file, tmp_path / "lacuna.db"))
    rarely = settings_for(demo_bundle, demo_folder, file, follow_seconds=10)
    with Running(rarely) as here, Running(rarely) as there:
        item = there.create(id="told", modalities={"text": "A red mug."})["id"]
        there.get("/recommend/shopper-001")  # its history is in memory from now on
        here.view(item, "shopper-001")
        assert "users" in here.get(f"/items/{item}")["modalities"]["image"]["basis"]
        there.patch(item, patch)
        there.wait_until_idle()
        assert "users" in there.get(f"/items/{item}")["modalities"]["image"]["basis"]
        assert there.get("/stats")["awaiting_regeneration"] == 0
        here.wait_until_idle()
        for service in (here, there):
            service.check_index()


def test_who_has_met_nothing_before_tells_nothing_of_an_item(alone: Running) -> None:
    """What a user makes of an item follows from what the user was interested in before, not from what comes later."""
    item_id = alone.create(modalities={"image": base64_of(PRODUCT.picture)})["id"]

    def basis() -> list[str]:
        found: list[str] = alone.get(f"/items/{item_id}")["modalities"]["text"]["basis"]
        return found

    def event(user: str, item: str, kind: str, day: int) -> dict[str, str]:
        return {"user": user, "item": item, "type": kind, "timestamp": f"2026-03-{day:02d}T00:00:00Z"}

    def tell(*events: dict[str, str]) -> None:
        alone.post("/feedback", {"feedback": list(events)})
        alone.wait_until_idle()

    # Of these nothing depends on users.
    model = alone.engine.active.dgmrec
    known = [model.items.id(row) for row in np.flatnonzero(model.tables["observed"].all(axis=1)).tolist()[:4]]
    one, other = fresh_id("user"), fresh_id("user")
    alone.wait_until_idle()
    before = alone.vector(item_id, "text"), final_of(alone, item_id)
    tell(event(one, item_id, "view", 5))
    assert basis() == ["image", "neighbours"]
    tell(event(one, known[0], "view", 6))  # later
    assert basis() == ["image", "neighbours"]
    assert (alone.vector(item_id, "text"), final_of(alone, item_id)) == before
    tell(event(one, known[1], "dislike", 3), event(other, known[2], "view", 1), event(other, item_id, "view", 2))
    assert basis() == ["image", "neighbours", "users"]
    told = alone.vector(item_id, "text"), final_of(alone, item_id)
    assert told[0] != before[0]
    assert told[1] != before[1]
    tell(event(one, known[3], "view", 7), event(other, known[3], "view", 7))
    assert (alone.vector(item_id, "text"), final_of(alone, item_id)) == told
    tell(event(one, known[0], "click", 4))  # before: now both tell of it
    assert alone.vector(item_id, "text") != told[0]
    alone.check_index()
    alone.ask("DELETE", "/feedback", params={"user": one, "item": known[0]})
    alone.wait_until_idle()
    assert (alone.vector(item_id, "text"), final_of(alone, item_id)) == told
    alone.ask("DELETE", f"/items/{known[2]}", status=204)
    alone.wait_until_idle()
    assert basis() == ["image", "neighbours"]
    alone.check_index()


def test_what_training_generated_stays_until_an_item_has_twice_the_users(alone: Running) -> None:
    model, catalogue = alone.engine.active.dgmrec, alone.engine.memory.catalogue
    observed, degrees = model.tables["observed"], model.tables["item_degree"]
    rows = [row for row in range(len(model.items)) if not observed[row].all() and 1 <= degrees[row] <= 5]
    row = next(row for row in rows if catalogue.popularity[catalogue.key(model.items.id(row))] <= degrees[row])
    item_id, key = model.items.id(row), catalogue.key(model.items.id(row))
    name = next(name for column, name in enumerate(model.names) if not observed[row, column])

    def is_kept() -> bool:
        alone.check_index()
        return np.array_equal(catalogue.rows.get(f"feature.{name}", key), model.tables[f"feature.{name}"][row])

    assert is_kept()
    missing = int(2 * degrees[row] - catalogue.popularity[key])
    known = {event["user"] for event in alone.get("/feedback", item=item_id, limit=500)["items"]}
    others = [user for user in (f"shopper-{number:03d}" for number in range(40)) if user not in known]
    alone.view(item_id, *others[:missing])
    assert is_kept()
    alone.view(item_id, others[missing])
    assert not is_kept()
    alone.ask("DELETE", "/feedback", params={"user": others[0], "item": item_id})
    alone.wait_until_idle()
    assert is_kept()


def final_of(service: Running, item_id: str) -> list[float]:
    """The vector that an item is ranked by."""
    catalogue = service.engine.memory.catalogue
    final: list[list[float]] = catalogue.final(catalogue.keys([item_id])).tolist()
    return final[0]
