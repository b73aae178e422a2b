"""Bundles that hold one model and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from models.bundle import Bundle, BundleWriter, DataEntry, ModelEntry


class Saved(Protocol):
    """A model that writes itself into a bundle."""

    def save(self, writer: BundleWriter, metrics: Mapping[str, float]) -> ModelEntry: ...


def bundle_of(path: Path, name: str, model: Saved) -> Bundle:
    """Write a model into a new bundle, and read that."""
    data = DataEntry(name="t", synthetic=True, users=2, items=1, interactions=3, missing_cells=0, fingerprint="f")
    with BundleWriter(path) as writer:
        entry = model.save(writer, {"measured": 0.8})
        writer.finish(version="1", lacuna_version="0", data=data, modalities=(), models={name: entry})
    return Bundle.load(path)
