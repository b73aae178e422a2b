"""The trainer: when it stops, which weights it leaves, and that an interruption changes nothing."""

from __future__ import annotations

import itertools
import math
import platform
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.training.tiny import CONFIG, TRAINER, checkerboard
from training import checkpoint
from training.dgmrec.task import DGMRecTask
from training.trainer import (
    TrainerConfig,
    TrainingResult,
    UnknownMetricError,
    keep_freed_memory,
    peak_memory_mb,
    task_weights,
    train,
)


class Scripted:
    """A task whose metric is written down beforehand, and whose one weight is the number of the epoch."""

    def __init__(self, scores: Sequence[float], losses: Sequence[float] = ()) -> None:
        self.scores, self.losses = scores, losses
        self.module = torch.nn.Linear(1, 1, bias=False)
        self.module.weight.data.fill_(0)
        self.validated: list[int] = []
        self.epoch = 0

    def train_epoch(self, epoch: int, progress: Callable[[int, int], None]) -> dict[str, float]:
        self.epoch = epoch
        self.module.weight.data.fill_(epoch)
        progress(1, 1)
        return {"loss": self.losses[epoch - 1] if self.losses else 1 / epoch}

    def validate(self) -> dict[str, float]:
        self.validated.append(self.epoch)
        return {"score": self.scores[self.epoch - 1]}

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch}

    def load_state(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]


def config(**changes: object) -> TrainerConfig:
    return TrainerConfig.model_validate(
        {"epochs": 10, "patience": 3, "smoothing": 1, "tolerance": 0, "metric": "score"} | changes
    )


@pytest.mark.parametrize(
    ("scores", "best", "last"),
    [
        ([1, 2, 3, 2, 2, 2, 9], 3, 6),  # three evaluations without a better one
        ([5, 1, 1, 1, 9], 1, 4),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 10, 10),
        ([3, 3, 3, 3, 3], 1, 4),  # as good is not better
        ([1, math.nan, 2, math.nan, math.nan, math.nan, 9], 3, 6),
    ],
)
def test_early_stopping(scores: list[float], best: int, last: int) -> None:
    task = Scripted(scores)
    result = train(task, config())
    assert (result.best_epoch, result.epochs) == (best, last)
    assert result.best == {"score": scores[best - 1]}
    assert task.module.weight.item() == best  # the best weights are put back
    assert [entry["epoch"] for entry in result.history] == list(range(1, last + 1))
    assert result.history[1]["losses"] == {"loss": 0.5}
    assert result.seconds_per_epoch == result.seconds / last


def test_one_lucky_evaluation_does_not_decide() -> None:
    result = train(Scripted([1, 2, 9, 1, 3, 6, 6, 6, 5]), config(epochs=9, smoothing=3, patience=9))
    assert result.best_epoch == 8
    assert result.best == {"score": 6}


class Drifting(Scripted):
    """One that notes the weight it begins an epoch with and the one it is validated with."""

    def __init__(self, scores: Sequence[float]) -> None:
        super().__init__(scores)
        self.begun: list[float] = []
        self.seen: list[float] = []

    def train_epoch(self, epoch: int, progress: Callable[[int, int], None]) -> dict[str, float]:
        self.begun.append(self.module.weight.item())
        return super().train_epoch(epoch, progress)

    def validate(self) -> dict[str, float]:
        self.seen.append(self.module.weight.item())
        return super().validate()


@pytest.mark.parametrize("power", [0.0, 2.0])
@pytest.mark.parametrize("stop", [None, 3])
def test_weights_are_averaged_over_the_epochs(power: float, stop: int | None, tmp_path: Path) -> None:
    """What is trained stays what it was; what is validated and kept is the mean, over an interruption too."""
    settings = config(polyak_averaging=power, epochs=6)
    task, seen = Drifting([1, 2, 3, 4, 5, 4]), []
    if stop is not None:
        train(task, settings.model_copy(update={"epochs": stop}), checkpoint_path=tmp_path / "c")
        seen, task = task.seen, Drifting(task.scores)
    train(task, settings, checkpoint_path=tmp_path / "c")
    assert task.begun == [*range(stop or 0, 6)]
    epochs = np.arange(1, 7)
    means = np.cumsum(epochs ** (power + 1)) / np.cumsum(epochs**power)
    np.testing.assert_allclose([*seen, *task.seen], means, rtol=1e-6)
    assert task.module.weight.item() == pytest.approx(means[4])


