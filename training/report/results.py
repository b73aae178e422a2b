"""Raw results as they are read back: figures of every seed, the command, the machine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator
from scipy.stats import t as student

DATASETS = {
    "tiktok": "TikTok",
    "ml-100k": "ML-100K",
    "ml-1m": "ML-1M",
    "musical-instruments": "Musical Instruments",
    "lfm2k": "Last.fm-2K",
}
OLD_MODELS = {"lightgcn": "collaborative"}  # in results from before it was named for what it is
TEST_TO_TRAINING = 1 / 8  # rows of a rating split, 80/10/10
_TOLERANCE = 1e-6  # between the mean that a result states and that of its runs


class ReportError(ValueError):
    """Nothing to report; the message is one sentence."""


class Epoch(BaseModel):
    """One epoch of a training."""

    epoch: int
    losses: dict[str, FiniteFloat] = {}
    metrics: dict[str, FiniteFloat] = {}


class Amount(BaseModel):
    """Errors where so many reviews tell of a side, as `5-8`."""

    reviews: str
    rows: int = Field(ge=1)
    rmse: FiniteFloat


Places = list[tuple[FiniteFloat, FiniteFloat]]


class Reconstruction(BaseModel):
    """A modality and what is rebuilt of it, in one plane."""

    observed: Places
    rebuilt: Places


class Titles(BaseModel):
    """How many items have a title and no text, and whether it counts as their text."""

    items: int
    as_text: bool

    def __str__(self) -> str:
        """In words."""
        counts = "counts" if self.as_text else "does not count"
        return f"of {self.items} items without a text, the title {counts} as one"


class Run(BaseModel):
    """One seed. What a protocol of several trainings tells of each stands by its label."""

    seed: int
    metrics: dict[str, FiniteFloat]
    seconds: FiniteFloat | None = None
    peak_rss_mb: FiniteFloat | None = None
    seconds_per_epoch: FiniteFloat | dict[str, FiniteFloat] | None = None
    best_epoch: int | dict[str, int] | None = None
    history: list[Epoch] | dict[str, list[Epoch]] = []
    by_amount: dict[str, list[Amount]] = {}
    curves: dict[str, list[FiniteFloat]] = {}
    reconstructions: dict[str, Reconstruction] = {}
    titles: Titles | dict[str, Titles] | None = None


class Machine(BaseModel):
    """What a result ran on."""

    cpu: str = "unknown processor"
    cores: int | None = None
    threads: int | None = None
    versions: dict[str, str] = {}


class Config(BaseModel):
    """The settings that a report looks at; the others stand in `model_extra`."""

    model_config = ConfigDict(extra="allow")

    missing: float | list[float] | None = None
    mask: str | None = None
    levels: bool = False
    split: str | None = None
    validation_only: bool = Field(False, validation_alias=AliasChoices("validation_only", "rehearsal"))
    item_reviews: int | None = None
    item_ratings: int | None = None
    trained_on: str | None = None
    model: dict[str, Any] = {}
    trainer: dict[str, Any] = {}

    @property
    def fewest(self) -> int | None:
        """How many reviews or ratings of an item are left at most."""
        return self.item_reviews if self.item_reviews is not None else self.item_ratings


class Result(BaseModel):
    """One model under one protocol on one dataset; unknown fields of other versions are passed over."""

    protocol: str
    dataset: str
    model: str
    variant: str | None = None
    synthetic: bool = False
    config: Config = Config()
    command: str = ""
    machine: Machine = Machine()
    published: Run | None = Field(None, description="the dataset's own split, beside the random ones")
    runs: list[Run] = Field(min_length=1)
    mean: dict[str, float] = {}
    file: str = ""

    @field_validator("model")
    @classmethod
    def _named_as_now(cls, model: str) -> str:
        return OLD_MODELS.get(model, model)

    def values(self, metric: str) -> dict[int, float]:
        """The metric by seed."""
        return {run.seed: run.metrics[metric] for run in self.runs if metric in run.metrics}

    def spread(self, metric: str) -> Spread | None:
        """Mean and spread over the seeds, or None where no seed has the metric."""
        return Spread.of(self.values(metric).values())

    @property
    def metrics(self) -> list[str]:
        """All metrics that some seed has, in their first order."""
        return list(dict.fromkeys(name for run in self.runs for name in run.metrics))

    @property
    def condition(self) -> str:
        """Which split it was and what was withheld: what results must have in common to stand in one table."""
        if self.config.validation_only:
            return "validation only: other items held out as new, to choose settings by"
        if self.protocol == "stranger":
            return {"time": "split by time", "random": "random split"}.get(self.config.split or "", "")
        if self.config.split:
            return f"published split {self.config.split}"
        if self.config.trained_on:
            return f"trained on {DATASETS.get(self.config.trained_on, self.config.trained_on)}"
        if self.config.item_reviews is not None:
            return f"at most {self.config.item_reviews} training reviews tell of an item"
        if self.config.item_ratings is not None:
            return f"at most {self.config.item_ratings} training ratings of an item are left"
        if self.config.mask:
            return f"published mask {self.config.mask}"
        if self.config.levels:
            return "equal shares of the items lack 0, 1, ..., all modalities"
        missing = self.config.missing
        if self.protocol == "rating" and isinstance(missing, float) and missing:
            return f"each modality of a training pair is missing with probability {missing:g}"
        return (
            f"{100 * missing:.0f} % of the cells withheld at random" if isinstance(missing, float) and missing else ""
        )


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) over `count` seeds; the deviation of one seed is 0."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Of no values: None."""
        figures = np.fromiter(values, dtype=float)
        if not len(figures):
            return None
        return cls(float(figures.mean()), float(figures.std(ddof=1)) if len(figures) > 1 else 0.0, len(figures))

    def text(self, digits: int = 4) -> str:
        """As tables show it; one seed alone has no spread to show."""
        mean = f"{self.mean:.{digits}f}"
        return mean if self.count == 1 else f"{mean} ± {self.deviation:.{digits}f}"


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """Mean difference of a rating error over the splits that both have, and its 95 % interval.

    The training parts of random splits overlap, so the variance is corrected as Nadeau and Bengio (2003) do: by the
    ratio of test to training rows on top of one over the number of splits.
    """
    difference = Spread.of(ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys()))
    if difference is None:
        return ""
    if difference.count == 1:
        return f"{difference.mean:+.4f}"
    error = difference.deviation * (1 / difference.count + TEST_TO_TRAINING) ** 0.5
    half = float(student.ppf(0.975, difference.count - 1)) * error
    return f"{difference.mean:+.4f} [{difference.mean - half:+.4f}, {difference.mean + half:+.4f}]"


