"""Recommendations for users and sessions, with named fallbacks."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import orjson

from models.arrays import Array, Mask
from service.domain import InvalidInputError, NotServedError, Recommendations, UserNotFoundError
from service.pipeline import explain as explaining
from service.pipeline import follow, history, rank, views
from service.pipeline.active import Active
from service.pipeline.cached import packed, unpacked
from service.pipeline.catalogue import Catalogue
from service.pipeline.confidence import Confidence
from service.pipeline.engine import Engine
from service.pipeline.runtime import Followed
from service.ports import Keys

LIST_S = 60.0  # longest time that a list stays in the cache
DGMREC, IRIS, POPULAR, LATEST = "dgmrec", "iris", "popular", "latest"


@dataclass(frozen=True, slots=True)
class Among:
    """Which items a list may hold: those in all of the categories, without what was seen already, and also those of
    which a modality is generated, unless it says otherwise."""

    categories: Sequence[str] = ()
    exclude_seen: bool = True
    include_generated: bool = True

    def eligible(self, catalogue: Catalogue, seen: Keys) -> Mask:
        """Which keys these are."""
        excluded = seen if self.exclude_seen else None
        return catalogue.eligible(self.categories, excluded, include_generated=self.include_generated)


@dataclass(frozen=True, slots=True)
class RankingRequest:
    """Whom a list is for, and which: the items `[k]` of the history, newest first, how much each counts (None: all
    alike), and the items that the user has turned down, which come after all others."""

    user: str | None
    model: str
    n: int
    diversity: float
    keys: Keys
    weights: Array | None = None
    disliked: Keys = field(default_factory=lambda: np.empty(0, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class RankedList:
    """The model that was used, what it stood in for another as, and keys and scores, best first."""

    model: str
    fallback: str | None
    keys: Keys
    scores: rank.Scores


async def recommend_user(
    engine: Engine,
    user: str,
    *,
    n: int,
    model: str | None,
    among: Among,
    diversity: float,
    strict: bool,
    explain: bool = False,
    hidden: bool = True,
) -> Recommendations:
    """The top `n` items for a user.

    An unknown user gets the popular ones, and the answer says so. `hidden` items of the history, which are not
    available, may be named as reasons or not.

    Raises:
        UserNotFoundError: `strict`, and nothing is known of the user. NotServedError: the bundle lacks the model, or
            one that explains.
    """
    _require(engine.active, model, explain=explain)
    items = await engine.memory.histories.of(user)
    if strict and not items.seen:
        raise UserNotFoundError(f"Nothing is known of the user {user!r}.")
    wanted = model or DGMREC
    key, catalogue = None, engine.memory.catalogue
    if wanted in (DGMREC, IRIS) and items.liked:
        kind = (among.exclude_seen, among.include_generated)
        choice = (wanted, n, sorted(among.categories), *kind, diversity)
        key = cache_key(engine.active, catalogue.confidence, engine.runtime.followed, user, choice)
    cached = unpacked(await engine.cache.get(key), catalogue, n) if key else None
    with engine.runtime.step("rank"):
        liked, disliked = catalogue.keys(items.profile), catalogue.keys(items.disliked)
        request = RankingRequest(user, wanted, n, diversity, liked, disliked=disliked)
        if cached is not None:
            ranked = RankedList(wanted, None, *cached)
        else:
            ranked = _ranked(engine, request, among.eligible(catalogue, catalogue.keys(items.seen)))
    if key and cached is None and ranked.fallback is None and _is_final(engine):
        engine.runtime.background(engine.cache.set(key, packed(ranked.keys, ranked.scores), ttl_s=LIST_S))
    return _answer(engine, request, ranked, explain=explain, hidden=hidden)


async def recommend_session(
    engine: Engine,
    items: Sequence[tuple[str, float]],
    *,
    n: int,
    model: str | None,
    among: Among,
    diversity: float,
    explain: bool = False,
    hidden: bool = True,
) -> Recommendations:
    """The top `n` items for a session of weighted items, without a user; `hidden` as for a user.

    Raises:
        InvalidInputError: an item does not exist. NotServedError: the bundle lacks the model, or one that explains.
    """
    _require(engine.active, model, explain=explain)
    catalogue = engine.memory.catalogue
    absent = [item for item, _ in items if item not in catalogue]
    if absent:
        await follow.refresh(engine, absent)  # another worker may have them
    for place, (item, _) in enumerate(items):
        if item not in catalogue:
            raise InvalidInputError(f"There is no item {item!r}.", f"/items/{place}/id")
    with engine.runtime.step("rank"):
        keys = catalogue.keys(item for item, _ in items)
        weights = np.array([weight for _, weight in items], dtype=np.float32)
        allowed = among.eligible(catalogue, keys)
        weights = weights / max(float(weights.max()), 1e-6)
        request = RankingRequest(None, model or DGMREC, n, diversity, keys, weights)
        ranked = _ranked(engine, request, allowed)
    return _answer(engine, request, ranked, explain=explain, hidden=hidden)


def _require(active: Active, model: str | None, *, explain: bool) -> None:
    if model == IRIS and active.iris is None:
        raise NotServedError(f"The active bundle {active.version} holds no model {IRIS!r}.")
    if explain:
        active.explainer()


def _ranked(engine: Engine, request: RankingRequest, allowed: Mask) -> RankedList:
    model = POPULAR if request.model in (DGMREC, IRIS) and not len(request.keys) else request.model
    fallback = model if model != request.model else None
    if fallback:
        engine.runtime.fallbacks[fallback] += 1
    welcome = allowed.copy()
    welcome[request.disliked] = False
    keys, scores = _best(engine, request, welcome, model, request.n)
    left = allowed & ~welcome
    if len(keys) < request.n and left.any():
        last = _best(engine, request, left, model, request.n - len(keys))
        keys, scores = rank.appended(keys, scores, *last)
    return RankedList(model, fallback, keys, scores)


def _best(engine: Engine, request: RankingRequest, allowed: Mask, model: str, n: int) -> tuple[Keys, rank.Scores]:
    active, catalogue = engine.active, engine.memory.catalogue
    if model == LATEST:
        return rank.latest(catalogue, n, allowed)
    if model == POPULAR:
        return rank.popular(catalogue, n, allowed)
    vector = history.user_vector(active.dgmrec, catalogue, request.user, request.keys, request.weights).vector
    if model == IRIS and active.iris is not None:
        past = history.past_of(catalogue, request.keys, request.weights)
        return rank.reranked(catalogue, active.iris, vector, past, n, allowed, request.diversity)
    return rank.best(catalogue, vector, n, allowed, request.diversity)


def _answer(
    engine: Engine, request: RankingRequest, ranked: RankedList, *, explain: bool, hidden: bool
) -> Recommendations:
    catalogue, reasons = engine.memory.catalogue, {}
    if explain:
        past = history.past_of(catalogue, request.keys, request.weights)
        iris = engine.active.explainer()
        with engine.runtime.step("explain"):
            reasons = explaining.reasons(iris, catalogue, past, ranked.keys, hidden=hidden)
    hits = views.hits(catalogue, ranked.keys, ranked.scores, reasons=reasons)
    return Recommendations(
        request.user, uuid.uuid4().hex, ranked.model, engine.model_version, ranked.fallback, tuple(hits)
    )


# --- the cache of lists ----------------------------------------------------------------------------------------------


def _is_final(engine: Engine) -> bool:
    """Whether what is in memory stays as it is until the change log goes on: where vectors are still to be computed, a
    list soon is another one at the same position of the log."""
    return not engine.runtime.computing and not len(engine.memory.catalogue.stale)


def cache_key(
    active: Active, confidence: Confidence, followed: Followed, user: str, choice: Sequence[object]
) -> str | None:
    """The key of a user's list in the cache: made of everything that the list depends on, so that a change of any makes
    another key. None while this worker has made writes that the position in the log does not cover."""
    if followed.applied or not followed.stamp:
        return None
    parts = orjson.dumps([active.identity, confidence.identity, followed.stamp, user, choice])
    return f"list:{hashlib.sha256(parts).hexdigest()}"
