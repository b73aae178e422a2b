"""What a bundle says is what the trained task knows, and withheld content stands nowhere in it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from models.bundle import CATALOGUE_FEATURES, CATALOGUE_FEEDBACK, CATALOGUE_ITEMS, Bundle
from models.dgmrec.serving import TABLES, DGMRecServing
from models.imputers import GRAPH_IMPUTERS, chosen, propagate_features
from tests.training.tiny import CONFIG, EACH, ITEMS, NEW, TRAINER, USERS, lines, write_vectors
from training.bundles import join, new_bundle, visible
from training.content import DataOptions, Prepared, prepare_features
from training.datasets import Dataset
from training.dgmrec.recipe import serving_model, split_parts, train_dgmrec
from training.dgmrec.task import DGMRecTask, TopNData
from training.progress import Terminal


class Exported:
    """A tiny training with 40 % of the cells withheld, and its bundle."""

    def __init__(self, folder: Path) -> None:
        self.source, self.path = folder / "tiny", folder / "bundle"
        self.dataset: Dataset = write_vectors(self.source)
        # Something that only a withheld cell would tell.
        for record in self.dataset.records:
            record["modalities"]["note"] = f"secret of {record['id']}"
        trainer = TRAINER.model_copy(update={"epochs": 3})
        with Terminal(quiet=True) as terminal:
            plain = write_vectors(folder / "plain")
            self.prepared: Prepared = prepare_features(plain, DataOptions(missing=0.4, seed=2), terminal)
            self.task: DGMRecTask = train_dgmrec(plain, self.prepared.batch, CONFIG, trainer, terminal=terminal).task
        opened = new_bundle(replace(self.prepared, files={"extra/note.txt": lambda file: file.write_text("hello")}))
        served = serving_model(self.task, self.dataset.users, self.dataset.items)
        self.manifest = join(
            self.path,
            opened,
            "dgmrec",
            self.dataset,
            len(self.dataset.pairs()),
            lambda writer: served.save(writer, {"recall@20": 0.5}),
            source=self.source,
        )
        self.bundle = Bundle.load(self.path)
        self.online = DGMRecServing.load(self.bundle)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.set_num_threads(1)
    return Exported(tmp_path_factory.mktemp("export"))


def test_files(exported: Exported) -> None:
    assert set(exported.manifest.files) == {
        CATALOGUE_ITEMS,
        CATALOGUE_FEATURES,
        CATALOGUE_FEEDBACK,
        "dgmrec.safetensors",
        "users.json",
        "items.json",
        "extra/note.txt",
    }
    assert (exported.path / "extra/note.txt").read_text() == "hello"


# --- catalogue -----------------------------------------------------------------------------------------------------


def test_catalogue_items_hold_no_withheld_content(exported: Exported) -> None:
    """`note` was never observed by this training; vectors stand in the features' file."""
    items = lines(exported.path / CATALOGUE_ITEMS)
    assert [item["id"] for item in items] == exported.dataset.items.ids
    assert all(item["modalities"] == {} for item in items)
    assert items[3]["categories"] == ["group-1"]
    assert "secret" not in (exported.path / CATALOGUE_ITEMS).read_text()


def test_catalogue_features_hold_no_withheld_content(exported: Exported) -> None:
    arrays = load_file(exported.path / CATALOGUE_FEATURES)
    batch = exported.prepared.batch
    assert set(arrays) == {"audio", "scan", "audio.observed", "scan.observed"}
    for column, name in enumerate(batch.names):
        observed = batch.observed[:, column].numpy()
        assert np.array_equal(arrays[f"{name}.observed"], observed.astype(np.uint8))
        assert np.array_equal(arrays[name], batch.features[name].numpy())
        assert not arrays[name][~observed].any()
        assert exported.prepared.withheld[:, column].any()


def test_catalogue_feedback(exported: Exported) -> None:
    assert (exported.path / CATALOGUE_FEEDBACK).read_bytes() == (exported.source / "feedback.jsonl").read_bytes()
    assert len(lines(exported.path / CATALOGUE_FEEDBACK)) == USERS * EACH


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        ({"text": True, "image": True, "audio": True}, {"text": "a text", "image": {"base64": "aGk="}}),
        ({"text": False, "image": True}, {"image": {"base64": "aGk="}}),
        ({"image": False, "text": True}, {"text": "a text"}),
        ({}, {}),
    ],
)
def test_visible(observed: dict[str, bool], expected: dict[str, object]) -> None:
    record = {
        "id": "a",
        "title": "A title",
        "modalities": {"text": "a text", "image": {"base64": "aGk="}, "audio": {"vector": [1, 2]}},
    }
    shown = visible(record, observed)
    assert shown == {"id": "a", "title": "A title", "modalities": expected}
    assert len(record["modalities"]) == 3  # the dataset's own record is left alone


def test_visible_without_modalities() -> None:
    assert visible({"id": "a"}, {"text": True}) == {"id": "a", "modalities": {}}


# --- tables --------------------------------------------------------------------------------------------------------


