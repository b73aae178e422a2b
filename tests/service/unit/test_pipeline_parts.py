"""Parts of the pipeline by themselves: ranking, the catalogue, packed state, locks, histories, merging."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.arrays import Mask
from models.dgmrec.serving import DGMRecServing
from models.evidence import ImputationEvidence
from models.feedback import Interaction
from models.imputers import propagate_features
from models.iris.serving import IRISServing, ItemSides
from service.adapters.faiss_index import FaissIndex
from service.adapters.redis.notifier import NoNotifier
from service.domain import State
from service.pipeline import history, rank, rows
from service.pipeline.catalogue import FINAL, Catalogue, Derived, Entry, Shape
from service.pipeline.encode import media_type
from service.pipeline.impute import ImputationInput, UserEvidence, _basis, _factors, _fallback_chain, _fallback_guess
from service.pipeline.patch import merged
from service.pipeline.regenerate import may_depend
from service.pipeline.runtime import Runtime
from service.ports import Keys
from tests.fakes import BruteForceIndex
from tests.models.worlds import ITEMS, SMALL, online_of, world

SHAPE = Shape({"text": 3, "image": 2}, 2, 1, neighbours=2, kernel=3)
LISTS = SHAPE.list_fields(later=False) | SHAPE.list_fields(later=True)
VECTORS = {name: shape for name, shape in SHAPE.layer_fields().items() if name != "near"} | LISTS


class Whole(NamedTuple):
    """What is stored of an item, and its vectors by field of a layer."""

    derived: Derived
    vectors: dict[str, NDArray[Any]]


def whole(seed: int = 0, *, modal: tuple[float, float] = (0.0, 0.0)) -> Whole:
    rng = np.random.default_rng(seed)
    stored = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPE.fields().items()}
    made: dict[str, NDArray[Any]] = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in VECTORS.items()
    }
    made |= {name: rng.integers(9, size=VECTORS[name]).astype(np.int32) for name in ("near.list", "kernel.list")}
    made |= {"modal": np.array(modal, dtype=np.float32), "warm": np.array(True)}
    return Whole(Derived.of(stored), made)


def entry(
    item_id: str, *categories: str, key: int | None = None, created: float = 0.0, available: bool = True,
    absent: bool = False,
) -> Entry:  # fmt: skip
    """Items `a`, `b`, ... have the keys 0, 1, ... if no other is given."""
    states = {"text": State.OBSERVED, "image": State.ABSENT if absent else State.GENERATED}
    place = ord(item_id[0]) - ord("a") if key is None else key
    return Entry(place, item_id, item_id.upper(), categories, available, 1, created, states, {})


def catalogue(*rows: tuple[Entry, Whole]) -> Catalogue:
    made = Catalogue(SHAPE, BruteForceIndex)
    put(made, *rows)
    return made


def put(made: Catalogue, *rows: tuple[Entry, Whole]) -> None:
    """Put items, with these vectors instead of computed ones."""

    def write(keys: Keys, _moved: Mask) -> None:
        made.write_layer(keys, {name: np.stack([row.vectors[name] for _, row in rows]) for name in rows[0][1].vectors})

    made.put([(entry, row.derived) for entry, row in rows], write)


# --- ranking ------------------------------------------------------------------------------------------------------


def test_diversity_takes_twins_apart() -> None:
    made = catalogue(
        (entry("a"), whole(modal=(1, 0))), (entry("b"), whole(modal=(1, 0))), (entry("c"), whole(modal=(-1, 0)))
    )
    keys, scores = np.arange(3), np.array([3, 2.9, 1], dtype=np.float32)

    def order(diversity: float, n: int = 3) -> list[int]:
        found, kept = rank.diversified(made, keys, scores, n, diversity)
        assert kept.tolist() == scores[found].tolist()
        return found.tolist()

    assert order(0.01) == [0, 1, 2]
    assert order(0.9) == order(1.0) == [0, 2, 1]
    assert order(0.9, n=2) == [0, 2]


def test_diversity_of_equals_and_of_nothing() -> None:
    made = catalogue(*((entry(name), whole()) for name in "abc"))
    equal = np.ones(3, dtype=np.float32)
    assert rank.diversified(made, np.arange(3), equal, 3, 0.5)[0].tolist() == [0, 1, 2]
    nothing = rank.diversified(made, np.arange(0), np.ones(0, dtype=np.float32), 3, 0.5)
    assert [len(part) for part in nothing] == [0, 0]


def test_popular_items_with_as_many_users_are_in_order_of_age() -> None:
    made = catalogue(*((entry(name, created=age), whole()) for name, age in zip("abcde", (5, 9, 9, 1, 7), strict=True)))
    made.set_popularity({"a": 2, "b": 1, "c": 1, "d": 1, "e": 1, "gone": 5})
    for n in range(1, 6):
        keys, users = rank.popular(made, n, made.eligible())
        assert [made.entries[key].id for key in keys.tolist()] == ["a", "b", "c", "e", "d"][:n]
        assert users.tolist() == [2, 1, 1, 1, 1][:n]
    assert len(rank.popular(made, 3, np.zeros(made.capacity, dtype=np.bool_))[0]) == 0


def test_of_items_created_at_once_the_later_row_is_the_newer() -> None:
    made = catalogue(*((entry(name, created=9.0), whole()) for name in "abcd"))
    for n in range(1, 5):
        assert rank.latest(made, n, made.eligible())[0].tolist() == [3, 2, 1, 0][:n]
        assert rank.popular(made, n, made.eligible())[0].tolist() == [0, 1, 2, 3][:n]


def crowd(count: int = 700) -> Catalogue:
    """Items many of which are alike."""
    rng = np.random.default_rng(3)
    kinds = [whole(seed, modal=(rng.normal(), rng.normal())) for seed in range(90)]
    made = Catalogue(SHAPE, FaissIndex)
    put(made, *((entry(f"i{key}", key=key), kinds[rng.integers(90)]) for key in range(count)))
    return made


@pytest.mark.parametrize("diversity", [0.0, 0.2, 1.0])
def test_the_first_places_of_a_list_do_not_depend_on_its_length(diversity: float) -> None:
    made = crowd()
    vector = np.array([0.6, -0.8], dtype=np.float32)
    keys, scores = rank.best(made, vector, 500, made.eligible(), diversity)
    assert len(keys) == 500
    for index in made.indexes.values():  # and a merge changes nothing
        index.merge()  # type: ignore[attr-defined]  # a FaissIndex
    for n in (1, 2, 19, 20, 21, 60, 250, 499):
        first, its = rank.best(made, vector, n, made.eligible(), diversity)
        assert first.tolist() == keys[:n].tolist()
        assert its.tobytes() == scores[:n].tobytes()
    if diversity == 0:
        assert np.array_equal(np.lexsort((keys, -scores)), np.arange(500))  # ties by key


class Plain:
    """Instead of IRIS: items are scored by their item bias, equal ones with other last bits wherever they stand."""

    def alike(self, past: Any, *, weights: Any) -> NDArray[np.float32]:  # noqa: ARG002
        return np.array([0.3, -0.1, 1.0], dtype=np.float32)

    def score(self, past: Any, targets: ItemSides, *, weights: Any, same: Any) -> NDArray[np.float32]:  # noqa: ARG002
        noise = np.arange(len(targets)) * np.float32(1e-7)
        return np.asarray(targets.item_bias + noise, dtype=np.float32)


def reranked_crowd(n: int, diversity: float = 0.0) -> tuple[list[int], list[float]]:
    """Keys and scores of a list of 60 items of 12 kinds."""
    shapes = {"p": (2,), "q": (2,), "item_bias": (), "history": (1,), "target": (1,), "without": (1, 1)}
    rng = np.random.default_rng(5)
    made = Catalogue(replace(SHAPE, sides=shapes), FaissIndex)
    kinds = [{name: rng.normal(size=dims).astype(np.float32) for name, dims in shapes.items()} for _ in range(12)]
    for key in range(60):
        one = whole(key % 30)
        put(made, (entry(f"i{key}", key=key), one._replace(derived=replace(one.derived, sides=kinds[key % 12]))))
    past, vector = history.past_of(made, np.array([1, 2])), np.array([0.6, -0.8], dtype=np.float32)
    reranker = cast(IRISServing, Plain())
    keys, scores = rank.reranked(made, reranker, vector, past, n, made.eligible(), diversity)
    return keys.tolist(), scores.tolist()


@pytest.mark.parametrize("diversity", [0.0, 0.7])
def test_the_first_places_of_a_reranked_list_do_not_depend_on_its_length(
    monkeypatch: pytest.MonkeyPatch, diversity: float
) -> None:
    monkeypatch.setattr(rank, "CANDIDATES", 8)
    keys, scores = reranked_crowd(60, diversity)
    assert sorted(keys) == list(range(60))
    for n in range(1, 60):
        assert reranked_crowd(n, diversity) == (keys[:n], scores[:n])


def test_between_items_that_iris_cannot_tell_apart_the_key_decides() -> None:
    keys, scores = reranked_crowd(60)
    # Those that stand in the history themselves have another history than their likes.
    alike = [(score, key) for key, score in zip(keys, scores, strict=True) if key not in (1, 2)]
    assert alike == sorted(alike, key=lambda pair: (-pair[0], pair[1]))
    assert len({score for score, _ in alike}) == 12


def test_the_score_of_the_latest_is_their_time_to_the_second() -> None:
    now = 1_790_000_000.0
    made = catalogue(*((entry(name, created=now + step), whole()) for step, name in enumerate("abc")))
    keys, times = rank.latest(made, 2, made.eligible())
    assert keys.tolist() == [2, 1]
    assert times.tolist() == [now + 2, now + 1]


# --- the catalogue ------------------------------------------------------------------------------------------------


def assert_kept(made: Catalogue, key: int, kept: Whole) -> None:
    """Everything of an item is as it was put."""
    for name, value in kept.derived.fields().items():
        np.testing.assert_array_equal(made.rows.get(name, key), value, err_msg=name)
    for name, value in kept.vectors.items():
        np.testing.assert_array_equal(made.read_layer(np.array([key]), name)[0], value, err_msg=name)


def test_rows_survive_the_growth_of_the_arrays() -> None:
    made = catalogue((entry("first", "kept", key=0), whole(1)))
    made.set_popularity({"first": 3})
    put(made, *((entry(f"n{number}", "many", key=number + 1), whole(number)) for number in range(2500)))
    assert made.capacity >= 2501
    assert len(made) == 2501
    key = made.key("first")
    assert key == 0
    assert made.popularity[key] == 3
    assert made.observed[key].tolist() == [True, False]
    assert_kept(made, key, whole(1))
    assert_kept(made, 2401, whole(2400))
    np.testing.assert_array_equal(made.final(made.keys(["n2400"]))[0], whole(2400).vectors["final"])
    assert made.count_categories() == {"many": 2500, "kept": 1}


def test_an_item_that_is_created_again_has_another_key() -> None:
    made = catalogue((entry("a", "x"), whole(1)), (entry("b", "x", "y"), whole(2)))
    made.remove("a")
    made.remove("never there")
    assert "a" not in made
    assert made.entry("a") is None
    assert all(0 not in index for index in made.indexes.values())
    assert made.count_categories() == {"x": 1, "y": 1}
    put(made, (entry("a", key=2), whole(3)))
    assert made.key("a") == 2
    assert made.keys(["a", "gone", "b"]).tolist() == [2, 1]
    put(made, (entry("a", "z", key=3), whole(4)))  # another worker deleted and created it
    assert np.flatnonzero(made.eligible()).tolist() == [1, 3]
    assert all(2 not in index for index in made.indexes.values())
    assert len(made) == 2


def test_a_replaced_item_leaves_its_categories_and_lost_modalities() -> None:
    made = catalogue((entry("a", "x", "y"), whole(1)), (entry("b", "x"), whole(2)))
    assert 0 in made.indexes["image"]
    put(made, (entry("a", "y", "z", available=False, absent=True), whole(1)))
    assert made.key("a") == 0
    assert 0 not in made.indexes["image"]
    assert made.count_states()["image"] == {"absent": 1, "observed": 0, "generated": 1}
    assert np.flatnonzero(made.eligible(["x"])).tolist() == [1]
    assert np.flatnonzero(made.eligible(["y"])).tolist() == []
    assert made.count_categories() == {"x": 1, "y": 1, "z": 1}


def test_removed_items_take_memory_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "SPARE", 2)
    made = catalogue(*((entry(name, "x"), whole(row, modal=(row, 1))) for row, name in enumerate("abcdef")))
    before = made.final(np.array([5]))
    for gone, name in enumerate("abcd", 1):
        made.remove(name)
        left = np.flatnonzero(made.rows.get("modal", np.arange(6)).any(axis=1)).tolist()
        assert left == (list(range(6)) if gone < 4 else [4, 5])
    assert np.flatnonzero(made.eligible(["x"])).tolist() == [4, 5]
    assert np.array_equal(made.final(np.array([5])), before)


def test_memory_follows_the_items_that_are_there_not_those_that_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "SPARE", 8)
    made = catalogue((entry("kept", key=1), whole(1)))
    for key in range(2, 500):
        put(made, (entry("again", key=key), whole(key)))
        assert_kept(made, key, whole(key))
        made.remove("again")
    floats = SHAPE.length + sum(int(np.prod(shape)) for name, shape in VECTORS.items() if name != "warm")
    assert sum(part.nbytes for part in (made.rows, *made.near.rows, *made.kernel.rows)) <= 16 * floats * 4
    assert_kept(made, 1, whole(1))
    gone = np.array([-1, 0, 2, 490])
    for name in (*SHAPE.fields(), "modal", "final"):
        assert not made.rows.get(name, gone).any()
    for name in ("near", "kernel"):
        assert (made.read_layer(gone, name) == -1).all()
    assert not made.warm[gone[1:]].any()


def test_what_is_eligible_and_observed() -> None:
    made = catalogue(*((entry(name, "x"), whole(row)) for row, name in enumerate("abc")))
    assert np.flatnonzero(made.eligible(["x"], np.array([1]))).tolist() == [0, 2]
    assert np.flatnonzero(made.eligible(["unheard-of"])).tolist() == []
    assert np.flatnonzero(made.having("text", excluded=2)).tolist() == [0, 1]
    assert not made.having("text", "image").any()


def test_items_are_found_by_their_final_vectors() -> None:
    made = catalogue(*((entry(name), whole(seed)) for seed, name in enumerate("abc")))
    expected = np.stack([whole(seed).vectors["final"] for seed in range(3)])
    np.testing.assert_array_equal(made.final(np.arange(3)), expected)
    _, scores = made.indexes[FINAL].search(expected[1:2], 3)
    np.testing.assert_allclose(scores[0], np.sort(expected @ expected[1])[::-1], rtol=1e-5)


def test_an_id_leads_to_a_row_only_once_the_row_is_complete() -> None:
    """Searches run while the writer writes."""

    class Watching(BruteForceIndex):
        def upsert(self, keys: Any, vectors: Any) -> None:
            assert made.key("new") is None
            assert all(key in made.entries and key < made.capacity for key in keys.tolist())
            super().upsert(keys, vectors)

    made = Catalogue(SHAPE, Watching)
    put(made, (entry("new", key=0), whole()))
    assert made.key("new") == 0
    assert 0 in made.indexes[FINAL]


def test_packed_state_comes_back_to_the_bit() -> None:
    one = whole(7).derived
    packed = one.pack(SHAPE)
    again = Derived.unpack(packed, SHAPE)
    assert again is not None
    assert again.pack(SHAPE) == packed
    for name, value in one.fields().items():
        np.testing.assert_array_equal(again.fields()[name], value)
    for wrong in (b"", packed[:-1], packed[:-4], packed + b"\0\0\0\0"):
        assert Derived.unpack(wrong, SHAPE) is None
    assert Derived.unpack(packed, Shape({"text": 3}, 2, 1)) is None


# --- locks --------------------------------------------------------------------------------------------------------


def runtime_of_nobody() -> Runtime:
    return Runtime(NoNotifier())


async def test_a_lock_lets_one_in_at_a_time_in_the_order_of_arrival() -> None:
    runtime, order = runtime_of_nobody(), []

    async def work(number: int) -> None:
        async with runtime.lock("a"):
            order.append(("in", number))
            await asyncio.sleep(0)
            order.append(("out", number))

    await asyncio.gather(*(work(number) for number in range(4)))
    assert order == [(way, number) for number in range(4) for way in ("in", "out")]
    assert not runtime.is_locked("a")


async def test_holders_of_several_locks_do_not_wait_in_a_circle() -> None:
    runtime, done = runtime_of_nobody(), []

    async def work(*names: str) -> None:
        async with runtime.lock(*names):
            await asyncio.sleep(0)
            done.append(names)

    pairs = [("a", "b"), ("b", "a"), ("b", "c", "b"), ("c", "a"), ()] * 5
    await asyncio.wait_for(asyncio.gather(*(work(*names) for names in pairs)), 5)
    assert len(done) == 25
    assert not any(map(runtime.is_locked, "abc"))


async def test_who_gives_up_waiting_leaves_no_lock_behind() -> None:
    runtime = runtime_of_nobody()

    async def wait() -> None:
        async with runtime.lock("a"):
            pytest.fail("somebody else holds it")

    async with runtime.lock("a"):
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert runtime.is_locked("a")
    assert not runtime.is_locked("a")


async def test_background_work_that_fails_is_logged_and_done(caplog: pytest.LogCaptureFixture) -> None:
    runtime, after = runtime_of_nobody(), []

    async def fail() -> None:
        raise ValueError("out of luck")

    async def more() -> None:
        await asyncio.sleep(0)
        after.append(1)

    async def work() -> None:
        runtime.background(more())

    runtime.background(fail())
    runtime.background(work())
    await runtime.drain()
    assert after == [1]
    assert "background work failed" in caplog.text


# --- histories ----------------------------------------------------------------------------------------------------


class SlowStore:
    """Answers a user's items when it is told to."""

    def __init__(self) -> None:
        self.items: list[Interaction] = []
        self.asked = 0
        self.go = asyncio.Event()

    async def user_items(self, users: Collection[str], **_: object) -> dict[str, list[Interaction]]:
        self.asked += 1
        found = {user: list(self.items) for user in users}
        await self.go.wait()
        return found


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def interaction(item: str, *, interested: bool = True, minute: int = 0) -> Interaction:
    """First of that minute, and decided an hour later."""
    first = NOON + timedelta(minutes=minute)
    return Interaction(item, first + timedelta(hours=1), interested, first)


