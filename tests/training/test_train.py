"""The whole line from a prepared dataset to a bundle, and what must stop it early."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.bundle import CATALOGUE_ITEMS, Bundle, BundleError, Manifest
from models.dgmrec.serving import DGMRecServing
from models.encoders import load_encoder
from models.imputers import GRAPH_IMPUTERS
from tests.training.tiny import CONFIG, EACH, ITEMS, TRAINER, USERS, contents, events, vector_records, write_vectors
from training import content
from training.catalogue_encoder import TooFewPairsError
from training.content import DataOptions, TrainingDataError, prepare_features, withheld_cells
from training.datasets import Dataset, DatasetError, load_dataset, write_dataset
from training.datasets.base import Interactions, PublishedMask
from training.demo.catalogue import prepare_demo
from training.dgmrec.recipe import DGMRecRecipe, fingerprint, split_parts, train_dgmrec
from training.progress import Terminal
from training.recipe import train_into_bundle
from training.splits import SplitName, pair_times

OPTIONS = DataOptions(missing=0.4, threads=1)
SHORT = TRAINER.model_copy(update={"epochs": 3})


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with Terminal(quiet=True) as terminal:
        yield terminal


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "tiny"
    write_vectors(path)
    return path


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return load_dataset(folder)


# --- features ------------------------------------------------------------------------------------------------------


def test_vectors_need_no_encoder(dataset: Dataset, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "make_encoder", None)  # nobody may call it
    prepared = prepare_features(dataset, DataOptions(), terminal)
    features, observed = contents()
    assert prepared.encoders == {"audio": None, "scan": None}
    assert prepared.files == {}
    assert not prepared.withheld.any()
    assert torch.equal(prepared.batch.observed, torch.from_numpy(observed))
    for column, name in enumerate(("audio", "scan")):
        expected = np.where(observed[:, [column]], features[name], 0)
        np.testing.assert_allclose(prepared.batch.features[name], expected, rtol=1e-6)


def test_withheld_features_are_not_there(dataset: Dataset, terminal: Terminal) -> None:
    prepared = prepare_features(dataset, OPTIONS, terminal)
    _, observed = contents()
    assert prepared.withheld.sum() == round(0.4 * observed.sum())
    assert np.array_equal(prepared.batch.observed.numpy(), observed & ~prepared.withheld)
    for column, name in enumerate(prepared.batch.names):
        assert not prepared.batch.features[name][prepared.withheld[:, column]].any()


def test_withheld_cells(dataset: Dataset) -> None:
    none, some, more = (withheld_cells(dataset, DataOptions(missing=share)) for share in (0, 0.2, 0.5))
    assert not none.any()
    assert (some & ~more).sum() == 0  # nested
    assert not np.array_equal(more, withheld_cells(dataset, DataOptions(missing=0.5, seed=1)))
    assert not (more & ~dataset.observed()).any()


def test_published_mask(dataset: Dataset) -> None:
    ids = tuple(dataset.items.ids)
    missing = np.zeros((ITEMS, 1), dtype=np.bool_)
    missing[:10] = True
    masked = replace(dataset, masks={"60": PublishedMask(ids, ("scan",), missing)})
    withheld = withheld_cells(masked, DataOptions(missing=0.9, mask="60"))  # the mask decides, not the share
    expected = np.zeros((ITEMS, 2), dtype=np.bool_)
    expected[:10, 1] = True
    assert np.array_equal(withheld, expected & dataset.observed())


def test_unknown_mask(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match="no published mask '60'"):
        withheld_cells(dataset, DataOptions(mask="60"))


def test_nothing_to_learn_from(terminal: Terminal, tmp_path: Path) -> None:
    records = [{"id": record["id"], "title": None, "modalities": {}} for record in vector_records()]
    write_dataset(tmp_path / "empty", records, events(), name="bare", source="test")
    with pytest.raises(TrainingDataError, match="bare has neither texts, pictures nor vectors"):
        prepare_features(load_dataset(tmp_path / "empty"), DataOptions(), terminal)


# --- split ---------------------------------------------------------------------------------------------------------


def test_published_split_is_kept(dataset: Dataset) -> None:
    parts = split_parts(dataset, seed=3)
    assert [len(part) for part in (parts.train, parts.valid, parts.test)] == [USERS * (EACH - 4), USERS * 2, USERS * 2]
    assert np.array_equal(parts.train, split_parts(dataset, seed=4).train)


def test_random_split(dataset: Dataset) -> None:
    unsplit = replace(dataset, split=None)
    parts = split_parts(unsplit, seed=3)
    assert len(parts.train) + len(parts.valid) + len(parts.test) == USERS * EACH
    assert np.array_equal(parts.test, split_parts(unsplit, seed=3).test)
    assert not np.array_equal(parts.test, split_parts(unsplit, seed=4).test)


def test_split_by_time(dataset: Dataset) -> None:
    """The last feedback is the test part, whatever split is published."""
    with pytest.raises(TrainingDataError, match="cannot be split by time: its feedback has no times"):
        split_parts(replace(dataset, interactions=timed(dataset, np.nan)), 0, how=SplitName.TIME)
    events = timed(dataset, np.random.default_rng(0).permutation(len(dataset.interactions)).astype(np.float64))
    world = replace(dataset, interactions=events)
    parts = split_parts(world, 0, how=SplitName.TIME)
    times = {tuple(pair): time for pair, time in zip(world.pairs(), pair_times(world), strict=True)}
    for user in range(USERS):
        train, valid, test = (
            [times[tuple(pair)] for pair in part[part[:, 0] == user]] for part in (parts.train, parts.valid, parts.test)
        )
        assert max(train) < min(valid)
        assert max(valid) < min(test)


def timed(dataset: Dataset, times: Any) -> Interactions:
    return replace(dataset.interactions, timestamp=np.broadcast_to(times, len(dataset.interactions)).copy())


@pytest.mark.parametrize("most", [1, 2])
def test_too_little_feedback(tmp_path: Path, most: int) -> None:
    few = [event for user in range(5) for event in events()[user * EACH : user * EACH + most]]
    write_dataset(tmp_path / "few", vector_records(), few, name="few", source="test")
    with pytest.raises(TrainingDataError, match="few has too little feedback: no user has the three items"):
        split_parts(load_dataset(tmp_path / "few"), 0)


def test_a_user_who_has_everything(tmp_path: Path) -> None:
    rows = [
        {"user": f"u{user}", "item": f"item-{item}", "type": "click"} for user in range(2) for item in range(2 + user)
    ]
    write_dataset(tmp_path / "all", vector_records()[:2], rows[:2], name="all", source="test")
    with pytest.raises(TrainingDataError, match="a user has interacted with every item"):
        split_parts(load_dataset(tmp_path / "all"), 0)


# --- training ------------------------------------------------------------------------------------------------------


def test_train_dgmrec(dataset: Dataset, terminal: Terminal) -> None:
    prepared = prepare_features(dataset, OPTIONS, terminal)
    trained = train_dgmrec(dataset, prepared.batch, CONFIG, SHORT, terminal=terminal)
    assert trained.result.epochs == 3
    assert trained.metrics["valid ndcg@20"] == trained.task.test()["valid ndcg@20"]
    assert {"recall@20", "recall@50", "ndcg@20", "ndcg@50", "cosine[audio]", "calibration_error[scan]"} <= set(
        trained.metrics
    )
    assert trained.metrics["ndcg@20"] == trained.task.test()["ndcg@20"]


def test_fingerprint_names_what_the_result_depends_on(dataset: Dataset, terminal: Terminal) -> None:
    content = prepare_features(dataset, DataOptions(), terminal).batch
    base = fingerprint(dataset, content, CONFIG, TRAINER)
    other = prepare_features(dataset, OPTIONS, terminal).batch
    assert base == fingerprint(dataset, content, CONFIG, TRAINER.model_copy(update={"patience": 3}))
    changed = [
        fingerprint(dataset, other, CONFIG, TRAINER),
        fingerprint(dataset, content, CONFIG.model_copy(update={"layers": 3}), TRAINER),
        fingerprint(dataset, content, CONFIG, TRAINER.model_copy(update={"learning_rate": 0.5})),
        fingerprint(dataset, content, CONFIG, TRAINER.model_copy(update={"epochs": 99})),
        fingerprint(replace(dataset, fingerprint="other"), content, CONFIG, TRAINER),
        fingerprint(dataset, content, CONFIG, TRAINER, split_parts(dataset, 0)),
        fingerprint(dataset, content, CONFIG, TRAINER, split_parts(dataset, 0, how=SplitName.RANDOM)),
    ]
    assert len({base, *changed}) == 8


# --- bundles -------------------------------------------------------------------------------------------------------


def bundle_of(folder: Path, out: Path, terminal: Any, **more: Any) -> Manifest:
    recipe = DGMRecRecipe(CONFIG, SHORT)
    return train_into_bundle(
        recipe, load_dataset(folder), out, OPTIONS, terminal=terminal, **{"source": folder, **more}
    )


def test_a_bundle_is_fitted_on_all_feedback(dataset: Dataset, folder: Path, tmp_path: Path, terminal: Terminal) -> None:
    """Its metrics are those of the fit without the held-out parts, and it says so."""
    options, out = replace(OPTIONS, split=SplitName.RANDOM), tmp_path / "bundle"
    recipe = DGMRecRecipe(CONFIG, SHORT, on_all=True)
    manifest = train_into_bundle(recipe, dataset, out, options, terminal=terminal, source=folder)
    entry = manifest.models["dgmrec"]
    assert entry.refitted
    assert np.array_equal(
        DGMRecServing.load(Bundle.load(out)).tables["item_degree"],
        np.bincount(dataset.pairs()[:, 1], minlength=len(dataset.items)),
    )
    part = replace(recipe, on_all=False)
    held_out = train_into_bundle(part, dataset, out, options, terminal=terminal, source=folder).models["dgmrec"]
    assert entry.metrics == held_out.metrics
    assert not held_out.refitted


def tensors(out: Path) -> dict[str, Any]:
    return Bundle.load(out).tensors("dgmrec.safetensors")


def test_make_bundle(folder: Path, tmp_path: Path, terminal: Terminal) -> None:
    out = tmp_path / "bundle"
    manifest = bundle_of(folder, out, terminal)
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]  # no checkpoint is left
    assert (manifest.data.name, manifest.data.synthetic) == ("tiny", True)
    assert (manifest.data.users, manifest.data.items, manifest.data.interactions) == (USERS, ITEMS, USERS * EACH)
    observed = prepare_features(load_dataset(folder), OPTIONS, terminal).batch.observed
    assert manifest.data.missing_cells == round(1 - observed.float().mean().item(), 4)
    assert [(entry.name, entry.dim, entry.encoder) for entry in manifest.modalities] == [
        ("audio", 6, None),
        ("scan", 5, None),
    ]
    config = manifest.models["dgmrec"].config
    assert config["fallback_imputer"] in GRAPH_IMPUTERS  # the one that `auto` chose
    assert config | {"fallback_imputer": CONFIG.fallback_imputer} == CONFIG.model_dump()
    assert manifest.models["dgmrec"].metrics["recall@50"] > 0
    online = DGMRecServing.load(Bundle.load(out))
    assert online.items.ids == load_dataset(folder).items.ids


def test_the_next_bundle_has_the_next_version(folder: Path, tmp_path: Path, terminal: Terminal) -> None:
    first, second = (bundle_of(folder, tmp_path / "bundle", terminal).version for _ in range(2))
    (day, number), (next_day, next_number) = (version.rsplit("-", 1)[0].rsplit(".", 1) for version in (first, second))
    assert (number, next_number) == ("1", "2")
    assert day == next_day


class Impatient(Terminal):
    """Presses the key at the end of an epoch, before it is checkpointed."""

    def __init__(self, after: int) -> None:
        super().__init__(quiet=True)
        self.after = after
        self.seen: list[int] = []

    def epoch(self, epoch: int, *rest: Any) -> None:
        self.seen.append(epoch)
        if epoch == self.after:
            raise KeyboardInterrupt
        super().epoch(epoch, *rest)


@pytest.mark.parametrize("fresh", [False, True])
def test_interrupted_bundle(folder: Path, tmp_path: Path, terminal: Terminal, fresh: bool) -> None:
    """It goes on where it was, or from the start if asked to; either way the bundle is the same."""
    bundle_of(folder, tmp_path / "whole", terminal)
    out = tmp_path / "bundle"
    with pytest.raises(KeyboardInterrupt):
        bundle_of(folder, out, Impatient(2))
    assert not out.exists()
    patient = Impatient(99)
    bundle_of(folder, out, patient, fresh=fresh)
    assert patient.seen == ([1, 2, 3] if fresh else [2, 3])
    whole, resumed = tensors(tmp_path / "whole"), tensors(out)
    assert whole.keys() == resumed.keys()
    for key, array in whole.items():
        assert np.array_equal(array, resumed[key]), key


def test_without_catalogue(folder: Path, tmp_path: Path, terminal: Terminal) -> None:
    manifest = bundle_of(folder, tmp_path / "bundle", terminal, source=None)
    assert set(manifest.files) == {"dgmrec.safetensors", "users.json", "items.json"}


def test_foreign_folder_is_refused_before_the_training(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"dear")
    watched = Impatient(99)
    with pytest.raises(BundleError, match="exists and is no bundle"):
        bundle_of(folder, tmp_path / "photos", watched)
    assert watched.seen == []
    assert (tmp_path / "photos" / "holiday.jpg").exists()


# --- texts and pictures, with the real encoders --------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "demo"
    prepare_demo(path, items=90, users=12, seed=3)
    return path


def test_bundle_with_encoders(demo: Path, tmp_path: Path, terminal: Terminal) -> None:
    dataset, out = load_dataset(demo), tmp_path / "bundle"
    options = DataOptions(missing=0.2, cache=tmp_path / "cache", threads=1)
    trainer = SHORT.model_copy(update={"epochs": 1})
    manifest = train_into_bundle(DGMRecRecipe(CONFIG, trainer), dataset, out, options, terminal=terminal, source=demo)
    text, image = (entry.encoder for entry in manifest.modalities)
    assert text is not None
    assert image is not None
    assert (text.id, text.file) == ("sentence-transformers:all-MiniLM-L6-v2", None)
    assert (image.id, image.file) == ("catalogue", "image_encoder.safetensors")
    assert load_encoder(image, out).dim == image.dim  # verified against the manifest
    shipped = [json.loads(row) for row in (out / CATALOGUE_ITEMS).read_text().splitlines()]
    withheld = withheld_cells(dataset, options)
    assert dataset.modalities == ("text", "image")
    for record, missing in zip(shipped, withheld, strict=True):
        for name, gone in zip(dataset.modalities, missing, strict=True):
            assert not (gone and name in record["modalities"])
    assert sum("image" in record["modalities"] for record in shipped) > 20


def test_too_few_pictures_for_an_encoder(tmp_path: Path, terminal: Terminal) -> None:
    prepare_demo(tmp_path / "demo", items=20, users=6, seed=3)
    with pytest.raises(TooFewPairsError, match="at least 32 pictures"):
        prepare_features(load_dataset(tmp_path / "demo"), DataOptions(threads=1), terminal)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (DataOptions(image_weights=Path("w.safetensors")), "torchvision:mobilenet_v2"),
        (
            DataOptions(image_encoder="torchvision:resnet18", image_weights=Path("w.safetensors")),
            "torchvision:resnet18",
        ),
    ],
)
def test_choice_of_the_image_encoder(
    demo: Path, options: DataOptions, wanted: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Path | None]] = []

    def remember(name: str, *, weights: Path | None = None, **_: object) -> None:
        asked.append((name, weights))
        if len(asked) == 2:
            raise KeyboardInterrupt  # the question is enough

    monkeypatch.setattr(content, "make_encoder", remember)
    monkeypatch.setattr(content, "text_encoder", lambda options: remember("text") or "text")  # noqa: ARG005
    with pytest.raises(KeyboardInterrupt):
        prepare_features(load_dataset(demo), options, terminal)
    assert asked == [("text", None), (wanted, Path("w.safetensors"))]
