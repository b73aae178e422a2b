"""Progress on the terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Terminal:
    """Bars for stages (`stage`) and for training (the trainer's Progress), on standard error.

    Use as a context manager. Where standard error is no terminal, one line an evaluation and a stage instead of bars.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False, markup=False)
        self._bars = Progress(
            TextColumn("{task.description:<34}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._stages: dict[str, TaskID] = {}
        self._epoch: TaskID | None = None
        self._batch: TaskID | None = None

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

    # --- the trainer's side ------------------------------------------------------------------------------------

    def start(self, epochs: int) -> None:
        """Training starts, for at most so many epochs."""
        self._epoch = self._bars.add_task("training", total=epochs)
        self._batch = self._bars.add_task("  epoch", total=None)

    def step(self, done: int, total: int) -> None:
        """So many batches of the epoch are done."""
        if self._batch is not None:
            self._bars.update(self._batch, completed=done, total=total)

    def epoch(self, epoch: int, losses: dict[str, float], metrics: dict[str, float], best: float) -> None:
        """An epoch is over."""
        if self._epoch is not None:
            self._bars.update(self._epoch, completed=epoch, description=f"training, best {best:.4f}")
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
