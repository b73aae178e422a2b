"""LRMM as it is served: reviews in, profiles in between, ratings with intervals out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import Bundle, BundleWriter, EncoderRef, ModelEntry
from models.feedback import HIGHEST, LOWEST
from models.lrmm.config import LRMMConfig
from models.lrmm.factors import Tastes
from models.lrmm.model import ITEM, LRMM, USER
from models.lrmm.profiles import Array, Biases, Double, Flags, Prior, Reviewed, Scale, profiles, tastes
from models.lrmm.reviews import Projection, ReviewEncoder, TextTower, Tone
from models.vocabulary import Vocabulary

NAME = "lrmm"
METADATA = {"text": "metadata"}  # the data's name of a content modality -> the pair's
FILE = "lrmm.safetensors"
USERS, ITEMS, WORDS, GRAMS = "lrmm_users", "lrmm_items", "lrmm_words", "lrmm_grams"
COVERAGE = 0.9
BINS = 3
TIE = 1e-6  # errors no further apart are equal


def pair_name(modality: str) -> str:
    """A content modality's name among those of a pair."""
    return METADATA.get(modality, modality)


@dataclass(frozen=True)
class Intervals:
    """Half widths of 90 % intervals by what was observed (split conformal on held-out ratings, each regime by itself).

    Attributes:
        edges: `[4, BINS - 1]`, by which sides are known (neither, user, item, both): bounds of the number of reviews.
        width: `[4, BINS]`.
    """

    edges: Double
    width: Double

    @classmethod
    def fit(cls, pattern: NDArray[np.int64], amount: Double, residual: Double) -> Intervals:
        """From held-out predictions: which sides were known `[n]`, by how many reviews `[n]`, absolute errors `[n]`."""
        edges, width = np.zeros((4, BINS - 1)), np.full((4, BINS), HIGHEST - LOWEST)
        for one in range(4):
            mine = pattern == one
            if not mine.any():
                continue
            edges[one] = np.quantile(amount[mine], np.arange(1, BINS) / BINS)
            bins = np.searchsorted(edges[one], amount[mine], side="right")
            for place in range(BINS):
                inside = residual[mine][bins == place]
                if len(inside):
                    width[one, place] = _width(inside)
        return cls(edges, width)

    def __call__(self, pattern: NDArray[np.int64], amount: Double) -> Double:
        """Half widths `[n]`."""
        bins = (amount[:, None] >= self.edges[pattern]).sum(axis=1)
        found: Double = self.width[pattern, bins]
        return found


def _width(errors: Double) -> float:
    """The half width that covers nearest to COVERAGE of absolute errors `[n]`.

    That is the quantile that covers the next one with at least this probability, or else the largest error below it.
    They cover much the same unless many errors are equal, as where nothing is known and everybody is told the mean.
    """
    ordered = np.sort(errors)
    enough = ordered[min(math.ceil((len(errors) + 1) * COVERAGE), len(errors)) - 1]
    below = ordered[ordered < enough - TIE]
    less, more = len(below) / len(errors), np.count_nonzero(ordered <= enough + TIE) / len(errors)
    nearest = below[-1] if len(below) and COVERAGE - less < more - COVERAGE else enough
    return float(nearest) + TIE  # the error at the edge stays inside, however it is rounded


@dataclass(frozen=True)
class Rated:
    """Ratings and the ends of their 90 % intervals, each `[b]`, within 1..5."""

    rating: Double
    low: Double
    high: Double


@dataclass(frozen=True)
class Profiles:
    """Users or items as their reviews tell of them: embeddings `[n, d]`, tastes `[n, k]`, who is known at all `[n]`."""

    embedding: Array
    taste: Double
    known: Flags


