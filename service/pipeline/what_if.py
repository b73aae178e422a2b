"""What would change if an item lacked a modality, or had one more: its own features and vector, users' lists, searches.

Nothing is stored. The item is completed as a write would complete it, its vectors are computed in a `Hypothetical`
catalogue, and its place is looked up among all others in the lists of a sample of users, and in the searches that lead
to it: those by the items whose observed feature is nearest to its former or its new one. What would follow for other
items is counted (`dependents`), not computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.arrays import Array
from models.dgmrec.serving import DGMRecServing
from service.domain import (
    Content,
    InvalidInputError,
    LacunaError,
    ListChange,
    ListChanges,
    Observed,
    SearchChange,
    SearchChanges,
    State,
    StoredItem,
    WhatIf,
)
from service.pipeline import dependents, follow, history, rank, views
from service.pipeline.active import Active
from service.pipeline.browse import require_modality, stored
from service.pipeline.catalogue import FINAL, Catalogue, Entry
from service.pipeline.complete import complete, with_users
from service.pipeline.encode import Encoded, encode
from service.pipeline.engine import Engine
from service.pipeline.history import History
from service.pipeline.hypothetical import Hypothetical
from service.pipeline.retrieve import search_modality
from service.pipeline.vectors import nearest
from service.ports import FeatureChange, Keys

DEPTH = 500  # places of a list within which an item is looked for
AT_ONCE = 8  # users, or searches, in one go of the writer's thread


@dataclass(frozen=True, slots=True)
class Question:
    """What to imagine, and how much to look at: modalities to withhold and to add, `users` of the sample drawn with
    `seed`, the length `n` of their lists, and the number of `searches` by each modality."""

    withhold: Sequence[str]
    add: Mapping[str, Content]
    n: int
    users: int
    seed: int
    searches: int


@dataclass(frozen=True, slots=True)
class _Worlds:
    """The catalogue as it is and as it would be, and the item's key in both."""

    model: DGMRecServing
    before: Catalogue
    after: Catalogue
    key: int


async def what_if(engine: Engine, item_id: str, question: Question, *, hidden: bool = True) -> WhatIf:
    """What would change. `hidden` items, which are not available, may be named as searches or not.

    Raises:
        ItemNotFoundError: there is no such item. UnknownModalityError, InvalidInputError: a modality is none of the
            bundle's, is not observed and cannot be withheld, or its content cannot be used.
    """
    timings: dict[str, float] = {}
    runtime, active = engine.runtime, engine.active
    item = await stored(engine, item_id)
    if item_id not in engine.memory.catalogue:
        await follow.refresh(engine, [item_id])  # another worker has it
    _check(active, item, question)
    with runtime.step("encode", timings):
        encoded = await _encoded(engine, question.add)
    imagined = _imagined(item, question, encoded)
    contents = await with_users(engine, {item_id: imagined.observed}, {item_id: imagined.title})
    catalogue = engine.memory.catalogue
    with runtime.step("impute", timings):
        (computed,) = await runtime.compute(complete, active, catalogue, contents)
        imagined = replace(imagined, generated=computed.generated)
        entry = Entry.of(imagined, catalogue.names)
        after = await runtime.compute(Hypothetical, catalogue, active.dgmrec, entry, computed.derived)
    worlds = _Worlds(active.dgmrec, catalogue, after, entry.key)
    with runtime.step("rank", timings):
        lists = await _lists(engine, worlds, question)
        searches = await _searches(engine, worlds, question, hidden=hidden)
    change = FeatureChange(0, item_id, dependents.pack(active.dgmrec, imagined.observed))
    reached = await runtime.compute(dependents.find, active.dgmrec, catalogue, [change])
    names, confidence = catalogue.names, catalogue.confidence
    return WhatIf(
        id=item_id,
        model_version=engine.model_version,
        before={name: views.report_of(confidence, item, name) for name in names},
        after={name: views.report_of(confidence, imagined, name) for name in names},
        lists=lists,
        searches=searches,
        dependents=sum(one.id != item_id for one in reached),
        timings_ms=timings,
    )


# --- the item as it would be -----------------------------------------------------------------------------------------


