"""LRMM as it is served: reviews in, profiles in between, ratings with intervals out."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.arrays import Array, Double, Mask, Rows
from models.bundle import Bundle, BundleWriter, EncoderRef, ModelEntry
from models.feedback import HIGHEST, LOWEST
from models.lrmm.config import OLD_NAMES, LRMMConfig
from models.lrmm.factors import LatentFactors
from models.lrmm.model import ITEM, LRMM, USER
from models.lrmm.profiles import (
    TEXT_SCALE,
    Biases,
    Prior,
    Reviewed,
    Scale,
    bias_shrinkage,
    fold_in_factors,
    profiles,
)
from models.lrmm.reviews import Projection, ReviewEncoder, Sentiment, TextLSTM
from models.renamed import refuse_old_names
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


def content_embeddings(projection: Projection, features: Array) -> Array:
    """Embeddings `[n, d]` of the items' own raw features `[n, dim]` in one content modality."""
    return projection(features) * np.float32(TEXT_SCALE)


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
    def fit(cls, pattern: Rows, review_count: Double, error: Double) -> Intervals:
        """From held-out predictions: which sides were known `[n]`, by how many reviews `[n]`, absolute errors `[n]`."""
        edges, width = np.zeros((4, BINS - 1)), np.full((4, BINS), HIGHEST - LOWEST)
        for known in range(4):
            rows = pattern == known
            if not rows.any():
                continue
            edges[known] = np.quantile(review_count[rows], np.arange(1, BINS) / BINS)
            bins = np.searchsorted(edges[known], review_count[rows], side="right")
            for place in range(BINS):
                errors = error[rows][bins == place]
                if len(errors):
                    width[known, place] = _half_width(errors)
        return cls(edges, width)

    def __call__(self, pattern: Rows, review_count: Double) -> Double:
        """Half widths `[n]`."""
        bins = (review_count[:, None] >= self.edges[pattern]).sum(axis=1)
        half_widths: Double = self.width[pattern, bins]
        return half_widths


def _half_width(errors: Double) -> float:
    """The half width that covers nearest to COVERAGE of absolute errors `[n]`.

    That is the quantile that covers the next one with at least this probability, or else the largest error below it.
    They cover much the same unless many errors are equal, as where nothing is known and the mean is always predicted.
    """
    ordered = np.sort(errors)
    quantile = ordered[min(math.ceil((len(errors) + 1) * COVERAGE), len(errors)) - 1]
    below = ordered[ordered < quantile - TIE]
    less, more = len(below) / len(errors), np.count_nonzero(ordered <= quantile + TIE) / len(errors)
    nearest = below[-1] if len(below) and COVERAGE - less < more - COVERAGE else quantile
    return float(nearest) + TIE  # the error at the edge stays inside, however it is rounded


@dataclass(frozen=True)
class Rated:
    """Ratings and the ends of their 90 % intervals, each `[b]`, within 1..5."""

    rating: Double
    low: Double
    high: Double


@dataclass(frozen=True)
class Profiles:
    """Users or items: embeddings `[n, d]`, what they bring to affinities `[n, k + 2]`, who has any review `[n]`."""

    embedding: Array
    factors: Double
    known: Mask


@dataclass(frozen=True)
class TrainedSides:
    """The users and items whose reviews training has seen, with their biases and latent factors."""

    users: Vocabulary
    items: Vocabulary
    biases: Biases
    factors: LatentFactors

    def others(self, side: str, pairs: Sequence[tuple[str, str]]) -> tuple[Double, Double]:
        """Biases `[r]` and latent factors `[r, k + 1]` of the other sides of reviews by (user, item).

        The other side is the item's where `side` is USER; of one that training has not seen both are zero.
        """
        vocabulary, bias, factors, place = (
            (self.items, self.biases.item, self.factors.item, 1)
            if side == USER
            else (self.users, self.biases.user, self.factors.user, 0)
        )
        rows = [vocabulary.get(pair[place]) for pair in pairs]
        known = np.array([row is not None for row in rows], dtype=np.bool_)
        chosen = np.array([row or 0 for row in rows], dtype=np.int64)
        return np.where(known, bias[chosen], 0.0), np.where(known[:, None], factors[chosen], 0.0)


