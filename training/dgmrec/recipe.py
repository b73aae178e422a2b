"""DGMRec from a prepared dataset to a new bundle: features with missing cells, split, training, serving tables."""

from __future__ import annotations

import gc
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from models.arrays import Rows
from models.bundle import BundleWriter, ModelEntry
from models.dgmrec.config import DGMRecConfig
from models.dgmrec.serving import DGMRecServing, serving_tables
from models.modality import ModalBatch
from models.vocabulary import Vocabulary
from models.words import title_and_text
from training.bundles import new_bundle, run_fingerprint
from training.content import (
    DataOptions,
    TooLittleFeedbackError,
    TrainingDataError,
    no_content,
    prepare_features,
    without_content,
)
from training.datasets.base import Dataset
from training.dgmrec.choice import Choice, Chooser
from training.dgmrec.items_only import items_only_model
from training.dgmrec.placement import choose_new_offset
from training.dgmrec.task import DGMRecTask, TopNData
from training.progress import Terminal, Trial
from training.recipe import Checkpoints, Trained
from training.splits import Parts, Split, SplitName, hold_out_items, pair_times, random_split, time_split
from training.trainer import TrainerConfig, TrainingResult, train

FEWEST_HELD_OUT = 10  # validation interactions: by fewer, nothing learned is known to be better than content alone
# As the paper trains: Adam at a constant rate, early stopping on validation, the best epoch's weights.
PAPER_TRAINER: dict[str, Any] = {
    "epochs": 1000,
    "batch_size": 2048,
    "learning_rate": 1e-3,
    "constant_fraction": 1.0,
    "patience": 25,
    "smoothing": 1,
    "tolerance": 0.0,
}
TEXT = "text"


def split_parts(dataset: Dataset, seed: int, new_items: Rows | None = None, how: SplitName = SplitName.AUTO) -> Parts:
    """The dataset's interactions in parts; users without training pairs are left out.

    Args:
        new_items: rows of items whose training pairs join the test part.
        how: AUTO for the dataset's published split, or a random one by user.

    Raises:
        TooLittleFeedbackError: too little to train on.
    """
    pairs = dataset.pairs()
    if not len(pairs):
        raise TooLittleFeedbackError(f"the dataset {dataset.name} has no feedback that shows interest")
    split = _split(dataset, seed, how)
    if new_items is not None:
        split = hold_out_items(pairs, split, new_items)
    parts = Parts.of(pairs, split).evaluable()
    if len(parts.train) and np.bincount(parts.train[:, 0]).max() == len(dataset.items):
        raise TooLittleFeedbackError(
            f"the dataset {dataset.name} cannot be trained on: a user has interacted with every item, "
            "which leaves none to compare with"
        )
    if not (len(parts.train) and len(parts.valid) and len(parts.test)):
        raise TooLittleFeedbackError(
            f"the dataset {dataset.name} has too little feedback: no user has the three items that training, "
            "validation and test each need one of"
        )
    return parts


def _split(dataset: Dataset, seed: int, how: SplitName) -> Split:
    pairs, rng = dataset.pairs(), np.random.default_rng(seed)
    if how is SplitName.AUTO and dataset.split is not None:
        return dataset.split
    if how is not SplitName.TIME:
        return random_split(pairs, rng)
    times = pair_times(dataset)
    if not np.isfinite(times).any():
        raise TrainingDataError(f"the dataset {dataset.name} cannot be split by time: its feedback has no times")
    return time_split(pairs, times, rng)


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
    tested: bool = True,
) -> TrainedDGMRec:
    """Train, regenerate, calibrate, and test unless told not to, on these parts or those of `split_parts`."""
    if parts is None:
        parts = split_parts(dataset, trainer.seed)
    data = TopNData(content, parts, len(dataset.users), len(dataset.items), observed_texts(dataset, content))
    task = DGMRecTask(data, config, trainer)
    result = train(
        task,
        trainer,
        fingerprint=fingerprint(dataset, content, config, trainer, parts),
        checkpoint_path=checkpoint,
        progress=terminal,
    )
    return TrainedDGMRec(task, result, task.finish() | (task.test() if tested else {}))


