"""Reading what one has just written, whichever of several workers answers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.processes import Program
from tests.service.running import Running

HEADER = "X-Lacuna-Position"
SELDOM = 10  # seconds between two looks at the change log, so that nobody knows anything by chance


@pytest.fixture(params=["sqlite", "postgresql"], scope="module")
def database(request: pytest.FixtureRequest, seeded_file: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "sqlite":
        file = shutil.copy(seeded_file, tmp_path_factory.mktemp("positions") / "lacuna.db")
        return f"sqlite+aiosqlite:///{file}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture(scope="module")
def two(
    database: str, demo_bundle: Path, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Clients of two services over one database that hear nothing of each other for a while."""
    logs = tmp_path_factory.mktemp("logs")
    common = {
        "bundle": demo_bundle, "data_dir": demo_folder, "database_url": database, "follow_seconds": SELDOM
    }  # fmt: skip
    with Program(logs / "one.log", **common) as one, Program(logs / "two.log", **common) as other:
        yield one.client(), other.client()


def position(response: httpx.Response) -> dict[str, str]:
    """The header to send after a write."""
    assert response.status_code < 300, response.text
    return {HEADER: response.headers[HEADER]}


def known(client: httpx.Client) -> int:
    return int(client.get("/stats").json()["worker"]["position"])


def view(user: str, *items: str) -> Any:
    return {"feedback": [{"user": user, "item": item, "type": "view"} for item in items]}


def test_an_erased_user_is_not_served_from_another_workers_memory(two: tuple[httpx.Client, httpx.Client]) -> None:
    here, there = two
    behind = 0
    for number in range(10, 16):
        path = f"/recommend/shopper-{number:03d}"
        remembered = there.get(path).json()
        assert remembered["fallback"] is None
        erased = position(here.delete(f"/users/shopper-{number:03d}"))
        behind += known(there) < int(erased[HEADER])
        started = time.monotonic()
        answer = there.get(path, headers=erased).json()
        assert answer["fallback"] == "popular"
        assert time.monotonic() - started < 2
        assert there.get(path, headers=erased, params={"strict": True}).status_code == 404
    assert behind  # or nothing would have been shown


def test_what_one_worker_was_told_the_other_answers_at_once(two: tuple[httpx.Client, httpx.Client]) -> None:
    here, there = two
    made = position(here.put("/items/told", json={"title": "Red mug"}))
    assert there.get("/recommend/nobody?model=latest&n=1", headers=made).json()["items"][0]["id"] == "told"
    assert there.get("/items/told/similar", headers=made).json()["items"]
    seen = position(here.post("/feedback", json=view("new", "told", "demo-0001")))
    assert there.get("/recommend/new", headers=seen).json()["fallback"] is None
    hidden = position(there.patch("/items/told", json={"available": False}, headers=seen))
    latest = here.get("/recommend/nobody?model=latest&n=500", headers=hidden).json()["items"]
    assert "told" not in {hit["id"] for hit in latest}
    unseen = position(here.delete("/feedback?user=new&item=demo-0001"))
    found = there.get("/recommend/new?n=500", headers=unseen).json()["items"]
    assert "demo-0001" in {hit["id"] for hit in found}
    rows = [{"id": f"told-{number}", "title": f"mug {number}"} for number in range(100)]
    batch = position(here.post("/items/batch", json={"items": rows}))
    newest = there.get("/recommend/nobody?model=latest&n=1", headers=batch).json()["items"]
    assert newest[0]["id"] == "told-99"
    gone = position(here.delete("/items/told-99"))
    assert there.get("/recommend/nobody?model=latest&n=1", headers=gone).json()["items"][0]["id"] == "told-98"
    assert there.get("/items/told-99/similar", headers=gone).status_code == 404
    assert int(gone[HEADER]) > int(batch[HEADER]) > int(unseen[HEADER]) > int(seen[HEADER]) > int(made[HEADER])


def test_many_may_wait_at_once(two: tuple[httpx.Client, httpx.Client]) -> None:
    here, there = two
    made = position(here.post("/feedback", json=view("many", "demo-0002")))
    url = str(there.base_url)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: httpx.get(f"{url}/recommend/many", headers=made, timeout=30), range(24)))
    assert {(answer.status_code, answer.json()["fallback"]) for answer in answers} == {(200, None)}


def test_a_write_that_found_nothing_to_do_stands_where_it_was_done(two: tuple[httpx.Client, httpx.Client]) -> None:
    here, there = two
    key = {"Idempotency-Key": "position"}
    body = {"feedback": [{"user": "twice", "item": "demo-0003", "type": "view", "timestamp": "2026-01-01T00:00:00Z"}]}
    first = here.post("/feedback", json=body, headers=key)
    replayed = there.post("/feedback/", json=body, headers=key)
    assert replayed.headers["idempotency-replayed"] == "true"
    repeated = there.post("/feedback", json=body)
    assert first.json() == replayed.json() == repeated.json()
    here.post("/items", json={"id": "taken"})
    refused = there.post("/items", json={"id": "taken"})
    assert refused.status_code == 409
    positions = [int(answer.headers[HEADER]) for answer in (first, replayed, repeated, refused)]
    assert positions == sorted(positions)
    assert there.get("/recommend/twice", headers=position(repeated)).json()["fallback"] is None


def test_a_position_that_nobody_has_reached_is_waited_for_and_given_up(two: tuple[httpx.Client, httpx.Client]) -> None:
    here, there = two
    last = int(position(here.put("/items/last", json={}))[HEADER])
    there.get("/items", headers={HEADER: str(last)})
    for ahead in (1_000, 2**62):
        started = time.monotonic()
        response = there.get("/items", headers={HEADER: str(last + ahead)})
        assert 1.8 < time.monotonic() - started < 10
        assert response.status_code == 503
        assert response.json()["type"] == "/problems/not-followed"
        assert int(response.headers["retry-after"]) > 0
    with ThreadPoolExecutor(1) as pool:  # and one that is reached meanwhile is answered
        waiting = pool.submit(there.get, "/items", headers={HEADER: str(last + 1)})
        time.sleep(0.3)
        here.put("/items/last", json={})
        assert waiting.result().status_code == 200


def test_a_workers_own_writes_are_known_to_it(running: Running) -> None:
    response = running.client.post("/items", json={"id": "own", "title": "mug"})
    for path in ("/items/own", "/recommend/nobody?model=latest", "/stats"):
        assert running.client.get(path, headers={HEADER: response.headers[HEADER]}).status_code == 200
    assert running.engine.runtime.followed.position >= int(response.headers[HEADER])
