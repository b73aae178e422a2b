"""The report: its figures are those of the seeds, nothing in it comes from elsewhere, nothing broken stops it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from training.report import plots
from training.report.page import make_report
from training.report.results import ReportError, Result

NASTY = '<script>alert("&")</script>'


class Page(HTMLParser):
    """Tables by caption as rows by name, and what else a test asks of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, dict[str, list[str]]] = {}
        self.headers: dict[str, list[str]] = {}
        self.bold: dict[str, set[str]] = {}  # by table, the texts that are bold
        self.headings: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._path: list[str] = []
        self._heading = self._cell = ""
        self._row: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._path.append(tag)
        if tag == "tr":
            self._row = []
        if tag in ("h4", "td", "th"):
            self._cell = ""

    def handle_data(self, data: str) -> None:
        self._cell += data
        if self._path[-2:] == ["td", "b"]:
            self.bold.setdefault(self._heading, set()).add(data)

    def handle_endtag(self, tag: str) -> None:
        while self._path and self._path.pop() != tag:
            pass
        if tag == "h4":
            self._heading = self._cell
            self.headings.append(self._cell)
        elif tag in ("td", "th"):
            self._row.append(self._cell.strip())
        elif tag == "tr" and "thead" in self._path:
            self.headers[self._heading] = self._row
        elif tag == "tr":
            self.tables.setdefault(self._heading, {})[self._row[0]] = self._row[1:]

    def cell(self, caption: str, row: str, column: str) -> str:
        return self.tables[caption][row][self.headers[caption].index(column) - 1]


def raw(model: str, seeds: list[dict[str, float]], **more: Any) -> dict[str, Any]:
    """A raw result with these metrics for seeds 1, 2, ..."""
    names = list(seeds[0])
    return {
        "protocol": "missing",
        "dataset": "ml-1m",
        "model": model,
        "variant": None,
        "config": {"missing": 0.0, "mask": "two_thirds"},
        "command": f"lacuna evaluate {model}",
        "machine": {"cpu": "a processor", "cores": 2, "threads": 1, "versions": {"lacuna": "0.1.0"}},
        "runs": [{"seed": seed, "metrics": metrics} for seed, metrics in enumerate(seeds, start=1)],
        "mean": {name: mean(metrics[name] for metrics in seeds) for name in names},
        **more,
    }


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., Page]:
    """The page of some raw results."""

    def make(*results: Any) -> Page:
        for number, result in enumerate(results):
            (tmp_path / f"{number}.json").write_text(json.dumps(result))
        return Page(make_report([tmp_path], title="A report")[0])

    return make


def spread(values: list[float]) -> str:
    return f"{mean(values):.4f} ± {stdev(values):.4f}"


# --- figures -------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_seeds(report: Callable[..., Page]) -> None:
    ours, theirs = [0.31, 0.33, 0.35], [0.36, 0.30, 0.29]
    page = report(
        raw("dgmrec", [{"recall@20": v, "ndcg@20": v / 3} for v in ours]),
        raw("ease", [{"recall@20": v, "ndcg@20": v / 2} for v in theirs]),
        raw("popularity", [{"recall@20": 0.2}]),
    )
    table = "All items ranked"
    assert list(page.tables[table]) == ["DGMRec", "EASE", "Popularity"]
    assert page.cell(table, "DGMRec", "Recall@20") == spread(ours)
    assert page.cell(table, "EASE", "NDCG@20") == spread([v / 2 for v in theirs])
    assert page.cell(table, "Popularity", "Recall@20") == "0.2000"
    assert page.cell(table, "Popularity", "NDCG@20") == ""
    assert page.cell(table, "DGMRec", "seeds") == "3"
    assert page.bold[table] == {spread(ours), spread([v / 2 for v in theirs])}
    assert page.tables["At a glance"]["ML-1M"][-2:] == [f"DGMRec: {spread(ours)}", spread(ours)]


