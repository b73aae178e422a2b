"""One command for each table and figure of LRMM's paper, on any prepared dataset with ratings.

    lacuna prepare amazon --source PATH/musical-instruments --out build/musical-instruments
    python benchmarks/paper_lrmm.py table2 --data build/musical-instruments --seeds 10
    python benchmarks/paper_lrmm.py table4 --data build/movies --target build/sports --seeds 1

As `benchmarks/paper.py`: a result that is there is not made again, --list only prints the commands. Every table has our
form of LRMM and the paper's; --set goes to both, so that it has to be a setting of both. --form leaves one of them out.

table2   models, tested with all modalities and with each withheld      figure4  few reviews (ratings) of an item
table3   modalities missing in training, p_m = .5, and m-drop           figure5  embeddings and reconstructions, t-SNE
table4   trained on --data, tested on --target                          figure6  text length
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from paper import Call, Run, _lacuna, _result, as_process

BASELINES = ("offset", "biases", "nmf", "svdpp")
OTHERS = ("hft",)  # of the extra peers
FORMS: Mapping[str, Mapping[str, str]] = {"lacuna": {}, "paper": {"form": "paper"}}
LENGTHS = ("20", "50", "100", "200")
FEW = ("5", "1", "0")  # reviews of an item


def lrmm(form: str, name: str = "", *options: str, **settings: str) -> Run:
    """LRMM in this form; `name` tells what is not the default."""
    variant = "-".join(filter(None, ["form-paper" if form == "paper" else "", name]))
    return Run("rating", "lrmm", variant or None, {**FORMS[form], **settings}, options)


def runs(what: str, forms: Sequence[str] = tuple(FORMS)) -> Iterator[Run]:
    """What a table or figure is made of; of table 4 what does not depend on the target."""
    match what:
        case "table2":
            yield from (Run("rating", model) for model in BASELINES)
            yield from (lrmm(form) for form in forms)
        case "table3":
            yield from (lrmm(form) for form in forms)
            yield from (lrmm(form, "missing-0.5", "--missing", "0.5") for form in forms)
            yield from (lrmm(form, "drop-0.5", drop="0.5") for form in forms)
        case "figure4":
            yield from (Run("rating", model) for model in ("nmf", "svdpp"))
            for few in FEW:
                given = ("--item-reviews", few)
                if few != "0":  # nothing is left to train a baseline with
                    yield from (Run("rating", model, f"items-{few}", {}, given) for model in ("nmf", "svdpp"))
                yield from (lrmm(form, f"items-{few}", *given) for form in forms)
            yield from (lrmm(form) for form in forms)
        case "figure6":
            yield from (lrmm(form, f"words-{words}", document_words=words) for words in LENGTHS for form in forms)
        case _:  # table4 sets the target, figure5 tells more of the same training
            yield from (lrmm(form) for form in forms)


def transfers(source: Path, targets: Sequence[Path], forms: Sequence[str]) -> Iterator[Run]:
    """Table 4: what was trained on another dataset, tested on each target."""
    for target in targets:
        name = f"{source.name}-to-{target.name}"
        yield from (lrmm(form, name, "--target", str(target)) for form in forms)


def main(words: Sequence[str] | None = None, call: Call = as_process) -> None:
    """Run what is not there yet, and write the page. `call` runs `lacuna` and gives its exit code."""
    options = _options(words)
    options.mask, options.call = None, call
    forms = [options.form] if options.form else list(FORMS)
    for data in options.data:
        if options.what == "table4":
            wanted = list(transfers(data, options.target, forms))
        else:
            wanted = list(runs(options.what, forms))
        if options.peers and options.what == "table2":
            wanted += [Run("rating", model) for model in OTHERS]
        files = [_result(run, data, options) for run in wanted]
        page = options.out / f"lrmm-{options.what}-{data.name}.html"
        _lacuna(["report", *map(str, files), "--html", str(page), "--title", f"LRMM, {options.what}"], options)


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("table2", "table3", "table4", "figure4", "figure5", "figure6")
    parser.add_argument("what", choices=names, metavar="|".join(names))
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="prepared datasets")
    parser.add_argument("--target", type=Path, nargs="+", default=[], help="table4: the datasets that are rated")
    parser.add_argument("--form", choices=tuple(FORMS), help="one form of LRMM alone")
    parser.add_argument("--out", type=Path, default=Path("build/paper"), help="where the results go (build/paper)")
    parser.add_argument("--seeds", type=int, default=3, help="random splits")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of every LRMM")
    parser.add_argument("--peers", action="store_true", help="table2 with the models of the extra peers, too")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    options = parser.parse_args(words)
    if (options.what == "table4") != bool(options.target):
        parser.error("table4 and no other needs --target")
    return options


if __name__ == "__main__":
    main()
