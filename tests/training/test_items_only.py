"""A catalogue that nobody has touched: what its bundle knows, and how `lacuna start` makes one."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import CATALOGUE_FEEDBACK, Bundle, read_manifest
from models.dgmrec.config import DGMRecConfig
from models.dgmrec.serving import DGMRecServing
from tests.training.commands import Run, refused
from tests.training.tiny import ITEMS, contents, events, group, vector_records
from training.content import DataOptions
from training.datasets import load_dataset, write_dataset
from training.datasets.prepared import item_line
from training.dgmrec.recipe import DGMRecRecipe
from training.progress import Terminal
from training.recipe import train_into_bundle
from training.trainer import TrainerConfig

start_module = importlib.import_module("training.cli.start")  # the package has the command under this name


def bundle_of(tmp_path: Path, feedback: list[dict[str, Any]]) -> Bundle:
    data, out = tmp_path / "data", tmp_path / "bundle"
    write_dataset(data, vector_records(), feedback, name="quiet", source="test", synthetic=True)
    recipe = DGMRecRecipe(DGMRecConfig(embedding_size=8, rank=4), TrainerConfig(), budget=60.0, on_all=True)
    with Terminal(quiet=True) as terminal:
        train_into_bundle(recipe, load_dataset(data), out, DataOptions(threads=1), terminal=terminal, source=data)
    return Bundle.load(out)


@pytest.mark.parametrize("few", [0, 5])
def test_items_alone_make_a_bundle(tmp_path: Path, few: int) -> None:
    """Also with too few events to learn from or to measure by, which the service gets nevertheless."""
    bundle = bundle_of(tmp_path, events()[:few])
    assert bundle.manifest.data.interactions == 0
    assert bundle.manifest.models["dgmrec"].metrics["cosine[audio]"] > 0.2
    feedback = bundle.file(CATALOGUE_FEEDBACK)
    assert feedback is not None
    assert len(feedback.read_text("utf-8").splitlines()) == few
    model = DGMRecServing.load(bundle)
    assert all(np.isfinite(table).all() for table in model.tables.values())
    assert not model.tables["warm"].any()
    assert len(model.users) == 0


def test_vectors_follow_the_content(tmp_path: Path) -> None:
    """Of an item of the catalogue and of a new one alike; and after one event, the user's vector does."""
    model = DGMRecServing.load(bundle_of(tmp_path, []))
    features, observed = contents()
    whole = np.flatnonzero(observed.all(axis=1))
    projected = {name: model.project(name, features[name][whole]) for name in model.names}
    nobody, later = np.zeros((len(whole), model.size), np.float32), np.zeros(len(whole), np.bool_)
    told, words = observed[whole], np.zeros((len(whole), 2 + model.size), np.float32)
    vectors = model.content_vectors(projected, told, words, later)
    np.testing.assert_allclose(vectors, model.content_vectors(projected, told, words, ~later), atol=1e-5)
    same = group(ITEMS)[whole]
    cosines = vectors @ vectors.T
    alike = same[:, None] == same
    assert cosines[alike].mean() > cosines[~alike].mean() + 1
    messages = model.item_messages(vectors, nobody, nobody[:, 0])
    user = model.combine(model.user_id("ann", messages[:1]), np.zeros(model.size, np.float32))
    scores = vectors @ user
    assert scores[same == same[0]].mean() > scores[same != same[0]].mean() + 0.5


# --- lacuna start ----------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with a file of items."""
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "items.jsonl").write_bytes(b"".join(item_line(record) for record in vector_records()))
    return folder


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the service would have been started with."""
    calls: list[list[str]] = []

    def exec_service(arguments: list[str]) -> None:
        calls.append(arguments)
        raise SystemExit(0)

    monkeypatch.setattr(start_module, "exec_service", exec_service)
    for name in start_module.PLACES:
        monkeypatch.delenv(name, raising=False)
    return calls


def test_start_from_items_alone(
    lacuna: Run, shop: Path, served: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop.parent)
    code, out, err = lacuna("start", shop / "items.jsonl", "--threads", 1)
    assert (code, out) == (0, "")
    assert "the dataset shop has no feedback that shows interest; the model is made of the items alone" in err
    home = shop.parent / "shop-lacuna"
    version = read_manifest(home / "bundle").version
    assert served == [["--bundle", str(home / "bundle"), "--data-dir", str(home / "service")]]
    code, _, err = lacuna("start", shop / "items.jsonl")
    assert (code, err) == (0, "")  # at once
    assert served[1] == served[0]
    assert read_manifest(home / "bundle").version == version


def test_start_with_feedback_and_a_folder_of_its_own(
    lacuna: Run, shop: Path, served: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LACUNA_DATA_DIR", str(tmp_path / "elsewhere"))
    feedback, home = shop / "events.jsonl", tmp_path / "home"
    feedback.write_text("".join(json.dumps(row) + "\n" for row in events()), "utf-8")
    given = ("start", shop / "items.jsonl", "--feedback", feedback, "--into", home, "--budget", 0, "--threads", 1)
    assert lacuna(*given, "--bundle-only")[0] == 0
    assert served == []
    assert read_manifest(home / "bundle").data.interactions == len({(row["user"], row["item"]) for row in events()})
    assert lacuna(*given)[0] == 0
    assert served == [["--bundle", str(home / "bundle")]]
    with (shop / "items.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"id": "more", "title": "More"}) + "\n")
    code, _, err = lacuna(*given)
    assert code == 0
    assert "the files are others than the bundle was made of" in err
    assert read_manifest(home / "bundle").data.items == ITEMS


def test_start_without_the_file(lacuna: Run, tmp_path: Path) -> None:
    assert refused(lacuna("start", tmp_path / "none.jsonl")).endswith("none.jsonl is no file")


def test_start_with_a_bad_row(lacuna: Run, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop.parent)
    (shop / "items.jsonl").write_text('{"id": "a", "colour": "red"}\n', "utf-8")
    assert refused(lacuna("start", shop / "items.jsonl")) == (
        "lacuna: items.jsonl, line 1: colour: there is no such field"
    )
