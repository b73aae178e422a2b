"""IRIS from a prepared dataset to its part of a bundle: content, its missing cells filled, training and test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from models.iris.config import IRISConfig
from models.iris.serving import NAME
from models.modality import ModalBatch
from training.bundles import open_bundle, run_fingerprint
from training.content import DataOptions
from training.datasets.base import Dataset
from training.held_out import measured, possible_negatives, random_held_out
from training.iris.source import IRISTraining, TopNSource, completed
from training.iris.task import train_iris
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
        """Missing content is filled by a ridge regression that sees the training pairs alone. What the bundle's DGMRec
        generates rests on all feedback, also on what is held out here; it is read once the model is served.

        Raises:
            LeaveOneOutError: too little feedback to hold anything out. What `open_bundle` raises.
        """
        held_out = random_held_out(dataset, self.trainer.seed, negatives=possible_negatives(dataset))
        opened = open_bundle(dataset, out, options, terminal)
        content = completed(
            opened.content,
            held_out.train,
            len(dataset.users),
            generated=self.config.generated,
            shuffled=self.training.shuffled,
            seed=self.trainer.seed,
        )
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
