"""IRIS over a catalogue in memory: histories of every length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.iris.serving import ItemSides
from service.domain import State
from service.pipeline import explain, history, rank
from service.pipeline.catalogue import Catalogue, Derived, Entry, Shape
from service.pipeline.rows import Keys
from tests.fakes import BruteForceIndex
from tests.models.test_iris import contents, reranker

ITEMS = 2_100
RERANKER = reranker()
SHAPE = Shape({"text": 3, "image": 2, "audio": 2}, 2, 1, sides=RERANKER.shapes)


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    """Items `i0`, `i1`, ...; every third lacks a picture, which was generated or not."""
    features, present = contents(ITEMS)
    ids = [f"i{row}" for row in range(ITEMS)]
    sides = RERANKER.sides(features, present, ids)
    catalogue = Catalogue(SHAPE, BruteForceIndex)
    final = np.random.default_rng(1).standard_normal((ITEMS, SHAPE.size)).astype(np.float32)
    rows = [(entry(row, present[row]), derived(row, sides)) for row in range(ITEMS)]
    catalogue.put(rows)
    catalogue.write_layer(np.arange(ITEMS), {"final": final})
    return catalogue


def entry(row: int, present: np.ndarray[Any, Any]) -> Entry:
    observed = dict(zip(RERANKER.names, present.tolist(), strict=True))
    states = {name: State.OBSERVED if is_observed else State.ABSENT for name, is_observed in observed.items()}
    return Entry(row, f"i{row}", None, (), True, 1, 0.0, states, {})


def derived(row: int, sides: ItemSides) -> Derived:
    rng = np.random.default_rng(row)
    drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPE.fields().items()}
    return Derived.of(drawn | {f"side.{name}": getattr(sides, name)[row] for name in RERANKER.shapes})


def test_sides_are_packed_and_come_back_to_the_bit(catalogue: Catalogue) -> None:
    features, present = contents(ITEMS)
    one = derived(7, RERANKER.sides(features, present, [f"i{row}" for row in range(ITEMS)]))
    again = Derived.unpack(one.pack(SHAPE), SHAPE)
    assert again is not None
    assert again.sides.keys() == RERANKER.shapes.keys()
    for name, side in one.sides.items():
        np.testing.assert_array_equal(again.sides[name], side)
        np.testing.assert_array_equal(getattr(catalogue.sides(np.array([7])), name)[0], side)


@pytest.mark.parametrize("length", [0, 1, 2, 2_000])
def test_histories_of_any_length(catalogue: Catalogue, length: int) -> None:
    keys: Keys = np.arange(length)
    past = history.past_of(catalogue, keys)
    assert past.keys.tolist() == list(range(min(length, history.EXPLAINING)))
    allowed = catalogue.eligible(excluded=keys)
    found, scores = rank.reranked(catalogue, RERANKER, np.ones(2, np.float32), past, 20, allowed)
    assert len(found) == 20
    assert not np.isin(found, keys).any()
    assert (np.diff(scores) <= 0).all()
    reasons = explain.reasons(RERANKER, catalogue, past, found, hidden=True)
    assert reasons.keys() == set(found.tolist())
    for given in reasons.values():
        assert len(given) <= min(3, length)
        relevances = [reason.relevance for reason in given]
        assert relevances == sorted(relevances, reverse=True)
        assert all(relevance >= 0 for relevance in relevances)
    if length == 2_000:
        assert all(len(given) == 3 for given in reasons.values())


def test_an_item_that_is_not_there_any_more_is_no_reason(catalogue: Catalogue) -> None:
    past = history.past_of(catalogue, np.arange(5))
    target = np.array([100])
    before = explain.reasons(RERANKER, catalogue, past, target, hidden=True)[100]
    removed = catalogue.entries.pop(catalogue.keys([before[0].item])[0])
    try:
        assert explain.reasons(RERANKER, catalogue, past, target, hidden=True)[100] == before[1:]
    finally:
        catalogue.entries[removed.key] = removed


def test_an_item_given_twice_counts_twice(catalogue: Catalogue) -> None:
    weights = np.array([1, 0.5, 1], dtype=np.float32)
    past = history.past_of(catalogue, np.array([4, 2, 4]), weights)
    assert past.keys.tolist() == [2, 4]
    assert past.weights is not None
    assert past.weights.tolist() == [0.5, 2.0]
    assert past.same(np.array([4, 9])).tolist() == [[False, True], [False, False]]
