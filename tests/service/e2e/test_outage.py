"""The database goes away or has no room left: a clear refusal, nothing by half, and it goes on by itself."""

from __future__ import annotations

import asyncio
import random
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.pipeline import keep_up
from tests.service.crash.shop import Act, Shop, State
from tests.service.crash.stored import read_states
from tests.service.processes import within
from tests.service.running import Running, base64_of, open_active, picture, problem_of, settings_for
from tests.service.servers import MIB, Postgres, SmallDisk, UnavailableError, small_disk


@pytest.fixture(autouse=True)
def _tried_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be regenerated is tried again after a moment instead of ten seconds."""
    monkeypatch.setattr(keep_up, "SWEEP_S", 0.3)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A cluster of this module's own."""
    try:
        postgres = Postgres()
    except UnavailableError as reason:
        pytest.skip(str(reason))
    with postgres:
        yield postgres


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """16 MiB."""
    try:
        with small_disk(tmp_path / "disk", 16) as disk:
            yield disk
    except UnavailableError as reason:
        pytest.skip(str(reason))


def shops_of(service: Running) -> list[Shop]:
    dims = {modality.name: modality.dim for modality in service.engine.active.manifest.modalities}
    return [Shop(f"o{number}", dims, random.Random(number)) for number in range(3)]


def work(service: Running, shops: Sequence[Shop]) -> list[threading.Thread]:
    """Let each shop write until it is refused or no longer answered."""

    def one(shop: Shop) -> None:
        with httpx.Client(base_url=service.url, timeout=60) as client:

            def ask(act: Act) -> httpx.Response:
                return client.request(act.method, act.path, json=act.body)

            shop.work(ask, lambda: not shop.violations)

    threads = [threading.Thread(target=one, args=(shop,)) for shop in shops]
    for thread in threads:
        thread.start()
    return threads


def settle_accounts(service: Running, shops: Sequence[Shop]) -> None:
    """Everything that was acknowledged is there once and whole, what was refused is not there by half, and what is in
    memory is what is stored."""
    within(60, lambda: service.get("/stats")["awaiting_regeneration"] == 0 or None)
    service.wait_until_idle()
    states, wrong = asyncio.run(read(service.settings.database_url, [shop.name for shop in shops]))
    assert wrong == []
    for shop in shops:
        assert shop.violations == []
        assert shop.resolve(states[shop.name]) is None
    service.check_index()


async def read(url: str, names: Sequence[str]) -> tuple[dict[str, State], list[str]]:
    store = await open_active(url)
    try:
        return await read_states(store, names)
    finally:
        await store.close()


def acknowledged(shops: Sequence[Shop]) -> int:
    return sum(shop.acknowledged.total() for shop in shops)


@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_postgresql_stopped_and_started(server: Postgres, mode: str, demo_bundle: Path, demo_folder: Path) -> None:
    with Running(settings_for(demo_bundle, demo_folder, server.url)) as service:
        shops = shops_of(service)
        for shop in shops:
            shop.name += mode  # the tests share the database
        threads = work(service, shops)
        within(60, lambda: acknowledged(shops) > 15 or None)
        server.stop(mode)
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert all(shop.pending is not None for shop in shops)
        refused: list[tuple[str, str, Any, dict[str, str]]] = [
            ("GET", "/health/ready", None, {}),
            ("GET", "/stats", None, {}),
            ("GET", "/items/demo-0001", None, {}),
            ("POST", "/items", {"id": "lost", "title": "mug"}, {}),
            ("POST", "/items", {"id": "lost", "title": "mug"}, {"Idempotency-Key": "lost"}),
            ("POST", "/feedback", {"feedback": [{"user": "u", "item": "demo-0001", "type": "view"}]}, {}),
            ("POST", "/admin/snapshot", None, {}),
            ("DELETE", "/items/demo-0001", None, {}),
        ]
        for method, path, body, headers in refused:
            answer = service.client.request(method, path, json=body, headers=headers)
            assert answer.status_code == 503, (method, path, answer.text)
            assert problem_of(answer)["type"] == "/problems/store-unavailable"
            assert int(answer.headers["retry-after"]) > 0
        assert service.get("/health/live") == {"status": "live"}
        assert service.client.get("/metrics").status_code == 200
        server.start()
        within(20, lambda: service.client.get("/health/ready").status_code == 200 or None)
        settle_accounts(service, shops)
        before = acknowledged(shops)
        threads = work(service, shops)
        within(60, lambda: acknowledged(shops) > before + 10 or None)
        for shop in shops:
            shop.violations.append("enough")
        for thread in threads:
            thread.join()
        for shop in shops:
            shop.violations.clear()
        settle_accounts(service, shops)
        service.get("/items/lost", status=404)
        lost = service.post("/items", {"id": f"lost-{mode}"}, status=201)
        assert lost["version"] == 1


def test_a_full_disk(seeded_file: Path, disk: SmallDisk, demo_bundle: Path, data_dir: Path) -> None:
    file = Path(shutil.copy(seeded_file, disk.folder / "lacuna.db"))
    with Running(settings_for(demo_bundle, data_dir, file)) as service:
        service.engine.snapshots = disk.folder / "snapshots"
        shops = shops_of(service)
        disk.fill(left=MIB)
        for thread in work(service, shops):  # until there is no room
            thread.join(120)
            assert not thread.is_alive()
        disk.fill()
        body = {"id": "lost", "modalities": {"image": base64_of(picture("red", (300, 300), "BMP"))}}
        for headers in ({}, {"Idempotency-Key": "lost"}):
            answer = service.client.post("/items", json=body, headers=headers)
            assert answer.status_code == 507, answer.text
            assert problem_of(answer)["type"] == "/problems/store-full"
            assert "retry-after" in answer.headers
        assert service.post("/admin/snapshot", None, status=503)["type"] == "/problems/not-ready"
        # Reading goes on.
        assert service.get("/health/ready") == {"status": "ready"}
        assert service.get("/items/demo-0001")["id"] == "demo-0001"
        assert len(service.get("/recommend/shopper-001", n=50)["items"]) == 50
        service.get("/items/lost", status=404)
        disk.relieve()
        assert service.post("/items", body, status=201)["version"] == 1
        settle_accounts(service, shops)
        assert service.post("/admin/snapshot", None)["items"] == service.get("/stats")["items"]
    assert acknowledged(shops) > 5
