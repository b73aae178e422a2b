"""Datasets: one reader per source; each writes the prepared format of `prepared`, which is what the trainer reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from training.datasets import amazon, folder, movielens, native
from training.datasets.base import Dataset, DatasetError, Progress
from training.datasets.prepared import DatasetInfo, load_dataset, write_dataset

__all__ = ["READERS", "Dataset", "DatasetError", "DatasetInfo", "Reader", "load_dataset", "write_dataset"]


@dataclass(frozen=True, slots=True)
class Reader:
    """A source of data: its name on the command line and one line of help."""

    name: str
    help: str
    write: Callable[[Path, Path, Progress | None], DatasetInfo]
    needs_source: bool = True

    def prepare(self, source: Path | None, out: Path, progress: Progress | None = None) -> DatasetInfo:
        """Read `source` and write the prepared dataset to `out`.

        Raises:
            DatasetError: the source is absent or bad, or `out` holds something else than a prepared dataset.
        """
        if self.needs_source and (source is None or not source.exists()):
            raise DatasetError(
                f"the dataset {self.name} needs a source" + (f": {source} does not exist" if source else "")
            )
        return self.write(source or Path(), out, progress)


def _write_demo(_source: Path, out: Path, progress: Progress | None) -> DatasetInfo:
    from training.demo.catalogue import prepare_demo

    return prepare_demo(out, progress=progress)


READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        Reader("lacuna", "a folder with items.jsonl and feedback.jsonl, as the service exports them", native.prepare),
        Reader("ml-100k", "MovieLens 100K: posters, and as texts titles, genres and overviews", movielens.prepare_100k),
        Reader("ml-1m", "MovieLens 1M: posters, and as texts titles, genres and plots", movielens.prepare_1m),
        Reader("ml-100k-overviews", "the same with overviews alone", partial(movielens.prepare_100k, page=False)),
        Reader("ml-1m-plots", "the same with plots alone", partial(movielens.prepare_1m, page=False)),
        Reader("amazon", "Amazon reviews: reviews*.json[.gz] and optionally meta*.json[.gz]", amazon.prepare),
        Reader("folder", "NAME.inter or interactions.csv.gz beside <modality>_feat.npy files", folder.prepare),
        Reader("demo", "the generated demo catalogue (synthetic); needs no source", _write_demo, needs_source=False),
    )
}
