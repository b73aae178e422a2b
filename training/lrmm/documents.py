"""Documents of pairs to rate: of the user's and the item's training reviews, never the pair's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from models.arrays import Array, Double, Mask, Rows
from models.lrmm.documents import Ids, concatenated, padded, review_ids
from models.lrmm.model import ITEM, USER
from models.lrmm.reviews import frequent, words
from models.lrmm.serving import METADATA
from models.vocabulary import Vocabulary
from training.lrmm.ratings import Ratings, newest_first

DESCRIPTION = METADATA["text"]  # the pair's name of what an item is described by


@dataclass(frozen=True)
class DocumentPairs:
    """Pairs to rate before they are embedded.

    Attributes:
        documents: by modality all distinct documents `[n, L]` and which is each pair's `[b]`.
        item: rows of the items `[b]`, whose features the other modalities are.
        present: bool `[b, M]`, columns in the order of the modalities.
        value: true ratings `[b]`.
        review_count: number of reviews of each side `[b, 2]` (user, item).
    """

    documents: Mapping[str, tuple[Ids, Rows]]
    item: Rows
    present: Mask
    value: Double
    review_count: Double

    def with_missing(self, share: float, seed: int) -> DocumentPairs:
        """The same with each modality of each pair missing with this probability."""
        kept = np.random.default_rng(seed).random(self.present.shape) >= share
        return replace(self, present=self.present & kept)


class DocumentBuilder:
    """Makes pairs from part of the reviews.

    Args:
        item_texts: title and description by item, blank where missing; None where no item has words.
        features: the items' features `[n_items, dim]` by the pair's name of the modality, and which are observed.
        limit: L, words of a document.
        item_reviews: how many reviews of an item are read at most, the newest ones; None for all.
    """

    def __init__(
        self,
        ratings: Ratings,
        vocabulary: Vocabulary,
        limit: int,
        *,
        item_texts: Sequence[str] | None,
        features: Mapping[str, tuple[Array, Mask]],
        item_reviews: int | None = None,
    ) -> None:
        self.ratings, self.limit, self.item_reviews, self.features = ratings, limit, item_reviews, features
        self._ids = [review_ids(vocabulary, text, limit) for text in ratings.text]
        self._metadata = None if item_texts is None else [review_ids(vocabulary, text, limit) for text in item_texts]
        self._newest_first = newest_first(ratings)

    @property
    def worded(self) -> tuple[str, ...]:
        """The modalities that are documents."""
        return (USER, ITEM) if self._metadata is None else (USER, ITEM, DESCRIPTION)

    def pairs(self, rows: Rows, source: Rows) -> DocumentPairs:
        """The pairs of some ratings under the documents of the reviews in `source`."""
        documents, present, counts = {}, [], []
        for side in (USER, ITEM):
            found, count = self._side(side, rows, source)
            documents[side] = _distinct(found)
            present.append(np.array([len(document) > 0 for document in found], np.bool_))
            counts.append(count)
        item = self.ratings.item[rows]
        if self._metadata is not None:
            documents[DESCRIPTION] = padded(self._metadata), item
            present.append(np.array([len(document) > 0 for document in self._metadata], np.bool_)[item])
        present += [observed[item] for _, observed in self.features.values()]
        return DocumentPairs(
            documents, item, np.stack(present, axis=1), self.ratings.value[rows], np.stack(counts, axis=1)
        )

    def _side(self, side: str, rows: Rows, source: Rows) -> tuple[list[tuple[int, ...]], Double]:
        """Documents of one side of the pairs, without their own reviews, and how many reviews there are."""
        key = self.ratings.user if side == USER else self.ratings.item
        most = self.item_reviews if side == ITEM else None
        reviews = self._by_key(key, source)
        documents, counts = [], np.zeros(len(rows))
        for place, row in enumerate(rows.tolist()):
            all_of_key = reviews.get(int(key[row]), [])
            counts[place] = len(all_of_key) - (row in all_of_key)
            others = islice((other for other in all_of_key if other != row), most)
            documents.append(concatenated((self._ids[other] for other in others), self.limit))
        return documents, counts if most is None else np.minimum(counts, most)

    def _by_key(self, key: Rows, source: Rows) -> dict[int, list[int]]:
        chosen = np.zeros(len(self.ratings), np.bool_)
        chosen[source] = True
        reviews: dict[int, list[int]] = {}
        for row in self._newest_first[chosen[self._newest_first]].tolist():
            reviews.setdefault(int(key[row]), []).append(row)
        return reviews


def _distinct(documents: Sequence[tuple[int, ...]]) -> tuple[Ids, Rows]:
    """The table of distinct documents, and the place of each in it."""
    places: dict[tuple[int, ...], int] = {}
    rows = np.array([places.setdefault(document, len(places)) for document in documents], np.int64)
    return padded(list(places)), rows


def document_words(ratings: Ratings, train: Rows, item_texts: Sequence[str] | None, least: int) -> Vocabulary:
    """Words that stand so often in the training reviews and in what their items are described by."""
    counted: Counter[str] = Counter()
    described = np.unique(ratings.item[train]).tolist() if item_texts is not None else ()
    for text in (*(ratings.text[row] for row in train), *((item_texts or ())[row] for row in described)):
        counted.update(words(text, len(text)))
    return frequent(counted, least)
