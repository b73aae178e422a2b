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
from service.pipeline.engine import Engine
from service.ports import Keys

KEPT_S = 60.0  # longest time that a list stays in the cache
DGMREC, IRIS, POPULAR, LATEST = "dgmrec", "iris", "popular", "latest"


@dataclass(frozen=True, slots=True)
class Asker:
    """Whom a list is for: the items `[k]` of the history, newest first, how much each counts (None: all alike), and the
    items that the user has turned down, which come after all others."""

    user: str | None
    keys: Keys
    weights: Array | None = None
    disliked: Keys = field(default_factory=lambda: np.empty(0, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Listed:
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
    categories: Sequence[str],
    exclude_seen: bool,
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
    _require(engine, model, explain=explain)
    known = await history.history(engine, user)
    if strict and not known.seen:
        raise UserNotFoundError(f"Nothing is known of the user {user!r}.")
    wanted = model or DGMREC
    place = None
    if wanted in (DGMREC, IRIS) and known.liked:
        place = _place(engine, user, wanted, n, sorted(categories), exclude_seen, diversity)
    kept = await engine.cache.get(place) if place else None
    catalogue = engine.catalogue
    with engine.step("rank"):
        asker = Asker(user, catalogue.keys(known.liked), disliked=catalogue.keys(known.disliked))
        if kept is not None:
            listed = Listed(wanted, None, *_unpacked(kept))
        else:
            seen = catalogue.keys(known.seen) if exclude_seen else None
            listed = _ranked(engine, asker, catalogue.eligible(categories, seen), wanted, n, diversity)
    if place and kept is None and listed.fallback is None:
        engine.background(engine.cache.set(place, _packed(listed), ttl_s=KEPT_S))
    return _answer(engine, asker, listed, explain=explain, hidden=hidden)


async def recommend_session(
    engine: Engine,
    items: Sequence[tuple[str, float]],
    *,
    n: int,
    model: str | None,
    categories: Sequence[str],
    exclude_seen: bool,
    diversity: float,
    explain: bool = False,
    hidden: bool = True,
) -> Recommendations:
    """The top `n` items for a session of weighted items, without a user; `hidden` as for a user.

    Raises:
        InvalidInputError: an item does not exist. NotServedError: the bundle lacks the model, or one that explains.
    """
    _require(engine, model, explain=explain)
    catalogue = engine.catalogue
    unheard = [item for item, _ in items if item not in catalogue]
    if unheard:
        await follow.refresh(engine, unheard)  # another worker may have them
    for place, (item, _) in enumerate(items):
        if item not in catalogue:
            raise InvalidInputError(f"There is no item {item!r}.", f"/items/{place}/id")
    with engine.step("rank"):
        keys = catalogue.keys(item for item, _ in items)
        weights = np.array([weight for _, weight in items], dtype=np.float32)
        allowed = catalogue.eligible(categories, keys if exclude_seen else None)
        asker = Asker(None, keys, weights / max(float(weights.max()), 1e-6))
        listed = _ranked(engine, asker, allowed, model or DGMREC, n, diversity)
    return _answer(engine, asker, listed, explain=explain, hidden=hidden)


def _require(engine: Engine, model: str | None, *, explain: bool) -> None:
    if model == IRIS and engine.reranker is None:
        raise NotServedError(f"The active bundle {engine.model_version} holds no model {IRIS!r}.")
    if explain:
        explaining.explainer(engine)


def _ranked(engine: Engine, asker: Asker, allowed: Mask, wanted: str, n: int, diversity: float) -> Listed:
    used = POPULAR if wanted in (DGMREC, IRIS) and not len(asker.keys) else wanted
    fallback = used if used != wanted else None
    if fallback:
        engine.fallbacks[fallback] += 1
    welcome = allowed.copy()
    welcome[asker.disliked] = False
    keys, scores = _candidates(engine, asker, welcome, used, n, diversity)
    left = allowed & ~welcome
    if len(keys) < n and left.any():
        last = _candidates(engine, asker, left, used, n - len(keys), diversity)
        keys, scores = rank.appended(keys, scores, *last)
    return Listed(used, fallback, keys, scores)


def _candidates(
    engine: Engine, asker: Asker, allowed: Mask, used: str, n: int, diversity: float
) -> tuple[Keys, rank.Scores]:
    if used == LATEST:
        return rank.latest(engine, n, allowed)
    if used == POPULAR:
        return rank.popular(engine, n, allowed)
    vector = history.profile(engine, asker.user, asker.keys, asker.weights).vector
    if used == IRIS and engine.reranker is not None:
        past = history.past(engine, asker.keys, asker.weights)
        return rank.reranked(engine, engine.reranker, vector, past, n, allowed, diversity)
    return rank.best(engine, vector, n, allowed, diversity)


def _answer(engine: Engine, asker: Asker, listed: Listed, *, explain: bool, hidden: bool) -> Recommendations:
    reasons = {}
    if explain:
        past = history.past(engine, asker.keys, asker.weights)
        reasons = explaining.reasons(engine, past, listed.keys, hidden=hidden)
    hits = views.hits(engine, listed.keys, listed.scores, reasons=reasons)
    return Recommendations(
        asker.user, uuid.uuid4().hex, listed.model, engine.model_version, listed.fallback, tuple(hits)
    )


# --- the cache of lists ----------------------------------------------------------------------------------------------


def _place(engine: Engine, user: str, *choice: object) -> str | None:
    """Where a user's list is cached: named after everything that it depends on, so that a change of any makes another
    place. None while this worker knows of writes that the log's position does not tell."""
    if engine.followed.applied or not engine.followed.stamp:
        return None
    named = orjson.dumps([engine.identity, engine.followed.stamp, user, choice])
    return f"list:{hashlib.sha256(named).hexdigest()}"


def _packed(listed: Listed) -> bytes:
    return orjson.dumps([listed.keys.tolist(), listed.scores.tolist()])


def _unpacked(kept: bytes) -> tuple[Keys, rank.Scores]:
    keys, scores = orjson.loads(kept)
    return np.array(keys, dtype=np.int64), np.array(scores, dtype=np.float32)
