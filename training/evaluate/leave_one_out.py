"""The protocol `leave-one-out`: one item of each user ranked among negatives, the same trials for every model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.arrays import Rows
from models.iris.config import IRISConfig
from models.modality import ModalBatch
from training.baselines.peers import RANKERS
from training.baselines.ranking import BaselineData, tune
from training.bundles import run_fingerprint
from training.content import DataOptions, no_content, prepare_features
from training.datasets.base import Dataset
from training.evaluate.faithfulness import faithfulness
from training.evaluate.result import Measured, result_of, run_record, training_record
from training.held_out import HeldOut, PairScores, measured, published_held_out, random_held_out
from training.iris.source import IRISTraining, TopNSource, completed, foreign_to
from training.iris.task import member_settings, train_iris
from training.metrics import ScoreFunction, Scores
from training.progress import Terminal
from training.splits import Parts
from training.trainer import TrainerConfig

IRIS = "iris"
LEAVE_ONE_OUT_MODELS = (IRIS, *RANKERS)
METRIC = "ndcg@10"
FIXED = "random"  # the published split that stands for the first of the random ones


@dataclass(frozen=True)
class LeaveOneOutPlan:
    """What to measure: one of `LEAVE_ONE_OUT_MODELS`; for IRIS its settings and how content becomes features.

    Attributes:
        split: a published split that every run uses; None: random ones, the first of them the dataset's own where it
            publishes one.
    """

    model: str
    config: IRISConfig
    training: IRISTraining
    trainer: TrainerConfig
    options: DataOptions
    split: str | None = None


def evaluate_leave_one_out(
    dataset: Dataset, plan: LeaveOneOutPlan, *, seeds: int, variant: str | None, command: str, terminal: Terminal
) -> dict[str, Any]:
    """Train and test for seeds 1, 2, ...

    Raises:
        LeaveOneOutError: the dataset cannot be split so. BaselineError, and what `prepare_features` raises.
    """
    run = _runner(dataset, plan, terminal)
    runs = [run(seed) for seed in range(1, seeds + 1)]
    about = Measured("leave-one-out", dataset.name, dataset.synthetic, plan.model, variant, command)
    return result_of(about, _settings(plan), runs)


def split_of(dataset: Dataset, seed: int, split: str | None) -> tuple[str, HeldOut]:
    """The split of a seed, and what it is called."""
    if split is not None:
        return split, published_held_out(dataset, split, seed)
    if seed == 1 and FIXED in dataset.leave_one_out:
        return FIXED, published_held_out(dataset, FIXED, seed)
    return "drawn", random_held_out(dataset, seed)


def _settings(plan: LeaveOneOutPlan) -> dict[str, Any]:
    split = {"split": plan.split}
    if plan.model != IRIS:
        return split | {"grid": [dict(setting) for setting in RANKERS[plan.model].grid]}
    model = plan.config.model_dump(mode="json") | plan.training.model_dump()
    return split | {
        "model": {name: value for name, value in model.items() if name not in foreign_to(plan.config.form)},
        "trainer": plan.trainer.model_dump(exclude={"seed"}),
        "missing": plan.options.missing,
        "mask": plan.options.mask,
        "image_encoder": plan.options.image_encoder,
    }


def _runner(dataset: Dataset, plan: LeaveOneOutPlan, terminal: Terminal) -> Callable[[int], dict[str, Any]]:
    """What runs one seed. Encoders learn nothing from interactions and run once for all."""
    reads = RANKERS[plan.model].content if plan.model != IRIS else plan.config.reads != ()
    read = reads and dataset.modalities
    content = prepare_features(dataset, plan.options, terminal).batch if read else no_content(dataset)

    def run(seed: int) -> dict[str, Any]:
        begin = time.perf_counter()
        name, held_out = split_of(dataset, seed, plan.split)
        terminal.say(f"seed {seed}, split {name}")
        outcome = (_iris if plan.model == IRIS else _baseline)(dataset, plan, held_out, content, seed, terminal)
        return run_record(seed, begin, {"split": name, **outcome})

    return run


def _valid(metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"valid {name}": value for name, value in metrics.items()}


# --- baselines ------------------------------------------------------------------------------------------------------


def _baseline(
    dataset: Dataset, plan: LeaveOneOutPlan, held_out: HeldOut, content: ModalBatch, seed: int, terminal: Terminal
) -> dict[str, Any]:
    del seed  # baselines start from a seed of their own
    parts = Parts(held_out.train, held_out.valid.pairs, held_out.test.pairs)
    tuned = tune(
        RANKERS[plan.model],
        BaselineData(parts, len(dataset.users), len(dataset.items), content),
        metric=METRIC,
        progress=lambda done, total: terminal.stage(f"{plan.model}, settings", done, total),
        measure=lambda scores: measured(_of_pairs(scores), held_out.valid),
    )
    metrics = measured(_of_pairs(tuned.scores), held_out.test)
    return {"metrics": metrics | _valid(tuned.valid), "setting": dict(tuned.setting)}


def _of_pairs(scores: ScoreFunction) -> PairScores:
    def chosen(users: Rows, items: Rows) -> Scores:
        table: Scores = np.take_along_axis(scores(users), items, axis=1)
        return table

    return chosen


# --- IRIS ------------------------------------------------------------------------------------------------------------


def _iris(
    dataset: Dataset, plan: LeaveOneOutPlan, held_out: HeldOut, content: ModalBatch, seed: int, terminal: Terminal
) -> dict[str, Any]:
    wanted = {"generated": plan.config.generated, "shuffled": plan.training.shuffled}
    filled = completed(content, held_out.train, len(dataset.users), **wanted, seed=seed)
    source = TopNSource(held_out, filled, dataset.users, dataset.items)
    trainer = plan.trainer.model_copy(update={"seed": seed})
    settings = plan.config, plan.training, trainer
    fingerprint = _fingerprint(source, *settings)
    trained = train_iris(
        source,
        *settings,
        terminal=terminal,
        fingerprint=fingerprint,
        checkpoint=_paper_at(plan, fingerprint),
        members_at=_members_at(plan, member_settings(source, *settings)),
    )
    metrics = measured(trained.scores, held_out.test) | _valid(trained.result.best)
    explained = faithfulness(trained.serving, source, held_out.test, seed)
    return {
        "metrics": metrics | explained.metrics,
        "curves": explained.curves,
        **training_record(trained.result),
        "training_seconds": round(trained.seconds, 1),
    }


def _fingerprint(source: TopNSource, config: IRISConfig, training: IRISTraining, trainer: TrainerConfig) -> str:
    settings = {"data": source.held_out.fingerprint, "config": config, "training": training, "trainer": trainer}
    return run_fingerprint(source.content, settings)


def _paper_at(plan: LeaveOneOutPlan, fingerprint: str) -> Path | None:
    """The paper's form takes hours on large data: where it stands is kept beside the dataset, too."""
    cache = plan.options.cache
    if cache is None or plan.config.form != "paper":
        return None
    return cache / f"iris-paper-{fingerprint[:16]}.safetensors"


def _members_at(plan: LeaveOneOutPlan, settings: str) -> Callable[[int], Path] | None:
    """Members read no content: they are kept beside the dataset, and shared by what differs in its interests alone."""
    cache = plan.options.cache
    if cache is None:
        return None
    name = hashlib.sha256(settings.encode()).hexdigest()[:16]
    return lambda member: cache / f"iris-{name}-{member}.safetensors"
