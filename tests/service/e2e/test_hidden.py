"""Items that are not available are shown nowhere to whoever may only read, and to others where they help them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.running import Running, settings_for

HIDDEN, LEFT, USER, TITLE = "hidden-mug", "left-mug", "somebody", "Red mug with dots"
KEYS = {role: f"{role}-secret-0123456789" for role in ("read", "write", "admin")}


@pytest.fixture(scope="module")
def service(
    seeded_file: Path, demo_bundle: Path, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    file = Path(shutil.copy(seeded_file, tmp_path_factory.mktemp("hidden") / "lacuna.db"))
    keys = ",".join(f"{role}er:{role}:{key}" for role, key in KEYS.items())
    with Running(settings_for(demo_bundle, demo_folder, file, api_keys=keys)) as running:
        running.client.headers["x-api-key"] = KEYS["admin"]
        for item in (HIDDEN, LEFT):
            running.create(id=item, title=TITLE)
        running.view(HIDDEN, USER)
        running.view("demo-0001", USER)
        running.patch(HIDDEN, {"available": False})
        yield running


def ask(service: Running, role: str, method: str, path: str, **options: Any) -> httpx.Response:
    return service.client.request(method, path, headers={"x-api-key": KEYS[role]}, **options)


LISTS: list[tuple[str, str, Any]] = [
    ("GET", f"/items/{LEFT}/modalities/text?neighbours=100", None),
    ("GET", f"/items/{LEFT}/modalities/image?neighbours=100", None),
    ("POST", "/impute?neighbours=100", {"title": TITLE}),
    ("GET", f"/recommend/{USER}?explain=true&n=500&exclude_seen=false", None),
    ("GET", f"/recommend/{USER}?model=iris&explain=true&n=500", None),
    ("POST", "/recommend", {"items": [{"id": HIDDEN}, {"id": LEFT}], "explain": True, "exclude_seen": False}),
    ("GET", f"/explain/{USER}/{LEFT}", None),
    ("GET", f"/items/{LEFT}/similar?n=500", None),
    ("GET", f"/items/{LEFT}/similar?n=500&by=text", None),
    ("GET", f"/retrieve?text={TITLE}&n=500", None),
    ("POST", "/retrieve", {"text": TITLE, "n": 500}),
    ("GET", "/recommend/nobody?n=500", None),
    ("GET", "/recommend/nobody?model=latest&n=500", None),
]


@pytest.mark.parametrize(("method", "path", "body"), LISTS)
def test_readers_are_told_nothing_of_a_hidden_item(service: Running, method: str, path: str, body: Any) -> None:
    response = ask(service, "read", method, path, json=body)
    assert response.status_code == 200
    assert HIDDEN not in response.text


@pytest.mark.parametrize("role", ["write", "admin"])
def test_neighbours_and_reasons_are_whole_for_those_who_may_hide(service: Running, role: str) -> None:
    near = ask(service, role, "GET", f"/items/{LEFT}/modalities/text").json()["neighbours"]
    assert near[0]["id"] == HIDDEN
    imputed = ask(service, role, "POST", "/impute", json={"title": TITLE}).json()["modalities"]["text"]["neighbours"]
    assert {hit["id"] for hit in imputed[:2]} == {HIDDEN, LEFT}
    told = ask(service, role, "GET", f"/explain/{USER}/{LEFT}").json()
    assert {reason["item"] for reason in told["reasons"]} == {HIDDEN, "demo-0001"}
    assert ask(service, role, "GET", f"/explain/{USER}/{HIDDEN}").status_code == 200
    listed = ask(service, role, "GET", f"/recommend/{USER}?explain=true&n=500")
    session = {"items": [{"id": HIDDEN}, {"id": "demo-0001"}], "explain": True, "n": 500}
    for answer in (listed, ask(service, role, "POST", "/recommend", json=session)):
        hit = next(hit for hit in answer.json()["items"] if hit["id"] == LEFT)
        assert HIDDEN in {reason["item"] for reason in hit["reasons"]}


def test_a_hidden_item_counts_for_readers_too(service: Running) -> None:
    """What it says of others is in their scores; it is only not named."""
    whole, read = (ask(service, role, "GET", f"/explain/{USER}/{LEFT}").json() for role in ("admin", "read"))
    assert read["score"] == whole["score"]
    assert read["reasons"] == [reason for reason in whole["reasons"] if reason["item"] != HIDDEN]
    assert read["fallback"] is None
    assert ask(service, "read", "GET", f"/explain/{USER}/{HIDDEN}").status_code == 404
    near = ask(service, "read", "GET", f"/items/{LEFT}/modalities/text?neighbours=5").json()["neighbours"]
    assert len(near) == 5


def test_without_keys_everything_is_named(alone: Running) -> None:
    hidden = alone.create(title=TITLE, available=False)["id"]
    left = alone.create(title=TITLE)["id"]
    assert alone.get(f"/items/{left}/modalities/text")["neighbours"][0]["id"] == hidden
    assert hidden not in alone.found_by(f"/items/{left}/similar", n=500)
