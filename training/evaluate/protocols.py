"""The protocols: what is withheld, what runs, what is counted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.arrays import Rows
from models.dgmrec.config import DGMRecConfig
from models.graph import InteractionGraphs
from models.imputers import IMPUTERS, impute, tuned
from models.modality import ModalBatch
from training.baselines.peers import RANKERS
from training.baselines.ranking import BaselineData, tune
from training.content import DataOptions, Prepared, no_content, prepare_features, withheld_cells
from training.datasets.base import Dataset
from training.dgmrec.choice import Choice, Trial
from training.dgmrec.placement import choose_new_offset
from training.dgmrec.recipe import chosen_settings, split_parts, train_dgmrec, with_chosen_offset
from training.dgmrec.task import DGMRecTask
from training.evaluate.measures import ranking_by_level, ranking_of_new, retrieval
from training.evaluate.posted import measure_posted, without_new
from training.evaluate.result import Measured, result_of, run_record, training_record
from training.evaluate.search import search_page
from training.masking import levels
from training.metrics import ScoreFunction, rank_all, summarise
from training.progress import Terminal
from training.splits import Parts, draw_new_items, validation_parts
from training.titles import TitleAsText
from training.trainer import TrainerConfig, TrainingResult


class Protocol(StrEnum):
    """What is measured."""

    MISSING = "missing"
    NEW_ITEMS = "new-items"
    POSTED = "posted"
    RATIO = "ratio"
    RETRIEVAL = "retrieval"
    STRANGER = "stranger"
    RATING = "rating"
    LEAVE_ONE_OUT = "leave-one-out"


WITH_NEW_ITEMS = (Protocol.NEW_ITEMS, Protocol.POSTED)
RATIOS = (0.0, 0.2, 0.4, 0.6, 0.8)
COLLABORATIVE = "collaborative"  # DGMRec without any modality: its loss and its start
LEARNED = ("dgmrec", COLLABORATIVE)
RANKING_MODELS = (*LEARNED, *RANKERS)
GENERATING_MODELS = ("dgmrec", *IMPUTERS)
FITTING = {Protocol.RETRIEVAL: GENERATING_MODELS, Protocol.POSTED: ("dgmrec",)}
MODELS = tuple(dict.fromkeys((*RANKING_MODELS, *IMPUTERS)))


class EvaluationError(ValueError):
    """A measurement that makes no sense; the message is one sentence."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        model: one of `MODELS`; imputers only under the protocol retrieval, baselines only under the others.
        options: which cells are withheld; the protocol ratio sets `missing` itself.
        configs: of the learned models.
        imputer: fills the cells that dgmrec or content would find missing before it sees them.
        validation_only: new items are drawn for each seed among the items that the dataset does not publish as new, and
            the test part stays unseen: what they are ranked for is their training interactions and the validation part.
            Settings for new items are chosen so.
        budget: under the protocol stranger, seconds for dgmrec to choose its settings in.
        pinned: names of the settings that it does not choose.

    Raises:
        EvaluationError: the parts do not fit together.
    """

    model: str
    protocol: Protocol
    options: DataOptions
    configs: tuple[DGMRecConfig, TrainerConfig]
    imputer: str | None = None
    validation_only: bool = False
    budget: float = 0.0
    pinned: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.protocol is Protocol.RATING:
            raise EvaluationError("ratings are measured by evaluate_rating")
        if self.protocol is Protocol.LEAVE_ONE_OUT:
            raise EvaluationError("leave-one-out is measured by evaluate_leave_one_out")
        fitting = FITTING.get(self.protocol, RANKING_MODELS)
        if self.model not in fitting:
            raise EvaluationError(
                f"the protocol {self.protocol.value} has no model {self.model!r}; it has {', '.join(fitting)}"
            )
        if self.imputer is not None and self.imputer not in IMPUTERS:
            raise EvaluationError(f"there is no imputer {self.imputer!r}; there are {', '.join(IMPUTERS)}")
        if self.imputer is not None and (self.protocol is Protocol.RETRIEVAL or not self.reads_content):
            raise EvaluationError(f"an imputer has no use for {self.model} under the protocol {self.protocol.value}")
        if self.validation_only and self.protocol not in WITH_NEW_ITEMS:
            raise EvaluationError(
                f"the protocol {self.protocol.value} has no new items to draw others for validation only"
            )
        withheld = bool(self.options.missing or self.options.mask or self.options.levels)
        if self.protocol in (Protocol.STRANGER, Protocol.POSTED) and withheld:
            raise EvaluationError(f"the protocol {self.protocol.value} withholds no cells")
        if self.budget and self.protocol is not Protocol.STRANGER:
            raise EvaluationError(f"the protocol {self.protocol.value} takes settings as they are given")
        if self.protocol is Protocol.RATIO and withheld:
            raise EvaluationError("the protocol ratio chooses the shares of missing cells itself")

    @property
    def reads_content(self) -> bool:
        """Whether the model looks at features at all."""
        if self.model in RANKERS:
            return RANKERS[self.model].content
        return self.model != COLLABORATIVE and self.configs[0].modal

    def seeded(self, seed: int) -> Plan:
        """The same for one seed."""
        config, trainer = self.configs
        config = config.model_copy(update={"seed": seed, "modal": config.modal and self.model != COLLABORATIVE})
        trainer = trainer.model_copy(update={"seed": seed})
        return replace(self, options=replace(self.options, seed=seed), configs=(config, trainer))

    def with_missing(self, share: float) -> Plan:
        """The same as the protocol missing with this share of the cells withheld."""
        return replace(self, protocol=Protocol.MISSING, options=replace(self.options, missing=share))


@dataclass(frozen=True)
class Outcome:
    """One seed's figures, and what else a result says of the run."""

    metrics: dict[str, float]
    training: TrainingResult | None = None
    setting: Mapping[str, Any] | None = None
    trials: Sequence[Trial] = ()
    titles: Mapping[str, Any] | None = None  # how many items have a title and no text, and whether it counts as one


