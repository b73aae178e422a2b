"""From completed features to the vectors that items are ranked by (step 5 of the design), in layers of which none reads
what a later one made.

0. `content` and `base`: what its features alone lead to expect of a later item (`DGMRecServing.content_vectors`), and
   what it passes on to its users before anybody has met it; a trained item passes on what training found.
1. `near`: by each modality the k items nearest to an item's feature, real or generated, among those that have the
   modality observed.
2. `parts`: general and specific parts (eq. 1-3), gated by the preference that training found, and for a later item by
   the mean of those of its nearest trained items.
3. Propagation over the item graph (eq. 5, with the graph that refinement, eq. 16, converges to), and `modal` (eq. 17).
4. `own`: what an item's users and its content make of it (eq. 18), and `degree`, of how many; nothing for a cold item.
5. `kernel`: the warm items nearest to a later item by each modality.
6. `final` and `message`: for a trained item shrunk towards what training predicted; for a later one what its content
   and layer 4 of its kernel neighbours lead to expect, giving way to its own vector.

`derive` computes all of it from what is stored, and that is the definition. Afterwards `put` computes at once those of
an item's own rows that it is ranked by, `Catalogue.stale` notes what else is to be computed, and `renew` does that, a
few items at a time, in the same order with the same functions, so that the outcome is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.arrays import Array, Mask
from models.dgmrec.inference import mean_of_gathered
from models.dgmrec.serving import DGMRecServing
from service.pipeline import nearest as nearest_lists
from service.pipeline.catalogue import KERNEL_FIELDS, Catalogue, Derived, Entry
from service.pipeline.confidence import Confidence
from service.pipeline.nearest import Nearest
from service.pipeline.stale import ARRIVED, COOLED, DEPARTED, WARMED
from service.ports import Keys, VectorIndex

CHUNK, SEARCHED = 256, 1024  # items derived at once, and looked up at once: as many as make a search quick
BLOCK = 16  # rows of every matrix product
READERS = 4096  # changed items whose readers are looked for at once
FEW, SEARCHES = 512, 32  # items renewed at once, so that a write never waits long for the thread, and looked up at once
TOLERANCE = 1e-5  # of a cosine: a neighbour this close is looked up again rather than missed


def put(model: DGMRecServing, catalogue: Catalogue, rows: Sequence[tuple[Entry, Derived]]) -> None:
    """Insert or replace items, each id once; when this returns, every index knows them."""

    def compute_layers(keys: Keys, moved: Mask) -> None:
        cold = (catalogue.trained[keys] < 0) & (catalogue.rows.get("users", keys) == 0)
        cold &= model.expects_by_regression  # else a cold item is ranked by its modal part
        _leave(model, catalogue, keys[cold], moved[cold])
        for layer in layers(model):
            chosen = ~cold if _is_left(layer) else np.ones_like(cold)
            its, its_moved = keys[chosen], moved[chosen]
            if not len(its):
                continue
            # An item whose feature is as it was has the neighbours that it had: others have not moved.
            groups = _by_names(model, its_moved) if layer in (NEAR, KERNEL) else [((), slice(None))]
            changed = [_compute(layer, model, catalogue, its[rows], names) for names, rows in groups]
            _note_readers(catalogue, layer, np.concatenate(changed))

    catalogue.put(rows, compute_layers)


def _is_left(layer: str) -> bool:
    """Whether what an item that nobody has met is ranked by follows without this layer."""
    return layer not in (CONTENT, KERNEL, FINAL)


def _leave(model: DGMRecServing, catalogue: Catalogue, keys: Keys, moved: Mask) -> None:
    """Leave to `renew` the layers of items `[n]` that they are not ranked by; `moved` `[n, M]` are their features."""
    for column, name in enumerate(model.names):
        its = keys[moved[:, column]]
        catalogue.rows.put_all("near.reach", its, np.full(len(its), -np.inf, dtype=np.float32), column)  # not known yet
        catalogue.stale.add(_by(NEAR, name), its)
    for layer in filter(_is_left, layers(model)):
        if layer != NEAR:
            catalogue.stale.add(layer, keys)


def _by_names(model: DGMRecServing, moved: Mask) -> list[tuple[tuple[str, ...], Any]]:
    """Which modalities' features have changed, of which rows: from `[n, M]`."""
    if len(moved) == 1:
        return [(tuple(name for name, is_moved in zip(model.names, moved[0], strict=True) if is_moved), slice(None))]
    kinds, which = np.unique(moved, axis=0, return_inverse=True)
    return [
        (tuple(name for name, is_moved in zip(model.names, kind, strict=True) if is_moved), which.ravel() == number)
        for number, kind in enumerate(kinds)
    ]


