"""The whole line of IRIS: prepared dataset -> features, missing ones generated -> IRIS -> bundle, beside whatever it
holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models.bundle import Bundle, BundleWriter, Manifest
from models.dgmrec.serving import DGMRecServing
from models.iris.config import IRISConfig
from models.iris.serving import NAME
from models.modality import ModalBatch
from training.bundles import Opened, data_entry, join, open_bundle, run_fingerprint
from training.datasets.base import Dataset
from training.dgmrec.bundle import add_catalogue
from training.dgmrec.recipe import DataOptions
from training.held_out import HeldOut, measured, possible_negatives, random_held_out
from training.iris.task import IRISTraining, TopNSource, completed, train_iris
from training.progress import Terminal
from training.trainer import TrainerConfig


@dataclass(frozen=True)
class Checkpoints:
    """Where an interrupted training goes on: the file of the interests, and beside it one of each member."""

    interests: Path
    members: int

    def member(self, number: int) -> Path:
        """The file of one member."""
        return self.interests.with_name(f"{self.interests.name}-{number}")

    def remove(self) -> None:
        """Remove all of them."""
        for file in (self.interests, *map(self.member, range(self.members))):
            file.unlink(missing_ok=True)


def add_iris(
    dataset: Dataset,
    out: Path,
    config: IRISConfig,
    training: IRISTraining,
    trainer: TrainerConfig,
    options: DataOptions,
    *,
    terminal: Terminal,
    source: Path | None = None,
    fresh: bool = False,
) -> Manifest:
    """Train IRIS and write it into the bundle at `out`, beside its other models; a new bundle where there is none.

    Missing content is what the bundle's DGMRec generates, so that interests are learned from what will be served; a
    ridge regression fills it where there is none. An interrupted training goes on where it was when called again.

    Args:
        source: the prepared dataset, whose catalogue a new bundle is to hold.

    Raises:
        LeaveOneOutError: too little feedback to hold anything out.
    """
    opened = open_bundle(dataset, out, options, terminal)
    held_out = random_held_out(dataset, trainer.seed, negatives=possible_negatives(dataset))
    content = _content(dataset, opened, held_out, training, trainer.seed)
    checkpoints = Checkpoints(out.with_name(f".{out.name}.iris-checkpoint"), config.members)
    if fresh:
        checkpoints.remove()
    trained = train_iris(
        TopNSource(held_out, content, dataset.users, dataset.items),
        config,
        training,
        trainer,
        terminal=terminal,
        fingerprint=_fingerprint(dataset, content, config, training, trainer),
        checkpoint=checkpoints.interests,
        members_at=checkpoints.member,
    )
    metrics = {f"valid {name}": value for name, value in trained.result.best.items()}
    metrics |= measured(trained.scores, held_out.test)
    data = data_entry(dataset, opened.content, len(dataset.pairs()))

    def catalogue(writer: BundleWriter) -> None:
        if source is not None:
            add_catalogue(writer, dataset, opened.content, source)

    manifest = join(out, opened, NAME, data, lambda writer: trained.serving.save(writer, metrics), catalogue=catalogue)
    checkpoints.remove()
    return manifest


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
    places = torch.tensor([-1 if (row := model.items.get(one)) is None else row for one in ids])
    features, observed = dict(content.features), content.observed.clone()
    for column, name in enumerate(content.names):
        if name not in model.names or not model.has_mean(name):
            continue
        rows = ((places >= 0) & ~content.observed[:, column]).nonzero().squeeze(1)
        made = model.unproject(name, model.tables[f"feature.{name}"][places[rows].numpy()])
        features[name] = features[name].index_copy(0, rows, torch.from_numpy(made))
        observed[rows, column] = True
    return ModalBatch(features, observed)