def test_tables(exported: Exported) -> None:
    task, tables = exported.task, exported.online.tables
    out = task.embed()
    assert set(tables) == {*TABLES, "feature.audio", "feature.scan", "fallback.audio", "fallback.scan"}
    fallback_imputer, setting = chosen(exported.prepared.batch, GRAPH_IMPUTERS, task.interactions)
    assert (
        exported.online.fallback_imputer
        == exported.manifest.models["dgmrec"].config["fallback_imputer"]
        == fallback_imputer
    )
    assert task.content is not None
    told = propagate_features(
        task.content.evidence.own, task.content.evidence.observed, task.interactions, fallback_imputer, setting
    )
    np.testing.assert_array_equal(tables["fallback_weight"], told.weights)
    np.testing.assert_array_equal(tables["fallback.audio"], told.tables["audio"])
    np.testing.assert_array_equal(tables["fallback.scan"], told.tables["scan"])
    np.testing.assert_allclose(tables["item_id"], out.item_id, atol=1e-6)
    np.testing.assert_allclose(tables["item_preference"], out.preference.transpose(0, 1), atol=1e-6)
    assert task.content is not None
    np.testing.assert_array_equal(tables["user_factor"], task.user_factors)
    np.testing.assert_array_equal(tables["item_factor"], task.content.evidence.factors)
    for user, item in split_parts(exported.dataset, 0).train[::17]:
        factor = exported.online.user_factor(f"user-{user}")
        assert factor is not None
        assert factor @ tables["item_factor"][item] > 0  # a user adds to the items that the user met
    known = np.ones(ITEMS, dtype=bool)
    known[task.interactions.item_degree.numpy() == 0] = False
    assert not known[list(NEW)].any()
    assert np.array_equal(tables["warm"], known)
    np.testing.assert_allclose(tables["mean_preference"], out.preference[:, known].mean(dim=1), atol=1e-6)
    assert np.array_equal(tables["observed"], exported.prepared.batch.observed.numpy())
    for column, name in enumerate(task.module.names):
        assert np.array_equal(tables[f"feature.{name}"], task.content.features[name].numpy())
        made = task.module.generate(name, task.content.evidence, out.preference)
        confidence = task.module.tower(name).confidence(made).detach()
        np.testing.assert_allclose(tables["confidence"][:, column], confidence, atol=1e-6)
    assert tables["confidence"].shape == (ITEMS, 2)


def test_users_are_served_as_they_were_trained(exported: Exported) -> None:
    out = exported.task.embed()
    train = split_parts(exported.dataset, 0).train
    for user in range(USERS):
        history = train[train[:, 0] == user, 1]
        served = exported.online.user_id(f"user-{user}", exported.online.tables["item_message"][history])
        np.testing.assert_allclose(served, out.user_id[user], atol=1e-5)


def test_new_items_get_the_factors_of_training(exported: Exported) -> None:
    """From the same users, by what the bundle holds."""
    train = split_parts(exported.dataset, 0).train
    for item in range(ITEMS):
        rows = [exported.online.user_factor(f"user-{user}") for user in train[train[:, 1] == item, 0]]
        folded = exported.online.item_factor([row for row in rows if row is not None])
        np.testing.assert_allclose(folded, exported.online.tables["item_factor"][item], atol=1e-5)


def test_users_without_training_history_have_no_tables(tmp_path: Path) -> None:
    dataset = write_vectors(tmp_path / "tiny")
    dataset.users.add("late")  # a user of the vocabulary whom training never saw
    with Terminal(quiet=True) as terminal:
        prepared = prepare_features(dataset, DataOptions(), terminal)
        trained = train_dgmrec(
            dataset, prepared.batch, CONFIG, TRAINER.model_copy(update={"epochs": 1}), terminal=terminal
        )
    tables = serving_model(trained.task, dataset.users, dataset.items).tables
    for name in ("user_residual", "user_message"):
        assert not tables[name][USERS].any()
        assert tables[name][:USERS].any(axis=1).all()


def test_a_model_without_modalities_cannot_be_served(tmp_path: Path) -> None:
    dataset = write_vectors(tmp_path / "tiny")
    config = CONFIG.model_copy(update={"modal": False})
    with Terminal(quiet=True) as terminal:
        prepared = prepare_features(dataset, DataOptions(), terminal)
        trained = train_dgmrec(
            dataset, prepared.batch, config, TRAINER.model_copy(update={"epochs": 1}), terminal=terminal
        )
    with pytest.raises(ValueError, match="without modalities cannot be served"):
        serving_model(trained.task, dataset.users, dataset.items)


def test_the_manifest_is_plain_json(exported: Exported) -> None:
    raw = json.loads((exported.path / "manifest.json").read_text())
    assert raw["models"]["dgmrec"]["metrics"] == {"recall@20": 0.5}
    assert raw["lacuna_version"]


@pytest.mark.parametrize("fallback_imputer", GRAPH_IMPUTERS)
def test_the_rung_is_the_configured_one(exported: Exported, fallback_imputer: str) -> None:
    """By the setting, or because it is what fills the cells in training, which then is what is served."""
    parts = split_parts(exported.dataset, 0)
    data = TopNData(exported.prepared.batch, parts, USERS, ITEMS)
    setting = DGMRecTask(data, CONFIG.model_copy(update={"fallback_imputer": fallback_imputer}), TRAINER)
    online = serving_model(setting, exported.dataset.users, exported.dataset.items)
    assert online.fallback_imputer == fallback_imputer
    filling = DGMRecTask(
        data, CONFIG.model_copy(update={"imputation": fallback_imputer, "fallback_imputer": "auto"}), TRAINER
    )
    again = serving_model(filling, exported.dataset.users, exported.dataset.items)
    assert again.fallback_imputer == fallback_imputer
    np.testing.assert_array_equal(again.tables["fallback.scan"], online.tables["fallback.scan"])