def derive(model: DGMRecServing, catalogue: Catalogue, chosen: Sequence[str] = ()) -> Iterator[float]:
    """Compute all vectors of the catalogue from what is stored of its items, layer by layer, or the `chosen` layers;
    answers the share that is done after each chunk. Nothing is to be written to the catalogue meanwhile."""
    keys = np.array(sorted(catalogue.entries), dtype=np.int64)
    todo = chosen or layers(model)
    for number, layer in enumerate(todo):
        chunk = SEARCHED if layer in (NEAR, KERNEL) else CHUNK
        for start in range(0, len(keys), chunk):
            _compute(layer, model, catalogue, keys[start : start + chunk])
            yield (number + start / len(keys)) / len(todo)
    if not chosen:
        catalogue.stale.clear()


def renew(model: DGMRecServing, catalogue: Catalogue) -> bool:
    """Compute again the first layer of a few of the items that are stale; False where none are left."""
    stale = catalogue.stale
    with stale.working_off():
        for change in (DEPARTED, ARRIVED):
            if changed := stale.take_features(change, SEARCHES):
                for name, keys in changed.items():
                    _note_features(catalogue, name, keys, departed=change == DEPARTED)
                return True
        return any(_renew_layer(layer, model, catalogue) for layer in layers(model))


def _renew_layer(layer: str, model: DGMRecServing, catalogue: Catalogue) -> bool:
    """As `renew`, one layer, first noting who reads what has changed."""
    stale = catalogue.stale
    if layer in (NEAR, KERNEL):
        for change in (COOLED, WARMED) if layer == KERNEL else ():
            if len(keys := stale.take(change, SEARCHES)):
                _note_warmth(catalogue, keys, cooled=change == COOLED)
                return True
        for name in model.names:
            if len(keys := stale.take(_by(layer, name), SEARCHES)):
                _note(catalogue, layer, _compute(layer, model, catalogue, _present(catalogue, keys), [name]))
                return True
        return False
    below = _read_by(layer)
    if below is not None and len(keys := stale.take(_readers_of(below), READERS)):
        readers = catalogue.expected_from(keys) if layer == FINAL else catalogue.near_to(keys)
        stale.add(layer, readers)
        return True
    if len(keys := stale.take(layer, FEW)):
        _note(catalogue, layer, _compute(layer, model, catalogue, _present(catalogue, keys)))
        return True
    return False


def _present(catalogue: Catalogue, keys: Keys) -> Keys:
    return np.array([key for key in keys.tolist() if key in catalogue.entries], dtype=np.int64)


def _by(layer: str, name: str) -> str:
    """The name, among what is stale, of a layer of neighbours by one modality."""
    return f"{layer} by {name}"


def _readers_of(layer: str) -> str:
    """The name, among what is stale, of those that read a layer of some items."""
    return f"readers of {layer}"


def _read_by(layer: str) -> str | None:
    """The layer of other items that a layer reads, as far as that is not noted at once."""
    if layer.startswith("propagated."):
        number = int(layer.rpartition(".")[2])
        return PARTS if number == 1 else propagated(number - 1)
    return OWN if layer == FINAL else None


def use(catalogue: Catalogue, confidence: Confidence) -> None:
    """Serve and use generated features by another rule, and note what has to be computed again because of it."""
    for name, keys in catalogue.set_confidence(confidence).items():
        for layer in (NEAR, KERNEL):
            catalogue.stale.add(_by(layer, name), keys)
        for layer in (PARTS, propagated(1)):
            catalogue.stale.add(layer, keys)


