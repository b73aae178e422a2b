"""IRIS from a prepared dataset to its part of a bundle: content, its missing cells filled, training and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from models.bundle import Bundle
from models.dgmrec.serving import DGMRecServing
from models.iris.config import IRISConfig
from models.iris.serving import NAME
from models.modality import ModalBatch
from training.bundles import Opened, open_bundle, run_fingerprint
from training.content import DataOptions
from training.datasets.base import Dataset
from training.held_out import HeldOut, measured, possible_negatives, random_held_out
from training.iris.task import IRISTraining, TopNSource, completed, train_iris
from training.progress import Terminal
from training.recipe import Checkpoints, Trained
from training.trainer import TrainerConfig


@dataclass(frozen=True)
class IRISRecipe:
    """IRIS beside a bundle's other models; a new bundle where there is none."""

    config: IRISConfig
    training: IRISTraining
    trainer: TrainerConfig

    name: ClassVar[str] = NAME
    headline: ClassVar[tuple[str, ...]] = ("hr@10", "ndcg@10")
    ships_catalogue: ClassVar[bool] = True

    def train(
        self, dataset: Dataset, out: Path, options: DataOptions, checkpoints: Checkpoints, terminal: Terminal
    ) -> Trained:
        """Missing content is what the bundle's DGMRec generates, so that interests are learned from what will be
        served; a ridge regression fills it where there is none.

        Raises:
            LeaveOneOutError: too little feedback to hold anything out. What `open_bundle` raises.
        """
        held_out = random_held_out(dataset, self.trainer.seed, negatives=possible_negatives(dataset))
        opened = open_bundle(dataset, out, options, terminal)
        content = _content(dataset, opened, held_out, self.training, self.trainer.seed)
        settings = self.config, self.training, self.trainer
        trained = train_iris(
            TopNSource(held_out, content, dataset.users, dataset.items),
            *settings,
            terminal=terminal,
            fingerprint=_fingerprint(dataset, content, *settings),
            checkpoint=checkpoints.model,
            members_at=checkpoints.member,
        )
        metrics = {f"valid {name}": value for name, value in trained.result.best.items()}
        metrics |= measured(trained.scores, held_out.test)
        return Trained(opened, len(dataset.pairs()), lambda writer: trained.serving.save(writer, metrics))


def _content(dataset: Dataset, opened: Opened, held_out: HeldOut, training: IRISTraining, seed: int) -> ModalBatch:
    """The items' content, whose missing cells the bundle's DGMRec fills, or else a ridge regression."""
    content = opened.content
    if opened.bundle is not None and training.generated:
        content = generated_by(opened.bundle, content, dataset.items.ids)
    return completed(content, held_out.train, len(dataset.users), training, seed)


def _fingerprint(
    dataset: Dataset, content: ModalBatch, config: IRISConfig, training: IRISTraining, trainer: TrainerConfig
) -> str:
    settings = {
        "data": dataset.fingerprint,
        "min_rating": dataset.min_rating,
        "config": config.model_dump(),
        "training": training.model_dump(),
        "trainer": trainer.model_dump(),
    }
    return run_fingerprint(content, settings)


def generated_by(bundle: Bundle, content: ModalBatch, ids: Sequence[str]) -> ModalBatch:
    """Content of some items whose missing cells hold what the bundle's DGMRec generated, where it holds one."""
    if "dgmrec" not in bundle.manifest.models:
        return content
    model = DGMRecServing.load(bundle)
    places = torch.tensor([-1 if (row := model.items.get(item)) is None else row for item in ids])
    features, observed = dict(content.features), content.observed.clone()
    for column, name in enumerate(content.names):
        if name not in model.names or not model.has_mean(name):
            continue
        rows = ((places >= 0) & ~content.observed[:, column]).nonzero().squeeze(1)
        generated = model.unproject(name, model.tables[f"feature.{name}"][places[rows].numpy()])
        features[name] = features[name].index_copy(0, rows, torch.from_numpy(generated))
        observed[rows, column] = True
    return ModalBatch(features, observed)
