"""Several processes over one database: what one has answered, the others answer within a second."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from http.client import HTTPResponse
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.adapters.sql.store import SqlStore
from tests.service.processes import Program, within
from tests.service.running import base64_of
from training.demo.catalogue import demo_item

PRODUCT = demo_item(k=3)
LISTS = (
    "/recommend/shopper-001?n=500",
    "/recommend/{user}?n=500",
    "/recommend/nobody?n=500",
    "/recommend/shopper-002?n=500&model=latest",
    "/recommend/{user}?n=500&model=iris&explain=true",
    "/recommend/shopper-003?n=500&explain=true",
    "/explain/{user}/{item}",
    "/explain/shopper-003/{item}",
    "/items/{item}/similar?n=500",
    "/items/{item}/similar?n=500&by=image",
    "/items/{item}/modalities/image?neighbours=50&vector=true",
    "/items?limit=500",
)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, seeded_file: Path, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{shutil.copy(seeded_file, tmp_path / 'lacuna.db')}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def two(database: str, demo_bundle: Path, demo_folder: Path, tmp_path: Path) -> Iterator[tuple[Program, Program]]:
    """Two services over one database."""
    common = {"bundle": demo_bundle, "data_dir": demo_folder, "database_url": database}
    with Program(tmp_path / "one.log", **common) as one, Program(tmp_path / "two.log", **common) as two:
        yield one, two


def answers(client: httpx.Client, user: str, item: str) -> list[Any]:
    """Everything that is listed, but for what is new with each answer."""
    found = []
    for path in LISTS:
        response = client.get(path.format(user=user, item=item))
        body = response.json()
        for name in ("recommendation_id", "request_id"):
            body.pop(name, None)
        found.append((path, response.status_code, body))
    return found


def settled(client: httpx.Client) -> bool | None:
    """True once nothing awaits regeneration."""
    return client.get("/stats").json()["awaiting_regeneration"] == 0 or None


def agree(one: httpx.Client, other: httpx.Client, user: str, item: str, seconds: float = 30.0) -> None:
    """Both answer alike, in every bit of every score, soon; how soon is `staleness`'s, since asking takes its time."""
    within(30, lambda: settled(one))
    until = time.monotonic() + seconds
    while different := differences(answers(one, user, item), answers(other, user, item)):
        assert time.monotonic() < until, f"after {seconds} s still different: {different}"
        time.sleep(0.02)


def differences(ours: list[Any], theirs: list[Any]) -> list[str]:
    """What is answered differently: path and status of each, and the first places in which two bodies differ."""
    found = []
    for (path, status, body), (_, other_status, other_body) in zip(ours, theirs, strict=True):
        if (status, body) != (other_status, other_body):
            found.append(f"{path} ({status}, {other_status}): {'; '.join(islice(unequal(body, other_body), 3))}")
    return found


