"""One item from its first day to its last, over HTTP: at each step what is known of it, from what, and where it is
found."""

from __future__ import annotations

from typing import Any

from tests.service.running import Running, base64_of, picture


def states(item: Any) -> dict[str, str]:
    return {name: one["state"] for name, one in item["modalities"].items()}


def place(running: Running, path: str, item_id: str, **query: Any) -> int | None:
    """Where an item stands in a list; None where it does not."""
    ids = [hit["id"] for hit in running.get(path, n=130, **query)["items"]]
    return ids.index(item_id) if item_id in ids else None


def test_an_item_from_its_first_day_to_its_last(alone: Running) -> None:
    # Nothing is known but that it exists: everything is generated, from nothing of its own.
    item = alone.post("/items", {"id": "life"}, status=201)
    assert set(states(item).values()) == {"generated"}
    assert all(one["confidence"] < 0.5 for one in item["modalities"].values())
    assert place(alone, "/recommend/shopper-001", "life") is not None

    # A text: observed, and the others are generated from it.
    item = alone.patch("life", {"modalities": {"text": "a striped yellow baseball cap for the summer"}})
    assert states(item) == {"text": "observed", "image": "generated", "audio": "generated"}
    assert {"text"} <= set(item["modalities"]["image"]["basis"]) <= {"text", "neighbours"}
    found = place(alone, "/retrieve", "life", text="striped yellow baseball cap")
    assert found is not None
    assert found < 5
    alone.wait_until_idle()
    assert alone.get("/items/life")["pending"] is False

    # Feedback: its users count among what the others are generated from, and it is seen.
    alone.post(
        "/feedback", {"feedback": [{"user": f"shopper-{n:03d}", "item": "life", "type": "like"} for n in (1, 2, 3)]}
    )
    alone.wait_until_idle()
    item = alone.get("/items/life")
    assert {"text", "users"} <= set(item["modalities"]["image"]["basis"])
    assert place(alone, "/recommend/shopper-001", "life") is None
    assert place(alone, "/recommend/shopper-001", "life", exclude_seen="false") is not None
    generated = alone.vector("life", "image")

    # The real picture replaces the generated one, which counts as a pair.
    before = alone.get("/stats")["imputation_error"].get("image", {"pairs": 0})["pairs"]
    item = alone.patch("life", {"modalities": {"image": base64_of(picture("yellow"))}})
    assert states(item) == {"text": "observed", "image": "observed", "audio": "generated"}
    assert alone.vector("life", "image") != generated
    assert alone.get("/stats")["imputation_error"]["image"]["pairs"] == before + 1
    assert place(alone, "/items/life/similar", "life") is None

    # The text is taken back: it is generated now, from the picture and the users.
    item = alone.patch("life", {"modalities": {"text": None}})
    assert states(item) == {"text": "generated", "image": "observed", "audio": "generated"}
    assert {"image", "users"} <= set(item["modalities"]["text"]["basis"])
    alone.check_index()

    # Gone, from every list, with its feedback.
    alone.ask("DELETE", "/items/life", status=204)
    alone.wait_until_idle()
    alone.get("/items/life", status=404)
    assert place(alone, "/recommend/shopper-001", "life", exclude_seen="false") is None
    assert place(alone, "/retrieve", "life", text="striped yellow baseball cap") is None
    assert "life" not in {event["item"] for event in alone.get("/feedback", user="shopper-001")["items"]}
    alone.check_index()
