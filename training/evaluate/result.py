"""The raw result of a measurement: what was measured by which command, every run of it, mean and deviation."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.evaluate.machine import machine
from training.trainer import TrainingResult, peak_memory_mb

Record = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """What a result is about, beside its runs."""

    protocol: str
    dataset: str
    synthetic: bool
    model: str
    variant: str | None
    command: str
    device: str = "cpu"


def result_of(measured: Measured, config: Mapping[str, Any], runs: Sequence[Record], **more: Any) -> Record:
    """The envelope around the runs, `more` of whose fields stand before them. Metrics that a run lacks are averaged
    over the others."""
    names = sorted({name for run in runs for name in run["metrics"]})
    table = {name: np.array([run["metrics"][name] for run in runs if name in run["metrics"]]) for name in names}
    return {
        "protocol": measured.protocol,
        "dataset": measured.dataset,
        "synthetic": measured.synthetic,
        "model": measured.model,
        "variant": measured.variant,
        "config": dict(config),
        "command": measured.command,
        "machine": machine(measured.device),
        **more,
        "runs": list(runs),
        "mean": {name: float(values.mean()) for name, values in table.items()},
        "std": {name: float(values.std(ddof=1)) if len(values) > 1 else 0.0 for name, values in table.items()},
    }


def run_record(seed: int, begin: float, fields: Mapping[str, Any]) -> Record:
    """One run, which began at `begin` (`time.perf_counter`)."""
    seconds = round(time.perf_counter() - begin, 1)
    return {"seed": seed, **fields, "seconds": seconds, "peak_rss_mb": round(peak_memory_mb())}


def training_record(training: TrainingResult) -> Record:
    """How a training went."""
    return {
        "seconds_per_epoch": round(training.seconds_per_epoch, 3),
        "epochs": training.epochs,
        "best_epoch": training.best_epoch,
        "history": training.history,
    }


def write_single_run(
    file: Path | None, what: Mapping[str, Any], metrics: Mapping[str, float], command: str, begin: float
) -> None:
    """Write the raw result of a benchmark that runs once, if there is a file to write it to.

    Args:
        what: `protocol`, `dataset`, `model`, `variant`, `config`, and whether the data are `synthetic`.
        begin: when it began (`time.perf_counter`).
    """
    if file is None:
        return
    runs = [{"seed": 1, "metrics": metrics, "seconds": round(time.perf_counter() - begin, 1)}]
    result = {**what, "command": command, "machine": machine(), "runs": runs, "mean": metrics}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**result, "std": dict.fromkeys(metrics, 0.0)}, indent=1) + "\n", "utf-8")
