"""Models that join a bundle: its own encoders make their features, and its other models stay."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch

from models.bundle import (
    MANIFEST,
    Bundle,
    BundleWriter,
    DataEntry,
    Manifest,
    ModalityEntry,
    ModelEntry,
    next_version,
    require_replaceable,
)
from models.encoders import ImageEncoder, TextEncoder, load_encoder
from models.modality import ModalBatch
from training.datasets.base import Dataset
from training.dgmrec.recipe import DataOptions, prepare_features, withheld_cells
from training.features import encode_dataset
from training.progress import Terminal


@dataclass(frozen=True)
class Opened:
    """What a model joins.

    Attributes:
        bundle: what stands there; None where there is nothing yet.
        content: the items' features by the bundle's encoders, or by new ones.
        files: what new encoders add to a bundle, by name, with what writes it.
    """

    bundle: Bundle | None
    content: ModalBatch
    modalities: tuple[ModalityEntry, ...]
    files: Mapping[str, Callable[[Path], object]]


def open_bundle(dataset: Dataset, out: Path, options: DataOptions, terminal: Terminal) -> Opened:
    """The bundle at `out`, or what a new one begins with.

    Raises:
        BundleError: something else stands there. What `prepare_features` raises.
    """
    require_replaceable(out)  # said now rather than after the training
    if (out / MANIFEST).is_file():
        bundle = Bundle.load(out)
        return Opened(bundle, content_under(bundle, dataset, options, terminal), bundle.manifest.modalities, {})
    if not dataset.modalities:
        return Opened(None, no_content(dataset), (), {})
    prepared = prepare_features(dataset, options, terminal)
    modalities = tuple(
        ModalityEntry(name=spec.name, dim=spec.dim, encoder=prepared.encoders.get(spec.name))
        for spec in prepared.batch.specs
    )
    return Opened(None, prepared.batch, modalities, prepared.files)


def join(
    out: Path,
    opened: Opened,
    name: str,
    data: DataEntry,
    save: Callable[[BundleWriter], ModelEntry],
    *,
    catalogue: Callable[[BundleWriter], None] | None = None,
) -> Manifest:
    """Write the model `name` into the bundle beside what it holds, in place of an older one of that name.

    Args:
        catalogue: writes the catalogue into a new bundle; one that is there keeps its own.
    """
    old = opened.bundle.manifest if opened.bundle is not None else None
    with BundleWriter(out) as writer:
        for file in old.files if old is not None else ():
            if not Path(file).name.startswith(name):
                _copy(writer, out, file)
        for file, write in opened.files.items():
            writer.add(file, write)
        if old is None and catalogue is not None:
            catalogue(writer)
        entry = save(writer)
        return writer.finish(
            version=next_version(out, datetime.now(UTC).date().isoformat()),
            lacuna_version=version("lacuna"),
            data=data if old is None else old.data,
            modalities=opened.modalities,
            models={**(old.models if old is not None else {}), name: entry},
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
    known = {entry.name for entry in bundle.manifest.modalities}
    columns = [column for column, name in enumerate(batch.names) if name in known]
    return ModalBatch({name: batch.features[name] for name in batch.names if name in known}, batch.observed[:, columns])


def no_content(dataset: Dataset) -> ModalBatch:
    """Items without any content."""
    return ModalBatch({}, torch.zeros(len(dataset.items), 0, dtype=torch.bool))


def data_entry(dataset: Dataset, content: ModalBatch, interactions: int) -> DataEntry:
    """What a bundle says of the data."""
    missing = 1 - float(content.observed.float().mean()) if content.names else 0.0
    return DataEntry(
        name=dataset.name,
        synthetic=dataset.synthetic,
        users=len(dataset.users),
        items=len(dataset.items),
        interactions=interactions,
        missing_cells=round(missing, 4),
        fingerprint=dataset.fingerprint,
        min_rating=dataset.min_rating,
    )


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