def test_titles_instead_of_texts_are_said(tmp_path: Path) -> None:
    result = raw("dgmrec", [{"recall@20": 0.3}])
    result["runs"][0]["titles"] = {"items": 21, "as_text": False}
    (tmp_path / "one.json").write_text(json.dumps(result))
    page, _ = make_report([tmp_path], title="A report")
    assert "of 21 items without a text, the title does not count as one" in page


def test_at_a_glance_a_variant_over_fewer_seeds_is_no_best(report: Callable[..., Page]) -> None:
    plain, lucky, whole = [0.30, 0.32], [0.40], [0.31, 0.35]
    members = [raw("dgmrec", [{"recall@20": v} for v in plain])]
    members += [raw("dgmrec", [{"recall@20": v} for v in lucky], variant="lucky")]
    assert report(*members).tables["At a glance"]["ML-1M"][-2] == f"DGMRec: {spread(plain)}"
    members += [raw("dgmrec", [{"recall@20": v} for v in whole], variant="whole")]
    assert report(*members).tables["At a glance"]["ML-1M"][-2] == f"DGMRec, whole: {spread(whole)}"


def test_levels(report: Callable[..., Page]) -> None:
    page = report(raw("ease", [{"recall@20": 0.2, "recall@20[level=0]": 0.3, "recall@20[level=10]": 0.1}]))
    caption = "Recall@20 by how many modalities the item lacks"
    assert page.headers[caption] == ["Model", "0 lacking", "10 lacking", "seeds"]
    assert page.tables[caption]["EASE"] == ["0.3000", "0.1000", "1"]


def test_other_conditions_are_not_compared(report: Callable[..., Page]) -> None:
    page = report(
        raw("ease", [{"recall@20": 0.2}]), raw("dgmrec", [{"recall@20": 0.3}], config={"missing": 0.4, "mask": None})
    )
    assert "All items ranked" not in page.bold
    assert len([tag for tag, _ in page.tags if tag == "section"]) == 2


def test_new_items(report: Callable[..., Page]) -> None:
    page = report(raw("content", [{"recall@20": 0.2, "recall@20[new]": 0.05}], protocol="new-items"))
    assert page.cell("Ranked among all items", "Content profile", "Recall@20, all") == "0.2000"
    assert page.cell("Ranked among all items", "Content profile", "Recall@20, new alone") == "0.0500"


def test_drop_by_ratio_is_taken_seed_by_seed(report: Callable[..., Page]) -> None:
    seeds = [{"recall@20[missing=0%]": a, "recall@20[missing=40%]": b} for a, b in ((0.4, 0.3), (0.2, 0.19))]
    history = {"missing=0%": [{"epoch": 1, "losses": {"loss": 2.0}, "metrics": {"recall@20": 0.1}}]}
    result = raw("dgmrec", seeds, protocol="ratio", config={"missing": [0.0, 0.4]})
    result["runs"][0] |= {"history": history, "best_epoch": {"missing=0%": 1}, "seconds_per_epoch": {"missing=0%": 2}}
    page = report(result)
    drops = [100 * (0.3 / 0.4 - 1), 100 * (0.19 / 0.2 - 1)]
    assert page.cell("Drop of Recall@20", "DGMRec", "40% missing") == f"{mean(drops):.1f} ± {stdev(drops):.1f} %"
    assert page.cell("Recall@20 by share of missing cells", "DGMRec", "0% missing") == spread([0.4, 0.2])


def test_growth(report: Callable[..., Page]) -> None:
    found = {f"{name}[size={size}]": 2.0 * size for name in ("epoch_seconds", "peak_rss_mb") for size in (30, 1, 10)}
    page = report(raw("dgmrec", [found], protocol="growth"))
    assert page.headers["DGMRec"] == ["", "1 times", "10 times", "30 times"]
    assert page.tables["DGMRec"]["seconds an epoch"] == ["2.0", "20.0", "60.0"]


