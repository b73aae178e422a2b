"""The protocol `rating`: random 80/10/10 splits and the dataset's published one, the same rows for every model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from models.arrays import Double
from models.feedback import HIGHEST, LOWEST
from training.baselines.peers import RATERS
from training.baselines.rating import BaselineRatings, tune_rating_baseline
from training.content import DataOptions
from training.datasets.base import Dataset
from training.evaluate.observed import errors_by_amount, reconstructions, reviews_of
from training.evaluate.result import Measured, result_of, run_record, training_record
from training.lrmm.ratings import RatingDataError, RatingParts, Ratings, published_parts, random_parts, thinned
from training.lrmm.recipe import AnyConfig, described_items, encoded_ratings, review_sentences, train_form
from training.lrmm.task import RatingSource, measured, predicted
from training.lrmm.transfer import Target, transferred
from training.progress import Terminal
from training.trainer import TrainerConfig

PUBLISHED = 0  # the seed under which the dataset's own split runs
FIRST = 1  # of the random splits; its reconstructions are drawn
FULL = "+F"
LRMM = "lrmm"
RATING_MODELS = (LRMM, *RATERS)


@dataclass(frozen=True)
class RatingOutcome:
    """One split's figures, and what else a result says of the run."""

    metrics: dict[str, float]
    account: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RatingPlan:
    """What to measure: one of `RATING_MODELS`; for LRMM its settings and how content becomes features.

    Attributes:
        item_reviews: how many reviews of an item are read at most; of a baseline's training ratings no more are left.
        target: the dataset whose test part is rated instead, by what was learned from the other.
        item_ratings: how many training ratings of an item are left, the newest ones, whatever the model.
        missing: with which probability each modality of each training pair is missing (LRMM alone).
    """

    model: str
    config: AnyConfig
    trainer: TrainerConfig
    options: DataOptions
    item_reviews: int | None = None
    target: Dataset | None = None
    missing: float = 0.0
    item_ratings: int | None = None

    def __post_init__(self) -> None:
        if self.model != LRMM and self.target is not None:
            raise RatingDataError(f"{self.model} knows users and items alone, of which another dataset has none")
        if self.model != LRMM and self.missing:
            raise RatingDataError(f"{self.model} reads no modality that could be missing")
        if self.model != LRMM and self.item_reviews == 0:
            raise RatingDataError(f"{self.model} cannot be trained where no item has a rating")


def evaluate_rating(
    dataset: Dataset, plan: RatingPlan, *, seeds: int, variant: str | None, command: str, terminal: Terminal
) -> dict[str, Any]:
    """Train and test on the random splits of seeds 1, 2, ..., and on the published split where there is one.

    Mean and spread are those of the random splits; the published one stands beside them.

    Raises:
        RatingDataError: the dataset has no usable ratings.
    """
    ratings = Ratings.of(dataset)
    published = published_parts(dataset, ratings)
    splits = {seed: random_parts(len(ratings), seed) for seed in range(FIRST, FIRST + seeds)}
    run = _runner(dataset, ratings, plan, terminal)
    runs = [run(parts, seed) for seed, parts in splits.items()]
    tested = dataset if plan.target is None else plan.target
    synthetic = dataset.synthetic or tested.synthetic
    return result_of(
        Measured("rating", tested.name, synthetic, plan.model, variant, command),
        {**_settings(plan), **_condition(dataset, plan)},
        runs,
        published=None if published is None else run(published, PUBLISHED),
    )


def _settings(plan: RatingPlan) -> dict[str, Any]:
    if plan.model != LRMM:
        return {"grid": [dict(setting) for setting in RATERS[plan.model].grid]}
    return {"model": plan.config.model_dump(), "trainer": plan.trainer.model_dump(exclude={"seed"})}


