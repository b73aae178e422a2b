"""Vectors that are renewed after writes equal those derived from nothing, to the bit, whatever was written when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from models.calibration import CalibrationMap
from models.dgmrec.serving import DGMRecServing
from service.domain import State
from service.pipeline import vectors
from service.pipeline.catalogue import COSINE, FINAL, KERNEL_FIELDS, Catalogue, Derived, Entry, Shape
from service.pipeline.confidence import Calibration, Confidence
from service.pipeline.stale import Stale
from tests.fakes import BruteForceIndex
from tests.service.unit.test_whole_items import FORMS, Trained

KEYS, SPARE = 60, 2
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module", params=FORMS.values(), ids=FORMS)
def model(request: pytest.FixtureRequest) -> DGMRecServing:
    return Trained(**request.param).online


def empty(model: DGMRecServing) -> Catalogue:
    """With few neighbours, so that in a small catalogue lists are full, and writes push items out of them or use up the
    spare ones."""
    shape = Shape(model.ranks, model.size, model.layers, 3, 5, spare=SPARE)
    return Catalogue(shape, BruteForceIndex, model.trained_row)


def row(model: DGMRecServing, rng: np.random.Generator, key: int) -> tuple[Entry, Derived]:
    """An item, known to training or not, with or without users, with any of its features observed."""
    states = {name: State(rng.choice(["observed", "observed", "generated", "absent"])) for name in model.names}
    features = {
        name: rng.standard_normal(rank).astype(np.float32) * (states[name] is not State.ABSENT)
        for name, rank in model.ranks.items()
    }
    users = float(rng.choice([0, 0, 1, 4]))
    folded = rng.standard_normal(model.size).astype(np.float32) * (users > 0)
    reach = np.full(len(model.names), np.inf, dtype=np.float32)
    item_id = f"i{key}" if key % 3 else f"later-{key}"
    sure = {name: round(rng.random(), 4) for name, state in states.items() if state is State.GENERATED}
    entry = Entry(key, item_id, None, (), True, 1, 0.0, states, sure)
    return entry, Derived(features, folded, users, reach)


def derived_anew(
    model: DGMRecServing, rows: Mapping[int, tuple[Entry, Derived]], confidence: Confidence | None = None
) -> Catalogue:
    fresh = empty(model)
    fresh.set_confidence(confidence or Confidence())
    fresh.put(list(rows.values()))
    for _ in vectors.derive(model, fresh):
        pass
    return fresh


def assert_equal(left: Catalogue, right: Catalogue) -> None:
    keys = np.array(sorted(left.entries), dtype=np.int64)
    assert sorted(right.entries) == keys.tolist()
    for name in left.shape.layer_fields():
        np.testing.assert_array_equal(left.read_layer(keys, name), right.read_layer(keys, name), err_msg=name)
    later = keys[left.trained[keys] < 0]
    for name in KERNEL_FIELDS:
        np.testing.assert_array_equal(left.read_layer(later, name), right.read_layer(later, name), err_msg=name)
    for name in (FINAL, COSINE, *left.names):
        assert answers(left, name) == answers(right, name), name


def answers(catalogue: Catalogue, name: str) -> list[list[int]]:
    """What an index answers to some queries."""
    index = catalogue.indexes[name]
    queries: NDArray[np.float32] = np.random.default_rng(0).standard_normal((5, index.dim)).astype(np.float32)
    keys: list[list[int]] = index.search(queries, 10)[0].tolist()
    return keys


@pytest.mark.parametrize("seed", range(12))
def test_any_order_of_writes_leads_to_the_derivation(model: DGMRecServing, seed: int) -> None:
    rng = np.random.default_rng(seed)
    catalogue, rows = empty(model), dict[int, tuple[Entry, Derived]]()
    for _ in range(60):
        if rows and rng.random() < 0.25:
            key = int(rng.choice(list(rows)))
            catalogue.remove(rows.pop(key)[0].id)
        else:
            batch = {key: row(model, rng, key) for key in rng.integers(0, KEYS, rng.integers(1, 5)).tolist()}
            for key in batch:
                if key in rows and rng.random() < 0.5:  # the same content, with other users
                    kept = rows[key]
                    derived = batch[key][1]
                    batch[key] = kept[0], Derived(kept[1].features, derived.folded, derived.users, derived.reach)
            vectors.put(model, catalogue, list(batch.values()))
            rows |= batch
        for _ in range(int(rng.integers(0, 4))):  # in the midst of it, some is renewed
            vectors.renew(model, catalogue)
    while vectors.renew(model, catalogue):
        pass
    assert not len(catalogue.stale)
    assert_equal(catalogue, derived_anew(model, rows))


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_used_in_between_what_is_used_last_decides(model: DGMRecServing, seed: int) -> None:
    rng = np.random.default_rng(seed)
    catalogue, rows = empty(model), dict[int, tuple[Entry, Derived]]()
    confidence = Confidence()
    for _ in range(40):
        if rng.random() < 0.3:
            confidence = any_confidence(rng, model.names)
            vectors.use(catalogue, confidence)
        batch = {key: row(model, rng, key) for key in rng.integers(0, KEYS, rng.integers(1, 5)).tolist()}
        vectors.put(model, catalogue, list(batch.values()))
        rows |= batch
        for _ in range(int(rng.integers(0, 4))):
            vectors.renew(model, catalogue)
    while vectors.renew(model, catalogue):
        pass
    anew = derived_anew(model, rows, confidence)
    assert_equal(catalogue, anew)
    keys = np.array(sorted(rows), dtype=np.int64)
    np.testing.assert_array_equal(catalogue.used[keys], anew.used[keys])


def any_confidence(rng: np.random.Generator, names: Sequence[str]) -> Confidence:
    """Some least confidences and calibrations, or none."""
    least = {name: float(rng.choice([0.0, 0.3, 0.6])) for name in names}
    halved = Calibration(CalibrationMap("linear", (0.0, 1.0), (0.0, 0.5)), 100)
    return Confidence(least, {name: halved for name in names if rng.random() < 0.5})


def test_what_is_not_used_counts_as_absent(model: DGMRecServing) -> None:
    rng = np.random.default_rng(3)
    rows = {key: row(model, rng, key) for key in range(KEYS)}
    unused = derived_anew(model, rows, Confidence(dict.fromkeys(model.names, 1.0)))
    zero = {name: np.zeros(rank, dtype=np.float32) for name, rank in model.ranks.items()}
    without = {}
    for key, (entry, derived) in rows.items():
        kept = {name: state for name, state in entry.states.items() if state is not State.GENERATED}
        states = {name: kept.get(name, State.ABSENT) for name in model.names}
        features = {name: feature if name in kept else zero[name] for name, feature in derived.features.items()}
        without[key] = replace(entry, states=states, confidence={}), replace(derived, features=features)
    assert_equal(unused, derived_anew(model, without))


def test_without_renewal_they_differ(model: DGMRecServing) -> None:
    """So that the test above means something."""
    rng = np.random.default_rng(1)
    catalogue, rows = empty(model), {key: row(model, rng, key) for key in range(KEYS)}
    for item in rows.values():
        vectors.put(model, catalogue, [item])
    assert len(catalogue.stale)
    with pytest.raises(AssertionError):
        assert_equal(catalogue, derived_anew(model, rows))


def test_an_item_is_placed_as_soon_as_it_is_put(model: DGMRecServing) -> None:
    rng = np.random.default_rng(2)
    catalogue = empty(model)
    rows = {key: row(model, rng, key) for key in range(KEYS)}
    vectors.put(model, catalogue, [rows[key] for key in range(KEYS - 1)])
    while vectors.renew(model, catalogue):
        pass
    vectors.put(model, catalogue, [rows[KEYS - 1]])
    assert KEYS - 1 in catalogue.indexes[FINAL]
    before = catalogue.final(np.array([KEYS - 1]))
    while vectors.renew(model, catalogue):
        pass
    if model.layers == 1:  # with more, its neighbours' parts follow from it
        np.testing.assert_allclose(catalogue.final(np.array([KEYS - 1])), before, **CLOSE)


def test_what_is_being_computed_still_counts_as_stale() -> None:
    stale = Stale()
    stale.add(vectors.FINAL, [1, 2, 3])
    with stale.working_off():
        assert stale.take(vectors.FINAL, 2).tolist() == [1, 2]
        assert len(stale) == 3
    assert len(stale) == 1
