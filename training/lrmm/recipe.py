"""LRMM from a prepared dataset to its part of a bundle: ratings, encoded reviews and content, training, test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from models.arrays import Array
from models.bundle import EncoderRef
from models.lrmm.config import LRMMConfig, LRMMPaperConfig
from models.lrmm.documents import described
from models.lrmm.serving import NAME
from models.modality import ModalBatch
from training.bundles import open_bundle, run_fingerprint
from training.content import DataOptions, no_content, prepare_features, text_encoder
from training.datasets.base import Dataset
from training.features import reference
from training.lrmm.paper import train_paper
from training.lrmm.ratings import RatingParts, Ratings, published_parts, random_parts
from training.lrmm.reviews import sentence_vectors
from training.lrmm.task import RatingSource, TrainedLRMM, measured, train_lrmm
from training.progress import Terminal
from training.recipe import Checkpoints, Trained
from training.trainer import TrainerConfig

TEXT = "text"
AnyConfig = LRMMConfig | LRMMPaperConfig


def encoded_ratings(
    dataset: Dataset, ratings: Ratings, config: AnyConfig, options: DataOptions, terminal: Terminal
) -> Callable[[RatingParts], RatingSource]:
    """Reviews' sentences and items' content, encoded once; answers what makes the source of a split."""
    content = prepare_features(dataset, options, terminal).batch if dataset.modalities else no_content(dataset)
    return _source(dataset, ratings, content, config, options, terminal)


def _source(
    dataset: Dataset,
    ratings: Ratings,
    content: ModalBatch,
    config: AnyConfig,
    options: DataOptions,
    terminal: Terminal,
) -> Callable[[RatingParts], RatingSource]:
    sentences = review_sentences(ratings, config, options, terminal)
    texts = _observed_texts(dataset, content) if isinstance(config, LRMMPaperConfig) else None
    return lambda parts: RatingSource(ratings, parts, sentences, content, dataset.users, dataset.items, texts)


def described_items(dataset: Dataset) -> tuple[str, ...] | None:
    """Titles and descriptions by item, blank where there are none; None where no item has any."""
    texts = []
    for record in dataset.records:
        text = (record.get("modalities") or {}).get(TEXT)
        texts.append(described(record.get("title"), text if isinstance(text, str) else None))
    return tuple(texts) if any(texts) else None


def _observed_texts(dataset: Dataset, content: ModalBatch) -> tuple[str, ...] | None:
    """The same without those that are withheld."""
    texts = described_items(dataset)
    if texts is None or TEXT not in content.features:
        return None
    observed = content.observed[:, list(content.features).index(TEXT)].tolist()
    return tuple(text if is_observed else "" for text, is_observed in zip(texts, observed, strict=True))


def train_form(
    source: RatingSource,
    config: AnyConfig,
    trainer: TrainerConfig,
    *,
    terminal: Terminal,
    fingerprint: str = "",
    checkpoint: Path | None = None,
) -> TrainedLRMM:
    """Train the form of LRMM that the settings are of."""
    how: dict[str, Any] = {"terminal": terminal, "fingerprint": fingerprint, "checkpoint": checkpoint}
    if isinstance(config, LRMMPaperConfig):
        return train_paper(source, config, trainer, **how)
    return train_lrmm(source, config, trainer, **how)


def review_sentences(
    ratings: Ratings, config: AnyConfig, options: DataOptions, terminal: Terminal
) -> tuple[Array, EncoderRef] | None:
    """Sentence embeddings `[n, d]` of the reviews and who made them; None where there are no texts, or they are
    read as words alone."""
    if isinstance(config, LRMMPaperConfig) or not any(text.strip() for text in ratings.text):
        return None
    encoder = text_encoder(options)
    vectors = sentence_vectors(ratings.text, config.review_words, encoder, terminal, options.cache)
    return vectors, reference("text", encoder)


@dataclass(frozen=True)
class LRMMRecipe:
    """LRMM beside a bundle's other models; a new bundle where there is none."""

    config: AnyConfig
    trainer: TrainerConfig

    name: ClassVar[str] = NAME
    headline: ClassVar[tuple[str, ...]] = ("rmse[+F]", "mae[+F]")
    ships_catalogue: ClassVar[bool] = False

    def train(
        self, dataset: Dataset, out: Path, options: DataOptions, checkpoints: Checkpoints, terminal: Terminal
    ) -> Trained:
        """A bundle's own encoders make the items' features, so that the service's features are those of training.

        Raises:
            RatingDataError: the dataset has no usable ratings. What `open_bundle` raises.
        """
        ratings = Ratings.of(dataset)
        parts = published_parts(dataset, ratings) or random_parts(len(ratings), self.trainer.seed)
        opened = open_bundle(dataset, out, options, terminal)
        source = _source(dataset, ratings, opened.content, self.config, options, terminal)(parts)
        trained = train_form(
            source,
            self.config,
            self.trainer,
            terminal=terminal,
            fingerprint=_fingerprint(dataset, source, self.config, self.trainer),
            checkpoint=checkpoints.model,
        )
        metrics = {"valid rmse": trained.result.best["rmse[+F]"], **measured(trained.serving, trained.test)}
        return Trained(opened, len(ratings), lambda writer: trained.serving.save(writer, metrics))


def _fingerprint(dataset: Dataset, source: RatingSource, config: AnyConfig, trainer: TrainerConfig) -> str:
    settings = {
        "data": dataset.fingerprint,
        "sentences": None if source.sentences is None else source.sentences[1].weights_sha256,
        "config": config.model_dump(),
        "trainer": trainer.model_dump(exclude={"patience"}),
    }
    return run_fingerprint(source.content, settings)
