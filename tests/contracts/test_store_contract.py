"""The same calls on the store over SQLite and over PostgreSQL."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from service.adapters.cursors import encode_cursor
from service.adapters.sql import SqlStore
from service.domain import Generated, InvalidInputError, Observed, StoreUnavailableError, User
from service.ports import GeneratedWrite, ItemWrite
from tests.contracts.stores import NOON, content, create, emptied, event, item, picture, vector


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/new/store.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def store(url: str) -> AsyncIterator[SqlStore]:
    async with emptied(url) as opened:
        yield opened


async def kinds(store: SqlStore, since: int = 0) -> list[tuple[str, str]]:
    return [(change.kind, change.key) for change in await store.changes(since)]


# --- items -------------------------------------------------------------------------------------------------------


async def test_item_comes_back_as_it_was_written(store: SqlStore) -> None:
    media, image = picture(b"\x89PNG")
    ready = Observed(vector(5, 9), "vector")
    first = item("a", observed={"image": image, "audio": ready})
    second = item("b", title=None, categories=(), metadata={}, available=False, generated={}, observed={}, derived=b"")
    assert await store.write_items(create(first, second), [media]) == ["created", "created"]
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
    assert await store.write_items(create(other, item("b"), item("b", title="again"))) == [
        "exists",
        "created",
        "exists",
    ]
    stored = await store.get_items(["a", "b"])
    assert [stored[key].title for key in "ab"] == ["Title of a", "Title of b"]


async def test_upsert_replaces_every_part(store: SqlStore) -> None:
    assert await store.write_items([ItemWrite(item("a"), "upsert")]) == ["created"]
    new = item("a", version=2, title="new", categories=("hats",), observed={}, generated={}, metadata={"x": 1})
    assert await store.write_items([ItemWrite(new, "upsert")]) == ["replaced"]
    found = await store.get_item("a")
    assert found is not None
    assert content(found) == content(new)
    assert (await store.list_items(limit=5, category="shoes")).items == []


async def test_expected_version_guards_a_write(store: SqlStore) -> None:
    def write(version: int, expected: int, item_id: str = "a") -> ItemWrite:
        return ItemWrite(item(item_id, version=version), "upsert", expected)

    assert await store.write_items([write(1, 0)]) == ["created"]
    assert await store.write_items([write(1, 0), write(2, 1), write(3, 1), write(3, 2)]) == [
        "conflict",
        "replaced",
        "conflict",
        "replaced",
    ]
    assert await store.write_items([write(5, 4), write(2, 1, "absent")]) == ["conflict", "conflict"]
    found = await store.get_item("a")
    assert found is not None
    assert found.version == 3
    assert await store.count_items() == 1


async def test_of_many_writers_on_one_version_one_wins(store: SqlStore) -> None:
    await store.write_items(create(item("a")))
    rivals = [[ItemWrite(item("a", version=2, title=f"rival {n}"), "upsert", 1)] for n in range(12)]
    results = await asyncio.gather(*(store.write_items(rival) for rival in rivals))
    assert sorted(result for [result] in results) == ["conflict"] * 11 + ["replaced"]


async def test_media_lives_as_long_as_an_item_refers_to_it(store: SqlStore) -> None:
    shared, image = picture(b"shared")
    unused, _ = picture(b"of nobody")
    items = [item(key, observed={"image": image}) for key in "abc"]
    assert await store.write_items(create(*items), [shared, shared, unused]) == ["created"] * 3
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
    assert await store.write_items(create(item("a", observed={"image": image})), [media]) == ["exists"]
    assert await store.get_media(media.sha256) is None


async def test_save_generated_replaces_only_the_generated(store: SqlStore) -> None:
    await store.write_items(create(item("a", version=3)))
    made = {"audio": Generated(vector(8, 2), "graph", 0.25, ())}
    assert await store.save_generated([GeneratedWrite("a", 3, made, "next", b"new")]) == [True]
    found = await store.get_item("a")
    assert found is not None
    assert content(found) == content(item("a", version=3, generated=made, model_version="next", derived=b"new"))
    late = [GeneratedWrite("a", 2, {}, "late", b""), GeneratedWrite("nowhere", 1, {}, "late", b"")]
    assert await store.save_generated(late) == [False, False]
    assert await kinds(store) == [("item", "a"), ("item-generated", "a")]


async def test_delete_takes_all_that_hangs_on_an_item(store: SqlStore) -> None:
    await store.write_items(create(item("a"), item("b")))
    await store.add_feedback([event(), event(item_id="b")])
    assert await store.delete_item("a")
    assert not await store.delete_item("a")
    assert await store.get_item("a") is None
    assert [found.item for found in await store.user_history("u1", limit=9)] == ["b"]
    assert await store.write_items(create(item("a", observed={}, generated={}))) == ["created"]
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
        item("b", title="ÄRMEL_lang", categories=("hats",), observed={"image": image}),
        item("c-Wool", title=None, categories=(), observed={}),
    ]
    await store.write_items(create(*items), [media])

    async def ids(**filters: str) -> list[str]:
        return [found.id for found in (await store.list_items(limit=9, **filters)).items]

    assert await ids(category="hats") == ["a", "b"]
    assert await ids(category="hat") == []
    assert await ids(missing="image") == ["a", "c-Wool"]
    assert await ids(missing="text", category="hats") == ["b"]
    assert await ids(q="wOOL") == ["a", "c-Wool"]
    assert await ids(q="ärmel") == ["b"]
    assert await ids(q="0%") == ["a"]
    assert await ids(q="%") == ["a"]
    assert await ids(q="_") == ["b"]
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
    assert await store.add_feedback([event(), rating, event(), event(item_id="gone"), event("u2")]) == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert await store.add_feedback([event(minute=1), event(value=2.0)]) == [True, False]
    assert await store.add_feedback([event(item_id="gone")]) == [False]
    assert await store.add_feedback([]) == []
    history = await store.user_history("u1", limit=9)
    assert history[0] == event(minute=1)
    assert set(history[1:]) == {event(), rating}
    assert [found.timestamp for found in await store.user_history("u1", limit=1)] == [NOON + timedelta(minutes=1)]
    assert await store.user_history("nobody", limit=9) == []


async def test_the_same_moment_in_another_zone_is_the_same_event(store: SqlStore) -> None:
    await store.write_items(create(item("a")))
    east = NOON.astimezone(timezone(timedelta(hours=5)))
    assert await store.add_feedback([event(), event(timestamp=east)]) == [True, False]
    assert await store.add_feedback([event(timestamp=east)]) == [False]


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


async def test_delete_feedback_of_user_item_and_pair(store: SqlStore) -> None:
    await store.write_items(create(item("a"), item("b")))
    await store.add_feedback([event(user, key) for user in ("u1", "u2", "u3") for key in "ab"])
    since = await store.last_change()
    assert await store.delete_feedback(user="u1", item="a") == 1
    assert await store.delete_feedback(item="b") == 3
    assert await store.delete_feedback(user="u2") == 1
    assert await store.delete_feedback(user="u2") == 0
    assert await store.delete_feedback(item="nowhere") == 0
    with pytest.raises(InvalidInputError):
        await store.delete_feedback()
    assert [found.user for found in (await store.list_feedback(limit=9)).items] == ["u3"]
    entries = [("feedback-deleted", user) for user in ("u1", "u1", "u2", "u3", "u2")]
    assert await kinds(store, since) == entries


async def test_users_and_counts_of_items(store: SqlStore) -> None:
    await store.write_items(create(item("a"), item("b"), item("c")))
    await store.add_feedback([event("u1"), event("u2", minute=5), event("u3", minute=2), event("u1", minute=9)])
    await store.add_feedback([event("u1", "b")])
    assert await store.item_users("a", limit=9) == ["u1", "u2", "u3"]
    assert await store.item_users("a", limit=2) == ["u1", "u2"]
    assert await store.item_users("nowhere", limit=9) == []
    assert await store.item_counts() == {"a": 3, "b": 1}
    assert await store.item_counts(["b", "nothing"]) == {"b": 1}
    assert await store.item_counts([]) == {}
    assert await store.get_user("u1") == User("u1", 3, 2, NOON, NOON + timedelta(minutes=9))
    assert await store.get_user("nobody") is None


async def test_user_is_erased(store: SqlStore) -> None:
    await store.write_items(create(item("a"), item("u1")))
    await store.add_feedback([event("u1", text="private"), event("u2")])
    assert await store.delete_user("u1")
    assert not await store.delete_user("u1")
    assert not await store.delete_user("nobody")
    assert await store.get_user("u1") is None
    assert await kinds(store) == [("item", "a"), ("item", "u1"), ("feedback", "u2"), ("user-deleted", "u1")]


# --- change log, errors, meta ------------------------------------------------------------------------------------


async def test_every_write_is_logged_once_in_order(store: SqlStore) -> None:
    start = await store.last_change()
    await store.write_items([*create(item("a"), item("b"), item("a")), ItemWrite(item("b", version=2), "upsert", 1)])
    await store.write_items(create(item("a")))
    await store.add_feedback([event("u1"), event("u2"), event("u1", minute=1)])
    await store.add_feedback([event("u1")])
    await store.delete_item("b")
    log = await store.changes(start)
    assert [(change.kind, change.key) for change in log] == [
        ("item", "a"),
        ("item", "b"),
        ("feedback", "u1"),
        ("feedback", "u2"),
        ("item-deleted", "b"),
    ]
    positions = [change.position for change in log]
    assert positions == sorted(set(positions))
    assert await store.last_change() == positions[-1]
    assert [change.position for change in await store.changes(positions[1], limit=2)] == positions[2:4]


async def test_positions_grow_in_the_order_of_commits(store: SqlStore) -> None:
    """A follower that always reads on from the last position it saw must miss nothing."""
    seen: list[str] = []

    async def follow() -> None:
        position = await store.last_change()
        while len(seen) < 60:
            for change in await store.changes(position):
                position = change.position
                seen.append(change.key)

    following = asyncio.create_task(follow())
    await asyncio.gather(*(store.write_items(create(item(f"i{n}"))) for n in range(60)))
    await asyncio.wait_for(following, 20)
    assert sorted(seen) == sorted(f"i{n}" for n in range(60))


async def test_position_is_never_given_twice(store: SqlStore) -> None:
    await store.write_items(create(item("a")))
    await store.add_feedback([event("u1")])
    before = await store.last_change()
    await store.delete_user("u1")
    assert await store.last_change() > before


async def test_imputation_errors_are_averaged_by_modality(store: SqlStore) -> None:
    assert await store.imputation_errors() == {}
    for confidence, cosine in ((0.5, 0.25), (1.0, 0.75)):
        await store.add_imputation_error("a", "image", confidence, cosine, "v")
    await store.add_imputation_error("a", "text", 0.5, -0.5, "v")
    assert await store.imputation_errors() == {"image": (2, 0.75, 0.5), "text": (1, 0.5, -0.5)}


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
    found = await store.list_items(limit=2, category=odd, q=odd[:50])
    assert [content(each) for each in found.items] == [content(written)]
    assert (await store.user_history(odd[:100], limit=1))[0].text == odd


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
    assert sum(await store.add_feedback(events)) == 60


async def test_closed_store_is_unavailable(store: SqlStore) -> None:
    await store.ping()
    await store.close()
    with pytest.raises(StoreUnavailableError):
        await store.ping()
    with pytest.raises(StoreUnavailableError):
        await store.set_meta("a", "b")
