"""Documents as the paper has them: reviews concatenated, newest first, and cut to L words in all. (eq. 1-2)"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from models.lrmm.reviews import PADDING, SPECIAL, UNKNOWN, words
from models.vocabulary import Vocabulary

Ids = NDArray[np.int32]


def review_ids(vocabulary: Vocabulary, text: str, limit: int) -> tuple[int, ...]:
    """Ids of the first `limit` words of a text; words outside the vocabulary share one."""
    rows = (vocabulary.get(word) for word in words(text, limit))
    return tuple(UNKNOWN if row is None else row + SPECIAL for row in rows)


def concatenated(reviews: Iterable[Sequence[int]], limit: int) -> tuple[int, ...]:
    """The first `limit` ids of all reviews, in their order."""
    return tuple(islice(chain.from_iterable(reviews), limit))


def padded(documents: Sequence[Sequence[int]]) -> Ids:
    """Documents as one table `[n, longest]`, padded at the end; at least one column wide."""
    table = np.full((len(documents), max(map(len, documents), default=0) or 1), PADDING, np.int32)
    for row, document in enumerate(documents):
        table[row, : len(document)] = document
    return table


def described(title: str | None, text: str | None) -> str:
    """What an item's metadata document is made of: title and description, which may be the same."""
    return "\n".join(dict.fromkeys(part for part in (title, text) if part and part.strip()))
