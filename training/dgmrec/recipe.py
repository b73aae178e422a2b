"""The whole line: prepared dataset -> encoders -> features with holes -> DGMRec -> bundle."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from models.arrays import Rows
from models.bundle import EncoderRef, Manifest, require_replaceable
from models.dgmrec.config import DGMRecConfig
from models.encoders import CATALOGUE, MINILM, ImageEncoder, TextEncoder, catalogue_encoder, make_encoder
from models.feedback import AUTO, MinRating
from models.modality import ModalBatch
from training.catalogue_encoder import CatalogueEncoderConfig, train_catalogue_encoder
from training.datasets.base import Dataset
from training.dgmrec.bundle import export_bundle
from training.dgmrec.task import DGMRecTask, TopNData
from training.features import catalogue_pictures, encode_dataset
from training.masking import mask_cells, mask_levels
from training.progress import Terminal
from training.splits import Parts, hold_out_items, random_split
from training.trainer import TrainerConfig, TrainingResult, train

WEIGHTS = "image_encoder.safetensors"
TORCHVISION = "torchvision:mobilenet_v2"


class TrainingDataError(ValueError):
    """A dataset that cannot be trained on; the message is one sentence."""


@dataclass(frozen=True)
class DataOptions:
    """Which cells are withheld, and how content becomes features.

    Attributes:
        missing: share of the cells to withhold from training, on top of those that the data lack by themselves.
        mask: name of a published mask of the dataset, instead of `missing`.
        image_encoder: `catalogue` (trained here on the catalogue's own pictures), `torchvision:<name>`, or `auto`:
            the latter's mobilenet_v2 where `image_weights` is given, else `catalogue`.
        image_weights: a local file with the weights of the torchvision network.
        cache: where features of fixed encoders are kept between runs.
        min_rating: ratings below it show no interest (None: all do); AUTO for what the dataset says.
        levels: withhold so that equal shares of the items lack 0, 1, ..., M modalities, instead of `missing`.
    """

    missing: float = 0.0
    mask: str | None = None
    image_encoder: str = "auto"
    image_weights: Path | None = None
    cache: Path | None = None
    threads: int = 2
    seed: int = 0
    levels: bool = False
    min_rating: MinRating = AUTO


@dataclass(frozen=True)
class Prepared:
    """Features with holes, who encoded them, and what an encoder adds to the bundle.

    `complete` holds the withheld cells too; it is for measuring and never reaches a model.
    """

    batch: ModalBatch
    complete: ModalBatch
    withheld: NDArray[np.bool_]
    encoders: Mapping[str, EncoderRef | None]
    files: Mapping[str, Callable[[Path], object]] = field(default_factory=dict)


def withheld_cells(dataset: Dataset, options: DataOptions) -> NDArray[np.bool_]:
    """Cells to withhold on top of those that the data lack, bool `[n, M]`."""
    observed = dataset.observed()
    if options.mask is not None:
        return dataset.withheld(options.mask) & observed
    rng = np.random.default_rng(options.seed)
    if options.levels:
        return mask_levels(observed, rng)
    return mask_cells(observed, options.missing, rng)


def prepare_features(dataset: Dataset, options: DataOptions, terminal: Terminal) -> Prepared:
    """Encode all content that is not withheld. Withheld content reaches no encoder that learns.

    Raises:
        TrainingDataError: there is nothing to learn from. FeatureError, TooFewPairsError, EncoderUnavailableError.
    """
    if not dataset.modalities:
        raise TrainingDataError(f"the dataset {dataset.name} has neither texts, pictures nor vectors")
    taken = sorted({"any", "final", "items"} & set(dataset.modalities))
    if taken:
        raise TrainingDataError(f"a modality cannot be named {taken[0]!r}, which has a meaning of its own in searches")
    withheld = withheld_cells(dataset, options)
    observed = dataset.observed() & ~withheld
    pictured = any(isinstance(content, dict) and "base64" in content for content in _contents(dataset))
    written = any(isinstance(content, str) for content in _contents(dataset))
    text = _text_encoder(options) if pictured or written else None
    image, weights = _image_encoder(dataset, observed, text, options, terminal) if pictured and text else (None, None)
    complete, encoders = encode_dataset(
        dataset,
        dataset.observed(),
        text_encoder=text,
        image_encoder=image,
        progress=terminal.stage,
        cache_dir=options.cache,
    )
    batch = complete.masked(torch.from_numpy(withheld)) if withheld.any() else complete  # no copy of what is large
    if weights is None:
        return Prepared(batch, complete, withheld, encoders)
    shipped = {
        name: ref.model_copy(update={"file": WEIGHTS}) if ref is not None and ref.id == CATALOGUE else ref
        for name, ref in encoders.items()
    }
    return Prepared(batch, complete, withheld, shipped, {WEIGHTS: lambda file: file.write_bytes(weights)})


def _contents(dataset: Dataset) -> Iterator[object]:
    """All that is given as content, as it stands in the items' bodies; a title may stand in for a text."""
    for record in dataset.records:
        yield record.get("title")
        yield from (record.get("modalities") or {}).values()


def _text_encoder(options: DataOptions) -> TextEncoder:
    return cast(TextEncoder, make_encoder(MINILM, cache_dir=options.cache, threads=options.threads))


def _image_encoder(
    dataset: Dataset, observed: NDArray[np.bool_], text: TextEncoder, options: DataOptions, terminal: Terminal
) -> tuple[ImageEncoder, bytes | None]:
    """The encoder of pictures, and its weights if the bundle is to ship them."""
    wanted = options.image_encoder
    if wanted == "auto":
        wanted = TORCHVISION if options.image_weights else CATALOGUE
    if wanted != CATALOGUE:
        encoder = make_encoder(wanted, weights=options.image_weights, cache_dir=options.cache, threads=options.threads)
        return cast(ImageEncoder, encoder), None
    pictures = catalogue_pictures(dataset, observed, text, progress=terminal.stage, cache_dir=options.cache)
    trained = train_catalogue_encoder(
        pictures,
        CatalogueEncoderConfig(seed=options.seed),
        progress=lambda done, total: terminal.stage("image encoder", done, total),
    )
    weights = trained.network.to_bytes()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / WEIGHTS
        file.write_bytes(weights)
        return catalogue_encoder(file, threads=options.threads), weights


def split_parts(dataset: Dataset, seed: int, new_items: Rows | None = None) -> Parts:
    """The dataset's published split, or a random one by user; users without training pairs are left out.

    Args:
        new_items: rows of items whose training pairs join the test part.

    Raises:
        TrainingDataError: too little feedback to train on.
    """
    pairs = dataset.pairs()
    split = dataset.split if dataset.split is not None else random_split(pairs, np.random.default_rng(seed))
    if new_items is not None:
        split = hold_out_items(pairs, split, new_items)
    parts = Parts.of(pairs, split).evaluable()
    if len(parts.train) and np.bincount(parts.train[:, 0]).max() == len(dataset.items):
        raise TrainingDataError(
            f"the dataset {dataset.name} cannot be trained on: a user has interacted with every item, "
            "which leaves none to compare with"
        )
    if not (len(parts.train) and len(parts.valid) and len(parts.test)):
        raise TrainingDataError(
            f"the dataset {dataset.name} has too little feedback: no user has the three items that training, "
            "validation and test each need one of"
        )
    return parts


@dataclass(frozen=True)
class Trained:
    """A finished training: the task, how it went, and its metrics (test ranking, imputation)."""

    task: DGMRecTask
    result: TrainingResult
    metrics: dict[str, float]


def train_dgmrec(
    dataset: Dataset,
    prepared: Prepared,
    config: DGMRecConfig,
    trainer: TrainerConfig,
    *,
    parts: Parts | None = None,
    checkpoint: Path | None = None,
    terminal: Terminal | None = None,
) -> Trained:
    """Train, regenerate, calibrate, test, on these parts or those of `split_parts`."""
    if parts is None:
        parts = split_parts(dataset, trainer.seed)
    data = TopNData(prepared.batch, parts, len(dataset.users), len(dataset.items))
    task = DGMRecTask(data, config, trainer)
    result = train(
        task,
        trainer,
        fingerprint=run_fingerprint(dataset, prepared, config, trainer),
        checkpoint_path=checkpoint,
        progress=terminal,
    )
    return Trained(task, result, task.finish() | task.test())


def run_fingerprint(dataset: Dataset, prepared: Prepared, config: DGMRecConfig, trainer: TrainerConfig) -> str:
    """Names everything a run's result depends on, so that a checkpoint of another run is not continued."""
    total = hashlib.sha256()
    settings = {
        "data": dataset.fingerprint,
        "min_rating": dataset.min_rating,
        "config": config.model_dump(),
        "trainer": trainer.model_dump(exclude={"patience"}),
    }
    total.update(json.dumps(settings, sort_keys=True).encode())
    total.update(prepared.batch.observed.numpy().tobytes())
    for feature in prepared.batch.features.values():
        total.update(feature.numpy().tobytes())
    return total.hexdigest()


def make_bundle(
    dataset: Dataset,
    source: Path,
    out: Path,
    config: DGMRecConfig,
    trainer: TrainerConfig,
    options: DataOptions,
    *,
    terminal: Terminal,
    with_catalogue: bool = True,
    fresh: bool = False,
) -> Manifest:
    """Prepared dataset in, bundle out. An interrupted training goes on where it was when called again."""
    require_replaceable(out)  # said now rather than after the training
    prepared = prepare_features(dataset, options, terminal)
    checkpoint = out.with_name(f".{out.name}.checkpoint")
    if fresh:
        checkpoint.unlink(missing_ok=True)
    trained = train_dgmrec(dataset, prepared, config, trainer, checkpoint=checkpoint, terminal=terminal)
    manifest = export_bundle(
        out,
        trained.task,
        dataset,
        prepared.batch,
        prepared.encoders,
        trained.metrics,
        source=source if with_catalogue else None,
        files=prepared.files,
    )
    checkpoint.unlink(missing_ok=True)
    return manifest
