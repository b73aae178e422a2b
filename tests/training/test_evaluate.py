"""Results of the protocols: every seed's figures, their mean and spread, what made them, and what they never see."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

import training.evaluate.protocols as module
import training.evaluate.search as search
from models.imputers import IMPUTERS
from models.modality import ModalBatch
from tests.training.tiny import CONFIG, ITEMS, TRAINER, write_vectors
from training.baselines.ranking import BASELINES
from training.content import DataOptions, prepare_features, withheld_cells
from training.datasets import READERS, Dataset, load_dataset
from training.datasets.base import TEST, TRAIN, PublishedMask
from training.datasets.tables import read_table
from training.dgmrec.recipe import serving_model, split_parts, train_dgmrec
from training.evaluate import MODELS, EvaluationError, Plan, Protocol, evaluate, machine
from training.evaluate.posted import observed_kinds
from training.evaluate.protocols import filled_content, generated_content, new_items_of, prepared_content
from training.evaluate.result import Measured, result_of
from training.masking import levels
from training.progress import Terminal
from training.splits import hold_out_items, validation_parts

DATA = Path(os.environ.get("LACUNA_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
CONFIGS = (CONFIG, TRAINER.model_copy(update={"epochs": 2}))
LEVELS = DataOptions(levels=True, threads=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_vectors(tmp_path_factory.mktemp("evaluate") / "tiny")


def run(
    dataset: Dataset,
    model: str = "dgmrec",
    protocol: Protocol = Protocol.MISSING,
    options: DataOptions = LEVELS,
    *,
    imputer: str | None = None,
    seeds: int = 1,
    validation_only: bool = False,
) -> dict[str, Any]:
    plan = Plan(model, protocol, options, CONFIGS, imputer, validation_only)
    with Terminal(quiet=True) as terminal:
        return evaluate(dataset, plan, seeds=seeds, variant="tiny", command="lacuna evaluate", terminal=terminal)


@pytest.fixture(scope="module")
def result(dataset: Dataset) -> dict[str, Any]:
    return run(dataset, options=DataOptions(missing=0.4), seeds=2)


def test_runs(result: dict[str, Any]) -> None:
    assert [run["seed"] for run in result["runs"]] == [1, 2]
    first, second = result["runs"]
    assert first["metrics"] != second["metrics"]
    assert {"epochs", "best_epoch", "seconds", "seconds_per_epoch", "peak_rss_mb"} <= first.keys()
    assert first["epochs"] == 2
    assert [entry["epoch"] for entry in first["history"]] == [1, 2]
    assert {"losses", "metrics"} <= first["history"][0].keys()


def test_mean_and_spread(result: dict[str, Any]) -> None:
    for name in ("recall@20", "ndcg@50", "valid recall@20"):
        values = [run["metrics"][name] for run in result["runs"]]
        assert result["mean"][name] == pytest.approx(np.mean(values))
        assert result["std"][name] == pytest.approx(np.std(values, ddof=1))


def test_what_made_it(result: dict[str, Any]) -> None:
    assert (result["protocol"], result["dataset"], result["synthetic"]) == ("missing", "tiny", True)
    assert (result["model"], result["variant"]) == ("dgmrec", "tiny")
    assert result["config"]["model"] == CONFIG.model_dump(exclude={"seed"})  # each run names its own
    assert result["config"]["trainer"]["epochs"] == 2
    assert (result["config"]["missing"], result["config"]["mask"]) == (0.4, None)
    assert (result["config"]["levels"], result["config"]["imputer"]) == (False, None)
    assert result["command"] == "lacuna evaluate"
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_same_seed_same_figures(dataset: Dataset, result: dict[str, Any]) -> None:
    again = run(dataset, options=DataOptions(missing=0.4))
    assert again["runs"][0]["metrics"] == result["runs"][0]["metrics"]
    assert set(again["std"].values()) == {0.0}  # one run has no spread


def test_a_figure_that_some_seeds_lack() -> None:
    """A seed may hold out no cell of a modality; the others still have a mean."""
    runs: list[dict[str, Any]] = [{"seed": seed, "metrics": {"recall@20": float(seed)}} for seed in (1, 2, 3)]
    runs[1]["metrics"]["cosine[scan]"] = 0.5
    result = result_of(Measured("missing", "tiny", True, "dgmrec", None, "x"), {}, runs)
    assert result["mean"] == {"recall@20": 2.0, "cosine[scan]": 0.5}
    assert result["std"] == {"recall@20": 1.0, "cosine[scan]": 0.0}
    assert not any(map(math.isnan, result["std"].values()))


# --- protocols -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["dgmrec", "collaborative", *BASELINES])
def test_missing_by_level(dataset: Dataset, model: str) -> None:
    found = run(dataset, model)
    level = levels(dataset.observed() & ~withheld_cells(dataset, replace(LEVELS, seed=1)))
    asked = set(level[split_parts(dataset, 1).test[:, 1]].tolist())
    assert asked == {0, 1, 2}
    metrics = found["runs"][0]["metrics"]
    assert {name for name in metrics if name.startswith("recall@20")} == {
        "recall@20",
        *(f"recall@20[level={lacking}]" for lacking in asked),
    }
    assert all(0 <= metrics[name] <= 1 for name in metrics if "@" in name)
    assert found["config"]["levels"]
    assert ("history" in found["runs"][0]) == (model in ("dgmrec", "collaborative"))


def test_posted_items_by_what_is_observed_of_them(dataset: Dataset) -> None:
    found = run(dataset, protocol=Protocol.POSTED, options=DataOptions(threads=1))["runs"][0]
    metrics = found["metrics"]
    for name in (*dataset.modalities, "all"):
        before, after, new = (metrics[f"hits@20[{name}, {when}]"] for when in ("before", "after", "new"))
        assert 0 <= new <= after
        assert before > 0
        assert {f"recall@20[{name}, {where}]" for where in ("among new", "of all", "new of all")} <= metrics.keys()
    assert {f"ndcg@20[{name}, neighbours]" for name in dataset.modalities} <= metrics.keys()
    assert "recall@20[chance]" in metrics
    assert "recall@20[text, TF-IDF neighbours]" not in metrics  # there are no texts
    assert found["setting"]["popularity_offset"] > 0


def test_what_may_be_observed_of_a_new_item() -> None:
    assert [name for name, _ in observed_kinds(("text", "image"))] == ["text", "image", "all"]
    kinds = dict(observed_kinds(("text", "audio", "speech")))
    assert list(kinds) == ["text", "audio", "speech", "text + audio", "text + speech", "audio + speech", "all"]
    assert list(kinds["audio + speech"]) == ["audio", "speech"]


def test_training_sees_nothing_of_items_that_are_posted_later(dataset: Dataset) -> None:
    rows = set(np.sort(np.random.default_rng(1).permutation(ITEMS)[: round(0.2 * ITEMS)]).tolist())
    other = [
        record | {"modalities": {name: {"vector": [9.0] * len(content["vector"])} for name, content in own.items()}}
        if row in rows and (own := record.get("modalities"))
        else record
        for row, record in enumerate(dataset.records)
    ]
    altered, options = replace(dataset, records=other), DataOptions(threads=1)
    both = [run(given, protocol=Protocol.POSTED, options=options) for given in (dataset, altered)]
    histories = [found["runs"][0]["history"] for found in both]
    assert histories[0][-1]["metrics"] == histories[1][-1]["metrics"]
    assert both[0]["mean"]["ndcg@20[all, among new]"] != both[1]["mean"]["ndcg@20[all, among new]"]


def test_only_the_model_that_is_served_posts_items() -> None:
    with pytest.raises(EvaluationError, match="the protocol posted has no model 'ease'"):
        Plan("ease", Protocol.POSTED, DataOptions(), CONFIGS)
    with pytest.raises(EvaluationError, match="withholds no cells"):
        Plan("dgmrec", Protocol.POSTED, DataOptions(missing=0.5), CONFIGS)


def test_collaborative_is_dgmrec_without_modalities(dataset: Dataset) -> None:
    plan = Plan("dgmrec", Protocol.MISSING, LEVELS, (CONFIG.model_copy(update={"modal": False}), CONFIGS[1]))
    with Terminal(quiet=True) as terminal:
        same = evaluate(dataset, plan, seeds=1, variant=None, command="", terminal=terminal)
    found = run(dataset, "collaborative")
    assert found["runs"][0]["metrics"] == same["runs"][0]["metrics"]
    assert found["config"]["model"]["modal"] is False


def test_baselines_say_what_they_chose(dataset: Dataset) -> None:
    config = run(dataset, "item-knn", seeds=2)["config"]
    assert config["grid"] == list(BASELINES["item-knn"].grid)
    assert [chosen.pop("seed") for chosen in config["chosen"]] == [1, 2]
    assert all(chosen in config["grid"] for chosen in config["chosen"])


@pytest.mark.parametrize("model", ["dgmrec", "popularity"])
def test_new_items(dataset: Dataset, model: str) -> None:
    published = replace(dataset, new_items=np.array([2, 7, 30, 41]))
    metrics = run(published, model, Protocol.NEW_ITEMS)["runs"][0]["metrics"]
    assert {"recall@20", "recall@20[new]", "ndcg@50[new]"} <= metrics.keys()
    parts = split_parts(published, 1, published.new_items)
    assert not np.isin(parts.train[:, 1], published.new_items).any()
    if model == "popularity":  # nobody has touched the new items: they stand in one tie at the end
        assert metrics["recall@20[new]"] < metrics["recall@20"]


def test_validation_only_sees_neither_the_published_new_items_nor_the_test_part(dataset: Dataset) -> None:
    published = replace(dataset, new_items=np.array([2, 7, 30, 41]))
    plan = Plan("popularity", Protocol.NEW_ITEMS, replace(LEVELS, seed=3), CONFIGS, validation_only=True)
    drawn = new_items_of(published, plan)
    assert drawn is not None
    assert len(drawn) == 4
    assert not np.isin(drawn, published.new_items).any()
    whole, held = split_parts(published, 3), split_parts(published, 3, drawn)
    parts = validation_parts(whole, held)
    taken = {tuple(pair) for pair in whole.train.tolist() if pair[1] in drawn}
    known = set(parts.train[:, 0].tolist())
    expected = {pair for pair in taken | {tuple(pair) for pair in held.valid.tolist()} if pair[0] in known}
    assert {tuple(pair) for pair in parts.test.tolist()} == expected
    assert np.array_equal(parts.train, held.train)
    result = run(published, "popularity", Protocol.NEW_ITEMS, validation_only=True)
    assert result["config"]["validation_only"]
    with pytest.raises(EvaluationError, match="has no new items to draw others for"):
        run(published, "popularity", Protocol.MISSING, validation_only=True)


def test_new_items_are_drawn_where_none_are_published(dataset: Dataset) -> None:
    assert dataset.new_items is None
    first, second = (
        new_items_of(dataset, Plan("ease", Protocol.NEW_ITEMS, replace(LEVELS, seed=seed), CONFIGS)) for seed in (1, 2)
    )
    assert first is not None
    assert second is not None
    assert len(first) == round(0.2 * ITEMS)
    assert not np.array_equal(first, second)
    assert "recall@20[new]" in run(dataset, "popularity", Protocol.NEW_ITEMS)["mean"]


@pytest.mark.parametrize("model", ["dgmrec", "content"])
def test_ratio(dataset: Dataset, model: str) -> None:
    found = run(dataset, model, Protocol.RATIO, DataOptions(threads=1))
    labels = [f"missing={share}%" for share in (0, 20, 40, 60, 80)]
    run_ = found["runs"][0]
    metrics = run_["metrics"]
    for label in labels:
        assert f"recall@20[{label}]" in metrics
    assert not any("level" in name for name in metrics)
    assert found["config"]["missing"] == [0.0, 0.2, 0.4, 0.6, 0.8]
    alone = run(dataset, model, options=DataOptions(missing=0.4))["runs"][0]["metrics"]
    assert metrics["ndcg@20[missing=40%]"] == alone["ndcg@20"]
    if model == "dgmrec":
        assert list(run_["history"]) == labels
        assert {f"{name}[missing=40%]" for name in alone if "[level" not in name} <= metrics.keys()
    else:
        assert [found["config"]["chosen"][0][label] for label in labels] == [run_["setting"][x] for x in labels]


@pytest.mark.parametrize("model", ["dgmrec", *IMPUTERS])
def test_retrieval(dataset: Dataset, model: str) -> None:
    found = run(dataset, model, Protocol.RETRIEVAL)
    metrics = found["runs"][0]["metrics"]
    for figure in ("cosine", "neighbourhood_hit@5", "neighbourhood_hit@20", "self_hit@10", "self_mrr"):
        for label in ("[audio]", "[scan]", "[audio][level=1]", "[scan][level=2]"):
            assert f"{figure}{label}" in metrics
    assert ("calibration_error" in metrics) == (model == "dgmrec")
    if model == "mean":
        assert metrics["cosine[audio]"] == 0
        assert metrics["neighbourhood_hit@5[audio]"] == 0
    if model == "nn":
        assert metrics["cosine[audio][level=1]"] > 0.3  # content tells the groups apart


def test_retrieval_of_what_is_served(dataset: Dataset) -> None:
    """The generated features and confidences are those of the exported model."""
    with Terminal(quiet=True) as terminal:
        prepared = prepare_features(dataset, LEVELS, terminal)
        task = train_dgmrec(dataset, prepared.batch, *CONFIGS).task
    filled, confidence = generated_content(task, prepared.batch)
    served = serving_model(task, dataset.users, dataset.items)
    for column, name in enumerate(prepared.batch.names):
        projected = task.module.tower(name).projection(filled[name])
        table = torch.from_numpy(served.tables[f"feature.{name}"])  # a raw feature tells the direction alone
        direction = functional.normalize(table, dim=1) * table.shape[1] ** 0.5
        np.testing.assert_allclose(direction.numpy(), projected.detach().numpy(), atol=1e-4)
        np.testing.assert_allclose(served.tables["confidence"][:, column], confidence[name].numpy(), atol=1e-6)


def test_dgmrec_on_imputed_features(dataset: Dataset) -> None:
    found = run(dataset, imputer="multi-hop")
    assert found["config"]["imputer"] == "multi-hop"
    assert "recall@20[level=2]" in found["mean"]  # levels are those of the data, not of what was filled in


def test_imputed_features_count_as_observed(dataset: Dataset) -> None:
    plan = Plan("dgmrec", Protocol.MISSING, LEVELS, CONFIGS, "nn")
    with Terminal(quiet=True) as terminal:
        parts = split_parts(dataset, 0)
        prepared = prepared_content(dataset, plan, parts, terminal)
        plain = prepare_features(dataset, LEVELS, terminal)
    assert prepared.batch.observed.all()
    for column, name in enumerate(plain.batch.names):
        have = plain.batch.observed[:, column]
        torch.testing.assert_close(prepared.batch.features[name][have], plain.batch.features[name][have])


def test_a_modality_that_nobody_has_is_not_filled() -> None:
    batch = ModalBatch(
        {"a": torch.randn(6, 3), "b": torch.zeros(6, 2)}, torch.tensor([[True, False]] * 5 + [[False, False]])
    )
    plan = Plan("dgmrec", Protocol.MISSING, LEVELS, CONFIGS, "mean")
    filled = filled_content(batch, plan, None)  # type: ignore[arg-type]  # the mean reads no graph
    assert filled.observed.all(dim=0).tolist() == [True, False]


# --- what no model may see -----------------------------------------------------------------------------------------


def noisy(dataset: Dataset, withheld: NDArray[np.bool_]) -> Dataset:
    """The dataset with the truth of these cells replaced by noise."""
    rng = np.random.default_rng(99)
    records = []
    for row, record in enumerate(dataset.records):
        contents = dict(record["modalities"])
        for column, name in enumerate(dataset.modalities):
            if withheld[row, column]:
                length = len(contents[name]["vector"])
                contents[name] = {"vector": (50 * rng.normal(size=length)).astype(np.float32)}
        records.append({**record, "modalities": contents})
    return replace(dataset, records=records)


@pytest.mark.parametrize("protocol", [Protocol.MISSING, Protocol.NEW_ITEMS])
@pytest.mark.parametrize("model", ["dgmrec", "content"])
def test_withheld_truth_changes_nothing(dataset: Dataset, protocol: Protocol, model: str) -> None:
    withheld = withheld_cells(dataset, replace(LEVELS, seed=1))
    assert withheld.any()
    first, second = (run(data, model, protocol)["runs"][0] for data in (dataset, noisy(dataset, withheld)))
    assert first["metrics"] == second["metrics"]
    assert first.get("history") == second.get("history")


@pytest.mark.parametrize("imputer", IMPUTERS)
def test_withheld_truth_is_not_in_imputed_features(dataset: Dataset, imputer: str) -> None:
    """What a model trains on when an imputer has filled the cells."""
    plan, parts = Plan("dgmrec", Protocol.MISSING, LEVELS, CONFIGS, imputer), split_parts(dataset, 0)
    with Terminal(quiet=True) as terminal:
        first, second = (
            prepared_content(data, plan, parts, terminal).batch
            for data in (dataset, noisy(dataset, withheld_cells(dataset, LEVELS)))
        )
    for name in first.names:
        assert torch.equal(first.features[name], second.features[name])


@pytest.mark.parametrize("model", ["dgmrec", "content"])
def test_withheld_truth_changes_nothing_of_a_ratio(dataset: Dataset, model: str) -> None:
    """What 20 % withhold, the larger shares withhold too; with nothing withheld the noise is seen."""
    withheld = withheld_cells(dataset, DataOptions(missing=0.2, seed=1))
    first, second = (
        run(data, model, Protocol.RATIO, DataOptions(threads=1))["runs"][0]["metrics"]
        for data in (dataset, noisy(dataset, withheld))
    )
    assert {name for name in first if first[name] != second[name]} <= {name for name in first if "missing=0%" in name}
    assert any(first[name] != second[name] for name in first)


@pytest.mark.parametrize("model", ["dgmrec", *IMPUTERS])
def test_withheld_truth_is_not_guessed_from_itself(
    dataset: Dataset, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under retrieval the truth is measured against; what is measured does not depend on it."""
    seen: list[dict[str, NDArray[np.float32]]] = []
    measure = module.retrieval

    def remember(complete: ModalBatch, batch: ModalBatch, filled: Any, *more: Any) -> dict[str, float]:
        seen.append({name: feature.numpy() for name, feature in filled.items()})
        return measure(complete, batch, filled, *more)

    monkeypatch.setattr(module, "retrieval", remember)
    withheld = withheld_cells(dataset, replace(LEVELS, seed=1))
    first, second = (run(data, model, Protocol.RETRIEVAL)["mean"] for data in (dataset, noisy(dataset, withheld)))
    for name in seen[0]:
        np.testing.assert_array_equal(seen[0][name], seen[1][name])
    assert model == "mean" or first["cosine[audio]"] != second["cosine[audio]"]


