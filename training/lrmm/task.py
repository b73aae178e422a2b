"""Training of LRMM: texts first, then the model on profiles that leave out what they are to predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.bundle import EncoderRef
from models.lrmm.config import LRMMConfig
from models.lrmm.factors import Tastes, fit_tastes
from models.lrmm.model import ITEM, LRMM, USER
from models.lrmm.profiles import (
    Array,
    Biases,
    Double,
    Flags,
    Prior,
    Reviewed,
    Scale,
    fit_biases,
    profiles,
    tastes,
    within,
)
from models.lrmm.reviews import Projection, ReviewEncoder
from models.lrmm.serving import Intervals, Rater, pair_name
from models.modality import ModalBatch
from models.vocabulary import Vocabulary
from training.lrmm.ratings import RatingParts, Ratings, Rows, newest_first, newest_of
from training.lrmm.reviews import fit_reviews
from training.progress import Terminal
from training.trainer import TrainerConfig, TrainingResult, set_rate, train

METRIC = "-rmse[+F]"
TRAINER = TrainerConfig(
    epochs=8,
    batch_size=256,
    learning_rate=1e-4,
    constant_fraction=1,
    patience=3,
    smoothing=1,
    tolerance=0,
    metric=METRIC,
)
REGIMES: Mapping[str, tuple[str, ...]] = {
    "+F": (),
    "-U": (USER,),
    "-O": (ITEM,),
    "-M": ("metadata",),
    "-V": ("image",),
    "-U-O": (USER, ITEM),
}


# --- pairs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Pairs to rate: embeddings by modality `[b, d_m]`, which are there `[b, M]`, products of the sides' tastes `[b]`,
    true ratings `[b]`, and by how many reviews each side is known `[b, 2]` (user, item)."""

    embeddings: Mapping[str, Array]
    present: Flags
    affinity: Double
    value: Double
    amount: Double

    def without(self, withheld: tuple[str, ...], names: tuple[str, ...]) -> Pairs:
        """The same with some modalities withheld."""
        kept = np.array([name not in withheld for name in names])
        return replace(self, present=self.present & kept)

    def reviews(self, names: tuple[str, ...]) -> Double:
        """Number of reviews by which the sides that are present are known `[b]`."""
        sides = self.present[:, [names.index(USER), names.index(ITEM)]]
        total: Double = (self.amount * sides).sum(axis=1)
        return total


@dataclass(frozen=True)
class Sides:
    """All users or all items as some reviews tell of them: raw profiles `[n, d]`, tastes `[n, k]`, who is known at all
    `[n]`, and by how many reviews `[n]`."""

    raw: Double
    taste: Double
    known: Flags
    amount: Double


