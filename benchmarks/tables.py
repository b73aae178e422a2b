"""Tables of the docs, from the raw results: `python benchmarks/tables.py` rewrites them, `--check` only compares.

A table stands between `<!-- table: NAME -->` and `<!-- end -->` in README.md or docs/*.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.interest import GAIN, LOWER
from training.report import service
from training.report.results import DATASETS, ServiceResult, paired_difference

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
VARIANTS = {
    "dgmrec-0.4": "DGMRec, generated features",
    "dgmrec-not-denoised-0.4": "the same, `feature_shrinkage=0`",
    "dgmrec-mean-0.4": "the same model, mean imputation",
    "dgmrec-no-modality-0.4": "without any modality",
}
ABLATIONS = {
    "no-modality": "without any modality",
    "no-generation-mean": "the mean in place of generation",
    "no-generation-nn": "the mean of the nearest items in place of generation",
    "no-generation-neigh-mean": "NeighMean in place of generation",
    "no-generation-multi-hop": "MultiHop in place of generation",
    "no-generation-pers-pagerank": "PersPageRank in place of generation",
    "no-generation-heat": "Heat in place of generation",
    "no-leaning": "guesses that lean on no real features",
    "not-closest": "guesses that do not follow near duplicates",
    "no-generation-loss": "without the loss of generation (closed forms alone)",
    "no-reconstruction": "without the loss of reconstruction",
    "no-alignment": "without alignment of modal and collaborative parts",
    "with-user-item-alignment": "with alignment of users' and items' modal parts (eq. 21)",
    "no-disentangling": "without disentangling (CLUB and InfoNCE)",
    "no-club": "without CLUB",
    "no-nce": "without InfoNCE of general parts",
    "no-refinement": "without refinement of the item graphs",
    "positives-left-in": "positives left in their users' histories",
    "equal-pairs": "pairs that count alike, whatever the user's history",
    "random-start": "embeddings that start at random",
}
RANKED = (
    "dgmrec", "dgmrec-form-paper", "collaborative", "ease", "graph-filter", "graph-filter-content",
    "item-knn", "popularity", "content", "vbpr", "lightgcn-bpr", "neumf",
)  # fmt: skip
IMPUTED = {
    "dgmrec": "dgmrec",
    "dgmrec-not-closest": "dgmrec, `near_duplicates=false`",
    "dgmrec-no-leaning": "dgmrec, `knn_smoothing=0`",
    "dgmrec-one-epoch": "dgmrec, `epochs=1`",
    "dgmrec-one-epoch-no-leaning": "dgmrec, `epochs=1`, `knn_smoothing=0`",
} | {name: name for name in ("ridge", "heat", "pers-pagerank", "multi-hop", "neigh-mean", "nn", "mean")}


def _load(path: str) -> Any:
    return json.loads((RESULTS / path).read_text("utf-8"))


def top_n() -> str:
    """Recall and NDCG on ML-100K by variant."""
    lines = ["| ML-100K, 40 % of cells missing | Recall@20 | NDCG@20 | Recall@50 | s/epoch |", "|---|---|---|---|---|"]
    for name, label in VARIANTS.items():
        found = _load(f"missing/ml-100k/{name}.json")
        cells = [_spread(found, metric) for metric in ("recall@20", "ndcg@20", "recall@50")]
        seconds = sum(run["seconds_per_epoch"] for run in found["runs"]) / len(found["runs"])
        lines.append(f"| {label} | {' | '.join(cells)} | {seconds:.2f} |")
    return "\n".join(lines)


def imputation() -> str:
    """Centred cosine and calibration of the generator on held-out cells."""
    found = _load("missing/ml-100k/dgmrec-0.4.json")
    lines = ["| held-out cells of ML-100K | centred cosine | expected calibration error |", "|---|---|---|"]
    for name in ("text", "image"):
        cosine, error = _spread(found, f"cosine[{name}]"), _spread(found, f"calibration_error[{name}]")
        lines.append(f"| {name} | {cosine} | {error} |")
    return "\n".join(lines)


def ranking() -> str:
    """Every model on the published splits, masks and new items of the three datasets."""
    rows = []
    for dataset, label in DATASETS.items():
        for model in RANKED:
            missing, new = (_found(f"{protocol}/{dataset}/{model}.json") for protocol in ("missing", "new-items"))
            if missing or new:
                rows.append([label, model, _pair(missing, ""), _pair(new, ""), _pair(new, "[new]")])
    return _table(["Recall@20 / NDCG@20", "model", "missing", "new-items", "of these, new items alone"], rows)


def new_items() -> str:
    """What becomes of items that nobody has touched, beside the baselines that can be asked for them."""
    named = {"dgmrec": "Lacuna", "ease": "EASE", "content": "similar content"}
    rows = [
        [label, name, _pair(found, ""), _pair(found, "[new]")]
        for dataset, label in DATASETS.items()
        for model, name in named.items()
        if (found := _found(f"new-items/{dataset}/{model}.json"))
    ]
    header = ["a fifth of the items new, Recall@20 / NDCG@20", "model", "ranking of all", "of these, new items alone"]
    return _table(header, rows)


def items_alone() -> str:
    """What searches by words find in bundles made of items alone."""
    named = {"demo": "the drawn demo catalogue, a colour and a kind", "ml-1m": "films by genre (plots and posters)"}
    rows = []
    for dataset, label in named.items():
        found = _found(f"search/{dataset}.json")
        for state in ("observed", "generated") if found else ():
            metric, chance = f"precision@10[{state}]", found["mean"][f"chance[{state}]"]
            rows.append([label, f"{found['mean']['queries']:.0f}", state, _spread(found, metric), f"{chance:.4f}"])
    return _table(["items alone", "queries", "texts", "precision@10", "by chance"], rows)


def training_cost() -> str:
    """Processor time and memory of training on 10,000 films."""
    rows = []
    for name in ("before", "films"):
        if found := _found(f"training/{name}.json"):
            mean = found["mean"]
            seconds, memory = mean["processor_seconds[first]"], mean["peak_rss_mb[first]"]
            rows.append([found["variant"], f"{seconds:.0f} s", f"{memory:,.0f} MiB"])
    return _table(["10,000 films (synthetic)", "processor", "peak memory"], rows)


def posted() -> str:
    """New items by what is observed of them: among the new, and what the whole list gains or loses by them."""
    rows = []
    for dataset, label in STRANGER_SETS.items():
        found = _found(f"posted/{dataset}/dgmrec.json")
        if not found:
            continue
        mean = found["mean"]
        names = [name.removesuffix(", after]").removeprefix("hits@20[") for name in mean if name.endswith(", after]")]
        for name in sorted(names, key=lambda name: name == "all"):
            words = f"[{name}, TF-IDF neighbours]"
            cells = [
                _pair(found, label) if f"recall@20{label}" in mean else ""
                for label in ("[chance]", f"[{name}, neighbours]", words, f"[{name}, among new]")
            ]
            before, after, new = (mean[f"hits@20[{name}, {when}]"] for when in ("before", "after", "new"))
            rows.append([label, name, *cells, f"{before:.0f}", f"{after:.0f} ({new:.0f})"])
    header = ["new items among the new, Recall@20 / NDCG@20", "known by", "chance", "neighbours' popularity"]
    return _table(
        [*header, "TF-IDF neighbours' popularity", "Lacuna", "hits before posting", "after (of new items)"], rows
    )


def validation_only() -> str:
    """What new items of ML-100K are lifted by, on others held out as if they were new."""
    lines = ["| ML-100K, validation only | Recall@20 / NDCG@20 | of these, new items alone |", "|---|---|---|"]
    for path in sorted((RESULTS / "new-items" / "ml-100k").glob("dgmrec-rehearsal-lift-*.json")):
        found = json.loads(path.read_text("utf-8"))
        lift = found["config"]["model"]["cold_lift"]
        lines.append(f"| popularity_offset {lift} | {_pair(found, '')} | {_pair(found, '[new]')} |")
    return "\n".join(lines)


STRANGER_SETS = {"ml-100k": "ML-100K", "ml-1m": "ML-1M", "lfm2k": "Last.fm-2K", "tiktok": "TikTok"} | {
    "musical-instruments": "Musical Instruments"
}
SIMPLE = ("popularity", "item-knn", "ease", "graph-filter")


def stranger() -> str:
    """The plain command on every dataset and split, beside the simple models."""
    rows = []
    for dataset, label in STRANGER_SETS.items():
        for suffix, split in (("", "random"), ("-time", "by time")):
            found = {name: _found(f"stranger/{dataset}/{name}{suffix}.json") for name in (*SIMPLE, "dgmrec")}
            if not all(found.values()):
                continue
            cells = [_pair(found[name], "") for name in found]
            gains = [
                found["dgmrec"]["mean"][metric] / max(found[name]["mean"][metric] for name in SIMPLE) - 1
                for metric in ("recall@20", "ndcg@20")
            ]
            minutes = found["dgmrec"]["runs"][0]["seconds"] / 60
            rows.append([label, split, *cells, " / ".join(f"{gain:+.0%}" for gain in gains), f"{minutes:.0f}"])
    header = ["Recall@20 / NDCG@20", "split", *SIMPLE, "Lacuna", "against the best of these", "minutes"]
    return _table(header, rows)


def stranger_choices() -> str:
    """What the validation part chose."""
    rows = []
    for dataset, label in STRANGER_SETS.items():
        for suffix, split in (("", "random"), ("-time", "by time")):
            for run in (_found(f"stranger/{dataset}/dgmrec{suffix}.json") or {"runs": []})["runs"]:
                words = ", ".join(f"`{name}={value}`" for name, value in run["setting"].items()) or "the defaults"
                rows.append([label, split, words, str(len(run["trials"]))])
    return _table(["chosen", "split", "settings", "trials"], rows)


def interest() -> str:
    """What training finds of what is liked, by what ratings count for."""
    found = {
        f"{label}{words}, {model}": result
        for dataset, label in STRANGER_SETS.items()
        for suffix, words in (("", ""), ("-time", " by time"))
        for file, model in (("ease", "EASE"), ("lightgcn", "DGMRec without content"))
        if (result := _found(f"interest/{dataset}/{file}{suffix}.json"))
    }
    rows = []
    for name in [*next(iter(found.values()))["config"]["candidates"], "chosen"]:
        cells = [_against(result["mean"], name) for result in found.values()]
        words = "what validation chooses of these" if name == "chosen" else name
        rows.append([f"{words} (the default)" if name == "from 4" else words, *cells])
    taken = [[_threshold(run["metrics"]) for run in result["runs"]] for result in found.values()]
    means = [
        _mean_of([run["metrics"] for run in result["runs"]], names)
        for result, names in zip(found.values(), taken, strict=True)
    ]
    words = [", ".join(dict.fromkeys(names)) for names in taken]
    cells = [f"{name}: {_against(mean, 'taken')}" for name, mean in zip(words, means, strict=True)]
    rows.append(["what `--min-rating choose` takes", *cells])
    header = ["ratings that count in training", *(f"{name} ({len(r['runs'])})" for name, r in found.items())]
    return _table(header, rows)


def _threshold(metrics: Mapping[str, float]) -> str:
    """What `training.interest.choose_min_rating` takes by the validation part."""
    names = ["from 4", *(f"from {low:g}" for low in LOWER)]
    best = max(names, key=lambda name: metrics[f"valid quality[{name}]"])
    gained = metrics[f"valid quality[{best}]"] > metrics["valid quality[from 4]"] * (1 + GAIN)
    return best if gained else "from 4"


def _mean_of(runs: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, float]:
    """The mean over the runs of what each took, and of the default."""
    both = {"taken": names, "from 4": ["from 4"] * len(runs)}
    return {
        f"{metric}[{which}]": sum(run[f"{metric}[{name}]"] for run, name in zip(runs, took, strict=True)) / len(runs)
        for metric in ("recall@20", "ndcg@20")
        for which, took in both.items()
    }


def _against(mean: Mapping[str, float], name: str) -> str:
    """Recall@20 and NDCG@20, and their geometric mean against that of ratings from 4 on."""
    if f"recall@20[{name}]" not in mean:
        return ""
    own, usual = ([mean[f"{metric}[{which}]"] for metric in ("recall@20", "ndcg@20")] for which in (name, "from 4"))
    gain = (own[0] * own[1] / usual[0] / usual[1]) ** 0.5 - 1
    return f"{own[0]:.4f} / {own[1]:.4f} ({gain:+.1%})"


def retrieval() -> str:
    """Imputed against true features, by modality and by how many modalities the item lacks."""
    lines = [
        "| | imputer | centred cosine, one missing | all missing | neighbourhood hit@10, one missing | all missing |"
        " self-retrieval hit@10, one missing | all withheld cells |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for dataset, label in DATASETS.items():
        for model, words in IMPUTED.items():
            found = _found(f"retrieval/{dataset}/{model}.json")
            if not found:
                continue
            known = ("text", "image", "audio", "speech")
            names = [name for name in known if f"cosine[{name}]" in found["mean"]]
            lacking = f"[level={len(names)}]"  # items of which nothing is observed
            wanted = (
                "cosine[{}][level=1]",
                "cosine[{}]" + lacking,
                "neighbourhood_hit@10[{}][level=1]",
                "neighbourhood_hit@10[{}]" + lacking,
                "self_hit@10[{}][level=1]",
                "self_hit@10[{}]",
            )
            cells = [" / ".join(f"{found['mean'][metric.format(name)]:.4f}" for name in names) for metric in wanted]
            lines.append(f"| {label} ({' / '.join(names)}) | {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def search() -> str:
    """What the first page of a search holds, by state, with calibrated cosines and with plain ones."""
    mean = _load("retrieval/ml-100k/dgmrec-search.json")["mean"]
    rows = []
    for name in ("text", "image"):
        for label, words in ((name, "calibrated"), (f"{name}, plain", "plain cosines")):
            figures = (
                f"generated_share@10[{label}]",
                *(f"precision@10[{label}{state}]" for state in ("", ", observed", ", generated")),
            )
            rows.append([f"ML-100K, {name}", words, *(f"{mean[figure]:.3f}" for figure in figures)])
    header = ["first ten of a search", "scores", "share of generated", "precision", "of observed", "of generated"]
    return _table(header, rows)


def ratio() -> str:
    """Recall by the share of missing cells, and what it loses against none missing."""
    found = {label: _found(f"ratio/{dataset}/dgmrec.json") for dataset, label in DATASETS.items()}
    some = {label: result for label, result in found.items() if result}
    shares = [f"{share:.0%}" for share in next(iter(some.values()))["config"]["missing"]]
    rows = []
    for label, result in some.items():
        recalls = [result["mean"][f"recall@20[missing={share}]"] for share in shares]
        cells = [f"{recall:.4f} ({recall / recalls[0] - 1:+.1%})" for recall in recalls]
        rows.append([label, str(len(result["runs"])), *cells])
    return _table(["Recall@20, cells missing", "seeds", *shares], rows)


def ablations() -> str:
    """Recall of DGMRec's variants against the full model, over the same seeds."""
    rows = []
    for dataset, label in DATASETS.items():
        variants = {words: _found(f"missing/{dataset}/dgmrec-{name}.json") for name, words in ABLATIONS.items()}
        if not any(variants.values()):
            continue
        full = _load(f"missing/{dataset}/dgmrec.json")
        whole = _by_seed(full, "recall@20")
        rows.append(["the full model", label, _pair(full, ""), ""])
        for words, found in variants.items():
            if found:
                gaps = [value - whole[seed] for seed, value in _by_seed(found, "recall@20").items()]
                each = ", ".join(f"{gap:+.4f}" for gap in gaps)
                rows.append([words, label, _pair(found, ""), f"{sum(gaps) / len(gaps):+.4f} ({each})"])
    return _table(["variant", "dataset", "Recall@20 / NDCG@20", "Recall@20 against the full model, by seed"], rows)


