"""The real service in a thread of its own, behind a real socket."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import socket
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
import numpy as np
import uvicorn
from PIL import Image

from models.bundle import MANIFEST, file_sha256
from service.adapters.faiss_index import FaissIndex
from service.adapters.sql.store import SqlStore
from service.domain import ModelState, State, StoredItem
from service.main import create_app
from service.pipeline import follow, regenerate, vectors
from service.pipeline.catalogue import KERNEL_FIELDS, Catalogue, Derived, Entry
from service.pipeline.complete import complete, with_users
from service.pipeline.engine import Engine
from service.settings import Settings

T = TypeVar("T")
TIMEOUT_S = 60.0
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
_numbers = itertools.count()


def settings_for(bundle: Path, data_dir: Path, database: Path | str, **more: Any) -> Settings:
    """Settings of a service over a SQLite file or a database's URL."""
    url = database if isinstance(database, str) else f"sqlite+aiosqlite:///{database}"
    return Settings(bundle=bundle, data_dir=data_dir, database_url=url, **more)


class Running:
    """The app under uvicorn. `client` speaks to it."""

    client: httpx.Client

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.failures: list[Exception] = []
        self._ready = threading.Event()
        self.app = create_app(settings, on_ready=self._on_ready, on_failure=self._on_failure)

    @property
    def engine(self) -> Engine:
        """The engine that serves now."""
        engine: Engine = self.app.state.engine
        return engine

    async def _on_ready(self, _: Engine) -> None:
        self.loop = asyncio.get_running_loop()
        self._ready.set()

    def _on_failure(self, error: Exception) -> None:
        self.failures.append(error)
        self._ready.set()

    def __enter__(self) -> Running:
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._server = uvicorn.Server(uvicorn.Config(self.app, log_config=None, ws="none", access_log=False))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        assert self._ready.wait(TIMEOUT_S), "the service did not start"
        if self.failures:
            self._stop()
            raise self.failures[0]
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.client = httpx.Client(base_url=self.url, timeout=TIMEOUT_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self._stop()

    def _stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive(), "the service did not stop"

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await something in the service's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(TIMEOUT_S)

    def wait_until_idle(self) -> None:
        """Wait for what happens after answers."""
        self.run(self._until_idle())

    async def _until_idle(self) -> None:
        engine = self.engine
        while True:
            await engine.runtime.drain()
            await follow.catch_up(engine)
            regenerate.look_up(engine)
            await engine.runtime.drain()
            await follow.catch_up(engine)
            if not regenerate.is_waiting(engine) and not (await engine.store.backlog()).items:
                return

    # --- requests ------------------------------------------------------------------------------------------------

    def ask(self, method: str, path: str, *, status: int = 200, **options: Any) -> Any:
        """The JSON answer to a request that must have this status; a refusal must be a proper problem."""
        response = self.client.request(method, path, **options)
        assert response.status_code == status, response.text
        if status >= 400:
            problem_of(response)
        return response.json() if response.content else None

    def get(self, path: str, *, status: int = 200, **query: Any) -> Any:
        """GET with query parameters."""
        return self.ask("GET", path, status=status, params=query or None)

    def post(self, path: str, body: Any, *, status: int = 200, **query: Any) -> Any:
        """POST of a JSON body."""
        return self.ask("POST", path, status=status, json=body, params=query or None)

    def create(self, **body: Any) -> Any:
        """A new item's answer; without an `id` it gets one."""
        return self.post("/items", {"id": fresh_id(), **body}, status=201)

    def patch(self, item_id: str, body: Any, *, status: int = 200) -> Any:
        """PATCH of an item."""
        return self.ask("PATCH", f"/items/{item_id}", status=status, json=body)

    def view(self, item_id: str, *users: str, kind: str = "view") -> None:
        """Feedback of users on an item, and all that follows from it."""
        events = [{"user": user, "item": item_id, "type": kind} for user in users]
        assert self.post("/feedback", {"feedback": events})["accepted"] == len(users)
        self.wait_until_idle()

    def vector(self, item_id: str, modality: str) -> list[float]:
        """An item's feature."""
        found = self.get(f"/items/{item_id}/modalities/{modality}", vector=True)["vector"]
        assert isinstance(found, list)
        return found

    def found_by(self, path: str, **query: Any) -> dict[str, Any]:
        """The items of a list, by id."""
        return {hit["id"]: hit for hit in self.get(path, **query)["items"]}

    # --- the whole state -----------------------------------------------------------------------------------------

    def check_index(self) -> None:
        """The catalogue in memory is what the store says, to the bit."""
        self.wait_until_idle()
        self.run(check_index(self.engine))


async def check_index(engine: Engine) -> None:
    """The catalogue in memory is what the store says, to the bit, and all that is derived follows from the rest now."""
    catalogue = engine.memory.catalogue
    items = [item async for batch in engine.store.iter_items() for item in batch]
    counts = await engine.store.item_counts(min_rating=engine.active.min_rating)
    assert len(catalogue) == len(items)
    assert {entry.id for entry in catalogue.entries.values()} == {item.id for item in items}
    places = dict.fromkeys(catalogue.indexes, 0)
    for item in items:
        key, derived = catalogue.key(item.id), Derived.unpack(item.derived, catalogue.shape)
        assert key is not None
        assert derived is not None
        entry = catalogue.entries[key]
        assert (entry.version, entry.title, entry.categories, entry.available) == (
            item.version,
            item.title,
            item.categories,
            item.available,
        )
        assert catalogue.available[key] == item.available
        assert catalogue.popularity[key] == counts.get(item.id, 0)
        assert not item.observed.keys() & item.generated.keys()
        for column, name in enumerate(catalogue.names):
            known = item.observed.get(name) or item.generated.get(name)
            state = State.OBSERVED if name in item.observed else State.GENERATED if known else State.ABSENT
            assert entry.states[name] is state
            assert catalogue.observed[key, column] == (name in item.observed)
            assert np.array_equal(catalogue.rows.get(f"feature.{name}", key), derived.features[name])
            is_used = bool(catalogue.used[key, column])
            made = item.generated.get(name)
            raw = np.asarray(np.nan if made is None else made.confidence, dtype=np.float64)
            assert is_used == bool(catalogue.confidence.used(name, raw))
            says_something = known is not None and is_used and np.linalg.norm(derived.features[name]) > 1e-6
            assert (key in catalogue.indexes[name]) == says_something
            places[name] += says_something
        assert key in catalogue.indexes["items"]
        assert key in catalogue.indexes["items:cosine"]
        assert np.linalg.norm(catalogue.final(np.array([key]))) > 0
        for name, side in derived.sides.items():
            assert np.array_equal(catalogue.rows.get(f"side.{name}", key), side)
        assert engine.active.iris is None or key in catalogue.indexes["iris:targets"]
    places |= {name: len(items) for name in ("items", "items:cosine", "iris:targets") if name in catalogue.indexes}
    assert {name: len(index) for name, index in catalogue.indexes.items()} == places
    await _check_stored(engine, items)
    _check_vectors(engine, items)


async def _check_stored(engine: Engine, items: Sequence[StoredItem]) -> None:
    """What is stored of items is what follows from their features, their users and their neighbours now."""
    active, catalogue = engine.active, engine.memory.catalogue
    contents = await with_users(
        engine, {item.id: item.observed for item in items}, {item.id: item.title for item in items}
    )
    for item, computed in zip(items, complete(active, catalogue, contents), strict=True):
        assert {name: (one.generator, one.basis) for name, one in item.generated.items()} == {
            name: (one.generator, one.basis) for name, one in computed.generated.items()
        }, item.id
        derived = Derived.unpack(item.derived, catalogue.shape)
        assert derived is not None
        for name, value in computed.derived.fields().items():
            np.testing.assert_allclose(derived.fields()[name], value, **CLOSE, err_msg=f"{name} of {item.id}")


def _check_vectors(engine: Engine, items: Sequence[StoredItem]) -> None:
    """The vectors in memory are those derived from nothing but what is stored, to the bit."""
    active, catalogue = engine.active, engine.memory.catalogue
    anew = Catalogue(catalogue.shape, FaissIndex, active.dgmrec.trained_row)
    anew.set_confidence(catalogue.confidence)
    rows = [(Entry.of(item, catalogue.names), Derived.unpack(item.derived, catalogue.shape)) for item in items]
    anew.put([(entry, derived) for entry, derived in rows if derived is not None])
    for _ in vectors.derive(active.dgmrec, anew):
        pass
    keys = np.array(sorted(anew.entries), dtype=np.int64)
    later = keys[anew.trained[keys] < 0]
    for name in (*catalogue.shape.layer_fields(), *KERNEL_FIELDS):
        its = later if name in KERNEL_FIELDS else keys
        np.testing.assert_array_equal(catalogue.read_layer(its, name), anew.read_layer(its, name), err_msg=name)


async def open_active(url: str) -> SqlStore:
    """A database, with what is derived under its active model."""
    store = await SqlStore.open(url)
    rows = await store.served_models()
    return store.under(next((row.id for row in rows if row.state is ModelState.ACTIVE), 0))


def problem_of(response: httpx.Response) -> Any:
    """The problem that a refusal is."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["detail"]
    return problem


def sign(bundle: Path, *names: str, **changes: Any) -> None:
    """Give a tampered bundle the checksums of its files, and its manifest other values."""
    manifest = json.loads((bundle / MANIFEST).read_text()) | changes
    manifest["files"] |= {name: file_sha256(bundle / name) for name in names}
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def fresh_id(prefix: str = "new") -> str:
    """An id that no other test uses."""
    return f"{prefix}-{next(_numbers):04d}"


def base64_of(data: bytes) -> dict[str, str]:
    """A picture as the API takes it."""
    return {"base64": base64.b64encode(data).decode()}


def picture(colour: str = "red", size: tuple[int, int] = (64, 64), kind: str = "PNG", mode: str = "RGB") -> bytes:
    """A plain picture."""
    stream = io.BytesIO()
    Image.new(mode, size, colour if mode == "RGB" else 0).save(stream, kind)
    return stream.getvalue()


def seeded(bundle: Path, folder: Path, file: Path) -> Path:
    """A SQLite database as the service leaves it after its first start with a bundle."""
    with Running(settings_for(bundle, folder, file)):
        pass
    return file
