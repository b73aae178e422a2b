"""From a trained task to a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import (
    CATALOGUE_FEATURES,
    CATALOGUE_FEEDBACK,
    CATALOGUE_ITEMS,
    BundleWriter,
    DataEntry,
    EncoderRef,
    Manifest,
    ModalityEntry,
    next_version,
)
from models.dgmrec.serving import DGMRecServing, serving_tables
from models.modality import ModalBatch
from training.datasets.base import Dataset
from training.datasets.prepared import FEEDBACK, item_line
from training.dgmrec.task import DGMRecTask


def serving_model(task: DGMRecTask, dataset: Dataset) -> DGMRecServing:
    """The trained model with the tables that serving needs.

    Raises:
        ValueError: the model reads no content.
    """
    if task.content is None:
        raise ValueError("a model without modalities cannot be served")
    model, fallback = task.module, task.propagated_features(task.content.evidence)
    out, prediction = task.final_embeddings()
    tables = serving_tables(model, task.interactions, task.content, out, prediction, task.user_factors, fallback)
    model.config = model.config.model_copy(update={"fallback_imputer": task.fallback_imputer[0]})
    return DGMRecServing(model.cpu(), tables, dataset.users, dataset.items)


def export_bundle(
    path: Path,
    task: DGMRecTask,
    dataset: Dataset,
    batch: ModalBatch,
    encoders: Mapping[str, EncoderRef | None],
    metrics: Mapping[str, float],
    *,
    source: Path | None,
    files: Mapping[str, Callable[[Path], object]] | None = None,
) -> Manifest:
    """Write a bundle with the model and, if `source` names the prepared dataset, the catalogue.

    Args:
        batch: the raw features that training saw.
        encoders: by modality, None for ready vectors.
        files: further files of the bundle (an encoder's weights) by name, with what writes them.
    """
    with BundleWriter(path) as writer:
        entry = serving_model(task, dataset).save(writer, metrics)
        for name, write in (files or {}).items():
            writer.add(name, write)
        if source is not None:
            add_catalogue(writer, dataset, batch, source)
        observed = batch.observed.numpy()
        return writer.finish(
            version=next_version(path, datetime.now(UTC).date().isoformat()),
            lacuna_version=version("lacuna"),
            data=DataEntry(
                name=dataset.name,
                synthetic=dataset.synthetic,
                users=len(dataset.users),
                items=len(dataset.items),
                interactions=len(dataset.pairs()),
                missing_cells=round(float(1 - observed.mean()), 4),
                fingerprint=dataset.fingerprint,
                min_rating=dataset.min_rating,
            ),
            modalities=tuple(
                ModalityEntry(name=spec.name, dim=spec.dim, encoder=encoders.get(spec.name)) for spec in batch.specs
            ),
            models={"dgmrec": entry},
        )


def add_catalogue(writer: BundleWriter, dataset: Dataset, batch: ModalBatch, source: Path) -> None:
    """Write the catalogue into a bundle: items, the raw features that training saw, and the prepared feedback."""
    observed = batch.observed.numpy()
    columns = {name: observed[:, column] for column, name in enumerate(batch.names)}
    writer.add(CATALOGUE_ITEMS, lambda file: _write_items(file, dataset, columns))
    arrays: dict[str, NDArray[Any]] = {name: feature.numpy() for name, feature in batch.features.items()}
    arrays |= {f"{name}.observed": column.astype(np.uint8) for name, column in columns.items()}
    writer.tensors(CATALOGUE_FEATURES, arrays)
    feedback = source / FEEDBACK
    writer.add(CATALOGUE_FEEDBACK, lambda file: file.write_bytes(feedback.read_bytes()))


def _write_items(file: Path, dataset: Dataset, observed: Mapping[str, NDArray[np.bool_]]) -> None:
    """The items' bodies without withheld cells and without vectors, which the features' file holds."""
    with file.open("wb") as stream:
        for row, record in enumerate(dataset.records):
            stream.write(item_line(visible(record, {name: bool(column[row]) for name, column in observed.items()})))


def visible(record: Mapping[str, Any], observed: Mapping[str, bool]) -> dict[str, Any]:
    """An item's body with only its observed content; a title that would stand in for withheld text stays a title."""
    contents = {
        name: content
        for name, content in (record.get("modalities") or {}).items()
        if observed.get(name, False) and not (isinstance(content, dict) and "vector" in content)
    }
    return {**record, "modalities": contents}
