"""What a feedback event is worth: the one rule that histories, popularity, fold-in and training share.

The newest event of a (user, item) pair decides whether the user is interested in the item. Of events of one moment, the
one of the later type in EVENT_TYPES is the newer: what a user said outweighs what the user did.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.arrays import Double, Mask, Rows

EVENT_TYPES = ("view", "click", "cart", "purchase", "rating", "review", "like", "dislike", "return")
RATED = ("rating", "review")  # types whose value is a rating, 1 to 5
NEGATIVE = ("dislike", "return")
LOWEST, HIGHEST = 1.0, 5.0
DEFAULT_MIN_RATING = 4.0
AUTO: Literal["auto"] = "auto"
MinRating = float | None | Literal["auto"]  # None: every rating counts; auto: what the data or the dataset say
_CANDIDATES = (4.0, 3.5, 3.0, 2.5, 2.0)
_ENOUGH = 1 / 3  # the share of the ratings that must count as interest

_RATED_CODES = tuple(EVENT_TYPES.index(name) for name in RATED)
_NEGATIVE_CODES = tuple(EVENT_TYPES.index(name) for name in NEGATIVE)


def shows_interest(kind: str, value: float | None, min_rating: float | None) -> bool:
    """Whether an event counts as a positive interaction.

    `dislike` and `return` never do, and neither does a rating, or a review with a value, below `min_rating`
    (None: every rating does). All other events do.
    """
    if kind in NEGATIVE:
        return False
    return min_rating is None or value is None or kind not in RATED or value >= min_rating


def interest_of(kinds: NDArray[np.uint8], values: Double, min_rating: float | None) -> Mask:
    """`shows_interest` of many events `[n]`: `kinds` are numbers in EVENT_TYPES, `values` nan where absent."""
    against = np.isin(kinds, _NEGATIVE_CODES)
    if min_rating is not None:
        against |= np.isin(kinds, _RATED_CODES) & (values < min_rating)
    return ~against


def deciding_events(pairs: Rows, kinds: NDArray[np.uint8], timestamps: Double) -> Rows:
    """The place of the event that decides, for each distinct pair, in ascending order of the pair's key.

    Args:
        pairs: a key of the (user, item) pair `[n]`.
        timestamps: epoch seconds `[n]`; an event without one (nan) is newer than all that have one, as a service that
            was filled with it dates it when it arrives. What else is equal, the later place decides.
    """
    order = np.lexsort((kinds, timestamps, pairs))  # nan sorts last; the sort is stable
    last = np.flatnonzero(np.diff(pairs[order], append=-1) != 0)
    return order[last]


@dataclass(frozen=True, slots=True)
class Interaction:
    """The event of a (user, item) pair that decides: with what, when, and whether it shows interest; and when the
    first event of the pair was."""

    item: str
    timestamp: datetime
    interested: bool
    first: datetime


def default_min_rating(values: Iterable[float] | Double) -> float:
    """The rating from which a catalogue's ratings count as interest, where nobody says.

    4 of 5, as most studies of explicit ratings have it; less where fewer than a third of the ratings would count, and
    the common value where all are the same (a 1 for each purchase, say).
    """
    rated = np.asarray(list(values) if not isinstance(values, np.ndarray) else values, dtype=np.float64)
    if not len(rated):
        return DEFAULT_MIN_RATING
    if rated.min() == rated.max():
        return min(DEFAULT_MIN_RATING, float(rated[0]))
    return next((bound for bound in _CANDIDATES if np.mean(rated >= bound) >= _ENOUGH), float(np.median(rated)))
