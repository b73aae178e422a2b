"""What LRMM reads of reviews, fitted to the training part: sentence embeddings, words, tone and the LSTM."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.encoders import TextEncoder
from models.lrmm.config import LRMMConfig
from models.lrmm.profiles import Array, Double
from models.lrmm.reviews import (
    Projection,
    ReviewEncoder,
    TextTower,
    Tone,
    excerpt,
    fold_of,
    frequent,
    grams,
    inverse_frequency,
    word_ids,
    words,
)
from models.vocabulary import Vocabulary
from training.lrmm.ratings import Ratings, Rows
from training.progress import Terminal

TEXT_BATCH, TEXT_RATE, TEXT_POOL = 64, 2e-3, 2048
STATES = 2000  # texts that are enough to find the axes of the LSTM's states


def sentence_vectors(
    texts: tuple[str, ...], limit: int, encoder: TextEncoder, terminal: Terminal, cache: Path | None
) -> Array:
    """Sentence embeddings `[n, d]` of the texts' first words, zeros for empty ones; kept in the folder `cache`."""
    excerpts = [excerpt(text, limit) for text in texts]
    key = hashlib.sha256("\0".join((encoder.id, encoder.weights_sha256, *excerpts)).encode("utf-8", "replace"))
    file = None if cache is None else cache / f"reviews-{key.hexdigest()[:32]}.safetensors"
    if file is not None and file.is_file():
        try:
            return load_file(file)["vectors"]
        except (OSError, KeyError, SafetensorError):
            terminal.say(f"{file} cannot be read and is made again")
    vectors = np.zeros((len(texts), encoder.dim), np.float32)
    told = [row for row, excerpt in enumerate(excerpts) if excerpt]
    for start in range(0, len(told), 256):
        rows = told[start : start + 256]
        vectors[rows] = encoder.encode([excerpts[row] for row in rows])
        terminal.stage("reviews, sentences", start + len(rows), len(told))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"vectors": vectors}, file)
    return vectors


def fit_reviews(
    ratings: Ratings, train: Rows, sentences: Array, config: LRMMConfig, seed: int, terminal: Terminal
) -> ReviewEncoder:
    """Words, tone, LSTM and projections, all from the training part."""
    told = np.array([row for row in train if ratings.text[row].strip()], dtype=np.int64)
    texts = [ratings.text[row] for row in told]
    left = ratings.value[told] - ratings.value[train].mean()
    terminal.stage("reviews, tone", 0, 1)
    tone = fit_tone(texts, left, config)
    terminal.stage("reviews, tone", 1, 1)
    counted = Counter(word for text in texts for word in words(text, config.review_words))
    vocabulary = frequent(counted, config.least_count)
    ids = [word_ids(vocabulary, text, config.review_words) for text in texts]
    tower = fit_tower(len(vocabulary), ids, left, config, seed, terminal)
    states = Projection.fit(_states(tower, ids[:STATES]), config.text_hidden)
    states = replace(states, axes=states.axes * np.float32(config.state_scale))
    return ReviewEncoder(
        tower, states, vocabulary, tone, Projection.fit(sentences[told], config.sentence_size), config.review_words
    )


def fit_tone(texts: list[str], left: Double, config: LRMMConfig) -> Tone:
    """The cross-fitted regression of ratings (relative to their mean) on words and pairs of words."""
    counted = [grams(text, config.review_words) for text in texts]
    holding = Counter(gram for one in counted for gram in one)
    vocabulary = frequent(holding, config.least_reviews)
    idf = inverse_frequency(len(texts), np.array([holding[gram] for gram in vocabulary], dtype=np.int64))
    matrix = _tfidf(counted, vocabulary, idf)
    fold = np.array([fold_of(text, config.tone_folds) for text in texts])
    weights, bias = np.zeros((config.tone_folds, len(vocabulary)), np.float32), np.zeros(config.tone_folds, np.float32)
    for one in range(config.tone_folds):
        others = np.flatnonzero(fold != one)
        if len(others) and len(vocabulary):
            model = Ridge(alpha=config.tone_penalty, solver="sparse_cg", tol=1e-3).fit(matrix[others], left[others])
            weights[one], bias[one] = model.coef_, model.intercept_
    return Tone(vocabulary, weights, idf, bias)


def _tfidf(counted: list[Counter[str]], vocabulary: Vocabulary, idf: Array) -> sparse.csr_matrix:
    rows, columns, values = [], [], []
    for place, one in enumerate(counted):
        found = [(column, count) for gram, count in one.items() if (column := vocabulary.get(gram)) is not None]
        weighed = np.array([(1 + np.log(count)) * idf[column] for column, count in found])
        values += list(weighed / max(float(np.linalg.norm(weighed)), 1e-12))
        columns += [column for column, _ in found]
        rows += [place] * len(found)
    return sparse.csr_matrix((values, (rows, columns)), shape=(len(counted), len(vocabulary)))


def fit_tower(
    n_words: int, ids: list[Tensor], left: Double, config: LRMMConfig, seed: int, terminal: Terminal
) -> TextTower:
    """Teach the LSTM the ratings of the reviews that it reads. Texts of like length share a batch."""
    rng = np.random.default_rng(seed)
    target = torch.from_numpy(left).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = TextTower(n_words, config.word_size, config.text_hidden, config.text_dropout)
        optimizer = torch.optim.Adam(tower.parameters(), TEXT_RATE)
        for epoch in range(config.text_epochs):
            for batch in _batches_of_like_length(ids, rng):
                optimizer.zero_grad()
                rated = tower.rate(pad_sequence([ids[row] for row in batch], batch_first=True))
                F.mse_loss(rated, target[batch]).backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
                optimizer.step()
            terminal.stage("reviews, LSTM", epoch + 1, config.text_epochs)
    return tower.eval()


def _batches_of_like_length(ids: list[Tensor], rng: np.random.Generator) -> Iterator[Rows]:
    order = rng.permutation(len(ids))
    batches: list[Rows] = []
    for start in range(0, len(order), TEXT_POOL):
        pool = sorted(order[start : start + TEXT_POOL], key=lambda row: len(ids[row]))
        batches += [np.array(pool[k : k + TEXT_BATCH]) for k in range(0, len(pool), TEXT_BATCH)]
    for place in rng.permutation(len(batches)):
        yield batches[place]


@torch.inference_mode()
def _states(tower: TextTower, ids: list[Tensor]) -> Array:
    states = [tower(one[None])[0].numpy() for one in ids]
    return np.array(states, np.float32).reshape(len(ids), tower.lstm.hidden_size)