# --- plans that make no sense --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "protocol", "options", "imputer", "message"),
    [
        (
            "ridge",
            Protocol.MISSING,
            LEVELS,
            None,
            "missing has no model 'ridge'; it has dgmrec, collaborative",
        ),
        ("ease", Protocol.RETRIEVAL, LEVELS, None, "the protocol retrieval has no model 'ease'; it has dgmrec, mean"),
        ("dgmrec", Protocol.MISSING, LEVELS, "median", "no imputer 'median'; there are mean, nn"),
        ("ease", Protocol.MISSING, LEVELS, "nn", "no use for ease"),
        ("collaborative", Protocol.MISSING, LEVELS, "nn", "no use for collaborative"),
        ("dgmrec", Protocol.RETRIEVAL, LEVELS, "nn", "no use for dgmrec under the protocol retrieval"),
        ("dgmrec", Protocol.RATIO, DataOptions(missing=0.2), None, "chooses the shares"),
        ("dgmrec", Protocol.RATIO, DataOptions(mask="60"), None, "chooses the shares"),
    ],
)
def test_bad_plans(model: str, protocol: Protocol, options: DataOptions, imputer: str | None, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        Plan(model, protocol, options, CONFIGS, imputer)


def test_retrieval_with_nothing_withheld(dataset: Dataset) -> None:
    with pytest.raises(EvaluationError, match="needs withheld cells"):
        run(dataset, "mean", Protocol.RETRIEVAL, DataOptions(threads=1))


def test_retrieval_without_modalities(dataset: Dataset) -> None:
    plan = Plan("dgmrec", Protocol.RETRIEVAL, LEVELS, (CONFIG.model_copy(update={"modal": False}), CONFIGS[1]))
    with Terminal(quiet=True) as terminal, pytest.raises(EvaluationError, match="generates nothing"):
        evaluate(dataset, plan, seeds=1, variant=None, command="", terminal=terminal)


def test_models() -> None:
    assert len(set(MODELS)) == len(MODELS)
    assert {"dgmrec", "collaborative", "popularity", "item-knn", "ease", "content", "mean", "ridge"} <= set(MODELS)


# --- masks and machine ---------------------------------------------------------------------------------------------


def test_a_published_mask_decides_the_levels(dataset: Dataset) -> None:
    missing = np.zeros((ITEMS, 3), dtype=np.bool_)
    missing[:30, 0], missing[:10, 1], missing[:, 2] = True, True, True  # `text` is none of the dataset's modalities
    mask = PublishedMask(tuple(f"item-{row}" for row in range(ITEMS)), ("audio", "scan", "text"), missing)
    masked = replace(dataset, masks={"half": mask})
    found = run(masked, "popularity", options=DataOptions(mask="half"))
    assert found["config"]["mask"] == "half"
    level = levels(dataset.observed() & ~missing[:, :2])
    asked = set(level[split_parts(masked, 1).test[:, 1]].tolist())
    assert {name for name in found["mean"] if "recall@20[level" in name} == {f"recall@20[level={k}]" for k in asked}


def test_machine() -> None:
    found = machine()
    assert found["cpu"]
    assert found["cores"] >= 1
    assert found["threads"] == 1
    assert {"python", "torch", "numpy", "scipy", "lacuna"} == set(found["versions"])


def test_processor_where_nobody_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules["training.evaluate.machine"], "Path", lambda _: tmp_path / "absent")
    assert isinstance(machine()["cpu"], str)


