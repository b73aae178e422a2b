"""Leave-one-out: one interaction of each user for test, another for validation, each ranked among negatives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from models.arrays import Mask, Rows
from training.datasets.base import TEST, TRAIN, VALID, Dataset, LeaveOneOut
from training.metrics import Ranks, Scores, ndcg, rank_first, recall
from training.sampling import NegativeSampler
from training.splits import Pairs, leave_one_out

NEGATIVES = 99
CUTS = (5, 10, 20)
_BLOCK = 512

PairScores = Callable[[Rows, Rows], Scores]
"""Scores `[b, c]` of the items `[b, c]` for the users `[b]`."""


class LeaveOneOutError(ValueError):
    """Data that cannot be split so; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Trials:
    """What is to be ranked for each user.

    Attributes:
        users: rows `[u]`.
        items: rows `[u, 1 + c]`; column 0 is the one held out.
        counted: bool `[u, 1 + c]`; False where the item held out stands among its own negatives once more.
    """

    users: Rows
    items: Rows
    counted: Mask

    @classmethod
    def of(cls, users: Rows, items: Rows) -> Trials:
        """Trials with copies of the item held out left out."""
        counted = items != items[:, :1]
        counted[:, 0] = True
        return cls(users, items, counted)

    @property
    def pairs(self) -> Pairs:
        """The (user, item) pairs held out, `[u, 2]`."""
        return np.stack([self.users, self.items[:, 0]], axis=1)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A leave-one-out split: training pairs `[k, 2]`, and what validation and test rank."""

    train: Pairs
    valid: Trials
    test: Trials

    @property
    def fingerprint(self) -> str:
        """A sha256 of the training pairs and what validation ranks."""
        total = hashlib.sha256(np.ascontiguousarray(self.train).tobytes())
        total.update(np.ascontiguousarray(self.valid.items).tobytes())
        return total.hexdigest()


def random_held_out(dataset: Dataset, seed: int, negatives: int = NEGATIVES) -> HeldOut:
    """A random interaction of each user for test, another for validation, each among items never interacted with.

    Raises:
        LeaveOneOutError: nobody has three items, or somebody has too few left to compare with.
    """
    rng = np.random.default_rng(seed)
    pairs = dataset.pairs()
    split = leave_one_out(pairs, rng)
    if not (split == TEST).any():
        raise LeaveOneOutError(f"the dataset {dataset.name} has no user with three items, one to hold out for each")
    sampler = _sampler(dataset)
    valid, test = (_drawn(pairs[split == part], sampler, negatives, rng) for part in (VALID, TEST))
    return HeldOut(pairs[split == TRAIN], valid, test)


def possible_negatives(dataset: Dataset) -> int:
    """How many negatives every user has, `NEGATIVES` at most, for catalogues that are small.

    Raises:
        LeaveOneOutError: a user has interacted with every item.
    """
    free = len(dataset.items) - int(np.bincount(dataset.pairs()[:, 0]).max(initial=0))
    if free < 1:
        raise LeaveOneOutError(f"the dataset {dataset.name} has a user who has interacted with every item")
    return min(free, NEGATIVES)


def published_held_out(dataset: Dataset, name: str, seed: int, negatives: int = NEGATIVES) -> HeldOut:
    """The dataset's own split of that name. Where it publishes no validation part, one is drawn from the rest.

    Raises:
        LeaveOneOutError: the dataset has no such split.
    """
    if name not in dataset.leave_one_out:
        known = ", ".join(sorted(dataset.leave_one_out)) or "none"
        raise LeaveOneOutError(f"the dataset {dataset.name} has no leave-one-out split {name!r} (it has: {known})")
    published: LeaveOneOut = dataset.leave_one_out[name]
    test = Trials.of(published.users, published.test)
    rest = _without(dataset.pairs(), test.pairs, len(dataset.items))
    if published.valid is not None:
        valid = Trials.of(published.users, published.valid)
    else:
        rng = np.random.default_rng(seed)
        held = rest[leave_one_out(rest, rng) == VALID]
        valid = _drawn(held, _sampler(dataset), negatives, rng)
    return HeldOut(_without(rest, valid.pairs, len(dataset.items)), valid, test)


def measured(scores: PairScores, trials: Trials, cuts: Sequence[int] = CUTS) -> dict[str, float]:
    """`hr@k` and `ndcg@k`: whether the item held out stands among the first k, and how far up. Ties count with the mean
    over their places."""
    ranks = ranked(scores, trials)
    hits = {f"hr@{k}": recall(ranks, k) for k in cuts}
    return hits | {f"ndcg@{k}": ndcg(ranks, k) for k in cuts}


def ranked(scores: PairScores, trials: Trials) -> Ranks:
    """Where each item held out stands among its negatives."""
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(trials.users), _BLOCK)]
    table = np.concatenate([scores(trials.users[part], trials.items[part]) for part in blocks])
    return rank_first(table, trials.counted)


def _sampler(dataset: Dataset) -> NegativeSampler:
    return NegativeSampler(dataset.pairs(), len(dataset.users), len(dataset.items))


def _drawn(pairs: Pairs, sampler: NegativeSampler, negatives: int, rng: np.random.Generator) -> Trials:
    users, held = pairs.T
    try:
        others = sampler.sample_distinct(users, negatives, rng)
    except ValueError as error:
        raise LeaveOneOutError(f"leave-one-out needs {negatives} negatives a user: {error}") from None
    return Trials.of(users, np.concatenate([held[:, None], others], axis=1))


def _without(pairs: Pairs, left_out: Pairs, n_items: int) -> Pairs:
    keys, excluded = (part[:, 0] * n_items + part[:, 1] for part in (pairs, left_out))
    return pairs[~np.isin(keys, excluded)]