@pytest.mark.parametrize(
    ("scores", "best", "last"),
    [
        ([1, 100, 99, 95, 90, 91, 92], 3, 6),
        ([1, 100, 99, 95, 99.5, 98, 98.9, 97], 5, 8),  # by the best, not by what was taken last
        ([-1, -1.005, -1.02, -2, -3], 2, 5),
        ([math.nan, 1, 1, math.nan, 1, 0, 0, 0], 5, 8),
    ],
)
def test_a_tie_goes_to_the_later(scores: list[float], best: int, last: int) -> None:
    result = train(Scripted(scores), config(epochs=len(scores), tolerance=0.01))
    assert (result.best_epoch, result.epochs) == (best, last)
    assert result.best == {"score": scores[best - 1]}


def test_the_best_is_remembered_after_an_interrupt(tmp_path: Path) -> None:
    scores, settings = [100, 99.5, 98.6, 98.6], config(tolerance=0.01)
    path = tmp_path / "c"
    train(Scripted(scores), settings.model_copy(update={"epochs": 2}), checkpoint_path=path)
    again = train(Scripted(scores), settings.model_copy(update={"epochs": 4}), checkpoint_path=path)
    assert again.best_epoch == 2


def test_smoothing_goes_on_after_an_interrupt(tmp_path: Path) -> None:
    scores, settings = [1, 2, 9, 1, 3, 6, 6, 6, 5], config(epochs=9, smoothing=3, patience=9)
    path = tmp_path / "c"
    train(Scripted(scores), settings.model_copy(update={"epochs": 7}), checkpoint_path=path)
    again = train(Scripted(scores), settings, checkpoint_path=path)
    assert again.best_epoch == train(Scripted(scores), settings).best_epoch == 8


def test_evaluations_with_epochs_between() -> None:
    task = Scripted([0, 5, 0, 4, 0, 4, 0, 4, 0, 9])
    result = train(task, config(evaluate_every=2))
    assert task.validated == [2, 4, 6, 8]
    assert (result.best_epoch, result.epochs) == (2, 8)
    assert result.history[0]["metrics"] == {}


def test_the_last_epoch_is_always_evaluated() -> None:
    task = Scripted([0, 0, 0, 0, 7])
    assert train(task, config(epochs=5, evaluate_every=3)).best == {"score": 7}
    assert task.validated == [3, 5]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_diverged_loss(loss: float) -> None:
    with pytest.raises(FloatingPointError, match="diverged in epoch 2"):
        train(Scripted([1, 2, 3], [0.5, loss, 0.5]), config())


def test_diverged_weights() -> None:
    """The loss of the last step is that of the weights before it."""
    task = DGMRecTask(checkerboard(), CONFIG, TRAINER.model_copy(update={"learning_rate": 1e30}))
    with pytest.raises(FloatingPointError, match="diverged in epoch 1"):
        train(task, TRAINER)


def test_unknown_metric() -> None:
    with pytest.raises(UnknownMetricError, match="no metric 'recal@20'; there are score"):
        train(Scripted([1]), config(metric="recal@20"))


@pytest.mark.parametrize("setting", [{"epoch": 3}, {"epochs": 0}, {"learning_rate": 0}])
def test_bad_setting(setting: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(setting))):
        TrainerConfig.model_validate(setting)


class Watched:
    """Who is told how it goes; `stop_in` interrupts inside that epoch."""

    def __init__(self, stop_in: int | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.done, self.stop_in = 0, stop_in

    def start(self, epochs: int) -> None:
        self.calls.append(("start", epochs))

    def step(self, done: int, total: int) -> None:
        assert 1 <= done <= total
        if self.stop_in is not None and self.done + 1 == self.stop_in:
            raise KeyboardInterrupt

    def epoch(self, epoch: int, losses: dict[str, float], metrics: dict[str, float], best: float) -> None:
        self.done = epoch
        self.calls.append(("epoch", epoch, losses["loss"], metrics, best))

    def finish(self, message: str) -> None:
        self.calls.append(("finish", message))


def test_progress() -> None:
    watched = Watched()
    train(Scripted([1, 3, 2]), config(epochs=3), progress=watched)
    assert watched.calls == [
        ("start", 3),
        ("epoch", 1, 1.0, {"score": 1}, 1),
        ("epoch", 2, 0.5, {"score": 3}, 3),
        ("epoch", 3, 1 / 3, {"score": 2}, 3),
        ("finish", "best epoch 2 of 3: score 3.0000"),
    ]


@pytest.mark.parametrize(
    ("fraction", "shares"), [(0.0, [1, 0.75, 0.5, 0.25, 0]), (0.5, [1, 1, 1, 0.5, 0]), (1.0, [1, 1, 1, 1, 1])]
)
def test_learning_rate_falls_to_nothing(fraction: float, shares: list[float]) -> None:
    settings = config(epochs=8, learning_rate=0.2, constant_fraction=fraction)
    assert [settings.rate(epochs) for epochs in (0, 2, 4, 6, 8)] == pytest.approx([0.2 * share for share in shares])


def test_learning_rate_falls_while_training() -> None:
    task = DGMRecTask(checkerboard(), CONFIG, TRAINER)
    rates = []
    for epoch in (1, 2):
        task.train_epoch(epoch, lambda done, total: rates.append(task.optimiser.param_groups[0]["lr"]))  # noqa: ARG005
    assert rates[0] == TRAINER.learning_rate
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))


