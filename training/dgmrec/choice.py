"""Settings of DGMRec that the user's own data choose, within a budget of time.

Few candidates in a fixed order, the ones that have mattered most first: forms of the collaborative part with their
temperature or penalty, by successive halving (Jamieson and Talwalkar, 2016), then refinements of the best, one at a
time. All are fitted without content, which would take several times as long, and judged by the validation part alone.
For large data a sample of their users chooses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.dgmrec.config import DGMRecConfig
from models.files import replacing
from models.modality import ModalBatch
from training.dgmrec.task import DGMRecTask, TopNData
from training.splits import Parts
from training.trainer import Progress, TrainerConfig, train

Settings = Mapping[str, Any]

TRAINED: tuple[Settings, ...] = (
    {},
    {"collaborative": "autoencoder"},
    {"collaborative": "autoencoder", "ranking_temperature": 0.3},
    {"collaborative": "autoencoder", "ranking_temperature": 0.15},
    {"ranking_temperature": 0.15},
)
CLOSED: tuple[Settings, ...] = (
    {"collaborative": "linear"},
    {"collaborative": "linear", "linear_penalty": 1000.0},
    {"collaborative": "linear", "linear_penalty": 100.0},
)
REFINEMENTS: tuple[Settings, ...] = (
    {"negatives": 2000},
    {"polyak_averaging": 2.0},
)
LINEAR_SIZE = 64
LINEAR_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
FIRST_SHARE = 1 / 3  # of the epochs, in the first round
SURVIVORS = 2
GAIN = 0.005  # by which a refinement must be better, relatively: less is chance
MOST_EPOCHS = 4  # times the configured ones
FEWEST_STEPS = 20  # of an epoch, unless batches would be smaller than `SMALLEST_BATCH`
SMALLEST_BATCH = 256
SAMPLE_PAIRS = 200_000


@dataclass(frozen=True)
class Trial:
    """One candidate that was fitted."""

    settings: dict[str, Any]
    epochs: int
    recall: float
    ndcg: float
    seconds: float

    def is_of(self, settings: Settings) -> bool:
        """Whether it was fitted with these settings, and chose by itself at most the weight of the linear form."""
        own = {name: value for name, value in self.settings.items() if name != "linear_weight"}
        return own == {name: value for name, value in settings.items() if name != "linear_weight"}

    @property
    def score(self) -> float:
        """What decides: the geometric mean of Recall@20 and NDCG@20."""
        return float((self.recall * self.ndcg) ** 0.5)


@dataclass(frozen=True)
class Choice:
    """The settings to train with, and all that was tried for them."""

    settings: dict[str, Any] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()

    def apply(self, config: DGMRecConfig, trainer: TrainerConfig) -> tuple[DGMRecConfig, TrainerConfig]:
        """These configurations with the settings."""
        return with_settings(config, trainer, self.settings)

    @property
    def table(self) -> list[str]:
        """What was tried, in lines."""
        lines = [f"{'tried on the validation part, without content':<58} epochs  recall@20  ndcg@20   s"]
        for trial in self.trials:
            name = named(trial.settings)
            lines.append(f"{name:<58} {trial.epochs:6d}  {trial.recall:9.4f}  {trial.ndcg:7.4f}  {trial.seconds:3.0f}")
        return [*lines, f"chosen: {named(self.settings)}"]


def named(settings: Settings) -> str:
    """Settings in a line."""
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "the defaults"


def with_settings(
    config: DGMRecConfig, trainer: TrainerConfig, settings: Settings
) -> tuple[DGMRecConfig, TrainerConfig]:
    """Both configurations with those of the settings that each has."""
    own = {name: value for name, value in settings.items() if name in DGMRecConfig.model_fields}
    rest = {name: value for name, value in settings.items() if name not in own}
    return DGMRecConfig.model_validate(config.model_dump() | own), trainer.model_copy(update=rest)


class Chooser:
    """Tries candidates for as long as the budget lasts; an interrupted choice goes on with what it has tried."""

    def __init__(
        self,
        data: TopNData,
        configs: tuple[DGMRecConfig, TrainerConfig],
        pinned: frozenset[str],
        budget: float,
        *,
        fingerprint: str = "",
        file: Path | None = None,
        progress: Callable[[str], None] | None = None,
        watch: Callable[[], Progress] | None = None,
    ) -> None:
        """
        Args:
            pinned: names of settings that stay as the configurations have them.
            budget: seconds. What is running when they are over comes to its end.
            fingerprint: names data and configurations; a file of others is ignored.
            file: where the trials are kept until the bundle is made.
            progress: told what is tried.
            watch: makes who is told how one training goes.
        """
        self.config, self.trainer = configs[0].model_copy(update={"modal": False}), configs[1]
        self.pinned, self.budget = pinned, budget
        self.fingerprint, self.file = fingerprint, file
        self.progress, self.watch = progress or (lambda _: None), watch
        nothing = ModalBatch({}, torch.zeros(data.n_items, 0, dtype=torch.bool))
        parts = sample_of_users(data.parts, SAMPLE_PAIRS, np.random.default_rng(self.trainer.seed))
        self.data = TopNData(nothing, parts, data.n_users, data.n_items)
        self.trials: list[Trial] = self._kept()

    def choose(self) -> Choice:
        """Halve the trained forms, compare the best with the closed form and with both side by side, and refine what is
        best."""
        if self.budget <= 0:
            return Choice()
        epochs = self.trainer.epochs
        batch = {} if "batch_size" in self.pinned else small_batch(len(self.data.parts.train), self.trainer.batch_size)
        forms = [{**form, **batch} if form else form for form in TRAINED]
        first = self._fitted(forms, max(1, round(epochs * FIRST_SHARE)))
        survivors = sorted(first, key=lambda trial: -trial.score)[:SURVIVORS]
        closed = self._fitted(CLOSED, 1)
        full = closed + self._fitted([self._beside_linear(trial.settings, closed) for trial in survivors], epochs)
        if not full:
            return Choice(survivors[0].settings if survivors else {}, tuple(self.trials))
        best = self._refined(self._longer(max(full, key=lambda trial: trial.score)))
        # Beside a closed form only content is trained, and soon too well.
        wanted = max(1, round(epochs * FIRST_SHARE)) if self._is_closed(best) else best.epochs
        changed = {"epochs": wanted} if wanted != epochs and "epochs" not in self.pinned else {}
        return Choice({**best.settings, **changed}, tuple(self.trials))

    def _refined(self, best: Trial) -> Trial:
        wider = best.settings.get("embedding_size", self.config.embedding_size) + LINEAR_SIZE
        for change in ({"embedding_size": wider}, *REFINEMENTS):
            if not self._is_closed(best) or "embedding_size" in change:
                for trial in self._fitted([{**best.settings, **change}], best.epochs):
                    best = trial if trial.score > best.score * (1 + GAIN) else best
        return best

    def _beside_linear(self, settings: Settings, closed: Sequence[Trial]) -> dict[str, Any]:
        """An autoencoder's settings with the best closed form beside it; those of another form as they are."""
        form = settings.get("collaborative", self.config.collaborative)
        if form != "autoencoder" or not closed or self.config.ranking != "softmax" or "embedding_size" in self.pinned:
            return dict(settings)
        penalty = max(closed, key=lambda trial: trial.score).settings.get("linear_penalty", self.config.linear_penalty)
        size = settings.get("embedding_size", self.config.embedding_size) + LINEAR_SIZE
        return {**settings, "embedding_size": size, "linear_size": LINEAR_SIZE, "linear_penalty": penalty}

    def _longer(self, best: Trial) -> Trial:
        """The same for twice the epochs, and again, for as long as that is better."""
        if self._is_closed(best) or "epochs" in self.pinned:
            return best
        while best.epochs * 2 <= self.trainer.epochs * MOST_EPOCHS:
            longer = self._fitted([best.settings], best.epochs * 2)
            if not longer or longer[0].score <= best.score * (1 + GAIN):
                break
            best = longer[0]
        return best

    def _is_closed(self, trial: Trial) -> bool:
        """Whether nothing of the collaborative part is trained."""
        form: str = trial.settings.get("collaborative", self.config.collaborative)
        return form == "linear"

    def _fitted(self, candidates: Sequence[Settings], epochs: int) -> list[Trial]:
        """The trials of the candidates; those that there is no time for, or that change what is pinned, are left
        out."""
        trials = []
        for settings in candidates:
            known = [trial for trial in self.trials if trial.epochs == epochs and trial.is_of(settings)]
            if known:
                trials.append(known[0])
            elif not settings.keys() & self.pinned and sum(trial.seconds for trial in self.trials) < self.budget:
                trials.append(self.fit(settings, epochs))
        return trials

    def fit(self, settings: Settings, epochs: int) -> Trial:
        """Train with these settings for so many epochs, and keep how good that was."""
        passed = sum(trial.seconds for trial in self.trials)
        self.progress(f"trying {named(settings)}, epochs={epochs} ({passed:.0f} s of {self.budget:.0f} s)")
        begin = time.perf_counter()
        config, trainer = with_settings(self.config, self.trainer, {**settings, "epochs": epochs})
        task = DGMRecTask(self.data, config, trainer)
        outcomes = [(dict(settings), train(task, trainer, progress=self.watch() if self.watch else None).best)]
        if config.linear_size:  # the weight is free: one training tells of all of them
            outcomes = []
            for weight in LINEAR_WEIGHTS:
                task.weigh_linear(weight)
                outcomes.append(({**settings, "linear_weight": weight}, task.validate()))
        seconds = round(time.perf_counter() - begin, 1)
        trials = [Trial(own, epochs, valid["recall@20"], valid["ndcg@20"], seconds) for own, valid in outcomes]
        self.trials.append(max(trials, key=lambda trial: trial.score))
        self.keep()
        return self.trials[-1]

    # --- what has been tried -----------------------------------------------------------------------------------

    def _kept(self) -> list[Trial]:
        if self.file is None or not self.file.is_file():
            return []
        tree = json.loads(self.file.read_text("utf-8"))
        return [Trial(**trial) for trial in tree["trials"]] if tree["fingerprint"] == self.fingerprint else []

    def keep(self) -> None:
        """Write down what has been tried, for a choice that is interrupted."""
        if self.file is not None:
            tree = {"fingerprint": self.fingerprint, "trials": [asdict(trial) for trial in self.trials]}
            with replacing(self.file) as file:
                file.write_text(json.dumps(tree), "utf-8")


def small_batch(pairs: int, usual: int) -> dict[str, Any]:
    """A `batch_size` that leaves an epoch over so many pairs its steps, where the usual one does not."""
    fitting = max(SMALLEST_BATCH, pairs // FEWEST_STEPS)
    return {"batch_size": fitting} if fitting < usual else {}


def sample_of_users(parts: Parts, most: int, rng: np.random.Generator) -> Parts:
    """The interactions of some of the users: all where there are at most so many in training, else about so many."""
    if len(parts.train) <= most:
        return parts
    users = np.unique(parts.train[:, 0])
    some = rng.permutation(users)[: max(1, round(len(users) * most / len(parts.train)))]
    return Parts(*(pairs[np.isin(pairs[:, 0], some)] for pairs in (parts.train, parts.valid, parts.test)))
