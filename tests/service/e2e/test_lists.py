"""The cache of lists: a list that nothing has touched is not made again, and one that anything has touched is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.pipeline.catalogue import FINAL
from tests.service.running import Running, fresh_id, settings_for

USER = "shopper-003"


class Counting:
    """The index of final vectors, counting searches."""

    def __init__(self, index: Any) -> None:
        self.index, self.searches = index, 0

    def search(self, *arguments: Any) -> Any:
        self.searches += 1
        return self.index.search(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.index, name)


@pytest.fixture(params=["memory", "redis"])
def service(
    request: pytest.FixtureRequest, seeded_file: Path, demo_bundle: Path, demo_folder: Path, tmp_path: Path
) -> Iterator[Running]:
    file = Path(shutil.copy(seeded_file, tmp_path / "lacuna.db"))
    more = {"redis_url": request.getfixturevalue("redis_url")} if request.param == "redis" else {}
    with Running(settings_for(demo_bundle, demo_folder, file, **more)) as running:
        yield running


def counted(service: Running, **query: Any) -> tuple[int, list[Any]]:
    """How often the index was searched for a list, and the list."""
    indexes = service.engine.memory.catalogue.indexes
    counting = Counting(indexes[FINAL])
    indexes[FINAL] = counting
    try:
        found = service.get(f"/recommend/{USER}", **query)["items"]
        service.run(service.engine.runtime.drain())
        return counting.searches, found
    finally:
        indexes[FINAL] = counting.index


def test_a_list_is_made_once_until_anything_moves_on(service: Running) -> None:
    service.wait_until_idle()
    made, first = counted(service)
    again, kept = counted(service)
    assert (made, again, kept) == (1, 0, first)  # to the last bit of every score
    assert counted(service, n=21)[0] == counted(service, category="mugs")[0] == 1
    assert counted(service, exclude_seen=False)[0] == counted(service, diversity=0.5)[0] == 1
    writes = [
        lambda: service.create(id=fresh_id("moved"), title="mug"),
        lambda: service.view(first[0]["id"], USER),
        lambda: service.patch(first[1]["id"], {"available": False}),
        lambda: service.ask("DELETE", f"/items/{first[2]['id']}", status=204),
        lambda: service.ask("DELETE", "/users/shopper-009", status=204),
    ]
    for write in writes:
        write()
        made, _ = counted(service)  # at once, before the log is followed
        assert made == 1
        service.wait_until_idle()
        counted(service)
        assert counted(service)[0] == 0
    ids = {hit["id"] for hit in counted(service)[1]}
    assert not ids & {hit["id"] for hit in first[:3]}
    service.ask("DELETE", f"/users/{USER}", status=204)
    assert service.get(f"/recommend/{USER}")["fallback"] == "popular"


def test_fallbacks_and_other_models_are_not_kept(service: Running) -> None:
    service.wait_until_idle()
    for _ in range(2):
        assert service.get("/recommend/nobody")["fallback"] == "popular"
        assert service.get(f"/recommend/{USER}", model="latest")["model"] == "latest"
    assert service.get("/stats")["fallbacks"] == {"popular": 2}
