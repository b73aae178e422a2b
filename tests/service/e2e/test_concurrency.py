"""Many requests at once on the real service."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import httpx
import pytest

from tests.service.conftest import AUDIO
from tests.service.running import Running, base64_of, fresh_id, picture
from training.demo.catalogue import demo_item

SECONDS = 2.5


async def at_once(service: Running, *requests: httpx.Request) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=service.url, timeout=60, limits=limits) as client:
        return await asyncio.gather(*(client.send(request) for request in requests))


async def test_of_fifty_creations_of_one_id_one_succeeds(anywhere: Running) -> None:
    item_id = fresh_id()
    image = base64_of(demo_item(k=1).picture)
    bodies = [
        {"id": item_id, "title": f"Mug {number}", "modalities": {"image": image} if number % 2 else {}}
        for number in range(50)
    ]
    answers = await at_once(anywhere, *(httpx.Request("POST", f"{anywhere.url}/items", json=body) for body in bodies))
    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 49}
    (winner,) = (body for body, answer in zip(bodies, answers, strict=True) if answer.status_code == 201)
    assert (await asyncio.to_thread(anywhere.get, f"/items/{item_id}"))["title"] == winner["title"]
    await asyncio.to_thread(anywhere.check_index)


async def test_creations_of_one_id_by_every_way_there_is(anywhere: Running) -> None:
    item_id, other = fresh_id(), fresh_id()
    row = {"id": item_id, "title": "x"}
    requests = [
        *(httpx.Request("POST", f"{anywhere.url}/items", json=row) for _ in range(8)),
        *(httpx.Request("PUT", f"{anywhere.url}/items/{item_id}", json={"title": "y"}) for _ in range(8)),
        *(
            httpx.Request("POST", f"{anywhere.url}/items/batch", json={"items": pair})
            for pair in ([row, {"id": other}], [{"id": other}, row]) * 4
        ),
    ]
    answers = await at_once(anywhere, *requests)
    assert {answer.status_code for answer in answers} <= {200, 201, 409}
    created = [answer.json() for answer in answers[:16] if answer.status_code == 201]
    rows = [one for answer in answers[16:] for one in answer.json()["items"]]
    assert {one["status"] for one in rows} <= {201, 409}
    assert len(created) + sum(one["id"] == item_id and one["status"] == 201 for one in rows) == 1
    assert sum(one["id"] == other and one["status"] == 201 for one in rows) == 1
    replaced = sum(answer.status_code == 200 for answer in answers[8:16])
    item = await asyncio.to_thread(anywhere.get, f"/items/{item_id}")
    assert item["version"] == 1 + replaced
    await asyncio.to_thread(anywhere.check_index)


@pytest.mark.parametrize("seed", [1])
async def test_writers_and_readers_of_a_few_items(anywhere: Running, seed: int) -> None:
    """Whatever comes in whatever order: no 5xx, and in the end the index is what the database says."""
    rng = random.Random(seed)
    ids = [fresh_id("busy") for _ in range(4)]
    image = base64_of(picture("green"))
    until = time.monotonic() + SECONDS
    statuses: Counter[tuple[str, int]] = Counter()

    def request() -> tuple[str, str, dict[str, object]]:
        item, user = rng.choice(ids), f"busy-{rng.randrange(3)}"
        body: dict[str, object] = {"title": rng.choice(("red mug", "blue hat")), "categories": [rng.choice("ab")]}
        event = {"user": user, "item": item, "type": "view"}
        return rng.choice(
            [
                ("POST", "/items", {"json": body | {"id": item, "modalities": {"image": image}}}),
                ("POST", "/items/batch", {"json": {"items": [body | {"id": one} for one in rng.sample(ids, 3)]}}),
                (
                    "PUT",
                    f"/items/{item}",
                    {"json": body | {"modalities": {"audio": {"vector": [rng.random()] * AUDIO}}}},
                ),
                ("PATCH", f"/items/{item}", {"json": {"modalities": {"image": image}, "title": "green mug"}}),
                ("PATCH", f"/items/{item}", {"json": {"modalities": {"image": None}}}),
                ("PATCH", f"/items/{item}", {"json": {"available": rng.random() < 0.5}}),
                ("DELETE", f"/items/{item}", {}),
                ("POST", "/feedback", {"json": {"feedback": [event]}}),
                ("DELETE", f"/users/{user}", {}),
                ("GET", f"/recommend/{user}", {"params": {"n": 200, "category": rng.choice("ab")}}),
                ("GET", f"/items/{item}/similar", {"params": {"by": rng.choice(("final", "image"))}}),
                ("GET", f"/items/{item}/modalities/image", {}),
                ("GET", "/retrieve", {"params": {"text": "mug", "target": "image", "include_generated": False}}),
                ("GET", "/stats", {}),
            ]
        )

    async def one(client: httpx.AsyncClient) -> None:
        while time.monotonic() < until:
            method, path, options = request()
            answer = await client.request(method, path, **options)  # type: ignore[arg-type]  # JSON or a query
            statuses[method, answer.status_code] += 1
            assert answer.status_code < 500, (method, path, answer.text)

    async with httpx.AsyncClient(base_url=anywhere.url, timeout=60) as client:
        await asyncio.gather(*(one(client) for _ in range(12)))
    assert statuses["POST", 201] + statuses["PUT", 201]
    assert statuses["PATCH", 200]
    assert statuses["DELETE", 204]
    await asyncio.to_thread(anywhere.check_index)
    listed = {item["id"] for item in (await asyncio.to_thread(anywhere.get, "/items", limit=500))["items"]}
    for item in ids:
        await asyncio.to_thread(anywhere.get, f"/items/{item}", status=200 if item in listed else 404)


async def test_a_growing_catalogue_answers_all_along(alone: Running) -> None:
    """The arrays grow under the readers' eyes."""
    done = asyncio.Event()

    def sound(row: int) -> dict[str, object]:
        return {"audio": {"vector": [row, *[1.0] * (AUDIO - 1)]}}

    async def read(client: httpx.AsyncClient, path: str, **query: object) -> int:
        count = 0
        while not done.is_set():
            answer = await client.get(path, params=query)  # type: ignore[arg-type]  # str, int or bool
            assert answer.status_code == 200, answer.text
            count += 1
        return count

    async with httpx.AsyncClient(base_url=alone.url, timeout=60) as client:
        readers = [
            asyncio.create_task(read(client, "/retrieve", text="mug", include_generated=False, n=500)),
            asyncio.create_task(read(client, "/recommend/shopper-001", n=500, category="c1")),
            asyncio.create_task(read(client, "/recommend/nobody", n=500)),
            asyncio.create_task(read(client, "/stats")),
        ]
        for batch in range(2):
            rows = [
                {"id": f"grown-{batch}-{row}", "categories": [f"c{row % 50}"], "modalities": sound(row)}
                for row in range(700)
            ]
            answer = await client.post("/items/batch", json={"items": rows})
            assert {row["status"] for row in answer.json()["items"]} == {201}
        done.set()
        assert min(await asyncio.gather(*readers)) > 3
    await asyncio.to_thread(alone.check_index)
    assert alone.engine.memory.catalogue.capacity >= 1520