def _check(active: Active, item: StoredItem, question: Question) -> None:
    for place, name in enumerate(question.withhold):
        pointer = f"/withhold/{place}"
        if name not in active.dgmrec.names:
            _unknown(active, name, pointer)
        if name not in item.observed:
            raise InvalidInputError(f"The item has no observed {name!r} that could be withheld.", pointer)
        if name in question.add:
            raise InvalidInputError(f"The modality {name!r} is both withheld and added.", pointer)
    if not question.withhold and not question.add:
        raise InvalidInputError("Name a modality to withhold or to add; without one, nothing changes.", "/withhold")


def _unknown(active: Active, name: str, pointer: str) -> None:
    try:
        require_modality(active, name)
    except InvalidInputError as error:
        error.pointer = pointer
        raise


async def _encoded(engine: Engine, add: Mapping[str, Content]) -> Encoded:
    (encoded,) = await encode(engine, [{name: (content, _source(content)) for name, content in add.items()}])
    if isinstance(encoded, InvalidInputError):
        encoded.pointer = encoded.pointer.replace("/modalities", "/add", 1)
    if isinstance(encoded, LacunaError):
        raise encoded
    return encoded


def _source(content: Content) -> str:
    return type(content).__name__  # nothing of it is stored


def _imagined(item: StoredItem, question: Question, encoded: Encoded) -> StoredItem:
    changed = {*question.withhold, *question.add}
    observed: dict[str, Observed] = {name: one for name, one in item.observed.items() if name not in changed}
    remarks = {name: one for name, one in item.remarks.items() if name not in changed}
    return replace(item, observed=observed | encoded.observed, generated={}, remarks=remarks | dict(encoded.remarks))


# --- lists -----------------------------------------------------------------------------------------------------------


async def _lists(engine: Engine, worlds: _Worlds, question: Question) -> ListChanges:
    """The lists of a sample of users, as `GET /recommend/{user}` makes them without options."""
    users = await engine.store.sample_users(question.users, seed=question.seed)
    histories = await engine.memory.histories.of_all(users)
    changes: list[ListChange] = []
    for portion in _portions([(user, histories[user]) for user in users if histories[user].liked]):
        changes += await engine.runtime.compute(_list_changes, worlds, portion, question.n)
    n = question.n
    inside = [(_is_within(change.before, n), _is_within(change.after, n), change.user) for change in changes]
    return ListChanges(
        n=n,
        depth=DEPTH,
        seed=question.seed,
        sampled=len(users),
        changed=sum(change.is_changed for change in changes),
        audience_before=sum(before for before, _, _ in inside),
        audience_after=sum(after for _, after, _ in inside),
        gained=tuple(user for before, after, user in inside if after and not before),
        lost=tuple(user for before, after, user in inside if before and not after),
        lists=tuple(change for change in changes if change.is_changed),
    )


def _is_within(place: int | None, n: int) -> bool:
    return place is not None and place <= n


def _portions(rows: Sequence[tuple[str, History]]) -> Iterator[Sequence[tuple[str, History]]]:
    for start in range(0, len(rows), AT_ONCE):
        yield rows[start : start + AT_ONCE]


def _list_changes(worlds: _Worlds, users: Sequence[tuple[str, History]], n: int) -> list[ListChange]:
    return [_list_change(worlds, user, items, n) for user, items in users]


def _list_change(worlds: _Worlds, user: str, items: History, n: int) -> ListChange:
    """How one user's list changes: the item's place in it and, where the item is in the history, which also makes the
    user's vector, how many of the first `n` items are others."""
    catalogue, key = worlds.before, worlds.key
    liked, seen = catalogue.keys(items.profile), catalogue.keys(items.seen)
    allowed = catalogue.eligible(excluded=seen)
    is_listed, in_history = bool(allowed[key]), key in liked
    allowed[key] = False
    found = []
    for world in (catalogue, worlds.after) if in_history else (catalogue,):
        vector = history.user_vector(worlds.model, world, user, liked).vector
        found.append((vector, *rank.best(catalogue, vector, max(DEPTH, n), allowed)))
    (vector, keys, scores), (then_vector, then_keys, then_scores) = found[0], found[-1]
    before = after = None
    if is_listed:
        index = catalogue.indexes[FINAL]
        own, then_own = (
            float(index.products(one[None], world.final(np.array([key])))[0, 0])
            for one, world in ((vector, catalogue), (then_vector, worlds.after))
        )
        before, after = _place(key, own, keys, scores), _place(key, then_own, then_keys, then_scores)
    first, then = keys[:n].tolist(), then_keys[:n].tolist()
    is_within = _is_within(before, n) or _is_within(after, n)
    return ListChange(
        user=user,
        before=before,
        after=after,
        places=None if before is None or after is None else before - after,
        in_history=in_history,
        replaced=len(set(then) - set(first)) if in_history else int(_is_within(before, n) != _is_within(after, n)),
        is_changed=first != then or (is_within and before != after),
    )


