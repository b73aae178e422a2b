"""Ratings of pairs: profiles and contents in, ratings with intervals out, whatever is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np

from models.arrays import Array
from models.lrmm.model import ITEM, USER
from models.lrmm.paper_serving import PaperServing
from models.lrmm.serving import LRMMServing, pair_name
from service.domain import NotServedError, PredictedRating, State
from service.pipeline.engine import Engine
from service.pipeline.profiles import Profile

INLINE = 64  # pairs that are rated faster than another thread is asked


async def predict(engine: Engine, pairs: Sequence[tuple[str, str]]) -> list[PredictedRating]:
    """What users would rate items, in the order of the pairs. Unknown users and items are rated by what is known.

    Raises:
        NotServedError: the bundle holds no model that predicts ratings.
    """
    profiles = engine.memory.profiles
    if profiles is None:
        raise NotServedError(f"The active bundle {engine.model_version} holds no model that predicts ratings.")
    users = await profiles.of("user", [user for user, _ in pairs])
    items = await profiles.of("item", [item for _, item in pairs])
    contents = await profiles.contents([item for _, item in pairs])
    with engine.runtime.step("rate"):
        if len(pairs) <= INLINE:
            return _rated(profiles.model.lrmm, pairs, users, items, contents)
        return await asyncio.to_thread(_rated, profiles.model.lrmm, pairs, users, items, contents)


def _rated(
    lrmm: LRMMServing | PaperServing,
    pairs: Sequence[tuple[str, str]],
    users: Mapping[str, Profile],
    items: Mapping[str, Profile],
    contents: Mapping[str, Mapping[str, Array]],
) -> list[PredictedRating]:
    of_users, of_items = [users[user] for user, _ in pairs], [items[item] for _, item in pairs]
    embeddings = {
        USER: np.stack([profile.embedding for profile in of_users]),
        ITEM: np.stack([profile.embedding for profile in of_items]),
    }
    present = {
        USER: [profile.has_reviews for profile in of_users],
        ITEM: [profile.has_reviews for profile in of_items],
    }
    for name in lrmm.contents:
        zero = np.zeros(lrmm.model.sizes[pair_name(name)], np.float32)
        of_name = [contents.get(item, {}).get(name) for _, item in pairs]
        embeddings[pair_name(name)] = np.stack([zero if content is None else content for content in of_name])
        present[pair_name(name)] = [content is not None for content in of_name]
    mask = np.array([present[name] for name in lrmm.names], dtype=np.bool_).T
    reviews = [user.reviews + item.reviews for user, item in zip(of_users, of_items, strict=True)]
    affinity = np.array([user.factors @ item.factors for user, item in zip(of_users, of_items, strict=True)])
    rated = lrmm.rate(embeddings, mask, affinity, np.array(reviews, dtype=np.float64))
    return [
        PredictedRating(
            user,
            item,
            round(float(rated.rating[row]), 4),
            (round(float(rated.low[row]), 4), round(float(rated.high[row]), 4)),
            _states(lrmm, mask[row].tolist()),
            tuple(
                side for side, profile in (("user", of_users[row]), ("item", of_items[row])) if not profile.has_reviews
            ),
        )
        for row, (user, item) in enumerate(pairs)
    ]


def _states(lrmm: LRMMServing | PaperServing, present: Sequence[bool]) -> dict[str, State]:
    """A modality that is missing is reconstructed from those that are present, where there are any."""
    missing = State.GENERATED if any(present) and lrmm.config.impute else State.ABSENT
    return {
        name: State.OBSERVED if is_present else missing for name, is_present in zip(lrmm.names, present, strict=True)
    }
