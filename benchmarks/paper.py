"""One command for each table and figure of DGMRec's paper, on any prepared dataset.

    lacuna prepare folder --source PATH/baby --out build/baby
    python benchmarks/paper.py table2 --data build/baby build/tiktok
    python benchmarks/paper.py table4 --data build/baby --out docs/results

runs `lacuna evaluate` for each model and variant of the table, one after the other, writes the raw results below --out
and a page of tables and plots beside them (`lacuna report`). A result that is there already is not made again, so that
an interrupted run goes on where it was. --list only prints the commands.

table2    all models, missing cells and new items       figure4  by share of missing cells
figure3   the same by how many modalities are missing   figure5  parts by t-SNE and their similarity over training
table3    generated features in retrieval               figure6  the weights of alignment and disentangling, refinement
table4    the nine ablations, of the paper's own form   table5   seconds an epoch and in all
decisions what is ours alone, one by one
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

RANKERS = (
    "popularity",
    "item-knn",
    "ease",
    "content",
    "graph-filter",
    "graph-filter-content",
    "collaborative",
    "dgmrec",
)
IMPUTERS = ("mean", "nn", "neigh-mean", "multi-hop", "pers-pagerank", "heat", "ridge")
GRIDS = {
    "behaviour": ("0", "0.05", "0.1", "0.5", "1.0"),
    "club": ("0.001", "0.1", "1.0"),
    "nce": ("0.001", "0.1", "1.0"),
    "refine_weight": ("0.0", "0.2", "0.4", "0.8", "1.0"),
}
# The nine rows of table 4.
TABLE4: dict[str, dict[str, str]] = {
    "no-disentangling": {"club": "0", "nce": "0"},
    "no-club": {"club": "0"},
    "no-nce": {"nce": "0"},
    "no-generation": {"imputation": "mean"},
    "no-reconstruction": {"reconstruction": "0"},
    "no-generation-loss": {"generation": "0"},
    "no-alignment": {"behaviour": "0", "user_item": "0"},
    "no-user-item-alignment": {"user_item": "0"},
    "no-behaviour-alignment": {"behaviour": "0"},
}
PAPER = {"form": "paper"}
PEERS = ("vbpr", "neumf", "lightgcn-bpr")  # of the extra of that name
ABLATIONS: dict[str, dict[str, str]] = {
    "no-disentangling": {"club": "0", "nce": "0"},
    "no-club": {"club": "0"},
    "no-nce": {"nce": "0"},
    "no-generation-mean": {"imputation": "mean"},
    "no-generation-nn": {"imputation": "nn"},
    "no-generation-neigh-mean": {"imputation": "neigh-mean"},
    "no-generation-multi-hop": {"imputation": "multi-hop"},
    "no-generation-pers-pagerank": {"imputation": "pers-pagerank"},
    "no-generation-heat": {"imputation": "heat"},
    "no-reconstruction": {"reconstruction": "0"},
    "no-generation-loss": {"generation": "0"},
    "no-alignment": {"behaviour": "0"},
    "with-user-item-alignment": {"user_item": "0.1"},
    "no-refinement": {"refine_weight": "0"},
    "no-modality": {"modal": "false"},
    # Decisions of our own, one by one.
    "no-leaning": {"knn_smoothing": "0"},
    "not-closest": {"near_duplicates": "false"},
    "positives-left-in": {"leave_positive_out": "false"},
    "equal-pairs": {"user_power": "0"},
    "random-start": {"initialisation": "random"},
}


@dataclass(frozen=True)
class Run:
    """One call of `lacuna evaluate`."""

    protocol: str
    model: str
    variant: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[str] = ()  # of the command, besides

    @property
    def name(self) -> str:
        """Of the result's file."""
        return self.model if self.variant is None else f"{self.model}-{self.variant}"


