"""One trainer for every model: epochs, early stopping, progress, checkpoints that resume to the same result."""

from __future__ import annotations

import ctypes
import logging
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field

from models.renamed import OldNames
from training import checkpoint

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

OLD_NAMES: OldNames = {"steady": "constant_fraction", "averaging": "polyak_averaging"}


class TrainerConfig(BaseModel):
    """How to train, whatever the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(30, ge=1, description="at most so many")
    batch_size: int = Field(4096, ge=1)
    learning_rate: float = Field(1e-2, gt=0)
    constant_fraction: float = Field(
        0.0, ge=0, le=1, description="share of the epochs before the learning rate begins to fall to nothing"
    )
    patience: int = Field(20, ge=1, description="evaluations without a better result before stopping")
    evaluate_every: int = Field(1, ge=1, description="epochs between evaluations")
    smoothing: int = Field(5, ge=1, description="evaluations whose mean decides: one alone may be best by chance")
    tolerance: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="what the metric may lack of the best, relatively, for a later epoch to be preferred",
    )
    polyak_averaging: float | None = Field(
        None,
        ge=0,
        description="weights are their mean over the epochs, each by its number to this power; null: the last",
    )
    metric: str = Field("recall@20", description="the validation metric that decides, higher is better")
    seed: int = Field(0, ge=0)
    device: str = "cpu"
    autocast: bool = Field(False, description="on CUDA, bfloat16 where torch holds it to be precise enough")

    def rate(self, epochs: float) -> float:
        """The learning rate after so many epochs: constant first, then falling linearly to zero at the last."""
        return self.learning_rate * falling_share(epochs / self.epochs, self.constant_fraction)


def falling_share(passed: float, constant_fraction: float) -> float:
    """The share of a learning rate that holds after a share of the training has `passed`: 1 for the
    constant fraction of it, then falling linearly to 0."""
    if passed <= constant_fraction:
        return 1.0
    return max(0.0, (1 - passed) / (1 - constant_fraction))


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of an optimiser this learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate


class UnknownMetricError(ValueError):
    """The metric that is to decide is none of those that validation gives; the message is one sentence."""


class Task(Protocol):
    """What a model brings to the trainer."""

    @property
    def module(self) -> torch.nn.Module:
        """The module whose best weights are kept."""

    def train_epoch(self, epoch: int, progress: Callable[[int, int], None]) -> dict[str, float]:
        """One pass over the training data; answers the mean of each loss. `progress(done, total)` counts steps."""

    def validate(self) -> dict[str, float]:
        """Metrics on the validation part."""

    def state(self) -> dict[str, Any]:
        """Everything besides the module that the next epoch depends on (optimisers, random states, graphs)."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""


class Progress(Protocol):
    """Who is told how training goes."""

    def start(self, epochs: int) -> None: ...

    def step(self, done: int, total: int) -> None: ...

    def epoch(self, epoch: int, losses: dict[str, float], metrics: dict[str, float], best: float) -> None: ...

    def finish(self, message: str) -> None: ...


@dataclass
class TrainingResult:
    """How a training went.

    `history` has an entry per epoch: its losses and, where it was evaluated, metrics. `best` are the validation
    metrics of the epoch whose weights the module holds now.
    """

    best_epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)
    epochs: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """Which epoch was the best, in words."""
        return f"best epoch {self.best_epoch} of {self.epochs}"

    @property
    def seconds_per_epoch(self) -> float:
        """Mean wall-clock seconds of an epoch, validation included."""
        return self.seconds / max(self.epochs, 1)