def histories_of(store: SlowStore, **options: int) -> history.Histories:
    return history.Histories(cast(Any, store), None, **options)


async def test_readers_of_one_history_share_one_reading() -> None:
    store = SlowStore()
    histories = histories_of(store)
    waiting = [asyncio.create_task(histories.of("u")) for _ in range(5)]
    await asyncio.sleep(0)
    store.go.set()
    assert {(await one).seen for one in waiting} == {()}
    await histories.of("u")
    assert store.asked == 1
    assert histories.loading == {}


async def test_histories_of_several_users_are_one_reading_beside_that_which_goes_on() -> None:
    store = SlowStore()
    histories = histories_of(store)
    first = asyncio.create_task(histories.of("a"))
    await asyncio.sleep(0)
    others = asyncio.create_task(histories.of_all(["a", "b", "c"]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # both are being read
    store.items.append(interaction("x"))
    histories.forget(["c"])
    store.go.set()
    assert {user: found.seen for user, found in (await others).items()} == {"a": (), "b": (), "c": ()}
    assert (await first).seen == ()
    assert store.asked == 2
    assert {user for user, _ in histories.cached()} == {"a", "b"}  # of c, somebody wrote
    assert (await histories.of("c")).seen == ("x",)
    assert histories.loading == {}


async def test_a_write_while_a_history_is_read_is_not_lost() -> None:
    store = SlowStore()
    histories = histories_of(store)
    before = asyncio.create_task(histories.of("u"))
    await asyncio.sleep(0)
    store.items.append(interaction("a"))
    histories.forget(["u"])
    after = asyncio.create_task(histories.of("u"))
    await asyncio.sleep(0)
    store.go.set()
    assert (await after).seen == ("a",)
    await before  # it asked before the write, and may have its answer; the cache may not
    assert (await histories.of("u")).seen == ("a",)
    assert histories.loading == {}


async def test_a_reader_that_leaves_does_not_take_the_others_along() -> None:
    store = SlowStore()
    histories = histories_of(store)
    leaving, staying = (asyncio.create_task(histories.of("u")) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    store.go.set()
    assert (await staying).seen == ()


async def test_the_least_recently_used_histories_are_dropped() -> None:
    store = SlowStore()
    store.go.set()
    histories = histories_of(store, size=2)
    for user in ("a", "b", "a", "c"):
        await histories.of(user)
    assert dict(histories.cached()).keys() == {"a", "c"}


async def test_looking_at_the_cached_histories_is_no_use_of_them() -> None:
    store = SlowStore()
    store.go.set()
    histories = histories_of(store, size=2)
    for user in ("a", "b", "a"):
        await histories.of(user)
    assert {user for user, _ in histories.cached()} == {"a", "b"}
    await histories.of("c")  # takes the place of the least recently used, which is still b
    assert {user for user, _ in histories.cached()} == {"a", "c"}


def test_a_history_is_all_that_was_seen_and_the_newest_that_are_liked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "PROFILE", 2)
    items = [interaction("a", minute=3), interaction("b", interested=False), interaction("c"), interaction("d")]
    found, noon = history.of_items(items), NOON.timestamp()
    assert found == history.History(("a", "b", "c", "d"), ("a", "c", "d"), ("b",), (noon + 180, noon, noon))
    assert found.profile == ("a", "c")
    assert history.of_items([]) == history.History((), (), ())


def test_what_a_user_was_interested_in_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time of the first event with an item; the last of it where it is much."""
    minutes = {"a": 4, "b": 2, "c": 3, "d": 1, "e": 2}  # in the order of the events that decide
    items = [interaction(item, minute=minute) for item, minute in minutes.items()]
    found = history.of_items([interaction("no", interested=False, minute=0), *items])
    assert found.earlier("a") == ["b", "c", "d", "e"]
    assert found.earlier("b") == ["d", "e"]  # e in the same minute
    assert found.earlier("e") == ["b", "d"]
    assert found.earlier("d") == []
    assert found.earlier("no") is None
    assert found.earlier("never") is None
    monkeypatch.setattr(history, "EARLIER", 2)
    assert sorted(found.earlier("a") or ()) == ["c", "e"]


# --- regeneration -------------------------------------------------------------------------------------------------


def test_what_users_of_an_item_change() -> None:
    """Generated parts, and the collaborative part of an item that training did not see."""
    made = Catalogue(SHAPE, BruteForceIndex, lambda item: {"a": 0, "b": 1}.get(item))
    all_observed = dict.fromkeys(SHAPE.names, State.OBSERVED)
    lacks_nothing = [replace(entry(name), states=all_observed) for name in "bc"]
    put(made, (entry("a"), whole()), *((one, whole()) for one in lacks_nothing), (entry("e"), whole()))
    # b alone does not: training knew it, and nothing is generated; d, whose key is 3, nobody knows here yet
    assert may_depend(made, [0, 1, 2, 3, 4]) == [0, 2, 3, 4]
    made.remove("b")
    assert may_depend(made, [1]) == [1]


# --- small things -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [  # the examples of RFC 7396, appendix A, that are objects on both sides
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merging(target: dict[str, Any], patch: dict[str, Any], result: dict[str, Any]) -> None:
    before = repr(target)
    assert merged(target, patch) == result
    assert repr(target) == before


def test_a_file_is_what_it_begins_with() -> None:
    assert media_type(b"\xff\xd8\xff\xe0") == "image/jpeg"
    assert media_type(b"<svg") == "application/octet-stream"


# --- collaborative factors ----------------------------------------------------------------------------------------


def test_factors_of_an_item_are_those_of_training_for_the_same_users() -> None:
    w = world()
    model = online_of(w)
    histories = w.graphs.user_mean.matrix.toarray() > 0
    nothing = np.zeros(0, dtype=np.float32)

    def users(item: int) -> list[UserEvidence]:
        touching = [f"u{user}" for user in np.flatnonzero(histories[:, item])]
        return [UserEvidence(nothing, nothing, np.arange(0), model.user_factor(user)) for user in touching]

    late = UserEvidence(nothing, nothing, np.arange(0), model.user_factor("late"))
    trained = w.evidence.factors.numpy()
    for item in np.flatnonzero(histories.any(axis=0)):
        np.testing.assert_allclose(_factors(model, ImputationInput({}, users(item))), trained[item], atol=1e-6)
        with_late = ImputationInput({}, [*users(item), late], factors=trained[0])  # nobody knows a late user's factors
        np.testing.assert_allclose(_factors(model, with_late), trained[item], atol=1e-6)
    assert not _factors(model, ImputationInput({}, [late])).any()
    assert not _factors(model, ImputationInput({})).any()
    np.testing.assert_array_equal(_factors(model, ImputationInput({}, factors=trained[3])), trained[3])


# --- the fallback chain -------------------------------------------------------------------------------------------

KNOWN_KEYS = 100  # items' keys are their rows from here on; a later item has the key before


def chain_parts(imputation: str = "generate") -> tuple[DGMRecServing, Catalogue]:
    w = world(config=SMALL.model_copy(update={"imputation": imputation}))
    ids = {KNOWN_KEYS - 1: "late"} | {KNOWN_KEYS + row: f"i{row}" for row in range(ITEMS)}
    entries = {key: SimpleNamespace(id=item_id) for key, item_id in ids.items()}
    return online_of(w), cast(Catalogue, SimpleNamespace(entries=entries))


def user(*keys: int) -> UserEvidence:
    nothing = np.zeros(0, dtype=np.float32)
    return UserEvidence(nothing, nothing, np.array(keys, dtype=np.int64))


def test_the_graph_is_read_as_in_training() -> None:
    """A cell of a known item, told by its users, is that of the catalogue's own guesses; later items tell nothing."""
    w, (model, known_items) = world(), chain_parts()
    propagated = propagate_features(w.evidence.own, w.batch.observed, w.graphs, "multi-hop", {"hops": 2})
    guesses = propagated.imputations(w.graphs)["m1"]
    histories = w.graphs.user_mean.matrix.toarray() > 0
    compared = 0
    for item in np.flatnonzero(~w.batch.observed[:, 1].numpy() & histories.any(axis=0)):
        others = [np.setdiff1d(np.flatnonzero(histories[row]), item) for row in np.flatnonzero(histories[:, item])]
        users = [user(*(KNOWN_KEYS + rows), KNOWN_KEYS - 1, 7) for rows in others]
        found = _fallback_guess(model, known_items, ImputationInput({}, users), "m1")
        assert found is not None
        np.testing.assert_allclose(found, guesses[item], rtol=1e-4, atol=1e-5)
        compared += 1
    assert compared > 3
    assert _fallback_guess(model, known_items, ImputationInput({}, [user(KNOWN_KEYS - 1), user()]), "m1") is None
    assert _fallback_guess(model, known_items, ImputationInput({}), "m1") is None


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize(
    ("imputation", "touched", "described", "expected"),
    [
        ("generate", True, True, ("dgmrec-base", "multi-hop")),  # the second where the generator fails
        ("generate", True, False, ("dgmrec-base", "multi-hop")),
        ("generate", False, True, ("dgmrec-base", "nn")),
        ("generate", False, False, ("mean", "mean")),
        ("multi-hop", True, True, ("multi-hop", "multi-hop")),
        ("multi-hop", False, True, ("nn", "nn")),
        ("multi-hop", False, False, ("mean", "mean")),
        ("nn", True, True, ("nn", "nn")),
        ("nn", True, False, ("mean", "mean")),
        ("mean", True, True, ("mean", "mean")),
    ],
)
def test_every_fallback_is_reached_and_named(
    imputation: str, touched: bool, described: bool, expected: tuple[str, str], broken: bool
) -> None:
    model, known_items = chain_parts(imputation)
    rng = np.random.default_rng(0)

    def some() -> dict[str, Any]:
        return {name: rng.standard_normal((1, rank)).astype(np.float32) for name, rank in model.ranks.items()}

    nowhere, near = np.zeros((1, 2), dtype=np.bool_), np.array([[False, described]])
    nothing = np.zeros((2, 1, 8), dtype=np.float32)
    known = ImputationEvidence(
        some(), some(), some(), some(), some(), nothing[0], np.array([[described, False]]), near, nowhere, nothing
    )
    made = some()["m1"] * np.float32(np.nan if broken else 1), np.ones(1, dtype=np.float32)
    item = ImputationInput({}, [user(KNOWN_KEYS + 3, KNOWN_KEYS + 5)] if touched else [])
    feature, generator, confidence = _fallback_chain(model, known_items, known, made, 0, 1, item)
    assert generator == expected[broken]
    assert confidence == (generator == "dgmrec-base")
    told = _fallback_guess(model, known_items, item, "m1")
    by_name = {
        "dgmrec-base": made[0][0],
        "multi-hop": told if told is not None else np.zeros(0),
        "nn": known.neighbour_mean["m1"][0],
        "mean": np.zeros(model.ranks["m1"]),
    }
    np.testing.assert_array_equal(feature, by_name[generator])


@pytest.mark.parametrize(
    ("near", "closest", "trust", "touched", "read"),
    [
        (True, (0, 0), 0.0, True, True),
        (False, (0, 0), 0.0, False, False),
        (False, (0, 0), 0.5, False, True),  # for the preference of a cold item
        (False, (0, 0), 0.5, True, False),
        (False, (1, 0), 0.0, True, True),
        (False, (1, 0), 0.0, False, False),
        (False, (0, 1), 0.0, False, True),
    ],
)
def test_neighbours_are_named_where_they_are_read(
    near: bool, closest: tuple[float, float], trust: float, touched: bool, read: bool
) -> None:
    w = world()
    w.model.tower("m1").select_inputs(co_interaction_mean=True, neighbour_mean=near)
    w.model.tower("m1").near_duplicate_weights.copy_(torch.tensor(closest))
    w.model.tower("m1").trust.fill_(trust)
    model = online_of(w)
    blocks = {name: np.zeros((1, rank), dtype=np.float32) for name, rank in model.ranks.items()}
    observed, nowhere = np.array([[True, False]]), np.zeros((1, 2), dtype=np.bool_)
    nothing = np.zeros((2, 1, 8), dtype=np.float32)
    known = ImputationEvidence(
        blocks, blocks, blocks, blocks, blocks, nothing[0], observed, ~observed, nowhere, nothing
    )
    neighbours = ("neighbours",) if read else ()
    users = ("users",) if touched else ()
    assert _basis(model, known, 0, 1, "dgmrec", touched=touched) == ("m0", *neighbours, *users)
    assert _basis(model, known, 0, 1, "nn", touched=False) == ("m0", "neighbours")
    assert _basis(model, known, 0, 1, "mean", touched=False) == ()


def test_of_what_training_never_saw_there_is_no_mean() -> None:
    model, known_items = chain_parts("mean")
    has_mean = model.has_mean
    model.has_mean = lambda name: name != "m1" and has_mean(name)  # type: ignore[method-assign]
    blocks = {name: np.zeros((1, rank), dtype=np.float32) for name, rank in model.ranks.items()}
    nowhere, nothing = np.zeros((1, 2), dtype=np.bool_), np.zeros((2, 1, 8), dtype=np.float32)
    known = ImputationEvidence(blocks, blocks, blocks, blocks, blocks, nothing[0], nowhere, nowhere, nowhere, nothing)
    made = blocks["m1"], np.zeros(1, dtype=np.float32)
    assert _fallback_chain(model, known_items, known, made, 0, 1, ImputationInput({}))[1] is None
    assert _fallback_chain(model, known_items, known, made, 0, 0, ImputationInput({}))[1] == "mean"