class Evidence:
    """Makes pairs' embeddings from any part of the reviews.

    Args:
        vectors: of all reviews `[n, d + 1]`; `length` their words.
        contents: embeddings of the items' own content by the pair's name of the modality, and which are there.
        item_reviews: how many reviews tell of an item at most, the newest ones; None for all.
    """

    def __init__(
        self,
        ratings: Ratings,
        vectors: Array,
        config: LRMMConfig,
        contents: Mapping[str, tuple[Array, Flags]],
        item_reviews: int | None = None,
    ) -> None:
        self.item_reviews = item_reviews
        self.ratings, self.vectors, self.config, self.contents = ratings, vectors, config, contents
        self.length = np.array([min(len(text.split()), config.review_words) for text in ratings.text], dtype=np.int64)
        self._newest_first = newest_first(ratings)

    @property
    def names(self) -> tuple[str, ...]:
        """Modalities of a pair."""
        return (USER, ITEM, *self.contents)

    def biases(self, source: Rows) -> Biases:
        """Fitted to some reviews."""
        ratings, shrinkage = self.ratings, (self.config.user_shrinkage, self.config.item_shrinkage)
        columns = ratings.user[source], ratings.item[source], ratings.value[source]
        return fit_biases(*columns, ratings.n_users, ratings.n_items, shrinkage)

    def tastes(self, source: Rows, biases: Biases) -> Tastes:
        """Fitted to what the biases leave of some reviews' ratings."""
        ratings, config = self.ratings, self.config
        user, item = ratings.user[source], ratings.item[source]
        left = ratings.value[source] - biases.mean - biases.user[user] - biases.item[item]
        size = config.taste_size if config.use_biases else 0
        return fit_tastes(user, item, left, ratings.n_users, ratings.n_items, size=size, penalty=config.taste_penalty)

    def reviewed(self, side: str, source: Rows, biases: Biases, tastes: Tastes) -> Reviewed:
        """Some reviews by user or item, in the order of their documents."""
        ratings = self.ratings
        key, other, bias, taste = (
            (ratings.user, ratings.item, biases.item, tastes.item)
            if side == USER
            else (ratings.item, ratings.user, biases.user, tastes.user)
        )
        rows = self._newest(source)
        if side == ITEM and self.item_reviews is not None:
            rows = newest_of(key, rows, self.item_reviews)
        rows = rows[np.argsort(key[rows], kind="stable")]
        told = within(key[rows], self.length[rows], self.config.document_words) & (self.length[rows] > 0)
        met = other[rows]
        return Reviewed(key[rows], ratings.value[rows], bias[met], taste[met], self.vectors[rows], told)

    def _newest(self, source: Rows) -> Rows:
        chosen = np.zeros(len(self.ratings), np.bool_)
        chosen[source] = True
        return self._newest_first[chosen[self._newest_first]]

    def sides(self, source: Rows, prior: Prior) -> dict[str, Sides]:
        """All users and all items from some reviews."""
        rated = source
        if self.item_reviews is not None:
            rated = newest_of(self.ratings.item, self._newest(source), self.item_reviews)
        biases = self.biases(rated)
        return self.sides_given(source, prior, biases, self.tastes(rated, biases))

    def sides_given(self, source: Rows, prior: Prior, biases: Biases, fitted: Tastes) -> dict[str, Sides]:
        """All users and all items from some reviews, whose other sides have these biases and tastes."""
        ratings, found = self.ratings, {}
        for side, n, shrinkage in (
            (USER, ratings.n_users, self.config.user_shrinkage),
            (ITEM, ratings.n_items, self.config.item_shrinkage),
        ):
            reviewed = self.reviewed(side, source, biases, fitted)
            raw, known = profiles(reviewed, n, prior, shrinkage)
            taste = tastes(reviewed, raw, prior, self.config.taste_penalty)
            amount = np.bincount(reviewed.group, minlength=n).astype(np.float64)
            found[side] = Sides(raw, taste, known, amount)
        return found

    def pairs(self, rows: Rows, sides: Mapping[str, Sides], scales: Mapping[str, Scale]) -> Pairs:
        """The pairs of some ratings as `sides` tell of them."""
        ratings = self.ratings
        embeddings, present, amount = {}, [], []
        key = {USER: ratings.user[rows], ITEM: ratings.item[rows]}
        for side, one in sides.items():
            embeddings[side] = scales[side](one.raw[key[side]])
            present.append(one.known[key[side]])
            amount.append(one.amount[key[side]])
        affinity = (sides[USER].taste[key[USER]] * sides[ITEM].taste[key[ITEM]]).sum(axis=1)
        for name, (vectors, there) in self.contents.items():
            embeddings[name] = vectors[ratings.item[rows]]
            present.append(there[ratings.item[rows]])
        return Pairs(embeddings, np.stack(present, axis=1), affinity, ratings.value[rows], np.stack(amount, axis=1))

    def held_out(self, train: Rows, prior: Prior, rng: np.random.Generator) -> tuple[Pairs, dict[str, Scale]]:
        """The training part, each fold of it under the profiles of the others, several times over; and their scales."""
        config = self.config
        made = []
        for _ in range(config.repeats):
            for fold in np.array_split(rng.permutation(train), config.folds):
                made.append((fold, self.sides(np.setdiff1d(train, fold), prior)))
        key = {USER: self.ratings.user, ITEM: self.ratings.item}
        scales = {
            side: Scale.fit(
                np.concatenate([found[side].raw[key[side][fold]] for fold, found in made]),
                config.text_scale,
                use_biases=config.use_biases,
            )
            for side in (USER, ITEM)
        }
        return concatenated([self.pairs(fold, found, scales) for fold, found in made]), scales


