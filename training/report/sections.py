"""What a report says of each dataset and protocol: tables and plots by what the raw results hold."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from models.dgmrec.config import OLD_NAMES as DGMREC_OLD_NAMES
from training.report import plots
from training.report.plots import Bar, Cloud, Plot, Series
from training.report.results import DATASETS, Amount, Config, Epoch, Result, Spread, Titles, paired_difference
from training.report.tables import (
    MODELS,
    OURS,
    Cell,
    Column,
    Row,
    Table,
    compare,
    label,
    lower_is_better,
    metric_label,
)
from training.trainer import OLD_NAMES as TRAINER_OLD_NAMES

RENAMED = {**DGMREC_OLD_NAMES, **TRAINER_OLD_NAMES}

T = TypeVar("T")

COMPARED = 5  # models in a plot
LEFT_OUT = ("hr@10", "ndcg@10", "hr@20", "ndcg@20")
EXPLAINED = (
    "Histories are taken away item by item, what is named first at first, or built up from nothing in that order; "
    "after each step the item held out is scored and ranked again. Relevance is the order of the explanations, "
    "interest that of a_ij alone, similarity that of p_i . q_j, content that of likeness. A faithful order loses the "
    "item soonest when its items go, and finds it soonest when they come: a small area under deletion, a large one "
    "under insertion."
)
ORDER = r"deletion hr@10\[(.+)\]"
OWN_FORM = "lacuna"
FORM_PAPER = "form-paper"  # what `lacuna evaluate --form paper` calls its results
VARIED = (
    "document_words",
    "drop",
    "embedding_size",
    "negatives",
    "alpha",
    "beta",
    "learning_rate",
    "l2_factors",
    "l2_interest",
)  # by the papers of LRMM and IRIS
VARYING = {"leave-one-out": ("iris", ("hr@10",)), "rating": ("lrmm", ("rmse[+F]", "mae[+F]"))}
FOLLOWING = ("tower_size", "interest_size")  # settings that embedding_size may bring with it
RECONSTRUCTIONS = "Test pairs of one split: a modality as it is embedded, and as it is rebuilt from the others alone."
HEADLINES = ("recall@20", "recall@20[missing=0%]", "rmse[+F]", "hr@10")
RANKING = ("recall@20", "ndcg@20", "recall@50", "ndcg@50")
SIMILARITY = "similarity["
GROWING = {
    "epoch_seconds": "seconds an epoch",
    "refresh_seconds": "seconds to regenerate and refine",
    "prepare_seconds": "seconds to prepare",
    "peak_rss_mb": "peak memory (MiB)",
}
IMPUTATION = ("cosine", "neighbourhood_hit@10", "self_hit@10", "self_mrr", "calibration_error")
SPARSITY = (
    "LRMM's items are known by so many training reviews at most, baselines have so many training ratings of an item; "
    "over the splits that all of a line's results have. Without ratings of an item baselines cannot be trained."
)
TITLES = {
    "stranger": "What a stranger gets",
    "missing": "Top-N with missing modalities",
    "new-items": "New items",
    "posted": "New items, posted after training",
    "ratio": "Top-N by share of missing cells",
    "retrieval": "Imputation and cross-modal retrieval",
    "rating": "Rating prediction",
    "leave-one-out": "Leave-one-out",
    "growth": "Growth of training with the data",
}
ABOUT = {
    "stranger": "Settings are chosen by each model itself, on the validation part; nothing is withheld.",
    "missing": "Every item that a user has not seen in training is ranked. The withheld cells reached no loss, graph, "
    "statistic or encoder.",
    "new-items": "The training interactions of the new items have joined the test part. All: every test interaction; "
    "new alone: those with new items, which are still ranked among all items.",
    "posted": "Training has seen nothing of the new items; they are then ranked by what is observed of them, one "
    "modality or all. Hits are those among the first 20 of all lists, before and after the new items are posted.",
    "ratio": "The same ranking with ever more item-modality cells withheld, each share containing the smaller ones.",
    "retrieval": "Features imputed for withheld cells, compared with the true ones. All similarities are centred "
    "cosines.",
    "rating": "Errors of predicted ratings from 1 to 5 on the same test rows for every model; smaller is better. "
    "Always answering the most frequent rating has a low MAE, so it is never read alone.",
    "leave-one-out": "One item of each user, held out, is ranked among 99 that the user has not met.",
    "growth": "The dataset resampled to so many times its users, items and interactions, with the same number of steps "
    "an epoch.",
}


@dataclass(frozen=True)
class Provenance:
    """How the figures of one model were made."""

    name: str
    command: str
    facts: Sequence[str]


@dataclass(frozen=True)
class ItemCard:
    """How an item is shown; its picture in base64."""

    title: str
    note: str
    picture: str | None = None


@dataclass(frozen=True)
class Recommendation:
    """A recommended item and its reasons."""

    item: ItemCard
    reasons: Sequence[ItemCard]


@dataclass(frozen=True)
class Block:
    """Something under a heading of its own; `folded` until it is asked for."""

    title: str = ""
    text: str = ""
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    provenance: Sequence[Provenance] = ()
    recommendations: Sequence[Recommendation] = ()
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """One protocol on one dataset under one condition."""

    anchor: str
    title: str
    about: str
    blocks: Sequence[Block]
    synthetic: bool = False


@dataclass(frozen=True)
class Chapter:
    """One dataset, or the service."""

    anchor: str
    title: str
    sections: Sequence[Section]


def chapters(results: Iterable[Result]) -> list[Chapter]:
    """One chapter a dataset, one section a protocol and condition; what was measured differently is never compared."""
    groups: dict[str, dict[tuple[str, str], list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        groups[result.dataset][result.protocol, result.condition].append(result)
    pages = []
    for dataset in sorted(groups, key=_known(DATASETS)):
        sections = [
            _section(f"{_anchor(dataset)}-{number}", protocol, condition, members)
            for number, ((protocol, condition), members) in enumerate(
                sorted(groups[dataset].items(), key=lambda group: (_known(TITLES)(group[0][0]), group[0][1]))
            )
        ]
        whole = [member for members in groups[dataset].values() for member in members]
        sections += [section for section in (_sparsity(f"{_anchor(dataset)}-sparsity", whole),) if section]
        pages.append(Chapter(_anchor(dataset), DATASETS.get(dataset, dataset), sections))
    return pages


def _sparsity(anchor: str, results: Iterable[Result]) -> Section | None:
    """Errors by how many reviews or ratings of an item are left for training, over the conditions."""
    by_model: dict[str, dict[float, Result]] = defaultdict(dict)
    for result in results:
        config = result.config
        if result.protocol == "rating" and not (config.missing or config.trained_on):
            amount = math.inf if config.fewest is None else float(config.fewest)
            if _is_whole(result) or config.fewest is not None:
                by_model[_of_form(result)][amount] = result
    lines = {name: found for name, found in by_model.items() if len(found) > 1}
    amounts = sorted({amount for found in lines.values() for amount in found})
    ticks = {float(place): f"{amount:.0f}" if amount < math.inf else "all" for place, amount in enumerate(amounts)}
    drawn = []
    for metric in ("rmse[+F]", "mae[+F]", "rmse[-M]", "rmse[-V]"):
        series = [line for name, found in lines.items() if (line := _by_amount_left(name, found, amounts, metric))]
        if series:
            y, x = metric_label(metric), "training reviews or ratings of an item, at most"
            drawn.append(plots.lines(f"{y} by what is left of an item", series, x=x, y=y, ticks=ticks))
    return Section(anchor, "Sparsity", SPARSITY, [Block(plots=drawn)]) if drawn else None


def _of_form(result: Result) -> str:
    """What a model is called, with its form where that is not its own."""
    name = MODELS.get(result.model, result.model)
    return name if _form(result) == OWN_FORM else f"{name}, {FORM_PAPER}"


def _by_amount_left(name: str, found: Mapping[float, Result], amounts: Sequence[float], metric: str) -> Series | None:
    """The mean over the splits that all amounts have, by the place of the amount."""
    seeds = set.intersection(*(set(result.values(metric)) for result in found.values()))
    if not seeds:
        return None
    means = [
        (float(place), sum(found[amount].values(metric)[seed] for seed in seeds) / len(seeds))
        for place, amount in enumerate(amounts)
        if amount in found
    ]
    return Series(name, means)


def overview(results: Iterable[Result]) -> Table | None:
    """The best model and ours by the first figure of each protocol that compares models.

    A variant over fewer seeds than its model is left out: other splits are easier or harder for all.
    """
    groups: dict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for result in results:
        if result.protocol != "growth":
            groups[result.dataset, result.protocol, result.condition].append(result)
    rows = []
    order = sorted(groups, key=lambda key: (_known(DATASETS)(key[0]), _known(TITLES)(key[1]), key[2]))
    for dataset, protocol, condition in order:
        members = groups[dataset, protocol, condition]
        seeds = {member.model: len(member.runs) for member in members if not member.variant}
        members = [member for member in members if len(member.runs) >= seeds.get(member.model, 0)]
        metric = _headline(members)
        scored = [(spread, label(member)) for member in members if metric and (spread := member.spread(metric))]
        if not metric or not scored:
            continue
        best, name = (min if lower_is_better(metric) else max)(scored, key=lambda pair: pair[0].mean)
        ours = next((m.spread(metric) for m in members if m.model in OURS and not m.variant), None)
        where = TITLES.get(protocol, protocol) + (f"; {condition}" if condition else "")
        cells = [where, metric_label(metric), f"{name}: {best.text()}", ours.text() if ours else ""]
        rows.append(Row(DATASETS.get(dataset, dataset), [Cell(cell) for cell in cells]))
    header = ("Dataset", "Protocol", "Measure", "Best in this report", "Lacuna's own model")
    return Table("At a glance", header, rows, words=True) if rows else None


def _headline(members: Sequence[Result]) -> str | None:
    names = {name for member in members for name in member.metrics}
    cosines = sorted(name for name in names if name.startswith("cosine[") and "level" not in name)
    if members[0].protocol == "retrieval":
        return cosines[0] if cosines else None
    usual = next((name for name in HEADLINES if name in names), None)
    return usual or next((name for name in members[0].metrics if not name.startswith("valid ")), None)


def _section(name: str, protocol: str, condition: str, members: Sequence[Result]) -> Section:
    compared = _compared(members)
    make: dict[str, Callable[[Sequence[Result]], list[Block]]] = {
        "missing": _missing,
        "new-items": _new_items,
        "ratio": _ratio,
        "retrieval": _retrieval,
        "rating": _rating,
        "leave-one-out": _left_out,
        "growth": _growth,
    }
    blocks = make.get(protocol, _other)(compared)
    blocks += [block for block in (_ablation(group) for group in _variants(members)) if block]
    whole_first = sorted(members, key=lambda member: member.variant is not None)
    if protocol in VARYING:
        model, metrics = VARYING[protocol]
        blocks += [block for block in (_sensitivity([m for m in members if m.model == model], metrics),) if block]
    blocks += [_curves(member) for member in whole_first if _histories(member)]
    blocks.append(_provenance(members))
    title = TITLES.get(protocol, protocol)
    about = " ".join(filter(None, [ABOUT.get(protocol, ""), f"Condition: {condition}." if condition else ""]))
    return Section(name, title, about, blocks, any(member.synthetic for member in members))


def _compared(members: Sequence[Result]) -> list[Result]:
    """One result a model and form, or all variants of a model that has no whole one: the rest are ablations."""
    whole = {member.model for member in members if _is_whole(member)}
    return [member for member in members if _is_whole(member) or member.model not in whole]


def _is_whole(member: Result) -> bool:
    return member.variant in (None, FORM_PAPER)


# --- protocols -------------------------------------------------------------------------------------------------------


def _missing(members: Sequence[Result]) -> list[Block]:
    columns = [*map(Column.of, RANKING), *_cost()]
    blocks = _tables(compare(members, columns, "All items ranked"))
    levels = _labels(members, r"recall@20\[(level=\d+)\]")
    if levels:
        by_level = [
            compare(
                members,
                [Column.of(f"{metric}[{level}]", f"{_count(level)} lacking") for level in levels],
                f"{metric_label(metric)} by how many modalities the item lacks",
            )
            for metric in ("recall@20", "ndcg@20")
        ]
        plot = _by_level(members, "recall@20", "", levels)
        blocks.append(Block("By level of missingness", tables=_there(by_level), plots=_there([plot])))
    return blocks


def _new_items(members: Sequence[Result]) -> list[Block]:
    metrics = [f"{metric}{group}" for group in ("", "[new]") for metric in RANKING]
    titles = [f"{metric_label(m.removesuffix('[new]'))}, {'new alone' if '[new]' in m else 'all'}" for m in metrics]
    columns = [Column.of(metric, title) for metric, title in zip(metrics, titles, strict=True)]
    rows = [
        Bar(label(member), spread.mean, spread.deviation, spread.text(), member.model in OURS)
        for member in _ordered(members, "recall@20[new]")
        if (spread := member.spread("recall@20[new]"))
    ]
    title = "Recall@20 on new items alone"
    table = compare(members, [*columns, *_cost()], "Ranked among all items")
    return _tables(table, plots=_bars(title, rows, "Recall@20"))


def _ratio(members: Sequence[Result]) -> list[Block]:
    shares = _labels(members, r"recall@20\[(missing=\d+%)\]")
    if not shares:
        return _other(members)
    tables, drops, series = [], [], []
    for metric in ("recall@20", "ndcg@20"):
        columns = [Column.of(f"{metric}[{share}]", f"{_count(share)} missing") for share in shares]
        tables.append(compare(members, columns, f"{metric_label(metric)} by share of missing cells"))
    for member in _ordered(members, f"recall@20[{shares[0]}]"):
        cells = [_drop(member, shares[0], share) for share in shares[1:]]
        drops.append(Row(label(member), [Cell(cell) for cell in cells], member.model in OURS))
        spreads = [(share, member.spread(f"recall@20[{share}]")) for share in shares]
        known = [(float(_count(share).rstrip("%")), spread) for share, spread in spreads if spread]
        series.append(Series(label(member), [(x, s.mean) for x, s in known], [spread.deviation for _, spread in known]))
    tables.append(
        Table(
            "Drop of Recall@20",
            ["Model", *(f"{_count(share)} missing" for share in shares[1:])],
            drops,
            f"Against {_count(shares[0])} missing, in percent, seed by seed.",
        )
    )
    plot = plots.lines("Recall@20 by share of missing cells", series, x="missing cells (%)", y="Recall@20")
    return _tables(*tables, plots=[plot])


def _drop(member: Result, first: str, share: str) -> str:
    whole, left = (member.values(f"recall@20[{name}]") for name in (first, share))
    drop = Spread.of(100 * (left[seed] / whole[seed] - 1) for seed in left if whole.get(seed))
    return f"{drop.text(1)} %" if drop else ""


def _growth(members: Sequence[Result]) -> list[Block]:
    sizes = _labels(members, r"epoch_seconds\[(size=\d+)\]")
    if not sizes:
        return _other(members)
    tables, drawn = [], []
    for member in members:
        rows, series = [], []
        for metric, title in GROWING.items():
            spreads = [(float(_count(size)), member.spread(f"{metric}[{size}]")) for size in sizes]
            known = [(size, spread.mean) for size, spread in spreads if spread]
            if not known:
                continue
            rows.append(Row(title, [Cell(f"{value:,.1f}") for _, value in known]))
            series.append(Series(title, [(size, value / known[0][1]) for size, value in known]))
        series.append(Series("in proportion", [(size, size / series[0].points[0][0]) for size, _ in series[0].points]))
        tables.append(Table(label(member), ["", *(f"{_count(size)} times" for size in sizes)], rows))
        drawn.append(plots.lines("Growth", series, x="times the data", y="times the smallest", zero=True))
    return _tables(*tables, plots=drawn)


def _retrieval(members: Sequence[Result]) -> list[Block]:
    modalities = _labels(members, r"cosine\[([^\]]+)\]")
    blocks = []
    for modality in modalities:
        own = f"[{modality}]"
        columns = [Column.of(f"{metric}{own}", metric_label(metric)) for metric in IMPUTATION]
        tables = [compare(members, columns, f"Withheld {modality} features")]
        levels = _labels(members, rf"cosine\[{re.escape(modality)}\]\[(level=\d+)\]")
        for metric in ("cosine", "neighbourhood_hit@10", "calibration_error"):
            by_level = [Column.of(f"{metric}{own}[{level}]", f"{_count(level)} lacking") for level in levels]
            title = f"{modality}: {metric_label(metric)} by how many modalities the item lacks"
            tables.append(compare(members, by_level, title))
        rows = [
            Bar(label(member), spread.mean, spread.deviation, spread.text(), member.model in OURS)
            for member in _ordered(members, f"cosine{own}")
            if (spread := member.spread(f"cosine{own}"))
        ]
        drawn = _bars(f"{modality}: imputed against true features", rows, "centred cosine")
        plot = _by_level(members, "cosine", own, levels) if len(levels) > 1 else None
        blocks.append(Block(f"Modality {modality}", tables=_there(tables), plots=[*drawn, *_there([plot])]))
    calibrated = compare(
        members,
        [Column.of("calibration_error", "calibration error")],
        "Confidence against what it announces",
        "Expected calibration error of the served confidence, over ten bins, all withheld cells together.",
    )
    return [*blocks, *_tables(calibrated)]


def _rating(members: Sequence[Result]) -> list[Block]:
    regimes = _labels(members, r"rmse\[(.+)\]")
    columns = [Column.of(f"{metric}[{regime}]") for regime in regimes for metric in ("rmse", "mae")]
    published = [
        Column(metric_label(metric), partial(_published, metric=metric), lower=True)
        for metric in (f"{name}[{regime}]" for regime in regimes for name in ("rmse", "mae"))
    ]
    note = "Mean and spread over random splits, which are harder or easier for all models alike: see the pairs below."
    tables = [compare(members, columns, "Errors by regime", note), compare(members, published, "The published split")]
    pairs = [_pairs(members, f"rmse[{regime}]") for regime in regimes[:1]]
    shown = _ordered(members, f"rmse[{regimes[0]}]")[:COMPARED] if regimes else []
    drawn = [plot for side in ("user", "item") if (plot := _by_amount(shown, side))]
    rebuilt = [plot for member in members for plot in _reconstructed(member)]
    blocks = _tables(*tables, *pairs, plots=drawn)
    return [*blocks, Block("Reconstructions", RECONSTRUCTIONS, plots=rebuilt)] if rebuilt else blocks


def _by_amount(members: Sequence[Result], side: str) -> Plot | None:
    """Errors by how many training reviews tell of the user or item, all splits together."""
    pooled: dict[str, dict[str, list[Amount]]] = {label(member): defaultdict(list) for member in members}
    for member in members:
        for amount in (amount for run in member.runs for amount in run.by_amount.get(side, ())):
            pooled[label(member)][amount.reviews].append(amount)
    spans = sorted({span for errors in pooled.values() for span in errors}, key=lambda span: int(span.split("-")[0]))
    series = [
        Series(name, [(place, _pooled(errors[span])) for place, span in enumerate(spans) if span in errors])
        for name, errors in pooled.items()
        if errors
    ]
    if not series:
        return None
    ticks = {float(place): span for place, span in enumerate(spans)}
    title, x = f"Error by what is known of the {side}", f"training reviews of the {side}"
    return plots.lines(title, series, x=x, y="RMSE", ticks=ticks)


def _pooled(amounts: Sequence[Amount]) -> float:
    rows = sum(amount.rows for amount in amounts)
    return float((sum(amount.rows * amount.rmse**2 for amount in amounts) / rows) ** 0.5)


def _reconstructed(member: Result) -> Iterable[Plot]:
    """Each modality beside its reconstruction."""
    for run in member.runs:
        for name, places in run.reconstructions.items():
            clouds = [Cloud("embedded", places.observed), Cloud("reconstructed", places.rebuilt, True, 1)]
            yield plots.scatter(f"{label(member)}: {name.replace('_', ' ')}, t-SNE", clouds)


def _published(member: Result, *, metric: str) -> Spread | None:
    metrics = member.published.metrics if member.published else {}
    return Spread.of([metrics[metric]] if metric in metrics else [])


def _pairs(members: Sequence[Result], metric: str) -> Table | None:
    """Each model against the best, split by split."""
    order = _ordered(members, metric)
    if len(order) < 2:
        return None
    best, rows = order[0].values(metric), []
    for member in order[1:]:
        own = member.values(metric)
        shared = own.keys() & best.keys()
        worse = sum(own[seed] > best[seed] for seed in shared)
        cells = [Cell(paired_difference(own, best)), Cell(f"{worse} of {len(shared)}")]
        rows.append(Row(label(member), cells, member.model in OURS))
    return Table(
        f"{metric_label(metric)} against {label(order[0])}, by pairs",
        ["Model", "difference [95 % interval]", "splits where it is worse"],
        rows,
        "On the same rows of the same splits; the interval allows for training parts that overlap.",
    )


def _left_out(members: Sequence[Result]) -> list[Block]:
    blocks = _tables(compare(members, [*map(Column.of, LEFT_OUT), *_cost()], "One item against 99"))
    explaining = [member for member in members if _labels([member], ORDER)]
    return [*blocks, *(_explained(member) for member in explaining)]


def _explained(member: Result) -> Block:
    """Whether the explanations of one model are what its scores rest on."""
    orders = _labels([member], ORDER)
    names = [f"{way} {measure}" for measure in ("hr@10", "score") for way in ("deletion", "insertion")]
    rows = [
        Row(order, [Cell(_text(member, f"{name}[{order}]")) for name in names], order == "relevance")
        for order in orders
    ]
    told = "On these users, the score falls by more without the item named first than without a random other one for "
    faithful = member.spread("faithful")
    note = f"{told}{faithful.mean:.1%}." if faithful else ""
    table = Table("Area under the curve, by order", ["Order", *names], rows, note)
    drawn = []
    for name in names:
        lines = [(order, [run.curves.get(f"{name}[{order}]", []) for run in member.runs]) for order in orders]
        series = [Series(order, _mean_curve(curves)) for order, curves in lines if all(curves)]
        if series:
            way, measure = name.split(" ")
            x = f"history {'taken away' if way == 'deletion' else 'given'} (%)"
            drawn.append(plots.lines(name.capitalize(), series, x=x, y=metric_label(measure)))
    return Block(f"Explanations of {label(member)}", EXPLAINED, [table], drawn)


def _mean_curve(curves: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """The mean of the runs, by the share of the history in percent."""
    steps = len(curves[0]) - 1
    return [(100 * step / steps, sum(values) / len(values)) for step, values in enumerate(zip(*curves, strict=True))]


def _sensitivity(group: Sequence[Result], metrics: Sequence[str]) -> Block | None:
    """For each setting of `VARIED`, a line through the results that differ in it and in nothing else."""
    drawn = []
    for metric, setting in itertools.product(metrics, VARIED):
        alike: dict[str, list[Result]] = defaultdict(list)
        for member in group:
            rest = {name: value for name, value in _flat(member.config).items() if name not in (setting, *FOLLOWING)}
            if isinstance(_flat(member.config).get(setting), int | float) and member.spread(metric):
                alike[repr(sorted(rest.items()))].append(member)
        series = [line for members in alike.values() if (line := _by_setting(members, setting, metric))]
        if series:
            name = metric_label(metric)
            drawn.append(plots.lines(f"{name} by {setting}", series, x=setting, y=name))
    return Block("By setting", plots=drawn) if drawn else None


def _by_setting(members: Sequence[Result], setting: str, metric: str) -> Series | None:
    points = {float(_flat(member.config)[setting]): member.spread(metric) for member in members}
    known = [(value, spread) for value, spread in sorted(points.items()) if spread]
    if len(known) < 2:
        return None
    name = label(min(members, key=lambda member: len(member.variant or "")))
    return Series(name, [(x, spread.mean) for x, spread in known], [spread.deviation for _, spread in known])


def _other(members: Sequence[Result]) -> list[Block]:
    metrics = dict.fromkeys(name for member in members for name in member.metrics if not name.startswith("valid "))
    return _tables(compare(members, [*map(Column.of, metrics), *_cost()], "All figures"))


# --- ablations, curves, provenance -----------------------------------------------------------------------------------


def _variants(members: Sequence[Result]) -> list[list[Result]]:
    """For each model and form with a whole result and variants of it: these, the whole one first.

    Variants of a form that has no whole result stand beside the model's own form.
    """
    whole = {(member.model, _form(member)) for member in members if _is_whole(member)}
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for member in sorted(members, key=lambda member: (not _is_whole(member), member.variant or "")):
        form = _form(member)
        groups[member.model, form if (member.model, form) in whole else OWN_FORM].append(member)
    return [group for group in groups.values() if len(group) > 1 and _is_whole(group[0])]


def _form(member: Result) -> str:
    return str(member.config.model.get("form", OWN_FORM))


def _ablation(group: Sequence[Result]) -> Block | None:
    whole, *variants = group
    metric = _headline([whole])
    if metric is None:
        return None
    reference = whole.values(metric)
    rows, drawn = [Row(label(whole), [Cell(_text(whole, metric)), Cell(""), Cell("")], ours=True)], []
    for variant in variants:
        shares = Spread.of(
            100 * (value / reference[seed] - 1) for seed, value in variant.values(metric).items() if reference.get(seed)
        )
        difference = f"{shares.mean:+.1f} %" if shares else ""
        rows.append(
            Row(
                variant.variant or "", [Cell(_text(variant, metric)), Cell(difference), Cell(_settings(whole, variant))]
            )
        )
        if shares:
            drawn.append(Bar(variant.variant or "", shares.mean, shares.deviation, difference))
    name = metric_label(metric)
    table = Table(
        f"{label(whole)}: what each part is worth",
        ["Variant", name, "difference", "settings that differ"],
        rows,
        "Difference to the full model in percent, seed by seed; whiskers are one standard deviation of it.",
    )
    return Block(
        "Ablations", tables=[table], plots=_bars(f"Change of {name} by variant", drawn, f"change of {name} (%)")
    )


def _text(result: Result, metric: str) -> str:
    spread = result.spread(metric)
    return spread.text() if spread else ""


def _settings(whole: Result, variant: Result) -> str:
    """The settings of a variant that are not those of the full model; the device is none."""
    theirs, own = (_flat(member.config) for member in (whole, variant))
    differing = (name for name, value in own.items() if theirs.get(name) != value and name != "device")
    return ", ".join(f"{name}={own[name]}" for name in differing) or "none"


def _flat(config: Config) -> dict[str, Any]:
    rest = {name: value for name, value in (config.model_extra or {}).items() if name not in ("grid", "chosen")}
    settings = {**config.model, **config.trainer, **rest}
    # Results of earlier versions have other names for settings, and settings that are constants now.
    names = {name: RENAMED.get(name, name) for name in settings}
    return {new: settings[name] for name, new in names.items() if new is not None}


def _histories(member: Result) -> list[tuple[str, list[Epoch], int | None]]:
    """Name, epochs and best epoch of each training that a result tells of."""
    histories = []
    for run in member.runs:
        if isinstance(run.history, list):
            best = run.best_epoch if isinstance(run.best_epoch, int) else None
            histories.append((f"seed {run.seed}", run.history, best))
            continue
        for name, history in run.history.items():
            best = run.best_epoch.get(name) if isinstance(run.best_epoch, dict) else None
            histories.append((f"seed {run.seed}, {name.replace('=', ' ')}", history, best))
    return [entry for entry in histories if entry[1]]


def _curves(member: Result) -> Block:
    histories = _histories(member)
    wanted = str(member.config.trainer.get("metric", "recall@20"))
    series = [
        Series(
            name,
            [(epoch.epoch, epoch.metrics[wanted]) for epoch in history if wanted in epoch.metrics],
            best=[(e.epoch, e.metrics[wanted]) for e in history if e.epoch == best and wanted in e.metrics],
        )
        for name, history, best in histories
    ]
    shown = metric_label(wanted)
    drawn = []
    if any(line.points for line in series):
        note = "Circles mark the best epoch, whose weights are kept."
        drawn.append(
            plots.lines(f"Validation {shown}", series, x="epoch", y=f"validation {shown}", whole=True, note=note)
        )
    drawn += _similarities(histories)
    parts = dict.fromkeys(part for _, history, _ in histories for epoch in history for part in epoch.losses)
    for part in parts:
        losses = [
            Series(name, [(epoch.epoch, epoch.losses[part]) for epoch in history if part in epoch.losses])
            for name, history, _ in histories
        ]
        if any(value for line in losses for _, value in line.points):
            title = "Loss, all parts" if part == "loss" else f"Loss part: {part}"
            drawn.append(plots.lines(title, losses, x="epoch", y="weighted loss", whole=True, small=True))
    return Block(f"Training curves: {label(member)}", plots=drawn, folded=True)


def _similarities(histories: Sequence[tuple[str, list[Epoch], int | None]]) -> list[Plot]:
    """One plot a training: how the parts of an item come together and part."""
    drawn = []
    for name, history, _ in histories:
        names = dict.fromkeys(key for epoch in history for key in epoch.metrics if key.startswith(SIMILARITY))
        series = [
            Series(
                key.removeprefix(SIMILARITY).removesuffix("]"),
                [(epoch.epoch, epoch.metrics[key]) for epoch in history if key in epoch.metrics],
            )
            for key in names
        ]
        if series:
            note = "Mean cosine between two parts of the same item, over the items that have what they are made of."
            title = f"Similarity of the parts, {name}"
            drawn.append(plots.lines(title, series, x="epoch", y="mean cosine", whole=True, note=note))
    return drawn


def _provenance(members: Sequence[Result]) -> Block:
    provenance = []
    for member in members:
        machine = member.machine
        versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        seconds, memory = (
            [value for run in member.runs if (value := getattr(run, name)) is not None]
            for name in ("seconds", "peak_rss_mb")
        )
        facts = [
            f"form {form}" if (form := member.config.model.get("form")) else "",
            f"seeds {', '.join(str(run.seed) for run in member.runs)}",
            f"{machine.cpu}, {machine.cores or '?'} cores, {machine.threads or '?'} threads",
            versions,
            f"{sum(seconds):.0f} s in all" if seconds else "",
            f"peak {max(memory):.0f} MB" if memory else "",
            *dict.fromkeys(str(run.titles) for run in member.runs if isinstance(run.titles, Titles)),
            f"raw result {member.file}",
        ]
        provenance.append(Provenance(label(member), member.command, [fact for fact in facts if fact]))
    return Block("How these figures were made", provenance=provenance, folded=True)


# --- helpers ---------------------------------------------------------------------------------------------------------


def _anchor(dataset: str) -> str:
    """A name as the page's links can carry it."""
    return "data-" + re.sub(r"[^a-z0-9]+", "-", dataset.lower())


