"""A request that is sent again under its key is done once and answered as it was."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx
import pytest

from service.adapters.sql.store import SqlStore
from tests.service.running import Running, fresh_id, problem_of


def send(service: Running, path: str, body: Any, key: str, **query: Any) -> httpx.Response:
    return service.client.post(path, json=body, params=query, headers={"Idempotency-Key": key})


def test_the_same_request_is_answered_as_it_was(anywhere: Running) -> None:
    item, user, key = fresh_id(), fresh_id("user"), fresh_id("key")
    body = {"id": item, "title": "Red mug"}
    event = {"feedback": [{"user": user, "item": item, "type": "view"}, {"user": user, "item": "gone", "type": "view"}]}
    batch = {"items": [{"id": fresh_id(), "title": "Blue mug"}, {"id": item}]}
    for number, (path, sent, status) in enumerate(
        [("/items", body, 201), ("/feedback", event, 200), ("/items/batch", batch, 200)]
    ):
        first = send(anywhere, path, sent, f"{key}-{number}")
        again = send(anywhere, path, sent, f"{key}-{number}")
        assert (first.status_code, again.status_code) == (status, status)
        assert again.content == first.content
        assert "idempotency-replayed" not in first.headers
        assert again.headers["idempotency-replayed"] == "true"
        assert again.headers["content-type"] == first.headers["content-type"]
    # The moment of the events was left to the service: sent again without a key they would be new ones.
    assert len(anywhere.get("/feedback", user=user)["items"]) == 1
    anywhere.post("/items", body, status=409)


def test_refusals_are_remembered_too(anywhere: Running) -> None:
    key, item = fresh_id("key"), fresh_id()
    first = send(anywhere, "/items", {"id": item, "nonsense": 1}, key)
    again = send(anywhere, "/items", {"id": item, "nonsense": 1}, key)
    assert (first.status_code, again.status_code) == (422, 422)
    assert again.content == first.content
    assert again.headers["content-type"] == "application/problem+json"


def test_a_key_stands_for_one_request(anywhere: Running) -> None:
    key, item = fresh_id("key"), fresh_id()
    assert send(anywhere, "/items", {"id": item, "title": "a"}, key).status_code == 201
    for path, body, query in (
        ("/items", {"id": item, "title": "b"}, {}),
        ("/feedback", {"feedback": []}, {}),
        ("/items", {"id": item, "title": "a"}, {"x": 1}),
    ):
        problem = problem_of(send(anywhere, path, body, key, **query))
        assert (problem["status"], problem["type"]) == (422, "/problems/idempotency-key-reused")
    assert problem_of(send(anywhere, "/items", {"id": fresh_id()}, "x" * 256))["status"] == 422
    assert problem_of(send(anywhere, "/items", {"id": fresh_id()}, ""))["status"] == 422


def test_of_many_at_once_one_is_done(anywhere: Running) -> None:
    item, key = fresh_id(), fresh_id("key")

    async def at_once() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=anywhere.url, timeout=60) as client:
            body = {"id": item, "title": "Red mug"}
            return await asyncio.gather(
                *(client.post("/items", json=body, headers={"Idempotency-Key": key}) for _ in range(12))
            )

    answers = asyncio.run(at_once())
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) <= {201, 409}
    assert statuses[201] >= 1
    assert {answer.json()["type"] for answer in answers if answer.status_code == 409} <= {
        "/problems/request-in-progress"
    }
    assert len({answer.content for answer in answers if answer.status_code == 201}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers if answer.status_code == 201) == 1


def test_a_service_that_dies_before_it_answers_still_knows_the_answer(
    anywhere: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(*_: object) -> None:
        raise RuntimeError("power cut")

    item, key, other, user = fresh_id(), fresh_id("key"), fresh_id("key"), fresh_id("user")
    body, events = {"id": item, "title": "Red mug"}, {"feedback": [{"user": user, "item": "demo-0001", "type": "view"}]}
    with monkeypatch.context() as patch:
        patch.setattr(SqlStore, "answered", die)
        patch.setattr(SqlStore, "release", die)
        assert send(anywhere, "/items", body, key).status_code == 500
        assert send(anywhere, "/feedback", events, other).status_code == 500
    again = send(anywhere, "/items", body, key)
    assert again.status_code == 201
    assert (again.json()["id"], again.json()["version"]) == (item, 1)
    assert send(anywhere, "/feedback", events, other).json() == {"accepted": 1, "rejected": []}
    assert len(anywhere.get("/feedback", user=user)["items"]) == 1


def test_what_failed_can_be_tried_again(anywhere: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("not this time")

    item, key = fresh_id(), fresh_id("key")
    with monkeypatch.context() as patch:
        patch.setattr(SqlStore, "write_items", fail)
        assert send(anywhere, "/items", {"id": item}, key).status_code == 500
    assert send(anywhere, "/items", {"id": item}, key).status_code == 201
