"""DGMRec from a prepared dataset to a new bundle: features with missing cells, split, training, serving tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from models.arrays import Rows
from models.dgmrec.config import DGMRecConfig
from models.dgmrec.serving import DGMRecServing, serving_tables
from models.modality import ModalBatch
from models.vocabulary import Vocabulary
from training.bundles import new_bundle, run_fingerprint
from training.content import DataOptions, TrainingDataError, prepare_features
from training.datasets.base import Dataset
from training.dgmrec.task import DGMRecTask, TopNData
from training.progress import Terminal
from training.recipe import Checkpoints, Trained
from training.splits import Parts, hold_out_items, random_split
from training.trainer import TrainerConfig, TrainingResult, train


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
class TrainedDGMRec:
    """A finished training: the task, how it went, and its metrics (test ranking, imputation)."""

    task: DGMRecTask
    result: TrainingResult
    metrics: dict[str, float]


def train_dgmrec(
    dataset: Dataset,
    content: ModalBatch,
    config: DGMRecConfig,
    trainer: TrainerConfig,
    *,
    parts: Parts | None = None,
    checkpoint: Path | None = None,
    terminal: Terminal | None = None,
) -> TrainedDGMRec:
    """Train, regenerate, calibrate, test, on these parts or those of `split_parts`."""
    if parts is None:
        parts = split_parts(dataset, trainer.seed)
    data = TopNData(content, parts, len(dataset.users), len(dataset.items))
    task = DGMRecTask(data, config, trainer)
    result = train(
        task,
        trainer,
        fingerprint=fingerprint(dataset, content, config, trainer),
        checkpoint_path=checkpoint,
        progress=terminal,
    )
    return TrainedDGMRec(task, result, task.finish() | task.test())


def fingerprint(dataset: Dataset, content: ModalBatch, config: DGMRecConfig, trainer: TrainerConfig) -> str:
    """Names everything a run's result depends on, so that a checkpoint of another run is not continued."""
    settings = {
        "data": dataset.fingerprint,
        "min_rating": dataset.min_rating,
        "config": config.model_dump(),
        "trainer": trainer.model_dump(exclude={"patience"}),
    }
    return run_fingerprint(content, settings)


def serving_model(task: DGMRecTask, users: Vocabulary, items: Vocabulary) -> DGMRecServing:
    """The trained model with the tables that serving needs.

    Raises:
        ValueError: the model reads no content.
    """
    if task.content is None:
        raise ValueError("a model without modalities cannot be served")
    model, fallback = task.module, task.propagated_features(task.content.evidence)
    out, prediction = task.final_embeddings()
    tables = serving_tables(model, task.interactions, task.content, out, prediction, task.user_factors, fallback)
    model.config = model.config.model_copy(update={"fallback_imputer": task.fallback_imputer[0]})
    return DGMRecServing(model.cpu(), tables, users, items)


@dataclass(frozen=True)
class DGMRecRecipe:
    """A bundle always begins anew with DGMRec, whose training data are what its encoders are trained on."""

    config: DGMRecConfig
    trainer: TrainerConfig

    name: ClassVar[str] = "dgmrec"
    headline: ClassVar[tuple[str, ...]] = ("recall@20", "ndcg@20")
    ships_catalogue: ClassVar[bool] = True

    def train(
        self, dataset: Dataset, out: Path, options: DataOptions, checkpoints: Checkpoints, terminal: Terminal
    ) -> Trained:
        """What stands at `out` is replaced.

        Raises:
            TrainingDataError: there is too little to learn from. What `prepare_features` raises.
        """
        del out
        opened = new_bundle(prepare_features(dataset, options, terminal))
        trained = train_dgmrec(
            dataset, opened.content, self.config, self.trainer, checkpoint=checkpoints.model, terminal=terminal
        )
        serving = serving_model(trained.task, dataset.users, dataset.items)
        return Trained(opened, len(dataset.pairs()), lambda writer: serving.save(writer, trained.metrics))
