"""One question has one order: whatever part of it is asked for, before and after a merge of the indexes and a restart,
from the cache or not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from service.adapters.faiss_index import FaissIndex
from service.adapters.memory_cache import MemoryCache
from tests.service.running import Running, base64_of, fresh_id, picture, settings_for

USER = "shopper-005"
LENGTHS = (1, 2, 7, 19, 20, 21, 45, 120)
LISTS: dict[str, dict[str, Any]] = {
    f"/recommend/{USER}": {},
    f"/recommend/{USER}?exclude_seen=false": {},
    f"/recommend/{USER}?diversity=0.4": {},
    f"/recommend/{USER}?model=iris": {},
    f"/recommend/{USER}?model=iris&diversity=1": {},
    f"/recommend/{USER}?model=popular": {},
    f"/recommend/{USER}?model=latest": {},
    "/recommend/nobody": {},
    "/recommend": {"items": [{"id": "demo-0001"}, {"id": "demo-0002", "weight": 2}]},
    "/items/demo-0001/similar": {},
    "/items/demo-0001/similar?by=text": {},
    "/items/demo-0001/similar?by=image": {},
    "/retrieve?text=mug": {},
    "/retrieve?text=mug&target=image": {},
    "/retrieve": {"vector": {"audio": [1.0, *[0.0] * 11]}},
}


@pytest.fixture(scope="module")
def crowded(seeded_file: Path, demo_bundle: Path, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service with many items that are alike."""
    file = Path(shutil.copy(seeded_file, tmp_path_factory.mktemp("order") / "lacuna.db"))
    with Running(settings_for(demo_bundle, demo_folder, file)) as service:
        image = base64_of(picture("green"))
        rows = [
            {"id": fresh_id("twin"), "title": "Green mug", "modalities": {"image": image}, "categories": ["twins"]}
            for _ in range(90)
        ]
        rows += [{"id": fresh_id("blank"), "categories": ["twins"]} for _ in range(60)]
        answer = service.post("/items/batch", {"items": rows})
        assert {row["status"] for row in answer["items"]} == {201}
        service.wait_until_idle()
        yield service


def ask(service: Running, path: str, n: int) -> list[Any]:
    body = LISTS[path]
    if body:
        return list(service.post(path, {**body, "n": n})["items"])
    separator = "&" if "?" in path else "?"
    return list(service.get(f"{path}{separator}n={n}")["items"])


@pytest.mark.parametrize("path", LISTS)
def test_the_first_of_a_long_list_are_a_short_one(crowded: Running, path: str) -> None:
    whole = ask(crowded, path, 500)
    assert len(whole) > max(LENGTHS)
    for n in LENGTHS:
        assert ask(crowded, path, n) == whole[:n]


@pytest.mark.parametrize("path", [path for path in LISTS if "diversity" not in path])
def test_equals_are_in_order_of_their_rows(crowded: Running, path: str) -> None:
    found = ask(crowded, path, 500)
    keys = crowded.engine.memory.catalogue.keys(hit["id"] for hit in found).tolist()
    scores = [hit["score"] for hit in found]
    sign = -1 if "latest" in path else 1
    order = sorted(range(len(found)), key=lambda row: (-scores[row], sign * keys[row]))
    if "popular" in path or "nobody" in path:  # the newest first, and then the row
        created = crowded.engine.memory.catalogue.created
        order = sorted(range(len(found)), key=lambda row: (-scores[row], -created[keys[row]], keys[row]))
    assert order == list(range(len(found)))
    assert len(set(scores)) < len(scores)


def test_neighbours_of_a_few_are_the_first_of_many(crowded: Running) -> None:
    item = crowded.create(title="Green mug")["id"]
    path = f"/items/{item}/modalities/image"
    many = crowded.get(path, neighbours=100)["neighbours"]
    for n in (1, 5, 33):
        assert crowded.get(path, neighbours=n)["neighbours"] == many[:n]
        imputed = crowded.post(f"/impute?neighbours={n}", {"title": "Green mug"})["modalities"]["image"]
        assert imputed["neighbours"] == many[:n]


def test_pages_are_parts_of_one_list(crowded: Running) -> None:
    whole = [item["id"] for item in crowded.get("/items", limit=500)["items"]]
    for limit in (1, 7, 100):
        found, cursor = [], None
        while len(found) < 200:
            page = crowded.get("/items", limit=limit, **({"cursor": cursor} if cursor else {}))
            found += [item["id"] for item in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None or (limit == 1 and len(found) > 20):
                break
        assert found == whole[: len(found)]


def test_neither_a_merge_nor_a_restart_changes_the_order(
    crowded: Running, demo_bundle: Path, demo_folder: Path, tmp_path: Path
) -> None:
    crowded.wait_until_idle()
    before = {path: ask(crowded, path, 500) for path in LISTS}
    for index in crowded.engine.memory.catalogue.indexes.values():
        assert isinstance(index, FaissIndex)
        assert index.stats()["delta"] > 0
        index.merge()
    assert {path: ask(crowded, path, 500) for path in LISTS} == before
    crowded.engine.snapshots = tmp_path / "snapshots"
    crowded.post("/admin/snapshot", None)
    url = crowded.settings.database_url
    with Running(settings_for(demo_bundle, demo_folder, url)) as other:  # from SQL
        assert {path: ask(other, path, 500) for path in LISTS} == before
    data = tmp_path / "data"
    data.mkdir()
    (data / "encoders").symlink_to((demo_folder / "encoders").resolve())
    shutil.move(tmp_path / "snapshots", data / "snapshots")
    with Running(settings_for(demo_bundle, data, url)) as other:  # from the snapshot
        assert {path: ask(other, path, 50) for path in LISTS} == {path: hits[:50] for path, hits in before.items()}


def test_a_list_from_the_cache_is_the_list(crowded: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    crowded.wait_until_idle()
    paths = [path for path in LISTS if path.startswith(f"/recommend/{USER}")]
    first = {path: ask(crowded, path, 33) for path in paths}
    crowded.run(crowded.engine.runtime.drain())
    assert {path: ask(crowded, path, 33) for path in paths} == first
    monkeypatch.setattr(crowded.engine, "cache", MemoryCache(max_bytes=0))  # which keeps nothing
    assert {path: ask(crowded, path, 33) for path in paths} == first
