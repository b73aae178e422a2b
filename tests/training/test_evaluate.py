"""Results of a protocol: every seed's figures, their mean and spread, and what made them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import training.evaluate as module
from tests.training.tiny import CONFIG, TRAINER, write_vectors
from training.datasets import Dataset
from training.evaluate import Protocol, evaluate, machine
from training.progress import Terminal
from training.train import DataOptions

CONFIGS = (CONFIG, TRAINER.model_copy(update={"epochs": 2}))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_vectors(tmp_path_factory.mktemp("evaluate") / "tiny")


def run(dataset: Dataset, seeds: int = 2, **options: Any) -> dict[str, Any]:
    with Terminal(quiet=True) as terminal:
        return evaluate(
            dataset,
            Protocol.MISSING,
            DataOptions(missing=0.4, **options),
            CONFIGS,
            seeds=seeds,
            variant="tiny",
            command="lacuna evaluate dgmrec",
            terminal=terminal,
        )


@pytest.fixture(scope="module")
def result(dataset: Dataset) -> dict[str, Any]:
    return run(dataset)


def test_runs(result: dict[str, Any]) -> None:
    assert [run["seed"] for run in result["runs"]] == [1, 2]
    first, second = result["runs"]
    assert first["metrics"] != second["metrics"]
    assert {"epochs", "best_epoch", "seconds", "seconds_per_epoch", "peak_rss_mb"} <= first.keys()
    assert first["epochs"] == 2


def test_mean_and_spread(result: dict[str, Any]) -> None:
    for name in ("recall@20", "ndcg@50", "valid recall@20"):
        values = [run["metrics"][name] for run in result["runs"]]
        assert result["mean"][name] == pytest.approx(np.mean(values))
        assert result["std"][name] == pytest.approx(np.std(values, ddof=1))


def test_what_made_it(result: dict[str, Any]) -> None:
    assert (result["protocol"], result["dataset"], result["synthetic"]) == ("missing", "tiny", True)
    assert (result["model"], result["variant"]) == ("dgmrec", "tiny")
    assert result["config"]["model"] == CONFIG.model_dump()
    assert result["config"]["trainer"]["epochs"] == 2
    assert (result["config"]["missing"], result["config"]["mask"]) == (0.4, None)
    assert result["command"] == "lacuna evaluate dgmrec"
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_same_seed_same_figures(dataset: Dataset, result: dict[str, Any]) -> None:
    again = run(dataset, seeds=1)
    assert again["runs"][0]["metrics"] == result["runs"][0]["metrics"]
    assert set(again["std"].values()) == {0.0}  # one run has no spread


def test_a_figure_that_some_seeds_lack(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed may hold out no cell of a modality; the others still have a mean."""

    def fake(_dataset: object, _options: object, _configs: object, seed: int, _terminal: object) -> dict[str, Any]:
        return {"seed": seed, "metrics": {"recall@20": float(seed)} | ({"cosine[scan]": 0.5} if seed == 2 else {})}

    monkeypatch.setattr(module, "_run", fake)
    result = run(dataset, seeds=3)
    assert result["mean"] == {"recall@20": 2.0, "cosine[scan]": 0.5}
    assert result["std"] == {"recall@20": 1.0, "cosine[scan]": 0.0}
    assert not any(map(math.isnan, result["std"].values()))


def test_machine() -> None:
    found = machine()
    assert found["cpu"]
    assert found["cores"] >= 1
    assert found["threads"] == 1
    assert {"python", "torch", "numpy", "scipy", "lacuna"} == set(found["versions"])


def test_processor_where_nobody_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "Path", lambda _: tmp_path / "absent")
    assert isinstance(machine()["cpu"], str)
