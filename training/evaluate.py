"""Protocols of docs/evaluation.md: several seeds, every figure of each, mean and spread."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.dgmrec import DGMRecConfig
from training.datasets.base import Dataset
from training.progress import Terminal
from training.train import DataOptions, prepare_features, train_dgmrec
from training.trainer import TrainerConfig, peak_memory_mb


class Protocol(StrEnum):
    """What is measured."""

    MISSING = "missing"


def evaluate(
    dataset: Dataset,
    protocol: Protocol,
    options: DataOptions,
    configs: tuple[DGMRecConfig, TrainerConfig],
    *,
    seeds: int,
    variant: str | None,
    command: str,
    terminal: Terminal,
) -> dict[str, Any]:
    """Run a protocol for seeds 1, 2, ...: each draws its own cells to withhold (unless a published mask says which),
    its own initial weights and batches. The split is the dataset's where it has one."""
    runs = [_run(dataset, options, configs, seed, terminal) for seed in range(1, seeds + 1)]
    names = sorted({name for run in runs for name in run["metrics"]})
    table = {name: np.array([run["metrics"][name] for run in runs if name in run["metrics"]]) for name in names}
    return {
        "protocol": protocol.value,
        "dataset": dataset.name,
        "synthetic": dataset.synthetic,
        "model": "dgmrec",
        "variant": variant,
        "config": {
            "model": configs[0].model_dump(),
            "trainer": configs[1].model_dump(),
            "missing": options.missing,
            "mask": options.mask,
            "image_encoder": options.image_encoder,
        },
        "command": command,
        "machine": machine(),
        "runs": runs,
        "mean": {name: float(values.mean()) for name, values in table.items()},
        "std": {name: float(values.std(ddof=1)) if len(values) > 1 else 0.0 for name, values in table.items()},
    }


def _run(
    dataset: Dataset,
    options: DataOptions,
    configs: tuple[DGMRecConfig, TrainerConfig],
    seed: int,
    terminal: Terminal,
) -> dict[str, Any]:
    terminal.say(f"seed {seed}")
    config, trainer = configs[0].model_copy(update={"seed": seed}), configs[1].model_copy(update={"seed": seed})
    prepared = prepare_features(dataset, replace(options, seed=seed), terminal)
    trained = train_dgmrec(dataset, prepared, config, trainer, terminal=terminal)
    return {
        "seed": seed,
        "metrics": trained.metrics,
        "seconds_per_epoch": round(trained.result.seconds_per_epoch, 3),
        "epochs": trained.result.epochs,
        "best_epoch": trained.result.best_epoch,
        "seconds": round(trained.result.seconds, 1),
        "peak_rss_mb": round(peak_memory_mb()),
    }


def machine() -> dict[str, Any]:
    """Processor, cores, threads and versions, as every result carries them."""
    packages = ("torch", "numpy", "scipy", "lacuna")
    versions: Mapping[str, str] = {"python": platform.python_version()} | {name: version(name) for name in packages}
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": dict(versions),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
