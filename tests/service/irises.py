"""Bundles with an IRIS that nobody has trained: its numbers are drawn, so that nothing about them is regular."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from models.bundle import CATALOGUE_FEATURES, Bundle, BundleWriter
from models.iris.config import IRISConfig, paper_settings
from models.iris.model import IRIS
from models.iris.serving import NAME, IRISServing
from models.modality import ModalitySpec

CONFIG = IRISConfig(embedding_size=8, tower_hidden=16, tower_size=8, interest_size=6, rank=12)
PAPER = IRISConfig(**paper_settings(8))


def with_iris(source: Path, path: Path, *, reads: Sequence[str] | None = None, config: IRISConfig = CONFIG) -> None:
    """Write the bundle at `source` to `path`, with an IRIS that reads these modalities, or all."""
    bundle = Bundle.load(source)
    reranker = drawn(bundle, config.model_copy(update={"reads": reads}))
    with BundleWriter(path) as writer:
        for name in bundle.manifest.files:
            writer.add(name, _copying(source / name))
        entry = reranker.save(writer, {"hr@10": 0.5})
        writer.finish(
            version=bundle.version,
            lacuna_version=bundle.manifest.lacuna_version,
            data=bundle.manifest.data,
            modalities=bundle.manifest.modalities,
            models={**bundle.manifest.models, NAME: entry},
        )


def _copying(file: Path) -> Callable[[Path], object]:
    return partial(shutil.copyfile, file)


def drawn(bundle: Bundle, config: IRISConfig) -> IRISServing:
    """An IRIS for the bundle's own catalogue, of which training never met every eighth item."""
    items = bundle.vocabulary("items")
    arrays = bundle.tensors(CATALOGUE_FEATURES)
    specs = [ModalitySpec(modality.name, modality.dim) for modality in bundle.manifest.modalities]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = IRIS(config, specs, len(items))
        with torch.no_grad():
            for one in (model.p, model.q, model.h, model.item_bias, model.bias):
                one.normal_(0, 0.7)
    raw = {name: torch.from_numpy(arrays[name]).float() for name in model.names}
    present = torch.stack([torch.from_numpy(arrays[f"{name}.observed"]).bool() for name in model.names], dim=1)
    model.fit_projections(raw, present)
    model.fit_prediction(model.signals(raw), present, torch.arange(len(items)) % 8 > 0)
    return IRISServing(model, items)
