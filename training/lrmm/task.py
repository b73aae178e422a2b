"""Training of LRMM: the encoder of reviews first, then the model on profiles without what they are to predict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from models.arrays import Array, Double, Mask
from models.bundle import EncoderRef
from models.lrmm.config import LRMMConfig
from models.lrmm.model import ITEM, LRMM, USER
from models.lrmm.paper_serving import PaperServing
from models.lrmm.profiles import BIAS, Prior
from models.lrmm.reviews import Projection, ReviewEncoder
from models.lrmm.serving import (
    Intervals,
    LRMMServing,
    RatingModule,
    RatingServing,
    TrainedSides,
    content_embeddings,
    pair_name,
)
from models.modality import ModalBatch
from models.vocabulary import Vocabulary
from training.lrmm.pairs import PairBuilder, RatingPairs
from training.lrmm.ratings import RatingParts, Ratings
from training.lrmm.reviews import fit_reviews
from training.progress import Terminal
from training.trainer import TrainerConfig, TrainingResult, set_rate, train

M = TypeVar("M", bound=torch.nn.Module)

METRIC = "-rmse[+F]"
TRAINER = TrainerConfig(
    epochs=8,
    batch_size=256,
    learning_rate=1e-4,
    constant_fraction=1,
    patience=3,
    smoothing=1,
    tolerance=0,
    metric=METRIC,
)
REGIMES: Mapping[str, tuple[str, ...]] = {
    "+F": (),
    "-U": (USER,),
    "-O": (ITEM,),
    "-M": ("metadata",),
    "-V": ("image",),
    "-U-O": (USER, ITEM),
}


class RatingTask(ABC, Generic[M]):
    """LRMM in either form for the trainer: epochs over the training pairs in a random order, RMSE on the validation
    part.

    Args:
        count: number of training pairs.
    """

    def __init__(self, module: M, optimizer: torch.optim.Optimizer, trainer: TrainerConfig, count: int) -> None:
        self.module, self._optimizer, self._trainer, self._count = module, optimizer, trainer, count
        self._generator = torch.Generator().manual_seed(trainer.seed)

    @abstractmethod
    def _loss(self, rows: Tensor) -> Tensor:
        """The loss of some training pairs `[b]`."""

    @abstractmethod
    def _errors(self) -> dict[str, float]:
        """RMSE on the validation part under each regime."""

    def train_epoch(self, epoch: int, progress: Callable[[int, int], None]) -> dict[str, float]:
        """One pass over the training pairs."""
        self.module.train()
        order = torch.randperm(self._count, generator=self._generator)
        batches = torch.split(order, self._trainer.batch_size)
        total = 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self._trainer.seed, epoch)) % 2**31)
            for done, rows in enumerate(batches, start=1):
                set_rate(self._optimizer, self._trainer.rate(epoch - 1 + (done - 1) / len(batches)))
                loss = self._loss(rows)
                self._optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self._optimizer.step()
                total += float(loss.detach())
                progress(done, len(batches))
        self.module.eval()
        return {"loss": total / len(batches)}

    def validate(self) -> dict[str, float]:
        """Errors on the validation part; `-rmse[+F]` is what decides."""
        errors = self._errors()
        return {METRIC: -errors["rmse[+F]"], **errors}

    def state(self) -> dict[str, Any]:
        """Optimiser and random state."""
        return {"optimizer": self._optimizer.state_dict(), "generator": self._generator.get_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])


class LRMMTask(RatingTask[LRMM]):
    """Our form for the trainer."""

    def __init__(
        self, config: LRMMConfig, trainer: TrainerConfig, pairs: RatingPairs, valid: RatingPairs, offset: float
    ) -> None:
        self._valid = valid
        self._embeddings = {name: torch.from_numpy(array) for name, array in pairs.embeddings.items()}
        self._present = torch.from_numpy(pairs.present)
        self._affinity = torch.from_numpy(pairs.affinity).float()
        self._value = torch.from_numpy(pairs.value).float()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(trainer.seed)
            sizes = {name: tensor.shape[1] for name, tensor in self._embeddings.items()}
            module = LRMM(config, sizes, offset)
        weights = [tensor for name, tensor in module.named_parameters() if name.endswith(".weight")]
        others = [tensor for name, tensor in module.named_parameters() if not name.endswith(".weight")]
        optimizer = torch.optim.AdamW(
            [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            trainer.learning_rate,
        )
        super().__init__(module, optimizer, trainer, len(self._value))

    def _loss(self, rows: Tensor) -> Tensor:
        present = self._present[rows]
        embeddings = {name: tensor[rows] for name, tensor in self._embeddings.items()}
        dropped = self.module.drop(present, self._generator)
        return self.module.loss(embeddings, present, self._affinity[rows], self._value[rows], dropped)

    def _errors(self) -> dict[str, float]:
        return errors_by_regime(self.module, self._valid)


def errors_by_regime(module: RatingModule, pairs: RatingPairs) -> dict[str, float]:
    """RMSE under each regime that the module's modalities allow."""
    errors = {}
    for regime, withheld in REGIMES.items():
        if set(withheld) <= set(module.names):
            seen = pairs.without(withheld, module.names)
            errors[f"rmse[{regime}]"] = float(np.sqrt(np.mean((predicted(module, seen) - seen.value) ** 2)))
    return errors


