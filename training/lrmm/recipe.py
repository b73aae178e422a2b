"""The whole line of rating prediction: prepared dataset -> encoders -> LRMM -> bundle, beside whatever it holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

from models.arrays import Array
from models.bundle import EncoderRef, Manifest
from models.encoders import MINILM, TextEncoder, make_encoder
from models.lrmm.config import LRMMConfig
from models.lrmm.serving import NAME
from models.modality import ModalBatch
from training.bundles import data_entry, join, no_content, open_bundle, run_fingerprint
from training.datasets.base import Dataset
from training.dgmrec.recipe import DataOptions, prepare_features
from training.lrmm.ratings import RatingParts, Ratings, published_parts, random_parts
from training.lrmm.reviews import sentence_vectors
from training.lrmm.task import RatingSource, measured, train_lrmm
from training.progress import Terminal
from training.trainer import TrainerConfig


def encoded_ratings(
    dataset: Dataset, ratings: Ratings, config: LRMMConfig, options: DataOptions, terminal: Terminal
) -> Callable[[RatingParts], RatingSource]:
    """Reviews' sentences and items' content, encoded once; answers what makes the source of a split."""
    content = prepare_features(dataset, options, terminal).batch if dataset.modalities else no_content(dataset)
    return _source(dataset, ratings, content, config, options, terminal)


def _source(
    dataset: Dataset,
    ratings: Ratings,
    content: ModalBatch,
    config: LRMMConfig,
    options: DataOptions,
    terminal: Terminal,
) -> Callable[[RatingParts], RatingSource]:
    sentences = review_sentences(ratings, config, options, terminal)
    return lambda parts: RatingSource(ratings, parts, sentences, content, dataset.users, dataset.items)


def review_sentences(
    ratings: Ratings, config: LRMMConfig, options: DataOptions, terminal: Terminal
) -> tuple[Array, EncoderRef] | None:
    """Sentence embeddings `[n, d]` of the reviews and who made them; None where there are no texts."""
    if not any(text.strip() for text in ratings.text):
        return None
    encoder = cast(TextEncoder, make_encoder(MINILM, cache_dir=options.cache, threads=options.threads))
    vectors = sentence_vectors(ratings.text, config.review_words, encoder, terminal, options.cache)
    return vectors, EncoderRef(kind="text", id=encoder.id, dim=encoder.dim, weights_sha256=encoder.weights_sha256)


def add_lrmm(
    dataset: Dataset,
    out: Path,
    config: LRMMConfig,
    trainer: TrainerConfig,
    options: DataOptions,
    *,
    terminal: Terminal,
    fresh: bool = False,
) -> Manifest:
    """Train LRMM and write it into the bundle at `out`, beside its other models; a new bundle where there is none.

    A bundle's own encoders make the items' features, so that the service's features are those of training. An
    interrupted training goes on where it was when called again.
    """
    ratings = Ratings.of(dataset)
    parts = published_parts(dataset, ratings) or random_parts(len(ratings), trainer.seed)
    opened = open_bundle(dataset, out, options, terminal)
    source = _source(dataset, ratings, opened.content, config, options, terminal)(parts)
    checkpoint = out.with_name(f".{out.name}.lrmm-checkpoint")
    if fresh:
        checkpoint.unlink(missing_ok=True)
    trained = train_lrmm(
        source,
        config,
        trainer,
        terminal=terminal,
        fingerprint=_fingerprint(dataset, source, config, trainer),
        checkpoint=checkpoint,
    )
    metrics = {"valid rmse": trained.result.best["rmse[+F]"], **measured(trained.serving, trained.test)}
    data = data_entry(dataset, opened.content, len(ratings))
    manifest = join(out, opened, NAME, data, lambda writer: trained.serving.save(writer, metrics))
    checkpoint.unlink(missing_ok=True)
    return manifest


def _fingerprint(dataset: Dataset, source: RatingSource, config: LRMMConfig, trainer: TrainerConfig) -> str:
    settings = {
        "data": dataset.fingerprint,
        "sentences": None if source.sentences is None else source.sentences[1].weights_sha256,
        "config": config.model_dump(),
        "trainer": trainer.model_dump(exclude={"patience"}),
    }
    return run_fingerprint(source.content, settings)
