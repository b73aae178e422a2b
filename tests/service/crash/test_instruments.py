"""The instruments themselves: they see what they are there to see."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from service.adapters.sql.store import SqlStore
from service.adapters.sql.tables import feedback, item_states, items
from tests.contracts.stores import create, event, item
from tests.service.crash.linear import Call, contend, is_linear
from tests.service.crash.shop import Act, Item, Shop, State
from tests.service.crash.stored import items_told_of, read_states
from tests.service.running import Running

MUG = Item("mug", {}, (), True, 1)
VIEW = ("s-u", "s-1", "view", "2026-01-01T00:00:00+00:00")
STATE = State({"s-1": MUG, "s-2": MUG}, frozenset([VIEW]))


def shop_with(state: State, pending: State | None = None) -> Shop:
    shop = Shop("s", {"text": 3}, random.Random(1))
    shop.state = state
    shop.pending = None if pending is None else Act("put", "PUT", "/items/s-2", 200, pending)
    return shop


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (STATE, None),
        (STATE.without_item("s-2"), "1 items lost, as s-2"),
        (STATE.with_items({"s-3": MUG}), "1 items that should not be, as s-3"),
        (STATE.with_items({"s-2": replace(MUG, version=3)}), "1 items changed"),
        (replace(STATE, events=frozenset()), "1 events lost"),
        (replace(STATE, events=STATE.events | {("s-u", "s-2", "view", "now")}), "1 events that should not be"),
    ],
)
def test_a_shop_sees_what_is_not_as_it_was_acknowledged(stored: State, said: str | None) -> None:
    fault = shop_with(STATE).resolve(stored)
    assert (fault is None) if said is None else said in (fault or "")


def test_an_unanswered_write_may_be_done_or_not_but_not_by_half() -> None:
    after = STATE.with_items({"s-2": replace(MUG, title="hat", version=2), "s-3": MUG})
    for stored in (STATE, after):
        shop = shop_with(STATE, after)
        assert shop.resolve(stored) is None
        assert (shop.state, shop.pending) == (stored, None)
    half = STATE.with_items({"s-3": MUG})
    assert shop_with(STATE, after).resolve(half) is not None


def test_a_shop_sees_a_wrong_answer() -> None:
    shop = shop_with(State())
    shop.work(lambda _: httpx.Response(409, text="taken"), lambda: not shop.violations)
    assert "answered 409: taken" in shop.violations[0]


def test_a_user_tells_of_an_item_what_was_met_before() -> None:
    noon, one, later = (f"2026-01-01T{clock}+00:00" for clock in ("12:00:00", "12:00:00.500000", "13:00:00"))
    first = [("u", "a", "view", noon), ("v", "b", "view", noon), ("v", "b", "click", later)]
    assert items_told_of(first) == set()
    assert items_told_of([*first, ("u", "b", "view", one)]) == {"b"}
    assert items_told_of([*first, ("u", "b", "view", noon)]) == {"a", "b"}  # met at once
    assert items_told_of([*first, ("v", "a", "view", one)]) == {"a"}
    assert items_told_of([*first, ("v", "a", "view", later), ("v", "c", "view", one)]) == {"a", "c"}


async def test_half_an_item_and_an_event_of_nobody_are_seen(tmp_path: Path) -> None:
    store = await SqlStore.open(f"sqlite+aiosqlite:///{tmp_path}/lacuna.db")
    await store.write_items(create(item("s-1", categories=()), item("s-2", categories=())))
    await store.add_feedback([event("s-u", "s-1")])
    assert (await read_states(store, ["s"]))[1] == []  # who has met nothing before tells nothing of an item
    await store.add_feedback([event("s-u", "s-2", minute=-1)])
    _, before = await read_states(store, ["s"])
    assert [fault.partition(" was ")[0] for fault in before] == ["image of s-1"]  # the test's items know no users

    def spoil(connection: sa.Connection) -> None:
        row = sa.select(items.c.row_id).where(items.c.id == "s-2").scalar_subquery()
        connection.execute(sa.delete(item_states).where(item_states.c.item_row == row))
        row = dict(connection.execute(sa.select(feedback).order_by(feedback.c.id)).mappings().first() or {})
        connection.execute(sa.insert(feedback), {**row, "id": row["id"] + 9, "type": "click"})

    await store.database.write(spoil)
    states, wrong = await read_states(store, ["s"])
    assert "the item s-2 was stored by half" in wrong
    assert len(states["s"].events) == 3
    await store.close()


def call(method: str, status: int, began: float, ended: float, version: int = 0) -> Call:
    return Call(method, began, ended, status, version)


def test_histories_that_are_linear_and_that_are_not() -> None:
    created, read, gone = call("POST", 201, 0, 1), call("GET", 200, 2, 3, 1), call("DELETE", 204, 4, 5)
    assert is_linear([created, read, gone, call("GET", 404, 6, 7), call("PUT", 201, 8, 9, 1)])
    assert not is_linear([created, read, gone, call("GET", 200, 6, 7, 1)])  # resurrected
    assert not is_linear([created, call("POST", 201, 2, 3)])  # created twice
    assert not is_linear([created, call("PUT", 200, 2, 3, 2), call("PATCH", 200, 4, 5, 2)])  # an update lost
    assert not is_linear([created, call("GET", 404, 2, 3)])  # an acknowledged write unseen
    # At once, in either order; and not where one had ended before.
    assert is_linear([created, call("PUT", 200, 2, 9, 3), call("PATCH", 200, 3, 8, 2)])
    assert not is_linear([created, call("PUT", 200, 2, 3, 3), call("PATCH", 200, 4, 8, 2)])
    assert not is_linear([created, call("PUT", 500, 2, 3)])


def test_many_clients_on_few_items_make_linear_histories(anywhere: Running) -> None:
    ids = [f"contended-{number}" for number in range(4)]
    calls, statuses = asyncio.run(contend(anywhere.url, ids, clients=12, seconds=2.0, seed=1))
    assert [name for name in statuses if int(name.split()[1]) >= 500] == []
    assert statuses.total() > 20
    assert all(is_linear(calls[one]) for one in ids)
    anywhere.check_index()