def test_retrieval_and_its_calibration(report: Callable[..., Page]) -> None:
    metrics = {
        "cosine[image]": 0.2, "cosine[image][level=1]": 0.25, "cosine[image][level=2]": 0.1,
        "calibration_error": 0.03, "calibration_error[image]": 0.04,
    }  # fmt: skip
    worse = {"cosine[image]": 0.1, "calibration_error": 0.01, "calibration_error[image]": 0.05}
    page = report(raw("dgmrec", [metrics], protocol="retrieval"), raw("ridge", [worse], protocol="retrieval"))
    assert page.cell("Withheld image features", "DGMRec", "centred cosine") == "0.2000"
    assert page.bold["Withheld image features"] == {"0.2000", "0.0400"}
    assert page.tables["image: centred cosine by how many modalities the item lacks"]["DGMRec"][:2] == [
        "0.2500",
        "0.1000",
    ]
    assert page.bold["Confidence against what it announces"] == {"0.0100"}  # an error: the smaller, the better
    assert "Ridge" not in page.tables["image: centred cosine by how many modalities the item lacks"]  # it has no figure


def test_ratings_by_regime_and_by_pairs(report: Callable[..., Page]) -> None:
    ours, theirs = [0.8, 0.9, 1.0], [0.82, 0.91, 0.99]
    kind = {"protocol": "rating", "dataset": "musical-instruments", "config": {}}
    published = {"seed": 0, "metrics": {"rmse[+F]": 0.7, "mae[+F]": 0.5}}
    page = report(
        raw("biases", [{"rmse[+F]": v, "mae[+F]": v / 2, "rmse[-U]": v + 0.1} for v in ours], **kind),
        raw("svd", [{"rmse[+F]": v, "mae[+F]": v / 2} for v in theirs], **kind, published=published),
    )
    assert page.cell("Errors by regime", "User and item bias", "RMSE [+F]") == spread(ours)
    assert page.cell("Errors by regime", "User and item bias", "RMSE [-U]") == spread([v + 0.1 for v in ours])
    assert page.bold["Errors by regime"] == {spread(ours), spread([v / 2 for v in ours])}
    assert page.cell("The published split", "SVD", "RMSE [+F]") == "0.7000"
    differences = [b - a for a, b in zip(ours, theirs, strict=True)]
    half = 4.302653 * stdev(differences) * (1 / 3 + 1 / 8) ** 0.5  # Student's t of two degrees, corrected for overlap
    middle = mean(differences)
    pairs = page.tables["RMSE [+F] against User and item bias, by pairs"]["SVD"]
    assert pairs == [f"{middle:+.4f} [{middle - half:+.4f}, {middle + half:+.4f}]", "2 of 3"]


def test_ratings_by_what_was_observed_and_reconstructions(report: Callable[..., Page]) -> None:
    kind = {"protocol": "rating", "dataset": "musical-instruments", "config": {}}
    result = raw("lrmm", [{"rmse[+F]": 0.8}, {"rmse[+F]": 0.9}], **kind)
    for run, error in zip(result["runs"], (0.5, 1.0), strict=True):
        run["by_amount"] = {"user": [{"reviews": "3-4", "rows": 10, "rmse": error}]}
        run["by_amount"]["user"].append({"reviews": "33-64", "rows": 5, "rmse": error})
    result["runs"][0]["reconstructions"] = {
        "user_reviews": {"observed": [[0, 1], [2, 3]], "rebuilt": [[0.5, 1], [2, 2.5]]}
    }
    page = report(result, raw("biases", [{"rmse[+F]": 0.85}], **kind))
    assert "Error by what is known of the user" in page.headings
    assert "Error by what is known of the item" not in page.headings
    assert "LRMM: user reviews, t-SNE" in page.headings


def test_results_under_other_conditions_share_no_table(report: Callable[..., Page]) -> None:
    kind = {"protocol": "rating", "dataset": "musical-instruments"}
    page = report(
        raw("lrmm", [{"rmse[+F]": 0.8}], **kind, config={}),
        raw("biases", [{"rmse[+F]": 0.9}], **kind, config={"item_reviews": 1}),
        raw("lrmm", [{"rmse[+F]": 0.95}], **kind, config={"trained_on": "ml-100k"}),
    )
    assert page.headings.count("Errors by regime") == 3