def _cost() -> list[Column]:
    def per_epoch(member: Result) -> Spread | None:
        seconds = [run.seconds_per_epoch for run in member.runs]
        return Spread.of(value for value in seconds if isinstance(value, float))

    return [Column("s/epoch", per_epoch, lower=True, digits=2, judged=False)]


def _by_level(members: Sequence[Result], metric: str, own: str, levels: Sequence[str]) -> Plot | None:
    series = []
    for member in _ordered(members, f"{metric}{own}"):
        spreads = [(float(_count(level)), member.spread(f"{metric}{own}[{level}]")) for level in levels]
        known = [(x, spread) for x, spread in spreads if spread]
        series.append(Series(label(member), [(x, s.mean) for x, s in known], [s.deviation for _, s in known]))
    if not any(line.points for line in series):
        return None
    name = metric_label(metric)
    title = f"{own.strip('[]')}: {name} by level" if own else f"{name} by level"
    ticks = {float(_count(level)): _count(level) for level in levels}
    return plots.lines(title, series, x="modalities that the item lacks", y=name, ticks=ticks, zero=True)


def _bars(title: str, rows: Sequence[Bar], x: str) -> list[Plot]:
    return [plots.bars(title, rows, x=x)] if rows else []


def _ordered(members: Sequence[Result], metric: str) -> list[Result]:
    """Those that have the metric, best first."""
    scored = [(spread.mean, member) for member in members if (spread := member.spread(metric))]
    sign = 1 if lower_is_better(metric) else -1
    return [member for _, member in sorted(scored, key=lambda pair: sign * pair[0])]


def _labels(members: Sequence[Result], pattern: str) -> list[str]:
    """What the pattern's group finds among the metrics' names, in natural order."""
    names = [name for member in members for name in member.metrics]
    labels = dict.fromkeys(match[1] for name in names if (match := re.fullmatch(pattern, name)))
    if all(re.search(r"\d", name) for name in labels):
        return sorted(labels, key=lambda name: int(re.findall(r"\d+", name)[0]))
    return list(labels)


def _count(text: str) -> str:
    """`level=1` is 1."""
    return text.partition("=")[2]


def _tables(*tables: Table | None, plots: Sequence[Plot] = ()) -> list[Block]:
    given = _there(tables)
    return [Block(tables=given, plots=plots)] if given else []


def _there(values: Iterable[T | None]) -> list[T]:
    return [value for value in values if value is not None]


def _known(names: Iterable[str]) -> Callable[[str], tuple[int, str]]:
    """Known names in their order, others after them by the alphabet."""
    order = list(names)
    return lambda name: (order.index(name) if name in order else len(order), name)