def unequal(ours: Any, theirs: Any, place: str = "") -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in ours.keys() | theirs.keys():
            yield from unequal(ours.get(name), theirs.get(name), f"{place}.{name}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from unequal(one, other, f"{place}[{number}]")
    elif ours != theirs:
        yield f"{place} {ours!r} and {theirs!r}"[:500]


def test_what_one_worker_was_told_the_other_answers(two: tuple[Program, Program]) -> None:
    here, there = (program.client() for program in two)
    body = {"id": "told", "title": "Red mug", "modalities": {"image": base64_of(PRODUCT.picture)}, "categories": ["x"]}
    rows = [{"id": f"row-{number}", "title": f"mug number {number}"} for number in range(150)]
    assert here.post("/items", json=body).status_code == 201
    # Writes are decided by the database, not by what a worker has heard yet.
    assert there.post("/items", json=body).status_code == 409
    assert there.post("/feedback", json=event("new", "told")).json() == {"accepted": 1, "rejected": []}
    assert there.get("/items/told/similar").json()["items"]
    assert there.post("/recommend", json={"items": [{"id": "told"}]}).status_code == 200
    agree(here, there, "new", "told")
    assert here.post("/items/batch", json={"items": rows}).status_code == 200
    assert there.patch("/items/told", json={"modalities": {"image": None}, "available": False}).status_code == 200
    agree(here, there, "new", "told")
    for item in ("told", "row-7", "row-8"):
        assert here.post("/feedback", json=event("shopper-001", item)).json()["accepted"] == 1
    agree(here, there, "new", "row-7")
    assert here.delete("/items/told").status_code == 204
    assert there.post("/items", json={"id": "told", "title": "Blue hat"}).status_code == 201
    assert there.post("/feedback", json=event("new", "row-9")).json()["accepted"] == 1
    assert here.delete("/users/shopper-001").status_code == 204
    agree(here, there, "new", "told")
    assert here.delete("/items/row-9").status_code == 204
    agree(here, there, "new", "row-9")  # 404 on both, and a user whose only event went with it
    for client in (here, there):
        assert client.get("/recommend/new?strict=true").status_code == 404
        assert client.get("/recommend/shopper-001").json()["fallback"] == "popular"


def event(user: str, item: str) -> dict[str, Any]:
    return {"feedback": [{"user": user, "item": item, "type": "view"}]}


def test_a_worker_that_was_away_catches_up(two: tuple[Program, Program], database: str) -> None:
    here, there = (program.client() for program in two)
    for trimmed in (False, True):
        away = two[1].pid
        stop(away, here)
        rows = [{"id": f"away-{trimmed}-{number}", "title": f"mug {number}"} for number in range(120)]
        try:
            assert here.post("/items/batch", json={"items": rows}).status_code == 200
            assert here.delete(f"/items/away-{trimmed}-3").status_code == 204
            assert here.delete(f"/items/demo-000{3 + trimmed}").status_code == 204
            assert here.post("/feedback", json=event("shopper-001", f"away-{trimmed}-5")).json()["accepted"] == 1
            if trimmed:
                assert asyncio.run(trim(database)) > 100
        finally:
            os.kill(away, signal.SIGCONT)
        agree(here, there, "shopper-001", f"away-{trimmed}-5")
    assert "Reading the whole catalogue again" in two[1].log.read_text()
    stats = there.get("/stats").json()
    assert stats["worker"]["position"] == stats["last_change"]
    assert stats["worker"]["lag_seconds"] < 5
    metrics = there.get("/metrics").text
    assert f"lacuna_followed_position {float(stats['last_change'])}" in metrics
    assert "lacuna_lag_seconds" in metrics


def stop(pid: int, other: httpx.Client) -> None:
    """Stop a worker at a moment at which it does not hold the lock on SQLite's file, so that the other can write."""

    def has_stopped() -> bool | None:
        os.kill(pid, signal.SIGSTOP)
        if other.delete("/feedback?user=nobody").status_code == 200:
            return True
        os.kill(pid, signal.SIGCONT)
        return None

    within(60, has_stopped)


async def trim(database: str) -> int:
    store = await SqlStore.open(database)
    try:
        return await store.trim_changes(datetime.now(UTC))
    finally:
        await store.close()


def staleness(here: httpx.Client, there: httpx.Client, item: str) -> float:
    """Seconds from an answered creation until the other worker lists the item."""
    assert here.post("/items", json={"id": item, "title": "mug"}).status_code == 201
    start = time.monotonic()
    within(5, lambda: any(hit["id"] == item for hit in newest(there)) or None)
    return time.monotonic() - start


def newest(client: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/recommend/nobody?n=3&model=latest").json()["items"]
    return found


def test_redis_wakes_the_others(
    database: str, demo_bundle: Path, demo_folder: Path, tmp_path: Path, redis_url: str
) -> None:
    common = {"bundle": demo_bundle, "data_dir": demo_folder, "database_url": database}
    rarely = {**common, "follow_seconds": 8, "redis_url": redis_url}
    with Program(tmp_path / "one.log", **rarely) as one, Program(tmp_path / "two.log", **rarely) as two:
        here, there = (program.client() for program in (one, two))
        assert sorted(staleness(here, there, f"rung-{number}") for number in range(5))[2] < 1


def test_without_redis_the_log_is_polled(
    seeded_file: Path, demo_bundle: Path, demo_folder: Path, tmp_path: Path
) -> None:
    database = f"sqlite+aiosqlite:///{shutil.copy(seeded_file, tmp_path / 'lacuna.db')}"
    nowhere = {
        "bundle": demo_bundle,
        "data_dir": demo_folder,
        "database_url": database,
        "redis_url": "redis://127.0.0.1:1",
    }
    with Program(tmp_path / "one.log", **nowhere) as one, Program(tmp_path / "two.log", **nowhere) as two:
        here, there = (program.client() for program in (one, two))
        assert sorted(staleness(here, there, f"polled-{number}") for number in range(5))[2] < 1
        assert two.log.read_text().count("changes are looked for without it") == 1


def test_workers_behind_one_port_start_together_answer_alike_and_are_replaced(
    database: str, demo_bundle: Path, demo_folder: Path, tmp_path: Path
) -> None:
    settings = {"bundle": demo_bundle, "data_dir": demo_folder, "database_url": database, "workers": 2}
    with Program(tmp_path / "log", **settings) as program:
        clients = program.clients()
        assert set(clients) == program.worker_pids()
        one, other = clients.values()
        assert one.post("/items", json={"id": "born", "title": "Red mug"}).status_code == 201
        agree(one, other, "shopper-001", "born")
        dead = next(iter(clients))
        os.kill(dead, signal.SIGKILL)
        within(60, lambda: (dead not in (now := program.worker_pids()) and len(now) == 2) or None)
        one, other = program.clients().values()
        agree(one, other, "shopper-001", "born", seconds=5)
        assert program.stop() == 0
        assert program.log.read_text().count("has ended with -9; starting another") == 1


def test_workers_that_cannot_start_say_why_once(tmp_path: Path, seeded_file: Path, demo_folder: Path) -> None:
    program = Program(
        tmp_path / "log",
        bundle=tmp_path,
        data_dir=demo_folder,
        workers=2,
        database_url=f"sqlite+aiosqlite:///{seeded_file}",
    )
    program.launch()
    assert program.wait(60) == 2
    said = program.log.read_text().splitlines()
    assert [line for line in said if "is no bundle: it has no manifest.json" not in line] == []
    assert 1 <= len(said) <= 2  # each worker that got that far


FAILS_AND_IS_TOLD_TO_STOP = """
import os, signal
from service import workers
from service.settings import Settings, SettingsError

async def fails(settings):
    raise SettingsError("no bundle")

def told_to_stop(error):
    os.kill(os.getpid(), signal.SIGTERM)
    print(error)
    return 2

workers.bootstrap, workers.complain = fails, told_to_stop
workers._work(Settings(), None, None)
"""


def test_a_worker_that_failed_says_why_though_it_is_told_to_stop() -> None:
    done = subprocess.run([sys.executable, "-c", FAILS_AND_IS_TOLD_TO_STOP], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (2, "no bundle\n", "")


def test_workers_end_with_their_supervisor(
    seeded_file: Path, demo_bundle: Path, demo_folder: Path, tmp_path: Path
) -> None:
    database = f"sqlite+aiosqlite:///{shutil.copy(seeded_file, tmp_path / 'lacuna.db')}"
    settings = {"bundle": demo_bundle, "data_dir": demo_folder, "database_url": database, "workers": 2}
    with Program(tmp_path / "log", **settings) as program:
        pids = program.worker_pids()
        os.kill(program.pid, signal.SIGKILL)
        program.wait(10)
        within(20, lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids) or None)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_service_that_is_told_to_stop_finishes_what_it_has_begun(
    workers: int, seeded_file: Path, demo_bundle: Path, demo_folder: Path, tmp_path: Path
) -> None:
    database = f"sqlite+aiosqlite:///{shutil.copy(seeded_file, tmp_path / 'lacuna.db')}"
    settings = {"bundle": demo_bundle, "data_dir": demo_folder, "database_url": database, "workers": workers}
    with Program(tmp_path / "log", **settings) as program:
        rows = [{"id": f"last-{number}", "title": f"mug {number}"} for number in range(300)]
        with ThreadPoolExecutor(1) as pool:
            client = program.client()
            assert client.get("/health/ready").status_code == 200
            answer = pool.submit(client.post, "/items/batch", json={"items": rows})
            time.sleep(0.2)
            assert program.stop() == 0
            assert [row["status"] for row in answer.result().json()["items"]] == [201] * 300
        assert "Traceback" not in program.log.read_text()
        program.start()
        assert len(program.client().get("/items?limit=500").json()["items"]) == 420


UPLOADS = {  # what a client has sent when the service is told to stop
    "a body": b"POST /items HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n",
    "a body under a key": b"POST /items HTTP/1.1\r\nIdempotency-Key: k\r\nContent-Length: 1000\r\n",
    "a chunked body": b"POST /feedback HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n",
}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_client_that_still_sends_when_the_service_stops_is_told_so(
    workers: int, seeded_file: Path, demo_bundle: Path, demo_folder: Path, tmp_path: Path
) -> None:
    database = f"sqlite+aiosqlite:///{shutil.copy(seeded_file, tmp_path / 'lacuna.db')}"
    settings = {"bundle": demo_bundle, "data_dir": demo_folder, "database_url": database, "workers": workers}
    with ExitStack() as opened:
        program = opened.enter_context(Program(tmp_path / "log", **settings))
        sending = {}
        for name, head in UPLOADS.items():
            client = opened.enter_context(socket.create_connection(("127.0.0.1", program.port), timeout=60))
            client.sendall(head + b"Host: here\r\n\r\n" + (b"" if b"chunked" in head else b'{"id":'))
            sending[name] = client
        time.sleep(0.5)
        assert program.stop() == 0
        for name, client in sending.items():
            answer = HTTPResponse(client)
            answer.begin()
            problem = json.loads(answer.read())
            assert (name, answer.status, problem["type"]) == (name, 503, "/problems/stopping")
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.headers["Retry-After"] == "5"
            assert problem["request_id"] == answer.headers["X-Request-ID"]
    assert "Traceback" not in program.log.read_text()
