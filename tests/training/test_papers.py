"""A short version of the papers' tables and figures: the scripts of benchmarks/ from end to end on little data."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.training.commands import Run
from training.datasets import write_dataset

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
USERS, ITEMS, MODALITIES = 24, 130, ("image", "text")
WORDS = {1: "broke bad return", 5: "great love perfect"}
RATING = ("epochs=1", "batch_size=64", "hidden=4", "lstm_hidden=4", "word_embedding_size=4", "min_word_count=1")
RANKING = ("epochs=1", "batch_size=64", "embedding_size=8", "rank=4", "neighbours=4")
LEAVE_ONE_OUT = ("epochs=1", "batch_size=512", "tower_hidden=4")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ratings with reviews, of items with two modalities (synthetic); enough items for 99 negatives."""
    folder, rng = tmp_path_factory.mktemp("papers") / "rated", np.random.default_rng(0)
    items: list[dict[str, Any]] = []
    for item in range(ITEMS):
        vectors = {name: {"vector": rng.normal(item % 2, 1, 6).round(3).tolist()} for name in MODALITIES}
        items.append({"id": f"item-{item}", "title": None, "modalities": vectors})
    rows: list[dict[str, Any]] = []
    for user in range(USERS):
        for item in rng.permutation(ITEMS)[:12].tolist():
            value = 5 if (user + item) % 2 else 1
            event = {"user": f"user-{user}", "item": f"item-{item}", "type": "rating"}
            rows.append({**event, "value": value, "text": WORDS[value]})
    write_dataset(folder, items, rows, name="rated", source="test", synthetic=True, min_rating=None)
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all results go: what one table has made the next one takes."""
    return tmp_path_factory.mktemp("results")


@pytest.fixture
def paper(lacuna: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """A script of benchmarks/, and how it is run with the command in this process."""

    def call(words: Sequence[str]) -> int:
        code, _, err = lacuna(*words)
        assert code == 0, err
        return code

    def load(name: str, *words: object, settings: Sequence[str] = ()) -> ModuleType:
        monkeypatch.syspath_prepend(BENCHMARKS)
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        given = [word for setting in settings for word in ("--set", setting)]
        module.main([*map(str, words), "--seeds", "1", "--threads", "1", *given], call)
        return module

    return load


def mean(file: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads(file.read_text("utf-8"))["mean"]
    return found


@pytest.mark.parametrize("what", ["table2", "table3", "figure4", "figure5", "figure6"])
def test_tables_and_figures_of_lrmm(paper: Callable[..., ModuleType], data: Path, out: Path, what: str) -> None:
    forms = ("lacuna", "paper") if what == "table2" else ("paper",)
    given = () if what == "table2" else ("--form", "paper")
    module = paper("paper_lrmm", what, "--data", data, "--out", out, *given, settings=RATING)
    names = [run.name for run in module.runs(what, forms)]
    assert "lrmm-form-paper" in names or what == "figure6"
    for name in names:
        metrics = mean(out / "rating" / "rated" / f"{name}.json")
        if name.startswith("lrmm"):
            assert {"rmse[+F]", "rmse[-U]", "rmse[-O]"} <= metrics.keys()
        assert 0 < metrics["rmse[+F]"] < 4
    page = (out / f"lrmm-{what}-rated.html").read_text("utf-8")
    drawn = {
        "table2": "Errors by regime",
        "table3": "missing with probability 0.5",
        "figure4": "RMSE [+F] by what is left of an item",
        "figure5": "t-SNE",
        "figure6": "RMSE [+F] by document_words",
    }
    assert drawn[what] in page


def test_a_dataset_rated_by_what_another_taught(paper: Callable[..., ModuleType], data: Path, out: Path) -> None:
    words = ("table4", "--data", data, "--target", data, "--form", "lacuna", "--out", out)
    paper("paper_lrmm", *words, settings=RATING)
    assert 0 < mean(out / "rating" / "rated" / "lrmm-rated-to-rated.json")["rmse[+F]"] < 4
    with pytest.raises(SystemExit):
        paper("paper_lrmm", "table4", "--data", data)


def test_the_nine_ablations_of_dgmrec(paper: Callable[..., ModuleType], data: Path, out: Path) -> None:
    module = paper("paper", "table4", "--data", data, "--out", out, settings=RANKING)
    assert len(module.TABLE4) == 9
    for run in module.runs("table4"):
        assert 0 <= mean(out / "missing" / "rated" / f"{run.name}.json")["recall@20"] <= 1
    page = (out / "table4-rated.html").read_text("utf-8")
    assert "DGMRec, form-paper: what each part is worth" in page
    assert all(f"form-paper-{name}" in page for name in module.TABLE4)


def test_a_table_of_iris(paper: Callable[..., ModuleType], data: Path, out: Path) -> None:
    module = paper("paper_iris", "table4", "--data", data, "--out", out, settings=LEAVE_ONE_OUT)
    for run in module.runs("table4", MODALITIES):
        assert 0 <= mean(out / "leave-one-out" / "rated" / f"{run.name}.json")["hr@10"] <= 1
    assert "One item against 99" in (out / "iris-table4-rated.html").read_text("utf-8")