# --- real data, where it is there ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiktok(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    if not (DATA / "tiktok").is_dir():
        pytest.skip("the dataset tiktok is not on this machine (LACUNA_TEST_DATA names its folder)")
    out = tmp_path_factory.mktemp("tiktok") / "out"
    READERS["folder"].prepare(DATA / "tiktok", out)
    return load_dataset(out)


def test_real_tiktok_new_items(tiktok: Dataset) -> None:
    """The published second interaction file is what holding the new items out leaves of the first."""
    assert tiktok.split is not None
    assert tiktok.new_items is not None
    held = hold_out_items(tiktok.pairs(), tiktok.split, tiktok.new_items)
    moved = (held == TEST) & (tiktok.split == TRAIN)
    assert int(moved.sum()) == 11_249
    published = {
        (row["user"], row["item"], row["split"])
        for _, row in read_table(DATA / "tiktok" / "interactions_new_items.csv.gz", ("user", "item", "split"))
    }
    ours = {
        (tiktok.users.id(user), tiktok.items.id(item), ("train", "valid", "test")[part])
        for (user, item), part in zip(tiktok.pairs()[~moved], held[~moved], strict=True)
    }
    assert ours == published
    assert len(split_parts(tiktok, 0, tiktok.new_items).test) == 13_238


