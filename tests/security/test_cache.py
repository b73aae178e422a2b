"""A cache that others write to: what is no list costs the request nothing."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path

import orjson
import pytest
import redis

from service.pipeline import regenerate, vectors
from service.pipeline.engine import Engine
from tests.service.running import Running, fresh_id, settings_for

N = 5


def poison(patch: pytest.MonkeyPatch, engine: Engine, value: bytes, read: list[str]) -> None:
    """Have the cache answer this under every key."""
    get = engine.cache.get

    async def poisoned(key: str) -> bytes | None:
        await get(key)
        read.append(key)
        return value

    patch.setattr(engine.cache, "get", poisoned)


def entries(running: Running) -> tuple[int, int, int]:
    """The keys of three items, the last of which is hidden."""
    catalogue = running.engine.memory.catalogue
    hidden = running.create(title="A hidden mug", available=False)["id"]
    one, other = (key for key in list(catalogue.entries)[:2])
    key = catalogue.key(hidden)
    assert key is not None
    return one, other, key


def odd_values(one: int, other: int, hidden: int) -> dict[str, bytes]:
    pairs: dict[str, object] = {
        "nothing": [],
        "one of two": [[one]],
        "no list": 5,
        "objects": {"keys": [one], "scores": [1.0]},
        "of different lengths": [[one, other], [1.0]],
        "unknown key": [[10**9], [1.0]],
        "negative key": [[-1], [1.0]],
        "huge key": [[2**63 - 1], [1.0]],
        "key that is none": [[1.5], [1.0]],
        "true": [[True], [1.0]],
        "text": [[str(one)], [1.0]],
        "nested": [[[one]], [[1.0]]],
        "score that is none": [[one], ["high"]],
        "no score": [[one], [None]],
        "endless score": [[one], [1e300]],
        "twice": [[one, one], [2.0, 1.0]],
        "more than asked for": [list(range(1, 300)), [1.0] * 299],
        "hidden": [[hidden], [1.0]],
    }
    raw = {"empty": b"", "no JSON": b"\x00\xffpickle", "NaN": b"[[%d],[NaN]]" % one, "deep": b"[" * 100_000}
    return raw | {name: orjson.dumps(value) for name, value in pairs.items()}


def test_a_poisoned_entry_is_ignored(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    user = fresh_id("user")
    for item in ("demo-0001", "demo-0002", "demo-0003"):
        running.view(item, user)
    expected = [hit["id"] for hit in running.get(f"/recommend/{user}", n=N)["items"]]
    for name, value in odd_values(*entries(running)).items():
        running.wait_until_idle()
        read: list[str] = []
        with monkeypatch.context() as patch:
            poison(patch, running.engine, value, read)
            found = [hit["id"] for hit in running.get(f"/recommend/{user}", n=N)["items"]]
        assert read, "the cache was not asked"
        assert found == expected, name


def test_a_good_entry_is_used(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    user = fresh_id("user")
    running.view("demo-0001", user)
    one, other, _ = entries(running)
    running.wait_until_idle()
    read: list[str] = []
    poison(monkeypatch, running.engine, orjson.dumps([[other, one], [2.0, 1.0]]), read)
    names = running.engine.memory.catalogue.entries
    found = running.get(f"/recommend/{user}", n=N)["items"]
    assert read
    assert [hit["id"] for hit in found] == [names[other].id, names[one].id]


def test_nor_does_one_in_redis(
    seeded_file: Path, demo_bundle: Path, demo_folder: Path, redis_url: str, tmp_path: Path
) -> None:
    file = Path(shutil.copy(seeded_file, tmp_path / "lacuna.db"))
    user, path = fresh_id("user"), "/recommend/{}"
    settings = settings_for(demo_bundle, demo_folder, file, redis_url=redis_url)
    with redis.Redis.from_url(redis_url) as client, Running(settings) as running:
        before = set(client.keys("lacuna:list:*"))
        running.view("demo-0001", user)
        running.wait_until_idle()  # a list is cached once all vectors follow from what is stored
        expected = [hit["id"] for hit in running.get(path.format(user), n=N)["items"]]
        running.wait_until_idle()
        (key,) = set(client.keys("lacuna:list:*")) - before
        for name, value in odd_values(*entries(running)).items():
            client.set(key, value)
            found = [hit["id"] for hit in running.get(path.format(user), n=N)["items"]]
            assert found == expected, name
        client.delete(key)
        client.rpush(key, "of another type")
        assert [hit["id"] for hit in running.get(path.format(user), n=N)["items"]] == expected
        client.delete(key)


def test_a_list_of_vectors_that_are_still_being_computed_is_not_kept(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, user, kept = running.engine, fresh_id("user"), list[str]()
    keep = engine.cache.set

    async def noting(key: str, value: bytes, *, ttl_s: float) -> None:
        kept.append(key)
        await keep(key, value, ttl_s=ttl_s)

    monkeypatch.setattr(engine.cache, "set", noting)
    running.view("demo-0001", user)
    running.wait_until_idle()
    engine.memory.catalogue.stale.add(vectors.FINAL, list(engine.memory.catalogue.entries)[:1])
    running.get(f"/recommend/{user}", n=N)
    running.run(regenerate.renew_all(engine))
    assert not kept
    release = threading.Event()
    computing = engine.runtime.writer.submit(release.wait)
    renewal = asyncio.run_coroutine_threadsafe(engine.runtime.compute(len, ()), running.loop)
    running.get(f"/recommend/{user}", n=N + 1)
    assert not kept
    release.set()
    assert computing.result(10)
    renewal.result(10)
    running.get(f"/recommend/{user}", n=N)
    running.wait_until_idle()
    assert len(kept) == 1