def distrust(model: DGMRecServing, catalogue: Catalogue, keys: Sequence[int] | None = None) -> None:
    """Note that every layer of these items, or of all, has to be computed again."""
    for layer in layers(model):
        for name in (_by(layer, name) for name in model.names) if layer in (NEAR, KERNEL) else (layer,):
            catalogue.stale.add(name, list(catalogue.entries) if keys is None else keys)


# --- the layers and who reads them -----------------------------------------------------------------------------------

CONTENT, NEAR, PARTS, OWN, KERNEL, FINAL = "content", "near", "parts", "own", "kernel", "final"


def propagated(layer: int) -> str:
    """The name of a layer of propagation; the last one makes the modal part."""
    return f"propagated.{layer}"


def layers(model: DGMRecServing) -> list[str]:
    """All layers, in order."""
    return [CONTENT, NEAR, PARTS, *(propagated(layer) for layer in range(1, model.layers + 1)), OWN, KERNEL, FINAL]


def compute(layer: str, model: DGMRecServing, catalogue: Catalogue, keys: Keys) -> dict[str, NDArray[Any]]:
    """One layer of some items `[n]`, by field `[n, ...]`; nothing is written.

    It has the same bits whichever items are computed together: what an index answers, and what is computed row by row,
    does not depend on the other rows. A matrix product may round a row another way in another number of rows, so that
    it is always of BLOCK rows.
    """
    if layer in (NEAR, KERNEL):
        return _compared(layer, model, catalogue, keys)
    if layer not in (CONTENT, PARTS):
        if layer.startswith("propagated."):
            return _propagated(model, catalogue, keys, int(layer.rpartition(".")[2]))
        return (_own if layer == OWN else _final)(model, catalogue, keys)
    make = _content if layer == CONTENT else _parts
    blocks = []
    for start in range(0, len(keys), BLOCK):
        block = keys[start : start + BLOCK]
        made = make(model, catalogue, np.resize(block, BLOCK))
        blocks.append({name: values[: len(block)] for name, values in made.items()})
    return {name: np.concatenate([fields[name] for fields in blocks]) for name in blocks[0]}


def _compute(
    layer: str, model: DGMRecServing, catalogue: Catalogue, keys: Keys, names: Sequence[str] | None = None
) -> Keys:
    """Compute and write one layer of items `[n]`; those of which it has changed. Neighbours are looked up by the
    modalities `names`, by default all."""
    if layer == KERNEL:
        keys = keys[catalogue.trained[keys] < 0]
    if not len(keys):
        return keys
    if layer not in (NEAR, KERNEL):
        return catalogue.write_layer(keys, compute(layer, model, catalogue, keys))
    changed = np.zeros(len(keys), dtype=np.bool_)
    for name in model.names if names is None else names:
        changed |= _put_lists(layer, catalogue, name, keys, _search(layer, model, catalogue, name, keys))
    return keys[changed]


def _note(catalogue: Catalogue, layer: str, changed: Keys) -> None:
    """Note what has to be computed again because a layer of these items has changed: their own later layers, and, once
    their time comes, those of the items that read it."""
    following = {NEAR: (PARTS, propagated(1)), PARTS: (propagated(1),), OWN: (FINAL,), KERNEL: (FINAL,)}
    if layer.startswith("propagated."):
        number = int(layer.rpartition(".")[2])
        following[layer] = (OWN, FINAL) if number == catalogue.shape.layers else (propagated(number + 1),)
    for later in following.get(layer, ()):
        catalogue.stale.add(later, changed)
    _note_readers(catalogue, layer, changed)


def _note_readers(catalogue: Catalogue, layer: str, changed: Keys) -> None:
    """Note that the readers of a layer of these items, if it has any, are to be looked for."""
    if layer in (PARTS, OWN, *(propagated(number) for number in range(1, catalogue.shape.layers))):
        catalogue.stale.add(_readers_of(layer), changed)


def _note_features(catalogue: Catalogue, name: str, keys: Keys, *, departed: bool) -> None:
    """Bring up to date whose neighbours by a modality these items are no more, or may be from now on."""
    for layer in (NEAR, KERNEL):
        if departed:
            _drop(layer, catalogue, name, keys)
        else:
            _insert(layer, catalogue, name, keys if layer == NEAR else keys[catalogue.warm[keys]])


