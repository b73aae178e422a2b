"""What the words of texts say, against a plain reading."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from models.words import PENALTY, CatalogueWords, RidgeOnRows, count_words, inverse_frequency, tf_idf, title_and_text

TEXTS = ["The red shoe, the red hat", "a red hat", None, "Blue: shoe!", "", "green", "blue hat, blue shoe"]


def test_words_are_counted_by_their_hash() -> None:
    counts = count_words(TEXTS).toarray()
    assert [int((row > 0).sum()) for row in counts] == [4, 2, 0, 2, 0, 1, 3]  # single letters say nothing
    assert counts[0].max() == pytest.approx(1 + np.log(2))
    np.testing.assert_array_equal(count_words(["RED Hat"]).toarray(), count_words(["hat red"]).toarray())


def test_a_title_that_stands_in_for_a_text_is_read_once() -> None:
    assert title_and_text("Alien (1979)", "A crew.") == "Alien (1979) A crew."
    assert title_and_text("Alien", "Alien") == title_and_text(None, "Alien") == "Alien"
    assert title_and_text(None, "") is None


def test_a_word_weighs_the_more_the_fewer_texts_have_it() -> None:
    counts = count_words(TEXTS)
    frequency = inverse_frequency(counts)
    hat, blue, green = (frequency[count_words([word]).indices[0]] for word in ("hat", "blue", "green"))
    assert 0 < hat < blue
    assert green == 0  # one text alone says nothing
    assert hat == pytest.approx(np.log(6 / 4) + 1)
    rows = tf_idf(counts, frequency)
    lengths = np.sqrt((rows.toarray() ** 2).sum(axis=1))
    np.testing.assert_allclose(lengths, [1, 1, 0, 1, 0, 0, 1], atol=1e-6)


@pytest.mark.parametrize("width", [8, 60])
def test_answers_of_rows_that_were_learned_from_leave_them_out(width: int) -> None:
    """With fewer columns than rows, and with more: as a plain ridge regression without the row."""
    rng = np.random.default_rng(0)
    n = 30
    dense = rng.normal(size=(n, width)) * (rng.random((n, width)) < 0.5)
    dense[4] = 0
    weights = rng.random(n)
    weights[[0, 7]] = 0
    targets = rng.normal(size=(n, 2))
    chosen = (weights > 0) & dense.any(axis=1)
    ridge = RidgeOnRows.of(sp.csr_array(dense.astype(np.float32)), weights.astype(np.float32))
    answers, slopes, intercept = ridge.fit(targets.astype(np.float32))
    mean = weights[chosen] @ targets[chosen] / weights[chosen].sum()
    np.testing.assert_allclose(intercept, mean, atol=1e-5)

    def plain(rows: Any) -> Any:
        x, w = dense[rows], weights[rows, None]
        return np.linalg.solve(x.T @ (w * x) + PENALTY * np.eye(width), x.T @ (w * (targets[rows] - mean)))

    np.testing.assert_allclose(slopes, plain(chosen), atol=1e-4)
    for row in range(n):
        rows = chosen & (np.arange(n) != row)
        np.testing.assert_allclose(answers[row], mean + dense[row] @ plain(rows), atol=1e-4)


def test_words_of_a_catalogue() -> None:
    degree = np.array([3, 2, 5, 0, 1, 4, 2], np.float32)
    words = CatalogueWords.of(["red hat", "red", "red hat", "red", None, "blue", "hat"], degree, degree / (degree + 10))
    assert words is not None
    assert words.known.tolist() == [True, True, True, True, False, False, True]  # blue stands in one text alone
    assert 3 not in words.popularity.chosen  # nobody has met it
    assert CatalogueWords.of([None] * 7, degree, degree) is None
