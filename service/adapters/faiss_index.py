"""Inner-product search in memory: an immutable base, a small delta of what changed since, and tombstones.

Writers build a new `_State` under a lock and put it in place in one step; a search reads one state from start to end
and takes no lock. Every score comes out of the same FAISS kernel over the same float32 rows, so an item's score has the
same bits before and after a merge, alone or in a batch, with the flat and with the HNSW base.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import faiss
import numpy as np

from models.arrays import Array, Mask, Rows
from service.metering import metered
from service.ports import Keys

Kind = Literal["flat", "hnsw"]

FAISS: Any = faiss  # for what its type stubs leave out
QUERIES_AT_ONCE = 16  # with more, FAISS may turn to BLAS, with other last bits
BLOCK = 1024  # queries from which on BLAS looks for candidates, several times as fast
CANDIDATES = 8  # so many more than are asked for
SPARE, SELECTED = 16, 5  # rows that are looked for beside, where no more than one in so many may not be found
ROUNDING = 1e-5  # by which BLAS and FAISS' own kernel may differ at most, of the product of two lengths
HNSW_LINKS = 32
HNSW_EF_CONSTRUCTION = 200
HNSW_EF_SEARCH = 128


def use_one_thread() -> None:
    """Make FAISS compute on the calling thread only. Process-wide, so it is for the program's start to decide."""
    faiss.omp_set_num_threads(1)


@dataclass(frozen=True, slots=True)
class _Base:
    """Rows `[n, dim]` under ascending keys `[n]`; `alive` is False where a row was removed or replaced since."""

    keys: Keys
    rows: Array
    alive: Mask
    graph: Any = None  # faiss.IndexHNSWFlat over the same rows

    def kill(self, keys: Keys) -> _Base:
        """The base without these keys."""
        places = self.places(keys)
        places = places[places >= 0]
        if not len(places):
            return self
        alive = self.alive.copy()
        alive[places] = False
        return replace(self, alive=alive)

    def places(self, keys: Keys) -> Rows:
        """Where living keys stand, -1 for others."""
        if not len(self.keys):
            return np.full(len(keys), -1, np.int64)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where((self.keys[places] == keys) & self.alive[places], places, -1)


@dataclass(frozen=True, slots=True)
class _Delta:
    """The first `count` slots of buffers that only ever grow at their end; a replaced key gets a new slot."""

    keys: Keys
    rows: Array
    alive: Mask
    count: int

    def kill(self, keys: Keys) -> _Delta:
        """The delta without these keys."""
        held = self.keys[: self.count]
        removed = (held == keys[0] if len(keys) == 1 else np.isin(held, keys)) & self.alive
        return replace(self, alive=self.alive & ~removed) if removed.any() else self

    def append(self, keys: Keys, rows: Array) -> _Delta:
        """The delta with these rows at its end."""
        end = self.count + len(keys)
        held_keys, held_rows = self.keys, self.rows
        if end > len(held_keys):
            room = max(64, 2 * end)
            held_keys = np.empty(room, np.int64)
            held_rows = np.empty((room, self.rows.shape[1]), np.float32)
            held_keys[: self.count], held_rows[: self.count] = self.keys[: self.count], self.rows[: self.count]
        held_keys[self.count : end], held_rows[self.count : end] = keys, rows
        return _Delta(held_keys, held_rows, np.concatenate([self.alive, np.ones(len(keys), bool)]), end)

    def after(self, slot: int) -> _Delta:
        """A delta of its own with the living rows from this slot on."""
        alive = self.alive[slot:]
        keys, rows = self.keys[slot : self.count][alive], self.rows[slot : self.count][alive]
        return _Delta(keys, rows, np.ones(len(keys), bool), len(keys))


@dataclass(frozen=True, slots=True)
class _State:
    base: _Base
    delta: _Delta

    def __len__(self) -> int:
        return _count(self.base.alive) + _count(self.delta.alive)

    @property
    def garbage(self) -> int:
        """Rows that a merge would move or drop."""
        return self.delta.count + len(self.base.alive) - _count(self.base.alive)


