"""Users' histories: what they have seen, like and have turned down, and the vector that follows from it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from cachetools import Cache, LRUCache

from models.arrays import Array, Mask
from models.dgmrec.serving import DGMRecServing
from models.feedback import Interaction
from models.iris.serving import ItemSides
from service.pipeline.catalogue import Catalogue
from service.ports import Keys, Store

HISTORIES = 50_000  # in memory
PROFILE = 2000  # the newest items of a user that the vector is made of
EARLIER = 500  # of a user's items that say something of a later one
EXPLAINING = 500  # the newest items of a user that IRIS reads
AT_ONCE = 200  # users whose histories are read by one query


@dataclass(frozen=True, slots=True)
class History:
    """A user's items, newest first, each once: all of them; those that the user is interested in, with the epoch
    seconds of the first event with each; and those that the user has turned down."""

    seen: tuple[str, ...]
    liked: tuple[str, ...]
    disliked: tuple[str, ...] = ()
    since: tuple[float, ...] = ()

    @property
    def profile(self) -> tuple[str, ...]:
        """The newest items that the user's vector is made of."""
        return self.liked[:PROFILE]

    def earlier(self, item: str) -> list[str] | None:
        """The other items that the user was interested in by the time of the first event with this one, the last
        EARLIER of them; None where the user is not interested in this one."""
        if item not in self.liked:
            return None
        moment = self.since[self.liked.index(item)]
        others = [(since, other) for since, other in zip(self.since, self.liked, strict=True) if since <= moment]
        if len(others) > EARLIER:
            others = sorted(others, reverse=True)[: EARLIER + 1]
        return [other for _, other in others if other != item][:EARLIER]


@dataclass(frozen=True, slots=True)
class UserVector:
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


class Histories:
    """Histories from the store, the most recently used of them cached; `loading` are those that are being read.

    Args:
        min_rating: ratings below it show no interest.
        size: number of users in the cache.
    """

    def __init__(self, store: Store, min_rating: float | None, size: int = HISTORIES) -> None:
        self._store, self._min_rating = store, min_rating
        self._cached: LRUCache[str, History] = LRUCache(size)
        self.loading: dict[str, asyncio.Task[dict[str, History]]] = {}

    async def of(self, user: str) -> History:
        """A user's history; empty for an unknown user."""
        return (await self.of_all([user]))[user]

    async def of_all(self, users: Collection[str]) -> dict[str, History]:
        """Histories of several users; those that are not in memory are read a portion at a time."""
        found = {user: cached for user in users if (cached := self._cached.get(user)) is not None}
        left = [user for user in users if user not in found]
        for start in range(0, len(left), AT_ONCE):
            portion = left[start : start + AT_ONCE]
            if missing := [user for user in portion if user not in self.loading]:
                task = asyncio.get_running_loop().create_task(self._load(missing))
                self.loading |= dict.fromkeys(missing, task)
            tasks = {user: self.loading[user] for user in portion}
            for user, task in tasks.items():
                found[user] = (await asyncio.shield(task))[user]
        return found

    async def _load(self, users: Sequence[str]) -> dict[str, History]:
        task = asyncio.current_task()
        try:
            items = await self._store.user_items(users, min_rating=self._min_rating)
            histories = {}
            for user in users:
                histories[user] = of_items(items.get(user, ()))
                # A write that came in between has dropped this task, and what was read is not cached.
                if self.loading.get(user) is task:
                    self._cached[user] = histories[user]
                if len(users) > 1:
                    await asyncio.sleep(0)  # histories may be long
            return histories
        finally:
            for user in users:
                if self.loading.get(user) is task:
                    del self.loading[user]

    def forget(self, users: Iterable[str]) -> None:
        """Drop histories, after a write that changes them."""
        for user in users:
            self._cached.pop(user, None)
            self.loading.pop(user, None)

    def forget_loading(self) -> None:
        """Drop what is being read, which may be from before a write of anybody."""
        self.loading.clear()

    def cached(self) -> list[tuple[str, History]]:
        """All cached histories by user. Looking at them is no use of them."""
        return [(user, Cache.__getitem__(self._cached, user)) for user in self._cached]


def of_items(items: Sequence[Interaction]) -> History:
    """The history of interactions, newest first."""
    seen = tuple(interaction.item for interaction in items)
    liked = [interaction for interaction in items if interaction.interested]
    disliked = tuple(interaction.item for interaction in items if not interaction.interested)
    since = tuple(interaction.first.timestamp() for interaction in liked)
    return History(seen, tuple(interaction.item for interaction in liked), disliked, since)


def user_vector(
    model: DGMRecServing, catalogue: Catalogue, user: str | None, keys: Keys, weights: Array | None = None
) -> UserVector:
    """A user's vector from the items `[k]` of the history: folded-in collaborative part + mean of the modal parts."""
    share = np.ones(len(keys), dtype=np.float32) if weights is None else weights
    user_id = model.user_id(user, catalogue.rows.get("message", keys), share)
    modal = share @ catalogue.rows.get("modal", keys) / max(float(share.sum()), 1e-6)
    modal = np.asarray(modal, dtype=np.float32)
    return UserVector(model.combine(user_id, modal), user_id, len(keys))


def past_of(catalogue: Catalogue, keys: Keys, weights: Array | None = None) -> Past:
    """The items `[k]` of a history, newest first, as IRIS reads them; one that is given twice counts twice."""
    if weights is None:
        keys = keys[:EXPLAINING]
        return Past(keys, catalogue.sides(keys))
    unique, place = np.unique(keys, return_inverse=True)
    counts = np.bincount(place, weights).astype(np.float32)
    return Past(unique, catalogue.sides(unique), counts)
