"""Tables between the figures and a page: comparisons of results, best in bold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.report.results import Result, Spread

MODELS = {
    "dgmrec": "DGMRec",
    "lrmm": "LRMM",
    "iris": "Multimodal IRIS",
    "collaborative": "DGMRec without any modality",
    "lightgcn-bpr": "LightGCN",
    "vbpr": "VBPR",
    "neumf": "NeuMF",
    "ease": "EASE",
    "ease-scaled": "EASE, columns scaled",
    "graph-filter": "Graph filter",
    "graph-filter-content": "Graph filter with content",
    "als": "ALS",
    "bpr": "BPR",
    "item-knn": "Item-kNN",
    "popularity": "Popularity",
    "content": "Content profile",
    "nn": "NN",
    "mean": "Mean",
    "neigh-mean": "NeighMean",
    "multi-hop": "MultiHop",
    "pers-pagerank": "PersPageRank",
    "heat": "Heat",
    "ridge": "Ridge",
    "offset": "Offset",
    "user-bias": "User bias",
    "item-bias": "Item bias",
    "biases": "User and item bias",
    "svd": "SVD",
    "svdpp": "SVD++",
    "nmf": "NMF",
    "hft": "HFT",
    "tfidf-ridge": "TF-IDF ridge",
    "biases-tfidf-ridge": "Biases and TF-IDF ridge",
}
OURS = ("dgmrec", "lrmm", "iris")
_ERRORS = ("rmse", "mae", "calibration_error")


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A name and its cells."""

    name: str
    cells: Sequence[Cell]
    ours: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under a header whose first entry stands above the rows' names."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Row]
    note: str = ""
    words: bool = False  # cells are text rather than figures

    @classmethod
    def plain(cls, caption: str, header: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> Table:
        """From bare values, the first of each row its name."""
        return cls(
            caption, header, [Row(str(name), [Cell(str(value)) for value in rest]) for name, *rest in rows], note
        )

    def markdown(self) -> str:
        """As the docs hold it, without caption and note."""
        lines = [f"| {' | '.join(self.header)} |", "|---" * len(self.header) + "|"]
        lines += [f"| {' | '.join([row.name, *(cell.text for cell in row.cells)])} |" for row in self.rows]
        return "\n".join(lines).replace("|  |", "| |")


@dataclass(frozen=True)
class Column:
    """A column of a comparison: what it shows of a result."""

    title: str
    find: Callable[[Result], Spread | None]
    lower: bool = False  # the smaller, the better
    digits: int = 4
    judged: bool = True  # its best is bold

    @classmethod
    def of(cls, metric: str, title: str = "") -> Column:
        """A metric by its name in the raw results."""
        return cls(title or metric_label(metric), lambda result: result.spread(metric), lower_is_better(metric))


def compare(results: Sequence[Result], columns: Sequence[Column], caption: str, note: str = "") -> Table | None:
    """Results as rows, best first by the first column that all agree to have; columns and rows without any figure are
    left out.

    The best of a column is bold, with all that show the same digits; where only one has a figure, none is.
    """
    figures = [(column, [column.find(result) for result in results]) for column in columns]
    figures = [(column, spreads) for column, spreads in figures if any(spreads)]
    if not figures:
        return None
    first, leading = figures[0]
    rows_with_figures = [row for row in range(len(results)) if any(spreads[row] for _, spreads in figures)]
    order = sorted(rows_with_figures, key=lambda row: _place(leading[row], first.lower))
    best = [_best(column, spreads) for column, spreads in figures]
    rows = []
    for row in order:
        cells = [_cell(spreads[row], column, top) for (column, spreads), top in zip(figures, best, strict=True)]
        seeds = Cell(str(len(results[row].runs)))
        rows.append(Row(label(results[row]), [*cells, seeds], results[row].model in OURS))
    return Table(caption, ["Model", *(column.title for column, _ in figures), "seeds"], rows, note)


def _cell(spread: Spread | None, column: Column, top: str | None) -> Cell:
    if spread is None:
        return Cell("")
    return Cell(spread.text(column.digits), _shown(spread, column) == top)


def _place(spread: Spread | None, lower: bool) -> tuple[bool, float]:
    if spread is None:
        return True, 0.0
    return False, spread.mean if lower else -spread.mean


def _shown(spread: Spread | None, column: Column) -> str | None:
    return None if spread is None else f"{spread.mean:.{column.digits}f}"


def _best(column: Column, spreads: Sequence[Spread | None]) -> str | None:
    known = [spread for spread in spreads if spread]
    if not column.judged or len(known) < 2:
        return None
    return _shown((min if column.lower else max)(known, key=lambda spread: spread.mean), column)


def label(result: Result) -> str:
    """What a model, or a variant of one, is called."""
    name = MODELS.get(result.model, result.model)
    return f"{name}, {result.variant}" if result.variant else name


def metric_label(metric: str) -> str:
    """What a metric is called: `recall@20[level=1]` is Recall@20, 1 lacking."""
    known = {
        "recall": "Recall",
        "ndcg": "NDCG",
        "hr": "HR",
        "cosine": "centred cosine",
        "neighbourhood_hit": "neighbourhood hit",
        "self_hit": "self-retrieval hit",
        "self_mrr": "self-retrieval MRR",
        "calibration_error": "calibration error",
        "rmse": "RMSE",
        "mae": "MAE",
    }
    stem, bracket, rest = metric.partition("[")
    base, at, k = stem.partition("@")
    return known.get(base, base) + at + k + (f" {bracket}{rest}" if bracket else "")


def lower_is_better(metric: str) -> bool:
    """Whether a metric is an error."""
    return metric.partition("[")[0].removeprefix("valid ") in _ERRORS
