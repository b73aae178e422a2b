"""Ready features of items: a row an item in `<modality>_feat.npy`, or a file an item, `<modality>_feat/<item>.npy`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import patterns
from models.rows import MAX_VALUE, MAX_VECTOR
from training.datasets.base import DatasetError, Vector
from training.datasets.tables import load_array

SUFFIX = "_feat"

_FOLDERS = ("", "feat", "features")
_MODALITY = re.compile(patterns.NAME)


@dataclass(frozen=True, slots=True)
class Features:
    """Ready features by modality: arrays `[items, dim]`, and folders with a file an item."""

    rows: Mapping[str, NDArray[np.floating[Any]]]
    files: Mapping[str, Path]
    _dims: dict[str, int] = field(default_factory=dict)

    @property
    def n_items(self) -> int | None:
        """The number of rows of the arrays, None where there are no arrays."""
        return next((len(array) for array in self.rows.values()), None)

    @property
    def names(self) -> list[str]:
        """The modalities, by name."""
        return sorted({*self.rows, *self.files})

    def of(self, key: str) -> dict[str, dict[str, Vector]]:
        """The features of an item, as the contents of its modalities.

        Raises:
            DatasetError: a file of it is damaged or holds no vector.
        """
        vectors = {name: array[int(key)].astype(np.float32) for name, array in self.rows.items()}
        for name, folder in self.files.items():
            if (file := folder / f"{key}.npy").is_file():
                vectors[name] = self._vector(name, file)
        return {name: {"vector": vectors[name]} for name in sorted(vectors)}

    def _vector(self, name: str, file: Path) -> Vector:
        place = f"{file.parent.name}/{file.name}"
        vector: Vector = _checked(load_array(file).squeeze()[None], place)[0].astype(np.float32)
        expected = self._dims.setdefault(name, len(vector))
        if len(vector) != expected:
            raise DatasetError(f"{place} has {len(vector)} numbers, others have {expected}")
        return vector


def find_features(source: Path) -> Features:
    """The ready features in a folder, or in a folder `feat` or `features` in it.

    Raises:
        DatasetError: a file is damaged, holds no finite floats `[items, dim]`, or they disagree on the number of items.
    """
    paths = [path for name in _FOLDERS for path in sorted((source / name).glob(f"*{SUFFIX}*"))]
    arrays = [path for path in paths if path.name.endswith(f"{SUFFIX}.npy") and path.is_file()]
    rows = {modality_name(path.name): _checked(load_array(path), path.name) for path in arrays}
    if len({len(array) for array in rows.values()}) > 1:
        sizes = ", ".join(f"{name} {len(array)}" for name, array in rows.items())
        raise DatasetError(f"the feature files of {source} disagree on the number of items ({sizes})")
    folders = [path for path in paths if path.name.endswith(SUFFIX) and path.is_dir()]
    return Features(rows, {modality_name(path.name): path for path in folders})


def modality_name(name: str) -> str:
    """The modality whose features a file, a folder or a column of this name holds.

    Raises:
        DatasetError: the API does not take it as a modality's name.
    """
    modality = name.removesuffix(".npy").removesuffix(SUFFIX)
    if not _MODALITY.fullmatch(modality):
        raise DatasetError(f"{name!r} names no modality: {patterns.SENTENCES[patterns.NAME]}")
    return modality


def _checked(array: NDArray[Any], name: str) -> NDArray[np.floating[Any]]:
    if array.ndim != 2 or array.dtype.kind != "f" or not len(array) or not 1 <= array.shape[1] <= MAX_VECTOR:
        raise DatasetError(f"{name} must be floats [items, dim], got {array.dtype}{list(array.shape)}")
    with np.errstate(over="ignore"):
        within = np.abs(array.astype(np.float32)) <= MAX_VALUE  # as nan is not
    if not within.all():
        raise DatasetError(f"{name} must hold finite numbers between -1e6 and 1e6")
    return array