def concatenated(parts: list[Pairs]) -> Pairs:
    """Several lots of pairs as one."""
    embeddings = {name: np.concatenate([one.embeddings[name] for one in parts]) for name in parts[0].embeddings}
    return Pairs(
        embeddings,
        np.concatenate([one.present for one in parts]),
        np.concatenate([one.affinity for one in parts]),
        np.concatenate([one.value for one in parts]),
        np.concatenate([one.amount for one in parts]),
    )


# --- the model -------------------------------------------------------------------------------------------------------


class LRMMTask:
    """LRMM for the trainer."""

    def __init__(self, config: LRMMConfig, trainer: TrainerConfig, pairs: Pairs, valid: Pairs, offset: float) -> None:
        self._trainer, self._valid = trainer, valid
        self._embeddings = {name: torch.from_numpy(one) for name, one in pairs.embeddings.items()}
        self._present = torch.from_numpy(pairs.present)
        self._affinity = torch.from_numpy(pairs.affinity).float()
        self._value = torch.from_numpy(pairs.value).float()
        self._generator = torch.Generator().manual_seed(trainer.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(trainer.seed)
            sizes = {name: one.shape[1] for name, one in self._embeddings.items()}
            self.module = LRMM(config, sizes, offset)
        weights = [one for name, one in self.module.named_parameters() if name.endswith("weight")]
        others = [one for name, one in self.module.named_parameters() if not name.endswith("weight")]
        self._optimizer = torch.optim.AdamW(
            [{"params": weights, "weight_decay": config.decay}, {"params": others, "weight_decay": 0.0}],
            trainer.learning_rate,
        )

    def train_epoch(self, epoch: int, progress: Callable[[int, int], None]) -> dict[str, float]:
        """One pass over the training pairs."""
        self.module.train()
        order = torch.randperm(len(self._value), generator=self._generator)
        batches = torch.split(order, self._trainer.batch_size)
        total = 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self._trainer.seed, epoch)) % 2**31)
            for done, rows in enumerate(batches, start=1):
                set_rate(self._optimizer, self._trainer.rate(epoch - 1 + (done - 1) / len(batches)))
                present = self._present[rows]
                embeddings = {name: one[rows] for name, one in self._embeddings.items()}
                dropped = self.module.drop(present, self._generator)
                loss = self.module.loss(embeddings, present, self._affinity[rows], self._value[rows], dropped)
                self._optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self._optimizer.step()
                total += float(loss.detach())
                progress(done, len(batches))
        self.module.eval()
        return {"loss": total / len(batches)}

    def validate(self) -> dict[str, float]:
        """Errors on the validation part; `-rmse[+F]` is what decides."""
        found = {}
        for regime, withheld in REGIMES.items():
            if regime == "+F" or set(withheld) <= set(self.module.names):
                pairs = self._valid.without(withheld, self.module.names)
                found[f"rmse[{regime}]"] = float(np.sqrt(np.mean((predicted(self.module, pairs) - pairs.value) ** 2)))
        return {METRIC: -found["rmse[+F]"], **found}

    def state(self) -> dict[str, Any]:
        """Optimiser and random state."""
        return {"optimizer": self._optimizer.state_dict(), "generator": self._generator.get_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])


@torch.inference_mode()
def predicted(module: LRMM, pairs: Pairs) -> Double:
    """Ratings `[b]` of pairs."""
    embeddings = {name: torch.from_numpy(one) for name, one in pairs.embeddings.items()}
    affinity = torch.from_numpy(pairs.affinity).float()
    rated: Double = module.predict(embeddings, torch.from_numpy(pairs.present), affinity).double().numpy()
    return rated


@dataclass(frozen=True)
class RatingSource:
    """What LRMM learns from.

    Attributes:
        sentences: embeddings `[n, d]` of the reviews' excerpts and who made them; None where there are no texts.
        content: the items' own features with holes, by the data's names of the modalities.
        item_reviews: how many reviews tell of an item at most, in training and in test; None for all.
    """

    ratings: Ratings
    parts: RatingParts
    sentences: tuple[Array, EncoderRef] | None
    content: ModalBatch
    users: Vocabulary
    items: Vocabulary
    item_reviews: int | None = None


@dataclass(frozen=True)
class TrainedRater:
    """A finished training: what is served, how it went, and the test part under profiles of the training part."""

    rater: Rater
    result: TrainingResult
    test: Pairs
    valid: Pairs


