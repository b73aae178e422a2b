"""What of a history supports an item: IRIS' relevances, by modality, whichever model has listed the item."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.arrays import Array, Mask, Rows
from models.iris.serving import Explained, IRISServing
from service.domain import Explanation, Reason, UserNotFoundError
from service.pipeline import follow, history
from service.pipeline.browse import not_found
from service.pipeline.catalogue import Catalogue
from service.pipeline.engine import Engine
from service.pipeline.history import Past
from service.ports import Keys

LISTED = 3  # reasons of an item in a list
DIGITS = 6  # of a relevance: what lies behind them depends on how many items are explained at once
POPULAR = "popular"  # the fallback where a score is the item bias alone


def reasons(
    iris: IRISServing, catalogue: Catalogue, past: Past, keys: Keys, *, hidden: bool = True
) -> dict[int, tuple[Reason, ...]]:
    """The items of a history that are most relevant to each of the items `[t]`, by key; `hidden` ones, which are not
    available, count, but may be named or not."""
    explained = _explained(iris, catalogue, past, keys)
    relevance = np.where(_may_be_named(catalogue, past, hidden=hidden), explained.relevance, np.float32(-np.inf))
    best = _order(relevance)[:, :LISTED]
    positive = np.take_along_axis(relevance, best, axis=1) > 0
    return {
        key: _reasons(iris, catalogue, past, explained, row, best[row][positive[row]])
        for row, key in enumerate(keys.tolist())
    }


async def explain_pair(engine: Engine, user: str, item_id: str, *, hidden: bool = True) -> Explanation:
    """The relevance of every item of a user's history to an item, the most relevant first; negative ones last. Items
    that are `hidden`, not available, count, but may be named or not.

    Raises:
        NotServedError: the bundle holds no model that explains. ItemNotFoundError: there is no such item.
        UserNotFoundError: nothing is known of the user.
    """
    iris, catalogue = engine.active.explainer(), engine.memory.catalogue
    if item_id not in catalogue:
        await follow.refresh(engine, [item_id])  # another worker may have it
    items = await engine.memory.histories.of(user)
    entry = catalogue.entry(item_id)
    if entry is None or not (hidden or entry.available):
        raise not_found(item_id)
    if not items.seen:
        raise UserNotFoundError(f"Nothing is known of the user {user!r}.")
    with engine.runtime.step("explain"):
        key = np.array([entry.key], dtype=np.int64)
        past = history.past_of(catalogue, catalogue.keys(items.profile))
        explained = _explained(iris, catalogue, past, key)
        order = _order(explained.relevance)[0]
        order = order[~past.same(key)[0, order]]
        named = order[_may_be_named(catalogue, past, hidden=hidden)[order]]
        given = _reasons(iris, catalogue, past, explained, 0, named)
        item_bias = float(catalogue.sides(key).item_bias[0])
    return Explanation(
        user,
        entry.id,
        entry.title,
        float(explained.score[0]),
        item_bias,
        entry.states,
        given,
        engine.model_version,
        None if len(order) else POPULAR,
    )


def _explained(iris: IRISServing, catalogue: Catalogue, past: Past, keys: Keys) -> Explained:
    return iris.explain(past.sides, catalogue.sides(keys), weights=past.weights, same=past.same(keys))


def _may_be_named(catalogue: Catalogue, past: Past, *, hidden: bool) -> Mask:
    """Which items of a history `[h]` may be named."""
    return np.ones(len(past.keys), dtype=np.bool_) if hidden else catalogue.available[past.keys]


def _order(relevance: Array) -> Rows:
    """Places in the history `[t, h]`, the most relevant first; where as relevant, the newer first."""
    return np.argsort(-np.round(relevance, DIGITS), axis=1, kind="stable")


def _reasons(
    iris: IRISServing, catalogue: Catalogue, past: Past, explained: Explained, row: int, places: Rows
) -> tuple[Reason, ...]:
    """The history's items at these places as reasons for one target; without items that were deleted meanwhile."""
    entries = [catalogue.entries.get(key) for key in past.keys[places].tolist()]
    relevances, interests = explained.relevance[row, places].tolist(), explained.interest[row, places].tolist()
    effects, shares = explained.effects[row, places].tolist(), explained.shares[row, places].tolist()
    return tuple(
        Reason(
            entry.id,
            entry.title,
            round(relevance, DIGITS),
            round(interest, DIGITS),
            _by_modality(iris, changes, DIGITS),
            _by_modality(iris, parts, 4),
            {name: entry.states[name] for name in iris.names},
        )
        for entry, relevance, interest, changes, parts in zip(
            entries, relevances, interests, effects, shares, strict=True
        )
        if entry is not None
    )


def _by_modality(iris: IRISServing, numbers: Sequence[float], digits: int) -> dict[str, float]:
    return {name: round(number, digits) for name, number in zip(iris.names, numbers, strict=True)}