def test_real_tiktok_mask_ignores_the_text_that_is_not_there(tiktok: Dataset) -> None:
    withheld = withheld_cells(tiktok, DataOptions(mask="0.60"))
    assert withheld.shape == (6710, 2)
    published = tiktok.masks["0.60"]
    np.testing.assert_array_equal(withheld, published.missing[:, [1, 2]])
    assert np.bincount(levels(~withheld)).tolist() == np.bincount(published.missing[:, 1:].sum(axis=1)).tolist()


def test_real_tiktok_popularity(tiktok: Dataset) -> None:
    found = run(tiktok, "popularity", options=DataOptions(mask="0.60"))["mean"]
    assert (found["recall@20"], found["ndcg@20"]) == pytest.approx((0.0627, 0.0273), abs=5e-5)


def test_pages_of_searches_by_state() -> None:
    """Two items with features like the asker's, one of them generated, and one of its categories."""
    features = torch.tensor([[1.0, 0], [0.9, 0.1], [1.0, 0.01], [0, 1.0], [0.1, 1.0]])
    observed = torch.tensor([[True], [True], [False], [True], [True]])
    categories = [("a",), ("a",), ("b",), ("b",), ("a", "b", "c")]
    batch, signals = ModalBatch({"m0": features}, observed), {"m0": features}
    module_page, search.PAGE = search.PAGE, 1
    try:
        metrics = search.search_page(batch, signals, {"m0": np.full(5, 0.9, np.float32)}, categories)
    finally:
        search.PAGE = module_page
    # Asked by 0, 1, 3, 4: plainly 0 and 1 find the generated 2; scaled, they find each other.
    assert metrics["generated_share@1[m0, plain]"] == 0.5
    assert metrics["generated_share@1[m0]"] == 0
    assert metrics["precision@1[m0, plain, generated]"] == 0
    assert metrics["precision@1[m0, observed]"] == metrics["precision@1[m0]"] == 0.5
    assert not any(
        name.startswith("precision")
        for name in search.search_page(batch, signals, {"m0": np.ones(5, np.float32)}, [()] * 5)
    )
