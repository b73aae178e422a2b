"""A review's text -> one vector, made once and kept.

The vector has three parts: the mean hidden state of an LSTM over the first words (Wang et al., EMNLP 2018, eq. 1-9), a
frozen sentence embedding projected to where reviews differ, and the tone: the rating that the words alone suggest.
Decisions that the paper leaves open:

* Every review is encoded by itself and a document is the mean of its reviews, newest first within L words. A new review
  is one more vector, and taking one review out leaves the others as they are.
* The LSTM learns from the rating of the very review that it reads; a document's rating would be too weak a teacher for
  so few reviews. What it learned never meets the review that is being predicted. Since it knows the stars of those that
  it was taught by, its part of the vector is scaled down (`state_scale`).
* The tone is cross-fitted: a hash of the text decides which fold a review belongs to, and its tone comes from the
  regression on the other folds. So a review of the training part gets the tone of one that was never seen, also when it
  is encoded again.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.linalg import principal_axes
from models.vocabulary import Vocabulary

TOKEN = re.compile(r"[a-z0-9']+|[!?]")
HEADLINE = 12  # words of a first line that is short enough to be one
PADDING, UNKNOWN = 0, 1
SPECIAL = 2

Array = NDArray[np.float32]


def words(text: str, limit: int) -> list[str]:
    """The first `limit` words of a text, in lower case; `!` and `?` are words."""
    found: list[str] = []
    for match in TOKEN.finditer(text.lower()):
        if len(found) == limit:
            break
        found.append(match[0])
    return found


def grams(text: str, limit: int) -> Counter[str]:
    """Words and pairs of words of a text, and those of its headline once more under names of their own."""
    body = words(text, limit)
    counted = Counter([*body, *map(" ".join, pairwise(body))])
    first, newline, _ = text.partition("\n")
    headline = words(first, HEADLINE + 1) if newline else []
    if len(headline) <= HEADLINE:
        counted.update(f"^{one}" for one in headline)
        counted.update(f"^{one} {other}" for one, other in pairwise(headline))
    return counted


def excerpt(text: str, limit: int) -> str:
    """What the sentence encoder reads of a text: its first words, the first line as a sentence of its own."""
    return " ".join(text.replace("\n", ". ", 1).split()[:limit])


class TextTower(nn.Module):
    """Words -> mean hidden state of an LSTM; recurrent weights start orthogonal. (eq. 1-9)

    Args:
        n_words: size of the vocabulary, without padding and unknown words.
    """

    def __init__(self, n_words: int, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_words + SPECIAL, width, padding_idx=PADDING)
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.rating = nn.Linear(hidden, 1)
        recurrent: Tensor = self.lstm.weight_hh_l0.data  # type: ignore[assignment]  # nn.Module knows no better
        for gate in torch.split(recurrent, hidden):
            nn.init.orthogonal_(gate)

    def forward(self, ids: Tensor) -> Tensor:
        """Word ids `[b, length]`, padded with zeros -> `[b, hidden]`; zeros for a text without words."""
        states, _ = self.lstm(self.dropout(self.embedding(ids)))  # [b, length, hidden]
        there = (ids != PADDING).to(states.dtype)  # [b, length]
        mean: Tensor = (states * there[:, :, None]).sum(1) / there.sum(1, keepdim=True).clamp_min(1)
        return mean

    def rate(self, ids: Tensor) -> Tensor:
        """How far above the mean rating the words sound, `[b]`: what the tower is taught by."""
        rated: Tensor = self.rating(self.dropout(self(ids))).squeeze(1)
        return rated


@dataclass(frozen=True)
class Tone:
    """Cross-fitted ridge regression on the TF-IDF of words and pairs of words.

    Attributes:
        grams: their rows.
        weights: `[folds, grams]`, those of fold k learned without its reviews.
        idf: `[grams]`.
        bias: `[folds]`.
    """

    grams: Vocabulary
    weights: Array
    idf: Array
    bias: Array

    @property
    def folds(self) -> int:
        """Number of folds."""
        return len(self.bias)

    def __call__(self, text: str, limit: int) -> float:
        """The rating that the first `limit` words suggest, relative to the mean rating."""
        fold = fold_of(text, self.folds)
        found = [(row, count) for one, count in grams(text, limit).items() if (row := self.grams.get(one)) is not None]
        if not found:
            return 0.0
        rows = np.array([row for row, _ in found])
        values = (1 + np.log(np.array([count for _, count in found]))) * self.idf[rows]
        return float(values @ self.weights[fold, rows] / np.linalg.norm(values) + self.bias[fold])


def fold_of(text: str, folds: int) -> int:
    """The fold of a text: the same wherever and whenever it is encoded."""
    fold: int = zlib.crc32(text.encode("utf-8", "replace")) % folds
    return fold


@dataclass(frozen=True)
class Projection:
    """A linear map to fewer numbers of about unit length: (x - mean) @ axes, `mean [d]`, `axes [d, p]`."""

    mean: Array
    axes: Array

    @classmethod
    def fit(cls, vectors: Array, size: int) -> Projection:
        """The principal axes of vectors `[n, d]`, at most `size` of them, scaled to a mean squared length of 1."""
        mean = vectors.mean(axis=0)
        centred = (vectors - mean).astype(np.float64)
        variances, axes = principal_axes(centred.T @ centred / max(len(vectors), 1), size)
        length = math.sqrt(max(float(variances.sum()), 1e-12)) if size else 1.0
        return cls(mean.astype(np.float32), np.ascontiguousarray(axes / length, dtype=np.float32))

    def __call__(self, vectors: Array) -> Array:
        """Vectors `[n, d]` projected, `[n, p]`."""
        projected: Array = ((vectors - self.mean) @ self.axes).astype(np.float32)
        return projected


class ReviewEncoder:
    """Texts and their sentence embeddings -> vectors `[n, h + p + 1]`; the tone comes last.

    `states` and `sentences` project the tower's mean states and the sentence embeddings, so that both vary alike.
    """

    def __init__(
        self,
        tower: TextTower,
        states: Projection,
        vocabulary: Vocabulary,
        tone: Tone,
        sentences: Projection,
        limit: int,
    ) -> None:
        self.tower = tower.eval()
        self.states = states
        self.vocabulary = vocabulary
        self.tone = tone
        self.sentences = sentences
        self.limit = limit

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.states.axes.shape[1] + self.sentences.axes.shape[1] + 1)

    def encode(self, texts: Sequence[str], sentences: Array) -> Array:
        """Vectors of texts; `sentences [n, d]` are the sentence encoder's vectors of their excerpts."""
        vectors = np.empty((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):  # one by one: a vector does not depend, in any bit, on its company
            with torch.inference_mode():
                state = self.tower(word_ids(self.vocabulary, text, self.limit)[None]).numpy()
            parts = (self.states(state)[0], self.sentences(sentences[[row]])[0], [self.tone(text, self.limit)])
            vectors[row] = np.concatenate(parts)
        return vectors


def word_ids(vocabulary: Vocabulary, text: str, limit: int) -> Tensor:
    """Ids `[length]` of the first `limit` words; one padding for a text without words."""
    rows = [vocabulary.get(word) for word in words(text, limit)]
    ids = [UNKNOWN if row is None else row + SPECIAL for row in rows]
    return torch.tensor(ids or [PADDING])


def frequent(counted: Mapping[str, int], least: int) -> Vocabulary:
    """What was counted at least so often, most frequent first, ties in alphabetical order."""
    kept = sorted((-count, one) for one, count in counted.items() if count >= least)
    return Vocabulary(one for _, one in kept)


def inverse_frequency(reviews: int, holding: NDArray[np.int64]) -> Array:
    """Weight `[grams]` of what stands in `holding [grams]` of so many reviews: ln((1 + n) / (1 + df)) + 1."""
    return (math.log1p(reviews) - np.log1p(holding) + 1).astype(np.float32)
