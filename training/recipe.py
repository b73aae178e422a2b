"""What the command does with every model alike: train it on a prepared dataset and write it into a bundle."""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from models.bundle import BundleWriter, Manifest, ModelEntry, require_replaceable
from training.bundles import Opened, join
from training.content import DataOptions
from training.datasets.base import Dataset
from training.progress import Terminal


@dataclass(frozen=True)
class Checkpoints:
    """The files of an interrupted training: one of the model, and one of each of its members that trains by itself."""

    model: Path

    @classmethod
    def beside(cls, out: Path, name: str) -> Checkpoints:
        """Those of the model `name` of the bundle at `out`."""
        return cls(out.with_name(f".{out.name}.{name}-checkpoint"))

    def member(self, number: int) -> Path:
        """The file of one member."""
        return self.model.with_name(f"{self.model.name}-{number}")

    def remove(self) -> None:
        """Remove all of them."""
        for file in self.model.parent.glob(f"{glob.escape(self.model.name)}*"):
            file.unlink()


@dataclass(frozen=True)
class Trained:
    """A trained model, ready to be written.

    Attributes:
        opened: the bundle that it goes into, with the content it was trained on.
        interactions: how many events of the dataset it was made of.
        save: writes the model's files and answers its entry of the manifest, with its metrics.
    """

    opened: Opened
    interactions: int
    save: Callable[[BundleWriter], ModelEntry]


class Recipe(Protocol):
    """How one model is trained, with its settings.

    Attributes:
        name: of the model in a bundle.
        headline: the metrics that are printed after the training.
        ships_catalogue: whether a new bundle of this model holds the catalogue to fill an empty service with.
    """

    name: ClassVar[str]
    headline: ClassVar[tuple[str, ...]]
    ships_catalogue: ClassVar[bool]

    def train(
        self, dataset: Dataset, out: Path, options: DataOptions, checkpoints: Checkpoints, terminal: Terminal
    ) -> Trained:
        """Split, encode, train and test.

        Args:
            out: where the bundle is or will be.
            checkpoints: where an interrupted training goes on.

        Raises:
            ValueError: the dataset does not suffice for this model; a subclass that names the reason in a sentence.
            BundleError: the bundle at `out` cannot be joined.
        """


def train_into_bundle(
    recipe: Recipe,
    dataset: Dataset,
    out: Path,
    options: DataOptions,
    *,
    terminal: Terminal,
    source: Path | None = None,
    fresh: bool = False,
) -> Manifest:
    """Train a model and write it into the bundle at `out`. An interrupted training goes on when called again.

    Args:
        source: the prepared dataset, whose catalogue a new bundle holds where the recipe ships it.
        fresh: do not go on where an interrupted training was.

    Raises:
        BundleError: something else than a bundle stands at `out`. What the recipe's `train` raises.
    """
    require_replaceable(out)  # said now rather than after the training
    checkpoints = Checkpoints.beside(out, recipe.name)
    if fresh:
        checkpoints.remove()
    trained = recipe.train(dataset, out, options, checkpoints, terminal)
    manifest = join(
        out,
        trained.opened,
        recipe.name,
        dataset,
        trained.interactions,
        trained.save,
        source=source if recipe.ships_catalogue else None,
    )
    checkpoints.remove()
    return manifest
