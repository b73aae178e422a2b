"""Training of LRMM in the paper's form: towers, autoencoders and score together, end to end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.arrays import Array, Mask
from models.lrmm.config import LRMMPaperConfig
from models.lrmm.paper import Inputs, PaperLRMM
from models.lrmm.paper_serving import PaperServing
from models.lrmm.reviews import PADDING
from models.lrmm.serving import METADATA, pair_name
from training.lrmm.documents import DocumentBuilder, DocumentPairs, document_words
from training.lrmm.pairs import RatingPairs
from training.lrmm.task import TRAINER, RatingSource, RatingTask, TrainedLRMM, calibrated, errors_by_regime
from training.progress import Terminal
from training.trainer import TrainerConfig, train

TRAINER_OF_PAPER = TRAINER.model_copy(update={"epochs": 30, "learning_rate": 1.0, "patience": 5})
DECAY, EPSILON = 0.95, 1e-6  # Adadelta's, as Zeiler (2012) has them

Features = Mapping[str, tuple[Array, Mask]]


def optimizer_of(module: PaperLRMM, trainer: TrainerConfig) -> torch.optim.Optimizer:
    """The optimiser; its weight decay is the gradient of lambda |theta|^2. (eq. 19)"""
    config = module.config
    weights = [parameter for name, parameter in module.named_parameters() if name != "log_weights"]
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": 2 * config.weight_decay}]
    groups.append({"params": [module.log_weights]})
    if config.optimizer == "adadelta":
        return torch.optim.Adadelta(groups, trainer.learning_rate, rho=DECAY, eps=EPSILON)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, trainer.learning_rate)
    return torch.optim.SGD(groups, trainer.learning_rate)


class PaperTask(RatingTask[PaperLRMM]):
    """The paper's form for the trainer."""

    def __init__(
        self, module: PaperLRMM, trainer: TrainerConfig, pairs: DocumentPairs, valid: DocumentPairs, features: Features
    ) -> None:
        self._valid, self._features = valid, features
        self._tables = {name: torch.from_numpy(table) for name, (table, _) in pairs.documents.items()}
        self._places = {name: torch.from_numpy(place) for name, (_, place) in pairs.documents.items()}
        self._raw = {name: torch.from_numpy(array).float() for name, (array, _) in features.items()}
        self._item, self._present = torch.from_numpy(pairs.item), torch.from_numpy(pairs.present)
        self._value = torch.from_numpy(pairs.value).float()
        module = module.to(trainer.device)
        super().__init__(module, optimizer_of(module, trainer), trainer, len(self._value))

    def train_epoch(self, epoch: int, progress: Callable[[int, int], None]) -> dict[str, float]:
        """One pass over the training pairs; alpha and beta (eq. 22) stand beside the loss."""
        losses = super().train_epoch(epoch, progress)
        alpha, beta = self.module.log_weights.detach().exp().tolist()
        return {**losses, "alpha": alpha, "beta": beta}

    def _loss(self, rows: torch.Tensor) -> torch.Tensor:
        device = torch.device(self._trainer.device)
        kept = self.module.drop(self._present[rows], self._generator).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._trainer.autocast):
            return self.module.loss(self._inputs(rows, device), self._value[rows].to(device), kept)

    def _inputs(self, rows: torch.Tensor, device: torch.device) -> Inputs:
        """A batch; each of its documents stands there once, no longer than the longest of them."""
        documents = {}
        for name, places in self._places.items():
            distinct, place = torch.unique(places[rows], return_inverse=True)
            table = self._tables[name][distinct]
            longest = max(int((table != PADDING).any(dim=0).sum()), 1)
            documents[name] = table[:, :longest].to(device), place.to(device)
        features = {name: raw[self._item[rows]].to(device) for name, raw in self._raw.items()}
        return Inputs(documents, features, self._present[rows].to(device))

    def _errors(self) -> dict[str, float]:
        return errors_by_regime(self.module, embedded_pairs(self.module, self._valid, self._features))


def embedded_pairs(module: PaperLRMM, pairs: DocumentPairs, features: Features) -> RatingPairs:
    """Pairs behind the towers, as they are served."""
    embeddings = {}
    for name, (table, place) in pairs.documents.items():
        documents = [row[row != PADDING].tolist() for row in table]
        embeddings[name] = module.document_embeddings(name, documents)[place]
    for name, (raw, _) in features.items():
        embeddings[name] = module.feature_embeddings(name, raw)[pairs.item]
    return RatingPairs(embeddings, pairs.present, np.zeros(len(pairs.item)), pairs.value, pairs.review_count)


# --- the whole -------------------------------------------------------------------------------------------------------


def train_paper(
    source: RatingSource,
    config: LRMMPaperConfig,
    trainer: TrainerConfig,
    *,
    terminal: Terminal,
    fingerprint: str = "",
    checkpoint: Path | None = None,
) -> TrainedLRMM:
    """Words, documents, model, intervals; validation decides when to stop and how wide intervals are."""
    parts = source.parts
    vocabulary = document_words(source.ratings, parts.train, source.item_texts, config.min_word_count)
    features = features_of(source)
    terminal.stage("documents", 0, 1)
    builder = DocumentBuilder(
        source.ratings,
        vocabulary,
        config.document_words,
        item_texts=source.item_texts,
        features=features,
        item_reviews=source.item_reviews,
    )
    pairs, valid, test = (builder.pairs(rows, parts.train) for rows in (parts.train, parts.valid, parts.test))
    if source.missing:
        pairs = pairs.with_missing(source.missing, trainer.seed)
    terminal.stage("documents", 1, 1)
    mapped = {name: raw.shape[1] for name, (raw, _) in features.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trainer.seed)
        offset = float(source.ratings.value[parts.train].mean())
        module = PaperLRMM(config, builder.worded, mapped, len(vocabulary), offset)
    task = PaperTask(module, trainer, pairs, valid, features)
    result = train(task, trainer, fingerprint=fingerprint, checkpoint_path=checkpoint, progress=terminal)
    module = module.cpu().eval()
    embedded = embedded_pairs(module, valid, features)
    serving = PaperServing(
        module, vocabulary=vocabulary, contents=list(source.content.features), intervals=calibrated(module, embedded)
    )
    return TrainedLRMM(serving, result, embedded_pairs(module, test, features), embedded)


def features_of(source: RatingSource) -> dict[str, tuple[Array, Mask]]:
    """The items' features that are no documents, by the pair's names of the modalities, and which are observed."""
    return {
        pair_name(name): (feature.numpy(), source.content.observed[:, column].numpy())
        for column, (name, feature) in enumerate(source.content.features.items())
        if source.item_texts is None or name not in METADATA
    }
