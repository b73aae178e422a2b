"""A review's text -> one vector, made once and kept.

The vector has three parts: the mean hidden state of an LSTM over the first words (Wang et al., EMNLP 2018, eq. 1-9), a
frozen sentence embedding projected to its principal axes, and the sentiment: the rating that the words alone suggest.
Decisions that the paper leaves open:

* Every review is encoded by itself and a document is the mean of its reviews, newest first within L words. A new review
  is one more vector, and taking one review out leaves the others as they are.
* The LSTM learns from the rating of the very review that it reads; a document's rating would be too weak a target for
  so few reviews. It never reads the review that is being predicted. Since it has fitted the ratings of those that it
  was trained on, its part of the vector is scaled down (`STATE_SCALE`).
* The sentiment is cross-fitted: a hash of the text decides which fold a review belongs to, and its sentiment comes from
  the regression on the other folds. So a review of the training part gets the sentiment of one that was never seen,
  also when it is encoded again.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
import torch
from torch import Tensor, nn

from models.arrays import Array, Rows
from models.linalg import principal_axes
from models.vocabulary import Vocabulary

TOKEN = re.compile(r"[a-z0-9']+|[!?]")
HEADLINE = 12  # words of a first line that is short enough to be one
PADDING, UNKNOWN = 0, 1
SPECIAL = 2
STATE_SCALE = 0.3  # of the LSTM's part of a vector beside the sentence embedding's


def words(text: str, limit: int) -> list[str]:
    """The first `limit` words of a text, in lower case; `!` and `?` are words."""
    return [match[0] for match in islice(TOKEN.finditer(text.lower()), limit)]


def grams(text: str, limit: int) -> Counter[str]:
    """Words and pairs of words of a text, and those of its headline once more under names of their own."""
    body = words(text, limit)
    counted = Counter([*body, *map(" ".join, pairwise(body))])
    first_line, newline, _ = text.partition("\n")
    headline = words(first_line, HEADLINE + 1) if newline else []
    if len(headline) <= HEADLINE:
        counted.update(f"^{word}" for word in headline)
        counted.update(f"^{first} {second}" for first, second in pairwise(headline))
    return counted


def excerpt(text: str, limit: int) -> str:
    """What the sentence encoder reads of a text: its first words, the first line as a sentence of its own."""
    return " ".join(text.replace("\n", ". ", 1).split()[:limit])


class TextLSTM(nn.Module):
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
        make_orthogonal(self.lstm)

    def forward(self, ids: Tensor) -> Tensor:
        """Word ids `[b, length]`, padded with zeros -> `[b, hidden]`; zeros for a text without words."""
        states, _ = self.lstm(self.dropout(self.embedding(ids)))  # [b, length, hidden]
        return mean_of_words(states, ids)

    def rate(self, ids: Tensor) -> Tensor:
        """The rating that the words suggest, relative to the mean rating, `[b]`: what the LSTM is trained on."""
        rated: Tensor = self.rating(self.dropout(self(ids))).squeeze(1)
        return rated


def make_orthogonal(lstm: nn.LSTM) -> None:
    """Let the recurrent weights of each gate start orthogonal (Saxe et al., 2014)."""
    recurrent: Tensor = lstm.weight_hh_l0.data  # type: ignore[assignment]  # nn.Module knows no better
    for gate in torch.split(recurrent, lstm.hidden_size):
        nn.init.orthogonal_(gate)


def mean_of_words(states: Tensor, ids: Tensor) -> Tensor:
    """The mean `[b, d]` of states `[b, length, d]` over the words `[b, length]`; zeros where there is none. (eq. 9)"""
    is_word = (ids != PADDING).to(states.dtype)  # [b, length]
    mean: Tensor = (states * is_word[:, :, None]).sum(1) / is_word.sum(1, keepdim=True).clamp_min(1)
    return mean


@dataclass(frozen=True)
class Sentiment:
    """Cross-fitted ridge regression on the TF-IDF of words and pairs of words.

    Attributes:
        grams: their rows.
        weights: `[folds, grams]`, those of fold k fitted without its reviews.
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
        counts = {row: count for gram, count in grams(text, limit).items() if (row := self.grams.get(gram)) is not None}
        if not counts:
            return 0.0
        rows = np.array(list(counts))
        values = (1 + np.log(np.array(list(counts.values())))) * self.idf[rows]
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
    """Texts and their sentence embeddings -> vectors `[n, h + p + 1]`; the sentiment comes last.

    `states` and `sentences` project the LSTM's mean states and the sentence embeddings, so that both vary alike.
    """

    def __init__(
        self,
        lstm: TextLSTM,
        states: Projection,
        vocabulary: Vocabulary,
        sentiment: Sentiment,
        sentences: Projection,
        limit: int,
    ) -> None:
        self.lstm = lstm.eval()
        self.states = states
        self.vocabulary = vocabulary
        self.sentiment = sentiment
        self.sentences = sentences
        self.limit = limit

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.states.axes.shape[1] + self.sentences.axes.shape[1] + 1)

    def encode(self, texts: Sequence[str], sentences: Array) -> Array:
        """Vectors of texts; `sentences [n, d]` are the sentence encoder's vectors of their excerpts."""
        vectors = np.empty((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):  # one at a time, so that no bit of a vector depends on the batch
            with torch.inference_mode():
                state = self.lstm(word_ids(self.vocabulary, text, self.limit)[None]).numpy()
            parts = (self.states(state)[0], self.sentences(sentences[[row]])[0], [self.sentiment(text, self.limit)])
            vectors[row] = np.concatenate(parts)
        return vectors


def word_ids(vocabulary: Vocabulary, text: str, limit: int) -> Tensor:
    """Ids `[length]` of the first `limit` words; one padding for a text without words."""
    rows = [vocabulary.get(word) for word in words(text, limit)]
    ids = [UNKNOWN if row is None else row + SPECIAL for row in rows]
    return torch.tensor(ids or [PADDING])


def frequent(counted: Mapping[str, int], least: int) -> Vocabulary:
    """What was counted at least so often, most frequent first, ties in alphabetical order."""
    kept = sorted((-count, entry) for entry, count in counted.items() if count >= least)
    return Vocabulary(entry for _, entry in kept)


def inverse_frequency(reviews: int, holding: Rows) -> Array:
    """Weight `[grams]` of what stands in `holding [grams]` of so many reviews: ln((1 + n) / (1 + df)) + 1."""
    return (math.log1p(reviews) - np.log1p(holding) + 1).astype(np.float32)
