"""A bundle in the paper's form is served like any other: items with holes, lists, searches, and state that converges.

The whole HTTP suite runs on it with `pytest --form paper tests/service`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.running import Running, base64_of, fresh_id, settings_for
from training.demo.catalogue import demo_item

PICTURE = base64_of(demo_item(k=3).picture)


@pytest.fixture(scope="module")
def served(paper_bundle: Path, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    file = tmp_path_factory.mktemp("paper") / "lacuna.db"
    with Running(settings_for(paper_bundle, demo_folder, file)) as service:
        yield service


def test_the_form_is_said(served: Running) -> None:
    (model,) = served.get("/models")["models"]
    assert model["models"]["dgmrec"]["form"] == "paper"
    assert model["models"]["dgmrec"]["metrics"]["trust[text]"] == 1


def test_what_is_missing_is_generated_by_the_learned_generator(served: Running) -> None:
    for content in ({"title": "Red mug"}, {"modalities": {"image": PICTURE}}):
        item = served.create(**content)
        generated = {name: m for name, m in item["modalities"].items() if m["state"] == "generated"}
        assert generated
        for name, modality in generated.items():
            assert modality["generator"] == "dgmrec"
            vector = served.get(f"/items/{item['id']}/modalities/{name}", vector=True)["vector"]
            assert any(vector)


def test_new_items_and_users_are_listed(served: Running) -> None:
    item, user = served.create(title="A tall red teapot")["id"], fresh_id("user")
    before = served.get("/recommend/shopper-001", n=20)["items"]
    assert len(before) == 20
    for liked in ("demo-0001", "demo-0002", item):
        served.view(liked, user)
    served.wait_until_idle()
    found = served.get(f"/recommend/{user}", n=20)
    assert len(found["items"]) == 20
    assert found["fallback"] is None
    assert served.get(f"/items/{item}/similar", n=5)["items"]
    assert served.get("/retrieve", text="red teapot", n=5)["items"]


def test_its_state_follows_from_what_is_stored(served: Running) -> None:
    one, other = (served.create(title=title)["id"] for title in ("A frosted lamp", "A woollen scarf"))
    served.view(one, "shopper-002")
    served.view(other, fresh_id("user"))
    served.patch(one, {"modalities": {"image": PICTURE}})
    served.ask("DELETE", f"/items/{other}", status=204)
    served.wait_until_idle()
    checked = served.post("/admin/check", None)
    assert checked["checked"] > 100
    assert checked["differing"] == 0