@torch.inference_mode()
def predicted(module: RatingModule, pairs: RatingPairs) -> Double:
    """Ratings `[b]` of pairs."""
    embeddings = {name: torch.from_numpy(array) for name, array in pairs.embeddings.items()}
    affinity = torch.from_numpy(pairs.affinity).float()
    rated: Double = module.predict(embeddings, torch.from_numpy(pairs.present), affinity).double().numpy()
    return rated


# --- the whole -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RatingSource:
    """What LRMM learns from.

    Attributes:
        sentences: embeddings `[n, d]` of the reviews' excerpts and which encoder made them; None without texts.
        content: the items' own features with holes, by the data's names of the modalities.
        item_texts: titles and descriptions by item, blank where missing; None where no item has words.
        item_reviews: how many reviews of an item are read at most, in training and in test; None for all.
        missing: with which probability each modality of each training pair is missing.
    """

    ratings: Ratings
    parts: RatingParts
    sentences: tuple[Array, EncoderRef] | None
    content: ModalBatch
    users: Vocabulary
    items: Vocabulary
    item_texts: tuple[str, ...] | None = None
    item_reviews: int | None = None
    missing: float = 0.0


@dataclass(frozen=True)
class TrainedLRMM:
    """A finished training: what is served, how it went, and the test part under profiles of the training part."""

    serving: LRMMServing | PaperServing
    result: TrainingResult
    test: RatingPairs
    valid: RatingPairs


def train_lrmm(
    source: RatingSource,
    config: LRMMConfig,
    trainer: TrainerConfig,
    *,
    terminal: Terminal,
    fingerprint: str = "",
    checkpoint: Path | None = None,
) -> TrainedLRMM:
    """Encoder of reviews, profiles, model, intervals; validation decides when to stop and how wide intervals are."""
    parts = source.parts
    encoder, vectors = _encoded(source, config, trainer.seed, terminal)
    projections = _content_projections(source.content, config)
    contents = _contents(source.content, projections)
    builder = PairBuilder(source.ratings, vectors, config, contents, source.item_reviews)
    prior = Prior.of(source.ratings.value[parts.train])
    terminal.stage("profiles", 0, 1)
    pairs, scales = builder.held_out(parts.train, prior, np.random.default_rng(trainer.seed))
    if source.missing:
        pairs = pairs.with_missing(source.missing, trainer.seed)
    sides = builder.sides(parts.train, prior)
    valid, test = (builder.pairs(rows, sides, scales) for rows in (parts.valid, parts.test))
    terminal.stage("profiles", 1, 1)
    task = LRMMTask(config, trainer, pairs, valid, prior.mean)
    if pairs.affinity.any():  # it tells what a rating is beyond the profiles' biases, so that the model starts at these
        for side in (USER, ITEM):
            factor = float(scales[side].factor[BIAS])
            task.module.start_at(side, BIAS, 1 / factor if factor else 0.0, float(scales[side].mean[BIAS]))
    result = train(task, trainer, fingerprint=fingerprint, checkpoint_path=checkpoint, progress=terminal)
    serving = LRMMServing(
        task.module,
        sides=_trained_sides(source, builder),
        prior=prior,
        scales=scales,
        encoder=None if encoder is None or source.sentences is None else (encoder, source.sentences[1]),
        contents=projections,
        intervals=calibrated(task.module, valid),
    )
    return TrainedLRMM(serving, result, test, valid)