def _note_warmth(catalogue: Catalogue, keys: Keys, *, cooled: bool) -> None:
    """Bring up to date whose vectors these items no longer help to expect, or may help from now on."""
    for column, name in enumerate(catalogue.names):
        if cooled:
            _drop(KERNEL, catalogue, name, keys)
        else:  # still
            _insert(KERNEL, catalogue, name, keys[catalogue.observed[keys, column] & catalogue.warm[keys]])


def _drop(layer: str, catalogue: Catalogue, name: str, gone: Keys) -> None:
    """Take items `[c]` out of the lists of neighbours by a modality; those that become too short are to be looked up
    again."""
    lists, column = _lists(layer, catalogue), catalogue.names.index(name)
    keys = lists.holding(gone, catalogue.capacity, column, spare=True)
    if len(keys):
        before = lists.of(keys, column)
        whole, short = nearest_lists.without(before, np.isin(before[0][:, :-1], gone), lists.size)
        _note(catalogue, layer, keys[_put_lists(layer, catalogue, name, keys, whole)])
        catalogue.stale.add(_by(layer, name), keys[short])


def _insert(layer: str, catalogue: Catalogue, name: str, new: Keys) -> None:
    """Give new items `[c]` their places in the lists of neighbours by a modality, as looking these up again would."""
    if not len(new):
        return
    lists, column = _lists(layer, catalogue), catalogue.names.index(name)
    directions = _directions(catalogue.rows.get(f"feature.{name}", new))
    keys = _within_reach(layer, catalogue, name, directions)
    keys = keys[~catalogue.stale.holds(_by(layer, name), keys)]  # those will be looked up
    if len(keys):
        features = catalogue.rows.get(f"feature.{name}", keys)
        cosines = catalogue.indexes[name].products(_directions(features), directions)
        cosines[keys[:, None] == new] = -np.inf
        whole = nearest_lists.with_new(lists.of(keys, column), new, cosines)
        _note(catalogue, layer, keys[_put_lists(layer, catalogue, name, keys, whole)])


def _within_reach(layer: str, catalogue: Catalogue, name: str, directions: Array) -> Keys:
    """The items in whose lists of neighbours by a modality any of these directions `[c, r_m]` has a place, and maybe
    some others."""
    owners, features = catalogue.rows.all(f"feature.{name}")
    known = _lists(layer, catalogue).cosines.get("cosines", owners, catalogue.names.index(name), -1)
    chosen = (owners >= 0) & (known < np.inf)
    if layer == KERNEL:
        chosen &= catalogue.trained[owners] < 0
    products, length = (features @ directions.T).max(axis=1), np.sqrt(np.einsum("nr,nr->n", features, features))
    within: Keys = owners[chosen & (products >= (np.where(chosen, known, 0) - TOLERANCE) * length)]
    return within


# --- lists of neighbours ---------------------------------------------------------------------------------------------


def _lists(layer: str, catalogue: Catalogue) -> Nearest:
    return catalogue.near if layer == NEAR else catalogue.kernel


def _search(layer: str, model: DGMRecServing, catalogue: Catalogue, name: str, keys: Keys) -> tuple[Keys, Array]:
    """Whole lists of the neighbours of items `[n]` by a modality."""
    features = catalogue.features(name, keys)
    if layer == NEAR and not model.passes_to_generated:
        features = features * catalogue.observed[keys, catalogue.names.index(name)][:, None]
    index = (catalogue.observed_indexes if layer == NEAR else catalogue.warm_indexes)[name]
    near, cosines = neighbours_of(index, features, keys, _lists(layer, catalogue).length)
    return nearest_lists.found(near, cosines, np.linalg.norm(features, axis=1) > 1e-6)


def _put_lists(layer: str, catalogue: Catalogue, name: str, keys: Keys, whole: tuple[Keys, Array]) -> Mask:
    """Write lists of items `[n]` by a modality; of which has changed what counts."""
    column = catalogue.names.index(name)
    if layer == NEAR:
        features = catalogue.features(name, keys)
        reach = _reach(features, whole, catalogue.near.size)
        catalogue.rows.put_all("near.reach", keys, reach, column)
    return _lists(layer, catalogue).put(keys, column, whole)