def _condition(dataset: Dataset, plan: RatingPlan) -> dict[str, Any]:
    """What results must have in common to be compared, where it is not the usual."""
    condition: dict[str, Any] = {}
    if plan.item_reviews is not None:
        condition["item_reviews"] = plan.item_reviews
    if plan.item_ratings is not None:
        condition["item_ratings"] = plan.item_ratings
    if plan.missing:
        condition["missing"] = plan.missing
    if plan.target is not None:
        condition["trained_on"] = dataset.name
    return condition


def _runner(
    dataset: Dataset, ratings: Ratings, plan: RatingPlan, terminal: Terminal
) -> Callable[[RatingParts, int], dict[str, Any]]:
    """What runs one split. Encoders that learn nothing from ratings run once for all splits."""
    prepared = encoded_ratings(dataset, ratings, plan.config, plan.options, terminal) if plan.model == LRMM else None
    target = _target(plan, terminal)

    def run(parts: RatingParts, seed: int) -> dict[str, Any]:
        begin = time.perf_counter()
        parts = thinned(ratings, parts, plan.item_ratings)
        terminal.say("the published split" if seed == PUBLISHED else f"split {seed}")
        if prepared is None:
            outcome = _baseline(ratings, thinned(ratings, parts, plan.item_reviews), plan.model, seed, terminal)
        else:
            source = replace(prepared(parts), item_reviews=plan.item_reviews, missing=plan.missing)
            outcome = _lrmm(source, plan, seed, target and target(seed), terminal)
        return run_record(seed, begin, {"metrics": outcome.metrics, **outcome.account})

    return run


def _baseline(ratings: Ratings, parts: RatingParts, model: str, seed: int, terminal: Terminal) -> RatingOutcome:
    data = BaselineRatings(ratings, parts, seed)
    tuning = tune_rating_baseline(
        RATERS[model], data, lambda done, total: terminal.stage(f"{model}, settings", done, total)
    )
    metrics = {"valid rmse": tuning.rmse, **errors(ratings.value[parts.test], tuning.predict(parts.test), FULL)}
    reviews = reviews_of(ratings.user, ratings.item, parts.train, parts.test)
    difference = np.clip(tuning.predict(parts.test), LOWEST, HIGHEST) - ratings.value[parts.test]
    account = {"setting": dict(tuning.setting), "by_amount": errors_by_amount(reviews, difference)}
    return RatingOutcome(metrics, account)


def _target(plan: RatingPlan, terminal: Terminal) -> Callable[[int], Target] | None:
    """What makes the split of a target by its seed. Its sentences are encoded once."""
    if plan.target is None:
        return None
    ratings = Ratings.of(plan.target)
    published = published_parts(plan.target, ratings)
    sentences = review_sentences(ratings, plan.config, plan.options, terminal)
    texts = described_items(plan.target)

    def split(seed: int) -> Target:
        parts = published if seed == PUBLISHED and published else random_parts(len(ratings), seed)
        return Target(ratings, parts, None if sentences is None else sentences[0], texts)

    return split


def _lrmm(
    source: RatingSource, plan: RatingPlan, seed: int, target: Target | None, terminal: Terminal
) -> RatingOutcome:
    trainer = plan.trainer.model_copy(update={"seed": seed})
    trained = train_form(source, plan.config, trainer, terminal=terminal)
    test = trained.test if target is None else transferred(trained.serving, target)
    metrics = {"valid rmse": trained.result.best["rmse[+F]"], **measured(trained.serving, test)}
    account = {
        **training_record(trained.result),
        "by_amount": errors_by_amount(test.review_count, predicted(trained.serving.model, test) - test.value),
    }
    if seed == FIRST:
        account["reconstructions"] = reconstructions(trained.serving, test)
    return RatingOutcome(metrics, account)


def errors(truth: Double, predicted: Double, regime: str) -> dict[str, float]:
    """RMSE and MAE of predictions, cut to 1..5, under the names of a regime."""
    difference = truth - np.clip(predicted, LOWEST, HIGHEST)
    return {
        f"rmse[{regime}]": float(np.sqrt(np.mean(difference**2))),
        f"mae[{regime}]": float(np.mean(np.abs(difference))),
    }