def train(
    task: Task,
    config: TrainerConfig,
    *,
    fingerprint: str = "",
    checkpoint_path: Path | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train until the metric has not improved for `patience` evaluations, then put the best weights back.

    After every epoch a checkpoint is written; a run that finds one with the same fingerprint goes on from there and
    ends with the same bits as an uninterrupted one.

    Args:
        fingerprint: names data and configuration; a checkpoint of another one is ignored.

    Raises:
        FloatingPointError: the training diverged.
        UnknownMetricError: validation does not give the metric that is to decide.
    """
    keep_freed_memory()
    result, best_state, start = TrainingResult(), task_weights(task), 1
    average = PolyakAverage(task, config.polyak_averaging)
    resumed = _resume(task, average, checkpoint_path, fingerprint)
    if resumed is not None:
        result, best_state, start = resumed
    if progress:
        progress.start(config.epochs)
    best = _best_so_far(result, config)
    for epoch in range(start, config.epochs + 1):
        if epoch - 1 - result.best_epoch >= config.patience * config.evaluate_every:
            break
        begin = time.perf_counter()
        losses = _train_epoch(task, epoch, progress.step if progress else _ignore)
        average.add(epoch)
        with average.in_place():
            metrics = _evaluated(task, config, epoch)
            result.history.append({"epoch": epoch, "losses": losses, "metrics": metrics})
            if metrics and _is_preferred(score := _recent(result, config, epoch), best, config.tolerance):
                best = max(best, score)
                result.best, result.best_epoch, best_state = metrics, epoch, task_weights(task)
        result.epochs, result.seconds = epoch, result.seconds + time.perf_counter() - begin
        if progress:
            progress.epoch(epoch, losses, metrics, best)
        if checkpoint_path:
            _save(checkpoint_path, task, average, fingerprint, result, best_state)
    task.module.load_state_dict(best_state)
    if progress:
        progress.finish(f"{result.summary}: {config.metric} {result.best.get(config.metric, math.nan):.4f}")
    return result


def _best_so_far(result: TrainingResult, config: TrainerConfig) -> float:
    evaluated = [past["epoch"] for past in result.history if past["metrics"]]
    return max((_recent(result, config, epoch) for epoch in evaluated), default=-math.inf)


def _train_epoch(task: Task, epoch: int, progress: Callable[[int, int], None]) -> dict[str, float]:
    losses = task.train_epoch(epoch, progress)
    if not (all(map(math.isfinite, losses.values())) and _finite(task)):
        raise FloatingPointError(f"training diverged in epoch {epoch}: {losses}")
    return losses


def _evaluated(task: Task, config: TrainerConfig, epoch: int) -> dict[str, float]:
    """The metrics after an epoch; none where it is not evaluated."""
    metrics = task.validate() if epoch % config.evaluate_every == 0 or epoch == config.epochs else {}
    if metrics and config.metric not in metrics:
        raise UnknownMetricError(f"there is no metric {config.metric!r}; there are {', '.join(metrics)}")
    return metrics


def _is_preferred(score: float, best: float, tolerance: float) -> bool:
    """Whether a later epoch takes the place of the best so far. So much less is within what a metric varies by, and
    weights are the steadier the further the learning rate has fallen."""
    return score > best or (tolerance > 0 and score >= best - tolerance * abs(best))


def _recent(result: TrainingResult, config: TrainerConfig, epoch: int) -> float:
    """What decides at an epoch: the mean of the metric over the last evaluations up to it."""
    seen = [past["metrics"][config.metric] for past in result.history if past["metrics"] and past["epoch"] <= epoch]
    recent = seen[-config.smoothing :]
    return sum(recent) / len(recent) if recent else -math.inf


def keep_freed_memory() -> None:
    """Let this process keep the large blocks that it frees, where the C library is glibc.

    A step takes and frees tensors of some megabytes again and again. By default each goes back to the kernel, which
    hands it out anew page by page, zeroed; that was a third of a step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most that glibc takes
    mallopt(_M_TRIM_THRESHOLD, 2**30)


class PolyakAverage:
    """The mean of a task's parameters over the epochs, epoch t by t to a power: Polyak averaging with the weight on the
    later ones (Shamir and Zhang, ICML 2013). One epoch's weights are off the mark by what its last batches held; where
    the metric hangs on few items, that is much. Nothing is averaged where the power is None."""

    def __init__(self, task: Task, power: float | None) -> None:
        self._parameters, self._power = dict(task.module.named_parameters()), power
        self._total = 0.0
        self._mean: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def add(self, epoch: int) -> None:
        """Take the present parameters in."""
        if self._power is None:
            return
        weight = float(epoch) ** self._power
        self._total += weight
        for name, parameter in self._parameters.items():
            if name in self._mean:
                self._mean[name].lerp_(parameter, weight / self._total)
            else:
                self._mean[name] = parameter.detach().clone()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """For as long as this lasts, the parameters are the mean."""
        own = {name: parameter.detach().clone() for name, parameter in self._parameters.items() if name in self._mean}
        self._set(self._mean)
        try:
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def _set(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self._parameters[name].copy_(value)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"total": self._total, "mean": self._mean}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self._total, self._mean = state["total"], dict(state["mean"])


def task_weights(task: Task) -> dict[str, torch.Tensor]:
    """A copy of the module's parameters and buffers."""
    return {key: value.detach().clone() for key, value in task.module.state_dict().items()}


def _finite(task: Task) -> bool:
    """The last step may spoil weights after its loss was taken."""
    return all(bool(weights.isfinite().all()) for weights in task.module.parameters())


def peak_memory_mb() -> float:
    """Peak resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _ignore(done: int, total: int) -> None:
    """No one watches."""


def _save(
    path: Path,
    task: Task,
    average: PolyakAverage,
    fingerprint: str,
    result: TrainingResult,
    best_state: dict[str, torch.Tensor],
) -> None:
    checkpoint.save(
        path,
        {
            "fingerprint": fingerprint,
            "module": task_weights(task),
            "task": task.state(),
            "average": average.state(),
            "best_state": best_state,
            "result": vars(result),
        },
    )


def _resume(
    task: Task, average: PolyakAverage, path: Path | None, fingerprint: str
) -> tuple[TrainingResult, dict[str, torch.Tensor], int] | None:
    if path is None or not path.is_file():
        return None
    try:
        tree = checkpoint.load(path)
    except checkpoint.CheckpointError as error:
        log.warning("%s; training starts anew", error)
        return None
    if tree.get("fingerprint") != fingerprint:
        log.warning("%s is of another run; training starts anew", path)
        return None
    task.module.load_state_dict(tree["module"])
    task.load_state(tree["task"])
    average.load_state(tree["average"])
    result = TrainingResult(**tree["result"])
    log.info("resuming after epoch %d from %s", result.epochs, path)
    return result, tree["best_state"], result.epochs + 1
