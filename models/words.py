"""What the words of a text say of its item: hashed TF-IDF, and ridge regression on it.

An encoder brings a text to what it is about; of some words, names of people and makers above all, one knows more than
that. Words are hashed (Weinberger et al., 2009), so that no vocabulary has to be kept.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.linalg import cho_factor, cho_solve

from models.arrays import Array, Double, Mask, Rows
from models.graph import Matrix

WORDS = 4096  # columns that words are hashed to
FEWEST_TEXTS = 2  # that a word must stand in, for it to say anything
BLOCK = 1024  # rows multiplied at once
PENALTY = 1.0  # of ridge regressions on TF-IDF rows of length 1
_WORD = re.compile(r"[^\W_]{2,}")


def title_and_text(title: str | None, text: str | None) -> str | None:
    """What is written of an item; a title that stands in for a text is read once."""
    return " ".join(dict.fromkeys(part for part in (title, text) if part)) or None


def count_words(texts: Sequence[str | None]) -> Matrix:
    """1 + log(count) of each text's words by their hash, `[n, WORDS]`; empty rows where there is no text."""
    rows = [_counted(text) for text in texts]
    starts = np.concatenate([[0], np.cumsum([len(columns) for columns, _ in rows])])
    columns, values = (np.concatenate(parts) for parts in zip(_counted(None), *rows, strict=True))
    return sp.csr_array((values, columns, starts), shape=(len(texts), WORDS))


def _counted(text: str | None) -> tuple[Rows, Array]:
    """The columns `[k]` of a text's words, in order, and 1 + log(count) of each `[k]`."""
    counts = sorted(Counter(map(_hash, _WORD.findall((text or "").lower()))).items())
    values = [1 + np.log(count) for _, count in counts]
    return np.array([column for column, _ in counts], dtype=np.int64), np.array(values, dtype=np.float32)


def _hash(word: str) -> int:
    return zlib.crc32(word.encode()) % WORDS


def inverse_frequency(counts: Matrix) -> Array:
    """The weight of each word `[WORDS]`: the logarithm of how few of the texts have it, 0 for one that hardly any
    has."""
    texts = int((np.diff(counts.indptr) > 0).sum())
    having = np.bincount(counts.indices, minlength=WORDS)
    weight = np.log((1 + texts) / (1 + having)) + 1
    return np.where(having >= FEWEST_TEXTS, weight, 0).astype(np.float32)


def tf_idf(counts: Matrix, frequency: Array) -> Matrix:
    """Counts `[n, WORDS]` by the words' weights, each row of length 1; empty where no word has any weight."""
    rows = sp.csr_array(counts * frequency[None])
    rows.eliminate_zeros()
    length = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    return sp.csr_array(sp.diags_array(1 / np.where(length > 0, length, 1)) @ rows).astype(np.float32)


def tf_idf_of(text: str | None, frequency: Array) -> tuple[Rows, Array]:
    """The columns `[k]` and values `[k]` of one text's row of `tf_idf`, without the cost of sparse matrices."""
    columns, counts = _counted(text)
    values = counts * frequency[columns]
    told = values != 0
    return columns[told], values[told] / np.float32(np.linalg.norm(values[told]))


@dataclass(frozen=True)
class RidgeOnRows:
    """A ridge regression on sparse rows `[n, w]`, for any targets of the same rows: the weighted mean is no part of the
    penalty, and what is answered for a row that was learned from comes from a fit without it. Rows are solved for where
    they are fewer than columns.

    Attributes:
        rows: `[n, w]`. chosen: the rows that are learned from `[k]`. weights: of these `[k]`.
        inverse: of the products of rows, or of columns, with the penalty.
        leverage: `[k]`, by how much a row's answer follows its own target.
    """

    rows: Matrix
    chosen: Rows
    weights: Double
    inverse: Array
    leverage: Double

    @classmethod
    def of(cls, rows: Matrix, weights: Array) -> RidgeOnRows:
        """Of rows with weights `[n]`; one without any, or empty, is not learned from."""
        chosen = np.flatnonzero((weights > 0) & (np.diff(rows.indptr) > 0))
        own, share = sp.csr_array(rows[chosen]).astype(np.float64), weights[chosen].astype(np.float64)
        if len(chosen) <= rows.shape[1]:
            products, penalties = (own @ own.T).toarray(), PENALTY / share
        else:
            products, penalties = (own.T @ sp.diags_array(share) @ own).toarray(), np.full(rows.shape[1], PENALTY)
        products[np.diag_indices(len(products))] += penalties
        inverse = cho_solve(cho_factor(products, lower=True, overwrite_a=True), np.eye(len(products)), overwrite_b=True)
        if len(chosen) <= rows.shape[1]:
            leverage = 1 - np.diagonal(inverse) * penalties
        else:
            blocks = [own[start : start + BLOCK] for start in range(0, len(chosen), BLOCK)]
            leverage = share * np.concatenate([np.asarray(b.multiply(b @ inverse).sum(axis=1)).ravel() for b in blocks])
        return cls(rows, chosen, share, inverse.astype(np.float32), leverage)

    def fit(self, targets: Array) -> tuple[Array, Array, Array]:
        """Answers for every row `[n, t]`, slopes `[w, t]` and intercept `[t]`, from targets `[n, t]`."""
        own, truth = self.rows[self.chosen], targets[self.chosen].astype(np.float64)
        mean = self.weights @ truth / self.weights.sum()
        rest = truth - mean
        if len(self.chosen) <= self.rows.shape[1]:
            slopes = own.T @ (self.inverse @ rest)
        else:
            slopes = self.inverse @ (own.T @ (self.weights[:, None] * rest))
        apart = self.rows @ slopes
        share = self.leverage[:, None]
        apart[self.chosen] = (apart[self.chosen] - share * rest) / (1 - share)
        return (mean + apart).astype(np.float32), slopes.astype(np.float32), mean.astype(np.float32)


@dataclass(frozen=True)
class CatalogueWords:
    """The words of a catalogue's texts, and what is needed to learn from them.

    Attributes:
        frequency: `[WORDS]`, the words' weights. known: bool `[n]`, items of which any word says something.
        popularity, taste: ridge regressions in which warm items weigh the same, or as surely as they are known.
    """

    frequency: Array
    known: Mask
    popularity: RidgeOnRows
    taste: RidgeOnRows

    @classmethod
    def of(cls, texts: Sequence[str | None], degree: Array, sureness: Array) -> CatalogueWords | None:
        """Of an item's text each, and degrees and sureness `[n]`; None where too few warm items have any words."""
        counts = count_words(texts)
        frequency = inverse_frequency(sp.csr_array(counts[degree > 0]))
        rows = tf_idf(counts, frequency)
        known = np.diff(rows.indptr) > 0
        if (known & (degree > 0)).sum() < 2 * FEWEST_TEXTS:
            return None
        warm = (degree > 0).astype(np.float32)
        return cls(frequency, known, RidgeOnRows.of(rows, warm), RidgeOnRows.of(rows, sureness))