# --- resuming, with the real task ----------------------------------------------------------------------------------


def run(path: Path | None, *, epochs: int = 6, watched: Watched | None = None) -> tuple[DGMRecTask, TrainingResult]:
    task = DGMRecTask(checkerboard(), CONFIG, TRAINER)
    settings = TRAINER.model_copy(update={"epochs": epochs})
    return task, train(task, settings, fingerprint="run 1", checkpoint_path=path, progress=watched)


@dataclass(frozen=True)
class Outcome:
    """All that a run leaves behind, before and after the finish."""

    result: dict[str, Any]
    weights: dict[str, torch.Tensor]
    figures: dict[str, float]
    finished: dict[str, torch.Tensor]
    matrices: dict[str, list[list[float]]]

    @classmethod
    def of(cls, task: DGMRecTask, result: TrainingResult) -> Outcome:
        weights = task_weights(task)
        figures = task.finish() | task.test()
        assert task.content is not None
        return cls(
            {key: value for key, value in vars(result).items() if key != "seconds"},
            weights,
            figures,
            task_weights(task) | dict(task.content.features),
            {name: matrix.toarray().tolist() for name, matrix in task.matrices.items()},
        )


def assert_same(one: Outcome, other: Outcome) -> None:
    assert one.result == other.result
    assert one.figures == other.figures
    assert one.matrices == other.matrices
    for left, right in ((one.weights, other.weights), (one.finished, other.finished)):
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert torch.equal(value, right[key]), key


@pytest.fixture(scope="module")
def uninterrupted() -> Outcome:
    return Outcome.of(*run(None))


@pytest.mark.parametrize("stop_in", [2, 3, 4, 6])
def test_resumed_training_gives_the_same_bits(stop_in: int, uninterrupted: Outcome, tmp_path: Path) -> None:
    """Whichever epoch it was interrupted in: graphs are refined in 3 and 5."""
    path = tmp_path / "run.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        run(path, watched=Watched(stop_in))
    watched = Watched()
    outcome = Outcome.of(*run(path, watched=watched))
    assert [call[1] for call in watched.calls if call[0] == "epoch"] == list(range(stop_in, 7))
    assert_same(outcome, uninterrupted)


def test_interrupted_twice(uninterrupted: Outcome, tmp_path: Path) -> None:
    path = tmp_path / "run.checkpoint"
    for stop_in in (2, 5):
        with pytest.raises(KeyboardInterrupt):
            run(path, watched=Watched(stop_in))
    assert_same(Outcome.of(*run(path)), uninterrupted)


def test_longer_run_goes_on_from_a_shorter_one(uninterrupted: Outcome, tmp_path: Path) -> None:
    run(tmp_path / "c", epochs=4)
    assert_same(Outcome.of(*run(tmp_path / "c")), uninterrupted)


def test_finished_run_is_not_trained_again(uninterrupted: Outcome, tmp_path: Path) -> None:
    run(tmp_path / "c")
    watched = Watched()
    outcome = Outcome.of(*run(tmp_path / "c", watched=watched))
    assert [call[0] for call in watched.calls] == ["start", "finish"]
    assert_same(outcome, uninterrupted)


def test_interrupted_before_the_first_epoch_ends(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", watched=Watched(1))
    assert not list(tmp_path.iterdir())


def test_checkpoint_of_another_run_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "c"
    train(Scripted([1, 9, 1]), config(epochs=3), fingerprint="other", checkpoint_path=path)
    task = Scripted([1, 2, 3])
    result = train(task, config(epochs=3), fingerprint="mine", checkpoint_path=path)
    assert (result.best, len(result.history)) == ({"score": 3}, 3)
    assert "is of another run; training starts anew" in caplog.text
    assert checkpoint.load(path)["fingerprint"] == "mine"


def test_damaged_checkpoint_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "c"
    path.write_bytes(b"half a checkpoint")
    assert train(Scripted([1, 2]), config(epochs=2), checkpoint_path=path).best_epoch == 2
    assert "no usable checkpoint" in caplog.text
    assert "training starts anew" in caplog.text


def test_peak_memory() -> None:
    assert 10 < peak_memory_mb() < 100_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_not_given_back() -> None:
    def page_faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(2**21)  # 8 MiB, 2,048 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    keep_freed_memory()
    page_faults()  # the first time they are taken
    assert page_faults() < 2048
