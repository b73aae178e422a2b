"""Tables of the docs, from the raw results: `python benchmarks/tables.py` rewrites them, `--check` only compares.

A table stands between `<!-- table: NAME -->` and `<!-- end -->` in README.md or docs/*.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
VARIANTS = {
    "dgmrec": "DGMRec, generated features",
    "dgmrec-mean": "the same model, mean imputation",
    "dgmrec-nn": "the same model, NN imputation",
    "dgmrec-no-modality": "without any modality (LightGCN)",
}


def _load(path: str) -> Any:
    return json.loads((RESULTS / path).read_text("utf-8"))


def top_n() -> str:
    """Recall and NDCG on ML-100K by variant."""
    lines = ["| ML-100K, 40 % of cells missing | Recall@20 | NDCG@20 | Recall@50 | s/epoch |", "|---|---|---|---|---|"]
    for name, label in VARIANTS.items():
        if not (RESULTS / f"missing/ml-100k/{name}.json").is_file():
            continue
        found = _load(f"missing/ml-100k/{name}.json")
        cells = [_spread(found, metric) for metric in ("recall@20", "ndcg@20", "recall@50")]
        seconds = sum(run["seconds_per_epoch"] for run in found["runs"]) / len(found["runs"])
        lines.append(f"| {label} | {' | '.join(cells)} | {seconds:.2f} |")
    return "\n".join(lines)


def imputation() -> str:
    """Centred cosine and calibration of the generator on held-out cells."""
    found = _load("missing/ml-100k/dgmrec.json")
    lines = ["| held-out cells of ML-100K | centred cosine | expected calibration error |", "|---|---|---|"]
    for name in ("text", "image"):
        cosine, error = _spread(found, f"cosine[{name}]"), _spread(found, f"calibration_error[{name}]")
        lines.append(f"| {name} | {cosine} | {error} |")
    return "\n".join(lines)


def latency() -> str:
    """Latency of each kind of request."""
    found = _load("service/latency.json")
    lines = ["| request | p50 | p99 | p50 over a bare FastAPI route |", "|---|---|---|---|"]
    for kind, row in found["metrics"].items():
        ratio = f"{row['p50 over bare']:.1f}"
        lines.append(f"| {kind} | {row['p50_ms']:.2f} ms | {row['p99_ms']:.2f} ms | {ratio} |")
    memory = "; ".join(f"{name}: {value} MB" for name, value in found["memory_mb"].items())
    demo = _load("service/demo.json")
    started = f"`make demo` in a fresh clone, install included: {demo['seconds']:.0f} s to a serving port"
    return "\n".join([*lines, "", f"Resident memory, {memory}. {started} (`benchmarks/fresh_clone.sh`)."])


def _spread(found: Any, metric: str) -> str:
    return f"{found['mean'][metric]:.4f} ± {found['std'][metric]:.4f}"


TABLES: dict[str, Callable[[], str]] = {"top-n": top_n, "imputation": imputation, "latency": latency}


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