class RatingModule(Protocol):
    """The part of a model that rates embedded pairs, whatever its form."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def sizes(self) -> dict[str, int]: ...

    def eval(self) -> Any: ...

    def predict(self, embeddings: Mapping[str, Tensor], present: Tensor, affinity: Tensor, /) -> Tensor: ...


M_co = TypeVar("M_co", bound=RatingModule, covariant=True)


class RatingServing(Generic[M_co]):
    """What every form of LRMM is served by: embeddings of the modalities in, ratings with intervals out."""

    contents: Collection[str]  # the items' own content that is read, by the data's names of the modalities

    def __init__(self, model: M_co, intervals: Intervals) -> None:
        self.model: M_co = model
        self.model.eval()
        self.intervals = intervals

    @property
    def names(self) -> tuple[str, ...]:
        """Modalities of a pair, in the order of the masks' columns."""
        return self.model.names

    @torch.inference_mode()
    def rate(self, embeddings: Mapping[str, Array], present: Mask, affinity: Double, review_count: Double) -> Rated:
        """Rate pairs.

        Args:
            embeddings: by modality `[b, d_m]`; rows that are not present may hold anything finite.
            present: `[b, M]`, columns as in `names`.
            affinity: products of the sides' latent factors `[b]`.
            review_count: number of reviews of the sides that are present `[b]`.
        """
        tensors = {name: torch.from_numpy(embeddings[name]) for name in self.names}
        products = torch.from_numpy(affinity).float()
        rating = self.model.predict(tensors, torch.from_numpy(present), products).double().numpy()
        width = self.intervals(self.pattern(present), review_count)
        return Rated(rating, np.maximum(rating - width, LOWEST), np.minimum(rating + width, HIGHEST))

    def pattern(self, present: Mask) -> Rows:
        """Which sides are known `[b]`: 0 neither, 1 the user, 2 the item, 3 both."""
        user, item = (present[:, self.names.index(side)].astype(np.int64) for side in (USER, ITEM))
        return user + 2 * item


class LRMMServing(RatingServing[LRMM]):
    """A trained LRMM with all that turns reviews into its inputs.

    Args:
        sides: what training has seen.
        prior, scales: of the profiles, the latter by modality.
        encoder: of reviews, and which encoder makes the sentence embeddings; None where training saw no texts.
        contents: projections of the items' own features, by the dataset's name of the modality.
    """

    def __init__(
        self,
        model: LRMM,
        *,
        sides: TrainedSides,
        prior: Prior,
        scales: Mapping[str, Scale],
        encoder: tuple[ReviewEncoder, EncoderRef] | None,
        contents: Mapping[str, Projection],
        intervals: Intervals,
    ) -> None:
        super().__init__(model, intervals)
        self.sides = sides
        self.prior, self.scales = prior, scales
        self.encoder = encoder[0] if encoder else None
        self.sentence = encoder[1] if encoder else None
        self.contents: Mapping[str, Projection] = contents

    @property
    def config(self) -> LRMMConfig:
        """The model's settings."""
        return self.model.config

    @property
    def vector_dim(self) -> int:
        """Length of a review's vector, the sentiment included."""
        return 1 if self.encoder is None else self.encoder.dim

    def profile(self, side: str, reviewed: Reviewed, n: int) -> Profiles:
        """Profiles of `n` users or items (`side` is USER or ITEM)."""
        raw, known = profiles(reviewed, n, self.prior, bias_shrinkage(side))
        factors = fold_in_factors(side, reviewed, raw, self.prior, self.config.penalties)
        return Profiles(self.scales[side](raw), factors, known)

    def content(self, modality: str, features: Array) -> Array:
        """Embeddings `[n, d]` of the items' own raw features `[n, dim]` in a content modality of the data."""
        return content_embeddings(self.contents[modality], features)

    # --- bundle ------------------------------------------------------------------------------------------------------

    def save(self, writer: BundleWriter, metrics: Mapping[str, float]) -> ModelEntry:
        """Write weights, tables and vocabularies into a bundle."""
        arrays = _with_prefix("model.", _arrays(self.model)) | self._tables()
        writer.vocabulary(USERS, self.sides.users)
        writer.vocabulary(ITEMS, self.sides.items)
        if self.encoder is not None:
            arrays |= _encoder_arrays(self.encoder)
            writer.vocabulary(WORDS, self.encoder.vocabulary)
            writer.vocabulary(GRAMS, self.encoder.sentiment.grams)
        writer.tensors(FILE, arrays)
        config = {
            "model": self.config.model_dump(),
            "sizes": dict(self.model.sizes),
            "contents": list(self.contents),
            "sentence": None if self.sentence is None else self.sentence.model_dump(),
        }
        return ModelEntry(config=config, metrics=dict(metrics), file=FILE)

    def _tables(self) -> dict[str, NDArray[Any]]:
        """What a bundle holds beside the model and the encoder of reviews."""
        biases, factors = self.sides.biases, self.sides.factors
        arrays: dict[str, NDArray[Any]] = {
            "users.bias": biases.user,
            "items.bias": biases.item,
            "users.fitted": factors.user,
            "items.fitted": factors.item,
            "prior.shares": self.prior.shares,
            "prior.moments": np.array([self.prior.mean, self.prior.variance]),
            "intervals.edges": self.intervals.edges,
            "intervals.width": self.intervals.width,
        }
        for side, scale in self.scales.items():
            arrays |= {f"scale.{side}.mean": scale.mean, f"scale.{side}.factor": scale.factor}
        for name, projection in self.contents.items():
            arrays |= _projection_arrays(f"content.{name}", projection)
        return arrays

    @classmethod
    def load(cls, bundle: Bundle) -> LRMMServing | None:
        """Rebuild from a bundle; None where it holds no LRMM.

        Raises:
            BundleError: it holds one that this Lacuna cannot read.
        """
        entry = bundle.manifest.models.get(NAME)
        if entry is None:
            return None
        arrays = bundle.tensors(entry.file)
        with bundle.reading(NAME):
            refuse_old_names(entry.config["model"], OLD_NAMES)
            config = LRMMConfig.model_validate(entry.config["model"])
            mean, variance = arrays["prior.moments"]
            model = LRMM(config, entry.config["sizes"], 0.0)
            model.load_state_dict(_part(arrays, "model."))
            biases = Biases(float(mean), arrays["users.bias"], arrays["items.bias"])
            factors = LatentFactors(arrays["users.fitted"], arrays["items.fitted"])
            sentence = entry.config["sentence"]
            encoder = (_encoder(bundle, config, arrays), EncoderRef.model_validate(sentence)) if sentence else None
            return cls(
                model,
                sides=TrainedSides(bundle.vocabulary(USERS), bundle.vocabulary(ITEMS), biases, factors),
                prior=Prior(float(mean), arrays["prior.shares"], float(variance)),
                scales={
                    side: Scale(arrays[f"scale.{side}.mean"], arrays[f"scale.{side}.factor"]) for side in (USER, ITEM)
                },
                encoder=encoder,
                contents={name: _projection(arrays, f"content.{name}") for name in entry.config["contents"]},
                intervals=Intervals(arrays["intervals.edges"], arrays["intervals.width"]),
            )