def train_lrmm(
    source: RatingSource,
    config: LRMMConfig,
    trainer: TrainerConfig,
    *,
    terminal: Terminal,
    fingerprint: str = "",
    checkpoint: Path | None = None,
) -> TrainedRater:
    """Texts, profiles, model, intervals; validation decides when to stop and how wide intervals are."""
    ratings, parts = source.ratings, source.parts
    encoder, vectors = _encoded(source, config, trainer.seed, terminal)
    projections = {
        name: Projection.fit(feature[source.content.observed[:, column]].numpy(), config.content_size)
        for column, (name, feature) in enumerate(source.content.features.items())
    }
    contents = {
        pair_name(name): (
            projections[name](feature.numpy()) * np.float32(config.text_scale),
            source.content.observed[:, column].numpy(),
        )
        for column, (name, feature) in enumerate(source.content.features.items())
    }
    evidence = Evidence(ratings, vectors, config, contents, source.item_reviews)
    prior = Prior.of(ratings.value[parts.train])
    terminal.stage("profiles", 0, 1)
    pairs, scales = evidence.held_out(parts.train, prior, np.random.default_rng(trainer.seed))
    known = evidence.sides(parts.train, prior)
    valid, test = (evidence.pairs(rows, known, scales) for rows in (parts.valid, parts.test))
    terminal.stage("profiles", 1, 1)
    task = LRMMTask(config, trainer, pairs, valid, prior.mean)
    result = train(task, trainer, fingerprint=fingerprint, checkpoint_path=checkpoint, progress=terminal)
    biases = evidence.biases(parts.train)
    rater = Rater(
        task.module,
        users=source.users,
        items=source.items,
        biases=biases,
        tastes=evidence.tastes(parts.train, biases),
        prior=prior,
        scales=scales,
        encoder=encoder,
        sentence=None if source.sentences is None else source.sentences[1],
        contents=projections,
        intervals=calibrated(task.module, valid),
    )
    return TrainedRater(rater, result, test, valid)


def _encoded(
    source: RatingSource, config: LRMMConfig, seed: int, terminal: Terminal
) -> tuple[ReviewEncoder | None, Array]:
    if source.sentences is None:
        return None, np.zeros((len(source.ratings), 1), np.float32)
    sentences, _ = source.sentences
    encoder = fit_reviews(source.ratings, source.parts.train, sentences, config, seed, terminal)
    terminal.stage("reviews, vectors", 0, 1)
    vectors = encoder.encode(source.ratings.text, sentences)
    terminal.stage("reviews, vectors", 1, 1)
    return encoder, vectors


def calibrated(module: LRMM, valid: Pairs) -> Intervals:
    """Intervals from the validation part, with either side, both and none of them known."""
    names = module.names
    pattern, amount, residual = [], [], []
    for withheld in ((), (USER,), (ITEM,), (USER, ITEM)):
        pairs = valid.without(withheld, names)
        sides = pairs.present[:, [names.index(USER), names.index(ITEM)]].astype(np.int64)
        pattern.append(sides @ np.array([1, 2]))
        amount.append(pairs.reviews(names))
        residual.append(np.abs(predicted(module, pairs) - pairs.value))
    return Intervals.fit(np.concatenate(pattern), np.concatenate(amount), np.concatenate(residual))


def measured(rater: Rater, test: Pairs) -> dict[str, float]:
    """RMSE, MAE, coverage and width of the intervals on the test part, by regime; once, when all is chosen."""
    found = dict[str, float]()
    for regime, withheld in REGIMES.items():
        if not set(withheld) <= set(rater.names):
            continue
        pairs = test.without(withheld, rater.names)
        rated = rater.rate(pairs.embeddings, pairs.present, pairs.affinity, pairs.reviews(rater.names))
        difference = rated.rating - pairs.value
        covered = (rated.low <= pairs.value) & (pairs.value <= rated.high)
        found |= {
            f"rmse[{regime}]": float(np.sqrt(np.mean(difference**2))),
            f"mae[{regime}]": float(np.mean(np.abs(difference))),
            f"coverage[{regime}]": float(covered.mean()),
            f"width[{regime}]": float((rated.high - rated.low).mean()),
        }
    return found
