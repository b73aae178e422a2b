"""The same calls on every VectorIndex, compared with a dictionary and a sort."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from service.adapters.faiss_index import BLOCK, FaissIndex, use_one_thread
from service.ports import VectorIndex
from tests.fakes import BruteForceIndex

DIM = 6
Make = Callable[..., FaissIndex]

use_one_thread()


def flat(dim: int = DIM, **options: float | None) -> FaissIndex:
    return FaissIndex(dim, kind="flat", **options)


def hnsw(dim: int = DIM, **options: float | None) -> FaissIndex:
    return FaissIndex(dim, kind="hnsw", **options)


every_kind = pytest.mark.parametrize("make", [flat, hnsw])
every_index = pytest.mark.parametrize("make", [flat, hnsw, BruteForceIndex])


def whole(rng: np.random.Generator, n: int, dim: int = DIM) -> np.ndarray:
    """Small whole numbers: inner products are exact in float32, and ties are everywhere."""
    return rng.integers(-2, 3, (n, dim)).astype(np.float32)


def agree(
    left: VectorIndex, right: VectorIndex, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> None:
    for mine, theirs in zip(left.search(queries, k, allowed), right.search(queries, k, allowed), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert len(left) == len(right)


@every_kind
@pytest.mark.parametrize("seed", range(6))
def test_random_writes_agree_with_brute_force(make: Make, seed: int) -> None:
    rng = np.random.default_rng(seed)
    index, expected = make(merge_share=None), BruteForceIndex(DIM)
    for _ in range(40):
        keys = rng.integers(0, 80, rng.integers(1, 25))
        vectors = whole(rng, len(keys))
        if rng.random() < 0.65:
            index.upsert(keys, vectors)
            expected.upsert(keys, vectors)
        else:
            index.remove(keys)
            expected.remove(keys)
        if rng.random() < 0.2:
            index.merge()
        allowed = None if rng.random() < 0.4 else rng.random(rng.integers(0, 100)) < rng.random()
        agree(index, expected, whole(rng, 3), int(rng.integers(1, 30)), allowed)
        key = int(rng.integers(0, 80))
        assert (key in index) == (key in expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_first_of_many_are_those_of_few(seed: int) -> None:
    """Wherever equal ones are cut off, in the base, in the delta, or between the two."""
    rng = np.random.default_rng(seed)
    kinds = rng.standard_normal((25, 48)).astype(np.float32)
    index, expected = flat(48, merge_share=None), BruteForceIndex(48)
    keys = rng.permutation(600)
    for start, merge in ((0, True), (200, False), (400, False)):
        some = keys[start : start + 200]
        vectors = kinds[rng.integers(0, 25, 200)]
        for each in (index, expected):
            each.upsert(some, vectors)
        if merge:
            index.merge()
    query = kinds[:1]
    allowed = rng.random(600) < 0.9
    for mask in (None, allowed):
        every, scores = index.search(query, 600, mask)
        assert np.array_equal(np.lexsort((every[0], -scores[0])), np.arange(600)) or mask is not None
        for k in (1, 2, 7, 50, 99, 100, 101, 250, 500):
            found, its = index.search(query, k, mask)
            assert found.tolist() == every[:, :k].tolist()
            assert its.tobytes() == scores[:, :k].tobytes()
    exact = whole(rng, 25, 48)  # where brute force, too, computes the very same numbers
    index.upsert(keys, exact[keys % 25])
    expected.upsert(keys, exact[keys % 25])
    for k in (1, 30, 100, 333, 600):
        agree(index, expected, exact[:2], k, allowed)


@pytest.mark.parametrize("dim", [16, 128])  # at the wider one FAISS does turn to BLAS
@pytest.mark.parametrize("kind", ["spread", "close", "equal"])
def test_many_queries_are_answered_as_each_alone(kind: str, dim: int) -> None:
    """To the bit, ties included, over rows of a base, of a delta, and with some that may not be found."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((1500, dim)).astype(np.float32)
    if kind == "close":  # nearer than rounding can tell
        rows = rows[:1] + rng.standard_normal((1500, dim)).astype(np.float32) * np.float32(1e-6)
    elif kind == "equal":
        rows = rows[rng.integers(0, 40, 1500)]
    index = flat(dim, merge_share=None)
    index.upsert(np.arange(1200), rows[:1200])
    index.merge()
    index.upsert(np.arange(1100, 1500), rows[1100:])
    queries = np.resize(rows, (BLOCK + 60, dim))
    for allowed in (None, rng.random(1500) < 0.7):
        keys, scores = index.search(queries, 20, allowed)
        alone = [index.search(query[None], 20, allowed) for query in queries]
        assert keys.tolist() == [one[0][0].tolist() for one in alone]
        assert scores.tobytes() == b"".join(one[1].tobytes() for one in alone)


