"""What of a history speaks for an item: IRIS' relevances, by modality, whichever model has listed the item."""

from __future__ import annotations

import numpy as np

from models.arrays import Array, Mask, Rows
from models.iris.serving import Explained, IRISServing
from service.domain import Explanation, NotServedError, Reason, UserNotFoundError
from service.pipeline import follow, history
from service.pipeline.engine import Engine
from service.pipeline.history import Past
from service.pipeline.ingest import not_found
from service.ports import Keys

LISTED = 3  # reasons of an item in a list
DIGITS = 6  # of a relevance: what lies behind them depends on how many items are explained at once
POPULAR = "popular"  # the fallback where a score is the item bias alone


def explainer(engine: Engine) -> IRISServing:
    """The model that explains.

    Raises:
        NotServedError: the bundle holds none.
    """
    if engine.reranker is None:
        raise NotServedError(f"The active bundle {engine.model_version} holds no model that explains.")
    return engine.reranker


def reasons(engine: Engine, past: Past, keys: Keys, *, hidden: bool = True) -> dict[int, tuple[Reason, ...]]:
    """The items of a history that speak most for each of the items `[t]`, by key; `hidden` ones, which are not
    available, count, but may be named or not."""
    reranker = explainer(engine)
    with engine.step("explain"):
        found = _explained(engine, reranker, past, keys)
        named = np.where(_named(engine, past, hidden=hidden), found.relevance, np.float32(-np.inf))
        best = _order(named)[:, :LISTED]
        speaking = np.take_along_axis(named, best, axis=1) > 0
        return {
            key: _reasons(engine, reranker, past, found, row, best[row][speaking[row]])
            for row, key in enumerate(keys.tolist())
        }


async def explain_pair(engine: Engine, user: str, item_id: str, *, hidden: bool = True) -> Explanation:
    """All that the items of a user's history say of an item, the most relevant first; those that speak against it last.
    Items that are `hidden`, not available, count, but may be named or not.

    Raises:
        NotServedError: the bundle holds no model that explains. ItemNotFoundError: there is no such item.
        UserNotFoundError: nothing is known of the user.
    """
    reranker = explainer(engine)
    if item_id not in engine.catalogue:
        await follow.refresh(engine, [item_id])  # another worker may have it
    known = await history.history(engine, user)
    entry = engine.catalogue.entry(item_id)
    if entry is None or not (hidden or entry.available):
        raise not_found(item_id)
    if not known.seen:
        raise UserNotFoundError(f"Nothing is known of the user {user!r}.")
    with engine.step("explain"):
        key = np.array([entry.key], dtype=np.int64)
        past = history.past(engine, engine.catalogue.keys(known.liked))
        found = _explained(engine, reranker, past, key)
        order = _order(found.relevance)[0]
        order = order[~past.same(key)[0, order]]
        given = _reasons(engine, reranker, past, found, 0, order[_named(engine, past, hidden=hidden)[order]])
        item_bias = float(engine.catalogue.sides(key).item_bias[0])
    return Explanation(
        user,
        entry.id,
        entry.title,
        float(found.score[0]),
        item_bias,
        entry.states,
        given,
        engine.model_version,
        None if len(order) else POPULAR,
    )


def _explained(engine: Engine, reranker: IRISServing, past: Past, keys: Keys) -> Explained:
    targets = engine.catalogue.sides(keys)
    return reranker.explain(past.sides, targets, weights=past.weights, same=past.same(keys))


def _named(engine: Engine, past: Past, *, hidden: bool) -> Mask:
    """Which items of a history `[h]` may be named."""
    return np.ones(len(past.keys), dtype=np.bool_) if hidden else engine.catalogue.available[past.keys]


def _order(relevance: Array) -> Rows:
    """Places in the history `[t, h]`, the most relevant first; where as relevant, the newer first."""
    return np.argsort(-np.round(relevance, DIGITS), axis=1, kind="stable")


def _reasons(
    engine: Engine, reranker: IRISServing, past: Past, found: Explained, row: int, places: Rows
) -> tuple[Reason, ...]:
    """What the history's items at these places say of one target; without items that vanished meanwhile."""
    entries = [engine.catalogue.entries.get(key) for key in past.keys[places].tolist()]
    relevances, shares = found.relevance[row, places].tolist(), found.shares[row, places].tolist()
    return tuple(
        Reason(
            entry.id,
            entry.title,
            round(relevance, DIGITS),
            {name: round(part, 4) for name, part in zip(reranker.names, parts, strict=True)},
            {name: entry.states[name] for name in reranker.names},
        )
        for entry, relevance, parts in zip(entries, relevances, shares, strict=True)
        if entry is not None
    )