class FaissIndex:
    """`service.ports.VectorIndex` over FAISS; safe to call from several threads.

    Args:
        dim: length of the vectors.
        kind: `flat` searches exactly; `hnsw` searches the base through a graph, for catalogues where a scan is slow.
        merge_share: the delta and the tombstones are merged in the background once they outgrow this share of the base;
            None leaves merging to `merge()`.
        merge_at_least: and once they are at least this many rows.
        exact_below: an HNSW base is scanned all the same while the rows that may be found are fewer than this.
    """

    def __init__(
        self,
        dim: int,
        *,
        kind: Kind = "flat",
        merge_share: float | None = 0.2,
        merge_at_least: int = 1024,
        exact_below: int = 5000,
    ) -> None:
        if dim < 1:
            raise ValueError(f"an index needs a positive dimension, got {dim}")
        self.dim = dim
        self._kind = kind
        self._merge_share = merge_share
        self._merge_at_least = merge_at_least
        self._exact_below = exact_below
        self._state = _State(self._build(*_nothing(dim)), _Delta(*_nothing(dim), np.empty(0, bool), 0))
        self._writing = threading.Lock()
        self._merging = threading.Lock()
        self._merger: threading.Thread | None = None
        self._closed = False

    def upsert(self, keys: Keys, vectors: Array) -> None:
        """Insert or replace vectors `[n, dim]` under keys `[n]`; of a key given twice the last counts.

        Raises:
            ValueError: another shape, a negative key, or a value that is no finite number.
        """
        keys, vectors = np.asarray(keys, np.int64), self._checked(vectors)
        if keys.shape != (len(vectors),):
            raise ValueError(f"{len(vectors)} vectors need as many keys, got the shape {keys.shape}")
        if (keys < 0).any():
            raise ValueError("keys must not be negative")
        if len(keys) > 1:
            last = len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1]
            keys, vectors = keys[last], vectors[last]
        with self._writing:
            state = self._state
            self._state = _State(state.base.kill(keys), state.delta.kill(keys).append(keys, vectors))
        self._merge_when_due()

    def remove(self, keys: Keys) -> None:
        """Forget keys; unknown ones are ignored."""
        keys = np.asarray(keys, np.int64)
        with self._writing:
            self._state = _State(self._state.base.kill(keys), self._state.delta.kill(keys))
        self._merge_when_due()

    def search(self, queries: Array, k: int, allowed: Mask | None = None) -> tuple[Keys, Array]:
        """Keys `[q, k]` and inner products `[q, k]`, best first, ties by smaller key, padded with -1 and -inf.

        Raises:
            ValueError: another shape, a value that is no finite number, or `k` below 1.
        """
        queries = self._checked(queries)
        if k < 1:
            raise ValueError(f"k must be positive, got {k}")
        state = self._state
        keys, scores = self._search_base(state.base, queries, k, allowed)
        delta = state.delta
        if delta.count:
            more = _scan(delta.rows[: delta.count], delta.keys[: delta.count], delta.alive, queries, k, allowed)
            keys, scores = np.concatenate([keys, more[0]], axis=1), np.concatenate([scores, more[1]], axis=1)
        return _best(keys, scores, k)

    def products(self, queries: Array, vectors: Array) -> Array:
        """Inner products `[q, n]` of queries `[q, dim]` and vectors `[n, dim]`, to the bit as `search` answers them."""
        queries, vectors = self._checked(queries), self._checked(vectors)
        places, scores = _kernel(vectors, queries, len(vectors), None)
        products = np.empty_like(scores)
        np.put_along_axis(products, places, scores, axis=1)
        return products

    def __len__(self) -> int:
        return len(self._state)

    def __contains__(self, key: int) -> bool:
        state = self._state
        delta = state.delta
        in_base = state.base.places(np.array([key], np.int64))[0] >= 0
        return bool(in_base or (delta.alive & (delta.keys[: delta.count] == key)).any())

    def stats(self) -> Mapping[str, int]:
        """Sizes: living rows of the `base` and of the `delta`, and `tombstones` in both."""
        state = self._state
        base, delta = _count(state.base.alive), _count(state.delta.alive)
        dead = len(state.base.alive) + state.delta.count - base - delta
        return {"base": base, "delta": delta, "tombstones": dead}

    def merge(self) -> None:
        """Build a new base of all that lives. Searches and writes go on meanwhile."""
        with self._merging:
            before = self._state
            base = self._build(*_living(before))
            with self._writing:
                now = self._state
                slots = before.delta.count
                # In the new base, yet no longer where they stood when its building began: removed or replaced since.
                lost = np.setdiff1d(base.keys, _living_keys(now, slots), assume_unique=True)
                self._state = _State(base.kill(lost), now.delta.after(slots))

    def close(self) -> None:
        """Start no more merges, and wait for the one that runs."""
        with self._writing:
            self._closed = True
            merger = self._merger
        if merger is not None:
            merger.join()

    def _checked(self, vectors: Array) -> Array:
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"expected vectors [n, {self.dim}], got the shape {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise ValueError("vectors must hold finite numbers only")
        return vectors

    def _build(self, keys: Keys, rows: Array) -> _Base:
        alive = np.ones(len(keys), bool)
        if self._kind == "flat" or not len(keys):
            return _Base(keys, rows, alive)
        graph = faiss.IndexHNSWFlat(self.dim, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = HNSW_EF_CONSTRUCTION
        graph.add(rows)
        storage = FAISS.downcast_index(graph.storage).get_xb()  # one copy of the rows is enough
        return _Base(keys, FAISS.rev_swig_ptr(storage, rows.size).reshape(rows.shape), alive, graph)

    def _search_base(self, base: _Base, queries: Array, k: int, allowed: Mask | None) -> tuple[Keys, Array]:
        if base.graph is None:
            return _scan(base.rows, base.keys, base.alive, queries, k, allowed)
        eligible = _eligible(base.keys, base.alive, allowed)
        if _count(eligible) < max(self._exact_below, 2 * k):
            return _scan(base.rows, base.keys, base.alive, queries, k, allowed)
        return _walk(base, eligible, queries, k)

    def _merge_when_due(self) -> None:
        if self._merge_share is None:
            return
        with self._writing:
            state = self._state
            due = state.garbage >= max(self._merge_at_least, self._merge_share * len(state.base.keys))
            if due and not self._closed and (self._merger is None or not self._merger.is_alive()):
                self._merger = threading.Thread(target=metered(self.merge), name="index-merge", daemon=True)
                self._merger.start()


def _nothing(dim: int) -> tuple[Keys, Array]:
    return np.empty(0, np.int64), np.empty((0, dim), np.float32)


def _living(state: _State) -> tuple[Keys, Array]:
    """Keys in ascending order, and their rows."""
    base, delta = state.base, state.delta
    keys = _living_keys(state, delta.count)
    rows = np.concatenate([base.rows[base.alive], delta.rows[: delta.count][delta.alive]])
    order = np.argsort(keys)
    return keys[order], rows[order]


def _living_keys(state: _State, slots: int) -> Keys:
    """Keys of the base and of the delta's first slots."""
    base, delta = state.base, state.delta
    return np.concatenate([base.keys[base.alive], delta.keys[:slots][delta.alive[:slots]]])


def _eligible(keys: Keys, alive: Mask, allowed: Mask | None) -> Mask:
    """Which rows `[n]` may be found."""
    if allowed is None:
        return alive
    if not len(allowed):
        return np.zeros_like(alive)
    return alive & (keys < len(allowed)) & allowed.take(keys, mode="clip")


def _count(mask: Mask) -> int:
    return int(np.count_nonzero(mask))  # several times as fast as a sum


def _scan(rows: Array, keys: Keys, alive: Mask, queries: Array, k: int, allowed: Mask | None) -> tuple[Keys, Array]:
    """The exact answer over some rows: keys and scores `[q, c]`, the best of which are the k best of all."""
    eligible = _eligible(keys, alive, allowed)
    count = _count(eligible)
    if len(queries) >= BLOCK and count > k + 1 + CANDIDATES:
        return _scan_blocks(rows[eligible], keys[eligible], queries, k)
    selector = None if count == len(rows) else _selector(eligible)
    places, scores = _first(rows, eligible, queries, min(k + 1, count), selector)
    if k + 1 < count:
        # Where the k-th score ties with the next one, FAISS keeps which of them it likes, not the smaller key.
        for row in np.flatnonzero(scores[:, k - 1] == scores[:, k]):
            places[row], scores[row] = _decide_ties(rows, keys, queries[row : row + 1], k, count, selector)
    return np.where(places >= 0, keys[places], -1) if count else places, scores


def _first(rows: Array, eligible: Mask, queries: Array, k: int, selector: Any) -> tuple[Keys, Array]:
    """As `_kernel`, of the eligible rows. Where nearly all are, to look for some more and drop the others takes less
    time than to tell the kernel."""
    depth = min(k + SPARE, len(rows))
    if selector is None or k == 0 or SELECTED * (len(rows) - _count(eligible)) > len(rows):
        return _kernel(rows, queries, k, selector)
    places, scores = _kernel(rows, queries, depth, None)
    lost = ~eligible[places]
    order = np.argsort(lost, axis=1, kind="stable")[:, :k]
    lacking = np.flatnonzero(np.take_along_axis(lost, order[:, -1:], axis=1)[:, 0])
    places, scores = np.take_along_axis(places, order, axis=1), np.take_along_axis(scores, order, axis=1)
    if len(lacking):
        places[lacking], scores[lacking] = _kernel(rows, queries[lacking], k, selector)
    return places, scores


def _scan_blocks(rows: Array, keys: Keys, queries: Array, k: int) -> tuple[Keys, Array]:
    """As `_scan`, over all of the rows `[n, dim]`: candidates by BLAS, and their scores by FAISS' own kernel."""
    depth = k + 1 + CANDIDATES
    found_keys, found = np.empty((len(queries), k + 1), np.int64), np.empty((len(queries), k + 1), np.float32)
    slack = ROUNDING * np.linalg.norm(queries, axis=1) * np.linalg.norm(rows, axis=1).max()
    for start in range(0, len(queries), BLOCK):
        block = slice(start, start + BLOCK)
        places, scores = _knn(rows, queries[block], depth)
        for row, (candidates, last) in enumerate(zip(places, scores[:, -1].tolist(), strict=True), start):
            query = queries[row : row + 1]
            order, exact = _kernel(rows[candidates], query, k + 1, None)
            chosen = candidates[order[0]]
            # One that is no candidate may belong to them, or one that ties.
            if exact[0, k] <= last + slack[row] or exact[0, k] == exact[0, k - 1]:
                chosen, exact = _decide_ties(rows, keys, query, k, len(rows), None)
            found_keys[row], found[row] = keys[chosen], exact
    return found_keys, found


def _decide_ties(rows: Array, keys: Keys, query: Array, k: int, count: int, selector: Any) -> tuple[Keys, Array]:
    """The k + 1 best places and scores of one query, ties by smaller key."""
    depth = k + 1
    while True:
        depth = min(4 * depth, count)
        places, scores = _kernel(rows, query, depth, selector)
        if depth == count or scores[0, -1] < scores[0, k - 1]:
            break
    order = np.lexsort((keys[places[0]], -scores[0]))[: k + 1]
    return places[0][order], scores[0][order]


def _walk(base: _Base, eligible: Mask, queries: Array, k: int) -> tuple[Keys, Array]:
    """The answer of the graph: keys and scores `[q, k]`; a query for which it found too few is scanned."""
    selector = None if eligible.all() else _selector(eligible)
    options = FAISS.SearchParametersHNSW(sel=selector, efSearch=max(HNSW_EF_SEARCH, 2 * k))
    _, places = base.graph.search(queries, k, params=options)
    keys = np.where(places >= 0, base.keys[places], -1)
    scores = np.full(places.shape, -np.inf, np.float32)
    for row, neighbours in enumerate(places):
        if (neighbours < 0).any():
            scanned = _scan(base.rows, base.keys, eligible, queries[row : row + 1], k, None)
            keys[row : row + 1], scores[row : row + 1] = _best(*scanned, k)
        else:
            order, exact = _kernel(base.rows[neighbours], queries[row : row + 1], k, None)
            keys[row], scores[row] = base.keys[neighbours[order[0]]], exact[0]
    return _best(keys, scores, k)


def _kernel(rows: Array, queries: Array, k: int, selector: Any) -> tuple[Keys, Array]:
    """The k best places and scores `[q, k]` by FAISS's brute force; places are -1 where there were too few."""
    places, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    if k == 0:
        return places, scores
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        places[part], scores[part] = _knn(rows, queries[part], k, selector)
    scores[places < 0] = -np.inf
    return places, scores


def _knn(rows: Array, queries: Array, k: int, selector: Any = None) -> tuple[Keys, Array]:
    """FAISS' brute force on all of the queries at once: places and scores `[q, k]`."""
    places, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    pointers = (faiss.swig_ptr(queries), faiss.swig_ptr(rows))
    sizes = (rows.shape[1], len(queries), len(rows), k)
    faiss.knn_inner_product(*pointers, *sizes, faiss.swig_ptr(scores), faiss.swig_ptr(places), selector)
    return places, scores


def _selector(eligible: Mask) -> Any:
    return FAISS.IDSelectorBitmap(np.packbits(eligible, bitorder="little"))


def _best(keys: Keys, scores: Array, k: int) -> tuple[Keys, Array]:
    """Columns in order of score, then key; cut or padded to k."""
    if (scores[:, 1:] < scores[:, :-1]).all():  # as they come from FAISS, unless some tie
        keys, scores = keys[:, :k], scores[:, :k]
    else:
        order = np.lexsort((keys, -scores), axis=-1)[:, :k]
        keys, scores = np.take_along_axis(keys, order, -1), np.take_along_axis(scores, order, -1)
    count = keys.shape[1]
    if count == k:
        return keys, scores
    padded = np.full((len(keys), k), -1, np.int64), np.full((len(keys), k), -np.inf, np.float32)
    padded[0][:, :count], padded[1][:, :count] = keys, scores
    return padded