def _compared(layer: str, model: DGMRecServing, catalogue: Catalogue, keys: Keys) -> dict[str, NDArray[Any]]:
    """What counts of the lists of neighbours of items `[n]`, by field, as a search finds them."""
    size = _lists(layer, catalogue).size
    found = [_search(layer, model, catalogue, name, keys) for name in catalogue.names]
    near = np.stack([lists[0][:, :size] for lists in found], axis=1)
    cosines = np.stack([lists[1][:, :size] for lists in found], axis=1)
    if layer == KERNEL:
        return dict(zip(KERNEL_FIELDS, (near, cosines), strict=True))
    features = [catalogue.features(name, keys) for name in catalogue.names]
    reach = [_reach(block, lists, size) for block, lists in zip(features, found, strict=True)]
    return {"near": near, "near.reach": np.stack(reach, axis=1)}


def _reach(features: Array, whole: tuple[Keys, Array], size: int) -> Array:
    """The inner product `[n]` of a feature `[n, r_m]` and another's direction beyond which that is among the first
    `size` of its list; infinite for a feature that says nothing, or that is to have no neighbours."""
    length, last = np.linalg.norm(features, axis=1), whole[1][:, size - 1]
    has_list = (length > 1e-6) & (whole[1][:, -1] < np.inf)
    return np.where(has_list, last * np.maximum(length, 1e-6), np.inf).astype(np.float32)


# --- computing -------------------------------------------------------------------------------------------------------


def nearest(index: VectorIndex, features: Array, k: int, allowed: Mask | None = None) -> tuple[Keys, Array]:
    """Keys and cosines `[b, k]` of the nearest items of an index of one modality by projected features `[b, r_m]`; -1
    and -inf where there are too few.

    A zero feature, which says nothing, has no neighbours.
    """
    keys = np.full((len(features), k), -1, dtype=np.int64)
    cosines = np.full((len(features), k), -np.inf, dtype=np.float32)
    rows = np.flatnonzero(np.linalg.norm(features, axis=1) > 1e-6)
    if len(rows):
        keys[rows], cosines[rows] = index.search(_directions(features[rows]), k, allowed)
    return keys, cosines