def test_ablations_say_what_differs(report: Callable[..., Page]) -> None:
    config = {"mask": "0.60", "model": {"club": 0.01, "modal": True}, "trainer": {"epochs": 40}, "imputer": None}
    without = {**config, "model": {"club": 0.0, "modal": True}}
    filled = {**config, "imputer": "heat"}
    page = report(
        raw("dgmrec", [{"recall@20": 0.4}, {"recall@20": 0.5}], config=config),
        raw("dgmrec", [{"recall@20": 0.3}, {"recall@20": 0.45}], config=without, variant="no-club"),
        raw("dgmrec", [{"recall@20": 0.44}, {"recall@20": 0.55}], config=filled, variant="heat"),
    )
    rows = page.tables["DGMRec: what each part is worth"]
    assert rows["no-club"] == [spread([0.3, 0.45]), "-17.5 %", "club=0.0"]
    assert rows["heat"][1:] == ["+10.0 %", "imputer=heat"]
    assert list(page.tables["All items ranked"]) == ["DGMRec"]


def test_results_of_earlier_versions_have_their_settings_under_todays_names(report: Callable[..., Page]) -> None:
    before = {"model": {"lean": 2.0, "hide_rate": 0.3}, "trainer": {"steady": 0.5}}
    now = {"model": {"knn_smoothing": 0.0}, "trainer": {"constant_fraction": 0.5}}
    page = report(
        raw("dgmrec", [{"recall@20": 0.4}, {"recall@20": 0.5}], config=before),
        raw("dgmrec", [{"recall@20": 0.3}, {"recall@20": 0.45}], config=now, variant="unsmoothed"),
        raw("dgmrec", [{"recall@20": 0.3}, {"recall@20": 0.45}], config=before, variant="old"),
    )
    rows = page.tables["DGMRec: what each part is worth"]
    assert rows["unsmoothed"][2] == "knn_smoothing=0.0"
    assert rows["old"][2] == "none"


def test_validation_only_is_a_condition_of_its_own_under_both_names() -> None:
    configs: list[dict[str, object]] = [{"validation_only": True}, {"rehearsal": True}, {}]
    now, before, whole = (Result.model_validate(raw("ease", [{"recall@20": 0.4}], config=config)) for config in configs)
    assert now.condition == before.condition != whole.condition


def test_each_form_has_its_own_ablations(report: Callable[..., Page]) -> None:
    paper = {"mask": "0.60", "model": {"form": "paper", "club": 0.01}}
    page = report(
        raw("dgmrec", [{"recall@20": 0.4}]),
        raw("dgmrec", [{"recall@20": 0.3}], variant="no-club"),
        raw("dgmrec", [{"recall@20": 0.5}], config=paper, variant="form-paper"),
        raw("dgmrec", [{"recall@20": 0.4}], config={**paper, "model": {"form": "paper"}}, variant="form-paper-no-club"),
    )
    assert page.tables["DGMRec: what each part is worth"]["no-club"][1] == "-25.0 %"
    assert page.tables["DGMRec, form-paper: what each part is worth"]["form-paper-no-club"][1] == "-20.0 %"


def test_what_was_called_lightgcn_is_named_for_what_it_is(report: Callable[..., Page]) -> None:
    page = report(raw("lightgcn", [{"recall@20": 0.4}]), raw("lightgcn-bpr", [{"recall@20": 0.3}]))
    assert list(page.tables["All items ranked"]) == ["DGMRec without any modality", "LightGCN"]


def test_errors_by_what_is_left_of_an_item(report: Callable[..., Page]) -> None:
    kind: dict[str, Any] = {"protocol": "rating", "dataset": "musical-instruments"}
    results = [
        raw("svd", [{"rmse[+F]": error}, {"rmse[+F]": error}], **kind, config=config, variant=variant)
        for error, config, variant in (
            (1.0, {"item_reviews": 1}, "items-1"),
            (0.9, {"item_reviews": 5}, "items-5"),
            (0.8, {}, None),
        )
    ]
    page = report(*results, raw("lrmm", [{"rmse[+F]": 0.7}], **kind, config={}))
    assert "RMSE [+F] by what is left of an item" in page.headings
    few = Result.model_validate(raw("svd", [{"rmse[+F]": 0.8}], **kind, config={"item_ratings": 3}))
    assert few.condition == "at most 3 training ratings of an item are left"


