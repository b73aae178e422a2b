"""Feedback and users over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from service.domain import Event
from service.main import create_app
from service.pipeline.engine import Engine
from tests.service.asgi import client_of, pointers, settings_of

EVENT = {"user": "u1", "item": "a", "type": "view"}


@pytest.fixture
async def api(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings_of(), engine=engine)
    async with client_of(app) as client:
        await client.post("/items", json={"id": "a"})
        yield client


def _body(*rows: Any) -> dict[str, Any]:
    return {"feedback": list(rows)}


async def _events(engine: Engine) -> list[Event]:
    """What is stored, newest first."""
    return list((await engine.store.list_feedback(limit=500)).items)


async def test_event_arrives_whole_and_in_utc(api: httpx.AsyncClient, engine: Engine) -> None:
    row = {
        "user": "Zoë 🛒",
        "item": "a",
        "type": "rating",
        "value": 4,
        "text": "חולצה",
        "timestamp": "2025-06-01T12:00:00.5+02:00",
        "recommendation_id": "r-1",
    }
    response = await api.post("/feedback", json=_body(row))
    assert (response.status_code, response.json()) == (200, {"accepted": 1, "rejected": []})
    (event,) = await _events(engine)
    assert event.timestamp == datetime(2025, 6, 1, 10, 0, 0, 500_000, tzinfo=UTC)
    assert event.timestamp.tzinfo is UTC
    assert (event.user, event.value, event.text, event.recommendation_id) == ("Zoë 🛒", 4, "חולצה", "r-1")
    listed = (await api.get("/feedback")).json()["items"]
    assert listed == [{**row, "value": 4.0, "timestamp": "2025-06-01T10:00:00.500000Z"}]


async def test_timestamp_defaults_to_now(api: httpx.AsyncClient, engine: Engine) -> None:
    await api.post("/feedback", json=_body(EVENT))
    (event,) = await _events(engine)
    assert abs(event.timestamp - datetime.now(UTC)) < timedelta(seconds=10)


WRONG_EVENTS: list[tuple[Any, str]] = [
    (7, "/feedback/0"),
    ({**EVENT, "user": ""}, "/feedback/0/user"),
    ({**EVENT, "user": "a/b"}, "/feedback/0/user"),
    ({**EVENT, "user": "a\tb"}, "/feedback/0/user"),
    ({**EVENT, "user": "x" * 129}, "/feedback/0/user"),
    ({**EVENT, "item": "no such id"}, "/feedback/0/item"),
    ({**EVENT, "type": "wish"}, "/feedback/0/type"),
    ({**EVENT, "colour": "red"}, "/feedback/0/colour"),
    ({**EVENT, "text": "a\0"}, "/feedback/0/text"),
    ({**EVENT, "value": "4"}, "/feedback/0/value"),
    ({**EVENT, "value": True}, "/feedback/0/value"),
    ({**EVENT, "type": "rating"}, "/feedback/0"),
    ({**EVENT, "type": "rating", "value": 0.5}, "/feedback/0"),
    ({**EVENT, "type": "rating", "value": 5.5}, "/feedback/0"),
    *(
        ({**EVENT, "timestamp": timestamp}, "/feedback/0/timestamp")
        for timestamp in (
            1_700_000_000,
            "yesterday",
            "2025-06-01",
            "2025-06-01T12:00:00",
            "2025-02-30T12:00:00Z",
            "2025-06-01T12:00:60Z",
            "2025-06-01T12:00:00+99:00",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+01:00",
            "0001-01-01T00:00:00+14:00",
            "9999-12-31T23:59:59-14:00",
            (datetime.now(UTC) + timedelta(days=2)).isoformat(),
        )
    ),
]


@pytest.mark.parametrize(("row", "at"), WRONG_EVENTS)
async def test_wrong_row_is_rejected_and_named(api: httpx.AsyncClient, engine: Engine, row: Any, at: str) -> None:
    answer = (await api.post("/feedback", json=_body(row, EVENT))).json()
    assert answer["accepted"] == 1
    assert [rejected["index"] for rejected in answer["rejected"]] == [0]
    strict = await api.post("/feedback?strict=true", json=_body(row, EVENT))
    assert strict.status_code == 422
    assert pointers(strict) == [at]
    assert [event.type for event in await _events(engine)] == ["view"]


async def test_rows_that_the_pipeline_rejects_keep_their_number(api: httpx.AsyncClient) -> None:
    unknown = {**EVENT, "item": "nothing"}
    answer = (await api.post("/feedback", json=_body(EVENT, 7, EVENT, unknown, EVENT))).json()
    assert answer["accepted"] == 3
    assert [rejected["index"] for rejected in answer["rejected"]] == [1, 3]
    assert answer["rejected"][1]["detail"] == "There is no item 'nothing'."


async def test_strict_feedback_on_an_unknown_item_stores_nothing(api: httpx.AsyncClient, engine: Engine) -> None:
    response = await api.post("/feedback?strict=true", json=_body(EVENT, {**EVENT, "item": "nothing"}))
    assert response.status_code == 422
    assert pointers(response) == ["/feedback/1/item"]
    assert not await _events(engine)


async def test_strict_errors_are_the_first_hundred(api: httpx.AsyncClient) -> None:
    response = await api.post("/feedback?strict=true", json=_body(*[7] * 300))
    assert len(pointers(response)) == 100
    assert response.json()["detail"].endswith("(and 299 more)")


@pytest.mark.parametrize("body", [{}, {"feedback": []}, {"feedback": [EVENT] * 10_001}, {"feedback": EVENT}, []])
async def test_wrong_feedback_body_is_refused(api: httpx.AsyncClient, body: Any) -> None:
    assert (await api.post("/feedback", json=body)).status_code == 422


async def test_delete_feedback_of_a_user(api: httpx.AsyncClient, engine: Engine) -> None:
    await api.post("/feedback", json=_body(EVENT, {**EVENT, "user": "u2"}))
    assert (await api.delete("/feedback?user=u1")).json() == {"deleted": 1}
    assert [event.user for event in await _events(engine)] == ["u2"]


async def test_feedback_of_a_type(api: httpx.AsyncClient, engine: Engine) -> None:
    await api.post("/feedback", json=_body(EVENT, {**EVENT, "type": "click"}, {**EVENT, "user": "u2", "type": "click"}))
    (listed,) = (await api.get("/feedback?type=click&user=u1")).json()["items"]
    assert (listed["type"], listed["user"]) == ("click", "u1")
    assert (await api.delete("/feedback?type=click&user=u1&item=a")).json() == {"deleted": 1}
    assert (await api.delete("/feedback?type=click")).json() == {"deleted": 1}
    assert [event.type for event in await _events(engine)] == ["view"]
    for method in ("GET", "DELETE"):
        response = await api.request(method, "/feedback?type=hover")
        assert (response.status_code, pointers(response)) == (422, ["/query/type"])
        assert "view" in response.json()["detail"]


async def test_delete_all_feedback_is_refused(api: httpx.AsyncClient) -> None:
    assert (await api.delete("/feedback")).status_code == 422


async def test_user_is_read_and_erased(api: httpx.AsyncClient) -> None:
    await api.post("/feedback", json=_body({**EVENT, "user": "Zoë"}))
    assert (await api.get("/users/Zoë")).json()["events"] == 1
    assert (await api.delete("/users/Zoë")).status_code == 204
    assert (await api.get("/users/Zoë")).status_code == 404


async def test_unknown_user_is_not_found(api: httpx.AsyncClient) -> None:
    for method in ("GET", "DELETE"):
        response = await api.request(method, "/users/nobody")
        assert response.status_code == 404
        assert response.json()["type"] == "/problems/user-not-found"
