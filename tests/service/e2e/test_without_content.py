"""A catalogue of ids alone: its feedback makes the lists, and items with texts may follow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.dgmrec.config import DGMRecConfig
from tests.service.running import Running, settings_for
from training.content import DataOptions
from training.datasets import load_dataset, write_dataset
from training.dgmrec.recipe import DGMRecRecipe
from training.progress import Terminal
from training.recipe import train_into_bundle
from training.trainer import TrainerConfig


@pytest.fixture(scope="module")
def bare(plain_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The service over the demo's feedback on items of which only the ids are known."""
    kept, folder = plain_bundle.parent, tmp_path_factory.mktemp("bare")
    files = [(kept / "data" / name).read_text("utf-8").splitlines() for name in ("items.jsonl", "feedback.jsonl")]
    items, events = ([json.loads(line) for line in lines] for lines in files)
    write_dataset(folder / "data", [{"id": item["id"]} for item in items], events, name="bare", source="the demo")
    recipe = DGMRecRecipe(
        DGMRecConfig(embedding_size=32), TrainerConfig(epochs=2, learning_rate=5e-3, batch_size=1024), on_all=True
    )
    with Terminal(quiet=True) as terminal:
        options = DataOptions(threads=1, cache=kept / "encoders")
        dataset = load_dataset(folder / "data")
        train_into_bundle(recipe, dataset, folder / "bundle", options, terminal=terminal, source=folder / "data")
    with Running(settings_for(folder / "bundle", folder / "service", folder / "lacuna.db")) as service:
        yield service


def test_lists_come_of_feedback(bare: Running) -> None:
    stats = bare.get("/stats")
    assert stats["modalities"]["text"] == {"observed": 0, "generated": 0, "absent": stats["items"]}
    user = bare.get("/feedback", limit=1)["items"][0]["user"]
    answer = bare.get(f"/recommend/{user}", n=10)
    assert answer["fallback"] is None
    assert len(answer["items"]) == 10
    first = answer["items"][0]["id"]
    assert bare.get(f"/items/{first}/similar", n=5)["items"]
    for item in (one["id"] for one in answer["items"][:3]):
        bare.view(item, "somebody")
    assert bare.get("/recommend/somebody", n=10)["fallback"] is None
    assert bare.get("/recommend/nobody")["fallback"] == "popular"
    assert bare.get("/retrieve", text="a red lamp")["items"] == []


def test_a_later_item_may_have_a_text(bare: Running) -> None:
    told = bare.create(id="lamp", modalities={"text": "A small red lamp for the desk"})
    assert told["modalities"]["text"] == {"state": "observed"}
    bare.create(id="vase", modalities={"text": "A vase of blue glass"})
    found = bare.get("/retrieve", text="a desk lamp")["items"]
    assert [item["id"] for item in found] == ["lamp", "vase"]
    bare.view("lamp", "ann", "ben")
    bare.wait_until_idle()
    assert bare.get("/items/lamp")["modalities"]["text"] == {"state": "observed"}
    assert bare.post("/admin/check", None)["differing"] == 0
    bare.check_index()