class Rater:
    """A trained LRMM with all that turns reviews into its inputs.

    Args:
        users, items: those whose reviews training has seen, with their `biases` and `tastes`.
        encoder: of reviews; None where training saw no texts.
        sentence: which encoder makes the sentence embeddings.
        scales: of the profiles, by modality.
        contents: projections of the items' own features, by the dataset's name of the modality.
    """

    def __init__(
        self,
        model: LRMM,
        *,
        users: Vocabulary,
        items: Vocabulary,
        biases: Biases,
        tastes: Tastes,
        prior: Prior,
        scales: Mapping[str, Scale],
        encoder: ReviewEncoder | None,
        sentence: EncoderRef | None,
        contents: Mapping[str, Projection],
        intervals: Intervals,
    ) -> None:
        self.model = model.eval()
        self.users, self.items = users, items
        self.biases, self.tastes = biases, tastes
        self.prior, self.scales = prior, scales
        self.encoder, self.sentence = encoder, sentence
        self.contents = contents
        self.intervals = intervals

    @property
    def config(self) -> LRMMConfig:
        """The model's settings."""
        return self.model.config

    @property
    def names(self) -> tuple[str, ...]:
        """Modalities of a pair, in the order of the masks' columns."""
        return self.model.names

    @property
    def vector_dim(self) -> int:
        """Length of a review's vector, the tone included."""
        return 1 if self.encoder is None else self.encoder.dim

    def others(self, side: str, pairs: Sequence[tuple[str, str]]) -> tuple[Double, Double]:
        """Biases `[r]` and tastes `[r, k]` of the other sides of reviews by (user, item), as training found them.

        The other side is the item's where `side` is USER; of a new one both are zero.
        """
        vocabulary, bias, taste, place = (
            (self.items, self.biases.item, self.tastes.item, 1)
            if side == USER
            else (self.users, self.biases.user, self.tastes.user, 0)
        )
        rows = [vocabulary.get(pair[place]) for pair in pairs]
        known = np.array([row is not None for row in rows], dtype=np.bool_)
        chosen = np.array([row or 0 for row in rows], dtype=np.int64)
        return np.where(known, bias[chosen], 0.0), np.where(known[:, None], taste[chosen], 0.0)

    def profile(self, side: str, reviewed: Reviewed, n: int) -> Profiles:
        """Profiles of `n` users or items (`side` is USER or ITEM)."""
        shrinkage = self.config.user_shrinkage if side == USER else self.config.item_shrinkage
        raw, known = profiles(reviewed, n, self.prior, shrinkage)
        return Profiles(self.scales[side](raw), tastes(reviewed, raw, self.prior, self.config.taste_penalty), known)

    def content(self, modality: str, features: Array) -> Array:
        """Embeddings `[n, d]` of the items' own raw features `[n, dim]` in a content modality of the data."""
        return self.contents[modality](features) * np.float32(self.config.text_scale)

    @torch.inference_mode()
    def rate(self, embeddings: Mapping[str, Array], present: Flags, affinity: Double, amount: Double) -> Rated:
        """Rate pairs.

        Args:
            embeddings: by modality `[b, d_m]`; rows that are not present may hold anything finite.
            present: `[b, M]`, columns as in `names`.
            affinity: products of the sides' tastes `[b]`.
            amount: number of reviews of the sides that are present `[b]`.
        """
        tensors = {name: torch.from_numpy(embeddings[name]) for name in self.names}
        liked = torch.from_numpy(affinity).float()
        rating = self.model.predict(tensors, torch.from_numpy(present), liked).double().numpy()
        pattern = self.pattern(present)
        width = self.intervals(pattern, amount)
        return Rated(rating, np.maximum(rating - width, LOWEST), np.minimum(rating + width, HIGHEST))

    def pattern(self, present: Flags) -> NDArray[np.int64]:
        """Which sides are known `[b]`: 0 neither, 1 the user, 2 the item, 3 both."""
        user, item = (present[:, self.names.index(side)].astype(np.int64) for side in (USER, ITEM))
        return user + 2 * item

    def save(self, writer: BundleWriter, metrics: Mapping[str, float]) -> ModelEntry:
        """Write weights, tables and vocabularies into a bundle."""
        arrays: dict[str, NDArray[Any]] = {
            f"model.{name}": tensor.cpu().numpy() for name, tensor in self.model.state_dict().items()
        }
        arrays |= {
            "users.bias": self.biases.user,
            "items.bias": self.biases.item,
            "users.taste": self.tastes.user,
            "items.taste": self.tastes.item,
            "prior.shares": self.prior.shares,
            "prior.moments": np.array([self.prior.mean, self.prior.spread]),
            "intervals.edges": self.intervals.edges,
            "intervals.width": self.intervals.width,
        }
        for side, scale in self.scales.items():
            arrays |= {f"scale.{side}.mean": scale.mean, f"scale.{side}.factor": scale.factor}
        for name, projection in self.contents.items():
            arrays |= _projection(f"content.{name}", projection)
        writer.vocabulary(USERS, self.users)
        writer.vocabulary(ITEMS, self.items)
        if self.encoder is not None:
            arrays |= {f"tower.{name}": tensor.numpy() for name, tensor in self.encoder.tower.state_dict().items()}
            arrays |= _projection("states", self.encoder.states) | _projection("sentences", self.encoder.sentences)
            tone = self.encoder.tone
            arrays |= {"tone.weights": tone.weights, "tone.idf": tone.idf, "tone.bias": tone.bias}
            writer.vocabulary(WORDS, self.encoder.vocabulary)
            writer.vocabulary(GRAMS, tone.grams)
        writer.tensors(FILE, arrays)
        config = {
            "model": self.config.model_dump(),
            "sizes": dict(self.model.sizes),
            "contents": list(self.contents),
            "sentence": None if self.sentence is None else self.sentence.model_dump(),
        }
        return ModelEntry(config=config, metrics=dict(metrics), file=FILE)

    @classmethod
    def load(cls, bundle: Bundle) -> Rater | None:
        """Rebuild from a bundle; None where it holds no LRMM.

        Raises:
            BundleError: it holds one that this Lacuna cannot read.
        """
        entry = bundle.manifest.models.get(NAME)
        if entry is None:
            return None
        arrays = bundle.tensors(entry.file)
        with bundle.reading(NAME):
            config = LRMMConfig.model_validate(entry.config["model"])
            mean, spread = arrays["prior.moments"]
            model = LRMM(config, entry.config["sizes"], 0.0)
            model.load_state_dict(_part(arrays, "model."))
            sentence = entry.config["sentence"]
            return cls(
                model,
                users=bundle.vocabulary(USERS),
                items=bundle.vocabulary(ITEMS),
                biases=Biases(float(mean), arrays["users.bias"], arrays["items.bias"]),
                tastes=Tastes(arrays["users.taste"], arrays["items.taste"]),
                prior=Prior(float(mean), arrays["prior.shares"], float(spread)),
                scales={
                    side: Scale(arrays[f"scale.{side}.mean"], arrays[f"scale.{side}.factor"]) for side in (USER, ITEM)
                },
                encoder=_encoder(bundle, config, arrays) if sentence else None,
                sentence=EncoderRef.model_validate(sentence) if sentence else None,
                contents={name: _projected(arrays, f"content.{name}") for name in entry.config["contents"]},
                intervals=Intervals(arrays["intervals.edges"], arrays["intervals.width"]),
            )


def _encoder(bundle: Bundle, config: LRMMConfig, arrays: Mapping[str, NDArray[Any]]) -> ReviewEncoder:
    words = bundle.vocabulary(WORDS)
    tower = TextTower(len(words), config.word_size, config.text_hidden, config.text_dropout)
    tower.load_state_dict(_part(arrays, "tower."))
    tone = Tone(bundle.vocabulary(GRAMS), arrays["tone.weights"], arrays["tone.idf"], arrays["tone.bias"])
    states, sentences = _projected(arrays, "states"), _projected(arrays, "sentences")
    return ReviewEncoder(tower, states, words, tone, sentences, config.review_words)


def _part(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): torch.from_numpy(array) for name, array in arrays.items() if name.startswith(prefix)
    }


def _projection(name: str, projection: Projection) -> dict[str, NDArray[Any]]:
    return {f"{name}.center": projection.mean, f"{name}.axes": projection.axes}


def _projected(arrays: Mapping[str, NDArray[Any]], name: str) -> Projection:
    return Projection(arrays[f"{name}.center"], arrays[f"{name}.axes"])
