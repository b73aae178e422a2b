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
        if self.needs_source:
            self._check(source)
        return self.write(source or Path(), out, progress)

    def _check(self, source: Path | None) -> None:
        if source is not None and source.is_dir():
            return
        fault = "" if source is None else f": {source} " + ("is no folder" if source.exists() else "does not exist")
        raise DatasetError(f"the dataset {self.name} needs a source{fault}")


def _write_demo(_source: Path, out: Path, progress: Progress | None) -> DatasetInfo:
    from training.demo.catalogue import prepare_demo

    return prepare_demo(out, progress=progress)


READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        Reader("lacuna", "a folder with items.jsonl and feedback.jsonl, as the service exports them", native.prepare),
        Reader("ml-100k", "MovieLens 100K, as published or with overviews and posters", movielens.prepare_100k),
        Reader("ml-1m", "MovieLens 1M, as published or with plots and posters", movielens.prepare_1m),
        Reader("movielens", "MovieLens 20M, 25M, 32M, latest (ratings.csv, movies.csv) or 10M", movielens.prepare_any),
        Reader("ml-100k-overviews", "the same with overviews alone", partial(movielens.prepare_100k, metadata=False)),
        Reader("ml-1m-plots", "the same with plots alone", partial(movielens.prepare_1m, metadata=False)),
        Reader("amazon", "Amazon reviews of 2014, 2018 or 2023 and optionally their metadata", amazon.prepare),
        Reader("folder", "MMRec's NAME.inter or interactions.csv beside <modality>_feat.npy files", folder.prepare),
        Reader("recbole", "RecBole's atomic files NAME.inter and NAME.item; the same as folder", folder.prepare),
        Reader("demo", "the generated demo catalogue (synthetic); needs no source", _write_demo, needs_source=False),
    )
}