def _arrays(module: torch.nn.Module) -> dict[str, NDArray[Any]]:
    return {name: tensor.cpu().numpy() for name, tensor in module.state_dict().items()}


def _with_prefix(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def _part(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): torch.from_numpy(array) for name, array in arrays.items() if name.startswith(prefix)
    }


def _encoder_arrays(encoder: ReviewEncoder) -> dict[str, NDArray[Any]]:
    sentiment = encoder.sentiment
    return {
        **_with_prefix("lstm.", _arrays(encoder.lstm)),
        **_projection_arrays("states", encoder.states),
        **_projection_arrays("sentences", encoder.sentences),
        "sentiment.weights": sentiment.weights,
        "sentiment.idf": sentiment.idf,
        "sentiment.bias": sentiment.bias,
    }


def _encoder(bundle: Bundle, config: LRMMConfig, arrays: Mapping[str, NDArray[Any]]) -> ReviewEncoder:
    words = bundle.vocabulary(WORDS)
    lstm = TextLSTM(len(words), config.word_embedding_size, config.lstm_hidden, config.lstm_dropout)
    lstm.load_state_dict(_part(arrays, "lstm."))
    weights, idf, bias = (arrays[f"sentiment.{name}"] for name in ("weights", "idf", "bias"))
    sentiment = Sentiment(bundle.vocabulary(GRAMS), weights, idf, bias)
    states, sentences = _projection(arrays, "states"), _projection(arrays, "sentences")
    return ReviewEncoder(lstm, states, words, sentiment, sentences, config.review_words)


def _projection_arrays(name: str, projection: Projection) -> dict[str, NDArray[Any]]:
    return {f"{name}.center": projection.mean, f"{name}.axes": projection.axes}


def _projection(arrays: Mapping[str, NDArray[Any]], name: str) -> Projection:
    return Projection(arrays[f"{name}.center"], arrays[f"{name}.axes"])
