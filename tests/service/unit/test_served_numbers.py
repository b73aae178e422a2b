"""What is served of a trained bundle, in NumPy, is what its modules compute in torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundle import CATALOGUE_FEATURES, Bundle
from models.dgmrec.serving import DGMRecServing
from models.evidence import Evidence, ImputationEvidence
from models.iris.serving import IRISServing

Array = NDArray[np.float32]
ROWS = 40
CLOSE = 1e-5


def evidence_for(online: DGMRecServing, seed: int = 0) -> ImputationEvidence:
    """Features and evidence with holes; half of the items are new."""
    rng = np.random.default_rng(seed)
    tables, count = online.tables, len(online.names)

    def some(name: str) -> Array:
        return tables[f"feature.{name}"][rng.integers(len(online.items), size=ROWS)]

    observed, neighbour_valid, means_valid = (rng.random((ROWS, count)) < share for share in (0.5, 0.7, 0.5))
    warm = rng.random((ROWS, 1)) < 0.5
    means_valid &= warm
    means = {name: some(name) * means_valid[:, [column]] for column, name in enumerate(online.names)}
    items = rng.integers(len(online.items), size=ROWS)
    return ImputationEvidence(
        own={name: some(name) * observed[:, [column]] for column, name in enumerate(online.names)},
        neighbour_mean={name: some(name) * neighbour_valid[:, [column]] for column, name in enumerate(online.names)},
        near_duplicates={
            name: 0.05 * some(name) * neighbour_valid[:, [column]] for column, name in enumerate(online.names)
        },
        co_interaction_mean=means,
        cross_fitted_mean=means,
        factors=tables["item_factor"][items] * warm.astype(np.float32),
        observed=observed,
        neighbour_valid=neighbour_valid,
        co_interaction_valid=means_valid,
        preference=tables["item_preference"][items].transpose(1, 0, 2),
    )


def tensors(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def evidence_of(known: ImputationEvidence) -> Evidence:
    """The same as tensors, without the preferences."""
    values = (getattr(known, field.name) for field in fields(Evidence))
    return Evidence(*(tensors(value) if isinstance(value, dict) else torch.from_numpy(value) for value in values))


def alike(found: Array, expected: Tensor) -> None:
    assert found.dtype == np.float32
    scale = max(float(expected.abs().max()), 1.0)
    np.testing.assert_allclose(found / scale, expected.numpy() / scale, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("trust", [0.0, 0.6])
def test_generation(demo_bundle: Path, trust: float) -> None:
    bundle = Bundle.load(demo_bundle)
    model = DGMRecServing.load(bundle).model
    for name in model.names:
        model.tower(name).trust.fill_(trust)
    tables = DGMRecServing.load(bundle).tables
    online = DGMRecServing(model, tables, bundle.vocabulary("users"), bundle.vocabulary("items"))
    known = evidence_for(online)
    made = online.generate(known)
    assert made.keys() == {*model.names}
    with torch.inference_mode():
        evidence, preference = evidence_of(known), torch.from_numpy(known.preference)
        for name, (features, confidence) in made.items():
            expected = model.generate(name, evidence, preference)
            alike(features, expected.features)
            alike(confidence, model.tower(name).confidence(expected))
            alike(online.unproject(name, features), model.tower(name).projection.back(expected.features))
    blocks = {key: value for key, value in vars(known).items() if key != "preference"}
    first = {
        key: {name: block[:1] for name, block in value.items()} if isinstance(value, dict) else value[:1]
        for key, value in blocks.items()
    }
    alone = ImputationEvidence(**first, preference=known.preference[:, :1])
    for name, (features, _) in online.generate(alone).items():
        np.testing.assert_allclose(features[0], made[name][0][0], atol=CLOSE)


def test_embedding(demo_bundle: Path) -> None:
    bundle = Bundle.load(demo_bundle)
    online = DGMRecServing.load(bundle)
    model, raw = online.model, bundle.tensors(CATALOGUE_FEATURES)
    features = {name: online.project(name, raw[name]) for name in online.names}
    preference = online.tables["item_preference"].transpose(1, 0, 2)
    parts = online.encode(features, preference)
    own = online.tables["item_id"]
    with torch.inference_mode():
        for name, block in features.items():
            alike(block, model.tower(name).projection(torch.from_numpy(raw[name])))
        expected = model.encode(tensors(features), torch.from_numpy(preference))
        alike(parts, expected)
        modal = model.fuse(expected)
        alike(online.fuse(parts), modal)
        alike(online.preference(own), model.user_preference(torch.from_numpy(own)))
        alike(online.combine(own, modal.numpy()), model.combine(torch.from_numpy(own), modal))


def test_sides(demo_bundle: Path) -> None:
    bundle = Bundle.load(demo_bundle)
    reranker = IRISServing.load(bundle)
    assert reranker is not None
    raw = bundle.tensors(CATALOGUE_FEATURES)
    features = {name: raw[name] for name in reranker.names}
    present = np.stack([raw[f"{name}.observed"].astype(np.bool_) for name in reranker.names], axis=1)
    found = reranker.sides(features, present, [str(row) for row in range(len(present))])
    with torch.inference_mode():
        history, target = reranker.model.roles(reranker.model.signals(tensors(features)), torch.from_numpy(present))
    alike(found.history, history)
    alike(found.target, target)
