"""What would change if an item lacked a modality or had another: foretold as it then happens, and nothing stored."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.service.running import Running, base64_of, settings_for
from training.demo.catalogue import demo_item

EVERYBODY = {"users": 1000, "n": 20}
KEYS = "reader:read:reader-key-00000000,writer:write:writer-key-00000000"


def product(service: Running, k: int, **more: Any) -> str:
    """A new item with a text and a picture."""
    made = demo_item(k=k)
    content = {"text": made.text, "image": base64_of(made.picture)}
    return str(service.create(modalities=content, categories=["foretold"], **more)["id"])


def ask(service: Running, item_id: str, status: int = 200, **body: Any) -> Any:
    return service.post(f"/items/{item_id}/what-if", body, status=status)


def place(service: Running, path: str, item_id: str, **query: Any) -> int | None:
    found = [hit["id"] for hit in service.get(path, n=500, **query)["items"]]
    return found.index(item_id) + 1 if item_id in found else None


def places(service: Running, users: list[str], item_id: str) -> dict[str, int | None]:
    return {user: place(service, f"/recommend/{user}", item_id) for user in users}


@pytest.mark.parametrize("change", ["withheld", "replaced"])
def test_what_is_foretold_happens(alone: Running, change: str) -> None:
    item_id = product(alone, 3)
    alone.view(item_id, "shopper-001", "shopper-002")
    new = {"base64": base64_of(demo_item(k=9).picture)["base64"]}
    body: dict[str, Any] = {"withhold": ["image"]} if change == "withheld" else {"add": {"image": new}}
    foretold = ask(alone, item_id, **body, **EVERYBODY)
    users = [row["user"] for row in foretold["lists"]["users"]]
    assert users
    assert foretold["lists"]["changed"] == len(users)
    before = places(alone, users, item_id)
    assert before == {row["user"]: row["before"] for row in foretold["lists"]["users"]}
    queries = {row["id"]: row for row in foretold["searches"]["image"]["items"]}
    assert queries
    searched = {query: place(alone, f"/items/{query}/similar", item_id, by="image") for query in queries}
    assert searched == {query: row["before"] for query, row in queries.items()}

    patched = alone.patch(item_id, {"modalities": {"image": None if change == "withheld" else new}})
    assert patched["modalities"] == {name: both["after"] for name, both in foretold["modalities"].items()}
    assert places(alone, users, item_id) == {row["user"]: row["after"] for row in foretold["lists"]["users"]}
    searched = {query: place(alone, f"/items/{query}/similar", item_id, by="image") for query in queries}
    assert searched == {query: row["after"] for query, row in queries.items()}


def test_the_audience_is_who_has_it_in_the_first_places(alone: Running) -> None:
    item_id = product(alone, 4)
    found = ask(alone, item_id, withhold=["image", "text"], **EVERYBODY)
    rows, audience = found["lists"]["users"], found["audience"]
    gained = [row["user"] for row in rows if (row["after"] or 999) <= 20 < (row["before"] or 999)]
    lost = [row["user"] for row in rows if (row["before"] or 999) <= 20 < (row["after"] or 999)]
    assert (audience["gained"], audience["lost"]) == (gained, lost)
    assert audience["after"] - audience["before"] == len(gained) - len(lost)
    assert {row["replaced"] for row in rows if row["user"] in gained + lost} <= {1}
    for row in rows:
        assert row["places"] == (None if None in (row["before"], row["after"]) else row["before"] - row["after"])


def test_nothing_is_stored(alone: Running) -> None:
    item_id = product(alone, 5)
    alone.view(item_id, "shopper-003")
    before = (
        alone.get(f"/items/{item_id}"),
        alone.get("/stats")["last_change"],
        alone.get("/recommend/shopper-001")["items"],
    )
    ask(alone, item_id, withhold=["image"], add={"audio": {"vector": [1.0] * 12}})
    assert before == (
        alone.get(f"/items/{item_id}"),
        alone.get("/stats")["last_change"],
        alone.get("/recommend/shopper-001")["items"],
    )
    alone.check_index()


def test_whoever_has_it_in_the_history_gets_another_list(alone: Running) -> None:
    item_id = product(alone, 6)
    alone.view(item_id, "newcomer")
    found = ask(alone, item_id, add={"image": base64_of(demo_item(k=40).picture)}, **EVERYBODY)
    (row,) = [row for row in found["lists"]["users"] if row["user"] == "newcomer"]
    assert (row["before"], row["after"], row["in_history"]) == (None, None, True)
    first = [hit["id"] for hit in alone.get("/recommend/newcomer")["items"]]
    alone.patch(item_id, {"modalities": {"image": base64_of(demo_item(k=40).picture)}})
    then = [hit["id"] for hit in alone.get("/recommend/newcomer")["items"]]
    assert first != then
    assert row["replaced"] == len(set(then) - set(first))


def test_a_sample_is_as_large_as_asked_for_and_the_same_from_the_same_seed(running: Running) -> None:
    item_id = product(running, 7)
    few = ask(running, item_id, withhold=["image"], users=5, seed=3)
    assert few["lists"]["sampled"] == 5
    again = ask(running, item_id, withhold=["image"], users=5, seed=3)
    assert again | {"timings_ms": 0} == few | {"timings_ms": 0}
    nobody = ask(running, item_id, withhold=["image"], users=0, searches=0)
    assert (nobody["lists"]["sampled"], nobody["lists"]["users"]) == (0, [])
    assert nobody["searches"]["image"]["searched"] == 0


def test_a_trained_item(running: Running) -> None:
    page = running.get("/items", limit=500)["items"]
    chosen = next(
        item["id"]
        for item in page
        if item["id"].startswith("demo") and item["modalities"]["image"]["state"] == "observed"
    )
    found = ask(running, chosen, withhold=["image"], **EVERYBODY)
    assert found["modalities"]["image"]["after"]["state"] == "generated"
    assert found["lists"]["changed"] > 0


def test_items_that_are_generated_from_it_are_counted(running: Running) -> None:
    item_id = product(running, 11)
    before = ask(running, item_id, withhold=["image"])["dependents"]
    running.create(modalities={"text": demo_item(k=11).text})
    assert ask(running, item_id, withhold=["image"])["dependents"] == before + 1


def test_bad_questions(running: Running) -> None:
    item_id = running.create(modalities={"text": demo_item(k=8).text})["id"]
    for body, pointer in (
        ({}, "/withhold"),
        ({"withhold": ["image"]}, "/withhold/0"),
        ({"withhold": ["text", "smell"]}, "/withhold/1"),
        ({"withhold": ["text"], "add": {"text": "words"}}, "/withhold/0"),
        ({"add": {"smell": "words"}}, "/add/smell"),
        ({"add": {"audio": {"vector": [1.0]}}}, "/add/audio/vector"),
        ({"add": {"image": {"base64": "AAAA"}}}, "/add/image"),
        ({"withhold": ["text"], "users": 1001}, "/users"),
    ):
        problem = ask(running, item_id, status=422, **body)
        assert problem["errors"][0]["pointer"] == pointer, problem
    assert ask(running, "nobody", status=404, withhold=["text"])["type"] == "/problems/item-not-found"


def test_searches_name_what_a_reader_may_see(
    seeded_file: Path, demo_bundle: Path, demo_folder: Path, tmp_path: Path
) -> None:
    file = Path(shutil.copy(seeded_file, tmp_path / "lacuna.db"))
    with Running(settings_for(demo_bundle, demo_folder, file, api_keys=KEYS)) as service:
        writer = {"Authorization": "Bearer writer-key-00000000"}
        made = demo_item(k=10)
        content = {"text": made.text, "image": base64_of(made.picture)}
        for item_id, available in (("shown", True), ("hidden", False)):
            body = {"id": item_id, "modalities": content, "available": available}
            service.ask("POST", "/items", json=body, headers=writer, status=201)
        other = {"add": {"image": base64_of(demo_item(k=50).picture)}}
        named = []
        for key in ("reader", "writer"):
            headers = {"Authorization": f"Bearer {key}-key-00000000"}
            found = service.ask("POST", "/items/shown/what-if", json=other, headers=headers)
            named.append("hidden" in [row["id"] for row in found["searches"]["image"]["items"]])
        assert named == [False, True]
