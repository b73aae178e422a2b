"""Texts of reviews: words, the LSTM, the sentiment, and documents of limited length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.lrmm.profiles import TEXT_SCALE, Prior, Reviewed, Scale, fit_biases, in_document, profiles
from models.lrmm.reviews import (
    Projection,
    ReviewEncoder,
    Sentiment,
    TextLSTM,
    excerpt,
    fold_of,
    frequent,
    grams,
    inverse_frequency,
    word_ids,
    words,
)
from models.vocabulary import Vocabulary

LIMIT = 6


def encoder(seed: int = 0) -> ReviewEncoder:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vocabulary = Vocabulary(["good", "bad", "strings"])
    sentiment_grams = Vocabulary(["good", "bad", "^good", "good strings"])
    sentiment = Sentiment(
        sentiment_grams,
        rng.normal(size=(3, 4)).astype(np.float32),
        np.ones(4, np.float32),
        np.zeros(3, np.float32),
    )
    states = Projection(np.zeros(5, np.float32), np.eye(5, dtype=np.float32))
    sentences = Projection.fit(rng.normal(size=(20, 4)).astype(np.float32), 2)
    return ReviewEncoder(TextLSTM(3, 4, 5, 0.5), states, vocabulary, sentiment, sentences, LIMIT)


def test_words_and_headlines() -> None:
    assert words("It's GOOD, really good!", 10) == ["it's", "good", "really", "good", "!"]
    assert words("a b c", 2) == ["a", "b"]
    assert words("", 5) == []
    assert grams("Good\nbad strings", 10) == {
        "good": 1,
        "bad": 1,
        "strings": 1,
        "good bad": 1,
        "bad strings": 1,
        "^good": 1,
    }
    assert not any(gram.startswith("^") for gram in grams("word " * 30 + "\nbody", 100))  # no headline is so long
    assert not any(gram.startswith("^") for gram in grams("one line only", 100))
    assert excerpt("Good\nfor what it is", 3) == "Good. for what"


def test_frequent_words_in_a_fixed_order() -> None:
    assert frequent({"b": 3, "a": 3, "c": 9, "d": 1}, 2).ids == ["c", "a", "b"]
    np.testing.assert_allclose(inverse_frequency(9, np.array([9, 0])), [1.0, 1 + np.log(10)], rtol=1e-6)


def test_a_vector_depends_on_nothing_but_its_review() -> None:
    made = encoder()
    texts = ["good strings", "bad " * 40, "", "unheard words only"]
    sentences = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
    together = made.encode(texts, sentences)
    assert together.shape == (4, made.dim) == (4, 5 + 2 + 1)
    for row, text in enumerate(texts):
        np.testing.assert_array_equal(made.encode([text], sentences[[row]])[0], together[row])
    assert np.isfinite(together).all()
    assert (together[2, :5] == 0).all()  # no words, no state
    assert together[2, -1] == 0


def test_words_beyond_the_limit_do_not_count() -> None:
    made = encoder()
    sentences = np.zeros((2, 4), np.float32)
    short, long = made.encode(["good bad good bad good bad", "good bad good bad good bad strings"], sentences)
    if fold_of("good bad good bad good bad", 3) == fold_of("good bad good bad good bad strings", 3):
        assert short[-1] == long[-1]
    np.testing.assert_array_equal(short[:-1], long[:-1])


def test_padding_changes_no_state() -> None:
    lstm = TextLSTM(3, 4, 5, 0.5).eval()
    with torch.inference_mode():
        alone = lstm(torch.tensor([[2, 3]]))
        padded = lstm(torch.tensor([[2, 3, 0, 0]]))
    torch.testing.assert_close(alone, padded)


def test_recurrent_weights_start_orthogonal() -> None:
    for gate in TextLSTM(3, 4, 8, 0.5).lstm.weight_hh_l0.split(8):
        torch.testing.assert_close(gate @ gate.T, torch.eye(8), atol=1e-5, rtol=0)


def test_unknown_words_share_an_id_and_no_words_are_a_padding() -> None:
    vocabulary = Vocabulary(["good"])
    assert word_ids(vocabulary, "good other", 5).tolist() == [2, 1]
    assert word_ids(vocabulary, "  ", 5).tolist() == [0]


def test_a_projection_keeps_the_axes_that_vary_and_unit_length() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(500, 6)) * [5, 3, 0.1, 0.1, 0.1, 0.1] + 7).astype(np.float32)
    projected = Projection.fit(vectors, 2)(vectors)
    assert projected.shape == (500, 2)
    assert np.mean((projected**2).sum(1)) == pytest.approx(1, rel=1e-3)


# --- documents and profiles ------------------------------------------------------------------------------------------


def test_documents_longer_shorter_and_emptier_than_their_limit() -> None:
    group = np.array([0, 0, 0, 1, 2, 2])
    length = np.array([60, 60, 60, 30, 0, 250])
    assert in_document(group, length, 100).tolist() == [True, True, False, True, True, True]
    assert in_document(group, length, 60).tolist() == [True, False, False, True, True, True]
    assert in_document(np.array([], np.int64), np.array([], np.int64), 10).tolist() == []


def reviewed(value: list[float], has_text: list[bool] | None = None) -> Reviewed:
    n = len(value)
    rng = np.random.default_rng(3)
    return Reviewed(
        group=np.zeros(n, np.int64),
        value=np.array(value),
        other_bias=np.zeros(n),
        other_factors=np.zeros((n, 2)),
        vector=rng.normal(size=(n, 4)).astype(np.float32),
        has_text=np.array([True] * n if has_text is None else has_text, dtype=np.bool_),
    )


def test_profiles_of_nobody_of_ratings_alone_and_of_texts_alone() -> None:
    prior = Prior.of(np.array([5.0, 4.0, 3.0, 5.0]))
    nothing, known = profiles(reviewed([]), 2, prior, 5.0)
    assert not known.any()
    np.testing.assert_allclose(nothing[0, 3:6], prior.shares)
    stars, known = profiles(reviewed([5, 5], [False, False]), 1, prior, 2.0)
    assert known.all()
    assert stars[0, 0] == pytest.approx((5 - prior.mean) * 2 / (2 + 2.0))
    assert (stars[0, 10:] == 0).all()
    texts, known = profiles(reviewed([np.nan, np.nan]), 1, prior, 2.0)
    assert known.all()
    assert texts[0, 0] == 0
    np.testing.assert_allclose(texts[0, 3:6], prior.shares)
    assert (texts[0, 10:] != 0).all()


def test_what_is_not_told_reaches_no_profile() -> None:
    prior = Prior.of(np.array([5.0, 4.0, 3.0]))
    one = reviewed([5.0, 3.0], [True, False])
    noisy = one.vector.copy()
    noisy[1] = 1e6
    other = replace(one, vector=noisy)
    np.testing.assert_array_equal(profiles(one, 1, prior, 5.0)[0], profiles(other, 1, prior, 5.0)[0])


def test_biases_are_shrunk_and_unseen_ones_zero() -> None:
    found = fit_biases(np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([5.0, 5.0, 1.0]), 3, 2, (1.0, 1.0))
    assert found.user[0] > 0 > found.user[1]
    assert found.user[2] == 0


def test_scales_standardise_stars_and_can_leave_them_out() -> None:
    raw = np.random.default_rng(0).normal(3, 2, size=(100, 12))
    scaled = Scale.fit(raw, use_biases=True)(raw)
    np.testing.assert_allclose(scaled[:, :10].std(0), 1, rtol=1e-3)
    np.testing.assert_allclose(scaled[:, 10:], raw[:, 10:] * TEXT_SCALE, rtol=1e-5)
    bare = Scale.fit(raw, use_biases=False)(raw)
    assert (bare[:, 0] == 0).all()
    assert bare[:, 2].std() > 0.9  # how many, and with what sentiment, is told without stars
