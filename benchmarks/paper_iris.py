"""One command for each table and figure of Multimodal IRIS' paper, on any prepared dataset.

    lacuna prepare ml-1m-plots --source PATH/ml-1m --out build/ml-1m --min-rating none
    python benchmarks/paper_iris.py table4 --data build/ml-1m
    python benchmarks/paper_iris.py table2 --data build/ml-1m --set batches=targets --set batch_size=16384

As `benchmarks/paper.py`: a result that is there is not made again, --list only prints the commands. The paper's form
takes long on ML-1M; --set goes to every run of it.

table2   models, one item against 99 (table3 is the same on Amazon data)    figure6  the loss over training
table4   d = 16, among the first 10 and 20                                   beta     beta of eq. 4, a line plot
table5   d = 64                                                              reasons  deletion and insertion curves
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from paper import Call, Run, _lacuna, _result, as_process

from training.datasets import load_dataset

OTHERS = ("vbpr", "neumf", "lightgcn-bpr")  # of the extra peers
PEERS = ("popularity", "item-knn", "ease", "ease-scaled", "als", "bpr")
BETAS = ("0.0", "0.5", "0.7", "0.9", "1.0")


def paper_run(size: int, name: str = "", **settings: str) -> Run:
    """The paper's form with factors of this length."""
    variant = "-".join(filter(None, ["paper", str(size), name]))
    return Run("leave-one-out", "iris", variant, {"form": "paper", "embedding_size": str(size), **settings})


def alone(size: int, modalities: Sequence[str]) -> Iterator[Run]:
    """Image IRIS, and the same of every other modality."""
    yield from (paper_run(size, name, reads=json.dumps([name])) for name in modalities)


def peers() -> Iterator[Run]:
    """Other papers' models in table 2."""
    yield from (Run("leave-one-out", model) for model in OTHERS)


def runs(what: str, modalities: Sequence[str]) -> Iterator[Run]:
    """What a table or figure is made of, for a dataset that has these modalities."""
    match what:
        case "table2":
            yield from (Run("leave-one-out", model) for model in (*PEERS, "iris"))
            yield from alone(64, modalities)
            yield paper_run(64, "added", sharing="false")  # Image-add-Text
            yield paper_run(64)
        case "table4" | "table5":
            size = 16 if what == "table4" else 64
            yield from alone(size, modalities)
            yield paper_run(size)
        case "beta":
            yield paper_run(16)
            yield from (paper_run(16, f"beta-{beta}", beta=beta) for beta in BETAS)
        case "reasons":
            yield Run("leave-one-out", "iris")
            yield paper_run(64)
        case _:  # figure6 tells more of the same training
            yield paper_run(64)


def main(words: Sequence[str] | None = None, call: Call = as_process) -> None:
    """Run what is not there yet, and write the page. `call` runs `lacuna` and gives its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("table2", "table4", "table5", "figure6", "beta", "reasons")
    parser.add_argument("what", choices=names, metavar="|".join(names))
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="prepared datasets")
    parser.add_argument("--out", type=Path, default=Path("build/paper"), help="where the results go (build/paper)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the paper's form"
    )
    parser.add_argument("--peers", action="store_true", help="table2 with the models of the extra peers, too")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    options = parser.parse_args(words)
    options.mask, options.call = None, call
    for data in options.data:
        modalities = load_dataset(data).modalities
        wanted = [*runs(options.what, modalities), *(peers() if options.peers and options.what == "table2" else ())]
        files = [_result(run, data, options) for run in wanted]
        page = options.out / f"iris-{options.what}-{data.name}.html"
        _lacuna(["report", *map(str, files), "--html", str(page), "--title", f"IRIS, {options.what}"], options)


if __name__ == "__main__":
    main()