def runs(what: str) -> Iterator[Run]:
    """What a table or figure is made of."""
    full = Run("missing", "dgmrec")
    match what:
        case "table2" | "figure3":
            for protocol in ("missing", "new-items"):
                yield from (Run(protocol, model) for model in RANKERS)
                yield Run(protocol, "dgmrec", "form-paper", PAPER)
        case "table3":
            yield from (Run("retrieval", model) for model in (*IMPUTERS, "dgmrec"))
        case "table4":
            yield Run("missing", "dgmrec", "form-paper", PAPER)
            for name, settings in TABLE4.items():
                yield Run("missing", "dgmrec", f"form-paper-{name}", PAPER | settings)
        case "decisions":
            yield full
            yield from (Run("missing", "dgmrec", name, settings) for name, settings in ABLATIONS.items())
        case "figure4":
            yield from (Run("ratio", model) for model in ("content", "collaborative", "dgmrec"))
            yield Run("ratio", "dgmrec", "mean", {"imputation": "mean"})
        case "figure6":
            yield full
            for setting, values in GRIDS.items():
                yield from (Run("missing", "dgmrec", f"{setting}-{value}", {setting: value}) for value in values)
        case _:  # figure5 and table5 tell more of the same training
            yield full


def peers() -> Iterator[Run]:
    """Other papers' models in table 2."""
    yield from (Run(protocol, model) for protocol in ("missing", "new-items") for model in PEERS)


def command(run: Run, data: Path, file: Path, options: argparse.Namespace) -> list[str]:
    """The `lacuna evaluate` that makes a result."""
    words = ["evaluate", run.model, "--protocol", run.protocol, "--data", str(data), "--seeds", str(options.seeds)]
    if options.mask and run.protocol != "ratio":
        words += ["--mask", options.mask]
    if run.variant:
        words += ["--variant", run.variant]
    common = options.set if run.model in ("dgmrec", "lrmm") or run.settings.get("form") == "paper" else []
    for setting in [*common, *(f"{name}={value}" for name, value in run.settings.items())]:  # the last one holds
        words += ["--set", setting]
    return [*words, *run.options, "--threads", str(options.threads), "--json", str(file)]


Call = Callable[[Sequence[str]], int]


def as_process(words: Sequence[str]) -> int:
    """The exit code of `lacuna` with these words."""
    return subprocess.run([str(Path(sys.executable).with_name("lacuna")), *words], check=False).returncode


def main(words: Sequence[str] | None = None, call: Call = as_process) -> None:
    """Run what is not there yet, and write the page. `call` runs `lacuna` and gives its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("table2", "figure3", "table3", "table4", "figure4", "figure5", "table5", "figure6", "decisions")
    parser.add_argument("what", choices=names, metavar="|".join(names))
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="prepared datasets")
    parser.add_argument("--out", type=Path, default=Path("build/paper"), help="where the results go (build/paper)")
    parser.add_argument("--mask", help="a published mask of the dataset; else equal shares lack 0, 1, ... modalities")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of every DGMRec, as of `lacuna train`",
    )
    parser.add_argument("--peers", action="store_true", help="table2 with the models of the extra peers, too")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    options = parser.parse_args(words)
    options.call = call
    for data in options.data:
        wanted = [*runs(options.what), *(peers() if options.peers and options.what == "table2" else ())]
        files = [_result(run, data, options) for run in wanted]
        page = options.out / f"{options.what}-{data.name}.html"
        report = ["report", *map(str, files), "--html", str(page), "--title", f"{options.what}, {data.name}"]
        if options.what == "figure5":  # the parts are drawn from a bundle
            report += ["--bundle", str(_bundle(data, options))]
        _lacuna(report, options)


def _result(run: Run, data: Path, options: argparse.Namespace) -> Path:
    file: Path = options.out / run.protocol / data.name / f"{run.name}.json"
    _lacuna(command(run, data, file, options), options, makes=file)
    return file


def _bundle(data: Path, options: argparse.Namespace) -> Path:
    bundle: Path = options.out / "bundles" / data.name
    words = ["train", "dgmrec", "--data", str(data), "--out", str(bundle), "--threads", str(options.threads)]
    words += ["--budget", "0"]  # settings as the paper's tables have them
    _lacuna(words + (["--mask", options.mask] if options.mask else []), options, makes=bundle / "manifest.json")
    return bundle


def _lacuna(words: list[str], options: argparse.Namespace, *, makes: Path | None = None) -> None:
    """Run the command unless what it makes is there, and end as it ends where it fails."""
    there = makes is not None and makes.is_file()
    print("there already:" if there else "$", "lacuna", shlex.join(words), flush=True)
    if not (options.list or there):
        code = options.call(words)
        if code:
            raise SystemExit(code)


if __name__ == "__main__":
    main()
