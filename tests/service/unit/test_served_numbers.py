"""What is served of a trained bundle, in NumPy, is what its modules compute in torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundle import CATALOGUE_FEATURES, Bundle
from models.dgmrec.serving import Known, OnlineDGMRec
from models.evidence import Evidence
from models.iris.serving import Reranker

Array = NDArray[np.float32]
ROWS = 40
CLOSE = 1e-5


def known_of(online: OnlineDGMRec, seed: int = 0) -> Known:
    """Features and evidence with holes; half of the items are new."""
    rng = np.random.default_rng(seed)
    tables, count = online.tables, len(online.names)

    def some(name: str) -> Array:
        return tables[f"feature.{name}"][rng.integers(len(online.items), size=ROWS)]

    observed, near_valid, shared_valid = (rng.random((ROWS, count)) < share for share in (0.5, 0.7, 0.5))
    touched = rng.random((ROWS, 1)) < 0.5
    shared_valid &= touched
    return Known(
        {name: some(name) * observed[:, [column]] for column, name in enumerate(online.names)},
        observed,
        {name: some(name) * near_valid[:, [column]] for column, name in enumerate(online.names)},
        {name: 0.05 * some(name) * near_valid[:, [column]] for column, name in enumerate(online.names)},
        near_valid,
        {name: some(name) * shared_valid[:, [column]] for column, name in enumerate(online.names)},
        shared_valid,
        tables["item_factor"][rng.integers(len(online.items), size=ROWS)] * touched.astype(np.float32),
        tables["item_taste"][rng.integers(len(online.items), size=ROWS)],
    )


def tensors(arrays: dict[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def evidence_of(known: Known) -> Evidence:
    blocks = (tensors(dict(one)) for one in (known.features, known.near, known.closest, known.shared, known.shared))
    rest = (known.factors, known.observed, known.near_valid, known.shared_valid)
    return Evidence(*blocks, *(torch.from_numpy(one) for one in rest))


def alike(found: Array, expected: Tensor) -> None:
    assert found.dtype == np.float32
    scale = max(float(expected.abs().max()), 1.0)
    np.testing.assert_allclose(found / scale, expected.numpy() / scale, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("trust", [0.0, 0.6])
def test_generation(demo_bundle: Path, trust: float) -> None:
    bundle = Bundle.load(demo_bundle)
    model = OnlineDGMRec.load(bundle).model
    for name in model.names:
        model.tower(name).trust.fill_(trust)
    tables = OnlineDGMRec.load(bundle).tables
    online = OnlineDGMRec(model, tables, bundle.vocabulary("users"), bundle.vocabulary("items"))
    known = known_of(online)
    made = online.generate(known)
    assert made.keys() == {*model.names}
    with torch.inference_mode():
        evidence, taste = evidence_of(known), torch.from_numpy(known.taste).transpose(0, 1)
        for name, (features, confidence) in made.items():
            expected = model.generate(name, evidence, taste)
            alike(features, expected.features)
            alike(confidence, model.tower(name).confidence(expected))
            alike(online.unproject(name, features), model.tower(name).projection.back(expected.features))
    alone = Known(*(
        {name: block[:1] for name, block in value.items()} if isinstance(value, dict) else value[:1]
        for value in vars(known).values()
    ))  # fmt: skip
    for name, (features, _) in online.generate(alone).items():
        np.testing.assert_allclose(features[0], made[name][0][0], atol=CLOSE)


def test_embedding(demo_bundle: Path) -> None:
    bundle = Bundle.load(demo_bundle)
    online = OnlineDGMRec.load(bundle)
    model, raw = online.model, bundle.tensors(CATALOGUE_FEATURES)
    features = {name: online.project(name, raw[name]) for name in online.names}
    taste = online.tables["item_taste"]
    parts = online.encode(features, taste)
    own = online.tables["item_id"]
    with torch.inference_mode():
        for name, block in features.items():
            alike(block, model.tower(name).projection(torch.from_numpy(raw[name])))
        expected = model.encode(tensors(features), torch.from_numpy(taste).transpose(0, 1))
        alike(parts, expected.transpose(0, 1))
        modal = model.fuse(expected)
        alike(online.fuse(parts), modal)
        alike(online.preference(own), model.preference(torch.from_numpy(own)).transpose(0, 1))
        alike(online.combine(own, modal.numpy()), model.combine(torch.from_numpy(own), modal))


def test_sides(demo_bundle: Path) -> None:
    bundle = Bundle.load(demo_bundle)
    reranker = Reranker.load(bundle)
    assert reranker is not None
    raw = bundle.tensors(CATALOGUE_FEATURES)
    features = {name: raw[name] for name in reranker.names}
    present = np.stack([raw[f"{name}.observed"].astype(np.bool_) for name in reranker.names], axis=1)
    found = reranker.sides(features, present, [str(row) for row in range(len(present))])
    with torch.inference_mode():
        history, target = reranker.model.roles(reranker.model.signals(tensors(features)), torch.from_numpy(present))
    alike(found.history, history)
    alike(found.target, target)
