"""The whole line of rating prediction: prepared dataset -> encoders -> LRMM -> bundle, beside whatever it holds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch

from models.bundle import (
    Bundle,
    BundleWriter,
    DataEntry,
    EncoderRef,
    Manifest,
    ModalityEntry,
    next_version,
    require_replaceable,
)
from models.encoders import MINILM, ImageEncoder, TextEncoder, load_encoder, make_encoder
from models.lrmm import LRMMConfig
from models.modality import ModalBatch
from models.rater import NAME
from training.datasets.base import Dataset
from training.features import encode_dataset
from training.lrmm import RatingSource, measured, sentence_vectors, train_lrmm
from training.progress import Terminal
from training.ratings import RatingParts, Ratings, published_parts, random_parts
from training.train import DataOptions, prepare_features
from training.trainer import TrainerConfig


def encoded_ratings(
    dataset: Dataset, ratings: Ratings, config: LRMMConfig, options: DataOptions, terminal: Terminal
) -> Callable[[RatingParts], RatingSource]:
    """Reviews' sentences and items' content, encoded once; answers what makes the source of a split."""
    content = prepare_features(dataset, options, terminal).batch if dataset.modalities else _nothing(dataset)
    return _source(dataset, ratings, content, config, options, terminal)


def _source(
    dataset: Dataset,
    ratings: Ratings,
    content: ModalBatch,
    config: LRMMConfig,
    options: DataOptions,
    terminal: Terminal,
) -> Callable[[RatingParts], RatingSource]:
    sentences = None
    if any(text.strip() for text in ratings.text):
        encoder = cast(TextEncoder, make_encoder(MINILM, cache_dir=options.cache, threads=options.threads))
        vectors = sentence_vectors(ratings.text, config.review_words, encoder, terminal, options.cache)
        sentences = (
            vectors,
            EncoderRef(kind="text", id=encoder.id, dim=encoder.dim, weights_sha256=encoder.weights_sha256),
        )
    return lambda parts: RatingSource(ratings, parts, sentences, content, dataset.users, dataset.items)


def add_lrmm(
    dataset: Dataset,
    out: Path,
    config: LRMMConfig,
    trainer: TrainerConfig,
    options: DataOptions,
    *,
    terminal: Terminal,
) -> Manifest:
    """Train LRMM and write it into the bundle at `out`, beside its other models; a new bundle where there is none.

    A bundle's own encoders make the items' features, so that the service's features are those of training. An
    interrupted training goes on where it was when called again.
    """
    require_replaceable(out)  # said now rather than after the training
    ratings = Ratings.of(dataset)
    parts = published_parts(dataset, ratings) or random_parts(len(ratings), trainer.seed)
    old = Bundle.load(out) if (out / "manifest.json").is_file() else None
    if old is None:
        prepared = prepare_features(dataset, options, terminal) if dataset.modalities else None
        content = _nothing(dataset) if prepared is None else prepared.batch
        encoders = {} if prepared is None else dict(prepared.encoders)
        files = {} if prepared is None else dict(prepared.files)
        modalities = tuple(
            ModalityEntry(name=spec.name, dim=spec.dim, encoder=encoders.get(spec.name)) for spec in content.specs
        )
    else:
        content, modalities, files = _content_under(old, dataset, options, terminal), old.manifest.modalities, {}
    source = _source(dataset, ratings, content, config, options, terminal)(parts)
    checkpoint = out.with_name(f".{out.name}.lrmm-checkpoint")
    trained = train_lrmm(
        source,
        config,
        trainer,
        terminal=terminal,
        fingerprint=_fingerprint(dataset, config, trainer),
        checkpoint=checkpoint,
    )
    metrics = {"valid rmse": trained.result.best["rmse[+F]"], **measured(trained)}
    with BundleWriter(out) as writer:
        for name in old.manifest.files if old is not None else ():
            if not Path(name).name.startswith(NAME):
                _copy(writer, out, name)
        for name, write in files.items():
            writer.add(name, write)
        entry = trained.rater.save(writer, metrics)
        manifest = writer.finish(
            version=next_version(out, datetime.now(UTC).date().isoformat()),
            lacuna_version=version("lacuna"),
            data=_data(dataset, ratings, content) if old is None else old.manifest.data,
            modalities=modalities,
            models={**(old.manifest.models if old is not None else {}), NAME: entry},
        )
    checkpoint.unlink(missing_ok=True)
    return manifest


def _content_under(bundle: Bundle, dataset: Dataset, options: DataOptions, terminal: Terminal) -> ModalBatch:
    """The items' features by the encoders of a bundle, for those of its modalities that the dataset has."""
    if not dataset.modalities:
        return _nothing(dataset)
    encoders: dict[str, Any] = {
        entry.encoder.kind: load_encoder(
            entry.encoder, bundle.path, image_weights=options.image_weights, cache_dir=options.cache
        )
        for entry in bundle.manifest.modalities
        if entry.encoder is not None
    }
    batch, _ = encode_dataset(
        dataset,
        dataset.observed(),
        text_encoder=cast(TextEncoder | None, encoders.get("text")),
        image_encoder=cast(ImageEncoder | None, encoders.get("image")),
        progress=terminal.stage,
        cache_dir=options.cache,
    )
    known = {entry.name for entry in bundle.manifest.modalities}
    columns = [column for column, name in enumerate(batch.names) if name in known]
    return ModalBatch({name: batch.features[name] for name in batch.names if name in known}, batch.observed[:, columns])


def _nothing(dataset: Dataset) -> ModalBatch:
    """Items without any content."""
    return ModalBatch({}, torch.zeros(len(dataset.items), 0, dtype=torch.bool))


def _data(dataset: Dataset, ratings: Ratings, content: ModalBatch) -> DataEntry:
    missing = 1 - float(content.observed.float().mean()) if content.names else 0.0
    return DataEntry(
        name=dataset.name,
        synthetic=dataset.synthetic,
        users=len(dataset.users),
        items=len(dataset.items),
        interactions=len(ratings),
        missing_cells=round(missing, 4),
        fingerprint=dataset.fingerprint,
        min_rating=dataset.min_rating,
    )


def _copy(writer: BundleWriter, folder: Path, name: str) -> None:
    writer.add(name, lambda file: shutil.copyfile(folder / name, file))


def _fingerprint(dataset: Dataset, config: LRMMConfig, trainer: TrainerConfig) -> str:
    """Names what a run's result depends on, so that a checkpoint of another run is not continued."""
    settings: Mapping[str, Any] = {
        "data": dataset.fingerprint,
        "config": config.model_dump(),
        "trainer": trainer.model_dump(exclude={"epochs", "patience"}),
    }
    return repr(settings)