def test_training_curves_mark_the_best_epoch(report: Callable[..., Page]) -> None:
    result = raw("dgmrec", [{"recall@20": 0.4}])
    result["runs"][0] |= {
        "best_epoch": 2,
        "history": [
            {
                "epoch": e,
                "losses": {"loss": 3.0 / e, "club": -0.1, "l2": 0.0},
                "metrics": {"recall@20": 0.1 * (e % 3), "similarity[general text, general image]": 0.3 * e},
            }
            for e in (1, 2, 3)
        ],
    }
    page = report(result)
    assert "Similarity of the parts, seed 1" in page.headings
    assert {"Validation Recall@20", "Loss, all parts", "Loss part: club"} <= set(page.headings)
    assert "Loss part: l2" not in page.headings  # zero throughout
    assert sum("best" in (attributes.get("class") or "").split() for _, attributes in page.tags) == 1


def test_service_figures(report: Callable[..., Page]) -> None:
    requests = {"GET /items/{id}": {"p50_ms": 1.5, "p99_ms": 8.14, "p50 over bare": 7.82}}
    page = report(
        {"what": "one core", "metrics": requests, "memory_mb": {"idle": 711}, "fill_seconds": 15.9},
        {"what": "two workers", "writes": 200, "p50_ms": 168.0, "p99_ms": 242.2, "max_ms": 298.0},
        {"what": "kills", "kills": {"worker": 97, "service": 6}, "acknowledged": {"put": 5}, "unanswered": {"put": 1},
         "answers_compared": 10, "violations": []},
        {"what": "something new", "figures": {"items": 12}},
    )  # fmt: skip
    assert page.tables["Latency: one core"]["GET /items/{id}"] == ["1.50 ms", "8.14 ms", "7.8"]
    assert page.tables["Until another worker knows of a write"]["two workers"] == ["168.0 ms", "242.2 ms", "298.0 ms"]
    assert page.tables["Processes killed under load"]["all"] == ["103", "", "5", "1", "10", "0", "0"]
    assert page.tables["something new"] == {"figures, items": ["12"]}


def test_a_protocol_of_tomorrow(report: Callable[..., Page]) -> None:
    page = report(raw("iris", [{"hr@10": 0.8, "valid hr@10": 0.9}], protocol="another"))
    assert page.cell("All figures", "Multimodal IRIS", "HR@10") == "0.8000"
    assert page.headers["All figures"] == ["Model", "HR@10", "seeds"]


def test_iris_has_its_section(report: Callable[..., Page]) -> None:
    names = [f"{way} {measure}" for way in ("deletion", "insertion") for measure in ("hr@10", "score")]
    orders = {"relevance": 0.2, "random": 0.6}
    areas = {f"{name}[{order}]": value for name in names for order, value in orders.items()}
    figures = {"hr@10": 0.8, "ndcg@10": 0.5, "hr@20": 0.9, "ndcg@20": 0.6}

    def result(variant: str | None, **model: Any) -> dict[str, Any]:
        made = raw("iris", [figures | {"faithful": 0.75} | areas], protocol="leave-one-out", variant=variant)
        made["config"] = {"model": model}
        made["runs"][0]["curves"] = {f"{name}[{order}]": [1, 0.5, 0] for name in names for order in orders}
        return made

    page = report(
        result(None, form="lacuna", beta=0.8),
        result("paper-16", form="paper", embedding_size=16, tower_size=16),
        result("paper-64", form="paper", embedding_size=64, tower_size=64),
    )
    assert page.cell("One item against 99", "Multimodal IRIS", "NDCG@20") == "0.6000"
    assert page.cell("Area under the curve, by order", "random", "deletion hr@10") == "0.6000"
    titles = [heading for heading in page.headings if heading.startswith(("Deletion", "Insertion"))]
    assert sorted(titles) == ["Deletion hr@10", "Deletion score", "Insertion hr@10", "Insertion score"]
    assert "HR@10 by embedding_size" in page.headings
    assert "HR@10 by beta" not in page.headings


