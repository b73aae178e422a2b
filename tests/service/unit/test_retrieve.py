"""What a search finds among observed and generated features, against a plain reading."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from service.domain import State
from service.pipeline.engine import Engine
from service.pipeline.retrieve import by_modality
from tests.service.unit.test_whole_items import Trained


@pytest.fixture(scope="module")
def trained() -> Trained:
    return Trained(1)


@pytest.mark.parametrize("scale", [1.0, 0.6])
@pytest.mark.parametrize("include_generated", [True, False])
def test_generated_features_stand_among_the_others_by_calibrated_cosines(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, scale: float, include_generated: bool
) -> None:
    catalogue, name = trained.items, "audio"
    monkeypatch.setattr(trained.online, "search_scale", lambda _, warm: scale if warm else scale / 2)
    engine = cast(Engine, SimpleNamespace(active=trained.active, memory=SimpleNamespace(catalogue=catalogue)))
    query = np.random.default_rng(0).normal(size=trained.online.ranks[name]).astype(np.float32)
    allowed = catalogue.eligible()
    if not include_generated:
        allowed &= catalogue.having(name)[: len(allowed)]

    expected: list[Any] = []
    for key, entry in catalogue.entries.items():
        feature = catalogue.rows.get(f"feature.{name}", key)
        length = np.linalg.norm(feature)
        if not allowed[key] or length <= 1e-6:
            continue
        cosine = float(feature @ query / length / np.linalg.norm(query))
        generated = entry.states[name] is State.GENERATED
        factor = scale if catalogue.warm[key] else scale / 2
        expected.append((-cosine * (factor if generated else 1), key, entry.id, generated))
    assert include_generated == any(generated for *_, generated in expected)
    for n in (5, 200):
        hits = by_modality(engine, name, query, n, allowed)
        ranked = sorted(expected)[:n]
        assert [hit.id for hit in hits] == [item for _, _, item, _ in ranked]
        np.testing.assert_allclose([hit.score for hit in hits], [-score for score, *_ in ranked], atol=1e-5)
