"""The same calls on the store over SQLite and over PostgreSQL."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest

from models.calibration import CalibrationMap
from models.feedback import EVENT_TYPES, RATED, deciding_events, interest_of, shows_interest
from service.adapters.sql.cursors import encode_cursor
from service.adapters.sql.store import SqlStore
from service.domain import ChangesLostError, Event, Generated, InvalidInputError, Observed, StoreUnavailableError, User
from service.ports import (
    BUCKETS,
    Answer,
    ErrorGroup,
    EventResult,
    FeatureChange,
    GeneratedWrite,
    ImputationErrors,
    ImputationPair,
    ItemWrite,
    Keep,
    PairCount,
    Seen,
    Stored,
    StoredCalibration,
)
from tests.contracts.stores import NOON, content, create, event, item, picture, vector


async def only(store: SqlStore, *ids: str) -> Callable[[Collection[int]], list[int]]:
    """Takes the rows of these items alone."""
    rows = {item.row for item in (await store.get_items(ids)).values()}
    return lambda affected: [row for row in affected if row in rows]


async def kinds(store: SqlStore, since: int = 0) -> list[tuple[str, str]]:
    return [(change.kind, change.key) for change in await store.changes(since)]


# --- items -------------------------------------------------------------------------------------------------------


async def test_item_comes_back_as_it_was_written(store: SqlStore) -> None:
    media, image = picture(b"\x89PNG")
    ready = Observed(vector(5, 9), "vector")
    first = item("a", observed={"image": image, "audio": ready})
    second = item("b", title=None, categories=(), metadata={}, available=False, generated={}, observed={}, derived=b"")
    assert (await store.write_items(create(first, second), [media])).value.results == ["created", "created"]
    for written in (first, second):
        found = await store.get_item(written.id)
        assert found is not None
        assert content(found) == content(written)
    assert set(await store.get_items(["b", "nowhere", "a", "a"])) == {"a", "b"}
    assert await store.get_item("nowhere") is None
    assert await store.get_items([]) == {}
    assert await store.count_items() == 2
    assert await store.get_media(media.sha256) == media
    assert await store.get_media("0" * 64) is None


async def test_vectors_keep_their_bits(store: SqlStore) -> None:
    odd = np.array([1e-45, -0.0, 3.4e38, 1 / 3], np.float32)
    await store.write_items(create(item("a", observed={"x": Observed(odd[::-1], "vector")})))
    found = await store.get_item("a")
    assert found is not None
    assert found.observed["x"].vector.tobytes() == odd[::-1].tobytes()
    assert found.observed["x"].vector.dtype == np.float32


async def test_times_come_back_aware_in_utc(store: SqlStore) -> None:
    east = NOON.astimezone(timezone(timedelta(hours=5)))
    old = datetime(1, 1, 1, tzinfo=UTC)
    await store.write_items(create(item("a", created_at=east, updated_at=old)))
    found = await store.get_item("a")
    assert found is not None
    assert (found.created_at, found.updated_at) == (NOON, old)
    assert found.created_at.utcoffset() == timedelta(0)
    assert (await store.changes(0))[0].at.utcoffset() == timedelta(0)


async def test_create_refuses_what_exists_and_leaves_the_others_alone(store: SqlStore) -> None:
    await store.write_items(create(item("a")))
    other = item("a", title="other")
    assert (await store.write_items(create(other, item("b"), item("b", title="again")))).value.results == [
        "exists",
        "created",
        "exists",
    ]
    stored = await store.get_items(["a", "b"])
    assert [stored[key].title for key in "ab"] == ["Title of a", "Title of b"]


async def test_upsert_replaces_every_part(store: SqlStore) -> None:
    assert (await store.write_items([ItemWrite(item("a"), "upsert")])).value.results == ["created"]
    new = item("a", version=2, title="new", categories=("hats",), observed={}, generated={}, metadata={"x": 1})
    assert (await store.write_items([ItemWrite(new, "upsert")])).value.results == ["replaced"]
    found = await store.get_item("a")
    assert found is not None
    assert content(found) == content(new)
    assert (await store.list_items(limit=5, categories=["shoes"])).items == []


async def test_expected_version_guards_a_write(store: SqlStore) -> None:
    def write(version: int, expected: int, item_id: str = "a") -> ItemWrite:
        return ItemWrite(item(item_id, version=version), "upsert", expected)

    assert (await store.write_items([write(1, 0)])).value.results == ["created"]
    assert (await store.write_items([write(1, 0), write(2, 1), write(3, 1), write(3, 2)])).value.results == [
        "conflict",
        "replaced",
        "conflict",
        "replaced",
    ]
    assert (await store.write_items([write(5, 4), write(2, 1, "absent")])).value.results == ["conflict", "conflict"]
    found = await store.get_item("a")
    assert found is not None
    assert found.version == 3
    assert await store.count_items() == 1


async def test_of_many_writers_on_one_version_one_wins(store: SqlStore) -> None:
    await store.write_items(create(item("a")))
    rivals = [[ItemWrite(item("a", version=2, title=f"rival {n}"), "upsert", 1)] for n in range(12)]
    results = await asyncio.gather(*(store.write_items(rival) for rival in rivals))
    assert sorted(result for one in results for result in one.value.results) == ["conflict"] * 11 + ["replaced"]


async def test_media_lives_as_long_as_an_item_refers_to_it(store: SqlStore) -> None:
    shared, image = picture(b"shared")
    unused, _ = picture(b"of nobody")
    items = [item(key, observed={"image": image}) for key in "abc"]
    assert (await store.write_items(create(*items), [shared, shared, unused])).value.results == ["created"] * 3
    assert await store.get_media(unused.sha256) is None
    await store.write_items([ItemWrite(item("a", version=2), "upsert", 1)])
    await store.delete_item("b")
    await store.write_items([ItemWrite(replace(items[2], version=2), "upsert", 1)])
    assert await store.get_media(shared.sha256) == shared
    await store.delete_item("c")
    assert await store.get_media(shared.sha256) is None


async def test_refused_write_stores_no_media(store: SqlStore) -> None:
    media, image = picture(b"refused")
    await store.write_items(create(item("a")))
    assert (await store.write_items(create(item("a", observed={"image": image})), [media])).value.results == ["exists"]
    assert await store.get_media(media.sha256) is None


async def test_save_generated_replaces_only_the_generated(store: SqlStore) -> None:
    await store.write_items(create(item("a", version=3)))
    made = {"audio": Generated(vector(8, 2), "multi-hop", 0.25, ())}
    remarks = item("a").remarks
    assert (await store.save_generated([GeneratedWrite("a", 3, made, "next", b"new", remarks=remarks)])).value == [True]
    found = await store.get_item("a")
    assert found is not None
    assert content(found) == content(item("a", version=3, generated=made, model_version="next", derived=b"new"))
    late = [GeneratedWrite("a", 2, {}, "late", b""), GeneratedWrite("nowhere", 1, {}, "late", b"")]
    assert (await store.save_generated(late)).value == [False, False]
    assert await kinds(store) == [("item", "a"), ("item-generated", "a")]


async def test_delete_takes_all_that_hangs_on_an_item(store: SqlStore) -> None:
    await store.write_items(create(item("a"), item("b")))
    await store.add_feedback([event(), event(item_id="b")])
    assert (await store.delete_item("a")).value
    assert not (await store.delete_item("a")).value
    assert await store.get_item("a") is None
    assert [found.item for found in (await store.user_items(["u1"], min_rating=None))["u1"]] == ["b"]
    assert (await store.write_items(create(item("a", observed={}, generated={})))).value.results == ["created"]
    assert await store.item_users("a", limit=9) == []


async def test_list_goes_by_code_point_page_by_page(store: SqlStore) -> None:
    ids = ["Z", "a", "_", "B", "a-1", "a.1", "0"]
    await store.write_items(create(*map(item, ids)))
    seen: list[str] = []
    cursor = None
    for _ in range(4):
        page = await store.list_items(limit=2, cursor=cursor)
        seen += [found.id for found in page.items]
        cursor = page.next_cursor
    assert cursor is None
    assert seen == sorted(ids)
    assert (await store.list_items(limit=7)).next_cursor is None


async def test_list_filters(store: SqlStore) -> None:
    media, image = picture(b"x")
    items = [
        item("a", title="100% Wool", categories=("hats", "hats")),
        item("b", title="ÄRMEL_lang", categories=("hats", "warm"), observed={"image": image}),
        item("c-Wool", title=None, categories=(), observed={}),
    ]
    await store.write_items(create(*items), [media])

    async def ids(**filters: Any) -> list[str]:
        return [found.id for found in (await store.list_items(limit=9, **filters)).items]

    assert await ids(categories=["hats"]) == ["a", "b"]
    assert await ids(categories=["hat"]) == []
    assert await ids(categories=["hats", "warm"]) == ["b"]
    assert await ids(categories=["hats", "hat"]) == []
    assert await ids(missing="image") == ["a", "c-Wool"]
    assert await ids(missing="text", categories=["hats"]) == ["b"]
    assert await ids(q="wOOL") == ["a", "c-Wool"]
    assert await ids(q="ärmel") == ["b"]
    assert await ids(q="0%") == ["a"]
    assert await ids(q="%") == ["a"]
    assert await ids(q="_") == ["b"]
    assert await ids(q="a\u0308rmel") == ["b"]  # however its letters are written
    assert await ids(q="") == ["a", "b", "c-Wool"]
    assert await ids(q="x" * 100_000) == []


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "!",
        "%%%",
        "é",
        "AAAA",
        encode_cursor("item"),
        encode_cursor("feedback", "1", "1"),
        encode_cursor("item", "a", "b"),
    ]
    + [base64.urlsafe_b64encode(raw).decode() for raw in (b"[" * 50_000, b'["item",1]', b'"item"', b"\xff")],
)
async def test_foreign_cursor_is_refused(store: SqlStore, cursor: str) -> None:
    with pytest.raises(InvalidInputError, match="cursor"):
        await store.list_items(limit=3, cursor=cursor)
    if cursor != encode_cursor("feedback", "1", "1"):
        with pytest.raises(InvalidInputError, match="cursor"):
            await store.list_feedback(limit=3, cursor=cursor)


@pytest.mark.parametrize(
    "parts", [("x", "1"), ("-1", "1"), ("1", str(2**63)), ("9" * 18, "1"), ("٣", "1"), ("9" * 5000, "1")]
)
async def test_forged_feedback_cursor_is_refused(store: SqlStore, parts: tuple[str, str]) -> None:
    with pytest.raises(InvalidInputError, match="cursor"):
        await store.list_feedback(limit=3, cursor=encode_cursor("feedback", *parts))


async def test_iter_items_goes_by_creation(store: SqlStore) -> None:
    ids = [f"{n % 3}-{n}" for n in range(7)]
    for start in (0, 4):
        await store.write_items(create(*map(item, ids[start : start + 4])))
    await store.write_items([ItemWrite(item(ids[0], version=2), "upsert", 1)])
    batches = [batch async for batch in store.iter_items(batch=3)]
    assert [[found.id for found in batch] for batch in batches] == [ids[:3], ids[3:6], ids[6:]]
    assert content(batches[1][0]) == content(item(ids[3]))


# --- feedback and users ------------------------------------------------------------------------------------------


async def test_feedback_counts_once(store: SqlStore) -> None:
    await store.write_items(create(item("a"), item("b")))
    rating = event(type="rating", value=4.5, text="nice", recommendation_id="r1")
    assert (await store.add_feedback([event(), rating, event(), event(item_id="gone"), event("u2")])).value == [
        "new",
        "new",
        "unchanged",
        "orphan",
        "new",
    ]
    assert (await store.add_feedback([event(minute=1), event()])).value == ["new", "unchanged"]
    assert (await store.add_feedback([event(item_id="gone")])).value == ["orphan"]
    assert (await store.add_feedback([])).value == []
    stored = (await store.list_feedback(limit=9, user="u1")).items
    assert stored[0] == event(minute=1)
    assert set(stored[1:]) == {event(), rating}


async def test_a_repeated_event_with_another_value_or_text_replaces_the_first(store: SqlStore) -> None:
    await store.write_items(create(item("a"), item("b")))
    first, other = event(type="rating", value=5.0), event(item_id="b", type="review", value=4.0, text="nice")
    assert (await store.add_feedback([first, other])).value == ["new", "new"]
    await store.save_review_vectors("e", [(2, 1, vector(2, 1))])
    since = await store.last_change()
    corrected, reworded = replace(first, value=1.0), replace(other, text="broke after a week")
    assert (await store.add_feedback([corrected, other])).value == ["replaced", "unchanged"]
    assert (await store.add_feedback([corrected, reworded])).value == ["unchanged", "replaced"]
    assert set((await store.list_feedback(limit=9)).items) == {corrected, reworded}
    assert await kinds(store, since) == [
        ("feedback", "u1"), ("item-feedback", "a"), ("feedback", "u1"), ("item-feedback", "b")
    ]  # fmt: skip
    (review,) = (await store.documents("item", ["b"], encoder="e", limit=9))["b"]
    assert (review.text, review.vector) == ("broke after a week", None)  # the vector was of the words before
    assert (await store.add_feedback([replace(first, value=2.0), replace(first, value=3.0)])).value == [
        "replaced",
        "unchanged",
    ]  # fmt: skip
    assert (await store.list_feedback(limit=9, item="a")).items == [replace(first, value=3.0)]


async def test_the_newest_event_of_a_pair_decides(store: SqlStore) -> None:
    await store.write_items(create(*(item(key) for key in "abcd")))
    await store.add_feedback(
        [
            event(item_id="a", type="rating", value=5.0),
            event(item_id="a", type="rating", value=1.0, minute=1),
            event(item_id="b", type="dislike"),
            event(item_id="b", type="purchase", minute=2),
            event(item_id="c", type="view", minute=3),
            event(item_id="c", type="rating", value=2.0, minute=3),  # of one moment, what was said outweighs
            event(item_id="d", type="review", text="no stars", minute=4),
        ]
    )
    found = (await store.user_items(["u1"], min_rating=4.0))["u1"]
    assert [(one.item, one.interested) for one in found] == [("d", True), ("c", False), ("b", True), ("a", False)]
    assert [one.timestamp for one in found] == [NOON + timedelta(minutes=minute) for minute in (4, 3, 2, 1)]
    assert [one.interested for one in (await store.user_items(["u1"], min_rating=None))["u1"]] == [True] * 4
    assert await store.user_items(["nobody"], min_rating=4.0) == {}
    assert await store.item_counts(min_rating=4.0) == {"b": 1, "d": 1}
    assert await store.item_counts(["a", "b"], min_rating=None) == {"a": 1, "b": 1}
    assert await store.interested_users(["a"], limit=9, min_rating=4.0) == {}
    assert await store.interested_users(["a", "gone"], limit=9, min_rating=1.0) == {"a": ["u1"]}


async def test_sql_and_python_agree_on_what_shows_interest(store: SqlStore) -> None:
    rng = np.random.default_rng(5)
    await store.write_items(create(*(item(str(key)) for key in range(4))))
    events = []
    for _ in range(300):
        kind = EVENT_TYPES[rng.integers(len(EVENT_TYPES))]
        value = None if kind not in RATED or (kind == "review" and rng.random() < 0.3) else float(rng.integers(1, 6))
        user, key = f"u{rng.integers(3)}", str(rng.integers(4))
        events.append(event(user, key, type=kind, value=value, minute=int(rng.integers(6))))
    await store.add_feedback(events)
    stored = (await store.list_feedback(limit=400)).items
    for min_rating in (None, 3.0, 4.0):
        pairs = np.array([int(one.user[1:]) * 4 + int(one.item) for one in stored])
        kinds_of = np.array([EVENT_TYPES.index(one.type) for one in stored], dtype=np.uint8)
        values = np.array([np.nan if one.value is None else one.value for one in stored])
        newest = deciding_events(pairs, kinds_of, np.array([one.timestamp.timestamp() for one in stored]))
        interested = interest_of(kinds_of, values, min_rating)
        scalar = [shows_interest(one.type, one.value, min_rating) for one in stored]
        assert interested.tolist() == scalar
        expected = {(stored[k].user, stored[k].item): bool(interested[k]) for k in newest}
        found = {
            (user, one.item): one.interested
            for user, its in (await store.user_items(["u0", "u1", "u2"], min_rating=min_rating)).items()
            for one in its
        }
        assert found == expected
        counts = Counter(key for (_, key), liked in expected.items() if liked)
        assert await store.item_counts(min_rating=min_rating) == counts


async def test_the_same_moment_in_another_zone_is_the_same_event(store: SqlStore) -> None:
    await store.write_items(create(item("a")))
    east = NOON.astimezone(timezone(timedelta(hours=5)))
    assert (await store.add_feedback([event(), event(timestamp=east)])).value == ["new", "unchanged"]
    assert (await store.add_feedback([event(timestamp=east)])).value == ["unchanged"]


async def test_list_feedback_pages_newest_first(store: SqlStore) -> None:
    await store.write_items(create(item("a"), item("b")))
    events = [event(f"u{n % 2}", "ab"[n // 4], minute=n // 3) for n in range(8)]
    await store.add_feedback(events)
    seen, cursor = [], None
    for _ in range(4):
        page = await store.list_feedback(limit=2, cursor=cursor)
        seen += page.items
        cursor = page.next_cursor
    assert cursor is None
    assert len(seen) == len(set(seen)) == len(set(events))
    assert [found.timestamp for found in seen] == sorted((found.timestamp for found in seen), reverse=True)
    by_pair = await store.list_feedback(limit=9, user="u1", item="a")
    assert {(found.user, found.item) for found in by_pair.items} == {("u1", "a")}
    assert (await store.list_feedback(limit=9, item="nowhere")).items == []


async def test_feedback_of_one_type(store: SqlStore) -> None:
    await store.write_items(create(item("a"), item("b")))
    kinds = ("view", "click", "click")
    events = [event(user, id_, minute=minute, type=kind) for user in ("u1", "u2") for id_ in "ab"
              for minute, kind in enumerate(kinds)]  # fmt: skip
    await store.add_feedback(events)

    async def left(**chosen: str) -> int:
        return len((await store.list_feedback(limit=99, **chosen)).items)

    assert (await left(), await left(kind="click"), await left(kind="click", user="u1"), await left(kind="cart")) == (
        12, 8, 4, 0
    )  # fmt: skip
    assert (await store.delete_feedback(kind="cart")).value == 0
    before = await store.last_change()
    done = await store.delete_feedback(user="u1", item="a", kind="click")
    assert done.value == 2
    assert [(change.kind, change.key) for change in await store.changes(before)] == [
        ("feedback-deleted", "u1"), ("item-feedback", "a")
    ]  # fmt: skip
    assert (await store.delete_feedback(user="u2", kind="click")).value == 4
    assert (await store.delete_feedback(kind="click")).value == 2
    assert (await left(), await left(kind="view")) == (4, 4)
    assert (await store.delete_feedback(item="a", kind="view")).value == 2
    assert await left(item="b") == 2


async def test_delete_feedback_of_user_item_and_pair(store: SqlStore) -> None:
    await store.write_items(create(item("a"), item("b")))
    await store.add_feedback([event(user, key) for user in ("u1", "u2", "u3") for key in "ab"])
    since = await store.last_change()
    assert (await store.delete_feedback(user="u1", item="a")).value == 1
    assert (await store.delete_feedback(item="b")).value == 3
    assert (await store.delete_feedback(user="u2")).value == 1
    assert (await store.delete_feedback(user="u2")).value == 0
    assert (await store.delete_feedback(item="nowhere")).value == 0
    with pytest.raises(InvalidInputError):
        await store.delete_feedback()
    assert [found.user for found in (await store.list_feedback(limit=9)).items] == ["u3"]
    assert await kinds(store, since) == [
        ("feedback-deleted", "u1"),
        ("item-feedback", "a"),
        *(("feedback-deleted", user) for user in ("u1", "u2", "u3")),
        ("item-feedback", "b"),
        ("feedback-deleted", "u2"),
        ("item-feedback", "a"),
    ]


async def test_users_and_counts_of_items(store: SqlStore) -> None:
    await store.write_items(create(item("a"), item("b"), item("c")))
    await store.add_feedback([event("u1"), event("u2", minute=5), event("u3", minute=2), event("u1", minute=9)])
    await store.add_feedback([event("u1", "b")])
    assert await store.item_users("a", limit=9) == ["u1", "u2", "u3"]
    assert await store.item_users("a", limit=2) == ["u1", "u2"]
    assert await store.item_users("nowhere", limit=9) == []
    assert await store.item_counts(min_rating=None) == {"a": 3, "b": 1}
    assert await store.item_counts(["b", "nothing"], min_rating=None) == {"b": 1}
    assert await store.item_counts([], min_rating=None) == {}
    assert await store.get_user("u1") == User("u1", 3, 2, NOON, NOON + timedelta(minutes=9))
    assert await store.get_user("nobody") is None


async def test_user_is_erased(store: SqlStore) -> None:
    await store.write_items(create(item("a"), item("u1")))
    await store.add_feedback([event("u1", text="private"), event("u2")])
    assert (await store.delete_user("u1")).value
    assert not (await store.delete_user("u1")).value
    assert not (await store.delete_user("nobody")).value
    assert await store.get_user("u1") is None
    log = await kinds(store)
    ((_, digest),) = [entry for entry in log if entry[0] == "user-deleted"]
    assert log == [
        ("item", "a"),
        ("item", "u1"),
        ("feedback", "u2"),
        ("item-feedback", "a"),
        ("user-deleted", digest),
        ("item-feedback", "a"),
    ]
    assert "u1" not in digest
    assert await store.erased_users([digest], ["u2", "u1", "u3"]) == ["u1"]
    assert await store.erased_users(["another"], ["u1"]) == []


# --- change log, errors, meta ------------------------------------------------------------------------------------


async def test_a_write_answers_its_positions_in_the_log(store: SqlStore) -> None:
    writes = [
        await store.write_items(create(item("a"), item("b"))),
        await store.add_feedback([event("u1"), event("u2", "b")]),
        await store.save_generated([GeneratedWrite("a", 1, {}, "v", b"")]),
        await store.delete_feedback(user="u2"),
        await store.delete_user("u1"),
        await store.delete_item("a"),
    ]
    positions = [position for write in writes for position in write.positions]
    assert positions == list(range(positions[0], await store.last_change() + 1))
    nothing = [
        await store.write_items(create(item("b"))),
        await store.add_feedback([event("u1", "gone"), event("u1")]),
        await store.save_generated([GeneratedWrite("a", 1, {}, "v", b"")]),
        await store.delete_feedback(user="u2"),
        await store.delete_item("a"),
    ]
    assert [len(write.positions) for write in nothing] == [0] * 5


async def test_of_feedback_with_an_orphan_nothing_is_stored_where_that_is_wanted(store: SqlStore) -> None:
    await store.write_items(create(item("a")))
    events = [event("u1"), event("u1", "gone")]
    done = await store.add_feedback(events, strict=True, renew=await only(store, "a"))
    assert (done.value[1], len(done.positions)) == ("orphan", 0)
    assert await store.get_user("u1") is None
    assert (await store.backlog()).items == 0
    assert (await store.add_feedback(events[:1], strict=True)).value == ["new"]


async def test_the_rows_of_items_are_told_and_never_given_twice(store: SqlStore) -> None:
    first = (await store.write_items(create(item("a"), item("b")))).value.rows
    replaced = await store.write_items([ItemWrite(item("a", version=2), "upsert", 1), *create(item("b"))])
    assert replaced.value.rows == {"a": first["a"]}
    await store.delete_item("b")
    again = (await store.write_items(create(item("b")))).value.rows["b"]
    assert again > max(first.values())
    assert {each.id: each.row for each in (await store.get_items(["a", "b"])).values()} == {"a": first["a"], "b": again}
    assert await store.existing(["a", "gone", "b"]) == {"a", "b"}


# --- what awaits regeneration ------------------------------------------------------------------------------------


async def test_a_mark_goes_when_what_it_stands_for_was_followed(store: SqlStore) -> None:
    await store.write_items(create(item("a"), item("b"), item("c")))
    await store.add_feedback([event(item_id=key) for key in "abc"], renew=await only(store, "a", "b", "gone"))
    positions = await store.pending()
    assert set(positions) == {"a", "b"}
    assert positions == await store.pending(["a", "b", "c", "gone"])
    assert await store.pending(["c"]) == {}
    assert len(await store.pending(limit=1)) == (await store.backlog()).items - 1 == 1
    await store.add_feedback([event("u2", "b")], renew=await only(store, "b"))
    assert (await store.pending())["b"] > positions["b"]
    saves = [GeneratedWrite(key, 1, {}, "v", b"", queued_at=positions[key]) for key in "ab"]
    assert (await store.save_generated(saves)).value == [True, True]
    assert set(await store.pending()) == {"b"}  # there is newer feedback
    await store.dequeue(positions, Seen(await store.last_change()))
    assert set(await store.pending()) == {"b"}
    await store.dequeue(await store.pending(), Seen(await store.last_change()))
    assert (await store.backlog()).items == 0


async def test_a_refused_save_leaves_its_mark(store: SqlStore) -> None:
    await store.write_items(create(item("a")))
    await store.add_feedback([event()], renew=await only(store, "a"))
    queued_at = (await store.pending())["a"]
    assert (await store.save_generated([GeneratedWrite("a", 7, {}, "v", b"", queued_at=queued_at)])).value == [False]
    assert await store.pending() == {"a": queued_at}
    await store.delete_item("a")
    assert await store.pending() == {}


async def test_of_two_that_regenerate_the_later_mark_stays(store: SqlStore) -> None:
    await store.write_items(create(item("a")))
    await store.add_feedback([event()], renew=await only(store, "a"))
    early = (await store.pending())["a"]
    await store.add_feedback([event("u2")], renew=await only(store, "a"))
    late = (await store.pending())["a"]
    saves = [
        GeneratedWrite("a", 1, {}, "v", name, queued_at=queued_at)
        for name, queued_at in ((b"new", late), (b"old", early))
    ]
    assert [(await store.save_generated([save])).value for save in saves] == [[True], [False]]
    assert (await store.get_items(["a"]))["a"].derived == b"new"


@pytest.mark.parametrize("kind", ["feedback", "generated", "nothing"])
async def test_a_write_that_knew_too_little_awaits_regeneration(store: SqlStore, kind: str) -> None:
    await store.write_items(create(item("a"), item("b")))
    await store.add_feedback([event()], renew=await only(store, "a"))
    known, queued_at = await store.last_change(), (await store.pending())["a"]
    if kind == "feedback":
        await store.add_feedback([event("u2")])
    if kind == "generated":
        await store.save_generated([GeneratedWrite("a", 1, {}, "v", b"", queued_at=queued_at)])
    else:
        await store.dequeue({"a": queued_at}, Seen(await store.last_change()))
    writes = [ItemWrite(item(name, version=2), "upsert", 1, seen=Seen(known)) for name in ("a", "b")]
    written = await store.write_items(writes)
    outdated = [] if kind == "nothing" else ["a"]
    assert written.value.outdated == outdated
    assert list(await store.pending()) == outdated


async def test_what_a_user_met_later_awaits_regeneration(store: SqlStore) -> None:
    """What users say of an item follows from what they were interested in before."""
    await store.write_items(create(*map(item, "abcd")))
    events = [event("u1", key, minute=minute) for minute, key in enumerate("abc")]
    await store.add_feedback([*events, event("u2", "d", minute=9)])

    async def affected(*events: Event) -> set[str]:
        await store.dequeue(await store.pending(), Seen(await store.last_change()))
        await store.add_feedback(list(events), min_rating=4.0, renew=list)
        return set(await store.pending())

    assert await affected(event("u1", "d", minute=5)) == {"d"}
    assert await affected(event("u1", "b", minute=7)) == {"b"}  # met before, and liked before
    assert await affected(event("u1", "b", type="dislike", minute=8)) == {"b", "c", "d"}  # liked no longer
    assert await affected(event("u1", "b", type="like", minute=9)) == {"b", "c", "d"}
    assert await affected(event("u1", "a", minute=-1)) == {"a", "b", "c", "d"}  # earlier than anything
    assert await affected(event("u2", "a", type="rating", value=2, minute=8)) == {"a", "d"}
    assert sorted(await store.later_items(["c"])) == ["b", "c", "d"]  # b once more, after c
    await store.dequeue(await store.pending(), Seen(await store.last_change()))
    await store.delete_item("c")
    assert set(await store.pending()) == {"b", "d"}


async def test_changes_of_features_wait_until_they_have_reached_others(store: SqlStore) -> None:
    written = await store.write_items(
        [ItemWrite(item("a"), "create", before=b""), ItemWrite(item("b"), "create"), ItemWrite(item("c"), "create")]
    )
    changed = await store.write_items([ItemWrite(item("a", version=2), "upsert", 1, before=b"old")])
    deleted = await store.delete_item("c", b"gone")
    changes = [
        FeatureChange(positions.start, name, before)
        for positions, name, before in (
            (written.positions, "a", b""),
            (changed.positions, "a", b"old"),
            (deleted.positions, "c", b"gone"),
        )
    ]
    assert await store.feature_changes() == changes
    assert await store.feature_changes(limit=1) == changes[:1]
    backlog = await store.backlog()
    assert (backlog.items, backlog.changes) == (0, 3)
    assert backlog.since is not None
    assert await store.finish_changes([changes[0].position], ["b", "c"]) == {"b": await store.last_change()}
    assert await store.feature_changes() == changes[1:]
    assert await store.pending() == {"b": await store.last_change()}
    assert await store.enqueue_all() == 2
    assert set(await store.pending()) == {"a", "b"}


async def test_an_item_stays_pending_where_others_have_changed_meanwhile(store: SqlStore) -> None:
    await store.write_items(create(item("a"), item("b")))
    seen = Seen(await store.last_change())
    await store.enqueue_all()
    queued_at = (await store.pending())["a"]
    other = await store.write_items(create(item("c")))
    await store.save_generated([GeneratedWrite("a", 1, {}, "v", b"", queued_at=queued_at, seen=seen)])
    await store.dequeue({"b": queued_at}, seen)
    assert set(await store.pending()) == {"a", "b"}
    known = replace(seen, applied=frozenset(other.positions))
    await store.save_generated([GeneratedWrite("a", 1, {}, "v", b"", queued_at=queued_at, seen=known)])
    await store.dequeue({"b": queued_at}, known)
    assert await store.pending() == {}
    late = await store.write_items([ItemWrite(item("b", version=2), "upsert", 1, seen=seen)])
    assert late.value.outdated == ["b"]


async def test_a_change_that_has_yet_to_reach_others_keeps_no_item_pending(store: SqlStore) -> None:
    await store.write_items(create(item("a"), item("b")))
    seen = Seen(await store.last_change())
    await store.enqueue_all()
    queued_at = (await store.pending())["a"]
    other = await store.write_items([ItemWrite(item("c"), "create", before=b"")])
    saved = await store.save_generated([GeneratedWrite("a", 1, {}, "v", b"", queued_at=queued_at, seen=seen)])
    assert set(await store.pending()) == {"b"}
    # Who has not seen what was saved may not know that the change reaches it.
    knows_change = replace(seen, applied=frozenset(other.positions))
    assert await store.finish_changes(other.positions, ["b"], knows_change) is None
    assert await store.feature_changes() == [FeatureChange(other.positions.start, "c", b"")]
    knows_all = replace(seen, applied=frozenset([*other.positions, *saved.positions]))
    assert set(await store.finish_changes(other.positions, ["a"], knows_all) or ()) == {"a"}
    assert set(await store.pending()) == {"a", "b"}
    # Now it has reached others: what was computed without it has to be computed again.
    await store.dequeue({"b": queued_at}, seen)
    assert set(await store.pending()) == {"a", "b"}


async def test_deleted_feedback_asks_for_regeneration(store: SqlStore) -> None:
    await store.write_items(create(item("a"), item("b")))
    await store.add_feedback([event("u1", "a"), event("u2", "b")])
    await store.delete_feedback(user="u1")
    assert set(await store.pending()) == {"a"}
    await store.delete_user("u2")
    assert set(await store.pending()) == {"a", "b"}


# --- idempotency keys --------------------------------------------------------------------------------------------


async def test_a_key_is_taken_once_and_remembers_its_answer(store: SqlStore) -> None:
    assert await store.claim("k", "f", lease_s=60) == "mine"
    assert await store.claim("k", "f", lease_s=60) == "busy"
    assert await store.claim("k", "another", lease_s=60) == "other"
    assert await store.claim("k", "f", lease_s=0) == "mine"  # whoever had it is dead
    await store.answered("k", Answer(201, b"done"))
    await store.release("k")
    assert await store.claim("k", "f", lease_s=0) == Answer(201, b"done")
    assert await store.claim("k", "another", lease_s=0) == "other"
    assert await store.claim("l", "f", lease_s=60) == "mine"
    await store.release("l")
    assert await store.claim("l", "f", lease_s=60) == "mine"
    await store.trim_changes(datetime.now(UTC))
    assert await store.claim("k", "new", lease_s=60) == "mine"


async def test_a_write_keeps_its_answer_in_its_own_transaction(store: SqlStore) -> None:
    for key in "ab":
        await store.claim(key, "f", lease_s=60)
    keep: Keep[Stored] = Keep("a", lambda stored: Answer(201, "".join(stored.results).encode()))
    await store.write_items(create(item("a")), keep=keep)
    assert await store.claim("a", "f", lease_s=0) == Answer(201, b"created")
    events: Keep[list[EventResult]] = Keep("b", lambda results: Answer(200, "".join(results).encode()))
    await store.add_feedback([event(), event(item_id="gone")], keep=events)
    assert await store.claim("b", "f", lease_s=0) == Answer(200, b"neworphan")

    def fail(_: Stored) -> Answer:
        raise RuntimeError("the power is cut")

    with pytest.raises(RuntimeError):
        await store.write_items(create(item("b")), keep=Keep("a", fail))
    assert await store.existing(["a", "b"]) == {"a"}


# --- the change log ----------------------------------------------------------------------------------------------


async def test_who_has_missed_trimmed_entries_is_told(store: SqlStore) -> None:
    await store.write_items(create(item("a")))
    start = await store.last_change()
    await store.write_items(create(item("b")))
    moment = datetime.now(UTC)
    await store.write_items(create(item("c")))
    last = await store.last_change()
    assert await store.trim_changes(NOON - timedelta(days=900)) == 0
    assert await store.trim_changes(moment) == 2
    assert await store.trim_changes(moment) == 0
    for since in (0, start):
        with pytest.raises(ChangesLostError, match="trimmed"):
            await store.changes(since)
    assert [change.key for change in await store.changes(start + 1)] == ["c"]
    assert await store.trim_changes(datetime.now(UTC)) == 0  # the newest entry stays
    assert await store.changes(last) == []
    with pytest.raises(ChangesLostError, match="another"):
        await store.changes(last + 1)


async def test_one_process_at_a_time_is_alone(url: str, store: SqlStore) -> None:
    other = await SqlStore.open(url)
    order: list[str] = []

    async def enter(one: SqlStore, name: str) -> None:
        async with one.alone():
            order.append(name)
            await asyncio.sleep(0.3)
            await one.set_meta(name, "written inside")
            order.append(name)

    await asyncio.gather(*(enter(one, name) for one, name in ((store, "a"), (other, "b"), (store, "c"))))
    await other.close()
    assert order[::2] == order[1::2]
    assert sorted(order[::2]) == ["a", "b", "c"]


async def test_every_write_is_logged_once_in_order(store: SqlStore) -> None:
    start = await store.last_change()
    twice = [*create(item("a"), item("b"), item("a")), ItemWrite(item("b", version=2), "upsert", 1)]
    written = await store.write_items(twice)
    await store.write_items(create(item("a")))
    await store.add_feedback([event("u1"), event("u2"), event("u1", minute=1)])
    await store.add_feedback([event("u1")])
    await store.delete_item("b")
    log = await store.changes(start)
    assert [(change.kind, change.key) for change in log] == [
        ("item", "a"),
        ("feedback", "u1"),
        ("feedback", "u2"),
        ("item-feedback", "a"),
        ("item-deleted", str(written.value.rows["b"])),
    ]
    positions = [change.position for change in log]
    assert positions == sorted(set(positions))
    assert await store.last_change() == positions[-1]
    assert [change.position for change in await store.changes(positions[1], limit=2)] == positions[2:4]


async def test_positions_grow_in_the_order_of_commits(store: SqlStore) -> None:
    """A follower that always reads on from the last position it saw must miss nothing."""
    seen: list[str] = []

    async def follow(position: int) -> None:
        while len(seen) < 60:
            for change in await store.changes(position):
                position = change.position
                seen.append(change.key)

    following = asyncio.create_task(follow(await store.last_change()))  # from before the first write
    await asyncio.gather(*(store.write_items(create(item(f"i{n}"))) for n in range(60)))
    await asyncio.wait_for(following, 20)
    assert sorted(seen) == sorted(f"i{n}" for n in range(60))


async def test_position_is_never_given_twice(store: SqlStore) -> None:
    await store.write_items(create(item("a")))
    await store.add_feedback([event("u1")])
    before = await store.last_change()
    await store.delete_user("u1")
    assert await store.last_change() > before


def pair(modality: str, served: float, cosine: float, *, raw: float = 0.5, bundle: str | None = "b") -> ImputationPair:
    return ImputationPair(modality, raw, served, cosine, "v", bundle)


async def replace_generated(store: SqlStore, item_id: str, *pairs: ImputationPair) -> None:
    before = await store.get_item(item_id)
    assert before is not None
    after = replace(before, version=before.version + 1)
    assert (await store.write_items([ItemWrite(after, "upsert", before.version, pairs=pairs)])).value.results == [
        "replaced"
    ]


async def test_imputation_errors_by_modality_bucket_and_category(store: SqlStore) -> None:
    assert await store.imputation_errors() == ImputationErrors({}, {}, {})
    await store.write_items(create(item("a", categories=("x", "y")), item("b", categories=("x",))))
    await replace_generated(store, "a", pair("image", 0.5, 0.25), pair("text", 1.0, -0.5))
    await replace_generated(store, "b", pair("image", 0.75, 0.75))
    found = await store.imputation_errors()
    assert found.buckets == {
        "image": {5: ErrorGroup(1, 0.5, 0.25), 7: ErrorGroup(1, 0.75, 0.75)},
        "text": {9: ErrorGroup(1, 1.0, -0.5)},
    }
    assert found.recent == found.buckets
    assert found.categories["image"] == {"x": ErrorGroup(2, 0.625, 0.5), "y": ErrorGroup(1, 0.5, 0.25)}
    await store.delete_item("a")
    assert (await store.imputation_errors()).buckets == {"image": {7: ErrorGroup(1, 0.75, 0.75)}}


async def test_a_pair_is_recorded_with_the_write_or_not_at_all(store: SqlStore) -> None:
    await store.write_items(create(item("a")))
    refused = ItemWrite(item("a", version=9), "upsert", 8, pairs=[pair("image", 0.5, 0.5)])
    assert (await store.write_items([refused])).value.results == ["conflict"]
    assert (await store.imputation_errors()).buckets == {}


@pytest.mark.parametrize("served", [0.0, 0.0999, 0.1, 0.3, 0.6, 0.7, 0.9999, 1.0])
async def test_buckets_are_those_of_the_calibration_error(store: SqlStore, served: float) -> None:
    await store.write_items(create(item("a")))
    await replace_generated(store, "a", pair("image", served, 0.5))
    assert set((await store.imputation_errors()).buckets["image"]) == {min(int(served * BUCKETS + 1e-9), BUCKETS - 1)}


async def test_pairs_of_which_a_calibration_is_made(store: SqlStore) -> None:
    await store.write_items(create(item("a")))
    pairs = [pair("image", 0.5, cosine, raw=raw) for raw, cosine in ((0.1, 0.2), (0.3, 0.4), (0.5, 0.6))]
    unknown = pair("image", 0.0, 0.5, raw=0.0)  # of which the model says nothing
    await replace_generated(store, "a", *pairs, unknown, pair("image", 0.5, 0.5, bundle="other"))
    assert await store.count_pairs("b") == {"image": PairCount(3, 3)}
    found = await store.pairs("b", "image", limit=2)
    assert (found.confidences, found.cosines) == ([0.3, 0.5], [0.4, 0.6])
    assert (await store.pairs("nobody", "image", limit=2)).newest == 0


async def test_a_calibration_is_kept_and_logged_unless_there_is_a_later_one(store: SqlStore) -> None:
    await store.write_items(create(item("a")))
    await replace_generated(store, "a", pair("image", 0.5, 0.5))
    newest = (await store.pairs("b", "image", limit=9)).newest
    first = StoredCalibration(CalibrationMap("isotonic", (0.1, 0.9), (0.2, 1 / 3)), 1, newest, 0.25, 0.125, NOON)
    before = await store.last_change()
    saved = await store.save_calibration("b", "image", first)
    assert saved.value
    assert await kinds(store, before) == [("calibration", "b")]
    assert [*saved.positions] == [await store.last_change()]
    assert await store.calibrations("b") == {"image": first}
    assert await store.calibrations("other") == {}
    assert await store.count_pairs("b") == {"image": PairCount(1, 0)}
    assert not (await store.save_calibration("b", "image", replace(first, pairs=7))).value
    later = replace(first, pairs=2, newest=newest + 1)
    assert (await store.save_calibration("b", "image", later)).value
    assert await store.calibrations("b") == {"image": later}


@pytest.mark.parametrize(
    ("missing", "generated", "expected"),
    [
        ("image", True, ["generated"]),
        ("image", False, ["absent"]),
        ("image", None, ["absent", "generated"]),
        (None, True, ["generated"]),
        (None, False, ["absent", "observed"]),
    ],
)
async def test_items_by_what_is_generated(
    store: SqlStore, missing: str | None, generated: bool | None, expected: list[str]
) -> None:
    made = Generated(vector(3, 1), "dgmrec", 0.5, ("text",))
    image = Observed(vector(3, 2), "vector")
    await store.write_items(
        create(
            item("absent", observed={}, generated={}),
            item("generated", observed={}, generated={"image": made}),
            item("observed", observed={"image": image}, generated={}),
        )
    )
    page = await store.list_items(limit=9, missing=missing, generated=generated)
    assert [found.id for found in page.items] == expected


async def test_meta_is_replaced(store: SqlStore) -> None:
    assert await store.get_meta("active") is None
    for value in ("one", "two"):
        await store.set_meta("active", value)
        assert await store.get_meta("active") == value


# --- odd input and failure ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "odd", ["'; DROP TABLE items; --", "👟 \u202e\u0301", "a\nb\t\\", "%s :x {y} $1 ?", "Ω" * 20_000]
)
async def test_any_text_is_kept(store: SqlStore, odd: str) -> None:
    written = item("a", title=odd, categories=(odd,), metadata={odd: odd})
    await store.write_items(create(written))
    await store.add_feedback([event(odd[:100], text=odd)])
    found = await store.list_items(limit=2, categories=[odd], q=odd[:50])
    assert [content(each) for each in found.items] == [content(written)]
    assert (await store.list_feedback(limit=1, user=odd[:100])).items[0].text == odd


async def test_lone_surrogate_is_invalid_input(store: SqlStore) -> None:
    with pytest.raises(InvalidInputError, match="surrogates"):
        await store.get_user("\ud800")
    with pytest.raises(InvalidInputError, match="surrogates"):
        await store.write_items(create(item("a", title="\ud800")))
    assert await store.count_items() == 0


async def test_nul_is_kept_or_invalid_input(store: SqlStore) -> None:
    written = item("a", title="a\x00b")
    try:
        await store.write_items(create(written))
    except InvalidInputError:
        assert await store.get_item("a") is None
    else:
        found = await store.get_item("a")
        assert found is not None
        assert found.title == "a\x00b"
    await store.write_items(create(item("b")))


async def test_failed_write_leaves_nothing(store: SqlStore) -> None:
    since = await store.last_change()
    broken = item("b", observed={"x": Observed(vector(1), "text", text="\ud800")})
    with pytest.raises(InvalidInputError):
        await store.write_items(create(item("a"), broken))
    assert await store.count_items() == 0
    assert await store.last_change() == since


async def test_more_ids_than_one_statement_takes(store: SqlStore) -> None:
    await store.write_items(create(*(item(f"i{n}", observed={}, generated={}, categories=()) for n in range(60))))
    wanted = [f"i{n}" for n in range(40_000)]
    assert len(await store.get_items(wanted)) == 60
    events = [event(f"u{n}", f"i{n}") for n in range(40_000)]
    assert (await store.add_feedback(events)).value.count("new") == 60


async def test_closed_store_is_unavailable(store: SqlStore) -> None:
    await store.ping()
    await store.close()
    with pytest.raises(StoreUnavailableError):
        await store.ping()
    with pytest.raises(StoreUnavailableError):
        await store.set_meta("a", "b")
