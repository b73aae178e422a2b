"""IRIS for the trainer: members' latent factors first, with equal interests; then interests and factors together.

The loss is the log loss with K sampled negatives for each positive (eq. 12), in expectation over the samples: every
item that is not in the user's history is weighted by how often it would be drawn. So the gradient has no sampling
noise, and many users are scored for many targets at once. Entries of the histories are dropped at random (dropout).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor
from torch.nn import init

from models.iris.config import IRISConfig
from models.iris.model import IRIS, Histories
from models.iris.serving import IRISServing
from training.baselines.ranking import fitted_als
from training.held_out import PairScores, measured
from training.iris.paper import PaperTask, paper_module
from training.iris.source import PAPER_ONLY, IRISTraining, TopNSource, table_scores
from training.progress import Terminal
from training.trainer import TrainerConfig, TrainingResult, falling_share, train

MEMBERS = 100  # more than there ever are, so that no two of them share a seed
FEWEST_STEPS = 10  # of an epoch of a member
CONSTANT_FRACTION = 2 / 3  # of a member's epochs, after which its learning rate begins to fall
BIAS_SCALE = 0.224  # of an item's users relative to the mean item's, whose logarithm its bias starts at
ALS_SCALE = 27.0  # from similarities by ALS to log-odds,
LARGEST_SCORE = 1.0  # which are in the mean at most so large: where items are few, all of them are similar
# The highest learning rate of a member, times the root of the users in a step, over d: few users say much by chance,
# and Adam's steps, as large for that, move a score in every component at once. At higher rates, factors grew without
# bound on small data.
STEADY_RATE = 0.17
USERS_AT_ONCE = 8192
TARGETS_AT_ONCE = 8192
FIRST_INTEREST = 0.1  # spread of h at the start


# --- tasks -----------------------------------------------------------------------------------------------------------


def expected_log_loss(scores: Tensor, positive: Tensor, negative_weight: Tensor) -> Tensor:
    """The log loss of a batch, per positive, in expectation over sampled negatives. (eq. 12)

    Args:
        scores: `[u, b]`. positive: 0 or 1, `[u, b]`. negative_weight: of an item outside the history, `[u, 1]`.
    """
    positives = F.softplus(-scores) * positive
    negatives = F.softplus(scores) * (1 - positive) * negative_weight
    return (positives + negatives).sum() / positive.sum().clamp_min(1)


@dataclass(frozen=True)
class Stage:
    """How one stage of the training goes.

    Attributes:
        scores: of targets `[b]` for histories `[u, n]`, `[u, b]`.
        parameters: groups of parameters, each with its learning rate.
        users, targets: how many of them a step takes.
        epochs: after which the rates have come down to nothing.
        constant_fraction: share of the epochs before the rates begin to fall.
    """

    scores: Callable[[Histories, Tensor], Tensor]
    parameters: list[tuple[list[torch.nn.Parameter], float]]
    users: int
    targets: int
    epochs: int
    constant_fraction: float

    def share(self, epochs: float) -> float:
        """The share of the learning rates that holds after so many epochs."""
        return falling_share(epochs / self.epochs, self.constant_fraction)


class IRISTask:
    """One stage of IRIS for the trainer."""

    def __init__(self, source: TopNSource, module: IRIS, config: IRISTraining, stage: Stage, seed: int) -> None:
        self.module = module
        self._source, self._config, self._stage, self._seed = source, config, stage, seed
        self._histories = source.histories
        length, n = self._histories.length, len(source.items)
        self._negative_weight = config.negatives * length / (n - length).clamp_min(1)
        self._optimizer = torch.optim.Adam([{"params": group, "lr": rate} for group, rate in stage.parameters])

    def train_epoch(self, epoch: int, progress: Callable[[int, int], None]) -> dict[str, float]:
        """One pass over the users and the targets."""
        rng = np.random.default_rng((self._seed, epoch))
        steps = list(self._steps(rng))
        total = 0.0
        for done, (users, targets) in enumerate(steps):
            share = self._stage.share(epoch - 1 + done / len(steps))
            for group, (_, rate) in zip(self._optimizer.param_groups, self._stage.parameters, strict=True):
                group["lr"] = rate * share
            histories = self._histories if len(users) == len(self._source.users) else self._histories.select(users)
            scores = self._stage.scores(histories.dropped(self._config.drop, rng), targets)
            loss = expected_log_loss(scores, histories.own(targets), self._negative_weight[users])
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            total += float(loss.detach())
            progress(done + 1, len(steps))
        return {"loss": total / len(steps)}

    def _steps(self, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        users, targets = len(self._source.users), len(self._source.items)
        in_order = users <= self._stage.users  # all of them at once need no shuffling
        order = np.arange(users) if in_order else rng.permutation(users)
        for user_batch in torch.split(torch.from_numpy(order), self._stage.users):
            for target_batch in torch.split(torch.from_numpy(rng.permutation(targets)), self._stage.targets):
                yield user_batch, target_batch

    def validate(self) -> dict[str, float]:
        """Hit rates and NDCG on the validation part."""
        return measured(self.scorer(), self._source.held_out.valid)

    @torch.no_grad()
    def scorer(self) -> PairScores:
        """Scores of any items for users, after their training histories."""
        at_once = self._stage.targets
        return table_scores(lambda part: self._stage.scores(self._histories, part), len(self._source.items), at_once)

    def state(self) -> dict[str, Any]:
        """The optimiser's state; what is random depends on the epoch alone."""
        return {"optimizer": self._optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self._optimizer.load_state_dict(state["optimizer"])


# --- factors ---------------------------------------------------------------------------------------------------------


def _initial_member(source: TopNSource, config: IRISConfig, training: IRISTraining, member: int, seed: int) -> IRIS:
    """A model of one member and without content, before it is trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash((seed, member)) % 2**31)
        module = IRIS(config.model_copy(update={"members": 1, "reads": ()}), [], len(source.items))
    count = np.bincount(source.held_out.train[:, 1], minlength=len(source.items))
    relative = torch.from_numpy((count + 1) / (count + 1).mean()).float()
    with torch.no_grad():
        module.item_bias.copy_((relative * BIAS_SCALE).log())
        if member < training.from_als:
            start = als_similarity(source, config.embedding_size, training, seed + member)
            module.p.copy_(start)
            module.q.copy_(start)
            mean = float(
                (module.equal_score(source.histories, torch.arange(len(start))) - module.item_bias).abs().mean()
            )
            for factors in (module.p, module.q):
                factors.mul_(min(1.0, LARGEST_SCORE / max(mean, 1e-12)) ** 0.5)
    return module


def als_similarity(source: TopNSource, size: int, training: IRISTraining, seed: int) -> Tensor:
    """Factors `[n, d]` whose products are how ALS would fold an item into an average user.

    ALS scores j for u by alpha v_j (V'V + (alpha - 1) V_u'V_u + penalty I)^-1 times the sum of v_i over H_u. With one
    V_u'V_u for all, that of a random history half as long as the median, this is a similarity of items, v_i M v_j.
    """
    histories = source.histories
    weight, penalty = training.als_weight, training.als_penalty
    _, items = fitted_als(histories.rows.matrix, factors=size, regularization=penalty, alpha=weight, seed=seed)
    v = torch.from_numpy(items).double()
    count = torch.from_numpy(np.asarray(histories.rows.matrix.sum(axis=0), np.float64))
    typical = (v.T * (count / count.sum())) @ v * float(histories.length.median()) / 2
    gram = v.T @ v + (weight - 1) * typical + penalty * torch.eye(size)
    values, axes = torch.linalg.eigh(gram)
    start: Tensor = (v @ (axes / values.sqrt())).float() * ALS_SCALE
    return start


def member_settings(source: TopNSource, config: IRISConfig, training: IRISTraining, trainer: TrainerConfig) -> str:
    """All that members depend on: content and interests are not among it."""
    factors = config.embedding_size, config.alpha, config.beta
    learning = training.model_dump(exclude={"tuning_rate", "shuffled", *PAPER_ONLY})
    return repr((source.held_out.fingerprint, factors, learning, trainer.seed, trainer.metric))


def train_member(
    source: TopNSource,
    config: IRISConfig,
    training: IRISTraining,
    trainer: TrainerConfig,
    member: int,
    *,
    terminal: Terminal,
    checkpoint: Path | None = None,
) -> tuple[IRIS, float]:
    """Train one member's factors by themselves, with every interest the same; and in how many seconds.

    Args:
        checkpoint: where its checkpoints go; a finished one is loaded instead of training.
    """
    module = _initial_member(source, config, training, member, trainer.seed)
    from_als = member < training.from_als
    epochs = training.als_epochs if from_als else training.factor_epochs
    rate = training.als_rate if from_als else training.factor_rate
    users = min(training.factor_users, math.ceil(len(source.users) / FEWEST_STEPS))
    learned = [([module.p, module.q, module.item_bias], min(rate, STEADY_RATE * users**0.5 / config.embedding_size))]
    stage = Stage(module.equal_score, learned, users, TARGETS_AT_ONCE, epochs, CONSTANT_FRACTION)
    task = IRISTask(source, module, training, stage, trainer.seed * MEMBERS + member)
    result = train(
        task,
        trainer.model_copy(update={"epochs": epochs, "patience": epochs}),
        fingerprint=f"{member_settings(source, config, training, trainer)} {member}",
        checkpoint_path=checkpoint,
        progress=terminal,
    )
    return module, result.seconds


# --- the whole -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedIRIS:
    """A finished training: what is served, how its last stage went, seconds of all, and scores of users' items."""

    serving: IRISServing
    result: TrainingResult
    seconds: float
    scores: PairScores


def train_iris(
    source: TopNSource,
    config: IRISConfig,
    training: IRISTraining,
    trainer: TrainerConfig,
    *,
    terminal: Terminal,
    fingerprint: str = "",
    checkpoint: Path | None = None,
    members_at: Callable[[int], Path] | None = None,
) -> TrainedIRIS:
    """Train the form that is configured; validation chooses the epoch of each stage. An interrupted training goes on
    where it was.

    Args:
        fingerprint: names data and configuration; a checkpoint of another one is ignored.
        checkpoint: where that of the interests goes, or of the paper's form.
        members_at: where those of the members go, by their number.

    Raises:
        UnknownMetricError: validation does not give the metric that is to decide.
    """
    seconds = 0.0
    task: PaperTask | IRISTask
    if config.form == "paper":
        task = PaperTask(source, paper_module(source, config, trainer.seed), training, trainer)
    else:
        members, seconds = _members(source, config, training, trainer, terminal, members_at)
        task = _interests(source, _joined(source, config, members, trainer.seed), training, trainer)
        terminal.say("interests")
    result = train(task, trainer, fingerprint=fingerprint, checkpoint_path=checkpoint, progress=terminal)
    warm = torch.zeros(len(source.items), dtype=torch.bool)
    warm[torch.from_numpy(np.unique(source.held_out.train[:, 1]))] = True
    signals, present = source.read_by(task.module)
    task.module.fit_prediction(signals, present, warm)
    return TrainedIRIS(IRISServing(task.module, source.items), result, seconds + result.seconds, task.scorer())


def _members(
    source: TopNSource,
    config: IRISConfig,
    training: IRISTraining,
    trainer: TrainerConfig,
    terminal: Terminal,
    members_at: Callable[[int], Path] | None,
) -> tuple[list[IRIS], float]:
    """The trained members, and the seconds of all."""
    members, seconds = [], 0.0
    for number in range(config.members):
        terminal.say(f"factors {number + 1} of {config.members}")
        path = None if members_at is None else members_at(number)
        module, taken = train_member(source, config, training, trainer, number, terminal=terminal, checkpoint=path)
        members.append(module)
        seconds += taken
    return members, seconds


def _joined(source: TopNSource, config: IRISConfig, members: list[IRIS], seed: int) -> IRIS:
    """The whole model with the members' factors side by side, so that their mean similarity counts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = IRIS(config, source.content.specs, len(source.items))
        init.normal_(module.h, 0, FIRST_INTEREST)
    scale = len(members) ** -0.5
    with torch.no_grad():
        module.p.copy_(torch.cat([member.p for member in members], dim=1) * scale)
        module.q.copy_(torch.cat([member.q for member in members], dim=1) * scale)
        module.item_bias.copy_(torch.stack([member.item_bias for member in members]).mean(dim=0))
    return module


def _interests(source: TopNSource, module: IRIS, training: IRISTraining, trainer: TrainerConfig) -> IRISTask:
    source.fit(module)
    signals, present = source.read_by(module)

    def scores(histories: Histories, targets: Tensor) -> Tensor:
        return module.score(histories, module.similarities(*module.roles(signals, present), targets))

    factors = [module.p, module.q, module.item_bias]
    others = [tensor for tensor in module.parameters() if all(tensor is not factor for factor in factors)]
    rates = [(factors, training.tuning_rate), (others, trainer.learning_rate)]
    stage = Stage(scores, rates, USERS_AT_ONCE, trainer.batch_size, trainer.epochs, 0.0)
    return IRISTask(source, module, training, stage, trainer.seed)
