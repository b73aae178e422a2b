"""Finding items by words, by a picture, by a vector, or by another item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from models.arrays import Array, Mask
from models.dgmrec.serving import DGMRecServing
from models.linalg import unit
from service.domain import Content, Hit, InvalidInputError, LacunaError
from service.pipeline import follow, views
from service.pipeline.browse import not_found, require_modality
from service.pipeline.catalogue import COSINE, Catalogue
from service.pipeline.encode import encode
from service.pipeline.engine import Engine
from service.pipeline.impute import ImputationInput, impute
from service.ports import Keys

ANY, FINAL_BY = "any", "final"
NOTHING: tuple[Keys, Array] = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))


async def similar(engine: Engine, item_id: str, *, n: int, by: str, include_generated: bool = True) -> list[Hit]:
    """The items nearest to one, by the final vectors or by one modality's feature (cosine), real or generated; unless
    these are included, by a modality those that have it observed, by the final vectors those of which no modality is
    generated.

    Raises:
        ItemNotFoundError: there is no such item. UnknownModalityError: `by` is neither `final` nor a modality.
    """
    if by != FINAL_BY:
        require_modality(engine.active, by)
    catalogue = engine.memory.catalogue
    key = catalogue.key(item_id)
    if key is None:
        await follow.refresh(engine, [item_id])  # another worker may have it
        key = catalogue.key(item_id)
    if key is None:
        raise not_found(item_id)
    with engine.runtime.step("rank"):
        itself = np.array([key], dtype=np.int64)
        allowed = catalogue.eligible(excluded=itself, include_generated=include_generated or by != FINAL_BY)
        if by == FINAL_BY:
            # Lists are ranked by inner product, which favours the popular; cosine is what "similar" means.
            keys, cosines = catalogue.indexes[COSINE].search(unit(catalogue.final(np.array([key]))), n, allowed)
            return views.hits(catalogue, keys[0], cosines[0])
        if not include_generated:
            allowed &= catalogue.having(by)[: len(allowed)]  # the catalogue may have grown in between
        return by_modality(engine, by, catalogue.features(by, itself)[0], n, allowed)


async def retrieve(
    engine: Engine,
    query: Mapping[str, Content],
    *,
    n: int,
    target: str,
    include_generated: bool,
    categories: Sequence[str],
    at: str = "",
) -> list[Hit]:
    """The items nearest to a query in one modality.

    With `target` another modality than the query's, the query's feature in the target is generated first, as it would
    be for an item; with `any`, the query's own modality is searched. Items that lack the target are reached through
    their generated feature, and say so.

    Args:
        at: the JSON pointer to the query, for errors.

    Raises:
        InvalidInputError: the query cannot be encoded, or says nothing. UnknownModalityError: it or the target is no
            modality.
    """
    model, catalogue = engine.active.dgmrec, engine.memory.catalogue
    ((modality, content),) = query.items()
    goal = modality if target == ANY else target
    require_modality(engine.active, goal)
    with engine.runtime.step("encode"):
        (encoded,) = await encode(engine, [{modality: (content, "query")}])
    if isinstance(encoded, InvalidInputError):
        encoded.pointer = at  # its own would lead into an item
    if isinstance(encoded, LacunaError):
        raise encoded
    if modality not in encoded.observed:
        detail = (encoded.remarks[modality].detail or "").rstrip(".")
        raise InvalidInputError(f"{detail}, and nothing is left to search for.", at)
    feature = model.project(modality, encoded.observed[modality].vector[None])[0]
    if goal != modality:
        with engine.runtime.step("impute"):
            inputs = [ImputationInput({modality: feature})]
            (completed,) = await engine.runtime.compute(impute, model, catalogue, inputs)
        feature = completed.features[goal]
    with engine.runtime.step("rank"):
        allowed = catalogue.eligible(categories)
        if not include_generated:
            allowed &= catalogue.having(goal)[: len(allowed)]  # the catalogue may have grown in between
        return by_modality(engine, goal, feature, n, allowed)


def by_modality(engine: Engine, modality: str, feature: Array, n: int, allowed: Mask) -> list[Hit]:
    """The items nearest by a modality (`search_modality`)."""
    catalogue = engine.memory.catalogue
    keys, scores = search_modality(engine.active.dgmrec, catalogue, modality, feature, n, allowed)
    return views.hits(catalogue, keys, scores, modality)


def search_modality(
    model: DGMRecServing, catalogue: Catalogue, modality: str, feature: Array, n: int, allowed: Mask
) -> tuple[Keys, Array]:
    """Keys and scores `[<= n]` of the items nearest to a feature `[r_m]` by a modality, best first, ties by key; those
    with generated features among the others by calibrated cosines (`DGMRecServing.search_scale`)."""
    length = float(np.linalg.norm(feature))
    if length <= 1e-6:
        return NOTHING
    having = catalogue.having(modality)[: len(allowed)]  # the catalogue may have grown in between
    direction, index = (feature / length)[None], catalogue.indexes[modality]
    warm = catalogue.warm[: len(allowed)]
    generated = [
        (~having & (warm == with_users), model.search_scale(modality, warm=with_users)) for with_users in (True, False)
    ]
    found = []
    for kind, scale in ((having, 1.0), *generated):
        if (allowed & kind).any():
            keys, cosines = index.search(direction, n, allowed & kind)
            found.append((keys[0], cosines[0] * np.float32(scale)))
    if not found:
        return NOTHING
    keys, scores = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.lexsort((keys, -scores))
    order = order[keys[order] >= 0][:n]
    return keys[order], scores[order]