@every_index
def test_empty_index_answers_padding(make: Make) -> None:
    keys, scores = make(DIM).search(np.ones((2, DIM), np.float32), 3)
    assert keys.tolist() == [[-1] * 3] * 2
    assert np.isneginf(scores).all()


@every_index
def test_short_rows_are_padded_and_ties_go_to_the_smaller_key(make: Make) -> None:
    index = make(DIM)
    index.upsert(np.array([9, 4, 7]), np.ones((3, DIM), np.float32))
    keys, scores = index.search(np.ones((1, DIM), np.float32), 5)
    assert keys.tolist() == [[4, 7, 9, -1, -1]]
    assert scores.tolist() == [[6, 6, 6, -np.inf, -np.inf]]
    assert index.search(np.ones((1, DIM), np.float32), 2)[0].tolist() == [[4, 7]]


@every_index
def test_allowed_keeps_keys_out_also_beyond_its_end(make: Make) -> None:
    index = make(DIM)
    index.upsert(np.arange(6), np.ones((6, DIM), np.float32))
    keys, _ = index.search(np.ones((1, DIM), np.float32), 6, np.array([True, False, True]))
    assert keys.tolist() == [[0, 2, -1, -1, -1, -1]]
    assert (index.search(np.ones((1, DIM), np.float32), 6, np.zeros(6, bool))[0] == -1).all()


@every_kind
def test_replacing_and_readding_leaves_one_entry(make: Make) -> None:
    index = make(merge_share=None)
    for merge in (False, True, False):
        index.upsert(np.array([5, 5]), np.array([[9] * DIM, [2] * DIM], np.float32))
        if merge:
            index.merge()
    index.remove(np.array([5, 77]))
    assert 5 not in index
    index.upsert(np.array([5]), np.full((1, DIM), 3, np.float32))
    keys, scores = index.search(np.ones((1, DIM), np.float32), 2)
    assert (keys.tolist(), scores.tolist()) == ([[5, -1]], [[18, -np.inf]])
    index.merge()
    assert index.stats() == {"base": 1, "delta": 0, "tombstones": 0}


@every_kind
def test_what_cannot_be_indexed_is_refused(make: Make) -> None:
    index = make()
    good = np.ones((1, DIM), np.float32)
    for bad in (good[:, 1:], good[0], good * np.nan, good * np.inf):
        with pytest.raises(ValueError, match=r"vectors"):
            index.upsert(np.array([1]), bad)
        with pytest.raises(ValueError, match=r"vectors"):
            index.search(bad, 1)
    with pytest.raises(ValueError, match="negative"):
        index.upsert(np.array([-1]), good)
    with pytest.raises(ValueError, match="as many keys"):
        index.upsert(np.array([1, 2]), good)
    with pytest.raises(ValueError, match="k must be positive"):
        index.search(good, 0)
    with pytest.raises(ValueError, match="positive dimension"):
        FaissIndex(0)
    assert len(index) == 0


@every_kind
def test_same_bits_alone_in_a_batch_and_after_a_merge(make: Make) -> None:
    rng = np.random.default_rng(3)
    index = make(64, merge_share=None)
    index.upsert(np.arange(700), rng.standard_normal((700, 64)).astype(np.float32))
    queries = rng.standard_normal((70, 64)).astype(np.float32)
    together = index.search(queries, 20)
    alone = [index.search(query[None], 20) for query in queries]
    index.merge()
    merged = index.search(queries, 20)
    assert together[1].tobytes() == merged[1].tobytes() == b"".join(scores.tobytes() for _, scores in alone)
    assert together[0].tobytes() == merged[0].tobytes() == b"".join(keys.tobytes() for keys, _ in alone)