def _place(key: int, score: float, keys: Keys, scores: Array) -> int | None:
    """The place of an item among others, best first, ties by key; None where it is not within DEPTH."""
    before = int(((scores > score) | ((scores == score) & (keys < key))).sum())
    return before + 1 if before < DEPTH else None


# --- searches --------------------------------------------------------------------------------------------------------


async def _searches(engine: Engine, worlds: _Worlds, question: Question, *, hidden: bool) -> dict[str, SearchChanges]:
    """By modality the searches that lead to the item, of those modalities whose feature or state would change."""
    changes = {}
    for name in worlds.before.names:
        if _is_same(worlds, name):
            continue
        queries = await engine.runtime.compute(_queries, worlds, name, question.searches, hidden)
        found: list[SearchChange] = []
        for start in range(0, len(queries), AT_ONCE):
            portion = queries[start : start + AT_ONCE]
            found += await engine.runtime.compute(_search_changes, worlds, name, portion)
        changed = tuple(change for change in found if change.before != change.after)
        changes[name] = SearchChanges(DEPTH, len(found), len(changed), changed)
    return changes


def _is_same(worlds: _Worlds, name: str) -> bool:
    keys = np.array([worlds.key])
    before, after = (world.features(name, keys) for world in (worlds.before, worlds.after))
    states = [world.entries[worlds.key].states[name] for world in (worlds.before, worlds.after)]
    return bool(states[0] is states[1] and np.array_equal(before, after))


def _queries(worlds: _Worlds, name: str, count: int, hidden: bool) -> list[int]:
    """The items whose observed feature is nearest to the item's former or new one, which are searched by."""
    catalogue, keys = worlds.before, np.array([worlds.key])
    if not count:
        return []
    mask = catalogue.having(name, excluded=worlds.key)
    if not hidden:
        mask &= catalogue.available[: len(mask)]
    found = [
        nearest(catalogue.observed_indexes[name], world.features(name, keys), count, mask)[0][0]
        for world in (catalogue, worlds.after)
    ]
    return [key for key in dict.fromkeys(np.concatenate(found).tolist()) if key in catalogue.entries]


def _search_changes(worlds: _Worlds, name: str, queries: Sequence[int]) -> list[SearchChange]:
    catalogue, changes = worlds.before, []
    for query in queries:
        feature = catalogue.rows.get(f"feature.{name}", query)
        allowed = catalogue.eligible(excluded=np.array([query], dtype=np.int64))
        is_listed = bool(allowed[worlds.key])
        allowed[worlds.key] = False
        keys, scores = search_modality(worlds.model, catalogue, name, feature, DEPTH, allowed)
        before, after = (
            _search_place(worlds, world, name, feature, keys, scores) if is_listed else None
            for world in (catalogue, worlds.after)
        )
        entry = catalogue.entries[query]
        places = None if before is None or after is None else before - after
        changes.append(SearchChange(entry.id, entry.title, before, after, places))
    return changes


def _search_place(worlds: _Worlds, world: Catalogue, name: str, query: Array, keys: Keys, scores: Array) -> int | None:
    """The item's place among the others that a search finds; None where it is not found."""
    key, model, index = worlds.key, worlds.model, worlds.before.indexes[name]
    feature, state = world.features(name, np.array([key])), world.entries[key].states[name]
    length, asked = np.linalg.norm(feature, axis=1, keepdims=True), float(np.linalg.norm(query))
    if length[0, 0] <= 1e-6 or asked <= 1e-6 or state is State.ABSENT:
        return None
    scale = 1.0 if state is State.OBSERVED else model.search_scale(name, warm=bool(world.warm[key]))
    score = index.products((query / asked)[None], feature / length)[0, 0] * np.float32(scale)
    return _place(key, float(score), keys, scores)
