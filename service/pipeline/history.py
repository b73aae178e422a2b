"""Users' histories: what they have seen, like and have turned down, and the vector that follows from it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from models.arrays import Array, Mask
from models.feedback import Interaction
from models.iris.serving import ItemSides
from service.pipeline.engine import HISTORIES, Engine
from service.ports import Keys

PROFILE = 2000  # the newest items of a user that the profile is made of
SPEAKING = 500  # the newest items of a user that IRIS reads


@dataclass(frozen=True, slots=True)
class History:
    """A user's items, newest first, each once: all of them; the newest PROFILE that the user is interested in; and
    those that the user has turned down."""

    seen: tuple[str, ...]
    liked: tuple[str, ...]
    disliked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """A user in the model's space: `vector` e_u `[d]`, its collaborative part `id` `[d]`, and the number of items."""

    vector: Array
    id: Array
    degree: int


@dataclass(frozen=True, slots=True)
class Past:
    """Items of a history as IRIS reads them: their keys `[h]`, each once, their sides, and how much each counts `[h]`
    (None: all alike)."""

    keys: Keys
    sides: ItemSides
    weights: Array | None = None

    def same(self, targets: Keys) -> Mask:
        """Where an item of the history is the target itself, `[t, h]`."""
        return np.asarray(targets[:, None] == self.keys)


async def history(engine: Engine, user: str) -> History:
    """A user's history, from the cache or the store; empty for an unknown user."""
    cached = engine.histories.get(user)
    if cached is not None:
        engine.histories.move_to_end(user)
        return cached
    pending = engine.loading.get(user)
    if pending is None:
        pending = engine.loading[user] = asyncio.get_running_loop().create_task(_load(engine, user))
    return await asyncio.shield(pending)


async def _load(engine: Engine, user: str) -> History:
    itself = asyncio.current_task()
    try:
        found = of_items(await engine.store.user_items(user, min_rating=engine.min_rating))
        # A write that came in between has dropped this task, and what was read is not kept.
        if engine.loading.get(user) is itself:
            engine.histories[user] = found
            while len(engine.histories) > HISTORIES:
                engine.histories.popitem(last=False)
        return found
    finally:
        if engine.loading.get(user) is itself:
            del engine.loading[user]


def forget(engine: Engine, users: Iterable[str]) -> None:
    """Drop cached histories, and what they say of ratings, after a write that changes them."""
    users = list(users)
    if engine.documents is not None:
        engine.documents.forget("user", users)
    for user in users:
        engine.histories.pop(user, None)
        engine.loading.pop(user, None)


def of_items(items: Sequence[Interaction]) -> History:
    """The history of interactions, newest first."""
    seen = tuple(one.item for one in items)
    liked = tuple(one.item for one in items if one.interested)
    return History(seen, liked[:PROFILE], tuple(one.item for one in items if not one.interested))


def profile(engine: Engine, user: str | None, keys: Keys, weights: Array | None = None) -> Profile:
    """A user's vector from the items `[k]` of the history: folded-in collaborative part + mean of the modal parts."""
    catalogue = engine.catalogue
    share = np.ones(len(keys), dtype=np.float32) if weights is None else weights
    user_id = engine.model.user_id(user, catalogue.rows.get("message", keys), share)
    modal = share @ catalogue.rows.get("modal", keys) / max(float(share.sum()), 1e-6)
    modal = np.asarray(modal, dtype=np.float32)
    return Profile(engine.model.combine(user_id, modal), user_id, len(keys))


def past(engine: Engine, keys: Keys, weights: Array | None = None) -> Past:
    """The items `[k]` of a history, newest first, as IRIS reads them; one that is given twice counts twice."""
    if weights is None:
        keys = keys[:SPEAKING]
        return Past(keys, engine.catalogue.sides(keys))
    once, place = np.unique(keys, return_inverse=True)
    counts = np.bincount(place, weights).astype(np.float32)
    return Past(once, engine.catalogue.sides(once), counts)