# --- what is broken ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "is no raw result: it holds no object"),
        ('{"some": "thing"}', "is no raw result: protocol: field required"),
        (json.dumps(raw("ease", [{"recall@20": 1.0}], runs=[])), "is no raw result: runs: list should have"),
        (json.dumps(raw("ease", [{"recall@20": float("nan")}], mean={})), "is no raw result: runs.0.metrics.recall@20"),
        (json.dumps(raw("ease", [{"recall@20": 0.2}], mean={"recall@20": 0.3})), "contradicts itself: its mean"),
        (json.dumps({"what": "kills", "kills": 3}), "is of another version"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_and_left_out(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "good.json").write_text(json.dumps(raw("ease", [{"recall@20": 0.2}])))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "broken.json").write_text(content)
    page, (sentence,) = make_report([tmp_path], title="x")
    assert sentence.startswith(f"deep/broken.json {reason}")
    assert "0.2000" in page
    assert "deep/broken.json" in page


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="there is no raw result in"):
        make_report([tmp_path], title="x")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ReportError, match=r"no raw result in .*: broken.json is not valid JSON"):
        make_report([tmp_path], title="x")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        make_report([tmp_path / "nowhere"], title="x")


# --- the page ------------------------------------------------------------------------------------------------------


def nasty() -> dict[str, Any]:
    """A result whose every text is HTML."""
    result = raw(NASTY, [{"recall@20": 0.2, f"cosine[{NASTY}]": 0.1}], dataset=NASTY, command=NASTY, variant=NASTY)
    return {**result, "protocol": "retrieval", "machine": {"cpu": NASTY, "versions": {NASTY: NASTY}}}


def test_names_are_escaped(report: Callable[..., Page]) -> None:
    page = report(nasty(), {"what": NASTY, "command": NASTY, NASTY: NASTY})
    assert not any(tag == "script" for tag, _ in page.tags)
    assert f"Withheld {NASTY} features" in page.tables
    assert NASTY in page.tables


def test_page_needs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(raw("ease", [{"recall@20": 0.2, "recall@20[level=0]": 0.1}])))
    text, _ = make_report([tmp_path], title="x")
    assert not re.search(r"https?:|url\(|@import|<link|<img|<script| src=", text)
    assert all(a["href"].startswith("#") for tag, a in Page(text).tags if tag == "a" and a["href"])
    assert text == make_report([tmp_path], title="x")[0]


def test_real_results() -> None:
    """All that the docs are made from can be read."""
    page, left_out = make_report([Path(__file__).parents[2] / "docs" / "results"], title="x")
    assert left_out == []
    assert len(Page(page).tables) > 20


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("values", [(0.1, 0.2), (0.0501, 0.0553), (-0.00002, 0.00003), (12345.0, 23456.0)])
def test_ticks_leave_room_for_the_axis_label(values: tuple[float, float], small: bool) -> None:
    series = [plots.Series("one", list(enumerate(values)))]
    svg = ET.fromstring(plots.lines("Loss", series, x="epoch", y="weighted loss", small=small).svg)
    ticks = [word for word in svg.iter("text") if word.get("text-anchor") == "end"]
    assert len(ticks) > 1
    for tick in ticks:
        assert float(tick.get("x", 0)) - 7.2 * len(tick.text or "") > 20  # the label ends at 16
        assert float(tick.get("x", 0)) < float(svg.get("viewBox", "").split()[2]) / 2


@pytest.mark.parametrize("name", ["validation_only", "rehearsal"])
def test_results_of_validation_only_stand_apart_under_the_options_old_name_too(name: str) -> None:
    runs = [{"seed": 1, "metrics": {"recall@20": 0.5}}]
    about = {"protocol": "new-items", "dataset": "d", "model": "m", "config": {name: True}, "runs": runs}
    condition = Result.model_validate(about).condition
    assert condition == "validation only: other items held out as new, to choose settings by"