@dataclass(frozen=True)
class ServiceResult:
    """What a benchmark or a harness wrote about the running service."""

    file: str
    stem: str
    content: dict[str, Any]


@dataclass(frozen=True)
class Results:
    """All that was read, and a sentence for each file that was left out."""

    evaluations: Sequence[Result]
    service: Sequence[ServiceResult]
    left_out: Sequence[str]


def read_results(paths: Iterable[Path]) -> Results:
    """Read files, and all `*.json` below folders. A file that is no raw result is left out and named.

    Raises:
        OSError: a path does not exist.
    """
    evaluations: list[Result] = []
    service: list[ServiceResult] = []
    left_out: list[str] = []
    for path, name in dict.fromkeys(_files(paths)):
        try:
            read = _read(path, name)
        except ResultError as error:
            left_out.append(f"{name} {error}")
            continue
        if isinstance(read, Result):
            evaluations.append(read)
        else:
            service.append(read)
    return Results(evaluations, service, left_out)


class ResultError(ValueError):
    """A file that is no raw result; the message goes on after the file's name."""


def _files(paths: Iterable[Path]) -> Iterable[tuple[Path, str]]:
    """Files with the names to call them by: below a folder, the path inside it."""
    for path in paths:
        if path.is_dir():
            yield from ((file, file.relative_to(path).as_posix()) for file in sorted(path.rglob("*.json")))
        elif path.exists():
            yield path, path.name
        else:
            raise FileNotFoundError(f"{path} does not exist")


def _read(path: Path, name: str) -> Result | ServiceResult:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ResultError(f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ResultError("is not valid JSON") from None
    if not isinstance(content, dict):
        raise ResultError("is no raw result: it holds no object")
    if "protocol" not in content and isinstance(content.get("what"), str):
        return ServiceResult(name, path.stem, content)
    try:
        result = Result.model_validate({**content, "file": name})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ResultError(f"is no raw result: {where}: {first['msg'].lower()}") from None
    for metric, stated in result.mean.items():
        spread = result.spread(metric)
        if spread is None or not math.isclose(stated, spread.mean, abs_tol=_TOLERANCE):
            raise ResultError(f"contradicts itself: its mean of {metric} is not that of its runs")
    return result
