"""What counts as interest reaches lists, popularity and what is excluded as seen."""

from __future__ import annotations

from typing import Any

import pytest

from tests.service.running import Running, fresh_id

BRANDS = 5


def rate(service: Running, user: str, items: list[str], value: float, **more: Any) -> None:
    rows = [{"user": user, "item": item, "type": "rating", "value": value, **more} for item in items]
    assert service.post("/feedback", {"feedback": rows})["rejected"] == []


def listed(service: Running, user: str, **query: Any) -> list[str]:
    return [hit["id"] for hit in service.get(f"/recommend/{user}", **query)["items"]]


def test_one_star_leads_to_no_more_of_the_same(anywhere: Running) -> None:
    category = next(iter(anywhere.get("/stats")["categories"]))
    items = [item["id"] for item in anywhere.get("/items", category=category, limit=BRANDS)["items"]]
    low, high = fresh_id("low"), fresh_id("high")
    rate(anywhere, low, items, 1)
    rate(anywhere, high, items, 5)
    assert anywhere.get(f"/recommend/{low}")["fallback"] == "popular"
    assert anywhere.get(f"/recommend/{high}")["fallback"] is None
    assert len(set(listed(anywhere, low, n=20)) & set(listed(anywhere, high, n=20))) < 15
    assert not set(items) & set(listed(anywhere, low, n=500))  # seen all the same
    for user in (low, high):
        anywhere.ask("DELETE", f"/users/{user}", status=204)


@pytest.mark.parametrize("kind", ["dislike", "return", "rating"])
@pytest.mark.parametrize("liked", [True, False])
def test_what_was_turned_down_comes_last(anywhere: Running, kind: str, liked: bool) -> None:
    user = fresh_id("user")
    if liked:
        rate(anywhere, user, ["demo-0001"], 5)
    before = anywhere.get(f"/recommend/{user}", n=3, exclude_seen=False)
    first = before["items"][0]["id"]
    event = {"user": user, "item": first, "type": kind} | ({"value": 2} if kind == "rating" else {})
    anywhere.post("/feedback", {"feedback": [event]})
    everything = anywhere.get(f"/recommend/{user}", n=500, exclude_seen=False)["items"]
    assert everything[-1]["id"] == first
    scores = [hit["score"] for hit in everything]
    assert scores == sorted(scores, reverse=True)
    assert first not in listed(anywhere, user, n=3, exclude_seen=False)
    assert first not in listed(anywhere, user, n=500)


@pytest.mark.parametrize("when", ["2026-02-01T00:00:00Z", "2026-01-01T00:00:00Z"])
def test_who_changes_their_mind_gets_another_list(anywhere: Running, when: str) -> None:
    user = fresh_id("user")
    rate(anywhere, user, ["demo-0005"], 5, timestamp="2026-01-01T00:00:00Z")
    assert anywhere.get(f"/recommend/{user}")["fallback"] is None
    rate(anywhere, user, ["demo-0005"], 1, timestamp=when)
    assert anywhere.get(f"/recommend/{user}")["fallback"] == "popular"
    events = anywhere.get("/feedback", user=user)["items"]
    assert len(events) == (2 if when.startswith("2026-02") else 1)  # of the same moment, it is a correction
    assert events[0]["value"] == 1
    rate(anywhere, user, ["demo-0005"], 4, timestamp="2026-03-01T00:00:00Z")
    assert anywhere.get(f"/recommend/{user}")["fallback"] is None


def test_one_star_makes_nothing_popular(anywhere: Running) -> None:
    best = anywhere.get(f"/recommend/{fresh_id()}", n=1, model="popular")["items"][0]
    item = fresh_id("hated")
    anywhere.create(id=item, title="Hated thing")
    crowd = [fresh_id("crowd") for _ in range(int(best["score"]) + 5)]
    for user in crowd:
        rate(anywhere, user, [item], 1)
    anywhere.wait_until_idle()
    assert anywhere.get(f"/recommend/{fresh_id()}", n=1)["items"][0]["id"] != item
    found = {hit["id"]: hit["score"] for hit in anywhere.get(f"/recommend/{fresh_id()}", n=500)["items"]}
    assert found[item] == 0
    rate(anywhere, crowd[0], [item], 5)
    anywhere.wait_until_idle()
    found = {hit["id"]: hit["score"] for hit in anywhere.get(f"/recommend/{fresh_id()}", n=500)["items"]}
    assert found[item] == 1
    anywhere.ask("DELETE", f"/items/{item}", status=204)


def test_all_that_a_heavy_user_has_bought_is_seen(anywhere: Running) -> None:
    user = fresh_id("heavy")
    bought = [f"demo-{number:04d}" for number in range(1, 41)]
    rows = [{"user": user, "item": item, "type": "purchase", "timestamp": "2026-01-01T00:00:00Z"} for item in bought]
    views = [
        {"user": user, "item": "demo-0050", "type": "view", "timestamp": f"2026-02-01T00:{n // 60:02d}:{n % 60:02d}Z"}
        for n in range(2100)
    ]
    assert anywhere.post("/feedback", {"feedback": rows + views})["accepted"] == len(rows) + len(views)
    assert not set(bought) & set(listed(anywhere, user, n=500))
    assert anywhere.get(f"/users/{user}")["items"] == 41
    only_views = fresh_id("views")
    anywhere.post("/feedback", {"feedback": [{**view, "user": only_views} for view in views]})
    assert listed(anywhere, user, n=20, exclude_seen=False) != listed(anywhere, only_views, n=20, exclude_seen=False)
    for erased in (user, only_views):
        anywhere.ask("DELETE", f"/users/{erased}", status=204)
