"""No request, and no crowd of requests, takes more memory than the settings let it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.main import create_app
from service.pipeline.engine import Engine
from tests.security.drawn import plain
from tests.security.watching import forget_peak, memory_mib
from tests.service.asgi import client_of, settings_of
from tests.service.processes import Program
from tests.service.running import base64_of, fresh_id, picture

ROOT = Path(__file__).parents[2]
ONE_BIT = plain("PNG", "1", colour=1)  # 20 megapixels in 2.5 KB
CLEAR = plain("PNG", "RGBA", colour=(1, 2, 3, 4))


@pytest.fixture(scope="module")
def program(demo_bundle: Path, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("program")
    settings = {"bundle": demo_bundle, "data_dir": demo_folder, "database_url": f"sqlite+aiosqlite:///{folder}/l.db"}
    with Program(folder / "log", **settings) as running:
        yield running


def row_of(data: bytes) -> dict[str, Any]:
    return {"id": fresh_id(), "modalities": {"image": base64_of(data)}}


def test_a_batch_of_large_pictures(program: Program) -> None:
    """64 one-bit PNGs of 20 megapixels in 212 KiB once took 4.9 GiB."""
    body = json.dumps({"items": [row_of(ONE_BIT) for _ in range(64)]})
    before = forget_peak(program.pid)
    answer = httpx.post(
        f"{program.url}/items/batch", content=body, headers={"Content-Type": "application/json"}, timeout=100
    )
    assert memory_mib(program.pid, "VmHWM") - before < 200
    rows = answer.json()["items"]
    assert [row["status"] for row in rows] == [201] * 5 + [422] * 59
    refused = rows[5]["problem"]
    assert refused["type"] == "/problems/invalid-image"
    assert "100,000,000" in refused["detail"]
    assert refused["errors"][0]["pointer"] == "/modalities/image"


def test_the_pixels_of_a_batch_are_counted_over_all_of_it(program: Program) -> None:
    """Also where it is encoded in several goes, and small pictures have room beside."""
    small = [row_of(picture(size=(64, 64))) for _ in range(70)]
    rows = [*small[:1], *(row_of(ONE_BIT) for _ in range(4)), *small[1:], *(row_of(ONE_BIT) for _ in range(3))]
    answer = httpx.post(f"{program.url}/items/batch", json={"items": rows}, timeout=100).json()["items"]
    assert [row["status"] for row in answer] == [201] * 74 + [422] * 3


def test_large_pictures_of_many_requests_at_once(program: Program) -> None:
    answers: list[int] = []

    def ask() -> None:
        answers.append(httpx.post(f"{program.url}/impute", json=body, timeout=100).status_code)

    body = {"modalities": {"image": base64_of(CLEAR)}}
    before = forget_peak(program.pid)
    askers = [threading.Thread(target=ask) for _ in range(8)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert answers == [200] * 8
    assert memory_mib(program.pid, "VmHWM") - before < 250


LONG_NAME = b'{"modalities":{"' + b"n" * 1_000_000 + b'":{' + b",".join(b'"f%d":1' % n for n in range(200)) + b"}}}"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/recommend", b"[" + b"[]," * 2_700_000 + b"[]]"),
        ("/retrieve", b'{"vector":{"text":[' + b'"ab",' * 1_600_000 + b"1]}}"),
        ("/recommend", b"{" + b",".join(b'"%06x":1' % n for n in range(700_000)) + b"}"),
        ("/impute", LONG_NAME),
    ],
    ids=["lists", "texts", "fields", "a long name in every error"],
)
def test_a_body_that_is_all_values(program: Program, path: str, body: bytes) -> None:
    before = forget_peak(program.pid)
    answer = httpx.post(program.url + path, content=body, headers={"Content-Type": "application/json"}, timeout=100)
    assert answer.status_code == 422
    assert len(answer.content) < 100_000
    assert memory_mib(program.pid, "VmHWM") - before < 60


async def test_bodies_that_are_held_at_once_have_a_limit(engine: Engine) -> None:
    settings = settings_of(max_body_bytes=4096, max_bodies_bytes=6000)
    body = json.dumps({"id": "a", "title": "x" * 900, "metadata": {"a": "x" * 2900}}).encode()
    app = create_app(settings, engine=engine)
    async with client_of(app) as api:
        headers = {"Content-Type": "application/json"}
        statuses: list[int] = []

        async def half() -> Any:
            yield body[:3500]
            inner = await api.put("/items/b", content=body.replace(b'"a"', b'"b"', 1), headers=headers)
            statuses.append(inner.status_code)
            problem = inner.json()
            assert (problem["type"], inner.headers["retry-after"]) == ("/problems/overloaded", "1")
            yield body[3500:]

        assert (await api.put("/items/a", content=half(), headers=headers)).status_code == 201
        assert statuses == [503]
        assert (await api.put("/items/b", content=body.replace(b'"a"', b'"b"', 1), headers=headers)).status_code == 201


SEEN = """
import os
from tests.security.watching import forget_peak, memory_mib

before = forget_peak(os.getpid())
held = bytearray(100 << 20)
held[::4096] = b"x" * len(held[::4096])
del held
print(memory_mib(os.getpid(), "VmHWM") - before)
"""


def test_the_tests_see_memory() -> None:
    """In a process of its own: one that has run many tests may have so much memory to spare."""
    done = subprocess.run([sys.executable, "-c", SEEN], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) > 90
