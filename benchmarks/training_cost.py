"""What training takes on a catalogue with pictures: processor time and peak memory, by what it said last.

Makes 10,000 films with a poster and a plot each, and 600 users with 80,000 ratings, from a folder with the films,
posters and interactions of MovieLens 1M: films are repeated, the sentences of each copy's plot in another order, its
poster cropped and brightened a little and saved anew; each interaction goes to a random copy of its film, and ratings
are drawn. So what comes out is synthetic.

    python benchmarks/training_cost.py --source data/ml-1m --work build/films --json docs/results/training/films.json

The set is made once; `--work` keeps it, and the features and the encoder that the first training leaves in its cache:
`--again` trains a second time with them.
"""

from __future__ import annotations

import argparse
import base64
import csv
import gzip
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image, ImageEnhance

from training.datasets.prepared import INFO, write_dataset
from training.evaluate.result import write_single_run

ITEMS, USERS, EVENTS = 10_000, 600, 80_000
WIDTH = 185  # of a poster, in pixels
SAMPLE_SECONDS = 0.05


def films(source: Path) -> list[dict[str, str]]:
    """The films that have a poster and a plot."""
    with gzip.open(source / "movies.csv.gz", "rt", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return [row for row in rows if row["plot"] and (source / "posters" / f"{row['item']}.jpg").is_file()]


def item_rows(source: Path, known: list[dict[str, str]], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """The bodies of the items; the k-th is a copy of the k-th film, modulo their number."""
    for number in range(ITEMS):
        film = known[number % len(known)]
        told = film["plot"].split(". ")
        turn = number // len(known) % len(told)
        picture = _copy(source / "posters" / f"{film['item']}.jpg", rng)
        yield {
            "id": f"film-{number}",
            "title": film["title"],
            "modalities": {
                "text": ". ".join(told[turn:] + told[:turn]),
                "image": {"base64": base64.b64encode(picture).decode("ascii")},
            },
            "categories": film["genres"].split("|"),
            "metadata": {"synthetic": True},
        }


def _copy(file: Path, rng: np.random.Generator) -> bytes:
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    left, top, right, bottom = rng.integers(0, 6, size=4).tolist()
    image = image.crop((left, top, image.width - right, image.height - bottom))
    image = image.resize((WIDTH, WIDTH * image.height // image.width), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.9, 1.1))).save(stream, "JPEG", quality=88)
    return stream.getvalue()


def event_rows(source: Path, known: list[dict[str, str]], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Ratings of the first users until there are enough, at invented times."""
    place = {film["item"]: row for row, film in enumerate(known)}
    with gzip.open(source / "interactions.csv.gz", "rt", encoding="utf-8") as stream:
        pairs = [(row["user"], place[row["item"]]) for row in csv.DictReader(stream) if row["item"] in place]
    users = sorted({user for user, _ in pairs}, key=int)[:USERS]
    mine = [pair for pair in pairs if pair[0] in set(users)]
    for moment, row in enumerate(np.sort(rng.permutation(len(mine))[:EVENTS]).tolist()):
        user, film = mine[row]
        copies = len(range(film, ITEMS, len(known)))
        item = film + len(known) * int(rng.integers(copies))
        yield {
            "user": user,
            "item": f"film-{item}",
            "type": "rating",
            "value": int(rng.choice([1, 2, 3, 4, 5], p=[0.06, 0.11, 0.27, 0.34, 0.22])),
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(946_684_800 + 60 * moment)),
        }


def prepare(source: Path, out: Path) -> None:
    """Write the set unless it is there."""
    if (out / INFO).is_file():
        return
    known, rng = films(source), np.random.default_rng(1)
    write_dataset(
        out,
        item_rows(source, known, rng),
        event_rows(source, known, rng),
        name="films (synthetic)",
        source="films of MovieLens 1M, repeated",
        synthetic=True,
    )


class Watch:
    """The resident memory of a process while it runs: its peak by the last line that it wrote before."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.peaks: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self._process, self._line, self._over = psutil.Process(process.pid), "start", False
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def saw(self, line: str) -> None:
        """The process wrote a line."""
        self._line = line.split(":")[0].split(",")[0].split(" in /")[0][:40]

    def close(self) -> None:
        """Stop sampling."""
        self._over = True
        self._thread.join()

    def _sample(self) -> None:
        while not self._over:
            try:
                memory = self._process.memory_info().rss / 2**20
                used = sum(self._process.cpu_times()[:2])
            except psutil.NoSuchProcess:
                return
            self.peaks[self._line] = round(max(memory, self.peaks.get(self._line, 0)))
            self.seconds[self._line] = round(used, 1)
            time.sleep(SAMPLE_SECONDS)


def train(data: Path, arguments: list[str], cache: Path) -> dict[str, Any]:
    """One training in a process of its own: what it took."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        command = [sys.executable, "-m", "training", "train", "dgmrec", "--data", str(data), "--out", str(out)]
        process = subprocess.Popen(
            [*command, *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "LACUNA_CACHE": str(cache)},
        )
        watch = Watch(process)
        assert process.stderr is not None
        for line in process.stderr:
            sys.stderr.write(line)
            watch.saw(line.strip())
        _, status, usage = os.wait4(process.pid, 0)
        watch.close()
    if status:
        raise SystemExit(f"the training ended with {status}")
    return {
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_rss_mb": round(usage.ru_maxrss / 1024),
        "peaks": watch.peaks,
        "processor_seconds_until": watch.seconds,
    }


def main() -> None:
    """Make the set, train, and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--json", type=Path)
    options, arguments = parser.parse_known_args()
    begin = time.perf_counter()
    prepare(options.source, options.work / "data")
    taken = {"first": train(options.work / "data", arguments, options.work / "cache")}
    if options.again:
        taken["again"] = train(options.work / "data", arguments, options.work / "cache")
    metrics = {
        f"{name}[{run}]": values[name] for run, values in taken.items() for name in ("processor_seconds", "peak_rss_mb")
    }
    what = {
        "protocol": "training",
        "dataset": "films",
        "synthetic": True,
        "model": "dgmrec",
        "variant": None,
        "config": {"items": ITEMS, "users": USERS, "events": EVENTS, "arguments": arguments, "phases": taken},
    }
    write_single_run(options.json, what, metrics, f"python {' '.join(sys.argv)}", begin)
    for name, value in metrics.items():
        sys.stdout.write(f"{name:<28} {value}\n")


if __name__ == "__main__":
    main()
