"""The real app over a real engine, in the test's own process and without a socket.

The engine has the demo bundle's models and an empty SQLite database. What is to go wrong goes wrong at a port:
`Failing` stands between the engine and its store.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from service.adapters.memory_cache import MemoryCache
from service.adapters.redis.notifier import NoNotifier
from service.adapters.sql.store import SqlStore
from service.bootstrap import compose, load
from service.pipeline.active import Active
from service.pipeline.engine import Engine
from service.pipeline.rebuild import load_catalogue
from service.ports import Store
from service.settings import Settings
from tests.service.running import settings_for


class Failing:
    """A store that raises `failure`, once that is set: from the methods named in `failing`, where any are, or from
    all."""

    def __init__(self, store: SqlStore | Failing) -> None:
        self.failure: Exception | None = None
        self.failing: Collection[str] = ()
        self._store = store

    def __getattr__(self, name: str) -> Any:
        fails = self.failure is not None and name != "close" and (name in self.failing or not self.failing)
        return self._fail if fails else getattr(self._store, name)

    def _fail(self, *_: object, **__: object) -> None:
        assert self.failure is not None
        raise self.failure


@pytest.fixture(scope="session")
def active(demo_bundle: Path, demo_folder: Path) -> Active:
    """What is served of the demo bundle, loaded once."""
    _, loaded = load(settings_for(demo_bundle, demo_folder, demo_folder / "unused.db"))
    return loaded


@pytest.fixture(scope="session")
def empty_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database with its tables and nothing in them; to be copied, not used."""
    file = tmp_path_factory.mktemp("empty") / "lacuna.db"

    async def make() -> None:
        await (await SqlStore.open(f"sqlite+aiosqlite:///{file}")).close()

    asyncio.run(make())
    return file


@pytest.fixture
def startable(demo_bundle: Path, demo_folder: Path, tmp_path: Path) -> Callable[..., Settings]:
    """Settings, besides those given, of an app that starts its own engine over a database without items."""
    return partial(settings_for, demo_bundle, demo_folder, tmp_path / "started.db", seed_catalogue=False)


@pytest.fixture
async def store(empty_file: Path, tmp_path: Path) -> Failing:
    """The engine's store; it is the engine's to close."""
    file = shutil.copy(empty_file, tmp_path / "lacuna.db")
    return Failing(await SqlStore.open(f"sqlite+aiosqlite:///{file}"))


@pytest.fixture
async def engine(active: Active, store: Failing, tmp_path: Path) -> AsyncIterator[Engine]:
    """An engine without items."""
    made = await engine_over(active, cast(Store, store), snapshots=tmp_path / "snapshots")
    yield made
    await made.close()


async def engine_over(active: Active, store: Store, **options: Any) -> Engine:
    """An engine over what is in a store; `options` are other fields of it."""
    made = compose(active, store, cache=MemoryCache(), notifier=NoNotifier(), **options)
    await load_catalogue(made)
    return made


@asynccontextmanager
async def client_of(app: Any, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app, without a socket. A failure of the app is an answer, as it is behind a server."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", **options) as client:
        yield client


def settings_of(**given: Any) -> Settings:
    """Settings with defaults for what is not given."""
    return Settings(**{"api_keys": (), **given})


def pointers(response: httpx.Response) -> list[str]:
    """What the problem points at."""
    return [error["pointer"] for error in response.json()["errors"]]
