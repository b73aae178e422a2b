"""Ratings of pairs: profiles and contents in, ratings with intervals out, whatever is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np

from models.arrays import Array
from models.lrmm.model import ITEM, USER
from models.lrmm.serving import LRMMServing, pair_name
from service.domain import NotServedError, PredictedRating, State
from service.pipeline.documents import Documents, Profile, contents, profiles
from service.pipeline.engine import Engine

INLINE = 64  # pairs that are rated faster than another thread is asked


async def predict(engine: Engine, pairs: Sequence[tuple[str, str]]) -> list[PredictedRating]:
    """What users would rate items, in the order of the pairs. Unknown users and items are rated by what is known.

    Raises:
        NotServedError: the bundle holds no model that predicts ratings.
    """
    documents = engine.documents
    if documents is None:
        raise NotServedError(f"The active bundle {engine.model_version} holds no model that predicts ratings.")
    users = await profiles(engine, documents, "user", [user for user, _ in pairs])
    items = await profiles(engine, documents, "item", [item for _, item in pairs])
    content = await contents(engine, documents, [item for _, item in pairs])
    with engine.step("rate"):
        if len(pairs) <= INLINE:
            return _rated(documents, pairs, users, items, content)
        return await asyncio.to_thread(_rated, documents, pairs, users, items, content)


def _rated(
    documents: Documents,
    pairs: Sequence[tuple[str, str]],
    users: Mapping[str, Profile],
    items: Mapping[str, Profile],
    content: Mapping[str, Mapping[str, Array]],
) -> list[PredictedRating]:
    lrmm = documents.lrmm
    of_users, of_items = [users[user] for user, _ in pairs], [items[item] for _, item in pairs]
    embeddings = {
        USER: np.stack([one.embedding for one in of_users]),
        ITEM: np.stack([one.embedding for one in of_items]),
    }
    present = {USER: [one.known for one in of_users], ITEM: [one.known for one in of_items]}
    for name in lrmm.contents:
        blank = np.zeros(lrmm.model.sizes[pair_name(name)], np.float32)
        given = [content.get(item, {}).get(name) for _, item in pairs]
        embeddings[pair_name(name)] = np.stack([blank if one is None else one for one in given])
        present[pair_name(name)] = [one is not None for one in given]
    there = np.array([present[name] for name in lrmm.names], dtype=np.bool_).T
    reviews = [user.reviews + item.reviews for user, item in zip(of_users, of_items, strict=True)]
    affinity = np.array([user.factors @ item.factors for user, item in zip(of_users, of_items, strict=True)])
    rated = lrmm.rate(embeddings, there, affinity, np.array(reviews, dtype=np.float64))
    return [
        PredictedRating(
            user,
            item,
            round(float(rated.rating[row]), 4),
            (round(float(rated.low[row]), 4), round(float(rated.high[row]), 4)),
            _states(lrmm, there[row].tolist()),
            tuple(side for side, one in (("user", of_users[row]), ("item", of_items[row])) if not one.known),
        )
        for row, (user, item) in enumerate(pairs)
    ]


def _states(lrmm: LRMMServing, there: Sequence[bool]) -> dict[str, State]:
    """A modality that is missing is reconstructed from those that are there, where there are any."""
    missing = State.GENERATED if any(there) and lrmm.config.impute else State.ABSENT
    return {name: State.OBSERVED if one else missing for name, one in zip(lrmm.names, there, strict=True)}