def neighbours_of(
    index: VectorIndex, features: Array, keys: Keys, k: int, allowed: Mask | None = None
) -> tuple[Keys, Array]:
    """As `nearest`, of items with these keys `[b]` (-1 for none), no item its own neighbour."""
    near, cosines = nearest(index, features, k + 1, allowed)
    itself = (near == keys[:, None]) & (near >= 0)
    near[itself], cosines[itself] = -1, -np.inf
    order = np.argsort(itself, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(near, order, axis=1), np.take_along_axis(cosines, order, axis=1)


def expected_preference(model: DGMRecServing, catalogue: Catalogue, near: Keys, observed: Mask) -> Array:
    """The preference `[n, M, d]` to be expected of items from their neighbours `[n, M, k]` by what is observed of them
    `[n, M]`: the mean of the trained ones', each modality's neighbours weighing the same; without any, everybody's.
    Zero with `cold_start=modal`."""
    if not model.expects_by_regression:
        return np.zeros((len(near), *model.tables["mean_preference"].shape), dtype=np.float32)
    present = (near >= 0) & observed[:, :, None]
    weights = present / np.maximum(present.sum(axis=2, keepdims=True), 1)
    rows = np.where(present, catalogue.trained[near], -1)
    weights = (weights * (rows >= 0)).astype(np.float32)
    total = weights.sum(axis=(1, 2))
    mean = np.einsum("nmk,nmkcd->ncd", weights, model.tables["item_preference"][rows])
    everybody = model.tables["mean_preference"]
    known = total[:, None, None] > 0
    return np.asarray(np.where(known, mean / np.maximum(total, 1e-6)[:, None, None], everybody), dtype=np.float32)


def _content(model: DGMRecServing, catalogue: Catalogue, keys: Keys) -> dict[str, NDArray[Any]]:
    features = {name: catalogue.rows.get(f"feature.{name}", keys) for name in model.names}
    new = np.array([catalogue.entries[key].id not in model.items for key in keys.tolist()], dtype=np.bool_)
    content = model.content_vectors(features, catalogue.observed[keys], catalogue.rows.get("words", keys), new)
    nobody = np.zeros((len(keys), model.size), dtype=np.float32)
    base = model.item_messages(content, nobody, nobody[:, 0])
    trained = catalogue.trained[keys]
    return {"content": content, "base": _trained_or(trained, model.tables["item_message"][trained], base)}


def _parts(model: DGMRecServing, catalogue: Catalogue, keys: Keys) -> dict[str, NDArray[Any]]:
    trained = catalogue.trained[keys]
    expected = expected_preference(model, catalogue, catalogue.read_layer(keys, "near"), catalogue.observed[keys])
    preference = _trained_or(trained, model.tables["item_preference"][trained], expected)
    features = {name: catalogue.features(name, keys) for name in model.names}
    return {"parts.0": model.encode(features, preference.swapaxes(0, 1)).swapaxes(0, 1)}


def _trained_or(trained: Keys, known: Array, later: Array) -> Array:
    """Rows `[n, ...]` of the items that training knew, and of those that came later."""
    return np.where((trained >= 0).reshape(-1, *[1] * (known.ndim - 1)), known, later)


def _propagated(model: DGMRecServing, catalogue: Catalogue, keys: Keys, layer: int) -> dict[str, NDArray[Any]]:
    near = catalogue.read_layer(keys, "near")
    parts = catalogue.rows.get("parts", keys, 0)  # without neighbours, the item's own
    for column in range(len(model.names)):
        below = catalogue.rows.get("parts", near[:, column], layer - 1, column)
        mean, valid = mean_of_gathered(below, near[:, column])
        parts[valid, column] = mean[valid]
    if layer < model.layers:
        return {f"parts.{layer}": parts}
    return {"modal": model.fuse(parts.swapaxes(0, 1))}


def _own(model: DGMRecServing, catalogue: Catalogue, keys: Keys) -> dict[str, NDArray[Any]]:
    trained, users = catalogue.trained[keys], catalogue.rows.get("users", keys)
    modal = catalogue.rows.get("modal", keys)
    folded = model.combine(catalogue.rows.get("folded", keys), modal)
    own = _trained_or(trained, model.trained_vectors(trained, modal), folded)
    warm = (trained >= 0) | (users > 0)
    degree = np.where(trained >= 0, model.tables["item_degree"][trained], users)
    return {"own": np.where(warm[:, None], own, np.float32(0)), "degree": degree, "warm": warm}


def _final(model: DGMRecServing, catalogue: Catalogue, keys: Keys) -> dict[str, NDArray[Any]]:
    trained, users = catalogue.trained[keys], catalogue.rows.get("users", keys)
    expected = _expected(model, catalogue, keys)
    final = model.final_vectors(expected, catalogue.rows.get("own", keys), users)
    message = model.item_messages(expected, catalogue.rows.get("folded", keys), users)
    if (trained >= 0).any():
        final = _trained_or(trained, model.warm_vectors(trained, catalogue.rows.get("modal", keys)), final)
        message = _trained_or(trained, model.tables["item_message"][trained], message)
    return {"final": final, "message": message}


def _expected(model: DGMRecServing, catalogue: Catalogue, keys: Keys) -> Array:
    """The vectors `[n, d]` to be expected of later items as long as they have no users."""
    nothing = np.zeros((len(keys), model.size), dtype=np.float32)
    if not model.expects_by_regression:
        return model.combine(nothing, catalogue.rows.get("modal", keys))
    if (catalogue.trained[keys] >= 0).all():
        return nothing
    near, cosines = (catalogue.read_layer(keys, name) for name in KERNEL_FIELDS)
    own, places = catalogue.rows.table("own", near)
    degree = catalogue.rows.table("degree", near)[0][places]
    known = np.where(catalogue.trained[near] >= 0, degree, np.float32(0))
    features = {name: catalogue.rows.get(f"feature.{name}", keys) for name in model.names}
    content, words = catalogue.rows.get("content", keys), catalogue.rows.get("words", keys)
    neighbours = places, cosines, degree, known
    return model.expected_vectors(content, features, catalogue.observed[keys], words, own, neighbours)


def _directions(features: Array) -> Array:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, 1e-6), dtype=np.float32)
