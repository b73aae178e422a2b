"""Are served confidences right, before and after they are calibrated on real features that replaced generated ones?

    python -m benchmarks.recalibration --bundle build/demo-bundle --fresh 1200 --json FILE
    python -m benchmarks.recalibration --bundle build/ml-100k-masked --data build/ml-100k --json FILE

A service of the bundle holds items whose features are generated, and the real content arrives by PATCH: with `--data`,
what the dataset has and the bundle's catalogue lacks (a bundle trained with `--mask` or `--missing`), one modality an
item; with `--fresh`, of so many products of the demo that the bundle has never seen, posted with their text or their
picture alone, the other one. The first half of the items is what the service calibrates on. Of the second half it
answers confidences with this calibration, while none is fitted any more, and their real content arrives only then:
`error_before` is the expected calibration error (10 buckets) of the model's own confidence in them, `error_after` that
of the served one. `*_resplit` are means over 20 other halves of all pairs, calibrated outside the service.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.convergence import Service
from models.calibration import calibration_error, choose
from training.demo.catalogue import demo_item
from training.evaluate.result import write_single_run

SPLITS = 20
PAGE = 500
PAIRS = "SELECT id, modality, confidence, served, cosine FROM imputation_errors ORDER BY id"
Columns = NDArray[np.float64]  # [pairs, 3]: the model's confidence, the served one, the cosine


def main() -> None:
    """Serve, replace, measure and print; write the raw result where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("build/demo-bundle"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--fresh", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=200, help="LACUNA_CALIBRATION_PAIRS of the first half")
    parser.add_argument("--limit", type=int, help="of the items, so many at most, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    begin = time.perf_counter()
    metrics, forms, name = _measure(options)
    print(json.dumps({"forms": forms, **metrics}, indent=1))
    what = {
        "protocol": "recalibration",
        "dataset": name,
        "synthetic": options.data is None,
        "model": "dgmrec",
        "variant": None,
        "config": {
            "fresh": options.fresh,
            "limit": options.limit,
            "seed": options.seed,
            "splits": SPLITS,
            "forms": forms,
        },
    }
    given = [argument for argument in sys.argv[1:] if argument != str(options.json)]
    command = " ".join(["python -m benchmarks.recalibration", *(one for one in given if one != "--json")])
    write_single_run(options.json, what, metrics, command, begin)


def _measure(options: argparse.Namespace) -> tuple[dict[str, float], dict[str, str], str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Service(options.bundle, folder, calibration_pairs=options.pairs) as service:
            dataset = service.get("/models")["models"][0]["data"]["name"]
            missing = list(_posted(service, options.fresh) if options.data is None else _lacking(service, options.data))
            order = np.random.default_rng(options.seed).permutation(len(missing)).tolist()[: options.limit]
            half = len(order) // 2
            _replace(service, [missing[place] for place in order[:half]])
        with Service(options.bundle, folder, calibration_pairs=0) as service:
            known = {name: error["calibration"] for name, error in service.get("/stats")["imputation_error"].items()}
            bound = _rows(folder)[-1][0]
            _replace(service, [missing[place] for place in order[half:]])
        rows = _rows(folder)
    metrics: dict[str, float] = {}
    for modality in sorted({row[1] for row in rows}):
        every = np.array([row[2:] for row in rows if row[1] == modality], dtype=np.float64)
        held_out = np.array([row[2:] for row in rows if row[1] == modality and row[0] > bound], dtype=np.float64)
        metrics |= {f"{what}[{modality}]": value for what, value in _errors(held_out, every, options.seed).items()}
        metrics[f"calibrated_on[{modality}]"] = float((known[modality] or {"pairs": 0})["pairs"])
    after = np.array([row[2:] for row in rows if row[0] > bound], dtype=np.float64)
    metrics |= {
        "pairs": float(len(rows)),
        "error_before": calibration_error(after[:, 0], after[:, 2]),
        "error_after": calibration_error(after[:, 1], after[:, 2]),
    }
    forms = {modality: known[modality]["form"] if known[modality] else "none" for modality in known}
    return metrics, forms, dataset


def _errors(held_out: Columns, every: Columns, seed: int) -> dict[str, float]:
    """Calibration errors of one modality: of the held-out pairs as they were served, and over other halves."""
    raw, served, cosine = held_out.T
    rng, before, after = np.random.default_rng(seed), [], []
    for _ in range(SPLITS):
        order = rng.permutation(len(every))
        fit, left = every[order[: len(every) // 2]], every[order[len(every) // 2 :]]
        before.append(calibration_error(left[:, 0], left[:, 2]))
        after.append(calibration_error(choose(fit[:, 0], fit[:, 2]).map(left[:, 0]), left[:, 2]))
    return {
        "held_out": float(len(held_out)),
        "confidence_before": float(raw.mean()),
        "confidence_after": float(served.mean()),
        "cosine": float(cosine.mean()),
        "error_before": calibration_error(raw, cosine),
        "error_after": calibration_error(served, cosine),
        "error_before_resplit": float(np.mean(before)),
        "error_after_resplit": float(np.mean(after)),
        "error_after_resplit_std": float(np.std(after, ddof=1)),
    }


def _posted(service: Service, count: int) -> Iterator[tuple[str, str, Any]]:
    """Post products without one of text and picture; (item, modality, content) of what they lack."""
    for k in range(count):
        product = demo_item(k=k)
        picture = {"base64": base64.b64encode(product.picture).decode()}
        content: dict[str, Any] = {"text": product.text, "image": picture}
        lacking = ("text", "image")[k % 2]
        given = {name: one for name, one in content.items() if name != lacking}
        service.client.post("/items", json={"id": product.id, "modalities": given}).raise_for_status()
        yield product.id, lacking, content[lacking]


def _lacking(service: Service, data: Path) -> Iterator[tuple[str, str, Any]]:
    """(item, modality, content) of one modality of each item that the dataset has and the service generates."""
    rows = {row["id"]: row["modalities"] for row in map(json.loads, (data / "items.jsonl").open())}
    wanted: dict[str, list[str]] = {}
    for modality in sorted(set(itertools.chain.from_iterable(rows.values()))):
        for item_id in _missing(service, modality):
            if modality in rows.get(item_id, ()):
                wanted.setdefault(item_id, []).append(modality)
    for place, (item_id, names) in enumerate(sorted(wanted.items())):
        modality = names[place % len(names)]
        yield item_id, modality, rows[item_id][modality]


def _missing(service: Service, modality: str) -> Iterator[str]:
    cursor = None
    while True:
        more = {} if cursor is None else {"cursor": cursor}
        page = service.get("/items", missing=modality, generated=True, limit=PAGE, **more)
        yield from (item["id"] for item in page["items"])
        cursor = page["next_cursor"]
        if cursor is None:
            return


def _replace(service: Service, contents: list[tuple[str, str, Any]]) -> None:
    for item_id, modality, content in contents:
        service.client.patch(f"/items/{item_id}", json={"modalities": {modality: content}}).raise_for_status()
    service.wait_until_idle()
    time.sleep(5)  # until the newest pairs have been looked at


def _rows(folder: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{folder}/lacuna.db?mode=ro", uri=True) as connection:
        return connection.execute(PAIRS).fetchall()


if __name__ == "__main__":
    main()
