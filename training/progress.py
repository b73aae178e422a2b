"""Progress: bars on a terminal, plain lines without one."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

EVERY_SECONDS = 5.0  # between two lines about the same stage


class _Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{_rate(speed)}/s")


class _Pace:
    """How fast one stage goes. A stage that starts again counts anew."""

    def __init__(self, now: float, done: int) -> None:
        self.begin = self.said = now
        self.first = self.done = done

    def line(self, name: str, done: int, total: int | None, now: float) -> str | None:
        """The count, the rate and the time left, every few seconds and at the end of what took as long."""
        self.done = done
        over = total is not None and done >= total
        if now - (self.begin if over else self.said) < EVERY_SECONDS or done == self.first:
            return None
        self.said = now
        rate = (done - self.first) / (now - self.begin)
        if total is None:
            return f"{name}: {done:,}, {_rate(rate)}/s"
        if over:
            return f"{name}: {done:,} in {_duration(now - self.begin)}"
        return f"{name}: {done:,} of {total:,}, {_rate(rate)}/s, {_duration((total - done) / rate)} left"


class Terminal:
    """Bars for stages (`stage`) and for training (the trainer's Progress), on standard error.

    Use as a context manager. Where standard error is no terminal, lines instead of bars: one where a stage begins, one
    every few seconds with its count, its rate and the time left, and one an evaluation.
    """

    def __init__(self, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False, markup=False)
        self._bars = Progress(
            TextColumn("{task.description:<34}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._clock = clock
        self._stages: dict[str, TaskID] = {}
        self._paces: dict[str, _Pace] = {}
        self._epoch: TaskID | None = None
        self._batch: TaskID | None = None
        self._epochs = 0
        self._past = 0  # epochs

    def __enter__(self) -> Terminal:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, message: str) -> None:
        """A line that stays."""
        self._console.print(message, soft_wrap=True)

    def stage(self, name: str, done: int, total: int | None = None) -> None:
        """`done` of `total` (unknown: None) of a named stage."""
        if name not in self._stages:
            self._stages[name] = self._bars.add_task(name, total=total)
            if not self._console.is_terminal:
                self.say(f"{name} ...")
        self._bars.update(self._stages[name], completed=done, total=total)
        self._tell(name, done, total)

    def _tell(self, name: str, done: int, total: int | None) -> None:
        """A line about a stage where there are no bars, if it is time for one."""
        if self._console.is_terminal:
            return
        now = self._clock()
        if name not in self._paces or done < self._paces[name].done:
            self._paces[name] = _Pace(now, 0 if done <= 1 else done)
        line = self._paces[name].line(name, done, total, now)
        if line is not None:
            self.say(line)

    # --- the trainer's side ------------------------------------------------------------------------------------

    def start(self, epochs: int) -> None:
        """Training starts, for at most so many epochs."""
        self._epochs, self._past = epochs, 0
        self._paces.pop("training, epochs", None)
        self._epoch = self._bars.add_task("training", total=epochs)
        self._batch = self._bars.add_task("  epoch", total=None)

    def step(self, done: int, total: int) -> None:
        """So many batches of the epoch are done."""
        if self._batch is not None:
            self._bars.update(self._batch, completed=done, total=total)
            self._tell(f"epoch {self._past + 1}, steps", done, total)

    def epoch(self, epoch: int, losses: dict[str, float], metrics: dict[str, float], best: float) -> None:
        """An epoch is over."""
        self._paces.pop(f"epoch {epoch}, steps", None)
        self._past = epoch
        if self._epoch is not None:
            self._bars.update(self._epoch, completed=epoch, description=f"training, best {best:.4f}")
            self._tell("training, epochs", epoch, self._epochs)
        if metrics and not self._console.is_terminal and epoch % 5 == 0:
            selected = {
                name: value for name, value in metrics.items() if "@50" not in name and "similarity" not in name
            }
            shown = "  ".join(f"{name} {value:.4f}" for name, value in selected.items())
            self.say(f"epoch {epoch}: loss {losses.get('loss', 0):.4f}  {shown}")

    def finish(self, message: str) -> None:
        """Training is over."""
        if self._epoch is not None:
            self._bars.update(self._epoch, visible=False)
        if self._batch is not None:
            self._bars.update(self._batch, visible=False)
        self.say(message)


class Trial:
    """The trainer's Progress as one stage of a terminal, without lines that stay: for one training of many."""

    def __init__(self, terminal: Terminal, name: str) -> None:
        self._terminal, self._name = terminal, name
        self._epochs = self._past = 0

    def start(self, epochs: int) -> None:
        """Training starts, for at most so many epochs."""
        self._epochs = epochs

    def step(self, done: int, total: int) -> None:
        """So many batches of the epoch are done."""
        self._terminal.stage(self._name, self._past * total + done, self._epochs * total)

    def epoch(self, epoch: int, *_: object) -> None:
        """An epoch is over."""
        self._past = epoch

    def finish(self, message: str) -> None:
        """Training is over."""


def _rate(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