def _encoded(
    source: RatingSource, config: LRMMConfig, seed: int, terminal: Terminal
) -> tuple[ReviewEncoder | None, Array]:
    if source.sentences is None:
        return None, np.zeros((len(source.ratings), 1), np.float32)
    sentences, _ = source.sentences
    encoder = fit_reviews(source.ratings, source.parts.train, sentences, config, seed, terminal)
    terminal.stage("reviews, vectors", 0, 1)
    vectors = encoder.encode(source.ratings.text, sentences)
    terminal.stage("reviews, vectors", 1, 1)
    return encoder, vectors


def _content_projections(content: ModalBatch, config: LRMMConfig) -> dict[str, Projection]:
    """Fitted to the observed rows, by the data's names of the modalities."""
    return {
        name: Projection.fit(feature[content.observed[:, column]].numpy(), config.content_size)
        for column, (name, feature) in enumerate(content.features.items())
    }


def _contents(content: ModalBatch, projections: Mapping[str, Projection]) -> dict[str, tuple[Array, Mask]]:
    """Embeddings of the items' content and which are observed, by the pair's names of the modalities."""
    return {
        pair_name(name): (
            content_embeddings(projections[name], feature.numpy()),
            content.observed[:, column].numpy(),
        )
        for column, (name, feature) in enumerate(content.features.items())
    }


def _trained_sides(source: RatingSource, builder: PairBuilder) -> TrainedSides:
    biases = builder.biases(source.parts.train)
    return TrainedSides(source.users, source.items, biases, builder.factors(source.parts.train, biases.mean))


def calibrated(module: RatingModule, valid: RatingPairs) -> Intervals:
    """Intervals from the validation part, with either side, both and none of them known."""
    names = module.names
    pattern, review_count, error = [], [], []
    for withheld in ((), (USER,), (ITEM,), (USER, ITEM)):
        pairs = valid.without(withheld, names)
        sides = pairs.present[:, [names.index(USER), names.index(ITEM)]].astype(np.int64)
        pattern.append(sides @ np.array([1, 2]))
        review_count.append(pairs.present_reviews(names))
        error.append(np.abs(predicted(module, pairs) - pairs.value))
    return Intervals.fit(np.concatenate(pattern), np.concatenate(review_count), np.concatenate(error))


def measured(serving: RatingServing[RatingModule], test: RatingPairs) -> dict[str, float]:
    """RMSE, MAE, coverage and width of the intervals on the test part, by regime; once, when all is chosen."""
    metrics = dict[str, float]()
    for regime, withheld in REGIMES.items():
        if not set(withheld) <= set(serving.names):
            continue
        pairs = test.without(withheld, serving.names)
        rated = serving.rate(pairs.embeddings, pairs.present, pairs.affinity, pairs.present_reviews(serving.names))
        difference = rated.rating - pairs.value
        covered = (rated.low <= pairs.value) & (pairs.value <= rated.high)
        metrics |= {
            f"rmse[{regime}]": float(np.sqrt(np.mean(difference**2))),
            f"mae[{regime}]": float(np.mean(np.abs(difference))),
            f"coverage[{regime}]": float(covered.mean()),
            f"width[{regime}]": float((rated.high - rated.low).mean()),
        }
    return metrics
