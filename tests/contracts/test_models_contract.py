"""The models of a database, over SQLite and over PostgreSQL: which is active, who prepares another, and what is kept of
each."""

from __future__ import annotations

import asyncio

import numpy as np

from service.adapters.sql.store import SqlStore
from service.domain import ModelState, Observed
from service.ports import UNKNOWN, GeneratedWrite, ItemWrite
from tests.contracts.stores import create, event, item, vector


async def states(store: SqlStore) -> dict[str, ModelState]:
    return {row.version: row.state for row in await store.served_models()}


async def registered(store: SqlStore, *versions: str) -> list[SqlStore]:
    return [store.under(await store.register(f"identity of {version}", version)) for version in versions]


async def test_one_model_is_active_and_one_was_before(store: SqlStore) -> None:
    one, two, three = await registered(store, "1", "2", "3")
    assert await store.register("identity of 1", "1") == one.model
    for each, version in ((one, "1"), (two, "2"), (three, "3")):
        positions = (await store.activate(each.model, version)).positions
        assert [(change.kind, change.key, change.model) for change in await store.changes(positions.start - 1)] == [
            ("activated", version, each.model)
        ]
    assert await states(store) == {"1": "known", "2": "previous", "3": "active"}
    assert await store.set_model(three.model, ModelState.FAILED, {})  # which the active one does not
    assert await store.set_model(two.model, ModelState.PREPARING, {"detail": "again"})
    assert not await store.set_model(one.model, ModelState.PREPARING, {})
    assert await states(store) == {"1": "known", "2": "preparing", "3": "active"}


async def test_one_worker_prepares_until_it_is_silent(store: SqlStore) -> None:
    (one,) = await registered(store, "1")
    assert not await store.lease(one.model, "a", 60)  # nobody wants it
    await store.set_model(one.model, ModelState.PREPARING, {})
    assert await store.lease(one.model, "a", 0.2)
    assert await store.lease(one.model, "a", 0.2)
    assert not await store.lease(one.model, "b", 60)
    await store.note_progress(one.model, "b", {"step": "nobody's"})
    await store.note_progress(one.model, "a", {"step": "mine"})
    assert (await store.served_models())[0].progress == {"step": "mine"}
    await asyncio.sleep(0.3)
    assert await store.lease(one.model, "b", 60)
    await store.beat("a", one.model, 0)
    await store.beat("b", one.model, 7)
    assert {(worker.id, worker.ready) for worker in await store.serving_workers()} == {("a", 0), ("b", 7)}
    await store.leave(["a"])
    assert [worker.id for worker in await store.serving_workers()] == ["b"]


async def test_what_is_derived_is_kept_for_each_model(store: SqlStore) -> None:
    one, two = await registered(store, "1", "2")
    await one.write_items(create(item("a", observed={"text": Observed(vector(1), "text", "mine", text="words")})))
    assert (await two.get_items(["a"]))["a"].derived == b""
    again = {"text": Observed(vector(2, 6), "text", "theirs")}
    save = GeneratedWrite("a", 1, {}, "2", b"theirs", recoded=again)
    assert (await two.save_generated([save])).value == [True]
    mine, theirs = (await one.get_items(["a"]))["a"], (await two.get_items(["a"]))["a"]
    assert (mine.observed["text"].encoder, theirs.observed["text"].encoder) == ("mine", "theirs")
    np.testing.assert_array_equal(theirs.observed["text"].vector, vector(2, 6))
    assert theirs.observed["text"].text == "words"
    assert (theirs.derived, theirs.generated) == (b"theirs", {})
    assert mine.generated
    await one.write_items([ItemWrite(item("a", version=2), "upsert", 1)])
    after = (await two.get_items(["a"]))["a"]
    assert (after.derived, after.former) == (b"", b"theirs")
    await two.save_generated(
        [GeneratedWrite("a", 2, {}, "2", b"new", recoded={"image": Observed(vector(0, 0), "text")})]
    )
    assert "image" not in (await two.get_items(["a"]))["a"].observed  # its encoder reads nothing
    while await store.drop_derived(two.model):
        pass
    assert (await two.get_items(["a"]))["a"].former == b""
    assert (await one.get_items(["a"]))["a"].derived


async def test_what_others_have_written_is_enqueued_once(store: SqlStore) -> None:
    one, two = await registered(store, "1", "2")
    await store.activate(one.model, "1")
    await store.set_model(two.model, ModelState.PREPARING, {})
    await one.write_items(create(item("a"), item("b"), item("c")))
    await one.add_feedback([event("u", "a"), event("u", "b", minute=1)])
    entries = await store.changes(0)
    assert await two.pending() == {}
    assert await two.absorb(entries, entries[-1].position)
    assert not await two.absorb(entries, entries[-1].position)
    assert await two.pending() == dict.fromkeys("abc", entries[-1].position)
    assert await one.pending() == {}
    await two.save_generated([GeneratedWrite("a", 1, {}, "2", b"made")])
    deleted = [(await one.delete_item(name)).positions.start for name in ("a", "c")]
    assert {(change.item, change.before) for change in await two.feature_changes()} == {("a", b"made"), ("c", UNKNOWN)}
    assert [change.position for change in await two.feature_changes()] == deleted
    assert "b" in await two.pending()  # met later than a