def growth() -> str:
    """Time and memory of training as the data grow."""
    found = _load("growth/ml-100k/dgmrec.json")["mean"]
    sizes = sorted(int(name.split("=")[1][:-1]) for name in found if name.startswith("epoch_seconds"))
    lines = [
        "| times ML-100K | users | items | interactions | s to prepare | s/epoch | s to refresh | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size in sizes:
        counts = [f"{found[f'{name}[size={size}]']:,.0f}" for name in ("users", "items", "interactions")]
        seconds = [f"{found[f'{name}_seconds[size={size}]']:.1f}" for name in ("prepare", "epoch", "refresh")]
        lines.append(f"| {size} | {' | '.join([*counts, *seconds])} | {found[f'peak_rss_mb[size={size}]']:,.0f} |")
    return "\n".join(lines)


def calibration() -> str:
    """How far the served confidence is from the centred cosine it announces."""
    lines = ["| DGMRec on withheld cells | expected calibration error |", "|---|---|"]
    for dataset, label in DATASETS.items():
        if found := _found(f"retrieval/{dataset}/dgmrec.json"):
            lines.append(f"| {label} | {_spread(found, 'calibration_error')} |")
    return "\n".join(lines)


RATED = (
    "lrmm", "lrmm-form-paper",
    "offset", "user-bias", "item-bias", "biases", "svd", "svdpp", "nmf", "tfidf-ridge", "biases-tfidf-ridge",
)  # fmt: skip


RATED_DATA = {"musical-instruments": "Musical Instruments", "ml-100k": "ML-100K"}


def rating() -> str:
    """Rating errors on random splits and on the published one, and the paired difference to the biases."""
    lines = [
        "| RMSE / MAE | model | random splits | published split | RMSE against `biases`, same rows |",
        "|---|---|---|---|---|",
    ]
    for dataset, label in RATED_DATA.items():
        reference = _found(f"rating/{dataset}/biases.json")
        for model in RATED:
            found = _found(f"rating/{dataset}/{model}.json")
            if found:
                errors = _rating_errors(found["mean"])
                published = _rating_errors(found["published"]["metrics"]) if found["published"] else ""
                paired = paired_difference(_rmse(found), _rmse(reference)) if reference and model != "biases" else ""
                lines.append(f"| {label} | {model} | {errors} | {published} | {paired} |")
    return "\n".join(lines)


RATING_PAIRS = (("lrmm", "svdpp"), ("lrmm", "svd"), ("lrmm-form-paper", "lrmm"), ("lrmm-form-paper", "biases"))


def rating_pairs() -> str:
    """Paired differences of RMSE over the random splits that both models have."""
    lines = ["| RMSE, same rows | models | splits | difference |", "|---|---|---|---|"]
    for dataset, label in RATED_DATA.items():
        for model, peer in RATING_PAIRS:
            found, other = (_found(f"rating/{dataset}/{name}.json") for name in (model, peer))
            if found and other:
                ours, theirs = _rmse(found), _rmse(other)
                shared = len(ours.keys() & theirs.keys())
                lines.append(f"| {label} | {model} less {peer} | {shared} | {paired_difference(ours, theirs)} |")
    return "\n".join(lines)


def rating_regimes() -> str:
    """LRMM with modalities withheld: errors, coverage and width of the 90 % intervals, mean over the random splits."""
    lines = ["| LRMM | regime | RMSE | MAE | coverage | width |", "|---|---|---|---|---|---|"]
    for dataset, label in RATED_DATA.items():
        mean = (_found(f"rating/{dataset}/lrmm.json") or {"mean": {}})["mean"]
        for regime in (name[5:-1] for name in mean if name.startswith("rmse[")):
            cells = [f"{mean[f'{figure}[{regime}]']:.4f}" for figure in ("rmse", "mae", "coverage", "width")]
            lines.append(f"| {label} | {regime} | {' | '.join(cells)} |")
    return "\n".join(lines)


LEFT_OUT = {
    "popularity": "popularity",
    "bpr": "BPR",
    "item-knn": "item-kNN",
    "ease": "EASE",
    "ease-scaled": "EASE, columns scaled",
    "als": "ALS",
    "iris-no-content": "IRIS without content",
    "iris-image": "Image IRIS",
    "iris-text": "Text IRIS",
    "iris-image-add-text": "Image-add-Text IRIS",
    "iris": "**Multimodal IRIS**",
}
LEFT_OUT_VARIANTS = {
    "iris-shuffled": "the content of other items",
    "iris-zero": "missing content left out",
    "iris-beta-1": "beta 1 (`--set beta=1.0`)",
}


def left_out() -> str:
    """Leave-one-out by model: three random splits and the published one of the last interactions."""
    lines = ["| ML-1M, HR@10 / NDCG@10 | random splits | the fixed one | last interactions |", "|---|---|---|---|"]
    for name, label in LEFT_OUT.items():
        random, last = _found(f"leave-one-out/ml-1m/{name}.json"), _found(f"leave-one-out/ml-1m/{name}-last.json")
        if random:
            cells = [_left_out_spread(random), _hits(random["runs"][0]["metrics"]), _hits(last["mean"]) if last else ""]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def left_out_variants() -> str:
    """What each setting of IRIS changes, on the same splits."""
    reference = _found("leave-one-out/ml-1m/iris.json")
    lines = ["| IRIS | HR@10 / NDCG@10 | NDCG@10 against the plain one, same splits |", "|---|---|---|"]
    for name, label in (LEFT_OUT | LEFT_OUT_VARIANTS).items():
        found = _found(f"leave-one-out/ml-1m/{name}.json") if name.startswith("iris") else None
        if found and reference:
            own, other = (_by_seed(one, "ndcg@10") for one in (found, reference))
            steps = [own[seed] - other[seed] for seed in own if seed in other]
            cell = f"{sum(steps) / len(steps):+.4f} ({', '.join(f'{step:+.4f}' for step in steps)})"
            lines.append(f"| {label} | {_left_out_spread(found)} | {'' if name == 'iris' else cell} |")
    return "\n".join(lines)


REPORTED = {  # by the paper's tables IV and V, on a random split of its own
    16: {"hr@10": 0.8113, "ndcg@10": 0.5639, "hr@20": 0.9053, "ndcg@20": 0.5798},
    64: {"hr@10": 0.8293, "ndcg@10": 0.5898, "hr@20": 0.9149, "ndcg@20": 0.6123},
}


IRIS_DATA = {"ml-1m": "ML-1M", "lfm2k": "Last.fm-2K"}
IRIS_FORMS = {16: "`form=paper`, d = 16", 64: "`form=paper`, d = 64"}


def iris_forms() -> str:
    """IRIS as the paper has it, beside what the paper reports and what is served, on one split of each dataset."""
    rows = []
    for dataset, label in IRIS_DATA.items():
        for size, words in IRIS_FORMS.items():
            if dataset == "ml-1m":
                reported = REPORTED[size]
                rows.append([label, f"reported by the paper, d = {size}", _hits(reported), _hits(reported, 20), "", ""])
            found = _found(f"leave-one-out/{dataset}/iris-paper-{size}.json")
            rows.append([label, words, *(_first_split(found) if found else ["not measured yet", "", "", ""])])
        for name, words in BESIDE.items():
            if found := _found(f"leave-one-out/{dataset}/{name}.json"):
                rows.append([label, words, *_first_split(found)])
    return _table(["one split", "", "HR@10 / NDCG@10", "HR@20 / NDCG@20", "best epoch", "training, s"], rows)


BESIDE = {"iris": "`form=lacuna`, the default"} | {name: LEFT_OUT[name] for name in ("ease", "item-knn", "popularity")}


def _first_split(found: Any) -> list[str]:
    run = found["runs"][0]
    figures = [_hits(run["metrics"]), _hits(run["metrics"], 20)]
    if "best_epoch" not in run:
        return [*figures, "", ""]
    return [*figures, f"{run['best_epoch']} of {run['epochs']}", f"{run['training_seconds']:,.0f}"]


EXPLAINED = {"iris": "`form=lacuna`", "iris-explained": "`form=lacuna`"} | {
    f"iris-paper-{size}": words for size, words in IRIS_FORMS.items()
}
ORDERS = {
    "relevance": "relevance, the order of the explanations",
    "interest": "interest a_ij alone",
    "similarity": "similarity p_i . q_j alone",
    "content": "likeness of content",
    "random": "at random",
}


def faithfulness() -> str:
    """Areas under the curves of deletion and insertion, by the order in which history items go and come."""
    rows = []
    for dataset, label in IRIS_DATA.items():
        for name, words in EXPLAINED.items():
            mean = (_found(f"leave-one-out/{dataset}/{name}.json") or {"mean": {}})["mean"]
            for order, meaning in ORDERS.items():
                if f"deletion score[{order}]" in mean:  # results that are older have none
                    hits = [f"{mean[f'{way} hr@10[{order}]']:.4f}" for way in ("deletion", "insertion")]
                    scores = [f"{mean[f'{way} score[{order}]']:.3f}" for way in ("deletion", "insertion")]
                    rows.append([label, words, meaning, *hits, *scores])
    header = ["", "IRIS", "order", "deletion, HR@10", "insertion, HR@10", "deletion, score", "insertion, score"]
    return _table(header, rows)


def iris_differences() -> str:
    """Paper and ours, decision by decision, with what has been measured of each."""
    rows = [[*words, _worth(name)] for words, name in IRIS_DIFFERENCES]
    for dataset, label in IRIS_DATA.items():
        ours = _found(f"leave-one-out/{dataset}/iris.json")
        for size in IRIS_FORMS:
            paper = _found(f"leave-one-out/{dataset}/iris-paper-{size}.json")
            if ours and paper:
                whole = f"the paper's form as a whole, d = {size}"
                rows.append([whole, "ours as a whole", f"{label}, one split", _step(ours, paper)])
    return _table(["paper", "ours", "why", "worth, NDCG@10"], rows)


def _worth(name: str) -> str:
    """What ours has more than the variant that lacks it."""
    found = []
    for dataset, label in IRIS_DATA.items():
        ours, variant = (_found(f"leave-one-out/{dataset}/{one}.json") for one in ("iris", name or "-"))
        if ours and variant:
            found.append(f"{label}: {_step(ours, variant)}")
    return "; ".join(found) or "not measured by itself"


def _step(ours: Any, other: Any) -> str:
    own, theirs = _by_seed(ours, "ndcg@10"), _by_seed(other, "ndcg@10")
    steps = [own[seed] - theirs[seed] for seed in theirs if seed in own]
    return f"{sum(steps) / len(steps):+.4f} ({', '.join(f'{step:+.4f}' for step in steps)})"


IRIS_DIFFERENCES = (
    (("K = 4 negatives for each positive, drawn anew every epoch", "K = 20, in expectation over the draws",
      "no noise of sampling in the gradient, and many users and targets in one product"), "iris-negatives-4"),
    (("p, q and interests learned together from N(0, 0.01)", "factors first, with equal interests; interests on top",
      "a member's factors cost seconds, and interests are learned from similarities that hold"), ""),
    (("one set of factors", "two members side by side, one of which starts from ALS",
      "ALS folds a user in by item similarities, which is what p_i . q_j is to be"), "iris-one-member"),
    (("factors from random numbers", "one member from those of ALS", "the ablation has two from random numbers"),
     "iris-no-als"),
    (("histories whole in training", "a share of .4 of the entries dropped at each step",
      "it keeps the factors from learning each history by heart"), "iris-no-drop"),
    (("no bias of an item (eq. 5)", "item bias b_j, as in NAIS and FISM (eq. 1)",
      "popularity needs no similarity"), ""),
    (("raw features, [2048 -> 768 -> d] and [768 -> d]", "128 whitened principal components, a hidden layer of 128",
      "a step costs a fraction; modalities of any width stand side by side"), ""),
    (("content decides interests", "the same", "the ablation has all interests equal"), "iris-no-content"),
    (("W_share between the towers", "the same; the mean of the others where there are more than two",
      "any number of modalities"), "iris-image-add-text"),
    (("zero for what is missing", "the generated feature", "most of a catalogue may lack a modality"), "iris-zero"),
    (("beta = 0.8", "the same", "the ablation has a plain softmax, beta = 1"), "iris-beta-1"),
    (("nothing on new items", "factors predicted from content by a ridge regression",
      "an item is recommended from its first minute on"), ""),
)  # fmt: skip


def explanations() -> str:
    """What an explanation is worth: a score without its first item, and without a random one; and what it costs."""
    found = _found("leave-one-out/ml-1m/iris.json")
    lines = ["| | measured |", "|---|---|"]
    if found:
        lines += [
            "| the score falls by more without the item named first than without a random one |"
            f" {found['mean']['faithful']:.1%} of the users |",
            f"| the mean fall, the former by the latter | {found['mean']['fall ratio']:.1f} |",
            f"| training, all stages | {max(run['training_seconds'] for run in found['runs']):.0f} s at most |",
        ]
    if timing := _found("service/explain.json"):
        lines.append(
            f"| explaining {timing['targets']} items against a history of {timing['history']} |"
            f" {timing['metrics']['p50_ms']:.2f} ms (p99 {timing['metrics']['p99_ms']:.2f} ms) |"
        )
    return "\n".join(lines)


def _hits(metrics: Any, k: int = 10) -> str:
    return f"{metrics[f'hr@{k}']:.4f} / {metrics[f'ndcg@{k}']:.4f}"


def _left_out_spread(found: Any) -> str:
    if len(found["runs"]) == 1:
        return f"{_hits(found['mean'])} (one split)"
    return f"{_spread(found, 'hr@10')} / {_spread(found, 'ndcg@10')}"


def _by_seed(found: Any, metric: str) -> dict[int, float]:
    return {run["seed"]: run["metrics"][metric] for run in found["runs"]}


CONDITIONS = {
    "": "as above",
    "-drop-0.5": "m-drop of 0.5 (`--set drop=0.5`)",
    "-items-5": "at most 5 reviews tell of an item (`--item-reviews 5`)",
    "-items-1": "at most 1",
    "-items-0": "none",
    "-words-50": "documents of 50 words (`--set document_words=50`)",
    "-words-200": "documents of 200 words",
}


def rating_conditions() -> str:
    """Musical Instruments under other conditions of training and test, on the seeds that all of them have."""
    lines = ["| condition | model | splits | +F | -U | -O | coverage, +F |", "|---|---|---|---|---|---|---|"]
    found = [
        (label, model, result)
        for suffix, label in CONDITIONS.items()
        for model in ("lrmm", "biases")
        if (result := _found(f"rating/musical-instruments/{model}{suffix}.json"))
    ]
    shared = set.intersection(*({run["seed"] for run in result["runs"]} for _, _, result in found))
    for label, model, result in found:
        runs = [result["published"], *(run for run in result["runs"] if run["seed"] in shared)]
        cells = [_mean(runs, name) for name in ("rmse[+F]", "rmse[-U]", "rmse[-O]", "coverage[+F]")]
        lines.append(f"| {label} | {model} | {len(runs)} | {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines)


def _mean(runs: Any, metric: str) -> str:
    values = [run["metrics"][metric] for run in runs if metric in run["metrics"]]
    return f"{sum(values) / len(values):.4f}" if values else ""


def predict() -> str:
    """Latency of predicted ratings."""
    lines = ["| request | p50 | p99 |", "|---|---|---|"]
    for kind, row in _load("service/predict.json")["metrics"].items():
        lines.append(f"| {kind} | {row['p50_ms']:.2f} ms | {row['p99_ms']:.2f} ms |")
    return "\n".join(lines)


def _rating_errors(metrics: Any) -> str:
    return f"{metrics['rmse[+F]']:.4f} / {metrics['mae[+F]']:.4f}"


def _rmse(found: Any) -> dict[int, float]:
    return {run["seed"]: run["metrics"]["rmse[+F]"] for run in found["runs"]}


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def _found(path: str) -> Any:
    return _load(path) if (RESULTS / path).is_file() else None


def _pair(found: Any, suffix: str) -> str:
    names = [f"{metric}@20{suffix}" for metric in ("recall", "ndcg")]
    if not found or names[0] not in found["mean"]:
        return ""
    return " / ".join(f"{found['mean'][name]:.4f}" for name in names)


def latency() -> str:
    """Latency of each kind of request, and how long the first minute takes."""
    table = service.latency(_service("service/latency.json"))
    demo = _load("service/demo.json")
    started = f"`make demo` in a fresh clone, install included: {demo['seconds']:.0f} s to a serving port"
    return f"{table.markdown()}\n\n{table.note} {started} (`benchmarks/fresh_clone.sh`)."


def _service(pattern: str, key: str = "what") -> list[ServiceResult]:
    """Results of the service that have the key."""
    found = [(file, json.loads(file.read_text("utf-8"))) for file in sorted(RESULTS.glob(pattern))]
    return [ServiceResult(file.name, file.stem, content) for file, content in found if key in content]


def imports() -> str:
    """Lists before an export and after imports."""
    found = _load("service/convergence-import.json")["mean"]
    lines = [
        f"| {found['users']:.0f} users' lists of 20 beside the seeded service's | items first, then feedback | mixed |",
        "|---|---|---|",
    ]
    rows = (
        ("items of 20 shared, mean", "shared_of_20", ".2f"),
        ("least", "least_shared", ".0f"),
        ("largest difference of a score", "largest_score_gap", ".1e"),
        (f"never-touched items in a list (seeded: {found['never_touched_in_20[seeded]']:.2f})", "never_touched_in_20",
         ".2f"),
        ("items that `check` finds to differ", "differing", ".0f"),
    )  # fmt: skip
    for label, name, form in rows:
        lines.append(f"| {label} | {found[f'{name}[items-first]']:{form}} | {found[f'{name}[mixed]']:{form}} |")
    return "\n".join(lines)


def load() -> str:
    """What it costs that derived state follows, by size."""
    files = sorted(RESULTS.glob("service/convergence-load-*.json"), key=lambda file: int(file.stem.rpartition("-")[2]))
    found = [json.loads(file.read_text("utf-8"))["mean"] for file in files]
    if not found:
        return ""
    lines = [
        "| " + " | ".join(["", *(f"{size['items']:,.0f} items" for size in found)]) + " |",
        "|---" * (len(found) + 1) + "|",
    ]
    for label, name, form in (
        ("background work, share of a core", "background_share", ".1%"),
        ("processor of the service, all work, share of a core", "processor_share", ".1%"),
        ("time until a write has taken effect on everything, p50 / s", "spread_p50_seconds", ".2f"),
        ("p99 / s", "spread_p99_seconds", ".2f"),
        ("an event, p50 / ms", "event_p50_ms", ".1f"),
        ("a new item, p50 / ms", "create_p50_ms", ".1f"),
        ("a replaced item, p50 / ms", "replace_p50_ms", ".1f"),
        ("a start from what is stored / s", "start_seconds", ".1f"),
        ("a start from a snapshot / s", "start_from_snapshot_seconds", ".1f"),
        ("a start that derives everything / s", "start_without_derived_seconds", ".1f"),
        ("memory / MiB", "memory_mb", ",.0f"),
        ("items, of 1,000, that `check` finds to differ", "differing", ".0f"),
    ):
        lines.append("| " + " | ".join([label, *(f"{size[name]:{form}}" for size in found)]) + " |")
    return "\n".join(lines)


def replicas() -> str:
    """The composition with two replicas, driven from outside."""
    found = _load("service/compose.json")
    lines = ["| 100 items created while | answers | acknowledged | of these lost |", "|---|---|---|---|"]
    for name in ("undisturbed", "one replica killed", "redis killed"):
        answers = ", ".join(f"{count} {status}" for status, count in found[name]["statuses"].items())
        if "by_replica" in found[name]:
            answers += f" ({' and '.join(f'{count:.0f}' for count in found[name]['by_replica'])} by replica)"
        lines.append(f"| {name} | {answers} | {found[name]['acknowledged']} | {found[name]['lost']} |")
    return "\n".join(lines)


def abuse() -> str:
    """What the costliest requests cost."""
    lines = ["| what is sent | answer | seconds | peak, MiB | longest stall, ms |", "|---|---|---|---|---|"]
    for name, cost in _load("service/abuse.json")["costs"].items():
        lines.append(
            f"| {name} | {cost['answer']} | {cost['seconds']:.2f} | {cost['peak_mib']:.0f} | {cost['stall_ms']:.0f} |"
        )
    return "\n".join(lines)


def _spread(found: Any, metric: str) -> str:
    return f"{found['mean'][metric]:.4f} ± {found['std'][metric]:.4f}"


TABLES: dict[str, Callable[[], str]] = {
    "top-n": top_n,
    "imputation": imputation,
    "ranking": ranking,
    "stranger": stranger,
    "posted": posted,
    "search": search,
    "stranger-choices": stranger_choices,
    "interest": interest,
    "new-items": new_items,
    "validation_only": validation_only,
    "retrieval": retrieval,
    "items-alone": items_alone,
    "training-cost": training_cost,
    "calibration": calibration,
    "ratio": ratio,
    "ablations": ablations,
    "growth": growth,
    "rating": rating,
    "rating-pairs": rating_pairs,
    "rating-regimes": rating_regimes,
    "leave-one-out": left_out,
    "leave-one-out-variants": left_out_variants,
    "explanations": explanations,
    "iris-forms": iris_forms,
    "iris-differences": iris_differences,
    "faithfulness": faithfulness,
    "rating-conditions": rating_conditions,
    "predict": predict,
    "latency": latency,
    "faults": lambda: service.faults(_service("faults/*.json", "kills")).markdown(),
    "linear": lambda: service.linear(_service("faults/linear-*.json")).markdown(),
    "replicas": replicas,
    "abuse": abuse,
    "imports": imports,
    "load": load,
    "soak": lambda: service.soak(_service("faults/soak.json")).markdown(),
    "fuzz": lambda: service.fuzz(_service("faults/fuzz.json")).markdown(),
    "staleness": lambda: service.staleness(_service("faults/staleness-*.json")).markdown(),
}


def rewritten(text: str) -> str:
    """The text with every table made anew."""

    def replace(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: ([a-z-]+) -->\n.*?<!-- end -->", replace, text, flags=re.DOTALL)


def main() -> int:
    """Rewrite or compare; 1 where `--check` finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = 0
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text("utf-8")
        fresh = rewritten(text)
        if fresh != text and check:
            print(f"{path.relative_to(ROOT)}: a table differs from its raw results")
            stale = 1
        elif fresh != text:
            path.write_text(fresh, "utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
