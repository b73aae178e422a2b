"""What a feedback event is worth."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from models.feedback import (
    EVENT_TYPES,
    deciding_events,
    default_min_rating,
    interest_of,
    shows_interest,
)
from models.rows import EventBody

NAN = float("nan")


def test_the_rows_know_the_same_types() -> None:
    assert get_args(EventBody.model_fields["type"].annotation) == EVENT_TYPES


@pytest.mark.parametrize(
    ("kind", "value", "min_rating", "expected"),
    [
        ("view", None, 4.0, True),
        ("purchase", 1.0, 4.0, True),  # how many or how much it cost, no opinion
        ("rating", 4.0, 4.0, True),
        ("rating", 3.9, 4.0, False),
        ("rating", 1.0, None, True),
        ("review", None, 4.0, True),
        ("review", 2.0, 4.0, False),
        ("like", None, 4.0, True),
        ("dislike", None, None, False),
        ("return", None, 4.0, False),
    ],
)
def test_shows_interest(kind: str, value: float | None, min_rating: float | None, expected: bool) -> None:
    assert shows_interest(kind, value, min_rating) is expected
    values = np.array([NAN if value is None else value])
    assert interest_of(np.array([EVENT_TYPES.index(kind)], np.uint8), values, min_rating).tolist() == [expected]


def test_the_newest_event_of_a_pair_decides() -> None:
    view, rating, dislike = (EVENT_TYPES.index(kind) for kind in ("view", "rating", "dislike"))
    pairs = np.array([7, 3, 7, 3, 5, 5, 9, 9])
    kinds = np.array([rating, view, rating, dislike, view, view, view, rating], np.uint8)
    times = np.array([20.0, 5.0, 10.0, 5.0, NAN, 99.0, NAN, NAN])
    # 3: of one moment, the dislike outweighs the view; 7: the later time, not the later place; 5: undated is newest;
    # 9: both undated, the rating outweighs the view
    assert deciding_events(pairs, kinds, times).tolist() == [3, 4, 0, 7]
    assert deciding_events(pairs[:0], kinds[:0], times[:0]).tolist() == []


def test_of_equal_events_the_last_place_decides() -> None:
    assert deciding_events(np.array([1, 1]), np.zeros(2, np.uint8), np.array([3.0, 3.0])).tolist() == [1]


@pytest.mark.parametrize(
    ("ratings", "expected"),
    [
        ([], 4.0),
        ([5, 4, 4, 1], 4.0),
        ([5, 3, 3, 3, 1, 1, 1], 3.0),
        ([1, 1, 2, 2, 2], 2.0),
        ([1] * 9 + [5], 1.0),  # nearly all alike and low: the median
        ([1, 1, 1], 1.0),
        ([5, 5], 4.0),
    ],
)
def test_default_min_rating(ratings: list[float], expected: float) -> None:
    assert default_min_rating(ratings) == expected
