"""What LRMM reads of reviews, fitted to the training part: sentence embeddings, words, sentiment and the LSTM."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from scipy import sparse
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.arrays import Array, Double, Rows
from models.encoders import TextEncoder
from models.lrmm.config import LRMMConfig
from models.lrmm.reviews import (
    STATE_SCALE,
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
from training.lrmm.ratings import Ratings
from training.progress import Terminal
from training.vector_cache import VectorCache, digest_of

LSTM_BATCH, LSTM_RATE, LSTM_POOL = 64, 2e-3, 2048
SENTENCE_BATCH = 1024
STATES = 2000  # texts that are enough to find the axes of the LSTM's states
MIN_GRAM_REVIEWS = 3  # reviews that hold a word or pair of words which the sentiment reads
SENTIMENT_FOLDS = 5
SENTIMENT_PENALTY = 2.0  # ridge penalty of the regression of ratings on words


def sentence_vectors(
    texts: tuple[str, ...], limit: int, encoder: TextEncoder, terminal: Terminal, cache: Path | None
) -> Array:
    """Sentence embeddings `[n, d]` of the texts' first words, zeros for empty ones; kept in the folder `cache`."""
    excerpts = [excerpt(text, limit) for text in texts]
    kept, digests = VectorCache(cache, encoder), [digest_of(text) for text in excerpts]
    vectors, _, known = kept.find(digests)
    missing = [row for row, text in enumerate(excerpts) if text and not known[row]]
    for start in range(0, len(missing), SENTENCE_BATCH):
        rows = missing[start : start + SENTENCE_BATCH]
        vectors[rows] = encoder.encode([excerpts[row] for row in rows])
        kept.add([digests[row] for row in rows], vectors[rows], np.ones(len(rows), np.bool_))
        terminal.stage("reviews, sentences", start + len(rows), len(missing))
    return vectors


def fit_reviews(
    ratings: Ratings, train: Rows, sentences: Array, config: LRMMConfig, seed: int, terminal: Terminal
) -> ReviewEncoder:
    """Words, sentiment, LSTM and projections, all from the training part."""
    rows = np.array([row for row in train if ratings.text[row].strip()], dtype=np.int64)
    texts = [ratings.text[row] for row in rows]
    residual = ratings.value[rows] - ratings.value[train].mean()
    terminal.stage("reviews, sentiment", 0, 1)
    sentiment = fit_sentiment(texts, residual, config)
    terminal.stage("reviews, sentiment", 1, 1)
    counted = Counter(word for text in texts for word in words(text, config.review_words))
    vocabulary = frequent(counted, config.min_word_count)
    ids = [word_ids(vocabulary, text, config.review_words) for text in texts]
    lstm = fit_lstm(len(vocabulary), ids, residual, config, seed, terminal)
    states = Projection.fit(_states(lstm, ids[:STATES]), config.lstm_hidden)
    states = replace(states, axes=states.axes * np.float32(STATE_SCALE))
    projected = Projection.fit(sentences[rows], config.sentence_size)
    return ReviewEncoder(lstm, states, vocabulary, sentiment, projected, config.review_words)


def fit_sentiment(texts: list[str], residual: Double, config: LRMMConfig) -> Sentiment:
    """The cross-fitted regression of ratings (relative to their mean) on words and pairs of words."""
    counted = [grams(text, config.review_words) for text in texts]
    reviews_with = Counter(gram for counts in counted for gram in counts)
    vocabulary = frequent(reviews_with, MIN_GRAM_REVIEWS)
    idf = inverse_frequency(len(texts), np.array([reviews_with[gram] for gram in vocabulary], dtype=np.int64))
    matrix = _tfidf(counted, vocabulary, idf)
    fold_of_text = np.array([fold_of(text, SENTIMENT_FOLDS) for text in texts])
    weights, bias = np.zeros((SENTIMENT_FOLDS, len(vocabulary)), np.float32), np.zeros(SENTIMENT_FOLDS, np.float32)
    for fold in range(SENTIMENT_FOLDS):
        others = np.flatnonzero(fold_of_text != fold)
        if len(others) and len(vocabulary):
            model = Ridge(alpha=SENTIMENT_PENALTY, solver="sparse_cg", tol=1e-3).fit(matrix[others], residual[others])
            weights[fold], bias[fold] = model.coef_, model.intercept_
    return Sentiment(vocabulary, weights, idf, bias)


def _tfidf(counted: list[Counter[str]], vocabulary: Vocabulary, idf: Array) -> sparse.csr_matrix:
    rows, columns, values = [], [], []
    for row, counts in enumerate(counted):
        known = [(column, count) for gram, count in counts.items() if (column := vocabulary.get(gram)) is not None]
        weights = np.array([(1 + np.log(count)) * idf[column] for column, count in known])
        values += list(weights / max(float(np.linalg.norm(weights)), 1e-12))
        columns += [column for column, _ in known]
        rows += [row] * len(known)
    return sparse.csr_matrix((values, (rows, columns)), shape=(len(counted), len(vocabulary)))


def fit_lstm(
    n_words: int, ids: list[Tensor], residual: Double, config: LRMMConfig, seed: int, terminal: Terminal
) -> TextLSTM:
    """Train the LSTM to predict the rating of each review that it reads. Texts of like length share a batch."""
    rng = np.random.default_rng(seed)
    target = torch.from_numpy(residual).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lstm = TextLSTM(n_words, config.word_embedding_size, config.lstm_hidden, config.lstm_dropout)
        optimizer = torch.optim.Adam(lstm.parameters(), LSTM_RATE)
        for epoch in range(config.lstm_epochs):
            for batch in _batches_of_like_length(ids, rng):
                optimizer.zero_grad()
                rated = lstm.rate(pad_sequence([ids[row] for row in batch], batch_first=True))
                F.mse_loss(rated, target[batch]).backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(lstm.parameters(), 1.0)
                optimizer.step()
            terminal.stage("reviews, LSTM", epoch + 1, config.lstm_epochs)
    return lstm.eval()


def _batches_of_like_length(ids: list[Tensor], rng: np.random.Generator) -> Iterator[Rows]:
    order = rng.permutation(len(ids))
    batches: list[Rows] = []
    for start in range(0, len(order), LSTM_POOL):
        pool = sorted(order[start : start + LSTM_POOL], key=lambda row: len(ids[row]))
        batches += [np.array(pool[k : k + LSTM_BATCH]) for k in range(0, len(pool), LSTM_BATCH)]
    for place in rng.permutation(len(batches)):
        yield batches[place]


@torch.inference_mode()
def _states(lstm: TextLSTM, ids: list[Tensor]) -> Array:
    states = [lstm(row[None])[0].numpy() for row in ids]
    return np.array(states, np.float32).reshape(len(ids), lstm.lstm.hidden_size)
