"""How many of the first ten that a search by words finds are what was asked for, among observed and among generated
texts: films by genre, and the drawn demo catalogue by kind and colour, of bundles made of items alone.

Films: a third of them each lack nothing, one of plot and poster, and both, drawn by the seed; the query is a genre's
name. Nothing but plots (without genres and titles) and posters is read. Demo (synthetic): the holes are its own, the
query is a colour and a kind. An item whose text is generated is ranked among those, by its generated text alone.
Measured as the service searches: by cosines of projected features.

    python benchmarks/search_precision.py --json docs/results/search
    python benchmarks/search_precision.py --source data/ml-1m --image-weights FILE --json docs/results/search
"""

from __future__ import annotations

import argparse
import base64
import csv
import dataclasses
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.arrays import Array, Mask
from models.bundle import Bundle
from models.dgmrec.config import DGMRecConfig
from models.dgmrec.serving import DGMRecServing
from models.encoders import minilm_encoder
from training.content import DataOptions
from training.datasets.base import Dataset
from training.datasets.prepared import load_dataset, write_dataset
from training.demo.catalogue import demo_truth, prepare_demo
from training.dgmrec.recipe import DGMRecRecipe
from training.evaluate.result import Measured, result_of, run_record
from training.progress import Terminal
from training.recipe import train_into_bundle
from training.trainer import TrainerConfig

PAGE = 10
FEWEST = 30  # items that a query must be true of, in each state
DEMO_ITEMS, DEMO_SEED = 1000, 7


def film_rows(source: Path) -> Iterator[dict[str, Any]]:
    """Films with a plot and a poster, and nothing else that says their genre."""
    with gzip.open(source / "movies.csv.gz", "rt", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            poster = source / "posters" / f"{row['item']}.jpg"
            if row["plot"] and poster.is_file():
                image = {"base64": base64.b64encode(poster.read_bytes()).decode("ascii")}
                yield {
                    "id": row["item"],
                    "modalities": {"text": row["plot"], "image": image},
                    "categories": row["genres"].split("|"),
                }


def film_queries(dataset: Dataset) -> dict[str, Mask]:
    """Each genre's name, and the films that have it."""
    genres = sorted({genre for record in dataset.records for genre in record["categories"]})
    return {
        genre: np.array([genre in record["categories"] for record in dataset.records], dtype=np.bool_)
        for genre in genres
    }


def demo_queries(dataset: Dataset) -> dict[str, Mask]:
    """Each colour with each kind, and the products that are both."""
    looks = [product.look for product in demo_truth(DEMO_SEED, len(dataset.items))]
    kinds = np.array([look.category for look in looks])
    colours = np.array([look.colour for look in looks])
    return {
        f"{colour} {kind}": (kinds == kind) & (colours == colour)
        for kind in sorted(set(kinds))
        for colour in sorted(set(colours))
    }


def precision(
    model: DGMRecServing, queries: Mapping[str, Mask], vectors: Array, observed: Mask, fewest: int
) -> dict[str, float]:
    """`precision@10` of observed and of generated texts, and what chance would give, over the queries that are true of
    enough items in both states."""
    asked, features = model.project("text", vectors), model.tables["feature.text"]
    said = np.linalg.norm(features, axis=1) > 0
    cosines = _unit(asked) @ _unit(features).T
    found: dict[str, list[float]] = {}
    for row, true in enumerate(queries.values()):
        states = {"observed": observed & said, "generated": ~observed & said}
        if any((true & have).sum() < fewest for have in states.values()):
            continue
        for state, have in states.items():
            among = np.flatnonzero(have)
            first = among[np.argsort(-cosines[row, among], kind="stable")[:PAGE]]
            found.setdefault(f"precision@10[{state}]", []).append(float(true[first].mean()))
            found.setdefault(f"chance[{state}]", []).append(float(true[among].mean()))
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return means | {"queries": float(len(found["chance[observed]"]))}


def _unit(rows: Array) -> Array:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def measure(
    dataset: Dataset, queries: Mapping[str, Mask], options: DataOptions, fewest: int, words: Callable[[str], str]
) -> dict[str, float]:
    """Make a bundle of the items alone, and search in it."""
    recipe = DGMRecRecipe(DGMRecConfig(seed=options.seed), TrainerConfig(seed=options.seed))
    with tempfile.TemporaryDirectory() as folder, Terminal() as terminal:
        out = Path(folder) / "bundle"
        train_into_bundle(recipe, dataset, out, options, terminal=terminal)
        model = DGMRecServing.load(Bundle.load(out))
    encoder = minilm_encoder(cache_dir=options.cache, threads=options.threads)
    vectors = encoder.encode([words(query) for query in queries])
    column = model.names.index("text")
    return precision(model, queries, vectors, model.tables["observed"][:, column].astype(bool), fewest)


def write(file: Path, dataset: str, synthetic: bool, config: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    """The raw result."""
    what = Measured("search", dataset, synthetic, "dgmrec", "items alone", f"python {' '.join(sys.argv)}")
    result = result_of(what, config, runs)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    sys.stdout.write(f"{dataset}: {result['mean']}\n")


def main() -> None:
    """Measure one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="a folder with movies.csv.gz and posters/; without it, the demo")
    parser.add_argument("--image-weights", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.source is None:
        of_demo(given)
    else:
        of_films(given)


def of_demo(given: argparse.Namespace) -> None:
    """The drawn catalogue, with its own holes; the seeds are those of its image encoder."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        prepare_demo(Path(folder) / "demo", items=DEMO_ITEMS, seed=DEMO_SEED)
        demo = _quiet(load_dataset(Path(folder) / "demo"))
        for seed in range(1, given.seeds + 1):
            begin, options = time.perf_counter(), DataOptions(cache=given.cache, threads=1, seed=seed)
            found = measure(demo, demo_queries(demo), options, 1, lambda query: query)
            runs.append(run_record(seed, begin, {"metrics": found}))
    write(given.json / "demo.json", "demo", True, {"items": DEMO_ITEMS, "fewest": 1}, runs)


def of_films(given: argparse.Namespace) -> None:
    """Films; the seeds draw what each lacks."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "films", film_rows(given.source), [], name="ml-1m", source="films")
        films = load_dataset(Path(folder) / "films")
        for seed in range(1, given.seeds + 1):
            begin, weights = time.perf_counter(), given.image_weights
            options = DataOptions(cache=given.cache, threads=1, seed=seed, levels=True, image_weights=weights)
            found = measure(films, film_queries(films), options, FEWEST, lambda genre: f"{genre} film")
            runs.append(run_record(seed, begin, {"metrics": found}))
    write(given.json / "ml-1m.json", "ml-1m", False, {"fewest": FEWEST, "image": "torchvision:mobilenet_v2"}, runs)


def _quiet(dataset: Dataset) -> Dataset:
    """The same without its feedback."""
    nothing = {
        field.name: getattr(dataset.interactions, field.name)[:0]
        for field in dataclasses.fields(dataset.interactions)
        if field.name != "texts"
    }
    return dataclasses.replace(dataset, interactions=type(dataset.interactions)(**nothing))


if __name__ == "__main__":
    main()
