"""Recommendations for users and sessions, with named fallbacks."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import numpy as np

from service.domain import InvalidInputError, NotServedError, Recommendations, UserNotFoundError
from service.pipeline import follow, history, rank, views
from service.pipeline.catalogue import Array, Keys, Mask
from service.pipeline.engine import Engine

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
    with engine.step("rank"):
        catalogue = engine.catalogue
        seen = catalogue.keys(known.seen) if exclude_seen else None
        allowed = catalogue.eligible(category, seen)
        liked = catalogue.keys(known.liked)
        vector = history.profile(engine, user, liked).vector if len(liked) else None
        return _ranked(engine, user, vector, allowed, n=n, model=model, diversity=diversity)


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
        return _ranked(engine, None, vector, allowed, n=n, model=model, diversity=diversity)


def _require_explainer(engine: Engine, wanted: bool) -> None:
    if wanted:
        raise NotServedError(f"The active bundle {engine.model_version} holds no model that explains its lists.")


def _ranked(
    engine: Engine,
    user: str | None,
    vector: Array | None,
    allowed: Mask,
    *,
    n: int,
    model: str | None,
    diversity: float,
) -> Recommendations:
    wanted = model or DGMREC
    if wanted in UNTRAINED:
        raise NotServedError(f"The active bundle {engine.model_version} holds no model {wanted!r}.")
    used = POPULAR if wanted == DGMREC and vector is None else wanted
    fallback = used if used != wanted else None
    if fallback:
        engine.fallbacks[fallback] += 1
    keys, scores = _candidates(engine, used, vector, n, allowed, diversity)
    return Recommendations(
        user, uuid.uuid4().hex, used, engine.model_version, fallback, tuple(views.hits(engine, keys, scores))
    )


def _candidates(
    engine: Engine, used: str, vector: Array | None, n: int, allowed: Mask, diversity: float
) -> tuple[Keys, rank.Scores]:
    if used == LATEST:
        return rank.latest(engine, n, allowed)
    if used == POPULAR or vector is None:
        return rank.popular(engine, n, allowed)
    return rank.best(engine, vector, n, allowed, diversity)