def observed_texts(dataset: Dataset, content: ModalBatch) -> list[str | None] | None:
    """The items' titles and texts where texts are observed; None where nobody has any."""
    if TEXT not in content.names:
        return None
    observed = content.observed[:, content.names.index(TEXT)].tolist()
    texts = [text if isinstance(text, str) else None for text in dataset.content(TEXT)]
    titles = [record.get("title") for record in dataset.records]
    whole = [title_and_text(*both) for both in zip(titles, texts, strict=True)]
    return [text if given else None for text, given in zip(whole, observed, strict=True)]


def fingerprint(
    dataset: Dataset, content: ModalBatch, config: DGMRecConfig, trainer: TrainerConfig, parts: Parts | None = None
) -> str:
    """Names everything a run's result depends on, so that a checkpoint of another run is not continued."""
    settings = {
        "data": dataset.fingerprint,
        "min_rating": dataset.min_rating,
        "config": config.model_dump(),
        "trainer": trainer.model_dump(exclude={"patience"}),
        "parts": None if parts is None else hashlib.sha256(parts.train.tobytes()).hexdigest(),
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


def chosen_settings(
    dataset: Dataset,
    parts: Parts,
    configs: tuple[DGMRecConfig, TrainerConfig],
    pinned: frozenset[str],
    budget: float,
    *,
    terminal: Terminal,
    file: Path | None = None,
) -> Choice:
    """What the validation part chooses (`Chooser`), said in a table.

    Args:
        pinned: names of settings that are not to be chosen. budget: seconds; 0 for the configurations as they are.
        file: keeps what an interrupted choice has tried.
    """
    content = no_content(dataset)
    data = TopNData(content, parts, len(dataset.users), len(dataset.items))
    name = fingerprint(dataset, content, *configs, parts)
    chooser = Chooser(
        data,
        configs,
        pinned,
        budget,
        fingerprint=name,
        file=file,
        progress=terminal.say,
        watch=lambda: Trial(terminal, "  steps of this trial"),
    )
    choice = chooser.choose()
    for line in choice.table if choice.trials else ():
        terminal.say(line)
    return choice


def with_chosen_offset(trained: TrainedDGMRec, pinned: frozenset[str], terminal: Terminal) -> TrainedDGMRec:
    """The same with new items, and the cold items of the catalogue, placed where validation has them
    (`choose_new_offset`, `choose_catalogue_offset`)."""
    if "popularity_offset" in pinned:
        return trained
    placed = choose_new_offset(trained.task)
    if placed is not None:
        terminal.say(str(placed))
    offset = None if "catalogue_offset" in pinned else trained.task.choose_catalogue_offset()
    if offset is not None:
        terminal.say(f"chosen: catalogue_offset={offset}")
    if placed is None and offset is None:
        return trained
    return replace(trained, metrics=trained.metrics | trained.task.test())


def refit(
    dataset: Dataset,
    content: ModalBatch,
    epochs: int,
    config: DGMRecConfig,
    trainer: TrainerConfig,
    *,
    checkpoint: Path | None = None,
    terminal: Terminal | None = None,
) -> TrainedDGMRec:
    """The same on all interactions, for so many epochs."""
    pairs = dataset.pairs()
    whole = trainer.model_copy(update={"epochs": epochs, "evaluate_every": epochs})
    everything = Parts(pairs, pairs[:0], pairs[:0])
    return train_dgmrec(
        dataset, content, config, whole, parts=everything, checkpoint=checkpoint, terminal=terminal, tested=False
    )


@dataclass(frozen=True)
class DGMRecRecipe:
    """A bundle always begins anew with DGMRec, whose training data are what its encoders are trained on.

    Attributes:
        pinned: names of settings that are not to be chosen.
        budget: seconds to choose the others in; 0 takes them as they are.
        on_all: whether the bundle is fitted anew on all interactions once its metrics are known.
    """

    config: DGMRecConfig
    trainer: TrainerConfig
    pinned: frozenset[str] = frozenset()
    budget: float = 0.0
    on_all: bool = False

    name: ClassVar[str] = "dgmrec"
    headline: ClassVar[tuple[str, ...]] = ("recall@20", "ndcg@20")
    ships_catalogue: ClassVar[bool] = True

    def train(
        self, dataset: Dataset, out: Path, options: DataOptions, checkpoints: Checkpoints, terminal: Terminal
    ) -> Trained:
        """What stands at `out` is replaced. Where there is too little feedback, the items alone make the model.

        Raises:
            TrainingDataError: the items have no content. What `prepare_features` raises.
        """
        del out
        try:
            parts = self._parts(dataset, options)
        except TooLittleFeedbackError as error:
            terminal.say(f"{error}; the model is made of the items alone")
            return self._from_items(dataset, options, terminal)
        if dataset.modalities:
            opened = new_bundle(prepare_features(dataset, options, terminal))
        else:
            terminal.say("the items have no content: lists come of the feedback alone, nothing is generated")
            opened = new_bundle(without_content(dataset, options))
        configs = (self.config, self.trainer)
        budget = 0.0 if self.config.form == "paper" else self.budget  # its settings are the paper's
        choice = chosen_settings(
            dataset, parts, configs, self.pinned, budget, terminal=terminal, file=checkpoints.member(0)
        )
        configs = choice.apply(*configs)
        trained = train_dgmrec(
            dataset, opened.content, *configs, parts=parts, checkpoint=checkpoints.model, terminal=terminal
        )
        if budget:
            trained = with_chosen_offset(trained, self.pinned, terminal)
            configs = (trained.task.config, configs[1])
        metrics = trained.metrics
        if self.on_all:
            shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in self.headline)
            terminal.say(f"held-out fit: test {shown}; now fitted on all feedback")
            epochs = max(trained.result.best_epoch, 1)
            del trained  # its features and graphs need not stand in memory beside those of the next fit
            gc.collect()
            trained = refit(
                dataset, opened.content, epochs, *configs, checkpoint=checkpoints.member(1), terminal=terminal
            )
        serving = serving_model(trained.task, dataset.users, dataset.items)

        def save(writer: BundleWriter) -> ModelEntry:
            return serving.save(writer, metrics).model_copy(update={"refitted": self.on_all})

        return Trained(opened, len(dataset.pairs()), save)

    def _parts(self, dataset: Dataset, options: DataOptions) -> Parts:
        """Raises TooLittleFeedbackError, and TrainingDataError where the form cannot learn from such data."""
        if self.config.generator == "parts" and len(dataset.modalities) < 2:
            raise TrainingDataError(
                f"the dataset {dataset.name} has {len(dataset.modalities) or 'no'} modality: with generator=parts, as "
                "form=paper has it, one is generated from another"
            )
        parts = split_parts(dataset, self.trainer.seed, how=options.split)
        if len(parts.valid) < FEWEST_HELD_OUT:
            raise TooLittleFeedbackError(
                f"the dataset {dataset.name} has too little feedback: {len(parts.valid)} interactions to choose by, "
                f"and at least {FEWEST_HELD_OUT} are wanted"
            )
        return parts

    def _from_items(self, dataset: Dataset, options: DataOptions, terminal: Terminal) -> Trained:
        opened = new_bundle(prepare_features(dataset, options, terminal))
        serving, metrics = items_only_model(opened.content, dataset.items, self.config, self.trainer)
        return Trained(opened, 0, lambda writer: serving.save(writer, metrics))
