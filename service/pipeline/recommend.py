"""Recommendations for users and sessions, with named fallbacks."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence

import numpy as np
import orjson

from service.domain import InvalidInputError, NotServedError, Recommendations, UserNotFoundError
from service.pipeline import follow, history, rank, views
from service.pipeline.catalogue import Mask
from service.pipeline.engine import Engine
from service.pipeline.rows import Array, Keys

KEPT_S = 60.0  # longest time that a list stays in the cache
DGMREC, POPULAR, LATEST = "dgmrec", "popular", "latest"
UNTRAINED = ("iris",)  # models of the contract that a bundle may hold one day


async def recommend_user(
    engine: Engine,
    user: str,
    *,
    n: int,
    model: str | None,
    category: str | None,
    exclude_seen: bool,
    diversity: float,
    strict: bool,
    explain: bool = False,
) -> Recommendations:
    """The top `n` items for a user.

    An unknown user gets the popular ones, and the answer says so.

    Raises:
        UserNotFoundError: `strict`, and nothing is known of the user. NotServedError: the bundle lacks the model, or
            one that explains.
    """
    _require_explainer(engine, explain)
    known = await history.history(engine, user)
    if strict and not known.seen:
        raise UserNotFoundError(f"Nothing is known of the user {user!r}.")
    place = None
    if model in (None, DGMREC) and known.liked:
        place = _place(engine, user, n, category, exclude_seen, diversity)
    kept = await engine.cache.get(place) if place else None
    with engine.step("rank"):
        if kept is not None:
            return _answer(engine, user, DGMREC, None, *_unpacked(kept))
        catalogue = engine.catalogue
        seen = catalogue.keys(known.seen) if exclude_seen else None
        allowed = catalogue.eligible(category, seen)
        liked = catalogue.keys(known.liked)
        vector = history.profile(engine, user, liked).vector if len(liked) else None
        used, fallback, keys, scores = _ranked(engine, vector, allowed, n=n, model=model, diversity=diversity)
    if place and fallback is None:
        engine.background(engine.cache.set(place, _packed(keys, scores), ttl_s=KEPT_S))
    return _answer(engine, user, used, fallback, keys, scores)


async def recommend_session(
    engine: Engine,
    items: Sequence[tuple[str, float]],
    *,
    n: int,
    model: str | None,
    category: str | None,
    exclude_seen: bool,
    diversity: float,
    explain: bool = False,
) -> Recommendations:
    """The top `n` items for a session of weighted items, without a user.

    Raises:
        InvalidInputError: an item does not exist. NotServedError: the bundle lacks the model, or one that explains.
    """
    _require_explainer(engine, explain)
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
        allowed = catalogue.eligible(category, keys if exclude_seen else None)
        vector = history.profile(engine, None, keys, weights / max(float(weights.max()), 1e-6)).vector
        return _answer(engine, None, *_ranked(engine, vector, allowed, n=n, model=model, diversity=diversity))


def _require_explainer(engine: Engine, wanted: bool) -> None:
    if wanted:
        raise NotServedError(f"The active bundle {engine.model_version} holds no model that explains its lists.")


def _ranked(
    engine: Engine, vector: Array | None, allowed: Mask, *, n: int, model: str | None, diversity: float
) -> tuple[str, str | None, Keys, rank.Scores]:
    """The model that was used, what it stood in for another as, and keys and scores, best first."""
    wanted = model or DGMREC
    if wanted in UNTRAINED:
        raise NotServedError(f"The active bundle {engine.model_version} holds no model {wanted!r}.")
    used = POPULAR if wanted == DGMREC and vector is None else wanted
    fallback = used if used != wanted else None
    if fallback:
        engine.fallbacks[fallback] += 1
    return used, fallback, *_candidates(engine, used, vector, n, allowed, diversity)


def _answer(
    engine: Engine, user: str | None, used: str, fallback: str | None, keys: Keys, scores: rank.Scores
) -> Recommendations:
    hits = views.hits(engine, keys, scores)
    return Recommendations(user, uuid.uuid4().hex, used, engine.model_version, fallback, tuple(hits))


# --- the cache of lists ----------------------------------------------------------------------------------------------


def _place(engine: Engine, user: str, *choice: object) -> str | None:
    """Where a user's list is cached: named after everything that it depends on, so that a change of any makes another
    place. None while this worker knows of writes that the log's position does not tell."""
    if engine.followed.applied or not engine.followed.stamp:
        return None
    named = orjson.dumps([engine.identity, engine.followed.stamp, user, choice])
    return f"list:{hashlib.sha256(named).hexdigest()}"


def _packed(keys: Keys, scores: rank.Scores) -> bytes:
    return orjson.dumps([keys.tolist(), scores.tolist()])


def _unpacked(kept: bytes) -> tuple[Keys, rank.Scores]:
    keys, scores = orjson.loads(kept)
    return np.array(keys, dtype=np.int64), np.array(scores, dtype=np.float32)


def _candidates(
    engine: Engine, used: str, vector: Array | None, n: int, allowed: Mask, diversity: float
) -> tuple[Keys, rank.Scores]:
    if used == LATEST:
        return rank.latest(engine, n, allowed)
    if used == POPULAR or vector is None:
        return rank.popular(engine, n, allowed)
    return rank.best(engine, vector, n, allowed, diversity)
