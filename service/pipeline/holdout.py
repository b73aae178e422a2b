"""The held-out check of a bundle that is to be activated: lists of both bundles for the same users, whose newest
interests neither was trained on; or, where there are too few of these, the test figures that training measured."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from models.arrays import Double
from models.bundle import Manifest
from models.feedback import Interaction
from service.pipeline import rank
from service.pipeline.engine import Engine
from service.pipeline.history import PROFILE, user_vector

DGMREC = "dgmrec"
USERS, LEAST = 500, 50  # users at most, and at least; the newest
PLACES = 20
WIDTH = 1.96  # standard errors to either side of a 95 % interval
METRIC = f"ndcg@{PLACES}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """NDCG@20 of the active bundle and of another, each the mean over `users`, and the half-width of the 95 % interval
    of their difference. `by` is where it is from: `feedback` that neither was trained on, or the `manifest`."""

    by: str
    users: int
    active: float
    candidate: float
    interval: float

    @property
    def is_worse(self) -> bool:
        """Whether the other bundle is worse by more than the interval."""
        return self.candidate - self.active < -self.interval

    def report(self) -> dict[str, Any]:
        """As answers have it."""
        return {
            "by": self.by,
            "metric": METRIC,
            "users": self.users,
            "active": round(self.active, 4),
            "candidate": round(self.candidate, 4),
            "interval": round(self.interval, 4),
        }


async def compare(active: Engine, candidate: Engine) -> Comparison | None:
    """The active bundle and another over the same catalogue; None where nothing tells them apart."""
    manifests = active.active.manifest, candidate.active.manifest
    cut = _cut(manifests)
    if cut is not None:
        users = await active.store.newest_users(cut, limit=USERS)
        of_users = await active.store.user_items(users, min_rating=active.active.min_rating)
        cases = [case for user, items in of_users.items() if (case := _case(user, items, cut)) is not None]
        if len(cases) >= LEAST:
            return await _measured(active, candidate, cases)
    return _of_manifests(*manifests)


@dataclass(frozen=True, slots=True)
class _Case:
    """A user's items before the cut, and those after it that are to be found; all but `wanted` of the user's items are
    kept out of lists."""

    user: str
    past: list[str]
    wanted: set[str]
    seen: list[str]


def _cut(manifests: Sequence[Manifest]) -> datetime | None:
    """The moment up to which one of the bundles was trained; None where that is not known of one."""
    until = [manifest.data.until for manifest in manifests]
    known = [moment.astimezone(UTC) for moment in until if moment is not None]
    return max(known) if len(known) == len(until) else None


def _case(user: str, items: Sequence[Interaction], cut: datetime) -> _Case | None:
    first = {one.item: one.first for one in items if one.interested}
    wanted = {item for item, moment in first.items() if moment > cut}
    past = [one.item for one in items if one.item in first and one.item not in wanted][:PROFILE]
    seen = [one.item for one in items if one.item not in wanted]
    return _Case(user, past, wanted, seen) if wanted and past else None


async def _measured(active: Engine, candidate: Engine, cases: Sequence[_Case]) -> Comparison:
    values: list[list[float]] = [[], []]
    for case in cases:
        for engine, its in zip((active, candidate), values, strict=True):
            its.append(await engine.runtime.compute(_ndcg, engine, case))
        await asyncio.sleep(0)
    ours, theirs = (np.array(its, dtype=np.float64) for its in values)
    return _of("feedback", ours, theirs)


def _of(by: str, ours: Double, theirs: Double) -> Comparison:
    difference = theirs - ours
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return Comparison(by, len(ours), float(ours.mean()), float(theirs.mean()), WIDTH * error)


def _ndcg(engine: Engine, case: _Case) -> float:
    """NDCG@20 of a user's list, made of the items before the cut."""
    catalogue = engine.memory.catalogue
    keys = catalogue.keys(case.past)
    if not len(keys):
        return 0.0
    vector = user_vector(engine.active.dgmrec, catalogue, case.user, keys).vector
    allowed = catalogue.eligible((), catalogue.keys(case.seen))
    found, _ = rank.best(catalogue, vector, PLACES, allowed)
    gains = [item in case.wanted for item in catalogue.ids(found.tolist())]
    discounts = 1 / np.log2(np.arange(2, PLACES + 2))
    ideal = float(discounts[: len(case.wanted)].sum())
    return float(discounts[: len(gains)][np.array(gains, dtype=np.bool_)].sum()) / ideal


def _of_manifests(active: Manifest, candidate: Manifest) -> Comparison | None:
    """By the test figures of both, where these are of the same data. What values between 0 and 1 can vary bounds the
    interval."""
    figures = [_figure(manifest.models[DGMREC].metrics) for manifest in (active, candidate)]
    if active.data.fingerprint != candidate.data.fingerprint or None in figures:
        return None
    ours, theirs = (figure for figure in figures if figure is not None)
    users = max(min(active.data.users, candidate.data.users), 1)
    variance = (ours * (1 - ours) + theirs * (1 - theirs)) / users
    return Comparison("manifest", users, ours, theirs, WIDTH * math.sqrt(max(variance, 0.0)))


def _figure(metrics: Mapping[str, float]) -> float | None:
    return metrics.get(METRIC)
