"""Writing models into bundles: a bundle's own encoders make the features, and its other models stay."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from models.arrays import Mask
from models.bundle import (
    CATALOGUE_FEATURES,
    CATALOGUE_FEEDBACK,
    CATALOGUE_ITEMS,
    MANIFEST,
    Bundle,
    BundleWriter,
    DataEntry,
    Manifest,
    ModalityEntry,
    ModelEntry,
    next_version,
)
from models.encoders import ImageEncoder, TextEncoder, load_encoder
from models.modality import ModalBatch
from training.content import DataOptions, Prepared, no_content, prepare_features, withheld_cells
from training.datasets.base import FEEDBACK, Dataset
from training.datasets.prepared import item_line
from training.features import encode_dataset
from training.progress import Terminal
from training.titles import TEXT, without_titles


@dataclass(frozen=True)
class Opened:
    """What a model joins.

    Attributes:
        bundle: what stands there; None where there is nothing yet.
        content: the items' features by the bundle's encoders, or by new ones.
        files: what new encoders add to a bundle, by name, with what writes it.
        title_as_text: whether titles stand in for texts in a new bundle; one that is there says so itself.
    """

    bundle: Bundle | None
    content: ModalBatch
    modalities: tuple[ModalityEntry, ...]
    files: Mapping[str, Callable[[Path], object]]
    title_as_text: bool = True


def open_bundle(dataset: Dataset, out: Path, options: DataOptions, terminal: Terminal) -> Opened:
    """The bundle at `out` with the items' features by its encoders, or what a new one begins with.

    Raises:
        BundleError: the bundle is damaged. What `prepare_features` raises.
    """
    if (out / MANIFEST).is_file():
        bundle = Bundle.load(out)
        return Opened(bundle, content_under(bundle, dataset, options, terminal), bundle.manifest.modalities, {})
    if not dataset.modalities:
        return Opened(None, no_content(dataset), (), {})
    return new_bundle(prepare_features(dataset, options, terminal))


def new_bundle(prepared: Prepared) -> Opened:
    """What a new bundle begins with: features by new encoders."""
    modalities = tuple(
        ModalityEntry(name=spec.name, dim=spec.dim, encoder=prepared.encoders.get(spec.name))
        for spec in prepared.batch.specs
    )
    return Opened(None, prepared.batch, modalities, prepared.files, prepared.title_as_text)


def join(
    out: Path,
    opened: Opened,
    name: str,
    dataset: Dataset,
    interactions: int,
    save: Callable[[BundleWriter], ModelEntry],
    *,
    source: Path | None = None,
) -> Manifest:
    """Write the model `name` into the bundle beside what it holds, in place of an older one of that name.

    Args:
        interactions: how many events of the dataset the model was made of; a bundle that is there keeps its own
            account of the data.
        source: the prepared dataset, whose catalogue a new bundle holds; one that is there keeps its own.
    """
    old = opened.bundle.manifest if opened.bundle is not None else None
    with BundleWriter(out) as writer:
        for file in old.files if old is not None else ():
            if not Path(file).name.startswith(name):
                _copy(writer, out, file)
        for file, write in opened.files.items():
            writer.add(file, write)
        if old is None and source is not None:
            add_catalogue(writer, dataset, opened.content, source)
        entry = save(writer)
        models = {**(old.models if old is not None else {}), name: entry}
        number = next_version(out, datetime.now(UTC).date().isoformat())
        return writer.finish(
            version=f"{number}-{writer.contents_name(models)}",
            lacuna_version=version("lacuna"),
            data=_data_entry(dataset, opened, interactions) if old is None else old.data,
            modalities=opened.modalities,
            models=models,
        )


def content_under(bundle: Bundle, dataset: Dataset, options: DataOptions, terminal: Terminal) -> ModalBatch:
    """The items' features by the encoders of a bundle, for those of its modalities that the dataset has.

    Cells that the options withhold are not among them, as in the training of the bundle's other models.
    """
    if not dataset.modalities:
        return no_content(dataset)
    encoders: dict[str, Any] = {
        entry.encoder.kind: load_encoder(
            entry.encoder, bundle.path, image_weights=options.image_weights, cache_dir=options.cache
        )
        for entry in bundle.manifest.modalities
        if entry.encoder is not None
    }
    batch, _ = encode_dataset(
        dataset,
        dataset.observed() & ~withheld_cells(dataset, options),
        text_encoder=cast(TextEncoder | None, encoders.get("text")),
        image_encoder=cast(ImageEncoder | None, encoders.get("image")),
        progress=terminal.stage,
        cache_dir=options.cache,
    )
    if not bundle.manifest.data.title_as_text and TEXT in batch.names:
        batch = without_titles(dataset, batch)
    known = {entry.name for entry in bundle.manifest.modalities}
    columns = [column for column, name in enumerate(batch.names) if name in known]
    return ModalBatch({name: batch.features[name] for name in batch.names if name in known}, batch.observed[:, columns])


def _data_entry(dataset: Dataset, opened: Opened, interactions: int) -> DataEntry:
    observed = opened.content.observed.numpy()
    return DataEntry(
        name=dataset.name,
        synthetic=dataset.synthetic,
        users=len(dataset.users),
        items=len(dataset.items),
        interactions=interactions,
        missing_cells=round(float(1 - observed.mean()), 4) if observed.size else 0.0,
        fingerprint=dataset.fingerprint,
        min_rating=dataset.min_rating,
        title_as_text=opened.title_as_text,
        until=_newest(dataset.interactions.timestamp),
    )


def _newest(timestamps: NDArray[np.float64]) -> datetime | None:
    """The newest moment of some epoch seconds, nan where one has none."""
    known = timestamps[np.isfinite(timestamps)]
    return datetime.fromtimestamp(float(known.max()), UTC) if len(known) else None


def run_fingerprint(content: ModalBatch, settings: Mapping[str, Any]) -> str:
    """Names everything a run's result depends on, so that a checkpoint of another run is not continued.

    Args:
        content: what the model sees, byte by byte: its cells, and which encoder or generator made them.
        settings: all else, of which `str` tells one value from another: data, config, trainer.
    """
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    digest.update(repr(content.specs).encode())
    digest.update(content.observed.numpy().tobytes())
    for feature in content.features.values():
        digest.update(feature.numpy().tobytes())
    return digest.hexdigest()


def _copy(writer: BundleWriter, folder: Path, name: str) -> None:
    writer.add(name, lambda file: shutil.copyfile(folder / name, file))


# --- the catalogue ----------------------------------------------------------------------------------------------------


def add_catalogue(writer: BundleWriter, dataset: Dataset, batch: ModalBatch, source: Path) -> None:
    """Write the catalogue into a bundle: items, the raw features that training saw, and the prepared feedback."""
    observed = batch.observed.numpy()
    columns = {name: observed[:, column] for column, name in enumerate(batch.names)}
    writer.add(CATALOGUE_ITEMS, lambda file: _write_items(file, dataset, columns))
    arrays: dict[str, NDArray[Any]] = {name: feature.numpy() for name, feature in batch.features.items()}
    arrays |= {f"{name}.observed": column.astype(np.uint8) for name, column in columns.items()}
    writer.tensors(CATALOGUE_FEATURES, arrays)
    writer.add(CATALOGUE_FEEDBACK, lambda file: shutil.copyfile(source / FEEDBACK, file))


def _write_items(file: Path, dataset: Dataset, observed: Mapping[str, Mask]) -> None:
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