def evaluate(
    dataset: Dataset,
    plan: Plan,
    *,
    seeds: int,
    variant: str | None,
    command: str,
    terminal: Terminal,
) -> dict[str, Any]:
    """Run a protocol for seeds 1, 2, ...: each draws its own cells to withhold and new items (unless the dataset
    publishes them), its own initial weights and batches. The split is the dataset's where it has one.

    Raises:
        EvaluationError, BaselineError, and what `prepare_features` and `split_parts` raise.
    """
    runs = [_run(dataset, plan.seeded(seed), seed, terminal) for seed in range(1, seeds + 1)]
    device = plan.configs[1].device if plan.model in LEARNED else "cpu"
    measured = Measured(plan.protocol.value, dataset.name, dataset.synthetic, plan.model, variant, command, device)
    return result_of(measured, _config(plan, runs), runs)


def _config(plan: Plan, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Settings of the model (or its grid and what each seed chose), and which cells are withheld."""
    config: dict[str, Any] = {}
    if plan.model in LEARNED:
        model, trainer = plan.seeded(0).configs
        config |= {"model": model.model_dump(exclude={"seed"}), "trainer": trainer.model_dump(exclude={"seed"})}
        if plan.budget:
            config |= {"chosen": [{"seed": run["seed"], **run["setting"]} for run in runs]}
    else:
        grid = RANKERS[plan.model].grid if plan.model in RANKERS else IMPUTERS[plan.model].settings
        config |= {"grid": [dict(setting) for setting in grid]}
        config |= {"chosen": [{"seed": run["seed"], **run["setting"]} for run in runs if "setting" in run]}
    titles = plan.options.title_as_text
    return config | {
        "missing": list(RATIOS) if plan.protocol is Protocol.RATIO else plan.options.missing,
        "mask": plan.options.mask,
        "levels": plan.options.levels,
        "imputer": plan.imputer,
        **({"validation_only": True} if plan.validation_only else {}),
        **({"split": plan.options.split.value, "budget": plan.budget} if plan.protocol is Protocol.STRANGER else {}),
        "image_encoder": plan.options.image_encoder,
        **({} if titles is TitleAsText.YES else {"title_as_text": titles.value}),
    }


def _run(dataset: Dataset, plan: Plan, seed: int, terminal: Terminal) -> dict[str, Any]:
    begin = time.perf_counter()
    terminal.say(f"seed {seed}")
    if plan.protocol is Protocol.RATIO:
        outcomes = {}
        for share in RATIOS:
            terminal.say(f"{share:.0%} of the cells missing")
            outcomes[f"missing={share:.0%}"] = _rank(dataset, plan.with_missing(share), terminal)
        run = _merged(outcomes)
    elif plan.protocol is Protocol.RETRIEVAL:
        run = _account(_retrieve(dataset, plan, terminal))
    else:
        run = _account(_rank(dataset, plan, terminal))
    return run_record(seed, begin, run)


def _account(outcome: Outcome) -> dict[str, Any]:
    account: dict[str, Any] = {"metrics": outcome.metrics}
    if outcome.training is not None:
        account |= training_record(outcome.training)
    if outcome.setting is not None:
        account["setting"] = dict(outcome.setting)
    if outcome.titles is not None:
        account["titles"] = dict(outcome.titles)
    if outcome.trials:
        account["trials"] = [asdict(trial) for trial in outcome.trials]
    return account


def _merged(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """One account of several outcomes: metrics carry their label, the rest stands by label."""
    accounts = {label: _account(outcome) for label, outcome in outcomes.items()}
    merged: dict[str, Any] = {
        "metrics": {
            f"{name}[{label}]": value
            for label, account in accounts.items()
            for name, value in account["metrics"].items()
            if "[level=" not in name
        }
    }
    rest = sorted({name for account in accounts.values() for name in account} - {"metrics"})
    return merged | {name: {label: account[name] for label, account in accounts.items()} for name in rest}


# --- E1: ranking -----------------------------------------------------------------------------------------------------


def _rank(dataset: Dataset, plan: Plan, terminal: Terminal) -> Outcome:
    new_items = new_items_of(dataset, plan)
    parts = split_parts(dataset, plan.options.seed, new_items, plan.options.split)
    if plan.validation_only:
        parts = validation_parts(split_parts(dataset, plan.options.seed), parts)
    prepared = prepared_content(dataset, plan, parts, terminal)
    if plan.protocol is Protocol.POSTED:
        assert new_items is not None
        outcome = _post(dataset, plan, parts, prepared.batch, new_items, terminal)
        return replace(outcome, titles=_titles(prepared))
    scores, outcome = _fit(dataset, plan, parts, prepared, terminal)
    outcome = replace(outcome, titles=_titles(prepared))
    ranks = rank_all(scores, parts.test, parts.train)
    if new_items is not None:
        return replace(outcome, metrics=outcome.metrics | ranking_of_new(ranks, new_items))
    if plan.protocol is Protocol.STRANGER:
        hits = {"hits@20": float(ranks.hits(20).sum())}
        return replace(outcome, metrics=outcome.metrics | summarise(ranks) | hits)
    if plan.protocol is not Protocol.MISSING:
        return replace(outcome, metrics=outcome.metrics | summarise(ranks))
    level = levels(dataset.observed() & ~prepared.withheld)
    return replace(outcome, metrics=outcome.metrics | ranking_by_level(ranks, level))


def new_items_of(dataset: Dataset, plan: Plan) -> Rows | None:
    """Rows of the items that the plan holds out of training: the published ones, or drawn from the seed."""
    if plan.protocol not in WITH_NEW_ITEMS:
        return None
    rng = np.random.default_rng(plan.options.seed)
    if dataset.new_items is None:
        return draw_new_items(len(dataset.items), rng)
    if not plan.validation_only:
        return dataset.new_items
    others = np.setdiff1d(np.arange(len(dataset.items)), dataset.new_items)
    return np.sort(rng.permutation(others)[: len(dataset.new_items)])


def prepared_content(dataset: Dataset, plan: Plan, parts: Parts, terminal: Terminal) -> Prepared:
    """Features with holes for the models that read them, filled if an imputer is asked for."""
    if not plan.reads_content or (plan.protocol is Protocol.STRANGER and not dataset.modalities):
        nothing = no_content(dataset)
        return Prepared(nothing, nothing, withheld_cells(dataset, plan.options), {})
    prepared = prepare_features(dataset, plan.options, terminal)
    if plan.imputer is None:
        return prepared
    return replace(prepared, batch=filled_content(prepared.batch, plan, _graphs(dataset, parts)))


def _titles(prepared: Prepared) -> dict[str, Any] | None:
    return {"items": prepared.titled, "as_text": prepared.title_as_text} if prepared.titled else None


def filled_content(batch: ModalBatch, plan: Plan, graphs: InteractionGraphs) -> ModalBatch:
    """The batch with every cell imputed and taken for real, but for a modality that nobody has."""
    assert plan.imputer is not None
    setting = tuned(batch, plan.imputer, graphs, seed=plan.options.seed)
    had = batch.observed.any(dim=0).expand_as(batch.observed)
    return ModalBatch(impute(batch, plan.imputer, graphs, setting), had.clone())


def _graphs(dataset: Dataset, parts: Parts) -> InteractionGraphs:
    users, items = parts.train.T
    return InteractionGraphs.build(users, items, len(dataset.users), len(dataset.items))


def _fit(
    dataset: Dataset, plan: Plan, parts: Parts, prepared: Prepared, terminal: Terminal
) -> tuple[ScoreFunction, Outcome]:
    if plan.model in RANKERS:
        data = BaselineData(parts, len(dataset.users), len(dataset.items), prepared.batch)
        tuning = tune(
            RANKERS[plan.model],
            data,
            metric=plan.configs[1].metric,
            progress=lambda done, total: terminal.stage(f"{plan.model}, settings", done, total),
        )
        metrics = {f"valid {name}": value for name, value in tuning.valid.items()}
        return tuning.scores, Outcome(metrics, setting=tuning.setting)
    configs, choice = plan.configs, Choice()
    if plan.budget:
        choice = chosen_settings(dataset, parts, configs, plan.pinned, plan.budget, terminal=terminal)
    config, trainer = choice.apply(*configs)
    config = config.model_copy(update={"modal": config.modal and bool(prepared.batch.names)})
    trained = train_dgmrec(dataset, prepared.batch, config, trainer, parts=parts, terminal=terminal)
    if plan.budget:
        trained = with_chosen_offset(trained, plan.pinned, terminal)
    out, _ = trained.task.final_embeddings()
    users, items = out.users.cpu().numpy(), out.items.cpu().numpy()
    setting = choice.settings if plan.budget else None
    return (lambda rows: users[rows] @ items.T), Outcome(trained.metrics, trained.result, setting, choice.trials)


def _post(
    dataset: Dataset, plan: Plan, parts: Parts, batch: ModalBatch, new_items: Rows, terminal: Terminal
) -> Outcome:
    """Train without the new items, choose where such items stand, and post them."""
    if not batch.names:
        raise EvaluationError("a dataset without content has no new items to post")
    seen = without_new(batch, new_items)
    trained = train_dgmrec(dataset, seen, *plan.configs, parts=parts, terminal=terminal, tested=False)
    if "popularity_offset" not in plan.pinned:
        placed = choose_new_offset(trained.task)
        terminal.say(str(placed))
    chosen = {"popularity_offset": trained.task.config.popularity_offset}
    metrics = measure_posted(trained.task, batch, new_items, dataset)
    return Outcome(trained.metrics | metrics, trained.result, chosen)


# --- E2: retrieval ---------------------------------------------------------------------------------------------------


def _retrieve(dataset: Dataset, plan: Plan, terminal: Terminal) -> Outcome:
    parts = split_parts(dataset, plan.options.seed)
    prepared = prepare_features(dataset, plan.options, terminal)
    if not bool((prepared.complete.observed & ~prepared.batch.observed).any()):
        raise EvaluationError("the protocol retrieval needs withheld cells: give a share, a mask, or leave both out")
    if plan.model in IMPUTERS:
        terminal.say(f"imputing by {plan.model}")
        graphs = _graphs(dataset, parts)
        setting = tuned(prepared.batch, plan.model, graphs, seed=plan.options.seed)
        filled = impute(prepared.batch, plan.model, graphs, setting)
        return Outcome(retrieval(prepared.complete, prepared.batch, filled), setting=setting)
    trained = train_dgmrec(dataset, prepared.batch, *plan.configs, parts=parts, terminal=terminal)
    filled, confidence = generated_content(trained.task, prepared.batch)
    ranking = {name: value for name, value in trained.metrics.items() if "@" in name}
    metrics = ranking | retrieval(prepared.complete, prepared.batch, filled, confidence)
    metrics |= _searches(dataset, trained.task, prepared.batch)
    return Outcome(metrics, trained.result, titles=_titles(prepared))


def _searches(dataset: Dataset, task: DGMRecTask, batch: ModalBatch) -> dict[str, float]:
    """What searches find, by the features that would be served."""
    assert task.content is not None
    scales = {name: task.module.tower(name).search_scale.cpu().numpy() for name in batch.names}
    cold = (task.interactions.item_degree == 0).long().cpu().numpy()
    by_item = {name: scale[cold] for name, scale in scales.items()}
    signals = {name: block.cpu() for name, block in task.content.features.items()}
    categories = [record.get("categories") or () for record in dataset.records]
    return search_page(batch, signals, by_item, categories) | {
        f"search_scale[{name}, {which}]": float(scale[number])
        for name, scale in scales.items()
        for number, which in enumerate(("warm", "cold"))
    }


@torch.no_grad()
def generated_content(task: DGMRecTask, batch: ModalBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Features with every missing cell generated, and the confidence in each: what would be served."""
    if task.content is None:
        raise EvaluationError("a model without modalities generates nothing")
    module, evidence, preference = task.module, task.content.evidence, task.embed().preference
    filled, confidence = {}, {}
    for column, name in enumerate(module.names):
        generation = module.generate(name, evidence, preference)
        raw = module.tower(name).projection.back(generation.features).cpu()
        filled[name] = torch.where(batch.observed[:, [column]], batch.features[name], raw)
        confidence[name] = module.tower(name).confidence(generation).cpu()
    return filled, confidence