def test_graph_finds_nearly_all_and_nothing_forbidden() -> None:
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((3000, 16)).astype(np.float32)
    queries = rng.standard_normal((50, 16)).astype(np.float32)
    graph, exact = hnsw(16, merge_share=None, exact_below=0), flat(16)
    for index in (graph, exact):
        index.upsert(np.arange(3000), vectors)
    graph.merge()
    gone = np.arange(0, 3000, 7)
    for index in (graph, exact):
        index.remove(gone)
    allowed = rng.random(3000) < 0.5
    for mask in (None, allowed):
        keys, scores = graph.search(queries, 10, mask)
        expected, best = exact.search(queries, 10, mask)
        shared = np.mean([len(np.intersect1d(*pair)) / 10 for pair in zip(keys, expected, strict=True)])
        assert shared > 0.95
        assert not np.isin(keys, gone).any()
        assert (np.diff(scores, axis=1) <= 0).all()
        assert scores[keys == expected].tobytes() == best[keys == expected].tobytes()
    assert allowed[keys].all()


def test_graph_is_scanned_where_it_finds_too_few() -> None:
    rng = np.random.default_rng(5)
    graph = hnsw(16, merge_share=None, exact_below=0)
    graph.upsert(np.arange(2000), rng.standard_normal((2000, 16)).astype(np.float32))
    graph.merge()
    allowed = np.zeros(2000, bool)
    allowed[rng.choice(2000, 12, replace=False)] = True
    keys, _ = graph.search(rng.standard_normal((20, 16)).astype(np.float32), 6, allowed)
    assert allowed[keys].all()


@every_kind
def test_delta_is_merged_in_the_background(make: Make) -> None:
    rng = np.random.default_rng(6)
    index = make(merge_share=0.1, merge_at_least=50)
    for start in range(0, 200, 10):
        index.upsert(np.arange(start, start + 10), whole(rng, 10))
    index.close()
    assert index.stats()["base"] >= 50
    assert len(index) == 200


@every_kind
def test_writes_during_a_merge_are_kept(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make(merge_share=None)
    index.upsert(np.arange(4), np.ones((4, DIM), np.float32))
    build = index._build

    def meanwhile(*args: np.ndarray) -> object:
        index.remove(np.array([0]))
        index.upsert(np.array([1, 9]), np.full((2, DIM), 2, np.float32))
        index.remove(np.array([2]))
        index.upsert(np.array([2]), np.full((1, DIM), 3, np.float32))
        return build(*args)

    monkeypatch.setattr(index, "_build", meanwhile)
    index.merge()
    keys, scores = index.search(np.ones((1, DIM), np.float32), 6)
    assert keys.tolist() == [[2, 1, 9, 3, -1, -1]]
    assert scores[0, :4].tolist() == [18, 12, 12, 6]
    assert len(index) == 4


@every_kind
def test_searches_and_writes_from_several_threads(make: Make) -> None:
    index = make(merge_share=0.05, merge_at_least=20)
    index.upsert(np.arange(100), np.ones((100, DIM), np.float32))
    wrong: list[object] = []

    def write(first: int) -> None:
        for turn in range(60):
            key = np.array([first + turn % 20])
            index.remove(key)
            index.upsert(key, np.full((1, DIM), 2, np.float32))

    def read() -> None:
        for _ in range(120):
            keys, _ = index.search(np.ones((1, DIM), np.float32), 150)
            found = keys[keys >= 0]
            if len(np.unique(found)) != len(found) or not set(range(100)) <= set(found.tolist()):
                wrong.append(keys)

    threads = [threading.Thread(target=write, args=(first,)) for first in (200, 300)]
    threads += [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    index.close()
    assert not wrong
    assert len(index) == 140
